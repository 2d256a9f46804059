"""Standard streams that no encoding, closed pipe or lost terminal can break. Only the standard library."""

import contextlib
import io
import os
import sys
import unicodedata
from typing import Any, TextIO, cast


def steady_streams() -> None:
    """Makes the standard streams usable however the process was started. Programs call it first.

    A closed stream becomes the null device, because the next file to be opened would get its number, and what
    libraries and child processes print would go into that file. Characters that the encoding of a stream
    lacks are replaced. A stream that cannot be written to any more goes on in silence.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number, which is this one.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    # mypy holds that there always is a stream, but it is None if the process was started without one.
    if cast(Any, sys.stdin) is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115
    for name in ("stdout", "stderr"):
        setattr(sys, name, _steady(getattr(sys, name)))


def printable(text: object, keep: str = "") -> str:
    """Returns a text with escapes in place of what no terminal prints: line ends, bytes that are no text.

    Args:
      text: the text.
      keep: characters that stay as they are.
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(
        character
        if character.isprintable() or character in keep or _joins(character)
        else ascii(character)[1:-1]
        for character in text
    )


def _joins(character: str) -> bool:
    """Returns whether a character is a space or a joiner of letters, which Python calls not printable."""
    return unicodedata.category(character) == "Zs" or character in "\u200c\u200d"


def end_with_reader() -> None:
    """Ends this process, instead, if standard output cannot be written to: for one that only looks on."""
    if isinstance(stream := cast(Any, sys.stdout), _Steady):
        stream.ends = True


def _steady(stream: Any) -> Any:
    if isinstance(stream, _Steady):
        return stream
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8")
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")
    return _Steady(stream)


class _Steady:
    """A stream that goes on in silence once nobody reads it: after `| head`, or when the terminal is gone.

    A sweep must not end because its display does. All other attributes are those of the original.

    Attributes:
      ends: whether the process ends instead.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream, self.ends = stream, False

    def write(self, text: str) -> int:
        self._try("write", text)
        return len(text)

    def flush(self) -> None:
        self._try("flush")

    def _try(self, method: str, *arguments: str) -> None:
        try:
            getattr(self._stream, method)(*arguments)
        except BlockingIOError:
            # A reader that is slow for the moment loses this text only.
            pass
        except OSError:
            self._give_up()
            if self.ends:
                raise SystemExit(0) from None

    def _give_up(self) -> None:
        # What the stream still holds goes there, too, also when Python flushes it at its end.
        with contextlib.suppress(OSError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
