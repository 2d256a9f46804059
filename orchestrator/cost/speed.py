"""Seconds per epoch, from measured rows, a fit to such rows, a data sheet or a probe."""

import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import scipy

from orchestrator.cost.devices import DEVICES, Device, listed_name
from orchestrator.cost.shapes import Epochs, Shape, ShapeTable, counted
from orchestrator.trials.records import Record
from orchestrator.trials.trial import Plan
from trainables.base import Epoch

if TYPE_CHECKING:  # plans that were made before are read without torch
    from trainables.profiling.footprint import Work

Basis = Literal["measured", "preflight", "scaled", "table", "probe"]


@dataclass(frozen=True, slots=True)
class Span:
    """An estimate with its expected range. The name of the variable gives the unit."""

    low: float
    central: float
    high: float

    def __mul__(self, times: float) -> "Span":
        return Span(self.low * times, self.central * times, self.high * times)

    def __add__(self, other: "Span") -> "Span":
        # Estimates for one device err in the same direction, so their ranges add up fully.
        return Span(self.low + other.low, self.central + other.central, self.high + other.high)


NOTHING = Span(0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Rates:
    """Seconds that a device needs per unit of each part of `Work`. The parts do not overlap."""

    seconds_per_flop: float
    seconds_per_byte: float
    seconds_per_kernel: float

    def seconds(self, work: "Work") -> float:
        """Returns the seconds of some work, with its parts one after the other."""
        return float(np.dot(_features(work), dataclasses.astuple(self)))


def _features(work: "Work") -> tuple[float, float, float]:
    return work.flops, work.moved_bytes, work.kernels


#: Host time to start an operation: the customary 5 to 10 µs of eager torch. Not measured here.
_KERNEL_SECONDS = Span(5e-6, 7.5e-6, 1e-5)


# ---------------------------------------------------------------------------------------------------
# Seconds


@dataclass(frozen=True, slots=True)
class Sample:
    """Measurements of one shape on one device.

    Attributes:
      seconds: seconds of every epoch but a trial's last, which also evaluates on the final split.
      peak_gib: largest peak memory of a worker. None if none was recorded.
      basis: whether the seconds are from rows or computed from a preflight's step.
    """

    shape: Shape
    device: str
    epochs: Epochs
    seconds: tuple[float, ...]
    peak_gib: float | None = None
    basis: Literal["measured", "preflight"] = "measured"


def samples_of(plan: Plan, records: Mapping[str, Record], device: str, on_gpu: bool) -> list[Sample]:
    """Returns the measurements that the records of a sweep hold, for later estimates: one a shape and device.

    Args:
      plan, records: the sweep.
      device, on_gpu: the device of epochs for which none is on record, and whether it is a GPU.
    """
    seconds: dict[tuple[Shape, str, bool], list[float]] = {}
    peaks: dict[tuple[Shape, str, bool], list[float]] = {}
    for shape, trials in ShapeTable(plan).groups.items():
        for trial in trials:
            record = records.get(trial.id, Record())
            for row in counted_rows(record.rows.values()):
                use, before = (record.devices.get(number) for number in (row.epoch, row.epoch - 1))
                if before is not None and use != before:
                    # Part of this epoch may have been computed on the device before.
                    continue
                key = (shape, listed_name(use.name), use.is_gpu) if use else (shape, device, on_gpu)
                seconds.setdefault(key, []).append(row.train_seconds + row.val_seconds)
            for row in record.rows.values():
                if row.peak_memory_gib is not None:
                    use = record.devices.get(row.epoch)
                    key = (shape, listed_name(use.name), use.is_gpu) if use else (shape, device, on_gpu)
                    peaks.setdefault(key, []).append(row.peak_memory_gib)
    return [
        Sample(
            shape, name, counted(plan, shape, is_gpu)[1], tuple(found),
            max(peaks.get((shape, name, is_gpu), ()), default=None),
        )
        for (shape, name, is_gpu), found in seconds.items()
    ]  # fmt: skip


def seconds_per_epoch(
    shape: Shape,
    epochs: Epochs,
    device: str,
    samples: Sequence[Sample],
    rates: Rates | None,
    cores: int | None = None,
) -> tuple[Span, Basis] | None:
    """Returns the seconds of one epoch with a range, from the best source available. None without a source.

    Args:
      shape, epochs: the shape to estimate, and the work of its epochs.
      device: name of a GPU of `DEVICES`, or of a processor.
      samples: measurements of earlier runs. Those of other devices are ignored.
      rates: rates of this device from a probe, used without samples.
      cores: of each worker; those of the shape's gang if left out.
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
        # The range is at least 5 % either way, because the machine may be busier in later runs.
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
        return from_table(shape, epochs, DEVICES[device], cores), "table"
    if rates is not None:
        central = rates.seconds(epochs.work) + epochs.decoded / _DECODED_PER_SECOND.central
        return Span(central / 2, central, 2 * central), "probe"
    return None


def _of_steps(central: float) -> Span:
    """Returns seconds with a factor of 2 either way.

    A preflight makes single steps, alone on the machine, in a new process.
    """
    return Span(central / 2, central, 2 * central)


#: Prior of the fit: a core of 40 G multiply-adds and 12 GB per second. Only the ratios matter, because the
#: rows set the scale.
_PRIOR = Rates(1 / 40e9, 1 / 12e9, 1e-5)

#: Weight of the prior in the fit, in rows.
_PRIOR_ROWS = 0.05


def fit_rates(samples: Sequence[Sample]) -> Rates:
    """Fits seconds per multiply-add, byte and operation by least squares of relative errors, none below 0.

    With one sample, the result is the prior at the sample's scale. Each further sample adds information about
    the shares.
    """
    seconds = np.array([statistics.median(sample.seconds) for sample in samples])
    features = np.array([_features(sample.epochs.work) for sample in samples]) * dataclasses.astuple(_PRIOR)
    scale = float(np.median(seconds / features.sum(axis=1)))
    relative = scale * features / seconds[:, None]
    weight = math.sqrt(_PRIOR_ROWS)
    matrix = np.vstack([relative, weight * np.eye(3)])
    shares, _ = scipy.optimize.nnls(matrix, np.concatenate([np.ones(len(samples)), np.full(3, weight)]))
    return Rates(
        *(
            float(share) * scale * prior
            for share, prior in zip(shares, dataclasses.astuple(_PRIOR), strict=True)
        )
    )


def scaled(epochs: Epochs, samples: Sequence[Sample]) -> Span:
    """Returns the seconds of an epoch, scaled from those of other shapes.

    The centre is a fit to all samples. The range spans the seconds of the two nearest shapes, scaled by the
    ratio of multiply-adds and by that of bytes moved. It is a tenth wider at either end. Both ratios are used
    because it is unknown which one decides the speed of a new shape.
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
#: published training runs reach. The low end is slow. Source: minutes per epoch on V100 in Xiao et al. 2021,
#: tables 1 and 2, and timm's images per second on RTX 3090. `python -m benchmarks.planned_actual --table`
#: prints them.
REACHED = Span(0.21, 0.42, 0.85)

#: Images per second and core for decoding, random crop and AutoAugment. Source: 450 to 890 with decoding and
#: crop alone, depending on the library, on Zen 4. AutoAugment takes some of it.
_DECODED_PER_SECOND = Span(200.0, 350.0, 600.0)


def _with_decoding(computing: float, epochs: Epochs, loaders: int, decoded_per_second: float) -> float:
    """Returns the seconds of an epoch whose images are decoded by others meanwhile, if there are any."""
    decoding = epochs.decoded / decoded_per_second
    return max(computing, decoding / loaders) if loaders > 0 else computing + decoding


def seconds_of_steps(step_seconds: float, step: "Work", epochs: Epochs, cores: int, on_gpu: bool) -> float:
    """Returns the seconds of an epoch by a measured step, at equal speed per flop, with decoding.

    The images of the step were decoded before it. On a CPU the training process decodes.
    """
    computing = step_seconds * epochs.work.flops / step.flops
    return _with_decoding(computing, epochs, cores - 1 if on_gpu else 0, _DECODED_PER_SECOND.central)


def from_table(shape: Shape, epochs: Epochs, device: Device, cores: int | None = None) -> Span:
    """Returns the seconds of an epoch from a data sheet: the most that GPU, host or loader needs.

    Each worker has so many `cores`, or those of the shape's gang if left out.
    """
    peak = device.fp32_tflops if shape.config.precision == "fp32" else device.half_tflops
    work = epochs.work
    ideal = 2 * work.flops / (peak * 1e12) + work.moved_bytes / (device.bandwidth_gb_s * 1e9)
    cores = shape.gang.cpus if cores is None else cores

    def seconds(reached: float, kernel_seconds: float, decoded_per_second: float) -> float:
        computing = max(ideal / reached, work.kernels * kernel_seconds)
        return _with_decoding(computing, epochs, cores - 1, decoded_per_second)

    return Span(
        seconds(REACHED.high, _KERNEL_SECONDS.low, _DECODED_PER_SECOND.high),
        seconds(REACHED.central, _KERNEL_SECONDS.central, _DECODED_PER_SECOND.central),
        seconds(REACHED.low, _KERNEL_SECONDS.high, _DECODED_PER_SECOND.low),
    )


def counted_rows(rows: Iterable[Epoch]) -> list[Epoch]:
    """Returns the epochs whose seconds count: all but last ones, which also evaluate the final split.

    Returns all epochs if there are only last ones.
    """
    found = list(rows)
    return [row for row in found if row.test_error_pct is None] or found


def epoch_seconds(rows: Iterable[Epoch]) -> list[float]:
    """Returns the seconds of each epoch of `counted_rows`."""
    return [row.train_seconds + row.val_seconds for row in counted_rows(rows)]


def probe_rates() -> Rates:
    """Measures the rates of a core of this machine with one second of arithmetic."""
    from trainables.profiling.footprint import probe

    return Rates(*probe())
