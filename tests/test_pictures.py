"""Pictures: scales that leave out, percentiles, patches, photos, curves, and an image and a text in one."""

from itertools import pairwise

import numpy as np
import pytest
import torch
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
    assert heatmap.tokens(names, rows, skip_first=1, skip=[-1]).limits == [3, 3]
    assert heatmap.tokens(names, rows, skip_first=1, skip=[-1], shared=False).limits == [2, 3]
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
