"""The observers of a session on the command line: terminal, MLflow, messages, and signals."""

import contextlib
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from orchestrator.cli.app import INCOMPLETE, INTERRUPTED, code_of
from orchestrator.cli.conclusion import conclude
from orchestrator.cli.options import both, log_console, say
from orchestrator.monitor.observer import Level, Observer, Round, SessionEnd
from orchestrator.store.output import OutputLog
from trainables.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import Console

    from orchestrator.monitor.live import Display
    from orchestrator.monitor.progress import Progress
    from orchestrator.stats.looks import Looks
    from orchestrator.store.lease import Lease
    from orchestrator.trials.events import Event
    from orchestrator.trials.trial import Plan, Trial


def lr_notes(plan: "Plan") -> list[str]:
    """Describes how learning rates are scaled that are quoted for another batch size."""
    from orchestrator.report.text import describe_lr_scaling

    notes: dict[str, None] = {}
    for trial in plan.trials:
        optim, batch = trial.config.optim, trial.config.batch_size
        if optim.lr_batch_size is not None and optim.lr_batch_size != batch:
            notes[f"{optim.name}: {describe_lr_scaling(trial.config)}"] = None
    return list(notes)


class Terminal(Observer):
    """Shows a session on the console: live, or as one line per ended trial."""

    def __init__(self, console: "Console") -> None:
        self._console = console
        self._folder = Path()
        self._display: Display | None = None

    def notice(self, text: str, level: Level = "info") -> None:
        """Prints a line; a warning even on a quiet console."""
        say(self._console, text, {"warning": "yellow", "detail": "dim"}.get(level))

    def planned(self, plan: "Plan", trials: "Sequence[Trial]", looks: "Looks | None" = None) -> None:
        """Prints what is compared, and what so many points can settle."""
        from orchestrator.analysis.settles import how_it_grows, what_points_settle

        if plan.sweep.question:
            self._print(plan.sweep.question, "bold")
        if trials:
            for line in [*how_it_grows(plan, looks), *what_points_settle(plan, looks)]:
                self._print(line)

    def _print(self, text: str, style: str | None = None) -> None:
        self._console.print(text, style=style, markup=False, highlight=False)

    def begin(self, round: Round) -> None:
        """Prints what will run."""
        self._folder, total = round.folder, len(round.plan.trials)
        if not round.trials:
            say(self._console, f"{round.folder}: nothing to do, all {total} trials have ended\n")
            return
        if round.of > 1:
            of = f"{round.of}" if round.plan.sweep.search is not None else f"at most {round.of}"
            say(self._console, f"round {round.number} of {of}", "bold")
        already = total - len(round.trials)
        say(
            self._console,
            f"{round.plan.sweep.name}: {len(round.trials)} trials to run"
            + (f", {already} have ended before" if already else "")
            + f"; results go to {round.folder}",
        )
        for line in lr_notes(round.plan):
            say(self._console, line, "dim")

    def observe(self, events: "Sequence[Event]", progress: "Progress") -> None:
        """Shows new events."""
        from orchestrator.monitor.live import Display

        if self._display is None:
            self._display = Display(self._console, progress, self._folder)
            self._display.__enter__()
        self._display.show(events)

    def end(self, end: SessionEnd) -> None:
        """Prints how a round ended."""
        from orchestrator.trials.numerals import duration

        self._hide()
        if end.error:
            say(self._console, f"Ray stopped the run: {end.error}", "red")
        if end.breaker:
            say(self._console, f"stopped early: {end.breaker}", "red")
            say(self._console, f"Fix the cause, then run:  vitc-sweep retry {self._folder} --failed")
        if end.how == "ended":
            say(self._console, f"{end.num_run} trials in {duration(end.seconds)}")

    def close(self, end: SessionEnd) -> None:
        """Restores the terminal, even if the session broke off."""
        self._hide()

    def _hide(self) -> None:
        if self._display:
            self._display.__exit__()
        self._display = None


class Signals(Observer):
    """Makes SIGTERM act like Ctrl-C, ignores both while a session stops, and SIGHUP always.

    Stopping takes seconds, and a second signal would lose the record of the first. SIGHUP means that the
    terminal has gone, which is no wish to stop. The processes that are started meanwhile, those of Ray among
    them, ignore it as well.
    """

    _HEEDED = (signal.SIGINT, signal.SIGTERM)

    def __enter__(self) -> "Signals":
        self._before = {number: signal.getsignal(number) for number in (*self._HEEDED, signal.SIGHUP)}
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self._set(self._stop_once)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def stopping(self) -> None:
        """Ignores further signals."""
        self._set(signal.SIG_IGN)

    def end(self, end: SessionEnd) -> None:
        """Heeds signals again."""
        self._set(self._stop_once)

    def close(self, end: SessionEnd) -> None:
        """Heeds signals again if the session did not end normally."""
        self._set(self._stop_once)

    def _stop_once(self, number: int, frame: object) -> None:
        self._set(signal.SIG_IGN)
        raise KeyboardInterrupt

    def _set(self, handler: Any) -> None:
        for number in self._HEEDED:
            signal.signal(number, handler)


class Watchers:
    """The observers of a session on the command line. They handle signals while the context is open."""

    def __init__(self, console: "Console", track: bool, notify: str | None, command: str) -> None:
        """
        Args:
          console: the terminal.
          track: whether MLflow mirrors the session.
          notify: where messages go; None takes the sweep file's key.
          command: the command that continues a stopped session.
        """
        from orchestrator.monitor.observers import MlflowObserver, NotifyObserver

        # A live view would fill a file with its redraws, so the log has a display of its own.
        self._log, self._signals = OutputLog(), Signals()
        log = log_console(self._log)
        self._console = both(console, log)
        self.command = command
        self._mirror = MlflowObserver() if track else None
        others = [self._mirror] if self._mirror else []
        self.all: list[Observer] = [
            self._signals,
            Terminal(console),
            Terminal(log),
            NotifyObserver(notify),
            *others,
        ]

    def __enter__(self) -> "Watchers":
        self._signals.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        self._signals.__exit__()
        if kind is KeyboardInterrupt:
            self._say_stopped("stopped before a trial ran")
            raise typer.Exit(INTERRUPTED) from None

    @contextlib.contextmanager
    def holding(self, folder: Path) -> "Iterator[Lease]":
        """Holds a sweep folder. Its output.log receives the output, and its lease the exit code at the end.

        Raises:
          FolderError: another run holds it; the message names it.
        """
        from orchestrator.store.lease import held

        with held(folder) as lease:
            self._log.begin(folder)
            # Of an error that nobody has foreseen.
            lease.code = INCOMPLETE
            try:
                yield lease
            except typer.Exit as end:
                lease.code = end.exit_code
                raise
            except KeyboardInterrupt:
                lease.code = INTERRUPTED
                raise
            except UserError as error:
                lease.code = code_of(error)
                self._log.write(f"{error}\n")
                raise
            finally:
                self._log.close()

    def _say_stopped(self, text: str) -> None:
        # As a warning, which a quiet command prints as well.
        say(self._console, f"\n{text}. To continue, run:  {self.command}", "yellow")

    def conclude(self, folder: Path, end: SessionEnd) -> int:
        """Writes the report, or prints how to continue a stopped session. Returns the exit code."""
        if end.how == "stopped":
            self._say_stopped(
                f"stopped ({end.reason}); {end.num_ended} of {end.num_trials} trials have ended"
            )
            return INCOMPLETE if end.gave_up else INTERRUPTED
        return conclude(self._console, folder, self._mirror)
