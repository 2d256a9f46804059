"""Measures time and memory per trial along one long run of trivial trials, which should not grow.

    python -m benchmarks.flatness [--coordinator-trials 10000] [--ray-trials 10000]

Two runs. In the first the Coordinator serves one lane inside this process, without Ray: the cost is that of
the dispatcher, the journal with its fsyncs, and the messages. In the second the trials go through Tune and a
lane; each trains one step. The figure is the median cost of a trial in the last tenth of the run over that in
the first tenth (after the first 100, which warm up). Processor time of the process that keeps the state is
printed next to wall time, because other work on the machine disturbs wall time.
"""

import argparse
import asyncio
import itertools
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path

import psutil

from orchestrator.execution.coordinator import Coordinator
from orchestrator.execution.dispatch import Job
from orchestrator.trials.events import AttemptEnded, SessionBegan
from trainables.base import Epoch

ROW = Epoch(
    epoch=1,
    step=1,
    lr=1e-3,
    train_loss=1.0,
    val_loss=1.0,
    val_error_pct=50.0,
    val_raw_error_pct=50.0,
    train_seconds=0.0,
    val_seconds=0.0,
    test_error_pct=50.0,
)
WARM_UP = 100


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def _serve(coordinator: Coordinator, num_trials: int) -> tuple[list[float], list[float], list[float]]:
    """Returns wall and processor seconds of every trial, and memory in MiB after each tenth of them."""
    await coordinator.note(SessionBegan(time=time.time(), began=time.time()))
    await coordinator.add([Job(f"{n:016x}", "arm", "{}" * 500) for n in range(num_trials)])
    await coordinator.open_slot("lane")
    last = await coordinator.enter("lane", "node")
    walls, cpus, memory, process = [], [], [], psutil.Process()
    for number in range(num_trials):
        wall, cpu = time.perf_counter(), _cpu_seconds()
        taken = await coordinator.take("lane", last)
        assert taken is not None
        last, _ = taken
        await coordinator.beat("lane", last, 0)
        await coordinator.row("lane", last, ROW)
        await coordinator.end("lane", last, "finished", "")
        while not (message := await coordinator.next_event("lane", 1)) or not message.get("done"):
            pass
        await coordinator.drain()
        await coordinator.open_slot("lane")
        walls.append(time.perf_counter() - wall)
        cpus.append(_cpu_seconds() - cpu)
        if (number + 1) % max(1, num_trials // 10) == 0:
            memory.append(_mib(process))
    return walls, cpus, memory


def coordinator_alone(num_trials: int) -> None:
    """Prints the cost per trial along a run without Ray, and the memory."""
    with tempfile.TemporaryDirectory() as folder:
        walls, cpus, memory = asyncio.run(_serve(Coordinator(folder), num_trials))
        size = sum(path.stat().st_size for path in (Path(folder) / "journal").glob("*"))
    print(f"Coordinator alone, {num_trials} trials: journal {size / num_trials:.0f} bytes a trial, ", end="")
    print(f"memory {memory[0]:.0f} MiB after the first tenth, {memory[-1]:.0f} MiB at the end")
    _tell("wall", walls)
    _tell("processor", cpus)


def _tell(what: str, costs: list[float]) -> None:
    tenth = max(1, (len(costs) - WARM_UP) // 10)
    first = statistics.median(costs[WARM_UP : WARM_UP + tenth])
    last = statistics.median(costs[-tenth:])
    print(
        f"  {what:9} {1e3 * first:8.3f} ms a trial in the first tenth, {1e3 * last:8.3f} in the last, "
        f"ratio {last / first:.2f}",
        flush=True,
    )


def through_ray(num_trials: int) -> None:
    """Prints the same figures for a run through Tune and one lane."""
    from benchmarks.trial_overhead import trivial_plan
    from orchestrator.backends import ray_cluster
    from orchestrator.execution import run as execution_run
    from orchestrator.sweep.config import Resources

    ray_cluster.connect(None)
    driver = psutil.Process()
    try:
        with tempfile.TemporaryDirectory() as folder:
            resources = Resources(retries=0, lanes=1)
            run = execution_run.Run(Path(folder), trivial_plan(num_trials).trials, {}, resources)
            run.start()
            ends: list[AttemptEnded] = []
            memory: list[tuple[int, float, float]] = []
            while True:
                done = run.done
                ends += [event for event in run.events() if isinstance(event, AttemptEnded)]
                if not memory or len(ends) >= memory[-1][0] + num_trials // 10:
                    memory.append((len(ends), _mib(driver), _mib(_coordinator_process(driver))))
                if done:
                    break
                time.sleep(0.5)
            assert len(ends) == num_trials, run.error
    finally:
        ray_cluster.shutdown()
    times = [event.time for event in ends]
    print(f"through Tune and one lane, {num_trials} trials; load average {os.getloadavg()[0]:.1f}")
    _tell("wall", [after - before for before, after in itertools.pairwise(times)])
    for count, of_driver, of_coordinator in memory:
        print(f"  after {count:6} trials: driver {of_driver:6.0f} MiB, Coordinator {of_coordinator:6.0f} MiB")


def _mib(process: psutil.Process | None) -> float:
    return process.memory_info().rss / 2**20 if process else float("nan")


def _coordinator_process(driver: psutil.Process) -> psutil.Process | None:
    for child in driver.children(recursive=True):
        if "ray::Coordinator" in " ".join(child.cmdline()):
            return child
    return None


def main() -> None:
    """Prints the costs and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--coordinator-trials", type=int, default=10_000)
    parser.add_argument("--ray-trials", type=int, default=10_000)
    options = parser.parse_args()
    if options.coordinator_trials:
        coordinator_alone(options.coordinator_trials)
    if options.ray_trials:
        through_ray(options.ray_trials)


if __name__ == "__main__":
    main()
