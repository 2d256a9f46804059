"""The declaration of a sweep before its first result, and the changes after it.

A verdict is worth what it says only if its contrast, its looks and what counts as an error were chosen before
the results were known. The journal records them when a session begins, and again when a later session has
others. The order of the journal says how many results there were by then.
"""

import dataclasses
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.stats.schedule import look_points
from orchestrator.sweep.config import Sweep, cell_name
from orchestrator.trials.events import AttemptEnded, DeclarationMade, EpochDone, Event
from trainables.presets import leaves

Tree = dict[str, Any]

#: Longest text of a value in the sentence of a change.
_MAX_CHARACTERS = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class Declaration:
    """The comparison that a sweep file asks for, as plain values. Nothing in it depends on where files lie.

    Attributes:
      primary: measure, cell and margin of the primary contrast. None without one.
      arms: the settings of each arm by their paths. The first arm is the one that others are compared with.
      cells: the settings of each level, by factor and level.
      vary: the window of each drawn parameter.
      where: the constraints.
      design: its kind, its seed, and its scrambles or levels.
      points: points per arm and cell.
      max_points: the most points, as in the file. None if it names none.
      looks: numbers of points at which verdicts are taken. Empty for a search, which has no verdicts.
      error: which epoch's error counts.
      replicates: runs of every point.
    """

    primary: Tree | None
    arms: dict[str, Tree]
    cells: dict[str, dict[str, Tree]]
    vary: Tree
    where: list[str]
    design: Tree
    points: int
    max_points: int | None
    looks: list[int]
    error: str
    replicates: int

    @classmethod
    def of(cls, sweep: Sweep) -> "Declaration":
        """Returns the declaration of a sweep."""
        design = sweep.design
        points = design.num_points(sweep.levels())
        max_points: int | None = getattr(design, "max_points", None)
        extendable = getattr(design, "extendable", False)
        drawn = design.model_dump(mode="json", include={"kind", "seed", "scrambles", "levels"})
        looks = list(look_points(points, max_points)) if extendable else [points]
        return cls(
            primary=sweep.primary.model_dump(mode="json") if sweep.primary else None,
            arms={name: _settings(settings) for name, settings in sweep.arms.items()},
            cells={
                factor: {level: _settings(settings) for level, settings in levels.items()}
                for factor, levels in sweep.cells.items()
            },
            vary={path: _plain(window.plain()) for path, window in sweep.vary.items()},
            where=list(sweep.where),
            design=drawn,
            points=points,
            max_points=max_points,
            looks=[] if sweep.search is not None else looks,
            error=sweep.error,
            replicates=sweep.replicates,
        )

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> "Declaration":
        """Returns the declaration of an event. Keys of later versions are ignored.

        Raises:
          KeyError: a key is missing.
        """
        return cls(**{field.name: tree[field.name] for field in dataclasses.fields(cls)})

    def to_json(self) -> Tree:
        """Returns the declaration as plain values, for an event."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def cell_names(self) -> list[str]:
        """Returns the names of the cells, as `Sweep.cell_names` does."""
        factors = [[(factor, level) for level in levels] for factor, levels in self.cells.items()]
        return [cell_name(tuple(cell)) for cell in itertools.product(*factors)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One thing that was declared otherwise after results were known.

    Attributes:
      key: of the sweep file.
      what: what it was and what it is now.
      results: number of trials of which a result was known by then.
      made: time of the session that made it, in seconds since 1970. None if no session recorded it.
    """

    key: str
    what: str
    results: int
    made: float | None = None

    @property
    def sentence(self) -> str:
        """The change as text, with the number of results before it."""
        by = "" if self.made is not None else ", which no session recorded"
        return f"changed after {self.results} result{'s' * (self.results != 1)}{by}: {self.what}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """The declaration of a sweep with its changes.

    Attributes:
      declaration: as it held before the first result; of a folder that recorded none by then, the first one.
      now: the declaration of the sweep as it is.
      in_time: whether `declaration` was recorded before the first result.
      changes: after results were known, in their order.
    """

    declaration: Declaration
    now: Declaration
    in_time: bool
    changes: tuple[Change, ...]

    @property
    def looks(self) -> tuple[int, ...]:
        """The numbers of points at which verdicts are taken. Later changes do not move them."""
        return tuple(self.declaration.looks)

    @property
    def primary_was_declared(self) -> bool:
        """True if the primary contrast is the one that was declared, with all that decides what it says.

        Points, looks, and arms and cells that were added do not count: those contrasts are the same as ever.
        A change that was taken back counts for nothing, because a declared contrast was still declared.
        """
        found = differences(self.declaration, self.now)
        return self.now.primary is not None and all(key in _HARMLESS for key, _ in found)

    def covers(self, cell: str, arm: str) -> bool:
        """Returns whether a cell and an arm were declared, rather than added later."""
        return arm in self.declaration.arms and cell in self.declaration.cell_names()


#: Keys of differences that leave the declared contrasts as they are.
_HARMLESS = {"design.points", "design.max_points", "design.chosen_for", "arms added", "cells added"}


def num_results(events: Iterable[Event]) -> int:
    """Returns the number of trials of which an epoch or the end is known, whatever became of it later."""
    return len({trial for event in events if (trial := result_of(event)) is not None})


def result_of(event: Event) -> str | None:
    """Returns the trial of which an event tells a result. None if it tells none."""
    if isinstance(event, EpochDone) or (isinstance(event, AttemptEnded) and event.final):
        return event.trial
    return None


def declared_of(events: Iterable[Event], sweep: Sweep | None = None) -> Declared | None:
    """Returns what a journal says of the declaration. None if it has neither a declaration nor a result.

    Args:
      events: of the journal, in order.
      sweep: as it is now. What differs from the last record counts as changed without a session. Without a
        sweep, the last record is what holds now.
    """
    held: Declaration | None = None
    last: Declaration | None = None
    in_time = True
    changes: list[Change] = []
    seen: set[str] = set()
    for event in events:
        if (trial := result_of(event)) is not None:
            seen.add(trial)
        elif isinstance(event, DeclarationMade):
            made = Declaration.from_json(event.declaration)
            # A damaged journal may have lost results.
            results = max(event.results, len(seen))
            if held is None or results == 0:
                held, in_time = made, results == 0
            elif last is not None:
                changes += _changes(held, last, made, results, event.made)
            last = made
    if held is None or last is None:
        if not seen or sweep is None:
            return None
        late = Declaration.of(sweep)
        return Declared(declaration=late, now=late, in_time=False, changes=())
    now = last
    if sweep is not None:
        now = dataclasses.replace(Declaration.of(sweep), looks=last.looks)
        changes += _changes(held, last, now, len(seen), None)
    return Declared(declaration=held, now=now, in_time=in_time, changes=tuple(changes))


def _changes(
    held: Declaration, before: Declaration, after: Declaration, results: int, made: float | None
) -> list[Change]:
    return [
        Change(key=key.partition(" ")[0], what=text, results=results, made=made)
        for key, text in differences(before, after, held.looks)
    ]


def same(a: Declaration, b: Declaration) -> bool:
    """Returns whether two declarations say the same, apart from the looks, which follow from the first."""
    return dataclasses.replace(a, looks=b.looks) == b and [*a.arms] == [*b.arms]


def differences(
    before: Declaration, after: Declaration, looks: Sequence[int] | None = None
) -> Iterator[tuple[str, str]]:
    """Yields the key and a text for each difference between two declarations.

    More points up to the last look are foreseen, so they are no difference.

    Args:
      before, after: the two.
      looks: the declared ones, if `before` is not the first declaration.
    """
    looks = before.looks if looks is None else looks
    if before.primary != after.primary:
        yield "primary", f"primary was {_primary_text(before)}, now {_primary_text(after)}"
    yield from _named_differences("arms", "arm", before.arms, after.arms)
    shared = [[arm for arm in one.arms if arm in other.arms] for one, other in _both_ways(before, after)]
    if shared[0] != shared[1] or next(iter(before.arms)) != next(iter(after.arms)):
        was, now = (", ".join(one.arms) for one in (before, after))
        yield "arms", f"the order of arms was {was}, now {now}; the first is the one compared with"
    levels = [
        {f"{f}.{name}": s for f, ls in one.cells.items() for name, s in ls.items()} for one in (before, after)
    ]
    yield from _named_differences("cells", "level", levels[0], levels[1])
    yield from _value_differences("vary.", before.vary, after.vary)
    if before.where != after.where:
        was, now = (" and ".join(one.where) or "none" for one in (before, after))
        yield "where", f"where was {was}, now {now}"
    yield from _value_differences("design.", before.design, after.design)
    yield from _value_differences("", {"error": before.error}, {"error": after.error})
    yield from _value_differences("", {"replicates": before.replicates}, {"replicates": after.replicates})
    yield from _size_differences(before, after, looks)


def _both_ways(a: Declaration, b: Declaration) -> tuple[tuple[Declaration, Declaration], ...]:
    return (a, b), (b, a)


def _size_differences(
    before: Declaration, after: Declaration, looks: Sequence[int]
) -> Iterator[tuple[str, str]]:
    """Yields differences in the numbers of points, with what they mean for the looks."""
    if not looks:
        return
    told = ", ".join(map(str, looks))
    if after.points < before.points:
        yield "design.points", f"design.points was {before.points}, now {after.points}"
    elif after.points > max(before.points, looks[-1]):
        yield (
            "design.points",
            f"design.points was {before.points}, now {after.points}; verdicts are taken at {told} points, as "
            "declared, and the points beyond describe only",
        )
    named = (before.max_points, after.max_points)
    # Naming the number that holds anyway changes nothing.
    if named[0] != named[1] and named != (None, looks[-1]):
        was, now = ("left out" if number is None else str(number) for number in named)
        text = f"design.max_points was {was}, now {now}; verdicts are taken at {told} points, as declared"
        yield "design.max_points", text


def _named_differences(
    key: str, what: str, before: Mapping[str, Tree], after: Mapping[str, Tree]
) -> Iterator[tuple[str, str]]:
    for name in before:
        if name not in after:
            yield key, f"{what} {name} was dropped"
        else:
            yield from _value_differences(f"{key}.{name}.", before[name], after[name])
    for name in after:
        if name not in before:
            yield f"{key} added", f"{what} {name} was added"


def _value_differences(prefix: str, before: Tree, after: Tree) -> Iterator[tuple[str, str]]:
    for key in dict.fromkeys([*before, *after]):
        if before.get(key) != after.get(key) or (key in before) != (key in after):
            was, now = (_shown(tree[key]) if key in tree else "not there" for tree in (before, after))
            yield f"{prefix}{key}", f"{prefix}{key} was {was}, now {now}"


def _primary_text(declaration: Declaration) -> str:
    primary = declaration.primary
    if primary is None:
        return "none"
    where = f"in {primary['cell']}" if primary.get("cell") else "in all cells"
    margin = f", margin {primary['margin']:g}" if primary.get("margin") else ""
    return f"{primary['measure']} {where}{margin}"


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _MAX_CHARACTERS else f"{text[: _MAX_CHARACTERS - 1]}…"


def _settings(settings: Mapping[str, Any]) -> Tree:
    return {path: _plain(value) for path, value in leaves(settings)}


def _plain(value: Any) -> Any:
    """Returns a value as JSON has it. Of a path only its name is kept, because a folder may move."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return str(value).rpartition("/")[2]
