"""Baselines: against captum, against transformers' attention weights, and against closed forms of linear models."""

import sys

import models
import numpy as np
import pytest
import torch
import transformers

from zennit_attn import AttnLRPComposite, InputXGradient, input_x_gradient, targets
from zennit_attn.evaluation import Fixed, Patches, Tokens, baselines, exact_occlusion
from zennit_attn.evaluation.baselines import METHODS, AttentionWeights

GRAPHS = ("gradient", "input_x_gradient", "integrated_gradients", "attnlrp", "cp_lrp")
ROLLOUTS = ("attention_rollout", "gradient_attention_rollout")
IDS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
BATCH = {"input_ids": IDS, "attention_mask": MASK}


def linear_model():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
    return model.eval().requires_grad_(False)


@pytest.fixture
def kernel_shap():
    """Skip without captum, and let it warn."""
    pytest.importorskip("captum")
    return baselines.kernel_shap


def test_closed_forms_of_a_linear_model():
    model, images = linear_model(), torch.randn(3, 1, 4, 4)
    weight = model[1].weight[1].reshape(1, 1, 4, 4).expand_as(images)

    def explain(method):
        return method(model, images, targets.Label(1))

    for name in ("gradient", "smooth_grad"):
        torch.testing.assert_close(explain(METHODS[name]), weight.abs())
    for name in ("input_x_gradient", "integrated_gradients", "attnlrp", "cp_lrp"):
        torch.testing.assert_close(explain(METHODS[name]), weight * images)
    pooled = Patches(2).spread(Patches(2).pool(weight * images), images)
    torch.testing.assert_close(explain(baselines.occlusion(patch=2)), pooled)


@pytest.mark.filterwarnings("ignore")
def test_kernel_shap_of_a_linear_model(kernel_shap):
    model, images = linear_model(), torch.randn(3, 1, 4, 4)
    found = kernel_shap(features=Patches(2))(model, images, targets.Label(1))
    pooled = Patches(2).pool(model[1].weight[1].reshape(1, 1, 4, 4) * images)
    # captum solves a weighted regression in float32, in which the full coalition has a weight of a million
    torch.testing.assert_close(found, Patches(2).spread(pooled, images), rtol=1e-2, atol=1e-3)


@pytest.mark.filterwarnings("ignore")
def test_gradients_are_those_of_captum():
    attr = pytest.importorskip("captum.attr")
    model, images, label = models.torchvision_vit().eval(), torch.randn(2, 3, 32, 32), torch.tensor([1, 4])
    target = targets.Label(label)
    saliency = attr.Saliency(model).attribute(images, label)
    torch.testing.assert_close(METHODS["gradient"](model, images, target), saliency)
    product = attr.InputXGradient(model).attribute(images, label)
    # torchvision's attention takes another path without a gradient of its weights
    torch.testing.assert_close(METHODS["input_x_gradient"](model, images, target), product, rtol=1e-4, atol=1e-6)
    integral = attr.IntegratedGradients(model).attribute(images, target=label, n_steps=20, method="riemann_right")
    torch.testing.assert_close(METHODS["integrated_gradients"](model, images, target), integral, rtol=1e-4, atol=1e-6)
    places = Patches(8).spread(torch.arange(16).expand(1, -1), images)[:, None]
    ablated = attr.FeatureAblation(model).attribute(images, target=label, feature_mask=places)
    torch.testing.assert_close(METHODS["occlusion"](model, images, target), ablated[:, 0], rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_grad_cam_of_a_convolution_is_that_of_captum():
    attr = pytest.importorskip("captum.attr")
    layers = torch.nn.Conv2d(3, 5, 3, stride=2), torch.nn.Tanh(), torch.nn.Flatten(), torch.nn.LazyLinear(4)
    model, images = torch.nn.Sequential(*layers).eval(), torch.randn(2, 3, 9, 9)
    model(images)
    expected = attr.LayerGradCam(model, model[0]).attribute(images, 2, relu_attributions=True)
    expected = attr.LayerAttribution.interpolate(expected, (9, 9))[:, 0]
    torch.testing.assert_close(METHODS["grad_cam"](model, images, targets.Label(2)), expected)


@pytest.mark.parametrize("make", [models.torchvision_vit, models.timm_vit, models.hf_vit])
def test_grad_cam_of_patches_by_hand(make):
    model, images = make().eval(), torch.randn(2, 3, 32, 32)
    last = [module for name, module in model.named_modules() if baselines.role(name, module) == "attention"][-1]
    kept = []
    handle = last.register_forward_pre_hook(
        lambda _, args, kwargs: kept.append(args[0] if args else kwargs), with_kwargs=True
    )
    logits = model(images)
    handle.remove()
    (slope,) = torch.autograd.grad(getattr(logits, "logits", logits)[:, 3].sum(), kept[0])
    tokens = (kept[0] * slope.mean(1, keepdim=True)).sum(2)[:, 1:].clamp(min=0)
    found = METHODS["grad_cam"](model, images, targets.Label(3))
    # the class token comes first, then 4 x 4 patches of 8 x 8 pixels
    torch.testing.assert_close(found, Patches(8).spread(tokens.detach(), images))
    assert float(found.max()) > 0


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("make", [models.llama, models.qwen3, models.gpt2, models.bert])
def test_attention_weights_are_those_of_transformers(make, attention):
    model, eager = make(attention).eval(), make("eager").eval()
    eager.load_state_dict(model.state_dict())
    expected = eager(**BATCH, output_attentions=True).attentions
    with AttentionWeights() as found:
        output = model(**BATCH).logits
    torch.testing.assert_close(output, model(**BATCH).logits, rtol=1e-4, atol=1e-5)
    assert len(found.weights) == len(expected) == 3
    for one, other in zip(found.weights, expected, strict=True):
        # what padding attends to is left open
        torch.testing.assert_close(one[0], other[0])
        torch.testing.assert_close(one[1, :, :3], other[1, :, :3])


def test_attention_weights_of_torchvision_are_its_own():
    model, images, expected = models.torchvision_vit().eval(), torch.randn(2, 3, 32, 32), []
    handles, asked = [], {"need_weights": True, "average_attn_weights": False}
    for module in model.modules():
        if isinstance(module, torch.nn.MultiheadAttention):
            handles += [
                module.register_forward_pre_hook(lambda _, args, kwargs: (args, {**kwargs, **asked}), with_kwargs=True),
                module.register_forward_hook(lambda _, args, output: expected.append(output[1])),
            ]
    logits = model(images)
    for handle in handles:
        handle.remove()
    score, found = baselines.attention_of(model, images, Fixed(torch.eye(10)[:2]))
    torch.testing.assert_close(score, logits.diagonal()[:2])
    assert len(found.weights) == len(expected) == 3
    for one, other in zip(found.weights, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_fused_attention_in_steps():
    query, key, value = torch.randn(2, 4, 5, 3), torch.randn(2, 2, 5, 3), torch.randn(2, 2, 5, 3)
    mask = torch.randn(5, 5)
    # each query sees at least itself
    visible = torch.eye(5).bool() | (mask > 0)
    for changes in ({"is_causal": True}, {"attn_mask": mask}, {"attn_mask": visible, "scale": 0.3}):
        fused = torch.nn.functional.scaled_dot_product_attention
        expected = fused(query, key, value, enable_gqa=True, **changes)
        with AttentionWeights() as found:
            torch.testing.assert_close(fused(query, key, value, enable_gqa=True, **changes), expected)
        torch.testing.assert_close(found.weights[0].sum(-1), torch.ones(2, 4, 5))


def numpy_rollout(attentions, slopes=None):
    """Multiply layers up one sample and one layer at a time."""
    found = []
    for sample in range(len(attentions[0])):
        flow = np.eye(attentions[0].shape[-1])
        for layer, weights in enumerate(attentions):
            heads = weights[sample].double().numpy()
            if slopes is None:
                flow = (0.5 * heads.mean(0) + 0.5 * np.eye(len(flow))) @ flow
            else:
                heads = np.maximum(heads * slopes[layer][sample].double().numpy(), 0)
                flow = flow + heads.mean(0) @ flow
        found.append(flow)
    return torch.tensor(np.stack(found), dtype=torch.float32)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(("make", "row"), [(models.llama, -1), (models.bert, 0)])
def test_rollouts_by_numpy(make, row, attention):
    model, eager = make(attention).eval().requires_grad_(False), make("eager").eval()
    eager.load_state_dict(model.state_dict())
    output = eager(input_ids=IDS[:1], output_attentions=True)
    logits = output.logits[:, -1] if output.logits.dim() == 3 else output.logits
    slopes = torch.autograd.grad(logits.max(), output.attentions)
    attentions = [weights.detach() for weights in output.attentions]
    batch = {"input_ids": IDS[:1]}
    found = METHODS["attention_rollout"](model, batch, targets.MaxLogit())
    torch.testing.assert_close(found, numpy_rollout(attentions)[:, row])
    found = METHODS["gradient_attention_rollout"](model, batch, targets.MaxLogit())
    torch.testing.assert_close(found, numpy_rollout(attentions, slopes)[:, row], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(("make", "row", "name"), [(models.gpt2, -1, "c_attn"), (models.bert, 0, "value")])
def test_attention_times_value_norm_by_hand(make, row, name, attention):
    model, eager, values = make(attention).eval(), make("eager").eval(), []
    eager.load_state_dict(model.state_dict())
    for place, module in eager.named_modules():
        if place.rpartition(".")[2] == name:
            module.register_forward_hook(lambda module, args, output: values.append(output))
    output = eager(input_ids=IDS[:1], output_attentions=True)
    expected = 0
    for weights, value in zip(output.attentions, values, strict=True):
        heads = weights.shape[1]
        value = value.chunk(3, -1)[-1] if name == "c_attn" else value
        norms = value[0].unflatten(-1, (heads, -1)).norm(dim=-1).T
        expected = expected + (weights[0, :, row] * norms).mean(0) / len(values)
    found = METHODS["attention_value_norm"](model, {"input_ids": IDS[:1]}, targets.MaxLogit())
    torch.testing.assert_close(found[0], expected.detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("make", [models.torchvision_vit, models.timm_vit, models.hf_vit])
@pytest.mark.parametrize("name", ROLLOUTS)
def test_rollouts_of_images_are_those_of_patches(make, name):
    model, images = make().eval(), torch.randn(2, 3, 32, 32)
    found = METHODS[name](model, images, targets.Label(1))
    pooled = Patches(8).pool(found)
    torch.testing.assert_close(Patches(8).spread(pooled, images) / 64, found)
    if name == "attention_rollout":
        # rows of attention add up to one, of which the class token keeps a share
        assert bool((pooled.sum(1) < 64).all())
    assert float(pooled.min()) >= 0 < float(pooled.std())


@pytest.mark.parametrize("name", [*GRAPHS, *ROLLOUTS, "occlusion"])
@pytest.mark.parametrize("make", [models.llama, models.gpt2, models.bert])
def test_padding_has_no_part_in_token_relevance(make, name):
    model, target = make().eval(), targets.Label(7 if make is not models.bert else 2)
    both = METHODS[name](model, BATCH, target)
    assert not both[MASK == 0].any()
    for row, length in enumerate((5, 3)):
        alone = METHODS[name](model, {"input_ids": IDS[[row], :length]}, target)
        # float32 in batches of another size
        torch.testing.assert_close(both[[row], :length], alone, rtol=1e-3, atol=1e-5)


def test_padding_has_no_part_in_the_noise_of_smooth_grad():
    model = models.llama().eval()
    before = METHODS["smooth_grad"](model, BATCH, targets.Label(7))
    # id 0 is the padding
    model.get_input_embeddings().weight.data[0] = 100.0
    torch.testing.assert_close(METHODS["smooth_grad"](model, BATCH, targets.Label(7)), before)


@pytest.mark.filterwarnings("ignore")
def test_padding_is_no_player(kernel_shap):
    model, target = models.llama().eval(), targets.Label(7)
    both = kernel_shap()(model, BATCH, target)
    assert not both[MASK == 0].any()
    alone = kernel_shap()(model, {"input_ids": IDS[[1], :3]}, target)
    torch.testing.assert_close(both[[1], :3], alone, rtol=1e-3, atol=1e-5)
    # a single player has all of it
    single = kernel_shap()(model, {"input_ids": IDS[:1, :1]}, target)
    both_ways = model(input_ids=IDS[:1, :1]).logits - model(inputs_embeds=torch.zeros(1, 1, 48)).logits
    torch.testing.assert_close(single, both_ways[:, :, 7].detach())
    # efficiency: shares add up to what the tokens change together
    whole = model(input_ids=IDS[[1], :3]).logits[0, -1, 7]
    empty = model(inputs_embeds=torch.zeros(1, 3, 48)).logits[0, -1, 7]
    torch.testing.assert_close(both[1].sum(), (whole - empty).detach(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("make", [models.torchvision_vit, models.timm_vit, models.hf_vit])
def test_every_method_explains_images(make):
    model, images, state = make().eval(), torch.randn(2, 3, 32, 32), torch.get_rng_state()
    for name, method in METHODS.items():
        if name == "kernel_shap":
            pytest.importorskip("captum")
        relevance = method(model, images, targets.MaxLogit())
        assert relevance.shape in {(2, 32, 32), (2, 3, 32, 32)}, name
        assert bool(relevance.isfinite().all()), name
        assert float(relevance.std()) > 0, name
        assert not relevance.requires_grad, name
    assert torch.equal(torch.get_rng_state(), state)
    assert not images.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_batch_of_pixels_by_name():
    model, images = models.hf_vit().eval(), torch.randn(2, 3, 32, 32)
    for name in (*GRAPHS, *ROLLOUTS, "grad_cam", "occlusion"):
        by_name = METHODS[name](model, {"pixel_values": images}, targets.Label(2))
        torch.testing.assert_close(by_name, METHODS[name](model, images, targets.Label(2)))


def test_the_target_of_a_path_is_that_of_its_end():
    model, images = linear_model(), torch.ones(1, 1, 4, 4)
    # the first class has a bias, and the second one is larger from the middle of the path on
    model[1].weight.data, model[1].bias.data = torch.tensor([[0.0], [1.0]]).expand(2, 16), torch.tensor([8.0, 0.0])
    found = METHODS["integrated_gradients"](model, images, targets.MaxLogit())
    torch.testing.assert_close(found, images)
    found = baselines.occlusion(patch=4)(model, images, targets.MaxLogit())
    torch.testing.assert_close(found, 16 * images[:, 0])


def test_lrp_is_the_attributor():
    model = models.llama().eval()
    with InputXGradient(model, input_x_gradient(AttnLRPComposite())) as attributor:
        _, expected = attributor(BATCH, targets.MaxLogit())
    torch.testing.assert_close(METHODS["attnlrp"](model, BATCH, targets.MaxLogit()), expected)


def test_an_encoder_decoder():
    model, batch = models.t5().eval(), {**BATCH, "decoder_input_ids": torch.tensor([[0, 3], [0, 5]])}
    exact = exact_occlusion(model, batch, targets.Label(7), Tokens())
    torch.testing.assert_close(METHODS["occlusion"](model, batch, targets.Label(7)), exact, rtol=1e-3, atol=1e-5)
    assert (exact != 0).int().tolist() == MASK.tolist()


def test_kernel_shap_says_what_it_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(ModuleNotFoundError, match=r"zennit-attn\[evaluation\]"):
        METHODS["kernel_shap"](models.llama().eval(), BATCH, targets.Label(7))


def test_randomness_is_seeded():
    for make in (baselines.random_relevance, baselines.smooth_grad):
        model = models.bert().eval()
        first, same, other = (make(seed=seed)(model, BATCH, targets.Label(1)) for seed in (0, 0, 1))
        torch.testing.assert_close(first, same)
        assert not torch.allclose(first, other)


def swin():
    sizes = {
        "image_size": 32,
        "patch_size": 2,
        "embed_dim": 16,
        "depths": [1, 1],
        "num_heads": [2, 2],
        "window_size": 4,
    }
    return transformers.SwinForImageClassification(transformers.SwinConfig(**sizes))


def gpt2_classifier():
    config = models.gpt2().config
    config.num_labels, config.pad_token_id = 3, 0
    return transformers.GPT2ForSequenceClassification(config)


IMAGES = torch.randn(2, 3, 32, 32)


@pytest.mark.parametrize(
    ("name", "make", "batch", "match"),
    [
        ("grad_cam", models.llama, BATCH, "expected pixels"),
        ("cp_lrp_gamma", models.llama, BATCH, "patch_embedding"),
        ("attnlrp_gamma", models.bert, BATCH, "patch_embedding"),
        ("attention_rollout", models.t5, {**BATCH, "decoder_input_ids": IDS}, "of one sequence"),
        ("gradient_attention_rollout", gpt2_classifier, BATCH, "position that is read"),
        ("attention_rollout", linear_model, IMAGES[:, :1, :4, :4], "shapes none"),
        ("attention_rollout", swin, {"pixel_values": IMAGES}, "attn_implementation='eager'"),
        ("occlusion", linear_model, IMAGES[:, :1, :4, :4], "give the patch size"),
        ("grad_cam", linear_model, IMAGES[:, :1, :4, :4], "name a layer"),
    ],
)
def test_what_does_not_apply_is_an_error(name, make, batch, match):
    with pytest.raises(ValueError, match=match):
        METHODS[name](make().eval(), batch, targets.Label(1))


def test_wrong_places_are_errors():
    model = models.torchvision_vit().eval()
    with pytest.raises(ValueError, match="nearest: 'conv_proj'"):
        baselines.grad_cam("conv_pro")(model, IMAGES, targets.Label(1))
    with pytest.raises(ValueError, match=r"expected a tensor \(batch, channels"):
        baselines.grad_cam("encoder.ln")(model, IMAGES, targets.Label(1))
    with pytest.raises(ValueError, match="explains a position of its own"):
        baselines.attention_rollout(position=0)(models.llama().eval(), BATCH, targets.Label(1))


def test_the_position_that_is_read():
    model = gpt2_classifier().eval()
    ids = {"input_ids": IDS[:1]}
    last = baselines.attention_rollout(position=-1)(model, ids, targets.Label(1))
    torch.testing.assert_close(last.sum(1), torch.ones(1))
    third = baselines.attention_rollout(position=2)(model, ids, targets.Label(1))
    assert not third[:, 3:].any()
    assert third[:, :3].all()


def test_features_of_other_fills():
    pytest.importorskip("captum")
    model = models.bert().eval()
    methods = [baselines.kernel_shap(features=features) for features in (Tokens(), Tokens(fill=1))]
    zero, one = (method(model, BATCH, targets.Label(1)) for method in methods)
    assert not torch.allclose(zero, one)
    # replaced by itself, a token has no share
    assert float(one[IDS == 1].abs().max()) < 1e-4 < float(one.abs().max())
