"""Prints the live view of synthetic runs at three sizes, for visual inspection.

    python -m benchmarks.screens [--out FOLDER] [--width 100] [--height 30]

Prints the view of `run` and `status --watch` for 4, 64 and 1,008 trials half-way; --out saves it as SVG. Then
prints how long an event and a refresh take at these sizes and at ten thousand trials, on this machine.
"""

import argparse
import heapq
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.console import Console

from benchmarks.report_scale import large_plan, made_up_error
from orchestrator.monitor.live import view
from orchestrator.monitor.progress import Progress
from orchestrator.trials.events import (
    AttemptBegan,
    AttemptEnded,
    EpochDone,
    Event,
    PhaseBegan,
    Pulse,
    SessionBegan,
    row_of,
)
from orchestrator.trials.outcomes import AttemptEnd
from orchestrator.trials.trial import Plan, Trial
from trainables.base import derive_seed

#: Name, cells, points per arm and cell, lanes.
SIZES = (("4 trials", 1, 1, 2), ("64 trials", 2, 16, 4), ("1,008 trials in 24 cells", 24, 21, 16))

_FAULTS: tuple[tuple[AttemptEnd, str], ...] = (
    (
        "out_of_memory",
        "CUDA out of memory. Tried to allocate 2.5{:02} GiB. GPU 0 has a total capacity of 79 GiB",
    ),
    ("failed", "OSError: [Errno 5] Input/output error: '/data/part-{:05}.parquet'"),
    ("failed", "RuntimeError: CUDA error: an illegal memory access was encountered at 0x7f{:06}"),
    ("invalid", "heads must divide width, got heads={}, width=64"),
    ("failed", "NCCL watchdog: rank {} did not answer\nwithin 600 s"),
)


def made_up_run(plan: Plan, lanes: int, share: float = 0.5, failing: float = 0.04) -> list[Event]:
    """Returns the events of a run until `share` of its trials has ended, `failing` of them by failure.

    Every lane takes the next trial when its last one ends. An epoch takes about 6 s.
    """
    began = 1_700_000_000.0
    found: list[tuple[float, int, Event]] = []

    def note(when: float, event: Event) -> None:
        found.append((when, len(found), event))

    note(began, SessionBegan(time=began, began=began - 9, lanes=(lanes,)))
    note(began, PhaseBegan(time=began, lanes=lanes, devices=lanes, device="GPU"))
    free = [(began + 8.0, f"lane{lane}") for lane in range(lanes)]
    ends: list[float] = []
    for trial in plan.trials:
        when, lane = heapq.heappop(free)
        for moment, event in _trial_events(plan, trial, lane, when, failing):
            note(moment, event)
        ends.append(moment)
        heapq.heappush(free, (moment + 0.3, lane))
    now = sorted(ends)[max(0, int(share * len(ends)) - 1)] if share < 1 else max(ends)
    note(now, Pulse(time=now, in_flight={}))
    return [event for when, _, event in sorted(found, key=lambda item: item[:2]) if when <= now]


def _trial_events(
    plan: Plan, trial: Trial, lane: str, began: float, failing: float
) -> Iterator[tuple[float, Event]]:
    rng = np.random.default_rng(derive_seed(trial.id))
    error = made_up_error(plan, trial, rng)
    yield began, AttemptBegan(trial=trial.id, attempt=1, lane=lane, time=began, node="9f3c5ab2e1")
    moment, steps = began, plan.cost(trial).steps
    epochs = trial.config.schedule.epochs
    if rng.random() < failing:
        fault, message = _FAULTS[rng.integers(len(_FAULTS))]
        moment += 5.0
        detail = message.format(int(rng.integers(100)))
        yield (
            moment,
            AttemptEnded(
                trial=trial.id,
                attempt=1,
                end=fault,
                detail=detail,
                seconds=5.0,
                time=moment,
                final=True,
                step=0,
            ),
        )
        return
    last = epochs if error is not None else max(1, epochs // 4)
    for epoch in range(1, last + 1):
        moment += float(rng.gamma(20, 0.3))
        now = (error or 50) + 85 * np.exp(-5 * epoch / epochs) * (1 - epoch / epochs)
        row = {
            "epoch": epoch,
            "step": epoch * steps // epochs,
            "lr": 1e-3,
            "train_loss": now / 40,
            "val_loss": now / 40,
            "val_error_pct": float(now),
            "val_raw_error_pct": float(now),
            "train_seconds": 5.0,
            "val_seconds": 1.0,
            "test_error_pct": error + 0.3 if error is not None and epoch == epochs else None,
        }
        yield moment, EpochDone(trial=trial.id, attempt=1, row=row_of(row))
    end: AttemptEnd = "finished" if error is not None else "diverged"
    detail = "" if error is not None else "the training loss is nan"
    step = last * steps // epochs
    seconds = moment - began
    yield (
        moment,
        AttemptEnded(
            trial=trial.id,
            attempt=1,
            end=end,
            detail=detail,
            seconds=seconds,
            time=moment,
            final=True,
            step=step,
            epochs=last,
        ),
    )


def main() -> None:
    """Prints the screens, then seconds per event and per refresh."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="keep the screens as SVG in this folder")
    parser.add_argument("--width", type=int, default=100)
    parser.add_argument("--height", type=int, default=30)
    options = parser.parse_args()
    for title, cells, points, lanes in SIZES:
        plan = large_plan(cells, points, epochs=20)
        events = made_up_run(plan, lanes)
        progress = Progress(plan, {})
        progress.observe(events)
        console = Console(width=options.width, height=options.height, record=True, force_terminal=True)
        console.rule(title)
        shown = view(
            progress, Path("runs/lr_wd"), options.height - 1, options.width, progress.now, progress.ledger()
        )
        console.print(shown)
        if options.out:
            options.out.mkdir(parents=True, exist_ok=True)
            console.save_svg(str(options.out / f"screen-{len(plan.trials)}.svg"), title=title, clear=False)
    for cells, points in ((2, 16), (24, 21), (24, 208)):
        _time(large_plan(cells, points, epochs=20), options.width, options.height)


def _time(plan: Plan, width: int, height: int) -> None:
    events = made_up_run(plan, lanes=16)
    progress = Progress(plan, {})
    began = time.perf_counter()
    progress.observe(events)
    observed = time.perf_counter()
    console = Console(width=width, height=height, quiet=True)
    for _ in range(20):
        console.print(view(progress, None, height, width, progress.now))
    refreshed = time.perf_counter()
    spent = progress.ledger()
    summed = time.perf_counter()
    assert spent.total
    print(
        f"{len(plan.trials):6} trials: {(observed - began) / len(events) * 1e6:6.1f} µs an event, "
        f"{(refreshed - observed) / 20 * 1e3:6.2f} ms a refresh, "
        f"{(summed - refreshed) * 1e3:6.2f} ms a sum of the ledger"
    )


if __name__ == "__main__":
    main()
