"""Planned cost next to the actual one."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.cost.devices import listed_name
from orchestrator.cost.estimate import GIB, CostEstimate
from orchestrator.cost.shapes import ShapeTable, shape_key
from orchestrator.cost.speed import NOTHING, Basis, Span, epoch_seconds
from orchestrator.trials.gang import Node
from orchestrator.trials.records import Record
from orchestrator.trials.trial import Plan, unique_trials
from trainables.base import DeviceUse, Epoch, Frozen


class PlannedShape(Frozen):
    """The plan of one shape, as in `ShapeCost`. `devices` counts the GPUs of a gang, else its cores."""

    name: str
    seconds: Span | None
    basis: Basis | None
    peak_gib: float
    devices: float


class Planned(Frozen):
    """The estimate made before the first trial of a sweep ran, to compare with the actual cost.

    Attributes:
      made: time of the estimate, in UTC.
      device: name of the GPU or processor.
      unit: "GPU-hours" or "core-hours".
      trials: number of distinct trials in the plan at that time.
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
    """Returns the part of an estimate that is kept for the comparison."""
    shapes = {
        shape_key(cost.shape): PlannedShape(
            name=cost.shape.name,
            seconds=cost.seconds,
            basis=cost.basis,
            peak_gib=cost.footprint.peak / GIB,
            devices=cost.shape.gang.on(found.machine.nodes).devices,
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
    """The planned and the actual cost of one shape of a sweep on one device, or of all shapes.

    Attributes:
      arms: cell and arm. Empty for all shapes.
      shape: its name. Empty for all shapes.
      device: what it ran on, if that is not what was planned: nothing is then planned for it. Else empty.
      trials_run, trials: number of trials that have run an epoch, and of all trials.
      planned_seconds, seconds: seconds per epoch. The second is a median, without epochs that ended a trial.
      planned_hours: for as many epochs as have run, so that a sweep cut short can be compared.
      hours: hours of all attempts.
      planned_peak_gib, peak_gib: memory of a worker. The second is recorded on GPUs only.
      basis: source of the planned seconds.
    """

    arms: tuple[tuple[str, str], ...]
    shape: str
    device: str
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
    """Returns planned and actual cost per shape and device that has run, and a total of several planned rows.

    A shape that was not in the plan has no planned numbers. This happens if the sweep was extended. Nor has a
    device that was not planned for, because the speed of one says nothing of another. Epochs without a
    device on record count as computed on the planned one.
    """
    shapes = ShapeTable(plan)
    found: list[Actual] = []
    for shape, trials in shapes.groups.items():
        ran = [records[trial.id] for trial in trials if trial.id in records and records[trial.id].rows]
        if not ran:
            continue
        known_shape = before.shapes.get(shape_key(shape))
        devices = (
            known_shape.devices if known_shape else shape.gang.workers * (shape.gang.gpus or shape.gang.cpus)
        )
        by_device: dict[str, list[tuple[Record, list[Epoch]]]] = {}
        for record in ran:
            for device, part in _rows_by_device(record, before.device).items():
                by_device.setdefault(device, []).append((record, part))
        for device, parts in sorted(by_device.items(), key=lambda item: item[0] != before.device):
            was = known_shape if device == before.device else None
            rows = [row for _, part in parts for row in part]
            # The planned cost of as many epochs as have run.
            planned_hours = was.seconds * (len(rows) * devices / 3600) if was and was.seconds else None
            busy = sum(_busy_by_device(record, before.device).get(device, 0.0) for record, _ in parts)
            found.append(
                Actual(
                    arms=shapes.arms[shape],
                    shape=shape.name,
                    device="" if device == before.device else device,
                    trials_run=len(parts),
                    trials=len(trials),
                    planned_seconds=was.seconds if was else None,
                    seconds=statistics.median(epoch_seconds(rows)),
                    planned_hours=planned_hours,
                    hours=busy * devices / 3600,
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
        device="",
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


def _name_of(use: DeviceUse | None, planned_device: str) -> str:
    return listed_name(use.name) if use else planned_device


def _rows_by_device(record: Record, planned_device: str) -> dict[str, list[Epoch]]:
    """Returns the epochs of a trial by device, under the names that plans use."""
    found: dict[str, list[Epoch]] = {}
    for number, row in record.rows.items():
        found.setdefault(_name_of(record.devices.get(number), planned_device), []).append(row)
    return found


def _busy_by_device(record: Record, planned_device: str) -> dict[str, float]:
    """Returns the seconds of all attempts by device. They add up to `_busy_seconds`."""
    found: dict[str, float] = {}
    for use, seconds in record.busy_on.items():
        name = _name_of(use, planned_device)
        found[name] = found.get(name, 0.0) + seconds
    if rest := _busy_seconds(record) - sum(found.values()):
        # Of an attempt that runs, or of records without devices.
        name = _name_of(record.device, planned_device)
        found[name] = found.get(name, 0.0) + rest
    return found


def _busy_seconds(record: Record) -> float:
    """Returns the seconds of all attempts. A running attempt counts by its epochs."""
    if not record.running:
        return record.busy_seconds
    rows = sum(row.train_seconds + row.val_seconds for row in record.rows.values())
    return max(record.busy_seconds, rows)


def spent_hours(plan: Plan, records: Mapping[str, Record], nodes: Sequence[Node]) -> float:
    """Returns the GPU-hours of all attempts so far, or core-hours for gangs without GPUs.

    A running attempt counts by its epochs.
    """
    hours = 0.0
    for trial in unique_trials(plan.trials):
        if (record := records.get(trial.id)) is None:
            continue
        hours += _busy_seconds(record) / 3600 * trial.gang.on(nodes).devices
    return hours


@dataclass(frozen=True, slots=True)
class Saved:
    """Trials that a sweep does without, and the hours that they would have taken."""

    trials: int
    hours: float
    unit: str


def saved(plan: Plan, longer: Plan, records: Mapping[str, Record], nodes: Sequence[Node]) -> Saved:
    """Returns what the trials of a longer plan would have cost, by the mean of those like them that have run.

    Trials are alike that share arm and cell. `nodes` are the machines that decide numbers of GPUs.
    """
    there = {trial.id for trial in plan.trials}
    more = [trial for trial in unique_trials(longer.trials) if trial.id not in there]
    hours: dict[tuple[str, str], list[float]] = {}
    for trial in unique_trials(plan.trials):
        if (record := records.get(trial.id)) is not None and record.busy_seconds:
            spent = record.busy_seconds / 3600 * trial.gang.on(nodes).devices
            hours.setdefault((trial.cell_name, trial.arm), []).append(spent)
    means = {key: statistics.fmean(values) for key, values in hours.items()}
    on_gpu = any(bool(trial.gang.on(nodes).gpus) for trial in more)
    return Saved(
        len(more),
        sum(means.get((trial.cell_name, trial.arm), 0.0) for trial in more),
        "GPU-hours" if on_gpu else "core-hours",
    )


def within_budget(plan: Plan, records: Mapping[str, Record], nodes: Sequence[Node]) -> bool:
    """Returns whether a run may start another trial: the hours spent are below the file's budget."""
    budget = plan.sweep.budget
    if budget is None:
        return True
    on_gpu = any(bool(trial.gang.on(nodes).gpus) for trial in plan.trials)
    cap = budget.cap("GPU-hours" if on_gpu else "core-hours")
    return cap is None or spent_hours(plan, records, nodes) < cap
