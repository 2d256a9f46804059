"""What people see in a terminal: tables, and the live view of a run (rich)."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orchestrator.cost import Estimate, Span
from orchestrator.ledger import Ledger
from orchestrator.plan import Plan
from orchestrator.results import Event, Record, Result, fold, results_of


def pct(value: float | None) -> str:
    """A percentage for a table, or a dash."""
    return "–" if value is None else f"{value:.1f}"


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def large(number: float) -> str:
    """A large number in three digits and a power of a thousand."""
    for power, letter in ((15, "P"), (12, "T"), (9, "G"), (6, "M")):
        if number >= 10**power:
            return f"{number / 10**power:.3g} {letter}"
    return f"{number:.0f}"


@dataclass(frozen=True, slots=True)
class Tally:
    """How far one arm is in one cell."""

    cell: str
    arm: str
    planned: int
    states: dict[str, int]
    best_pct: float | None

    @property
    def ended(self) -> int:
        """Trials that `run` will leave alone."""
        return sum(
            count for state, count in self.states.items() if state not in ("running", "missing", "cancelled")
        )


def tallies(results: Sequence[Result]) -> list[Tally]:
    """Per cell and arm, in the order of the plan."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.trial.cell_name, result.trial.arm), []).append(result)
    found = []
    for (cell, arm), members in sorted(groups.items(), key=lambda item: _first_seen(results, item[0])):
        states: dict[str, int] = {}
        for result in members:
            states[result.state] = states.get(result.state, 0) + 1
        errors = [
            result.error_pct
            for result in members
            if result.trial.role == "sweep"
            and result.rule
            and result.rule.ranked
            and result.error_pct is not None
        ]
        found.append(Tally(cell, arm, len(members), states, min(errors, default=None)))
    return found


def _first_seen(results: Sequence[Result], key: tuple[str, str]) -> int:
    # Cells come first in the plan; arms within them.
    cells = list(dict.fromkeys(result.trial.cell_name for result in results))
    arms = list(dict.fromkeys(result.trial.arm for result in results))
    return cells.index(key[0]) * len(arms) + arms.index(key[1])


def progress_table(results: Sequence[Result]) -> Table:
    """Trials by state and best error so far, per cell and arm."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name, justify in (
        ("cell", "left"),
        ("arm", "left"),
        ("done", "right"),
        ("running", "right"),
        ("diverged", "right"),
        ("failed", "right"),
        ("best error %", "right"),
    ):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for tally in tallies(results):
        failed = sum(tally.states.get(state, 0) for state in ("failed", "out_of_memory", "invalid"))
        table.add_row(
            tally.cell,
            tally.arm,
            f"{tally.ended}/{tally.planned}",
            str(tally.states.get("running", 0) or "·"),
            str(tally.states.get("diverged", 0) or "·"),
            Text(str(failed or "·"), style="bold red" if failed else ""),
            pct(tally.best_pct),
        )
    return table


def removal_rows(plan: Plan) -> list[dict[str, Any]]:
    """Per cell and constraint the share of each arm's points that break it, and what is left of the cell."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for removal in plan.removals:
        row = rows.setdefault(
            (removal.cell_name, removal.constraint),
            {"constraint": removal.constraint, "cell": removal.cell_name},
        )
        row[removal.arm] = f"{removal.removed / removal.drawn:.0%}"
    for cell, row in ((key[0], row) for key, row in rows.items()):
        left = {trial.point for trial in plan.trials if trial.cell_name == cell}
        drawn = plan.removals[0].drawn
        row["points left in the cell"] = f"{len(left)} of {drawn}"
    return list(rows.values())


@dataclass
class Progress:
    """Where a run stands: folded events, and how fast it goes."""

    plan: Plan
    records: dict[str, Record]
    lanes: int = 0
    began: float = field(default_factory=time.monotonic)
    breaker: str = ""
    _costs: dict[str, float] = field(default_factory=dict)
    _first_row: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        self._costs = {trial.id: float(self.plan.cost(trial).train_flops) for trial in self.plan.trials}

    @property
    def results(self) -> list[Result]:
        """Every trial with what is known of it."""
        return results_of(self.plan, self.records)

    @property
    def share(self) -> float:
        """How much of all training has been done, by multiply-adds."""
        total = sum(self._costs.values()) or 1.0
        done = 0.0
        for trial in self.plan.trials:
            record = self.records.get(trial.id)
            if record is None:
                continue
            epochs = len(record.rows) / trial.config.schedule.epochs
            done += self._costs[trial.id] * (1.0 if record.settled else min(epochs, 1.0))
        return done / total

    def observe(self, events: Iterable[Event]) -> None:
        """Takes in what has happened."""
        events = list(events)
        fold(events, self.records)
        for event in events:
            if event["kind"] == "breaker":
                self.breaker = event["detail"]
        if self._first_row is None and any(event["kind"] == "epoch" for event in events):
            # Counted from the first row on: what came before was starting up.
            self._first_row = (time.monotonic(), self.share)

    @property
    def seconds_left(self) -> float | None:
        """At the speed since the first row; None before that is known."""
        if self._first_row is None:
            return None
        since, share_then = self._first_row
        elapsed, gained = time.monotonic() - since, self.share - share_then
        if gained <= 0 or elapsed < 3:
            return None
        return elapsed / gained * (1 - self.share)


def live_view(progress: Progress) -> RenderableType:
    """The whole live display."""
    results = progress.results
    ended = sum(result.record.settled for result in results)
    elapsed = duration(time.monotonic() - progress.began)
    left = progress.seconds_left
    running = sum(result.state == "running" for result in results)
    if not running and not ended:
        state = f"starting {progress.lanes} lane(s)"
    else:
        state = f"about {duration(left)} left" if left is not None else "measuring speed"
    line = Table.grid(padding=(0, 2))
    line.add_row(
        f"[bold]{progress.plan.sweep.name}[/bold]",
        ProgressBar(total=1.0, completed=progress.share, width=30),
        f"{ended}/{len(results)} trials",
        f"{elapsed} · {state}",
    )
    parts: list[RenderableType] = [line, Text(), progress_table(results)]
    failures = [result for result in results if result.state in ("failed", "out_of_memory", "invalid")]
    if failures:
        parts.append(failure_lines(failures))
    return Group(*parts)


def ledger_table(spent: Ledger) -> Table:
    """Where the time of the devices went."""
    total = spent.total or 1.0
    return rows_table(
        [
            {
                "": name.replace("_", "-"),
                f"{spent.device}-seconds": f"{seconds:,.0f}",
                "share %": f"{100 * seconds / total:.1f}",
            }
            for name, seconds in [*spent.rows().items(), ("in all", spent.total)]
        ]
    )


def failure_lines(failures: Sequence[Result], most: int = 5) -> Text:
    """Failed trials with their causes, equal causes once."""
    causes: dict[str, list[Result]] = {}
    for result in failures:
        causes.setdefault(f"{result.state}: {result.record.detail}", []).append(result)
    text = Text()
    for cause, members in list(causes.items())[:most]:
        first = members[0].trial
        more = f" and {len(members) - 1} more" if len(members) > 1 else ""
        text.append(f"\n{first.label}{more}", style="red")
        text.append(f"  {cause}")
    if len(causes) > most:
        text.append(f"\n… and {len(causes) - most} other causes")
    return text


class Display:
    """Shows a run: live where there is a terminal, one line per ended trial where there is none."""

    def __init__(self, console: Console, progress: Progress) -> None:
        self.console, self.progress = console, progress
        self._trials = {trial.id: trial for trial in progress.plan.trials}
        self._live = (
            Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        )

    def __enter__(self) -> "Display":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live:
            self._live.stop()

    def update(self, events: Sequence[Event]) -> None:
        """Takes in what has happened and shows it."""
        self.progress.observe(events)
        for event in events:
            if event["kind"] == "notice":
                self.console.print(event["detail"], style="yellow", markup=False, soft_wrap=True)
        if self._live:
            self._live.update(live_view(self.progress), refresh=True)
            return
        for event in events:
            if event["kind"] == "end" and event["trial"] in self._trials:
                self.console.print(self._line(event), highlight=False, soft_wrap=True)

    def _line(self, event: Event) -> str:
        ended = sum(record.settled for record in self.progress.records.values())
        record = self.progress.records[event["trial"]]
        error = f"{pct(record.last.val_top1_error_pct)} %" if record.last else "no epoch"
        again = "" if event["final"] else ", will be tried again"
        detail = f"  ({event['detail']})" if event["detail"] else ""
        name = self._trials[event["trial"]].label
        count = f"[{ended}/{len(self._trials)}]".replace("[", r"\[")
        return f"{count} {name}  {event['end']}{again}  {error}  {event['seconds']:.1f} s{detail}"


def answer_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Peak error and robustness per cell and arm, from the rows of `report.summary_table`."""

    def interval(row: Mapping[str, Any], name: str, digits: int) -> str:
        low, high = row[f"{name}_low"], row[f"{name}_high"]
        return "–" if low is None else f"{low:.{digits}f} to {high:.{digits}f}"

    shown = []
    for row in rows:
        columns = {
            "cell": row["cell"],
            "arm": row["arm"],
            "trials": f"{row['ended']}/{row['planned']}",
            "diverged": row["diverged"],
            "peak error %": pct(row["best_val_error_pct"]),
            "final split %": pct(row["best_test_error_pct"]),
        }
        if any(other["confirmed_test_error_pct"] is not None for other in rows):
            columns["confirmed %"] = pct(row["confirmed_test_error_pct"])
            columns["its 95 %"] = interval(row, "confirmed_test_error_pct", 1)
        columns["median error %"] = pct(row["median_error_pct"])
        columns["robustness"] = "–" if row["common_area"] is None else f"{row['common_area']:.2f}"
        columns["95 % interval"] = interval(row, "common_area", 2)
        columns["from own best"] = "–" if row["own_area"] is None else f"{row['own_area']:.2f}"
        shown.append(columns)
    return rows_table(shown)


def rows_table(rows: Sequence[Mapping[str, Any]], title: str | None = None) -> Table:
    """A table of plain rows; numbers to the right."""
    table = Table(box=None, pad_edge=False, header_style="dim", title=title, title_justify="left")
    for name in rows[0] if rows else ():
        numeric = all(isinstance(row[name], int | float | None) or row[name][:1].isdigit() for row in rows)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    return table


def span(estimate: Span | None, digits: int = 2) -> str:
    """An estimate with its range, as `1.2 (0.9-1.5)`."""
    if estimate is None:
        return "?"
    low, central, high = (
        f"{value:,.0f}" if value >= 10**digits else f"{value:.{digits}g}"
        for value in (estimate.low, estimate.central, estimate.high)
    )
    return f"{central} ({low}-{high})"


#: Where the seconds of a cost are from, for people.
_BASES = {
    "measured": "rows",
    "scaled": "scaled rows",
    "table": "data sheet",
    "probe": "probe",
    None: "unknown",
}


def cost_table(cost: Estimate) -> Table:
    """What each distinct shape will cost; fits 100 columns where names are short."""
    table = Table(box=None, pad_edge=False, header_style="dim", collapse_padding=True)
    for name in ("cell arm", "batch"):
        table.add_column(name)
    unit = "GPU-h" if cost.unit == "GPU-hours" else "core-h"
    for name in ("trials", "params M", "flops G", "GiB", "s/epoch", unit):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("from", no_wrap=True)
    for shape in cost.shapes:
        (cell, arm), *more = shape.arms
        table.add_row(
            f"{cell} {arm}" + (f" +{len(more)}" if more else ""),
            shape.shape.name,
            str(shape.trials),
            f"{shape.params_m:.3g}",
            f"{shape.flops_g:.3g}",
            f"{shape.footprint.peak / 2**30:.2g}",
            span(shape.seconds),
            span(shape.hours),
            _BASES[shape.basis],
        )
    return table


def cost_text(cost: Estimate) -> Text:
    """Totals, and what to look at before starting."""
    lanes = ", then ".join(str(count) for count in cost.lanes)
    text = Text()
    if cost.hours is None:
        text.append(
            f"\nspeed unknown on {cost.machine.device}: no earlier sweep ran on it; --measure times this CPU"
        )
    else:
        text.append(f"\n{span(cost.hours)} {cost.unit}", style="bold")
        text.append(f" on {cost.machine.device}")
        if cost.wall_hours is not None:
            low, high = duration(3600 * cost.wall_hours.low), duration(3600 * cost.wall_hours.high)
            text.append(f"; {duration(3600 * cost.wall_hours.central)} ({low} to {high}) from start to end")
    text.append(f"; {lanes} trial(s) at a time; checkpoints {cost.checkpoint_gib:.2g} GiB")
    if cost.kept_gib:
        text.append(f", weights kept {cost.kept_gib:.2g} GiB")
    if cost.price is not None:
        text.append(f"; price {span(cost.price)} {cost.currency}".rstrip())
    for warning in cost.warnings:
        text.append(f"\nwarning: {warning}", style="yellow")
    return text


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return str(value)
