"""The commands that come next, for the end of a command on a sweep."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.cli.options import again

if TYPE_CHECKING:
    from orchestrator.store.folder import Folder
    from orchestrator.trials.records import Result


def next_steps(opened: "Folder", results: "Sequence[Result]") -> list[str]:
    """Returns lines with the commands that follow from the state of a sweep, each with its purpose.

    After failures these say why and try again. A sweep without gaps is confirmed or extended. Trials that are
    missing need the command that ran them, and a comparison of sweeps runs nothing.
    """
    from orchestrator.monitor.progress import FAILURES

    if "sources" in opened.record:
        return []
    if failed := [result for result in results if result.state in FAILURES]:
        return after_failures(opened.path, failed)
    if any(not result.record.settled for result in results):
        return []
    return [*_confirmation(opened, results), *_more_points(opened, results)]


def after_failures(folder: Path, failed: "Sequence[Result]") -> list[str]:
    """Returns lines with the commands that explain failed trials and run them again."""
    from orchestrator.trials.names import name_of
    from orchestrator.trials.outcomes import fingerprint

    causes = {fingerprint(result.state, result.record.detail) for result in failed}
    count = len({result.trial.id for result in failed})
    why = "all for one cause" if len(causes) == 1 else f"for {len(causes)} causes"
    told = "1 trial failed." if count == 1 else f"{count} trials failed, {why}."
    lines = [
        told,
        f"why: {again('why', folder, {})} {name_of(failed[0].trial)}",
        f"try again: {again('retry', folder, {})} --failed",
    ]
    if any(result.state in ("invalid", "out_of_memory") for result in failed):
        lines.append(f"with other settings: {with_settings(folder, 'KEY=VALUE')}")
    return lines


def with_settings(folder: Path, setting: str) -> str:
    """Returns the command that asks the question of a folder of results with another setting."""
    options = {"set": setting, "out": folder.with_name(f"{folder.name}-2")}
    return again("run", folder / "sweep.yaml", options)


def retry_with_settings(folder: Path, settings: Sequence[str]) -> str:
    """Returns what to do in place of `retry --set`."""
    moved = {"set": list(settings), "out": folder}
    elsewhere = {"set": list(settings), "out": folder.with_name(f"{folder.name}-2")}
    return (
        "`retry` runs the trials of the folder as they are. A place (data.path, resources) changes no trial: "
        f"run\n  {again('run', folder / 'sweep.yaml', moved)}\n  {again('retry', folder, {})} --failed\n"
        "Any other setting makes other trials, which want another folder:\n"
        f"  {again('run', folder / 'sweep.yaml', elsewhere)}"
    )


def _confirmation(opened: "Folder", results: "Sequence[Result]") -> list[str]:
    confirmed = any(result.trial.role == "confirm" for result in results)
    ranked = any(result.rule is not None and result.rule.ranked for result in results)
    if confirmed or not ranked:
        return []
    command = again("confirm", opened.path, {})
    return [f"next: {command}   (each arm's best with fresh seeds)"]


def _more_points(opened: "Folder", results: "Sequence[Result]") -> list[str]:
    """Returns the command up to the next look with its cost, unless all that is asked is settled."""
    from orchestrator.analysis.contrasts import contrasts_of, headline, looks_of
    from orchestrator.analysis.summary import summarise
    from orchestrator.analysis.until import needed_by_spread, settled
    from orchestrator.trials.numerals import duration
    from orchestrator.trials.rounds import looks_taken

    sweep, points = opened.plan.sweep, opened.plan.sweep.design.num_points(opened.plan.sweep.levels())
    if (looks := looks_taken(opened.events)) and looks[-1].points == points and not looks[-1].goes_on:
        # A run has stopped there by itself, and has said why.
        return []
    if sweep.search is not None or not getattr(sweep.design, "extendable", False):
        return []
    following = looks_of(sweep, opened.declared).following(points)
    if following is None or settled(headline(contrasts_of(summarise(results), sweep, opened.declared))):
        return []
    seconds = {r.trial.id: r.record.busy_seconds for r in results if r.trial.role == "sweep"}
    more = (following - points) / points
    cost = f"{more * len(seconds):.0f} more runs, about {duration(more * sum(seconds.values()))} of training"
    command = again("run", opened.path / "sweep.yaml", {"out": opened.path, "points": following})
    needed = needed_by_spread(opened.plan, opened.records, opened.declared)
    said = [] if needed is None else [needed.text]
    return [*said, f"or: {command}   ({cost}; the next verdict is at {following} points)"]
