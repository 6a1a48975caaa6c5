"""Scores of explanations: against Quantus, scikit-learn and SciPy, and against cases done by hand."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import models
import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import torch

from zennit_attn import evaluation, targets
from zennit_attn.evaluation import (
    Curve,
    Fixed,
    Patches,
    Tokens,
    bootstrap,
    exact_occlusion,
    faithfulness,
    occlusion_agreement,
    paired,
    perturbation_curve,
    pointing_game,
    randomisation,
    rank_correlation,
    reciprocal_rank,
    relevance_mass_accuracy,
    relevance_rank_accuracy,
)
from zennit_attn.evaluation.baselines import METHODS

WEIGHTS = torch.tensor([[4.0, -1.0, 2.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
IDS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 0, 0]])


def linear_model():
    """Return a model of 2 x 2 pixels with two classes, the first one's logit a weighted sum."""
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2, bias=False))
    model[1].weight.data = WEIGHTS.clone()
    return model.eval()


def expected_by_random_ties(score, relevance, truth):
    """Return the mean of a score of a ranking (a list of features) over all ways to break ties."""
    orders = [
        order
        for order in itertools.permutations(range(len(relevance)))
        if all(relevance[a] >= relevance[b] for a, b in itertools.pairwise(order))
    ]
    return np.mean([score(order, truth) for order in orders])


def test_a_curve_by_hand():
    image, relevance = torch.ones(1, 1, 2, 2), WEIGHTS[:1].reshape(1, 2, 2)
    morf = perturbation_curve(linear_model(), image, targets.Label(0), relevance, Patches(1))
    lerf = perturbation_curve(linear_model(), image, targets.Label(0), relevance, Patches(1), "lerf")
    torch.testing.assert_close(morf.values, torch.tensor([[6.0, 2.0, 0.0, -1.0, 0.0]]))
    torch.testing.assert_close(lerf.values, torch.tensor([[6.0, 7.0, 6.0, 4.0, 0.0]]))
    torch.testing.assert_close(morf.fractions, torch.tensor([[0.0, 0.25, 0.5, 0.75, 1.0]]))
    # trapezoids: (6/2 + 2 + 0 - 1 + 0/2) / 4 and (6/2 + 7 + 6 + 4 + 0/2) / 4
    torch.testing.assert_close(morf.area, torch.tensor([1.0]))
    torch.testing.assert_close(lerf.area, torch.tensor([5.0]))
    delta = faithfulness(linear_model(), image, targets.Label(0), relevance, Patches(1))
    torch.testing.assert_close(delta, torch.tensor([4.0]))


def test_several_features_a_step():
    image, relevance = torch.ones(1, 1, 2, 2), WEIGHTS[:1].reshape(1, 2, 2)
    curve = perturbation_curve(linear_model(), image, targets.Label(0), relevance, Patches(1), steps=2)
    torch.testing.assert_close(curve.values, torch.tensor([[6.0, 0.0, 0.0]]))
    torch.testing.assert_close(curve.fractions, torch.tensor([[0.0, 0.5, 1.0]]))


def test_the_area_is_that_of_scikit_learn():
    fractions = torch.rand(3, 6).sort(1).values
    values = torch.randn(3, 6)
    expected = [sklearn.metrics.auc(x.numpy(), y.numpy()) for x, y in zip(fractions, values, strict=True)]
    torch.testing.assert_close(Curve(fractions, values).area, torch.tensor(expected, dtype=torch.float32))


@pytest.mark.parametrize("order", ["morf", "lerf"])
@pytest.mark.filterwarnings("ignore")
def test_curves_agree_with_quantus(order):
    quantus = pytest.importorskip("quantus")
    model, images, relevance = models.torchvision_vit().eval(), torch.randn(3, 3, 32, 32), torch.randn(3, 32, 32)
    labels = torch.tensor([1, 4, 4])
    metric = quantus.RegionPerturbation(
        patch_size=8, order=order, regions_evaluation=16, normalise=False, perturb_baseline=0.0, disable_warnings=True
    )
    arrays = images.numpy(), labels.numpy(), relevance[:, None].numpy()
    falls = metric(model, *arrays, softmax=False, device="cpu", channel_first=True)
    values = perturbation_curve(model, images, targets.Label(labels), relevance, Patches(8), order).values
    torch.testing.assert_close(values[:, :1] - values[:, 1:], torch.tensor(np.array(falls)))


def test_equal_relevance_scores_zero_and_a_random_order_is_reproducible():
    model, images = models.torchvision_vit().eval(), torch.randn(2, 3, 32, 32)
    arguments = model, images, targets.MaxLogit(), torch.ones(2, 32, 32), Patches(8)
    torch.testing.assert_close(faithfulness(*arguments), torch.zeros(2))
    first, same, other = (
        perturbation_curve(*arguments, order="random", generator=torch.Generator().manual_seed(seed)).values
        for seed in (0, 0, 1)
    )
    torch.testing.assert_close(first, same)
    assert not torch.allclose(first, other)
    # nothing and everything removed do not depend on the order
    torch.testing.assert_close(first[:, [0, -1]], other[:, [0, -1]])


@pytest.mark.parametrize("batch_size", [1, 5, 128])
@pytest.mark.parametrize("make", [models.llama, models.gpt2, models.bert])
def test_padding_changes_no_curve(make, batch_size):
    model, relevance = make().eval(), torch.randn(2, 5)
    # relevance at padding would come first
    padded = relevance.masked_fill(MASK == 0, 99.0)
    batch = {"input_ids": IDS, "attention_mask": MASK}
    target = targets.MaxLogit()
    both = perturbation_curve(model, batch, target, padded, Tokens(), batch_size=batch_size)
    for row, length in enumerate((5, 3)):
        alone = {"input_ids": IDS[[row], :length], "attention_mask": MASK[[row], :length]}
        single = perturbation_curve(model, alone, target, relevance[[row], :length], Tokens())
        # float32 in batches of other sizes
        torch.testing.assert_close(both.area[[row]], single.area, rtol=1e-4, atol=1e-5)
        assert set(single.fractions[0].tolist()) == set(both.fractions[row].tolist())


def test_the_target_stays_that_of_the_whole_input():
    model = linear_model()
    # without the first pixel the second class has the larger logit
    image, relevance = torch.tensor([[[[1.0, 3.0], [0.0, 0.0]]]]), WEIGHTS[:1].reshape(1, 2, 2)
    curve = perturbation_curve(model, image, targets.MaxLogit(), relevance, Patches(1))
    torch.testing.assert_close(curve.values, torch.tensor([[1.0, -3.0, -3.0, -3.0, 0.0]]))


def test_what_removed_tokens_become():
    model = models.bert().eval()
    batch = {"input_ids": IDS, "attention_mask": MASK}
    removed = torch.tensor([[True, False, True, False, False], [False, True, False, False, False]])
    filled = Tokens(fill=7, keep=(3,)).apply(model, batch, removed)
    torch.testing.assert_close(filled["input_ids"], torch.tensor([[7, 1, 7, 1, 5], [9, 7, 6, 0, 0]]))
    torch.testing.assert_close(filled["attention_mask"], MASK)
    zeroed = Tokens().apply(model, batch, removed)["inputs_embeds"]
    assert not zeroed[removed].any()
    torch.testing.assert_close(zeroed[~removed], model.get_input_embeddings()(IDS[~removed]))
    torch.testing.assert_close(
        Tokens(keep=(3, 6)).real(batch).int(), torch.tensor([[0, 1, 1, 1, 1], [1, 1, 0, 0, 0]]).int()
    )


def test_what_removed_patches_become():
    images = torch.rand(1, 3, 8, 8)
    removed = torch.tensor([[False, True, False, False]])
    constant, mean, blur = (Patches(4, fill).apply(None, images, removed) for fill in (-0.5, "mean", "blur"))
    expected = images.clone()
    expected[..., :4, 4:] = -0.5
    torch.testing.assert_close(constant, expected)
    expected[..., :4, 4:] = images.mean((2, 3))[..., None, None]
    torch.testing.assert_close(mean, expected)
    # a blur keeps most of the mean, and little of the variance
    patch = blur[..., :4, 4:]
    assert patch.std() < images[..., :4, 4:].std() / 2
    torch.testing.assert_close(patch.mean(), images.mean(), rtol=0.2, atol=0)
    torch.testing.assert_close(blur[..., 4:, :], images[..., 4:, :])


def test_patches_of_relevance():
    relevance = torch.arange(32.0).reshape(1, 2, 4, 4)
    pooled = Patches(2).pool(relevance)
    torch.testing.assert_close(pooled, torch.nn.functional.avg_pool2d(relevance.sum(1, keepdim=True), 2).flatten(1) * 4)
    torch.testing.assert_close(Patches(2).pool(relevance.sum(1)), pooled)
    torch.testing.assert_close(Patches(2).pool(Patches(2).spread(pooled, relevance)), pooled * 4)


def test_bootstrap_agrees_with_scipy():
    values = torch.randn(200, dtype=torch.float64) + 1
    interval = bootstrap(values, confidence=0.9, resamples=5000)
    reference = scipy.stats.bootstrap(
        (values.numpy(),), np.mean, confidence_level=0.9, n_resamples=5000, method="percentile", rng=0
    ).confidence_interval
    assert interval.mean == pytest.approx(float(values.mean()))
    # two sets of 5000 draws: the ends of an interval of width 0.23 differ by some hundredths of it
    assert (interval.low, interval.high) == pytest.approx((reference.low, reference.high), abs=0.01)
    assert bootstrap(values) == bootstrap(values)


def test_localisation_by_hand():
    relevance = torch.tensor([[0.5, 2.0, -3.0, 1.5], [4.0, 3.0, 2.0, 1.0], [-1.0, -2.0, -3.0, -4.0]])
    truth = torch.tensor([[0, 1, 1, 0], [0, 0, 0, 1], [1, 1, 0, 0]])
    torch.testing.assert_close(pointing_game(relevance, truth), torch.tensor([1.0, 0.0, 1.0]))
    torch.testing.assert_close(relevance_mass_accuracy(relevance, truth), torch.tensor([0.5, 0.1, 0.0]))
    torch.testing.assert_close(relevance_rank_accuracy(relevance, truth), torch.tensor([0.5, 0.0, 1.0]))
    torch.testing.assert_close(reciprocal_rank(relevance, truth), torch.tensor([1.0, 0.25, 1.0]))


@pytest.mark.parametrize(
    ("score", "name"),
    [
        (pointing_game, "PointingGame"),
        (relevance_mass_accuracy, "RelevanceMassAccuracy"),
        (relevance_rank_accuracy, "RelevanceRankAccuracy"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_localisation_agrees_with_quantus(score, name):
    quantus = pytest.importorskip("quantus")
    # without negative relevance, of which Quantus adds up signed values
    relevance, truth = torch.rand(20, 8, 8), torch.rand(20, 8, 8) < 0.3
    metric = getattr(quantus, name)(abs=False, normalise=False, disable_warnings=True)
    images = np.zeros((20, 1, 8, 8), dtype=np.float32)
    arrays = images, np.zeros(20, dtype=int), relevance[:, None].numpy(), truth[:, None].numpy()
    expected = metric(torch.nn.Flatten(), *arrays, channel_first=True, device="cpu")
    torch.testing.assert_close(score(relevance, truth), torch.tensor(expected, dtype=torch.float32))


def test_localisation_does_not_see_padding():
    relevance, truth = torch.tensor([[0.5, 2.0, 9.0]]), torch.tensor([[1, 0, 0]])
    real = torch.tensor([[1, 1, 0]])
    for score in (pointing_game, relevance_mass_accuracy, relevance_rank_accuracy, reciprocal_rank):
        torch.testing.assert_close(score(relevance, truth, real), score(relevance[:, :2], truth[:, :2]))


def test_localisation_of_masks_is_that_of_their_pixels():
    relevance, truth = torch.randn(2, 4, 4), torch.rand(2, 4, 4) < 0.3
    for score in (pointing_game, relevance_mass_accuracy, relevance_rank_accuracy, reciprocal_rank):
        torch.testing.assert_close(score(relevance, truth), score(relevance.flatten(1), truth.flatten(1)))


@pytest.mark.parametrize("relevance", [[1.0, 1.0, 0.0, 2.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 3.0, 3.0]])
@pytest.mark.parametrize("truth", [[1, 0, 0, 0], [0, 1, 1, 0], [1, 0, 0, 1]])
def test_ties_are_broken_at_random(relevance, truth):
    def hits(order, truth):
        return sum(truth[index] for index in order[: sum(truth)]) / sum(truth)

    tensors = torch.tensor([relevance]), torch.tensor([truth])
    expected = expected_by_random_ties(hits, relevance, truth)
    assert relevance_rank_accuracy(*tensors).item() == pytest.approx(expected)
    expected = expected_by_random_ties(lambda order, truth: truth[order[0]], relevance, truth)
    assert pointing_game(*tensors).item() == pytest.approx(expected)


def test_reciprocal_rank_is_that_of_scikit_learn():
    relevance, places = torch.randn(20, 6), torch.randint(6, (20,))
    truth = torch.nn.functional.one_hot(places, 6)
    expected = sklearn.metrics.label_ranking_average_precision_score(truth.numpy(), relevance.numpy())
    assert reciprocal_rank(relevance, truth).mean().item() == pytest.approx(expected)


def test_rank_correlation_is_that_of_scipy():
    first, second = torch.randint(5, (4, 12)).double(), torch.randn(4, 12)
    real = torch.arange(12) < torch.tensor([12, 9, 7, 5])[:, None]
    expected = [
        scipy.stats.spearmanr(a[here].numpy(), b[here].numpy()).statistic
        for a, b, here in zip(first, second, real, strict=True)
    ]
    torch.testing.assert_close(rank_correlation(first, second, real), torch.tensor(expected, dtype=torch.float32))
    torch.testing.assert_close(rank_correlation(torch.ones(1, 3), first[:1, :3]), torch.zeros(1))


def test_agreement_with_occlusion():
    image, relevance = torch.rand(1, 1, 2, 2), WEIGHTS[:1].reshape(1, 2, 2)
    arguments = linear_model(), image, targets.Label(0)
    falls = exact_occlusion(*arguments, Patches(1))
    torch.testing.assert_close(falls, image.flatten(1) * WEIGHTS[:1])
    exact = relevance * image[0]
    one = torch.ones(1)
    torch.testing.assert_close(occlusion_agreement(*arguments, exact, Patches(1)), one)
    torch.testing.assert_close(occlusion_agreement(*arguments, -exact, Patches(1)), -one)


def test_occlusion_of_tokens_leaves_padding_alone():
    model, batch = models.llama().eval(), {"input_ids": IDS, "attention_mask": MASK}
    falls = exact_occlusion(model, batch, targets.MaxLogit(), Tokens())
    assert (falls != 0).int().tolist() == MASK.tolist()
    agreement = occlusion_agreement(model, batch, targets.MaxLogit(), falls.masked_fill(MASK == 0, 9.0), Tokens())
    torch.testing.assert_close(agreement, torch.ones(2))


def test_randomisation_tells_a_method_that_sees_weights():
    model, images = models.torchvision_vit().eval(), torch.randn(2, 3, 32, 32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = randomisation(model, images, targets.MaxLogit(), METHODS["attnlrp"])
    torch.testing.assert_close(model.state_dict(), before)
    assert next(iter(found)) == "heads.head"
    assert set(found) == {name for name, module in model.named_modules() if list(module.parameters(recurse=False))}
    # with all weights shuffled, nothing but chance is left: 3072 pixels correlate by 1/55, give or take
    last = list(found.values())[-1]
    assert float(last.abs().max()) < 0.1

    def edges(model, batch, target):
        return batch.abs()

    unmoved = randomisation(model, images, targets.MaxLogit(), edges, names=["heads", "encoder"])
    torch.testing.assert_close(unmoved["encoder"], torch.ones(2))


def test_randomisation_of_a_language_model():
    model, batch = models.llama().eval(), {"input_ids": IDS, "attention_mask": MASK}
    names = ["lm_head", "model.layers.2", "model.layers.1", "model.layers.0"]
    found = randomisation(model, batch, targets.MaxLogit(), METHODS["attnlrp"], names)
    assert list(found) == names
    assert all(value.shape == (2,) for value in found.values())
    assert float(torch.stack(list(found.values())).min()) < 0.9


def test_fixed_targets():
    output = torch.randn(2, 4, 5)
    fixed = Fixed.of(targets.MaxLogit(), output, torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]))
    expected = torch.stack([output[0, 2].max(), output[1, 3].max()])
    torch.testing.assert_close(fixed.score(output), expected)
    torch.testing.assert_close(fixed(output).sum((1, 2)), expected)
    torch.testing.assert_close(fixed.at(torch.tensor([1, 1, 0])).score(output[[1, 1, 0]]), expected[[1, 1, 0]])
    difference = Fixed.of(targets.Labels([3, 1], [1, -1], position=0), output)
    torch.testing.assert_close(difference.score(output), output[:, 0, 3] - output[:, 0, 1])


IMAGE, PIXELS = torch.ones(1, 1, 2, 2), torch.ones(1, 2, 2)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: Patches(2, "noise"), "expected a finite number, 'mean' or 'blur'"),
        (lambda: Patches(2, True), "expected a finite number, 'mean' or 'blur'"),
        (lambda: Patches(2, float("nan")), "expected a finite number, 'mean' or 'blur'"),
        (lambda: Tokens([1]), "expected 'zero', 'mean', 'mask', or the id of a token"),
        (lambda: Patches(4, "blur").filling(torch.rand(1, 1, 4, 8)), "less than a side of the image"),
        (lambda: Patches(0), "at least 1 pixel"),
        (lambda: Tokens("median"), "the id of a token"),
        (lambda: Patches(3).real(IMAGE), "divisor of both sides of 2 x 2"),
        (lambda: Tokens().real(IMAGE), "use Patches"),
        (lambda: Patches(1).real({"input_ids": IDS}), "use Tokens"),
        (lambda: Tokens().pool(PIXELS), r"expected \(batch, positions\)"),
        (lambda: curve(relevance=torch.ones(1, 4)), r"expected \(batch, height, width\)"),
        (lambda: curve(relevance=PIXELS * float("nan")), "not finite"),
        (lambda: curve(relevance=torch.ones(1, 4, 4)), "16\\) features"),
        (lambda: curve(order="best"), "expected one of"),
        (lambda: curve(steps=0), "at least 1 of each"),
        (lambda: curve(model=linear_model().train()), "expected model.eval"),
        (lambda: bootstrap(torch.tensor([])), "one finite score"),
        (lambda: bootstrap(torch.ones(3), confidence=95), "between 0 and 1"),
        (lambda: pointing_game(IMAGE, PIXELS), "relevance.sum"),
        (lambda: pointing_game(PIXELS, PIXELS * 0), "a real feature in each sample"),
        (lambda: reciprocal_rank(PIXELS[0], PIXELS[0], torch.tensor([[1, 0], [1, 1]])), "in the padding"),
        (lambda: relevance_mass_accuracy(PIXELS * float("inf"), PIXELS), "not finite"),
        (lambda: rank_correlation(PIXELS, IMAGE), "expected the same"),
        (lambda: randomisation(linear_model(), IMAGE, targets.Label(0), edges_of, ["head"]), "no module of the model"),
        (lambda: Fixed.of(Unlike(), torch.ones(2, 2, 3)), "as many in each sample"),
        (lambda: Fixed(torch.ones(1, 2, 3), torch.tensor([[0, 1]])).score(torch.ones(1, 2, 4)), "weights of shape"),
        (lambda: paired(torch.ones(2), torch.ones(3)), "of one set"),
        (lambda: Fixed(torch.ones(1, 3)).score(torch.ones(1, 2)), "weights of shape"),
    ],
)
def test_what_does_not_fit_is_an_error(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def curve(model=None, relevance=PIXELS, **arguments):
    model = linear_model() if model is None else model
    return perturbation_curve(model, IMAGE, targets.Label(0), relevance, Patches(1), **arguments)


def edges_of(model, batch, target):
    return batch.abs()


class Unlike(targets.Target):
    """One position of the first sample, two of the others."""

    def weights(self, output, attention_mask=None):
        weights = torch.ones_like(output)
        weights[0, 0] = 0
        return weights


def test_several_positions_of_a_sample_are_their_sum():
    logits, answer = torch.randn(2, 5, 7), targets.Answer([3, 1, 4])
    fixed = Fixed.of(answer, logits)
    torch.testing.assert_close(fixed.position, torch.tensor([[2, 3, 4]] * 2))
    expected = logits[:, 2, 3] + logits[:, 3, 1] + logits[:, 4, 4]
    torch.testing.assert_close(fixed.score(logits), expected)
    # from the end, as where only the last logits are computed
    last = Fixed(fixed.shares, fixed.position - 5)
    torch.testing.assert_close(last.score(logits[:, 2:]), expected)
    torch.testing.assert_close(last.weights(logits[:, 2:]), answer.weights(logits)[:, 2:])


def test_a_removed_token_is_no_key_of_any_other():
    # a decoder and an encoder: without a token in the mask is without it in the text, where positions are given
    model = models.llama().eval()
    batch = {"input_ids": torch.tensor([[3, 1, 4, 1, 5]]), "attention_mask": torch.ones(1, 5, dtype=torch.long)}
    features = Tokens("mask")
    # the last one has to see something
    assert features.real(batch).tolist() == [[True] * 4 + [False]]
    removed = torch.tensor([[False, True, False, True, False]])
    found = model(**features.apply(model, batch, removed)).logits[:, -1]
    kept = torch.tensor([[0, 2, 4]])
    expected = model(input_ids=batch["input_ids"][:, kept[0]], position_ids=kept).logits[:, -1]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    filled = Tokens("mean").apply(model, batch, removed)["inputs_embeds"]
    torch.testing.assert_close(filled[0, 1], model.get_input_embeddings().weight.mean(0))


def test_a_paired_difference_is_told_where_the_means_are_not():
    values = torch.randn(50, generator=torch.Generator().manual_seed(0)).double() * 10
    found = paired(values + 1, values)
    assert (found.low, found.mean, found.high) == pytest.approx((1, 1, 1))
    assert bootstrap(values).high > bootstrap(values + 1).low


def test_areas_of_several_relevances_are_those_of_each():
    model, images = linear_model(), torch.rand(3, 1, 2, 2)
    relevances = [torch.rand(3, 2, 2), torch.rand(3, 2, 2)]
    found = evaluation.perturbation.areas(model, images, targets.Label(0), relevances, Patches(1))
    for relevance, (morf, lerf) in zip(relevances, found, strict=True):
        for order, expected in (("morf", morf), ("lerf", lerf)):
            curve = perturbation_curve(model, images, targets.Label(0), relevance, Patches(1), order)
            torch.testing.assert_close(curve.area, expected)


def test_a_function_is_no_target():
    with pytest.raises(TypeError, match=r"zennit_attn\.targets"):
        Fixed.of(lambda output: output, torch.ones(1, 3))


def test_the_tables_of_the_examples(tmp_path):
    root, page = Path(__file__).parent.parent, tmp_path / "evaluation.md"
    options = ["--cases", "sentences", "--samples", "8", "--out", page]
    command = [sys.executable, root / "examples" / "evaluate.py", *options]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *sys.path[1:]])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    section = page.read_text(encoding="utf-8").partition("\n### ")[2]
    rows = [line.split("|")[1:-1] for line in section.splitlines() if line.startswith("|")]
    assert {len(row) for row in rows} == {11}
    cells = {row[0].strip(): row[1:] for row in rows}
    # what needs images is left out
    assert len(cells) == 16
    assert "Grad-CAM" not in cells
    assert cells["AttnLRP"][2].strip().removeprefix("**").startswith("1.00")


@pytest.mark.gpu
def test_scores_on_a_gpu_are_those_on_the_cpu():
    model, images = models.torchvision_vit().eval(), torch.randn(2, 3, 32, 32)
    arguments = targets.Label(1), torch.randn(2, 32, 32), Patches(8)
    expected = evaluation.faithfulness(model, images, *arguments)
    found = evaluation.faithfulness(model.cuda(), images.cuda(), arguments[0], arguments[1].cuda(), arguments[2])
    # matrix products in float32 on another device
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-4)
