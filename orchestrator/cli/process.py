"""The process of the command line: what its surroundings must not do to it."""

import contextlib
import os
import tempfile

from trainables.io.machine import CACHE
from trainables.io.streams import steady_streams
from trainables.io.surroundings import check_surroundings

#: The variable that stands for --notify.
NOTIFY = "VITC_SWEEP_NOTIFY"

#: Sizes that rich and typer read from the environment, and the least that a table needs.
_SIZES = {"COLUMNS": 40, "LINES": 5, "TERMINAL_WIDTH": 40, "JUPYTER_COLUMNS": 40, "JUPYTER_LINES": 5}


def prepare() -> None:
    """Makes output safe and the environment usable. Called once, before anything else is imported."""
    steady_streams()
    for name, least in _SIZES.items():
        # An empty, negative or tiny number would print nothing, or end in a traceback.
        if name in os.environ and not _is_number(os.environ[name], least):
            del os.environ[name]
    # numpy reads it as a number when it is imported.
    if not _is_number(os.environ.get("SOURCE_DATE_EPOCH", "0"), 0, digits=12):
        del os.environ["SOURCE_DATE_EPOCH"]
    # Figures have a canvas of their own, and matplotlib does not start with a notebook's backend.
    os.environ.pop("MPLBACKEND", None)
    # Workers run in other folders.
    if place := os.environ.get(CACHE):
        with contextlib.suppress(OSError):
            os.environ[CACHE] = os.path.abspath(os.path.expanduser(place))
    # Libraries want a home and a name, which a container's user may lack.
    if os.path.expanduser("~") == "~":
        os.environ["HOME"] = tempfile.gettempdir()
    if not _has_name():
        os.environ["LOGNAME"] = str(os.getuid())


def check() -> None:
    """Checks what verbs that load torch or data take from their surroundings.

    Raises:
      UserError: something cannot be used. The error lists all faults.
    """
    faults = []
    if target := os.environ.get(NOTIFY):
        from orchestrator.monitor.notify import target_fault

        faults = [f"{NOTIFY}: {fault}"] if (fault := target_fault(target)) else []
    check_surroundings(faults)


def _is_number(text: str, least: int, digits: int = 5) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= digits and int(text) >= least


def _has_name() -> bool:
    import getpass

    try:
        return bool(getpass.getuser())
    # Of a user id without a name. Python 3.13 raises another error.
    except (KeyError, OSError):
        return False
