"""Designs that name what they must detect: the number of points, how it is kept, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.analysis.settles import how_it_grows, what_points_settle
from orchestrator.stats.looks import Looks
from orchestrator.stats.power import points_needed
from orchestrator.store import folder as folder_module
from orchestrator.store.folder import merge_points, open_folder, save_question
from orchestrator.sweep import sizing
from orchestrator.sweep.document import Override, SweepError
from orchestrator.sweep.load import build_sweep, load_sweep
from orchestrator.trials.plan import make_plan
from tests.support.sweeps import plan_from, sweep_tree


def tree(design: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return sweep_tree(design={"kind": "sobol"} | design, **changes)


def design_of(**design: Any) -> Any:
    return build_sweep(tree(design), "test").design


@pytest.mark.parametrize("kind", ["sobol", "random"])
def test_what_is_to_be_detected_chooses_the_points_of_the_first_verdict(kind):
    design = build_sweep(sweep_tree(design={"kind": kind, "detect": 0.15, "power": 0.9}), "test").design
    level = Looks.of(design.points).levels(0.05)[0]
    assert design.points == points_needed("area_common", 0.15, 0.9, lambda count: level)
    assert (design.detect, design.chosen_for.points) == (None, design.points)
    assert design.points > design_of(detect=0.15).points


def test_the_measure_is_that_of_the_primary_contrast_and_the_level_that_of_the_looks():
    by_error = build_sweep(tree({"detect": 2.0}, primary={"measure": "error"}), "test").design
    assert by_error.points == points_needed("error", 2.0, level=lambda count: sizing.first_level(count, None))
    # Of three looks the first has less of the 5 % than the only one.
    assert design_of(detect=0.15, max_points=160).points >= design_of(detect=0.15, max_points=40).points


def test_the_trials_are_those_of_a_file_that_names_the_number():
    chosen = plan_from(tree({"detect": 0.2}))
    named = plan_from(tree({"points": chosen.sweep.design.points}))
    assert [trial.id for trial in chosen.trials] == [trial.id for trial in named.trials]


def test_a_plan_says_the_number_and_the_looks():
    plan = plan_from(tree({"detect": 0.15}))
    points = plan.sweep.design.points
    said, looks = how_it_grows(plan)
    assert said == f"detect 0.15 at power 0.8: {points} points"
    assert looks.startswith(f"Looks at {points}, {2 * points} and {4 * points} points: ")
    # An extended sweep has the looks that it declared, and their levels.
    extended, declared = plan_from(tree({"points": 64, "max_points": 64})), Looks.of(16, 64)
    assert how_it_grows(extended) == []
    assert how_it_grows(extended, declared)[0].startswith("Looks at 16, 32 and 64 points: ")
    (alone,), (later,) = what_points_settle(extended), what_points_settle(extended, declared)
    assert alone.partition(" in robustness")[0] < later.partition(" in robustness")[0]
    assert how_it_grows(plan_from(tree({"points": 8, "max_points": 8}))) == []
    assert how_it_grows(plan_from(tree({"points": 8, "max_points": 12})))[0].startswith("Looks at 8 and 12 ")


@pytest.mark.parametrize(
    ("design", "changes", "fault"),
    [
        ({}, {}, "design.detect: is missing, and points as well: set one of the two"),
        ({"points": 8, "detect": 0.1}, {}, "design.detect: set either points or detect, which chooses"),
        ({"points": 8, "power": 0.9}, {}, "design.power: is the power to find a difference: set detect"),
        ({"detect": 0.37}, {}, "design.detect: must be below 0.37, the largest difference in area_common"),
        ({"detect": 4}, {"primary": {"measure": "error"}}, "design.detect: must be below 4, the largest"),
        ({"detect": 0.001}, {}, "design.detect: needs more than 4096 points (got 0.001)"),
        ({"detect": 0.15, "max_points": 16}, {}, "design.detect: needs 32 points, and max_points is 16"),
        ({"detect": 0}, {}, "design.detect: must be greater than 0 (got 0)"),
        ({"detect": 0.15, "power": 0.3}, {}, "design.power: must be greater than or equal to 0.5"),
        ({"detect": 0.15}, {"search": {}}, "design.detect: a search compares no arms, so there is no"),
        ({"detect": 0.15}, {"arms": {"p": {}}}, "design.detect: there is one arm, so there is no"),
        ({"detect": 0.15, "kind": "latin"}, {}, "design.detect: unknown key here: it belongs to"),
        ({"kind": "latin"}, {}, "design.points: is missing"),
        (
            {"detect": 0.15, "chosen_for": {"detect": 0.15, "power": 0.8, "points": 8}},
            {},
            "design.chosen_for: is of a number of points: set points, not detect",
        ),
    ],
)
def test_what_makes_no_number_is_refused_at_its_place(design, changes, fault):
    with pytest.raises(SweepError) as raised:
        build_sweep(tree(design, **changes), "test")
    assert fault in str(raised.value)


def test_other_faults_are_told_with_it():
    with pytest.raises(SweepError) as raised:
        build_sweep(tree({"detect": 0.9}, where=["batch_sise > 0"]), "test")
    assert "design.detect: must be below" in str(raised.value)
    assert "batch_sise" in str(raised.value)


def test_the_last_word_on_the_number_counts(tmp_path: Path):
    """A child file, `--set` and `--points` replace what says the number in another way."""
    parent, child = tmp_path / "parent.yaml", tmp_path / "child.yaml"
    parent.write_text(yaml.safe_dump(tree({"points": 8})))
    child.write_text("extends: parent.yaml\ndesign: {detect: 0.2}\n")
    by_child = load_sweep(child).design
    assert by_child.chosen_for.detect == 0.2
    by_set = load_sweep(child, [Override.parse("design.points=8")]).design
    by_points = load_sweep(child, points=8).design
    for design in (by_set, by_points):
        assert (design.points, design.detect, design.chosen_for) == (8, None, None)
    again = load_sweep(parent, [Override.parse("design.detect=0.2")]).design
    assert (again.points, again.chosen_for) == (by_child.points, by_child.chosen_for)


def test_a_folder_keeps_its_number_whatever_a_later_version_would_choose(tmp_path, monkeypatch):
    plan = plan_from(tree({"detect": 0.2}))
    points = plan.sweep.design.points
    save_question(tmp_path, plan)
    kept = yaml.safe_load((tmp_path / "sweep.yaml").read_text())["design"]
    assert kept == {
        "kind": "sobol",
        "points": points,
        "chosen_for": {"detect": 0.2, "power": 0.8, "points": points},
    }
    for other in (points + 16, points - 8):
        monkeypatch.setattr(sizing, "points_needed", lambda *_, other=other: other)
        later = build_sweep(tree({"detect": 0.2}), "test")
        assert later.design.points == other
        assert merge_points(tmp_path, later).design == open_folder(tmp_path).plan.sweep.design
        assert open_folder(tmp_path).plan.trials == plan.trials
        # Another wish is another number, but a sweep does not shrink.
        wish = build_sweep(tree({"detect": 0.1}), "test")
        assert merge_points(tmp_path, wish).design.points == max(points, other)
    # By hand it grows, and stays so for the same file.
    grown = merge_points(tmp_path, build_sweep(tree({"points": 64}), "test"))
    save_question(tmp_path, make_plan(grown, plan.infos, []))
    assert merge_points(tmp_path, later).design.points == 64


def test_a_changed_wish_is_no_other_question(tmp_path):
    assert folder_module._only_grows("design.chosen_for.detect", 0.1, 0.2)
    assert folder_module._only_grows("design.max_points", 64, None)
