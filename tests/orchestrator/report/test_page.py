"""The report: complete, self-contained, escaped, the same bytes for the same input, at every stage."""

import csv
import dataclasses
import html
import json
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import get_args
from xml.etree import ElementTree

import numpy as np
import pytest

from orchestrator.analysis import findings
from orchestrator.analysis.contrasts import contrasts, peak_contrasts
from orchestrator.analysis.summary import by_arm, summarise
from orchestrator.cost.actual import Planned, PlannedShape
from orchestrator.cost.ledger import Ledger
from orchestrator.cost.shapes import shape_key, shape_of
from orchestrator.cost.speed import Span
from orchestrator.report import figures, figures_parameters, plotting
from orchestrator.report import page as report_page
from orchestrator.report import table as report_table
from orchestrator.report.answer import answer, device_caveats
from orchestrator.report.document import FORMAT, results_rows, summary_table
from orchestrator.report.page import write_report
from orchestrator.report.table import Table, Text, to_latex, to_markdown
from orchestrator.stats.measures import MEASURES
from orchestrator.sweep.design import Design
from orchestrator.trials.confirm import Confirmation, with_confirmation
from orchestrator.trials.outcomes import RULES
from orchestrator.trials.records import Record, results_of
from orchestrator.trials.trial import Trial
from tests.support.sweeps import base_tree, ended, epoch_row, plan_from
from trainables.base import DeviceUse
from trainables.presets import leaves


@pytest.fixture(autouse=True)
def few_pdfs(request, monkeypatch):
    """None, but where a test is about them: their fonts cost more than all else of a small report."""
    if request.node.name != "test_figures_are_files_of_their_own_and_in_the_page":
        monkeypatch.setattr(report_page, "MAX_PDFS", 0)


def fabricated(plan, error=lambda trial: 10.0 + trial.point + 20 * (trial.arm == "vit_p")):
    """Every trial finished, at an error that follows from the trial."""
    records = {}
    for trial in plan.trials:
        final, epochs = error(trial), trial.config.schedule.epochs
        rows = [
            epoch_row(n, final + 30 * (1 - n / epochs), step=19 * n, test_pct=test)
            for n in range(1, epochs + 1)
            for test in [final + 0.5 if n == epochs else None]
        ]
        records[trial.id] = ended(rows, busy_seconds=12.5)
    return records


def make(points=8, **keys):
    tree = {
        "name": "test",
        "question": "Which stem is more forgiving?",
        "base": base_tree(optim=None),
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
        "primary": {"measure": "area_common", "cell": "adamw"},
    }
    return plan_from(tree | keys)


def read(folder):
    """All files below a folder by relative path."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize(
    "domain",
    [{"log_uniform": [1e-4, 1e-2]}, {"choice": [1e-4, 1e-3, 1e-2]}],
    ids=lambda domain: next(iter(domain)),
)
def test_a_sweep_of_one_parameter_has_a_whole_report(tmp_path, domain):
    plan = make(
        points=32,
        base=base_tree(optim={"name": "adamw", "weight_decay": 0.1}),
        cells={},
        vary={"optim.lr": domain},
        primary={"measure": "area_common"},
    )

    def error(trial):
        return 10 + 4 * math.log10(trial.config.optim.lr / 1e-3) ** 2 + 2 * (trial.arm == "vit_p")

    write_report(plan, fabricated(plan, error), tmp_path, {})
    [page] = tmp_path.glob("*.html")
    assert "optim.lr" in page.read_text()


class Tags(HTMLParser):
    """The tags of a page with their attributes, and which of those left open were not closed."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.wrong = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br", "wbr", "link", "img", "hr"):
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


@pytest.mark.parametrize("scrambles", [1, 6])
def test_the_page_says_what_the_intervals_of_differences_are_taken_over(tmp_path, scrambles):
    plan = make(design={"kind": "sobol", "points": 6, "scrambles": scrambles})
    html = write_report(plan, fabricated(plan), tmp_path, {}).read_text()
    document = json.loads((tmp_path / "summary.json").read_text())
    over = {contrast["interval_over"] for contrast in document["contrasts"]}
    assert over == ({"blocks"} if scrambles == 6 else {"points"})
    assert ("Student's over 6 independent scrambles" in html) is (scrambles == 6)
    assert ("Student's over points" in html) is (scrambles == 1)
    assert ("(conservative)" in html) is (scrambles == 1)


def test_figures_are_files_of_their_own_and_in_the_page(tmp_path):
    plan = make(points=2)
    html = write_report(plan, fabricated(plan), tmp_path, {}).read_text()
    written = sorted(p.stem for p in (tmp_path / "figures").glob("*.svg"))
    # Per cell two EDFs, a tuning curve, pairs, two parameters, a plane and curves; two of differences (what
    # decides, what describes) and one of the optimizer gap.
    assert len(written) == 2 * 8 + 2 + 1
    for path in (tmp_path / "figures").glob("*.svg"):
        ElementTree.fromstring(path.read_text())
    pages = list((tmp_path / "figures").glob("*.pdf"))
    assert sorted(path.stem for path in pages) == written
    assert all(path.read_bytes().startswith(b"%PDF-") for path in pages)
    # Nothing of the moment or the machine: drawn again they are the same.
    write_report(plan, fabricated(plan), tmp_path / "again", {})
    assert all((tmp_path / "again" / "figures" / p.name).read_bytes() == p.read_bytes() for p in pages)
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
    svg = plotting.to_svg(figures_parameters.error_over_parameter(arms, "optim.lr", {"vit_p": domain}))
    assert "$" not in svg
    named = {f"$x_{i}$ <b>": results for i, results in enumerate(arms.values())}
    svg = plotting.to_svg(figures.curves(named))
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


def test_every_row_tells_what_computed_it(tmp_path):
    plan = make(points=2)
    records = fabricated(plan)
    one, moved, *_ = (records[trial.id] for trial in plan.trials)
    gpu = DeviceUse(name="NVIDIA L4", dtype="bf16", driver="580.65.06", cuda="13.0", tf32="conv")
    one.devices = dict.fromkeys(one.rows, DeviceUse(name="a processor", deterministic=True))
    moved.devices = {1: gpu, 2: dataclasses.replace(gpu, name="Tesla T4", dtype="fp16"), 3: gpu}
    columns = ("device", "dtype", "driver", "cuda", "tf32", "deterministic")
    rows = [tuple(row[column] for column in columns) for row in results_rows(plan, records)]
    assert rows[0] == ("a processor", "fp32", "", "", "", True)
    assert rows[1] == ("NVIDIA L4; Tesla T4", "bf16; fp16", "580.65.06", "13.0", "conv", False)
    assert set(rows[2:]) == {(None,) * 6}


def test_a_contrast_over_different_devices_is_a_caveat_with_counts(tmp_path):
    plan = make(points=2)
    l4, t4 = (DeviceUse(name=name, dtype="fp16", cuda="13.0") for name in ("NVIDIA L4", "Tesla T4"))

    def told(device_of: Callable[[Trial], list[DeviceUse]]) -> list[str]:
        records = fabricated(plan)
        for trial in plan.trials:
            uses = device_of(trial)
            records[trial.id].devices = dict(zip((1, 2, 3), uses, strict=True)) if uses else {}
        return device_caveats(results_of(plan, records))

    # Alike in each cell, or unknown in part: nothing that is known tells arms apart.
    assert told(lambda trial: [l4 if trial.cell_name == "adamw" else t4] * 3) == []
    assert told(lambda trial: [l4] * 3 if trial.arm == "vit_c" else []) == []
    [text] = told(lambda t: [l4, l4, t4 if t.cell_name == "sgd" and t.arm == "vit_c" and t.point else l4])
    assert text == (
        "The trials that are compared in sgd ran on different devices or precisions, so a difference of arms "
        "may be one of devices. vit_p: 2 on NVIDIA L4 (fp16); vit_c: 1 on NVIDIA L4 (fp16), 1 on NVIDIA L4 "
        "(fp16) then Tesla T4 (fp16)."
    )
    # So is another precision on the same card, and the page says it.
    bf16 = dataclasses.replace(l4, dtype="bf16")
    records = fabricated(plan)
    for trial in plan.trials:
        records[trial.id].devices = dict.fromkeys((1, 2, 3), l4 if trial.point else bf16)
    page = html.unescape(write_report(plan, records, tmp_path, {}).read_text())
    assert "vit_p: 1 on NVIDIA L4 (bf16), 1 on NVIDIA L4 (fp16); vit_c: 1 on NVIDIA L4 (bf16)" in page


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
    return answer(summaries, contrasts(summaries, plan.sweep.primary), peak_contrasts(summaries))


def test_the_answer_names_the_better_arm_where_it_is_settled():
    plan = make(points=16)
    # vit_p spreads over 32 pp, vit_c over 1.6.
    records = fabricated(plan, lambda t: 20 + 2 * t.point if t.arm == "vit_p" else 5 + 0.1 * t.point)
    robust, peak, how = answer_of(plan, records)
    # Of 5 to 6.6 %, all are within 4 points of 5 %; vit_p begins at 20 %.
    assert robust == (
        "vit_c is the more robust in adamw: vit_c comes within 4 points of the best error at 16 of 16 "
        "settings, vit_p at 0."
    )
    assert how.startswith("Decided by common area (")
    assert "for vit_c against 0.00 for vit_p; typical difference +0.93 (+0.90 to +0.95)" in how
    assert "Wilcoxon p < 0.001, 16 differing pairs of 16 points" in how
    assert "vit_c 5.00\u00a0% (5.50\u00a0% on the final split), vit_p 20.0" in peak
    assert "unconfirmed" in peak


def test_the_answer_can_be_that_it_is_not_settled():
    plan = make(points=8)
    robust, _, how = answer_of(plan, fabricated(plan, lambda t: 10.0 + t.point))
    assert robust == (
        "Which of vit_p and vit_c is the more robust is not settled in adamw: vit_c comes within 4 points of "
        "the best error at 5 of 8 settings, vit_p at 5 (no pair differs)."
    )
    assert "typical difference 0.00, Wilcoxon p = 1.000, 0 differing pairs of 8 points" in how
    assert answer_of(plan, {})[0] == "There is no answer yet: no trial has a result."


def test_several_arms_of_which_nothing_is_settled_are_told_in_one_sentence():
    arms = {"vit_p": {}, "vit_c": {"model.stem": "conv"}, "other": {"model.depth": 3}}
    plan = make(points=8, arms=arms)
    robust, _, how = answer_of(plan, fabricated(plan, lambda t: 10.0 + t.point))
    # Of 10 to 17 %, five are within 4 points of 10 %.
    assert robust == (
        "Nothing is settled against vit_p in adamw: settings within 4 points of the best error are "
        "vit_c 5 of 8, other 5 of 8, vit_p 5 of 8."
    )
    assert "adjusted by Holm over 2" in how
    # One that is settled has a sentence of its own, and leaves a single open one its own, too.
    plan = make(points=16, arms=arms | {"fourth": {"model.depth": 5}})
    spread = {"vit_p": 2.0, "vit_c": 0.1}
    robust, *_ = answer_of(plan, fabricated(plan, lambda t: 10 + spread.get(t.arm, 2.0) * t.point))
    settled, unsettled = robust.split(". ")
    assert settled.startswith("vit_c is more robust than vit_p in adamw: vit_c comes within 4 points")
    assert unsettled == (
        "Nothing is settled against vit_p for other, fourth in adamw: settings within 4 points of the best "
        "error are other 3 of 16, fourth 3 of 16, vit_p 3 of 16."
    )


def test_without_a_primary_contrast_the_answer_speaks_of_every_cell():
    plan = make(points=16, primary=None)

    def error(trial):
        spread = 2.0 if (trial.arm == "vit_p") == (trial.cell_name == "adamw") else 0.1
        return 10 + spread * trial.point

    robust, peak, how = answer_of(plan, fabricated(plan, error))
    # Of 0.1 a point all are within 4 points, of 2 a point those of points 0 to 2.
    assert robust == (
        "vit_c is the more robust in 1 of 2 cells (adamw); vit_p is the more robust in 1 of 2 cells (sgd): "
        "vit_c comes within 4 points of the best error at 19 of 32 settings, vit_p at 19."
    )
    assert how.endswith("not declared beforehand: Wilcoxon tests, adjusted by Holm over 2.")
    assert peak.startswith("In both cells")


@pytest.mark.filterwarnings("error::UserWarning")
def test_no_surface_is_drawn_over_listed_values(tmp_path):
    widths, depths = [16, 24, 32, 48, 64], [2, 3, 4, 6, 8]
    plan = make(
        vary={"model.width": {"ordinal": widths}, "model.depth": {"ordinal": depths}},
        base=base_tree(model={"family": "vit", "heads": 4, "mlp_ratio": 2, "image_size": 32, "patch_size": 8})
        | {"optim": {"lr": 1e-3, "weight_decay": 0.1}},
        cells={"optimizer": {"adamw": {"optim.name": "adamw"}}},
        points=24,
    )

    def error(trial):
        model = trial.config.model
        return 10 + 3 * widths.index(model.width) + 2 * (depths.index(model.depth) - 2) ** 2

    write_report(plan, fabricated(plan, error), tmp_path, {})
    plane = (tmp_path / "figures" / "plane~adamw.svg").read_text()
    assert "surface's optimum" not in plane


@pytest.mark.parametrize("kind", get_args(get_args(Design)[0]), ids=lambda kind: kind.__name__)
def test_there_is_a_page_for_every_kind_of_design(kind, tmp_path):
    points = {"points": 4} if "points" in kind.model_fields else {}
    design = {"kind": kind.model_fields["kind"].default} | points
    listed = {"optim.lr": {"choice": [1e-3, 2e-3]}, "optim.weight_decay": {"choice": [0.1, 0.2]}}
    plan = make(vary=listed, design=design)
    html = write_report(plan, fabricated(plan), tmp_path, {}).read_text()
    assert f"per arm and cell, {kind.words} " in " ".join(html.split())


def test_the_page_tells_what_lr_is_quoted_for_and_which_split_is_final(tmp_path):
    plan = make(points=1)
    html = write_report(plan, fabricated(plan), tmp_path, {}).read_text()
    # 64 / 2048 = 1 / 32.
    assert "lr is quoted for a batch size of 2048; at the batch size of 64" in html
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
        figures_parameters.error_over_parameter(found, "optim.weight_decay", domains[2]),
        figures_parameters.error_over_plane(found, ("optim.lr", "optim.name"), (domains[0], domains[1])),
        figures.curves(found),
        figures.differences(contrasts(summarise(results), None), "error"),
    ):
        svg = plotting.to_svg(figure)
        ElementTree.fromstring(svg)
        assert "arm_10" in svg or "arm_9" in svg


def confirmed(plan, points, seeds=3):
    """The plan with the same points of every arm and cell run again."""
    chosen = {(trial.cell_name, trial.arm): tuple(points) for trial in plan.trials}
    return with_confirmation(plan, Confirmation(chosen, seeds))


def bowl(trial):
    """Of lr around the middle of its window, a little of weight decay, wider in vit_c; noise by the seeds."""
    low, high = (2.5e-4, 8e-3) if trial.cell_name == "adamw" else (0.1, 3.2)
    octaves = math.log2(trial.values["optim.lr"] / math.sqrt(low * high))
    wide = trial.arm == "vit_c"
    chance = (int(trial.id[:8], 16) / 2**32 - 0.5) * 0.2
    return (
        (4 if wide else 6) + (0.3 if wide else 1.5) * octaves**2 + trial.values["optim.weight_decay"] + chance
    )


def words(text):
    """What the page says, without tags."""
    text = re.sub(r"<(svg|style).*?</\1>", "", text, flags=re.DOTALL)
    # Where a word may break, it is still one word.
    text = re.sub(r"</?(wbr|code|b|strong)>", "", text)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", text)))


def test_the_second_sentence_is_told_by_fresh_seeds_where_all_have_ended():
    plan = confirmed(make(points=8), points=[0])
    # By the seed of the confirmation: 5, 6, 7 for vit_c and 15, 16, 17 for vit_p.
    records = fabricated(
        plan,
        lambda t: (5 if t.arm == "vit_c" else 15) + t.replicate if t.role == "confirm" else 5 + 3 * t.point,
    )
    _, peak, _ = answer_of(plan, records)
    # Student's t on 2 degrees of freedom, 4.303, times 1 / sqrt(3): 2.48 to both sides of 6.
    assert "confirmed: vit_c 6.00\u00a0% (3.52 to 8.48; 3 fresh seeds; 6.50\u00a0% on the final split" in peak
    assert "vit_p 16.0\u00a0%" in peak
    assert "unconfirmed" not in peak
    assert "vit_c minus vit_p is −10.00 pp" in peak
    assert "not settled" not in peak


def test_an_open_confirmation_leaves_the_peak_unconfirmed_and_says_how_far_it_is(tmp_path):
    plan = confirmed(make(points=8), points=[0, 1], seeds=3)
    records = fabricated(plan)
    left = [t for t in plan.trials if (t.role, t.cell_name, t.arm) == ("confirm", "adamw", "vit_c")]
    for trial in left[2:]:
        del records[trial.id]
    _, peak, _ = answer_of(plan, records)
    assert "unconfirmed" in peak
    assert "vit_c: 2 of 6 runs of the confirmation have ended" in peak
    page = words(write_report(plan, records, tmp_path, {}).read_text())
    assert "adamw, vit_c: unconfirmed, as 2 of 6 runs of the confirmation have ended." in page
    assert "the lowest error of the arm's sweep, unconfirmed" in page
    document = json.loads((tmp_path / "summary.json").read_text())
    arms = {(arm["cell"], arm["arm"]): arm for arm in document["arms"]}
    assert arms["adamw", "vit_c"]["confirmed"] is None
    assert arms["sgd", "vit_c"]["confirmed"]["num_seeds"] == 3
    roles = [row["role"] for row in results_rows(plan, records)]
    assert (roles.count("sweep"), roles.count("confirm")) == (32, 24)


def test_every_section_has_its_numbers_where_the_data_allow_it(tmp_path):
    plan = confirmed(make(points=16, noise={"points": 1, "seeds": 3}), points=[0, 1])
    page = words(write_report(plan, fabricated(plan, bowl), tmp_path, {}).read_text())
    document = json.loads((tmp_path / "summary.json").read_text(), parse_constant=constant)
    assert document["format"] == FORMAT
    pairs = [(cell, arm) for cell in ("adamw", "sgd") for arm in ("vit_p", "vit_c")]
    for key in ("tuning", "basins", "importances", "transfers", "edges", "noise"):
        assert sorted((item["cell"], item["arm"]) for item in document[key]) == sorted(pairs)
    # Two splits in each of two cells; seven measures in each; one gap in each arm.
    assert len(document["peak_contrasts"]) == 4
    assert len(document["contrasts"]) == len(document["power"]) == 2 * len(MEASURES)
    assert [gap["arm"] for gap in document["gaps"]] == ["vit_p", "vit_c"]
    assert all(gap["noise_floor_pp"]["value"] > 0 for gap in document["gaps"])
    # A bowl of 1.5 pp per octave squared is within 2 pp over 2 sqrt(2 / 1.5) = 2.3 octaves; one of 0.3 over
    # 5.2, more than the window's 5.
    widths = {
        (basin["cell"], basin["arm"]): basin["widths"][0]["size"]["value"] for basin in document["basins"]
    }
    assert widths["adamw", "vit_p"] == pytest.approx(2.3, abs=0.6)
    assert widths["adamw", "vit_c"] > 4
    # Sixteen points support k = 2 (n / 8).
    assert {tuning["largest_budget"] for tuning in document["tuning"]} == {2}
    assert "k = 4" in page
    assert "refused" in page
    assert all(tuning["optimism"]["noise_sd_pct"] < 0.2 for tuning in document["tuning"])
    for cost in document["cost"]["per_arm"]:
        # 16 points, 2 more runs of 3 streams at one, 3 of 2 confirmed points: at 12.5 seconds.
        assert (cost["trials_run"], cost["trial_seconds"]) == (28, 350)
        assert cost["seconds_per_trial"] == cost["best_seconds"] == 12.5
    for title in ("Noise floor", "Transfer regret", "Importance", "Tuning curves", "Other windows"):
        assert title in page
    for name in ("peak", "robustness", "differences", "tuning", "basins", "gaps", "noise", "power", "cost"):
        for suffix in ("md", "tex"):
            assert (tmp_path / "tables" / f"{name}.{suffix}").stat().st_size > 100


def test_measures_from_an_own_reference_are_shown_as_description(tmp_path):
    plan = make(points=16)
    write_report(plan, fabricated(plan, bowl), tmp_path, {})
    lines = (tmp_path / "tables" / "differences.md").read_text().splitlines()
    for info in MEASURES.values():
        rows = [line for line in lines if f"| {info.symbol} " in line]
        assert len(rows) == 2
        assert all(("describes" in row) != info.decides for row in rows)
        assert all(("Wilcoxon" in row or "McNemar" in row) == info.decides for row in rows)
    document = json.loads((tmp_path / "summary.json").read_text())
    assert all(c["decides"] == MEASURES[c["measure"]].decides for c in document["contrasts"])


def test_without_a_run_twice_optimism_and_noise_are_said_to_be_unknown(tmp_path):
    plan = make(points=8)
    page = words(write_report(plan, fabricated(plan, bowl), tmp_path, {}).read_text())
    assert "the noise of a run was not measured" in page
    assert "Not measured: no setting was run twice." in page
    document = json.loads((tmp_path / "summary.json").read_text())
    assert {tuning["optimism"] for tuning in document["tuning"]} == {None}


def test_an_arm_whose_best_lies_at_the_edge_is_named_under_the_answer(tmp_path):
    plan = make(points=16)
    # The lower the lr the better, all the way down.
    records = fabricated(plan, lambda t: 10 + 3 * math.log2(t.values["optim.lr"] / 1e-4))
    page = words(write_report(plan, records, tmp_path, {}).read_text())
    told = page.index("The fitted optimum of vit_p in adamw is at the low end of optim.lr")
    assert page.index("is the more robust") < told < page.index("Errors are the top-1 error in %")
    # An octave below 2.5e-4, as densely as 16 points fill five: 16 / 5, rounded up.
    assert "4 more points from 1.25e-4 to 2.5e-4" in page


def test_stopped_trials_make_the_report_refuse_and_say_why(tmp_path):
    plan = make(points=8)
    records = fabricated(plan, bowl)
    for trial in plan.trials:
        records[trial.id].outcome = "stopped" if trial.point == 0 else "finished"
    page = words(write_report(plan, records, tmp_path, {}).read_text())
    assert "No verdict on robustness: 1 of 8 trials ended early by a stopping rule" in page
    assert "adamw, vit_c: refused, as 1 of 8 trials ended early by a stopping rule" in page
    # No arm has a basin: one line says why, and there is no section.
    assert "Basins: not given. Reason: 1 trials were stopped early." in page
    assert not re.search(r"How far a setting may be from the optimum", page)


def test_a_large_sweep_says_in_which_cells_less_was_worked_out(tmp_path, monkeypatch):
    monkeypatch.setattr(findings, "MAX_DEEP_CELLS", 1)
    monkeypatch.setattr(findings, "NUM_DEEP_CELLS", 1)
    plan = make(points=8, primary={"cell": "sgd"})
    page = words(write_report(plan, fabricated(plan, bowl), tmp_path, {}).read_text())
    document = json.loads((tmp_path / "summary.json").read_text())
    assert document["not_worked_out"] == ["adamw"]
    assert {audit["cell"] for audit in document["audits"]} == {"sgd"}
    assert "Computed for 1 of 2 cells, because the sweep is large; not for: adamw." in page


def test_processes_of_their_own_change_no_byte(tmp_path, monkeypatch):
    plan = make(points=8)
    for name, cores in (("one", 1), ("two", 2)):
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        write_report(plan, fabricated(plan, bowl), tmp_path / name, {})
    assert read(tmp_path / "one") == read(tmp_path / "two")


def test_tables_are_escaped_in_markdown_and_latex():
    table = Table("t", "50 % of a|b", ("Cell", "#x_1"))
    table.add("a|b", Text("−1.5", "1 & 2 % < $3"))
    assert to_markdown(table).splitlines() == [
        "**50 % of a\\|b**",
        "",
        "| Cell | x\\_1 |",
        "|---|---:|",
        "| a\\|b | −1.5 (1 & 2 % \\< \\$3) |",
    ]
    assert r"Cell & x\_1 \\" in to_latex(table)
    assert r"a|b & $-$1.5 (1 \& 2 \% \textless{} \$3) \\" in to_latex(table)


NAMES = (
    "states",
    "other_states",
    "errors_pct",
    "blocks",
    "means_pct",
    "values",
    "optimum",
    "refused",
    "details",
)


def named_keys(value, free=NAMES):
    """All keys of a JSON document, but for those that are names of the sweep's own."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            if key not in free:
                yield from named_keys(item)
    elif isinstance(value, list):
        for item in value:
            yield from named_keys(item)


def test_the_document_of_the_report_tells_every_key_of_summary_json(tmp_path):
    plan = confirmed(make(points=16, noise={"points": 1, "seeds": 3}), points=[0, 1])
    write_report(plan, fabricated(plan, bowl), tmp_path, {})
    document = json.loads((tmp_path / "summary.json").read_text())
    told = set(re.findall(r"`(\w+)`", (Path(__file__).parents[3] / "docs" / "report.md").read_text()))
    assert sorted(set(named_keys(document)) - told) == []


def test_a_table_with_a_section_has_its_place_on_the_page_and_its_files(tmp_path, monkeypatch):
    def ledger(found):
        table = report_table.Table(
            "ledger",
            "Seconds by what they went to",
            ("Use", "#Seconds"),
            section="Ledger",
            intro="Where the time went.",
            data=[{"use": "useful", "seconds": 1.25 * len(found.results)}],
        )
        table.add("useful", "5.0")
        return table

    def nothing(found):
        return report_table.Table("nothing", "Not measured", ("Use",), section="Not a section")

    monkeypatch.setattr(report_page, "TABLES", (*report_page.TABLES, ledger, nothing))
    plan = make(points=1, cells={}, primary=None, vary={"optim.lr": {"uniform": [0.01, 0.1]},
                "optim.weight_decay": {"choice": [0.1]}, "optim.name": {"choice": ["adamw"]}})  # fmt: skip
    page = write_report(plan, fabricated(plan), tmp_path, {}).read_text()
    assert '<a href="#ledger">Ledger</a>' in page
    assert page.index('<h2 id="ledger">') < page.index("Where the time went.") < page.index('id="methods"')
    assert "Not a section" not in page
    assert json.loads((tmp_path / "summary.json").read_text())["ledger"] == [
        {"use": "useful", "seconds": 2.5}
    ]
    assert (tmp_path / "tables" / "ledger.csv").read_text() == "use,seconds\nuseful,2.5\n"
    assert "| useful | 5.0 |" in (tmp_path / "tables" / "ledger.md").read_text()
    assert "useful & 5.0" in (tmp_path / "tables" / "ledger.tex").read_text()


def corners(path):
    """Absolute corners of the lines of an SVG path, as SVG 1.1, section 8.3, has them."""
    x = y = 0.0
    start = (x, y)
    for letter, rest in re.findall(r"([A-Za-z])([^A-Za-z]*)", path):
        numbers = [float(number) for number in re.findall(r"-?\d*\.?\d+", rest)]
        if letter in "Zz":
            x, y = start
        elif letter in "Hh":
            x = numbers[0] + (x if letter == "h" else 0)
        elif letter in "Vv":
            y = numbers[0] + (y if letter == "v" else 0)
        else:
            x, y = (n + (at if letter.islower() else 0) for n, at in zip(numbers, (x, y), strict=True))
        if letter in "Mm":
            start = (x, y)
        yield x, y


def test_a_shortened_path_is_the_same_line():
    rng = np.random.default_rng(0)
    points = rng.uniform(-50, 400, (500, 2))
    points[::7, 0] = points[1::7, 0][: len(points[::7])]
    path = "\n".join(f"{'M' if i % 50 == 0 else 'L'} {x:.6f} {y:.6f} " for i, (x, y) in enumerate(points))
    short = plotting._steps(path + "\nz\n")
    assert len(short) < len(path) / 2
    # Half of a tenth of a point, wherever on the line.
    assert np.abs(np.array(list(corners(short))[:-1]) - points).max() <= 0.05 + 1e-9


def test_every_mark_is_in_the_figure_and_a_class_means_the_same_in_all(tmp_path):
    plan = make(points=16)
    records = fabricated(plan, bowl)
    write_report(plan, records, tmp_path, {})
    looks = {}
    for path in sorted((tmp_path / "figures").glob("*.svg")):
        text = path.read_text()
        for name, look in re.findall(r"\.(s\w{7})\{([^}]*)\}", text):
            assert looks.setdefault(name, look) == look
        assert set(re.findall(r'class="(\w+)"', text)) <= set(looks)
        assert "*{" not in text
    # Two arms of 16 trials each have a mark of their own; ticks and the legend have others.
    text = (tmp_path / "figures" / "parameter~adamw~optim.lr.svg").read_text()
    shapes = re.findall(r'<use [^>]*href="#(m\w+)"', text)
    assert sorted(shapes.count(shape) for shape in set(shapes))[-2:] == [16, 16]


def test_names_may_break_where_they_are_long_and_stay_escaped():
    assert report_page._broken("vit_c") == "vit_c"
    assert report_page._broken("a <b> adamw_long/nine_epochs") == (
        "a &lt;b&gt; adamw_<wbr>long/<wbr>nine_<wbr>epochs"
    )


def test_where_the_time_went_is_told_where_there_is_a_journal(tmp_path):
    plan = make(points=2)
    spent = Ledger("GPU", useful=75.0, lost=5.0, start_up=20.0)
    page = words(write_report(plan, fabricated(plan), tmp_path, {}, spent).read_text())
    assert "Where the time went" in page
    assert "useful 75 75.0 training and evaluation behind the results" in page
    document = json.loads((tmp_path / "summary.json").read_text())
    assert sum(row["seconds"] for row in document["ledger"]) == 100
    assert {row["device"] for row in document["ledger"]} == {"GPU"}


def planned_for(plan, trials):
    """A minute from start to end, a second per epoch."""
    minute = Span(0.5 / 60, 1 / 60, 2 / 60)
    shapes = {
        shape_key(shape_of(t)): PlannedShape(
            name="", seconds=Span(0.5, 1.0, 2.0), basis="measured", peak_gib=0.25, devices=1
        )
        for t in plan.trials
    }
    return Planned(
        made="2026-01-01T00:00:00Z", device="a processor", unit="core-hours", trials=trials,
        hours=minute, wall_hours=minute, checkpoint_gib=0.5, shapes=shapes,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("trials", "missing", "told"),
    [
        (8, 0, "planned 1 min 00 s (30 s to 2 min 00 s), 1 min 30 s measured: 1.50 times"),
        (8, 1, "planned 1 min 00 s (30 s to 2 min 00 s), 1 min 30 s so far. This"),
        (4, 0, "so far; the sweep has grown to 8 trials"),
    ],
)
def test_wall_clock_is_compared_where_what_was_planned_is_what_has_run(trials, missing, told):
    plan = make(points=2)
    records = fabricated(plan)
    for trial in plan.trials[:missing]:
        del records[trial.id]
    found = findings.gather(plan, records, Ledger(useful=90.0, wall=90.0), planned_for(plan, trials))
    table = report_page.tables_of(found)["planned"]
    assert len([note for note in table.notes if told in note]) == 1
    # Epochs of 1.1 s where 1 s was planned, and one trial's time of 12.5 s where three were.
    everything = table.rows[-1]
    assert everything.texts[0].main == "all that were planned"
    assert table.rows[0].texts[5].main == "1.10"
    assert everything.texts[8] == Text("4.17", "out of range")


def test_errors_under_corruption_and_shift_have_their_sections(tmp_path):
    plan = make(points=2, cells={}, primary=None, base=base_tree(
        evaluate={"corruptions": {"kinds": ["fog", "snow"], "severities": [1, 5], "images": 50}}
    ), vary={"optim.lr": {"uniform": [0.01, 0.1]}})  # fmt: skip
    records = fabricated(plan)
    # Point 0 is best in both arms: 30.5 and 10.5 on the final split.
    for trial in plan.trials:
        errors = (20.0, 30.0, 50.0, 60.0 + trial.point)
        if trial.arm == "vit_c":
            errors = (10.0, 15.0, 40.0, 45.0 + trial.point)
        names = ("clean", "corruption/fog", "corruption/snow", "shifted/sketch")
        rows = records[trial.id].rows
        rows[3] = dataclasses.replace(rows[3], extra=dict(zip(names, errors, strict=True)))
    page = write_report(plan, records, tmp_path, {}).read_text()
    document = json.loads((tmp_path / "summary.json").read_text())
    first, second = document["corruption"]
    assert (first["arm"], first["kind"], first["num_runs"], first["mce_pct"]) == ("vit_p", "best", 1, 100.0)
    assert (second["corrupted_error_pct"], second["added_pp"]) == (27.5, 17.5)
    # Half of 30 and four fifths of 50; half of 10 more and all of 30 more.
    assert (second["mce_pct"], second["relative_mce_pct"]) == (pytest.approx(65.0), pytest.approx(75.0))
    assert [(row["set"], row["error_pct"], row["final_error_pct"]) for row in document["shifted_sets"]] == [
        ("sketch", 60.0, 30.5),
        ("sketch", 45.0, 10.5),
    ]
    assert ">Robustness to corruption</h2>" in page
    assert ">On shifted sets</h2>" in page
    assert "2 kinds of corruption at severities 1, 5, on 50 images" in page
    rows = results_rows(plan, records)
    assert [row["extra.shifted/sketch"] for row in rows] == [60.0, 45.0, 61.0, 46.0]
    told = set(re.findall(r"`(\w+)`", (Path(__file__).parents[3] / "docs" / "report.md").read_text()))
    keys = {key for name in ("corruption", "shifted_sets") for row in document[name] for key in row}
    ends = ("_low", "_high")
    kinds = {"fog_error_pct", "snow_error_pct"}
    assert {key for key in keys - kinds if not key.endswith(ends)} <= told


def test_a_sweep_that_asked_for_no_corruption_has_no_section_for_it(tmp_path):
    plan = make(points=1)
    page = write_report(plan, fabricated(plan), tmp_path, {}).read_text()
    assert "orruption" not in page
    assert not {"corruption", "shifted_sets", "planned"} & set(
        json.loads((tmp_path / "summary.json").read_text())
    )
