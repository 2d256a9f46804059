"""Checks of a sweep that need no data: its size, its names, and the settings of its runs."""

import dataclasses
import graphlib
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from orchestrator.sweep.config import Layers, Resources, Sweep, draws_data, source_of, touches
from orchestrator.sweep.constraints import FOLLOWS, MEMORY, ConstraintError
from orchestrator.sweep.design import Listing, StarDesign
from orchestrator.sweep.space import DOMAIN_WORDS, Cell, Domain, Listed, Window
from trainables.config import TrainConfig, setting
from trainables.io.faults import Fault, faults_in, nearest, nearest_path, paths_of, shorten
from trainables.presets import tells_apart

#: Largest number of trials in one sweep: more than anyone runs, and few enough to be listed.
MAX_TRIALS = 1_000_000
#: Largest number of arms times cells. Every combination is tried before anything runs.
MAX_ARMS_IN_CELLS = 4096

#: Dotted paths of the settings of a run.
RUN_PATHS = paths_of(TrainConfig)
#: Dotted paths of all settings: of a run, and of its resources.
PATHS = {
    **RUN_PATHS,
    **{f"resources.{path}": fields for path, fields in paths_of(Resources).items()},
}


def concerns(fault: Fault, varied: Iterable[str]) -> bool:
    """Returns whether a fault may exist only because these parameters have no window."""
    return any(fault.path.endswith(f".{path}") or fault.found == path for path in varied)


# ---------------------------------------------------------------------------------------------- checks


def check(sweep: Sweep) -> list[Fault]:
    """Checks a sweep that pydantic has accepted: its size, its names, and the settings of its runs."""
    if faults := [*_too_large(sweep)]:
        return faults
    faults = [*_name_faults(sweep)]
    if any(fault.path.startswith(("arms", "cells")) for fault in faults):
        return faults
    # Parameters and constraints with faulty names are left out, because they would only cause further faults.
    faulty = {path for path in sweep.vary for fault in faults if fault.path.startswith(f"vary.{path}")}
    vary = {path: window for path, window in sweep.vary.items() if not {path, window.zip} & faulty}
    where = () if any(fault.path.startswith("where") for fault in faults) else sweep.where
    rest = sweep.model_copy(update={"vary": vary, "where": where})
    found = [fault for fault in _setting_faults(rest) if not concerns(fault, set(sweep.vary) - set(vary))]
    return faults + found


def _too_large(sweep: Sweep) -> Iterator[Fault]:
    num_cells = math.prod(len(levels) for levels in sweep.cells.values())
    if num_cells * len(sweep.arms) > MAX_ARMS_IN_CELLS:
        rule = f"arms times combinations of levels may be at most {MAX_ARMS_IN_CELLS}"
        yield Fault("cells", rule, str(num_cells * len(sweep.arms)))
        return
    num_points = sweep.design.num_points(sweep.levels())
    num_trials = num_points * sweep.replicates * num_cells * len(sweep.arms)
    if num_trials > MAX_TRIALS:
        yield Fault("design", f"asks for more than {MAX_TRIALS} trials", str(num_trials))
    if sweep.noise and sweep.noise.seeds * min(sweep.noise.points, num_points) > MAX_TRIALS:
        yield Fault("noise", f"asks for more than {MAX_TRIALS} trials")


def _name_faults(sweep: Sweep) -> Iterator[Fault]:
    """Yields faults in names that refer to each other."""
    levels = [level for factor in sweep.cells.values() for level in factor]
    names = [*sweep.arms, *levels]
    for factor, its_levels in sweep.cells.items():
        if not its_levels:
            yield Fault(f"cells.{factor}", "has no levels")
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        yield Fault("cells", "names of arms and levels must all differ", f"more than once: {doubled}")
    if reserved := sorted({*names} & {*DOMAIN_WORDS, "when", "zip"}):
        yield Fault("arms", "no arm or level may have the name of a keyword of windows", ", ".join(reserved))
    if sweep.primary and sweep.primary.cell and sweep.primary.cell not in (cells := sweep.cell_names()):
        cell = sweep.primary.cell
        yield Fault("primary.cell", f"must be one of {cells}", cell, nearest(cell, cells))
    yield from _search_faults(sweep)
    if sweep.paper:
        for path, name in sweep.paper.unknown_names(sweep.cell_names(), sweep.arms):
            yield Fault(path, "names no cell or no arm of the sweep", name)
    for path, window in sweep.vary.items():
        yield from _window_faults(sweep, path, window, names)
    for index, constraint in enumerate(sweep.constraints()):
        for name in constraint.names:
            if name not in FOLLOWS and name not in RUN_PATHS:
                known = [*FOLLOWS, *RUN_PATHS]
                rule = "names no setting of a run and no derived quantity"
                yield Fault(f"where.{index}", rule, repr(name), nearest_path(name, known))


def _search_faults(sweep: Sweep) -> Iterator[Fault]:
    """Yields faults of settings that cannot be combined with a search."""
    if (search := sweep.search) is None:
        return
    if search.sampler == "design" and search.halving is None:
        rule = "`design` without `halving` is no search; leave `search` out, or choose a sampler"
        yield Fault("search.sampler", rule, search.sampler)
    if search.sampler != "design" and isinstance(sweep.design, Listing):
        rule = "the first round of a search is drawn: sobol, random or latin"
        yield Fault("design.kind", rule, sweep.design.kind)
    if (most := getattr(sweep.design, "max_points", None)) is not None:
        rule = "is for verdicts on all settings, and `search` looks for the best one; leave one of them out"
        yield Fault("design.max_points", rule, str(most))
    if search.halving is not None:
        if sweep.replicates > 1 or sweep.noise is not None:
            rule = "needs complete runs, and `search.halving` ends some of them early"
            yield Fault("replicates" if sweep.replicates > 1 else "noise", rule)
        if varied := [path for path in sweep.vary if touches(path, "schedule.epochs")]:
            yield Fault(f"vary.{varied[0]}", "`search.halving` compares trials of one length")


def _window_faults(sweep: Sweep, path: str, window: Window, names: Sequence[str]) -> Iterator[Fault]:
    where = f"vary.{path}"
    if unknown := [part for name in window.by_name for part in name.split("/") if part not in names]:
        rule = f"windows go by arm or level, one of {', '.join(names)}"
        yield Fault(where, rule, str(unknown), nearest(unknown[0], names))
    elif len(groups := _groups(sweep, window)) > 1:
        yield Fault(where, "name arms, or the levels of one factor", f"both of {groups}")
    if draws_data(path) and not all(isinstance(d, Listed) for d in window.domains()):
        yield Fault(where, "a parameter of the data must be a choice or an ordinal")
    for needed in window.when:
        if needed not in RUN_PATHS:
            hint = nearest_path(needed, RUN_PATHS)
            yield Fault(f"{where}.when.{needed}", "names no setting of a run", hint=hint)
        elif touches(path, needed):
            yield Fault(f"{where}.when.{needed}", "a parameter cannot wait for itself")
    if window.zip is not None:
        known = [other for other, its_window in sweep.vary.items() if not its_window.zip and other != path]
        if window.zip not in known:
            rule = "must be another path under vary, one that is drawn itself"
            yield Fault(f"{where}.zip", rule, window.zip, nearest_path(window.zip, known))


def _groups(sweep: Sweep, window: Window) -> list[str]:
    """Returns the kinds of names that a window uses: arms, or the levels of a factor.

    With more than one kind, two domains could apply to one arm and cell.
    """
    sources = {"arms": set(sweep.arms), **{f"cells.{name}": set(f) for name, f in sweep.cells.items()}}
    kinds = (
        " and ".join(source for source, names in sources.items() if names.intersection(name.split("/")))
        for name in window.by_name
    )
    return list(dict.fromkeys(kinds))


def _setting_faults(sweep: Sweep) -> list[Fault]:
    """Checks the settings by trying the ends of every domain in every arm and cell."""
    faults: dict[tuple[str, str], Fault] = {}

    def add(fault: Fault) -> None:
        faults.setdefault((fault.path, fault.rule), fault)

    for path, window in sweep.vary.items():
        if isinstance(sweep.design, Listing) and len({d.num_levels for d in window.domains()}) > 1:
            rule = f"a {sweep.design.kind} needs equally many values in every window"
            add(Fault(f"vary.{path}", rule))
        if isinstance(sweep.design, StarDesign) and any(d.num_levels is None for d in window.domains()):
            add(Fault(f"vary.{path}", "a star needs listed values: choice or ordinal"))
    if isinstance(sweep.design, StarDesign):
        for name in sweep.design.cross:
            if name not in sweep.levels():
                add(Fault("design.cross", "names no varied parameter", name))
    existed: set[str] = set()
    for cell, arm in itertools.product(sweep.all_cells(), sweep.arms):
        domains = sweep.windows(arm, cell)
        if tied := [*_tie_faults(sweep, domains)]:
            for fault in tied:
                add(fault)
            continue
        try:
            sweep.when_order(domains)
        except graphlib.CycleError as error:
            add(
                Fault(
                    f"vary.{error.args[1][0]}.when",
                    "parameters wait for each other",
                    " and ".join(error.args[1][:-1]),
                )
            )
            continue
        for values in _tries(sweep, arm, cell, domains):
            existed |= set(values)
            layers = sweep.layers(arm, cell, values)
            found = _faults(sweep, layers)
            if removed := _constraint_faults(sweep, layers, not found):
                for fault in removed:
                    if fault.rule and not any(path == fault.path for path, _ in faults):
                        add(fault)
                continue
            for fault in found:
                add(_blamed(sweep, fault, layers))
    for path, window in sweep.vary.items():
        if window.when and path not in existed and not faults:
            wanted = ", ".join(f"{needed} is {shorten(value)}" for needed, value in window.when.items())
            add(Fault(f"vary.{path}.when", f"holds in no arm, cell or point: nowhere {wanted}"))
    return [
        dataclasses.replace(fault, rule=_NO_DEFAULT) if fault.rule == "is missing" else fault
        for fault in faults.values()
    ]


#: Rule for a missing setting. It says how to fix it.
_NO_DEFAULT = "is missing, and has no default: set it under base, cells or arms, or draw it under vary"


def _tie_faults(sweep: Sweep, domains: Mapping[str, Domain]) -> Iterator[Fault]:
    for path in domains:
        if (head := sweep.vary[path].zip) is None:
            continue
        if head not in domains:
            yield Fault(f"vary.{path}.zip", "must vary wherever this does", head)
        elif domains[path].num_levels != (count := domains[head].num_levels):
            wanted = "an interval, as" if count is None else f"{count} values, as many as"
            yield Fault(f"vary.{path}", f"must have {wanted} {head}, to which it is tied")


def _tries(sweep: Sweep, arm: str, cell: Cell, domains: Mapping[str, Domain]) -> Iterator[dict[str, Any]]:
    """Yields values that must be valid for every point to be valid.

    One parameter changes at a time, together with those that are tied to it by `zip`.
    """
    heads = [path for path in domains if sweep.vary[path].zip is None]
    tied = {head: [path for path in domains if head in (path, sweep.vary[path].zip)] for head in heads}

    def values_of(head: str) -> list[dict[str, Any]]:
        members = {path: domains[path] for path in tied[head]}
        count = domains[head].num_levels
        if count is not None and any(isinstance(domain, Listed) for domain in members.values()):
            return [{p: d.at((i + 0.5) / count) for p, d in members.items()} for i in range(count)]
        return [{p: d.extremes()[end] for p, d in members.items()} for end in range(2)]

    first: dict[str, Any] = {}
    for head in heads:
        first |= values_of(head)[0]
    yield sweep.existing(arm, cell, first)
    for head in heads:
        for path in tied[head]:
            # A parameter with `when` is tried where the other parameter has a value that `when` names.
            needed = _needed(sweep, path, domains)
            for values in values_of(head)[0 if sweep.vary[path].when else 1 :]:
                yield sweep.existing(arm, cell, first | needed | values)


def _needed(sweep: Sweep, path: str, domains: Mapping[str, Domain]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for needed, wanted in sweep.vary[path].when.items():
        if needed in domains:
            found |= _needed(sweep, needed, domains)
            found[needed] = wanted[0] if isinstance(wanted, list) and wanted else wanted
    return found


def _constraint_faults(sweep: Sweep, layers: Layers, valid: bool) -> list[Fault]:
    """Returns constraints that the settings break, as faults without a rule, or that cannot be evaluated."""
    tree, _ = sweep.merged(layers)
    found = []
    for index, constraint in enumerate(sweep.constraints()):
        # The cost of a run is known later, because it depends on the classes and sizes of the data.
        if set(constraint.names) & set(FOLLOWS):
            if MEMORY in constraint.names and setting(tree, "model.family") == "python":
                found.append(Fault(f"where.{index}", _NO_MEMORY, repr(constraint.text)))
            continue
        try:
            if not constraint.holds(lambda name: setting(tree, name)):
                found.append(Fault(f"where.{index}", ""))
        except ConstraintError as error:
            if valid:
                found.append(Fault(f"where.{index}", str(error), repr(constraint.text)))
    return found


_NO_MEMORY = (
    f"{MEMORY} is not known of models of family python, because reading results runs none of their code"
)


def _faults(sweep: Sweep, layers: Layers) -> list[Fault]:
    tree, resources = sweep.merged(layers)
    kinds: list[tuple[type[BaseModel], Any, str]] = [
        (TrainConfig, tree, ""),
        (Resources, resources, "resources."),
    ]
    found = []
    for kind, part, prefix in kinds:
        try:
            kind.model_validate(part)
        except ValidationError as error:
            found += [dataclasses.replace(f, path=f"{prefix}{f.path}") for f in faults_in(error, kind)]
    return found


def _blamed(sweep: Sweep, fault: Fault, layers: Layers) -> Fault:
    """Returns the fault with the key of the layer that caused it.

    A layer did not cause the fault if the fault is also there without it.
    """
    if fault.rule == "is missing" and (emptied := _emptied(sweep, fault, layers)):
        return emptied
    for name in reversed(layers):
        fewer = {key: layer for key, layer in layers.items() if key != name}
        if fault in _faults(sweep, fewer):
            layers = fewer
    _, belongs, owner = fault.rule.partition("it belongs to ")
    path = source_of(fault.path, layers)
    if belongs and path.startswith("vary."):
        parent = fault.path.rpartition(".")[0]
        word = "family" if parent == "model" else "name"
        one = owner.replace(" and ", ", ").split(", ")[0]
        return Fault(path, fault.rule, hint=f"when: {{{parent}.{word}: {one}}}")
    return dataclasses.replace(fault, path=path)


def _emptied(sweep: Sweep, fault: Fault, layers: Layers) -> Fault | None:
    """Explains a missing setting that a later layer removed by choosing another `name` or `family`.

    Returns None if no layer did.
    """
    keys = {path for layer in layers.values() for path in layer}
    whole = fault.path.rpartition(".")[0]
    for word in ("name", "family"):
        chosen = f"{whole}.{word}"
        if fault.path in keys and chosen in keys and tells_apart(chosen):
            rule = f"another {word} empties `{whole}`, and `{fault.path}` is not set again"
            try:
                value = setting(sweep.merged(layers)[0], chosen)
            except KeyError:
                # The whole was removed, as by `model: null`.
                return None
            return Fault(source_of(chosen, layers), rule, shorten(value))
    return None
