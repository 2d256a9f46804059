"""The law of shapes from planted records of a sweep, through the command to its words."""

import json

import numpy as np
import pytest

from orchestrator.analysis.shape import shapes
from orchestrator.report.tables_shape import terminal_rows, told_lines
from orchestrator.trials.records import Record, results_of
from orchestrator.trials.trial import unique_trials
from tests.support.sweeps import TINY, epoch_row, plan_of, save_records, tiny_base

MODEL = TINY | {"heads": 1, "width": 64, "depth": 16}
DEPTHS, EPOCHS = (3, 5, 7, 10, 13, 16), (2, 8, 32)
C, S = 0.4, 0.45


def plan(sizes=None, lengths=EPOCHS):
    """Depths at three lengths of training, behind two stems."""
    cells = {
        "size": {f"d{depth}": {"model.depth": depth} for depth in sizes or DEPTHS},
        "length": {f"e{epochs}": {"schedule.epochs": epochs} for epochs in lengths},
    }
    return plan_of(
        base=tiny_base(model=MODEL, schedule={"warmup": "10%"}),
        arms={"p": {"model.stem": "patchify"}, "c": {"model.stem": "conv"}},
        cells=cells,
        design={"kind": "sobol", "points": 1},
    )


def num_train(made):
    return lambda trial: made.infos[trial.config.data].sizes["train"]


def compute_of(made, trial):
    return made.cost(trial).model.flops_g * trial.config.schedule.epochs * num_train(made)(trial)


def law(made, trial, unit):
    """An error in % by the formula of the paper, of the depth in 16 blocks."""
    t, x = compute_of(made, trial) / unit, trial.config.model.num_blocks / 16
    a = b = C / S / 2
    beta = 0.04 * a / (b * 0.4 ** (a + b))
    return 10 * (0.1 + 0.06 * t**-C + 0.04 * x**-a + beta * x**b * t**-C)


def ended(made, error):
    found = {}
    for trial in unique_trials(made.trials):
        epochs = trial.config.schedule.epochs
        row = epoch_row(epochs, error(trial), test_pct=50.0)
        found[trial.id] = Record(outcome="finished", attempts=1, rows={epochs: row}, busy_seconds=1.0)
    return found


def fitted(made, records, ahead=4.0):
    return shapes(results_of(made, records), made.cost, num_train(made), ahead)


@pytest.fixture(scope="module")
def planted():
    made = plan()
    unit = max(compute_of(made, trial) for trial in made.trials)
    return made, ended(made, lambda trial: law(made, trial, unit)), unit


def test_the_exponent_and_the_best_size_of_a_planted_law_are_found(planted):
    made, records, unit = planted
    found = fitted(made, records)
    assert found.largest == pytest.approx(unit)
    assert found.reference == pytest.approx(4 * unit)
    for one in found.arms:
        growth = one.growth["depth"]
        assert growth.exponent.value == pytest.approx(S, rel=0.02)
        # 0.4 of 16 blocks at the unit, and growing by the exponent.
        assert growth.best.value == pytest.approx(0.4 * 16 * 4**S, rel=0.02)
        assert one.is_believed
    rows = terminal_rows(found)
    assert [(row["arm"], row["dimension"], row["runs"]) for row in rows] == [
        ("p", "depth", 18),
        ("c", "depth", 18),
    ]
    assert all(row["exponent"].startswith("0.45 (0.4") for row in rows)


def test_noise_leaves_an_exponent_untold(planted):
    made, records, _ = planted
    noisy, rng = {}, np.random.default_rng(0)
    for name, record in records.items():
        [(epoch, row)] = record.rows.items()
        # 2 %, as seeds would.
        wrong = epoch_row(epoch, row.val_error_pct * (1 + 0.02 * rng.standard_normal()), test_pct=50.0)
        noisy[name] = Record(outcome="finished", attempts=1, rows={epoch: wrong}, busy_seconds=1.0)
    found = fitted(made, noisy)
    assert all(row["exponent"].startswith("not told (") for row in terminal_rows(found))
    assert any("factor of 2" in line for line in told_lines(found))


def test_an_mlp_that_follows_the_width_is_no_dimension_of_its_own():
    cells = {
        "size": {f"w{width}": {"model.width": width} for width in (16, 24, 32, 48, 64)},
        "length": {f"e{epochs}": {"schedule.epochs": epochs} for epochs in EPOCHS},
    }
    made = plan_of(
        base=tiny_base(model=MODEL, schedule={"warmup": "10%"}),
        cells=cells,
        design={"kind": "sobol", "points": 1},
    )
    found = fitted(made, ended(made, lambda trial: 5.0 + trial.config.model.width / 64))
    assert [list(one.growth) for one in found.arms] == [["width"], ["width"]]


def test_what_gives_no_law_is_said():
    def reasons(**sizes):
        made = plan(**sizes)
        return {one.arm: one.because for one in fitted(made, ended(made, lambda trial: 5.0)).arms}

    assert (
        "4 sizes of a dimension or more; there are 1 of width, 2 of depth, 1 of mlp"
        in reasons(sizes=(4, 5))["p"]
    )
    assert "3 lengths of training or more (schedule.epochs); there are 1" in reasons(lengths=(2,))["c"]
    made = plan()
    nothing = fitted(made, {})
    assert nothing.p_shared is None
    assert told_lines(nothing) == ["p: no law: no trial has finished", "c: no law: no trial has finished"]


def test_the_command_tells_it_and_refuses_what_is_no_factor(planted, tmp_path, cli):
    made, records, unit = planted
    folder = save_records(tmp_path / "small", made, records)
    code, out, err = cli("analyse", "shape", folder)
    assert code == 0, err
    assert "depth" in out
    assert "the law misses its own runs by" in out
    code, out, _ = cli("analyse", "shape", folder, "--json", "--ahead", "1")
    assert code == 0
    told = json.loads(out)
    assert told["reference"] == pytest.approx(unit)
    assert told["arms"][0]["growth"]["depth"]["exponent"]["value"] == pytest.approx(S, rel=0.02)
    code, _, err = cli("analyse", "shape", folder, "--ahead", "0")
    assert code == 2
    assert "must be above 0" in err
