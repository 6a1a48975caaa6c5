"""Files that are broken, misleading or meant to do harm, each by its name, with what is right."""

import io
import os
import socket
import struct
import zlib

import numpy as np
from PIL import Image

#: Shades of grey from black to white, and a picture in colour.
GREY = np.linspace(0, 255, 8 * 32).round().astype(np.uint8).reshape(8, 32)
COLOUR = np.random.default_rng(0).integers(0, 256, (8, 32, 3), dtype=np.uint8)
WHITE, RED = (255, 255, 255), (255, 0, 0)
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 8\n%%EndComments\nshowpage\n%%EOF\n"


def grey(values):
    """Return shades as RGB."""
    return np.repeat(np.asarray(values, np.uint8)[..., None], 3, -1)


def plain(colour):
    """Return an image of one colour."""
    return np.broadcast_to(np.array(colour, np.uint8), (8, 32, 3))


def saved(image, kind, **options):
    """Return the bytes of an image."""
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def png(width, height, depth=8, colour=0, data=b"", *others):
    """Return a PNG, its chunks by hand."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [(b"IHDR", head), *others, (b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    every = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(every)


def gif(width, height):
    """Return a GIF of hardly any pixels, which says that it has more."""
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x44\x01\x00\x3b"
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6) + frame


def tiff(data, width, height, bits, meaning):
    """Return a TIFF of one channel, its tags by hand."""
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, meaning), (273, 8), (277, 1), (278, height)]
    tags.append((279, len(data)))
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


def turned():
    """Return a PNG that says that it lies on its side."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(Image.fromarray(COLOUR).rotate(90, expand=True), "PNG", exif=exif)


def with_palette(alpha=None):
    """Return a PNG of 8 colours, of which the first may be seen through."""
    image = Image.fromarray(COLOUR).quantize(8)
    options = {} if alpha is None else {"transparency": bytes([alpha] * 8)}
    return saved(image, "PNG", **options), np.asarray(image.convert("RGB"))


def animated(kind):
    """Return frames, of which the first one is the picture."""
    first, other = Image.fromarray(COLOUR), Image.new("RGB", (32, 8), RED)
    if kind == "GIF":
        first = first.quantize(256)
    options = {"lossless": True} if kind == "WEBP" else {}
    return saved(first, kind, save_all=True, append_images=[other], **options)


def of_text(chunk):
    """Return a PNG whose text, small in the file, is 80 MB."""
    body = {b"zTXt": b"a\0\0", b"iTXt": b"a\0\1\0\0\0", b"iCCP": b"a\0\0"}[chunk] + zlib.compress(bytes(80 * 2**20))
    return png(32, 8, 8, 0, b"".join(b"\0" + row.tobytes() for row in GREY), (chunk, body))


GREY16 = GREY.astype(np.uint16) * 257
BLACK_AND_WHITE = Image.fromarray(GREY).convert("1")
WRONG_SUM = png(32, 8, 8, 0, bytes(33 * 8)).replace(b"IHDR\0\0\0\x20", b"IHDR\0\0\0\x21")
CLEAR = Image.new("RGBA", (32, 8), (*RED, 0))
HALF = Image.new("RGBA", (32, 8), (*RED, 128))
PALETTE, OF_PALETTE = with_palette()
FRAME_OF_GIF = np.asarray(Image.fromarray(COLOUR).quantize(256).convert("RGB"))
ROWS16 = b"".join(b"\0" + row.astype(">u2").tobytes() for row in GREY16)

#: What is to be read, and as what, to a tolerance.
RIGHT = {
    "grey of 16 bits, PNG": (saved(Image.fromarray(GREY16), "PNG"), grey(GREY), 0),
    "grey of 16 bits, TIFF": (saved(Image.fromarray(GREY16), "TIFF"), grey(GREY), 0),
    "grey of 16 bits, PGM": (b"P5 32 8 65535\n" + GREY16.astype(">u2").tobytes(), grey(GREY), 0),
    "grey of 10 bits, PGM": (b"P5 32 8 1023\n" + (GREY.astype(int) * 4).astype(">u2").tobytes(), grey(GREY), 1),
    "grey of 4 bits, PNG": (png(32, 8, 4, 0, (b"\0" + bytes([0x0F] * 16)) * 8), grey([[0, 255] * 16] * 8), 0),
    "black and white": (saved(BLACK_AND_WHITE, "PNG"), grey(BLACK_AND_WHITE) * 255, 0),
    "colours of 16 bits, PNG": (
        png(32, 8, 16, 2, b"".join(b"\0" + (row.astype(int) * 257).astype(">u2").tobytes() for row in COLOUR)),
        COLOUR,
        0,
    ),
    "turned by EXIF": (turned(), COLOUR, 0),
    "clear": (saved(CLEAR, "PNG"), plain(WHITE), 0),
    "half clear": (saved(HALF, "PNG"), plain((255, 127, 127)), 1),
    "half clear, WebP": (saved(HALF, "WEBP", lossless=True), plain((255, 127, 127)), 1),
    "clear grey": (saved(Image.new("LA", (32, 8), (9, 0)), "PNG"), plain(WHITE), 0),
    "a clear colour": (saved(Image.new("RGB", (32, 8), RED), "PNG", transparency=RED), plain(WHITE), 0),
    "a clear palette": (with_palette(0)[0], plain(WHITE), 0),
    "a palette": (PALETTE, OF_PALETTE, 0),
    "CMYK, JPEG": (saved(Image.new("CMYK", (32, 8), (255, 0, 0, 0)), "JPEG"), plain((0, 255, 255)), 4),
    "CMYK, TIFF": (saved(Image.new("CMYK", (32, 8), (0, 0, 0, 0)), "TIFF"), plain(WHITE), 0),
    "YCbCr": (saved(Image.new("RGB", (32, 8), (200, 30, 60)), "JPEG"), plain((200, 30, 60)), 4),
    "an animation, GIF": (animated("GIF"), FRAME_OF_GIF, 0),
    "an animation, PNG": (animated("PNG"), COLOUR, 0),
    "an animation, WebP": (animated("WEBP"), COLOUR, 0),
    "pages, TIFF": (animated("TIFF"), COLOUR, 0),
    "a BMP called PNG": (saved(Image.fromarray(COLOUR), "BMP"), COLOUR, 0),
}  # fmt: skip


def truncated(kind):
    """Return half of a file."""
    whole = saved(Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)), kind)
    return whole[: len(whole) // 2]


#: What is to be refused, and by which words.
BAD = {
    "EPS": (EPS, "cannot identify"),
    "PSD": (b"8BPS" + bytes([0, 1]) + bytes(40), "cannot identify"),
    "ICO": (saved(Image.fromarray(COLOUR), "ICO"), "cannot identify"),
    "PCX": (saved(Image.fromarray(COLOUR), "PCX"), "cannot identify"),
    "TGA": (saved(Image.fromarray(COLOUR), "TGA"), "cannot identify"),
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>', "cannot identify"),
    "HTML": (b"<script>alert(1)</script>", "cannot identify"),
    "PDF": (b"%PDF-1.4\n1 0 obj\n<<>>\nendobj\n", "cannot identify"),
    "nothing": (b"", "cannot identify"),
    "a pickle": (b"\x80\x04cos\nsystem\n(S'false'\ntR.", "cannot identify"),
    **{f"half a {kind}": (truncated(kind), "cannot read") for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP")},
    "a PNG without pixels": (png(32, 8)[:33], "cannot read"),
    "a PNG of a wrong sum": (WRONG_SUM, "cannot read"),
    "floats, TIFF": (saved(Image.fromarray(GREY.astype(np.float32) / 255), "TIFF"), "mode 'F'|cannot identify"),
    "floats, PFM": (b"Pf\n32 8\n-1.0\n" + GREY.astype("<f4").tobytes(), "mode 'F'|cannot identify"),
    "integers of 32 bits, TIFF": (saved(Image.fromarray(GREY.astype(np.int32) * 1000), "TIFF"), "mode 'I'"),
    "grey of 12 bits, TIFF": (tiff(bytes(32 * 8 * 3 // 2), 32, 8, 12, 1), "mode 'I;16'"),
    "white as zero, 16 bits, TIFF": (tiff(GREY16.tobytes(), 32, 8, 16, 0), "mode 'I;16'"),
    "a clear grey of 16 bits": (png(32, 8, 16, 0, ROWS16, (b"tRNS", b"\0\0")), "mode 'I"),
    "169 million pixels": (png(13_000, 13_000), "13000 x 13000 pixels|exceeds limit"),
    "10 billion pixels": (png(100_000, 100_000), "exceeds limit"),
    "169 million pixels, GIF": (gif(13_000, 13_000), "13000 x 13000 pixels|exceeds limit"),
    "80 MB of text, zTXt": (of_text(b"zTXt"), "cannot read"),
    "80 MB of text, iTXt": (of_text(b"iTXt"), "cannot read"),
    "80 MB of profile": (of_text(b"iCCP"), "cannot read"),
}  # fmt: skip


def pipe(path):
    """Make a pipe, in which nobody writes."""
    os.mkfifo(path)


def bound_socket(path):
    """Make a socket."""
    with socket.socket(socket.AF_UNIX) as made:
        # the name of a socket may be no longer than 100 letters
        before = os.getcwd()
        os.chdir(path.parent)
        try:
            made.bind(path.name)
        finally:
            os.chdir(before)


#: What is in a folder and no file, how it is made, and by which words it is refused.
NO_FILES = {
    "a pipe": (pipe, "a pipe"),
    "a socket": (bound_socket, "a socket"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "not in|a device"),
    "a link to nothing": (lambda path: path.symlink_to("nowhere.png"), "No such file"),
    "a link to itself": (lambda path: path.symlink_to(path.name), "cannot read"),
}
