"""What a sweep will cost before it runs: memory, seconds, hours, money; and what it did cost, beside that.

Memory and work of a step come from `trainables.profiling.footprint`, counted and not guessed. Seconds come from the
best source there is, and say which:

  measured   rows of the same shape on the same device, from runs before
  preflight  a step of the same shape, which the preflight of a run has made
  scaled     rows of other shapes on the same device, scaled by the work
  table      a GPU's data sheet, times the share of it that published training runs reach
  probe      a second of arithmetic on this CPU (`plan --measure`)
"""

import dataclasses
import heapq
import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.optimize import nnls

from orchestrator.trials.gang import Gang, Node, lane_plan
from orchestrator.trials.records import Record
from orchestrator.trials.trial import Plan, Removal, Trial, unique_trials
from trainables.base import Epoch, Frozen
from trainables.config import Seeds, TrainConfig
from trainables.data.order import num_steps
from trainables.identity import identity
from trainables.profiling.footprint import Footprint, Work, footprint, shape_config
from trainables.training.checkpoint import KEPT

Basis = Literal["measured", "preflight", "scaled", "table", "probe"]

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Span:
    """An estimate with the range it is expected in; the unit is its name's."""

    low: float
    central: float
    high: float

    def __mul__(self, times: float) -> "Span":
        return Span(self.low * times, self.central * times, self.high * times)

    def __add__(self, other: "Span") -> "Span":
        # Estimates of one device are wrong in the same direction, so their ranges add up whole.
        return Span(self.low + other.low, self.central + other.central, self.high + other.high)


NOTHING = Span(0.0, 0.0, 0.0)


# ---------------------------------------------------------------------------------------------------
# Devices


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU by its data sheet.

    Attributes:
      memory_gib: as sold, in GB of the data sheet; a few per cent of it are not for programs.
      fp32_tflops: outside of tensor cores, which torch leaves out for fp32 matrix products by default.
      half_tflops: fp16 or bf16 on tensor cores, fp32 sums, without sparsity.
      bandwidth_gb_s: of its memory.
      source: where the figures are from.
    """

    memory_gib: float
    fp32_tflops: float
    half_tflops: float
    bandwidth_gb_s: float
    source: str


#: By the name that `plan --on` takes; the SXM variant where there are several.
DEVICES: dict[str, Device] = {
    "V100": Device(32, 15.7, 125, 900, "NVIDIA V100 data sheet (SXM2, 32 GB)"),
    "T4": Device(16, 8.1, 65, 320, "NVIDIA T4 data sheet"),
    "A100-40GB": Device(40, 19.5, 312, 1555, "NVIDIA A100 data sheet (SXM4)"),
    "A100-80GB": Device(80, 19.5, 312, 2039, "NVIDIA A100 data sheet (SXM4)"),
    "H100": Device(80, 67, 989, 3350, "NVIDIA H100 data sheet (SXM5), half of the figures with sparsity"),
    "H200": Device(141, 67, 989, 4800, "NVIDIA H200 data sheet (SXM), half of the figures with sparsity"),
    "RTX-3090": Device(24, 35.6, 71, 936, "NVIDIA GA102 architecture paper, fp16 with fp32 sums"),
    "RTX-4090": Device(24, 82.6, 165.2, 1008, "NVIDIA Ada architecture paper, fp16 with fp32 sums"),
}


def device_called(name: str) -> str | None:
    """The entry of `DEVICES` that a name means, as torch or a person gives it; None if it is not there."""
    squeezed = re.sub(r"[^a-z0-9]", "", name.lower())
    for key in DEVICES:
        model, _, size = key.lower().replace("rtx-", "rtx").partition("-")
        if model in squeezed and (not size or size in squeezed):
            return key
    return "A100-80GB" if "a100" in squeezed else None


@dataclass(frozen=True, slots=True)
class Rates:
    """What a device takes for each part of `Work`; parts do not overlap."""

    seconds_per_flop: float
    seconds_per_byte: float
    seconds_per_kernel: float

    def seconds(self, work: Work) -> float:
        """Of some work, one thing after the other."""
        return float(np.dot(_features(work), dataclasses.astuple(self)))


def _features(work: Work) -> tuple[float, float, float]:
    return work.flops, work.moved_bytes, work.kernels


#: Host time to start an operation: the customary 5 to 10 µs of eager torch; not measured here.
_KERNEL_SECONDS = Span(5e-6, 7.5e-6, 1e-5)

# ---------------------------------------------------------------------------------------------------
# Shapes: what of a trial decides its cost per epoch


@dataclass(frozen=True, slots=True)
class Shape:
    """What of a trial decides its memory and its seconds per epoch; trials of one shape cost the same."""

    config: TrainConfig
    gang: Gang

    @property
    def name(self) -> str:
        """Batch (over workers), optimizer, precision and averaging; the arm says the rest."""
        config = self.config
        parts = [f"{config.batch_size}" + (f"/{self.gang.workers}" if self.gang.workers > 1 else "")]
        parts.append(config.optim.name)
        if config.precision != "auto":
            parts.append(config.precision)
        return " ".join([*parts, "ema"] if config.ema else parts)


def shape_of(trial: Trial) -> Shape:
    """The shape of a trial."""
    return Shape(shape_config(trial.config), trial.gang)


class ShapeTable:
    """The distinct trials of a plan, and the same by shape.

    Attributes:
      plan: the sweep.
      trials: one per id, in the order of the plan.
      groups: the same by shape.
      arms: cells and arms that have a trial of a shape, also where they share it.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan, self.trials = plan, unique_trials(plan.trials)
        self._shapes = {trial.id: shape_of(trial) for trial in self.trials}
        self.groups: dict[Shape, list[Trial]] = {}
        for trial in self.trials:
            self.groups.setdefault(self.shape(trial), []).append(trial)
        arms: dict[Shape, dict[tuple[str, str], None]] = {}
        for trial in plan.trials:
            arms.setdefault(self.shape(trial), {})[trial.cell_name, trial.arm] = None
        self.arms = {shape: tuple(pairs) for shape, pairs in arms.items()}

    def shape(self, trial: Trial) -> Shape:
        """The shape of a trial of the plan."""
        return self._shapes[trial.id]


@dataclass(frozen=True, slots=True)
class Epochs:
    """What an epoch of a shape amounts to for each of its workers.

    Attributes:
      work: training and evaluation after it.
      decoded: images read and augmented one by one; 0 where they are kept in memory.
      test: work of the evaluation on the final split, once per trial.
    """

    work: Work
    decoded: float
    test: Work


def counted(plan: Plan, shape: Shape, on_gpu: bool) -> tuple[Footprint, Epochs]:
    """The footprint of a shape, and its epochs."""
    config, info, workers = shape.config, plan.infos[shape.config.data], shape.gang.workers
    sizes = info.sizes
    found = footprint(config, info.num_classes, sizes["train"], sum(sizes.values()), workers, on_gpu)
    networks = 2 if config.ema else 1
    evaluated = found.evaluated * (networks / workers)
    # Batch norm is all that there are buffers for; its images are shared among the workers, too.
    precise = min(config.precise_bn_images, sizes["train"]) if found.has_buffers else 0
    steps = num_steps(sizes["train"], config.batch_size)
    work = found.step * steps + evaluated * (sizes["val"] + precise)
    read = (sizes["train"] + networks * (sizes["val"] + precise)) / workers
    decoded = 0.0 if config.augment.name == "light" else read
    return found, Epochs(work, decoded, evaluated * sizes["test"])


# ---------------------------------------------------------------------------------------------------
# Seconds


@dataclass(frozen=True, slots=True)
class Sample:
    """What was measured of one shape on one device.

    Attributes:
      seconds: of every epoch but a trial's last, which also evaluates on the final split.
      peak_gib: largest peak of a worker's memory, None where none was recorded.
      basis: whether they are of rows, or follow from a step that a preflight has made.
    """

    shape: Shape
    device: str
    epochs: Epochs
    seconds: tuple[float, ...]
    peak_gib: float | None = None
    basis: Literal["measured", "preflight"] = "measured"


def samples_of(plan: Plan, records: Mapping[str, Record], device: str, on_gpu: bool) -> list[Sample]:
    """What the records of a sweep tell about its shapes, for sweeps to come."""
    seconds: dict[Shape, list[float]] = {}
    peaks: dict[Shape, list[float]] = {}
    for shape, trials in ShapeTable(plan).groups.items():
        for trial in trials:
            rows = records[trial.id].rows if trial.id in records else {}
            seconds.setdefault(shape, []).extend(_epoch_seconds(rows.values()))
            peaks.setdefault(shape, []).extend(
                row.peak_memory_gib for row in rows.values() if row.peak_memory_gib is not None
            )
    return [
        Sample(shape, device, counted(plan, shape, on_gpu)[1], tuple(found), max(peaks[shape], default=None))
        for shape, found in seconds.items()
        if found
    ]


def seconds_per_epoch(
    shape: Shape, epochs: Epochs, device: str, samples: Sequence[Sample], rates: Rates | None
) -> tuple[Span, Basis] | None:
    """Seconds of one epoch with a range, from the best source there is; None if there is none.

    Args:
      shape, epochs: what is to run.
      device: on what; the name of a GPU of `DEVICES`, or of a processor.
      samples: from runs before; those of other devices are passed over.
      rates: of this device by a probe, for want of samples.
    """
    usable = [
        sample
        for sample in samples
        if sample.device == device and sample.shape.config.augment.name == shape.config.augment.name
    ]
    same = [sample for sample in usable if sample.shape == shape]
    rows = [second for sample in same if sample.basis == "measured" for second in sample.seconds]
    if rows:
        central = statistics.median(rows)
        low, high = (float(end) for end in np.quantile(rows, [0.1, 0.9]))
        # However quiet the rows were, tomorrow's machine may be a little busier.
        return Span(min(low, 0.95 * central), central, max(high, 1.05 * central)), "measured"
    if same:
        return _of_steps(
            statistics.median(second for sample in same for second in sample.seconds)
        ), "preflight"
    if measured := [sample for sample in usable if sample.basis == "measured"]:
        return scaled(epochs, measured), "scaled"
    if usable:
        return _of_steps(scaled(epochs, usable).central), "scaled"
    if device in DEVICES:
        return from_table(shape, epochs, DEVICES[device]), "table"
    if rates is not None:
        central = rates.seconds(epochs.work) + epochs.decoded / _DECODED_PER_SECOND.central
        return Span(central / 2, central, 2 * central), "probe"
    return None


def _of_steps(central: float) -> Span:
    """What follows from single steps, made alone on the machine by a process that had just begun."""
    return Span(central / 2, central, 2 * central)


#: Shares of the three parts that a fit starts from and leaves only where rows say so: a core of 40 G
#: multiply-adds and 12 GB per second. Only their ratios count; the rows set the scale.
_PRIOR = Rates(1 / 40e9, 1 / 12e9, 1e-5)

#: Weight of the prior in the fit, in rows.
_PRIOR_ROWS = 0.05


def fit_rates(samples: Sequence[Sample]) -> Rates:
    """Seconds per multiply-add, byte and operation, by least squares of relative errors, none below 0.

    With one sample it is the prior at the sample's scale; each further one says more of the shares.
    """
    seconds = np.array([statistics.median(sample.seconds) for sample in samples])
    features = np.array([_features(sample.epochs.work) for sample in samples]) * dataclasses.astuple(_PRIOR)
    scale = float(np.median(seconds / features.sum(axis=1)))
    relative = scale * features / seconds[:, None]
    weight = math.sqrt(_PRIOR_ROWS)
    matrix = np.vstack([relative, weight * np.eye(3)])
    shares, _ = nnls(matrix, np.concatenate([np.ones(len(samples)), np.full(3, weight)]))
    return Rates(
        *(
            float(share) * scale * prior
            for share, prior in zip(shares, dataclasses.astuple(_PRIOR), strict=True)
        )
    )


def scaled(epochs: Epochs, samples: Sequence[Sample]) -> Span:
    """Seconds of an epoch from those of other shapes.

    The centre is a fit to all of them. The range spans the two nearest shapes' seconds times the ratio of
    multiply-adds, and times the ratio of bytes moved, and a tenth more either way: which of the two counts
    is what is not known of a new shape.
    """
    central = fit_rates(samples).seconds(epochs.work)

    def distance(sample: Sample) -> float:
        return abs(math.log(sample.epochs.work.moved_bytes / epochs.work.moved_bytes))

    guesses = [central]
    for sample in sorted(samples, key=distance)[:2]:
        second = statistics.median(sample.seconds)
        guesses.append(second * epochs.work.flops / sample.epochs.work.flops)
        guesses.append(second * epochs.work.moved_bytes / sample.epochs.work.moved_bytes)
    return Span(min(guesses) / 1.1, central, max(guesses) * 1.1)


#: Share of the data sheet's speed (multiply-adds at the peak, then bytes at the full bandwidth) that
#: published training runs reach; low is slow. Source: minutes per epoch on V100 in Xiao et al. 2021, tables 1
#: and 2, and timm's images per second on RTX 3090; `python -m benchmarks.planned_actual --table` has them.
REACHED = Span(0.21, 0.42, 0.85)

#: Images per second and core: decoding, random crop, AutoAugment. Source: 450 to 890 with decoding and crop
#: alone, by library, on Zen 4; AutoAugment takes some of it.
_DECODED_PER_SECOND = Span(200.0, 350.0, 600.0)


def from_table(shape: Shape, epochs: Epochs, device: Device) -> Span:
    """Seconds of an epoch from a data sheet: what the slowest of GPU, host and loader needs."""
    peak = device.fp32_tflops if shape.config.precision == "fp32" else device.half_tflops
    work = epochs.work
    ideal = 2 * work.flops / (peak * 1e12) + work.moved_bytes / (device.bandwidth_gb_s * 1e9)
    loaders = max(shape.gang.cpus - 1, 1)

    def seconds(reached: float, kernel_seconds: float, decoded_per_second: float) -> float:
        decoding = epochs.decoded / (decoded_per_second * loaders)
        computing = max(ideal / reached, work.kernels * kernel_seconds)
        # Without a core to spare, the process that trains also decodes.
        return computing + decoding if shape.gang.cpus == 1 else max(computing, decoding)

    return Span(
        seconds(REACHED.high, _KERNEL_SECONDS.low, _DECODED_PER_SECOND.high),
        seconds(REACHED.central, _KERNEL_SECONDS.central, _DECODED_PER_SECOND.central),
        seconds(REACHED.low, _KERNEL_SECONDS.high, _DECODED_PER_SECOND.low),
    )


# ---------------------------------------------------------------------------------------------------
# The sweep


@dataclass(frozen=True, slots=True)
class Machine:
    """What a sweep is to run on.

    Attributes:
      device: name of the GPU, as in `DEVICES` where it is there, else of the processor.
      nodes: machines with their CPUs and GPUs.
      memory_gib: of one GPU, else of the node; None where unknown.
    """

    device: str
    nodes: tuple[Node, ...]
    memory_gib: float | None = None

    @property
    def has_gpus(self) -> bool:
        """Whether trials that leave it open get a GPU."""
        return any(node.gpus >= 1 for node in self.nodes)


@dataclass(frozen=True, slots=True)
class ShapeCost:
    """One shape of a sweep.

    Attributes:
      arms: whose trials have it, cell and arm.
      trials, epochs: how many, and their epochs in all.
      seconds: per epoch; None where nothing is known of its speed.
      hours: GPU-hours of all its trials, core-hours where they run on CPUs.
    """

    shape: Shape
    arms: tuple[tuple[str, str], ...]
    trials: int
    epochs: int
    params_m: float
    flops_g: float
    activations_m: float
    footprint: Footprint
    seconds: Span | None
    basis: Basis | None
    hours: Span | None

    def plain(self) -> dict[str, Any]:
        """For JSON; memory in GiB."""
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
                "buckets",
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
class Estimate:
    """What a sweep will cost.

    Attributes:
      hours: GPU-hours of all trials, core-hours on CPUs; None if any shape's speed is unknown.
      unit: "GPU-hours" or "core-hours".
      wall_hours: from start to end with so many lanes.
      lanes: trials at a time, the largest gang's first.
      checkpoint_gib, kept_gib: see `Storage`.
      price: in `currency`; None where no price is given.
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

    def plain(self) -> dict[str, Any]:
        """For JSON."""

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
    """What a sweep stores at most.

    Attributes:
      checkpoint_gib: of all trials in flight, of each as many as are kept and one that is being written; a
        trial that has ended keeps none.
      kept_gib: final weights (`resources.keep`, and of first stages always). Where the best replaces the one
        before it, both are there for a moment, on every lane.
    """

    checkpoint_gib: float
    kept_gib: float


def storage(plan: Plan, nodes: Sequence[Node]) -> Storage:
    """What all trials of a plan store on machines like these."""
    return _storage(ShapeTable(plan), nodes)


def _storage(shapes: ShapeTable, nodes: Sequence[Node]) -> Storage:
    resources = shapes.plan.sweep.resources
    in_flight, weights, always, bests, most_lanes = 0, 0, 0, dict[tuple[str, str], int](), 0
    for gang, members, lanes in lane_plan(shapes.trials, nodes, resources.lanes):
        most_lanes = max(most_lanes, lanes)
        for trial in members:
            found, _ = counted(shapes.plan, shapes.shape(trial), bool(gang.gpus))
            in_flight = max(in_flight, lanes * (KEPT + 1) * found.state)
            if trial.role == "first_stage":
                always += found.params
                continue
            weights += found.params
            group = (trial.cell_name, trial.arm)
            bests[group] = max(bests.get(group, 0), found.params)
    kept = {
        "none": 0,
        "best": sum(bests.values()) + most_lanes * max(bests.values(), default=0),
        "last": weights,
    }[resources.keep]
    return Storage(in_flight / GIB, (always + kept) / GIB)


def storage_fault(plan: Plan, nodes: Sequence[Node]) -> str:
    """That a sweep may have to store more than its file allows; empty if not."""
    limit = plan.sweep.resources.max_checkpoint_gib
    return "" if limit is None else _storage_fault(limit, storage(plan, nodes))


def _storage_fault(limit: float, found: Storage) -> str:
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
) -> Estimate:
    """What all trials of a plan will cost on a machine.

    Args:
      plan: the sweep.
      machine: where it is to run.
      samples: what runs before have measured.
      rates: of the machine's processor by a probe, for want of samples.
      price_per_gpu_hour: instead of the file's.
    """
    shapes = ShapeTable(plan)
    costs = {
        shape: _shape_cost(plan, machine, shape, members, samples, rates)
        for shape, members in shapes.groups.items()
    }
    known = all(cost.hours is not None for cost in costs.values())
    hours = sum((cost.hours for cost in costs.values() if cost.hours), NOTHING) if known else None
    phases = lane_plan(shapes.trials, machine.nodes, plan.sweep.resources.lanes)
    on_gpu = any(bool(phase.gang.gpus) for phase in phases)
    wall = NOTHING
    for _, members, lanes in phases:
        if known and lanes:
            runs = [_trial_seconds(costs[shapes.shape(trial)], trial) for trial in members]
            places = {trial.id: place for place, trial in enumerate(members)}
            # A first stage of a larger gang has ended by then.
            waits = {places[t.id]: places[t.after] for t in members if t.after in places}
            wall += Span(
                *(
                    makespan([getattr(run, end) for run in runs], lanes, waits) + _LANE_START_SECONDS
                    for end in ("low", "central", "high")
                )
            )
    stored = _storage(shapes, machine.nodes)
    price, currency = _price(plan, hours, on_gpu, price_per_gpu_hour)
    return Estimate(
        machine=machine,
        shapes=tuple(costs.values()),
        hours=hours,
        unit="GPU-hours" if on_gpu else "core-hours",
        wall_hours=wall * (1 / 3600) if known and all(phase.lanes for phase in phases) else None,
        lanes=tuple(phase.lanes for phase in phases),
        checkpoint_gib=stored.checkpoint_gib,
        kept_gib=stored.kept_gib,
        price=price,
        currency=currency,
    )


#: From the start of a run to the first step of a lane. Source: 11 to 16 s for Ray Train's worker group.
_LANE_START_SECONDS = 15.0


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
    timed = seconds_per_epoch(shape, epochs, machine.device, samples, rates)
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
    return dataclasses.replace(cost, hours=seconds * (_units(gang) / 3600))


def _units(gang: Gang) -> float:
    """GPUs of a gang, or cores where it has none: what its hours are counted in."""
    return gang.workers * (gang.gpus or gang.cpus)


def _trial_seconds(cost: ShapeCost, trial: Trial) -> Span:
    assert cost.seconds is not None
    return cost.seconds * trial.config.schedule.epochs


def makespan(seconds: Sequence[float], lanes: int, waits: Mapping[int, int] | None = None) -> float:
    """When the last of some jobs ends, if each in turn goes to the lane that is free first.

    Args:
      seconds: of each job.
      lanes: jobs at a time.
      waits: by the place of a job that of the one that has to end before it may begin.
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


# ---------------------------------------------------------------------------------------------------
# What to look at before starting

#: Of a device's memory, what programs get: the rest is the context's and the allocator's slack.
_USABLE = 0.9

#: Resident memory of a worker before it has trained anything: interpreter, torch, Ray. Measured.
_PROCESS_GIB = 0.8


def plan_warnings(plan: Plan, found: Estimate) -> list[str]:
    """What a person should look at before starting, a line each.

    Args:
      plan: the sweep.
      found: what it will cost, by `estimate`.
    """
    shapes = ShapeTable(plan)
    return [
        *_room_warnings(shapes, found),
        *_memory_warnings(found),
        *_input_warnings(plan, found),
        *_batch_warnings(plan),
        *_pairing_warnings(plan),
        *_cut_warnings(plan),
        *_selection_warnings(plan),
        *_budget_warnings(plan, found),
        *_storage_warnings(plan, found),
    ]


def _room_warnings(shapes: ShapeTable, found: Estimate) -> list[str]:
    # Room is asked for, whatever number of lanes the file gives.
    return [
        f"resources: {len(members)} trial(s) need {gang}, more than there is here; see --on"
        for gang, members, lanes in lane_plan(shapes.trials, found.machine.nodes)
        if not lanes
    ]


def _storage_warnings(plan: Plan, found: Estimate) -> list[str]:
    limit = plan.sweep.resources.max_checkpoint_gib
    fault = "" if limit is None else _storage_fault(limit, Storage(found.checkpoint_gib, found.kept_gib))
    return [fault] if fault else []


def _memory_warnings(found: Estimate) -> list[str]:
    machine, lines = found.machine, []
    if machine.memory_gib is None:
        return []
    if found.unit == "core-hours":
        largest = max(cost.footprint.peak / GIB + _PROCESS_GIB for cost in found.shapes)
        workers = max(
            (count * cost.shape.gang.workers for count in found.lanes for cost in found.shapes), default=0
        )
        if largest * workers > _USABLE * machine.memory_gib:
            lines.append(
                f"memory: {workers} worker(s) of up to {largest:.1f} GiB each need more than this machine's "
                f"{machine.memory_gib:.1f} GiB; set resources.lanes, or a smaller batch_size"
            )
        return lines
    for cost in found.shapes:
        if (peak := cost.footprint.peak / GIB) > _USABLE * machine.memory_gib:
            (cell, arm), *more = cost.arms
            lines.append(
                f"memory: {cell} {arm}{' and others' if more else ''} ({cost.shape.name}) needs "
                f"{peak:.1f} GiB of {machine.memory_gib:g} on {machine.device}; set resources.workers, or a "
                "smaller batch_size"
            )
    return lines


def _input_warnings(plan: Plan, found: Estimate) -> list[str]:
    if found.machine.device not in DEVICES:
        return []
    lines = {}
    for cost in found.shapes:
        if cost.basis != "table" or cost.seconds is None:
            continue
        _, epochs = counted(plan, cost.shape, True)
        computing = from_table(
            cost.shape, dataclasses.replace(epochs, decoded=0.0), DEVICES[found.machine.device]
        )
        if epochs.decoded and cost.seconds.central > 1.5 * computing.central:
            cpus = cost.shape.gang.cpus
            share = 100 * computing.central / cost.seconds.central
            lines[cpus] = (
                f"input: {cpus} CPU(s) per worker decode too slowly, so that the GPU would be busy for about "
                f"{share:.0f} % of the time; raise resources.cpus_per_worker"
            )
    return list(lines.values())


def _batch_warnings(plan: Plan) -> list[str]:
    lines = {}
    for trial in plan.trials:
        workers, batch = trial.gang.workers, trial.config.batch_size
        if batch % workers:
            lines[batch, workers] = (
                f"batch: batch_size {batch} is not divisible by {workers} workers; their shares differ by an "
                "image"
            )
    return list(lines.values())


def _pairing_warnings(plan: Plan) -> list[str]:
    sweep, lines = plan.sweep, []
    for path, window in sweep.vary.items():
        named = {part for name in window.by_name for part in name.split("/")}
        if apart := [arm for arm in sweep.arms if arm in named]:
            lines.append(
                f"pairing: vary.{path} has windows by arm ({', '.join(apart)}), so the arms' points share "
                "quantiles and seeds, but not values"
            )
    lines += _unpaired_warnings(plan)
    ids: dict[str, tuple[str, str]] = {}
    same: dict[tuple[tuple[str, str], tuple[str, str]], None] = {}
    for trial in plan.trials:
        if trial.role == "first_stage":  # to be shared is what it is for
            continue
        first = ids.setdefault(trial.id, (trial.cell_name, trial.arm))
        if first != (trial.cell_name, trial.arm):
            same[first, (trial.cell_name, trial.arm)] = None
    lines += [
        f"pairing: {cell} {arm} has the same trials as {other_cell} {other}; each is trained once"
        for (other_cell, other), (cell, arm) in same
    ]
    return lines


def _unpaired_warnings(plan: Plan) -> list[str]:
    """Parameters that some arms draw and others do not, by their windows or by `when`; seeds that differ."""
    drawn: dict[str, dict[str, set[str]]] = {}
    seeds: dict[tuple[str, int, int, str], set[Seeds]] = {}
    for trial in plan.trials:
        drawn.setdefault(trial.cell_name, {}).setdefault(trial.arm, set()).update(trial.values)
        run = (trial.cell_name, trial.point, trial.replicate, trial.role)
        seeds.setdefault(run, set()).add(trial.config.seeds)
    lines: dict[str, None] = {}
    for by_arm in drawn.values():
        for path in plan.sweep.vary:
            without = [arm for arm, paths in by_arm.items() if path not in paths]
            if without and len(without) < len(by_arm):
                lines[
                    f"pairing: vary.{path} does not vary in {', '.join(without)}, so that differences to the "
                    "other arms hold its effect"
                ] = None
    if any(len(found) > 1 for found in seeds.values()):
        lines["pairing: arms set seeds of their own, so points are not paired in them"] = None
    return list(lines)


#: Share of an arm's points that a constraint may remove unremarked.
_CUT = 0.2


def _cut_warnings(plan: Plan) -> list[str]:
    """Windows that a constraint cuts in one arm, and with it in all arms of the cell."""
    groups: dict[tuple[str, str], list[Removal]] = {}
    for removal in plan.removals:
        groups.setdefault((removal.cell_name, removal.constraint), []).append(removal)
    lines = []
    for (cell, constraint), removals in groups.items():
        worst = max(removals, key=lambda removal: removal.removed)
        if worst.removed <= _CUT * worst.drawn:
            continue
        beside = "".join(f", {other.removed} of {other.arm}'s" for other in removals if other is not worst)
        lines.append(
            f"window: where `{constraint}` removes {worst.removed} of {worst.drawn} points of {cell} "
            f"{worst.arm}{beside}; what one arm breaks is left out in all, so that arms are compared over "
            "the rest of the window alone"
        )
    return lines


def _selection_warnings(plan: Plan) -> list[str]:
    lines = [
        f"selection: {info.name} selects on the split that the final numbers are from; they will flatter"
        for config, info in plan.infos.items()
        if getattr(config, "selection", "held_out") == "final"
    ]
    if plan.sweep.error == "best_epoch":
        lines.append(
            "selection: error: best_epoch takes each trial's luckiest epoch and hides late divergence"
        )
    return lines


def _budget_warnings(plan: Plan, found: Estimate) -> list[str]:
    budget = plan.sweep.budget
    cap = None if budget is None else budget.cap(found.unit)
    if cap is None or found.hours is None:
        return []
    if found.hours.central > cap:
        return [
            f"budget: about {found.hours.central:.3g} {found.unit} are expected, and the budget is {cap:g}"
        ]
    if found.hours.high > cap:
        return [f"budget: up to {found.hours.high:.3g} {found.unit} are possible, and the budget is {cap:g}"]
    return []


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


def shape_key(shape: Shape) -> str:
    """A name for a shape that stays the same from one process, and one version, to the next."""
    return identity(shape.config, str(shape.gang))


def planned(plan: Plan, found: Estimate, made: str) -> Planned:
    """What is to be kept of an estimate."""
    shapes = {
        shape_key(cost.shape): PlannedShape(
            name=cost.shape.name,
            seconds=cost.seconds,
            basis=cost.basis,
            peak_gib=cost.footprint.peak / GIB,
            devices=_units(cost.shape.gang.on(found.machine.nodes)),
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
                seconds=statistics.median(_epoch_seconds(rows)),
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


def _epoch_seconds(rows: Iterable[Epoch]) -> list[float]:
    """Of every epoch but those that end a trial, which also evaluate on the final split; else of all."""
    found = list(rows)
    kept = [row for row in found if row.test_error_pct is None] or found
    return [row.train_seconds + row.val_seconds for row in kept]


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
        hours += _busy_seconds(record) / 3600 * _units(trial.gang.on(nodes))
    return hours


def within_budget(plan: Plan, records: Mapping[str, Record], nodes: Sequence[Node]) -> bool:
    """Whether a run may hand out another trial: what has been spent is below the file's budget."""
    budget = plan.sweep.budget
    if budget is None:
        return True
    on_gpu = any(bool(trial.gang.on(nodes).gpus) for trial in plan.trials)
    cap = budget.cap("GPU-hours" if on_gpu else "core-hours")
    return cap is None or spent_hours(plan, records, nodes) < cap
