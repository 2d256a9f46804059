"""Functions in Python files of the user, which a configuration names: `nets.py:make#1f0c9a5e77d2b310`.

Such a function counts by the content of its file. Running it is an act of trust: a process runs the code of a
file only if it has read a configuration with that content inside `trusting_code`. Reading results is none.
"""

import contextlib
import functools
import hashlib
import os
import re
import sys
import traceback
import types
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator

from trainables.io.named import IsFile, NamedFile, digest_of_file

#: Digests of the files that this process may run.
_trusted: set[str] = set()

_is_trusting = ContextVar("is_trusting", default=False)


@contextlib.contextmanager
def trusting_code() -> Iterator[None]:
    """Inside, this process trusts the code of every configuration that it reads, for as long as it lives."""
    token = _is_trusting.set(True)
    try:
        yield
    finally:
        _is_trusting.reset(token)


class NamedFunction(NamedFile):
    """A function of a Python file: the file's absolute path, the function, and the digest of the file."""

    __slots__ = ()

    @property
    def path(self) -> str:
        """The absolute path of the file."""
        return super().path.rpartition(":")[0]

    @property
    def function(self) -> str:
        """The name of the function."""
        return super().path.rpartition(":")[2]

    @property
    def content(self) -> str:
        """The part that counts for an identity."""
        return f"{self.digest}:{self.function}"

    @property
    def is_trusted(self) -> bool:
        """True if this process may run the file."""
        return self.digest in _trusted

    def load(self) -> Callable[..., Any]:
        """Runs the file, once a process, and returns the function.

        Raises:
          ValueError: this process may not run the file; or it is gone, has changed, raises an error, imports
            a file beside it, or has no such function.
        """
        if not self.is_trusted:
            raise ValueError(f"{self.path}: is not run, because only results are read here")
        try:
            function = getattr(_module(self.path, self.digest), self.function)
        except AttributeError:
            raise ValueError(f"{self.path}: has no function {self.function!r}") from None
        if not callable(function):
            raise ValueError(f"{self.path}: {self.function} is no function, but {function!r:.60}")
        return function  # type: ignore[no-any-return]


class IsFunction(IsFile):
    """Marks the type of text that names a function in a local Python file."""

    def settled(self, written: str, absolute: Callable[[str], str]) -> str:
        """The text with an absolute path and, where there is such a file, its digest."""
        if NamedFunction(written).digest:
            return written
        file, _, function = written.rpartition(":")
        if re.fullmatch(r"\w+(\.\w+)*", file) and not file.endswith(".py"):
            # `package.module:make` is a file, too.
            file = f"{file.replace('.', '/')}.py"
        if not file:
            return written
        path = absolute(file)
        digest = digest_of_file(path)
        return f"{path}:{function}#{digest}" if digest else f"{path}:{function}"


def _named(written: str) -> NamedFunction:
    named = NamedFunction(IsFunction().settled(written, os.path.abspath))
    if not named.path or not named.function.isidentifier():
        raise ValueError("must name a Python file and a function in it, as `nets.py:make`")
    if not named.digest:
        raise ValueError(f"{named.path}: there is no such file")
    if _is_trusting.get():
        _trusted.add(named.digest)
    return named


#: The name of a function in a local Python file, which counts by the file's content.
FunctionName = Annotated[NamedFunction, IsFunction(), AfterValidator(_named)]


@functools.lru_cache(maxsize=64)
def _module(path: str, digest: str) -> types.ModuleType:
    """Runs exactly the bytes that have the digest, whatever becomes of the file meanwhile."""
    try:
        source = Path(path).read_bytes()
    except OSError:
        source = b""
    if hashlib.sha256(source).hexdigest()[:16] != digest:
        raise ValueError(f"{path}: has changed or is gone; it held {digest} when the run was configured")
    module = types.ModuleType(f"user_code_{digest}")
    module.__file__ = path
    before = set(sys.modules)
    # Where dataclasses and pickle look for a class's module.
    sys.modules[module.__name__] = module
    try:
        exec(compile(source, path, "exec"), module.__dict__)
        if beside := _beside(path, sys.modules.keys() - before):
            raise ValueError(
                f"imports {beside} beside it, whose changes nobody would notice: put all into one file, or "
                "install the other one"
            )
    except (Exception, SystemExit) as error:
        del sys.modules[module.__name__]
        raise ValueError(f"{path}: {describe(error, path)}") from error
    return module


def _beside(path: str, names: set[str]) -> str:
    """The file name of a module that lies in the folder of a file, or below. Empty if none does."""
    folder = os.path.join(os.path.dirname(os.path.realpath(path)), "")
    for name in sorted(names):
        file = getattr(sys.modules.get(name), "__file__", None) or ""
        real = os.path.realpath(file)
        if real.startswith(folder) and "site-packages" not in real.removeprefix(folder) and file != path:
            return os.path.basename(real)
    return ""


def describe(error: BaseException, path: str) -> str:
    """Describes an error in one line, with the line of the user's file that it came from."""
    first = (str(error).strip() or "no message").splitlines()[0]
    if isinstance(error, SyntaxError):
        return f"SyntaxError: {error.msg} (line {error.lineno})"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    where = f" (line {lines[-1]})" if lines else ""
    kind = "" if type(error) is ValueError and not lines else f"{type(error).__name__}: "
    return f"{kind}{first}{where}"
