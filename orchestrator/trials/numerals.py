"""Formats numbers for text: percentages, durations, lists, and few digits."""

from collections.abc import Sequence


def percent(value: float | None) -> str:
    """Returns an error in %, with two decimals below 10 and one above. "–" for None."""
    if value is None:
        return "–"
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}"


def short(value: float) -> str:
    """Returns a number in few characters: 0.02, 1.5e-4, 2048."""
    if value != 0 and not 1e-2 <= abs(value) < 1e5:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"


def listed(numbers: Sequence[int]) -> str:
    """Returns numbers as in a sentence: 8, 16 and 32."""
    *most, last = map(str, numbers)
    return f"{', '.join(most)} and {last}" if most else last


def duration(seconds: float) -> str:
    """Returns a duration in seconds as text: 4.3 s, 45 s, 4 min 47 s, 1 h 20 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
