"""Inputs and outputs as people have them: ids that a model changes, outputs of many forms, nothing asked, NaN."""

import warnings

import models
import pytest
import torch
import transformers
from torch import nn

from zennit_attn import AttnLRPComposite, CPLRPComposite, InputXGradient, targets
from zennit_attn.errors import FrozenWarning, NotFiniteError, NotFiniteWarning

IDS = torch.tensor([[5, 9, 3, 9, 7, 4, 8], [6, 6, 2, 1, 5, 9, 3]])


def explain(model, batch, target=None, composite=CPLRPComposite, **options):
    target = targets.Label(1) if target is None else target
    with InputXGradient(model, composite(strict=True), **options) as attributor:
        return attributor(batch, target)


class Text(nn.Module):
    """A classifier of token ids, which a function embeds."""

    def __init__(self, look_up):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.bag = nn.Embedding(50, 8), nn.EmbeddingBag(50, 8, mode="mean")
        self.sums, self.most = nn.EmbeddingBag(50, 8, mode="sum"), nn.EmbeddingBag(50, 8, mode="max")
        self.out, self.look_up = nn.Linear(8, 3, bias=False), look_up
        self.double().eval()

    def forward(self, ids):
        return self.out(torch.relu(self.look_up(self, ids)))


def padded(model, ids):
    return model.table(nn.functional.pad(ids, (0, 3), value=0)).sum(1)


LOOK_UPS = {
    "transposed": (lambda s, i: s.table(i.t()).mean(0), lambda e: e.mean(1)),
    "sliced": (lambda s, i: s.table(i[:, :-1]).mean(1), lambda e: e[:, :-1].mean(1)),
    "every second": (lambda s, i: s.table(i[:, ::2]).mean(1), lambda e: e[:, ::2].mean(1)),
    "windows": (lambda s, i: s.table(i.unfold(1, 3, 2)).mean((1, 2)), lambda e: e.unfold(1, 3, 2).mean((1, 3))),
    "flipped": (lambda s, i: s.table(i.flip(1))[:, 0], lambda e: e[:, -1]),
    "joined": (lambda s, i: s.table(torch.cat([i, i], 1)).mean(1), lambda e: e.mean(1)),
    "a column each": (
        lambda s, i: torch.stack([s.table(i[:, k]) for k in range(i.shape[1])]).mean(0),
        lambda e: e.mean(1),
    ),
}


@pytest.mark.parametrize("composite", [AttnLRPComposite, CPLRPComposite])
@pytest.mark.parametrize("name", LOOK_UPS)
def test_ids_that_a_model_changes_before_it_embeds_them(name, composite):
    of_ids, of_embeddings = LOOK_UPS[name]
    model = Text(of_ids)
    output, relevance = explain(model, IDS, composite=composite)
    embedded = model.table(IDS).detach()
    inner = Text(lambda model, x: of_embeddings(x))
    expected_output, expected = explain(inner, embedded, composite=composite)
    torch.testing.assert_close(output, expected_output)
    torch.testing.assert_close(relevance, expected.sum(-1))


@pytest.mark.parametrize(("bag", "reduce"), [("bag", lambda e: e.mean(1)), ("sums", lambda e: e.sum(1)),
                                            ("most", lambda e: e.amax(1))])  # fmt: skip
def test_bags_of_ids(bag, reduce):
    model = Text(lambda model, ids: getattr(model, bag)(ids))
    _, relevance = explain(model, IDS)
    embedded = nn.functional.embedding(IDS, getattr(model, bag).weight).detach()
    _, expected = explain(Text(lambda model, x: reduce(x)), embedded)
    torch.testing.assert_close(relevance, expected.sum(-1))


def test_padding_that_a_model_adds_has_no_relevance_to_give():
    model = Text(padded)
    output, relevance = explain(model, IDS)
    # what the padding adds is a constant, as its embedding is
    constant = model.table.weight[0].detach() * 3
    _, expected = explain(Text(lambda model, x: x.sum(1) + constant), model.table(IDS).detach())
    torch.testing.assert_close(relevance, expected.sum(-1))
    torch.testing.assert_close(output, model(IDS))


class Columns(nn.Module):
    """A table of its own for each column, of different sizes, beside numbers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.tables = nn.ModuleList(nn.Embedding(size, width) for size, width in ((5, 4), (9, 8), (3, 2)))
        self.out = nn.Linear(16, 2, bias=False)
        self.double().eval()

    def forward(self, category, number):
        columns = [table(category[:, place]) for place, table in enumerate(self.tables)]
        return self.out(torch.cat([*columns, number], -1))


def test_tables_of_columns():
    model, category = Columns(), torch.tensor([[4, 8, 2], [0, 7, 1]])
    number = torch.randn(2, 2, dtype=torch.float64)
    output, relevance = explain(model, {"category": category, "number": number}, argument=("category", "number"))
    assert relevance["category"].shape == (2, 3)
    total = relevance["category"].sum(1) + relevance["number"].sum(1)
    torch.testing.assert_close(total, output[:, 1].detach())
    first = (model.tables[0](category[:, 0]) * model.out.weight[1, :4]).sum(-1)
    torch.testing.assert_close(relevance["category"][:, 0], first.detach())


def test_models_of_transformers_that_change_their_ids():
    torch.manual_seed(0)
    small = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = transformers.LongformerConfig(
        **small, intermediate_size=48, max_position_embeddings=80, attention_window=[4], num_labels=2
    )
    longformer = transformers.LongformerForSequenceClassification(config).eval()
    ids, mask = torch.randint(5, 50, (2, 11)), torch.ones(2, 11, dtype=torch.long)
    _, relevance = explain(longformer, {"input_ids": ids, "attention_mask": mask}, composite=CPLRPComposite)
    by_hand = {"input_ids": nn.functional.pad(ids, (0, 1), value=1), "attention_mask": nn.functional.pad(mask, (0, 1))}
    _, expected = explain(longformer, by_hand)
    torch.testing.assert_close(relevance, expected[:, :11])
    config = transformers.XLNetConfig(vocab_size=50, d_model=32, n_layer=1, n_head=4, d_inner=48, num_labels=3)
    xlnet = transformers.XLNetForSequenceClassification(config).eval()
    _, both = explain(xlnet, {"input_ids": IDS})
    alone = torch.cat([explain(xlnet, {"input_ids": ids[None]})[1] for ids in IDS])
    torch.testing.assert_close(both, alone, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "look_up",
    [
        lambda s, i: nn.functional.one_hot(i, 50).double() @ s.table.weight.sum(0).expand(50, 8),
        lambda s, i: s.table((i + 1) % 50).mean(1),
        lambda s, i: s.table(i[:, :2]).mean(1) * i.sum(1, keepdim=True),
    ],
    ids=["one-hot", "shifted", "used as numbers"],
)
def test_models_that_compute_with_their_ids_are_refused(look_up):
    with pytest.raises(RuntimeError, match="no embedding of Text was looked up"):
        explain(Text(look_up), IDS)


def test_pixels_of_bytes_are_told_from_ids():
    class Byte(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution = nn.Conv2d(3, 2, 3)

        def forward(self, x):
            return self.convolution(x.float() / 255).mean((2, 3))

    with pytest.raises(RuntimeError, match=r"torch\.uint8[\s\S]*pixels\.float\(\)"):
        explain(Byte(), torch.randint(0, 255, (1, 3, 8, 8), dtype=torch.uint8))


# --------------------------------------------------------------------------------------------------------------------
# Outputs
# --------------------------------------------------------------------------------------------------------------------


class Shaped(nn.Module):
    def __init__(self, shape):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.shape = nn.Linear(4, 8, bias=False).double(), shape

    def forward(self, x):
        return self.shape(self.linear(x))


X = torch.randn(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    ("shape", "key"),
    [
        (lambda z: (z,), None),
        (lambda z: (z, None), None),
        ([lambda z: [None, z]][0], None),
        (lambda z: (z * 2, z), 1),
        (lambda z: {"loss": z.sum(), "logits": z}, None),
        (lambda z: {"scores": z}, "scores"),
    ],
)
def test_outputs_in_containers(shape, key):
    _, relevance = explain(Shaped(shape), X, output_key=key)
    torch.testing.assert_close(relevance, explain(Shaped(lambda z: z), X)[1])


def test_outputs_of_several_tensors_have_to_be_chosen():
    with pytest.raises(TypeError, match=r"\{0: \(2, 8\), 1: \(2, 8\)\}"):
        explain(Shaped(lambda z: (z, z)), X)
    with pytest.raises(KeyError, match="place of one of them, got 2"):
        explain(Shaped(lambda z: (z, z)), X, output_key=2)


def test_tuples_of_transformers():
    model = models.bert().eval()
    batch = {"input_ids": IDS, "return_dict": False}
    torch.testing.assert_close(explain(model, batch)[1], explain(model, {"input_ids": IDS})[1])


def test_one_value_a_sample():
    _, relevance = explain(Shaped(lambda z: z[:, 0]), X, targets.Label(0))
    torch.testing.assert_close(relevance, explain(Shaped(lambda z: z), X, targets.Label(0))[1])
    _, alone = InputXGradient(Shaped(lambda z: z[:, 0]), CPLRPComposite())(X)
    torch.testing.assert_close(alone, relevance)


def test_maps_of_classes_need_a_function():
    model = Shaped(lambda z: z.view(-1, 2, 2, 2))
    with pytest.raises(ValueError, match="explain others with a function of the output"):
        explain(model, X)
    weights = torch.zeros(2, 2, 2, 2, dtype=torch.float64)
    weights[:, 1] = 1
    _, relevance = explain(model, X, lambda output: output * weights)
    expected = explain(Shaped(lambda z: z), X, targets.Labels([4, 5, 6, 7]))[1]
    torch.testing.assert_close(relevance, expected)


# --------------------------------------------------------------------------------------------------------------------
# Nothing asked, and asked in other words
# --------------------------------------------------------------------------------------------------------------------


def test_nothing_asked_is_no_explanation():
    with pytest.raises(ValueError, match=r"got no target[\s\S]*targets\.MaxLogit"):
        InputXGradient(Shaped(lambda z: z), CPLRPComposite())(X)
    _, relevance = InputXGradient(Shaped(lambda z: z), CPLRPComposite(), lambda output: output)(X)
    assert relevance.shape == X.shape


def test_a_headless_encoder_has_no_classes():
    config = models.bert().config
    encoder = transformers.BertModel(config).eval()
    with pytest.raises(ValueError, match="BertModel has no head"):
        explain(encoder, {"input_ids": IDS}, targets.MaxLogit())
    explain(encoder, {"input_ids": IDS}, targets.MaxLogit(), output_key="last_hidden_state")


@pytest.mark.parametrize(
    ("ask", "error", "match"),
    [
        (lambda a: a(X, targets.Label("paris")), TypeError, r"label2id\['paris'\]"),
        (lambda a: a(X, 5), ValueError, r"targets\.Label\(5\)"),
        (lambda a: a(X, "paris"), ValueError, r"targets\.Label\('paris'\)"),
        (lambda a: a("a text", targets.MaxLogit()), TypeError, r"tokenizer\(text"),
    ],
)
def test_what_to_write_is_said(ask, error, match):
    with pytest.raises(error, match=match):
        ask(InputXGradient(Shaped(lambda z: z), CPLRPComposite()))


# --------------------------------------------------------------------------------------------------------------------
# Numbers
# --------------------------------------------------------------------------------------------------------------------


def test_an_input_that_is_not_finite_is_named():
    model, pixels = models.hf_vit().eval(), torch.randn(1, 3, 32, 32)
    pixels[0, 0, 0, 0] = float("nan")
    with pytest.raises(NotFiniteError, match="pixel_values with 1 values that are not finite"):
        explain(model, {"pixel_values": pixels})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("strict", [False, True])
def test_one_sample_that_is_not_finite_leaves_the_others(value, strict):
    model, x = Shaped(lambda z: z.relu()), torch.randn(3, 4, dtype=torch.float64)
    expected = InputXGradient(model, CPLRPComposite())(x, targets.MaxLogit()).relevance
    x[1, 2] = value
    with InputXGradient(model, CPLRPComposite(strict=strict)) as attributor:
        with pytest.warns(NotFiniteWarning, match=r"in the samples \[1\]"):
            _, relevance = attributor(x, targets.MaxLogit())
    torch.testing.assert_close(relevance[[0, 2]], expected[[0, 2]])
    assert relevance[1].isnan().all()


# --------------------------------------------------------------------------------------------------------------------
# Training
# --------------------------------------------------------------------------------------------------------------------


def test_weights_that_get_no_gradient_of_relevance_are_noticed():
    model = Shaped(lambda z: z.relu())
    with pytest.warns(FrozenWarning, match="the weights are constants"):
        InputXGradient(model, AttnLRPComposite(), create_graph=True)(X, targets.Label(1))
    model.requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x = X.clone().requires_grad_()
        InputXGradient(model, AttnLRPComposite(), create_graph=True)(x, targets.Label(1))


# --------------------------------------------------------------------------------------------------------------------
# Caches
# --------------------------------------------------------------------------------------------------------------------

#: transformers renames the argument.
CACHES = pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning")


@CACHES
def test_a_cache_with_a_graph_is_a_constant():
    model = models.llama().double().eval()
    found = []
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            cache = model(torch.tensor([[3, 1, 4]]), use_cache=True).past_key_values
        found.append(explain(model, {"input_ids": torch.tensor([[1, 5]]), "past_key_values": cache})[1])
    torch.testing.assert_close(found[1], found[0])


@CACHES
def test_generation_with_a_cache_is_explained_step_by_step():
    model = models.llama().eval()
    cache = transformers.DynamicCache()
    with InputXGradient(model, AttnLRPComposite(strict=True)) as attributor:
        for token in (3, 1, 4):
            batch = {"input_ids": torch.tensor([[token]]), "past_key_values": cache, "use_cache": True}
            output, relevance = attributor(batch, targets.MaxLogit())
            cache = output.past_key_values
            assert relevance.shape == (1, 1)
