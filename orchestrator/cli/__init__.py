"""The command line: each module registers its verbs with the application."""

# Import order is the order of the verbs in --help.
from orchestrator.cli import planning, data, running, submitting, cluster, watching  # noqa: F401, I001
from orchestrator.cli import reporting, analysing, copying  # noqa: F401
from orchestrator.cli.app import BAD_INPUT, INCOMPLETE, INTERRUPTED, OK, app, main

__all__ = ["BAD_INPUT", "INCOMPLETE", "INTERRUPTED", "OK", "app", "main"]
