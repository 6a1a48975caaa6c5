"""Pictures: scales that leave out, percentiles, patches, photos, curves, and an image and a text in one."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from zennit_attn import heatmap
from zennit_attn.heatmap.cells import Words
from zennit_attn.heatmap.figure import Paint

RED, BLUE, WHITE = [178, 24, 43], [33, 102, 172], [255, 255, 255]


def texts(picture):
    """Return all text but that in boxes."""
    return " ".join(item.get_text() for item in picture.figure.findobj(Text))


def boxes(picture):
    """Return the boxes of words."""
    words = next(artist for axes in picture.figure.axes for artist in axes.artists if isinstance(artist, Words))
    return [cell for cell in words.lay(400)[0] if cell.note]


def pixels(axes):
    return np.asarray(axes.images[0].get_array())


# ---- tokens that the scale leaves out


@pytest.mark.parametrize(
    "skip",
    [
        [0, 3],
        [0, -1],
        range(0, 4, 3),
        slice(None, None, 3),
        [True, False, False, True],
        np.array([0, 3]),
        torch.tensor([True, False, False, True]),
    ],
)
def test_skipped_tokens_are_left_out_of_the_scale_and_outlined(skip):
    picture = heatmap.tokens(["<s>", "a", "b", "</s>"], [9.0, 1.0, -2.0, -7.0], skip=skip)
    assert picture.limits == [2]
    assert [box.line > 0 for box in boxes(picture)] == [True, False, False, True]
    assert "outlined: beyond the scale (+9, -7)" in texts(picture)


def test_the_first_are_skipped_beside_others_and_in_each_row():
    rows = {"one": [9.0, 1.0, -2.0, -7.0], "two": [0.0, 3.0, 1.0, 8.0]}
    names = ["<s>", "a", "b", "</s>"]
    assert heatmap.tokens(names, rows, skip=[0, -1]).limits == [3, 3]
    assert heatmap.tokens(names, rows, skip=[0, -1], shared=False).limits == [2, 3]
    assert heatmap.tokens(names, rows, skip=[]).limits == [9, 9]


def test_a_word_is_left_out_with_any_of_its_tokens():
    picture = heatmap.tokens(["a", "play", "##ing"], [1.0, 5.0, 6.0], whole_words=True, skip=[2])
    assert picture.limits == [1]
    alone = heatmap.tokens(["play", "##ing"], [5.0, 6.0], whole_words=True, skip=[1], vmax="50%")
    assert alone.limits == [11]


@pytest.mark.parametrize(
    ("skip", "message"),
    [
        ([3], "skip=.* for 3 tokens, expected a list of indices from -3 to 2"),
        ([-4], "expected a list of indices"),
        (1, "expected a list of indices"),
        ([0.5], "expected a list of indices"),
        ([True, False], "or a mask of 3 bool"),
        ([1, 0, 0], "each index once; a mask has to be of bool"),
        ([0, -3], "each index once"),
        ([0, 1, 2], "leaves none of 3 tokens"),
        (slice(None), "leaves none of 3 tokens"),
    ],
)
def test_wrong_skips(skip, message):
    with pytest.raises(ValueError, match=message):
        heatmap.tokens(["a", "b", "c"], [1.0, 2.0, 3.0], skip=skip)


# ---- percentiles

VALUES = np.array([*range(1, 100), -5000.0])


def test_a_percentile_is_the_end_of_every_scale():
    limit = np.percentile(np.abs(VALUES), 98)
    assert limit < 100
    words = heatmap.tokens(["w"] * 100, VALUES, vmax="98%")
    assert words.limits == [limit]
    assert [box.line > 0 for box in boxes(words)][-3:] == [False, True, True]
    note = "2 of 100 values are beyond the scale: all are -5e+03 to +99"
    for picture in (
        heatmap.trace(VALUES.reshape(10, 10), vmax="98%"),
        heatmap.images(VALUES.reshape(10, 10), vmax="98%"),
        heatmap.images([VALUES.reshape(10, 10)], vmax="98%", shared=False),
    ):
        assert note in texts(picture)
    assert f"+{limit:.3g}" in texts(heatmap.trace(VALUES.reshape(10, 10), vmax="98%"))
    image = heatmap.imgify([[1.0, 2.0, 3.0, -4.0]], vmax="50%", cmap="gray")
    assert [image.getpixel((x, 0))[0] for x in range(4)] == [round(255 * 0.7), round(255 * 0.9), 255, 0]


def test_a_percentile_of_rows_is_of_all_or_of_each():
    rows = {"one": [0.0, 1.0, 2.0], "two": [4.0, 8.0, 16.0]}
    assert heatmap.tokens(["a"] * 3, rows, vmax="50%").limits == [3, 3]
    assert heatmap.tokens(["a"] * 3, rows, vmax="50%", shared=False).limits == [1, 8]
    assert heatmap.tokens(["a"] * 3, rows, vmax="50%", skip=[0], shared=False).limits == [1.5, 12]


def test_where_the_percentile_is_zero_the_scale_is_of_the_largest():
    sparse = [0.0] * 9 + [-3.0]
    assert heatmap.tokens(["a"] * 10, sparse, vmax="50%").limits == [3]
    assert heatmap.imgify([sparse], vmax="50%").getpixel((9, 0)) == tuple(BLUE)
    assert heatmap.imgify(np.zeros((2, 2)), vmax="50%").getpixel((0, 0)) == tuple(WHITE)


def test_the_least_is_no_percentile():
    with pytest.raises(ValueError, match="vmin='1%', vmax=None, expected finite numbers"):
        heatmap.imgify(np.eye(2), vmin="1%")


@pytest.mark.parametrize("text", ["99", "%", "0%", "101%", "-1%", "nan%", "99 percent", ""])
@pytest.mark.parametrize("draw", [heatmap.trace, heatmap.images, heatmap.imgify])
def test_what_is_no_percentile(draw, text):
    with pytest.raises(ValueError, match=rf"got vmax='{text}', expected a number, or a percentile"):
        draw(np.eye(2), vmax=text)
    with pytest.raises(ValueError, match="expected a number, or a percentile"):
        heatmap.tokens(["a"], [1.0], vmax=text)


# ---- patches and photos


@pytest.mark.parametrize(("patch", "shape"), [(2, (2, 3)), ((1, 3), (4, 2)), (1, (4, 6))])
def test_patches_have_the_sum_of_their_pixels(patch, shape):
    relevance = torch.randn(3, 4, 6, dtype=torch.float64)
    high, wide = 4 // shape[0], 6 // shape[1]
    sums = relevance.numpy().sum(0).reshape(shape[0], high, shape[1], wide).sum((1, 3))
    assert sums.sum() == pytest.approx(relevance.sum().item())
    expected = Paint()(sums, -np.abs(sums).max(), np.abs(sums).max()).repeat(high, 0).repeat(wide, 1)
    np.testing.assert_array_equal(np.asarray(heatmap.imgify(relevance, patch=patch)), expected)
    picture = heatmap.images(relevance, patch=patch)
    np.testing.assert_array_equal(pixels(picture.figure.axes[0]), expected)
    assert f"{np.abs(sums).max():+.3g}" in texts(picture)
    over = heatmap.imgify(relevance, np.zeros((4, 6)), patch=patch, opacity=1)
    np.testing.assert_array_equal(np.asarray(over), expected)


@pytest.mark.parametrize("patch", [5, (2, 4), 0, (3, 3)])
def test_patches_have_to_divide_the_image(patch):
    with pytest.raises(ValueError, match=r"got patch=.* for relevance of 4 x 6 pixels, expected a size that divides"):
        heatmap.images(torch.randn(4, 6), patch=patch)


def photo(color=(200, 30, 60), size=(6, 4)):
    return Image.new("RGB", size, color)


def test_each_picture_stands_beside_its_relevance_as_it_is():
    photos = [photo(), photo((0, 90, 10))]
    picture = heatmap.images(torch.ones(2, 1, 4, 6), photos, beside=True, columns=["a", "b"], opacity=1)
    *panels, _ = picture.figure.axes
    assert [pixels(axes)[0, 0].tolist() for axes in panels] == [[200, 30, 60], RED, [0, 90, 10], RED]
    places = [axes.get_position() for axes in panels]
    gaps = [after.x0 - before.x1 for before, after in pairwise(places)]
    assert 0 < gaps[0] == pytest.approx(gaps[2])
    assert gaps[1] > 2 * gaps[0]
    # a heading stands over the middle of its pair
    heading = next(item for item in picture.figure.findobj(Text) if item.get_text() == "a")
    middle = 72 * picture.figure.get_size_inches()[0] * (places[0].x0 + places[1].x1) / 2
    assert heading.get_position()[0] == pytest.approx(middle)


def test_one_picture_of_all_stands_there_once():
    relevance = [[torch.ones(2, 3), -torch.ones(2, 3)]] * 2
    picture = heatmap.images(relevance, photo(), beside=True, rows=["x", "y"], columns=["a", "b"], opacity=1)
    *panels, _ = picture.figure.axes
    assert [pixels(axes)[0, 0].tolist() for axes in panels] == [[200, 30, 60], RED, BLUE, RED, BLUE]
    assert panels[0].get_position().x1 < panels[3].get_position().x0
    assert panels[3].get_position().x0 == pytest.approx(panels[1].get_position().x0)
    assert "input" in texts(picture)


def test_what_has_no_picture_cannot_stand_beside_it():
    with pytest.raises(ValueError, match="got beside=True without pictures"):
        heatmap.images(torch.ones(2, 2), beside=True)
    axes = heatmap.images(torch.ones(2, 2)).figure.axes[0]
    with pytest.raises(ValueError, match="for 2 images, expected one"):
        heatmap.images(torch.ones(2, 2), photo(size=(2, 2)), beside=True, ax=axes)


def test_a_photo_keeps_its_colours_where_there_is_no_relevance():
    image = heatmap.imgify([[0.0, 1.0, -0.25]], photo(size=(3, 1)), grey=False, opacity=0.5)
    strongest = [(one + other) / 2 for one, other in zip((200, 30, 60), RED, strict=True)]
    quarter = Paint()(np.array(-0.25), -1, 1) * 0.25 + np.array([200, 30, 60]) * 0.75
    for x, expected in enumerate([[200, 30, 60], strongest, quarter]):
        np.testing.assert_allclose(image.getpixel((x, 0)), expected, atol=0.5)
    assert heatmap.imgify(np.zeros((1, 3)), photo(size=(3, 1)), grey=False).getpixel((0, 0)) == (200, 30, 60)
    grey = heatmap.imgify([[0.0, 1.0, -0.25]], photo(size=(3, 1)), opacity=0).getpixel((0, 0))
    assert len(set(grey)) == 1


# ---- curves


def line_of(axes):
    """Return the places and values of a line."""
    return axes.lines[0].get_data()


def test_a_curve_has_its_relevance_under_the_signal_and_seconds(tmp_path):
    relevance, wave = np.array([1.0, -2.0, 0.0, 0.5]), np.array([3.0, 1.0, 2.0, -1.0])
    picture = heatmap.curve(relevance, wave, rate=2, names=["load"], title="T")
    axes = picture.figure.axes[0]
    np.testing.assert_array_equal(axes.images[0].get_array(), [relevance])
    assert axes.images[0].get_clim() == (-2, 2)
    # a sample is in the middle of its colour
    assert tuple(axes.images[0].get_extent()[:2]) == (-0.25, 1.75) == axes.get_xlim()
    np.testing.assert_array_equal(line_of(axes), [[0, 0.5, 1, 1.5], wave])
    assert all(text in texts(picture) for text in ("load", "seconds", "T", "+2", "relevance -2"))
    assert "sum of" not in texts(picture)
    for kind in ("png", "pdf", "svg", "html"):
        picture.save(tmp_path / f"x.{kind}")
    assert "<svg" in picture._repr_html_()
    middle = axes.get_position()
    image = picture.image(144)
    place = (
        round(image.width * (middle.x0 + middle.width * 3 / 8)),
        round(image.height * (1 - middle.y1 + middle.height / 8)),
    )
    assert list(image.getpixel(place)) == BLUE


def test_channels_are_stacked_and_share_a_scale():
    relevance = torch.tensor([[1.0, 0.0, 2.0], [0.0, -8.0, 1.0]])
    picture = heatmap.curve(relevance, torch.randn(2, 6), names=["left", "right"], vmax="50%")
    one, two, _ = picture.figure.axes
    assert one.images[0].get_clim() == two.images[0].get_clim() == (-1, 1)
    assert one.get_position().y0 > two.get_position().y1
    assert one.get_position().x0 == two.get_position().x0
    assert not list(one.get_xticks())
    assert list(two.get_xticks()) == [0, 1, 2, 3, 4, 5]
    assert "2 of 6 values are beyond the scale" in texts(picture)


@pytest.mark.parametrize(("count", "steps"), [(4, 16), (5, 16), (7, 7)])
def test_coarser_relevance_is_drawn_over_its_extent(count, steps):
    relevance = np.arange(1.0, count + 1)
    axes = heatmap.curve(relevance, np.ones(steps)).figure.axes[0]
    image = axes.images[0]
    np.testing.assert_array_equal(image.get_array(), [relevance])
    assert image.get_extent()[:2] == pytest.approx((-0.5, steps - 0.5))


@pytest.mark.parametrize("count", [480, 481, 1000, 10_007])
def test_what_is_narrower_than_a_point_is_summed(count):
    relevance = np.random.default_rng(0).standard_normal(count)
    picture = heatmap.curve(relevance, np.ones(count), rate=100)
    axes = picture.figure.axes[0]
    cells = np.asarray(axes.images[0].get_array())[0]
    assert cells.sum() == pytest.approx(relevance.sum())
    each = -(-count // 480)
    assert len(cells) == -(-count // each) <= 480
    assert cells[3] == pytest.approx(relevance[3 * each : 4 * each].sum())
    assert (f"each colour is the sum of {each} steps ({each / 100:.3g} s)" in texts(picture)) == (each > 1)
    # each colour is as long as its steps, of which the last one may have fewer
    low, high = axes.images[0].get_extent()[:2]
    assert (high - low) / len(cells) == pytest.approx(each / 100)
    assert axes.get_xlim() == pytest.approx((-0.005, count / 100 - 0.005))


def test_a_long_line_keeps_its_peaks():
    wave = np.zeros(1_000_003)
    wave[[17, 500_000, 1_000_002]] = [5.0, -7.0, 3.0]
    axes = heatmap.curve(np.ones(50), wave, rate=16000).figure.axes[0]
    places, values = line_of(axes)
    assert len(values) < 4000
    assert (np.diff(places) >= 0).all()
    for place, value in ((17, 5), (500_000, -7), (1_000_002, 3)):
        assert value in values[np.isclose(places, place / 16000)]


def test_relevance_alone_is_its_own_line():
    relevance = np.array([1.0, -2.0, 0.5])
    axes = heatmap.curve(relevance).figure.axes[0]
    (steps,) = axes.patches
    np.testing.assert_array_equal(steps.get_data().values, relevance)
    np.testing.assert_array_equal(steps.get_data().edges, [-0.5, 0.5, 1.5, 2.5])
    assert "all relevance is zero" in texts(heatmap.curve(np.zeros(3), np.ones(3)))


def test_a_curve_stands_on_axes():
    figure = Figure()
    axes = figure.subplots()
    assert heatmap.curve(np.eye(5)[0], rate=2, title="T", ax=axes).figure is figure
    figure.colorbar(axes.images[0])
    assert axes.get_xlabel() == "seconds"
    assert axes.get_title() == "T"
    with pytest.raises(ValueError, match="ax= for 2 channels"):
        heatmap.curve(np.ones((2, 3)), ax=axes)


@pytest.mark.parametrize(
    ("relevance", "arguments", "message"),
    [
        (np.ones((2, 3, 4)), {}, r"relevance of shape \(2, 3, 4\), expected \(time,\) or"),
        (np.ones(0), {}, "relevance of shape"),
        (np.ones(4), {"values": np.ones(3)}, "at most as many steps"),
        (np.ones((80, 3)), {"values": np.ones(30)}, "sum relevance over other axes, as frequencies"),
        (np.ones(3), {"values": [1.0, np.nan, 2.0]}, "1 of 3 values that are not finite"),
        (np.ones(3), {"rate": 0}, "rate=0, expected a positive"),
        (np.ones((2, 3)), {"names": ["a"]}, "1 names for 2 channels"),
        (np.ones(3), {"vmax": "most"}, "vmax='most'"),
    ],
)
def test_wrong_curves(relevance, arguments, message):
    with pytest.raises(ValueError, match=message):
        heatmap.curve(relevance, **arguments)


def test_a_small_curve_prints_as_it_could_be_written():
    first = heatmap.curve([[1.0, -2.0], [0.0, 1.0]], np.ones((2, 6)), 4, ["a", "b"], vmax="75%", title="T")
    again = eval(repr(first), {"heatmap": heatmap, "numpy": np})
    assert repr(again) == repr(first)
    assert again.image(72) == first.image(72)
    assert repr(heatmap.curve(np.ones(300))).startswith("<Heatmap of 1 channel, 300 steps, ")


# ---- an image and a text


def test_an_image_and_a_text_have_one_scale_and_their_shares(tmp_path):
    relevance = torch.tensor([[[1.0, 1.0, -3.0, 0.0], [1.0, 1.0, 0.0, 0.0]]])
    picture = heatmap.pair(relevance, photo(size=(8, 4)), ["▁a", "▁key", "s"], [0.0, 2.0, -1.0], patch=2, opacity=1)
    axes = picture.figure.axes[0]
    scale = Paint()(np.array([4.0, -3.0, 0.0, 2.0, -1.0]), -4, 4)
    assert [pixels(axes)[0, 0].tolist(), pixels(axes)[0, -1].tolist()] == scale[:2].tolist()
    assert [list(box.fill) for box in boxes(picture)] == scale[2:].tolist()
    assert "image +50 %, text +50 % of the total relevance of +2" in texts(picture)
    assert "relevance -4" in texts(picture)
    assert "+4" in texts(picture)
    assert len(picture.figure.axes) == 3
    # neither overlaps the other one, nor the scale
    image, words, bar = (each.get_position() for each in picture.figure.axes)
    assert image.x1 < words.x0
    assert min(image.y0, words.y0) > bar.y1
    assert {"a", "key", "s"} <= set(picture.texts)
    for kind in ("png", "pdf", "svg", "html"):
        picture.save(tmp_path / f"x.{kind}")
    assert repr(picture).startswith("<Heatmap of an image and 3 tokens, ")


@pytest.mark.parametrize(
    ("image", "words", "said"),
    [
        (3.0, [-1.0, 0.0], "image +150 %, text -50 % of the total relevance of +2"),
        (-2.0, [-1.0, -1.0], "image +50 %, text +50 % of the total relevance of -4"),
        (1.0, [1.5, -2.5], "image +1, text -1, which cancel"),
        (1.0, [2.0, 0.0], "image +33 %, text +67 %"),
    ],
)
def test_shares_are_of_the_total(image, words, said):
    assert said in texts(heatmap.pair([[image]], None, ["a", "b"], words))


def test_skipped_tokens_count_in_the_share_and_not_in_the_scale():
    picture = heatmap.pair([[1.0, 0.0]], None, ["<s>", "play", "##ing"], [6.0, 1.0, 2.0], skip=[0], whole_words=True)
    assert "image +10 %, text +90 %" in texts(picture)
    assert "relevance -3" in texts(picture)
    assert "outlined: beyond the scale (+6)" in texts(picture)
    assert [box.note for box in boxes(picture)] == ["<s> +6", "playing +3"]


def test_what_a_pair_has_beyond_the_scale_is_said():
    picture = heatmap.pair([[4.0, 1.0]], None, ["a", "b"], [3.0, 0.0], vmax=2, numbers=True)
    note = "image: 1 of 2 values are beyond the scale: all are +1 to +4; outlined: beyond the scale (+3)"
    assert note in texts(picture)
    zero = texts(heatmap.pair(np.zeros((2, 2)), None, ["a"], [0.0]))
    assert zero.count("all relevance is zero") == 1
    assert "image" not in zero
    assert "all relevance" not in texts(heatmap.pair(np.zeros((2, 2)), None, ["a"], [1.0]))
    assert "all relevance" not in texts(heatmap.pair(np.ones((2, 2)), None, ["a"], [0.0]))


def test_the_page_ends_beside_a_short_text():
    short, long = (heatmap.pair(np.eye(2), None, ["▁word"] * count, np.ones(count)) for count in (3, 60))
    assert short.figure.get_figwidth() < long.figure.get_figwidth() <= 480 / 72
    assert len({box.y for box in boxes(short)}) == 1


def test_a_long_text_stands_beside_its_image_and_in_the_page():
    picture = heatmap.pair(np.eye(2), None, ["▁word"] * 200 + ["m" * 80], np.ones(201), title="T", width=200)
    image, words, bar = (each.get_position() for each in picture.figure.axes)
    assert image.y1 == pytest.approx(words.y1)
    assert words.y0 > bar.y1
    page = np.asarray(picture.image(100))
    inner = page[8:-8, 8:-8]
    assert (page == 255).sum() - (inner == 255).sum() == page.size - inner.size


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"token_relevance": [1.0]}, r"shape \(1,\) for 2 tokens"),
        ({"relevance": np.ones((2, 1, 2, 2))}, "for one image, expected"),
        ({"picture": np.ones((4, 8))}, "or that of its patches"),
        ({"patch": 3}, "patch=3"),
        ({"skip": [5]}, r"skip=\[5\]"),
        ({"vmax": "1.5"}, "vmax='1.5'"),
        ({"opacity": 2, "picture": np.ones((2, 2))}, "opacity=2"),
    ],
)
def test_wrong_pairs(arguments, message):
    given = {"relevance": np.ones((2, 2)), "picture": None, "tokens": ["a", "b"], "token_relevance": [1.0, 2.0]}
    with pytest.raises(ValueError, match=message):
        heatmap.pair(**{**given, **arguments})
