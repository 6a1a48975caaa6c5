"""Look for networks that are not explained by the book: ``python -m tests.fuzz --seconds 3600 --seed 1000000``."""

import argparse
import sys
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from .networks import COMPOSITES, FORMS, check


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="how long to go on")
    parser.add_argument("--seed", type=int, default=0, help="where to begin")
    parser.add_argument("--compiled", action="store_true", help="compile each network inside of the context")
    chosen = parser.parse_args()
    warnings.simplefilter("error")
    end, seed, compared, found = time.monotonic() + chosen.seconds, chosen.seed, 0, 0
    while time.monotonic() < end:
        for preset in COMPOSITES:
            outcome = check(seed, preset, chosen.compiled)
            compared += outcome.compared
            if outcome.wrong:
                found += 1
                print(f"seed {seed}, {preset}", *outcome.wrong, sep="\n    ")
        seed += 1
    networks = (seed - chosen.seed) * len(COMPOSITES)
    print(f"{networks} networks, {compared} of {networks * len(FORMS)} explanations compared, {found} networks wrong")
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main())
