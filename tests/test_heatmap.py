"""Heatmaps: what they read, what they draw, and what their files hold."""

import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pypdf
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont
from matplotlib.text import Text
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from zennit.image import CMAPS

from zennit_attn import heatmap
from zennit_attn.errors import GlyphWarning
from zennit_attn.heatmap.cells import Words
from zennit_attn.heatmap.figure import CMAP, Paint
from zennit_attn.heatmap.ink import contrast, ink_on
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


def words_of(picture):
    (words,) = (artist for axes in picture.figure.axes for artist in axes.artists if isinstance(artist, Words))
    return words


def cells_of(picture):
    """Return all cells as they are drawn, in points from the upper left of the page, labels too."""
    words = words_of(picture)
    inches, place = picture.figure.get_size_inches(), words.axes.get_position()
    left, top = 72 * inches[0] * place.x0, 72 * inches[1] * (1 - place.y1)
    return [replace(cell, x=cell.x + left, y=cell.y + top) for cell in words.lay(72 * inches[0] * place.width)[0]]


def boxes(picture):
    return [cell for cell in cells_of(picture) if cell.note]


def texts(picture):
    """Return all text of a figure."""
    drawn = [item.get_text() for item in picture.figure.findobj(Text) if item.get_text()]
    has_words = any(isinstance(artist, Words) for axes in picture.figure.axes for artist in axes.artists)
    return drawn + [text for cell in cells_of(picture) for text, *_ in cell.texts] if has_words else drawn


def page_of(picture):
    return (72 * picture.figure.get_size_inches()).tolist()


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
    picture = heatmap.tokens(["<s>", "a", "b"], [9.0, 1.0, -2.0], skip=[0])
    assert [box.line > 0 for box in boxes(picture)] == [True, False, False]
    assert boxes(picture)[0].fill == (178, 24, 43)
    assert "outlined: beyond the scale (+9)" in texts(picture)
    assert picture.limits == [2]
    assert heatmap.tokens(["a", "b"], [9.0, 0.0], skip=[0]).limits == [9]


@settings(max_examples=30, deadline=None)
@given(words=st.lists(st.from_regex(r"▁?m{1,30}", fullmatch=True), min_size=1, max_size=60), rows=st.integers(1, 3))
def test_boxes_do_not_overlap_and_are_inside(words, rows):
    values = {str(row): np.linspace(-1, 1, len(words)) for row in range(rows)}
    picture = heatmap.tokens(["▁", *words], {k: [0.0, *v] for k, v in values.items()}, width=200)
    drawn = boxes(picture)
    assert len(drawn) == rows * (len(words) + 1)
    for box in drawn:
        assert box.x >= 0 <= box.y
        assert box.x + box.width <= page_of(picture)[0]
        assert box.y + box.height <= page_of(picture)[1]
    for one, other in pairwise(drawn):
        # boxes of a word touch each other: 1e-6 is rounding
        assert one.y != other.y or other.x >= one.x + one.width - 1e-6
    face = picture.face
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
        ({"skip": [0, 1]}, "leaves none of 2 tokens"),
        ({"vmax": 0.0}, "vmax=0.0, expected a positive"),
        ({"size": 0}, "size=0, expected positive"),
        ({"cmap": "no-map"}, "cmap='no-map', expected one of gray"),
        ({"font": "no-such-font.ttf"}, "font='no-such-font.ttf', which matplotlib cannot open"),
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
    written = ["".join(element.itertext()) for element in root.iter(f"{space}text")]
    assert sorted(written) == sorted(shown(picture))
    tags = {element.tag.removeprefix(space) for element in root.iter()}
    assert not tags & {"script", "i", "foreignObject"}
    images = [element.get("{http://www.w3.org/1999/xlink}href") for element in root.iter(f"{space}image")]
    assert images
    assert all(reference.startswith("data:image/png;base64,") for reference in images)


@pytest.mark.parametrize("kind", ["png", "pdf", "svg", "html"])
def test_files_have_the_same_bytes_each_time(picture, kind, tmp_path):
    for name in "ab":
        picture.save(tmp_path / f"{name}.{kind}")
    assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()


class Reader(HTMLParser):
    """Tags, and the text of the body."""

    def __init__(self):
        super().__init__()
        self.tags, self.texts, self.stack = set(), [], []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag or tag == "html"

    def handle_data(self, data):
        if self.stack[-1:] != ["title"] and data.strip():
            self.texts.append(data.strip())


def test_html_needs_nothing_else_and_holds_the_words(picture, tmp_path):
    picture.save(tmp_path / "x.html")
    page = (tmp_path / "x.html").read_text(encoding="utf-8")
    for text in (page, picture._repr_html_()):
        reader = Reader()
        reader.feed(text.replace('<meta charset="utf-8">', ""))
        # words are text, which reflows, and so is all that the figure says
        assert {*picture.drawing.shown, "r\\x01<", picture.title, "relevance -5", "+5"} - {""} <= set(reader.texts)
        assert not reader.tags & {"script", "link", "style", "i", "img", "svg"}
        assert 'title="end +5"' in text
        assert not re.findall(r"https?://", text)


def test_html_of_images_holds_their_figure(tmp_path):
    heatmap.images(np.eye(2)).save(tmp_path / "x.html")
    page = (tmp_path / "x.html").read_text(encoding="utf-8")
    assert "<svg" in page
    assert "<script" not in page


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


def pdf_text(file):
    """Return the words of a page, in the order in which they are drawn."""
    return pypdf.PdfReader(file).pages[0].extract_text().split()


def test_pdf_holds_the_words_and_its_fonts(picture, tmp_path):
    picture.save(tmp_path / "x.pdf")
    written = "".join(pdf_text(tmp_path / "x.pdf"))
    for text in shown(picture):
        assert "".join(text.split()) in written
    fonts = pypdf.PdfReader(tmp_path / "x.pdf").pages[0]["/Resources"]["/Font"]
    assert fonts
    for font in fonts.values():
        inner = font.get_object()
        inner = inner["/DescendantFonts"][0].get_object() if "/DescendantFonts" in inner else inner
        assert "/FontFile2" in inner["/FontDescriptor"]


def test_pdf_holds_letters_beyond_latin(tmp_path):
    heatmap.tokens(["▁γ", "▁a"], [1.0, 2.0]).save(tmp_path / "x.pdf")
    assert "γ" in pdf_text(tmp_path / "x.pdf")


def test_a_page_of_pdf_has_a_largest_size(tmp_path):
    with pytest.raises(ValueError, match="of which a page of PDF has at most 14400"):
        heatmap.tokens(["a"], [1.0], width=20_000).save(tmp_path / "x.pdf")


def test_letters_that_no_font_has_are_reported():
    # a private letter, which only its inventor's font has
    picture = heatmap.tokens(["a", "\U000f1234"], [1.0, 2.0])
    with pytest.warns(GlyphWarning, match=r"no font has 1 of the letters.*U\+F1234.*Pass font="):
        picture.image()
    assert picture.face.drawable("\U000f1234") == "U+F1234"
    # viewers of HTML have fonts of their own
    assert "\U000f1234" in picture._repr_html_()


def test_text_takes_the_first_font_that_has_it(tmp_path):
    file = tmp_path / "mine.ttf"
    file.write_bytes(Path(findfont("DejaVu Serif")).read_bytes())
    face = heatmap.tokens(["a"], [1.0], font=[file]).face
    assert face.families[:2] == ["DejaVu Serif", "DejaVu Sans"]


def test_the_same_words_on_axes_wrap_as_these_are_wide():
    picture, figure = heatmap.tokens(["▁word"] * 20, np.ones(20)), Figure(figsize=(6, 3))
    lines = []
    for axes in figure.subplots(1, 2, width_ratios=[1, 3]):
        assert picture.plot(axes) is axes
        words = next(artist for artist in axes.artists if isinstance(artist, Words))
        lines.append(len({cell.y for cell in words.lay(axes.bbox.width * 72 / figure.dpi)[0]}))
    assert lines[0] > lines[1] > 1
    figure.canvas.draw()


def test_traces_and_images_stand_on_axes():
    figure = Figure()
    left, right = figure.subplots(1, 2)
    assert heatmap.trace(np.eye(3), ax=left).figure is figure
    assert heatmap.images(np.eye(3), ax=right).figure is figure
    assert [len(axes.images) for axes in (left, right)] == [1, 1]
    with pytest.raises(ValueError, match="2 images, expected one"):
        heatmap.images([np.eye(3)] * 2, ax=right)


@pytest.mark.parametrize("values", [np.zeros((2, 2)), np.array([[0.0, 3.0]])])
def test_zero_is_exactly_white_in_a_trace(values):
    image = heatmap.trace(values).figure.axes[0].images[0]
    assert image.to_rgba(values, bytes=True)[0, 0].tolist() == [255, 255, 255, 255]


def test_colours_of_matplotlib_have_their_names():
    assert Paint("viridis")(np.array([-1.0, 1.0]), -1, 1).tolist() == [[68, 1, 84], [253, 231, 37]]


def test_a_heatmap_says_what_it_is():
    assert re.fullmatch("<Heatmap of 20 rows, 30 columns, .* points>", repr(heatmap.trace(np.ones((20, 30)))))
    assert repr(heatmap.tokens(["a"] * 300, [1] * 300)).startswith("<TokenHeatmap of 300 tokens, 1 rows, ")
    assert re.fullmatch("<Heatmap of 1 image, .*>", repr(heatmap.images(np.ones((2, 2)), np.ones((2, 2)))))


@pytest.mark.parametrize(
    "picture",
    [
        lambda: heatmap.tokens(["▁the", "▁key", "s"], [0.1, 0.6, -0.2], title="why"),
        lambda: heatmap.tokens([" a", "b"], {"one": [1.0, 2.0], "two": [0.0, -1.0]}),
        lambda: heatmap.trace(np.arange(6.0).reshape(2, 3), ["a", "b"], row_title="token"),
        lambda: heatmap.images(np.arange(12.0).reshape(3, 2, 2), title="three"),
    ],
)
def test_a_small_heatmap_prints_as_it_could_be_written(picture):
    first = picture()
    again = eval(repr(first), {"heatmap": heatmap, "numpy": np})
    assert repr(again) == repr(first)
    assert list(again.texts) == list(first.texts)
    assert np.array_equal(np.asarray(again.image(72)), np.asarray(first.image(72)))


def test_matplotlib_is_imported_at_the_first_picture():
    code = "import sys, zennit_attn.heatmap; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_settings_of_the_process_do_not_count():
    expected = heatmap.trace(np.eye(3)).image(50)
    with matplotlib.rc_context({"figure.facecolor": "red", "savefig.facecolor": "red", "xtick.bottom": False}):
        assert heatmap.trace(np.eye(3)).image(50) == expected


def test_lxt_calls_work_unchanged(tmp_path):
    relevance = torch.tensor([0.5, -1.0, 0.25], dtype=torch.bfloat16, requires_grad=True)
    words = heatmap.clean_tokens(["▁the", "▁key", "s"])
    heatmap.pdf_heatmap(words, relevance, path=str(tmp_path / "new" / "heatmap.pdf"), backend="xelatex")
    written = "".join(pdf_text(tmp_path / "new" / "heatmap.pdf"))
    assert all(text in written for text in ("the", "key", "s", "+1"))
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
    """Return the axes with panels: all but the scale."""
    return picture.figure.axes[:-1]


def pixel(axes):
    return np.asarray(axes.images[0].get_array())[0, 0].tolist()


def test_a_grid_has_labels_and_its_panels_in_order():
    relevance = np.arange(-7.0, 8).reshape(3, 5, 1, 1) * np.ones((1, 1, 4, 6))
    cells = [list(row) for row in relevance]
    names = {"rows": ["r0", "r1", "r2"], "columns": [f"c{i}" for i in range(5)]}
    picture = heatmap.images(cells, labels=[f"l{i}" for i in range(15)], **names)
    found = panels(picture)
    assert len({round(item.get_position().y0, 6) for item in found}) == 3
    assert len({round(item.get_position().x0, 6) for item in found}) == 5
    assert [pixel(item) for item in found] == Paint()(np.arange(-7.0, 8), -7, 7).tolist()
    assert {*names["rows"], *names["columns"], *(f"l{i}" for i in range(15)), "+7"} <= set(texts(picture))
    extent = found[0].get_window_extent()
    assert extent.width / extent.height == pytest.approx(1.5)
    each = heatmap.images(cells, shared=False)
    assert {"±7", "±3", "±0", "+max"} <= set(texts(each))
    assert [pixel(item) for item in panels(each)][0::14] == [[33, 102, 172], [178, 24, 43]]


def test_pictures_stand_beside_relevance():
    photo = Image.new("RGB", (4, 4), (10, 20, 30))
    relevance = torch.ones(2, 2)
    picture = heatmap.images([None, relevance, relevance], [photo, None, photo])
    assert [pixel(item) for item in panels(picture)[:2]] == [[10, 20, 30], [178, 24, 43]]
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
    axes = picture.figure.axes[0]
    cells = axes.images[0].to_rgba(values, bytes=True)[..., :3]
    # a table of 4097 colours is as near as one step of a byte
    np.testing.assert_allclose(cells.astype(int), Paint()(values, -1, 1).astype(int), atol=1)
    scale = 2
    image, (width, height), place = picture.image(72 * scale), page_of(picture), axes.get_position()
    for row, column in np.ndindex(3, 4):
        x = width * (place.x0 + place.width * (column + 0.5) / 4)
        y = height * (1 - place.y1 + place.height * (row + 0.5) / 3)
        assert image.getpixel((round(x * scale), round(y * scale))) == tuple(cells[row, column].tolist())
    assert {"the", "key", "s", "0", "3", "token", "layer", "T", "+1"} <= set(texts(picture))
    for kind in ("pdf", "svg", "html", "png"):
        picture.save(tmp_path / f"x.{kind}")
    assert {"token", "the", "layer"} <= set(pdf_text(tmp_path / "x.pdf"))


def test_values_beyond_the_scale_are_counted():
    note = "1 of 4 values are beyond the scale: all are -1 to +9"
    values = np.array([[0.0, -1.0], [1.0, 9.0]])
    assert note in " ".join(texts(heatmap.trace(values, vmax=2)))
    assert note in " ".join(texts(heatmap.images([values], vmax=2)))
    assert "beyond" not in " ".join(texts(heatmap.images([values])))


def test_labels_that_have_no_room_are_left_out():
    picture = heatmap.trace(np.ones((300, 200)), [f"w{i}" for i in range(300)])
    axes = picture.figure.axes[0]
    labels = [item for item in axes.get_yticklabels() if item.get_text().startswith("w")]
    gaps = np.diff(axes.get_yticks()) * page_of(picture)[1] * axes.get_position().height / 300
    assert (gaps >= labels[0].get_size()).all()
    assert 50 < len(labels) < 300
    with pytest.raises(ValueError, match="1 labels of rows"):
        heatmap.trace(np.ones((2, 2)), ["a"])
    with pytest.raises(ValueError, match="sum over other axes"):
        heatmap.trace(np.ones((2, 2, 2)))


def test_upright_text_is_where_it_should_be():
    picture = heatmap.trace(np.ones((8, 2)), row_title="token")
    page = np.asarray(picture.image(144).convert("L"))
    label = picture.figure.axes[0].yaxis.label
    # the figure has its own resolution, in which it was not drawn
    picture.figure.draw_without_rendering()
    extent, unit = label.get_window_extent(), 72 / picture.figure.dpi
    # the scale stands below the axes
    end = round(2 * page_of(picture)[1] * (1 - picture.figure.axes[0].get_position().y0))
    dark = np.argwhere(page[:end, : round(2 * extent.x1 * unit) + 1] < 128) / 2
    top, bottom = (page_of(picture)[1] - y * unit for y in (extent.y1, extent.y0))
    # a point is two pixels, of which antialiasing takes one, and letters have room beside them
    assert abs(dark[:, 0].min() - top) < 2
    assert abs(dark[:, 0].max() - bottom) < 2
