"""The part of attach, stop and logs that deals with a sweep that is a job of a Ray cluster."""

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.app import INCOMPLETE, INTERRUPTED, OK
from orchestrator.cli.meant import results_folder
from orchestrator.cli.options import again, folders
from trainables.errors import UserError
from trainables.io.streams import end_with_reader

if TYPE_CHECKING:
    from orchestrator.backends.ray_jobs import Job

#: What a shell answers that does not find a command.
_NOT_FOUND = 127


def dashboard(address: str | None) -> str | None:
    """Checks the address of a dashboard, for options.

    Raises:
      BadParameter: it is of another kind, or contains a password.
    """
    from trainables.io.storage import secret_in

    if address is None:
        return None
    if not re.match(r"https?://[^/]", address):
        raise typer.BadParameter("must be the address of Ray's dashboard, such as http://127.0.0.1:8265")
    if kind := secret_in(address):
        raise typer.BadParameter(f"carries {kind}, which the commands to come would show")
    return address.rstrip("/")


ADDRESS_HELP = "Address of the dashboard of a Ray cluster, such as http://127.0.0.1:8265"

JobsAddress = Annotated[
    str | None,
    # Eager, because it decides what the first argument is.
    typer.Option(
        callback=dashboard, is_eager=True, metavar="URL", help=f"{ADDRESS_HELP}, for a sweep submitted there."
    ),
]


def folder_or_job(context: typer.Context, given: Path) -> Path:
    """Returns the folder of results that a path stands for. What names a job stays as it is."""
    return given if context.params.get("address") else results_folder(given)


FolderOrJob = Annotated[
    Path,
    typer.Argument(
        help="The folder of the sweep's results, such as runs/lr_wd; with --address, a job's id or sweep.",
        show_default=False,
        autocompletion=folders,
        callback=folder_or_job,
    ),
]


def attach_job(wanted: str, address: str) -> None:
    """Shows the output of a job until it ends, and ends with its exit code."""
    from orchestrator.backends.ray_jobs import ClusterAway, Jobs

    end_with_reader()
    jobs = Jobs(address)
    job = jobs.find(wanted)
    try:
        job = jobs.follow(job, _Output())
    except KeyboardInterrupt:
        stop = again("stop", Path(job.id), {"address": address})
        print(f"\nThe job goes on. To stop it:  {stop}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    except ClusterAway as error:
        attach = again("attach", Path(job.id), {"address": address})
        print(f"{error}\nWhere the job is at work, it goes on. To follow it:  {attach}", file=sys.stderr)
        raise typer.Exit(INCOMPLETE) from None
    raise typer.Exit(_exit_code(job))


def _exit_code(job: "Job") -> int:
    """Returns the exit code of a job that has ended. Explains those that are not its run's own."""
    if job.was_stopped:
        # Ray does not say which code a job had that it stopped.
        print(f"{job.id}: stopped. {_continue(job)}".rstrip(), file=sys.stderr)
        return INTERRUPTED
    if job.exit_code is None or job.exit_code < 0:
        why = (
            job.message.strip().splitlines()[0] if job.exit_code is None and job.message.strip() else "killed"
        )
        print(
            f"{job.id}: the run has not said how it ended: {why}. {_continue(job)}".rstrip(), file=sys.stderr
        )
        return INCOMPLETE
    if job.exit_code == _NOT_FOUND:
        print(
            f"{job.id}: the head has no vitc-sweep on the PATH with which its Ray was started",
            file=sys.stderr,
        )
        return INCOMPLETE
    return job.exit_code


def _continue(job: "Job") -> str:
    return f"To continue:  {job.command}" if job.command else ""


def stop_job(wanted: str, address: str) -> None:
    """Stops a job, as Ctrl-C stops a run, and returns once it has ended."""
    from orchestrator.backends.ray_jobs import Jobs

    jobs = Jobs(address)
    job = jobs.find(wanted)
    if job.is_over:
        raise UserError(f"{job.id}: has ended already")
    job = jobs.stop(job)
    how = "stopped" if job.was_stopped else "has ended"
    print(f"{job.id}: {how}. {_continue(job)}".rstrip())


def print_job_output(wanted: str, address: str, follow: bool) -> None:
    """Prints what a job has printed so far, or also what it prints until it ends."""
    from orchestrator.backends.ray_jobs import Jobs

    end_with_reader()
    jobs = Jobs(address)
    job = jobs.find(wanted)
    if follow:
        jobs.follow(job, _Output())
    else:
        _Output().write(jobs.output(job))
    raise typer.Exit(OK)


class _Output:
    """Standard output, without delay."""

    def write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()
