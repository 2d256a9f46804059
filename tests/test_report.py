"""The report: complete, self-contained, escaped, the same bytes for the same input, at every stage."""

import csv
import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from orchestrator import figures
from orchestrator.plan import data_configs, make_plan
from orchestrator.report import answer, results_rows, summary_table, write_report
from orchestrator.results import RULES, Record, results_of
from orchestrator.stats import by_arm, contrasts, summarise
from orchestrator.sweep import build_sweep
from trainables.base import Epoch
from trainables.config import leaves


def fabricated(plan, error=lambda trial: 10.0 + trial.point + 20 * (trial.arm == "vit_p")):
    """Every trial finished, at an error that follows from the trial."""
    records = {}
    for trial in plan.trials:
        final, epochs = error(trial), trial.config.schedule.epochs
        rows = {
            n: Epoch(n, 19 * n, 1e-3, 1.0, 1.0, value, value, 1.0, 0.1, final + 0.5 if n == epochs else None)
            for n in range(1, epochs + 1)
            for value in [final + 30 * (1 - n / epochs)]
        }
        records[trial.id] = Record("finished", "", 1, rows, busy_seconds=12.5)
    return records


def make(points=8, **keys):
    tree = {
        "name": "test",
        "question": "Which stem is more forgiving?",
        "base": {
            "model": {"family": "vit", "size": "nano", "image_size": 32, "patch_size": 8},
            "data": "digits",
            "schedule": {"epochs": 3},
            "batch_size": 64,
        },
        "arms": {"vit_p": {"model.stem": "patchify"}, "vit_c": {"model.stem": "conv"}},
        "cells": {
            "optimizer": {
                "adamw": {"optim.name": "adamw"},
                "sgd": {"optim.name": "sgd", "optim.lr_batch_size": 2048},
            }
        },
        "vary": {
            "optim.lr": {
                "adamw": {"log_uniform": [2.5e-4, 8e-3]},
                "sgd": {"log_uniform": [0.1, 3.2]},
            },
            "optim.weight_decay": {"uniform": [0.0, 0.1]},
        },
        "design": {"kind": "sobol", "points": points, "seed": 0},
        "primary": {"measure": "area_under_delta_edf", "cell": "adamw"},
    }
    sweep = build_sweep(tree | keys, "test")
    return make_plan(sweep, {config: config.info() for config in data_configs(sweep)})


def read(folder):
    """All files below a folder by relative path."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


class Tags(HTMLParser):
    """The tags of a page with their attributes, and which of those left open were not closed."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.wrong = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br", "link", "img", "hr"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append((tag, self.getpos()))


def test_the_same_input_gives_the_same_bytes(tmp_path):
    plan = make(points=2)
    records = fabricated(plan)
    for name in ("a", "b"):
        write_report(plan, records, tmp_path / name, {"torch": "2.13.0"})
    assert read(tmp_path / "a") == read(tmp_path / "b")


def test_the_page_is_well_formed_and_loads_nothing(tmp_path):
    plan = make(points=2)
    html = write_report(plan, fabricated(plan), tmp_path, {}).read_text()
    page = Tags(html)
    assert (page.wrong, page.open) == ([], [])
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "img", "iframe", "object", "embed"}
    for tag, attributes in page.tags:
        for key in ("src", "href", "xlink:href", "data", "action"):
            # A link is followed by people only; all else lies within the page, a colour bar as data.
            assert tag == "a" or attributes.get(key, "#").startswith(("#", "data:image/png;base64,"))
    assert "@import" not in html
    assert all(target.startswith("#") for target in re.findall(r"url\(\s*([^)]*)", html))


def test_figures_are_files_of_their_own_and_in_the_page(tmp_path):
    plan = make(points=2)
    html = write_report(plan, fabricated(plan), tmp_path, {}).read_text()
    written = sorted(p.stem for p in (tmp_path / "figures").iterdir())
    # Per cell an EDF, two parameters, a plane and curves; one figure of differences.
    assert len(written) == 2 * 5 + 1
    for path in (tmp_path / "figures").iterdir():
        ElementTree.fromstring(path.read_text())
    assert html.count("<svg") == len(written)
    assert len(re.findall(r'id="edf~adamw"', html)) == 1


def test_text_from_outside_is_escaped(tmp_path):
    evil = "<script>alert('&')</script>"
    plan = make(
        points=1,
        question=evil,
        vary={"augment.name": {"choice": ["light"]}, "optim.lr": {"uniform": [0.01, 0.1]},
              "optim.weight_decay": {"choice": [0.1]}},
    )  # fmt: skip
    records = fabricated(plan)
    records[plan.trials[0].id] = Record("failed", evil, 2)
    html = write_report(plan, records, tmp_path, {"host": evil}).read_text()
    assert "<script" not in html
    assert html.count("&lt;script&gt;") >= 3


def test_a_dollar_sign_in_a_value_is_drawn_as_it_is():
    plan = make(points=2)
    arms = by_arm(results_of(plan, fabricated(plan)), "adamw")
    domain = plan.sweep.domains("vit_p", plan.sweep.all_cells()[0])["optim.lr"]
    svg = figures.to_svg(figures.error_over_parameter(arms, "optim.lr", {"vit_p": domain}))
    assert "$" not in svg
    named = {f"$x_{i}$ <b>": results for i, results in enumerate(arms.values())}
    svg = figures.to_svg(figures.curves(named))
    assert "$x_0$ &lt;b&gt;" in svg


def test_every_trial_that_did_not_finish_is_listed_with_its_cause(tmp_path):
    plan = make(points=3)
    records = fabricated(plan)
    outcomes = sorted(set(RULES) - {"finished"})
    causes = {}
    for trial, outcome in zip(plan.trials, outcomes, strict=False):
        causes[trial.id] = f"cause of {trial.id}"
        records[trial.id].outcome, records[trial.id].detail = outcome, causes[trial.id]
    html = write_report(plan, records, tmp_path, {}).read_text()
    assert all(f"<code>{trial_id}</code>" in html and cause in html for trial_id, cause in causes.items())
    document = json.loads((tmp_path / "summary.json").read_text())
    assert document["states"] == {
        "finished": len(plan.trials) - len(outcomes),
        **dict.fromkeys(outcomes, 1),
    }
    assert not document["partial"]


def test_a_partial_sweep_says_what_is_missing(tmp_path):
    plan = make(points=4)
    records = fabricated(plan)
    for trial in plan.trials[-5:]:
        del records[trial.id]
    first = plan.trials[0]
    records[first.id] = Record(None, "lost: node 3 went away", 1, {}, 3.0, running=True)
    html = write_report(plan, records, tmp_path, {}).read_text()
    assert f"{len(plan.trials) - 6} of {len(plan.trials)} trials have ended" in html
    assert "lost: node 3 went away" in html
    document = json.loads((tmp_path / "summary.json").read_text())
    assert document["partial"]
    assert document["states"] == {"finished": 10, "missing": 5, "running": 1}
    rows = results_rows(plan, records)
    assert len(rows) == len(plan.trials)
    assert [row["state"] for row in rows].count("missing") == 5


def constant(token):
    raise AssertionError(f"{token} is no JSON")


@pytest.mark.parametrize(
    "stage", ["nothing", "one trial", "all diverged", "one arm", "one point", "no space"]
)
def test_a_report_is_written_at_every_stage(tmp_path, stage):
    keys = {
        "one arm": {"arms": {"vit_p": {}}},
        "one point": {"points": 1},
        "no space": {
            "points": 1,
            "vary": {},
            "base": {
                "model": "vit_c_1gf", "data": "digits", "schedule.epochs": 2,
                "optim": {"lr": 0.1, "weight_decay": 0.1},
            },
            "arms": {"a": {"model.image_size": 32}, "b": {"model.image_size": 64}},
        },
    }.get(stage, {})  # fmt: skip
    plan = make(**{"points": 3} | keys)
    records = {} if stage == "nothing" else fabricated(plan)
    if stage == "one trial":
        records = {plan.trials[0].id: records[plan.trials[0].id]}
    if stage == "all diverged":
        for record in records.values():
            record.outcome, record.rows = "diverged", {}
    path = write_report(plan, records, tmp_path, {"bad": float("nan")})
    page = Tags(path.read_text())
    assert (page.wrong, page.open) == ([], [])
    document = json.loads((tmp_path / "summary.json").read_text(), parse_constant=constant)
    assert document["details"]["bad"] is None
    assert len(summary_table(plan, records)) == len(document["arms"])


def test_summary_json_holds_the_numbers_of_the_statistics(tmp_path):
    plan = make()
    records = fabricated(plan)
    write_report(plan, records, tmp_path, {})
    document = json.loads((tmp_path / "summary.json").read_text(), parse_constant=constant)
    summaries = summarise(results_of(plan, records))
    for given, summary in zip(document["arms"], summaries, strict=True):
        assert (given["cell"], given["arm"]) == (summary.cell, summary.arm)
        assert given["best"]["trial"] == summary.best.trial.id
        assert given["measures"]["f2"]["value"] == summary.measures["f2"].value
    assert sum(contrast["primary"] for contrast in document["contrasts"]) == 1
    assert document["data"][0]["sizes"] == {"train": 1199, "val": 299, "test": 299}
    # 32 trials of 3 epochs and 12.5 seconds.
    assert document["cost"]["trial_seconds"] == 400
    assert document["cost"]["epochs"] == 96


def test_arms_that_coincide_are_paid_for_once(tmp_path):
    plan = make(points=2, arms={"vit_p": {}, "same": {}})
    write_report(plan, fabricated(plan, lambda trial: 10.0), tmp_path, {})
    document = json.loads((tmp_path / "summary.json").read_text())
    assert document["cost"]["trial_seconds"] == 12.5 * len(plan.trials) / 2
    assert document["states"] == {"finished": len(plan.trials) // 2}


def test_rows_are_flat_complete_and_in_the_order_of_the_plan(tmp_path):
    plan = make(points=2)
    records = fabricated(plan)
    records[plan.trials[1].id].outcome = "diverged"
    rows = results_rows(plan, records)
    assert [row["trial"] for row in rows] == [trial.id for trial in plan.trials]
    assert len({tuple(row) for row in rows}) == 1
    for row, trial in zip(rows, plan.trials, strict=True):
        assert row["cell.optimizer"] == trial.cell_name
        assert row["optim.lr"] == trial.values["optim.lr"] == row["config.optim.lr"]
        assert {f"config.{key}" for key, _ in leaves(trial.config.model_dump())} <= set(row)
        assert row["params_m"] == trial.config.model.cost(10).params / 1e6
        # Three forward passes of 1,199 images in 3 epochs.
        assert row["train_flops_g"] == pytest.approx(3 * 3 * 1199 * row["flops_g"])
        assert all(isinstance(value, str | int | float | None) for value in row.values())
    assert (rows[1]["val_error_pct"], rows[1]["error_pct"]) == (10.0, 100.0)
    write_report(plan, records, tmp_path, {})
    with (tmp_path / "tables" / "results.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["trial"] for row in table] == [row["trial"] for row in rows]
    assert float(table[0]["error_pct"]) == rows[0]["error_pct"]


def answer_of(plan, records):
    summaries = summarise(results_of(plan, records))
    return answer(summaries, contrasts(summaries, plan.sweep.primary))


def test_the_answer_names_the_better_arm_where_it_is_settled():
    plan = make(points=16)
    # vit_p spreads over 32 pp, vit_c over 1.6.
    records = fabricated(plan, lambda t: 20 + 2 * t.point if t.arm == "vit_p" else 5 + 0.1 * t.point)
    robust, peak = answer_of(plan, records)
    assert robust.startswith("vit_c is more forgiving of its settings than vit_p in adamw:")
    assert "16 pairs" in robust
    assert "vit_c 5.00\u00a0% (5.50\u00a0% on the final split), vit_p 20.0" in peak
    assert "unconfirmed" in peak


def test_the_answer_can_be_that_it_is_not_settled():
    plan = make(points=8)
    robust, _ = answer_of(plan, fabricated(plan, lambda t: 10.0 + t.point))
    assert robust.startswith("Whether vit_c or vit_p is more forgiving of its settings in adamw is not ")
    assert answer_of(plan, {})[0] == "There is no answer yet: no trial has a result."


def test_without_a_primary_contrast_the_answer_speaks_of_every_cell():
    plan = make(points=16, primary=None)

    def error(trial):
        spread = 2.0 if (trial.arm == "vit_p") == (trial.cell_name == "adamw") else 0.1
        return 10 + spread * trial.point

    robust, peak = answer_of(plan, fabricated(plan, error))
    assert "vit_c is more forgiving of its settings than vit_p in 1 of 2 cells (adamw)" in robust
    assert "vit_p is more forgiving of its settings than vit_c in 1 of 2 cells (sgd)" in robust
    assert peak.startswith("In all 2 cells")


def test_the_page_tells_what_lr_is_quoted_for_and_which_split_is_final(tmp_path):
    plan = make(points=1)
    html = write_report(plan, fabricated(plan), tmp_path, {}).read_text()
    # 64 / 2048 = 1 / 32.
    assert "lr is quoted for a batch of 2048; at the batch of 64" in html
    assert "0.03125 times" in html
    assert "final: measured once, after the last epoch" in html
    assert "scikit-learn digits, held out by seed" in html


def test_figures_take_more_arms_than_there_are_colours():
    arms = {f"arm_{i}": {"model.depth": i + 1} for i in range(11)}
    plan = make(points=1, arms=arms, cells={}, primary=None, vary={
        "optim.lr": {"log_uniform": [1e-4, 1e-2]}, "optim.name": {"choice": ["adamw"]},
        "optim.weight_decay": {"choice": [0.1, 0.2]},
    })  # fmt: skip
    results = results_of(plan, fabricated(plan))
    found = by_arm(results, "all")
    domains = [{arm: plan.sweep.domains(arm, ())[path] for arm in arms} for path in plan.sweep.vary]
    for figure in (
        figures.delta_edf(summarise(results)),
        figures.error_over_parameter(found, "optim.weight_decay", domains[2]),
        figures.error_over_plane(found, ("optim.lr", "optim.name"), (domains[0], domains[1])),
        figures.curves(found),
        figures.differences(contrasts(summarise(results), None), "error"),
    ):
        svg = figures.to_svg(figure)
        ElementTree.fromstring(svg)
        assert "arm_10" in svg or "arm_9" in svg
