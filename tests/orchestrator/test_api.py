"""The library as docs/library.md shows it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import orchestrator
from orchestrator import api
from orchestrator.api import read_results, read_verdicts
from orchestrator.cli.app import main
from orchestrator.stats.looks import Looks
from orchestrator.store.folder import save_question
from orchestrator.store.journal import Writer
from orchestrator.trials.events import AttemptBegan, AttemptEnded, EpochDone, row_of
from orchestrator.trials.sweep_file import SweepFile

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "library.md").read_text()
RUN, READ = re.findall(r"^```python\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)

TINY = {
    "base": {
        "model": {"family": "vit", "image_size": 16, "patch_size": 8, "width": 16, "depth": 2, "heads": 2},
        "model.mlp_ratio": 2,
        "data": "digits",
        "optim": {"name": "adamw", "weight_decay": 0.05},
        "schedule": {"epochs": 5, "warmup": "10%"},
        "batch_size": 128,
    },
    "arms": {"p": {"model.stem": "patchify"}, "c": {"model.stem": "conv"}},
    "vary": {"optim.lr": {"log_uniform": [1e-3, 1e-2]}},
    "design": {"kind": "sobol", "points": 8},
}


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """The current folder, with the sweep file of the document in it."""
    (tmp_path / "my_sweep.yaml").write_text(yaml.safe_dump(TINY))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def finished(place) -> Path:
    """The folder of the document's sweep: arm c errs by 10 % at every point, arm p by 20 %."""
    plan = SweepFile(place / "my_sweep.yaml").plan()
    folder = place / "runs" / "my_sweep"
    save_question(folder, plan)
    writer = Writer(folder)
    for trial in plan.trials:
        error = {"c": 10.0, "p": 20.0}[trial.arm] + trial.point / 10
        row = {"epoch": 5, "step": 50, "lr": 1e-5, "train_loss": 0.5, "val_loss": 0.4}
        row |= {"val_top1_error_pct": error, "val_raw_top1_error_pct": error, "test_top1_error_pct": error}
        row |= {"train_seconds": 0.5, "val_seconds": 0.1}
        writer.append(
            [
                AttemptBegan(trial=trial.id, attempt=1, lane="lane", time=0.0),
                EpochDone(trial=trial.id, attempt=1, row=row_of(row)),
                AttemptEnded(
                    trial=trial.id, attempt=1, end="finished", detail="", seconds=12.0, time=12.0, final=True
                ),
            ]
        )
    writer.close()
    return folder


def test_what_the_document_reads_is_there(finished, capsys):
    exec(compile(READ, "docs/library.md", "exec"), {})
    out = capsys.readouterr().out
    assert "finished" in out
    assert str(Path("runs/my_sweep/report/report.html")) in out
    assert (finished / "report" / "report.html").is_file()


def test_results_are_those_that_are_exported(finished, monkeypatch, capsys):
    import pandas

    frame = read_results(finished)
    assert len(frame) == 16
    by_arm = frame.groupby("arm")["error_pct"]
    # 10 or 20, and a tenth of 0 to 7 on average.
    assert by_arm.mean().to_dict() == pytest.approx({"c": 10.35, "p": 20.35})
    monkeypatch.setattr(sys, "argv", ["vitc-sweep", "export", str(finished)])
    with pytest.raises(SystemExit):
        main()
    pandas.testing.assert_frame_equal(frame, pandas.read_parquet(finished / "results.parquet"))


def test_the_verdict_is_that_of_the_report(finished):
    import json

    [verdict] = read_verdicts(finished)
    summary = json.loads((api.write_report(finished).parent / "summary.json").read_text())
    [told] = [c for c in summary["contrasts"] if c["measure"] == "area_common"]
    assert (verdict.arm, verdict.base_arm, verdict.cell) == (told["arm"], told["base_arm"], "all")
    assert verdict.better == told["better"] == "c"
    assert (verdict.difference, verdict.low, verdict.high) == pytest.approx(
        tuple(told["shift"][key] for key in ("value", "low", "high"))
    )
    # Eight pairs that all lie on one side, 2 / 2^8, at the first of three looks.
    assert verdict.p == pytest.approx(Looks.of(8).adjusted([2 / 2**8]))
    assert verdict.sentence == f"{summary['answer'][0]} {summary['answer'][2]}"


def test_a_sweep_without_results_has_no_verdict(place):
    plan = SweepFile(place / "my_sweep.yaml").plan()
    save_question(place / "new", plan)
    for verdict in read_verdicts(place / "new"):
        assert (verdict.better, verdict.difference, verdict.p) == (None, None, None)
    assert read_results(place / "new")["state"].unique().tolist() == ["missing"]


def test_the_document_names_all_that_can_be_imported_and_nothing_else():
    assert orchestrator.__all__ == api.__all__
    for name in orchestrator.__all__:
        assert getattr(orchestrator, name) is getattr(api, name)
    named = set(re.findall(r"^\| `(\w+)", DOCUMENT, re.MULTILINE))
    assert {name for name in orchestrator.__all__ if name[0].islower()} <= named <= set(orchestrator.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = orchestrator.nothing


def test_the_package_costs_nothing_and_a_plan_needs_no_ray():
    code = "import sys, orchestrator; assert not {'numpy', 'pydantic', 'torch', 'ray'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    code = "import sys; from orchestrator import plan_sweep; assert not {'ray', 'mlflow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def ray_variables() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("RAY_")}


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_document_runs_a_sweep_and_leaves_signals_environment_and_ray_as_they_were(place, capfd):
    import signal

    import ray

    before, variables = (
        [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        ray_variables(),
    )
    names: dict[str, object] = {}
    exec(compile(RUN, "docs/library.md", "exec"), names)
    assert not ray.is_initialized()
    out = capfd.readouterr().out
    assert "2 of 2 trials have ended" in out
    assert out.splitlines()[-1] == "ended 2 of 2"
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    # RAY_AUTH_MODE, which a local cluster sets, would keep this process off other clusters.
    assert ray_variables() == variables
    frame = read_results("runs/my_sweep")
    assert frame["state"].tolist() == ["finished"] * 2
    assert frame["epochs"].tolist() == [2, 2]
