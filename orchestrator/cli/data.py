"""Verbs for data sets: import and info."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from orchestrator.cli.app import data_app
from orchestrator.cli.options import make_console, say_reading, show
from orchestrator.cli.watchers import Signals

if TYPE_CHECKING:
    from rich.console import Console

    from trainables.data.packing import Imported

#: Seconds between two lines of progress where the output is no terminal.
_LINE_SECONDS = 10


@data_app.command("import", epilog="Example: vitc-sweep data import photos/ photos.parquet")
def data_import(
    source: Annotated[
        Path, typer.Argument(help="A folder with one subfolder of images per class, or with such splits.")
    ],
    target: Annotated[Path, typer.Argument(help="The Parquet file to write; a folder for several splits.")],
    on_bad_image: Annotated[
        Literal["fail", "skip"],
        typer.Option(
            help="fail: name all images that do not decode, and write nothing. skip: leave them out."
        ),
    ] = "fail",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")] = False,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Images that are decoded at a time; as many as there are CPUs if left out."),
    ] = None,
) -> None:
    """Packs a folder of images into Parquet files in the Hugging Face image layout.

    Folders named train, val, test and the like become splits. Hidden files and files that are no images are
    left out, and told. An import that was stopped goes on if the same command is run again.
    """
    from trainables.data.packing import import_folder
    from trainables.data.tree import left_out_lines
    from trainables.io.machine import usable_cpus

    console = make_console()

    def say(line: str) -> None:
        show(line)
        sys.stdout.flush()

    with Signals(), _progress(console) as tell:
        workers = workers or usable_cpus()
        result = import_folder(source, target, on_bad_image, overwrite, workers, tell, say)
    for line in _lines(source, result):
        show(line)
    for line in left_out_lines(source, result.left_out):
        show(line)


@contextlib.contextmanager
def _progress(console: "Console") -> Iterator[Callable[[int, int], None]]:
    """Yields a function that shows how many of how many files are done."""
    if console.is_terminal:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

        with Progress(BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console) as bar:
            task = bar.add_task("")
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return
    told = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal told
        if time.monotonic() - told > _LINE_SECONDS:
            told = time.monotonic()
            print(f"{done:,} of {total:,} files", flush=True)

    yield tell


def _lines(source: Path, result: "Imported") -> Iterator[str]:
    """Yields what was written, the sizes of classes and images, and notes."""
    from trainables.io.streams import printable

    for split, counts in result.counts.items():
        files = result.files[split]
        size = sum(file.stat().st_size for file in files) / 1e6
        shown = f"{files[0]} and {len(files) - 1:,} more" if len(files) > 1 else f"{files[0]}"
        yield f"{shown}: {sum(counts):,} images, {size:,.1f} MB"
        if empty := [name for name, count in zip(result.classes, counts, strict=True) if not count]:
            yield f"note: {len(empty)} of {len(counts)} classes have no image in {split}: {_some(empty, 3)}"
    sizes, sides = _range(result.counts["train"]), _range(result.sides)
    named = f"{len(result.classes)} classes of {sizes} images ({_some(result.classes, 8)})"
    yield f"{named}, sides of {sides} pixels"
    if result.num_turned:
        yield f"{result.num_turned:,} images are stored turned or mirrored (EXIF); they are read upright"
    if result.dark:
        yield (
            f"note: {len(result.dark):,} images are nearly black, as pictures of 12 bits stored in 16 bits a "
            f"colour are: {printable(os.path.relpath(result.dark[0], source))}"
        )
    for notice in result.notices:
        yield f"note: {notice}"


def _range(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:,} to {high:,}" if low < high else f"{low:,}"


def _some(names: Sequence[str], most: int) -> str:
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


@data_app.command("info", epilog="Example: vitc-sweep data info photos.parquet")
def data_info(path: Annotated[str, typer.Argument(help="digits, or a Parquet file, folder or URI.")]) -> None:
    """Prints the classes and size of a data set, and how a sweep splits it."""
    say_reading(path)
    from pydantic import TypeAdapter

    from trainables.config import Data, DataConfig
    from trainables.presets import expand

    adapter: TypeAdapter[DataConfig] = TypeAdapter(Data)
    info = adapter.validate_python(expand("data", path)).info()
    shown = _some(info.class_names, 8)
    show(f"{info.name}: {info.num_classes} classes ({shown}), fingerprint {info.fingerprint}")
    for split, where in info.splits.items():
        show(f"  {split:6}{info.sizes[split]:>9} images  {where}")
    print(f"  the same answer for all images has {info.chance_error_pct:.1f} % error")
    for notice in info.notices:
        show(f"note: {notice}")
