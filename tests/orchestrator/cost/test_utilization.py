"""MFU, by hand and against a measured rate, and where it is shown."""

import io

import pytest
from rich.console import Console

from orchestrator.analysis import findings
from orchestrator.cost.ledger import Ledger
from orchestrator.cost.utilization import Utilization, mfu_pct, peak_flops
from orchestrator.monitor.live import view
from orchestrator.monitor.progress import Progress
from orchestrator.report.document import cost_per_arm, results_rows
from orchestrator.report.tables_runs import cost_table
from orchestrator.trials.gang import Gang
from orchestrator.trials.numerals import short
from orchestrator.trials.records import Record
from orchestrator.trials.trial import TrialCost
from tests.support.sweeps import epoch_row, plan_of
from trainables.base import DeviceUse
from trainables.config import NAMED_MODELS

H100 = DeviceUse(name="NVIDIA H100 80GB HBM3", dtype="bf16", driver="580.65.06", cuda="13.0", tf32="conv")
ONE_GPU = Gang(1, 1, None)


def test_the_peak_is_that_of_the_data_sheet_for_the_precision():
    # 989 TFLOP/s count a multiply and an add as two.
    assert peak_flops(H100) == 989e12 / 2
    assert peak_flops(DeviceUse(name="Tesla V100-SXM2-32GB", dtype="fp16", cuda="12.6")) == 125e12 / 2
    fp32 = {"name": "NVIDIA A100-SXM4-40GB", "dtype": "fp32", "cuda": "13.0"}
    assert peak_flops(DeviceUse(**fp32)) == 19.5e12 / 2
    # TF32 has a peak of its own.
    assert peak_flops(DeviceUse(**fp32, tf32="matmul conv")) is None
    assert peak_flops(DeviceUse(name="AMD EPYC", dtype="bf16")) is None
    assert peak_flops(DeviceUse(name="NVIDIA GeForce GTX 1080", dtype="fp16", cuda="12.6")) is None


def test_a_measured_rate_has_about_the_share_that_was_published_with_it():
    # NVIDIA's nvSubquadratic trains ViT-5-Small on an H100 at 8,003 images a second, and calls it 22.9 %.
    # timm counts 4.6 G multiply-adds for a ViT-S/16.
    model = NAMED_MODELS["vit_p_4gf"].cost(1000)
    images = 8003 * 60
    cost = TrialCost(model, epochs=2, steps=1, train_flops=int(3 * 4.6e9 * images * 2))
    row = epoch_row(1, train_seconds=60.0, val_seconds=1000.0)
    assert mfu_pct([(row, H100)], cost, ONE_GPU) == pytest.approx(22.9, abs=0.6)


def test_gpus_of_a_gang_and_parts_of_one_count():
    cost = TrialCost(NAMED_MODELS["vit_p_4gf"].cost(1000), 1, 1, int(989e12))
    rows = [(epoch_row(1, train_seconds=10.0), H100)]
    alone = mfu_pct(rows, cost, ONE_GPU)
    assert alone == pytest.approx(20.0)
    assert mfu_pct(rows, cost, Gang(4, 1, 1.0)) == pytest.approx(5.0)
    assert mfu_pct(rows, cost, Gang(1, 1, 0.25)) == pytest.approx(80.0)
    # Epochs that the table knows nothing of are left out of both sums.
    assert mfu_pct([*rows, (epoch_row(2, train_seconds=99.0), None)], cost, ONE_GPU) == alone
    assert Utilization().mfu_pct is None


def plan_and_records(use):
    plan = plan_of()
    records = {}
    for trial in plan.trials:
        record = records[trial.id] = Record(attempts=1, device=use, outcome="finished", busy_seconds=9.0)
        seconds = 2.0 if trial.arm == "p" else 4.0
        for epoch in (1, 2, 3):
            last = 50.0 if epoch == 3 else None
            record.rows[epoch] = epoch_row(epoch, train_seconds=seconds, test_pct=last)
            record.devices[epoch] = use
    return plan, records


def gathered(plan, records):
    return findings.gather(plan, records, Ledger("GPU", useful=9.0))


def shown(plan, records):
    console = Console(width=100, file=io.StringIO())
    console.print(view(Progress(plan, records), spent=Ledger("GPU", useful=9.0)))
    return console.file.getvalue()


def test_it_is_in_every_row_in_the_cost_of_an_arm_and_in_the_view():
    plan, records = plan_and_records(H100)
    by_arm = {}
    for trial in plan.trials:
        cost = plan.cost(trial)
        by_arm[trial.arm] = 100 * cost.train_flops * 2 / (3 * (2 if trial.arm == "p" else 4) * 989e12)
    for row in results_rows(plan, records):
        assert row["mfu_pct"] == pytest.approx(by_arm[row["arm"]])
    found = gathered(plan, records)
    for row in cost_per_arm(found):
        assert row["mfu_pct"] == pytest.approx(by_arm[row["arm"]])
    table = cost_table(found)
    assert table.columns[-1] == "#MFU (%)"
    assert [line.texts[-1].main for line in table.rows] == [short(by_arm[arm]) for arm in ("p", "c")]
    assert {arm: pytest.approx(share) for arm, share in by_arm.items()} == Progress(plan, records).mfu_pct
    told = ", ".join(f"{arm} {share:.2g} %" for arm, share in by_arm.items())
    assert f"MFU of the GPUs in training: {told}" in shown(plan, records)


def test_nothing_is_said_of_it_on_a_cpu():
    plan, records = plan_and_records(DeviceUse(name="AMD EPYC"))
    assert {row["mfu_pct"] for row in results_rows(plan, records)} == {None}
    assert "MFU" not in str(cost_table(gathered(plan, records)).columns)
    assert "MFU" not in shown(plan, records)
