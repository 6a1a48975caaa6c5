"""Random networks explain what the rules of the papers say; ``python -m tests.fuzz`` goes on for longer."""

import time

import pytest

from .networks import COMPOSITES, FORMS, check

#: How long each preset may take, and how many networks that is at least, and at most.
SECONDS, LEAST, MOST = 10, 40, 400


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
