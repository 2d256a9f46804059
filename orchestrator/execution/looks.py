"""Extends a sweep look by look until its question is settled."""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

from orchestrator.analysis.contrasts import looks_of
from orchestrator.analysis.until import take_look
from orchestrator.cost.actual import saved
from orchestrator.store.folder import Folder, confirmed_plan
from orchestrator.store.journal import Writer
from orchestrator.sweep.config import Sweep
from orchestrator.trials.events import Event, LookTaken, UntilSettled
from orchestrator.trials.gang import Node
from orchestrator.trials.plan import make_plan
from orchestrator.trials.rounds import looks_taken
from orchestrator.trials.trial import Plan


def extended(sweep: Sweep, points: int) -> Sweep:
    """Returns a sweep with another number of points."""
    return sweep.model_copy(update={"design": sweep.design.model_copy(update={"points": points})})


def looks_in(sweep: Sweep, known: Folder | None) -> tuple[int, ...]:
    """Returns the numbers of points of the looks of a sweep in its folder, if there is one."""
    declared = known.declared if known else None
    return looks_of(sweep, declared).points


def note_until(folder: Path) -> None:
    """Records that a run extends the sweep by itself. The caller holds the folder."""
    _append(folder, UntilSettled(made=time.time()))


def next_look(known: Folder, nodes: Sequence[Node]) -> tuple[LookTaken | None, Plan | None]:
    """Takes the look at the points that a folder has, and records it once. The caller holds the folder.

    Args:
      known: the folder, after the trials of its plan.
      nodes: the machines, by which the cost of trials is counted.

    Returns:
      What was seen, or None while trials have not ended; and the plan up to the next look, or None if the
      sweep ends here.
    """
    plan = known.plan
    look = take_look(plan, known.records, known.declared)
    if look is None:
        return None, None
    taken = LookTaken(
        made=time.time(),
        points=look.points,
        last=look.last,
        goes_on=look.next_points is not None,
        detail=look.detail,
    )
    longer = None
    if look.next_points is not None:
        longer = _with_points(known, look.next_points)
    elif look.last > look.points:
        found = saved(plan, _with_points(known, look.last), known.records, nodes)
        taken = dataclasses.replace(
            taken, trials_saved=found.trials, hours_saved=found.hours, unit=found.unit
        )
    if not any(dataclasses.replace(taken, made=old.made) == old for old in looks_taken(known.events)):
        _append(known.path, taken)
    return taken, longer


def _with_points(known: Folder, points: int) -> Plan:
    sweep = extended(known.plan.sweep, points)
    return confirmed_plan(known.path, make_plan(sweep, known.plan.infos, known.plan.suggestions))


def _append(folder: Path, event: Event) -> None:
    writer = Writer(folder)
    writer.append([event])
    writer.close()
