"""Before the first trial: every shape of a sweep is built, the largest are run, and the storage is tried.

What is found is told like any other fault of a sweep file: where, which arm and cell, which rule.
"""

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.backends.base import Clock
from orchestrator.cost.actual import planned
from orchestrator.cost.devices import Machine, this_machine
from orchestrator.cost.estimate import GIB, estimate
from orchestrator.cost.shapes import Shape, ShapeTable, counted, shape_of
from orchestrator.cost.speed import Sample
from orchestrator.store.folder import save_planned
from orchestrator.store.history import past_samples
from orchestrator.trials.gang import Gang, Node, lane_plan
from orchestrator.trials.trial import Plan, Trial, unique_trials
from trainables.data.order import num_steps
from trainables.io.faults import Fault
from trainables.profiling.dry_run import Reply, Request, Unfit, check_model, check_sizes, check_start
from trainables.training.checkpoint import KEPT, checkpoint_bytes

#: Part of the plan's time that shapes may be run for; tiny sweeps get the least.
SHARE = 0.01
LEAST_SECONDS = 20.0

#: Most that two clocks may differ: a run whose sign of life is 60 s old counts as dead (`lease`).
CLOCK_SECONDS = 10.0

#: Tries a request where trials of a gang would run.
Checker = Callable[[Gang, Request], Reply]


@dataclass(frozen=True, slots=True)
class ShapeGroup:
    """Trials that either all start or all do not: they differ in rates, lengths and seeds."""

    shape: Shape
    trials: tuple[Trial, ...]

    @property
    def name(self) -> str:
        """The first cell and arm with it, and the shape."""
        first = self.trials[0]
        more = len({(trial.cell_name, trial.arm) for trial in self.trials}) - 1
        others = f" and {more} other(s)" if more else ""
        return f"{first.cell_name} {first.arm_and_stage}{others} (batch {self.shape.name})"


@dataclass(frozen=True, slots=True)
class Checked:
    """A shape that was run.

    Attributes:
      planned_bytes: most that a worker should hold, counted.
      peak_bytes: most that it held; None on a CPU.
    """

    subject: ShapeGroup
    planned_bytes: int
    step_seconds: float
    peak_bytes: int | None


@dataclass(frozen=True)
class PreflightResult:
    """What a preflight found.

    Attributes:
      shapes: how many there are.
      checked: those that were run, largest first.
      faults: what has to be mended before the sweep can run.
      seconds: what all of it took.
      plan_seconds: what the sweep's training will take at the pace seen; None if none was seen.
    """

    shapes: int
    checked: tuple[Checked, ...]
    faults: tuple[Fault, ...]
    seconds: float
    plan_seconds: float | None

    def line(self) -> str:
        """In one line, for people."""
        text = f"preflight: {self.shapes} shape{'s' * (self.shapes != 1)}, {self.seconds:.0f} s"
        if self.faults:
            return f"{text}, {len(self.faults)} fault{'s' * (len(self.faults) > 1)}"
        if self.plan_seconds:
            share = 100 * self.seconds / self.plan_seconds
            text += f", {share:{'.0f' if share >= 10 else '.2g'}} % of the plan"
        if skipped := self.shapes - len(self.checked):
            text += f"; {skipped} built, but not run: the limit is {100 * SHARE:g} %, or {LEAST_SECONDS:g} s"
        return text

    def rows(self) -> list[dict[str, Any]]:
        """What was run, for a table."""
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
    """The distinct shapes among some trials, those that should need most memory first."""
    groups: dict[tuple[Any, ...], list[Trial]] = {}
    for trial in unique_trials(trials):
        groups.setdefault(_kind(trial), []).append(trial)
    found = [ShapeGroup(shape_of(members[0]), tuple(members)) for members in groups.values()]
    return sorted(found, key=lambda subject: -_size(plan, subject))


def _kind(trial: Trial) -> tuple[Any, ...]:
    """What decides whether a trial can start: of strengths and rates only whether there are any.

    A setting that is not named here counts with its value, so one that is new makes a shape too many and
    not one too few.
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
    """Numbers that a step holds, roughly: only the order matters, and counting takes a second a shape."""
    cost, config = plan.cost(subject.trials[0]).model, subject.shape.config
    share = config.batch_size / subject.shape.gang.workers
    return share * cost.activations_m + 4 * cost.params_m


def plan_seconds(
    plan: Plan, found: Sequence[ShapeGroup], checked: Iterable[Checked], nodes: Sequence[Node]
) -> float | None:
    """Seconds of training in all trials, at the pace of the steps that were run; None if none was.

    A shape that was not run is taken to be as fast per multiply-add as the others are on average.
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
    """What the steps that were run tell of an epoch, the rest of which is taken to be as fast per flop."""
    found = []
    for item in checked:
        shape = item.subject.shape
        if not item.step_seconds:
            continue
        held, epochs = counted(plan, shape, bool(shape.gang.on(nodes).gpus))
        seconds = item.step_seconds * epochs.work.flops / held.step.flops
        found.append(Sample(shape, device, epochs, (seconds,), basis="preflight"))
    return found


def _lanes(plan: Plan, trials: Iterable[Trial], nodes: Sequence[Node]) -> dict[Gang, int]:
    phases = lane_plan(trials, nodes, plan.sweep.resources.lanes)
    return {trial.gang: phase.lanes for phase in phases for trial in phase.trials}


def _together(gang: Gang, lanes: int, nodes: Sequence[Node]) -> int:
    """Most workers that share a memory: a GPU's, or else a machine's."""
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
) -> PreflightResult:
    """Looks for what would end trials of a sweep at their first step. Leaves nothing behind.

    Args:
      plan: the sweep.
      trials: those that are to run.
      nodes: what they run on.
      checker: tries one of them there.
      folder: of the results; it need not exist.
      clocks: of other machines.
      clock: seconds.
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
    with storage(folder) as (probe, storage_faults, storage_clocks):
        faults += storage_faults
        faults += clock_faults([*storage_clocks, *clocks])
        if not storage_faults:
            faults += _space_faults(buildable, lanes, folder, plan.sweep.resources.checkpoints)
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
                str(probe or ""),
            )
            reply = checker(gang, request)
            if reply.rule:
                failed += 1
                told.add(subject, reply.setting, reply.rule)
            else:
                checked.append(Checked(subject, planned, reply.step_seconds or 0.0, reply.peak_bytes))
    seconds = plan_seconds(plan, found, checked, nodes)
    return PreflightResult(len(found), tuple(checked), (*faults, *told.faults()), clock() - began, seconds)


def _build_fault(plan: Plan, subject: ShapeGroup, built: dict[tuple[Any, ...], Unfit | None]) -> Unfit | None:
    """What is wrong without running anything; every network is built once."""
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
    """Faults of shapes; the same one of many shapes is told once."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._groups: dict[tuple[str, str], list[ShapeGroup]] = {}

    def add(self, subject: ShapeGroup, setting: str, rule: str) -> None:
        """One shape's."""
        first, path = subject.trials[0], setting
        if first.role == "first_stage" and not setting.startswith(("--", "resources")):
            setting = "start.run." * (first.replicate + 1) + setting
        if not setting.startswith("--"):
            path = self._plan.sweep.source_of(setting, first.arm, first.cell)
        # Resources stand at the top of a file unless an arm or a level has its own.
        path = "resources" if path == "base.resources" else path
        self._groups.setdefault((path, rule), []).append(subject)

    def faults(self) -> list[Fault]:
        """All of them."""
        return [
            Fault(path, f"{members[0].name}{_and_others(len(members) - 1)}: {rule}")
            for (path, rule), members in self._groups.items()
        ]


def _and_others(count: int) -> str:
    return f" and {count} other shape{'s' * (count > 1)}" if count else ""


# ---------------------------------------------------------------------------------------------------
# Storage and clocks


@contextlib.contextmanager
def storage(folder: Path) -> Iterator[tuple[Path | None, list[Fault], list[Clock]]]:
    """Tries the storage that a folder is on as the journal and checkpoints use it.

    Yields:
      A new folder there, deleted afterwards; None where there is a fault. Faults. The storage's clock.
    """
    # As workers on other machines name it.
    there = folder.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    probe, faults, clocks = None, [], []
    try:
        probe = Path(tempfile.mkdtemp(prefix=".preflight-", dir=there))
        asked = time.time()
        _write_durably(probe)
        clocks.append(Clock(f"the storage of {there}", asked, (probe / "b").stat().st_mtime, time.time()))
    except OSError as error:
        faults.append(Fault("--out", f"cannot write to {there}: {error.strerror or error}"))
    try:
        yield (None if faults else probe), faults, clocks
    finally:
        if probe is not None:
            shutil.rmtree(probe, ignore_errors=True)


def _write_durably(folder: Path) -> None:
    """A write, fsync, append, rename and read, with content that has to come back."""
    content = os.urandom(2**16)
    with (folder / "a").open("wb") as file:
        file.write(content[:100])
        file.flush()
        os.fsync(file.fileno())
    with (folder / "a").open("ab") as file:
        file.write(content[100:])
        file.flush()
        os.fsync(file.fileno())
    os.replace(folder / "a", folder / "b")
    if (folder / "b").read_bytes() != content:
        raise OSError("what was written is not what is read")


def clock_faults(clocks: Iterable[Clock]) -> list[Fault]:
    """Clocks that differ from this machine's by more than leases bear."""
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
    """Whether the checkpoints of all trials in flight have room; those that have ended keep none.

    `checkpoints` is where they lie if not in the sweep's folder; of buckets nobody knows the room.
    """
    if checkpoints is not None:
        folder = Path(checkpoints.removeprefix("file://"))
        if not folder.is_absolute():
            return []
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    sizes: dict[Gang, int] = {}
    for subject in found:
        gang = subject.shape.gang
        sizes[gang] = max(sizes.get(gang, 0), checkpoint_bytes(subject.shape.config))
    # Gangs of one kind run after those of another.
    worst = max(sizes, key=lambda gang: sizes[gang] * lanes[gang], default=None)
    if worst is None:
        return []
    # Those that are kept, and the one that is being written.
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


#: Sweeps beside a new one whose rows its plan goes by, the newest: to read large ones takes seconds each.
_NEWEST = 3

#: Shapes that are counted for the record at the start of a run; each takes up to a second.
MAX_RECORDED_SHAPES = 64


def record_plan(folder: Path, plan: Plan, nodes: Sequence[Node], checked: Sequence[Checked]) -> bool:
    """Writes into a sweep's folder what it is expected to cost, for the report; before the first trial runs.

    Args:
      folder: of the sweep.
      plan: the sweep.
      nodes: what it is to run on.
      checked: what its preflight has run.

    Returns:
      Whether it has; not of a sweep of more than `MAX_RECORDED_SHAPES` shapes.
    """
    if len(ShapeTable(plan).groups) > MAX_RECORDED_SHAPES:
        return False
    here = this_machine()
    # GPUs of other machines have a name that is not known here.
    device = "GPU" if any(node.gpus for node in nodes) and not here.has_gpus else here.device
    machine = Machine(device, tuple(nodes), here.memory_gib)
    samples, _ = past_samples(folder.parent, newest=_NEWEST)
    samples += samples_of_steps(plan, checked, machine.device, nodes)
    made = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    save_planned(folder, planned(plan, estimate(plan, machine, samples), made))
    return True
