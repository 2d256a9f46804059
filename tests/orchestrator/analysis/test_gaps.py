"""Training-length and optimizer gaps, against brute force, planted truths and hand-made cells."""

import numpy as np
import pytest
from scipy.stats import binomtest, sem, t

from orchestrator.analysis.gaps import (
    DETECT_PP,
    MIN_POINTS,
    Pair,
    best_of_difference,
    gaps,
    pairs,
    points_for_gap,
)
from orchestrator.analysis.summary import summarise
from orchestrator.stats.best_of import best_of, best_of_weights
from orchestrator.stats.looks import Looks
from orchestrator.trials.plan import make_plan
from orchestrator.trials.records import results_of
from tests.orchestrator.analysis.test_contrasts import ended, make

LENGTHS = {"length": {f"e{n}": {"schedule.epochs": n} for n in (2, 8, 4)}}
OPTIMIZERS = {
    "optimizer": {
        "one": {"optim": {"name": "adamw", "weight_decay": 0.1}},
        "two": {"optim": {"name": "sgd", "weight_decay": 1e-4, "lr_batch_size": 2048}},
    }
}


def found(plan, error, budget=None):
    results = results_of(plan, {trial.id: ended(error(trial)) for trial in plan.trials})
    return gaps(results, summarise(results), budget=budget)


def plain(errors, budget):
    return float(best_of(errors, [budget])[0])


@pytest.mark.parametrize("budget", [3, 5, 19])
def test_the_interval_is_the_jackknifes_and_what_divergences_not_drawn_could_add(budget):
    rng = np.random.default_rng(0)
    one, base = rng.exponential(3, 20), rng.exponential(2, 20)
    one[3], base[3] = 100.0, base[7]
    estimate = best_of_difference([(1.0, one), (-1.0, base)], budget)
    without = [plain(np.delete(one, i), budget) - plain(np.delete(base, i), budget) for i in range(20)]
    error = np.sqrt(19 / 20 * np.sum((np.array(without) - np.mean(without)) ** 2))
    # At most these shares diverge: one of 20, and none of 20, by the exact one-sided 95 % bound.
    ends = [binomtest(x, 20).proportion_ci(0.90, method="exact").high for x in (1, 0)]
    up = (ends[0] ** budget - 0.05**budget) * (100 - one.min())
    down = ends[1] ** budget * (100 - base.min())
    half = t.ppf(0.975, min(19, 40 / budget)) * error
    assert estimate.high - estimate.value == pytest.approx(half + up)
    assert estimate.value - estimate.low == pytest.approx(half + down)


def test_a_gap_of_the_mean_is_a_paired_t_interval_where_nothing_more_can_diverge():
    rng = np.random.default_rng(0)
    base = rng.normal(90, 3, 30).clip(0, 100)
    one = base - rng.normal(2, 0.5, 30)
    estimate = best_of_difference([(1.0, one), (-1.0, base)], 1)
    low, high = t.interval(0.95, 29, (one - base).mean(), sem(one - base))
    # The rule of three, 1 - 0.05^(1/30), of what lies between 100 % and the best of each.
    more = 1 - 0.05 ** (1 / 30)
    assert estimate.low == pytest.approx(low - more * (100 - base.min()))
    assert estimate.high == pytest.approx(high + more * (100 - one.min()))


def bowls(rng, size):
    """Two cells over the same points: bowls of another centre and width, with a cliff, and chance."""
    x, y = rng.uniform(-1.5, 1.5, size), rng.uniform(-1, 1, size)
    one = np.where(x > 1.15, 100, 21 + 2.2 * x**2 + 0.6 * y**2 + rng.normal(0, 0.15, size))
    base = np.where(x > 1.3, 100, 20 + 1.2 * (x - 0.3) ** 2 + 0.6 * y**2 + rng.normal(0, 0.15, size))
    return one, base


@pytest.mark.parametrize("count", [16, 64])
def test_intervals_of_a_gap_cover_the_truth_where_the_plain_bootstrap_falls_short(count):
    rng, budget, num_sweeps = np.random.default_rng(count), count // 4, 400
    one, base = bowls(rng, (200_000, budget))
    truth = one.min(axis=1).mean() - base.min(axis=1).mean()
    covered, naive = 0, 0
    weights = best_of_weights(count, np.array([budget]))[0]
    for _ in range(num_sweeps):
        one, base = bowls(rng, count)
        estimate = best_of_difference([(1.0, one), (-1.0, base)], budget)
        covered += estimate.low <= truth <= estimate.high
        # The usual one: with replacement, points paired, the minimum of k taken as it comes.
        drawn = rng.integers(0, count, (200, count))
        resampled = np.sort(one[drawn], axis=1) @ weights - np.sort(base[drawn], axis=1) @ weights
        naive += np.quantile(resampled, 0.025) <= truth <= np.quantile(resampled, 0.975)
    # Standard error of a share of 400 near 0.95: 0.011.
    assert covered / num_sweeps > 0.95 - 2 * 0.011
    assert naive < covered


def test_lengths_are_measured_from_the_longest_whatever_the_levels_are_called():
    cells = {
        "length": {"u": {"schedule.epochs": 2}, "v": {"schedule.epochs": 8}, "w": {"schedule.epochs": 4}}
    }
    assert pairs(results_of(make(points=2, cells=cells), {})) == {
        Pair("training_length", "u", "v", 2, 8): ["a", "b"],
        Pair("training_length", "w", "v", 4, 8): ["a", "b"],
    }


def test_an_optimizer_may_bring_its_own_settings_and_windows():
    plan = make(
        points=2,
        arms=("x", "y"),
        cells=OPTIMIZERS,
        vary={"optim.lr": {"one": {"log_uniform": [1e-4, 1e-2]}, "two": {"log_uniform": [0.1, 3.2]}}},
    )
    assert pairs(results_of(plan, {})) == {Pair("optimizer", "two", "one", "sgd", "adamw"): ["x", "y"]}


def test_cells_that_differ_in_two_factors_make_no_gap():
    plan = make(points=1, arms=("x",), cells=LENGTHS | OPTIMIZERS)
    assert {(pair.kind, pair.cell, pair.base_cell) for pair in pairs(results_of(plan, {}))} == {
        *(("training_length", f"{short}/{o}", f"e8/{o}") for short in ("e2", "e4") for o in ("one", "two")),
        *(("optimizer", f"{length}/two", f"{length}/one") for length in ("e2", "e4", "e8")),
    }


@pytest.mark.parametrize("other", [{"batch_size": 32}, {"augment": "paper"}, {"label_smoothing": 0.0}])
def test_a_level_that_changes_something_else_too_makes_no_gap(other):
    cells = {"length": {"short": {"schedule.epochs": 2} | other, "long": {"schedule.epochs": 8}}}
    assert pairs(results_of(make(points=1, cells=cells), {})) == {}


def test_of_several_longest_trainings_the_one_most_alike_is_the_base():
    cells = {
        "length": {"s": {"schedule.epochs": 2}, "l": {"schedule.epochs": 8}},
        "warmup": {"w1": {"schedule.warmup": "10%"}, "w2": {"schedule.warmup": "20%"}},
    }
    found_pairs = pairs(results_of(make(points=1, cells=cells), {}))
    assert [(pair.cell, pair.base_cell) for pair in found_pairs] == [("s/w1", "l/w1"), ("s/w2", "l/w2")]


def test_an_arm_that_sets_the_length_itself_has_no_gap():
    plan = make(points=4, cells={"length": {"s": {"schedule.epochs": 2}, "l": {"schedule.epochs": 8}}})
    arms = {"a": {"model.depth": 2}, "b": {"model.depth": 3, "schedule.epochs": 5}}
    plan = make_plan(plan.sweep.model_copy(update={"arms": arms}), plan.infos)
    one, two = found(plan, lambda trial: 10.0 + trial.point)
    assert [gap.arm for gap in one] == ["a"]
    assert two == []


def test_planted_gaps_and_their_difference_are_found():
    plan = make(points=32, arms=("p", "c"), cells=LENGTHS)
    loss = {("p", 2): 10.0, ("c", 2): 6.0, ("p", 4): 5.0, ("c", 4): 3.0}
    rng = np.random.default_rng(0)
    noise = {trial.id: rng.normal(0, 0.1) for trial in plan.trials}
    bowl = rng.uniform(0, 7, 32)

    def error(trial):
        epochs = trial.config.schedule.epochs
        return 20 + bowl[trial.point] + loss.get((trial.arm, epochs), 0.0) + noise[trial.id]

    one, two = found(plan, error)
    assert {(gap.arm, gap.pair.level) for gap in one} == set(loss)
    for gap in one:
        truth = loss[gap.arm, gap.pair.level]
        assert (gap.budget, gap.num_points, gap.pair.base_level) == (8, 32, 8)
        assert gap.gap_pp.value == pytest.approx(truth, abs=0.2)
        assert 0 < gap.gap_pp.low < gap.gap_pp.value < gap.gap_pp.high
        assert gap.error_pct - gap.base_error_pct == pytest.approx(gap.gap_pp.value)
    assert [(c.base_arm, c.arm, c.better) for c in two] == [("p", "c", "c")] * 2
    assert [c.difference_pp.value for c in two] == pytest.approx([-4, -2], abs=0.3)


def test_every_side_has_the_same_budget_and_the_same_points():
    plan = make(
        points=20,
        arms=("p", "c"),
        cells={"length": {"s": {"schedule.epochs": 2}, "l": {"schedule.epochs": 3}}},
    )
    missing = {("s", "p"): {0, 1}, ("l", "p"): {1, 2}, ("l", "c"): {5}}
    records = {
        t.id: ended(10.0 + t.point)
        for t in plan.trials
        if t.point not in missing.get((t.cell_name, t.arm), ())
    }
    results = results_of(plan, records)
    one, (contrast,) = gaps(results, summarise(results))
    # p has points 3 to 19; c all but 5; a quarter of the 17 is 4.
    assert [(gap.arm, gap.num_points, gap.budget) for gap in one] == [("p", 17, 4), ("c", 19, 4)]
    assert (contrast.num_points, contrast.budget) == (16, 4)
    assert all(gap.gap_pp.value == 0 and gap.gap_pp.low is None for gap in one)
    assert {gap.budget for gap in gaps(results, summarise(results), budget=2)[0]} == {2}
    assert [gap.arm for gap in gaps(results, summarise(results), budget=18)[0]] == ["c"]


def test_few_points_have_a_gap_but_no_interval_and_no_verdict():
    cells = {"length": {"s": {"schedule.epochs": 2}, "l": {"schedule.epochs": 3}}}
    plan = make(points=MIN_POINTS - 1, cells=cells)
    one, two = found(plan, lambda t: 10 + t.point + (t.cell_name == "s") * (3 + (t.arm == "a") + t.point % 3))
    assert all(gap.gap_pp.low is None and gap.gap_pp.value > 0 for gap in one)
    assert two[0].better is None
    assert found(make(points=3, cells=cells), lambda t: 1.0 + t.point)[0][0].budget == 1


def test_nothing_is_told_without_results_or_where_an_edf_is_refused():
    cells = {"length": {"s": {"schedule.epochs": 2}, "l": {"schedule.epochs": 3}}}
    plan = make(points=4, arms=("a",), cells=cells)
    assert gaps(results_of(plan, {}), summarise(results_of(plan, {}))) == ([], [])
    records = {t.id: ended(10.0, "stopped" if t.point == 3 else "finished") for t in plan.trials}
    assert gaps(results_of(plan, records), summarise(results_of(plan, records))) == ([], [])


TWO = {"length": {"s": {"schedule.epochs": 2}, "l": {"schedule.epochs": 3}}}


def looked_at(points, looks, loss_pp, ended_points=None, budget=None):
    """The contrast of two arms of which the first loses so much more by the short training."""
    plan = make(points=points, arms=("p", "c"), cells=TWO)
    rng = np.random.default_rng(0)
    bowl, noise = rng.uniform(0, 7, points), {trial.id: rng.normal(0, 0.5) for trial in plan.trials}

    def error(trial):
        loses = trial.cell_name == "s" and trial.arm == "p"
        return 20 + bowl[trial.point] + loss_pp * loses + noise[trial.id]

    records = {t.id: ended(error(t)) for t in plan.trials if ended_points is None or t.point < ended_points}
    results = results_of(plan, records)
    return gaps(results, summarise(results), looks, points, budget)[1][0]


def test_a_gap_is_decided_at_looks_only_and_its_k_stays_when_the_sweep_grows():
    looks = Looks.of(16, 64)
    early = looked_at(64, looks, 3.0, ended_points=15)
    assert (early.look, early.next_look, early.better, early.num_points) == (None, 16, None, 15)
    for ended_points in (16, 24, 31):
        first = looked_at(64, looks, 3.0, ended_points)
        assert (first.look, first.next_look, first.num_points) == (16, 32, 16)
        assert (first.better, first.budget) == ("c", 4)
    last = looked_at(64, looks, 3.0)
    assert (last.look, last.next_look, last.num_points, last.budget) == (64, None, 64, 4)
    # One look has the whole level; the last of three has less, so the same points have a wider interval.
    alone = looked_at(64, Looks.once(64), 3.0).difference_pp
    assert alone == looked_at(64, None, 3.0).difference_pp
    at_k = looked_at(64, Looks.once(64), 3.0, budget=4).difference_pp
    assert last.difference_pp.value == at_k.value
    assert last.difference_pp.low < at_k.low
    assert at_k.high < last.difference_pp.high
    terms = [(1.0, np.arange(64.0))]
    wide = best_of_difference(terms, 4, 1 - looks.levels(0.05)[-1])
    assert wide.high - wide.low > best_of_difference(terms, 4).high - best_of_difference(terms, 4).low


def test_looking_often_at_equal_gaps_raises_no_false_alarm_where_the_naive_way_does():
    rng, num_sweeps, counts = np.random.default_rng(1), 1500, (16, 32, 64)
    looks = Looks.of(16, 64)
    levels = looks.levels(0.05)
    alarms = naive = 0
    for _ in range(num_sweeps):
        four = [90 + rng.normal(0, 2, 64) for _ in range(4)]

        def outside(count, level, four=four):
            signs = (1.0, -1.0, -1.0, 1.0)
            terms = [(sign, side[:count].clip(0, 100)) for sign, side in zip(signs, four, strict=True)]
            return best_of_difference(terms, 4, 1 - level).excludes_0

        alarms += any(outside(n, level) for n, level in zip(counts, levels, strict=True))
        naive += any(outside(n, 0.05) for n in counts)
    # Standard error of a share of 1,500 near 0.05: 0.0056.
    assert alarms / num_sweeps < 0.05 + 2 * 0.0056
    assert naive / num_sweeps > 0.05 + 2 * 0.0056


def test_the_points_that_find_a_gap_find_it_in_four_of_five_sweeps():
    rng, budget = np.random.default_rng(2), 4
    signs = (1.0, -1.0, -1.0, 1.0)

    def draw(count, loss_pp):
        bowl = rng.uniform(0, 4, count)
        sides = [20 + bowl + rng.normal(0, 2, count) + loss_pp * (i == 0) for i in range(4)]
        return list(zip(signs, sides, strict=True))

    needed = [points_for_gap(draw(16, 0.0), budget, Looks.once(16)) for _ in range(200)]
    number = int(np.median(needed))
    power = {
        n: np.mean([best_of_difference(draw(n, DETECT_PP), budget).excludes_0 for _ in range(400)])
        for n in (number // 2, number)
    }
    assert power[number] == pytest.approx(0.8, abs=0.1)
    assert power[number // 2] < 0.65
    # The value that was seen makes no difference.
    terms = draw(16, 0.0)
    moved = [(terms[0][0], terms[0][1] + 5.0), *terms[1:]]
    assert points_for_gap(moved, budget, Looks.once(16)) == points_for_gap(terms, budget, Looks.once(16))
    assert points_for_gap([(s, e[:15]) for s, e in terms], budget, Looks.once(16)) is None
