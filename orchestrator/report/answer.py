"""The answer of a report in two sentences, and its caveats."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from orchestrator.analysis.contrasts import Contrast, PeakContrast
from orchestrator.analysis.summary import Summary
from orchestrator.analysis.window_audit import EdgeCheck, EdgeFlag
from orchestrator.report.text import (
    PERCENT,
    SPLIT_NAMES,
    TESTS,
    error_interval,
    interval_text,
    measure_text,
    p_equals,
    share_text,
)
from orchestrator.stats.intervals import CONFIDENCE
from orchestrator.stats.measures import MEASURES, MeasureInfo
from orchestrator.sweep.config import Primary
from orchestrator.trials.numerals import percent, short
from orchestrator.trials.records import Result, by_cell_and_arm

# ------------------------------------------------------------------------------------------------- the answer


def answer(
    summaries: Sequence[Summary], compared: Sequence[Contrast], peaks: Sequence[PeakContrast] = ()
) -> tuple[str, str]:
    """Returns the answer: which arm is robust over more settings, and which has the lowest error.

    The first sentence is about the contrast declared beforehand, or about the default one in every cell.
    """
    if not any(summary.errors_pct for summary in summaries):
        reasons = sorted({s.refused["delta_edf"] for s in summaries if "delta_edf" in s.refused})
        if reasons and any(summary.best or summary.confirmed for summary in summaries):
            first = f"No verdict on robustness: {'; '.join(reasons)}."
            return first, _second_sentence(summaries, peaks)
        if reasons:
            return f"There is no answer: {'; '.join(reasons)}.", ""
        return "There is no answer yet: no trial has a result.", ""
    asked = headline(compared)
    cells = {contrast.cell for contrast in asked} or {summary.cell for summary in summaries}
    mine = [summary for summary in summaries if summary.cell in cells]
    return _first_sentence(asked, compared), _second_sentence(mine, peaks)


def headline(compared: Sequence[Contrast]) -> list[Contrast]:
    """Returns the contrasts of the answer: the one declared beforehand, or the default one in every cell."""
    asked = [contrast for contrast in compared if contrast.primary]
    return asked or [contrast for contrast in compared if contrast.measure == Primary().measure]


def _in_cell(cell: str) -> str:
    return "" if cell == "all" else f" in {cell}"


def _verb(info: MeasureInfo) -> tuple[str, str]:
    """Returns the verb phrase for a settled and for an open contrast."""
    if not info.higher_is_better:
        return "has a lower mean error than", "has the lower mean error"
    if info.common:
        return "is robust over a larger share of settings than", "is robust over a larger share of settings"
    return "is more forgiving of its settings than", "is more forgiving of its settings"


def _first_sentence(asked: Sequence[Contrast], compared: Sequence[Contrast]) -> str:
    if not asked:
        return "The sweep has one arm, so nothing is compared."
    info = MEASURES[asked[0].measure]
    verb, question = _verb(info)
    if len(asked) == 1:
        return verdict_sentence(asked[0], compared)
    parts = []
    for arm in dict.fromkeys(contrast.arm for contrast in asked):
        mine = [contrast for contrast in asked if contrast.arm == arm]
        base = mine[0].base_arm
        wins, losses, rest = (
            [contrast.cell for contrast in mine if contrast.better == better] for better in (arm, base, None)
        )
        said = [
            f"{winner} {verb} {loser} in {_listed(cells, len(mine))}"
            for winner, loser, cells in ((arm, base, wins), (base, arm, losses))
            if cells
        ]
        if rest and not said:
            said.append(f"whether {arm} or {base} {question} is not settled in any cell")
        elif rest:
            said.append(f"not settled in {_listed(rest, len(mine))}")
        parts.append(", ".join(said))
    # A sentence begins with a capital letter; the name of an arm keeps its case.
    text = re.sub("^whether ", "Whether ", "; ".join(parts))
    tests = " and ".join(sorted({TESTS[contrast.test] for contrast in asked}))
    return (
        f"{text} (by {info.means}; {tests}, Holm-adjusted, and 95{PERCENT} intervals of paired differences)."
    )


def _described(contrast: Contrast, compared: Sequence[Contrast]) -> str:
    """Returns a clause on the areas from each arm's own reference, which decide nothing; empty if none."""
    for other in compared:
        info = MEASURES[other.measure]
        alike = (other.cell, other.arm) == (contrast.cell, contrast.arm)
        if alike and not info.decides and info.within_pp is None and other.value is not None:
            return (
                f"; measured from each arm's own best, the areas are {share_text(other.value)} and "
                f"{share_text(other.base_value)} (a description, not a test)"
            )
    return ""


def _one_contrast(contrast: Contrast, verb: str, asked: str, described: str) -> str:
    numbers = _numbers(contrast, described)
    if contrast.better:
        loser = contrast.base_arm if contrast.better == contrast.arm else contrast.arm
        said = f"{contrast.better} {verb} {loser}{_in_cell(contrast.cell)}"
    else:
        said = (
            f"Whether {contrast.arm} or {contrast.base_arm} {asked}{_in_cell(contrast.cell)} is not "
            f"settled, as {contrast.because}"
        )
    return f"{said}: {numbers}." if numbers else f"{said}."


def _numbers(contrast: Contrast, described: str) -> str:
    """Returns the values of both arms and their difference, with interval and test; empty without pairs."""
    if contrast.difference is None:
        return ""
    measure = contrast.measure
    value, base_value = measure_text(contrast.value, measure), measure_text(contrast.base_value, measure)
    difference = measure_text(contrast.difference.value, measure, sign=True)
    if interval := interval_text(contrast.difference, measure, sign=True):
        difference += f" (95{PERCENT} interval {interval})"
    p_value = contrast.p_value if contrast.p_adjusted is None else contrast.p_adjusted
    if p_value is not None:
        difference += f", {TESTS[contrast.test]} {p_equals(p_value)}"
        if contrast.num_in_family > 1:
            difference += f" after Holm over {contrast.num_in_family}"
    return (
        f"{MEASURES[measure].means} {value} for {contrast.arm} against {base_value} for "
        f"{contrast.base_arm}, difference {difference}, {contrast.num_pairs} pairs{described}"
    )


def verdict_sentence(contrast: Contrast, compared: Sequence[Contrast]) -> str:
    """Returns one contrast as a sentence.

    Args:
      contrast: the contrast to describe.
      compared: all contrasts of the sweep.
    """
    return _one_contrast(contrast, *_verb(MEASURES[contrast.measure]), _described(contrast, compared))


def _listed(cells: Sequence[str], total: int) -> str:
    if total == 1:
        return cells[0]
    if len(cells) == total:
        return f"all {total} cells"
    if len(cells) > 6:
        return f"{len(cells)} of {total} cells"
    return f"{len(cells)} of {total} cells ({', '.join(cells)})"


def _second_sentence(summaries: Sequence[Summary], peaks: Sequence[PeakContrast]) -> str:
    by_cell: dict[str, list[Summary]] = {}
    for summary in summaries:
        if summary.best is not None or summary.confirmed is not None:
            by_cell.setdefault(summary.cell, []).append(summary)
    if not by_cell:
        return "No trial has finished, so there is no lowest error."
    confirmed = [cell for cell, found in by_cell.items() if all(s.confirmed for s in found)]
    if len(by_cell) == 1:
        ((cell, found),) = by_cell.items()
        return _confirmed_peak(found, peaks) if confirmed else _unconfirmed_peak(cell, found)
    open_cells = {cell: found for cell, found in by_cell.items() if cell not in confirmed}
    said = []
    if confirmed:
        said.append(_confirmed_cells(confirmed, peaks))
    if open_cells:
        said.append(_unconfirmed_cells(open_cells, bool(confirmed)))
    return "; ".join(said) + "."


def _confirmed_peak(found: Sequence[Summary], peaks: Sequence[PeakContrast]) -> str:
    pairs = [(summary, confirmed) for summary in found if (confirmed := summary.confirmed) is not None]
    pairs.sort(key=lambda pair: pair[1].val.value)
    texts = []
    for summary, confirmed in pairs:
        interval = error_interval(confirmed.val)
        parts = [f"{interval}" if interval else "", f"{confirmed.num_seeds} fresh seeds"]
        if confirmed.test is not None:
            test = error_interval(confirmed.test)
            on_final = f"{percent(confirmed.test.value)}{PERCENT} on the final split"
            parts.append(on_final + (f", {test}" if test else ""))
        inside = "; ".join(part for part in parts if part)
        texts.append(f"{summary.arm} {percent(confirmed.val.value)}{PERCENT} ({inside})")
    cell = found[0].cell
    mine = [peak for peak in peaks if peak.cell == cell]
    # The final split if it was measured, because no choice was made on it.
    split = "test" if any(peak.split == "test" for peak in mine) else "val"
    compared = [_peak_contrast(peak) for peak in mine if peak.split == split]
    tail = f"; on the {SPLIT_NAMES[split]} split {', '.join(compared)}" if compared else ""
    return f"Lowest error on the selection split{_in_cell(cell)}, confirmed: {', '.join(texts)}{tail}."


def told_apart(peak: PeakContrast) -> str | None:
    """Returns the arm with the lower confirmed error. None if that is not settled."""
    p_value = peak.p_value if peak.p_adjusted is None else peak.p_adjusted
    if p_value is None or p_value >= 1 - CONFIDENCE:
        return None
    return peak.arm if peak.difference.value < 0 else peak.base_arm


def _peak_contrast(peak: PeakContrast) -> str:
    interval = interval_text(peak.difference, sign=True)
    p_value = peak.p_value if peak.p_adjusted is None else peak.p_adjusted
    parts = [
        f"95{PERCENT} interval {interval}" if interval else "",
        "" if p_value is None else p_equals(p_value),
    ]
    inside = ", ".join(part for part in parts if part)
    number = f"{share_text(peak.difference.value, sign=True)} pp{f' ({inside})' if inside else ''}"
    verdict = "" if told_apart(peak) else ", not settled"
    return f"{peak.arm} minus {peak.base_arm} is {number}{verdict}"


def _confirmed_cells(cells: Sequence[str], peaks: Sequence[PeakContrast]) -> str:
    counts: Counter[str] = Counter()
    for cell in cells:
        mine = [peak for peak in peaks if peak.cell == cell]
        split = "test" if any(peak.split == "test" for peak in mine) else "val"
        for peak in mine:
            if peak.split == split:
                counts[told_apart(peak) or "neither (not settled)"] += 1
    texts = ", ".join(f"{arm} in {count}" for arm, count in counts.most_common())
    if not texts:
        return f"In {len(cells)} cells the lowest error is confirmed"
    return f"Of {len(cells)} confirmed cells, the confirmed error is lower with {texts}"


def _unconfirmed_peak(cell: str, summaries: Sequence[Summary]) -> str:
    found = sorted(
        ((summary, best) for summary in summaries if (best := summary.best) is not None),
        key=lambda pair: pair[1].val_error_pct,
    )
    if not found:
        return "No trial has finished, so there is no lowest error."
    texts = []
    for summary, best in found:
        test = best.test_error_pct
        after = "" if test is None else f" ({percent(test)}{PERCENT} on the final split)"
        texts.append(f"{summary.arm} {percent(best.val_error_pct)}{PERCENT}{after}")
    why = [f"{s.arm}: {s.refused['confirmed']}" for s in summaries if "confirmed" in s.refused]
    reasons = f" ({'; '.join(why)})" if why else ""
    return (
        f"Lowest error on the selection split{_in_cell(cell)}: {', '.join(texts)}; each is "
        f"one run, the best of its arm, unconfirmed{reasons}."
    )


def _unconfirmed_cells(by_cell: Mapping[str, Sequence[Summary]], others: bool) -> str:
    counts: Counter[str] = Counter()
    for summaries in by_cell.values():
        found = {s.arm: s.best.val_error_pct for s in summaries if s.best is not None}
        if found:
            lowest = min(found.values())
            counts["/".join(arm for arm, error in found.items() if error == lowest)] += 1
    which = f"the {len(by_cell)} cells not confirmed" if others else f"{len(by_cell)} cells"
    if len(counts) == 1:
        (arms,) = counts
        start = "in" if others else "In all"
        return (
            f"{start} {which} the lowest error on the selection split is seen with {arms}; each "
            "is one run, unconfirmed"
        )
    texts = [f"{arms} in {count}" for arms, count in counts.most_common()]
    return (
        f"{'of' if others else 'Of'} {which}, the lowest error on the selection split is seen with "
        f"{', '.join(texts)}; each is one run, unconfirmed"
    )


# ---------------------------------------------------------------------------------------------------- caveats


#: Most caveats that are printed; the others are only counted.
_MAX_CAVEATS = 6


def caveats(found: Sequence[EdgeCheck], cells: Sequence[str]) -> list[str]:
    """Returns the caveats of the answer: arms of these cells whose best is at an edge of the window."""
    flags = [flag for check in found for flag in check.flags]
    mine = [flag for flag in flags if flag.cell in cells]
    texts = [_edge_text(flag) for flag in mine[:_MAX_CAVEATS]]
    if rest := len(flags) - len(texts):
        texts.append(f"{rest} more such finding{'s' if rest > 1 else ''} under Window audit.")
    return texts


def stage_caveats(results: Iterable[Result]) -> list[str]:
    """Returns caveats about first stages: shared ones, and trials that never started."""
    draws = {result.trial.id: result for result in results if result.trial.role == "sweep"}.values()
    staged = [result for result in draws if result.trial.after]
    texts = []
    if len({result.trial.after for result in staged}) < len(staged):
        texts.append(
            "Several trials start from the same first stage. The intervals here do not include the noise of "
            "that stage."
        )
    counted: dict[tuple[str, str], int] = {}
    for result in staged:
        if result.held_up and result.error_pct is not None:
            key = result.trial.arm, result.trial.cell_name
            counted[key] = counted.get(key, 0) + 1
    texts += [
        f"{number} of the trials of {arm}{_in_cell(cell)} never started: they count as diverged, because "
        "their first stage diverged."
        for (arm, cell), number in counted.items()
    ]
    return texts


def device_caveats(results: Iterable[Result]) -> list[str]:
    """Returns a caveat for each cell whose arms were compared over more than one device or precision."""
    cells: dict[str, dict[str, Counter[str]]] = {}
    for (cell, arm), members in by_cell_and_arm(results).items():
        counts = Counter(
            # A trial that moved is of neither device.
            " then ".join(dict.fromkeys(str(use) for use in result.record.computed_on))
            for result in members
            if result.record.devices
        )
        cells.setdefault(cell, {})[arm] = counts
    texts = []
    for cell, arms in cells.items():
        if len(arms) < 2 or len({use for counts in arms.values() for use in counts}) < 2:
            continue
        told = "; ".join(
            f"{arm}: " + ", ".join(f"{count} on {use}" for use, count in sorted(counts.items()))
            for arm, counts in arms.items()
            if counts
        )
        texts.append(
            f"The trials that are compared{_in_cell(cell)} ran on different devices or precisions, so a "
            f"difference of arms may be one of devices. {told}."
        )
    if rest := len(texts) - _MAX_CAVEATS:
        texts[_MAX_CAVEATS:] = [f"The same holds in {rest} more cells."] if rest > 0 else []
    return texts


def _edge_text(flag: EdgeFlag) -> str:
    strip = flag.extension
    lies = "is" if "surrogate" in flag.signs else f"may be ({flag.support:.0%} of refits agree)"
    falls = ", and its error still falls there" if flag.fall_pp > 0 else ""
    return (
        f"The fitted optimum of {flag.arm}{_in_cell(flag.cell)} {lies} at the {flag.side} end of "
        f"{flag.parameter} ({short(flag.value)}){falls}: a better setting may be outside the window. "
        f"{strip.num_points} more points from {short(strip.low)} to {short(strip.high)} "
        "would settle it."
    )
