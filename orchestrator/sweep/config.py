"""The question of a sweep as one typed value: arms, cells, what varies, and what follows from them."""

import graphlib
import itertools
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from orchestrator.sweep.constraints import Constraint, ConstraintError
from orchestrator.sweep.design import Design, GridDesign
from orchestrator.sweep.paper import PaperSays
from orchestrator.sweep.space import Cell, Domain, Settings, Window
from trainables.base import Frozen
from trainables.config import TrainConfig, setting
from trainables.io.storage import SharedPlace
from trainables.presets import set_paths, tells_apart

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$", max_length=60)]

#: Settings by the key of the file that holds them; later ones win.
Layers = dict[str, Mapping[str, Any]]


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
        None, gt=0, description="A run that may have to store more states and weights does not start."
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


class Halving(Frozen):
    """Asynchronous successive halving (ASHA): a trial that falls behind the others of its arm is ended.

    Source: Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning",
    https://arxiv.org/abs/1810.05934
    """

    grace_epochs: int = Field(gt=0, description="Epochs that every trial gets.")
    reduction_factor: float = Field(
        3, gt=1, description="One in so many goes on, asked at grace_epochs times 1, f, f^2, ..."
    )


class Search(Frozen):
    """For the best setting of each arm rather than for how it fares over all of them.

    Points come in rounds. The first is the design's; the settings of a later one follow from the results of
    those before, per arm and cell, each with the same number of points.
    """

    sampler: Literal["tpe", "gp", "design"] = Field(
        "tpe",
        description="Who chooses after the first round: Optuna's TPE, its Gaussian process, or the design.",
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

    name: Name = Field(description="Of the folder of results; the file's name if left out.")
    question: str = Field("", description="In words; it heads the report.")
    base: Settings = Field(
        description="Settings that all trials share, by path into TrainConfig.",
        examples=[{"model": "vit_c_1gf", "data": "digits", "schedule.epochs": 20}],
    )
    arms: dict[Name, Settings] = Field(
        min_length=1,
        description="What is compared, by name.",
        examples=[{"vit_p": {"model.stem": "patchify"}, "vit_c": {"model.stem": "conv"}}],
    )
    cells: dict[Name, dict[Name, Settings]] = Field(
        default_factory=dict,
        description="Under which settings it is compared: factor, level, settings.",
        examples=[{"optimizer": {"adamw": {"optim.name": "adamw"}, "sgd": {"optim.name": "sgd"}}}],
    )
    vary: dict[str, Window] = Field(
        default_factory=dict,
        max_length=500,
        description="What is drawn, and from where.",
        examples=[{"optim.lr": {"log_uniform": [2.5e-4, 8e-3]}}],
    )
    where: tuple[Annotated[str, AfterValidator(_readable)], ...] = Field(
        (),
        description="What every run must fulfil; a point that fails in one arm is left out of its cell.",
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
        default_factory=Resources, description="What a trial gets, and how many run at a time."
    )
    budget: Budget | None = Field(None, description="What the sweep may spend; without end if left out.")
    error: Literal["last_epoch", "best_epoch"] = Field(
        "last_epoch", description="Which epoch's error counts; the best one hides late divergence."
    )
    primary: Primary | None = Field(
        None, description="The one contrast declared beforehand; none if left out."
    )
    # Never written to the folder of results, nor shown: an address may hold a secret.
    notify: str | None = Field(
        None,
        exclude=True,
        repr=False,
        min_length=1,
        description="Whom to tell of the first result, a run that stops itself, and the end: URL or command.",
        examples=["https://hooks.example.org/$HOOK_TOKEN", "mail -s sweep me@example.org"],
    )
    paper: PaperSays | None = Field(
        None, description="What a paper says of these cells and arms, to stand beside what is found."
    )

    def all_cells(self) -> list[Cell]:
        """Every combination of levels, in the order of the file; one empty cell if there are none."""
        factors = [[(factor, level) for level in levels] for factor, levels in self.cells.items()]
        return [tuple(cell) for cell in itertools.product(*factors)]

    def cell_names(self) -> list[str]:
        """What the cells are called in plan, status and report."""
        return [cell_name(cell) for cell in self.all_cells()]

    def constraints(self) -> list[Constraint]:
        """What `where` says."""
        return [Constraint.parse(text) for text in self.where]

    # --- what is drawn

    @property
    def sampler(self) -> str | None:
        """Who chooses the points after the first round of a search; None where the design has them all."""
        return None if self.search is None or self.search.sampler == "design" else self.search.sampler

    @property
    def drawn(self) -> Design:
        """The design as far as it is drawn from: of a search with a sampler, its first round."""
        if self.search is None or self.sampler is None or isinstance(self.design, GridDesign):
            return self.design
        return self.design.model_copy(update={"points": min(self.search.round, self.design.points)})

    def levels(self) -> dict[str, int | None]:
        """Per parameter that the design draws how many values it has, None if too many to count.

        A parameter tied to another by `zip` is not among them: it takes the other's quantiles.
        """
        return {
            path: max((domain.num_levels for domain in window.domains()), key=lambda count: count or 0)
            for path, window in self.vary.items()
            if window.zip is None
        }

    def windows(self, arm: str, cell: Cell) -> dict[str, Domain]:
        """What may be drawn in one arm and cell, whatever `when` says."""
        found = {path: window.domain(arm, cell) for path, window in self.vary.items()}
        return {path: domain for path, domain in found.items() if domain is not None}

    def domains(self, arm: str, cell: Cell) -> dict[str, Domain]:
        """What varies in one arm and cell.

        A parameter is left out where base, cell and arm alone say that its `when` does not hold. One that
        waits for another drawn value is in; the points where it was not drawn have no value of it.
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
        """The values of one point, by path: those that `when` lets exist.

        Args:
          arm, cell: where.
          quantiles: in [0, 1], for every path in `levels`. A parameter's quantile follows from its name and
            the point alone, so two arms share it also where only one of them draws other parameters.
        """
        windows = self.windows(arm, cell)
        return self.existing(
            arm,
            cell,
            {path: domain.at(quantiles[self.vary[path].zip or path]) for path, domain in windows.items()},
        )

    def existing(self, arm: str, cell: Cell, values: Mapping[str, Any]) -> dict[str, Any]:
        """The values left after `when` has been asked, in the order of the file."""
        kept = {path: value for path, value in values.items() if not self.vary[path].when}
        for path in self.when_order(values):
            if self._wanted(path, arm, cell, kept):
                kept[path] = values[path]
        return {path: values[path] for path in values if path in kept}

    def when_order(self, paths: Mapping[str, Any]) -> list[str]:
        """The parameters with a `when`, each after those that it waits for.

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
        """The run and its resources for one arm, cell and point.

        Raises:
          ValidationError: the settings do not make a run.
        """
        tree, resources = self.merged(self.layers(arm, cell, values))
        return TrainConfig.model_validate(tree), Resources.model_validate(resources)

    def layers(self, arm: str, cell: Cell, values: Mapping[str, Any]) -> Layers:
        """What decides one run: base, then the cell's levels, the arm, and what was drawn."""
        levels = {f"cells.{factor}.{level}": self.cells[factor][level] for factor, level in cell}
        return {"base": self.base, **levels, f"arms.{arm}": self.arms[arm], "vary": values}

    def merged(self, layers: Layers) -> tuple[dict[str, Any], Any]:
        """The tree of a `TrainConfig` and that of its `Resources`, neither checked."""
        tree: dict[str, Any] = {}
        for layer in layers.values():
            set_paths(tree, layer)
        own = tree.pop("resources", {})
        return tree, {**self.resources.model_dump(), **own} if isinstance(own, Mapping) else own

    def source_of(self, path: str, arm: str, cell: Cell) -> str:
        """The key of the file that set a path, for messages."""
        return source_of(path, self.layers(arm, cell, self.domains(arm, cell)))


def source_of(path: str, layers: Layers) -> str:
    """The key of the file that set a path: the last layer that names it or a whole it is part of."""
    for prefix, layer in reversed(layers.items()):
        parts = path.split(".")
        if any(".".join(parts[:length]) in layer for length in range(1, len(parts) + 1)):
            return f"{prefix}.{path}"
    for prefix, layer in reversed(layers.items()):
        if any(key.startswith(f"{path}.") for key in layer):
            return f"{prefix}.{path}"
    return f"base.{path}"


def touches(setting: str, path: str) -> bool:
    """Whether setting one path may change another: the same, a part, a whole, or by a change of kind."""
    parent = setting.rpartition(".")[0]
    whole = parent if parent and tells_apart(setting) else setting
    return path == setting or path.startswith(f"{whole}.") or setting.startswith(f"{path}.")


def draws_data(path: str) -> bool:
    """Whether setting a path may change the data of a run, or of one that it starts from."""
    own = path.rpartition("start.run.")[2]
    return touches(own, "data") or touches(own, "start.run.data")


def cell_name(cell: Cell) -> str:
    """Levels joined by a slash; `all` where there is one cell only."""
    return "/".join(level for _, level in cell) or "all"


def iterate(sweep: Sweep) -> Iterator[tuple[str, Cell]]:
    """Every arm in every cell, cells first."""
    for cell in sweep.all_cells():
        for arm in sweep.arms:
            yield arm, cell
