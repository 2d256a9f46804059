"""Runs that extend a sweep by themselves, look by look: what the journal says of them."""

from collections.abc import Iterable, Sequence

from orchestrator.trials.events import Event, LookTaken, SessionBegan, UntilSettled


def goes_until_settled(events: Sequence[Event]) -> bool:
    """Returns whether the last run extends the sweep by itself. It says so before its session begins."""
    seen = 0
    for event in reversed(events):
        if isinstance(event, UntilSettled):
            return True
        seen += isinstance(event, SessionBegan)
        if seen == 2:
            break
    return False


def looks_taken(events: Iterable[Event]) -> tuple[LookTaken, ...]:
    """Returns the looks by their numbers of points; the later one of two with the same number."""
    found = {event.points: event for event in events if isinstance(event, LookTaken)}
    return tuple(found[points] for points in sorted(found))


def look_lines(looks: Sequence[LookTaken]) -> list[str]:
    """Returns what was seen at each look, and what the last one has saved, one line each."""
    lines = [f"look at {look.points} of at most {look.last} points: {look.detail}" for look in looks]
    if looks and not looks[-1].goes_on:
        lines.append(end_line(looks[-1]))
    return lines


def end_line(look: LookTaken) -> str:
    """Returns where a sweep has stopped, and what that saves."""
    stopped = f"stopped at {look.points} of at most {look.last} points"
    if not look.trials_saved:
        return stopped
    trials = "1 trial" if look.trials_saved == 1 else f"{look.trials_saved} trials"
    hours = f", about {look.hours_saved:.2g} {look.unit}" if look.hours_saved else ""
    return f"{stopped}: {trials}{hours} not needed"
