"""`--until settled` and `--max-points` on the command line, and what the folder says of them later."""

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli.app import BAD_INPUT, INCOMPLETE, INTERRUPTED, OK
from orchestrator.cli.next_steps import next_steps
from orchestrator.execution import session
from orchestrator.execution.looks import note_until
from orchestrator.store.folder import open_folder, save_question
from orchestrator.store.journal import Writer
from orchestrator.store.output import output_path
from orchestrator.trials.events import AttemptBegan, AttemptEnded, LookTaken, SessionBegan
from orchestrator.trials.records import results_of
from orchestrator.trials.sweep_file import SweepFile
from orchestrator.trials.trial import Plan

LR_WD = Path(__file__).parents[3] / "search_spaces" / "lr_wd.yaml"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sweep of 8 points, of which nothing has run."""
    place = tmp_path / "lr_wd"
    save_question(place, SweepFile(LR_WD, points=8).plan())
    return place


def end_all(folder: Path, plan: Plan) -> None:
    writer = Writer(folder)
    writer.append([SessionBegan(time=1.0, began=1.0)])
    for trial in plan.trials:
        writer.append(
            [
                AttemptBegan(trial=trial.id, attempt=1, lane="lane", time=2.0),
                AttemptEnded(
                    trial=trial.id, attempt=1, end="diverged", detail="", seconds=1.0, time=3.0, final=True
                ),
            ]
        )
    writer.close()


def test_the_command_that_continues_repeats_them(shell, tmp_path, monkeypatch):
    asked: list[Any] = []

    def prepare(file: SweepFile, place: Path, *rest: Any) -> None:
        asked.extend([file.sweep.design, rest[-1]])
        raise KeyboardInterrupt

    monkeypatch.setattr(session, "prepare", prepare)
    options = ["--out", tmp_path / "x", "--until", "settled", "--max-points", "24"]
    code, said = shell("run", LR_WD, *options, "--no-mlflow")
    assert code == INTERRUPTED
    assert f"To continue, run:  vitc-sweep run {LR_WD} --out {tmp_path / 'x'} " in said
    assert "--until settled --max-points 24\n" in said
    assert (asked[0].max_points, asked[1]) == (24, "settled")
    shell("run", LR_WD, "--no-mlflow")
    assert (asked[2].max_points, asked[3]) == (None, None)


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (["--until", "tomorrow"], "must be settled, is tomorrow"),
        (["--max-points", "0"], "--max-points"),
        (["--max-points", "4"], "--set design.max_points=4: design.max_points: must be at least points"),
        (["--until", "settled", "--set", "search={}"], "a search compares no arms"),
    ],
)
def test_what_cannot_be_is_refused(shell, tmp_path, options, fault):
    code, said = shell("run", LR_WD, "--out", tmp_path / "x", "--no-mlflow", *options)
    assert code == BAD_INPUT
    assert fault in " ".join(said.split())
    assert not (tmp_path / "x").exists()


def test_a_plan_names_the_looks_and_what_the_points_are_for(shell):
    code, said = shell("plan", LR_WD, "--set", "design.detect=0.15", "--no-measure")
    assert code == OK
    assert "detect 0.15 at power 0.8: 32 points\n" in said
    assert "Looks at 32, 64 and 128 points: " in said
    code, said = shell("plan", LR_WD, "--no-measure", "--json")
    assert json.loads(said)["settles"][0].startswith("Looks at 8, 16 and 32 points: ")


def test_a_killed_run_is_continued_as_it_was_begun(shell, folder):
    output_path(folder).write_text("")
    note_until(folder)
    code, said = shell("attach", folder)
    assert code == INCOMPLETE
    assert f"To go on:  vitc-sweep run {folder / 'sweep.yaml'} --out {folder} --until settled" in said
    for _ in range(2):
        writer = Writer(folder)
        writer.append([SessionBegan(time=1.0, began=1.0)])
        writer.close()
    code, said = shell("attach", folder)
    assert said.rstrip().endswith(f"--out {folder}")


def test_status_and_next_steps_tell_of_the_looks(shell, folder):
    end_all(folder, open_folder(folder).plan)
    opened = open_folder(folder)
    results = results_of(opened.plan, opened.records)
    last = next_steps(opened, results)[-1]
    assert "--points 16   (" in last
    assert last.endswith("; the next verdict is at 16 points)")
    writer = Writer(folder)
    writer.append(
        [
            LookTaken(
                made=9.0, points=8, last=32, goes_on=False, detail="c is better", trials_saved=96,
                hours_saved=3.14, unit="GPU-hours",
            )
        ]
    )  # fmt: skip
    writer.close()
    told = [
        "look at 8 of at most 32 points: c is better",
        "stopped at 8 of at most 32 points: 96 trials, about 3.1 GPU-hours not needed",
    ]
    _, said = shell("status", folder)
    assert said.splitlines()[-2:] == told
    _, said = shell("status", folder, "--json")
    (look,) = json.loads(said)["looks"]
    assert (look["points"], look["trials_saved"]) == (8, 96)
    opened = open_folder(folder)
    assert not any("--points" in line for line in next_steps(opened, results))
