"""Heatmaps: what they read, what they draw, and what their files hold."""

import re
import sys
import warnings
import zlib
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from zennit.image import CMAPS

from zennit_attn import heatmap
from zennit_attn.errors import GlyphWarning
from zennit_attn.heatmap.canvas import Picture, Rectangle, Text, contrast, ink_on
from zennit_attn.heatmap.figure import CMAP, Paint
from zennit_attn.heatmap.words import ALPHABET, clean_tokens, convention, visible

ROOT = Path(__file__).parent.parent
TEXTS = [
    "the keys to the old cabinet are lost.",
    "naïve café, 5 € – 你好世界 😀👍🏽 привет\n\tend",
    "שלום עולם",
    "def f(x):\n    return x ## 2 ### <b> & 'c'",
]


def trained(model, trainer, pre_tokenizer, decoder):
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer, decoder
    tokenizer.train_from_iterator(TEXTS[:1] * 5, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)


@pytest.fixture(scope="module")
def byte_level():
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    return trained(models.BPE(), trainer, pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel())


@pytest.fixture(scope="module")
def sentencepiece():
    special = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=special, show_progress=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    return trained(
        models.BPE(byte_fallback=True, unk_token="<unk>"),
        trainer,
        pre_tokenizers.Metaspace(prepend_scheme="never"),
        decoders.Sequence(steps),
    )


def tokens_of(tokenizer, text):
    return tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece"])
def test_tokens_join_to_the_text(kind, text, request):
    tokens = tokens_of(request.getfixturevalue(kind), text)
    words = clean_tokens(tokens)
    assert len(words) == len(tokens)
    assert "".join(words) == text


@settings(max_examples=50, deadline=None)
@given(text=st.text(min_size=1, max_size=20))
def test_byte_level_tokens_join_to_any_text(byte_level, text):
    assert "".join(clean_tokens(tokens_of(byte_level, text), byte_level)) == text


def test_word_pieces_join_as_their_decoder_does():
    tokens = ["[CLS]", "un", "##believ", "##able", "###", "keys", "[SEP]"]
    expected = decoders.WordPiece(cleanup=False).decode(tokens[:4]) + " ### keys [SEP]"
    assert "".join(clean_tokens(tokens)).strip() == expected


def test_the_alphabet_of_bytes_is_that_of_tokenizers():
    assert set(ALPHABET) == set(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(ALPHABET.values()) == list(range(256))


@pytest.mark.parametrize(
    ("tokens", "kind"),
    [
        (["<s>", "▁the"], "sentencepiece"),
        # DeepSeek's own tokens have the sign of SentencePiece
        (["<｜begin▁of▁sentence｜>", "the", "Ġkey"], "bytes"),
        (["cafÃ©"], "bytes"),
        (["café", "Ã"], "words"),
        (["keys</w>", "lo", "st</w>"], "suffix"),
        (["the", "###", "##"], "words"),
    ],
)
def test_conventions(tokens, kind):
    assert convention(tokens) == kind


def test_joiners_are_kept_and_what_reorders_text_is_not():
    assert visible(" 👩\u200d🚀") == "👩\u200d🚀"
    assert visible("a\u202eb\u2028") == r"a\u202eb\u2028"


def test_the_vocabulary_tells_the_convention(byte_level):
    (identifier,) = byte_level("é")["input_ids"][:1]
    assert clean_tokens([identifier], byte_level) == ["<0xC3>"]
    assert clean_tokens(torch.tensor([identifier]), byte_level) == ["<0xC3>"]
    assert clean_tokens(["keys</w>", "lo", "st</w>"]) == [" keys", " lo", "st"]
    with pytest.raises(TypeError, match="token of type int"):
        clean_tokens([3])


# ---- colours


@pytest.mark.parametrize("level", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("cmap", [CMAP, *CMAPS])
def test_colours_are_those_of_zennit(cmap, level):
    paint = Paint(cmap, level)
    drawn = paint(np.linspace(-1, 1, 256), -1.0, 1.0)
    # zennit cuts off where we round
    torch.testing.assert_close(
        torch.tensor(drawn, dtype=torch.int64),
        torch.tensor(paint.map.palette(level), dtype=torch.int64),
        atol=1,
        rtol=0,
    )


def test_the_default_colours_are_symmetric_about_white():
    paint, values = Paint(), np.linspace(0, 1, 101)
    assert paint(np.zeros(1), -1, 1).tolist() == [[255, 255, 255]]
    # ColorBrewer's ends are about as dark; 0.05 is a twentieth of the luminance of white
    light = [paint(sign * values, -1, 1) @ (0.2126, 0.7152, 0.0722) / 255 for sign in (1, -1)]
    assert np.abs(light[0] - light[1]).max() < 0.15
    assert all((np.diff(part) < 0).all() for part in light)


@pytest.mark.parametrize("cmap", [CMAP, *CMAPS])
def test_text_can_be_read_on_every_colour(cmap):
    colors = {tuple(color) for color in Paint(cmap)(np.linspace(-1, 1, 256), -1, 1).tolist()}
    # 4.5 is what WCAG asks of text
    assert min(contrast(ink_on(color), color) for color in colors) >= 4.5


# ---- tokens


def boxes(picture):
    return [item for item in picture.canvas.items if isinstance(item, Rectangle) and item.note]


def texts(picture):
    return [item.text for item in picture.canvas.items if isinstance(item, Text)]


def color_at(picture, box, dpi=144):
    return picture.image(dpi).getpixel(tuple(round(value * dpi / 72) for value in (box.x + 2, box.y + 2)))


def test_rows_are_aligned_and_share_a_scale():
    picture = heatmap.tokens(["▁a", "▁key", "s"], {"one": torch.tensor([0.0, 2.0, -1.0]), "two": [0.0, -1.0, 4.0]})
    one, two = boxes(picture)[:3], boxes(picture)[3:]
    assert [box.x for box in one] == [box.x for box in two]
    paint = Paint()
    assert [box.fill for box in (*one, *two)] == [
        tuple(paint(np.array(v), -4, 4).tolist()) for v in [0, 2, -1, 0, -1, 4]
    ]
    assert color_at(picture, one[1]) == one[1].fill
    assert {"one", "two", "key", "s", "+4", "relevance -4"} <= set(texts(picture))
    apart = heatmap.tokens(["a", "b"], {"one": [1, 2], "two": [3, 4]}, shared=False)
    assert {"one ±2", "two ±4"} <= set(texts(apart))
    assert apart.limits == [2, 4]


def test_first_tokens_are_left_out_of_the_scale_and_outlined():
    picture = heatmap.tokens(["<s>", "a", "b"], [9.0, 1.0, -2.0], skip_first=True)
    assert [box.line is not None for box in boxes(picture)] == [True, False, False]
    assert boxes(picture)[0].fill == (178, 24, 43)
    assert "outlined: beyond the scale (+9)" in texts(picture)
    assert picture.limits == [2]
    assert heatmap.tokens(["a", "b"], [9.0, 0.0], skip_first=1).limits == [9]


@settings(max_examples=30, deadline=None)
@given(words=st.lists(st.from_regex(r"▁?m{1,30}", fullmatch=True), min_size=1, max_size=60), rows=st.integers(1, 3))
def test_boxes_do_not_overlap_and_are_inside(words, rows):
    values = {str(row): np.linspace(-1, 1, len(words)) for row in range(rows)}
    picture = heatmap.tokens(["▁", *words], {k: [0.0, *v] for k, v in values.items()}, width=200)
    drawn = boxes(picture)
    assert len(drawn) == rows * (len(words) + 1)
    for box in drawn:
        assert box.x >= 0 <= box.y
        assert box.x + box.width <= picture.canvas.width
        assert box.y + box.height <= picture.canvas.height
    for one, other in pairwise(drawn):
        # boxes of a word touch each other: 1e-6 is rounding
        assert one.y != other.y or other.x >= one.x + one.width - 1e-6
    face = picture.canvas.face
    shown = ["·", *(word.removeprefix("▁") for word in words)] * rows
    assert sorted(shown) == sorted(box.note.split()[0] for box in drawn)
    assert all(face.length(box.note.split()[0], 10) <= box.width for box in drawn)


def test_nothing_is_drawn_in_the_margin():
    picture = heatmap.tokens("how now brown cow".split() * 60, {"a long label": np.arange(240)}, title="gjpqy " * 30)
    page = np.asarray(picture.image(100))
    inner = page[8:-8, 8:-8]
    assert (page == 255).sum() - (inner == 255).sum() == page.size - inner.size
    assert (inner != 255).any()


def test_lines_break_between_words_and_at_new_lines():
    picture = heatmap.tokens(["Ġone", "Ċ", "Ċ", "two"], np.ones(4))
    tops = [box.y for box in boxes(picture)]
    assert tops[0] == tops[1] == tops[2] < tops[3]
    picture = heatmap.tokens(["▁" + "m" * 12, "▁" + "m" * 5, "m" * 5], np.ones(3), width=200)
    tops = [box.y for box in boxes(picture)]
    assert tops[0] < tops[1] == tops[2]


def test_text_from_right_to_left_is_laid_out_so():
    drawn = boxes(heatmap.tokens(["▁שלום", "▁עולם"], [1.0, 2.0]))
    assert drawn[0].x > drawn[1].x
    assert drawn[0].y == drawn[1].y


def test_whole_words_have_the_sum_of_their_tokens():
    picture = heatmap.tokens(["[CLS]", "play", "##ing", "dog"], [1.0, 2.0, 3.0, 4.0], whole_words=True)
    assert picture.words == [" [CLS]", " playing", " dog"]
    np.testing.assert_array_equal(picture.relevance[""], [1, 5, 4])


def test_numbers_stand_below_the_words():
    assert {"+0.50", "-0.25", "0"} <= set(texts(heatmap.tokens(["a", "b", "c"], [0.5, -0.25, 0.0], numbers=True)))


def test_a_terminal_gets_colours_and_no_control_characters(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    picture = heatmap.tokens([" the", "\x1b[2J", "\n", " end\u202e"], {"row": [1.0, -1.0, 0.0, 0.0]})
    colored = picture.ansi()
    assert "\x1b[48;2;178;24;43m" in colored
    plain = re.sub(r"\x1b\[[0-9;]*m", "", colored)
    assert plain == "row: the\\x1b[2J\\n\n end\\u202e  [-1 to +1]"
    monkeypatch.setenv("NO_COLOR", "1")
    assert picture.ansi() == plain == str(picture)


def test_relevance_of_zero_has_a_picture():
    picture = heatmap.tokens(["a", "b"], torch.zeros(2))
    assert "all relevance is zero" in texts(picture)
    assert all(box.fill == (255, 255, 255) for box in boxes(picture))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"relevance": [1.0]}, r"shape \(1,\) for 2 tokens"),
        ({"relevance": [[1.0, 2.0]]}, r"relevance\[0\]"),
        ({"relevance": {}}, "at least one row"),
        ({"relevance": [1.0, float("nan")]}, "1 of 2 values that are not finite"),
        ({"relevance": [1.0, float("inf")]}, "not finite"),
        ({"relevance": ["a", "b"]}, "no array of numbers"),
        ({"skip_first": 2}, "skip_first=2, expected 0 to 1"),
        ({"vmax": 0.0}, "vmax=0.0, expected a positive"),
        ({"size": 0}, "size=0, expected positive"),
        ({"cmap": "viridis"}, "cmap='viridis', expected one of gray"),
        ({"font": "no-such-font.ttf"}, "font='no-such-font.ttf', which Pillow cannot open"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        heatmap.tokens(**{"tokens": ["a", "b"], "relevance": [1.0, 2.0], **arguments})


# ---- files

HOSTILE = ["Ġ<script>alert('&amp;')</script>", "]]>", 'Ġ"q"', "\x00", "\ufffe\ud800", "Ġend"]


@pytest.fixture
def picture():
    return heatmap.tokens(HOSTILE, {"r\x01<": np.arange(6.0)}, title="<i>&\x02")


def shown(picture):
    return [text for text in texts(picture) if text]


def test_svg_is_well_formed_and_holds_the_words(picture, tmp_path):
    picture.save(tmp_path / "x.svg")
    root = ElementTree.parse(tmp_path / "x.svg").getroot()
    space = "{http://www.w3.org/2000/svg}"
    assert [element.text for element in root.iter(f"{space}text")] == shown(picture)
    assert {element.tag.removeprefix(space) for element in root.iter()} == {"svg", "text", "rect", "title", "image"}
    images = [element.get("href") for element in root.iter(f"{space}image")]
    assert all(reference.startswith("data:image/png;base64,") for reference in images)


class Reader(HTMLParser):
    """Tags, and the text inside of text elements."""

    def __init__(self):
        super().__init__()
        self.tags, self.texts, self.stack = set(), [], []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag or tag == "html"

    def handle_data(self, data):
        if self.stack[-1:] == ["text"]:
            self.texts.append(data)


def test_html_needs_nothing_else_and_holds_the_words(picture, tmp_path):
    picture.save(tmp_path / "x.html")
    page = (tmp_path / "x.html").read_text(encoding="utf-8")
    for text in (page, picture._repr_html_()):
        reader = Reader()
        reader.feed(text.replace('<meta charset="utf-8">', ""))
        assert reader.texts == shown(picture)
        assert not reader.tags & {"script", "link", "style", "i"}
        assert set(re.findall(r"https?://[^\"]*", text)) == {"http://www.w3.org/2000/svg"}


def test_png_has_its_resolution(picture, tmp_path):
    picture.save(tmp_path / "x.png", dpi=200)
    with Image.open(tmp_path / "x.png") as image:
        assert image.size == picture.image(200).size
        # PNG counts pixels per metre
        assert image.info["dpi"] == pytest.approx((200, 200), abs=0.1)
    with pytest.raises(ValueError, match=r"expected one that ends with \.png"):
        picture.save(tmp_path / "x.jpg")
    with pytest.raises(ValueError, match="dpi=0"):
        picture.image(0)


def pdf_objects(data):
    """Return the objects of a PDF, found through its table."""
    start = int(re.search(rb"startxref\n(\d+)\n%%EOF\n$", data)[1])
    table = re.match(rb"xref\n0 (\d+)\n0000000000 65535 f \n((?:\d{10} 00000 n \n)+)trailer", data[start:])
    places = [int(line[:10]) for line in table[2].splitlines()]
    assert len(places) == int(table[1]) - 1
    found = {}
    for number, place in enumerate(places, 1):
        head, body = re.match(rb"(\d+) 0 obj\n(<<.*?>>)\n(?:stream|endobj)", data[place:], re.DOTALL).groups()
        assert int(head) == number
        length = re.search(rb"/Length (\d+)", body)
        begin = data.index(b"stream\n", place) + 7 if length else 0
        found[number] = (body.decode(), zlib.decompress(data[begin : begin + int(length[1])]) if length else b"")
    return found


def pdf_text(data):
    """Return the text of a page: that of its fonts' code page, and that of the table of invisible letters."""
    objects = pdf_objects(data)
    content = objects[int(re.search(r"/Contents (\d+)", objects[3][0])[1])][1].decode()
    tables = [stream.decode() for _, stream in objects.values() if b"beginbfchar" in stream]
    pairs = [pair for table in tables for pair in re.findall(r"<(\w{4})> <(\w+)>", table.split("endcodespacerange")[1])]
    letters = {code: bytes.fromhex(text).decode("utf-16-be") for code, text in pairs}
    parts = []
    for font, codes in re.findall(r"BT /(\w+) .*?<(\w*)> Tj", content):
        hidden = "".join(letters[codes[i : i + 4]] for i in range(0, len(codes), 4)) if font == "H" else None
        parts.append(bytes.fromhex(codes).decode("cp1252") if hidden is None else hidden)
    return parts


def test_pdf_holds_the_words_and_its_fonts(picture, tmp_path):
    picture.save(tmp_path / "x.pdf")
    data = (tmp_path / "x.pdf").read_bytes()
    assert [part for part in pdf_text(data) if part] == shown(picture)
    objects = pdf_objects(data)
    descriptors = [body for body, _ in objects.values() if "/Type /FontDescriptor" in body]
    assert descriptors
    for body in descriptors:
        assert objects[int(re.search(r"/FontFile2 (\d+)", body)[1])][1].startswith(b"\x00\x01\x00\x00")


def test_pdf_holds_letters_that_it_draws_as_pixels(tmp_path):
    picture = heatmap.tokens(["▁γ", "▁a"], [1.0, 2.0], font=None)
    with warnings.catch_warnings():
        # without a font that has it, γ is drawn as U+03B3
        warnings.simplefilter("ignore", GlyphWarning)
        picture.save(tmp_path / "x.pdf")
    assert {"γ", "U+03B3"} & set(pdf_text((tmp_path / "x.pdf").read_bytes()))


def test_a_page_of_pdf_has_a_largest_size(tmp_path):
    with pytest.raises(ValueError, match="of which a page of PDF has at most 14400"):
        heatmap.tokens(["a"], [1.0], width=20_000).save(tmp_path / "x.pdf")


def test_letters_that_no_font_has_are_reported():
    # a private letter, which only its inventor's font has
    picture = heatmap.tokens(["a", "\U000f1234"], [1.0, 2.0])
    with pytest.warns(GlyphWarning, match=r"no font has 1 of the letters.*U\+F1234.*Pass font="):
        picture.image()
    assert "U+F1234" in "".join(part for _, part in picture.canvas.face.runs("\U000f1234"))
    # viewers of SVG have fonts of their own
    assert "\U000f1234" in picture._repr_html_()


def test_text_takes_the_first_font_that_has_it(tmp_path):
    file = tmp_path / "mine.ttf"
    from zennit_attn.heatmap.pdf import font_file

    file.write_bytes(font_file(None))
    face = heatmap.tokens(["a"], [1.0], font=[file]).canvas.face
    assert face.runs("a") == [(str(file), "a")]


def test_lxt_calls_work_unchanged(tmp_path):
    relevance = torch.tensor([0.5, -1.0, 0.25], dtype=torch.bfloat16, requires_grad=True)
    words = heatmap.clean_tokens(["▁the", "▁key", "s"])
    heatmap.pdf_heatmap(words, relevance, path=str(tmp_path / "new" / "heatmap.pdf"), backend="xelatex")
    assert {"the", "key", "s", "+1"} <= set(pdf_text((tmp_path / "new" / "heatmap.pdf").read_bytes()))
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["heatmap.pdf"]
    with pytest.raises(ValueError, match="expected -1 to 1"):
        heatmap.pdf_heatmap(words, relevance * 2, path=tmp_path / "x.pdf")


# ---- images


def test_channels_are_summed_and_patches_enlarged():
    relevance = torch.randn(3, 2, 2)
    plain = np.asarray(heatmap.imgify(relevance))
    for scale in (None, 1.0):
        summed = heatmap.imgify(relevance.sum(0), vmax=scale)
        np.testing.assert_array_equal(np.asarray(heatmap.imgify(relevance, vmax=scale)), np.asarray(summed))
    picture = np.full((8, 8), 0.2)
    mixed = np.asarray(heatmap.imgify(relevance, picture, opacity=0.5)).astype(int)
    expected = 0.5 * np.kron(plain, np.ones((4, 4, 1))) + 0.5 * 51
    # half of an odd number is rounded
    assert np.abs(mixed - expected).max() <= 0.5


@pytest.mark.parametrize(
    ("arguments", "ends"),
    [
        ({}, (-2, 2)),
        ({"symmetric": False}, (-2, 1)),
        ({"vmax": 4}, (-4, 4)),
        ({"vmin": -4, "vmax": 1}, (-4, 1)),
        ({"vmin": -3, "symmetric": False}, (-3, 1)),
    ],
)
def test_scales_of_images(arguments, ends):
    image = heatmap.imgify([[-2.0, 0.0, 1.0]], cmap="gray", **arguments)
    expected = [round(255 * min(max((value - ends[0]) / (ends[1] - ends[0]), 0), 1)) for value in (-2, 0, 1)]
    assert [image.getpixel((x, 0))[0] for x in range(3)] == expected


def test_relevance_of_zero_has_the_middle_colour():
    assert heatmap.imgify(torch.zeros(2, 2)).getpixel((0, 0)) == (255, 255, 255)
    picture = heatmap.images(torch.zeros(3, 4, 4), np.zeros((4, 4)))
    assert "all relevance is zero" in texts(picture)
    picture.image(72)


def panels(picture):
    return [item for item in picture.canvas.items if isinstance(item, Picture)][:-1]


def test_a_grid_has_labels_and_its_panels_in_order():
    relevance = np.arange(-7.0, 8).reshape(3, 5, 1, 1) * np.ones((1, 1, 4, 6))
    cells = [list(row) for row in relevance]
    names = {"rows": ["r0", "r1", "r2"], "columns": [f"c{i}" for i in range(5)]}
    picture = heatmap.images(cells, labels=[f"l{i}" for i in range(15)], **names)
    found = panels(picture)
    assert len({item.y for item in found}) == 3
    assert len({item.x for item in found}) == 5
    assert [item.pixels[0, 0].tolist() for item in found] == Paint()(np.arange(-7.0, 8), -7, 7).tolist()
    assert {*names["rows"], *names["columns"], *(f"l{i}" for i in range(15)), "+7"} <= set(texts(picture))
    assert found[0].width / found[0].height == pytest.approx(1.5)
    each = heatmap.images(cells, shared=False)
    assert {"±7", "±3", "±0", "+max"} <= set(texts(each))
    assert [item.pixels[0, 0].tolist() for item in panels(each)][0::14] == [[33, 102, 172], [178, 24, 43]]


def test_pictures_stand_beside_relevance():
    photo = Image.new("RGB", (4, 4), (10, 20, 30))
    relevance = torch.ones(2, 2)
    picture = heatmap.images([None, relevance, relevance], [photo, None, photo])
    assert [item.pixels[0, 0].tolist() for item in panels(picture)[:2]] == [[10, 20, 30], [178, 24, 43]]
    assert len(panels(heatmap.images(torch.randn(7, 3, 2, 2), photo))) == 7


@pytest.mark.parametrize(
    ("relevance", "arguments", "message"),
    [
        (np.zeros(3), {}, "for one image, expected"),
        (np.full((2, 2), np.nan), {}, "4 of 4 values that are not finite"),
        (np.zeros((2, 2)), {"pictures": np.full((2, 2), 2.0)}, "undo the normalisation"),
        (np.zeros((2, 2)), {"pictures": np.zeros((4, 8))}, "or that of its patches"),
        (np.zeros((2, 2)), {"pictures": np.zeros((5, 4, 4))}, "1 or 3 channels"),
        (np.zeros((4, 1, 2, 2)), {"grid": (1, 3)}, "4 images for a grid of 1 x 3"),
        (np.zeros((4, 1, 2, 2)), {"labels": ["a"]}, "1 labels for relevance of 4"),
        (np.zeros((4, 1, 2, 2)), {"rows": ["a", "b"], "grid": (1, 4)}, "labels of 2 rows"),
        ([[np.zeros((2, 2))], []], {}, "in lists that are no grid"),
        ([None], {}, "got no relevance"),
        ([], {}, "got no relevance"),
        (np.zeros((2, 2)), {"vmin": 1, "vmax": 1}, "expected vmin < vmax"),
        (np.zeros((2, 2)), {"opacity": 2, "pictures": np.zeros((2, 2))}, "opacity=2"),
    ],
)
def test_wrong_images(relevance, arguments, message):
    with pytest.raises(ValueError, match=message):
        heatmap.images(relevance, **arguments)


# ---- traces


def test_a_trace_has_its_colours_labels_and_axes(tmp_path):
    values = np.linspace(-1, 1, 12).reshape(3, 4)
    picture = heatmap.trace(values, [" the", " key", "s"], row_title="token", column_title="layer", title="T")
    cells = next(item for item in picture.canvas.items if isinstance(item, Picture))
    np.testing.assert_array_equal(cells.pixels, Paint()(values, -1, 1))
    scale = 2
    image = picture.image(72 * scale)
    for row, column in np.ndindex(3, 4):
        x, y = cells.x + cells.width * (column + 0.5) / 4, cells.y + cells.height * (row + 0.5) / 3
        assert image.getpixel((round(x * scale), round(y * scale))) == tuple(cells.pixels[row, column].tolist())
    assert {"the", "key", "s", "0", "3", "token", "layer", "T", "+1"} <= set(texts(picture))
    for kind in ("pdf", "svg", "html", "png"):
        picture.save(tmp_path / f"x.{kind}")
    assert {"token", "the", "layer"} <= set(pdf_text((tmp_path / "x.pdf").read_bytes()))


def test_values_beyond_the_scale_are_counted():
    note = "1 of 4 values are beyond the scale: all are -1 to +9"
    values = np.array([[0.0, -1.0], [1.0, 9.0]])
    assert note in " ".join(texts(heatmap.trace(values, vmax=2)))
    assert note in " ".join(texts(heatmap.images([values], vmax=2)))
    assert "beyond" not in " ".join(texts(heatmap.images([values])))


def test_labels_that_have_no_room_are_left_out():
    picture = heatmap.trace(np.ones((300, 200)), [f"w{i}" for i in range(300)])
    labels = [item for item in picture.canvas.items if isinstance(item, Text) and item.text.startswith("w")]
    gaps = np.diff([item.y for item in labels])
    assert (gaps >= labels[0].size).all()
    assert 50 < len(labels) < 300
    with pytest.raises(ValueError, match="1 labels of rows"):
        heatmap.trace(np.ones((2, 2)), ["a"])
    with pytest.raises(ValueError, match="sum over other axes"):
        heatmap.trace(np.ones((2, 2, 2)))


def test_upright_text_is_where_it_should_be():
    picture = heatmap.trace(np.ones((8, 2)), row_title="token")
    item = next(item for item in picture.canvas.items if isinstance(item, Text) and item.upright)
    page = np.asarray(picture.image(144).convert("L"))
    dark = np.argwhere(page[:, : round(2 * item.x) + 8] < 128) / 2
    length = picture.canvas.face.length(item.text, item.size)
    # a point is two pixels, of which antialiasing takes one, and letters have room beside them
    assert abs(dark[:, 0].min() - (item.y - length / 2)) < 1.5
    assert abs(dark[:, 0].max() - (item.y + length / 2)) < 1.5


def test_what_the_documentation_shows(tmp_path, monkeypatch):
    text = (ROOT / "docs" / "heatmaps.md").read_text(encoding="utf-8")
    code = "".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", [*sys.path])
    exec(code.replace('"docs/', f'"{tmp_path.as_posix()}/'), {})
    pictures = re.findall(r"\]\((\w+\.png)\)", text)
    assert len(pictures) == 3
    for name in pictures:
        with Image.open(tmp_path / name) as made, Image.open(ROOT / "docs" / name) as shown:
            # versions of FreeType hint letters in their own way
            assert made.size == pytest.approx(shown.size, rel=0.02)
