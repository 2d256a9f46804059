"""The process of the command line: what its surroundings must not do to it."""

import contextlib
import os
import sys
import tempfile
from typing import Any, TextIO

#: The least width that a table needs.
_LEAST_WIDTH = 40


def prepare() -> None:
    """Makes output safe and the environment usable. Called once, before anything else is imported."""
    for name in ("stdout", "stderr"):
        setattr(sys, name, _steady(getattr(sys, name)))
    for name, least in (("COLUMNS", _LEAST_WIDTH), ("LINES", 5)):
        # An empty, negative or tiny number would print nothing, or end in a traceback.
        if name in os.environ and not _is_number(os.environ[name], least):
            del os.environ[name]
    # Figures have a canvas of their own, and matplotlib does not start with a notebook's backend.
    os.environ.pop("MPLBACKEND", None)
    # Libraries want a home and a name, which a container's user may lack.
    if os.path.expanduser("~") == "~":
        os.environ["HOME"] = tempfile.gettempdir()
    if not _has_name():
        os.environ["LOGNAME"] = str(os.getuid())


def _is_number(text: str, least: int) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 6 and int(text) >= least


def _has_name() -> bool:
    import getpass

    try:
        return bool(getpass.getuser())
    # Of a user id without a name. Python 3.13 raises another error.
    except (KeyError, OSError):
        return False


def _steady(stream: Any) -> Any:
    """Returns a stream that shows what it can, and whose loss ends nothing."""
    if isinstance(stream, _Steady):
        return stream
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8")
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="replace")
    return _Steady(stream)


class _Steady:
    """A stream that goes on in silence once nobody reads it: after `| head`, or when the terminal is gone.

    A sweep must not end because its display does.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            self._give_up()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._give_up()

    def _give_up(self) -> None:
        # What the stream still holds goes there, too, also when Python flushes it at its end.
        with contextlib.suppress(OSError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
