"""PDF: a canvas as one page of vector graphics, with text that can be selected, and all of its fonts inside.

Text in letters of Windows' code page 1252 is drawn with its TrueType font. Other text is drawn in high resolution, with
its letters, invisible, in front of it. Fonts are embedded whole. There are no pages, links or forms.
"""

from __future__ import annotations

import functools
import os
import re
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .canvas import (
    POINTS_PER_INCH,
    SHARES,
    Canvas,
    Color,
    FontName,
    Picture,
    Pixels,
    Rectangle,
    Text,
    enlarged,
    is_right_to_left,
    load,
    number,
    write,
)

# what a viewer has to be able to show, by the standard
LONGEST = 14400
# of text that is drawn as pixels
DPI = 600
CODES = range(32, 256)
TRUETYPE = b"\x00\x01\x00\x00"


def document(canvas: Canvas, title: str) -> bytes:
    """Return a canvas as a PDF document.

    Parameters
    ----------
    canvas : zennit_attn.heatmap.canvas.Canvas
        What is drawn.
    title : str
        Title of the document.

    Returns
    -------
    bytes
        The file.

    Raises
    ------
    ValueError
        If the canvas is too large for a page.
    """
    if max(canvas.width, canvas.height) > LONGEST:
        raise ValueError(
            f"got a picture of {canvas.width:.0f} x {canvas.height:.0f} points, of which a page of PDF has at most "
            f"{LONGEST}: give a larger width, explain fewer tokens, or save as .svg or .html."
        )
    page = Page(canvas)
    for item in canvas.items:
        page.draw(item)
    return page.document(title)


class Page:
    """Objects of a document, and what is drawn on its page."""

    def __init__(self, canvas: Canvas) -> None:
        self.canvas = canvas
        # the catalogue, the pages and the page come first, and are written last
        self.objects: list[bytes] = [b"", b"", b""]
        self.operations: list[str] = []
        self.fonts: dict[FontName, int] = {}
        self.images: list[int] = []
        self.hidden: dict[str, int] = {}

    def add(self, entries: str, stream: bytes | None = None) -> int:
        """Add an object, and return its number."""
        if stream is None:
            self.objects.append(f"<< {entries} >>".encode())
        else:
            data = zlib.compress(stream)
            head = f"<< {entries} /Filter /FlateDecode /Length {len(data)} >>\nstream\n"
            self.objects.append(head.encode() + data + b"\nendstream")
        return len(self.objects)

    def draw(self, item: Rectangle | Text | Picture) -> None:
        """Draw something."""
        if isinstance(item, Rectangle):
            self.rectangle(item)
        elif isinstance(item, Picture):
            self.place(self.image(enlarged(item)), (item.width, 0, 0, item.height), item.x, item.y + item.height)
        else:
            self.text(item)

    def rectangle(self, item: Rectangle) -> None:
        """Fill and line a rectangle."""
        if item.fill:
            self.operations.append(f"{rgb(item.fill)} rg {self.box(item, 0)} re f")
        if item.line:
            thickness = item.thickness
            self.operations.append(f"{rgb(item.line)} RG {number(thickness)} w {self.box(item, thickness / 2)} re S")

    def box(self, item: Rectangle, inset: float) -> str:
        """Return the corner and size of a rectangle; the page's height counts from below."""
        corner = (item.x + inset, self.canvas.height - item.y - item.height + inset)
        return " ".join(map(number, (*corner, item.width - 2 * inset, item.height - 2 * inset)))

    def image(self, pixels: Pixels, mask: int | None = None) -> int:
        """Add an image, of shape (rows, columns, 3), or (rows, columns) for a mask."""
        space = "/DeviceRGB" if pixels.ndim == 3 else "/DeviceGray"
        entries = f"/Type /XObject /Subtype /Image /Width {pixels.shape[1]} /Height {pixels.shape[0]}"
        entries += f" /ColorSpace {space} /BitsPerComponent 8" + (f" /SMask {mask} 0 R" if mask else "")
        return self.add(entries, np.ascontiguousarray(pixels).tobytes())

    def place(self, image: int, matrix: tuple[float, float, float, float], x: float, y: float) -> None:
        """Draw an image, which is a unit square, transformed, with its lower left at a point."""
        self.images.append(image)
        numbers = " ".join(map(number, (*matrix, x, self.canvas.height - y)))
        self.operations.append(f"q {numbers} cm /I{image} Do Q")

    def text(self, item: Text) -> None:
        """Draw a text, part by part."""
        face = self.canvas.face
        along = -SHARES[item.anchor] * face.length(item.text, item.size)
        for name, part in face.runs(item.text):
            x, y = (item.x, item.y - along) if item.upright else (item.x + along, item.y)
            length = load(name, 1000).getlength(part) * item.size / 1000
            if is_plain(part) and is_truetype(name):
                self.letters(item, name, part, x, y)
            else:
                self.pixels(item, name, part, x, y, length)
            along += length

    def letters(self, item: Text, name: FontName, part: str, x: float, y: float) -> None:
        """Draw letters with their font."""
        if name not in self.fonts:
            self.fonts[name] = self.font(name)
        codes = part.encode("cp1252").hex()
        self.show(item, f"F{self.fonts[name]}", f"{rgb(item.color)} rg 0 Tr 100 Tz", codes, x, y)

    def pixels(self, item: Text, name: FontName, part: str, x: float, y: float, length: float) -> None:
        """Draw a text as pixels, and its letters, invisible, in front of them."""
        scale = DPI / POINTS_PER_INCH
        size = max(round(item.size * scale), 1)
        mask = Image.new("L", (max(round(length * scale), 1) + 2 * size, 3 * size))
        write(ImageDraw.Draw(mask), (size, 2 * size), [(name, part)], size, 255)
        image = self.image(np.full((1, 1, 3), item.color, np.uint8), self.image(np.asarray(mask)))
        width, height = mask.width / scale, mask.height / scale
        em = size / scale
        if item.upright:
            self.place(image, (0, width, -height, 0), x + em, y + em)
        else:
            self.place(image, (width, 0, 0, height), x - em, y + em)
        if part.strip():
            # what is written from right to left is found in the order in which it is seen
            shown = part[::-1] if any(map(is_right_to_left, part)) else part
            codes = "".join(f"{self.hidden.setdefault(letter, len(self.hidden) + 1):04x}" for letter in shown)
            # each of the invisible letters is as wide as it is high
            stretch = 100 * length / (len(part) * item.size)
            self.show(item, "H", f"3 Tr {number(stretch)} Tz", codes, x, y)

    def show(self, item: Text, font: str, state: str, codes: str, x: float, y: float) -> None:
        """Show codes of a font from a point."""
        turn = "0 1 -1 0" if item.upright else "1 0 0 1"
        place = f"{turn} {number(x)} {number(self.canvas.height - y)} Tm"
        self.operations.append(f"BT /{font} {number(item.size)} Tf {state} {place} <{codes}> Tj ET")

    def font(self, name: FontName) -> int:
        """Add a TrueType font, and return its number."""
        font = load(name, 1000)
        texts = [bytes([code]).decode("cp1252", "replace") for code in CODES]
        widths = " ".join(str(round(font.getlength(text))) for text in texts)
        entries = f"/Type /Font /Subtype /TrueType /BaseFont /{font_name(font)} /Encoding /WinAnsiEncoding"
        entries += f" /FirstChar {CODES[0]} /LastChar {CODES[-1]} /Widths [{widths}]"
        return self.add(f"{entries} /FontDescriptor {self.descriptor(name)} 0 R")

    def descriptor(self, name: FontName) -> int:
        """Add the file of a font, and what describes it."""
        font = load(name, 1000)
        data = font_file(name)
        file = self.add(f"/Length1 {len(data)}", data)
        ascent, descent = font.getmetrics()
        entries = f"/Type /FontDescriptor /FontName /{font_name(font)} /Flags 32 /ItalicAngle 0 /StemV 80"
        entries += (
            f" /Ascent {ascent} /Descent {-descent} /CapHeight {ascent} /FontBBox [-1000 {-descent} 2000 {ascent}]"
        )
        return self.add(f"{entries} /FontFile2 {file} 0 R")

    def hidden_font(self) -> int:
        """Add the font of invisible letters: any glyphs, and what letters they stand for."""
        count = len(self.hidden)
        glyphs = self.add("", bytes(2 * (count + 1)))
        base = f"/BaseFont /{font_name(load(None, 1000))}"
        system = "/CIDSystemInfo << /Registry (Adobe) /Ordering (Identity) /Supplement 0 >>"
        entries = f"/Type /Font /Subtype /CIDFontType2 {base} {system} /DW 1000 /CIDToGIDMap {glyphs} 0 R"
        descendant = self.add(f"{entries} /FontDescriptor {self.descriptor(None)} 0 R")
        letters = self.add("", unicode_map(self.hidden).encode())
        entries = f"/Type /Font /Subtype /Type0 {base} /Encoding /Identity-H"
        return self.add(f"{entries} /DescendantFonts [{descendant} 0 R] /ToUnicode {letters} 0 R")

    def document(self, title: str) -> bytes:
        """Return the file."""
        width, height = number(self.canvas.width), number(self.canvas.height)
        fonts = [f"/F{font} {font} 0 R" for font in self.fonts.values()]
        if self.hidden:
            fonts.append(f"/H {self.hidden_font()} 0 R")
        images = [f"/I{image} {image} 0 R" for image in self.images]
        resources = f"<< /Font << {' '.join(fonts)} >> /XObject << {' '.join(images)} >> >>"
        content = self.add("", "\n".join(self.operations).encode())
        info = self.add(f"/Title <feff{utf16(title)}>")
        self.objects[0] = b"<< /Type /Catalog /Pages 2 0 R >>"
        self.objects[1] = b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>"
        page = f"/Type /Page /Parent 2 0 R /MediaBox [0 0 {width} {height}] /Contents {content} 0 R"
        self.objects[2] = f"<< {page} /Resources {resources} >>".encode()
        return assembled(self.objects, f"/Root 1 0 R /Info {info} 0 R")


def rgb(color: Color) -> str:
    """Write a colour."""
    return " ".join(number(part / 255) for part in color)


def utf16(text: str) -> str:
    """Write a text as hexadecimal UTF-16."""
    return text.encode("utf-16-be", "replace").hex()


def is_plain(text: str) -> bool:
    """Tell whether a text has letters of Windows' code page 1252 only."""
    try:
        text.encode("cp1252")
    except UnicodeEncodeError:
        return False
    return True


def font_file(name: FontName) -> bytes:
    """Return the file of a font that has been loaded."""
    source = load(name, 1000).path
    if isinstance(source, (str, bytes, os.PathLike)):
        return Path(os.fsdecode(source)).read_bytes()
    # Pillow's own font is in memory
    source.seek(0)
    return source.read()


@functools.cache
def is_truetype(name: FontName) -> bool:
    """Tell whether a font has TrueType outlines, and is the only one in its file."""
    return font_file(name).startswith(TRUETYPE)


def font_name(font: ImageFont.FreeTypeFont) -> str:
    """Return the name of a font as PDF writes it."""
    return re.sub(r"[^A-Za-z0-9-]", "", "-".join(part for part in font.getname() if part)) or "Font"


def unicode_map(codes: dict[str, int]) -> str:
    """Return the stream that tells which letters codes stand for, in blocks of at most 100, as the standard has it."""
    pairs = [f"<{code:04x}> <{utf16(letter)}>" for letter, code in codes.items()]
    blocks = [pairs[start : start + 100] for start in range(0, len(pairs), 100)]
    mapped = "\n".join(f"{len(block)} beginbfchar\n" + "\n".join(block) + "\nendbfchar" for block in blocks)
    return (
        "/CIDInit /ProcSet findresource begin\n12 dict begin\nbegincmap\n/CMapName /Letters def\n/CMapType 2 def\n"
        f"1 begincodespacerange\n<0000> <ffff>\nendcodespacerange\n{mapped}\nendcmap\nend\nend"
    )


def assembled(objects: list[bytes], trailer: str) -> bytes:
    """Return a file of numbered objects, with the table that says where each begins."""
    file, places = bytearray(b"%PDF-1.5\n%\xe2\xe3\xcf\xd3\n"), []
    for index, entry in enumerate(objects, 1):
        places.append(len(file))
        file += b"%d 0 obj\n%b\nendobj\n" % (index, entry)
    table = "".join(f"{place:010d} 00000 n \n" for place in places)
    size = len(objects) + 1
    end = f"trailer\n<< /Size {size} {trailer} >>\nstartxref\n{len(file)}\n%%EOF\n"
    return bytes(file) + f"xref\n0 {size}\n0000000000 65535 f \n{table}{end}".encode()
