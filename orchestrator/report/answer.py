"""The answer of a report in three parts, and its caveats."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from orchestrator.analysis.contrasts import Contrast, PeakContrast, headline
from orchestrator.analysis.findings import Findings
from orchestrator.analysis.gaps import GapContrast, claimed
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
from orchestrator.stats.measures import MEASURES, Measure
from orchestrator.sweep.config import ONE_CELL
from orchestrator.trials.numerals import percent, short
from orchestrator.trials.records import Result, by_cell_and_arm

# ------------------------------------------------------------------------------------------------- the answer


#: Most differences of gaps that the answer names; the others are only counted.
_MAX_GAPS = 3


def answer_of(found: Findings) -> tuple[str, str, str]:
    """Returns the answer in three parts: two that a terminal shows, and a note. A part may be empty.

    Where the sweep's file has claims about gaps, its question is about them. Then the first part tells of
    the gaps, the second of robustness, and the note of the lowest errors and of how it was decided.
    """
    first, second, how = answer(found.summaries, found.contrasts, found.peaks)
    asked = asked_gaps(found)
    if not asked:
        return first, second, how
    said = [gap_sentence(contrast) for contrast in asked[:_MAX_GAPS]]
    if len(asked) > _MAX_GAPS:
        said.append(f"{len(asked) - _MAX_GAPS} more under Gaps.")
    return " ".join(said), first, f"{second} {how}".strip()


def asked_gaps(found: Findings) -> list[GapContrast]:
    """Returns the differences of gaps that the sweep's file has claims about."""
    paper = found.plan.sweep.paper
    return claimed(found.gap_contrasts, paper.claims) if paper else []


def gap_sentence(contrast: GapContrast) -> str:
    """Returns which of two arms has the smaller gap, with both gaps and their difference."""
    pair, base, arm = contrast.pair, contrast.base_arm, contrast.arm
    changed = (
        f"under {pair.level} in place of {pair.base_level}"
        if pair.kind == "optimizer"
        else f"with {pair.level} epochs in place of {pair.base_level}"
    )
    sizes = {base: contrast.base_gap_pp, arm: contrast.gap_pp}
    first, second = (arm, base) if contrast.better == arm else (base, arm)
    if contrast.better is not None:
        claim = f"{first} loses less than {second} {changed}"
    else:
        claim = f"Which of {first} and {second} loses less {changed} is not settled"
    lost = (
        f"{share_text(sizes[first], sign=True)} against {share_text(sizes[second], sign=True)} points of "
        f"error at best of {contrast.budget}"
    )
    ends = interval_text(contrast.difference_pp, sign=True)
    interval = f"interval {ends}" if ends else f"no interval, as {contrast.difference_pp.because}"
    return f"{claim}: {lost} (difference {share_text(contrast.difference_pp.value, sign=True)}, {interval})."


def answer(
    summaries: Sequence[Summary], compared: Sequence[Contrast], peaks: Sequence[PeakContrast] = ()
) -> tuple[str, str, str]:
    """Returns the answer in three sentences; a sentence is empty if there is nothing to say.

    The first says which arm works at more settings: by the contrast declared beforehand, or by the default
    one in every cell. The second says which has the lowest error. The third says how the first was decided.
    """
    if not any(summary.errors_pct for summary in summaries):
        reasons = sorted({s.refused["delta_edf"] for s in summaries if "delta_edf" in s.refused})
        if reasons and any(summary.best or summary.confirmed for summary in summaries):
            first = f"No verdict on robustness: {'; '.join(reasons)}."
            return first, _second_sentence(summaries, peaks), ""
        if reasons:
            return f"There is no answer: {'; '.join(reasons)}.", "", ""
        return "There is no answer yet: no trial has a result.", "", ""
    asked = headline(compared)
    if not asked:
        return "The sweep has one arm, so nothing is compared.", _second_sentence(summaries, peaks), ""
    cells = {contrast.cell for contrast in asked}
    mine = [summary for summary in summaries if summary.cell in cells]
    return " ".join(_claims(asked, compared)), _second_sentence(mine, peaks), _how(asked)


def _claims(asked: Sequence[Contrast], compared: Sequence[Contrast]) -> list[str]:
    """Returns the verdicts by arm, and in one sentence those of several arms of which nothing is settled."""
    arms = list(dict.fromkeys(contrast.arm for contrast in asked))
    open_arms = [arm for arm in arms if all(c.decision == "open" for c in asked if c.arm == arm)]
    if len(open_arms) < 2:
        return [_claim(asked, compared, arm) for arm in arms]
    settled = [_claim(asked, compared, arm) for arm in arms if arm not in open_arms]
    return [
        *settled,
        _open_claim([c for c in asked if c.arm in open_arms], compared, len(arms) > len(open_arms)),
    ]


def _open_claim(asked: Sequence[Contrast], compared: Sequence[Contrast], has_others: bool) -> str:
    """Returns one sentence about several arms of which nothing is settled."""
    base = asked[0].base_arm
    shown, rows = _shown(asked, compared)
    by_error = shown == "error"
    cells = list(dict.fromkeys(c.cell for c in asked))
    arms = list(dict.fromkeys(c.arm for c in asked))
    whose = f" for {', '.join(arms)}" if has_others else ""
    where = _in_cell(cells[0]) if len(cells) == 1 else " in any cell"
    said = f"Nothing is settled against {base}{whose}{where}"
    totals = {arm: sum(c.num_pairs for c in rows if c.arm == arm) for arm in arms}
    if not all(totals.values()):
        return f"{said}: some arms have no setting with a result in both."
    sums = {arm: sum((c.value or 0) * c.num_pairs for c in rows if c.arm == arm) for arm in arms}
    # The first arm has the most pairs with the arm that has most of them.
    most = max(arms, key=lambda arm: totals[arm])
    totals[base] = totals[most]
    sums[base] = sum((c.base_value or 0) * c.num_pairs for c in rows if c.arm == most)
    order = sorted(sums, key=lambda arm: sums[arm] / totals[arm], reverse=not by_error)
    if by_error:
        told = ", ".join(f"{arm} {percent(sums[arm] / totals[arm])}{PERCENT}" for arm in order)
        said += f": mean errors are {told}"
    else:
        told = ", ".join(f"{arm} {sums[arm]:.0f} of {totals[arm]}" for arm in order)
        within = MEASURES[shown].within_pp
        said += f": settings within {within:g} points of the best error are {told}"
    following = {c.next_look for c in asked if c.look is not None}
    if len(following) == 1 and (next_look := following.pop()) is not None:
        said += f"; the next verdict is at {next_look} points"
    return f"{said}."


def verdict_sentence(contrast: Contrast, compared: Sequence[Contrast]) -> str:
    """Returns one contrast as a sentence, with how it was decided.

    Args:
      contrast: the contrast to describe.
      compared: all contrasts of the sweep.
    """
    return f"{_claim([contrast], compared, contrast.arm)} {_how([contrast])}".rstrip()


def _in_cell(cell: str) -> str:
    return "" if cell == ONE_CELL else f" in {cell}"


def _claim(asked: Sequence[Contrast], compared: Sequence[Contrast], arm: str) -> str:
    """Returns the verdict on one arm against the first one, over the cells that were asked about."""
    mine = [contrast for contrast in asked if contrast.arm == arm]
    base, info = mine[0].base_arm, MEASURES[mine[0].measure]
    alone = len({contrast.arm for contrast in asked}) == 1
    more = "is the more robust" if info.higher_is_better else "has the lower mean error"
    than = "is more robust than" if info.higher_is_better else "has a lower mean error than"
    cells: dict[tuple[str, str | None], list[str]] = {}
    for contrast in mine:
        cells.setdefault((contrast.decision, contrast.better), []).append(contrast.cell)

    def where(found: list[str]) -> str:
        return _in_cell(found[0]) if len(mine) == 1 else f" in {_listed(found, len(mine))}"

    # Of more than two arms, a winner is only better than the first one.
    parts = [
        f"{winner} {more if alone else f'{than} {loser}'}{where(found)}"
        for winner, loser in ((arm, base), (base, arm))
        if (found := cells.get(("better", winner)))
    ]
    if found := cells.get(("alike", None)):
        parts.append(f"{base} and {arm} are alike{where(found)}")
    if (found := cells.get(("open", None))) and parts:
        parts.append(f"not settled{where(found)}")
    elif found:
        nowhere = where(found) if len(mine) == 1 else " in any cell"
        parts.append(f"Which of {base} and {arm} {more} is not settled{nowhere}")
    return f"{'; '.join(parts)}: {_seen(mine, compared)}{_open_end(mine)}."


def _shown(asked: Sequence[Contrast], compared: Sequence[Contrast]) -> tuple[Measure, list[Contrast]]:
    """Returns the measure in which people are told of contrasts, and these contrasts by it."""
    measure: Measure = "error" if asked[0].measure == "error" else "within_common_bar"
    wanted = {(c.cell, c.arm) for c in asked}
    return measure, [
        c for c in compared if c.measure == measure and (c.cell, c.arm) in wanted and c.num_pairs
    ]


def _seen(mine: Sequence[Contrast], compared: Sequence[Contrast]) -> str:
    """Returns what was seen of both arms, in settings out of settings, or in percent of error.

    The arm that the verdict favours is named first, else the one that did better.
    """
    shown, rows = _shown(mine, compared)
    by_error = shown == "error"
    if not rows:
        return "no setting has a result in both arms"
    favoured = {c.better for c in mine} - {None}
    total = sum(c.num_pairs for c in rows)
    sums = {
        mine[0].arm: sum((c.value or 0) * c.num_pairs for c in rows),
        mine[0].base_arm: sum((c.base_value or 0) * c.num_pairs for c in rows),
    }
    first, second = sorted(sums, key=lambda arm: (favoured != {arm}, sums[arm] if by_error else -sums[arm]))
    settings = f"{total} settings" if total > 1 else "1 setting"
    if by_error:
        means = {arm: f"{percent(value / total)}{PERCENT}" for arm, value in sums.items()}
        return f"{first} {means[first]}, {second} {means[second]} on average over {settings}"
    nearer = "by smaller distances; " if favoured == {first} and sums[first] <= sums[second] else ""
    return (
        f"{nearer}{first} comes within {MEASURES[shown].within_pp:g} points of the best error at "
        f"{sums[first]:.0f} of {settings}, {second} at {sums[second]:.0f}"
    )


def _open_end(mine: Sequence[Contrast]) -> str:
    """Returns why one contrast is open, and when its next verdict is; empty for several."""
    if len(mine) > 1 or mine[0].decision != "open":
        return ""
    (contrast,) = mine
    said = f" ({contrast.because})"
    if contrast.look is not None and contrast.next_look is not None:
        said += f"; the next verdict is at {contrast.next_look} points"
    return said


def _how(asked: Sequence[Contrast]) -> str:
    """Returns how the verdicts were decided: measure, test and its interval."""
    known = [contrast for contrast in asked if contrast.look is not None and contrast.shift is not None]
    if not known:
        return ""
    info = MEASURES[known[0].measure]
    declared = "declared beforehand" if known[0].primary else "not declared beforehand"
    how = f"Decided by {info.symbol} ({info.means}), {declared}"
    if len(known) > 1:
        tests = " and ".join(sorted({TESTS[contrast.test] for contrast in known}))
        return f"{how}: {tests} tests, adjusted by Holm over {known[0].num_in_family}."
    return f"{how}: {_numbers(known[0])}."


def _numbers(contrast: Contrast) -> str:
    """Returns the values of both arms, the difference of the deciding test with its interval, and p."""
    measure, shift, within = contrast.measure, contrast.shift, contrast.within
    values = (
        f"{measure_text(contrast.value, measure)} for {contrast.arm} against "
        f"{measure_text(contrast.base_value, measure)} for {contrast.base_arm}"
    )
    if contrast.decision == "alike" and within is not None:
        margin = measure_text(contrast.margin, measure, sign=True).lstrip("+")
        mean = measure_text(within.value, measure, sign=True)
        return (
            f"{values}; the mean differs by {mean} ({interval_text(within, measure, sign=True)}), within the "
            f"margin of {margin}, by two one-sided tests at {contrast.look} points"
        )
    if shift is None:
        return values
    kind = "net share of the settings that differ" if contrast.test == "mcnemar" else "typical difference"
    number = measure_text(shift.value, measure, sign=True)
    if interval := interval_text(shift, measure, sign=True):
        number += f" ({interval})"
    p_value = contrast.p_value if contrast.p_adjusted is None else contrast.p_adjusted
    said = "" if p_value is None else f", {TESTS[contrast.test]} {p_equals(p_value)}"
    if contrast.num_in_family > 1:
        said += f" after Holm over {contrast.num_in_family}"
    return (
        f"{values}; {kind} {number}{said}, {contrast.num_differing} differing pairs of {contrast.look} points"
    )


def _listed(cells: Sequence[str], total: int) -> str:
    if total == 1:
        return cells[0]
    if len(cells) == total:
        return _all(total)
    if len(cells) > 6:
        return f"{len(cells)} of {total} cells"
    return f"{len(cells)} of {total} cells ({', '.join(cells)})"


def _all(total: int) -> str:
    return "both cells" if total == 2 else f"all {total} cells"


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
    winners = {told_apart(peak) for peak in mine if peak.split == split}
    best = pairs[0][0].arm
    if len(pairs) == 2 and winners == {best}:
        return f"{best} has the lower error{_in_cell(cell)}, confirmed: {', '.join(texts)}{tail}."
    return f"Lowest error{_in_cell(cell)}, confirmed: {', '.join(texts)}{tail}."


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
    if len(texts) == 1:
        return f"Lowest error{_in_cell(cell)}: {texts[0]}; one run, unconfirmed{reasons}."
    return f"Lowest error{_in_cell(cell)}: {', '.join(texts)}; each is one run, unconfirmed{reasons}."


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
        where = f"in {which}" if others else f"In {_all(len(by_cell))}"
        return (
            f"{where} the lowest error on the selection split is seen with {arms}; each "
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
        texts.append(f"{rest} more such finding{'s' if rest > 1 else ''} under Limits.")
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
