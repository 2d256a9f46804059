"""The commands that the end of a run names: they exist, parse and do what is said of them."""

import dataclasses
import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import typer.main

from orchestrator.cli import app
from orchestrator.cli.next_steps import next_steps
from orchestrator.store.folder import Folder, open_folder, save_confirmation, save_question
from orchestrator.store.journal import Writer
from orchestrator.sweep.load import load_sweep
from orchestrator.trials.confirm import Confirmation
from orchestrator.trials.events import AttemptBegan, AttemptEnded, EpochDone, RetryWanted
from orchestrator.trials.names import find_trial
from orchestrator.trials.numerals import duration
from orchestrator.trials.records import results_of
from orchestrator.trials.trial import Trial
from tests.support.sweeps import epoch_row, plan_of


def folder_of(
    path: Path,
    detail_of: Callable[[Trial], str | None],
    end: str = "failed",
    error_pct: Callable[[Trial], float] = lambda trial: 10.0,
    **changes,
) -> Folder:
    """A sweep whose trials have all ended: finished with an error, or failed (or another end)."""
    plan = plan_of(**changes)
    save_question(path, plan)
    writer = Writer(path)
    for trial in plan.trials:
        detail = detail_of(trial)
        begun = AttemptBegan(trial=trial.id, attempt=1, lane="lane", time=0.0)
        row = epoch_row(3, error_pct(trial), test_pct=11.0)
        rows = [] if detail else [EpochDone(trial=trial.id, attempt=1, row=row)]
        ended = AttemptEnded(
            trial=trial.id,
            attempt=1,
            end=end if detail else "finished",
            detail=detail or "",
            seconds=30.0,
            time=30.0,
            final=True,
        )
        writer.append([begun, *rows, ended])
    writer.close()
    return open_folder(path)


def steps(opened: Folder) -> list[str]:
    return next_steps(opened, results_of(opened.plan, opened.records))


def commands_in(lines: list[str]) -> dict[str, list[str]]:
    """The arguments of each command by its verb. They parse."""
    verbs, found = typer.main.get_command(app).commands, {}
    for line in lines:
        if "vitc-sweep" in line:
            _, verb, *arguments = shlex.split(line[line.index("vitc-sweep") :].partition("   (")[0])
            assert verbs[verb].make_context(verb, list(arguments)).params
            found[verb] = arguments
    return found


def test_a_whole_sweep_is_confirmed_or_extended(tmp_path):
    folder = tmp_path / "my runs" / "small"
    found = commands_in(steps(folder_of(folder, lambda _: None)))
    assert found["confirm"] == [str(folder)]
    file, *options = found["run"]
    assert options == ["--out", str(folder), "--points", "8"]
    # The file in the folder asks what the folder holds.
    assert load_sweep(Path(file)).design == open_folder(folder).plan.sweep.design


def test_a_grid_and_a_search_are_not_extended(tmp_path):
    grid = folder_of(tmp_path / "grid", lambda _: None, design={"kind": "grid", "levels": 2})
    assert list(commands_in(steps(grid))) == ["confirm"]


def test_what_is_confirmed_is_not_confirmed_again(tmp_path):
    opened = folder_of(tmp_path / "small", lambda _: None)
    save_confirmation(opened.path, Confirmation({("all", "p"): (0,)}, seeds=2))
    # The runs of the confirmation are missing: the command that began them goes on.
    assert steps(open_folder(opened.path)) == []


def test_failures_of_one_cause_are_said_to_be_so_with_both_commands(tmp_path):
    # Their numbers differ, and the cause does not.
    opened = folder_of(tmp_path / "small", lambda trial: f"DataError: row {trial.point} is broken")
    told, *lines = steps(opened)
    assert told == "8 trials failed, all for one cause."
    found = commands_in(lines)
    assert found["why"][0] == str(opened.path)
    assert find_trial(opened.plan, found["why"][1]) == opened.plan.trials[0]
    assert found["retry"] == [str(opened.path), "--failed"]


def test_failures_of_several_causes_are_counted(tmp_path):
    def detail(trial: Trial) -> str | None:
        return {0: "OSError: on fire", 1: "KeyError: x"}.get(trial.point)

    assert steps(folder_of(tmp_path / "small", detail))[0] == "4 trials failed, for 2 causes."


def test_failures_of_a_setting_are_followed_by_the_command_that_changes_one(tmp_path):
    opened = folder_of(tmp_path / "small", lambda _: "no such layer", end="invalid")
    file, *options = commands_in(steps(opened))["run"]
    assert load_sweep(Path(file)).design == opened.plan.sweep.design
    assert options == ["--set", "KEY=VALUE", "--out", str(tmp_path / "small-2")]


def test_retry_with_a_setting_names_the_commands_that_do_it(cli, tmp_path):
    opened = folder_of(tmp_path / "my runs", lambda _: "DataError: gone")
    code, out, err = cli("retry", opened.path, "--failed", "--set", "data.path=/a b", "--set", "batch_size=8")
    assert (code, out) == (2, "")
    question, same, other = opened.path / "sweep.yaml", str(opened.path), str(tmp_path / "my runs-2")
    settings = ["--set", "data.path=/a b", "--set", "batch_size=8"]
    assert [shlex.split(line) for line in err.splitlines() if line.startswith("  ")] == [
        ["vitc-sweep", "run", str(question), *settings, "--out", same],
        ["vitc-sweep", "retry", same, "--failed"],
        ["vitc-sweep", "run", str(question), *settings, "--out", other],
    ]


@pytest.mark.usefixtures("no_pdfs")
def test_the_end_of_a_command_names_them(cli, tmp_path):
    opened = folder_of(tmp_path / "small", lambda _: None)
    code, out, _ = cli("report", opened.path)
    assert code == 0
    assert out.splitlines()[-2].startswith(f"next: vitc-sweep confirm {opened.path}   (")
    # Four points are the first look.
    assert out.splitlines()[-1].startswith("or: vitc-sweep run ")
    told = out.splitlines()[-1].split("--points 8   ")[1]
    seconds = sum(result.record.busy_seconds for result in results_of(opened.plan, opened.records))
    num_runs = len(opened.plan.trials)
    assert told == (
        f"({num_runs} more runs, about {duration(seconds)} of training; the next verdict is at 8 points)"
    )


@pytest.mark.usefixtures("no_pdfs")
def test_the_end_of_a_run_of_two_arms_and_two_cells_fits_twelve_lines(cli, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)

    def error_pct(trial: Trial) -> float:
        return 10 + 0.5 * trial.point + 30 * (trial.arm == "vit_p")

    folder = Path("runs/lr_wd")
    folder_of(
        folder,
        lambda _: None,
        error_pct=error_pct,
        arms={"vit_p": {"model.stem": "patchify"}, "vit_c": {"model.stem": "conv"}},
        cells={"length": {f"e{n}": {"schedule.epochs": n} for n in (3, 4)}},
        design={"kind": "sobol", "points": 8},
    )
    code, out, _ = cli("report", folder)
    lines = out.splitlines()
    assert code == 0
    assert lines[0].endswith("trials  diverged  peak %  final %  robustness  95 % interval")
    assert lines[-1].startswith("next: vitc-sweep confirm runs/lr_wd")
    # `run` prints one line before these: how many trials have run, and for how long.
    assert len(lines) <= 11
    assert all(len(line) <= 80 for line in lines)


@pytest.mark.parametrize(("worse_pct", "goes_on"), [(30.0, False), (0.0, True)])
def test_more_points_are_proposed_only_where_something_is_open(tmp_path, worse_pct, goes_on):
    opened = folder_of(tmp_path / "small", lambda _: None, design={"kind": "sobol", "points": 8})
    first = next(iter(opened.plan.sweep.arms))

    def error_pct(trial: Trial) -> float:
        is_first = trial.arm == first
        # Without a difference between the arms, each is ahead at every other point.
        return 10 + 0.5 * trial.point + worse_pct * is_first + 3 * (is_first == (trial.point % 2 == 0))

    records = {
        t.id: dataclasses.replace(opened.records[t.id], rows={3: epoch_row(3, error_pct(t), test_pct=11.0)})
        for t in opened.plan.trials
    }
    told = next_steps(opened, results_of(opened.plan, records))
    assert any(line.startswith("or: vitc-sweep run ") for line in told) == goes_on


def test_a_confirmation_is_counted_before_it_is_started(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    opened = folder_of(tmp_path / "runs" / "small", lambda _: None)
    before = {path: path.read_bytes() for path in opened.path.rglob("*") if path.is_file()}
    code, out, _ = cli("confirm", opened.path, "--top", "2", "--seeds", "4", "--plan")
    assert code == 0
    # Two settings of two arms in one cell.
    assert "confirm: the 2 best settings of each arm and cell, 4 fresh seeds each" in out
    assert "16 trials" in out
    assert {path: path.read_bytes() for path in opened.path.rglob("*") if path.is_file()} == before


def test_the_time_of_a_confirmation_follows_from_the_sweep_itself(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    opened = folder_of(tmp_path / "runs" / "small", lambda _: None)
    record = json.loads((opened.path / "record.json").read_text())
    record["machine"] |= {"gpus": [], "processor": "a processor"}
    (opened.path / "record.json").write_text(json.dumps(record))
    monkeypatch.setattr("orchestrator.cost.devices.processor", lambda: "a processor")
    monkeypatch.setattr("orchestrator.cost.devices.usable_cpus", lambda: 4)
    _, out, _ = cli("confirm", opened.path, "--top", "1", "--seeds", "4", "--plan")
    # 3 epochs of 1.1 s: 8 trials on 4 cores are two rounds of 3.3 s after a start of 15 s.
    assert "8 trials will take about 32 s (26 s to 57 s) on 4 cores, 4 at a time" in out


def test_why_shows_the_log_of_the_attempt_that_counts(cli, tmp_path):
    opened = folder_of(tmp_path / "small", lambda trial: "OSError: on fire")
    trial = opened.plan.trials[0]
    log = opened.path / "trials" / trial.id / "attempt-1.log"
    log.parent.mkdir(parents=True)
    log.write_text("Traceback\nOSError: on fire, said the log\n")
    assert "said the log" in cli("why", opened.path, trial.id)[1]
    writer = Writer(opened.path)
    row = EpochDone(trial=trial.id, attempt=2, row=epoch_row(3, 10.0, test_pct=11.0))
    writer.append(
        [
            RetryWanted(trial=trial.id, time=40.0),
            AttemptBegan(trial=trial.id, attempt=2, lane="lane", time=41.0),
            row,
            AttemptEnded(
                trial=trial.id, attempt=2, end="finished", detail="", seconds=1.0, time=42.0, final=True
            ),
        ]
    )
    writer.close()
    _, out, _ = cli("why", opened.path, trial.id)
    assert "finished" in out
    assert "discarded by `retry`" in out
    assert "said the log" not in out
