"""Relevances that LXT computed: golden values that nobody here wrote."""

import json
from pathlib import Path

import models
import pytest
import torch
import torchvision
import transformers
from safetensors import safe_open

from zennit_attn import AttnLRPComposite, CPLRPComposite, GammaViTComposite

FILES = sorted((Path(__file__).parent / "golden").glob("*.safetensors"))
# relative to the largest relevance: float32 inside of RMSNorm allows 1e-5, pure float64 1e-6
TOLERANCE = {"gpt2": 1e-6, "gpt2-cp": 1e-6, "vit-0.1_0": 1e-6, "vit-0.25_0.05": 1e-6}


def load(file, attention):
    with safe_open(file, "pt") as content:
        meta = content.metadata()
        tensors = {key: content.get_tensor(key) for key in content.keys()}
    config, rules = json.loads(meta["config"]), json.loads(meta["extra"])
    if meta["model_class"] == "VisionTransformer":
        model = torchvision.models.VisionTransformer(**config)
        composite = GammaViTComposite(rules["conv_gamma"], rules["linear_gamma"], rules["linear_gamma"], strict=True)
    else:
        kind = getattr(transformers, meta["model_class"])
        model = kind(kind.config_class(**config, attn_implementation=attention))
        composite = (CPLRPComposite if "CP" in rules["rules"] else AttnLRPComposite)(strict=True)
    weights = {key.removeprefix("weights/"): value for key, value in tensors.items() if key.startswith("weights/")}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    # tied to an embedding that is there
    assert set(missing) <= {"lm_head.weight"}
    return model.double().eval(), composite, tensors


def test_there_are_golden_values():
    assert len(FILES) == 7


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("form", ["relevance", "gradient"])
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_relevance_is_that_of_lxt(file, form, attention):
    model, composite, tensors = load(file, attention)
    relevance, explained = models.explain(model, composite, tensors["input"].double(), form)
    torch.testing.assert_close(explained, tensors["explained"], rtol=1e-6, atol=1e-6)
    assert models.relative_error(relevance, tensors["relevance"]) < TOLERANCE.get(file.stem, 1e-5)
