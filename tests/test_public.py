"""The public face: what is there, what it costs, what an editor is told, and what is printed."""

import copy
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import models
import pytest
import torch
import zennit.canonizers
import zennit.rules
import zennit.types
from mypy import api

import zennit_attn
from zennit_attn import (
    AttnLRPComposite,
    CPLRPComposite,
    GammaViTComposite,
    InputXGradient,
    composites,
    input_x_gradient,
    rules,
    targets,
)

ROOT = Path(__file__).parent.parent
PUBLIC = [
    "AttnLRPComposite",
    "CPLRPComposite",
    "Explainer",
    "Explanation",
    "FunctionCanonizer",
    "GammaViTComposite",
    "InputXGradient",
    "LibraGradComposite",
    "ModelAdapter",
    "MultiheadAttentionCanonizer",
    "RelPComposite",
    "__version__",
    "capture",
    "composites",
    "concepts",
    "data",
    "errors",
    "evaluation",
    "evidence",
    "heatmap",
    "input_x_gradient",
    "load_composite",
    "register_operator",
    "release",
    "rules",
    "save_composite",
    "targets",
    "tuning",
]


def python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_is_public_is_shown_and_nothing_else():
    assert dir(zennit_attn) == PUBLIC
    for name in PUBLIC:
        assert getattr(zennit_attn, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'scope'"):
        zennit_attn.scope  # noqa: B018


@pytest.mark.parametrize(
    "room",
    ["composites", "concepts", "data", "evaluation", "evidence", "heatmap", "rules", "targets", "tuning", "errors"],
)
def test_rooms_show_what_is_public_and_nothing_else(room):
    module = getattr(zennit_attn, room)
    assert sorted(module.__all__) == dir(module)
    for name in module.__all__:
        assert getattr(module, name) is not None


def test_the_package_costs_nothing_until_it_is_used():
    python("import sys, zennit_attn; assert not {'torch', 'zennit', 'transformers', 'matplotlib'} & set(sys.modules)")
    python(
        "import sys, zennit_attn; zennit_attn.InputXGradient; "
        "assert 'torch' in sys.modules; assert not {'transformers', 'matplotlib'} & set(sys.modules)"
    )
    assert "gradient" in python("import zennit_attn; print(list(zennit_attn.evaluation.METHODS))")
    assert python("from zennit_attn import *; print(InputXGradient.__name__, heatmap.__name__)").split() == [
        "InputXGradient",
        "zennit_attn.heatmap",
    ]


def test_an_editor_is_told_what_calls_return(tmp_path):
    file = tmp_path / "typed.py"
    file.write_text(
        textwrap.dedent(
            """
            import torch
            from zennit_attn import AttnLRPComposite, InputXGradient, input_x_gradient, load_composite

            model = torch.nn.Linear(2, 2)
            with InputXGradient(model, AttnLRPComposite()) as attributor:
                output, relevance = attributor(torch.ones(1, 2))
                reveal_type(relevance)
            output, relevance, inner = InputXGradient(model, modules=["a"])(torch.ones(1, 2))
            reveal_type(inner)
            output, several = InputXGradient(model, argument=["a", "b"])({})
            reveal_type(several)
            reveal_type(attributor.ledger(torch.ones(1, 2)).kept)
            reveal_type(load_composite("attnlrp"))
            reveal_type(input_x_gradient(AttnLRPComposite()))
            with AttnLRPComposite().context(model) as explained:
                reveal_type(explained)
            """
        )
    )
    out, err, code = api.run([str(file), "--config-file", str(ROOT / "pyproject.toml")])
    assert code == 0, out + err
    told = [line.split('"')[1] for line in out.splitlines() if "Revealed type" in line]
    assert told == [
        "torch._tensor.Tensor",
        "dict[str, torch._tensor.Tensor]",
        "dict[str, torch._tensor.Tensor]",
        "dict[tuple[str, str], float]",
        "zennit_attn.composites.transformer.TransformerComposite",
        "zennit_attn.composites.presets.AttnLRPComposite",
        "torch.nn.modules.linear.Linear",
    ]


def test_a_composite_in_the_relevance_form_is_converted():
    model, x = models.torchvision_vit().eval(), torch.randn(1, 3, 32, 32)
    composite = GammaViTComposite()
    found = [InputXGradient(model, rules)(x, targets.MaxLogit()) for rules in (composite, input_x_gradient(composite))]
    torch.testing.assert_close(found[0].relevance, found[1].relevance)
    assert composite.form == "relevance"
    assert found[0]._fields == ("output", "relevance")
    inner = InputXGradient(model, composite, modules="heads")(x, targets.MaxLogit())
    assert inner._fields == ("output", "relevance", "inner")
    with pytest.raises(TypeError, match="expected a zennit"):
        InputXGradient(model, "attnlrp")


# --------------------------------------------------------------------------------------------------------------------
# What is printed
# --------------------------------------------------------------------------------------------------------------------

NAMES = {
    **vars(composites),
    **{name: getattr(rules, name) for name in rules.__all__},
    **{name: getattr(targets, name) for name in targets.__all__},
    "input_x_gradient": input_x_gradient,
    "torch": torch,
    "zennit": zennit,
}
COMPOSITES = [
    AttnLRPComposite(),
    CPLRPComposite(epsilon=1e-3, strict=True),
    GammaViTComposite(conv_gamma=0.1, attention="attnlrp", name_map=[("heads.*", rules.Gamma(0.3))]),
    AttnLRPComposite(
        layer_map=[(torch.nn.Linear, zennit.rules.Gamma(0.25)), ((torch.nn.Conv2d, "Conv1D"), rules.ZPlus())],
        role_map=[(("mlp", "head"), zennit.rules.ZBox(low=-1.0, high=1.0))],
    ),
    CPLRPComposite(layer_map=[(zennit.types.Activation, zennit.rules.Pass())]),
    AttnLRPComposite(canonizers=[zennit.canonizers.SequentialMergeBatchNorm()]),
    AttnLRPComposite(canonizers=[composites.MultiheadAttentionCanonizer(), composites.FunctionCanonizer()]),
    AttnLRPComposite(canonizers=[composites.FunctionCanonizer({"Fused": torch.nn.functional.softsign})]),
    AttnLRPComposite(layer_map=[(torch.nn.Conv2d, zennit.rules.ZBox(torch.zeros(3, 1, 1), torch.ones(3, 1, 1)))]),
    input_x_gradient(AttnLRPComposite(epsilon=0.5)),
]


@pytest.mark.parametrize("composite", COMPOSITES, ids=lambda composite: type(composite).__name__)
def test_composites_print_as_they_could_be_written(composite):
    again = eval(repr(composite), NAMES)
    assert again == composite
    assert repr(again) == repr(composite)


def test_composites_print_what_differs_from_their_defaults():
    assert repr(AttnLRPComposite()) == "AttnLRPComposite()"
    assert repr(CPLRPComposite(epsilon=0.1)) == "CPLRPComposite(epsilon=0.1)"
    assert repr(input_x_gradient(AttnLRPComposite())) == "input_x_gradient(AttnLRPComposite())"
    converted = input_x_gradient(zennit.composites.EpsilonPlus())
    assert repr(converted) == "<input_x_gradient of EpsilonPlus>"


TARGETS = [
    targets.MaxLogit(),
    targets.MaxLogit(position=-1),
    targets.Label(7),
    targets.Label([1, 2], position=[0, 3]),
    targets.Label(torch.tensor([1, 2])),
    targets.Labels([7, 9], [1, -1]),
    targets.Contrastive(),
    targets.Contrastive(3, position=2),
    targets.MaxLogit(attention_mask=torch.ones(1, 3)),
]


@pytest.mark.parametrize("target", TARGETS, ids=repr)
def test_targets_print_as_they_could_be_written(target):
    again = eval(repr(target), NAMES)
    assert repr(again) == repr(target)
    assert again == target
    output = torch.randn(2, 3, 12) if target.attention_mask is None else torch.randn(1, 3, 12)
    output = torch.randn(2, 4, 12) if "position" in repr(target) else output
    torch.testing.assert_close(again(output), target(output))


def test_targets_differ_by_what_they_explain():
    assert targets.Label(1) != targets.Label(2)
    assert targets.Label(1) != targets.Contrastive(1)
    assert len({targets.Label(1), targets.Label(1), targets.MaxLogit()}) == 2


RULES = [
    rules.Operators("value", "gate"),
    rules.AttnLRP(strict=True),
    rules.Gamma(0.25),
    rules.AlphaBeta(2, 1),
    rules.Epsilon(1e-3, zero_params="bias"),
    rules.Identity(),
]


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_rules_print_as_they_could_be_written(rule):
    again = eval(repr(rule), NAMES)
    assert type(again) is type(rule)
    assert again.parameters() == rule.parameters()


def test_rules_of_zennit_are_printed_as_they_could_be_written():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    composite = AttnLRPComposite(name_map=[("none", zennit.rules.Gamma(0.1))])
    with pytest.raises(ValueError, match=r"zennit\.rules\.Gamma\(gamma=0\.1, stabilizer=1e-06\)"):
        composite.describe(model)


# --------------------------------------------------------------------------------------------------------------------
# Tables
# --------------------------------------------------------------------------------------------------------------------


def test_descriptions_are_text_and_tables():
    model = models.torchvision_vit()
    table = GammaViTComposite().describe(model)
    assert isinstance(table, str)
    assert table.splitlines()[0].split() == list(table.columns)
    assert table.rows[0]["rule"] == "CPLRP"
    assert len(table.rows) == len(table.splitlines()) - 1
    html = table._repr_html_()
    assert html.count("<tr>") == len(table.rows) + 1
    assert "encoder.layers.encoder_layer_0.mlp.0" in html


def test_tables_escape_what_names_hold():
    model = torch.nn.Sequential()
    model.add_module("<b>", torch.nn.Linear(2, 2))
    html = AttnLRPComposite().describe(model)._repr_html_()
    assert "&lt;b&gt;" in html
    assert "<b>" not in html


def test_a_ledger_is_a_table_in_a_notebook():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    ledger = InputXGradient(model, CPLRPComposite()).ledger(torch.ones(1, 3), targets.Label(0))
    assert ledger.table().rows[0]["kept by"] == "input"
    assert ledger._repr_html_() == ledger.table()._repr_html_()
    assert ledger._repr_html_().count("<tr>") == len(str(ledger).splitlines()) + 1


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda table: pickle.loads(pickle.dumps(table))])
def test_tables_are_copied_with_their_rows(again):
    table = AttnLRPComposite().describe(torch.nn.Sequential(torch.nn.Linear(2, 2)))
    assert again(table) == table
    assert again(table).rows == table.rows


def test_tables_become_frames():
    pandas = pytest.importorskip("pandas")
    table = AttnLRPComposite().describe(torch.nn.Sequential(torch.nn.Linear(2, 2)))
    frame = table.to_dataframe()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.columns) == list(table.columns)


def test_rules_of_ones_own_are_described_and_compared():
    class Own(zennit.core.BasicHook):
        def __init__(self, strength):
            super().__init__()
            self.strength = strength

    composite = AttnLRPComposite(layer_map=[(torch.nn.Linear, Own(2))])
    assert composite == composite
    assert composite != AttnLRPComposite(layer_map=[(torch.nn.Linear, Own(2))])
    assert "Own" in composite.describe(torch.nn.Sequential(torch.nn.Linear(2, 2)))
    fused = [composites.FunctionCanonizer({"Fused": each}) for each in (torch.nn.functional.silu, torch.relu)]
    assert AttnLRPComposite(canonizers=fused[:1]) != AttnLRPComposite(canonizers=fused[1:])
