"""The exchange rate of tuning effort as a sentence and as a table."""

import math

from orchestrator.analysis.exchange import LEAST_QUOTED, ArmExchange, Unit
from orchestrator.analysis.findings import Findings
from orchestrator.report.table import Table, Text
from orchestrator.report.text import PERCENT, share_text
from orchestrator.stats.exchange import Rate
from orchestrator.sweep.config import ONE_CELL

#: One of a unit, and several.
_ONE: dict[Unit, tuple[str, str]] = {
    "trials": ("One trial", "trials"),
    "flops": ("A unit of computation (FLOPs) spent on", "units"),
    "hours": ("An hour spent on", "hours"),
}
#: Larger rates are shown as `more than 999`, because their digits say nothing.
_MOST = 999.0


def rate_text(value: float) -> str:
    """Formats a rate with two digits: 0.42, 1.3, 12."""
    if value > _MOST:
        return f"more than {_MOST:.0f}"
    return f"{value:.2f}" if value < 0.995 else f"{value:.1f}" if value < 9.95 else f"{value:.0f}"


def least_text(value: float) -> str:
    """Formats a lower bound above 1, rounded down: 1.3, 12. A bound must not be rounded up."""
    if value > _MOST:
        return f"{_MOST:.0f}"
    return f"{math.floor(value * 10) / 10:.1f}" if value < 10 else f"{math.floor(value)}"


def exchange_sentence(one: ArmExchange, unit: Unit = "trials") -> str:
    """Returns the sentence that people quote, at equal trials, FLOPs or hours.

    If neither arm's trials are found to be worth more, the sentence says so with the chance of the better
    single trial. It is empty if a cost is unknown, or if there are too few trials for any bound.
    """
    within = "" if one.cell == ONE_CELL else f" in {one.cell}"
    if unit not in one.cost_ratios or one.rate.at_least is None or one.reverse.at_least is None:
        return ""
    quote = one.quote(unit)
    if quote is None or quote.at_least < LEAST_QUOTED:
        what = {"trials": "trial", "flops": "unit of computation", "hours": "hour"}[unit]
        said = (
            f"Whether a {what} of {one.arm} is worth more than one of {one.base_arm}{within} is not settled"
        )
        if unit == "hours":
            said = said.replace("a hour", "an hour")
        chance = one.chances.get(1)
        if unit == "trials" and chance and chance.low is not None and chance.high is not None:
            said += (
                f": a trial of {one.arm} beats one of {one.base_arm} with a chance of "
                f"{share_text(chance.value)} (95{PERCENT} interval {share_text(chance.low)} to "
                f"{share_text(chance.high)})"
            )
        return f"{said}."
    start, units = _ONE[unit]
    said = f"{start}{' of' if unit == 'trials' else ''} {quote.better} is worth at least "
    bound = least_text(quote.at_least)
    if unit == "trials":
        said += f"{bound} trials of {quote.worse}{within} (95{PERCENT})"
        said += (
            f": to do as well as a single trial of {quote.better} does half the time, {quote.worse} needs "
            f"the best of at least {bound}"
        )
    else:
        said += f"{bound} {units} spent on {quote.worse}{within} (95{PERCENT})"
    if quote.throughout is not None and quote.throughout >= LEAST_QUOTED:
        said += (
            f"; at every budget of {quote.better} from 1 to {quote.upto} trials it is at least "
            f"{least_text(quote.throughout)}"
        )
    return f"{said}."


def exchange_text(found: Findings) -> list[str]:
    """Returns a text per cell and arm: the sentence for trials, and those for other units where settled."""
    said = []
    for one in found.exchanges:
        told = [exchange_sentence(one)]
        told += [exchange_sentence(one, unit) for unit in ("hours", "flops") if _settled(one, unit)]
        if sentence := " ".join(text for text in told if text):
            said.append(sentence)
    return said


def _settled(one: ArmExchange, unit: Unit) -> bool:
    quote = one.quote(unit)
    return quote is not None and quote.at_least >= LEAST_QUOTED


def _shown_rate(rate: Rate) -> Text:
    low = rate_text(rate.low)
    ends = f"{low} or more" if rate.high > _MOST else f"{low} to {rate_text(rate.high)}"
    return Text("more than seen" if math.isinf(rate.value) else rate_text(rate.value), ends)


def exchange_table(found: Findings) -> Table:
    """Returns the rates at powers of two, with simultaneous bands, costs, and chances of the better best."""
    base = next(iter(found.plan.sweep.arms))
    table = Table(
        "exchange",
        f"What trials are worth: the best of k trials of an arm in trials of another, per trial, with bands "
        f"that hold at every k at once; and the chance that the best of k is lower than that of k of {base}",
        ("Cell", "Arm", "In trials of", "#k", "#Worth per trial", "#per FLOP", "#per hour",
         "#Chance of the lower best"),
    )  # fmt: skip
    for one in found.exchanges:
        for way, other, said, sign in (
            (one.arm, one.base_arm, one.rate, 1),
            (one.base_arm, one.arm, one.reverse, -1),
        ):
            rates = {rate.budget: rate for rate in said.rates}
            for k in (1, 2, 4, 8, 16, 32, 64):
                chance = one.chances.get(k) if sign > 0 else None
                rate = rates.get(k)
                if rate is None and chance is None:
                    continue
                cells = [
                    Text("refused")
                    if rate is None
                    else _shown_rate(_times(rate, one.cost_ratios[unit] ** sign))
                    if unit in one.cost_ratios
                    else Text("unknown")
                    for unit in ("trials", "flops", "hours")
                ]
                shown_chance = Text("–")
                if chance is not None and chance.low is not None and chance.high is not None:
                    ends = f"{share_text(chance.low)} to {share_text(chance.high)}"
                    shown_chance = Text(share_text(chance.value), ends)
                table.add(one.cell, way, other, str(k), *cells, shown_chance)
    if any(text.main == "refused" for line in table.rows for text in line.texts):
        table.note(
            "Refused beyond the largest supported k: no band of so few trials could tell there which arm's "
            "trials are worth more."
        )
    if any(text.main == "more than seen" for line in table.rows for text in line.texts):
        table.note(
            "More than seen: no trial of the other arm reached the level, so there is only a lower bound."
        )
    if table.rows and found.plan.sweep.replicates > 1:
        table.note(f"A trial here is a setting, the mean over its {found.plan.sweep.replicates} replicates.")
    if table.rows:
        table.note(
            "Per FLOP and per hour: the same times the ratio of the mean costs of a trial, taken as known. "
            "The bounds are of the latest look, and hold for all declared looks together."
        )
    return table


def _times(rate: Rate, factor: float) -> Rate:
    return Rate(rate.budget, rate.value * factor, rate.low * factor, rate.high * factor)
