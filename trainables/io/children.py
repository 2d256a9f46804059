"""Child processes that run our own code. Only the standard library."""

import sys
from pathlib import Path

#: The folder that holds our packages.
ROOT = Path(__file__).resolve().parents[2]


def own_program(code: str, *arguments: str) -> list[str]:
    """Returns the command that runs a line of code which imports our packages; `sys.argv[1:]` are arguments.

    The current folder is not on its path (`-P`), because a file there may have the name of a module of the
    standard library. The folder of our packages comes last, for a checkout that is not installed.
    """
    head = "import sys; sys.path.append(sys.argv.pop(1)); "
    return [sys.executable, "-P", "-c", head + code, str(ROOT), *arguments]
