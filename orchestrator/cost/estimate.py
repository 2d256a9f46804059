"""Estimates of a sweep's cost before it runs: memory, seconds, hours and money.

Memory and work of a step are counted by `trainables.profiling.footprint`. Seconds come from the best source
available, which is named:

  measured   rows of the same shape on the same device, from earlier runs
  preflight  a step of the same shape, made by the preflight of a run
  scaled     rows of other shapes on the same device, scaled by the work
  table      a GPU's data sheet, times the share of it that published training runs reach
  probe      one second of arithmetic on this CPU (`plan --measure`)
"""

import dataclasses
import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.cost.devices import Machine
from orchestrator.cost.shapes import Shape, ShapeTable, counted
from orchestrator.cost.speed import NOTHING, Basis, Rates, Sample, Span, seconds_per_epoch
from orchestrator.trials.admission import lanes_of
from orchestrator.trials.gang import Node, lane_plan, usable_devices
from orchestrator.trials.numerals import duration
from orchestrator.trials.trial import Plan, Trial

if TYPE_CHECKING:  # plans that were made before are read without torch
    from trainables.profiling.footprint import Footprint

GIB = 2**30


@dataclass(frozen=True, slots=True)
class ShapeCost:
    """The cost of one shape of a sweep.

    Attributes:
      arms: cells and arms whose trials have this shape.
      trials, epochs: number of trials, and of their epochs in total.
      seconds: seconds per epoch. None if there is no source for its speed.
      hours: GPU-hours of all its trials, or core-hours on CPUs.
    """

    shape: Shape
    arms: tuple[tuple[str, str], ...]
    trials: int
    epochs: int
    params_m: float
    flops_g: float
    activations_m: float
    footprint: "Footprint"
    seconds: Span | None
    basis: Basis | None
    hours: Span | None

    def plain(self) -> dict[str, Any]:
        """Returns the values for JSON, with memory in GiB."""
        held = {
            f"{name}_gib": getattr(self.footprint, name) / GIB
            for name in (
                "peak",
                "params",
                "gradients",
                "optimizer",
                "ema",
                "activations",
                "images",
                "state",
            )
        }
        config = self.shape.config
        return {
            "cells_and_arms": [list(pair) for pair in self.arms],
            "batch_size": config.batch_size,
            "workers": self.shape.gang.workers,
            "precision": config.precision,
            "optimizer": config.optim.name,
            "ema": config.ema is not None,
            "trials": self.trials,
            "epochs": self.epochs,
            "params_m": self.params_m,
            "flops_g": self.flops_g,
            "activations_m": self.activations_m,
            **held,
            "seconds_per_epoch": dataclasses.asdict(self.seconds) if self.seconds else None,
            "seconds_from": self.basis,
            "hours": dataclasses.asdict(self.hours) if self.hours else None,
        }


@dataclass(frozen=True)
class CostEstimate:
    """The estimated cost of a sweep.

    Attributes:
      hours: GPU-hours of all trials, or core-hours on CPUs. None if the speed of any shape is unknown.
      unit: "GPU-hours" or "core-hours".
      wall_hours: hours from start to end with this number of lanes.
      lanes: number of trials at a time, for the largest gang first.
      checkpoint_gib, kept_gib: see `Storage`.
      price: price in `currency`. None if no price is given.
    """

    machine: Machine
    shapes: tuple[ShapeCost, ...]
    hours: Span | None
    unit: str
    wall_hours: Span | None
    lanes: tuple[int, ...]
    checkpoint_gib: float
    kept_gib: float
    price: Span | None
    currency: str

    def time_text(self, num_trials: int) -> str:
        """Returns how long the trials will take, as a sentence. Empty if that is unknown."""
        if self.wall_hours is None:
            return ""
        low, central, high = (duration(3600 * hours) for hours in dataclasses.astuple(self.wall_hours))
        nodes, on_gpu = self.machine.nodes, self.unit == "GPU-hours"
        count = sum(node.gpus if on_gpu else node.cpus for node in nodes)
        device = f"{count:g} {'GPU' if on_gpu else 'core'}{'s' * (count != 1)}"
        trials = "1 trial" if num_trials == 1 else f"{num_trials} trials"
        return f"{trials} will take about {central} ({low} to {high}) on {device}, {self.lanes_text}"

    @property
    def lanes_text(self) -> str:
        """The number of trials at a time in words, in order of size where it depends on their gang."""
        return " or ".join(str(lanes) for lanes in dict.fromkeys(self.lanes)) + " at a time"

    def plain(self) -> dict[str, Any]:
        """Returns the values for JSON."""

        def range_of(span: Span | None) -> dict[str, float] | None:
            return dataclasses.asdict(span) if span else None

        return {
            "device": self.machine.device,
            "hours": range_of(self.hours),
            "unit": self.unit,
            "wall_hours": range_of(self.wall_hours),
            "lanes": self.lanes,
            "checkpoint_gib": self.checkpoint_gib,
            "kept_gib": self.kept_gib,
            "price": range_of(self.price),
            "currency": self.currency,
            "shapes": [shape.plain() for shape in self.shapes],
        }


@dataclass(frozen=True, slots=True)
class Storage:
    """The most that a sweep stores.

    Attributes:
      checkpoint_gib: checkpoints of all running trials: for each, as many as are kept and one that is being
        written. A trial that has ended keeps none.
      kept_gib: final weights (`resources.keep`, and always those of first stages). When the best weights
        replace earlier ones, every lane holds both for a moment.
    """

    checkpoint_gib: float
    kept_gib: float


def storage(plan: Plan, nodes: Sequence[Node]) -> Storage:
    """Returns the storage of all trials of a plan on these machines."""
    return _storage(ShapeTable(plan), nodes)


def _storage(shapes: ShapeTable, nodes: Sequence[Node]) -> Storage:
    from trainables.training.checkpoint import KEPT

    resources = shapes.plan.sweep.resources
    in_flight, weights, always, bests = 0, 0, 0, dict[tuple[str, str], int]()
    crews = lane_plan(shapes.trials, nodes, resources.lanes)
    most_lanes = lanes_of(crews, nodes, resources.lanes)
    for gang, members, lanes in crews:
        largest = 0
        for trial in members:
            found, _ = counted(shapes.plan, shapes.shape(trial), bool(gang.gpus))
            largest = max(largest, found.state)
            if trial.role == "first_stage":
                always += found.params
                continue
            weights += found.params
            group = (trial.cell_name, trial.arm)
            bests[group] = max(bests.get(group, 0), found.params)
        # At most so many of each gang at once, and no more than that of all together.
        in_flight += lanes * (KEPT + 1) * largest
    kept = {
        "none": 0,
        "best": sum(bests.values()) + most_lanes * max(bests.values(), default=0),
        "last": weights,
    }[resources.keep]
    return Storage(in_flight / GIB, (always + kept) / GIB)


def storage_fault(plan: Plan, nodes: Sequence[Node]) -> str:
    """Returns a message if the sweep may store more than `max_checkpoint_gib`, else ""."""
    limit = plan.sweep.resources.max_checkpoint_gib
    return "" if limit is None else storage_excess(limit, storage(plan, nodes))


def storage_excess(limit: float, found: Storage) -> str:
    total = found.checkpoint_gib + found.kept_gib
    if total <= limit:
        return ""
    return (
        f"resources.max_checkpoint_gib is {limit:g}, and up to {total:.3g} GiB may be stored: checkpoints "
        f"{found.checkpoint_gib:.3g}, weights kept {found.kept_gib:.3g}; see lanes and keep"
    )


def estimate(
    plan: Plan,
    machine: Machine,
    samples: Sequence[Sample] = (),
    rates: Rates | None = None,
    price_per_gpu_hour: float | None = None,
) -> CostEstimate:
    """Estimates the cost of all trials of a plan on a machine.

    Args:
      plan: the sweep.
      machine: the machine it will run on.
      samples: measurements of earlier runs.
      rates: rates of the machine's processor from a probe, used without samples.
      price_per_gpu_hour: replaces the file's price.
    """
    shapes = ShapeTable(plan)
    costs = {
        shape: _shape_cost(plan, machine, shape, members, samples, rates)
        for shape, members in shapes.groups.items()
    }
    known = all(cost.hours is not None for cost in costs.values())
    hours = sum((cost.hours for cost in costs.values() if cost.hours), NOTHING) if known else None
    asked = plan.sweep.resources.lanes
    crews = lane_plan(shapes.trials, machine.nodes, asked)
    on_gpu = any(bool(crew.gang.gpus) for crew in crews)
    devices = usable_devices(crews, machine.nodes, asked)
    wall, longest = NOTHING, NOTHING
    for gang, members, lanes in crews:
        if known and lanes:
            runs = [_trial_seconds(costs[shapes.shape(trial)], trial) for trial in members]
            places = {trial.id: place for place, trial in enumerate(members)}
            # A first stage of a larger gang has ended earlier.
            waits = {places[t.id]: places[t.after] for t in members if t.after in places}
            alone = Span(*(makespan([getattr(run, end) for run in runs], lanes, waits) for end in _ENDS))
            # Gangs run at the same time: another one has the devices that this one leaves.
            share = min(1.0, lanes * gang.devices / devices) if devices else 1.0
            wall += alone * share + _LANE_START_SECONDS
            longest = max(longest, *runs, key=lambda run: run.central)
    if longest.central > wall.central:
        wall = longest
    stored = _storage(shapes, machine.nodes)
    price, currency = _price(plan, hours, on_gpu, price_per_gpu_hour)
    return CostEstimate(
        machine=machine,
        shapes=tuple(costs.values()),
        hours=hours,
        unit="GPU-hours" if on_gpu else "core-hours",
        wall_hours=wall * (1 / 3600) if known and all(crew.lanes for crew in crews) else None,
        lanes=tuple(crew.lanes for crew in crews),
        checkpoint_gib=stored.checkpoint_gib,
        kept_gib=stored.kept_gib,
        price=price,
        currency=currency,
    )


_ENDS = ("low", "central", "high")

#: Seconds from the preflight to the first step of a lane: Ray starts, then its workers. Sources: start-up in
#: the ledgers of seven sweeps on two CPU cores, 25 s where nothing else ran and up to 50 s beside other work.
_LANE_START_SECONDS = Span(20.0, 25.0, 50.0)


def _shape_cost(
    plan: Plan,
    machine: Machine,
    shape: Shape,
    members: Sequence[Trial],
    samples: Sequence[Sample],
    rates: Rates | None,
) -> ShapeCost:
    gang = shape.gang.on(machine.nodes)
    found, epochs = counted(plan, shape, bool(gang.gpus))
    model = plan.cost(members[0]).model
    timed = seconds_per_epoch(shape, epochs, machine.device, samples, rates, gang.cores_on(machine.nodes))
    cost = ShapeCost(
        shape=shape,
        arms=tuple(dict.fromkeys((trial.cell_name, trial.arm) for trial in members)),
        trials=len(members),
        epochs=sum(trial.config.schedule.epochs for trial in members),
        params_m=model.params_m,
        flops_g=model.flops_g,
        activations_m=model.activations_m,
        footprint=found,
        seconds=timed[0] if timed else None,
        basis=timed[1] if timed else None,
        hours=None,
    )
    if cost.seconds is None:
        return cost
    seconds = sum((_trial_seconds(cost, trial) for trial in members), NOTHING)
    return dataclasses.replace(cost, hours=seconds * (gang.devices / 3600))


def _trial_seconds(cost: ShapeCost, trial: Trial) -> Span:
    assert cost.seconds is not None
    return cost.seconds * trial.config.schedule.epochs


def makespan(seconds: Sequence[float], lanes: int, waits: Mapping[int, int] | None = None) -> float:
    """Returns the time at which the last job ends, if each job in turn goes to the first free lane.

    Args:
      seconds: duration of each job.
      lanes: number of jobs at a time.
      waits: maps the index of a job to that of the job that must end before it starts.
    """
    waits = waits or {}
    waiting: dict[int, list[int]] = {}
    for job, first in waits.items():
        waiting.setdefault(first, []).append(job)
    ready = [job for job in range(len(seconds)) if job not in waits]
    running: list[tuple[float, int]] = []
    now = 0.0
    while ready or running:
        while ready and len(running) < lanes:
            job = heapq.heappop(ready)
            heapq.heappush(running, (now + seconds[job], job))
        now, ended = heapq.heappop(running)
        for job in waiting.get(ended, ()):
            heapq.heappush(ready, job)
    return now


def _price(
    plan: Plan, hours: Span | None, on_gpu: bool, per_gpu_hour: float | None
) -> tuple[Span | None, str]:
    price = plan.sweep.resources.price
    per_hour = None
    if on_gpu:
        per_hour = price.per_gpu_hour if per_gpu_hour is None and price else per_gpu_hour
    elif price:
        per_hour = price.per_core_hour
    currency = price.currency if price else ""
    return (hours * per_hour if hours and per_hour is not None else None), currency
