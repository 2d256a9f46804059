"""Verbs for results: report, compare, verify, bundle, export."""

import json
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.app import ANSWER, INCOMPLETE, OK, app
from orchestrator.cli.conclusion import conclude
from orchestrator.cli.meant import each_results_folder
from orchestrator.cli.options import AsJson, SweepFolder, make_console, say, show, to_disk


@app.command(rich_help_panel=ANSWER, epilog="Example: vitc-sweep report runs/lr_wd")
def report(
    folders: Annotated[
        list[Path],
        typer.Argument(
            help="Folders of the results of one sweep or several.",
            show_default=False,
            callback=each_results_folder,
        ),
    ],
) -> None:
    """Writes the report of a sweep again, at any stage; missing trials are shown as missing.

    Each of several sweeps gets its own report. Ends with exit code 0 if every trial of all has a result.
    """
    from orchestrator.evidence.compare import comparable
    from orchestrator.store.folder import open_folder
    from orchestrator.store.journal import FolderError

    opened, faults = [], []
    # A folder that is named twice gets one report.
    for folder in dict.fromkeys(folders):
        try:
            opened.append(open_folder(folder))
        except FolderError as error:
            faults.append(str(error))
    if faults:
        raise FolderError("\n".join(faults))
    console, codes = make_console(), []
    for folder in dict.fromkeys(folders):
        if len(opened) > 1:
            say(console, f"\n{folder}", "bold")
        codes.append(conclude(console, folder))
    if len(opened) > 1 and comparable(opened):
        names = " ".join(map(str, dict.fromkeys(folders)))
        say(console, f"\nTo compare their arms in one report, run:  vitc-sweep compare {names}")
    raise typer.Exit(max(codes))


@app.command(rich_help_panel=ANSWER, epilog="Example: vitc-sweep compare runs/lr_wd runs/lr_wd_regnet")
def compare(
    folders: Annotated[
        list[Path],
        typer.Argument(
            help="Folders of two or more sweeps.", show_default=False, callback=each_results_folder
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(callback=to_disk, help="Folder of the comparison [default: runs/NAME+NAME]."),
    ] = None,
) -> None:
    """Compares the arms of different sweeps in one report, as if they were arms of one sweep.

    Refuses sweeps that are not comparable, with the reason: other data, splits, epochs, cells or points, or
    other settings outside of the arms. Every arm is compared to the first arm of the first folder.
    """
    from orchestrator.evidence import compare as evidence_compare
    from orchestrator.store.folder import open_folder

    target = out or Path("runs") / "+".join(folder.resolve().name for folder in folders)
    _, notices = evidence_compare.compare([open_folder(folder) for folder in folders], target)
    console = make_console()
    for notice in notices:
        say(console, f"note: {notice}")
    raise typer.Exit(conclude(console, target))


@app.command(rich_help_panel=ANSWER, epilog="Example: vitc-sweep verify runs/lr_wd")
def verify(
    path: Annotated[
        Path, typer.Argument(help="A sweep's folder, or a bundle (.tar.gz).", show_default=False)
    ],
    as_json: AsJson = False,
) -> None:
    """Recomputes every number of the report from the journal, and checks that no file was changed.

    Prints file, row and column of each difference; writes nothing. Ends with exit code 0 if everything
    agrees, else with 1. A person who can change every file can also seal the folder again, but then the
    fingerprint differs.
    """
    from dataclasses import asdict

    from orchestrator.evidence import verify as evidence_verify

    found = evidence_verify.verify(path)
    if as_json:
        print(json.dumps(asdict(found), indent=2))
    else:
        show("\n".join(found.lines()))
    raise typer.Exit(OK if found.ok else INCOMPLETE)


@app.command(rich_help_panel=ANSWER, epilog="Example: vitc-sweep bundle runs/lr_wd --out lr_wd.tar.gz")
def bundle(
    folder: SweepFolder,
    out: Annotated[
        Path | None,
        typer.Option(
            callback=to_disk, help="Archive to write, or folder to put it in [default: NAME.tar.gz]."
        ),
    ] = None,
) -> None:
    """Packs sweep file, record, journal and report into one archive that `verify` accepts anywhere.

    Checkpoints and tracebacks are left out. Data paths and the name of the processor are included.
    """
    from orchestrator.evidence import bundle as evidence_bundle
    from orchestrator.evidence import verify as evidence_verify

    target = evidence_bundle.bundle(folder, out or Path())
    found = evidence_verify.verify(target)
    show("\n".join([*found.lines(), f"bundle: {target}"]))
    raise typer.Exit(OK if found.ok else INCOMPLETE)


@app.command(
    rich_help_panel=ANSWER, epilog="Example: vitc-sweep export runs/lr_wd --format csv --out results.csv"
)
def export(
    folder: SweepFolder,
    format: Annotated[str, typer.Option(help="parquet or csv.")] = "parquet",
    out: Annotated[
        Path | None, typer.Option(callback=to_disk, help="File to write [default: FOLDER/results.FORMAT].")
    ] = None,
) -> None:
    """Writes one row per trial: ids, every resolved setting, outcome, errors, epochs, seconds, cost."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    from orchestrator.api import results_table
    from trainables.io.files import write_atomically

    if format not in ("parquet", "csv"):
        raise typer.BadParameter(f"must be parquet or csv, is {format!r}", param_hint="--format")
    table = results_table(folder)
    sink = pa.BufferOutputStream()
    if format == "csv":
        pyarrow.csv.write_csv(table, sink)
    else:
        pyarrow.parquet.write_table(table, sink)
    target = out or folder / f"results.{format}"
    write_atomically(target, sink.getvalue().to_pybytes())
    print(f"{target}: {table.num_rows} trials, {table.num_columns} columns")
