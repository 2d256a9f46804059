"""Functions in Python files of the user, which a configuration names: `nets.py:make#1f0c9a5e77d2b310`.

Such a function counts by the content of its file. Running it is an act of trust: a process runs the code of a
file only if it has read a configuration with that content inside `trusting_code`. Reading results is none.

A folder of results keeps copies of the files, so that a file may be edited while a sweep of it runs.
"""

import ast
import contextlib
import functools
import hashlib
import os
import re
import sys
import traceback
import types
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator

from trainables.errors import UserError
from trainables.io.named import IsFile, NamedFile, digest_of_file

#: The folder of copies in a folder of results. Each is called by its digest.
COPIES = "code"


class CodeError(UserError):
    """A file of the user's code that cannot be run, or must not be run here."""


#: Digests of the files that this process may run, each with the folders of results that may hold a copy.
_trusted: dict[str, list[Path]] = {}

_is_trusting = ContextVar("is_trusting", default=False)
_results: ContextVar[Path | None] = ContextVar("results", default=None)


@contextlib.contextmanager
def trusting_code(results: Path | None = None) -> Iterator[None]:
    """Inside, this process trusts the code of every configuration that it reads, for as long as it lives.

    Args:
      results: a folder of results, whose copies are taken in place of the files.
    """
    tokens = _is_trusting.set(True), _results.set(results and results.absolute())
    try:
        yield
    finally:
        _is_trusting.reset(tokens[0])
        _results.reset(tokens[1])


def copy_of(results: Path, digest: str) -> Path:
    """Returns the path of the copy that a folder of results may hold of a file."""
    return results / COPIES / f"{digest}.py"


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

    def source(self) -> bytes:
        """Returns the bytes of the file as they were when it was first read, from a copy if there is one.

        Raises:
          CodeError: the file is gone or has changed, and there is no copy.
        """
        return _source(self.path, self.digest)

    def load(self) -> Callable[..., Any]:
        """Runs the file, once a process, and returns the function.

        Raises:
          CodeError: this process may not run the file; or it is gone, has changed, raises an error, imports
            a file beside it, or has no such function.
        """
        if not self.is_trusted:
            raise CodeError(f"{self.path}: is not run, because only results are read here")
        try:
            function = getattr(_module(self.path, self.digest), self.function)
        except AttributeError:
            raise CodeError(f"{self.path}: has no function {self.function!r}") from None
        if not callable(function):
            raise CodeError(f"{self.path}: {self.function} is no function, but {function!r:.60}")
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
        known = _trusted.setdefault(named.digest, [])
        results = _results.get()
        if results is not None and results not in known:
            known.append(results)
    return named


#: The name of a function in a local Python file, which counts by the file's content.
FunctionName = Annotated[NamedFunction, IsFunction(), AfterValidator(_named)]


#: Files that another process has read for this one, by digest.
_received: dict[str, bytes] = {}


def receive(sources: Mapping[str, bytes]) -> None:
    """Takes files by their digests, for a machine that does not reach them. Trusts none of them."""
    _received.update(sources)


def _source(path: str, digest: str) -> bytes:
    received = _received.get(digest, b"")
    if received and hashlib.sha256(received).hexdigest()[:16] == digest:
        return received
    copies = [copy_of(results, digest) for results in _trusted.get(digest, [])]
    for place in (*copies, Path(path)):
        with contextlib.suppress(OSError):
            source = place.read_bytes()
            if hashlib.sha256(source).hexdigest()[:16] == digest:
                return source
    raise CodeError(f"{path}: has changed or is gone; it held {digest} when the run was configured")


@functools.lru_cache(maxsize=64)
def _module(path: str, digest: str) -> types.ModuleType:
    """Runs exactly the bytes that have the digest, whatever becomes of the file meanwhile."""
    source = _source(path, digest)
    module = types.ModuleType(f"user_code_{digest}")
    module.__file__ = path
    before = set(sys.modules)
    # Where dataclasses and pickle look for a class's module.
    sys.modules[module.__name__] = module
    try:
        _refuse(_imported_beside(source, Path(path)))
        exec(compile(source, path, "exec"), module.__dict__)
        _refuse(_beside(path, sys.modules.keys() - before))
    except (Exception, SystemExit) as error:
        del sys.modules[module.__name__]
        raise CodeError(f"{path}: {describe(error, path)}") from error
    return module


def _refuse(beside: str) -> None:
    if beside:
        raise ValueError(
            f"imports {beside} beside it, whose changes nobody would notice: put all into one file, or "
            "install the other one"
        )


def _imported_beside(source: bytes, path: Path) -> str:
    """The file name of a module beside a file that it imports by a statement. Empty if there is none.

    Imports in functions count, because they would run in the middle of a trial.
    """
    for node in ast.walk(ast.parse(source, path)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [f"{'.' * node.level}{node.module or ''}"]
        for name in names:
            top = path.parent / name.lstrip(".").partition(".")[0]
            if name.startswith(".") or (top / "__init__.py").is_file():
                return name
            if top.with_suffix(".py").is_file():
                return f"{top.name}.py"
    return ""


def _beside(path: str, names: set[str]) -> str:
    """The file name of a module that lies in the folder of a file, or below. Empty if none does."""
    folder = os.path.join(os.path.dirname(os.path.realpath(path)), "")
    found = ""
    for name in sorted(names):
        file = getattr(sys.modules.get(name), "__file__", None) or ""
        real = os.path.realpath(file)
        if real.startswith(folder) and "site-packages" not in real.removeprefix(folder) and file != path:
            # Else a second attempt would find it imported already, and go through.
            del sys.modules[name]
            found = found or os.path.basename(real)
    return found


def describe(error: BaseException, path: str) -> str:
    """Describes an error in one line, with the line of the user's file that it came from."""
    first = (str(error).strip() or "no message").splitlines()[0]
    if isinstance(error, SyntaxError):
        return f"SyntaxError: {error.msg} (line {error.lineno})"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    where = f" (line {lines[-1]})" if lines else ""
    # Messages of the program's own are complete.
    own = type(error) in (ValueError, CodeError) and not lines
    kind = "" if own else f"{type(error).__name__}: "
    return f"{kind}{first}{where}"
