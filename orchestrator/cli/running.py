"""Verbs that run trials, and the one that stops them: run, confirm, retry, stop."""

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from orchestrator.cli.app import RUN, app
from orchestrator.cli.jobs import FolderOrJob, JobsAddress, stop_job
from orchestrator.cli.next_steps import retry_with_settings
from orchestrator.cli.options import (
    Address,
    Check,
    MaxPoints,
    Notify,
    Out,
    Points,
    Quiet,
    Sets,
    SweepFile,
    SweepFolder,
    Track,
    Until,
    WaitMinutes,
    again,
    asked_file,
    make_console,
    say,
    say_reading,
    trial_ids,
)
from orchestrator.cli.watchers import Watchers
from orchestrator.execution.waiting import WAIT_MINUTES
from trainables.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from orchestrator.trials.records import Result
    from orchestrator.trials.sweep_file import SweepFile as AskedFile
    from orchestrator.trials.trial import Plan, Trial


@app.command(
    rich_help_panel=RUN,
    epilog="Example: vitc-sweep run search_spaces/lr_wd.yaml --set data=/data/fashion-mnist --points 16",
)
def run(
    file: SweepFile,
    out: Out = None,
    sets: Sets = None,
    points: Points = None,
    until: Until = None,
    max_points: MaxPoints = None,
    address: Address = None,
    wait_minutes: WaitMinutes = WAIT_MINUTES,
    track: Track = True,
    check: Check = True,
    notify: Notify = None,
    quiet: Quiet = False,
    continued_by: Annotated[str | None, typer.Option("--again", hidden=True)] = None,
) -> None:
    """Runs a sweep to its end and writes its report.

    Run the same command again after an interruption, or with more points: only missing trials run. With
    --until settled it adds points by itself, at the looks that `plan` names, and stops at the first that
    decides; no trial beyond a look begins before all trials up to it have ended. Ends with
    exit code 0 if every trial has a result, 1 if trials have failed or are missing, 2 if the input is wrong.
    """
    say_reading(file, quiet)
    from orchestrator.execution.session import Session, prepare

    asked = asked_file(file, sets, points, max_points)
    # The file that a folder of results keeps is continued there.
    kept = file.parent if file.name == "sweep.yaml" and (file.parent / "record.json").is_file() else None
    folder = out or kept or Path("runs") / asked.sweep.name
    extends = {"points": points, "until": until, "max-points": max_points}
    options = {"out": out, **extends, "address": address, "set": sets} | _waits(wait_minutes)
    # Of a job, `--again` is the command that submits it.
    command = continued_by or again("run", file, options)
    settled: Literal["settled"] | None = "settled" if until else None
    with Watchers(make_console(quiet), track, notify, command) as watchers:
        plan, preparation = prepare(asked, folder, watchers.all, address, check, wait_minutes, settled)
        with watchers.holding(folder) as lease:
            end = Session(lease, watchers.all, address, wait_minutes).run_rounds(plan, preparation, settled)
            raise typer.Exit(watchers.conclude(folder, end))


@app.command(rich_help_panel=RUN, epilog="Example: vitc-sweep confirm runs/lr_wd --top 3 --seeds 5")
def confirm(
    folder: SweepFolder,
    top: Annotated[int, typer.Option(min=1, help="Number of best settings per arm and cell.")] = 3,
    seeds: Annotated[int, typer.Option(min=2, help="Fresh seeds per setting.")] = 5,
    only_plan: Annotated[
        bool, typer.Option("--plan", help="Only count the trials and their time; start nothing.")
    ] = False,
    address: Address = None,
    wait_minutes: WaitMinutes = WAIT_MINUTES,
    track: Track = True,
    check: Check = True,
    notify: Notify = None,
    quiet: Quiet = False,
) -> None:
    """Runs the best settings of each arm again with fresh seeds.

    A sweep's best error is biased low, because it was chosen for being low. The settings are chosen once, on
    the selection split, and kept in confirm.json. The report's peak then comes from these runs alone: the
    selection split chooses among them, and the final split gives the error.
    """
    from orchestrator.execution.session import (
        Preparation,
        Session,
        check_data,
        checked,
        choose_confirmation,
        left_of,
    )
    from orchestrator.store.folder import load_confirmation, open_folder, save_confirmation

    say_reading(folder, quiet)
    console = make_console(quiet)
    known = open_folder(folder)
    if only_plan:
        plan, _ = choose_confirmation(known, top, seeds)
        _say_confirmation(console, folder, plan, left_of(plan, known), (top, seeds))
        return
    options = {"top": top, "seeds": seeds, "address": address} | _waits(wait_minutes)
    command = again("confirm", folder, options)
    with Watchers(console, track, notify, command) as watchers, watchers.holding(folder) as lease:
        known = open_folder(folder, to_run=True)
        plan, choice = choose_confirmation(known, top, seeds)
        shifted = check_data(known)
        todo, preparation = left_of(plan, known), Preparation()
        _say_confirmation(console, folder, plan, todo, (top, seeds))
        if check:
            preparation = checked(_question(folder), plan, todo, folder, watchers.all, address, wait_minutes)
        if load_confirmation(folder) is None:
            save_confirmation(folder, choice)
        preparation = dataclasses.replace(preparation, shifted=shifted)
        end = Session(lease, watchers.all, address, wait_minutes).run_trials(plan, todo, known, preparation)
        raise typer.Exit(watchers.conclude(folder, end))


def _say_confirmation(
    console: "Console", folder: Path, plan: "Plan", todo: "Sequence[Trial]", choice: tuple[int, int]
) -> None:
    """Prints what a confirmation with these numbers of settings and seeds runs, and how long that takes."""
    from orchestrator.cost.devices import this_machine
    from orchestrator.execution.preflight import expected_text

    if not todo:
        return
    top, seeds = choice
    settings = "best setting" if top == 1 else f"{top} best settings"
    count = "1 trial" if len(todo) == 1 else f"{len(todo)} trials"
    say(
        console,
        f"confirm: the {settings} of each arm and cell, {seeds} fresh seeds each (--top, --seeds): {count}. "
        "Ctrl-C keeps those that have ended",
    )
    if told := expected_text(plan, todo, this_machine().nodes, folder):
        say(console, told)


@app.command(rich_help_panel=RUN, epilog="Example: vitc-sweep retry runs/lr_wd --failed")
def retry(
    folder: SweepFolder,
    failed: Annotated[
        bool, typer.Option("--failed", help="Trials that failed, ran out of memory, or could not be built.")
    ] = False,
    outcome: Annotated[
        list[str] | None,
        typer.Option(help="Trials with this outcome: failed, diverged, ...; may be repeated."),
    ] = None,
    trial: Annotated[
        list[str] | None,
        typer.Option(
            help="A trial by the first characters of its id, or as arm/cell/point; may be repeated.",
            autocompletion=trial_ids,
        ),
    ] = None,
    address: Address = None,
    wait_minutes: WaitMinutes = WAIT_MINUTES,
    track: Track = True,
    check: Check = True,
    notify: Notify = None,
    quiet: Quiet = False,
    sets: Annotated[list[str] | None, typer.Option("--set", hidden=True)] = None,
) -> None:
    """Runs chosen trials again from their beginning, and all other missing trials.

    Their earlier results stay in the journal but no longer count. Retrying a first stage also retries the
    trials that start from it and ended without an epoch of their own.
    """
    from orchestrator.execution.session import Preparation, Session, check_data, checked
    from orchestrator.monitor.progress import FAILURES
    from orchestrator.store.folder import open_folder, record_retries
    from orchestrator.store.journal import FolderError
    from orchestrator.trials.records import brought_back, results_of
    from orchestrator.trials.trial import unique_trials

    open_folder(folder)
    if sets:
        raise UserError(retry_with_settings(folder, sets))
    say_reading(folder, quiet)
    options = {"outcome": outcome, "trial": trial, "address": address} | _waits(wait_minutes)
    command = again("retry", folder, options) + (" --failed" if failed else "")
    with Watchers(make_console(quiet), track, notify, command) as watchers, watchers.holding(folder) as lease:
        known = open_folder(folder, to_run=True)
        shifted = check_data(known)
        results = results_of(known.plan, known.records)
        wanted = _chosen(known.plan, results, {*(FAILURES if failed else ()), *(outcome or ())}, trial or [])
        if not wanted:
            raise FolderError(f"{folder}: no trial to retry; choose with --failed, --outcome or --trial")
        wanted += brought_back(results, wanted)
        ended = {key for key, record in known.records.items() if record.settled}
        todo, preparation = unique_trials(known.plan.remaining(ended.difference(wanted))), Preparation()
        if check:
            preparation = checked(
                _question(folder), known.plan, todo, folder, watchers.all, address, wait_minutes
            )
        record_retries(folder, wanted, known.plan.sweep.resources.checkpoints)
        # Now that the choice is on record. The same command would choose among what has ended since.
        options = {"out": folder, "address": address} | _waits(wait_minutes)
        watchers.command = again("run", folder / "sweep.yaml", options)
        known = open_folder(folder, to_run=True)
        preparation = dataclasses.replace(preparation, shifted=shifted)
        end = Session(lease, watchers.all, address, wait_minutes).run_trials(
            known.plan, todo, known, preparation
        )
        raise typer.Exit(watchers.conclude(folder, end))


def _waits(minutes: float) -> dict[str, object]:
    """Returns `--wait-minutes` as an option of `again`, unless it is the default."""
    return {"wait-minutes": None if minutes == WAIT_MINUTES else f"{minutes:g}"}


def _question(folder: Path) -> "AskedFile":
    """Returns the sweep file that is kept in the folder of a sweep."""
    return asked_file(folder / "sweep.yaml", None, None)


def _chosen(plan: "Plan", results: "Sequence[Result]", outcomes: set[str], names: list[str]) -> list[str]:
    """Returns ids of trials by outcome or by name.

    Raises:
      BadParameter: an outcome does not exist.
      UnknownTrial: a name matches no trial, or several.
    """
    from orchestrator.trials.names import find_trial
    from orchestrator.trials.outcomes import RULES

    if unknown := outcomes - set(RULES):
        raise typer.BadParameter(
            f"must be one of {', '.join(RULES)}, is {', '.join(sorted(unknown))}", param_hint="--outcome"
        )
    chosen = {r.trial.id: None for r in results if r.record.outcome in outcomes}
    return list(chosen | dict.fromkeys(find_trial(plan, name).id for name in names))


@app.command(rich_help_panel=RUN, epilog="Example: vitc-sweep stop runs/lr_wd --drain")
def stop(
    folder: FolderOrJob,
    drain: Annotated[bool, typer.Option("--drain", help="Let running trials finish; start no more.")] = False,
    kill: Annotated[
        bool, typer.Option("--kill", help="Kill the process of the run at once; it must be on this machine.")
    ] = False,
    wait: Annotated[bool, typer.Option(help="Return when the run has stopped.")] = True,
    address: JobsAddress = None,
) -> None:
    """Stops a run from another terminal, or from another machine with access to the folder; or a job.

    Without options it acts like Ctrl-C: running trials are cancelled and continue from their checkpoints when
    the sweep is run again.
    """
    from orchestrator.store.lease import holder, kill_holder, request_stop

    if drain and kill:
        raise typer.BadParameter("choose one of --drain and --kill")
    if address is not None:
        if drain or kill or not wait:
            rule = "--drain, --kill and --no-wait are for folders: use them on the head, without --address"
            raise typer.BadParameter(rule)
        stop_job(str(folder), address)
        return
    if kill:
        kill_holder(folder)
    else:
        request_stop(folder, "drain" if drain else "now")
    while wait and holder(folder) is not None:
        time.sleep(0.5)
    print(f"{folder}: {'stopped' if wait else 'will stop'}")
