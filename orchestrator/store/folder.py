"""The folder of a sweep: its files, and how they are read and written.

runs/<sweep>/
  sweep.yaml     the question, with --set and --points applied
  search.json    the points that a search has chosen so far, round by round
  confirm.json   the settings that are run again with fresh seeds
  record.json    data sets by fingerprint, code, versions
  planned.json   the cost that was expected before the first trial
  code/          copies of the user's files that make networks, by digest
  journal/       000001.jsonl, one file per `run`
  analysis/      what was found out about kept weights
  trials/<id>/   tracebacks, the checkpoint of a trial that has not ended, kept weights
  report/        rebuilt from the files above
"""

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter

from orchestrator.cost.actual import Planned
from orchestrator.store.journal import FolderError, Writer, read_journal
from orchestrator.store.provenance import provenance
from orchestrator.store.weights import WeightStore
from orchestrator.sweep.config import Sweep
from orchestrator.sweep.document import SweepError, with_absolute_places
from orchestrator.sweep.load import build_sweep
from orchestrator.trials.confirm import Confirmation, with_confirmation
from orchestrator.trials.declared import Declaration, Declared, declared_of, num_results, same
from orchestrator.trials.events import DeclarationMade, Event, RetryWanted
from orchestrator.trials.plan import make_plan
from orchestrator.trials.records import Record, fold
from orchestrator.trials.trial import Plan, Suggestion, Trial
from trainables.base import SHIFTED, SPLITS, DataError, DataInfo
from trainables.config import Data, DataConfig
from trainables.data.base import with_chance
from trainables.io.code import NamedFunction, copy_of, trusting_code
from trainables.io.faults import branches
from trainables.io.files import write_atomically
from trainables.io.json import parse_json
from trainables.io.yaml import YamlError, load_yaml
from trainables.lookup import Lookup, with_absolute_paths
from trainables.models.python_model import PythonConfig, known_costs, take_costs
from trainables.presets import leaves

_T = TypeVar("_T")


#: What `analyse` found out about kept weights. A report depends on it as on the question.
COLLAPSE = "analysis/collapse/collapse.json"
ANALYSES = (COLLAPSE,)


@dataclass(frozen=True)
class Folder:
    """A sweep folder as read: its plan, its events, and notices about faults in the journal."""

    path: Path
    plan: Plan
    events: list[Event]
    records: dict[str, Record]
    notices: list[str]
    record: dict[str, Any]
    planned: Planned | None = None

    @property
    def declared(self) -> Declared | None:
        """The declaration before the results. None before both of them, and for a comparison."""
        return None if "sources" in self.record else declared_of(self.events, self.plan.sweep)


def check_sweep(path: Path) -> None:
    """Raises `FolderError` unless a path is a folder with a sweep in it."""
    if not path.exists():
        raise FolderError(f"{path}: there is no such folder")
    if not (path / "sweep.yaml").is_file():
        raise FolderError(f"{path}: holds no sweep (there is no sweep.yaml in it)")


def open_folder(path: Path, to_run: bool = False) -> Folder:
    """Reads a sweep folder. The data themselves are not needed.

    Args:
      path: the folder.
      to_run: whether its trials are to run. Relative paths of data, which earlier versions wrote, are then
        resolved. Without it they stay as written, so that a report does not depend on the folder's place.

    Raises:
      FolderError: the folder is not a sweep's, or its files are damaged.
    """
    check_sweep(path)
    try:
        tree = load_yaml(path / "sweep.yaml")
        record = parse_json((path / "record.json").read_text("utf-8"))
        configs = [entry["config"] for entry in record["data"]]
        if to_run:
            lookup = Lookup.above(path)
            tree = with_absolute_places(tree, lookup)
            configs = with_absolute_paths(configs, branches(tuple[Data, ...]), lookup)
        # Reading results runs no code of a user; the record holds the costs of such networks.
        with trusting_code(path) if to_run else contextlib.nullcontext():
            sweep = build_sweep(tree, str(path / "sweep.yaml"))
        take_costs(record.get("costs", []))
        infos = {
            (typed := _DATA.validate_python(config)): _load_info(typed, entry["info"])
            for config, entry in zip(configs, record["data"], strict=True)
        }
        plan = plan_of(path, sweep, infos)
    except (SweepError, YamlError) as error:
        raise FolderError(str(error)) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FolderError(f"{path}: record.json is missing or damaged: {error}") from error
    reading = read_journal(path)
    return Folder(
        path, plan, reading.events, fold(reading.events), reading.notices, record, load_planned(path)
    )


def save_planned(path: Path, planned: Planned) -> None:
    """Writes planned.json, the expected cost of a sweep, before the first trial runs."""
    write_atomically(path / "planned.json", planned.model_dump_json(indent=2) + "\n")


def load_planned(path: Path) -> Planned | None:
    """Returns the cost that was expected before the first trial. None if none was recorded.

    Raises:
      FolderError: planned.json is damaged.
    """
    return parsed(path, "planned.json", Planned.model_validate)


def parsed(path: Path, name: str, parse: Callable[[Any], _T]) -> _T | None:
    """Returns the parsed content of a JSON file in a folder. None if there is no such file.

    Raises:
      FolderError: the file is damaged.
    """
    if not (path / name).is_file():
        return None
    try:
        return parse(parse_json((path / name).read_text("utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FolderError(f"{path}: {name} is damaged: {error}") from error


def plan_of(path: Path, sweep: Sweep, infos: Mapping[DataConfig, DataInfo]) -> Plan:
    """Returns the plan of a sweep, with the points chosen since then by a search or to be confirmed.

    The folder need not exist.

    Raises:
      FolderError: search.json or confirm.json is damaged.
    """
    return confirmed_plan(path, make_plan(sweep, infos, load_suggestions(path)))


def save_suggestions(path: Path, suggestions: Sequence[Suggestion]) -> None:
    """Writes search.json, the points that a search has chosen, before any of them runs."""
    content = {"suggestions": [dataclasses.asdict(suggestion) for suggestion in suggestions]}
    write_atomically(path / "search.json", json.dumps(content, indent=1) + "\n")


def load_suggestions(path: Path) -> list[Suggestion]:
    """Returns the points that a search has chosen so far. Empty if there are none.

    Raises:
      FolderError: search.json is damaged.
    """

    def parse(content: Any) -> list[Suggestion]:
        return [_SUGGESTION.validate_python(entry) for entry in content["suggestions"]]

    return parsed(path, "search.json", parse) or []


_SUGGESTION = TypeAdapter(Suggestion)


def save_confirmation(path: Path, confirmation: Confirmation) -> None:
    """Writes confirm.json, the settings to be confirmed, before any of them runs."""
    content = {
        "seeds": confirmation.seeds,
        "points": [
            {"cell": cell, "arm": arm, "points": list(points)}
            for (cell, arm), points in confirmation.points.items()
        ],
    }
    write_atomically(path / "confirm.json", json.dumps(content, indent=2) + "\n")


def load_confirmation(path: Path) -> Confirmation | None:
    """Returns the settings chosen to be confirmed. None if none were chosen.

    Raises:
      FolderError: confirm.json is damaged.
    """

    def parse(content: Any) -> Confirmation:
        points = {(entry["cell"], entry["arm"]): tuple(entry["points"]) for entry in content["points"]}
        return Confirmation(points, content["seeds"])

    return parsed(path, "confirm.json", parse)


def confirmed_plan(path: Path, plan: Plan) -> Plan:
    """Returns the plan with the confirmation runs that the folder asks for."""
    confirmation = load_confirmation(path)
    return with_confirmation(plan, confirmation) if confirmation else plan


def known_infos(path: Path, infos: Mapping[DataConfig, DataInfo]) -> dict[DataConfig, DataInfo]:
    """Returns data sets by the fingerprints that a folder has for them, so that its trials keep their ids.

    Folders of earlier versions have fingerprints that did not cover every image. The folder need not exist.

    Raises:
      FolderError: record.json is damaged.
    """

    def parse(content: Any) -> set[str]:
        return {entry["info"]["fingerprint"] for entry in content["data"]}

    recorded = parsed(path, "record.json", parse) or set()
    return {
        config: dataclasses.replace(info, fingerprint=info.earlier_fingerprint)
        if info.earlier_fingerprint in recorded
        else info
        for config, info in infos.items()
    }


_DATA: TypeAdapter[DataConfig] = TypeAdapter(Data)


def _load_info(config: DataConfig, info: dict[str, Any]) -> DataInfo:
    several = {name: tuple(info.get(name, ())) for name in ("class_names", "notices")}
    loaded = DataInfo(**info | several)
    # Older folders lack the error of guessing, so it is computed.
    return loaded if "chance_error_pct" in info else with_chance(loaded, config.task)


def record_retries(path: Path, trial_ids: Sequence[str], checkpoints: str | None = None) -> None:
    """Records that ended trials are to run again, and deletes their checkpoints and kept weights.

    The caller holds the folder. `checkpoints` is the place that its sweep names.
    """
    states = WeightStore(path, checkpoints)
    for trial_id in trial_ids:
        states.delete_checkpoint(trial_id)
        states.delete_kept(trial_id)
    writer = Writer(path)
    writer.append([RetryWanted(trial=trial_id, time=time.time()) for trial_id in trial_ids])
    writer.close()


def save_question(
    path: Path,
    plan: Plan,
    declare: bool = True,
    made: float | None = None,
    shifted: Mapping[str, Sequence[str]] | None = None,
) -> list[str]:
    """Writes the question, the data and the code, and what they declare. Called before anything runs.

    The caller holds the folder.

    Args:
      path: the folder.
      plan: of the question.
      declare: whether the journal records the declaration. A comparison of sweeps declares nothing itself.
      made: time of the declaration, in seconds since 1970; now if left out.
      shifted: contents of the shifted sets, by `shifted_contents`; not looked at if left out.

    Returns:
      A sentence for each thing that is declared otherwise now, after results are known.

    Raises:
      FolderError: the folder holds results of another question, or of shifted sets that have changed since.
        Nothing is written then.
    """
    events = read_journal(path).events
    if (path / "sweep.yaml").is_file():
        _check_same_question(path, plan, events)
        check_shifted(path, fold(events), shifted or {})
    save_record(path, plan, shifted)
    # Before sweep.yaml: after a crash between the two, the next session finds nothing to declare.
    changed = _declare(path, plan.sweep, events, made) if declare else []
    sweep = plan.sweep.model_dump(mode="json", exclude_unset=True)
    sweep["vary"] = {name: window.plain() for name, window in plan.sweep.vary.items()}
    # sweep.yaml makes it a folder of results, which needs the record.
    write_atomically(path / "sweep.yaml", yaml.safe_dump(_plain(sweep), sort_keys=False, allow_unicode=True))
    return changed


def _declare(path: Path, sweep: Sweep, events: Sequence[Event], made: float | None) -> list[str]:
    """Records the declaration in the journal, if it is not the last one there. Returns what changed."""
    declaration, known = Declaration.of(sweep), declared_of(events)
    if known is not None and same(known.now, declaration):
        return []
    found = [declaration]
    if known is None and (path / "sweep.yaml").is_file() and num_results(events):
        # An earlier version began the folder. What it asked is recorded first, once it is changed.
        with contextlib.suppress(SweepError, YamlError):
            asked = Declaration.of(build_sweep(load_yaml(path / "sweep.yaml"), "sweep.yaml"))
            if same(asked, declaration):
                return []
            found.insert(0, asked)
    writer = Writer(path)
    # Again, because of what a run that was taken for dead has added, that counts which the writer has sealed.
    sealed = read_journal(path).events
    results = num_results(sealed)
    if known is not None and results:
        found = [dataclasses.replace(declaration, looks=known.declaration.looks)]
    made = time.time() if made is None else made
    fresh = [DeclarationMade(made=made, results=results, declaration=one.to_json()) for one in found]
    writer.append(fresh)
    writer.close()
    after = declared_of([*sealed, *fresh])
    num_before = len(known.changes) if known else 0
    return [change.sentence for change in after.changes[num_before:]] if after else []


def shifted_contents(plan: Plan) -> dict[str, list[str]]:
    """Returns fingerprints of the shifted sets of a plan, by their names. Reads every image.

    A name has several if arms or cells have several sets of that name. It is left out if one of them cannot
    be read from this machine, because those that train may reach it.
    """
    runs = [trial.config for trial in plan.trials]
    found: dict[str, set[str]] = {}
    unread: set[str] = set()
    for one in dict.fromkeys(one for run in runs if run.evaluate for one in run.evaluate.shifted):
        try:
            found.setdefault(one.name, set()).add(one.fingerprint())
        except DataError:
            unread.add(one.name)
    return {name: sorted(marks) for name, marks in found.items() if name not in unread}


def check_shifted(path: Path, records: Mapping[str, Record], shifted: Mapping[str, Sequence[str]]) -> None:
    """Checks that shifted sets are still those on which trials of a folder were tested.

    A set that no trial has an error on may change: it may have been mended, because trials failed on it.

    Raises:
      FolderError: one has changed, or record.json is damaged.
    """
    tested = {name for record in records.values() for row in record.rows.values() for name in row.extra or ()}
    for name, marks in _recorded_shifted(path).items():
        if SHIFTED + name in tested and name in shifted and not set(marks) <= set(shifted[name]):
            raise FolderError(
                f"{path}: the images of the shifted set {name} have changed since trials were tested on "
                "them. Put them back, or choose another folder with --out"
            )


def _recorded_shifted(path: Path) -> dict[str, list[str]]:
    def parse(content: Any) -> dict[str, list[str]]:
        return {name: list(marks) for name, marks in content.get("shifted", {}).items()}

    return parsed(path, "record.json", parse) or {}


def save_record(path: Path, plan: Plan, shifted: Mapping[str, Sequence[str]] | None = None) -> None:
    """Writes record.json and copies of the user's code: all but the plan itself that readers of it need.

    Contents of shifted sets that are on record stay there, unless `shifted` has others.
    """
    data = [
        {"config": config.model_dump(mode="json"), "info": _plain_info(info)}
        for config, info in plan.infos.items()
    ]
    record: dict[str, Any] = {"data": data}
    functions = functions_of(plan.trials)
    for trial in plan.trials if functions else ():
        # Counted here if nobody has asked for it yet, because readers cannot.
        plan.cost(trial)
    if costs := known_costs(functions):
        record["costs"] = costs
    if contents := _recorded_shifted(path) | dict(shifted or {}):
        record["shifted"] = contents
    for digest, function in functions.items():
        # A comparison of sweeps runs no trial, and may have been made without the files.
        if function.is_trusted and not (copy := copy_of(path, digest)).is_file():
            write_atomically(copy, function.source())
    write_atomically(path / "record.json", json.dumps(record | provenance(), indent=2) + "\n")


def functions_of(trials: Iterable[Trial]) -> dict[str, NamedFunction]:
    """Returns functions of users that make the networks of trials: one for each file, by its digest."""
    runs = [trial.config for trial in trials]
    runs += [run.start.run for run in runs if run.start]
    return {run.model.build.digest: run.model.build for run in runs if isinstance(run.model, PythonConfig)}


def _plain(value: Any) -> Any:
    """Returns the value with lists in place of tuples, because YAML has no tuples."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _plain_info(info: DataInfo) -> dict[str, Any]:
    return {
        "name": info.name,
        "num_classes": info.num_classes,
        "class_names": list(info.class_names),
        "sizes": {split: info.sizes[split] for split in SPLITS},
        "splits": {split: info.splits[split] for split in SPLITS},
        "fingerprint": info.fingerprint,
        "skipped": info.skipped,
        "chance_error_pct": info.chance_error_pct,
        "majority_share": info.majority_share,
        "notices": list(info.notices),
    }


def _check_same_question(path: Path, plan: Plan, events: Sequence[Event]) -> None:
    old = fold(events)
    planned = {trial.id for trial in plan.trials}
    if strays := [trial_id for trial_id, record in old.items() if record.outcome and trial_id not in planned]:
        changes = "".join(f"\n  {line}" for line in _changes(path, plan))
        raise FolderError(
            f"{path}: holds {len(strays)} trial(s) that this sweep file does not ask for, so it belongs to "
            f"another question (or to other data). A sweep may grow, in points, arms, cells and epochs to "
            f"compare; what it has asked before must stay. What was changed:{changes or ' nothing visible'}\n"
            f"Choose another folder with --out, or put it back"
        )


def _changes(path: Path, plan: Plan) -> list[str]:
    """Returns the differences between the question in a folder and another one, one line each."""
    try:
        before = build_sweep(load_yaml(path / "sweep.yaml"), "sweep.yaml")
        record = parse_json((path / "record.json").read_text("utf-8"))
        known = {entry["info"]["name"]: entry["info"]["fingerprint"] for entry in record["data"]}
    except (SweepError, YamlError, OSError, ValueError, KeyError, TypeError) as error:
        return [f"the question in the folder cannot be read any more: {error}"]
    # These cannot change a result.
    aside = {"name", "question", "resources", "primary"}
    old, new = (dict(leaves(sweep.model_dump(mode="json", exclude=aside))) for sweep in (before, plan.sweep))
    lines = [
        f"{key}: {_shown(old, key)} -> {_shown(new, key)}"
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key) and not _only_grows(key, old.get(key), new.get(key))
    ]
    lines += [
        f"data {info.name}: fingerprint {known[info.name]} -> {info.fingerprint}"
        for info in plan.infos.values()
        if known.get(info.name, info.fingerprint) != info.fingerprint
    ]
    return lines


def _only_grows(key: str, old: Any, new: Any) -> bool:
    if key in ("design.points", "replicates", "noise.points", "noise.seeds"):
        return old is None or (new is not None and new >= old)
    if key.startswith(("design.chosen_for", "design.max_points")):
        # No point follows from it.
        return True
    # A new arm, level or window.
    return old is None and new is not None and key.partition(".")[0] in ("arms", "cells", "noise")


def _shown(values: dict[str, Any], key: str) -> str:
    return json.dumps(values[key]) if key in values else "(not there)"


def merge_points(path: Path, sweep: Sweep) -> Sweep:
    """Returns the sweep with the folder's number of points, if that is larger.

    A sweep that was extended once stays extended. A number that was chosen to detect a difference stays.

    Raises:
      FolderError: the number of points differs, and the design is of a kind that cannot be extended.
    """
    try:
        old = build_sweep(load_yaml(path / "sweep.yaml"), "sweep.yaml")
    except (SweepError, YamlError):
        return sweep
    before, now = getattr(old.design, "points", None), getattr(sweep.design, "points", None)
    if (
        before != now
        and old.design.kind == sweep.design.kind
        and not getattr(sweep.design, "extendable", True)
    ):
        raise FolderError(
            f"{path}: a {sweep.design.kind} design cannot be extended: with {now} points instead of {before} "
            "all of them move. Choose another folder with --out, or `design.kind: sobol`, which grows"
        )
    if before is None or now is None or old.design.kind != sweep.design.kind:
        return sweep
    was, wanted = (getattr(one.design, "chosen_for", None) for one in (old, sweep))
    if was and wanted and (was.detect, was.power) == (wanted.detect, wanted.power):
        # Another version may choose another number for the same wish.
        kept = {"points": before, "chosen_for": was}
    elif before > now:
        kept = {"points": before}
    else:
        return sweep
    if (most := getattr(sweep.design, "max_points", None)) is not None and most < before:
        raise FolderError(
            f"{path}: has {before} points already, and design.max_points is {most}: it must be at least "
            f"{before}"
        )
    return sweep.model_copy(update={"design": sweep.design.model_copy(update=kept)})
