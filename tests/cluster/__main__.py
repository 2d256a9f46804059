"""Runs the commands of cluster/README.md on machines made here: `python -m tests.cluster`."""

import argparse
import sys
import time

from tests.cluster.beyond import Beyond
from tests.cluster.machines import machines, why_not
from tests.cluster.slurm import Slurm
from tests.cluster.steps import ADDRESSES, Walk
from tests.cluster.walk import StepFailed, Steps

#: Steps, and whose methods they are.
Plan = tuple[tuple[type[Steps], tuple[str, ...]], ...]
STEPS: Plan = (
    (
        Walk,
        ("log_in", "project", "up", "joined", "start_run", "progress", "lose", "goes_on", "back", "finished"),
    ),
    (Beyond, ("store", "ssh_dies", "lose_again", "resumes")),
    (Walk, ("back",)),
    (Beyond, ("same", "pipe_breaks", "copy", "job", "end_servers")),
    (Walk, ("results", "down", "remove")),
)


SLURM_STEPS: Plan = ((Slurm, ("nodes", "job", "limit", "again", "clean")),)


def main() -> int:
    """Prints a line for each step. Returns the exit status: 0 also where machines cannot be made."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--machines", type=int, default=2, choices=(2, 3), help="the head is one of them")
    parser.add_argument("--slurm", action="store_true", help="the job for Slurm instead of README's sections")
    arguments = parser.parse_args()
    plan = SLURM_STEPS if arguments.slurm else STEPS
    if reason := why_not():
        print(f"cluster test SKIPPED: {reason}")
        return 0
    began = time.monotonic()
    with machines(ADDRESSES[: arguments.machines]) as lab:
        walks = {kind: kind(lab) for kind, _ in plan}
        steps = [(walks[kind], name) for kind, names in plan for name in names]
        print(f"{'step':11} {'seconds':>7}  seen", flush=True)
        for walk, name in steps:
            start, shown = time.monotonic(), len(walk.ran)
            try:
                seen, failed = getattr(walk, name)(), False
            except (StepFailed, ValueError) as error:
                seen, failed = f"FAILED: {error}", True
            print(f"{name:11} {time.monotonic() - start:7.1f}  {seen}")
            for command in dict.fromkeys(walk.ran[shown:]):
                print("  $ " + command.replace("\n", "\n    "), flush=True)
            if failed:
                return 1
    print(f"all {len(steps)} steps in {time.monotonic() - began:.0f} s on {arguments.machines} machines")
    return 0


if __name__ == "__main__":
    sys.exit(main())
