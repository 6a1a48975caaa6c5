"""What every test has at hand."""

import os
import sys
from pathlib import Path

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent))
# the models are tiny: more threads would only wait for each other
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed():
    """Make every test start from the same random state."""
    torch.manual_seed(0)


def pytest_collection_modifyitems(items):
    """Skip tests for a GPU where there is none."""
    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
