"""A sweep: the question, as one typed value, and how it is read from a file."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from orchestrator.design import Design, GridDesign
from orchestrator.space import DOMAIN_WORDS, Domain
from trainables.base import Frozen
from trainables.config import Fault, Location, TrainConfig, faults_of, leaves, set_paths
from trainables.yaml import YamlError, load_yaml, parse_yaml

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$", max_length=60)]
Overrides = dict[str, Any]
Cell = tuple[tuple[str, str], ...]

#: Settings by the key of the file that holds them; later ones win.
Layers = dict[str, Mapping[str, Any]]


class SweepError(ValueError):
    """A sweep that cannot be run as written: the file, and everything wrong with it."""

    def __init__(self, source: str, faults: Sequence[Fault]) -> None:
        self.source, self.faults = source, tuple(faults)
        lines = [f"{source}: {len(self.faults)} fault(s)", *(f"  {fault}" for fault in self.faults)]
        super().__init__("\n".join(lines))


class Price(Frozen):
    """What an hour costs."""

    per_gpu_hour: float | None = Field(None, ge=0, description="Of one GPU, with what comes along.")
    per_core_hour: float | None = Field(None, ge=0, description="Of one CPU core, where there are no GPUs.")
    currency: str = Field("", description="Printed behind the figure; any text.")


class Budget(Frozen):
    """What a sweep may spend: a run hands out no more trials once it is reached."""

    max_gpu_hours: float | None = Field(None, gt=0, description="Hours times GPUs, of all attempts.")
    max_core_hours: float | None = Field(None, gt=0, description="Hours times cores, without GPUs.")

    def cap(self, unit: str) -> float | None:
        """The limit in "GPU-hours" or "core-hours"."""
        return self.max_gpu_hours if unit == "GPU-hours" else self.max_core_hours


class Resources(Frozen):
    """What one trial gets, and how trials share the machine."""

    workers: int = Field(1, gt=0, description="Processes that train one model together (DDP).")
    cpus_per_worker: int = Field(1, gt=0, description="CPU cores, and CPU threads, of each.")
    gpus_per_worker: float | None = Field(
        None, ge=0, description="GPUs of each; left out: one where the cluster has GPUs, else none."
    )
    lanes: int | None = Field(
        None, gt=0, description="Trials at a time; left out: as many as fit. Set it where the cluster grows."
    )
    retries: int = Field(1, ge=0, description="How often a trial that failed is tried again.")
    breaker: int = Field(
        5, gt=1, description="Trials of an arm that end with one error in a row before the run stops."
    )
    hang_minutes: float = Field(
        30, gt=0, description="A trial that makes no step for so long is ended, and tried again."
    )
    price: Price | None = Field(None, description="Of an hour, for the plan.")


class Noise(Frozen):
    """Extra runs that tell how much chance alone moves the error."""

    points: int = Field(1, gt=0, description="The first points of the design, in every arm and cell.")
    seeds: int = Field(
        3,
        gt=1,
        description="Runs per stream (init, order, augment), the others held; the first is the sweep's.",
    )


class Primary(Frozen):
    """The one contrast declared beforehand; it needs no correction for having looked at others."""

    measure: Literal["area_common", "within_common_bar", "error"] = Field(
        "area_common", description="A measure that all arms of a cell take from one reference."
    )
    cell: str | None = Field(None, description="In which cell, by its name in the plan; all if left out.")


class Window(Frozen):
    """Where one parameter is drawn: one domain for all, or one per arm or level of a cell factor."""

    everywhere: Domain | None = None
    by_name: dict[str, Domain] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _from_file(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or (data and set(data) <= {"everywhere", "by_name"}):
            return data
        if not data or any(word in DOMAIN_WORDS for word in data):
            return {"everywhere": data}
        return {"by_name": data}

    def domain(self, arm: str, cell: Cell) -> Domain | None:
        """The domain in force; None where the parameter does not vary."""
        if self.everywhere is not None:
            return self.everywhere
        names = [name for name in (arm, *(level for _, level in cell)) if name in self.by_name]
        return self.by_name[names[0]] if names else None


def _flat(value: Any) -> Any:
    return dict(leaves(value)) if isinstance(value, Mapping) else value


#: Settings by dotted path; nested mappings mean the same.
Settings = Annotated[dict[str, Any], BeforeValidator(_flat)]


class Sweep(Frozen):
    """One question: arms compared in cells over points of a space."""

    name: Name = Field(description="Of the folder of results; the file's name if left out.")
    question: str = Field("", description="In words; it heads the report.")
    base: Settings = Field(description="Settings that all trials share, by path into TrainConfig.")
    arms: dict[Name, Settings] = Field(min_length=1, description="What is compared, by name.")
    cells: dict[Name, dict[Name, Settings]] = Field(
        default_factory=dict, description="Under which settings it is compared: factor, level, settings."
    )
    vary: dict[str, Window] = Field(default_factory=dict, description="What is drawn, and from where.")
    design: Design = Field(description="How points are drawn.")
    replicates: int = Field(1, gt=0, description="Runs of every point that differ in their seeds only.")
    noise: Noise | None = Field(None, description="Extra runs for the noise floor; none if left out.")
    resources: Resources = Field(default_factory=Resources)
    budget: Budget | None = Field(None, description="What the sweep may spend; without end if left out.")
    error: Literal["last_epoch", "best_epoch"] = Field(
        "last_epoch", description="Which epoch's error counts; the best one hides late divergence."
    )
    primary: Primary | None = None

    def _name_faults(self) -> list[Fault]:
        """What is wrong with names that refer to each other."""
        levels = [level for factor in self.cells.values() for level in factor]
        faults = [
            Fault(f"cells.{factor}", "has no levels") for factor, names in self.cells.items() if not names
        ]
        if doubled := sorted(
            {name for name in [*levels, *self.arms] if [*levels, *self.arms].count(name) > 1}
        ):
            faults.append(
                Fault("cells", "names of arms and levels must all differ", f"more than once: {doubled}")
            )
        for path, window in self.vary.items():
            if unknown := [name for name in window.by_name if name not in levels and name not in self.arms]:
                known = ", ".join([*self.arms, *levels])
                faults.append(
                    Fault(f"vary.{path}", f"windows go by arm or level, one of {known}", str(unknown))
                )
            elif len(groups := self._groups(window)) > 1:
                faults.append(
                    Fault(f"vary.{path}", "name arms, or the levels of one factor", f"both of {groups}")
                )
        if self.primary and self.primary.cell and self.primary.cell not in (names := self.cell_names()):
            faults.append(Fault("primary.cell", f"must be one of {names}", self.primary.cell))
        return faults

    def _groups(self, window: Window) -> list[str]:
        sources = {"arms": set(self.arms), **{f"cells.{name}": set(f) for name, f in self.cells.items()}}
        return [source for source, names in sources.items() if names & set(window.by_name)]

    def all_cells(self) -> list[Cell]:
        """Every combination of levels, in the order of the file; one empty cell if there are none."""
        factors = [[(factor, level) for level in levels] for factor, levels in self.cells.items()]
        return [tuple(cell) for cell in itertools.product(*factors)]

    def cell_names(self) -> list[str]:
        """What the cells are called in plan, status and report."""
        return [cell_name(cell) for cell in self.all_cells()]

    def domains(self, arm: str, cell: Cell) -> dict[str, Domain]:
        """What varies in one arm and cell."""
        found = {path: window.domain(arm, cell) for path, window in self.vary.items()}
        return {path: domain for path, domain in found.items() if domain is not None}

    def settings(self, arm: str, cell: Cell, values: Mapping[str, Any]) -> tuple[TrainConfig, Resources]:
        """The run and its resources for one arm, cell and point.

        Raises:
          ValidationError: the settings do not make a run.
        """
        tree, resources = self._merged(self._layers(arm, cell, values))
        return TrainConfig.model_validate(tree), Resources.model_validate(resources)

    def _layers(self, arm: str, cell: Cell, values: Mapping[str, Any]) -> Layers:
        """What decides one run."""
        levels = {f"cells.{factor}.{level}": self.cells[factor][level] for factor, level in cell}
        return {"base": self.base, **levels, f"arms.{arm}": self.arms[arm], "vary": values}

    def _merged(self, layers: Layers) -> tuple[dict[str, Any], Any]:
        tree: dict[str, Any] = {}
        for layer in layers.values():
            set_paths(tree, layer)
        own = tree.pop("resources", {})
        return tree, {**self.resources.model_dump(), **own} if isinstance(own, Mapping) else own

    def levels(self) -> dict[str, int | None]:
        """Per varied parameter how many values it has, None if too many to count."""
        return {path: max(counts, key=lambda n: n or 0) for path, counts in self._level_counts().items()}

    def _level_counts(self) -> dict[str, set[int | None]]:
        return {
            path: {
                domain.num_levels
                for domain in ([window.everywhere] if window.everywhere else window.by_name.values())
            }
            for path, window in self.vary.items()
        }

    def source_of(self, path: str, arm: str, cell: Cell) -> str:
        """The key of the file that set a path, for messages."""
        return _source_of(path, self._layers(arm, cell, self.domains(arm, cell)))

    def _faults(self, layers: Layers) -> list[Fault]:
        tree, resources = self._merged(layers)
        found = []
        for kind, part, prefix in ((TrainConfig, tree, ""), (Resources, resources, "resources.")):
            try:
                kind.model_validate(part)
            except ValidationError as error:
                found += [dataclasses.replace(f, path=f"{prefix}{f.path}") for f in faults_of(error)]
        return found

    def _blamed(self, fault: Fault, layers: Layers) -> Fault:
        """The fault with the key of the layer that brought it in: those it is there without are innocent."""
        for name in reversed(layers):
            fewer = {key: layer for key, layer in layers.items() if key != name}
            if fault in self._faults(fewer):
                layers = fewer
        return dataclasses.replace(fault, path=_source_of(fault.path, layers))

    def check(self) -> list[Fault]:
        """What is wrong with the settings, found by trying the ends of every domain in every arm and cell."""
        if name_faults := self._name_faults():
            return name_faults
        faults: dict[str, Fault] = {}
        if isinstance(self.design, GridDesign):
            for path, counts in self._level_counts().items():
                if len(counts) > 1:
                    faults[path] = Fault(f"vary.{path}", "a grid needs equally many values in every window")
        for arm, cell in itertools.product(self.arms, self.all_cells()):
            domains = self.domains(arm, cell)
            first = {path: domain.extremes()[0] for path, domain in domains.items()}
            tries = [first] + [
                first | {path: value} for path, domain in domains.items() for value in domain.extremes()[1:]
            ]
            for values in tries:
                layers = self._layers(arm, cell, values)
                for fault in self._faults(layers):
                    found = self._blamed(fault, layers)
                    faults.setdefault(str(found), found)
        return list(faults.values())


def _source_of(path: str, layers: Layers) -> str:
    """The key of the file that set a path: the last layer that names it or a whole it is part of."""
    for prefix, layer in reversed(layers.items()):
        parts = path.split(".")
        if any(".".join(parts[:length]) in layer for length in range(1, len(parts) + 1)):
            return f"{prefix}.{path}"
    for prefix, layer in reversed(layers.items()):
        if any(key.startswith(f"{path}.") for key in layer):
            return f"{prefix}.{path}"
    return f"base.{path}"


def cell_name(cell: Cell) -> str:
    """Levels joined by a slash; `all` where there is one cell only."""
    return "/".join(level for _, level in cell) or "all"


#: First words of `--set` that mean the sweep itself; all others are paths into `base`.
_SWEEP_KEYS = tuple(name for name in Sweep.model_fields)


@dataclass(frozen=True, slots=True)
class Override:
    """One `--set key=value`."""

    key: str
    value: Any

    @classmethod
    def parse(cls, text: str) -> "Override":
        """From `key=value`; the value is YAML.

        Raises:
          SweepError: there is no `=`, or the value is not YAML.
        """
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise SweepError("--set", [Fault(text, "must be key=value")])
        try:
            return cls(key.strip(), parse_yaml(value, f"--set {key}"))
        except YamlError as error:
            raise SweepError("--set", [Fault(key, str(error))]) from error


def load_sweep(path: Path, overrides: Sequence[Override] = (), points: int | None = None) -> Sweep:
    """Reads a sweep file and checks all that can be checked without looking at data.

    Raises:
      SweepError: with every fault there is.
    """
    try:
        tree = load_yaml(path)
    except YamlError as error:
        raise SweepError(str(path), [Fault("file", str(error))]) from error
    if not isinstance(tree, dict):
        raise SweepError(str(path), [Fault("file", "must be a mapping of keys to values", repr(tree)[:60])])
    tree.setdefault("name", path.stem)
    return build_sweep(tree, str(path), overrides, points)


def build_sweep(
    tree: dict[str, Any], source: str, overrides: Sequence[Override] = (), points: int | None = None
) -> Sweep:
    """A sweep from the content of a file.

    Raises:
      SweepError: with every fault there is.
    """
    for override in overrides:
        first, _, rest = override.key.partition(".")
        if first in _SWEEP_KEYS and rest:
            branch = tree.get(first)
            tree[first] = branch = dict(branch) if isinstance(branch, dict) else {}
            _replace(branch, rest, override.value)
        elif first in _SWEEP_KEYS:
            tree[first] = override.value
        else:
            base = tree.get("base")
            tree["base"] = base = dict(base) if isinstance(base, dict) else {}
            _replace(base, override.key, override.value)
    if points is not None and isinstance(tree.get("design"), dict):
        tree["design"] = tree["design"] | {"points": points}
    try:
        sweep = Sweep.model_validate(tree)
    except ValidationError as error:
        raise SweepError(source, faults_of(error, _place)) from error
    if faults := sweep.check():
        raise SweepError(source, faults)
    return sweep


def _replace(tree: dict[str, Any], path: str, value: Any) -> None:
    """Sets a path in a tree whose keys may themselves be dotted; what lay below it is dropped."""
    for key in [key for key in tree if key == path or key.startswith(f"{path}.")]:
        del tree[key]
    first, _, rest = path.partition(".")
    if rest and isinstance(tree.get(first), dict):
        tree[first] = branch = dict(tree[first])
        _replace(branch, rest, value)
    else:
        tree[path] = value


def _place(location: Location) -> Sequence[int | str]:
    """Where it stands in the file: without the words by which pydantic tells domains and designs apart."""
    match location:
        case ("design", _, *rest):
            return ["design", *rest]
        case ("vary", path, "everywhere", *rest):
            start: list[int | str] = ["vary", path]
        case ("vary", path, "by_name", name, *rest):
            start = ["vary", path, name]
        case _:
            return location
    # A domain's word comes twice: as a tag and as a field.
    return [*start, *(rest[1:] if rest[:1] == rest[1:2] else rest)]


def iterate(sweep: Sweep) -> Iterator[tuple[str, Cell]]:
    """Every arm in every cell, cells first."""
    for cell in sweep.all_cells():
        for arm in sweep.arms:
            yield arm, cell
