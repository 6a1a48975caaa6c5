"""Targets: what of the output is explained."""

import pytest
import torch

from zennit_attn import targets

LOGITS = torch.tensor([[1.0, 4.0, 2.0], [5.0, 0.5, -3.0]])
SEQUENCE = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))


def test_max_logit():
    expected = torch.tensor([[0.0, 4.0, 0.0], [5.0, 0.0, 0.0]])
    torch.testing.assert_close(targets.MaxLogit()(LOGITS), expected)


@pytest.mark.parametrize(
    ("mask", "last"),
    [
        (None, [3, 3]),
        ([[1, 1, 1, 0], [1, 1, 1, 1]], [2, 3]),
        ([[0, 0, 1, 1], [0, 1, 1, 1]], [3, 3]),
        ([[1, 0, 0, 0], [0, 1, 1, 0]], [0, 2]),
    ],
)
def test_the_last_position_that_is_not_padding(mask, last):
    mask = None if mask is None else torch.tensor(mask)
    weights = targets.MaxLogit(attention_mask=mask).weights(SEQUENCE)
    given = targets.MaxLogit().weights(SEQUENCE, mask)
    expected = torch.zeros_like(SEQUENCE)
    for row, place in enumerate(last):
        expected[row, place, SEQUENCE[row, place].argmax()] = 1
    torch.testing.assert_close(weights, expected)
    torch.testing.assert_close(given, expected)


@pytest.mark.parametrize(("label", "columns"), [(2, [2, 2]), ([0, 2], [0, 2]), (torch.tensor([1, 0]), [1, 0])])
def test_label(label, columns):
    expected = torch.nn.functional.one_hot(torch.tensor(columns), 3).float()
    torch.testing.assert_close(targets.Label(label).weights(LOGITS), expected)


@pytest.mark.parametrize(("position", "places"), [(1, [1, 1]), (-1, [3, 3]), ([0, -2], [0, 2])])
def test_label_at_a_position(position, places):
    weights = targets.Label(1, position=position).weights(SEQUENCE)
    expected = torch.zeros_like(SEQUENCE)
    expected[torch.arange(2), places, 1] = 1
    torch.testing.assert_close(weights, expected)


def test_several_labels_with_weights():
    weights = targets.Labels([0, 2, 2], [1, -1, -0.5]).weights(LOGITS)
    torch.testing.assert_close(weights, torch.tensor([[1.0, 0.0, -1.5]] * 2))
    torch.testing.assert_close(targets.Labels([0, 1]).weights(LOGITS), torch.tensor([[1.0, 1.0, 0.0]] * 2))


def test_contrastive():
    weights = targets.Contrastive().weights(LOGITS)
    torch.testing.assert_close(weights, torch.tensor([[-0.5, 1.0, -0.5], [1.0, -0.5, -0.5]]))
    torch.testing.assert_close(targets.Contrastive(2).weights(LOGITS)[:, 2], torch.ones(2))
    # what is added to all logits does not matter
    shifted = (weights * (LOGITS + 7)).sum(1)
    torch.testing.assert_close(shifted, (weights * LOGITS).sum(1))


@pytest.mark.parametrize(
    ("target", "output", "match"),
    [
        (targets.Label(3), LOGITS, "-3 to 2"),
        (targets.Label([1, 2, 0]), LOGITS, "one for each of 2"),
        (targets.Labels([0, 9]), LOGITS, "-3 to 2"),
        (targets.MaxLogit(position=4), SEQUENCE, "-4 to 3"),
        (targets.MaxLogit(position=0), LOGITS, "has none"),
        (targets.MaxLogit(attention_mask=torch.ones(2, 3)), SEQUENCE, r"expected \(2, 4\)"),
        (targets.MaxLogit(attention_mask=torch.zeros(2, 4)), SEQUENCE, "padding only"),
        (targets.MaxLogit(), torch.zeros(3, 2, 2, 2), r"expected \(batch, classes\)"),
    ],
)
def test_what_does_not_fit_is_an_error(target, output, match):
    with pytest.raises(ValueError, match=match):
        target(output)


def test_one_weight_for_each_label():
    with pytest.raises(ValueError, match="one for each"):
        targets.Labels([1, 2], [1.0])
