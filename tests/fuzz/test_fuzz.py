"""Random networks explain what the rules of the papers say; ``python -m tests.fuzz`` goes on for longer."""

import time

import pytest
import torch

from .networks import COMPOSITES, FORMS, check

#: How long each preset may take, and how many networks that is at least, and at most.
SECONDS, LEAST, MOST = 10, 40, 400
#: How many networks are compiled.
COMPILED = 8


@pytest.mark.parametrize("preset", COMPOSITES)
def test_random_networks_are_explained_by_the_book(preset):
    end, seed, compared = time.monotonic() + SECONDS, 0, 0
    while seed < LEAST or (time.monotonic() < end and seed < MOST):
        outcome = check(seed, preset)
        assert not outcome.wrong, "\n".join([f"seed {seed}", *outcome.wrong])
        compared += outcome.compared
        seed += 1
    # few have an exact zero, or a value that is written over and that the backward pass needs
    assert compared > seed * len(FORMS) / 2


@pytest.mark.skipif(torch.__version__ < "2.12", reason="older compilers do not trace every function of the rules")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("preset", COMPOSITES)
def test_random_networks_are_explained_by_the_book_when_compiled(preset):
    outcomes = [check(seed, preset, compiled=True) for seed in range(COMPILED)]
    wrong = [text for outcome in outcomes for text in outcome.wrong]
    assert not wrong, "\n".join(wrong)
    assert sum(outcome.compared for outcome in outcomes) >= COMPILED * len(FORMS) / 2
