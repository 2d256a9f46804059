"""Verbs to watch a sweep, running or not: status, attach, logs, why, ui, sync."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.app import INCOMPLETE, INTERRUPTED, OK, WATCH, app
from orchestrator.cli.jobs import FolderOrJob, JobsAddress, attach_job, print_job_output
from orchestrator.cli.meant import in_order
from orchestrator.cli.next_steps import after_failures
from orchestrator.cli.options import (
    SETTLED,
    AsJson,
    OneTrial,
    SweepFolder,
    again,
    finite,
    make_console,
    say,
    show,
    trial_ids,
)
from orchestrator.monitor.observer import Round
from trainables.io.streams import end_with_reader

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.text import Text

    from orchestrator.trials.records import Result


#: Seconds in which MLflow's pages must answer.
_MLFLOW_SECONDS = 60

#: Seconds between two looks at the output of a run.
_ATTACH_SECONDS = 0.5


@app.command(rich_help_panel=WATCH, epilog="Example: vitc-sweep status runs/lr_wd --watch")
def status(
    folder: SweepFolder,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch",
            "-w",
            help="Show the run live until it ends, from any machine with access to the folder.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Shows the progress of a sweep, running or not, from its folder.

    With --watch it ends with exit code 0 if every trial has a result, else with 1.
    """
    from orchestrator.monitor.live import NOBODY, follow, view
    from orchestrator.monitor.progress import Progress
    from orchestrator.monitor.terminal import ledger_table
    from orchestrator.report.changes import change_sentences
    from orchestrator.store.folder import open_folder
    from orchestrator.store.lease import holder
    from orchestrator.trials.events import to_json
    from orchestrator.trials.rounds import look_lines

    if watch and as_json:
        raise typer.BadParameter("choose one of --watch and --json")
    console = make_console()
    if watch:
        end_with_reader()
        progress = follow(console, folder)
        console.print(view(progress, folder, width=console.width, spent=progress.ledger(), state=NOBODY))
        is_whole = progress.ended == len(progress.plan.trials) and not progress.causes
        raise typer.Exit(OK if is_whole else INCOMPLETE)
    opened = open_folder(folder)
    progress = Progress(opened.plan, {})
    progress.observe(opened.events)
    spent, at_work = progress.ledger(), holder(folder) is not None
    changes = change_sentences(opened.declared)
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
                    "changes": changes,
                    "cells": cells,
                    "looks": [to_json(look) for look in spent.looks],
                }
            )
        )
        return
    for notice in opened.notices:
        say(console, f"note: {notice}", "yellow")
    for sentence in changes:
        say(console, f"note: {sentence}", "yellow")
    clock = time.time() if at_work else None
    state = "running" if at_work and progress.time_left is None else "" if at_work else NOBODY
    console.print(view(progress, folder, width=console.width, clock=clock, state=state))
    if spent.total:
        console.print()
        console.print(ledger_table(spent))
    for line in look_lines(spent.looks):
        say(console, line)


@app.command(rich_help_panel=WATCH, epilog="Example: vitc-sweep attach runs/lr_wd")
def attach(folder: FolderOrJob, address: JobsAddress = None) -> None:
    """Shows the output of a run of another process until it ends, and ends with its exit code.

    Ctrl-C ends only this command. If no run is at work, it shows the output of the last one. With --address
    it does so for a job.
    """
    if address is not None:
        attach_job(str(folder), address)
    from orchestrator.store.journal import FolderError, read_journal
    from orchestrator.store.lease import exit_code, holder
    from orchestrator.store.output import OutputTail, output_path
    from orchestrator.trials.rounds import goes_until_settled

    end_with_reader()
    number = holder(folder)
    if number is None and not output_path(folder).is_file():
        raise FolderError(f"{folder}: no run is at work there, and none has left its output")
    tail = OutputTail(folder)
    try:
        while True:
            # Before the output is read, so that it includes the last lines of a run that ends now.
            at_work = number is not None and holder(folder) == number
            tail.copy(sys.stdout)
            sys.stdout.flush()
            if not at_work:
                break
            time.sleep(_ATTACH_SECONDS)
    except KeyboardInterrupt:
        print(f"\nThe run goes on. To stop it:  {again('stop', folder, {})}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    code = exit_code(folder)
    if code is None:
        until = SETTLED if goes_until_settled(read_journal(folder).events) else None
        print(
            f"{folder}: nobody holds it any more, and the run has not said how it ended: it was killed. "
            f"To go on:  {again('run', folder / 'sweep.yaml', {'out': folder, 'until': until})}",
            file=sys.stderr,
        )
    raise typer.Exit(INCOMPLETE if code is None else code)


@app.command(rich_help_panel=WATCH, epilog="Example: vitc-sweep logs runs/lr_wd vit_c/adamw/3 --follow")
def logs(
    folder: FolderOrJob,
    trial: OneTrial = "",
    rank: Annotated[
        int | None, typer.Option(min=0, help="Only logs of this worker, and those common to all.")
    ] = None,
    attempt: Annotated[int | None, typer.Option(min=1, help="Only logs of this attempt.")] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Keep printing until the trial, or job, has ended.")
    ] = False,
    address: JobsAddress = None,
) -> None:
    """Prints the logs of a trial: tracebacks, notices, warnings, stacks of hung processes.

    With --address, and without a trial, it prints the output of a job.
    """
    if address is not None:
        if trial or rank is not None or attempt is not None:
            raise typer.BadParameter("logs of a trial are in the sweep's folder: print them on the head")
        print_job_output(str(folder), address, follow)
    if not trial:
        raise typer.BadParameter("name a trial, such as vit_c/adamw/3", param_hint="TRIAL")
    from orchestrator.monitor.live import Follower, print_logs
    from orchestrator.trials.names import find_trial

    folder, trial = in_order(folder, trial)
    follower = Follower(folder)
    found = find_trial(follower.progress.plan, trial)
    end_with_reader()
    if not print_logs(follower, found, attempt, rank, follow):
        print(
            f"This trial wrote no log. See:  vitc-sweep why {folder} {trial}",
            file=sys.stderr,
        )


@app.command(rich_help_panel=WATCH, epilog="Example: vitc-sweep why runs/lr_wd vit_c/adamw/3")
def why(
    folder: SweepFolder,
    trial: Annotated[
        str | None,
        typer.Argument(
            metavar="[TRIAL]",
            help="A trial, as in `logs`; without one, the causes of all failures.",
            show_default=False,
            autocompletion=trial_ids,
        ),
    ] = None,
    lines: Annotated[int, typer.Option(min=0, help="Number of lines to show from the end of its log.")] = 6,
) -> None:
    """Shows what happened to a trial, attempt by attempt, and what to do about it."""
    from orchestrator.monitor.explain import attempts_of, story
    from orchestrator.store.folder import open_folder
    from orchestrator.store.logs import last_lines, logs_of
    from orchestrator.trials.names import find_trial
    from orchestrator.trials.records import Record, Result, results_of

    if trial is not None:
        folder, trial = in_order(folder, trial)
    opened = open_folder(folder)
    if trial is None:
        for line in _failures(folder, results_of(opened.plan, opened.records)):
            make_console().print(line, soft_wrap=True)
        return
    found = find_trial(opened.plan, trial)
    result = Result(found, opened.records.get(found.id, Record()), opened.plan.sweep.error)
    attempts = attempts_of(found.id, opened.events)
    # The log of an earlier attempt would look like the cause of a later one's end.
    last = [attempt.number for attempt in attempts[-1:] if not attempt.discarded]
    excerpt = last_lines([log for log in logs_of(folder, found.id) if log.attempt in last], lines)
    show("\n".join(story(result, attempts, str(folder), opened.plan.steps(found), excerpt)))


def _failures(folder: Path, results: "Sequence[Result]") -> "Iterator[Text | str]":
    """Yields the causes of failures, with the commands that say more and that try again."""
    from orchestrator.monitor.progress import FAILURES
    from orchestrator.monitor.terminal import failure_lines
    from orchestrator.trials.names import name_of

    failed = [result for result in results if result.state in FAILURES]
    if not failed:
        name = name_of(results[0].trial)
        yield f"No trial of {folder} has failed. What happened to one:  vitc-sweep why {folder} {name}"
        return
    yield failure_lines(failed)
    yield from after_failures(folder, failed)


@app.command(rich_help_panel=WATCH, epilog="Example: vitc-sweep ui runs --port 5000")
def ui(
    folder: Annotated[Path, typer.Argument(help="The folder that contains the sweeps.")] = Path("runs"),
    port: Annotated[int, typer.Option(help="Port of the live reports; MLflow uses the next one.")] = 5000,
    host: Annotated[
        str, typer.Option(help="Address to serve on; the default is this machine only.")
    ] = "127.0.0.1",
    every: Annotated[
        float, typer.Option(min=0, callback=finite, help="Least seconds between two reports of a sweep.")
    ] = 30,
    track: Annotated[bool, typer.Option("--mlflow/--no-mlflow", help="Also serve MLflow's pages.")] = True,
) -> None:
    """Serves live reports of all sweeps in a folder, and MLflow's pages of their runs.

    An open report is updated while its sweep advances. The sweeps' own files are not changed.
    """
    from orchestrator.cli import web

    if not folder.is_dir():
        raise typer.BadParameter(f"{folder} is not a folder; has a sweep run there?", param_hint="FOLDER")
    from orchestrator.monitor.tracking import experiment_address

    mlflow, child = _mlflow_pages(folder, host, port + 1) if track else ("", None)

    def experiment(name: str) -> str:
        return experiment_address(mlflow, name) if child is not None and name else mlflow

    # They end the child process and remove the scratch folder, as Ctrl-C does. Under nohup SIGHUP is ignored.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
    try:
        with web.scratch_folder() as scratch:
            pages = web.Pages(folder, Path(scratch), every)
            with web.server(pages, host, port, experiment) as server:
                shown = "localhost" if host in ("0.0.0.0", "::") else host
                print(f"reports: http://{shown}:{server.server_address[1]}/   (Ctrl-C to stop)")
                opened = mlflow or ("no runs here" if track else "not served (--no-mlflow)")
                if child is not None:
                    is_there = _answers(mlflow, child)
                    opened = (
                        experiment_address(mlflow, timeout_seconds=10)
                        if is_there
                        else f"{mlflow}  (does not answer yet)"
                    )
                print(f"MLflow:  {opened}", flush=True)
                server.serve_forever()
    except OSError as error:
        raise typer.BadParameter(f"{host}:{port}: {error}", param_hint="--port") from error
    except KeyboardInterrupt:
        pass
    finally:
        if child is not None:
            child.terminate()


def _mlflow_pages(folder: Path, host: str, port: int) -> "tuple[str, subprocess.Popen[bytes] | None]":
    """Starts MLflow's pages. Returns their address, and the process unless the store is a server itself."""
    from orchestrator.monitor import tracking
    from trainables.io.storage import redacted

    uri = tracking.tracking_uri(folder / "any")
    if uri.startswith("http"):
        return redacted(uri), None
    if (path := tracking.sqlite_path(uri)) and not path.is_file():
        return "", None
    command, more = tracking.ui_command(uri, host, port), tracking.ui_environment(uri)
    # Its access log would bury the two addresses.
    nowhere = subprocess.DEVNULL
    child = subprocess.Popen(command, env=os.environ | more, stdout=nowhere, stderr=nowhere)
    return tracking.ui_address(host, port), child


def _answers(pages: str, child: "subprocess.Popen[bytes]") -> bool:
    """Waits until MLflow's pages can be opened. Returns False if that takes too long, or they have ended."""
    deadline = time.monotonic() + _MLFLOW_SECONDS
    # The port is taken before there is anything behind it.
    health = pages.partition("#")[0] + "health"
    while child.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError, HTTPException), urllib.request.urlopen(health, timeout=5):
            return True
        time.sleep(0.2)
    return False


@app.command(rich_help_panel=WATCH, epilog="Example: vitc-sweep sync runs/lr_wd")
def sync(folder: SweepFolder) -> None:
    """Brings MLflow up to date with the journal, for example after it was down or wiped.

    Nothing is sent twice: runs are found by their trial, points by their epoch.
    """
    from orchestrator.monitor.observers import hand_over, mirror
    from orchestrator.store.folder import open_folder

    opened = open_folder(folder)
    tracker = mirror(Round(opened.plan, (), folder, opened.events))
    if (report := folder / "report" / "report.html").is_file():
        hand_over(report, tracker)
    if warning := tracker.close(timeout_seconds=600):
        print(warning, file=sys.stderr)
        raise typer.Exit(INCOMPLETE)
    print(f"{folder}: MLflow has all {len(opened.records)} trials that have started")
