"""Captured graphs: bit-equal to the attributor for other inputs, and refused for everything else than they are of."""

import models
import pytest
import torch
import transformers
from zennit.composites import EpsilonPlus

from zennit_attn import AttnLRPComposite, CPLRPComposite, GammaViTComposite, InputXGradient, capture, targets
from zennit_attn.errors import InputError, NotFiniteError, StaleError

COMPOSITES = {"attnlrp": AttnLRPComposite, "cp_lrp": CPLRPComposite, "zennit": EpsilonPlus}


def llama(**changes):
    config = transformers.LlamaConfig(**{**models.SMALL, "num_hidden_layers": 2, **changes})
    return models.scramble(transformers.LlamaForCausalLM(config)).eval()


def bert():
    config = transformers.BertConfig(
        vocab_size=models.SMALL["vocab_size"],
        hidden_size=24,
        intermediate_size=48,
        num_attention_heads=2,
        num_hidden_layers=2,
    )
    return models.scramble(transformers.BertForSequenceClassification(config)).eval()


def batch_of(seed, shape=(2, 7), padding=2):
    ids = torch.randint(3, models.SMALL["vocab_size"], shape, generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    mask[0, shape[1] - padding :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def equal(captured, attributor, batch):
    """Check that both give the same, to the bit: they have the same operations."""
    for found, expected in zip(captured(batch)[1:], attributor(batch)[1:], strict=True):
        if isinstance(found, dict):
            assert found.keys() == expected.keys()
            found, expected = list(found.values()), list(expected.values())
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_graph_may_be_compiled():
    torch._dynamo.reset()
    model = models.llama(num_hidden_layers=1).eval()
    attributor = InputXGradient(model, AttnLRPComposite(), targets.MaxLogit())
    batches = [{"inputs_embeds": torch.randn(1, 5, models.WIDTH), "use_cache": False} for _ in range(2)]
    traced = []

    def backend(graph, _):
        traced.append(graph)
        return graph.forward

    captured = capture(attributor, batches[0], backend=backend)
    for batch in batches:
        torch.testing.assert_close(captured(batch)[1], attributor(batch)[1])
    assert len(traced) == 1


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("name", list(COMPOSITES))
def test_a_language_model_has_the_same_relevance_to_the_bit(name, implementation):
    # in float32 kernels of some processors round by where memory lies
    model = llama(attn_implementation=implementation).double()
    attributor = InputXGradient(model, COMPOSITES[name](), targets.MaxLogit(), modules="model.layers.*.mlp")
    captured = capture(attributor, batch_of(0))
    for seed in range(3):
        equal(captured, attributor, batch_of(seed))
    # nothing stays on the model, and what it returns is what it did
    assert not attributor.composite.handles
    torch.testing.assert_close(captured(batch_of(1)).output.logits, model(**batch_of(1)).logits)
    assert captured(batch_of(1)).relevance[0, -2:].eq(0).all()


def test_models_of_other_kinds():
    attributor = InputXGradient(bert(), AttnLRPComposite(), targets.Label(1))
    captured = capture(attributor, batch_of(0))
    equal(captured, attributor, batch_of(1))
    config = transformers.ViTConfig(**{**models.IMAGE, "num_hidden_layers": 2})
    vit = models.scramble(transformers.ViTForImageClassification(config)).eval()
    attributor = InputXGradient(vit, GammaViTComposite(), targets.MaxLogit())
    pixels = torch.randn(2, 3, 32, 32)
    captured = capture(attributor, {"pixel_values": pixels})
    equal(captured, attributor, {"pixel_values": torch.randn(2, 3, 32, 32)})
    linear = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    attributor = InputXGradient(linear, CPLRPComposite())
    with attributor:
        captured = capture(attributor, torch.ones(2, 3), targets.Contrastive())
        found, expected = captured(-torch.ones(2, 3)), attributor(-torch.ones(2, 3), targets.Contrastive())
    torch.testing.assert_close(found.relevance, expected.relevance, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model, batch: {key: value[:, 1:] for key, value in batch.items()}, "got an input"),
        (lambda model, batch: {**batch, "input_ids": batch["input_ids"].int()}, "got an input"),
        (lambda model, batch: {**batch, "attention_mask": torch.ones_like(batch["input_ids"])}, "got other arguments"),
        (lambda model, batch: {**batch, "token_type_ids": batch["input_ids"] * 0}, "got other arguments"),
        (lambda model, batch: {"input_ids": batch["input_ids"]}, "got other arguments"),
        (lambda model, batch: model.classifier.train() and batch, "in another mode"),
        (lambda model, batch: model.double() and batch, "'bert.embeddings.word_embeddings.weight' of another dtype"),
        (lambda model, batch: model.classifier.register_forward_hook(print) and batch, "with other hooks"),
        (
            lambda model, batch: setattr(model.classifier, "weight", torch.nn.Parameter(torch.ones(2, 24))) or batch,
            "another 'classifier.weight'",
        ),
        (lambda model, batch: model.set_attn_implementation("eager") or batch, "in another mode"),
    ],
)
def test_what_it_is_not_of_is_refused(change, message):
    model = bert()
    captured = capture(InputXGradient(model, AttnLRPComposite(), targets.Label(1)), batch_of(0))
    captured(batch_of(1))
    with pytest.raises(StaleError, match=message):
        captured(change(model, batch_of(1)))


def test_another_target_other_rules_and_autocast_are_refused():
    composite = AttnLRPComposite()
    attributor = InputXGradient(bert(), composite, targets.Label(1))
    captured = capture(attributor, batch_of(0))
    captured(batch_of(1), targets.Label(1))
    with pytest.raises(StaleError, match="got a target"):
        captured(batch_of(1), targets.Label(0))
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(StaleError, match="got autocast"):
        captured(batch_of(1))


def test_weights_may_change_in_place():
    model = bert()
    attributor = InputXGradient(model, AttnLRPComposite(), targets.Label(1))
    captured = capture(attributor, batch_of(0))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1).add_(0.01)
    equal(captured, attributor, batch_of(1))


class Branches(torch.nn.Module):
    """A model that asks for a value of its input."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3, 2)

    def forward(self, input):
        return self.linear(input) if input.sum() > 0 else self.linear(input * 2)


def test_models_that_depend_on_values_in_python_are_refused():
    with pytest.raises(InputError, match="does not depend on values of its input in Python"):
        capture(InputXGradient(Branches(), AttnLRPComposite(), targets.Label(0)), torch.ones(1, 3))
    for options, message in [
        ({"create_graph": True}, "create_graph=True"),
        ({"latents": ["head"]}, "latents"),
    ]:
        with pytest.raises(InputError, match=message):
            capture(InputXGradient(bert(), AttnLRPComposite(), targets.Label(0), **options), batch_of(0))
    with pytest.raises(InputError, match="drops values at random"):
        capture(InputXGradient(bert().train(), AttnLRPComposite(), targets.Label(0)), batch_of(0))
    with pytest.raises(InputError, match="several targets"):
        capture(InputXGradient(bert(), AttnLRPComposite(), targets.Each([targets.Label(0)])), batch_of(0))


def test_what_is_not_finite_is_refused():
    model = bert()
    captured = capture(InputXGradient(model, AttnLRPComposite(), targets.Label(1)), batch_of(0))
    model.classifier.weight.data[1, 0] = float("nan")
    with pytest.raises(NotFiniteError):
        captured(batch_of(1))
