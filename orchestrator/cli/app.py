"""The application: its exit codes, the headings of its help, and how errors of the user end it."""

import sys
from typing import Annotated

import typer

from orchestrator.cli import process
from orchestrator.cli.meant import Verbs
from trainables.errors import Unavailable, UserError
from trainables.io.streams import printable
from trainables.io.surroundings import check_folder

app = typer.Typer(
    name="vitc-sweep",
    cls=Verbs,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Compares architectures: which reaches the lower error, and which is more forgiving of its "
    "hyperparameters.",
    epilog="Start with: `vitc-sweep run search_spaces/lr_wd.yaml`\n\nExit codes: 0 all is complete and "
    "correct; 1 something is missing, has failed or does not verify; 2 the input is wrong, and nothing was "
    "written; 130 the user stopped it.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"vitc-sweep {version('vitc-sweep')}")
        raise typer.Exit


#: Verbs that load torch or keep copies of data.
_LOADING = {"plan", "preflight", "run", "confirm", "retry", "data", "models", "analyse"}


@app.callback()
def _every_verb(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    if "--help" in sys.argv:
        return
    if context.invoked_subcommand in _LOADING:
        process.check()
    else:
        check_folder()


#: Headings of the verbs in --help: define a sweep, run it, watch it, read its results.
ASK, RUN, WATCH, ANSWER = "Ask", "Run", "Watch", "Answer"

data_app = typer.Typer(no_args_is_help=True, help="Import and inspect data sets.")
app.add_typer(data_app, name="data", rich_help_panel=ASK)
cluster_app = typer.Typer(no_args_is_help=True, help="Check the files that start clusters.")
app.add_typer(cluster_app, name="cluster", rich_help_panel=RUN)

#: Exit codes: complete; something is missing or failed; the input is wrong; stopped by the user.
OK, INCOMPLETE, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


def code_of(error: UserError) -> int:
    """Returns the exit code that an error of the user ends with."""
    return INCOMPLETE if isinstance(error, Unavailable) else BAD_INPUT


def main() -> None:
    """Runs the command line. An error of the user ends with its message and its exit code, no traceback."""
    process.prepare()
    try:
        app()
    except UserError as error:
        # Names of files and texts of YAML may hold what a terminal would obey.
        print(printable(error, keep="\n"), file=sys.stderr)
        raise SystemExit(code_of(error)) from None
    except OSError as error:
        # Of a disk that is full, or a file that may not be read or written.
        if error.errno is None:
            raise
        place = f"{error.filename}: " if error.filename else ""
        print(f"{place}{error.strerror}", file=sys.stderr)
        raise SystemExit(BAD_INPUT) from None
