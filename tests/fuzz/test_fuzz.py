"""Random networks explain what the rules of the papers say; ``python -m tests.fuzz`` goes on for longer."""

import time

import pytest

from .networks import COMPOSITES, Network, check

#: How long each preset may take, and how many networks that is at least.
SECONDS, LEAST = 10, 40


@pytest.mark.parametrize("preset", COMPOSITES)
def test_random_networks_are_explained_by_the_book(preset):
    end, seed = time.monotonic() + SECONDS, 0
    while seed < LEAST or (time.monotonic() < end and seed < 400):
        assert not check(seed, preset), "\n".join(map(str, Network(seed, preset, seed % 10 == 9).steps))
        seed += 1
