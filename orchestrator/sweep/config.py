"""The content of a sweep file as one typed value, and what it means for each arm and cell."""

import graphlib
import itertools
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from orchestrator.sweep.constraints import Constraint, ConstraintError
from orchestrator.sweep.design import Design, Listing
from orchestrator.sweep.paper import PaperSays
from orchestrator.sweep.space import Cell, Domain, Settings, Window
from trainables.base import Frozen
from trainables.config import TrainConfig, setting
from trainables.io.faults import NAME_PATTERN
from trainables.io.storage import SharedPlace
from trainables.presets import set_paths, tells_apart

Name = Annotated[str, Field(pattern=NAME_PATTERN, max_length=60)]

#: Settings by the key of the file that holds them. Later ones win.
Layers = dict[str, Mapping[str, Any]]


class Price(Frozen):
    """Prices of one hour."""

    per_gpu_hour: float | None = Field(
        None, ge=0, description="Of one GPU, including its share of the machine."
    )
    per_core_hour: float | None = Field(None, ge=0, description="Of one CPU core, where there are no GPUs.")
    currency: str = Field("", description="Any text. It is printed after the number.")


class Budget(Frozen):
    """Limits on what a sweep may spend. A run starts no more trials once a limit is reached."""

    max_gpu_hours: float | None = Field(None, gt=0, description="Hours times GPUs, of all attempts.")
    max_core_hours: float | None = Field(None, gt=0, description="Hours times cores, without GPUs.")

    def cap(self, unit: str) -> float | None:
        """Returns the limit in "GPU-hours" or "core-hours". None if the file sets no such limit."""
        return self.max_gpu_hours if unit == "GPU-hours" else self.max_core_hours


class Resources(Frozen):
    """Resources of one trial, and how many trials run at a time."""

    workers: int = Field(1, gt=0, le=100_000, description="Processes that train one model together (DDP).")
    cpus_per_worker: Annotated[int, Field(gt=0, le=100_000)] | Literal["auto"] = Field(
        "auto",
        description="CPU cores, and CPU threads, of each; auto: one, and with a GPU its share of the cores "
        "of the machine, on which images are decoded.",
    )
    gpus_per_worker: float | None = Field(
        None,
        ge=0,
        description="GPUs of each: 0, 1, or a share of one if `workers` is 1; left out: one where "
        "the cluster has GPUs, else none.",
    )
    lanes: int | None = Field(
        None,
        gt=0,
        le=1_000_000,
        description="Trials at a time; left out: as many as fit. Set it where the cluster grows.",
    )
    retries: int = Field(1, ge=0, le=1000, description="How often a trial that failed is tried again.")
    breaker: int = Field(
        5, gt=1, description="Trials of an arm that end with one error in a row before the run stops."
    )
    hang_minutes: float = Field(
        30,
        gt=0,
        le=1_000_000,
        description="A trial that makes no step for this long is ended and tried again.",
    )
    checkpoints: SharedPlace | None = Field(
        None,
        description="Folder or URI (s3://, gs://) that all machines reach, for the states of trials; "
        "left out: the sweep's own folder.",
    )
    keep: Literal["none", "best", "last"] = Field(
        "none",
        description="Final weights to keep, as final.pt: of no trial, of the best one of each cell and arm "
        "so far (by the selection split), or of every trial that finishes.",
    )
    max_checkpoint_gib: float | None = Field(
        None, gt=0, description="A run that may store more states and weights than this does not start."
    )
    price: Price | None = Field(None, description="Of an hour, for the plan.")

    @field_validator("gpus_per_worker")
    @classmethod
    def _one_gpu_or_a_share(cls, gpus: float | None, others: ValidationInfo) -> float | None:
        workers = others.data.get("workers", 1)
        if gpus is not None and gpus > 1:
            raise ValueError(
                f"must be at most 1, as a worker computes on one GPU and would leave the others idle: set "
                f"workers, one for each GPU (got {gpus:g})"
            )
        if gpus is not None and 0 < gpus < 1 and workers > 1:
            raise ValueError(
                f"must be 0 or 1 with {workers} workers, as NCCL refuses two workers on one GPU "
                f"(got {gpus:g})"
            )
        return gpus


class Noise(Frozen):
    """Extra runs that measure how much chance alone moves the error."""

    points: int = Field(1, gt=0, description="The first points of the design, in every arm and cell.")
    seeds: int = Field(
        3,
        gt=1,
        description="Runs per stream (init, order, augment), others fixed; the first is the sweep's.",
    )


class Primary(Frozen):
    """The one contrast declared beforehand. It needs no correction for multiple comparisons."""

    measure: Literal["area_common", "within_common_bar", "error"] = Field(
        "area_common", description="A measure that all arms of a cell take from one reference."
    )
    cell: str | None = Field(None, description="The cell, by its name in the plan; all if left out.")
    margin: float | None = Field(
        None,
        gt=0,
        le=100,
        description="Arms that differ by less count as alike, in the measure's unit; left out: 0.1 of area "
        "or share, 1 percentage point of error.",
    )


class Halving(Frozen):
    """Asynchronous successive halving (ASHA): a trial that falls behind the others of its arm is ended.

    Source: Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning",
    https://arxiv.org/abs/1810.05934
    """

    grace_epochs: int = Field(gt=0, le=1_000_000, description="Epochs that every trial gets.")
    reduction_factor: float = Field(
        3, gt=1, description="The factor f: one trial in f goes on after grace_epochs times 1, f, f^2, ..."
    )


class Search(Frozen):
    """A search for the best setting of each arm, rather than for its distribution over all settings.

    Points come in rounds. The first round is the design's. The settings of a later round follow from the
    results of the earlier ones. Every arm gets the same number of points in every cell.
    """

    sampler: Literal["tpe", "gp", "design"] = Field(
        "tpe",
        description="The sampler after the first round: Optuna's TPE, its Gaussian process, or the design.",
    )
    round: int = Field(8, gt=1, description="Points per arm and cell between two looks at the results.")
    halving: Halving | None = Field(None, description="Ends trials that fall behind; no trial if left out.")


def _readable(text: str) -> str:
    try:
        Constraint.parse(text)
    except ConstraintError as error:
        raise ValueError(f"{error} (got {text[:60]!r})") from error
    return text


class Sweep(Frozen):
    """One question: arms compared in cells over points of a space."""

    name: Name = Field(description="Name of the folder of results; the file's name if left out.")
    question: str = Field("", description="The question in words; the heading of the report.")
    base: Settings = Field(
        description="Settings that all trials share, by path into TrainConfig.",
        examples=[{"model": "vit_c_1gf", "data": "digits", "schedule.epochs": 20}],
    )
    arms: dict[Name, Settings] = Field(
        min_length=1,
        description="The settings that are compared, by the name of the arm.",
        examples=[{"vit_p": {"model.stem": "patchify"}, "vit_c": {"model.stem": "conv"}}],
    )
    cells: dict[Name, dict[Name, Settings]] = Field(
        default_factory=dict,
        description="Settings under which the arms are compared: factor, level, settings.",
        examples=[{"optimizer": {"adamw": {"optim.name": "adamw"}, "sgd": {"optim.name": "sgd"}}}],
    )
    vary: dict[str, Window] = Field(
        default_factory=dict,
        max_length=500,
        description="Parameters that are drawn, each with its window.",
        examples=[{"optim.lr": {"log_uniform": [2.5e-4, 8e-3]}}],
    )
    where: tuple[Annotated[str, AfterValidator(_readable)], ...] = Field(
        (),
        description="Constraints on every run; a point that breaks one in any arm is left out of that cell.",
        examples=[["optim.lr * optim.weight_decay < 1e-3", "flops_g <= 2"]],
    )
    design: Design = Field(description="How points are drawn.", examples=[{"kind": "sobol", "points": 32}])
    search: Search | None = Field(
        None,
        description="Looks for each arm's best setting; design.points are then shared out in rounds.",
        examples=[{"sampler": "tpe", "round": 8, "halving": {"grace_epochs": 4}}],
    )
    replicates: int = Field(1, gt=0, description="Runs of every point that differ in their seeds only.")
    noise: Noise | None = Field(None, description="Extra runs for the noise floor; none if left out.")
    resources: Resources = Field(
        default_factory=Resources, description="Resources of a trial, and how many trials run at a time."
    )
    budget: Budget | None = Field(
        None, description="Limits on what the sweep may spend; no limit if left out."
    )
    error: Literal["last_epoch", "best_epoch"] = Field(
        "last_epoch", description="Which epoch's error counts; the best one hides late divergence."
    )
    primary: Primary | None = Field(
        None, description="The one contrast declared beforehand; none if left out."
    )
    # Never written to the folder of results and never shown, because an address may hold a secret.
    notify: str | None = Field(
        None,
        exclude=True,
        repr=False,
        min_length=1,
        description="URL or command to notify of the first result, a run that stops itself, and the end.",
        examples=["https://hooks.example.org/$HOOK_TOKEN", "mail -s sweep me@example.org"],
    )
    paper: PaperSays | None = Field(
        None, description="Results of a paper for these cells and arms, shown next to those of the sweep."
    )

    def all_cells(self) -> list[Cell]:
        """Returns every combination of levels, in the order of the file. One empty cell without `cells`."""
        factors = [[(factor, level) for level in levels] for factor, levels in self.cells.items()]
        return [tuple(cell) for cell in itertools.product(*factors)]

    def cell_names(self) -> list[str]:
        """Returns the names of the cells in plan, status and report."""
        return [cell_name(cell) for cell in self.all_cells()]

    def constraints(self) -> list[Constraint]:
        """Returns the constraints of `where`, parsed."""
        return [Constraint.parse(text) for text in self.where]

    # --- what is drawn

    @property
    def sampler(self) -> str | None:
        """The sampler that chooses the points after the first round of a search.

        None if the design draws all points.
        """
        return None if self.search is None or self.search.sampler == "design" else self.search.sampler

    @property
    def drawn(self) -> Design:
        """The part of the design that is drawn. For a search with a sampler, this is its first round."""
        if self.search is None or self.sampler is None or isinstance(self.design, Listing):
            return self.design
        return self.design.model_copy(update={"points": min(self.search.round, self.design.points)})

    def levels(self) -> dict[str, int | None]:
        """Returns the number of values of each drawn parameter. None for a continuous parameter.

        A parameter tied to another by `zip` is left out, because it takes the other's quantiles.
        """
        return {
            path: max((domain.num_levels for domain in window.domains()), key=lambda count: count or 0)
            for path, window in self.vary.items()
            if window.zip is None
        }

    def windows(self, arm: str, cell: Cell) -> dict[str, Domain]:
        """Returns the domains of one arm and cell, without regard to `when`."""
        found = {path: window.domain(arm, cell) for path, window in self.vary.items()}
        return {path: domain for path, domain in found.items() if domain is not None}

    def domains(self, arm: str, cell: Cell) -> dict[str, Domain]:
        """Returns the domains of the parameters that vary in one arm and cell.

        A parameter is left out if base, cell and arm alone decide that its `when` does not hold. A parameter
        that waits for another drawn value is included. Points where it was not drawn have no value for it.
        """
        found = self.windows(arm, cell)
        if not any(self.vary[path].when for path in found):
            return found
        first = {path: domain.extremes()[0] for path, domain in found.items()}
        left_out = {
            path
            for path in self.when_order(found)
            if not any(touches(other, needed) for needed in self.vary[path].when for other in found)
            and not self._wanted(path, arm, cell, {p: v for p, v in first.items() if not self.vary[p].when})
        }
        return {path: domain for path, domain in found.items() if path not in left_out}

    def draw(self, arm: str, cell: Cell, quantiles: Mapping[str, float]) -> dict[str, Any]:
        """Returns the values of one point, by path. Parameters whose `when` does not hold are left out.

        Args:
          arm, cell: names of the arm and levels of the cell.
          quantiles: in [0, 1], for every path in `levels`. A parameter's quantile follows from its name and
            the point alone. So two arms share it even if only one of them draws other parameters.
        """
        windows = self.windows(arm, cell)
        return self.existing(
            arm,
            cell,
            {path: domain.at(quantiles[self.vary[path].zip or path]) for path, domain in windows.items()},
        )

    def existing(self, arm: str, cell: Cell, values: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the values whose `when` holds, in the order of the file."""
        kept = {path: value for path, value in values.items() if not self.vary[path].when}
        for path in self.when_order(values):
            if self._wanted(path, arm, cell, kept):
                kept[path] = values[path]
        return {path: values[path] for path in values if path in kept}

    def when_order(self, paths: Mapping[str, Any]) -> list[str]:
        """Returns the parameters with a `when`, each after those that it waits for.

        Raises:
          graphlib.CycleError: they wait for each other.
        """
        waits = {
            path: [other for other in paths for needed in self.vary[path].when if touches(other, needed)]
            for path in paths
            if self.vary[path].when
        }
        return [path for path in graphlib.TopologicalSorter(waits).static_order() if path in waits]

    def _wanted(self, path: str, arm: str, cell: Cell, values: Mapping[str, Any]) -> bool:
        tree, _ = self.merged(self.layers(arm, cell, values))
        for needed, wanted in self.vary[path].when.items():
            try:
                value = setting(tree, needed)
            except KeyError:
                return False
            if value not in (wanted if isinstance(wanted, list | tuple) else [wanted]):
                return False
        return True

    # --- what a run is

    def settings(self, arm: str, cell: Cell, values: Mapping[str, Any]) -> tuple[TrainConfig, Resources]:
        """Returns the run and its resources for one arm, cell and point.

        Raises:
          ValidationError: the settings do not make a run.
        """
        tree, resources = self.merged(self.layers(arm, cell, values))
        return TrainConfig.model_validate(tree), Resources.model_validate(resources)

    def layers(self, arm: str, cell: Cell, values: Mapping[str, Any]) -> Layers:
        """Returns the layers of one run: base, the cell's levels, the arm, and the drawn values."""
        levels = {f"cells.{factor}.{level}": self.cells[factor][level] for factor, level in cell}
        return {"base": self.base, **levels, f"arms.{arm}": self.arms[arm], "vary": values}

    def merged(self, layers: Layers) -> tuple[dict[str, Any], Any]:
        """Returns the tree of a `TrainConfig` and that of its `Resources`. Neither is checked."""
        tree: dict[str, Any] = {}
        for layer in layers.values():
            set_paths(tree, layer)
        own = tree.pop("resources", {})
        return tree, {**self.resources.model_dump(), **own} if isinstance(own, Mapping) else own

    def source_of(self, path: str, arm: str, cell: Cell) -> str:
        """Returns the key of the file that set a path, for messages."""
        return source_of(path, self.layers(arm, cell, self.domains(arm, cell)))


def source_of(path: str, layers: Layers) -> str:
    """Returns the key of the file that set a path.

    It is in the last layer that names the path or a parent of it. Else it is in the last layer that names a
    part of it.
    """
    for prefix, layer in reversed(layers.items()):
        parts = path.split(".")
        if any(".".join(parts[:length]) in layer for length in range(1, len(parts) + 1)):
            return f"{prefix}.{path}"
    for prefix, layer in reversed(layers.items()):
        if any(key.startswith(f"{path}.") for key in layer):
            return f"{prefix}.{path}"
    return f"base.{path}"


def touches(setting: str, path: str) -> bool:
    """Returns whether setting one path may change another.

    That is so if they are equal, if one contains the other, or if the setting tells members of a union apart.
    """
    parent = setting.rpartition(".")[0]
    whole = parent if parent and tells_apart(setting) else setting
    return path == setting or path.startswith(f"{whole}.") or setting.startswith(f"{path}.")


def draws_data(path: str) -> bool:
    """Returns whether setting a path may change the data of a run or of one of its first stages."""
    own = path.rpartition("start.run.")[2]
    return touches(own, "data") or touches(own, "start.run.data")


#: The name of the cell of a sweep that has no others. It is not shown.
ONE_CELL = "all"


def cell_name(cell: Cell) -> str:
    """Returns the levels joined by slashes. `all` if there is only one cell."""
    return "/".join(level for _, level in cell) or ONE_CELL


def iterate(sweep: Sweep) -> Iterator[tuple[str, Cell]]:
    """Yields every arm in every cell, cell by cell."""
    for cell in sweep.all_cells():
        for arm in sweep.arms:
            yield arm, cell
