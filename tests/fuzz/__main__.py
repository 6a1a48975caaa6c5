"""Look for networks that are not explained by the book: ``python -m tests.fuzz --seconds 3600 --seed 1000000``."""

import argparse
import sys
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from .networks import COMPOSITES, Network, check


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="how long to go on")
    parser.add_argument("--seed", type=int, default=0, help="where to begin")
    chosen = parser.parse_args()
    warnings.simplefilter("error")
    end, seed, found = time.monotonic() + chosen.seconds, chosen.seed, 0
    while time.monotonic() < end:
        for preset in COMPOSITES:
            wrong = check(seed, preset)
            if wrong:
                found += 1
                print(f"seed {seed}, {preset}", *wrong, *Network(seed, preset, seed % 10 == 9).steps, sep="\n    ")
        seed += 1
    print(f"{(seed - chosen.seed) * len(COMPOSITES)} networks in two forms, {found} of them wrong")
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main())
