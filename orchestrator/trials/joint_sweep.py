"""Joins several sweeps into one, with the arms of all, if one sweep file could have asked for them.

Arms of different sweeps may differ in what the arms of one sweep may differ in: the model, settings under
`arms`, and windows that `vary` gives by arm. All else must agree: data and splits, length of training, cells,
points, seeds and the rule for errors. The result is verified: the joint file is planned again, and every
trial must get the id under which it ran.

Limits: a trial has one record. Two sweeps that ran the same trials (for example the same arm on two machines)
share the arm, with the records of the first. They cannot be compared with each other.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.sweep.checks import check
from orchestrator.sweep.config import Sweep, cell_name, touches
from orchestrator.sweep.space import Cell, Domain, Settings, Window
from orchestrator.trials.confirm import Confirmation, with_confirmation
from orchestrator.trials.plan import make_plan
from orchestrator.trials.records import Record
from orchestrator.trials.trial import Plan, Trial
from trainables.errors import UserError
from trainables.presets import leaves, set_paths

#: Settings in which arms of different sweeps may not differ, because their errors would not be the same
#: quantity. Arms of one sweep may differ in them, because there it is the question.
_ALWAYS_SHARED = ("schedule.epochs",)

#: Settings that do not decide comparability: models are what is compared, seeds follow from the design, data
#: are compared by fingerprint, and a recipe by the settings it filled in.
_NOT_COMPARED = ("model", "seeds", "data", "recipe")

_MAX_NAME = 60


class MergeError(UserError):
    """Sweeps that cannot be compared, with every reason."""

    def __init__(self, names: Iterable[str], reasons: Sequence[str]) -> None:
        self.reasons = tuple(dict.fromkeys(reasons))
        lines = [f"{', '.join(names)}: cannot be compared, for {len(self.reasons)} reason(s)"]
        super().__init__("\n".join([*lines, *(f"  {reason}" for reason in self.reasons)]))


@dataclass(frozen=True)
class Part:
    """One of the sweeps: its plan, the records of its trials, fingerprints of its shifted sets by name."""

    plan: Plan
    records: Mapping[str, Record]
    shifted: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Merged:
    """Several sweeps joined into one, for statistics and report.

    Attributes:
      plan: one sweep with the arms of all, in the order given. The other arms are compared with the first arm
        of the first part.
      records: by trial id.
      origin: by trial id, the name of the part that its record comes from.
      notices: messages for the user about what was renamed or shared, one line each.
      confirmation: the points that have been run again with fresh seeds. These runs are part of `plan`.
    """

    plan: Plan
    records: dict[str, Record]
    origin: dict[str, str]
    notices: list[str]
    confirmation: Confirmation | None = None


@dataclass(frozen=True, slots=True)
class _Arm:
    """An arm of a part, and its name in the joint sweep."""

    part: str
    old: str
    new: str


def merge(parts: Mapping[str, Part]) -> Merged:
    """Joins the arms of several sweeps into one sweep.

    Args:
      parts: by the name of the sweep, in the order in which arms are to appear. The names are used in
        messages. Arms of different sweeps that share a name are renamed `arm.sweep`.

    Raises:
      MergeError: the sweeps are not comparable, or fewer than two were given. It lists every reason.
    """
    if len(parts) < 2:
        raise MergeError(parts, ["it takes two sweeps or more"])
    if searching := [name for name, part in parts.items() if part.plan.sweep.search is not None]:
        raise MergeError(parts, [f"{name} is a search, whose points are its own" for name in searching])
    first, *others = parts
    reasons = [reason for other in others for reason in _differences(parts, first, other)]
    arms, notices = _arms(parts)
    for level in {level for part in parts.values() for f in part.plan.sweep.cells.values() for level in f}:
        reasons += [
            f"arms.{arm.old}: an arm of {arm.part} is called like a level of another sweep"
            for arm in arms
            if arm.new == level
        ]
    if reasons:
        raise MergeError(parts, reasons)
    primaries = {part.plan.sweep.primary for part in parts.values()}
    if len(primaries) > 1:
        notices.append("the sweeps declare different primary contrasts, so the comparison has none")
    sweep = _joint_sweep(parts, arms)
    if faults := check(sweep):
        raise MergeError(parts, [f"one sweep file cannot hold them all: {fault}" for fault in faults])
    infos = {config: info for part in parts.values() for config, info in part.plan.infos.items()}
    try:
        plan = make_plan(sweep, infos)
    except (ValueError, KeyError) as error:
        raise MergeError(parts, [f"one sweep file cannot hold them all: {error}"]) from error
    if confirmation := _confirmation(parts, arms, sweep):
        plan = with_confirmation(plan, confirmation)
    if reasons := _changed(plan, parts, arms):
        raise MergeError(parts, reasons)
    notices += _coinciding(parts, arms)
    records, origin = _records(plan, parts)
    return Merged(plan, records, origin, notices, confirmation)


# ---------------------------------------------------------------------------------------------- comparable


def _differences(parts: Mapping[str, Part], first: str, other: str) -> Iterator[str]:
    """Yields the reasons why two sweeps are not comparable."""
    a, b = parts[first].plan.sweep, parts[other].plan.sweep

    def differ(what: str, of_a: object, of_b: object) -> str:
        return f"{what}: {of_a} in {first}, {of_b} in {other}"

    cells_a, cells_b = ({frozenset(cell): cell for cell in sweep.all_cells()} for sweep in (a, b))
    if cells_a.keys() != cells_b.keys():
        yield differ("cells", ", ".join(a.cell_names()), ", ".join(b.cell_names()))
    for what in ("error", "replicates"):
        if getattr(a, what) != getattr(b, what):
            yield differ(what, getattr(a, what), getattr(b, what))
    if a.noise != b.noise:
        yield differ("noise", *(sweep.noise.model_dump() if sweep.noise else "none" for sweep in (a, b)))
    if a.resources.workers != b.resources.workers:
        yield differ("resources.workers", a.resources.workers, b.resources.workers)
    seeds = [_num_confirm_seeds(parts[name].plan) for name in (first, other)]
    if all(seeds) and seeds[0] != seeds[1]:
        yield differ("seeds of confirm", *seeds)
    sets = [parts[name].shifted for name in (first, other)]
    # Folders of earlier versions have no content of them.
    for name in sets[0].keys() & sets[1].keys():
        if set(sets[0][name]) != set(sets[1][name]):
            yield differ(f"shifted set {name}: fingerprint", *(" or ".join(one[name]) for one in sets))
    if a.where != b.where:
        yield differ("where", *(" and ".join(sweep.where) or "none" for sweep in (a, b)))
    yield from _design_differences(a, b, first, other)
    yield from _window_differences(a, b, first, other)
    sweeps = [part.plan.sweep for part in parts.values()]
    own = [path for sweep in sweeps for arm in sweep.arms.values() for path in arm]
    # Windows were compared above.
    varied = [path for sweep in sweeps for path in sweep.vary]
    found: dict[str, list[str]] = {}
    shared = [key for key in cells_a if key in cells_b]
    for key in shared:
        facts_a, facts_b = (
            _facts(parts[name].plan, cells[key], own, varied)
            for name, cells in ((first, cells_a), (other, cells_b))
        )
        for what in dict.fromkeys([*facts_a, *facts_b]):
            of_a, of_b = (facts.get(what, "unset") for facts in (facts_a, facts_b))
            if of_a != of_b:
                found.setdefault(differ(what, of_a, of_b), []).append(cell_name(cells_a[key]))
    for text, names in found.items():
        yield text if len(names) == len(cells_a) else f"{text} (in {', '.join(names)})"


def _design_differences(a: Sweep, b: Sweep, first: str, other: str) -> Iterator[str]:
    # No point follows from how far a design may be extended, or from why it has so many.
    fields_a, fields_b = (sweep.design.model_dump(exclude={"max_points", "chosen_for"}) for sweep in (a, b))
    for key in dict.fromkeys([*fields_a, *fields_b]):
        of_a, of_b = fields_a.get(key, "unset"), fields_b.get(key, "unset")
        if of_a == of_b:
            continue
        text = f"design.{key}: {of_a} in {first}, {of_b} in {other}, so the points differ"
        if (
            key == "points"
            and fields_a["kind"] == fields_b["kind"]
            and getattr(a.design, "extendable", False)
        ):
            shorter = first if of_a < of_b else other
            text = (
                f"design.points: {of_a} in {first}, {of_b} in {other}; "
                f"run {shorter} with --points {max(of_a, of_b)}, its points stay as they are"
            )
        yield text


def _window_differences(a: Sweep, b: Sweep, first: str, other: str) -> Iterator[str]:
    """Yields the windows in which the same point would get different values."""
    for path in dict.fromkeys([*a.vary, *b.vary]):
        windows = [sweep.vary.get(path) for sweep in (a, b)]
        by_arm = [
            window is None
            or (
                bool(window.by_name)
                and all(set(name.split("/")) & set(sweep.arms) for name in window.by_name)
            )
            for window, sweep in zip(windows, (a, b), strict=True)
        ]
        beside = [window and (window.when, window.zip) for window in windows]
        if windows[0] != windows[1] and not (all(by_arm) and (None in beside or beside[0] == beside[1])):
            of_a, of_b = (_window_text(window) for window in windows)
            yield f"vary.{path}: {of_a} in {first}, {of_b} in {other}, so the points differ"


def _window_text(window: Window | None) -> str:
    def text(domain: Domain) -> str:
        return ", ".join(f"{word} {list(value)}" for word, value in domain.model_dump().items())

    if window is None:
        return "not varied"
    texts = [text(window.everywhere)] if window.everywhere is not None else []
    texts += [f"{name}: {text(domain)}" for name, domain in window.by_name.items()]
    texts += [f"when {window.when}"] if window.when else []
    texts += [f"zip {window.zip}"] if window.zip else []
    return "; ".join(texts)


def _facts(plan: Plan, cell: Cell, own: Sequence[str], varied: Sequence[str]) -> dict[str, str]:
    """Returns the conditions of a cell's errors as text, without settings that belong to an arm."""
    found: dict[str, set[str]] = {}
    for trial in plan.trials:
        if set(trial.cell) != set(cell) or (trial.point, trial.replicate, trial.role) != (0, 0, "sweep"):
            continue
        info = plan.infos[trial.config.data]
        found.setdefault("data: fingerprint", set()).add(info.fingerprint)
        for split, size in info.sizes.items():
            found.setdefault(f"data: {split} split", set()).add(f"{size} images, {info.splits[split]}")
        for path, value in leaves(trial.config.model_dump(mode="json")):
            is_varied = any(touches(path, key) for key in varied)
            is_own = any(touches(path, key) for key in own) and path not in _ALWAYS_SHARED
            if not is_varied and not is_own and path.split(".")[0] not in _NOT_COMPARED:
                found.setdefault(path, set()).add(str(value))
    return {what: " or ".join(sorted(values)) for what, values in found.items()}


# ---------------------------------------------------------------------------------------------- joined


def _arms(parts: Mapping[str, Part]) -> tuple[list[_Arm], list[str]]:
    """Returns every arm under a unique name, and notices about renamed or shared arms."""
    holders: dict[str, list[str]] = {}
    for name, part in parts.items():
        for arm in part.plan.sweep.arms:
            holders.setdefault(arm, []).append(name)
    notices, arms = [], []
    taken = set(holders)
    for name, part in parts.items():
        for arm in part.plan.sweep.arms:
            with_it = holders[arm]
            ids = {holder: _ids(parts[holder].plan, arm) for holder in with_it}
            if len(with_it) == 1:
                arms.append(_Arm(name, arm, arm))
            elif all(found == ids[with_it[0]] for found in ids.values()):
                if name == with_it[0]:
                    arms.append(_Arm(name, arm, arm))
                else:
                    notices.append(
                        f"{arm} is the same in {with_it[0]} and {name}: one arm, with the records of "
                        f"{with_it[0]} where it has them"
                    )
            else:
                new = _new_name(arm, name, list(parts).index(name) + 1, taken)
                taken.add(new)
                arms.append(_Arm(name, arm, new))
                notices.append(f"{arm} of {name} is called {new}: other sweeps have an arm of that name, too")
    return arms, notices


def _coinciding(parts: Mapping[str, Part], arms: Sequence[_Arm]) -> Iterator[str]:
    """Yields notices of arms of different sweeps that differ only in name: comparing them is pointless."""
    first: dict[frozenset[str], _Arm] = {}
    for arm in arms:
        other = first.setdefault(frozenset(_ids(parts[arm.part].plan, arm.old).values()), arm)
        if other.part != arm.part:
            yield (
                f"{arm.new} of {arm.part} is the same runs as {other.new} of {other.part}: both have the "
                f"records of {other.part}"
            )


def _ids(plan: Plan, arm: str) -> dict[Any, str]:
    return {_key(trial): trial.id for trial in plan.trials if trial.arm == arm}


def _key(trial: Trial) -> tuple[frozenset[tuple[str, str]], int, str, int]:
    return frozenset(trial.cell), trial.point, trial.role, trial.replicate


def _new_name(arm: str, sweep: str, number: int, taken: set[str]) -> str:
    """Returns `arm.sweep`, in the characters and length that a sweep file allows."""
    for tail in (re.sub(r"[^A-Za-z0-9_.+-]", "-", sweep), str(number)):
        name = f"{arm[: _MAX_NAME - len(tail) - 1]}.{tail}"
        if len(tail) <= _MAX_NAME // 2 and name not in taken:
            return name
    return f"{arm[: _MAX_NAME - 12]}.sweep{number}"


def _joint_sweep(parts: Mapping[str, Part], arms: Sequence[_Arm]) -> Sweep:
    """Returns one sweep with the settings of the first part and the arms of all."""
    first = next(iter(parts.values())).plan.sweep
    bases = {name: _flat(part.plan.sweep.base) for name, part in parts.items()}
    models = [{p: v for p, v in base.items() if touches(p, "model")} for base in bases.values()]
    base = dict(first.base)
    if any(model != models[0] for model in models):
        # Models belong to the arms, so none of them may remain in the shared settings.
        base = {path: value for path, value in base.items() if not touches(path, "model")}
    shared, joint_arms = _flat(base), {}
    for arm in arms:
        sweep = parts[arm.part].plan.sweep
        in_cells = [path for factor in sweep.cells.values() for level in factor.values() for path in level]
        extra: dict[str, Any] = {
            path: value
            for path, value in bases[arm.part].items()
            # A cell's settings override its base, and an arm's settings override both. A base setting that
            # cells set is left out, because in an arm it would override the cells.
            if shared.get(path, ...) != value
            and not path.startswith("data.")
            and not any(path == setting or path.startswith(f"{setting}.") for setting in in_cells)
        }
        own = sweep.arms[arm.old]
        joint_arms[arm.new] = {p: v for p, v in extra.items() if not any(_hides(q, p) for q in own)} | own
    questions = dict.fromkeys(part.plan.sweep.question for part in parts.values())
    primaries = {part.plan.sweep.primary for part in parts.values()}
    changes: dict[str, Any] = {
        "name": re.sub(r"[^A-Za-z0-9_.+-]", "-", "+".join(parts))[:_MAX_NAME],
        "question": " / ".join(question for question in questions if question),
        "base": base,
        "arms": joint_arms,
        "vary": _joint_windows(parts, arms),
        "primary": first.primary if len(primaries) == 1 else None,
    }
    kept = {key: getattr(first, key) for key in first.model_fields_set}
    # The parts were checked when they were read, and `check` checks names again.
    return Sweep.model_construct(**kept | changes)


def _hides(setting: str, path: str) -> bool:
    """Returns whether an arm's own setting replaces another or contains it."""
    return path == setting or path.startswith(f"{setting}.")


def _flat(settings: Settings) -> dict[str, Any]:
    """Returns settings with short forms written out, so that equal settings compare equal."""
    tree: dict[str, Any] = {}
    set_paths(tree, settings)
    return dict(leaves(tree))


def _joint_windows(parts: Mapping[str, Part], arms: Sequence[_Arm]) -> dict[str, Window]:
    windows: dict[str, Window] = {}
    for path in dict.fromkeys(path for part in parts.values() for path in part.plan.sweep.vary):
        found = [part.plan.sweep.vary.get(path) for part in parts.values()]
        by_arm = {
            "/".join(arm.new if part == arm.old else part for part in name.split("/")): domain
            for arm in arms
            if (its := parts[arm.part].plan.sweep.vary.get(path))
            for name, domain in its.by_name.items()
            if arm.old in name.split("/")
        }
        # Windows by arm are joined. All others are equal in all parts, which was checked before.
        window = next(w for w in found if w is not None)
        windows[path] = window.model_copy(update={"by_name": by_arm}) if by_arm else window
    return windows


def _confirmation(parts: Mapping[str, Part], arms: Sequence[_Arm], sweep: Sweep) -> Confirmation | None:
    """Returns the points that the parts have run again with fresh seeds. None if there are none."""
    cells = {frozenset(cell): cell_name(cell) for cell in sweep.all_cells()}
    points: dict[tuple[str, str], set[int]] = {}
    seeds = 0
    for arm in arms:
        for trial in parts[arm.part].plan.trials:
            if trial.arm == arm.old and trial.role == "confirm":
                points.setdefault((cells[frozenset(trial.cell)], arm.new), set()).add(trial.point)
                seeds = max(seeds, trial.replicate + 1)
    return (
        Confirmation({key: tuple(sorted(found)) for key, found in points.items()}, seeds) if points else None
    )


def _num_confirm_seeds(plan: Plan) -> int:
    return max((trial.replicate + 1 for trial in plan.trials if trial.role == "confirm"), default=0)


def _changed(plan: Plan, parts: Mapping[str, Part], arms: Sequence[_Arm]) -> list[str]:
    """Returns a reason for each arm whose trials would have other ids in the joint sweep."""
    reasons = []
    for arm in arms:
        before, after = _ids(parts[arm.part].plan, arm.old), _ids(plan, arm.new)
        if different := [key for key in {**before, **after} if before.get(key) != after.get(key)]:
            reasons.append(
                f"arms.{arm.old} of {arm.part}: {len(different)} of its {len(before)} trials are other runs "
                "when its settings stand in one file with those of the other sweeps; write that file to "
                "compare them"
            )
    return reasons


def _records(plan: Plan, parts: Mapping[str, Part]) -> tuple[dict[str, Record], dict[str, str]]:
    """Returns the record of each trial and the part it comes from.

    The first settled record is preferred, else the first record.
    """
    records: dict[str, Record] = {}
    origin: dict[str, str] = {}
    for trial in plan.trials:
        found = [(name, part.records[trial.id]) for name, part in parts.items() if trial.id in part.records]
        if found:
            chosen = next((entry for entry in found if entry[1].settled), found[0])
            origin[trial.id], records[trial.id] = chosen
    return records, origin
