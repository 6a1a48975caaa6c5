"""Which rule goes to which module, presets as files, and errors that say what to do."""

import models
import pytest
import torch
import zennit.canonizers
import zennit.rules
import zennit.types
from zennit.composites import COMPOSITES
from zennit.core import Stabilizer

from zennit_attn import (
    AttnLRPComposite,
    CPLRPComposite,
    GammaViTComposite,
    InputXGradient,
    input_x_gradient,
    load_composite,
    rules,
    save_composite,
    targets,
)
from zennit_attn.composites import TransformerComposite
from zennit_attn.composites.configuration import PRESETS, to_toml
from zennit_attn.composites.parameters import parameters_of

ZENNIT = [
    (zennit.rules.Epsilon, {"epsilon": 0.5, "zero_params": ["bias"]}),
    (zennit.rules.Gamma, {"gamma": 0.1, "stabilizer": 1e-7}),
    (zennit.rules.ZPlus, {"stabilizer": 1e-5, "zero_params": "bias"}),
    (zennit.rules.AlphaBeta, {"alpha": 3.0, "beta": 2.0, "stabilizer": 1e-5}),
    (zennit.rules.ZBox, {"low": -1.0, "high": 2.0, "stabilizer": 1e-5}),
    (zennit.rules.Flat, {"stabilizer": 1e-5}),
    (zennit.rules.WSquare, {"stabilizer": 1e-5, "zero_params": ["bias"]}),
    (zennit.rules.Norm, {"stabilizer": 1e-5}),
    (zennit.rules.Pass, {}),
    (zennit.rules.ReLUDeconvNet, {}),
    (zennit.rules.ReLUGuidedBackprop, {}),
    (zennit.rules.ReLUBetaSmooth, {"beta_smooth": 3.0}),
]
OURS = [
    (rules.Epsilon, {"epsilon": 0.5, "zero_params": ["bias"]}),
    (rules.Gamma, {"gamma": 0.1}),
    (rules.ZPlus, {"stabilizer": 1e-5}),
    (rules.AlphaBeta, {"alpha": 3.0, "beta": 2.0}),
    (rules.Identity, {}),
    (rules.Operators, {"attention": "value", "product": "gate"}),
    (rules.AttnLRP, {"strict": True}),
    (rules.CPLRP, {}),
]


def test_presets_are_in_the_registry_of_zennit():
    assert COMPOSITES["attnlrp"] is AttnLRPComposite
    assert COMPOSITES["cp_lrp"] is CPLRPComposite
    assert COMPOSITES["gamma_vit"] is GammaViTComposite


@pytest.mark.parametrize("name", PRESETS)
def test_preset_files_are_the_defaults(name):
    assert load_composite(name) == PRESETS[name]()


def test_overrides():
    assert load_composite("gamma_vit", conv_gamma=0.1, attention="attnlrp") == GammaViTComposite(
        0.1, attention="attnlrp"
    )
    assert load_composite("attnlrp", epsilon=1e-6) != AttnLRPComposite()
    entry = ("Linear", rules.Gamma(0.1))
    assert load_composite("attnlrp", layer_map=[entry]) == AttnLRPComposite(layer_map=[entry])


@pytest.mark.parametrize(("kind", "arguments"), [*ZENNIT, *OURS], ids=lambda case: getattr(case, "__name__", ""))
def test_parameters_are_read_off_a_rule(kind, arguments):
    found = parameters_of(kind(**arguments))
    assert {name: found[name] for name in arguments} == arguments


@pytest.mark.parametrize("form", ["relevance", "gradient"])
@pytest.mark.parametrize(("kind", "arguments"), [*ZENNIT, *OURS], ids=lambda case: getattr(case, "__name__", ""))
def test_a_written_composite_reads_back_equal(tmp_path, kind, arguments, form):
    composite = GammaViTComposite(
        conv_gamma=0.125,
        linear_gamma=1e-7,
        attention="attnlrp",
        strict=True,
        name_map=[(("heads.*", 'a "quoted" \\ name'), kind(**arguments))],
        role_map=[("mlp", rules.Gamma(0.5))],
        layer_map=[
            ((torch.nn.Linear, "Conv2d"), zennit.rules.Gamma(0.3)),
            (zennit.types.Convolution, rules.Epsilon()),
        ],
        canonizers=[zennit.canonizers.SequentialMergeBatchNorm()],
    )
    composite = input_x_gradient(composite) if form == "gradient" else composite
    model = models.torchvision_vit()
    file = save_composite(composite, tmp_path / "mine.toml", model)
    again = load_composite(file)
    assert again == composite
    assert again != GammaViTComposite()
    assert type(again.name_map[0][1]) is kind
    text = file.read_text()
    assert 'model = "VisionTransformer"' in text
    assert f'torch = "{torch.__version__}"'.split("+")[0] in text


def test_a_composite_that_was_read_back_explains_the_same(tmp_path):
    model = models.torchvision_vit().double().eval()
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    composite = GammaViTComposite(
        layer_map=[(zennit.types.Convolution, zennit.rules.ZBox(-2.0, 2.0)), (torch.nn.Linear, zennit.rules.ZPlus())]
    )
    again = load_composite(save_composite(composite, tmp_path / "mine.toml"))
    expected, _ = models.explain(model, composite, x, "relevance")
    got, _ = models.explain(model, again, x, "relevance")
    assert torch.equal(got, expected)


@pytest.mark.parametrize(
    "rule",
    [
        zennit.rules.ZBox(torch.zeros(1, 3, 1, 1), 1.0),
        zennit.rules.Epsilon(epsilon=lambda z: z + 1),
        zennit.rules.Gamma(stabilizer=Stabilizer(1e-6, clip=True)),
        type("Own", (zennit.rules.Pass,), {})(),
    ],
)
def test_what_no_file_can_hold_is_an_error(rule):
    with pytest.raises(ValueError, match="expected"):
        to_toml(AttnLRPComposite(layer_map=[("Linear", rule)]))


@pytest.mark.parametrize(
    ("text", "error", "match"),
    [
        ('preset = "gamma_vitt"', ValueError, "nearest: 'gamma_vit'"),
        ('prest = "gamma_vit"', ValueError, "nearest: 'preset'"),
        ('preset = "gamma_vit"\n[parameters]\nconv_gama = 1', ValueError, "nearest: 'conv_gamma'"),
        ('preset = "gamma_vit"\n[parameters]\nconv_gamma = "1e-6"', TypeError, "expected a number"),
        ('preset = "gamma_vit"\n[parameters]\nconv_gamma = true', TypeError, "expected a number"),
        ('preset = "gamma_vit"\n[parameters]\nconv_gamma = -1.0', ValueError, "at least 0"),
        ('preset = "gamma_vit"\n[parameters]\nconv_gamma = nan', ValueError, "finite"),
        ('preset = "gamma_vit"\n[parameters]\nattention = "lxt"', ValueError, "'cp' or 'attnlrp'"),
        ('preset = "attnlrp"\n[parameters]\nstrict = 1', TypeError, "true or false"),
        ('preset = "attnlrp"\nparameters = 1', TypeError, "expected a table"),
        ('preset = "attnlrp"\nform = "both"', ValueError, "'relevance' or 'gradient'"),
        ('preset = "attnlrp"\ncanonizers = ["Merge"]', ValueError, "nearest: 'MergeBatchNorm'"),
        ('preset = "attnlrp"\n[[layer_map]]\ntypes = ["Linear"]\nrule = "Gama"', ValueError, "nearest: 'Gamma'"),
        ('preset = "attnlrp"\n[[layer_map]]\ntypes = "Linear"\nrule = "Gamma"', TypeError, "a list of texts"),
        ('preset = "attnlrp"\n[[layer_map]]\nnames = ["a"]\nrule = "Gamma"', ValueError, "key of layer_map 'names'"),
        (
            'preset = "attnlrp"\n[[layer_map]]\ntypes = ["Linear"]\nrule = "Gamma"\nparameters = {gama = 1}',
            ValueError,
            "nearest: 'gamma'",
        ),
        (
            'preset = "attnlrp"\n[[layer_map]]\ntypes = ["Linear"]\nrule = "AlphaBeta"\nparameters = {alpha = 3}',
            ValueError,
            "alpha - beta",
        ),
        ('preset = "attnlrp"\n[[role_map]]\nroles = ["mpl"]\nrule = "Gamma"', ValueError, "nearest: 'mlp'"),
        (
            'preset = "attnlrp"\n[[layer_map]]\ntypes = ["Linear"]\n'
            'rule = "zennit.rules.Gamma"\nparameters = {gamma = "a"}',
            TypeError,
            "expected a number",
        ),
        ('preset = "attnlrp"\ncanonizers = "MergeBatchNorm"', TypeError, "expected a list"),
        ("preset = ", ValueError, "not valid TOML"),
    ],
)
def test_errors_of_files_name_the_nearest_choice(tmp_path, text, error, match):
    file = tmp_path / "wrong.toml"
    file.write_text(text)
    with pytest.raises(error, match=match) as caught:
        load_composite(file)
    assert "wrong.toml" in str(caught.value) or "canonizer" in str(caught.value) or "role_map" in str(caught.value)


def test_errors_of_load_composite():
    with pytest.raises(ValueError, match="nearest: 'gamma_vit'"):
        load_composite("gama_vit")
    with pytest.raises(ValueError, match="nearest: 'conv_gamma'"):
        load_composite("gamma_vit", conv_gama=0.1)
    with pytest.raises(TypeError, match="expected a number"):
        load_composite("gamma_vit", conv_gamma="0.1")
    with pytest.raises(FileNotFoundError):
        load_composite("no/such/file.toml")


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"name_map": [("model.layer.0.mlp", rules.Gamma())]}, "nearest: 'model.layers.0.mlp'"),
        ({"layer_map": [(torch.nn.Conv2d, rules.Gamma())]}, "fits no module of LlamaForCausalLM"),
        ({"layer_map": [("LlamaAtention", rules.Operators())]}, "nearest: 'LlamaAttention'"),
        ({"role_map": [("patch_embedding", rules.Gamma())]}, "no module has the role 'patch_embedding'"),
    ],
)
def test_a_rule_that_matches_nothing_is_an_error(arguments, match):
    model = models.llama()
    composite = AttnLRPComposite(**arguments)
    with pytest.raises(ValueError, match=match):
        composite.register(model)
    assert not composite.handles
    assert "forward" not in vars(model)


def test_gamma_vit_on_a_language_model_is_an_error():
    with pytest.raises(ValueError, match="choose another preset"):
        GammaViTComposite().register(models.llama())


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"layer_map": [torch.nn.Linear]}, "pairs"),
        ({"layer_map": [(torch.nn.Linear, rules.Gamma)]}, "expected a rule"),
        ({"layer_map": [(3, rules.Gamma())]}, "expected str or type"),
        ({"name_map": [("a", input_x_gradient(rules.Gamma()))]}, "convert the whole composite"),
    ],
)
def test_maps_that_are_none(arguments, match):
    with pytest.raises(TypeError, match=match):
        AttnLRPComposite(**arguments)


def test_a_sign_rule_on_a_module_without_a_plain_weight_is_an_error():
    with pytest.raises(TypeError, match=r"expected torch\.nn\.Linear"):
        AttnLRPComposite(layer_map=[("LlamaMLP", rules.Gamma())]).register(models.llama())


def test_describe_refuses_a_map_that_fits_no_module():
    with pytest.raises(ValueError, match=r"encodr[\s\S]*fits no module"):
        GammaViTComposite(name_map=[("encodr.*", rules.Gamma(0.1))]).describe(models.torchvision_vit())


def test_describe_names_module_role_and_rule():
    model = models.torchvision_vit()
    before = [name for name, _ in model.named_modules()]
    lines = GammaViTComposite().describe(model).splitlines()
    assert lines[0].split() == ["module", "role", "rule", "parameters"]
    found = {line.split()[0]: line.split()[1:3] for line in lines[2:]}
    block = "encoder.layers.encoder_layer_1"
    assert found["conv_proj"] == ["patch_embedding", "Gamma"]
    assert found[f"{block}.mlp.0"] == ["mlp", "Gamma"]
    assert found[f"{block}.self_attention.query"] == ["qkv", "Epsilon"]
    assert found[f"{block}.self_attention.out_proj"] == ["projection", "Epsilon"]
    assert found["heads.head"] == ["head", "Gamma"]
    assert before == [name for name, _ in model.named_modules()]


@pytest.mark.parametrize("make", [models.torchvision_vit, models.timm_vit, models.hf_vit])
def test_roles_in_three_libraries(make):
    rows = [line.split() for line in GammaViTComposite().describe(make()).splitlines()[2:]]
    roles = [
        row[1] for row in rows if len(row) > 2 and row[1] in ("patch_embedding", "qkv", "projection", "mlp", "head")
    ]
    qkv = 3 if make is models.timm_vit else 9
    expected = {"patch_embedding": 1, "qkv": qkv, "projection": 3, "mlp": 6, "head": 1}
    assert {role: roles.count(role) for role in expected} == expected


def test_name_map_comes_before_role_map_comes_before_layer_map():
    model = models.timm_vit().double().eval()
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    wrong = rules.Gamma(100.0)
    by_name = GammaViTComposite(
        name_map=[("*.mlp.*", rules.Gamma(0.05))], role_map=[("mlp", wrong)], layer_map=[("Linear", rules.Epsilon(0))]
    )
    by_role = GammaViTComposite(role_map=[("mlp", rules.Gamma(0.05))], layer_map=[("Linear", rules.Epsilon(0))])
    expected, _ = models.explain(model, GammaViTComposite(role_map=[("head", rules.Epsilon(0))]), x)
    # the first composite's pattern also fits the activation between the linear layers
    with pytest.raises(TypeError, match="GELU"):
        by_name.register(model)
    by_name.name_map = [(("*.mlp.fc?",), rules.Gamma(0.05))]
    for composite in (by_name, by_role):
        got, _ = models.explain(model, composite, x)
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("make", [models.llama, models.gpt2, models.timm_vit])
def test_operators_that_are_all_gradient_are_input_times_gradient(make):
    # GPT-2's activation is a module that computes it of products and a tanh
    model = models.scramble(make()).double().eval()
    x = torch.randn(1, 3, 32, 32).double() if make is models.timm_vit else torch.tensor([[3, 1, 4, 1, 5]])
    operators = rules.Operators("gradient", "gradient", "gradient", "gradient")
    got, expected = (
        InputXGradient(model, composite)(x, targets.Label(3)).relevance
        for composite in (TransformerComposite(operators), None)
    )
    assert torch.equal(got, expected)
