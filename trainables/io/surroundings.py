"""Environment variables with which torch or this program cannot work. Only the standard library.

They are looked at before anything is loaded. Torch reads its variables when it is imported, and some faults
there end the process without an error that could be caught. So torch is tried in another process, and only if
there is a variable that could be faulty.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from trainables.errors import UserError
from trainables.io.machine import CACHE, CACHE_LIMIT, cache_limit

#: Variables of torch that name versions, folders and the like, which containers set.
_HARMLESS = re.compile(r"(PY)?TORCH\w*_(HOME|DIR|VERSION|CUDA_ARCH_LIST)|(PY)?TORCH_(NCCL|ALLOW|BUILD)_\w+")

_PROGRAM = "import torch, torch._dynamo"


def check_surroundings(more: Iterable[str] = (), environment: Mapping[str, str] = os.environ) -> None:
    """Checks the current folder, and the variables that this program and torch read.

    Args:
      more: further faults to tell.
      environment: the variables.

    Raises:
      UserError: at least one cannot be used. The error lists all faults.
    """
    check_folder()
    if faults := [*_own_faults(environment), *more, *_torch_faults(environment)]:
        raise UserError("\n".join(faults))


def check_folder() -> None:
    """Checks that the current folder is there.

    Raises:
      UserError: it was deleted.
    """
    try:
        os.getcwd()
    except OSError as error:
        raise UserError(
            "the current folder was deleted, or cannot be reached: change to another one"
        ) from error


def _own_faults(environment: Mapping[str, str]) -> Iterator[str]:
    try:
        cache_limit(environment)
    except ValueError as error:
        yield f"{CACHE_LIMIT}: {error}"
    if (place := environment.get(CACHE)) and Path(os.path.expanduser(place)).is_file():
        yield f"{CACHE}: must be a folder, and {place} is a file"


def _torch_faults(environment: Mapping[str, str]) -> Iterator[str]:
    named = [
        name
        for name, value in sorted(environment.items())
        if name.startswith(("TORCH", "PYTORCH")) and value and not _HARMLESS.fullmatch(name)
    ]
    if not named:
        return
    done = subprocess.run(
        [sys.executable, "-P", "-c", _PROGRAM],
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )
    if done.returncode:
        shown = ", ".join(f"{name}={environment[name]}" for name in named)
        yield f"torch cannot be loaded with {shown}: {_cause(done.stderr)}"


def _cause(stderr: str) -> str:
    """Returns the text of the error with which Python or a C++ library has ended."""
    words = [line.strip() for line in stderr.splitlines()]
    for index, line in enumerate(words):
        if match := re.match(r"what\(\): *(.*)|\w*Error: *(.*)", line):
            told = match[1] or match[2] or next(filter(None, words[index + 1 :]), "")
            return told[:300]
    return words[-1][:300] if words else "it ends without a word"
