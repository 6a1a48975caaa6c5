"""The attributor on tensors, token ids and batches of tokenizers; zennit's attributors on the adapter."""

import models
import pytest
import torch
import transformers
from zennit.attribution import Gradient, IntegratedGradients, Occlusion, SmoothGrad

from zennit_attn import (
    AttnLRPComposite,
    CPLRPComposite,
    GammaViTComposite,
    InputXGradient,
    ModelAdapter,
    input_x_gradient,
    targets,
)
from zennit_attn.errors import PaddingWarning, TrainingWarning

IDS = torch.tensor([[5, 9, 33, 12, 7], [8, 60, 2, 2, 41]])


def whole(output):
    """Explain all of an output at once."""
    return output


def fast(composite=None):
    return input_x_gradient(composite or AttnLRPComposite())


def test_is_the_relevance_of_zennits_gradient():
    model = models.torchvision_vit().double().eval()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    for attr_output in (whole, torch.rand(2, 10, dtype=torch.float64), targets.MaxLogit(), lambda output: output**2):
        with Gradient(model, GammaViTComposite()) as attributor:
            output, expected = attributor(x.clone(), attr_output)
        with InputXGradient(model, fast(GammaViTComposite())) as attributor:
            got_output, got = attributor(x, attr_output)
        torch.testing.assert_close(got_output, output)
        assert models.relative_error(got, expected) < 1e-9
    assert not x.requires_grad


@pytest.mark.parametrize("make", [models.llama, models.gpt2, models.bert])
def test_token_relevance_is_summed_over_the_embedding(make):
    model = make().double().eval()
    adapter = ModelAdapter(model)
    attributor = InputXGradient(model, fast(CPLRPComposite()), targets.MaxLogit())
    output, relevance = attributor(IDS)
    _, of_embeddings = InputXGradient(adapter, fast(CPLRPComposite()), targets.MaxLogit())(adapter.embed(IDS))
    assert relevance.shape == IDS.shape
    assert isinstance(output, transformers.utils.ModelOutput)
    torch.testing.assert_close(relevance, of_embeddings.sum(-1), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("make", [models.llama, models.gpt2])
def test_padding_changes_nothing_and_gets_exactly_zero(make, attention, side):
    model = make(attention).eval()
    attributor = InputXGradient(model, fast(), targets.MaxLogit())
    _, expected = attributor({"input_ids": IDS, "attention_mask": torch.ones_like(IDS)})
    padding = torch.zeros(2, 3, dtype=torch.long)

    def pad(values, fill):
        parts = [fill, values] if side == "left" else [values, fill]
        return torch.cat(parts, 1)

    batch = transformers.BatchEncoding(
        {"input_ids": pad(IDS, padding), "attention_mask": pad(torch.ones_like(IDS), padding)}
    )
    if make is models.gpt2:
        # positions count tokens, not padding
        batch["position_ids"] = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    _, relevance = attributor(batch)
    real = batch["attention_mask"].bool()
    assert torch.equal(relevance[~real], torch.zeros(6))
    torch.testing.assert_close(relevance[real].reshape(2, 5), expected, rtol=1e-3, atol=1e-6)


def test_padding_that_the_model_does_not_mask_is_reported():
    class Mean(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = torch.nn.Embedding(8, 4)

        def forward(self, input_ids, attention_mask):
            return self.embedding(input_ids).mean(1)

    batch = {"input_ids": torch.tensor([[3, 4, 0]]), "attention_mask": torch.tensor([[1, 1, 0]])}
    with pytest.warns(PaddingWarning, match="does not mask"):
        _, relevance = InputXGradient(Mean(), fast(), targets.MaxLogit())(batch)
    assert relevance[0, 2] == 0


def test_bert_batch_of_a_tokenizer():
    model = models.bert().eval()
    batch = {
        "input_ids": IDS,
        "token_type_ids": torch.tensor([[0, 0, 1, 1, 1]] * 2),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
    }
    _, relevance = InputXGradient(model, fast())(batch, targets.Label([1, 3]))
    assert torch.equal(relevance[1, 3:], torch.zeros(2))
    _, alone = InputXGradient(model, fast())({key: value[1:, :3] for key, value in batch.items()}, targets.Label(3))
    torch.testing.assert_close(relevance[1:, :3], alone, rtol=1e-3, atol=1e-7)


def test_encoder_decoder_ids():
    model = models.t5().eval()
    batch = {"input_ids": IDS, "decoder_input_ids": torch.tensor([[0, 4], [0, 6]])}
    _, relevance = InputXGradient(model, fast(), targets.MaxLogit(position=-1))(batch)
    assert relevance.shape == IDS.shape
    assert relevance.abs().max() > 0


def test_pixel_values_of_an_image_processor():
    model = models.hf_vit().eval()
    processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
    image = torch.randint(0, 255, (3, 40, 40), dtype=torch.uint8)
    batch = processor(image, return_tensors="pt")
    output, relevance = InputXGradient(model, fast(GammaViTComposite()), targets.MaxLogit())(batch)
    assert relevance.shape == (1, 3, 32, 32)
    assert output.logits.shape == (1, 10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_token_relevance_is_summed_in_float32(dtype):
    model = models.llama().to(dtype).eval()
    _, relevance = InputXGradient(model, fast(CPLRPComposite()), targets.MaxLogit())(IDS)
    assert relevance.dtype == torch.float32


def test_relevance_at_inner_modules():
    model = models.without_constants(models.llama()).double().eval()
    attributor = InputXGradient(
        model, fast(CPLRPComposite()), targets.MaxLogit(), modules=["model.layers.?", "model.embed_tokens"]
    )
    output, relevance, inner = attributor(IDS)
    assert list(inner) == ["model.embed_tokens", "model.layers.0", "model.layers.1", "model.layers.2"]
    explained = output.logits[:, -1].max(-1)[0].detach()
    for value in inner.values():
        assert value.shape == (2, 5, models.WIDTH)
        # CP-LRP conserves from layer to layer
        torch.testing.assert_close(value.sum((1, 2)), explained, rtol=1e-6, atol=0)
    torch.testing.assert_close(inner["model.embed_tokens"].sum(-1), relevance)


def test_a_module_that_is_called_twice_is_kept_twice():
    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(4, 4)

        def forward(self, x):
            return self.layer(self.layer(x))

    _, _, inner = InputXGradient(Twice(), fast(), whole, modules=["layer"])(torch.randn(1, 4))
    assert list(inner) == ["layer", "layer#2"]
    assert not torch.allclose(inner["layer"], inner["layer#2"])


def test_second_order_through_the_attributor():
    model = models.llama().double().eval().requires_grad_(False)
    x = torch.randn(1, 5, models.WIDTH, dtype=torch.float64)
    adapter = ModelAdapter(model)
    _, relevance = InputXGradient(adapter, fast(), targets.MaxLogit(), create_graph=True)(x)
    assert relevance.requires_grad


@pytest.mark.parametrize("kind", [Gradient, SmoothGrad, IntegratedGradients])
@pytest.mark.parametrize("composite", [None, AttnLRPComposite])
@pytest.mark.parametrize("make", [models.llama, models.bert, models.t5])
def test_zennits_attributors_on_transformers(make, composite, kind):
    model = make().double().eval()
    rest = {"decoder_input_ids": torch.tensor([[0, 4], [0, 6]])} if make is models.t5 else {}
    adapter = ModelAdapter(model, {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), **rest})
    options = {} if kind is Gradient else {"n_iter": 3}
    composite = composite and input_x_gradient(composite()) if kind is not Gradient else composite and composite()
    with kind(adapter, composite, **options) if composite else _Plain(kind(adapter, **options)) as attributor:
        output, relevance = attributor(adapter.embed(IDS), targets.MaxLogit())
    assert relevance.shape == (2, 5, models.WIDTH)
    assert relevance.isfinite().all()
    assert relevance.abs().max() > 0
    assert isinstance(output, torch.Tensor)


class _Plain:
    """Enter an attributor that has no composite."""

    def __init__(self, attributor):
        self.attributor = attributor

    def __enter__(self):
        return self.attributor

    def __exit__(self, *_):
        return False


@pytest.mark.parametrize("kind", [Gradient, SmoothGrad, IntegratedGradients, Occlusion])
def test_zennits_attributors_on_pixels_of_transformers(kind):
    adapter = ModelAdapter(models.hf_vit().eval(), argument="pixel_values")
    options = {Gradient: {}, Occlusion: {"window": 16, "stride": 16}}.get(kind, {"n_iter": 2})
    _, relevance = kind(adapter, **options)(torch.randn(2, 3, 32, 32), targets.MaxLogit())
    assert relevance.shape == (2, 3, 32, 32)
    assert relevance.abs().max() > 0


def test_zennits_occlusion_on_transformers():
    model = models.llama().eval()
    adapter = ModelAdapter(model)
    attributor = Occlusion(adapter, window=(1, models.WIDTH), stride=(1, models.WIDTH), attr_output=targets.Label(7))
    _, relevance = attributor(adapter.embed(IDS))
    assert relevance.shape == (2, 5, models.WIDTH)
    assert relevance.abs().max() > 0


def test_integrated_gradients_are_complete():
    model = models.bert().double().eval()
    adapter = ModelAdapter(model)
    x = adapter.embed(IDS)
    target = torch.nn.functional.one_hot(torch.tensor([2, 2]), 5).double()
    _, relevance = IntegratedGradients(adapter, n_iter=200)(x, target)
    difference = (adapter(x) - adapter(torch.zeros_like(x)))[:, 2].detach()
    # the integral is a sum of 200 steps
    torch.testing.assert_close(relevance.sum((1, 2)), difference, rtol=2e-2, atol=1e-4)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda model: InputXGradient(model, "attnlrp"), TypeError, "expected a zennit.core.Hook or Composite"),
        (lambda model: InputXGradient(model, fast())("text"), TypeError, "expected a tensor"),
        (lambda model: InputXGradient(model, fast())({"ids": IDS}), ValueError, "exactly one of"),
        (lambda model: InputXGradient(model, fast())({"input_ids": [[1, 2]]}), TypeError, "return_tensors"),
        (lambda model: InputXGradient(model, fast(), modules=["model.layer.0"])(IDS), ValueError, "model.layers.0"),
        (lambda model: InputXGradient(model, fast(), output_key="logit")(IDS), KeyError, "logits"),
        (lambda model: ModelAdapter(model, output_key="nothing")(torch.randn(1, 2, 48)), KeyError, "output_key"),
    ],
)
def test_errors_say_what_to_do(call, error, match):
    with pytest.raises(error, match=match):
        call(models.llama().eval())


def test_an_output_that_does_not_depend_on_the_input_is_an_error():
    class Constant(torch.nn.Module):
        def forward(self, x):
            return x.detach() * 2

    with pytest.raises(RuntimeError, match="does not depend"):
        InputXGradient(Constant(), fast(), whole)(torch.randn(1, 3))


def test_ids_that_are_not_embedded_are_an_error():
    class NoEmbedding(torch.nn.Module):
        def forward(self, ids):
            return ids.float()

    with pytest.raises(RuntimeError, match="embeds its ids"):
        InputXGradient(NoEmbedding(), fast())(IDS)


def test_ids_that_are_looked_up_in_another_order_have_their_relevance_in_their_own():
    """It must not come out transposed."""

    class Transposed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Embedding(64, 4)

        def forward(self, ids):
            return self.table(ids.t()).sum(0)

    model = Transposed()
    _, relevance = InputXGradient(model, fast())(IDS, targets.Label(1))
    torch.testing.assert_close(relevance, model.table(IDS)[..., 1].detach())


def test_the_decoders_mask_picks_the_decoders_position():
    model = models.t5().eval()
    batch = {"input_ids": IDS, "attention_mask": torch.tensor([[1, 1, 0, 0, 0]] * 2)}
    batch["decoder_input_ids"] = torch.tensor([[0, 4, 9, 3, 8], [0, 6, 7, 3, 2]])
    _, relevance = InputXGradient(model, fast(), targets.MaxLogit())(batch)
    _, expected = InputXGradient(model, fast(), targets.MaxLogit(position=4))(batch)
    assert torch.equal(relevance, expected)


@pytest.mark.parametrize("tables", [1, 2])
def test_ids_that_are_looked_up_twice(tables):
    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first = torch.nn.Embedding(64, 4)
            self.second = torch.nn.Embedding(64, 4) if tables == 2 else self.first

        def forward(self, ids):
            return (self.first(ids) + self.second(ids)).sum(1)

    model = Twice()
    output, relevance = InputXGradient(model, fast(), targets.Label(2))(IDS)
    torch.testing.assert_close(relevance.sum(1), output[:, 2].detach())


def test_a_batch_with_two_inputs_needs_the_name_of_one():
    class Both(torch.nn.Module):
        def forward(self, pixel_values, inputs_embeds):
            return pixel_values.flatten(1) + inputs_embeds.sum(1)

    batch = {"pixel_values": torch.randn(2, 2, 2), "inputs_embeds": torch.randn(2, 3, 4)}
    with pytest.raises(ValueError, match="argument"):
        InputXGradient(Both(), fast())(batch)
    _, relevance = InputXGradient(Both(), fast(), whole, argument="pixel_values")(batch)
    torch.testing.assert_close(relevance, batch["pixel_values"])
    _, both = InputXGradient(Both(), fast(), whole, argument=("pixel_values", "inputs_embeds"))(batch)
    assert both.keys() == batch.keys()
    for name, value in batch.items():
        torch.testing.assert_close(both[name], value)


def test_an_adapter_tells_the_target_what_is_padding():
    model = models.llama().double().eval()
    batch = {"input_ids": IDS, "attention_mask": torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])}
    _, expected = InputXGradient(model, fast())(batch, targets.MaxLogit())
    adapter = ModelAdapter(model, batch)
    # the model's norms are in float32
    close = {"rtol": 1e-5, "atol": 1e-7}
    _, got = Gradient(adapter, AttnLRPComposite())(adapter.embed(IDS), targets.MaxLogit())
    torch.testing.assert_close(got.sum(-1), expected, **close)
    _, got = InputXGradient(adapter, fast())(adapter.embed(IDS), targets.MaxLogit())
    torch.testing.assert_close(got.sum(-1), expected, **close)


@pytest.mark.parametrize(
    "wrong", [7, lambda output: output.max(), lambda output: output[:1], lambda output: targets.MaxLogit], ids=repr
)
def test_relevance_that_does_not_fit_the_output_is_an_error(wrong):
    with pytest.raises(ValueError, match=r"attr_output gave[\s\S]*expected relevance of the output's shape"):
        InputXGradient(models.llama().eval(), fast())(IDS, wrong)


def test_dropout_is_noticed():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.5), torch.nn.Linear(4, 2))
    attributor = InputXGradient(model, fast())
    with pytest.warns(TrainingWarning, match=r"model\.eval\(\)"):
        attributor(torch.randn(1, 4), targets.Label(0))
    model.eval()
    attributor(torch.randn(1, 4), targets.Label(0))  # a second warning would be an error


def test_labels_are_refused():
    with pytest.raises(ValueError, match="expected one without"):
        InputXGradient(models.llama().eval(), fast())({"input_ids": IDS, "labels": IDS}, targets.MaxLogit())


def test_both_sides_of_an_encoder_decoder_are_explained_together():
    """CP-LRP on T5, which adds no constants: what encoder and decoder get adds up to the logit."""
    model = models.t5().double().eval()
    batch = {"input_ids": IDS, "decoder_input_ids": torch.tensor([[0, 4, 9], [0, 6, 1]])}
    batch |= {"attention_mask": torch.ones_like(IDS), "decoder_attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]])}
    names = ("input_ids", "decoder_input_ids")
    output, relevance = InputXGradient(model, fast(CPLRPComposite(strict=True)), argument=names)(
        batch, targets.MaxLogit()
    )
    assert {name: value.shape for name, value in relevance.items()} == {name: batch[name].shape for name in names}
    # the last position that is no padding
    logits = output.logits.detach()[[0, 1], [1, 2]].max(-1)[0]
    torch.testing.assert_close(sum(value.sum(1) for value in relevance.values()), logits, rtol=1e-9, atol=0)
    assert relevance["decoder_input_ids"][0, 2] == 0


@pytest.mark.parametrize("names", ["input_ids", ("input_ids", "decoder_input_ids")])
def test_one_tensor_may_be_the_ids_of_both_sides(names):
    model = models.t5().double().eval()
    attributor = InputXGradient(model, fast(CPLRPComposite()), argument=names)
    got, expected = (
        attributor({"input_ids": IDS, "decoder_input_ids": ids}, targets.MaxLogit())[1] for ids in (IDS, IDS.clone())
    )
    torch.testing.assert_close(got, expected)


def test_an_input_of_several_that_has_no_part_is_an_error():
    class Half(torch.nn.Module):
        def forward(self, pixel_values, inputs_embeds):
            weights = torch.softmax(inputs_embeds.sum(1), -1)
            return pixel_values.flatten(1) * weights

    batch = {"pixel_values": torch.randn(2, 2, 2), "inputs_embeds": torch.randn(2, 3, 4)}
    attributor = InputXGradient(Half(), fast(CPLRPComposite()), whole, argument=("pixel_values", "inputs_embeds"))
    with pytest.raises(RuntimeError, match=r"input inputs_embeds[\s\S]*CP-LRP"):
        attributor(batch)


def test_relevance_of_a_module_that_returns_a_model_output():
    model = models.llama().eval()
    _, _, inner = InputXGradient(model, fast(), targets.MaxLogit(), modules=["model"])(IDS)
    assert inner["model"].shape == (2, 5, models.WIDTH)
    with pytest.raises(ValueError, match="no output that depends"):
        InputXGradient(model, fast(), whole, modules=["model.rotary_emb"])(IDS)
