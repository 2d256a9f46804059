"""The program: its exit codes, the headings of its help, and what becomes of input at fault."""

import sys
from typing import Annotated

import typer

from trainables.errors import UserError

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


#: Headings of the verbs in --help: what a sweep is, running it, looking at it, what came out.
ASK, RUN, WATCH, ANSWER = "Ask", "Run", "Watch", "Answer"

data_app = typer.Typer(no_args_is_help=True, help="Bring images into the form sweeps read.")
app.add_typer(data_app, name="data", rich_help_panel=ASK)

#: Exit codes: everything done; something is missing or failed; the input is at fault.
OK, INCOMPLETE, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


def main() -> None:
    """Runs the command line; input at fault ends with its message and exit code 2, without a traceback."""
    try:
        app()
    except UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(BAD_INPUT) from None
