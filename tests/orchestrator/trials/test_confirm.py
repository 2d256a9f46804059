"""Confirmation and noise runs: chosen once, with seeds that had no part in the choice."""

import pytest

from orchestrator.store.folder import load_confirmation, open_folder, save_confirmation, save_question
from orchestrator.store.journal import FolderError
from orchestrator.trials.confirm import Confirmation, choose, with_confirmation
from orchestrator.trials.records import Record, Result
from orchestrator.trials.trial import Plan
from tests.support.sweeps import epoch_row, plan_of


def ended(plan: Plan, error_pct: dict[tuple[str, int, int], float | None]) -> list[Result]:
    """Every trial finished with the error given for (arm, point, replicate); None is diverged."""
    results = []
    for trial in plan.trials:
        error = error_pct[trial.arm, trial.point, trial.replicate]
        row = epoch_row(1, error or 90.0, test_pct=error)
        record = Record(outcome="diverged" if error is None else "finished", rows={1: row})
        results.append(Result(trial, record))
    return results


def test_the_lowest_mean_over_replicates_is_chosen_and_no_diverged_point():
    plan = plan_of(replicates=2)
    errors = {("p", point, r): 10.0 + point for point in range(4) for r in range(2)}
    errors |= {("c", point, r): None for point in range(4) for r in range(2)}
    # The luckiest single run belongs to a point that is worse on average: (1 + 30) / 2 against 11 and 12.
    errors |= {("p", 3, 0): 1.0, ("p", 3, 1): 30.0, ("c", 2, 0): 50.0, ("c", 2, 1): 60.0}
    chosen = choose(ended(plan, errors), top=2, seeds=5)
    assert chosen.points == {("all", "p"): (0, 1), ("all", "c"): (2,)}


def test_confirmation_runs_have_the_settings_of_their_point_and_seeds_of_their_own():
    plan = plan_of(replicates=2)
    longer = with_confirmation(plan, Confirmation({("all", "p"): (3, 1)}, seeds=3))
    added = longer.trials[len(plan.trials) :]
    assert longer.trials[: len(plan.trials)] == plan.trials
    assert {(trial.arm, trial.point, trial.role) for trial in added} == {
        ("p", 3, "confirm"),
        ("p", 1, "confirm"),
    }
    assert len(added) == 2 * 3
    for trial in added:
        origin = next(t for t in plan.trials if (t.arm, t.point, t.replicate) == (trial.arm, trial.point, 0))
        assert trial.values == origin.values
        assert trial.config.model_copy(update={"seeds": origin.config.seeds}) == origin.config
    seeds = [
        seed for trial in longer.trials for seed in dict(trial.config.seeds).values() if trial.point in (1, 3)
    ]
    # Two arms share the sweep's seeds, 2 replicates x 3 streams x 2 points; the six new runs share none.
    assert len(set(seeds)) == 2 * 3 * 2 + 6 * 3
    assert len({trial.id for trial in longer.trials}) == len(longer.trials)


def test_what_was_chosen_is_kept_and_is_part_of_the_folders_plan(tmp_path):
    plan = plan_of()
    save_question(tmp_path, plan)
    assert load_confirmation(tmp_path) is None
    confirmation = Confirmation({("all", "p"): (0,), ("all", "c"): (2, 1)}, seeds=2)
    save_confirmation(tmp_path, confirmation)
    assert load_confirmation(tmp_path) == confirmation
    assert open_folder(tmp_path).plan.trials == with_confirmation(plan, confirmation).trials
    (tmp_path / "confirm.json").write_text('{"seeds": 2}')
    with pytest.raises(FolderError, match=r"confirm\.json is damaged"):
        open_folder(tmp_path)


def test_noise_runs_change_one_stream_each_and_leave_the_draws_alone():
    plain, noisy = plan_of(), plan_of(noise={"points": 2, "seeds": 3})
    draws = [trial for trial in noisy.trials if trial.role == "sweep"]
    assert draws == list(plain.trials)
    extra = [trial for trial in noisy.trials if trial.role != "sweep"]
    assert len(extra) == 2 * 2 * 3 * (3 - 1)
    for trial in extra:
        origin = next(t for t in draws if (t.arm, t.point) == (trial.arm, trial.point))
        changed = {
            stream
            for stream, seed in dict(trial.config.seeds).items()
            if seed != dict(origin.config.seeds)[stream]
        }
        assert changed == {trial.role.removeprefix("noise_")}
    # Arms are paired in their noise, too.
    by_arm = [
        [(trial.point, trial.role, trial.config.seeds) for trial in extra if trial.arm == arm] for arm in "pc"
    ]
    assert by_arm[0] == by_arm[1]
