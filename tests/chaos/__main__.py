"""Runs simulated and real schedules of faults, and counts those survived: `python -m tests.chaos`."""

import argparse
import tempfile
import time
from collections import Counter
from pathlib import Path


def main() -> None:
    """Runs the schedules. Raises AssertionError at the first that a sweep does not survive."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulated", type=int, default=400, help="schedules on the simulated cluster")
    parser.add_argument("--real", type=int, default=20, help="schedules on a real cluster of three nodes")
    parser.add_argument("--kills", type=int, default=10, help="in one more real sweep, to print its ledger")
    parser.add_argument("--seed", type=int, default=0, help="of the first schedule")
    arguments = parser.parse_args()

    from tests.chaos import real
    from tests.chaos.simulation import simulate

    began = time.monotonic()
    faults: Counter[str] = Counter()
    for seed in range(arguments.seed, arguments.seed + arguments.simulated):
        faults += simulate(seed).faults
    print(
        f"{arguments.simulated} simulated schedules, {faults.total()} faults injected and survived: "
        f"{dict(sorted(faults.items()))}; {time.monotonic() - began:.0f} s\n",
        flush=True,
    )
    if arguments.real or arguments.kills:
        with tempfile.TemporaryDirectory(prefix="vitc-chaos-") as folder:
            real.main(arguments.real, arguments.seed, Path(folder), arguments.kills)


if __name__ == "__main__":
    main()
