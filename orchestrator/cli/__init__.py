"""The command line. Heavy imports stand inside the commands, so that --help is immediate."""

# Each registers its verbs, in this order.
from orchestrator.cli import planning, running, watching, reporting  # noqa: F401, I001
from orchestrator.cli.app import BAD_INPUT, INCOMPLETE, INTERRUPTED, OK, app, main

__all__ = ["BAD_INPUT", "INCOMPLETE", "INTERRUPTED", "OK", "app", "main"]
