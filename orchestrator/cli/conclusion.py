"""The end of a command on a sweep: it writes the report and prints the answer."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.cli.app import INCOMPLETE, OK
from orchestrator.cli.next_steps import next_steps
from orchestrator.cli.options import say

if TYPE_CHECKING:
    from rich.console import Console

    from orchestrator.monitor.observers import MlflowObserver


def conclude(console: "Console", folder: Path, mirror: "MlflowObserver | None" = None) -> int:
    """Writes the report, prints its answer, and hands it to MLflow.

    Returns:
      The exit code: OK if every trial has a result, else INCOMPLETE.
    """
    from orchestrator.monitor.terminal import answer_table, failure_lines
    from orchestrator.report.document import summary_table
    from orchestrator.store.folder import open_folder
    from orchestrator.trials.records import results_of

    report = _write_report(folder)
    opened = open_folder(folder)
    results = results_of(opened.plan, opened.records)
    console.print(answer_table(summary_table(opened.plan, opened.records)))
    # The third sentence, how it was decided, is for the report.
    for sentence in json.loads((report.parent / "summary.json").read_text("utf-8"))["answer"][:2]:
        console.print(sentence, markup=False, highlight=False)
    # A trial that a search has ended early is not a failure.
    bad = [r for r in results if r.rule is None or not (r.rule.in_edf or r.censored)]
    if bad:
        console.print(failure_lines([result for result in bad if result.record.outcome]))
        say(console, f"\n{len(bad)} of {len(results)} trials have no result.", "red")
    held_up = len({result.trial.id for result in results if result.held_up})
    if held_up:
        say(
            console,
            f"\n{held_up} trials never started, because their first stage left no weights; see "
            f"`vitc-sweep why {folder} TRIAL`",
            "red",
        )
    say(console, f"report: {report}")
    for line in next_steps(opened, results):
        say(console, line)
    if console.quiet:
        print(report)
    if mirror and (warning := mirror.finish(report)):
        say(console, warning, "yellow")
    return INCOMPLETE if bad or held_up else OK


def _write_report(folder: Path) -> Path:
    from orchestrator.evidence.seal import write_sealed_report

    return write_sealed_report(folder)
