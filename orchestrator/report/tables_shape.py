"""Words and rows for what `analyse` finds in errors over shapes and sizes."""

from collections.abc import Sequence
from typing import Any

from orchestrator.analysis.lr_shift import ArmShift
from orchestrator.analysis.scale import ArmLadder
from orchestrator.analysis.shape import MOST_MISS, ArmShape, Growth, Shapes
from orchestrator.stats.lr_shift import MOST_WIDE, Shift
from orchestrator.stats.shape_law import MOST_RATIO, Profile
from orchestrator.trials.numerals import short


def terminal_rows(found: Shapes) -> list[dict[str, Any]]:
    """Returns a row per arm with a law and dimension."""
    return [
        {
            "arm": one.arm,
            "runs": one.runs,
            "dimension": name,
            "exponent": _text(growth.exponent, growth.exponent.is_told, ".2f"),
            f"best at {short(1e9 * found.reference)}": _text(growth.best, _tells_best(one, growth), ".0f"),
        }
        for one in found.arms
        for name, growth in one.growth.items()
    ]


def _tells_best(one: ArmShape, growth: Growth) -> bool:
    return one.is_believed and growth.is_told


def _text(found: Profile, is_told: bool, digits: str) -> str:
    low, high = ("?" if end is None else format(end, digits) for end in (found.low, found.high))
    interval = f"{low} to {high}"
    return f"{found.value:{digits}} ({interval})" if is_told else f"not told ({interval})"


def told_lines(found: Shapes) -> list[str]:
    """Returns sentences: what there is no law for, how well the laws hold, and whether arms grow alike."""
    lines = []
    for one in found.arms:
        if one.because:
            lines.append(f"{one.arm}: no law: {one.because}")
            continue
        text = f"{one.arm}: the law misses its own runs by {one.residual_pct:.2g} %"
        if one.miss_pct is not None:
            text += f", and the largest compute by {one.miss_pct:.2g} % if fitted to all other runs"
        if not one.is_believed:
            text += f": above {100 * MOST_MISS:.0f} %, so that no best size is told"
        lines.append(text)
    laws = [one for one in found.arms if not one.because]
    if any(not growth.exponent.is_told for one in laws for growth in one.growth.values()):
        lines.append(
            f"not told: the ends of the 95 % interval differ by more than a factor of {MOST_RATIO:g}; longer "
            "and shorter training, and more seeds, narrow it"
        )
    if found.p_shared is not None:
        verb = "do not grow alike" if found.p_shared < 0.05 else "may grow alike"
        lines.append(f"{', '.join(one.arm for one in laws)} {verb} (nested F test, p = {found.p_shared:.2g})")
    if laws:
        lines.append(
            f"compute is in multiply-adds of forward passes over all training images; the largest run has "
            f"{short(1e9 * found.largest)}"
        )
    return lines


def shift_rows(found: Sequence[ArmShift], dimension: str) -> list[dict[str, Any]]:
    """Returns a row per arm: its best learning rate at each size, and the shift."""
    sizes = sorted({size for one in found for size in one.sizes})
    return [
        {
            "arm": one.arm,
            **{
                f"best lr at {dimension} {size:g}": short(dict(zip(one.sizes, one.best, strict=True))[size])
                if size in one.sizes
                else "–"
                for size in sizes
            },
            "octaves per doubling": _shift_text(one.shift),
        }
        for one in found
    ]


def _shift_text(shift: Shift | None) -> str:
    if shift is None:
        return "–"
    low, high = ("?" if end is None else f"{end:+.2f}" for end in (shift.low, shift.high))
    value = f"{shift.value:+.2f}" if shift.is_told else "not told"
    return f"{value} ({low} to {high})"


def shift_lines(found: Sequence[ArmShift], dimension: str) -> list[str]:
    """Returns sentences: whether the best lr carries over, by arm, and why not if nobody knows."""
    lines = []
    for one in found:
        shift = one.shift
        if shift is None:
            lines.append(f"{one.arm}: no shift: {one.because}")
        elif not shift.is_told:
            lines.append(f"{one.arm}: not settled: the interval is wider than {MOST_WIDE:g} octave")
        elif shift.high is not None and shift.high < 0:
            lines.append(f"{one.arm}: the best lr falls as the {dimension} grows")
        elif shift.low is not None and shift.low > 0:
            lines.append(f"{one.arm}: the best lr rises with the {dimension}")
        else:
            lines.append(f"{one.arm}: the best lr may be the same at every {dimension}")
    lines.append(
        "octaves per doubling: 0 carries over, -1 halves the best lr when the "
        f"{dimension} doubles; 95 % intervals by a parabola of log error in log lr, shared by all sizes"
    )
    return lines


def ladder_rows(found: Sequence[ArmLadder]) -> list[dict[str, Any]]:
    """Returns a row per arm and size: its difference to the first arm."""
    return [
        {
            "arm": one.arm,
            "cells": ", ".join(rung.cells),
            "G multiply-adds": short(rung.flops_g),
            f"error minus {one.base_arm}'s (pp)": f"{rung.difference_pp:+.2f}",
            "points": rung.pairs,
        }
        for one in found
        for rung in one.rungs
    ]


def ladder_lines(found: Sequence[ArmLadder]) -> list[str]:
    """Returns sentences: how each difference changes as networks grow, and what to expect next."""
    lines = []
    for one in found:
        if (line := one.found) is None:
            lines.append(f"{one.arm}: no next size: {one.because}")
            continue
        slope, half = line.per_doubling, line.per_doubling_half
        changes = f"changes by {slope:+.2f} pp per doubling ({slope - half:+.2f} to {slope + half:+.2f})"
        expected = f"{line.expected:+.2f} pp ({line.low:+.2f} to {line.high:+.2f})"
        sign = "its sign is not settled" if line.low < 0 < line.high else "the gap is expected to stay"
        lines.append(
            f"{one.arm} minus {one.base_arm}: {changes}; at {short(line.next_size)} G multiply-adds "
            f"{expected} is to be expected: {sign}"
        )
    return lines
