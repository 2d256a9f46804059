"""The shift of the best learning rate over planted records of a sweep."""

import json

import numpy as np
import pytest

from orchestrator.analysis.lr_shift import lr_shifts
from orchestrator.report.tables_shape import shift_lines, shift_rows
from orchestrator.trials.records import Record, results_of
from orchestrator.trials.trial import unique_trials
from tests.support.sweeps import TINY, epoch_row, plan_of, save_records, tiny_base

WIDTHS = (16, 32, 64)


@pytest.fixture(scope="module")
def made():
    """Two stems at three widths, eight learning rates each."""
    return plan_of(
        base=tiny_base(model=TINY, schedule={"epochs": 1}),
        cells={"width": {f"w{width}": {"model.width": width} for width in WIDTHS}},
        vary={"optim.lr": {"log_uniform": [2**-12, 2**-4]}},
        design={"kind": "sobol", "points": 8},
    )


def planted(made, shifts):
    """Valleys whose lowest point moves by so many octaves per doubling, by arm."""
    records = {}
    for trial in unique_trials(made.trials):
        doublings = np.log2(trial.config.model.width / WIDTHS[0])
        y = np.log2(trial.config.optim.lr) + 8 - shifts[trial.arm] * doublings
        row = epoch_row(1, float(2 ** (2 - 0.2 * doublings + 0.1 * y**2)), test_pct=50.0)
        records[trial.id] = Record(outcome="finished", attempts=1, rows={1: row}, busy_seconds=1.0)
    return records


def test_each_arm_has_its_own_shift(made):
    found = lr_shifts(results_of(made, planted(made, {"p": -1.0, "c": 0.0})), "width")
    assert [one.arm for one in found] == ["p", "c"]
    assert [one.shift.value for one in found] == pytest.approx([-1.0, 0.0], abs=0.011)
    assert found[0].sizes == WIDTHS
    assert found[0].best[0] > found[0].best[-1]
    assert shift_lines(found, "width")[:2] == [
        "p: the best lr falls as the width grows",
        "c: the best lr may be the same at every width",
    ]
    rows = shift_rows(found, "width")
    assert rows[0]["octaves per doubling"].startswith("-1.00 (-1.0")
    assert set(rows[0]) == {"arm", *(f"best lr at width {width}" for width in WIDTHS), "octaves per doubling"}


def test_without_results_or_sizes_the_reason_is_said(made):
    nothing = lr_shifts(results_of(made, {}), "width")
    assert {one.because for one in nothing} == {"no trial of a network with such a size has finished"}
    few = planted(made, {"p": -1.0, "c": 0.0})
    two_widths = {trial.id: few[trial.id] for trial in made.trials if trial.config.model.width in WIDTHS[:2]}
    same = lr_shifts(results_of(made, two_widths), "width")
    assert all("3 sizes" in one.because for one in same)
    assert shift_lines(same, "width")[0].startswith("p: no shift: 3 sizes with 4 errors")
    # All depths are one, in cells of three widths.
    mixed = lr_shifts(results_of(made, few), "depth")
    assert all("have depth 2 and differ in something else" in one.because for one in mixed)


def test_cells_that_differ_in_something_else_are_not_mixed(made):
    plan = plan_of(
        base=tiny_base(model=TINY, schedule={"epochs": 1}),
        cells={
            "width": {f"w{width}": {"model.width": width} for width in WIDTHS},
            "decay": {"low": {"optim.weight_decay": 0.01}, "high": {"optim.weight_decay": 0.3}},
        },
        vary={"optim.lr": {"log_uniform": [2**-12, 2**-4]}},
        design={"kind": "sobol", "points": 8},
    )
    found = lr_shifts(results_of(plan, planted(plan, {"p": -1.0, "c": 0.0})), "width")
    assert all(one.shift is None and "and differ in something else" in one.because for one in found)
    assert "low" in found[0].because
    assert "high" in found[0].because
    assert shift_rows(found, "width") == [
        {"arm": "p", "octaves per doubling": "–"},
        {"arm": "c", "octaves per doubling": "–"},
    ]


def test_the_command_tells_it(made, tmp_path, cli):
    folder = save_records(tmp_path / "small", made, planted(made, {"p": -0.5, "c": 0.5}))
    code, out, err = cli("analyse", "lr", folder)
    assert code == 0, err
    assert "c: the best lr rises with the width" in out
    code, out, _ = cli("analyse", "lr", folder, "--json")
    assert [one["shift"]["value"] for one in json.loads(out)] == pytest.approx([-0.5, 0.5], abs=0.011)
