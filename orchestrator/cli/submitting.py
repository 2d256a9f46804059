"""The verb that runs a sweep as a job of a Ray cluster: submit."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.app import RUN, app
from orchestrator.cli.jobs import ADDRESS_HELP, attach_job, dashboard
from orchestrator.cli.options import (
    Check,
    MaxPoints,
    Notify,
    Points,
    Sets,
    SweepFile,
    Track,
    Until,
    again,
    asked_file,
    say_reading,
)


def on_head(out: str | None) -> str | None:
    """Checks a folder of the head, for options.

    Raises:
      BadParameter: it is relative, or an address.
    """
    if out is not None and (not out.startswith(("/", "~/")) or "://" in out):
        raise typer.BadParameter(
            f"is a folder of the head: must be an absolute path, or begin with ~/ in quotes (got {out!r})"
        )
    return out and (out.rstrip("/") or "/")


@app.command(
    rich_help_panel=RUN,
    epilog="Example: vitc-sweep submit my.yaml --address http://127.0.0.1:8265 --set data=s3://bucket/photos",
)
def submit(
    file: SweepFile,
    address: Annotated[str, typer.Option(callback=dashboard, metavar="URL", help=f"{ADDRESS_HELP}.")],
    out: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            callback=on_head,
            help="Folder of the results on the head [default: ~/runs/NAME].",
        ),
    ] = None,
    sets: Sets = None,
    points: Points = None,
    until: Until = None,
    max_points: MaxPoints = None,
    track: Track = True,
    check: Check = True,
    notify: Notify = None,
    wait: Annotated[bool, typer.Option("--wait", help="Show the output, and end as the run does.")] = False,
) -> None:
    """Runs a sweep as a job on the head of a Ray cluster.

    The sweep file is sent, with what it extends and the Python files that it names. Data are not: they must
    be in a bucket, or at a path of the cluster. Submit it again to continue after an interruption.
    """
    say_reading(file)
    from orchestrator.store.parcel import QUESTION, pack

    asked = asked_file(file, sets, points, max_points)
    parcel = pack(asked.path, asked.overrides, points, notify)
    from orchestrator.backends.ray_jobs import Jobs

    folder = out or f"~/runs/{parcel.name}"
    extends = {"points": points, "until": until, "max-points": max_points}
    command = again("submit", file, {"address": address, "out": out, **extends, "set": sets})
    entry = ["vitc-sweep", "run", QUESTION, "--address", "auto", "--out", folder, "--again", command]
    entry += ["--until", until] if until else []
    entry += ["--no-mlflow"] * (not track) + ["--no-preflight"] * (not check)
    jobs = Jobs(address)
    with tempfile.TemporaryDirectory() as place:
        parcel.write(Path(place))
        job_id = jobs.submit(parcel.name, folder, entry, Path(place), command)
    print(f"submitted as {job_id}; results go to {folder} on the head")
    for path in parcel.elsewhere:
        print(f"not looked at here, must be on the cluster: {path}")
    print(f"output:  {again('attach', Path(job_id), {'address': address})}")
    print(f"stop:    {again('stop', Path(job_id), {'address': address})}", flush=True)
    if wait:
        attach_job(job_id, address)
