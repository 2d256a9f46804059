"""The command line. Heavy imports stand inside the commands, so that --help is immediate."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from orchestrator.folder import Folder
    from orchestrator.lease import Lease
    from orchestrator.plan import Plan, Trial
    from orchestrator.preflight import Checked, Outcome
    from orchestrator.results import Result
    from orchestrator.sweep import Override, Sweep
    from orchestrator.tracking import Tracker

app = typer.Typer(
    name="vitc-sweep",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Asks which of two architectures has the better peak and which is more forgiving of its settings.",
    epilog="Start with: `vitc-sweep run search_spaces/lr_wd.yaml`\n\nExit codes: 0 all is done and well; "
    "1 something is missing, has failed or does not hold; 2 the input is at fault, and nothing was written; "
    "130 a person stopped it.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"vitc-sweep {version('vitc-sweep')}")
        raise typer.Exit


@app.callback()
def _every_verb(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


data_app = typer.Typer(no_args_is_help=True, help="Bring images into the form sweeps read.")
app.add_typer(data_app, name="data")

SweepFile = Annotated[Path, typer.Argument(help="The sweep file (YAML).", show_default=False)]


def _folders(incomplete: str) -> list[str]:
    """Sweep folders that a shell may complete to; imports nothing."""
    place = Path(incomplete) if incomplete.endswith("/") else Path(incomplete).parent
    return [
        str(path.parent)
        for pattern in ("*/sweep.yaml", "*/*/sweep.yaml")
        for path in sorted(place.glob(pattern))
        if str(path.parent).startswith(incomplete)
    ]


def _trial_ids(context: typer.Context, incomplete: str) -> list[str]:
    """Trials that were started, for a shell: from the journal as text, as reading the plan takes seconds."""
    found: dict[str, None] = {}
    for path in sorted((Path(context.params.get("folder") or ".") / "journal").glob("*.jsonl")):
        for match in re.finditer(rb'"kind":"attempt","trial":"([0-9a-f]+)"', path.read_bytes()):
            found[match[1].decode()] = None
    return [trial_id for trial_id in found if trial_id.startswith(incomplete)]


SweepFolder = Annotated[
    Path,
    typer.Argument(
        help="The sweep's folder, as `run` names it.", show_default=False, autocompletion=_folders
    ),
]
OneTrial = Annotated[
    str,
    typer.Argument(
        metavar="TRIAL",
        help="A trial: the beginning of its id, or arm/cell/point, such as vit_c/adamw/3.",
        show_default=False,
        autocompletion=_trial_ids,
    ),
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change the file: data=PATH, model.size=1gf, design.seed=1."
    ),
]


def _expanded(path: Path | None) -> Path | None:
    # A shell leaves the ~ of `--out=~/results` alone.
    return path and Path(os.path.expanduser(path))


Out = Annotated[
    Path | None, typer.Option(callback=_expanded, help="Folder of the results [default: runs/<name>].")
]
Points = Annotated[int | None, typer.Option(min=1, help="Points per arm and cell, instead of the file's.")]
Address = Annotated[
    str | None, typer.Option(help="A running Ray cluster, `auto` on one of its nodes; else this machine.")
]
Track = Annotated[bool, typer.Option("--mlflow/--no-mlflow", help="Mirror the runs to MLflow.")]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print the report's path alone; faults go to standard error.")
]
Notify = Annotated[
    str | None,
    typer.Option(
        metavar="URL|COMMAND",
        envvar="VITC_SWEEP_NOTIFY",
        show_envvar=False,
        help="Tell of the first result, of a run that stops itself, and of the end: POST JSON to a URL, or "
        "run a command with the JSON on its standard input. $NAMES are taken from the environment "
        "[env: VITC_SWEEP_NOTIFY; the file's key: notify].",
    ),
]
Check = Annotated[
    bool, typer.Option("--preflight/--no-preflight", help="Try every shape before the first trial.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]

#: Exit codes: everything done; something is missing or failed; the input is at fault.
OK, INCOMPLETE, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


def main() -> None:
    """Runs the command line; input at fault ends with its message and exit code 2, without a traceback."""
    try:
        app()
    except Exception as error:
        # By name: importing the classes would import torch before there is need.
        if type(error).__name__ in (
            "SweepError",
            "DataError",
            "FolderError",
            "ClusterError",
            "MergeError",
            "UnknownTrial",
        ):
            print(error, file=sys.stderr)
            raise SystemExit(BAD_INPUT) from None
        raise


def _console(quiet: bool = False) -> "Console":
    from rich.console import Console

    if quiet:
        return Console(quiet=True)
    # Wide enough for tables where nobody knows the width.
    return Console(width=None if sys.stdout.isatty() else int(os.environ.get("COLUMNS", "160")))


def _say(console: "Console", text: str, style: str | None = None) -> None:
    """Prints a line as it is: paths keep their brackets, and are not broken to be copied in halves."""
    if console.quiet and style in ("red", "yellow"):
        print(text, file=sys.stderr)
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def _overrides(sets: list[str] | None) -> "list[Override]":
    from orchestrator.sweep import Override

    return [Override.parse(text) for text in sets or ()]


def _plan(
    file: Path, sets: list[str] | None, points: int | None, expected: "list[str] | None" = None
) -> "Plan":
    """Reads a sweep file, looks at the data and draws the trials; all faults at once."""
    from orchestrator.sweep import load_sweep

    overrides = _overrides(sets)
    return _planned(load_sweep(file, overrides, points), file, overrides, points, expected)


def _planned(
    sweep: "Sweep",
    file: Path,
    overrides: "list[Override]",
    points: int | None,
    expected: "list[str] | None" = None,
) -> "Plan":
    """With `expected`, missing data count as what the file expects of them; it gets their paths."""
    from pydantic import ValidationError

    from orchestrator.plan import data_configs, make_plan
    from orchestrator.sweep import located
    from orchestrator.where import ConstraintError
    from trainables.config import faults_of
    from trainables.data import DataError
    from trainables.faults import Fault

    infos, faults = {}, []
    for config, key in data_configs(sweep).items():
        try:
            if expected is None or config.name == "digits" or not config.expects or config.lies_there():
                infos[config] = config.info()
            else:
                infos[config] = config.expected_info()
                expected.append(config.path)
        except DataError as error:
            faults.append(Fault(key, str(error)))
    if not faults:
        try:
            return make_plan(sweep, infos)
        except ValidationError as error:
            # Each value alone is valid; which of them do not go together, only the rule can say.
            faults = [
                Fault(
                    "vary",
                    f"{f.path}: {f.rule}; a constraint under `where` can leave such points out",
                    f.found,
                )
                for f in faults_of(error)
            ]
        except ConstraintError as error:
            faults = [Fault("where", str(error))]
    raise located(faults, file, overrides, points)


@app.command(
    epilog="Example: vitc-sweep run search_spaces/lr_wd.yaml --set data=/data/fashion-mnist --points 16"
)
def run(
    file: SweepFile,
    out: Out = None,
    sets: Sets = None,
    points: Points = None,
    address: Address = None,
    track: Track = True,
    check: Check = True,
    notify: Notify = None,
    quiet: Quiet = False,
) -> None:
    """Runs a sweep to its end, and reports.

    The file states the target: run again after an interruption, or with more points, and only what is
    missing is done. Ends with exit code 0 when every trial has a result, 1 when some have failed or are
    missing, 2 when the input is at fault.
    """
    from orchestrator.folder import merge_points, open_folder, plan_of, save_question
    from orchestrator.lease import check_free, held
    from orchestrator.plan import unique_trials
    from orchestrator.search import num_rounds, rounds_given
    from orchestrator.sweep import load_sweep, located

    console = _console(quiet)
    overrides = _overrides(sets)
    sweep = load_sweep(file, overrides, points)
    folder = out or Path("runs") / sweep.name
    # Known at once, not after the preflight.
    check_free(folder)
    if (folder / "sweep.yaml").is_file():
        before, sweep = sweep, merge_points(folder, sweep)
        if sweep != before:
            _say(console, f"{folder} was extended before; it keeps its larger number of points")
    whole = _planned(sweep, file, overrides, points)
    plan = plan_of(folder, sweep, whole.infos)
    began, preflight_seconds = time.time(), 0.0
    checked: Sequence[Checked] = ()
    if check:
        known = open_folder(folder) if (folder / "sweep.yaml").is_file() else None
        ended = [key for key, record in known.records.items() if record.settled] if known else []
        left = plan.remaining(ended)
        if not left and rounds_given(plan) < num_rounds(sweep):
            # Rounds of a search that nobody has chosen yet are of the same shapes.
            left = list(whole.trials)
        if left:
            # Before the folder is there: a sweep that cannot start leaves nothing behind.
            outcome = _preflight(console, plan, left, folder, address, track)
            if outcome.faults:
                raise located(outcome.faults, file, overrides, points)
            preflight_seconds, checked = outcome.seconds, outcome.checked
    with held(folder) as lease:
        known = open_folder(folder) if (folder / "sweep.yaml").is_file() else None
        for notice in known.notices if known else ():
            _say(console, f"note: {notice}", "yellow")
        tracker, has_run = None, False
        rounds = num_rounds(sweep)
        while True:
            records = known.records if known else {}
            todo = unique_trials(plan.remaining(key for key, record in records.items() if record.settled))
            is_last = rounds_given(plan) == rounds
            if todo:
                if tracker:
                    tracker.close(timeout_seconds=30)
                if rounds > 1:
                    _say(console, f"round {rounds_given(plan)} of {rounds}", "bold")
                command, timing = _command(file, out), (began, preflight_seconds)
                tracker = _execute(
                    console,
                    plan,
                    lease,
                    todo,
                    known,
                    address,
                    track,
                    command,
                    notify,
                    timing,
                    checked,
                    is_last,
                )
                has_run = True
            else:
                save_question(folder, plan)
            if is_last:
                break
            known = open_folder(folder)
            if (longer := _next_round(known)) is None:
                break
            plan, began, preflight_seconds = longer, time.time(), 0.0
        if not has_run:
            _say(console, f"{folder}: nothing to do, all {len(plan.trials)} trials have ended\n")
            # A tracker that was down when the trials ran catches up here.
            tracker = _tracker(plan, folder, known) if track else None
        raise typer.Exit(_conclude(console, folder, tracker))


def _next_round(known: "Folder") -> "Plan | None":
    """The plan with what a search tries next, on record in the folder; None if there is nothing to try."""
    from orchestrator.folder import plan_of, save_suggestions
    from orchestrator.results import results_of
    from orchestrator.samplers import propose
    from orchestrator.search import next_round

    plan = known.plan
    chosen = next_round(plan, results_of(plan, known.records), propose)
    if not chosen:
        return None
    save_suggestions(known.path, [*plan.suggestions, *chosen])
    return plan_of(known.path, plan.sweep, plan.infos)


@app.command(epilog="Example: vitc-sweep confirm runs/lr_wd --top 3 --seeds 5")
def confirm(
    folder: SweepFolder,
    top: Annotated[int, typer.Option(min=1, help="Best settings of each arm and cell.")] = 3,
    seeds: Annotated[int, typer.Option(min=2, help="Fresh seeds for each of them.")] = 5,
    address: Address = None,
    track: Track = True,
    check: Check = True,
    notify: Notify = None,
    quiet: Quiet = False,
) -> None:
    """Runs the best settings of each arm again with fresh seeds.

    A sweep's best error was picked for being low, so it flatters. The choice is made once, on the selection
    split, and kept in confirm.json; the report's peak then comes from these runs alone, the choice among
    them from the selection split, and the number from the final one.
    """
    from orchestrator.confirm import choose
    from orchestrator.folder import load_confirmation, open_folder, save_confirmation
    from orchestrator.journal import FolderError
    from orchestrator.lease import held
    from orchestrator.plan import unique_trials, with_confirmation
    from orchestrator.results import results_of
    from orchestrator.search import num_rounds, rounds_given

    console = _console(quiet)
    open_folder(folder)
    with held(folder) as lease:
        known = open_folder(folder, to_run=True)
        before = load_confirmation(folder)
        draws = [r for r in results_of(known.plan, known.records) if r.trial.is_tried]
        if open_draws := sum(not result.record.settled for result in draws):
            raise FolderError(
                f"{folder}: {open_draws} trials of the sweep have not ended; run it to its end first"
            )
        if (rounds := num_rounds(known.plan.sweep)) > (so_far := rounds_given(known.plan)):
            raise FolderError(
                f"{folder}: the search has had {so_far} of {rounds} rounds; run it to its end first"
            )
        wanted = choose(draws, top, seeds)
        if before is None:
            plan = with_confirmation(known.plan, wanted)
        elif before == wanted:
            plan = known.plan
        else:
            raise FolderError(
                f"{folder}: has been confirmed with another choice ({before.seeds} seeds); choosing again "
                "after having seen the results would undo its purpose. Delete confirm.json to start over"
            )
        _check_data(plan, folder)
        todo = unique_trials(plan.remaining(key for key, record in known.records.items() if record.settled))
        timing = _checked_again(console, plan, todo, folder, address, track) if check else None
        if before is None:
            save_confirmation(folder, wanted)
        tracker = None
        if todo:
            command = f"vitc-sweep confirm {folder} --top {top} --seeds {seeds}"
            tracker = _execute(console, plan, lease, todo, known, address, track, command, notify, timing)
        raise typer.Exit(_conclude(console, folder, tracker))


def _check_data(plan: "Plan", folder: Path) -> None:
    """The data must still be those the sweep ran on."""
    from orchestrator.journal import FolderError

    for config, info in plan.infos.items():
        if config.info().fingerprint != info.fingerprint:
            raise FolderError(f"{folder}: the data {info.name} have changed since the sweep ran")


def _tracker(plan: "Plan", folder: Path, known: "Folder | None") -> "Tracker":
    """A running mirror of the sweep that knows what happened before."""
    from orchestrator.tracking import Tracker, tracking_uri

    tracker = Tracker(plan, folder, tracking_uri(folder))
    tracker.observe(known.events if known else [])
    tracker.start()
    return tracker


def _command(file: Path, out: Path | None) -> str:
    return f"vitc-sweep run {file}" + (f" --out {out}" if out else "")


def _execute(
    console: "Console",
    plan: "Plan",
    lease: "Lease",
    todo: "Sequence[Trial]",
    known: "Folder | None",
    address: str | None,
    track: bool,
    command: str,
    notify: str | None = None,
    timing: tuple[float, float] | None = None,
    checked: "Sequence[Checked]" = (),
    is_last: bool = True,
) -> "Tracker | None":
    """Runs the trials that are left; returns the tracker, still open for the report.

    `timing` says when the command began, in seconds since 1970, and what its preflight took,
    `checked` which shapes that has run; what it learnt is the plan that the report holds against the outcome.
    `is_last` says whether these trials end the sweep.

    Raises:
      typer.Exit: a person cut it short, or another run took over.
    """
    from orchestrator import lanes
    from orchestrator.cost import storage_fault, within_budget
    from orchestrator.folder import save_question
    from orchestrator.machine import record_plan
    from orchestrator.notify import Notifier
    from orchestrator.progress import Progress
    from orchestrator.terminal import duration
    from orchestrator.watch import Display

    began, preflight_seconds = timing or (time.time(), 0.0)
    folder = lease.folder
    records = known.records if known else {}
    already = len(plan.trials) - len(todo)
    _say(
        console,
        f"{plan.sweep.name}: {len(todo)} trials to run"
        + (f", {already} have ended before" if already else "")
        + f"; results go to {folder}",
    )
    for line in _lr_notes(plan):
        _say(console, line, "dim")
    lanes.connect(address)
    # From here on a polite kill means the same as Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    notifier = Notifier(notify or plan.sweep.notify, plan.sweep.name, folder)
    stopped, how = "", "broke off"
    try:
        if fault := storage_fault(plan, lanes.nodes()):
            raise lanes.ClusterError(fault)
        judge = None
        if plan.sweep.search is not None and plan.sweep.search.halving is not None:
            from orchestrator.halving import Judge

            judge = Judge(plan.sweep.search.halving, plan.trials)
            judge.replay(known.events if known else ())
        run = lanes.Run(folder, todo, records, plan.sweep.resources, began, preflight_seconds, judge)
        # Once: of what has run there is no plan from before any more.
        if checked and not any(record.attempts for record in records.values()):
            record_plan(folder, plan, lanes.nodes(), checked)
        save_question(folder, plan)
        tracker = _tracker(plan, folder, known) if track else None
        run.start()
        lanes_at_most = max(count for *_, count in run.phases)
        progress = Progress(plan, records, lanes_at_most, known.events if known else ())
        with Display(console, progress, folder) as display:

            def tell() -> bool:
                """Whether anything has come that counts in a budget."""
                events = run.events()
                display.update(events)
                notifier.observe(progress, events)
                if tracker:
                    tracker.observe(events)
                return any(event["kind"] in ("epoch", "end") for event in events)

            try:
                # What earlier runs have spent counts before anything comes.
                draining, nodes, spending = False, lanes.nodes(), True
                while True:
                    # Asked before the events are: what came in between is in them.
                    done = run.done
                    spending = tell() or spending
                    if done:
                        break
                    if lease.lost:
                        stopped = "another run has taken the folder over"
                    elif (wanted := lease.stop_wanted()) == "now":
                        stopped = "as `vitc-sweep stop` asked"
                    elif wanted == "drain" and not draining:
                        draining = True
                        _say(console, "stopping: trials in flight go on to their end, no more are started")
                        run.drain()
                    elif spending and not draining:
                        # It looks at every trial: not four times a second for nothing.
                        spending = False
                        if not within_budget(plan, records, nodes):
                            draining = True
                            _say(console, "the budget is spent: trials in flight go on, no more are started")
                            run.drain()
                    if stopped:
                        break
                    time.sleep(0.25)
            except KeyboardInterrupt:
                stopped = "interrupted"
            if stopped:
                # Seconds from here; a second Ctrl-C would only lose the record of the first.
                signal.signal(signal.SIGINT, signal.SIG_IGN)
                run.stop()
                tell()
            run.close()
        how = f"was stopped ({stopped})" if stopped else "has ended"
        if run.error and not stopped:
            _say(console, f"Ray stopped the run: {run.error}", "red")
        if progress.breaker:
            _say(console, f"stopped early: {progress.breaker}", "red")
            _say(console, f"Mend the cause, then:  vitc-sweep retry {folder} --failed")
    finally:
        lanes.shutdown()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # Between two rounds of a search nothing has ended.
        if (stopped or is_last or how == "broke off") and (warning := notifier.end(how)):
            _say(console, warning, "yellow")
    if stopped:
        if tracker:
            tracker.close(timeout_seconds=3)
        ended = sum(record.settled for record in records.values())
        _say(
            console,
            f"\nstopped ({stopped}); {ended} of {len(plan.trials)} trials have ended. Go on with:  {command}",
        )
        raise typer.Exit(INTERRUPTED)
    _say(console, f"{len(todo)} trials in {duration(time.time() - began)}\n")
    return tracker


def _preflight(
    console: "Console", plan: "Plan", todo: "Sequence[Trial]", folder: Path, address: str | None, track: bool
) -> "Outcome":
    """Tries what is to run where it is to run, and says so in a line; faults are for the caller to tell."""
    from orchestrator.preflight import Child, preflight
    from orchestrator.tracking import tracking_uri, unanswered

    # A polite kill cleans up as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if address is None:
        from orchestrator.machine import this_machine

        machine = this_machine()
        with Child(machine.has_gpus, 60 * plan.sweep.resources.hang_minutes) as child:
            outcome = preflight(plan, todo, machine.nodes, child, folder)
    else:
        from orchestrator import lanes

        lanes.connect(address)
        outcome = preflight(plan, todo, lanes.nodes(), lanes.check_start, folder, lanes.clocks())
        if outcome.faults:
            lanes.shutdown()
    if track and (warning := unanswered(tracking_uri(folder))):
        _say(console, f"warning: {warning}; the sweep would go on without", "yellow")
    _say(console, outcome.line(), "dim")
    return outcome


def _checked_again(
    console: "Console", plan: "Plan", todo: "Sequence[Trial]", folder: Path, address: str | None, track: bool
) -> tuple[float, float] | None:
    """Preflight of what a folder's sweep is to run besides; what `_execute` takes as its timing.

    Raises:
      SweepError: with all faults; nothing has been written.
    """
    from orchestrator.sweep import located

    if not todo:
        return None
    began = time.time()
    outcome = _preflight(console, plan, todo, folder, address, track)
    if outcome.faults:
        raise located(outcome.faults, folder / "sweep.yaml")
    return began, outcome.seconds


def _lr_notes(plan: "Plan") -> list[str]:
    """What is done to learning rates quoted for another batch size."""
    notes: dict[str, None] = {}
    for trial in plan.trials:
        optim, batch = trial.config.optim, trial.config.batch_size
        if optim.lr_batch_size is not None and optim.lr_batch_size != batch:
            factor = optim.peak_lr(batch) / optim.lr
            notes[
                f"{optim.name}: lr is quoted for a batch of {optim.lr_batch_size} and scaled "
                f"{'linearly' if optim.lr_scaling == 'linear' else 'by the square root'} to {batch} "
                f"(x {factor:.4g})"
            ] = None
    return list(notes)


def _search_notes(plan: "Plan") -> list[str]:
    """What of a plan is not known before a search has begun."""
    from orchestrator.search import num_rounds

    if (search := plan.sweep.search) is None:
        return []
    notes = []
    if (rounds := num_rounds(plan.sweep)) > 1:
        notes.append(
            f"search: {rounds} rounds of up to {search.round} points per arm and cell; {search.sampler} will "
            "choose other settings for those after the first than stand here"
        )
    if search.halving is not None:
        notes.append(
            f"search: trials that fall behind are ended from epoch {search.halving.grace_epochs} on, so that "
            "it costs less than is planned here"
        )
    return notes


def _write_report(folder: Path) -> Path:
    from orchestrator.evidence import write_sealed_report

    return write_sealed_report(folder)


def _conclude(console: "Console", folder: Path, tracker: "Tracker | None" = None) -> int:
    """Writes the report, prints its answer, hands it to the tracker and closes that.

    Returns:
      The exit code, which says whether every trial has a result.
    """
    from orchestrator.folder import open_folder
    from orchestrator.results import results_of
    from orchestrator.rows import summary_table
    from orchestrator.terminal import answer_table, failure_lines

    report = _write_report(folder)
    opened = open_folder(folder)
    results = results_of(opened.plan, opened.records)
    console.print(answer_table(summary_table(opened.plan, opened.records)))
    for sentence in json.loads((report.parent / "summary.json").read_text())["answer"]:
        console.print(f"\n{sentence}", markup=False, highlight=False)
    # A trial that a search has ended early has done what was wanted of it.
    bad = [r for r in results if r.rule is None or not (r.rule.in_edf or r.censored)]
    if bad:
        console.print(failure_lines([result for result in bad if result.record.outcome]))
        _say(console, f"\n{len(bad)} of {len(results)} trials have no result; see {folder}/trials", "red")
    held_up = len({result.trial.id for result in results if result.held_up})
    if held_up:
        _say(
            console,
            f"\n{held_up} trials were never begun, as what they start from left no weights; "
            f"`vitc-sweep why {folder} TRIAL` tells of each",
            "red",
        )
    _say(console, f"\nreport: {report}")
    if console.quiet:
        print(report)
    if tracker:
        tracker.add_artifact(report)
        if warning := tracker.close(timeout_seconds=30):
            _say(console, warning, "yellow")
    return INCOMPLETE if bad or held_up else OK


@app.command(epilog="Example: vitc-sweep preflight search_spaces/lr_wd.yaml --set data=/data/fashion-mnist")
def preflight(
    file: SweepFile,
    out: Out = None,
    sets: Sets = None,
    points: Points = None,
    address: Address = None,
    track: Track = True,
    as_json: AsJson = False,
) -> None:
    """Tries what `run` would start, without starting it: every shape built, the largest run for two steps.

    A shape is a model with its data, batch, workers, precision and optimizer; rates and seeds do not matter.
    Also tried: the storage of the results, its free space, clocks, MLflow. Leaves nothing behind. Ends with
    exit code 0 when the sweep can start, 2 with all faults when it cannot.
    """
    from rich.console import Console

    from orchestrator.sweep import load_sweep, located
    from orchestrator.terminal import rows_table

    overrides = _overrides(sets)
    sweep = load_sweep(file, overrides, points)
    plan = _planned(sweep, file, overrides, points)
    folder = out or Path("runs") / sweep.name
    # JSON goes out alone.
    console = Console(stderr=True) if as_json else _console()
    outcome = _preflight(console, plan, plan.trials, folder, address, track)
    if outcome.faults:
        raise located(outcome.faults, file, overrides, points)
    if as_json:
        content = {"shapes": outcome.shapes, "seconds": outcome.seconds, "plan_seconds": outcome.plan_seconds}
        print(json.dumps(content | {"checked": outcome.rows()}, indent=2))
    else:
        console.print(rows_table(outcome.rows()))


#: Of a sweep with more trials `plan` lists the first of each cell and arm only.
_MAX_LISTED, _FIRST_LISTED = 64, 3


@app.command(epilog="Example: vitc-sweep plan search_spaces/lr_wd.yaml --points 64 --json")
def plan(
    file: SweepFile,
    sets: Sets = None,
    points: Points = None,
    on: Annotated[
        str | None, typer.Option(help="Where it is to run: 8xH100, 64xcpu [default: this machine].")
    ] = None,
    past: Annotated[Path, typer.Option(help="Folder of earlier sweeps, whose epochs tell speeds.")] = Path(
        "runs"
    ),
    measure: Annotated[
        bool, typer.Option("--measure", help="Time this CPU for a second where no earlier sweep tells.")
    ] = False,
    price_per_gpu_hour: Annotated[
        float | None, typer.Option(min=0, help="Instead of resources.price in the file.")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help=f"List every trial, also of more than {_MAX_LISTED}; --json does.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Lists the trials of a sweep and what they will cost; starts nothing, writes nothing."""
    from orchestrator.cost import estimate
    from orchestrator.machine import described, past_samples, probe_rates, this_machine
    from orchestrator.terminal import cost_table, cost_text, large, removal_rows, rows_table

    expected: list[str] = []
    made = _plan(file, sets, points, expected)
    try:
        machine = described(on) if on else this_machine()
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--on") from error
    samples, notices = past_samples(past)
    rates = probe_rates() if measure else None
    cost = estimate(made, machine, samples, rates, price_per_gpu_hour)
    if as_json:
        trials = [_trial_row(made, trial) for trial in made.trials]
        removed = [dataclasses.asdict(removal) for removal in made.removals]
        told = {"name": made.sweep.name, "cost": cost.plain(), "removed": removed, "trials": trials}
        print(json.dumps(told, indent=2))
        return
    console = _console()
    _say(console, f"{made.sweep.name}  {made.sweep.question}\n", "bold")
    groups: dict[tuple[str, str], list[Trial]] = {}
    for trial in made.trials:
        groups.setdefault((trial.cell_name, trial.arm_and_stage), []).append(trial)
    rows = []
    for (cell, arm), members in groups.items():
        costs = [made.cost(trial) for trial in members]
        info = made.infos[members[0].config.data]
        rows.append(
            {
                "cell": cell,
                "arm": arm,
                "data": f"{info.name} {info.sizes['train']}/{info.sizes['val']}/{info.sizes['test']}",
                "trials": len(members),
                "epochs": _span([cost.epochs for cost in costs]),
                "params M": _span([round(cost.model.params_m, 3) for cost in costs]),
                "flops G": _span([round(cost.model.flops_g, 4) for cost in costs]),
                "activations M": _span([round(cost.model.activations_m, 3) for cost in costs]),
                "multiply-adds to train": large(sum(cost.train_flops for cost in costs)),
                "runs on": str(members[0].gang),
            }
        )
    console.print(rows_table(rows))
    if made.removals:
        _say(console, "\nShare of the points drawn that each constraint removes:", "bold")
        console.print(rows_table(removal_rows(made)))
        _say(console, "a point that one arm breaks is left out in every arm of the cell", "dim")
    for path in expected:
        _say(
            console,
            f"{path}: not there; planned with what the file expects of it, so ids are not final",
            "yellow",
        )
    for line in [*_lr_notes(made), *_search_notes(made)]:
        _say(console, line, "dim")
    console.print()
    listed = list(made.trials)
    if len(listed) > _MAX_LISTED and not everything:
        listed = [trial for members in groups.values() for trial in members[:_FIRST_LISTED]]
    console.print(rows_table(_short_rows(made, listed)))
    if more := len(made.trials) - len(listed):
        _say(
            console,
            f"the first {_FIRST_LISTED} of each cell and arm; {more} more trials with --all, or --json",
            "dim",
        )
    console.print()
    console.print(cost_table(cost))
    console.print(cost_text(cost))
    for line in notices:
        _say(console, f"note: {line}", "dim")
    if differences := _detectable(made):
        _say(console, "\nSmallest difference that so many points tell from chance with 80 % power:", "bold")
        console.print(rows_table(differences))
        _say(
            console,
            "if errors above the best average 4 points in one arm and points correlate by 0.5 between arms; "
            "none: more points are needed",
            "dim",
        )


def _detectable(made: "Plan") -> list[dict[str, Any]]:
    """Per cell and pair of arms what the deciding measures can detect; empty where nothing is compared."""
    from orchestrator.power import detectable
    from orchestrator.stats import MEASURES

    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    for found in detectable(made):
        info = MEASURES[found.measure]
        if info.decides:
            row = rows.setdefault(
                (found.cell, found.base_arm, found.arm),
                {
                    "cell": found.cell,
                    "arms": f"{found.arm} against {found.base_arm}",
                    "points": found.num_points,
                },
            )
            row[info.symbol] = "none" if found.simulated is None else f"{found.simulated:.2g}"
    return list(rows.values())


def _span(values: "list[Any]") -> str:
    low, high = min(values), max(values)
    return f"{low:g}" if low == high else f"{low:g}-{high:g}"


def _trial_row(made: "Plan", trial: "Trial") -> dict[str, Any]:
    cost = made.cost(trial)
    return {
        "id": trial.id,
        "arm": trial.arm,
        "cell": trial.cell_name,
        "point": trial.point,
        "replicate": trial.replicate,
        "role": trial.role,
        "after": trial.after,
        "values": trial.values,
        "params_m": cost.model.params_m,
        "flops_g": cost.model.flops_g,
        "activations_m": cost.model.activations_m,
        "epochs": cost.epochs,
        "steps": cost.steps,
        "train_flops": cost.train_flops,
        "workers": trial.gang.workers,
        "config": trial.config.model_dump(mode="json"),
    }


def _short_rows(made: "Plan", trials: "list[Trial]") -> list[dict[str, Any]]:
    left_out = {"values", "config", "train_flops", "workers", "activations_m"}
    if not any(trial.replicate for trial in made.trials):
        left_out.add("replicate")
    if all(trial.role == "sweep" for trial in made.trials):
        left_out.add("role")
    if not any(trial.after for trial in made.trials):
        left_out.add("after")
    return [
        {key: value for key, value in _trial_row(made, trial).items() if key not in left_out}
        | {path: trial.values.get(path) for path in made.sweep.vary}
        for trial in trials
    ]


@app.command(epilog="Example: vitc-sweep schema --out sweep.schema.json")
def schema(
    out: Annotated[Path | None, typer.Option(help="File to write [default: print].")] = None,
) -> None:
    """Prints the JSON Schema of sweep files, by which an editor completes and checks them.

    The first lines of a file name it: `# yaml-language-server: $schema=sweep.schema.json`.
    """
    from orchestrator.journal import write_atomically
    from orchestrator.schema import sweep_schema

    text = json.dumps(sweep_schema(), indent=1) + "\n"
    if out is None:
        print(text, end="")
    else:
        write_atomically(out, text)
        print(f"{out}: JSON Schema of a sweep file")


@app.command(epilog="Example: vitc-sweep status runs/lr_wd --watch")
def status(
    folder: SweepFolder,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Show it live until the run ends; from any machine.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Says how far a sweep is, from its folder alone; it may be running.

    With --watch it ends with exit code 0 if every trial has a result by then, and 1 if not.
    """
    from orchestrator.folder import open_folder
    from orchestrator.lease import holder
    from orchestrator.progress import Progress
    from orchestrator.terminal import ledger_table
    from orchestrator.watch import NOBODY, follow, view

    if watch and as_json:
        raise typer.BadParameter("choose one of --watch and --json")
    console = _console()
    if watch:
        progress = follow(console, folder)
        console.print(view(progress, folder, width=console.width, spent=progress.ledger(), state=NOBODY))
        is_whole = progress.ended == len(progress.plan.trials) and not progress.causes
        raise typer.Exit(OK if is_whole else INCOMPLETE)
    opened = open_folder(folder)
    progress = Progress(opened.plan, {})
    progress.observe(opened.events)
    spent, at_work = progress.ledger(), holder(folder) is not None
    if as_json:
        cells = [
            {
                "cell": t.cell,
                "arm": t.arm,
                "planned": t.planned,
                "states": t.states,
                "best_error_pct": t.best_pct,
            }
            for t in progress.tallies
        ]
        print(
            json.dumps(
                {
                    "name": opened.plan.sweep.name,
                    "trials": len(opened.plan.trials),
                    "ended": progress.ended,
                    "at_work": at_work,
                    "ledger": {"device": spent.device, **spent.rows()},
                    "cells": cells,
                }
            )
        )
        return
    for notice in opened.notices:
        _say(console, f"note: {notice}", "yellow")
    clock = time.time() if at_work else None
    state = "a run is at work" if at_work and progress.time_left is None else "" if at_work else NOBODY
    console.print(view(progress, folder, width=console.width, clock=clock, state=state))
    if spent.total:
        console.print()
        console.print(ledger_table(spent))


@app.command(epilog="Example: vitc-sweep logs runs/lr_wd vit_c/adamw/3 --follow")
def logs(
    folder: SweepFolder,
    trial: OneTrial,
    rank: Annotated[
        int | None, typer.Option(min=0, help="Of this worker only, and what speaks for all.")
    ] = None,
    attempt: Annotated[int | None, typer.Option(min=1, help="Of this attempt only.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the trial has ended.")] = False,
) -> None:
    """Prints what a trial has left behind: tracebacks, notices, warnings, the stacks of hung processes."""
    from orchestrator.story import find_trial
    from orchestrator.watch import Follower, print_logs

    follower = Follower(folder)
    found = find_trial(follower.progress.plan, trial)
    if not print_logs(follower, found, attempt, rank, follow):
        print(
            f"nothing was said; `vitc-sweep why {folder} {trial}` tells what the journal knows",
            file=sys.stderr,
        )


@app.command(epilog="Example: vitc-sweep why runs/lr_wd vit_c/adamw/3")
def why(
    folder: SweepFolder,
    trial: OneTrial,
    lines: Annotated[int, typer.Option(min=0, help="Lines from the end of its log.")] = 6,
) -> None:
    """Says what happened to a trial, attempt by attempt, and what to do about it."""
    from orchestrator.folder import open_folder
    from orchestrator.results import Record, Result
    from orchestrator.story import attempts_of, find_trial, story
    from orchestrator.trial_logs import last_lines, logs_of

    opened = open_folder(folder)
    found = find_trial(opened.plan, trial)
    result = Result(found, opened.records.get(found.id, Record()), opened.plan.sweep.error)
    excerpt = last_lines(logs_of(folder, found.id), lines)
    attempts = attempts_of(found.id, opened.events)
    print("\n".join(story(result, attempts, str(folder), opened.plan.cost(found).steps, excerpt)))


@app.command(epilog="Example: vitc-sweep retry runs/lr_wd --failed")
def retry(
    folder: SweepFolder,
    failed: Annotated[
        bool, typer.Option("--failed", help="Trials that failed, ran out of memory, or could not be built.")
    ] = False,
    outcome: Annotated[
        list[str] | None, typer.Option(help="Trials that ended so: failed, diverged, ...; may be repeated.")
    ] = None,
    trial: Annotated[
        list[str] | None,
        typer.Option(
            help="A trial by the beginning of its id, or as arm/cell/point; may be repeated.",
            autocompletion=_trial_ids,
        ),
    ] = None,
    address: Address = None,
    track: Track = True,
    check: Check = True,
    notify: Notify = None,
    quiet: Quiet = False,
) -> None:
    """Runs trials that have ended anew, from their beginning, and with them whatever else is missing.

    What they had on record stays in the journal, and counts no more. With a first stage come the trials that
    start from it and ended without an epoch of their own.
    """
    from orchestrator.folder import open_folder, record_retries
    from orchestrator.journal import FolderError
    from orchestrator.lease import held
    from orchestrator.plan import unique_trials
    from orchestrator.progress import FAILURES
    from orchestrator.results import brought_back, results_of

    console = _console(quiet)
    open_folder(folder)
    with held(folder) as lease:
        known = open_folder(folder, to_run=True)
        _check_data(known.plan, folder)
        results = results_of(known.plan, known.records)
        wanted = _chosen(known.plan, results, {*(FAILURES if failed else ()), *(outcome or ())}, trial or [])
        if not wanted:
            raise FolderError(f"{folder}: no trial to retry; choose with --failed, --outcome or --trial")
        wanted += brought_back(results, wanted)
        ended = {key for key, record in known.records.items() if record.settled}
        todo = unique_trials(known.plan.remaining(ended.difference(wanted)))
        timing = _checked_again(console, known.plan, todo, folder, address, track) if check else None
        record_retries(folder, wanted, known.plan.sweep.resources.checkpoints)
        known = open_folder(folder, to_run=True)
        command = f"vitc-sweep retry {folder}"
        tracker = _execute(console, known.plan, lease, todo, known, address, track, command, notify, timing)
        raise typer.Exit(_conclude(console, folder, tracker))


def _chosen(plan: "Plan", results: "Sequence[Result]", outcomes: set[str], names: list[str]) -> list[str]:
    """Ids of trials by outcome or by name.

    Raises:
      BadParameter: an outcome that there is not.
      UnknownTrial: a name that fits no trial, or several.
    """
    from orchestrator.results import RULES
    from orchestrator.story import find_trial

    if unknown := outcomes - set(RULES):
        raise typer.BadParameter(
            f"must be one of {', '.join(RULES)}, is {', '.join(sorted(unknown))}", param_hint="--outcome"
        )
    chosen = {r.trial.id: None for r in results if r.record.outcome in outcomes}
    return list(chosen | dict.fromkeys(find_trial(plan, name).id for name in names))


@app.command(epilog="Example: vitc-sweep stop runs/lr_wd --drain")
def stop(
    folder: SweepFolder,
    drain: Annotated[
        bool, typer.Option("--drain", help="Let trials in flight go on to their end; start no more.")
    ] = False,
    kill: Annotated[
        bool, typer.Option("--kill", help="End the run's process at once; it must be on this machine.")
    ] = False,
    wait: Annotated[bool, typer.Option(help="Return when the run has stopped.")] = True,
) -> None:
    """Stops a run from another terminal, or another machine that sees the folder.

    As it stands it does what Ctrl-C does: trials in flight are cancelled and go on from their checkpoints
    when the sweep is run again.
    """
    from orchestrator.lease import holder, kill_holder, request_stop

    if drain and kill:
        raise typer.BadParameter("choose one of --drain and --kill")
    if kill:
        kill_holder(folder)
    else:
        request_stop(folder, "drain" if drain else "now")
    while wait and holder(folder) is not None:
        time.sleep(0.5)
    print(f"{folder}: {'stopped' if wait else 'will stop'}")


@app.command(epilog="Example: vitc-sweep sync runs/lr_wd")
def sync(folder: SweepFolder) -> None:
    """Brings MLflow up to date with the journal, whatever it has, misses or has lost.

    Nothing is told twice: runs are found by their trial, points by their epoch.
    """
    from orchestrator.folder import open_folder

    opened = open_folder(folder)
    tracker = _tracker(opened.plan, folder, opened)
    if (report := folder / "report" / "report.html").is_file():
        tracker.add_artifact(report)
    if warning := tracker.close(timeout_seconds=600):
        print(warning, file=sys.stderr)
        raise typer.Exit(INCOMPLETE)
    print(f"{folder}: MLflow has all {len(opened.records)} trials that were started")


@app.command(epilog="Example: vitc-sweep report runs/lr_wd")
def report(
    folders: Annotated[
        list[Path],
        typer.Argument(help="A sweep's folder, as `run` names it, or several.", show_default=False),
    ],
) -> None:
    """Writes the report of a sweep anew; what is missing is shown as missing.

    Of several sweeps each gets its own. Ends with exit code 0 if in all of them every trial has a result.
    """
    from orchestrator.evidence import comparable
    from orchestrator.folder import open_folder
    from orchestrator.journal import FolderError

    opened, faults = [], []
    # Twice the same folder is one report.
    for folder in dict.fromkeys(folders):
        try:
            opened.append(open_folder(folder))
        except FolderError as error:
            faults.append(str(error))
    if faults:
        raise FolderError("\n".join(faults))
    console, codes = _console(), []
    for folder in dict.fromkeys(folders):
        if len(opened) > 1:
            _say(console, f"\n{folder}", "bold")
        codes.append(_conclude(console, folder))
    if len(opened) > 1 and comparable(opened):
        names = " ".join(map(str, dict.fromkeys(folders)))
        _say(console, f"\ntheir arms in one report:  vitc-sweep compare {names}")
    raise typer.Exit(max(codes))


@app.command(epilog="Example: vitc-sweep verify runs/lr_wd")
def verify(
    path: Annotated[
        Path, typer.Argument(help="A sweep's folder, or a bundle (.tar.gz).", show_default=False)
    ],
    as_json: AsJson = False,
) -> None:
    """Recomputes every number of the report from the journal, and checks that no file was changed.

    Names file, row and column of each difference; writes nothing. Ends with exit code 0 if all holds and 1 if
    not. Who may change everything may also seal it again: the fingerprint tells one seal from another.
    """
    from dataclasses import asdict

    from orchestrator import evidence

    found = evidence.verify(path)
    print(json.dumps(asdict(found), indent=2) if as_json else "\n".join(found.lines()))
    raise typer.Exit(OK if found.ok else INCOMPLETE)


@app.command(epilog="Example: vitc-sweep bundle runs/lr_wd --out lr_wd.tar.gz")
def bundle(
    folder: SweepFolder,
    out: Annotated[
        Path | None, typer.Option(help="Archive to write, or folder to put it in [default: <name>.tar.gz].")
    ] = None,
) -> None:
    """Packs question, record, journal and report into one archive that `verify` takes anywhere.

    Checkpoints and tracebacks stay behind. Paths of data and the name of the machine's processor are in it.
    """
    from orchestrator import evidence

    target = evidence.bundle(folder, out or Path())
    found = evidence.verify(target)
    print("\n".join([*found.lines(), f"bundle: {target}"]))
    raise typer.Exit(OK if found.ok else INCOMPLETE)


@app.command(epilog="Example: vitc-sweep compare runs/lr_wd runs/lr_wd_regnet")
def compare(
    folders: Annotated[list[Path], typer.Argument(help="Folders of two sweeps or more.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the comparison [default: runs/<name>+<name>].")
    ] = None,
) -> None:
    """Compares arms that live in different sweeps, as if one sweep had asked for them all.

    Refuses what is not comparable, and says why: other data or splits, epochs, cells, points, or settings
    that are no arm's own. All are compared to the first arm of the first folder.
    """
    from orchestrator import evidence
    from orchestrator.folder import open_folder

    target = out or Path("runs") / "+".join(folder.resolve().name for folder in folders)
    _, notices = evidence.compare([open_folder(folder) for folder in folders], target)
    console = _console()
    for notice in notices:
        _say(console, f"note: {notice}")
    raise typer.Exit(_conclude(console, target))


@app.command(epilog="Example: vitc-sweep export runs/lr_wd --format csv --out results.csv")
def export(
    folder: SweepFolder,
    format: Annotated[str, typer.Option(help="parquet or csv.")] = "parquet",
    out: Annotated[
        Path | None, typer.Option(help="File to write [default: FOLDER/results.<format>].")
    ] = None,
) -> None:
    """Writes one row per trial: ids, every resolved setting, outcome, errors, epochs, seconds, cost."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    from orchestrator.folder import open_folder
    from orchestrator.journal import write_atomically
    from orchestrator.rows import results_rows

    if format not in ("parquet", "csv"):
        raise typer.BadParameter(f"must be parquet or csv, is {format!r}", param_hint="--format")
    opened = open_folder(folder)
    table = pa.Table.from_pylist(_one_type_per_column(results_rows(opened.plan, opened.records)))
    sink = pa.BufferOutputStream()
    if format == "csv":
        pyarrow.csv.write_csv(table, sink)
    else:
        pyarrow.parquet.write_table(table, sink)
    target = out or folder / f"results.{format}"
    write_atomically(target, sink.getvalue().to_pybytes())
    print(f"{target}: {table.num_rows} trials, {table.num_columns} columns")


def _one_type_per_column(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Columns that mix types (a stem by name in one arm, written out in the other) as text."""
    mixed = set()
    for name in rows[0] if rows else ():
        kinds = {type(row[name]) for row in rows} - {type(None)}
        if kinds - {int, float} and (len(kinds) > 1 or kinds & {list, tuple, dict}):
            mixed.add(name)
    return [
        {
            name: json.dumps(value) if name in mixed and not isinstance(value, str | None) else value
            for name, value in row.items()
        }
        for row in rows
    ]


@app.command(epilog="Example: vitc-sweep models --json")
def models(
    as_json: AsJson = False,
    classes: Annotated[int, typer.Option(min=1, help="Classes of the head.")] = 1000,
) -> None:
    """Lists the named models with parameters, multiply-adds and activations of one image."""
    from orchestrator.terminal import rows_table
    from trainables.config import NAMED_MODELS

    rows = []
    for name, config in NAMED_MODELS.items():
        cost = config.cost(classes)
        rows.append(
            {
                "name": name,
                "params_m": round(cost.params_m, 4),
                "flops_g": round(cost.flops_g, 4),
                "activations_m": round(cost.activations_m, 3),
                "image_size": config.image_size,
            }
        )
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    _console().print(rows_table(rows))


@app.command(epilog="Example: vitc-sweep ui runs --port 5000")
def ui(
    folder: Annotated[Path, typer.Argument(help="The folder of the sweeps.")] = Path("runs"),
    port: Annotated[int, typer.Option(help="Port of the live reports; MLflow gets the next one.")] = 5000,
    host: Annotated[
        str, typer.Option(help="Address to serve on; the default is this machine only.")
    ] = "127.0.0.1",
    every: Annotated[float, typer.Option(min=0, help="Least seconds between two reports of a sweep.")] = 30,
    track: Annotated[bool, typer.Option("--mlflow/--no-mlflow", help="Serve MLflow's pages, too.")] = True,
) -> None:
    """Serves live reports of all sweeps in a folder, and MLflow over their runs.

    Reports are made anew while somebody looks and the sweep gets on; the sweeps' own files are left alone.
    """
    from orchestrator import serve

    if not folder.is_dir():
        raise typer.BadParameter(f"{folder} is no folder; has a sweep run there?", param_hint="FOLDER")
    mlflow, child = _mlflow_pages(folder, host, port + 1) if track else ("", None)
    # A polite kill takes the child and the scratch folder along, as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with serve.scratch_folder() as scratch:
            pages = serve.Pages(folder, Path(scratch), every)
            with serve.server(pages, host, port, mlflow) as server:
                print(f"reports: http://{host}:{server.server_address[1]}/   (Ctrl-C ends it)")
                print(f"MLflow:  {mlflow or ('has no runs here' if track else 'is left out')}", flush=True)
                server.serve_forever()
    except OSError as error:
        raise typer.BadParameter(f"{host}:{port}: {error}", param_hint="--port") from error
    except KeyboardInterrupt:
        pass
    finally:
        if child is not None:
            child.terminate()


def _mlflow_pages(folder: Path, host: str, port: int) -> "tuple[str, subprocess.Popen[bytes] | None]":
    """Starts MLflow's pages; returns their address, and the process unless a server shows its own."""
    from orchestrator import tracking
    from trainables.places import redacted

    uri = tracking.tracking_uri(folder / "any")
    if uri.startswith("http"):
        return redacted(uri), None
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
        return "", None
    command, more = tracking.ui_command(uri, host, port), tracking.ui_environment(uri)
    return tracking.ui_address(host, port), subprocess.Popen(command, env=os.environ | more)


@data_app.command("import", epilog="Example: vitc-sweep data import photos/ photos.parquet")
def data_import(
    source: Annotated[Path, typer.Argument(help="A folder with one folder of images per class.")],
    target: Annotated[Path, typer.Argument(help="The Parquet file to write.")],
) -> None:
    """Packs a tree of images into one Parquet file in the Hugging Face image layout."""
    from trainables.data import import_folder

    count, names = import_folder(source, target)
    shown = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
    print(f"{target}: {count} images of {len(names)} classes ({shown})")


@data_app.command("info", epilog="Example: vitc-sweep data info photos.parquet")
def data_info(path: Annotated[str, typer.Argument(help="digits, or a Parquet file, folder or URI.")]) -> None:
    """Says what a data set holds and how a sweep would split it."""
    from pydantic import TypeAdapter

    from trainables.config import Data, DataConfig, expand

    adapter: TypeAdapter[DataConfig] = TypeAdapter(Data)
    info = adapter.validate_python(expand("data", path)).info()
    print(f"{info.name}: {info.num_classes} classes, fingerprint {info.fingerprint}")
    for split, where in info.splits.items():
        print(f"  {split:6}{info.sizes[split]:>9} images  {where}")
