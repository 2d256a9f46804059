"""Measures the memory of a lane on the head, and the time until its workers have their first trial.

    python -m benchmarks.lanes [--lanes 1 2]

The machine is a cluster of its own. Memory is the proportional share (pages that processes share are
divided among them) of all processes of the cluster but the workers, which run on other machines elsewhere.
Ray's documented pattern, one `TorchTrainer`, is measured in the same way.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import ray

from benchmarks.trial_overhead import trivial_plan
from orchestrator.backends import ray_cluster
from orchestrator.execution import run as execution_run
from orchestrator.sweep.config import Resources

#: Seconds after the first trial until memory is read.
_SETTLE_SECONDS = 5.0


def head_mib() -> dict[str, tuple[int, float]]:
    """Returns count and memory in MiB of the cluster's processes, by their names. Workers are left out."""
    found: dict[str, tuple[int, float]] = {}
    for process in psutil.Process().children(recursive=True):
        try:
            name, mib = " ".join(process.cmdline()), process.memory_full_info().pss / 2**20
        except psutil.Error:
            continue
        if not name.startswith("ray::") or "RayTrainWorker" in name:
            continue
        name = name.removeprefix("ray::").split(".")[0].split(" ")[0]
        count, total = found.get(name, (0, 0.0))
        found[name] = count + 1, total + mib
    return found


def measured(
    start: Callable[[], tuple[float, Callable[[], None]]], cpus: int
) -> tuple[float, dict[str, tuple[int, float]]]:
    """Starts a cluster and something on it. Returns the seconds of that and the memory of the processes."""
    with_cpus = ray_cluster.usable_cpus
    ray_cluster.usable_cpus = lambda: cpus
    try:
        ray_cluster.connect(None)
        seconds, end = start()
        time.sleep(_SETTLE_SECONDS)
        memory = head_mib()
        end()
    finally:
        ray_cluster.shutdown()
        ray_cluster.usable_cpus = with_cpus
    return seconds, memory


def lanes(count: int, folder: Path) -> tuple[float, Callable[[], None]]:
    """Starts a run of `count` lanes. Returns the seconds until all of them have had a trial."""
    began = time.monotonic()
    plan = trivial_plan(4000)
    run = execution_run.Run(folder, plan.trials, {}, Resources(retries=0, lanes=count))
    run.start()
    seen: set[str] = set()
    while len(seen) < count:
        seen |= {event.lane for event in run.events() if type(event).__name__ == "AttemptBegan"}
        time.sleep(0.1)

    def end() -> None:
        run.stop()
        run.close()

    return time.monotonic() - began, end


def pattern(folder: Path) -> tuple[float, Callable[[], None]]:
    """Starts a `TorchTrainer` from an actor. Returns the seconds until its worker runs."""

    class Host:
        def fit(self, folder: str) -> None:
            from ray.train import RunConfig, ScalingConfig
            from ray.train.torch import TorchTrainer

            TorchTrainer(
                _wait,
                train_loop_config={"mark": f"{folder}/mark"},
                scaling_config=ScalingConfig(num_workers=1),
                run_config=RunConfig(storage_path=folder, name="pattern"),
            ).fit()

    began = time.monotonic()
    host = ray.remote(Host).options(num_cpus=0).remote()
    host.fit.remote(str(folder))
    while not (folder / "mark").exists():
        time.sleep(0.1)
    return time.monotonic() - began, lambda: ray.kill(host)


def _wait(settings: dict[str, str]) -> None:
    Path(settings["mark"]).touch()
    time.sleep(600)


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lanes", type=int, nargs="+", default=[1, 2])
    counts = parser.parse_args().lanes
    print(f"{'':24}{'start s':>10}{'processes':>11}{'MiB':>8}  of these")
    with tempfile.TemporaryDirectory() as folder:
        rows = [(f"{n} lane(s)", measured(lambda n=n: lanes(n, Path(folder, str(n))), n)) for n in counts]
        rows.append(("one TorchTrainer", measured(lambda: pattern(Path(folder)), 1)))
    for name, (seconds, memory) in rows:
        total = sum(mib for _, mib in memory.values())
        parts = ", ".join(f"{count} {kind} {mib:.0f}" for kind, (count, mib) in sorted(memory.items()))
        print(f"{name:24}{seconds:10.1f}{sum(n for n, _ in memory.values()):11}{total:8.0f}  {parts}")


if __name__ == "__main__":
    main()
