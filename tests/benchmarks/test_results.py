"""docs/results.md follows from folders of sweeps: planted differences are told as what they are."""

import numpy as np
import pytest

from benchmarks.results import beside, document
from orchestrator.analysis.findings import gather
from orchestrator.report.answer import answer_of
from orchestrator.report.page import tables_of, write_report
from orchestrator.store.folder import save_question
from orchestrator.store.journal import encode
from orchestrator.trials.events import AttemptBegan, AttemptEnded, EpochDone, row_of
from orchestrator.trials.records import Record
from tests.support.sweeps import base_tree, epoch_row, plan_of


def claim(measure, better="vit_c", than="vit_p"):
    return {"says": "C is better", "source": "table 9", "measure": measure, "better": better, "than": than}


def make(points, *claims, values=(), cells=None):
    return plan_of(
        name="tiny",
        question="Is C better?",
        base=base_tree(schedule={"epochs": 1}, optim=None),
        arms={"vit_p": {"model.stem": "patchify"}, "vit_c": {"model.stem": "conv"}},
        cells=cells or {"optimizer": {"adamw": {"optim.name": "adamw"}, "sgd": {"optim.name": "sgd"}}},
        vary={"optim.lr": {"log_uniform": [1e-4, 1e-1]}, "optim.weight_decay": {"choice": [0.1]}},
        design={"kind": "sobol", "points": points},
        paper={"claims": list(claims), "values": list(values)},
    )


def row(error):
    return epoch_row(1, error, step=19, test_pct=error + 0.5)


def ended(plan, error):
    return {t.id: Record("finished", "", 1, {1: row(error(t))}, busy_seconds=30.0) for t in plan.trials}


def planted(trial):
    """ViT_P is 20 points worse, and loses 10 more under SGD; a little of each point."""
    worse = trial.arm == "vit_p"
    return 10 + 0.3 * trial.point + 20 * worse + 10 * (worse and trial.cell_name == "sgd")


def test_a_claim_holds_or_not_as_the_difference_was_planted():
    plan = make(8, claim("area_common"), claim("error", "vit_p", "vit_c"))
    found = {(b.claim.measure, b.where): b for b in beside(gather(plan, ended(plan, planted)))}
    assert {key: b.outcome for key, b in found.items()} == {
        ("area_common", "adamw"): "holds",
        ("area_common", "sgd"): "holds",
        ("error", "adamw"): "the other way round",
        ("error", "sgd"): "the other way round",
    }
    # The claimed better arm minus the other: P is 20 points above C, and 30 under SGD.
    assert found["error", "adamw"].difference.value == pytest.approx(20)
    assert found["error", "sgd"].difference.value == pytest.approx(30)
    assert found["error", "sgd"].difference.low <= 30 <= found["error", "sgd"].difference.high


def test_equal_arms_settle_nothing():
    plan = make(8, claim("area_common"))
    found = list(beside(gather(plan, ended(plan, lambda t: 10 + 0.3 * t.point))))
    assert {b.outcome for b in found} == {"not settled"}
    assert all(b.because for b in found)


def test_a_gap_is_the_claimed_arms_minus_the_others():
    plan = make(16, claim("optimizer_gap"))
    (found,) = beside(gather(plan, ended(plan, scattered)))
    assert found.where == "sgd against adamw"
    assert found.difference.low < -10 < found.difference.high < 0
    assert found.outcome == "holds"


def scattered(trial):
    names = [trial.point, trial.arm == "vit_p", trial.cell_name == "sgd"]
    return planted(trial) - 0.3 * trial.point + 5 * np.random.default_rng(names).random()


def test_a_sweep_with_a_claim_about_a_gap_is_answered_by_the_gap_first(tmp_path):
    plan = make(16, claim("optimizer_gap"))
    found = gather(plan, records := ended(plan, scattered))
    (contrast,) = found.gap_contrasts
    assert contrast.gap_pp - contrast.base_gap_pp == pytest.approx(contrast.difference_pp.value)
    # The planted gaps are 0 of ViT_C and 10 of ViT_P, but for the noise of the points.
    assert (contrast.base_gap_pp, contrast.gap_pp) == (pytest.approx(10, abs=1), pytest.approx(0, abs=1))
    gap, robust, rest = answer_of(found)
    assert gap.startswith("vit_c loses less than vit_p under sgd in place of adamw: ")
    assert f" against +{contrast.base_gap_pp:.2f} points of error at best of 4 (difference −" in gap
    # With the verdict on robustness it takes four lines of a terminal.
    assert len(gap) <= 160
    assert gap.endswith(f" to −{-contrast.difference_pp.high:.2f}).")
    assert robust.startswith("vit_c is the more robust in both cells: ")
    assert rest.startswith("In both cells the lowest error")
    assert "Decided by common area" in rest

    write_report(plan, records, tmp_path, {})
    page = (tmp_path / "report.html").read_text("utf-8")
    # The figure of the gaps stands at the top, and once.
    assert page.count('id="gaps~optimizer"') == 1
    assert page.index('id="gaps~optimizer"') < page.index('id="common~adamw"') < page.index('<h2 id="asked"')


def test_a_gap_that_is_open_or_that_nobody_asked_about_takes_no_verdict():
    plan = make(16, claim("optimizer_gap"))
    gap, *_ = answer_of(gather(plan, ended(plan, lambda t: 10 + 5 * np.random.default_rng(
        [t.point, t.arm == "vit_p", t.cell_name == "sgd"]).random())))  # fmt: skip
    assert gap.startswith("Which of vit_p and vit_c loses less under sgd in place of adamw is not settled: ")
    few = make(8, claim("optimizer_gap"))
    assert answer_of(gather(few, ended(few, scattered)))[0].endswith(
        "no interval, as 8 points, 16 are needed)."
    )
    plan = make(16, claim("area_common"))
    first, second, _ = answer_of(gather(plan, ended(plan, scattered)))
    assert first.startswith("vit_c is the more robust")
    assert "lowest error" in second


def write(path, plan, trials):
    save_question(path, plan, declare=False)
    (path / "journal").mkdir()
    events = []
    for trial in trials:
        cells = {
            "epoch": 1, "step": 19, "lr": 1e-3, "train_loss": 1.0, "val_loss": 1.0,
            "val_error_pct": planted(trial), "val_raw_error_pct": planted(trial),
            "train_seconds": 1.0, "val_seconds": 0.1, "test_error_pct": planted(trial) + 0.5,
        }  # fmt: skip
        events += [
            AttemptBegan(trial=trial.id, attempt=1, lane="lane", time=0.0),
            EpochDone(trial=trial.id, attempt=1, row=row_of(cells)),
            AttemptEnded(
                trial=trial.id,
                attempt=1,
                end="finished",
                detail="",
                seconds=30.0,
                time=30.0,
                final=True,
                weights=trial.id,
            ),
        ]
    (path / "journal" / "000001.jsonl").write_text("".join(encode(event) for event in events))


def test_the_document_has_verdict_interval_cost_and_figures_of_each_folder(tmp_path):
    plan = make(8, claim("area_common"))
    write(tmp_path / "tiny", plan, plan.trials)
    (tmp_path / "tiny/report/figures").mkdir(parents=True)
    (tmp_path / "tiny/report/figures/common~adamw.svg").write_text("<svg/>")
    write(tmp_path / "half", plan, plan.trials[:5])
    text = document([tmp_path / "tiny", tmp_path / "half"], tmp_path / "docs/results")
    assert "*Is C better?*" in text
    assert text.count("**holds**") == 2
    # 32 trials of an epoch each, 30 s each.
    assert "32 trials, 32 epochs" in text
    assert "16 min 00 s of trials" in text
    assert "Not finished: 5 of 32 trials have ended." in text
    assert "](results/tiny-common-adamw.svg)" in text
    assert (tmp_path / "docs/results/tiny-common-adamw.svg").read_text() == "<svg/>"


def test_a_reason_is_told_where_a_claim_does_not_hold_and_only_there(tmp_path):
    holds = claim("area_common") | {"why_not": "Too small."}
    fails = claim("error", "vit_p", "vit_c") | {"why_not": "Too easy."}
    plan = make(8, holds, fails)
    write(tmp_path / "tiny", plan, plan.trials)
    text = document([tmp_path / "tiny"], tmp_path / "docs/results")
    assert "Why not, we think: Too easy." in text
    assert "Too small" not in text


def test_the_report_sets_the_papers_errors_beside_its_own():
    values = [{"source": "table 2", "top1_error_pct": {"sgd": {"vit_c": 8.0}, "adamw": {"vit_p": 33.2}}}]
    plan = make(8, values=values)
    records = ended(plan, planted)
    table = tables_of(gather(plan, records))["paper"]
    # The best of each is point 0: 10 + 0.5 on the final split, 30.5 for ViT_P.
    assert [(r["cell"], r["arm"], r["paper_error_pct"], r["best_error_pct"]) for r in table.data] == [
        ("sgd", "vit_c", 8.0, 10.5),
        ("adamw", "vit_p", 33.2, 30.5),
    ]
    assert [line.texts[-1].main for line in table.rows] == ["+2.5", "-2.7"]
    assert table.section == "Compared with the paper"
    assert not tables_of(gather(plan, {}))["paper"].rows


def test_a_document_is_extended_by_a_sweep_and_keeps_the_others(tmp_path):
    before = "# Results\n\nolder words\n\n## first\n\none\n\n## tiny\n\ntwo\n\n### part\n\n## last\n\nthree\n"
    folder = tmp_path / "tiny"
    folder.mkdir()
    save_question(folder, make(4), set())
    text = document([folder], tmp_path / "figures", before)
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## first",
        "## tiny",
        "## last",
    ]
    assert "python -m benchmarks.results runs/first runs/tiny runs/last" in text
    assert "one" in text.split("## tiny")[0]
    assert "two" not in text
    assert "0 of 16 trials have ended" in text
    assert text.endswith("## last\n\nthree\n")
    # Once more: nothing changes.
    assert document([folder], tmp_path / "figures", text) == text
