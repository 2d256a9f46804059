"""Verbs for copies of results in an object store: sync-up and sync-down."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.app import ANSWER, BAD_INPUT, INCOMPLETE, app
from orchestrator.cli.meant import on_disk
from orchestrator.cli.options import SweepFolder, finite
from orchestrator.cli.watchers import Signals

if TYPE_CHECKING:
    from orchestrator.store.bucket import Copied

#: Seconds between two looks whether the run has ended.
_LOOK_SECONDS = 1.0

Bucket = Annotated[
    str,
    typer.Argument(
        metavar="ADDRESS",
        help="A place in an object store for this sweep alone, as s3://bucket/runs/lr_wd; ?region=... and "
        "&endpoint_override=... may follow.",
        show_default=False,
    ),
]


@app.command(
    "sync-up", rich_help_panel=ANSWER, epilog="Example: vitc-sweep sync-up runs/lr_wd s3://bucket/runs/lr_wd"
)
def sync_up(
    folder: SweepFolder,
    address: Bucket,
    every: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            metavar="MINUTES",
            callback=finite,
            help="Repeat until the run in the folder has ended.",
        ),
    ] = None,
) -> None:
    """Copies results, of a running sweep too, to an object store. Only what has changed is sent.

    The folder is not written to, and a run in it is not disturbed. `sync-down` brings the copy back. Locks,
    checkpoints of trials that have not ended, and files of other programs are left out.
    """
    from orchestrator.store import bucket
    from orchestrator.store.lease import Onlooker
    from trainables.io.storage import redacted

    onlooker = Onlooker(folder)
    first = True
    with Signals():
        while True:
            # Before the copy, so that the last one has the end of the run.
            at_work = every is not None and onlooker.at_work()
            try:
                copied = bucket.sync_up(folder, address)
            except bucket.StoreFault as fault:
                print(fault, file=sys.stderr, flush=True)
                if not at_work:
                    # Nothing is wrong with the input if it has worked before.
                    code = BAD_INPUT if first and not fault.sent else INCOMPLETE
                    raise typer.Exit(code) from None
            else:
                first = False
                print(_said(f"{folder} -> {redacted(address)}", "sent", copied), flush=True)
                if not copied.has_report:
                    print("The report was being written and was not sent; the next copy sends it.")
            if every is None or not at_work:
                return
            due = time.monotonic() + 60 * every
            while time.monotonic() < due and onlooker.at_work():
                time.sleep(_LOOK_SECONDS)


@app.command(
    "sync-down",
    rich_help_panel=ANSWER,
    epilog="Example: vitc-sweep sync-down s3://bucket/runs/lr_wd runs/lr_wd",
)
def sync_down(
    address: Bucket,
    folder: Annotated[Path, typer.Argument(help="The folder to make.", show_default=False, callback=on_disk)],
) -> None:
    """Brings results back that `sync-up` has copied, also while it copies. `run` can go on with them."""
    from orchestrator.store import bucket
    from trainables.io.storage import redacted

    with Signals():
        copied = bucket.sync_down(address, folder)
    print(_said(f"{redacted(address)} -> {folder}", "brought", copied))
    if not copied.has_report:
        print(f"The copy has no whole report. To write it:  vitc-sweep report {folder}")


def _said(way: str, done: str, copied: "Copied") -> str:
    files = "1 file" if copied.files == 1 else f"{copied.files:,} files"
    unchanged = f", {copied.unchanged:,} unchanged" if copied.unchanged else ""
    return f"{way}: {files} {done} ({copied.size / 1e6:,.1f} MB){unchanged}"
