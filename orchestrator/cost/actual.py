"""Planned cost next to the actual one."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.cost.estimate import GIB, CostEstimate, units
from orchestrator.cost.shapes import ShapeTable, shape_key
from orchestrator.cost.speed import NOTHING, Basis, Span, epoch_seconds
from orchestrator.trials.gang import Node
from orchestrator.trials.records import Record
from orchestrator.trials.trial import Plan, unique_trials
from trainables.base import Frozen

# ---------------------------------------------------------------------------------------------------
# What it did cost


class PlannedShape(Frozen):
    """What was planned of one shape; see `ShapeCost`. `devices` are the GPUs of a gang, else its cores."""

    name: str
    seconds: Span | None
    basis: Basis | None
    peak_gib: float
    devices: float


class Planned(Frozen):
    """An estimate as it was before the first trial of a sweep ran, to be held against what came.

    Attributes:
      made: when, in UTC.
      device: name of the GPU or processor.
      unit: "GPU-hours" or "core-hours".
      trials: how many distinct ones were planned then.
      hours, wall_hours, checkpoint_gib: as in `Estimate`.
      shapes: by `shape_key`.
    """

    made: str
    device: str
    unit: str
    trials: int
    hours: Span | None
    wall_hours: Span | None
    checkpoint_gib: float
    shapes: dict[str, PlannedShape]


def planned(plan: Plan, found: CostEstimate, made: str) -> Planned:
    """What is to be kept of an estimate."""
    shapes = {
        shape_key(cost.shape): PlannedShape(
            name=cost.shape.name,
            seconds=cost.seconds,
            basis=cost.basis,
            peak_gib=cost.footprint.peak / GIB,
            devices=units(cost.shape.gang.on(found.machine.nodes)),
        )
        for cost in found.shapes
    }
    return Planned(
        made=made,
        device=found.machine.device,
        unit=found.unit,
        trials=len(unique_trials(plan.trials)),
        hours=found.hours,
        wall_hours=found.wall_hours,
        checkpoint_gib=found.checkpoint_gib,
        shapes=shapes,
    )


@dataclass(frozen=True, slots=True)
class Actual:
    """One shape of a sweep, or all of them, as planned and as it came.

    Attributes:
      arms: cell and arm; empty for all of them.
      shape: its name; empty for all of them.
      trials_run, trials: how many have run an epoch, of how many.
      planned_seconds, seconds: per epoch; the second a median of epochs that did not end a trial.
      planned_hours: of as many epochs as have run, so that a sweep cut short compares like with like.
      hours: of all attempts.
      planned_peak_gib, peak_gib: of a worker's memory; the second is recorded on GPUs only.
      basis: where the planned seconds are from.
    """

    arms: tuple[tuple[str, str], ...]
    shape: str
    trials_run: int
    trials: int
    planned_seconds: Span | None
    seconds: float | None
    planned_hours: Span | None
    hours: float
    planned_peak_gib: float | None
    peak_gib: float | None
    basis: Basis | None


def planned_actual(plan: Plan, before: Planned, records: Mapping[str, Record]) -> list[Actual]:
    """What was planned beside what came: per shape that has run, then, of several, all that were planned.

    A shape that was not in the plan, as the sweep was extended, has no planned numbers.
    """
    shapes = ShapeTable(plan)
    found: list[Actual] = []
    for shape, trials in shapes.groups.items():
        ran = [records[trial.id] for trial in trials if trial.id in records and records[trial.id].rows]
        if not ran:
            continue
        was = before.shapes.get(shape_key(shape))
        rows = [row for record in ran for row in record.rows.values()]
        devices = was.devices if was else shape.gang.workers * (shape.gang.gpus or shape.gang.cpus)
        # As many of the epochs as have run.
        planned_hours = was.seconds * (len(rows) * devices / 3600) if was and was.seconds else None
        found.append(
            Actual(
                arms=shapes.arms[shape],
                shape=shape.name,
                trials_run=len(ran),
                trials=len(trials),
                planned_seconds=was.seconds if was else None,
                seconds=statistics.median(epoch_seconds(rows)),
                planned_hours=planned_hours,
                hours=sum(_busy_seconds(record) for record in ran) * devices / 3600,
                planned_peak_gib=was.peak_gib if was else None,
                peak_gib=max(
                    (r.peak_memory_gib for r in rows if r.peak_memory_gib is not None), default=None
                ),
                basis=was.basis if was else None,
            )
        )
    known = [row for row in found if row.planned_hours is not None]
    if len(known) > 1:
        found.append(_all_of(known))
    return found


def _all_of(rows: Sequence[Actual]) -> Actual:
    return Actual(
        arms=(),
        shape="",
        trials_run=sum(row.trials_run for row in rows),
        trials=sum(row.trials for row in rows),
        planned_seconds=None,
        seconds=None,
        planned_hours=sum((row.planned_hours for row in rows if row.planned_hours), NOTHING),
        hours=sum(row.hours for row in rows),
        planned_peak_gib=None,
        peak_gib=None,
        basis=None,
    )


def _busy_seconds(record: Record) -> float:
    """Of all attempts; a running one counts by its epochs."""
    if not record.running:
        return record.busy_seconds
    rows = sum(row.train_seconds + row.val_seconds for row in record.rows.values())
    return max(record.busy_seconds, rows)


def spent_hours(plan: Plan, records: Mapping[str, Record], nodes: Sequence[Node]) -> float:
    """GPU-hours of all attempts so far, core-hours of gangs without GPUs; running ones by their epochs."""
    hours = 0.0
    for trial in unique_trials(plan.trials):
        if (record := records.get(trial.id)) is None:
            continue
        hours += _busy_seconds(record) / 3600 * units(trial.gang.on(nodes))
    return hours


def within_budget(plan: Plan, records: Mapping[str, Record], nodes: Sequence[Node]) -> bool:
    """Whether a run may hand out another trial: what has been spent is below the file's budget."""
    budget = plan.sweep.budget
    if budget is None:
        return True
    on_gpu = any(bool(trial.gang.on(nodes).gpus) for trial in plan.trials)
    cap = budget.cap("GPU-hours" if on_gpu else "core-hours")
    return cap is None or spent_hours(plan, records, nodes) < cap
