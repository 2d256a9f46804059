"""A sweep file for another machine: one file that extends no other, and the files that it names.

sweep.yaml           the question, with `extends`, --set and --points applied
files/<digest>/...   Python files with networks, and files of weights

Data are not sent. Their paths must be the other machine's.
"""

import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from orchestrator.sweep.document import Override, Source, SweepError
from orchestrator.sweep.load import load_sweep, overridden
from orchestrator.trials.plan import data_configs
from trainables.errors import UserError
from trainables.io.code import NamedFunction
from trainables.io.faults import Fault
from trainables.io.named import NamedFile

#: The name of the sweep file in a parcel.
QUESTION = "sweep.yaml"

_LOCAL = (
    "is a path of this machine, and the sweep runs on another one: give a bucket (s3://, gs://), or the "
    "absolute path that the cluster has"
)


@dataclass(frozen=True)
class Parcel:
    """The files that another machine needs for a sweep.

    Attributes:
      name: of the sweep.
      files: the bytes of each file by its relative path.
      elsewhere: absolute paths of data, which the other machine must have. They are not looked at here.
    """

    name: str
    files: Mapping[str, bytes]
    elsewhere: tuple[str, ...]

    def write(self, folder: Path) -> None:
        """Writes the files into a folder."""
        for name, content in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def pack(
    path: Path, overrides: Sequence[Override] = (), points: int | None = None, notify: str | None = None
) -> Parcel:
    """Reads and checks a sweep file, without its data, and packs it.

    Args:
      path: the sweep file.
      overrides, points: settings of the command line.
      notify: where messages go. None keeps the file's.

    Raises:
      SweepError: with every fault there is, paths of this machine among them.
      UserError: a file that the sweep names is gone.
    """
    source = overridden(path, overrides, points)
    local = source.error(_local_paths(source)).faults
    try:
        sweep = load_sweep(path, overrides, points)
    except SweepError as error:
        raise SweepError(source.name, [*error.faults, *local]) from error
    if local:
        raise SweepError(source.name, local)
    files: dict[str, bytes] = {}
    tree = _with_copies(source.tree, files) | ({} if notify is None else {"notify": notify})
    files[QUESTION] = yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True).encode()
    paths = [getattr(config, "path", "") for config in data_configs(sweep)]
    return Parcel(sweep.name, files, tuple(dict.fromkeys(one for one in paths if one.startswith("/"))))


def _local_paths(source: Source) -> Iterator[Fault]:
    # The name of a file that is sent has a digest at its end, and so is not among them.
    for key, text in _texts(source.tree, ""):
        if text in source.relative:
            yield Fault(key, _LOCAL, source.relative[text])


def _texts(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """Yields all texts in a tree with their dotted paths."""
    if isinstance(value, Mapping):
        parts = list(value.items())
    elif isinstance(value, list | tuple):
        parts = list(enumerate(value))
    else:
        parts = []
        if isinstance(value, str):
            yield key, value
    for name, part in parts:
        yield from _texts(part, f"{key}.{name}".lstrip("."))


def _with_copies(value: Any, files: dict[str, bytes]) -> Any:
    """Returns a tree that names copies of files, and adds the copies to `files`."""
    if isinstance(value, Mapping):
        return {key: _with_copies(part, files) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_with_copies(part, files) for part in value]
    if not isinstance(value, str) or not (digest := NamedFile(value).digest):
        return value
    function = NamedFunction(value)
    if function.path.endswith(".py"):
        name, content, rest = function.path, function.source(), f":{function.function}"
    else:
        name, rest = NamedFile(value).path, ""
        try:
            content = Path(NamedFile(value).checked_path()).read_bytes()
        except (OSError, ValueError) as error:
            raise UserError(str(error)) from error
    copy = f"files/{digest}/{posixpath.basename(name)}"
    files[copy] = content
    return copy + rest


class _Dumper(yaml.SafeDumper):
    """Writes every text in quotes, because PyYAML takes 1e-4 for a text that needs none."""

    def ignore_aliases(self, data: Any) -> bool:
        """Writes everything out."""
        return True


_Dumper.add_representer(str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, '"'))
