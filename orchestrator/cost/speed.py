"""Seconds per epoch, from measured rows, a fit to them, a data sheet or a probe."""

import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import nnls

from orchestrator.cost.devices import DEVICES, Device
from orchestrator.cost.shapes import Epochs, Shape, ShapeTable, counted
from orchestrator.trials.records import Record
from orchestrator.trials.trial import Plan
from trainables.base import Epoch
from trainables.profiling.footprint import Work, probe

Basis = Literal["measured", "preflight", "scaled", "table", "probe"]


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
            seconds.setdefault(shape, []).extend(epoch_seconds(rows.values()))
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


def epoch_seconds(rows: Iterable[Epoch]) -> list[float]:
    """Of every epoch but those that end a trial, which also evaluate on the final split; else of all."""
    found = list(rows)
    kept = [row for row in found if row.test_error_pct is None] or found
    return [row.train_seconds + row.val_seconds for row in kept]


def probe_rates() -> Rates:
    """What a core of this machine takes, by a second of arithmetic."""
    return Rates(*probe())
