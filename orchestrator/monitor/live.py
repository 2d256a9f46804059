"""The live view of a run in a terminal (rich): that of the run itself, or any other."""

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orchestrator.cost.ledger import Ledger
from orchestrator.monitor.progress import Cause, Progress, Tally
from orchestrator.store.folder import open_folder
from orchestrator.store.journal import Tail
from orchestrator.store.lease import holder
from orchestrator.store.logs import logs_of
from orchestrator.sweep.config import ONE_CELL
from orchestrator.trials.events import AttemptEnded, Event, Notice, SessionBegan
from orchestrator.trials.names import name_of
from orchestrator.trials.numerals import duration, percent
from orchestrator.trials.trial import Trial
from trainables.io.streams import printable

#: Seconds between two reads of a journal that another process writes.
LOOK_SECONDS = 0.5

#: Least seconds between two sums of the ledger, because their cost grows with the number of attempts.
_LEDGER_SECONDS = 5.0

#: Most causes of failure, and most notices, in the live view. `why` and `logs` show the others.
_MOST_CAUSES, _MOST_NOTICES = 3, 2

#: Least rows for cells in the live view, even in the lowest terminal.
_LEAST_ROWS = 2

#: Columns below which the distribution of errors is left out.
_EDF_MIN_WIDTH = 76

#: Columns from which headings are whole words.
_WIDE = 96
_WIDE_NAMES = ("done", "running", "diverged", "failed", "best error %")
_NARROW_NAMES = ("done", "run", "div", "fail", "best %")

_BARS, _EDF_STEPS = "▁▂▃▄▅▆▇█", 12


def view(
    progress: Progress,
    folder: Path | None = None,
    height: int | None = None,
    width: int = 100,
    clock: float | None = None,
    spent: Ledger | None = None,
    state: str = "",
) -> RenderableType:
    """Returns the whole view: progress, a table per cell and arm, use of time, failures.

    Args:
      progress: the progress of the sweep.
      folder: the folder named in suggested commands.
      height: number of lines. Cells that do not fit are summed up. None shows all cells.
      width: number of columns.
      clock: seconds since 1970; the time of the last event if left out.
      spent: the ledger to show.
      state: text in place of the time left, if nothing is running.
    """
    below: list[RenderableType] = []
    if spent is not None and spent.total:
        below += [Text(), ledger_line(spent)]
        if shares := progress.mfu_pct:
            told = ", ".join(f"{arm} {share:.2g} %" for arm, share in shares.items())
            below.append(_dim(f"MFU of the GPUs in training: {told}"))
    troubles = trouble_lines(progress, folder)
    if troubles:
        below += [Text(), *troubles]
    head = _head(progress, clock, state)
    # Two lines less: one for the cursor and one for the table's head.
    room = None if height is None else max(_LEAST_ROWS, height - len(head) - len(below) - 2)
    return Group(*head, tally_table(progress.tallies, room, width), *below)


def _head(progress: Progress, clock: float | None, state: str) -> list[RenderableType]:
    total = len(progress.plan.trials)
    running = sum(tally.running for tally in progress.tallies)
    failed = sum(tally.failed for tally in progress.tallies)
    counts = Text(f"{progress.ended}/{total} trials", style="bold")
    if running:
        counts.append(f"  {running} running", style="not bold")
    if failed:
        counts.append(f"  {failed} failed", style="bold red")
    line = Table.grid(padding=(0, 2))
    for _ in range(3):
        line.add_column(no_wrap=True, overflow="ellipsis")
    bar = ProgressBar(total=1.0, completed=progress.share, width=24)
    line.add_row(Text(progress.plan.sweep.name, style="bold"), bar, counts)
    now = clock if clock is not None else progress.now
    parts = []
    if progress.began is not None and now is not None:
        parts.append(f"{duration(max(0.0, now - progress.began))} so far")
    if state:
        parts.append(state)
    elif not running and not progress.share:
        parts.append(f"starting, {progress.lanes} at a time" if progress.lanes else "nothing has started")
    elif progress.ended < total:
        parts.append(left_text(progress, now))
    return [line, Text(" · ".join(parts), style="dim", no_wrap=True, overflow="ellipsis"), Text()]


def left_text(progress: Progress, now: float | None = None) -> str:
    """Returns the time left with its 95 % interval as text."""
    left = progress.time_left
    if left is None:
        return "measuring speed"
    # The clock goes on between events.
    since = max(0.0, now - progress.now) if now is not None and progress.now is not None else 0.0
    seconds, low = (max(0.0, value - since) for value in (left.seconds, left.low))
    if seconds < 1:
        # The estimate has run out while trials still run, as between two epochs of the last ones.
        return "ending, or slower than before"
    if left.high is None:
        return f"about {duration(seconds)} left (at least {duration(low)})"
    return f"about {duration(seconds)} left ({duration(low)} to {duration(max(0.0, left.high - since))})"


def tally_table(tallies: Sequence[Tally], room: int | None = None, width: int = 100) -> Table:
    """Returns a table with a row per cell and arm. Cells beyond `room` rows are summed up per arm."""
    low, high = _error_span(tallies)
    with_edf = width >= _EDF_MIN_WIDTH and high > low
    table = Table(box=None, pad_edge=False, header_style="dim")
    has_cells = any(tally.cell != ONE_CELL for tally in tallies)
    for name in ("cell", "arm") if has_cells else ("arm",):
        table.add_column(name, no_wrap=True, overflow="ellipsis", max_width=max(8, width // 4))
    for name in _NARROW_NAMES if width < _WIDE else _WIDE_NAMES:
        table.add_column(name, justify="right", no_wrap=True)
    if with_edf:
        span = f"{low:.0f} to {high:.0f} %"
        table.add_column(span if width < _WIDE else f"errors, {span}", no_wrap=True)
    shown, rest = _fitting(tallies, room)
    for tally in shown:
        edf = [Text(sparkline(tally, low, high), style="cyan")] if with_edf else []
        cell = [tally.cell] if has_cells else []
        table.add_row(*cell, tally.arm, *_counts(tally), percent(tally.best_pct), *edf)
    for tally in rest:
        table.add_row(Text(tally.cell, style="dim"), tally.arm, *_counts(tally), "")
    return table


def _counts(tally: Tally) -> list[Text | str]:
    return [
        f"{tally.ended}/{tally.planned}",
        str(tally.running or "·"),
        str(tally.diverged or "·"),
        Text(str(tally.failed or "·"), style="bold red" if tally.failed else ""),
    ]


def _fitting(tallies: Sequence[Tally], room: int | None) -> tuple[Sequence[Tally], list[Tally]]:
    """Returns the whole cells that fit, and sums over the others, per arm or over all arms.

    Cells stay in the order of the plan, because a view that is sorted several times a second is unreadable.
    """
    if room is None or len(tallies) <= room:
        return tallies, []
    arms = list(dict.fromkeys(tally.arm for tally in tallies))
    cells = list(dict.fromkeys(tally.cell for tally in tallies))
    by_arm = len(arms) <= room
    num_shown = max(0, (room - (len(arms) if by_arm else 1)) // len(arms))
    hidden = set(cells[num_shown:])
    name = f"{len(hidden)} more cells" if num_shown else f"{len(hidden)} cells"
    rest = [tally for tally in tallies if tally.cell in hidden]
    if by_arm:
        sums = [_sum(name, arm, (tally for tally in rest if tally.arm == arm)) for arm in arms]
    else:
        sums = [_sum(name, f"{len(arms)} arms", rest)]
    return [tally for tally in tallies if tally.cell not in hidden], sums


def _sum(cell: str, arm: str, tallies: Iterable[Tally]) -> Tally:
    total = Tally(cell, arm)
    for tally in tallies:
        total.planned += tally.planned
        total.ended += tally.ended
        for state, count in tally.states.items():
            total.states[state] = total.states.get(state, 0) + count
    return total


def _error_span(tallies: Sequence[Tally]) -> tuple[float, float]:
    """Returns one error axis for all rows: from the best error of any to the largest 90 % quantile."""
    found = [tally.errors for tally in tallies if tally.errors]
    if not found:
        return 0.0, 0.0
    return min(errors[0] for errors in found), max(errors[int(0.9 * (len(errors) - 1))] for errors in found)


def sparkline(tally: Tally, low: float, high: float) -> str:
    """Draws the distribution function of errors so far: the share at or below each of 12 errors.

    Higher and further left is better; a dot is a share of 0. Trials that count as 100 % error are included.
    """
    bars = []
    for index in range(_EDF_STEPS):
        share = tally.edf(low + (high - low) * index / (_EDF_STEPS - 1))
        if share is None:
            return ""
        bars.append(_BARS[min(int(share * len(_BARS)), len(_BARS) - 1)] if share else "·")
    return "".join(bars)


def ledger_line(spent: Ledger) -> Text:
    """Returns the use of the devices' time in one line, without uses below 0.5 %."""
    rows = [(name.replace("_", "-"), seconds / spent.total) for name, seconds in spent.rows().items()]
    shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in rows if share >= 0.005)
    hours = spent.total / 3600
    return _dim(f"{hours:.3g} {spent.device}-hours: {shares}")


def _dim(text: str) -> Text:
    return Text(text, style="dim", no_wrap=True, overflow="ellipsis")


def trouble_lines(progress: Progress, folder: Path | None = None) -> list[Text]:
    """Returns a line per cause of failure and a command that shows more; empty if nothing failed."""
    lines = []
    if progress.breaker:
        lines.append(_line(("stopped early: ", "bold red"), (progress.breaker, "red")))
    causes = sorted(progress.causes.values(), key=lambda cause: -len(cause.trials))
    for cause in causes[:_MOST_CAUSES]:
        count = f"{len(cause.trials)} {cause.state}"
        lines.append(_line((count, "red"), (f"  {_first_name(progress, cause)}  {cause.detail}", "")))
    if len(causes) > _MOST_CAUSES:
        more = causes[_MOST_CAUSES:]
        trials = sum(len(cause.trials) for cause in more)
        lines.append(_line((f"and {trials} more of {len(more)} other causes", "red")))
    if causes:
        name = _first_name(progress, causes[0])
        lines.append(_line((f"why:  vitc-sweep why {folder or 'FOLDER'} {name}", "dim")))
    for text, times in list(progress.notices.items())[-_MOST_NOTICES:]:
        lines.append(_line((text + (f"  ({times} times)" if times > 1 else ""), "yellow")))
    return lines


def _first_name(progress: Progress, cause: Cause) -> str:
    return name_of(progress.result(next(iter(cause.trials))).trial)


def _line(*parts: tuple[str, str]) -> Text:
    """Returns a line that never wraps, because messages can be long and the view has a fixed height."""
    text = Text(no_wrap=True, overflow="ellipsis")
    for part, style in parts:
        text.append(part.replace("\n", " "), style=style)
    return text


class Display:
    """Shows a run: live in a terminal, else as one line per ended trial."""

    def __init__(
        self,
        console: Console,
        progress: Progress,
        folder: Path | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.console, self.progress = console, progress
        self._folder, self._clock = folder, clock
        self._spent, self._summed = Ledger(), 0.0
        is_live = console.is_terminal and not console.is_dumb_terminal and not console.quiet
        self._live = Live(console=console, auto_refresh=False, transient=True) if is_live else None

    def __enter__(self) -> "Display":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live:
            self._live.stop()

    def update(self, events: Sequence[Event], state: str = "") -> None:
        """Adds new events to the progress and shows them."""
        self.progress.observe(events)
        self.show(events, state)

    def show(self, events: Sequence[Event], state: str = "") -> None:
        """Shows new events that `progress` includes already."""
        for event in events:
            if isinstance(event, Notice):
                if self.console.quiet:
                    print(event.detail, file=sys.stderr)
                self.console.print(event.detail, style="yellow", markup=False, soft_wrap=True)
        if self._live:
            self._live.update(self._view(state), refresh=True)
            return
        for event in events:
            if isinstance(event, AttemptEnded) and self.progress.knows(event.trial):
                self.console.print(self._line(event), highlight=False, markup=False, soft_wrap=True)

    def _view(self, state: str) -> RenderableType:
        now = self._clock()
        if now - self._summed >= _LEDGER_SECONDS:
            self._spent, self._summed = self.progress.ledger(), now
        width, height = self.console.size
        return view(self.progress, self._folder, height, width, now, self._spent, state)

    def _line(self, event: AttemptEnded) -> str:
        result = self.progress.result(event.trial)
        last = result.record.last
        error = f"{percent(last.val_error_pct)} %" if last else "no epoch"
        again = "" if event.final else ", will run again"
        detail = f"  ({event.detail})" if event.detail else ""
        count = f"[{self.progress.ended}/{len(self.progress.plan.trials)}]"
        label = result.trial.label
        return f"{count} {label}  {event.end}{again}  {error}  {event.seconds:.1f} s{detail}"


class Follower:
    """Reads the folder of a sweep while another process writes it."""

    def __init__(self, folder: Path) -> None:
        """
        Raises:
          FolderError: the folder is no sweep.
        """
        self._folder = folder
        self._begin()

    def _begin(self) -> None:
        self._tail = Tail(self._folder)
        events = self._tail.read()
        # After the journal, because a plan is written before any of its trials runs.
        self.progress = Progress(open_folder(self._folder).plan, {})
        self.progress.observe(events)

    @property
    def folder(self) -> Path:
        """The folder of the sweep."""
        return self._folder

    def read(self) -> list[Event]:
        """Returns new events. Starts over with a new `progress` if the journal or plan was replaced."""
        events = self._tail.read()
        if self._tail.anew or any(isinstance(event, SessionBegan) for event in events):
            self._begin()
            return []
        return events


def follow(
    console: Console,
    folder: Path,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.time,
) -> Progress:
    """Shows a run from its folder until it ends. Writes nothing.

    Returns:
      The progress at the end.

    Raises:
      FolderError: the folder is no sweep.
    """
    follower = Follower(folder)
    with Display(console, follower.progress, folder, clock) as display:
        while True:
            # Before the journal is read, so that it includes the last events of a run that ends now.
            at_work = holder(folder) is not None
            events = follower.read()
            display.progress = follower.progress
            display.update(events, "" if at_work else NOBODY)
            if not at_work:
                return follower.progress
            sleep(LOOK_SECONDS)


def print_logs(
    follower: Follower,
    trial: Trial,
    attempt: int | None = None,
    rank: int | None = None,
    goes_on: bool = False,
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """Prints the logs of a trial's attempts. With `goes_on`, prints what they add until the trial ends.

    Returns:
      Whether there was a log.
    """
    shown: dict[Path, int] = {}
    current: Path | None = None
    while True:
        # Before the files are read, so that they include the last lines of a run that ends now.
        at_work = holder(follower.folder) is not None
        follower.progress.observe(follower.read())
        is_over = follower.progress.result(trial.id).record.settled or not at_work
        for log in logs_of(follower.folder, trial.id, attempt, rank):
            with log.path.open("rb") as file:
                file.seek(shown.get(log.path, 0))
                added = file.read()
            if not added:
                continue
            if current != log.path:
                who = "" if log.rank is None else f", rank {log.rank}"
                print(f"== attempt {log.attempt}{who}: {log.what} ({log.path.name})")
            current, shown[log.path] = log.path, shown.get(log.path, 0) + len(added)
            text = printable(added.decode(errors="replace"), keep="\n\t\r")
            print(text, end="" if added.endswith(b"\n") else "\n", flush=True)
        if is_over or not goes_on:
            return bool(shown)
        sleep(LOOK_SECONDS)


#: State of a sweep without a run.
NOBODY = "not running"
