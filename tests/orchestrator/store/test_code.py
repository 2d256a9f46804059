"""Sweeps over networks of a user's file: running one runs the file, reading its results does not."""

from pathlib import Path

import pytest
import yaml

from orchestrator.store.folder import open_folder, save_question
from orchestrator.store.journal import FolderError
from orchestrator.sweep.document import SweepError
from orchestrator.sweep.load import load_sweep
from orchestrator.trials.trial import Plan
from tests.support.sweeps import base_tree, plan_with_data, sweep_tree
from trainables.io import code
from trainables.models import python_model

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
    code._module.cache_clear()
    python_model._costs.clear()


@pytest.fixture
def file(tmp_path, monkeypatch) -> Path:
    """A sweep file beside the file of its networks, whose widths vary and may not cost too much."""
    monkeypatch.setattr(code, "_trusted", set())
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
    save_question(folder, plan)
    return plan, folder


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


def test_going_on_runs_the_file_if_it_is_still_the_same(file):
    _, folder = saved(file)
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
