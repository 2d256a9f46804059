"""Sweeps over networks of a user's file: running one runs the file, reading its results does not."""

import shutil
from pathlib import Path

import pytest
import yaml

from orchestrator.evidence.seal import belongs, evidence_files
from orchestrator.execution import session
from orchestrator.store.folder import functions_of, open_folder, save_question
from orchestrator.store.history import past_samples
from orchestrator.store.journal import FolderError, Writer
from orchestrator.sweep.document import SweepError
from orchestrator.sweep.load import load_sweep
from orchestrator.trials.events import EpochDone
from orchestrator.trials.plan import make_plan
from orchestrator.trials.sweep_file import SweepFile
from orchestrator.trials.trial import Plan, Suggestion
from tests.support.sweeps import base_tree, epoch_row, plan_with_data, sweep_tree
from trainables.config import TrainConfig
from trainables.io import code
from trainables.io.code import trusting_code
from trainables.models import base, python_model
from trainables.profiling import footprint
from trainables.profiling.dry_run import Request, reply_to

SOURCE = """
import pathlib

from torch import nn

pathlib.Path(__file__).with_name("has_run").touch()


def make(num_classes, width):
    pooled = nn.Sequential(nn.Conv2d(3, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return pooled.append(nn.Linear(width, num_classes))
"""


def forget() -> None:
    """Makes this process one that has run no code and counted no cost."""
    code._trusted.clear()
    code._received.clear()
    code._module.cache_clear()
    python_model._costs.clear()
    base._counted.cache_clear()
    footprint._counted.cache_clear()


@pytest.fixture
def file(tmp_path, monkeypatch) -> Path:
    """A sweep file beside the file of its networks, whose widths vary and may not cost too much."""
    monkeypatch.setattr(code, "_trusted", {})
    monkeypatch.setattr(python_model, "_costs", {})
    forget()
    (tmp_path / "nets.py").write_text(SOURCE)
    tree = sweep_tree(
        base=base_tree(model=None),
        arms={"own": {"model": {"family": "python", "build": "nets.py:make", "image_size": 16}}},
        where=["flops_g < 0.00003"],
    )
    tree["vary"]["model.arguments.width"] = {"int_range": [1, 9]}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(tree))
    return tmp_path / "own.yaml"


def saved(file: Path) -> tuple[Plan, Path]:
    plan, folder = plan_with_data(load_sweep(file)), file.parent / "runs"
    folder.mkdir()
    save_question(folder, plan, declare=False)
    return plan, folder


@pytest.mark.parametrize(("where", "key"), [(["flops_g < 1"], "where"), ([], "vary.model")])
def test_networks_that_cannot_have_the_classes_of_the_data_are_faults_of_the_sweep_file(file, where, key):
    few = "    if num_classes > 2: raise RuntimeError('too many')\n    return"
    (file.parent / "nets.py").write_text(SOURCE.replace("    return", few))
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"where": where}))
    with pytest.raises(SweepError) as caught:
        SweepFile(file).plan()
    [fault] = str(caught.value).splitlines()[1:]
    assert f"{key}: cannot be built: RuntimeError: too many (line " in fault


def test_results_are_read_without_the_file_and_run_none_of_it(file):
    plan, folder = saved(file)
    costs = [plan.cost(trial) for trial in plan.trials]
    assert 0 < len(costs) < 4
    forget()
    for name in ("has_run", "nets.py"):
        (file.parent / name).unlink()
    again = open_folder(folder).plan
    assert [trial.id for trial in again.trials] == [trial.id for trial in plan.trials]
    assert [again.cost(trial) for trial in again.trials] == costs
    (file.parent / "nets.py").write_text(SOURCE)
    open_folder(folder)
    assert not (file.parent / "has_run").exists()


def test_costs_are_on_record_although_nobody_has_asked_for_them(file):
    tree = yaml.safe_load(file.read_text())
    del tree["where"]
    file.write_text(yaml.safe_dump(tree))
    _, folder = saved(file)
    forget()
    again = open_folder(folder).plan
    assert all(again.cost(trial).model.flops for trial in again.trials)


def test_going_on_runs_the_copy_whatever_becomes_of_the_file(file):
    plan, folder = saved(file)
    assert [path.read_text() for path in (folder / "code").iterdir()] == [SOURCE]
    for change in (lambda path: path.write_text("raise SystemExit"), Path.unlink):
        change(file.parent / "nets.py")
        forget()
        again = open_folder(folder, to_run=True).plan
        assert [trial.id for trial in again.trials] == [trial.id for trial in plan.trials]
        again.trials[0].config.model.network(10)
        # As a worker and a preflight read it.
        forget()
        with trusting_code(folder):
            TrainConfig.model_validate_json(plan.trials[0].config.model_dump_json()).model.network(10)
        forget()
        content = Request(plan.trials[0].config, results=str(folder)).plain()
        assert Request.parse(content).config.model.network(10)
        forget()
        assert load_sweep(folder / "sweep.yaml")


def test_a_copy_belongs_to_the_evidence(file):
    _, folder = saved(file)
    [copy] = (folder / "code").iterdir()
    (folder / "code" / "notes.py").touch()
    assert evidence_files(folder) == [f"code/{copy.name}", "record.json", "sweep.yaml"]
    assert belongs(f"code/{copy.name}")
    assert not belongs("code/notes.py")


def test_a_request_that_fails_where_it_is_tried_is_a_fault_of_the_run(file):
    plan, _ = saved(file)
    content = Request(plan.trials[0].config).plain()
    forget()
    (file.parent / "nets.py").unlink()
    reply = reply_to(content)
    assert reply.setting == "model"
    assert "has changed or is gone" in reply.rule


def test_a_machine_that_does_not_reach_the_file_runs_what_it_is_given(file):
    plan, _ = saved(file)
    config = plan.trials[0].config
    given = {digest: f.source().decode("latin-1") for digest, f in functions_of(plan.trials).items()}
    assert len(given) == 1
    without, content = Request(config).plain(), Request(config, code=given).plain()
    (file.parent / "nets.py").unlink()
    forget()
    assert "has changed or is gone" in reply_to(without).rule
    forget()
    assert reply_to(content).rule == ""
    # What is given is not run because it is there: the digest decides, and trust.
    forget()
    code.receive(dict.fromkeys(given, b"print()"))
    assert "has changed or is gone" in reply_to(without).rule


def test_a_plan_takes_no_speeds_from_sweeps_whose_code_it_does_not_run(file):
    plan, folder = saved(file)
    writer = Writer(folder)
    writer.append([EpochDone(trial=plan.trials[0].id, attempt=1, row=epoch_row())])
    writer.close()
    assert len(past_samples(folder.parent)[0]) == 1
    forget()
    (file.parent / "has_run").unlink()
    samples, [notice] = past_samples(folder.parent)
    assert samples == []
    assert notice.startswith(f"skipped: {folder}: ")
    assert not (file.parent / "has_run").exists()


def test_a_round_of_a_search_is_on_record_before_it_is_asked_for(file, monkeypatch):
    tree = yaml.safe_load(file.read_text()) | {"search": {"round": 2}}
    file.write_text(yaml.safe_dump(tree))
    plan = SweepFile(file).plan()
    folder = file.parent / "runs"
    save_question(folder, make_plan(plan.sweep, plan.infos, ()), declare=False)
    known = open_folder(folder, to_run=True)
    suggestion = Suggestion("all", "own", 2, "tpe", {"optim.lr": 0.5, "model.arguments.width": 0.2})
    monkeypatch.setattr(session, "next_round", lambda *_: [suggestion])
    longer = session._next_round(known)
    assert longer.suggestions == (suggestion,)
    forget()
    again = open_folder(folder).plan
    assert [again.cost(trial) for trial in again.trials] == [longer.cost(trial) for trial in longer.trials]


def test_going_on_without_a_copy_runs_the_file_if_it_is_still_the_same(file):
    _, folder = saved(file)
    shutil.rmtree(folder / "code")
    forget()
    (file.parent / "has_run").unlink()
    open_folder(folder, to_run=True)
    assert (file.parent / "has_run").exists()
    forget()
    (file.parent / "nets.py").write_text(SOURCE + "\n")
    with pytest.raises(FolderError, match=r"nets\.py: has changed or is gone"):
        open_folder(folder, to_run=True)


def test_a_record_that_tells_another_cost_is_refused(file):
    _, folder = saved(file)
    record = folder / "record.json"
    record.write_text(record.read_text().replace('"params": ', '"params": 1'))
    with pytest.raises(FolderError, match="another cost is recorded"):
        open_folder(folder)


def test_memory_is_no_constraint_of_it(file):
    tree = yaml.safe_load(file.read_text()) | {"where": ["memory_gib < 1"]}
    file.write_text(yaml.safe_dump(tree))
    with pytest.raises(SweepError, match="memory_gib is not known of models of family python"):
        load_sweep(file)
