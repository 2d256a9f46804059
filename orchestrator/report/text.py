"""Numbers as text: shares, errors, intervals, p-values, durations."""

from collections.abc import Mapping, Sequence

from orchestrator.analysis.summary import ReferenceKind
from orchestrator.stats.intervals import Estimate
from orchestrator.stats.measures import Measure
from orchestrator.sweep.space import Choice, Domain, IntRange, LogUniform, Ordinal, Uniform
from orchestrator.trials.numerals import percent, short
from trainables.config import TrainConfig

#: A percent sign after a no-break space.
PERCENT = "\u00a0%"


def share_text(value: float | None, sign: bool = False) -> str:
    if value is None:
        return "–"
    # Adding 0 to the rounded number makes -0 a 0.
    value = round(value, 2) + 0.0
    return f"{value:{'+' if sign and value else ''}.2f}".replace("-", "−")


def measure_text(value: float | None, measure: Measure, sign: bool = False) -> str:
    """Formats a measure: a share of 1, or a mean error in %."""
    return percent(value) if measure == "error" and not sign else share_text(value, sign)


def interval_text(estimate: Estimate | None, measure: Measure = "f1", sign: bool = False) -> str:
    if estimate is None or estimate.low is None or estimate.high is None:
        return ""
    low, high = (measure_text(end, measure, sign) for end in (estimate.low, estimate.high))
    return f"{low} to {high}"


def error_interval(estimate: Estimate) -> str:
    return interval_text(estimate, "error")


def p_text(value: float | None) -> str:
    """Formats a p-value with three digits after the point."""
    if value is None:
        return "–"
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def p_equals(value: float) -> str:
    text = p_text(value)
    return f"p < {text[1:]}" if text.startswith("<") else f"p = {text}"


def describe_lr_scaling(config: TrainConfig) -> str:
    """Describes the batch size that a learning rate is quoted for, and the rate at the run's batch size."""
    optim, batch = config.optim, config.batch_size
    if optim.lr_batch_size is None:
        return f"lr is the peak learning rate of the optimizer, at a batch size of {batch}"
    factor = optim.peak_lr(batch) / optim.lr
    rule = "linearly" if optim.lr_scaling == "linear" else "by the square root"
    return (
        f"lr is quoted for a batch size of {optim.lr_batch_size}; at the batch size of {batch} used here the "
        f"optimizer's peak learning rate is {factor:.4g} times lr (scaled {rule})"
    )


def where_text(cells: Mapping[str, Sequence[str]], arms: Sequence[str]) -> str:
    """Returns `adamw, sgd`, or `adamw (vit_p)` if only some arms are meant."""
    parts = [
        cell if len(found) == len(arms) else f"{cell} ({', '.join(found)})" for cell, found in cells.items()
    ]
    return ", ".join(parts)


def domain_text(domain: Domain) -> str:
    match domain:
        case LogUniform(log_uniform=(low, high)):
            return f"{short(low)} to {short(high)}, log-uniform ({high / low:.3g}×)"
        case Uniform(uniform=(low, high)):
            return f"{short(low)} to {short(high)}, uniform"
        case IntRange(int_range=(low, high)):
            return f"{low} to {high}, whole numbers"
        case Choice():
            return "one of " + ", ".join(map(str, domain.choice))
        case Ordinal():
            return "one of " + ", ".join(map(str, domain.ordinal)) + ", in this order"


TESTS = {"wilcoxon": "Wilcoxon", "mcnemar": "McNemar"}
REFERENCES: dict[ReferenceKind | None, str] = {
    "confirmed": "the arm's confirmed best",
    "sweep_minimum": "the lowest error of the arm's sweep, unconfirmed",
    None: "nothing: no point trained",
}
SPLIT_NAMES = {"val": "selection", "test": "final"}
DESCRIBES = (
    "they are measured from each arm's own reference. An error in that reference shifts all pairs alike, and "
    "no test over pairs can detect this: for equal arms, nearly half of all sweeps would appear settled. So "
    "they have a difference but no verdict."
)
