"""Attribution graphs, against a forward pass that is cut at every place by hand."""

import json

import models
import pytest
import torch

from zennit_attn import AttnLRPComposite, CPLRPComposite, InputXGradient, heatmap, input_x_gradient, targets
from zennit_attn.concepts import AttributionGraph, CondAttribution, Features, attribution_graph
from zennit_attn.engine.operands import explained_leaf
from zennit_attn.errors import InputError

from .test_latents import Autoencoder

IDS = torch.tensor([[3, 1, 4, 1, 5]])
TARGET = targets.Labels([7, 3], [1, -1])
#: Where heads and neurons are, in the order of the forward pass.
PLACES = [
    (f"model.layers.{layer}.{kind}", f"model.layers.{layer}.{module}", units)
    for layer in range(3)
    for kind, module, units in (("head", "self_attn.o_proj", 4), ("neuron", "mlp.down_proj", 96))
]


def cut_by_hand(model, composite):
    """Return by pair of places the signal that gets from all of the upper to the lower one, and what is there.

    Each place reads a leaf of its own, so that a gradient with respect to it has no path through another one.
    """
    taken = []

    def cut(_, args):
        leaf = explained_leaf(args[0])
        taken.append((args[0], leaf))
        return (leaf,)

    x = model.get_input_embeddings()(IDS).detach().requires_grad_()
    with input_x_gradient(composite).context(model):
        handles = [model.get_submodule(module).register_forward_pre_hook(cut) for _, module, _ in PLACES]
        logits = model(inputs_embeds=x).logits[0, -1]
        for handle in handles:
            handle.remove()

        def passed(root, signal, lower):
            leaves = [*(leaf for _, leaf in lower), x]
            found = torch.autograd.grad(root, leaves, signal, retain_graph=True, allow_unused=True)
            return [torch.zeros_like(leaf) if part is None else part for part, leaf in zip(found, leaves, strict=True)]

        value = logits[7] - logits[3]
        from_output = passed(value, None, taken)
        totals = list(from_output)
        for at in reversed(range(len(taken))):
            found = passed(taken[at][0], totals[at], taken[:at])
            for lower, part in enumerate(found[:-1]):
                totals[lower] = totals[lower] + part
        return value.detach(), taken, x, totals, from_output, passed


def by_unit(value, signal, units):
    return (value * signal).detach().unflatten(-1, (units, -1)).sum((0, 1, 3))


@pytest.mark.parametrize("kind", [CPLRPComposite, AttnLRPComposite])
def test_edges_are_what_gets_from_unit_to_unit_on_no_other_units_way(kind):
    model = models.scramble(models.llama()).double().eval()
    graph = attribution_graph(model, IDS, TARGET, kind(strict=True), count=2, batch_size=5)
    value, taken, x, totals, from_output, passed = cut_by_hand(model, kind(strict=True))
    index = {name: at for at, (name, _, _) in enumerate(PLACES)}
    got = {(edge.upper, edge.lower): edge.relevance for edge in graph.edges}
    checked = 0
    for upper, node in enumerate(graph.nodes):
        if node.place == "input":
            continue
        if node.place == "output":
            signals, below = from_output, len(taken)
        else:
            below = index[node.place]
            units = PLACES[below][2]
            kept = torch.zeros(units).double()
            kept[list(node.units)] = 1
            before, leaf = taken[below]
            start = (totals[below].unflatten(-1, (units, -1)) * kept[:, None]).flatten(-2)
            assert float((start * leaf).detach().sum()) == pytest.approx(node.relevance, rel=1e-5, abs=1e-8)
            signals = passed(before, start, taken[:below])
        for lower, other in enumerate(graph.nodes):
            if other.place == "output":
                continue
            if other.place == "input":
                expected = (x * signals[-1]).detach().sum(-1)[0, other.units[0]]
            elif index[other.place] < below:
                at = index[other.place]
                expected = by_unit(taken[at][1], signals[at], PLACES[at][2])[list(other.units)].sum()
            else:
                expected = torch.zeros(())
            # RMSNorm of transformers computes in float32
            assert got.get((upper, lower), 0.0) == pytest.approx(float(expected), rel=1e-5, abs=1e-7)
            checked += abs(float(expected)) > 1e-6
    assert graph.nodes[0].relevance == pytest.approx(float(value))
    assert checked > 200


@pytest.mark.parametrize("count", [1, 3])
def test_all_that_flows_in_flows_out_under_cp_lrp(count):
    model = models.scramble(models.llama()).double().eval()
    graph = attribution_graph(model, IDS, TARGET, CPLRPComposite(strict=True), count=count)
    plain = InputXGradient(model, CPLRPComposite(strict=True), latents=["head", "neuron"])(IDS, TARGET)
    scale = max(abs(node.relevance) for node in graph.nodes)
    for number, node in enumerate(graph.nodes):
        into = sum(edge.relevance for edge in graph.above(number))
        out = sum(edge.relevance for edge in graph.below(number))
        if node.place != "output":
            assert into == pytest.approx(node.relevance, abs=1e-6 * scale)
        if node.place == "input":
            assert node.relevance == pytest.approx(float(plain.relevance[0, node.units[0]]), abs=1e-6 * scale)
        else:
            assert out == pytest.approx(node.relevance, abs=1e-6 * scale)
            assert node.other == pytest.approx(0, abs=1e-6 * scale)
    # the strongest units are those of the plain attribution, and the others are all others
    for name, relevance in plain.inner.items():
        units = relevance[0].sum(0)
        own = [node for node in graph.nodes if node.place == name]
        assert [node.units[0] for node in own[:count]] == units.abs().argsort(descending=True)[:count].tolist()
        assert sorted(unit for node in own for unit in node.units) == list(range(len(units)))
        assert own[0].position == int(relevance[0, :, own[0].units[0]].abs().argmax())
    # so the sum over all units of a layer's branches and what goes around them is the unconditional heatmap
    tokens = sum(edge.relevance for edge in graph.edges if graph.nodes[edge.lower].place == "input")
    assert tokens == pytest.approx(float(plain.relevance.sum()), abs=1e-6 * scale)


def test_an_edge_is_conditional_relevance_with_the_units_between_shut():
    model = models.scramble(models.llama()).double().eval()
    graph = attribution_graph(model, IDS, TARGET, CPLRPComposite(strict=True), latents="head", count=4)
    upper = next(at for at, node in enumerate(graph.nodes) if node.place == "model.layers.2.head")
    unit = graph.nodes[upper].units[0]
    for between in ([], ["model.layers.1.head"]):
        lower = "model.layers.0.head" if between else "model.layers.1.head"
        condition = {"model.layers.2.head": [unit], **{name: [] for name in between}, "y": TARGET}
        options = {"record_layer": [lower], "exclude_parallel": False}
        asking, composite = CondAttribution(model), input_x_gradient(CPLRPComposite(strict=True))
        through = asking(IDS, [condition], composite, **options).relevances[lower]
        # without the unit: what goes around it
        condition = {"model.layers.2.head": [], **{name: [] for name in between}, "y": TARGET}
        around = asking(IDS, [condition], composite, **options).relevances[lower]
        for edge in graph.below(upper):
            node = graph.nodes[edge.lower]
            if node.place == lower:
                expected = float((through - around)[0, :, node.units[0]].sum())
                assert edge.relevance == pytest.approx(expected, abs=1e-7)


def test_small_edges_are_in_what_is_left_of_their_node():
    model = models.llama().double().eval()
    whole = attribution_graph(model, IDS, TARGET, CPLRPComposite())
    graph = attribution_graph(model, IDS, TARGET, CPLRPComposite(), least=0.05, batch_size=3)
    least = 0.05 * abs(graph.nodes[0].relevance)
    assert [edge[:2] for edge in graph.edges] == [edge[:2] for edge in whole.edges if abs(edge.relevance) >= least]
    for number, node in enumerate(graph.nodes):
        if node.place != "input":
            assert node.other == pytest.approx(node.relevance - sum(edge.relevance for edge in graph.below(number)))
    assert any(abs(node.other) > 1e-6 for node in graph.nodes)


def test_layers_experts_features_and_images_are_places():
    model = models.mixtral().eval()
    graph = attribution_graph(model, IDS, TARGET, CPLRPComposite(), latents=["expert", "head"], count=2)
    for number, node in enumerate(graph.nodes[1:], 1):
        into = sum(edge.relevance for edge in graph.above(number))
        assert into == pytest.approx(node.relevance, rel=1e-4, abs=1e-7)
    model = models.llama().double().eval()
    features = Features("model.layers.0", Autoencoder(count=9).double())
    graph = attribution_graph(model, IDS, TARGET, CPLRPComposite(), latents=["model.layers.1.layer", features])
    kinds = [node.label for node in graph.nodes if node.place not in ("output", "input")]
    assert (kinds[0], kinds[-1]) == ("layer 0", "other features")
    # what the autoencoder misses is kept by its error
    assert abs(graph.nodes[1].other) > 1e-6
    vit, pixels = models.timm_vit().double().eval(), torch.randn(1, 3, 32, 32).double()
    graph = attribution_graph(vit, pixels, [3], CPLRPComposite(), count=1)
    assert [node.label for node in graph.nodes if node.place == "input"] == ["input"]
    assert sum(edge.relevance for edge in graph.below(0)) == pytest.approx(
        graph.nodes[0].relevance - graph.nodes[0].other
    )


def test_a_graph_is_saved_and_drawn(tmp_path):
    model = models.llama().eval()
    words = ["<a>", "b & c", "d", "e", "f"]
    graph = attribution_graph(model, IDS, TARGET, AttnLRPComposite(), tokens=words, answer="seven")
    graph.save(tmp_path / "graph.json")
    assert AttributionGraph.load(tmp_path / "graph.json") == graph
    for suffix in (".png", ".svg", ".html"):
        graph.save(tmp_path / f"graph{suffix}")
    svg = (tmp_path / "graph.svg").read_text()
    assert "&lt;a&gt;" in svg
    assert "seven" in svg
    assert "other" not in svg
    assert "nodes and 5 edges" in repr(graph.picture(edges=5))
    content = json.loads((tmp_path / "graph.json").read_text())
    for change in ({"version": 2}, {"format": "x"}, {"edges": [[0, 99, 1.0]]}, {"nodes": [{}]}):
        (tmp_path / "bad.json").write_text(json.dumps({**content, **change}))
        with pytest.raises(InputError, match=r"bad\.json"):
            AttributionGraph.load(tmp_path / "bad.json")
    with pytest.raises(InputError, match="ends with"):
        graph.save(tmp_path / "graph.txt")


def test_what_is_no_graph_is_refused():
    model = models.llama().eval()
    for options, match in (
        ({"count": 0}, "at least one of each"),
        ({"tokens": ["a"]}, "got 1 names of 5 tokens"),
        ({"latents": ["model.layers.1.layer", "model.layers.1.residual"]}, "the same tensor"),
    ):
        with pytest.raises(InputError, match=match):
            attribution_graph(model, IDS, TARGET, CPLRPComposite(), **options)
    with pytest.raises(InputError, match="got 2 samples"):
        attribution_graph(model, IDS.expand(2, -1), TARGET, CPLRPComposite())
    levels = [("", [("a", 1.0, None)]), ("", [("b", 1.0, 0)])]
    with pytest.raises(ValueError, match="the upper first"):
        heatmap.graph(levels, [((1, 0), (0, 0), 1.0)])
    with pytest.raises(ValueError, match="without nodes"):
        heatmap.graph([("", [])], [])
