"""Arguments and options that verbs share, and how they print."""

import functools
import io
import math
import os
import re
import shlex
import sys
import time
from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO, cast

import typer

from orchestrator.cli.meant import on_disk, question_file, results_folder
from orchestrator.cli.process import NOTIFY
from trainables.errors import UserError
from trainables.io.reading import listen
from trainables.io.streams import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from rich.console import Console

    from orchestrator.trials.sweep_file import SweepFile as AskedFile

SweepFile = Annotated[
    Path, typer.Argument(help="The sweep file (YAML).", show_default=False, callback=question_file)
]


def folders(incomplete: str) -> list[str]:
    """Returns sweep folders for shell completion. Imports nothing."""
    place = Path(incomplete) if incomplete.endswith("/") else Path(incomplete).parent
    return [
        str(path.parent)
        for pattern in ("*/sweep.yaml", "*/*/sweep.yaml")
        for path in sorted(place.glob(pattern))
        if str(path.parent).startswith(incomplete)
    ]


def trial_ids(context: typer.Context, incomplete: str) -> list[str]:
    """Returns ids of started trials for shell completion, from the journal's text: a plan takes seconds."""
    found: dict[str, None] = {}
    for path in sorted((Path(context.params.get("folder") or ".") / "journal").glob("*.jsonl")):
        for match in re.finditer(rb'"kind":"attempt","trial":"([0-9a-f]+)"', path.read_bytes()):
            found[match[1].decode()] = None
    return [trial_id for trial_id in found if trial_id.startswith(incomplete)]


SweepFolder = Annotated[
    Path,
    typer.Argument(
        help="The folder of the sweep's results, such as runs/lr_wd.",
        show_default=False,
        autocompletion=folders,
        callback=results_folder,
    ),
]
OneTrial = Annotated[
    str,
    typer.Argument(
        metavar="TRIAL",
        help="A trial: the beginning of its id, or arm/cell/point, such as vit_c/adamw/3.",
        show_default=False,
        autocompletion=trial_ids,
    ),
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change the file: data=PATH, model.size=1gf, design.seed=1."
    ),
]


def finite(number: float | None) -> float | None:
    """Returns a number that an option was given. Raises `BadParameter` for nan and infinity."""
    if number is not None and not math.isfinite(number):
        raise typer.BadParameter(f"must be a finite number, is {number}")
    return number


def to_disk(path: Path | None) -> Path | None:
    """Returns what `on_disk` does, for options that may be left out."""
    return path and on_disk(path)


Out = Annotated[
    Path | None,
    typer.Option(callback=to_disk, help="Folder of the results [default: runs/NAME, by the sweep's name]."),
]
MaxPoints = Annotated[
    int | None,
    typer.Option(
        "--max-points", min=1, help="The most points it may be extended to: --set design.max_points=N."
    ),
]
#: The values of `--until`.
SETTLED = "settled"


def _until(word: str | None) -> str | None:
    """Returns what `--until` was given. Raises `BadParameter` for another word."""
    if word not in (None, SETTLED):
        raise typer.BadParameter(f"must be {SETTLED}, is {word}")
    return word


Until = Annotated[
    str | None,
    typer.Option(
        callback=_until,
        metavar=SETTLED,
        help="Add points by itself, look by look, and stop as soon as the question is settled.",
    ),
]
Points = Annotated[int | None, typer.Option(min=1, help="Points per arm and cell, instead of the file's.")]
Address = Annotated[
    str | None,
    typer.Option(
        help="Address of a running Ray cluster; `auto` on one of its nodes [default: this machine]."
    ),
]
WaitMinutes = Annotated[
    float,
    typer.Option(
        min=0,
        callback=finite,
        help="Minutes to wait while no machine is there that a trial fits on; then end with exit code 1.",
    ),
]
Track = Annotated[bool, typer.Option("--mlflow/--no-mlflow", help="Mirror the runs to MLflow.")]
Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", help="Print only the path of the report; errors go to standard error."),
]


def _notify_target(context: typer.Context, target: str | None) -> str | None:
    """Returns the target of messages. Raises `BadParameter` if none can go there."""
    from orchestrator.monitor.notify import target_fault

    if target and not context.resilient_parsing and (fault := target_fault(target)):
        raise typer.BadParameter(fault)
    return target


Notify = Annotated[
    str | None,
    typer.Option(
        callback=_notify_target,
        metavar="URL|COMMAND",
        envvar=NOTIFY,
        show_envvar=False,
        help="Send a message at the first result, when a run stops itself, and at the end: POST JSON to a "
        "URL, or run a command with the JSON on its standard input. $NAMES are taken from the environment "
        "[env: VITC_SWEEP_NOTIFY; the file's key: notify].",
    ),
]
Check = Annotated[
    bool,
    typer.Option("--preflight/--no-preflight", help="Run the checks of `preflight` before the first trial."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@functools.cache
def _console_class() -> "type[Console]":
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

    class Steady(Console):
        """A console whose terminal no text can steer. Its own colours and cursor moves are no text."""

        def render(
            self, renderable: RenderableType, options: ConsoleOptions | None = None
        ) -> "Iterable[Segment]":
            for text, style, control in super().render(renderable, options):
                yield Segment(text if control else printable(text, keep="\n"), style, control)

    return Steady


def make_console(quiet: bool = False, stderr: bool = False) -> "Console":
    """Returns the console of a command."""
    make = _console_class()
    if quiet or stderr:
        return make(quiet=quiet, stderr=stderr)
    # Wide enough for tables if the output is not a terminal.
    columns = os.environ.get("COLUMNS", "")
    return make(width=None if sys.stdout.isatty() else int(columns) if columns.isdigit() else 160)


def log_console(file: io.TextIOBase) -> "Console":
    """Returns a console that writes plain text to a file."""
    return _console_class()(file=cast(TextIO, file), width=160, force_terminal=False, color_system=None)


def both(console: "Console", log: "Console") -> "Console":
    """Returns a console that prints to two. As quiet as the first, but all goes to the second."""
    from rich.console import Console

    class Both(Console):
        def print(self, *objects: Any, **options: Any) -> None:
            console.print(*objects, **options)
            log.print(*objects, **options)

    return Both(quiet=console.quiet)


def say(console: "Console", text: str, style: str | None = None) -> None:
    """Prints a line without markup and without wrapping, so that paths can be copied."""
    if console.quiet and style in ("red", "yellow"):
        print(printable(text, keep="\n"), file=sys.stderr)
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def show(text: str, file: TextIO | None = None) -> None:
    """Prints lines that others may have written, such as those of a bundle. They cannot steer a terminal."""
    print(printable(text, keep="\n\t"), file=file, flush=file is not None)


def say_reading(path: Path | str, quiet: bool = False) -> None:
    """Tells a person at a terminal that a verb has begun, as its libraries take seconds to load.

    Tells everybody who is not to be left in peace how far the read of large or distant data is.
    """
    if quiet:
        return
    if sys.stderr.isatty():
        show(f"reading {path} and its data", sys.stderr)
    listen(ReadingLines())


class ReadingLines:
    """Prints, now and then, how far a long read is. A short one prints nothing."""

    #: Seconds from the first word of a read to its first line, and between two lines.
    FIRST_SECONDS, NEXT_SECONDS = 2.0, 10.0

    def __init__(self, clock: "Callable[[], float]" = time.monotonic) -> None:
        self._clock = clock
        self._next: float | None = None

    def __call__(self, what: str, done: int, total: int) -> None:
        now = self._clock()
        if self._next is None:
            self._next = now + self.FIRST_SECONDS
        elif now >= self._next:
            self._next = now + self.NEXT_SECONDS
            show(f"reading {what}: {done:,} of {total:,} images", sys.stderr)


def again(verb: str, place: Path, options: "Mapping[str, object]") -> str:
    """Returns the command that continues a run, quoted for a shell. Options without a value are left out."""
    words = ["vitc-sweep", verb, str(place)]
    for name, value in options.items():
        for one in value if isinstance(value, list) else [value]:
            words += [] if one is None else [f"--{name}", str(one)]
    return shlex.join(words)


def example_files() -> dict[str, str]:
    """The texts of the sweep files that come with the program, by name: `lr_wd`, `paper/edf_vit`, ..."""
    texts = dict(_files_in(resources.files("search_spaces"), ""))
    return dict(sorted(texts.items(), key=lambda item: (item[0].count("/"), item[0])))


def _files_in(place: Traversable, prefix: str) -> Iterator[tuple[str, str]]:
    for entry in place.iterdir():
        if entry.is_dir() and not entry.name.startswith("_"):
            yield from _files_in(entry, f"{prefix}{entry.name}/")
        elif entry.name.endswith(".yaml"):
            yield prefix + entry.name.removesuffix(".yaml"), entry.read_text("utf-8")


def asked_file(
    file: Path, sets: list[str] | None, points: int | None, max_points: int | None = None
) -> "AskedFile":
    """Returns a sweep file as the command line names it, with what was set on top.

    Raises:
      UserError: there is no such file, but an example of that name comes with the program.
    """
    from orchestrator.sweep.document import Override
    from orchestrator.trials.sweep_file import SweepFile as AskedFile

    if not file.exists() and file.parts[:1] == ("search_spaces",) and file.suffix == ".yaml":
        name = "/".join(file.with_suffix("").parts[1:])
        if name in example_files():
            raise UserError(f"{file}: no such file. To copy it here:  vitc-sweep examples {name}")

    overrides = [Override.parse(text) for text in sets or ()]
    if max_points is not None:
        overrides.append(Override("design.max_points", max_points))
    return AskedFile(file, tuple(overrides), points)
