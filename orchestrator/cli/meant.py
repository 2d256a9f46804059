"""Files and folders that a user gave, and those that were meant.

A sweep file asks a question, and a folder holds the results of one. Where it is clear what was meant, it is
done. Elsewhere a message says the command.
"""

import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any

from typer.core import TyperGroup

from trainables.errors import UserError

#: Suffixes of sweep files.
_QUESTIONS = (".yaml", ".yml", ".json")


def on_disk(given: Path) -> Path:
    """Returns a path with `~` expanded, which shells do not do in `--out=~/results`.

    Raises:
      UserError: it is an address, which would become a local folder of that name.
    """
    # As Path leaves it of `s3://bucket/runs`.
    if address := re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/+", str(given)):
        whole = f"{address[1]}://{str(given)[address.end() :]}"
        # A journal is locked and appended to, which no object store does.
        raise UserError(
            f"{whole}: is an address, but the files of a sweep lie on a disk. A bucket may have a copy of "
            "them, of a running sweep too (vitc-sweep sync-up FOLDER ADDRESS), and the states of trials "
            "(--set resources.checkpoints=ADDRESS)"
        )
    return Path(os.path.expanduser(given))


def results_folder(given: Path) -> Path:
    """Returns the folder of results that a path stands for: itself, the one that holds it, or a question's.

    Raises:
      UserError: it stands for none, and the message says what it is.
    """
    given = on_disk(given)
    if _is_results(given):
        return given
    if given.is_file() and _is_results(given.parent):
        return given.parent
    if given.is_file() and given.suffix in _QUESTIONS:
        for place in (Path("runs") / given.stem, given.parent / "runs" / given.stem):
            if _is_results(place):
                print(f"{given} is a question; its results are in {place}", file=sys.stderr)
                return place
        raise UserError(
            f"{given} is a question and has no results in runs/{given.stem}; to run it:  "
            f"{_command('run', given)}"
        )
    inside = _sweeps_in(given)
    if inside:
        shown = ", ".join(place.name for place in inside[:8]) + (", ..." if len(inside) > 8 else "")
        held = "a folder" if len(inside) == 1 else f"{len(inside)} folders"
        raise UserError(
            f"{given} holds {held} of results ({shown}): name {'it' if len(inside) == 1 else 'one'}, as in  "
            f"{_command('status', inside[0])}"
        )
    # The verb tells what is missing.
    return given


def question_file(given: Path) -> Path:
    """Returns the sweep file that a path stands for: itself, or the one that a folder of results keeps."""
    return given / "sweep.yaml" if _is_results(given) else given


def each_results_folder(given: list[Path]) -> list[Path]:
    """Returns the folder of results that each path stands for."""
    return [results_folder(one) for one in given]


def in_order(folder: Path, trial: str) -> tuple[Path, str]:
    """Returns a folder and a trial that may have been given the other way round."""
    if not _is_results(folder) and _is_results(Path(trial)):
        return Path(trial), str(folder)
    return folder, trial


def _is_results(place: Path) -> bool:
    return (place / "sweep.yaml").is_file() and (place / "record.json").is_file()


def _sweeps_in(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob("*/record.json")) if folder.is_dir() else []


def _command(verb: str, place: Path) -> str:
    return shlex.join(["vitc-sweep", verb, str(place)])


class Verbs(TyperGroup):
    """The group of all verbs. A file or folder in place of a verb gets the verb that it wants."""

    def resolve_command(self, context: Any, arguments: list[str]) -> Any:
        """Finds the verb.

        Raises:
          UserError: a file or folder stands there; the message has the command.
        """
        word, *rest = arguments
        if self.get_command(context, word) is None and (hint := _wanted(word, rest)):
            raise UserError(hint)
        return super().resolve_command(context, arguments)


def _wanted(word: str, rest: list[str]) -> str:
    place = Path(word)
    if word in ("import", "info"):
        return f"{word} is a verb of `data`:  {shlex.join(['vitc-sweep', 'data', word, *rest])}"
    if _is_results(place):
        return f"{word} holds results; to look at them:  {_command('status', place)}"
    if place.is_file() and place.suffix in _QUESTIONS:
        return f"{word} is a question; to run it:  {_command('run', place)}"
    return ""
