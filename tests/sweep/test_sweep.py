"""Test that the sweep finds what it is there to find."""

import json

import pytest
import torch
import transformers

from sweep.cases import all_cases
from sweep.checks import Refused, check
from sweep.configs import tiny_config
from sweep.report import report
from sweep.sizes import VOCABULARY, WIDTH
from sweep.sweep import Worker


class Small(torch.nn.Module):
    """A model of pixels that ends in a function of the test's choice."""

    def __init__(self, function):
        super().__init__()
        self.linear = torch.nn.Linear(4, 3, bias=False, dtype=torch.float64)
        self.function = function

    def forward(self, x):
        return self.function(self.linear(x))


def check_small(function):
    return check(Small(function).eval(), {"x": torch.randn(1, 4, dtype=torch.float64)})


def test_configurations_are_shrunk_through_all_levels():
    config = tiny_config(transformers.Qwen2VLConfig)
    assert config.text_config.hidden_size == WIDTH
    assert config.text_config.vocab_size == VOCABULARY
    assert config.vision_config.depth <= 4
    assert config.image_token_id < VOCABULARY


def test_constants_that_a_forward_adds_are_accounted_for():
    result = check_small(lambda z: (z + 1) * 2)
    assert result["status"] == "conserves"
    assert result["constants"] > 0.01


@pytest.mark.parametrize("function", [torch.exp, lambda z: torch.softmax(z, -1) @ torch.eye(3, dtype=z.dtype)])
def test_what_an_expansion_keeps_is_accounted_for(function):
    result = check_small(function)
    assert result["status"] == "conserves"
    assert result["expansions"] > 0.01


def test_a_leak_is_found():
    # autograd knows nothing of a constant that is written into a tensor
    result = check_small(lambda z: torch.where(z > -9, z, z).index_fill(1, torch.tensor([0, 1, 2]), 1.0) + z)
    assert result["status"] == "leaks"


def test_an_unknown_operation_is_refused_by_name():
    with pytest.raises(Refused, match=r"erfinv.* in the model itself"):
        check_small(torch.erfinv)


def test_a_worker_that_takes_too_long_is_reported_and_stopped(tmp_path):
    worker = Worker(timeout=0.01)
    result = worker.check("causal-lm/llama")
    assert "longer" in result["note"]
    assert worker.process is None
    file = tmp_path / "results.jsonl"
    file.write_text(json.dumps(result) + "\n")
    assert "| llama | cannot be built |" in report(file, all_cases())
