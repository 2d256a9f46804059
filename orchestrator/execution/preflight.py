"""The preflight before the first trial: builds all shapes, runs the largest, and tests the storage.

Faults are reported like those of a sweep file: with the setting, arm and cell, and the rule that is broken.
"""

import contextlib
import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.backends.base import Clock
from orchestrator.cost.actual import planned
from orchestrator.cost.devices import Machine, this_machine
from orchestrator.cost.estimate import GIB, CostEstimate, estimate
from orchestrator.cost.shapes import Shape, ShapeTable, counted, shape_of
from orchestrator.cost.speed import Sample, seconds_of_steps
from orchestrator.execution.states_probe import STATES, StatesProbe, must_reach, storage
from orchestrator.store.folder import functions_of, save_planned
from orchestrator.store.history import past_samples
from orchestrator.trials.gang import Gang, Node, lane_plan
from orchestrator.trials.trial import Plan, Trial, unique_trials
from trainables.data.order import num_steps
from trainables.io.faults import Fault
from trainables.io.storage import open_filesystem
from trainables.profiling.dry_run import Reply, Request, Unfit, check_model, check_sizes, check_start
from trainables.training.checkpoint import KEPT, checkpoint_bytes

#: Largest share of the plan's time for running shapes; LEAST_SECONDS are always allowed.
SHARE = 0.01
LEAST_SECONDS = 20.0

#: Most seconds that two clocks may differ: a run without a heartbeat for 60 s counts as dead (`lease`).
CLOCK_SECONDS = 10.0

#: Tries a request on a machine where trials of a gang would run.
Checker = Callable[[Gang, Request], Reply]


@dataclass(frozen=True, slots=True)
class ShapeGroup:
    """Trials of one shape. They differ only in rates, lengths and seeds, so all can start or none can."""

    shape: Shape
    trials: tuple[Trial, ...]

    @property
    def name(self) -> str:
        """The first cell and arm of the group, and the shape."""
        first = self.trials[0]
        more = len({(trial.cell_name, trial.arm) for trial in self.trials}) - 1
        others = f" and {more} other(s)" if more else ""
        return f"{first.cell_name} {first.arm_and_stage}{others} (batch {self.shape.name})"


@dataclass(frozen=True, slots=True)
class Checked:
    """A shape that was run.

    Attributes:
      planned_bytes: counted peak memory of a worker.
      peak_bytes: measured peak memory of a worker; None on a CPU.
    """

    subject: ShapeGroup
    planned_bytes: int
    step_seconds: float
    peak_bytes: int | None


@dataclass(frozen=True)
class PreflightResult:
    """The results of a preflight.

    Attributes:
      shapes: number of shapes.
      checked: shapes that were run, largest first.
      faults: to be fixed before the sweep can run.
      seconds: duration of the preflight.
      plan_seconds: predicted duration of the sweep's training at the measured pace; None if no shape was run.
      expected: how long the trials will take, as a sentence; empty if that is unknown.
      alone: whether there are machines that do not reach the place of states.
    """

    shapes: int
    checked: tuple[Checked, ...]
    faults: tuple[Fault, ...]
    seconds: float
    plan_seconds: float | None
    expected: str = ""
    alone: bool = False

    def line(self) -> str:
        """Returns a one-line summary for the user."""
        text = f"preflight, {self.seconds:.0f} s: "
        if self.faults:
            return f"{text}{len(self.faults)} fault{'s' * (len(self.faults) > 1)}"
        kinds = f"{self.shapes} kind{'s' * (self.shapes != 1)} of trial"
        if not (skipped := self.shapes - len(self.checked)):
            return f"{text}{kinds} made two steps"
        return (
            f"{text}{len(self.checked)} of {kinds} made two steps; the other {skipped} were only built, as "
            f"trying may take {100 * SHARE:g} % of the sweep's time at most, or {LEAST_SECONDS:g} s"
        )

    def rows(self) -> list[dict[str, Any]]:
        """Returns a table row for each shape that was run."""
        return [
            {
                "shape": found.subject.name,
                "trials": len(found.subject.trials),
                "planned GiB": found.planned_bytes / GIB,
                "peak GiB": None if found.peak_bytes is None else found.peak_bytes / GIB,
                "s/step": found.step_seconds,
            }
            for found in self.checked
        ]


# ---------------------------------------------------------------------------------------------------
# Which shapes


def subjects(plan: Plan, trials: Iterable[Trial]) -> list[ShapeGroup]:
    """Returns the distinct shapes of trials, sorted by estimated memory, largest first."""
    groups: dict[tuple[Any, ...], list[Trial]] = {}
    for trial in unique_trials(trials):
        groups.setdefault(_kind(trial), []).append(trial)
    found = [ShapeGroup(shape_of(members[0]), tuple(members)) for members in groups.values()]
    return sorted(found, key=lambda subject: -_size(plan, subject))


def _kind(trial: Trial) -> tuple[Any, ...]:
    """Returns the settings that decide whether a trial can start, as a key.

    Strengths and rates are left out. Settings not named here count with their value, so that a new setting
    makes too many shapes rather than too few.
    """
    shape = shape_of(trial)
    config = shape.config
    rest = config.model_dump(exclude={"model", "data", "augment", "optim"})
    return (
        config.model.model_copy(update={"drop_path": 0.0}),
        config.data,
        config.augment.name,
        config.optim.name,
        json.dumps(rest, sort_keys=True, default=str),
        shape.gang,
        trial.role == "first_stage",
        (start := trial.config.start) and (start.parts, start.run.model, start.run.data),
    )


def _size(plan: Plan, subject: ShapeGroup) -> float:
    """Estimates the millions of numbers that a step holds.

    Rough, because only the order matters and an exact count takes a second per shape.
    """
    cost, config = plan.cost(subject.trials[0]).model, subject.shape.config
    share = config.batch_size / subject.shape.gang.workers
    return share * cost.activations_m + 4 * cost.params_m


def plan_seconds(
    plan: Plan, found: Sequence[ShapeGroup], checked: Iterable[Checked], nodes: Sequence[Node]
) -> float | None:
    """Returns seconds of training in all trials, at the pace of the steps run. None if none was run.

    A shape that was not run is assumed to have the average speed per multiply-add of those that were.
    """
    paces = {item.subject.shape: item.step_seconds for item in checked}
    known_seconds = known_flops = 0.0
    unknown_flops: dict[Gang, float] = {}
    seconds: dict[Gang, float] = {}
    for subject in found:
        gang, pace = subject.shape.gang, paces.get(subject.shape)
        for trial in subject.trials:
            cost = plan.cost(trial)
            if pace is None:
                unknown_flops[gang] = unknown_flops.get(gang, 0.0) + cost.train_flops
                continue
            steps = num_steps(plan.infos[trial.config.data].sizes["train"], trial.config.batch_size)
            seconds[gang] = seconds.get(gang, 0.0) + pace * steps * cost.epochs
            known_seconds += pace * steps * cost.epochs
            known_flops += cost.train_flops
    if not known_flops:
        return None
    counts = _lanes(plan, [trial for subject in found for trial in subject.trials], nodes)
    return sum(
        (seconds.get(gang, 0.0) + unknown_flops.get(gang, 0.0) * known_seconds / known_flops) / max(lanes, 1)
        for gang, lanes in counts.items()
    )


def samples_of_steps(
    plan: Plan, checked: Iterable[Checked], device: str, nodes: Sequence[Node]
) -> list[Sample]:
    """Returns seconds per epoch, predicted from the measured steps."""
    found = []
    for item in checked:
        shape = item.subject.shape
        if not item.step_seconds:
            continue
        gang = shape.gang.on(nodes)
        held, epochs = counted(plan, shape, bool(gang.gpus))
        seconds = seconds_of_steps(
            item.step_seconds, held.step, epochs, gang.cores_on(nodes), bool(gang.gpus)
        )
        found.append(Sample(shape, device, epochs, (seconds,), basis="preflight"))
    return found


def _lanes(plan: Plan, trials: Iterable[Trial], nodes: Sequence[Node]) -> dict[Gang, int]:
    crews = lane_plan(trials, nodes, plan.sweep.resources.lanes)
    return {trial.gang: crew.lanes for crew in crews for trial in crew.trials}


def _together(gang: Gang, lanes: int, nodes: Sequence[Node]) -> int:
    """Returns the most workers that share the memory of a GPU, or of a machine if there are no GPUs."""
    if gang.gpus:
        return max(int(1 / gang.gpus), 1)
    a_node = max((int(node.cpus // gang.cpus) for node in nodes), default=1)
    return max(1, min(a_node, lanes * gang.workers))


# ---------------------------------------------------------------------------------------------------
# All of it


def preflight(
    plan: Plan,
    trials: Sequence[Trial],
    nodes: Sequence[Node],
    checker: Checker,
    folder: Path,
    clocks: Sequence[Clock] = (),
    clock: Callable[[], float] = time.monotonic,
    alone: Callable[[str, str], list[str]] = lambda address, content: [],
) -> PreflightResult:
    """Finds faults that would end trials of a sweep at their first step. Leaves no files.

    Args:
      plan: the sweep.
      trials: the trials to run.
      nodes: machines that they run on.
      checker: tries a shape on such a machine.
      folder: of the results; it need not exist.
      clocks: of other machines.
      clock: returns seconds.
      alone: returns the machines that do not read this content at this address.
    """
    began = clock()
    found = subjects(plan, trials)
    lanes = _lanes(plan, trials, nodes)
    told = _Told(plan)
    faults: list[Fault] = []
    buildable = []
    built: dict[tuple[Any, ...], Unfit | None] = {}
    for subject in found:
        if (error := _build_fault(plan, subject, built)) is not None:
            told.add(subject, error.setting, error.rule)
        elif not lanes[subject.shape.gang]:
            have = "; ".join(f"{node.cpus:g} CPU, {node.gpus:g} GPU" for node in nodes)
            wanted = subject.shape.gang.on(nodes)
            told.add(subject, "resources", f"needs {wanted}, and there is no room: {have}")
        else:
            buildable.append(subject)
    checked: list[Checked] = []
    with contextlib.ExitStack() as stack:
        probe, storage_faults, storage_clocks = stack.enter_context(storage(folder))
        faults += storage_faults
        faults += clock_faults([*storage_clocks, *clocks])
        checkpoints = plan.sweep.resources.checkpoints
        if not storage_faults:
            faults += _space_faults(buildable, lanes, folder, checkpoints)
        states = stack.enter_context(StatesProbe(checkpoints, probe, must_reach(plan, folder)))
        is_alone = bool(states.unreached(alone))
        faults += states.faults
        failed = 0
        for subject in buildable:
            allowed = max(LEAST_SECONDS, SHARE * (plan_seconds(plan, found, checked, nodes) or 0.0))
            if (checked or failed) and clock() - began > allowed:
                break
            gang = subject.shape.gang.on(nodes)
            planned = counted(plan, subject.shape, bool(gang.gpus))[0].peak
            request = Request(
                subject.trials[0].config,
                gang.workers,
                gang.cpus,
                planned,
                _together(gang, lanes[subject.shape.gang], nodes),
                states.address,
                states.mark,
                "--out" if checkpoints is None and not states.must_reach else STATES,
                states.must_reach,
                str(folder.absolute()),
                {d: f.source().decode("latin-1") for d, f in functions_of(subject.trials).items()},
                "cuda" if gang.gpus else "cpu",
            )
            reply = checker(gang, request)
            is_alone = is_alone or not reply.reaches
            if reply.rule:
                failed += 1
                told.add(subject, reply.setting, reply.rule)
            else:
                checked.append(Checked(subject, planned, reply.step_seconds or 0.0, reply.peak_bytes))
    seconds = plan_seconds(plan, found, checked, nodes)
    faults += told.faults()
    return PreflightResult(
        len(found), tuple(checked), tuple(faults), clock() - began, seconds, alone=is_alone
    )


def _build_fault(plan: Plan, subject: ShapeGroup, built: dict[tuple[Any, ...], Unfit | None]) -> Unfit | None:
    """Returns a fault that shows without running a step. None if there is none. Builds a network once."""
    config = subject.shape.config
    info = plan.infos[config.data]
    model, task = config.model.model_copy(update={"drop_path": 0.0}), config.data.task
    key = (model, task.name, info.num_classes)
    try:
        check_sizes(config, info, subject.shape.gang.workers)
    except Unfit as error:
        return error
    if key not in built:
        try:
            check_model(model, task, info.num_classes)
            built[key] = None
        except Unfit as error:
            built[key] = error
    if built[key] is None and (start := subject.trials[0].config.start) is not None:
        try:
            check_start(start, model, info.num_classes, plan.infos[start.run.data].num_classes)
        except Unfit as error:
            return error
    return built[key]


class _Told:
    """Faults of shapes. A fault that many shapes share is reported once."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._groups: dict[tuple[str, str], list[ShapeGroup]] = {}

    def add(self, subject: ShapeGroup, setting: str, rule: str) -> None:
        """Adds a fault of one shape."""
        first, path = subject.trials[0], setting
        if first.role == "first_stage" and not setting.startswith(("--", "resources")):
            setting = "start.run." * (first.replicate + 1) + setting
        if not setting.startswith("--") and setting != STATES:
            path = self._plan.sweep.source_of(setting, first.arm, first.cell)
        # Resources are at the top of a file unless an arm or a level sets them.
        path = "resources" if path == "base.resources" else path
        self._groups.setdefault((path, rule), []).append(subject)

    def faults(self) -> list[Fault]:
        """Returns all faults."""
        return [
            Fault(path, f"{members[0].name}{_and_others(len(members) - 1)}: {rule}")
            for (path, rule), members in self._groups.items()
        ]


def _and_others(count: int) -> str:
    return f" and {count} other shape{'s' * (count > 1)}" if count else ""


# ---------------------------------------------------------------------------------------------------
# Storage and clocks


def clock_faults(clocks: Iterable[Clock]) -> list[Fault]:
    """Returns a fault for each clock that differs from this machine's by more than leases allow."""
    return [
        Fault(
            "clock",
            f"{clock.whose} is {abs(clock.ahead):.0f} s {'ahead of' if clock.ahead > 0 else 'behind'} this "
            f"machine, and {CLOCK_SECONDS:g} s are allowed: set the clocks, by NTP for instance",
        )
        for clock in clocks
        if abs(clock.ahead) > CLOCK_SECONDS
    ]


def _space_faults(
    found: Iterable[ShapeGroup], lanes: Mapping[Gang, int], folder: Path, checkpoints: str | None
) -> list[Fault]:
    """Checks that there is room for the checkpoints of all trials in flight. Ended trials have none.

    `checkpoints` is their place if not the sweep's folder. A bucket is not checked, as its room is unknown.
    """
    if checkpoints is not None:
        if "://" in checkpoints and not checkpoints.startswith("file://"):
            return []
        folder = Path(open_filesystem(checkpoints)[1])
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    sizes: dict[Gang, int] = {}
    for subject in found:
        gang = subject.shape.gang
        sizes[gang] = max(sizes.get(gang, 0), checkpoint_bytes(subject.shape.config))
    # Only the worst kind of gang counts, because kinds run one after the other.
    worst = max(sizes, key=lambda gang: sizes[gang] * lanes[gang], default=None)
    if worst is None:
        return []
    # The checkpoints that are kept, and the one that is being written.
    files = KEPT + 1
    wanted, free = files * sizes[worst] * lanes[worst], shutil.disk_usage(there).free
    if wanted <= free:
        return []
    return [
        Fault(
            "--out" if checkpoints is None else "resources.checkpoints",
            f"checkpoints take {wanted / GIB:.3g} GiB ({lanes[worst]} trials at a time, {files} files of "
            f"{sizes[worst] / GIB:.2g} GiB each), and {there} has {free / GIB:.3g} GiB free",
        )
    ]


#: Number of neighbouring sweeps, the newest, whose speeds a plan uses; a large one takes seconds to read.
_NEWEST = 3

#: Most shapes for which the plan is recorded at the start of a run; each takes up to a second.
MAX_RECORDED_SHAPES = 64


def expected_cost(
    plan: Plan, trials: Sequence[Trial], nodes: Sequence[Node], folder: Path, checked: Sequence[Checked] = ()
) -> CostEstimate | None:
    """Returns the expected cost of some trials of a plan. None if they have too many shapes to count.

    Args:
      plan: the sweep.
      trials: the trials.
      nodes: machines that they will run on.
      folder: of the sweep; speeds are taken from it and from those beside it.
      checked: shapes that the preflight has run.
    """
    plan = dataclasses.replace(plan, trials=tuple(trials))
    if len(ShapeTable(plan).groups) > MAX_RECORDED_SHAPES:
        return None
    here = this_machine()
    # The names of other machines' GPUs are not known here.
    device = "GPU" if any(node.gpus for node in nodes) and not here.has_gpus else here.device
    machine = Machine(device, tuple(nodes), here.memory_gib)
    samples, _ = past_samples(folder.parent, newest=_NEWEST)
    samples += samples_of_steps(plan, checked, machine.device, nodes)
    return estimate(plan, machine, samples)


def expected_text(
    plan: Plan, trials: Sequence[Trial], nodes: Sequence[Node], folder: Path, checked: Sequence[Checked] = ()
) -> str:
    """Returns how long some trials will take, as a sentence. Empty if no speed is known."""
    found = expected_cost(plan, trials, nodes, folder, checked) if trials else None
    return found.time_text(len(unique_trials(trials))) if found else ""


def record_plan(folder: Path, plan: Plan, nodes: Sequence[Node], checked: Sequence[Checked]) -> bool:
    """Records the expected cost of a sweep in its folder, for the report. Called before the first trial runs.

    Args:
      folder: of the sweep.
      plan: the sweep.
      nodes: machines that it will run on.
      checked: shapes that the preflight has run.

    Returns:
      Whether the cost was recorded. It is not if there are more than `MAX_RECORDED_SHAPES` shapes.
    """
    found = expected_cost(plan, plan.trials, nodes, folder, checked)
    if found is None:
        return False
    made = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    save_planned(folder, planned(plan, found, made))
    return True
