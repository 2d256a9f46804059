"""A session: runs the trials of a plan in a held folder and reports to its observers. It prints nothing.

A session covers the preflight, the rounds of a search, the budget, stop requests and an orderly end. Ctrl-C
arrives as a `KeyboardInterrupt`; other signals are the caller's responsibility. `lease.request_stop` stops a
session from another process. Ray is imported when the trials start.
"""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from orchestrator.backends.local import check_temporary_folder, ray_folder
from orchestrator.cost.actual import within_budget
from orchestrator.cost.devices import this_machine
from orchestrator.cost.estimate import storage_fault
from orchestrator.execution.preflight import (
    Checked,
    PreflightResult,
    expected_text,
    preflight,
    record_plan,
)
from orchestrator.execution.preflight_child import Child
from orchestrator.execution.states_probe import ALONE, StatesProbe, must_reach, storage
from orchestrator.execution.waiting import WAIT_MINUTES, Watch
from orchestrator.monitor.observer import Level, Observer, Round, SessionEnd
from orchestrator.monitor.progress import Progress
from orchestrator.store.folder import (
    Folder,
    check_shifted,
    confirmed_plan,
    known_infos,
    load_confirmation,
    merge_points,
    open_folder,
    plan_of,
    save_question,
    save_record,
    save_suggestions,
    shifted_contents,
)
from orchestrator.store.journal import FolderError
from orchestrator.store.lease import Lease, check_free
from orchestrator.sweep.config import Sweep
from orchestrator.trials.confirm import Confirmation, choose, with_confirmation
from orchestrator.trials.events import AttemptEnded, EpochDone, Event
from orchestrator.trials.gang import Gang, Node
from orchestrator.trials.plan import make_plan
from orchestrator.trials.records import results_of
from orchestrator.trials.remarks import remarks
from orchestrator.trials.rounds import look_lines
from orchestrator.trials.search import next_round, num_rounds, rounds_given
from orchestrator.trials.sweep_file import SweepFile
from orchestrator.trials.trial import Plan, Trial, unique_trials
from trainables.errors import Unavailable
from trainables.io.faults import Fault

if TYPE_CHECKING:
    from orchestrator.execution import run as execution_run

#: When a run that extends its sweep by itself stops.
Until = Literal["settled"]

#: Seconds between two polls for events.
_LOOK_SECONDS = 0.25


@dataclass(frozen=True)
class Preparation:
    """The preflight's part of a session.

    Attributes:
      began: time when the command began, in seconds since 1970.
      seconds: duration of the preflight.
      checked: shapes that the preflight ran; the recorded plan is based on their speed.
      shifted: contents of the shifted sets, by `shifted_contents`; None if not looked at yet.
    """

    began: float = field(default_factory=time.time)
    seconds: float = 0.0
    checked: tuple[Checked, ...] = ()
    shifted: dict[str, list[str]] | None = None


# ---------------------------------------------------------------------------------------------------
# Before the folder is held


def prepare(
    file: SweepFile,
    folder: Path,
    observers: Sequence[Observer] = (),
    address: str | None = None,
    check: bool = True,
    wait_minutes: float = WAIT_MINUTES,
    until: Until | None = None,
) -> tuple[Plan, Preparation]:
    """Plans a sweep for its folder, and tries the trials left to run. Writes nothing.

    With `until`, the trials up to the last look are planned and tried, too.

    Raises:
      Unavailable: no machine came that a trial fits on.
      SweepError: the sweep cannot start; the error lists all faults.
      FolderError: another run holds the folder, or it holds another sweep.
    """
    # Checked first, so that a folder in use is reported before the preflight.
    check_free(folder)
    sweep = file.sweep
    if _is_sweep(folder):
        before, sweep = sweep, merge_points(folder, sweep)
        if sweep != before:
            _notice(observers, f"{folder} was extended before; it keeps its larger number of points")
    known = open_folder(folder) if _is_sweep(folder) else None
    longest = sweep
    if until:
        if faults := _faults_of_until(sweep):
            raise file.error(faults)
        longest = _at_last_look(sweep, known)
    whole = file.plan(longest)
    plan = plan_of(folder, sweep, known_infos(folder, whole.infos))
    preparation = Preparation()
    shifted = None
    if known is not None:
        # Before the preflight, which takes much longer.
        shifted = shifted_contents(plan)
        check_shifted(folder, known.records, shifted)
    left = left_of(plan, known)
    from orchestrator.analysis.contrasts import looks_of

    looks = looks_of(sweep, known.declared) if known else None
    for observer in observers:
        observer.planned(plan, left, looks)
    if check:
        if not left and rounds_given(plan) < num_rounds(sweep):
            # Rounds of a search that are not chosen yet have the same shapes.
            left = list(whole.trials)
        # Before the folder is created, so that a sweep that cannot start leaves no folder.
        later = whole.trials if until else ()
        preparation = checked(file, plan, left, folder, observers, address, wait_minutes, later)
    return plan, dataclasses.replace(preparation, shifted=shifted)


def _faults_of_until(sweep: Sweep) -> list[Fault]:
    from orchestrator.analysis.until import faults_of_until

    return faults_of_until(sweep)


def _at_last_look(sweep: Sweep, known: Folder | None) -> Sweep:
    from orchestrator.execution.looks import extended, looks_in

    last = looks_in(sweep, known)[-1]
    return extended(sweep, max(last, sweep.design.num_points(sweep.levels())))


def checked(
    file: SweepFile,
    plan: Plan,
    trials: Sequence[Trial],
    folder: Path,
    observers: Sequence[Observer] = (),
    address: str | None = None,
    wait_minutes: float = WAIT_MINUTES,
    later: Sequence[Trial] = (),
) -> Preparation:
    """Tries trials before they run. There may be none. `later` are trials that may follow them.

    Raises:
      Unavailable: no machine came that a trial fits on. Nothing was written.
      SweepError: they cannot start; the error lists all faults with their place in the file. Nothing was
        written.
    """
    preparation = Preparation()
    if not trials:
        return preparation
    outcome = try_out(plan, trials, folder, observers, address, wait_minutes, later)
    if outcome.faults:
        raise file.error(outcome.faults)
    if outcome.expected:
        _notice(observers, outcome.expected)
    return Preparation(preparation.began, outcome.seconds, outcome.checked)


def try_out(
    plan: Plan,
    trials: Sequence[Trial],
    folder: Path,
    observers: Sequence[Observer] = (),
    address: str | None = None,
    wait_minutes: float = WAIT_MINUTES,
    later: Sequence[Trial] = (),
) -> PreflightResult:
    """Runs the preflight on the machines of the trials. The caller reports the faults.

    The shapes of `later` trials are tried, too. The time that is expected is without them.

    Raises:
      Unavailable: no machine came that a trial fits on.
    """
    tried = unique_trials([*trials, *later])
    for remark in remarks(plan):
        _notice(observers, f"note: {remark}", "warning")
    if address is None:
        # Before the minutes that the rest takes.
        ray_folder()
        check_temporary_folder()
        machine = this_machine()
        nodes: Sequence[Node] = machine.nodes
        with Child(machine.has_gpus, 60 * plan.sweep.resources.hang_minutes) as child:
            outcome = preflight(plan, tried, nodes, child, folder)
    else:
        from orchestrator.backends import ray_cluster
        from orchestrator.execution import preflight_workers

        ray_cluster.connect(address)
        nodes = ray_cluster.nodes()
        watch = _watch(wait_minutes, observers)
        try:
            outcome = preflight(
                plan,
                tried,
                nodes,
                functools.partial(preflight_workers.check_start, watch=watch),
                folder,
                ray_cluster.clocks(),
                alone=preflight_workers.machines_without,
            )
        except Unavailable:
            ray_cluster.shutdown()
            raise
        if outcome.faults:
            ray_cluster.shutdown()
    for observer in observers:
        if fault := observer.fault(folder):
            _notice(observers, f"warning: {fault}; the sweep would go on without", "warning")
    _notice(observers, outcome.line(), "detail")
    if outcome.faults:
        return outcome
    if outcome.alone:
        _notice(observers, ALONE, "warning")
    return dataclasses.replace(outcome, expected=expected_text(plan, trials, nodes, folder, outcome.checked))


def left_of(plan: Plan, known: Folder | None) -> list[Trial]:
    """Returns the trials that have not ended, each once. Without a folder these are all trials."""
    records = known.records if known else {}
    return unique_trials(plan.remaining(key for key, record in records.items() if record.settled))


def check_data(known: Folder) -> dict[str, list[str]]:
    """Checks that the data and the shifted sets are still those the sweep ran on.

    Returns:
      Contents of the shifted sets, by `shifted_contents`, which the session need not read again.

    Raises:
      FolderError: the data have changed.
    """
    for config, info in known.plan.infos.items():
        if not config.info().is_known_as(info.fingerprint):
            raise FolderError(f"{known.path}: the data {info.name} have changed since the sweep ran")
    shifted = shifted_contents(known.plan)
    check_shifted(known.path, known.records, shifted)
    return shifted


def choose_confirmation(known: Folder, top: int, seeds: int) -> tuple[Plan, Confirmation]:
    """Chooses the best settings of a sweep that has ended, and plans to run them with fresh seeds.

    Raises:
      FolderError: the sweep has not ended, or has been confirmed with another choice.
    """
    folder, before = known.path, load_confirmation(known.path)
    draws = [result for result in results_of(known.plan, known.records) if result.trial.is_tried]
    if num_open := sum(not result.record.settled for result in draws):
        raise FolderError(f"{folder}: {num_open} trials of the sweep have not ended; run it to its end first")
    if (rounds := num_rounds(known.plan.sweep)) > (so_far := rounds_given(known.plan)):
        raise FolderError(
            f"{folder}: the search has had {so_far} of {rounds} rounds; run it to its end first"
        )
    choice = choose(draws, top, seeds)
    if before is None:
        return with_confirmation(known.plan, choice), choice
    if before == choice:
        return known.plan, choice
    raise FolderError(
        f"{folder}: has been confirmed with another choice ({before.seeds} seeds); choosing again "
        "after having seen the results would undo its purpose. Delete confirm.json to start over"
    )


def _is_sweep(folder: Path) -> bool:
    return (folder / "sweep.yaml").is_file()


def _watch(wait_minutes: float, observers: Sequence[Observer]) -> Watch:
    from orchestrator.backends import autoscaler, ray_cluster

    tell = functools.partial(_notice, observers)
    return Watch(wait_minutes, tell, ray_cluster.nodes, autoscaler.last_word)


def _notice(observers: Sequence[Observer], text: str, level: Level = "info") -> None:
    for observer in observers:
        observer.notice(text, level)


# ---------------------------------------------------------------------------------------------------
# In the held folder


class Session:
    """One run of a sweep in a folder that the caller holds.

    The caller calls `run_rounds` or `run_trials` once. Either closes the observers, also after an error.
    """

    def __init__(
        self,
        lease: Lease,
        observers: Sequence[Observer] = (),
        address: str | None = None,
        wait_minutes: float = WAIT_MINUTES,
    ) -> None:
        """
        Args:
          lease: the held folder.
          observers: called in this order.
          address: a running Ray cluster; None starts one on this machine.
          wait_minutes: longest time without a machine that a trial fits on, after which the session stops.
        """
        self._lease, self._observers, self._address = lease, observers, address
        self._wait_minutes, self._gave_up = wait_minutes, False
        self._end = SessionEnd("broke off")
        self._told_alone = False
        self._until: Until | None = None
        self._nodes: Sequence[Node] = ()
        self._shifted: dict[str, list[str]] | None = None

    def run_rounds(self, plan: Plan, preparation: Preparation, until: Until | None = None) -> SessionEnd:
        """Runs the rest of a plan to its end, round by round if it is a search.

        With `until`, the plan is extended look by look until its question is settled. A look is taken when
        all trials up to it have ended, and no trial beyond it begins before.

        Raises:
          ClusterError: the cluster cannot run the trials.
          FolderError: the folder holds results of another question.
        """
        folder, self._until = self._lease.folder, until
        self._shifted = preparation.shifted
        with self._closing():
            known = open_folder(folder) if _is_sweep(folder) else None
            for text in known.notices if known else ():
                _notice(self._observers, f"note: {text}", "warning")
            has_run = False
            while True:
                given, rounds = self._place(plan, known)
                trials = left_of(plan, known)
                if trials:
                    self._run(self._round(plan, trials, known, given, rounds), preparation)
                    has_run = True
                    if self._end.how == "stopped":
                        return self._end
                else:
                    self._save_question(folder, plan)
                if given == rounds and not until:
                    break
                known = open_folder(folder)
                if (longer := self._next_look(known) if until else _next_round(known)) is None:
                    break
                plan, preparation = longer, Preparation()
            if not has_run:
                for observer in self._observers:
                    observer.begin(self._round(plan, (), known))
                self._end = SessionEnd("nothing to do", "", len(plan.trials), len(plan.trials))
            return self._end

    def _place(self, plan: Plan, known: Folder | None) -> tuple[int, int]:
        """Returns the number of the plan's round, and how many there may be."""
        if not self._until:
            return rounds_given(plan), num_rounds(plan.sweep)
        from orchestrator.execution.looks import looks_in

        points, looks = (
            plan.sweep.design.num_points(plan.sweep.levels()),
            looks_in(plan.sweep, known),
        )
        return sum(look < points for look in looks) + 1, max(len(looks), 1)

    def _next_look(self, known: Folder) -> Plan | None:
        """Takes a look and tells what was seen. Returns the plan up to the next look, if there is one."""
        from orchestrator.execution.looks import next_look

        taken, longer = next_look(known, self._nodes or this_machine().nodes)
        if taken is not None:
            for line in look_lines([taken]):
                _notice(self._observers, line)
        return longer

    def run_trials(
        self, plan: Plan, trials: Sequence[Trial], known: Folder, preparation: Preparation
    ) -> SessionEnd:
        """Runs some trials of a plan. Without any, observers are only closed.

        Raises:
          ClusterError: the cluster cannot run the trials.
        """
        self._shifted = preparation.shifted
        with self._closing():
            if trials:
                self._run(self._round(plan, trials, known), preparation)
            else:
                self._end = SessionEnd("nothing to do", "", len(plan.trials), len(plan.trials))
            return self._end

    def _round(
        self, plan: Plan, trials: Sequence[Trial], known: Folder | None, number: int = 1, of: int = 1
    ) -> Round:
        events, records = (known.events, known.records) if known else ([], {})
        return Round(plan, trials, self._lease.folder, events, records, number, of)

    @contextlib.contextmanager
    def _closing(self) -> Iterator[None]:
        try:
            yield
        finally:
            with contextlib.ExitStack() as stack:
                # A stack closes each observer even if another raises. Reversed, as it runs the last first.
                for observer in reversed(self._observers):
                    stack.callback(self._close, observer)

    def _close(self, observer: Observer) -> None:
        if warning := observer.close(self._end):
            _notice(self._observers, warning, "warning")

    def _run(self, round: Round, preparation: Preparation) -> None:
        """Runs one round, from connecting to the cluster to leaving it. Sets `_end`."""
        from orchestrator.backends import ray_cluster

        self._end = SessionEnd("broke off")
        for observer in self._observers:
            observer.begin(round)
        try:
            ray_cluster.connect(self._address)
            run = self._started(round, preparation)
            progress = Progress(round.plan, round.records, _lanes_at_most(run), round.events)
            reason = self._follow(run, progress)
        finally:
            ray_cluster.shutdown()
        self._end = SessionEnd(
            "stopped" if reason else "ended",
            reason,
            num_trials=len(round.plan.trials),
            num_ended=sum(record.settled for record in round.records.values()),
            num_run=len(round.trials),
            seconds=time.time() - preparation.began,
            breaker=progress.breaker,
            error=str(run.error) if run.error and not reason else "",
            gave_up=self._gave_up,
        )
        for observer in self._observers:
            observer.end(self._end)

    def _started(self, round: Round, preparation: Preparation) -> "execution_run.Run":
        """Records the question and, before the first trial, the plan. Starts the trials."""
        from orchestrator.backends import ray_cluster
        from orchestrator.execution import run as execution_run

        plan, nodes = round.plan, ray_cluster.nodes()
        if fault := storage_fault(plan, nodes):
            raise ray_cluster.ClusterError(fault)
        if self._address is not None and not preparation.seconds:
            self._check_states(plan, round.folder)
        early_stopping = None
        if plan.sweep.search is not None and plan.sweep.search.halving is not None:
            from orchestrator.execution.asha import EarlyStopping

            early_stopping = EarlyStopping(plan.sweep.search.halving, plan.trials)
            early_stopping.replay(round.events)
        run = execution_run.Run(
            round.folder,
            round.trials,
            round.records,
            plan.sweep.resources,
            preparation.began,
            preparation.seconds,
            early_stopping,
            must_reach(plan, round.folder),
        )
        # Only before the first attempt, because a later plan would already know its outcome.
        if preparation.checked and not any(record.attempts for record in round.records.values()):
            record_plan(round.folder, plan, nodes, preparation.checked)
        self._save_question(round.folder, plan)
        self._nodes = nodes
        if self._until:
            from orchestrator.execution.looks import note_until

            note_until(round.folder)
        run.start()
        return run

    def _save_question(self, folder: Path, plan: Plan) -> None:
        if self._shifted is None:
            # Once, because every image is read, and later rounds have the same sets.
            self._shifted = shifted_contents(plan)
        for text in save_question(folder, plan, shifted=self._shifted):
            _notice(self._observers, f"note: {text}", "warning")

    def _check_states(self, plan: Plan, folder: Path) -> None:
        """Tells, without a preflight, of machines that do not reach the place of states.

        Raises:
          ClusterError: there are some, and all must reach it.
        """
        from orchestrator.backends import ray_cluster
        from orchestrator.execution.preflight_workers import machines_without

        if self._told_alone:
            return
        reason, checkpoints = must_reach(plan, folder), plan.sweep.resources.checkpoints
        with storage(folder) as (probe, _, _), StatesProbe(checkpoints, probe, reason) as states:
            names = states.unreached(machines_without)
        if names and states.faults:
            [fault] = states.faults
            raise ray_cluster.ClusterError(f"{fault.path}: {fault.rule}")
        if names:
            self._told_alone = True
            _notice(self._observers, ALONE, "warning")

    def _follow(self, run: "execution_run.Run", progress: Progress) -> str:
        """Passes events to the observers until the run ends or is stopped.

        Returns:
          The reason for the stop; "" if the run ended by itself.
        """
        try:
            reason = self._wait(run, progress)
        except KeyboardInterrupt:
            reason = "interrupted"
        except BaseException:
            # If an observer raises, trials in flight are recorded as cancelled rather than lost.
            with contextlib.suppress(Exception):
                run.stop()
                run.close()
            raise
        if reason:
            for observer in self._observers:
                observer.stopping()
            run.stop()
            self._tell(run, progress)
        run.close()
        return reason

    def _wait(self, run: "execution_run.Run", progress: Progress) -> str:
        """Returns the reason to stop the run; "" when all trials have ended."""
        from orchestrator.backends import ray_cluster

        # `spending` is True at first, because earlier runs may have spent the budget.
        draining, nodes, spending = False, ray_cluster.nodes(), True
        watch = _watch(self._wait_minutes, self._observers)
        while True:
            # Read before the events, so that the last ones are not missed.
            done = run.done
            spending = self._tell(run, progress) or spending
            if done:
                return ""
            if self._lease.lost:
                return "another run has taken the folder over"
            if (wanted := self._lease.stop_wanted()) == "now":
                return "as `vitc-sweep stop` asked"
            if reason := watch.look(functools.partial(_wanted, progress, nodes)):
                self._gave_up = True
                return reason
            if not draining:
                if wanted == "drain":
                    draining, text = True, "stopping: trials in flight go on to their end"
                elif spending:
                    # Only after new spending, because the check looks at every trial.
                    spending = False
                    draining = not within_budget(progress.plan, progress.records, nodes)
                    text = "the budget is spent: trials in flight go on"
                if draining:
                    _notice(self._observers, f"{text}, no more are started")
                    run.drain()
            time.sleep(_LOOK_SECONDS)

    def _tell(self, run: "execution_run.Run", progress: Progress) -> bool:
        """Passes new events to the observers. Returns whether any of them spends from the budget."""
        events = run.events()
        progress.observe(events)
        for observer in self._observers:
            observer.observe(events, progress)
        return any(map(_spends, events))


def _spends(event: Event) -> bool:
    return isinstance(event, EpochDone | AttemptEnded)


def _wanted(progress: Progress, nodes: Sequence[Node]) -> list[Gang]:
    """Returns the gangs of trials that have not ended; none while a trial runs.

    `nodes` are the machines at the start, by which the gangs' numbers of GPUs were decided.
    """
    if any(tally.running for tally in progress.tallies):
        return []
    known = progress.records
    open_trials = (t for t in progress.plan.trials if t.id not in known or not known[t.id].settled)
    return list({trial.gang.on(nodes): None for trial in open_trials})


def _lanes_at_most(run: "execution_run.Run") -> int:
    return run.lanes


def _next_round(known: Folder) -> Plan | None:
    """Returns the plan with a search's next round, recorded in the folder. None if there is none."""
    from orchestrator.execution.samplers import propose

    plan = known.plan
    chosen = next_round(plan, results_of(plan, known.records), propose)
    if not chosen:
        return None
    suggestions = [*plan.suggestions, *chosen]
    longer = confirmed_plan(known.path, make_plan(plan.sweep, plan.infos, suggestions))
    # First, because the record has the costs of networks that only the new points have.
    save_record(known.path, longer)
    save_suggestions(known.path, suggestions)
    return longer
