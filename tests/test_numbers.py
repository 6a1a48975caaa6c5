"""Numbers at the ends of their range: relevance is right, or an error or a warning says what it is not."""

import models
import pytest
import torch
from zennit.attribution import Gradient

from zennit_attn import AttnLRPComposite, CPLRPComposite, GammaViTComposite, InputXGradient, targets
from zennit_attn.errors import NotFiniteError, PrecisionWarning, ProbabilityWarning
from zennit_attn.rules import Gamma

#: Of the largest relevance: rounding of a forward and a backward pass through three layers, a few units in the last
#: place of float16 (2 ** -11) and bfloat16 (2 ** -8).
TOLERANCES = {torch.float16: 0.005, torch.bfloat16: 0.04}


def both(model, composite, batch, dtype):
    """Return the relevance in a dtype, and in float64 for the same numbers."""
    batch = {name: value.to(dtype) if value.is_floating_point() else value for name, value in batch.items()}
    got = InputXGradient(model.to(dtype), composite)(batch, targets.MaxLogit())
    wide = {name: value.double() if value.is_floating_point() else value for name, value in batch.items()}
    label = targets.Label(int(got.output.logits.reshape(-1, got.output.logits.shape[-1])[-1].argmax()))
    return got.relevance.double(), InputXGradient(model.double(), composite)(wide, label).relevance


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 1e4])
@pytest.mark.parametrize("composite", [AttnLRPComposite, CPLRPComposite, GammaViTComposite])
def test_half_precision_has_digits_for_signals_of_every_size(composite, scale, dtype):
    # gradients at pixels of 10 000 are below the smallest number of float16: all of them were zero
    model = models.scramble(models.hf_vit()).eval()
    got, expected = both(model, composite(), {"pixel_values": scale * torch.randn(1, 3, 32, 32)}, dtype)
    assert models.relative_error(got, expected) < TOLERANCES[dtype]


def test_inner_relevance_and_several_inputs_are_scaled_down_again():
    model = models.scramble(models.hf_vit()).half().eval()
    pixels = 1e4 * torch.randn(1, 3, 32, 32).half()
    inner = "vit.layers.2" if hasattr(model.vit, "layers") else "vit.encoder.layer.2"
    got = InputXGradient(model, CPLRPComposite(), modules=inner)({"pixel_values": pixels}, targets.MaxLogit())
    wide = {"pixel_values": pixels.double()}
    expected = InputXGradient(model.double(), CPLRPComposite(), modules=inner)(wide, targets.MaxLogit())
    assert models.relative_error(got.inner[inner].double(), expected.inner[inner]) < TOLERANCES[torch.float16]


@pytest.mark.parametrize("form", ["gradient", "relevance"])
@pytest.mark.parametrize("scale", [1e-30, 1e-20])
def test_tiny_embeddings_under_gamma(scale, form):
    composite = AttnLRPComposite(layer_map=[(torch.nn.Linear, Gamma(0.1))])
    model = models.scramble(models.bert()).eval()
    x = scale * torch.randn(1, 5, models.WIDTH)
    expected, _ = models.explain(model.double(), composite, x.double(), form)
    got, _ = models.explain(model.float(), composite, x, form)
    assert models.relative_error(got.double(), expected) < 1e-5


@pytest.mark.parametrize("strict", [False, True])
def test_activations_beyond_the_range_are_refused_with_their_place(strict):
    attributor = InputXGradient(models.bert().eval(), AttnLRPComposite(strict=strict))
    batch = {"inputs_embeds": 1e30 * torch.randn(1, 3, models.WIDTH)}
    with pytest.raises(NotFiniteError, match=r"first (in|at) the (output|input) of '\w"):
        attributor(batch, targets.MaxLogit())


def test_equal_logits_are_explained_as_one_of_them():
    model = torch.nn.Linear(4, 3)
    with torch.no_grad():
        model.weight.copy_(model.weight[:1].expand(3, 4))
        model.bias.zero_()
    x = torch.randn(1, 4)
    _, relevance = InputXGradient(model, AttnLRPComposite())(x, targets.MaxLogit())
    torch.testing.assert_close(relevance.sum(), model(x)[0, 0].detach())


@pytest.mark.parametrize("composite", [AttnLRPComposite, CPLRPComposite])
def test_a_long_context_keeps_its_digits(composite):
    model = models.scramble(models.llama(max_position_embeddings=4096, num_hidden_layers=1)).eval()
    batch = {"input_ids": torch.randint(models.VOCABULARY, (1, 4096)), "logits_to_keep": 1}
    target = targets.Label(3, position=0)
    _, got = InputXGradient(model, composite())(batch, target)
    _, expected = InputXGradient(model.double(), composite())(batch, target)
    assert models.relative_error(got.double(), expected) < 1e-5


@pytest.mark.parametrize("form", ["gradient", "relevance"])
@pytest.mark.parametrize(
    ("last", "name"), [(torch.nn.Softmax(-1), "softmax"), (torch.nn.Sigmoid(), "sigmoid")], ids=["softmax", "sigmoid"]
)
@pytest.mark.parametrize("composite", [AttnLRPComposite, CPLRPComposite])
def test_a_model_that_ends_in_probabilities_gets_a_word_of_advice_once(composite, last, name, form, recwarn):
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), last)
    kind = InputXGradient if form == "gradient" else Gradient
    with kind(model, composite()) as attributor:
        for _ in range(3):
            attributor(torch.randn(2, 4), targets.MaxLogit())
    (warning,) = recwarn
    assert warning.category is ProbabilityWarning
    assert f"is the {name} of its logits" in str(warning.message)


@pytest.mark.parametrize("last", [torch.nn.Identity(), torch.nn.LogSoftmax(-1), torch.nn.Tanh(), torch.nn.Softplus()])
def test_other_models_get_no_advice(last, recwarn):
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), last)
    InputXGradient(model, CPLRPComposite())(torch.randn(2, 4), targets.MaxLogit())
    assert not [warning for warning in recwarn if warning.category is ProbabilityWarning]


def test_the_relevance_form_in_float16_is_advised_against_once(recwarn):
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU()).half()
    with Gradient(model, AttnLRPComposite()) as attributor:
        for _ in range(2):
            attributor(torch.randn(2, 4).half(), targets.MaxLogit())
    assert [warning.category for warning in recwarn] == [PrecisionWarning]
