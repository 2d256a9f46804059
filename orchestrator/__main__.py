"""The command line as `python -m orchestrator`."""

import sys

# `python -m` looks for modules in the current folder first, where a file of the user may have the name of one
# of the standard library.
if __name__ == "__main__" and not sys.flags.safe_path:
    sys.path.append(sys.path.pop(0))

from orchestrator.cli.app import main

if __name__ == "__main__":
    main()
