"""Models with adapters of PEFT are explained as the models that they compute."""

import copy

import models
import pytest
import torch
import transformers

from zennit_attn import AttnLRPComposite, CPLRPComposite, InputXGradient, input_x_gradient, targets

from .forms import FORMS, in_form

# PEFT asks transformers for what it renamed
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

TARGETS = {"llama": ["q_proj", "v_proj", "down_proj"], "bert": ["query", "value", "output.dense"]}
BATCH = {"input_ids": torch.tensor([[3, 1, 4, 1, 5]])}


def adapted(name, kind):
    """Return a model with an adapter that was trained, and the library."""
    peft = pytest.importorskip("peft")
    task = {"llama": "CAUSAL_LM", "bert": "SEQ_CLS"}[name]
    config = {
        "lora": lambda: peft.LoraConfig(target_modules=TARGETS[name], task_type=task, r=2),
        "dora": lambda: peft.LoraConfig(target_modules=TARGETS[name], task_type=task, r=2, use_dora=True),
        "ia3": lambda: peft.IA3Config(
            target_modules=TARGETS[name], feedforward_modules=TARGETS[name][2:], task_type=task
        ),
    }[kind]()
    torch.manual_seed(0)
    model = peft.get_peft_model(getattr(models, name)().double(), config).double().eval()
    for title, parameter in model.named_parameters():
        if parameter.requires_grad and any(part in title for part in ("lora_A", "lora_B", "ia3")):
            torch.nn.init.normal_(parameter, 0, 0.3)
    return model


class WithAdapter(torch.nn.Module):
    """A linear layer and a product of two small ones beside it, as LoRA is written."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.down = torch.nn.Linear(layer.in_features, 2, bias=False).double()
        self.up = torch.nn.Linear(2, layer.out_features, bias=False).double()

    def forward(self, x):
        return self.layer(x) + self.up(self.down(x)) * 0.5


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("composite", [AttnLRPComposite, CPLRPComposite])
def test_a_sum_of_linear_maps_is_explained_as_one(composite, form):
    model, merged = (models.llama().double().eval() for _ in range(2))
    merged.load_state_dict(model.state_dict())
    for layer, other in zip(model.model.layers, merged.model.layers, strict=True):
        layer.mlp.down_proj = adapter = WithAdapter(layer.mlp.down_proj)
        other.mlp.down_proj.weight.data += adapter.up.weight.data @ adapter.down.weight.data * 0.5
    x = torch.randn(1, 5, models.WIDTH, dtype=torch.float64)
    found = []
    for each in (model, merged):
        leaf = x.clone().requires_grad_()
        with in_form(composite(strict=True), form).context(each):
            logit = each(inputs_embeds=leaf).logits[0, -1, 1]
            logit.backward(logit.detach() if form == "relevance" else None)
        found.append(leaf.grad)
    # the relevance form divides by the small maps' outputs, which may be near zero
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-7 * float(found[1].abs().max()))


@pytest.mark.parametrize("composite", [AttnLRPComposite, CPLRPComposite])
@pytest.mark.parametrize("kind", ["lora", "dora", "ia3"])
@pytest.mark.parametrize("name", ["llama", "bert"])
def test_an_adapter_is_explained_as_the_merged_weights(name, kind, composite):
    model = adapted(name, kind)
    merged = copy.deepcopy(model).merge_and_unload().eval()
    with model.disable_adapter():
        assert not torch.allclose(model(**BATCH).logits, merged(**BATCH).logits, rtol=1e-3)
    expected = InputXGradient(merged, composite(strict=True))(BATCH, targets.Label(1))[1]
    # IA3 scales in another order than the merged weights, and DoRA takes its norm by a square root
    tolerance = {"rtol": 1e-6, "atol": 1e-8 * float(expected.abs().max())}
    for _ in range(2):
        torch.testing.assert_close(
            InputXGradient(model, composite(strict=True))(BATCH, targets.Label(1))[1], expected, **tolerance
        )
    x = model.get_input_embeddings()(BATCH["input_ids"]).detach().requires_grad_()
    with input_x_gradient(composite(strict=True)).context(model):
        logits = model(inputs_embeds=x).logits
        logits.flatten(0, -2)[-1, 1].backward()
    torch.testing.assert_close((x * x.grad).detach().sum(-1), expected, **tolerance)
    model.merge_adapter()
    torch.testing.assert_close(
        InputXGradient(model, composite(strict=True))(BATCH, targets.Label(1))[1], expected, **tolerance
    )


@pytest.mark.parametrize("composite", [AttnLRPComposite, CPLRPComposite])
@pytest.mark.parametrize("projected", [False, True])
def test_a_prefix_is_explained_as_a_cache_of_constants(projected, composite):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.PrefixTuningConfig(
        num_virtual_tokens=3, task_type="CAUSAL_LM", prefix_projection=projected, encoder_hidden_size=8
    )
    base = models.llama().double().eval()
    plain = copy.deepcopy(base)
    model = peft.get_peft_model(base, config).double().eval()
    torch.nn.init.normal_(model.prompt_encoder["default"].embedding.weight)
    # as the paper writes it: an embedding, or what an MLP makes of it, is the prefix's keys and values in each layer
    encoder = model.prompt_encoder["default"]
    with torch.no_grad():
        rows = encoder.embedding.weight.detach()
        if projected:
            first, last = encoder.transform[0], encoder.transform[2]
            rows = torch.tanh(rows @ first.weight.T + first.bias) @ last.weight.T + last.bias
    heads = plain.config.num_key_value_heads
    prefix = rows.reshape(1, 3, 2 * plain.config.num_hidden_layers, heads, -1).permute(2, 0, 3, 1, 4)

    def with_prefix():
        cache = transformers.DynamicCache()
        for number in range(plain.config.num_hidden_layers):
            cache.update(prefix[2 * number].clone(), prefix[2 * number + 1].clone(), number)
        return cache

    class Prefixed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = plain

        def get_input_embeddings(self):
            return self.model.get_input_embeddings()

        def forward(self, input_ids=None, inputs_embeds=None):
            return self.model(input_ids=input_ids, inputs_embeds=inputs_embeds, past_key_values=with_prefix())

    output, expected = InputXGradient(Prefixed(), composite(strict=True))(BATCH, targets.Label(1))
    without = InputXGradient(plain, composite(strict=True))(BATCH, targets.Label(1))[1]
    assert not torch.allclose(without, expected, rtol=1e-2)
    for _ in range(2):
        got = InputXGradient(model, composite(strict=True))(BATCH, targets.Label(1))
        torch.testing.assert_close(got[0].logits, output.logits, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(got[1], expected, rtol=1e-9, atol=1e-12)
