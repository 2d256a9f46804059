"""Asks a question of many training runs and answers it: space, plan, lanes, journal, statistics, report.

The names below are the library (docs/library.md). They are imported when they are used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.api import (
        Verdict,
        load_sweep,
        plan_sweep,
        read_results,
        read_verdicts,
        run_sweep,
        stop_sweep,
        write_report,
    )
    from orchestrator.monitor.observer import Observer, Round, SessionEnd
    from orchestrator.monitor.observers import MlflowObserver, NotifyObserver
    from orchestrator.monitor.progress import Progress
    from orchestrator.trials.sweep_file import SweepFile
    from orchestrator.trials.trial import Plan

__all__ = [
    "MlflowObserver",
    "NotifyObserver",
    "Observer",
    "Plan",
    "Progress",
    "Round",
    "SessionEnd",
    "SweepFile",
    "Verdict",
    "load_sweep",
    "plan_sweep",
    "read_results",
    "read_verdicts",
    "run_sweep",
    "stop_sweep",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from orchestrator import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
