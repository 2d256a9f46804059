"""The library: load a sweep, plan it, run it, read its results and its verdicts (docs/library.md).

`from orchestrator import run_sweep` imports this module. Nothing here prints or takes a signal.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from orchestrator.analysis.contrasts import Decision, contrasts_of, headline
from orchestrator.analysis.summary import summarise
from orchestrator.execution.waiting import WAIT_MINUTES
from orchestrator.monitor.observer import Observer, Round, SessionEnd
from orchestrator.monitor.observers import MlflowObserver, NotifyObserver
from orchestrator.monitor.progress import Progress
from orchestrator.report.answer import verdict_sentence
from orchestrator.report.document import results_rows
from orchestrator.stats.measures import Measure
from orchestrator.store import lease
from orchestrator.store.folder import open_folder
from orchestrator.sweep.document import Override
from orchestrator.trials.records import results_of
from orchestrator.trials.sweep_file import SweepFile
from orchestrator.trials.trial import Plan

if TYPE_CHECKING:
    import pandas as pd

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


def load_sweep(
    path: Path | str, settings: Mapping[str, Any] | None = None, points: int | None = None
) -> SweepFile:
    """Reads a sweep file and checks everything that can be checked without the data.

    Args:
      path: the YAML file.
      settings: values in place of the file's, by dotted key, as `--set` takes them.
      points: points per arm and cell in place of the file's.

    Raises:
      SweepError: the file is faulty. The error lists every fault.
    """
    overrides = tuple(Override(key, value) for key, value in (settings or {}).items())
    file = SweepFile(Path(path), overrides, points)
    # Read here, so that faults are raised here.
    _ = file.sweep
    return file


def plan_sweep(sweep: SweepFile | Path | str) -> Plan:
    """Looks at the data and draws the trials. Starts nothing, writes nothing.

    Raises:
      SweepError: the file is faulty. The error lists every fault.
    """
    return _loaded(sweep).plan()


def run_sweep(
    sweep: SweepFile | Path | str,
    out: Path | str | None = None,
    observers: Sequence[Observer] = (),
    *,
    address: str | None = None,
    check: bool = True,
    wait_minutes: float = WAIT_MINUTES,
    until: Literal["settled"] | None = None,
) -> SessionEnd:
    """Runs the remaining trials of a sweep. It prints nothing; observers receive all that happens.

    Ctrl-C, or the interrupt of a notebook, ends it in seconds: running trials are cancelled and continue from
    their checkpoints when the sweep is run again. This function starts and stops Ray, so Ray must not be in
    use in this process.

    Args:
      sweep: the sweep, or its file.
      out: the folder of the results; None means runs/<name>.
      observers: observers of the run, called in this order.
      address: a running Ray cluster; None starts one on this machine.
      check: whether to try every shape before the first trial.
      wait_minutes: longest time without a machine that a trial fits on, after which it gives up.
      until: "settled" extends the sweep look by look, and stops as soon as its question is settled or it is
        out of points (`design.max_points`). None runs the points of the file.

    Returns:
      How it ended. The report is written by `write_report`, not here.

    Raises:
      SweepError: the sweep cannot start. The error lists every fault. Nothing was written.
      FolderError: another run holds the folder, or it holds another sweep.
      ClusterError: the cluster cannot run the trials.
      Unavailable: no machine came that a trial fits on, before anything was written.
    """
    # Results are read without it, and it imports torch.
    from orchestrator.execution.session import Session, prepare

    file = _loaded(sweep)
    folder = Path(out) if out else Path("runs") / file.sweep.name
    plan, preparation = prepare(file, folder, observers, address, check, wait_minutes, until)
    with lease.held(folder) as held:
        return Session(held, observers, address, wait_minutes).run_rounds(plan, preparation, until)


def stop_sweep(folder: Path | str, drain: bool = False) -> None:
    """Asks the run in a folder to stop, from another thread, process or machine. Returns at once.

    Args:
      folder: the sweep's folder.
      drain: whether running trials finish; else they are cancelled.

    Raises:
      FolderError: no run is active there.
    """
    lease.request_stop(Path(folder), "drain" if drain else "now")


def write_report(folder: Path | str) -> Path:
    """Writes the report of a sweep, with missing trials shown as missing. Returns the path of its page.

    Raises:
      FolderError: the folder is no sweep.
    """
    from orchestrator.evidence.seal import write_sealed_report

    return write_sealed_report(Path(folder))


def read_results(folder: Path | str) -> "pd.DataFrame":
    """Returns one row per trial: ids, every resolved setting, outcome, errors, epochs, seconds, cost.

    Raises:
      FolderError: the folder is no sweep.
    """
    return results_table(Path(folder)).to_pandas()


def results_table(folder: Path) -> pa.Table:
    """Returns the results as `read_results` does, as an Arrow table.

    Raises:
      FolderError: the folder is no sweep.
    """
    opened = open_folder(folder)
    return pa.Table.from_pylist(_one_type_per_column(results_rows(opened.plan, opened.records)))


def _one_type_per_column(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Converts columns of mixed types to text, such as a stem that one arm names and another writes out."""
    mixed = set()
    for name in rows[0] if rows else ():
        kinds = {type(row[name]) for row in rows} - {type(None)}
        if kinds - {int, float} and (len(kinds) > 1 or kinds & {list, tuple, dict}):
            mixed.add(name)
    return [
        {
            name: json.dumps(value) if name in mixed and not isinstance(value, str | None) else value
            for name, value in row.items()
        }
        for row in rows
    ]


@dataclass(frozen=True)
class Verdict:
    """The verdict on two arms in a cell.

    Attributes:
      cell: the setting under which they are compared.
      measure: the measure that is compared; docs/statistics.md defines it.
      arm, base_arm: the arm, and the first arm of the sweep, which it is compared to.
      decision: `better`, `alike`, or `open`.
      better: the better of the two. None if they are alike or that is not settled.
      difference: the typical difference, `arm` minus `base_arm`, by the test that decides; if they are alike,
        that of the means. None before the first look.
      low, high: the ends of the interval that belongs to the decision. None if there is none.
      p: p-value of the paired test, valid for all looks so far, and adjusted by Holm's method if several
        contrasts share the question.
      sentence: the verdict as a sentence.
    """

    cell: str
    measure: Measure
    arm: str
    base_arm: str
    decision: Decision
    better: str | None
    difference: float | None
    low: float | None
    high: float | None
    p: float | None
    sentence: str


def read_verdicts(folder: Path | str) -> list[Verdict]:
    """Returns the verdict on the contrast declared in the sweep file, or on the default one in every cell.

    Raises:
      FolderError: the folder is no sweep.
    """
    opened = open_folder(Path(folder))
    summaries = summarise(results_of(opened.plan, opened.records))
    compared = contrasts_of(summaries, opened.plan.sweep, opened.declared)
    verdicts = []
    for contrast in headline(compared):
        difference = contrast.within if contrast.decision == "alike" else contrast.shift
        verdicts.append(
            Verdict(
                contrast.cell,
                contrast.measure,
                contrast.arm,
                contrast.base_arm,
                contrast.decision,
                contrast.better,
                None if difference is None else difference.value,
                None if difference is None else difference.low,
                None if difference is None else difference.high,
                contrast.p_value if contrast.p_adjusted is None else contrast.p_adjusted,
                verdict_sentence(contrast, compared),
            )
        )
    return verdicts


def _loaded(sweep: SweepFile | Path | str) -> SweepFile:
    return sweep if isinstance(sweep, SweepFile) else load_sweep(sweep)
