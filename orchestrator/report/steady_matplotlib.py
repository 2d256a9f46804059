"""The import of matplotlib, which no setting of the user can break. Modules import this one before it.

At its import matplotlib takes the backend of MPLBACKEND, and reads the first matplotlibrc that it finds. A
name that is none, or a file that is no text, ends the import. Figures have a canvas and a style of their own
(`plotting`), so they need neither.
"""

import contextlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

_NAMES = ("MPLBACKEND", "MATPLOTLIBRC")


def _load() -> None:
    # Imported as it is where that works: what else the program draws is drawn with the user's settings.
    try:
        import matplotlib
    except Exception:
        with _without_settings():
            import matplotlib  # noqa: F401


@contextlib.contextmanager
def _without_settings() -> Iterator[None]:
    """Names matplotlib's own settings for the block. Puts all back."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        del sys.modules[name]
    before = {name: os.environ.pop(name, None) for name in _NAMES}
    [own] = importlib.util.find_spec("matplotlib").submodule_search_locations  # type: ignore
    os.environ["MATPLOTLIBRC"] = str(Path(own, "mpl-data", "matplotlibrc"))
    try:
        # A file in the current folder comes before that.
        with tempfile.TemporaryDirectory() as empty, _folder(empty):
            yield
    finally:
        del os.environ["MATPLOTLIBRC"]
        os.environ.update({name: value for name, value in before.items() if value is not None})


@contextlib.contextmanager
def _folder(place: str) -> Iterator[None]:
    # By its descriptor, as a folder that was deleted has no name.
    here = os.open(".", os.O_RDONLY)
    try:
        os.chdir(place)
        yield
    finally:
        os.fchdir(here)
        os.close(here)


_load()
