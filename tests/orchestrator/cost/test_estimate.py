"""Costs: what is counted, against closed forms, autograd and hand calculations; plans against rows."""

import dataclasses
import itertools
import json
import re

import pytest
import torch
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.cost.actual import planned, planned_actual, spent_hours, within_budget
from orchestrator.cost.devices import DEVICES, Machine, described, device_called
from orchestrator.cost.estimate import GIB, estimate, makespan
from orchestrator.cost.plan_warnings import plan_warnings
from orchestrator.cost.shapes import Epochs, counted, shape_key, shape_of
from orchestrator.cost.speed import (
    REACHED,
    Rates,
    Sample,
    Span,
    fit_rates,
    from_table,
    samples_of,
    seconds_of_steps,
    seconds_per_epoch,
)
from orchestrator.execution import preflight
from orchestrator.execution.preflight import Checked, samples_of_steps, subjects
from orchestrator.store.folder import load_planned
from orchestrator.trials.gang import Node
from orchestrator.trials.records import Record
from orchestrator.trials.trial import Plan
from tests.support.sweeps import TINY, epoch_row, plan_from, sweep_tree, tiny_base
from trainables.base import DeviceUse, Epoch
from trainables.config import TrainConfig
from trainables.profiling.footprint import Work, footprint, shape_config

CPU = Machine("a processor", (Node(2, 0),), memory_gib=16)


def plan_of(**changes) -> Plan:
    optim = {"name": "adamw", "lr": 1e-3, "weight_decay": 0.1}
    tree = sweep_tree(
        base=tiny_base(optim=optim, schedule={"epochs": 4}) | changes.pop("base", {}),
        arms={"p": {}, "c": {"model.stem": "conv"}},
        design={"kind": "random", "points": 3},
    )
    return plan_from(tree | changes)


def row(epoch: int, seconds: float, test: float | None = None, peak: float | None = None) -> Epoch:
    times = {"train_seconds": 0.75 * seconds, "val_seconds": 0.25 * seconds, "peak_memory_gib": peak}
    return epoch_row(epoch, 9.0, step=epoch, test_pct=test, **times)


# --- what a step holds --------------------------------------------------------------------------------


def counted_bytes(run_tree, **settings):
    config = TrainConfig.model_validate(run_tree(**settings))
    return config, footprint(config, 10, 1199, 1797)


def test_a_drawn_strength_of_stochastic_depth_makes_one_shape_and_none_another():
    vary = {"model.drop_path": {"choice": [0.0, 0.1, 0.3]}}
    tree = {
        "name": "drop",
        "base": {
            "model.family": "vit",
            "model.size": "nano",
            "data": "digits",
            "optim": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.1},
            "schedule.epochs": 1,
        },
        "arms": {"p": {}},
        "vary": vary,
        "design": {"kind": "grid"},
    }
    plan = plan_from(tree)
    assert len(plan.trials) == 3
    assert len({shape_of(trial) for trial in plan.trials}) == 2


@pytest.mark.parametrize(
    ("changes", "others"),
    [
        ({"mixup": {"mixup_alpha": 0.2}}, {"mixup": {"mixup_alpha": 0.8}}),
        ({"clip_grad_norm": 1.0}, {"clip_grad_norm": 5.0}),
        ({"label_smoothing": 0.1}, {"label_smoothing": 0.0}),
        ({"ema": {"time_constant": 0.1}}, {"ema": {"time_constant": 0.2}}),
    ],
    ids=str,
)
def test_strengths_do_not_make_a_shape_and_whether_there_are_any_does(run_tree, changes, others):
    one, other, none = (TrainConfig.model_validate(run_tree(**more)) for more in (changes, others, {}))
    assert shape_config(one) == shape_config(other)
    assert (shape_config(one) == shape_config(none)) == ("label_smoothing" in changes)


def test_what_lives_between_steps_is_what_the_optimizer_and_the_average_keep(run_tree):
    config, adamw = counted_bytes(run_tree, ema={})
    params = config.model.cost(10).params
    num_tensors = len(list(config.model.network(10).parameters()))
    assert adamw.params == adamw.gradients == adamw.ema == 4 * params
    # Two moments in fp32, and a count of steps per tensor.
    assert adamw.optimizer == 2 * 4 * params + 4 * num_tensors
    assert adamw.state == adamw.params + adamw.ema + adamw.optimizer
    _, sgd = counted_bytes(run_tree, optim={"name": "sgd", "lr": 0.1, "weight_decay": 1e-4})
    assert (sgd.optimizer, sgd.ema) == (4 * params, 0)
    # 1797 digits of 3 x 16 x 16 bytes.
    assert adamw.images == 1797 * 768


@pytest.mark.parametrize("stem", ["patchify", "conv"])
def test_activations_are_what_autograd_saves(run_tree, stem):
    config, found = counted_bytes(run_tree, model__stem=stem, batch_size=100)
    model = config.model.network(10)
    own = {p.untyped_storage().data_ptr() for p in itertools.chain(model.parameters(), model.buffers())}
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    # An epoch of 1199 digits in 12 equal steps: 100 images in the largest.
    images_BCHW, labels_B = torch.rand(100, 3, 16, 16), torch.zeros(100, dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logits_BK = model(images_BCHW)
        loss = torch.nn.functional.cross_entropy(logits_BK, labels_B, reduction="sum")
    assert loss.requires_grad
    # Beside what is saved the pipeline keeps the batch's bytes, and the step its logits.
    beside = 100 * 768 + logits_BK.untyped_storage().nbytes() + loss.nbytes
    assert found.batch == 100
    assert found.activations == pytest.approx(sum(saved.values()) + beside, rel=0.01)


def test_activations_grow_with_the_share_of_a_worker(run_tree):
    config, alone = counted_bytes(run_tree)
    two = footprint(config, 10, 1199, 1797, workers=2)
    assert (alone.batch, two.batch) == (120, 60)
    assert two.activations == pytest.approx(alone.activations / 2, rel=0.01)
    # Gradients lie in the buckets of DDP, which come in addition to nothing.
    assert (two.params, two.gradients, two.state) == (alone.params, alone.gradients, alone.state)


def test_activations_shrink_with_micro_batches_and_the_work_stays(run_tree):
    config, whole = counted_bytes(run_tree)
    parts = footprint(config.model_copy(update={"micro_batch": 30}), 10, 1199, 1797)
    assert (parts.batch, parts.state) == (whole.batch, whole.state)
    # The images of the whole batch stay, as bytes and as floats.
    images = whole.batch * 3 * 16**2 * 5
    assert parts.activations - images == pytest.approx((whole.activations - images) / 4, rel=0.02)
    assert parts.peak < whole.peak
    # The optimizer works once, and each weight is read for each part.
    assert parts.step.flops == pytest.approx(whole.step.flops, rel=1e-3)


def test_activations_that_are_computed_again_are_not_held_and_are_work(run_tree):
    # Two depths, so that what a block adds can be told from the rest.
    held, again, work = {}, {}, {}
    for depth in (3, 7):
        config, kept = counted_bytes(run_tree, model__depth=depth)
        recomputing = config.model_copy(update={"model": config.model.model_copy(update={"recompute": True})})
        found = footprint(recomputing, 10, 1199, 1797)
        held[depth], again[depth] = kept.activations, found.activations
        work[depth] = found.step.flops - kept.step.flops
        assert found.state == kept.state
        assert found.peak < kept.peak
    model = config.model
    # A block leaves its input alone, as floats.
    its_input = kept.batch * model.num_tokens * model.width * 4
    assert again[7] - again[3] == pytest.approx(4 * its_input, rel=0.01)
    assert held[7] - held[3] > 10 * (again[7] - again[3])
    # All of a block but its last product, whose output nothing saves.
    last_product = model.num_tokens * model.hidden * model.width
    assert work[7] - work[3] == pytest.approx(
        4 * kept.batch * (model.block_cost().flops - last_product), rel=1e-6
    )


def test_strengths_of_regularisation_do_not_make_another_count(run_tree):
    _, some = counted_bytes(run_tree, model__drop_path=0.1, label_smoothing=0.1, mixup={"mixup_alpha": 0.5})
    _, more = counted_bytes(run_tree, model__drop_path=0.3, label_smoothing=0.0, mixup={"mixup_alpha": 0.8})
    _, none = counted_bytes(run_tree, label_smoothing=0.1)
    assert some is more
    # Masks of dropped paths, and the batch that the mixed one was made of.
    assert some.activations > none.activations


def test_half_precision_is_counted_where_auto_means_it(run_tree):
    config, full = counted_bytes(run_tree)
    on_gpu = footprint(config, 10, 1199, 1797, on_gpu=True)
    half = footprint(config.model_copy(update={"precision": "bf16"}), 10, 1199, 1797)
    assert on_gpu.activations == half.activations < full.activations


def test_a_step_makes_three_forward_passes_of_multiply_adds(run_tree):
    config, found = counted_bytes(run_tree)
    forward = config.model.cost(10).flops
    assert found.evaluated.flops == pytest.approx(forward)
    # The first layer needs no gradient of its input; attention's backward computes its logits anew.
    assert found.step.flops == pytest.approx(3 * forward * found.batch, rel=0.15)


# --- seconds ------------------------------------------------------------------------------------------


def test_a_data_sheet_gives_seconds_by_hand():
    shape = shape_of(plan_of(resources={"cpus_per_worker": 5}).trials[0])
    half = dataclasses.replace(shape, config=shape.config.model_copy(update={"precision": "fp16"}))
    # 62.5 T multiply-adds are one second of 125 TFLOPS, 450 GB half a second of 900 GB/s.
    epochs = Epochs(Work(62.5e12, 450e9, 10), 0.0, Work())
    span = from_table(half, epochs, DEVICES["V100"])
    assert span.central == pytest.approx(1.5 / REACHED.central)
    assert (span.low, span.high) == (pytest.approx(1.5 / REACHED.high), pytest.approx(1.5 / REACHED.low))
    full = dataclasses.replace(shape, config=shape.config.model_copy(update={"precision": "fp32"}))
    seconds = from_table(full, epochs, DEVICES["V100"]).central
    assert seconds == pytest.approx((125 / 15.7 + 0.5) / REACHED.central)
    # Four cores decode while the fifth trains: 350 images per second each.
    slow_input = dataclasses.replace(epochs, decoded=28_000.0)
    assert from_table(half, slow_input, DEVICES["V100"]).central == pytest.approx(20.0)
    # Eight of nine cores decode twice as fast.
    assert from_table(half, slow_input, DEVICES["V100"], cores=9).central == pytest.approx(10.0)


def planted(rates: Rates, works: list[Work]) -> list[Sample]:
    shape = shape_of(plan_of().trials[0])
    return [Sample(shape, "d", Epochs(work, 0.0, Work()), (rates.seconds(work),)) for work in works]


def test_rates_are_found_again_from_shapes_that_differ():
    rates = Rates(1 / 80e9, 1 / 5e9, 2e-5)
    works = [Work(f * 1e9, b * 1e9, k * 1e3) for f, b, k in [(1, 1, 9), (9, 1, 1), (2, 8, 2), (5, 5, 5)]]
    new = Work(4e9, 2e9, 7e3)
    assert fit_rates(planted(rates, works)).seconds(new) == pytest.approx(rates.seconds(new), rel=0.03)


def test_one_shape_sets_the_scale():
    [only] = planted(Rates(1 / 80e9, 1 / 5e9, 2e-5), [Work(1e9, 1e9, 1e3)])
    twice = only.epochs.work * 2
    assert fit_rates([only]).seconds(twice) == pytest.approx(2 * only.seconds[0])


def test_seconds_come_from_the_best_source_there_is():
    shape, other = (shape_of(trial) for trial in plan_of().trials[:2])
    epochs = Epochs(Work(1e9, 1e9, 1e3), 0.0, Work())
    rates = Rates(1e-9, 0.0, 0.0)
    same = Sample(shape, "d", epochs, (2.0, 3.0, 4.0))
    double = Sample(other, "d", Epochs(Work(2e9, 2e9, 2e3), 0.0, Work()), (10.0,))
    elsewhere = dataclasses.replace(same, device="another")

    def told(samples, device="d", probe=rates):
        found = seconds_per_epoch(shape, epochs, device, samples, probe)
        return (found[1], found[0].central) if found else None

    assert told([same, double]) == ("measured", 3.0)
    assert told([double, elsewhere]) == ("scaled", pytest.approx(5.0))
    assert told([elsewhere]) == ("probe", 1.0)
    assert told([], device="V100")[0] == "table"
    assert told([elsewhere], probe=None) is None


def test_ranges_hold_their_centre():
    shape, other = (shape_of(trial) for trial in plan_of().trials[:2])
    epochs = Epochs(Work(1e9, 3e9, 1e3), 0.0, Work())
    samples = [Sample(other, "d", Epochs(Work(4e9, 2e9, 2e3), 0.0, Work()), (10.0,))]
    for device, known in (("d", samples), ("H100", []), ("d", [Sample(shape, "d", epochs, (2.0,))])):
        span, _ = seconds_per_epoch(shape, epochs, device, known, None)
        assert 0 < span.low < span.central < span.high


# --- hours, money, walls ------------------------------------------------------------------------------


def samples_for(plan: Plan, seconds: float = 36.0, device: str = CPU.device) -> list[Sample]:
    shapes = {shape_of(trial): None for trial in plan.trials}
    return [Sample(shape, device, counted(plan, shape, False)[1], (seconds,)) for shape in shapes]


def test_hours_lanes_and_price_by_hand():
    plan = plan_of(resources={"cpus_per_worker": 2, "price": {"per_core_hour": 0.5, "currency": "EUR"}})
    found = estimate(plan, CPU, samples_for(plan))
    # 6 trials of 4 epochs of 36 s on 2 cores.
    assert found.unit == "core-hours"
    assert found.hours.central == pytest.approx(6 * 4 * 36 * 2 / 3600)
    assert found.lanes == (1,)
    assert found.wall_hours.central == pytest.approx((6 * 4 * 36 + 25) / 3600)
    assert (found.price.central, found.currency) == (pytest.approx(0.24), "EUR")
    assert [cost.basis for cost in found.shapes] == ["measured", "measured"]
    assert [cost.trials for cost in found.shapes] == [3, 3]


def test_gpus_are_counted_where_there_are_any():
    plan = plan_of(resources={"workers": 2, "price": {"per_gpu_hour": 9.0}})
    found = estimate(plan, described("8xA100"), samples_for(plan, device="A100-80GB"), price_per_gpu_hour=2.0)
    assert (found.unit, found.lanes) == ("GPU-hours", (4,))
    assert found.hours.central == pytest.approx(6 * 4 * 36 * 2 / 3600)
    assert found.price.central == pytest.approx(2 * found.hours.central)


def test_without_any_source_the_hours_are_unknown_and_the_memory_is_not():
    found = estimate(plan_of(), CPU)
    assert found.hours is None
    assert found.wall_hours is None
    assert all(cost.footprint.peak > 0 for cost in found.shapes)
    json.dumps(found.plain())


def test_trials_of_several_sizes_share_the_devices():
    cells = {"size": {"small": {}, "large": {"resources.workers": 2}}}
    plan = plan_of(cells=cells)
    found = estimate(plan, described("4xA100"), samples_for(plan, device="A100-80GB"))
    # 6 trials of each size, of 4 epochs of 36 s, fill four GPUs for 18 trials' time / 4.
    assert found.hours.central == pytest.approx((6 * 2 + 6) * 4 * 36 / 3600)
    assert found.lanes == (2, 4)
    least = (6 * 2 + 6) / 4 * 4 * 36
    # Crew by crew they take three rounds of pairs and two of single ones; a start of lanes for each size.
    assert least + 2 * 25 <= 3600 * found.wall_hours.central <= (3 + 2) * 4 * 36 + 2 * 25
    assert found.time_text(12).endswith("on 4 GPUs, 2 or 4 at a time")
    # With one size there is one number.
    alone = plan_of()
    told = estimate(alone, described("4xA100"), samples_for(alone, device="A100-80GB")).time_text(6)
    assert told.endswith("on 4 GPUs, 4 at a time")


@pytest.mark.parametrize("lanes", [1, 2, 3])
@pytest.mark.parametrize("jobs", [[3, 1, 4, 1, 5], [2, 2, 2], [9, 1, 1, 1, 1, 1]])
def test_the_end_is_found_as_by_a_clock_that_ticks(jobs, lanes):
    waiting, left, clock = list(jobs), [0] * lanes, 0
    while waiting or any(left):
        left = [rest or (waiting.pop(0) if waiting else 0) for rest in left]
        left = [max(rest - 1, 0) for rest in left]
        clock += 1
    assert makespan(jobs, lanes) == clock


# --- names and warnings -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA A100-SXM4-40GB", "A100-40GB"),
        ("a100", "A100-80GB"),
        ("Tesla V100-SXM2-32GB", "V100"),
        ("Tesla T4", "T4"),
        ("NVIDIA GeForce RTX 4090", "RTX-4090"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA L40", None),
        ("NVIDIA A10G", "A10G"),
        ("NVIDIA B200", "B200"),
        ("NVIDIA GeForce RTX 3060", None),
        ("AMD EPYC", None),
    ],
)
def test_a_gpu_is_known_by_the_name_its_driver_gives(name, key):
    assert device_called(name) == key


@pytest.mark.parametrize(
    "text", ["8xB9000", "0xH100", "-1xH100", "99999999999xH100", "1e9xcpu", "0xcpu", "-4xcpu", ""]
)
def test_an_unknown_machine_is_refused_with_the_known_ones(text):
    with pytest.raises(ValueError, match="one of V100, T4"):
        described(text)


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        ({"resources": {"workers": 3}}, "batch: batch_size 128 is not divisible by 3 workers"),
        (
            {"arms": {"p": {}, "same": {"model.stem": "patchify"}}},
            "pairing: all same has the same trials as all p",
        ),
        (
            {"vary": {"optim.lr": {"p": {"uniform": [1e-3, 2e-3]}, "c": {"uniform": [3e-3, 4e-3]}}}},
            "pairing: vary.optim.lr has windows by arm (p, c)",
        ),
        (
            {"vary": {"optim.lr": {"p": {"uniform": [1e-3, 2e-3]}}}},
            "pairing: vary.optim.lr does not vary in c",
        ),
        (
            {
                "vary": {
                    "optim.lr": {"log_uniform": [1e-4, 1e-2]},
                    "model.drop_path": {"uniform": [0, 0.2], "when": {"model.stem": "conv"}},
                }
            },
            "pairing: vary.model.drop_path does not vary in p",
        ),
        (
            {"arms": {"p": {}, "c": {"model.stem": "conv", "seeds.init": 1}}},
            "pairing: arms set seeds of their own",
        ),
        (
            {
                "base": {"optim": {"name": "adamw", "weight_decay": 0.1, "lr": 1e-3}},
                "vary": {"model.depth": {"choice": [2, 3, 4, 5]}},
                "design": {"kind": "grid", "levels": 4},
                "where": ["model.depth < 4 or model.stem == 'patchify'"],
            },
            "window: where `model.depth < 4 or model.stem == 'patchify'` removes 2 of 4 points of all c, "
            "0 of p's",
        ),
        ({"resources": {"cpus_per_worker": 3}}, "resources: 6 trial(s) need 3 CPU"),
        ({"error": "best_epoch"}, "selection: error: best_epoch"),
        (
            {"budget": {"max_core_hours": 0.1}},
            "budget: about 0.24 core-hours are expected, and the budget is 0.1",
        ),
        ({"budget": {"max_core_hours": 0.245}}, "budget: up to 0.252 core-hours are possible"),
        ({"resources": {"workers": 2, "lanes": 40}}, "memory: 12 worker(s) of up to 0.8 GiB each"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_to_look_at_is_said(changes, warning):
    machine = dataclasses.replace(CPU, memory_gib=8) if "memory" in warning else CPU
    plan = plan_of(**changes)
    warnings = plan_warnings(plan, estimate(plan, machine, samples_for(plan)))
    assert [line for line in warnings if line.startswith(warning)], warnings


def test_settings_that_make_a_step_fit_are_named_and_fit():
    cnn = {"model": {"family": "regnety", "size": "nano"}}
    deep = {"batch_size": 1024, "model": TINY | {"depth": 12}}
    plan = plan_of(base=deep, arms={"p": {}, "cnn": cnn})
    room = 0.6 * min(cost.footprint.peak for cost in estimate(plan, described("1xH100")).shapes) / GIB
    machine = dataclasses.replace(described("1xH100"), memory_gib=room / 0.9)
    cnn, vit = sorted(
        line for line in plan_warnings(plan, estimate(plan, machine)) if line.startswith("memory")
    )
    assert vit.startswith("memory: all p (1024 adamw) needs ")
    micro_batch, needed, again = re.search(
        r"set micro_batch: (\d+) \((\S+) GiB\), model.recompute: true \((\S+) GiB\), or more", vit
    ).groups()
    config, info = plan.trials[0].config, plan.infos[plan.trials[0].config.data]
    sizes = info.sizes

    def gib(**changes):
        changed = config.model_copy(update=changes)
        return footprint(changed, 10, sizes["train"], sum(sizes.values()), 1, True).peak / GIB

    assert f"{gib(micro_batch=int(micro_batch)):.1f}" == needed
    assert f"{gib(model=config.model.model_copy(update={'recompute': True})):.1f}" == again
    assert gib(micro_batch=int(micro_batch)) <= room < min(gib(), gib(micro_batch=4 * int(micro_batch)))
    # Its batch norm would take statistics twice, and its weights and optimizer alone are too large.
    assert cnn.endswith("on H100; set a smaller model")


def test_a_constraint_that_takes_a_fifth_or_less_is_not_remarked():
    grid = {"kind": "grid", "levels": 5}
    rates = {"optim.lr": {"choice": [1e-3, 2e-3, 3e-3, 4e-3, 5e-3]}}
    plan = plan_of(vary=rates, design=grid, where=["optim.lr < 5e-3 or model.stem == 'patchify'"])
    assert {removal.removed for removal in plan.removals} == {0, 1}
    assert not [line for line in plan_warnings(plan, estimate(plan, CPU)) if line.startswith("window")]


def test_selecting_on_the_split_of_the_final_numbers_is_remarked(write_parquet, png_bytes):
    images = [png_bytes([[i] * 8] * 8) for i in range(40)]
    path = write_parquet("train.parquet", images, [0, 1] * 20, ["a", "b"])
    data = {"name": "parquet", "path": str(path), "selection": "final"}
    plan = plan_of(base={"data": data})
    warnings = plan_warnings(plan, estimate(plan, CPU))
    assert [line for line in warnings if "selects on the split of the final errors" in line]


def test_nothing_is_said_where_there_is_nothing_to_say():
    plan = plan_of(budget={"max_core_hours": 1.0})
    assert plan_warnings(plan, estimate(plan, CPU, samples_for(plan))) == []


# --- what it did cost ---------------------------------------------------------------------------------


def test_what_is_spent_counts_all_attempts_and_stops_a_run_at_its_budget():
    plan = plan_of(budget={"max_core_hours": 1.0}, resources={"cpus_per_worker": 2})
    first, second, *_ = plan.trials
    records = {first.id: Record(outcome="finished", busy_seconds=1200.0)}
    assert spent_hours(plan, records, CPU.nodes) == pytest.approx(1200 * 2 / 3600)
    assert within_budget(plan, records, CPU.nodes)
    # A running trial counts by its epochs.
    records[second.id] = Record(running=True, rows={1: row(1, 600.0)})
    assert spent_hours(plan, records, CPU.nodes) == pytest.approx(1.0)
    assert not within_budget(plan, records, CPU.nodes)
    assert within_budget(plan_of(), records, CPU.nodes)


def test_planned_stands_beside_actual():
    plan = plan_of(resources={"cpus_per_worker": 2})
    first, other = plan.trials[0], plan.trials[1]
    rows = {n: row(n, 30.0, test=9.0 if n == 4 else None, peak=0.5) for n in (1, 2, 3)}
    rows[4] = row(4, 90.0, test=9.0, peak=0.75)
    records = {first.id: Record(outcome="finished", busy_seconds=200.0, rows=rows)}
    before = planned(plan, estimate(plan, CPU, samples_for(plan)), "2026-01-01T00:00:00Z")
    [found] = planned_actual(plan, before, records)
    assert (found.arms, found.trials_run, found.trials) == ((("all", "p"),), 1, 3)
    assert (found.planned_seconds.central, found.seconds, found.basis) == (36.0, 30.0, "measured")
    # Four epochs of 36 s on two cores; 200 s of them.
    assert found.planned_hours.central == pytest.approx(4 * 36 * 2 / 3600)
    assert found.hours == pytest.approx(200 * 2 / 3600)
    assert found.peak_gib == 0.75
    [sample] = samples_of(plan, records, CPU.device, on_gpu=False)
    assert sample.seconds == (30.0, 30.0, 30.0)
    # A second shape makes a row of all.
    records[other.id] = Record(running=True, rows={1: row(1, 40.0)})
    *_, everything = planned_actual(plan, before, records)
    assert (everything.arms, everything.trials_run, everything.trials) == ((), 2, 6)
    assert everything.planned_hours.central == pytest.approx(5 * 36 * 2 / 3600)
    assert everything.hours == pytest.approx(240 * 2 / 3600)


def test_the_speed_of_one_device_is_never_that_of_another():
    plan = plan_of(resources={"cpus_per_worker": 2})
    first, second, *_ = (trial for trial in plan.trials if trial.arm == "p")
    here, h100 = (
        DeviceUse(name=CPU.device),
        DeviceUse(name="NVIDIA H100 80GB HBM3", dtype="bf16", cuda="13.0"),
    )
    other = DeviceUse(name="another processor")
    records = {
        # Began on the planned processor; its third epoch was computed partly there, the fourth not.
        first.id: Record(
            outcome="finished",
            busy_seconds=160.0,
            rows={1: row(1, 30.0), 2: row(2, 30.0), 3: row(3, 20.0), 4: row(4, 10.0)},
            devices={1: here, 2: here, 3: h100, 4: h100},
            busy_on={here: 100.0, h100: 60.0},
        ),
        second.id: Record(running=True, rows={1: row(1, 50.0)}, devices={1: other}, device=other),
    }
    # The device of the folder's record is that of no epoch here.
    samples = {s.device: s.seconds for s in samples_of(plan, records, "the head", on_gpu=False)}
    assert samples == {CPU.device: (30.0, 30.0), "H100": (10.0,), "another processor": (50.0,)}

    before = planned(plan, estimate(plan, CPU, samples_for(plan)), "2026-01-01T00:00:00Z")
    rows = planned_actual(plan, before, records)
    assert [(r.device, r.trials_run, r.seconds) for r in rows] == [
        ("", 1, 30.0),
        ("H100", 1, 15.0),
        ("another processor", 1, 50.0),
    ]
    assert [r.planned_seconds and r.planned_seconds.central for r in rows] == [36.0, None, None]
    assert rows[0].planned_hours.central == pytest.approx(2 * 36 * 2 / 3600)
    assert [r.hours for r in rows] == pytest.approx([100 * 2 / 3600, 60 * 2 / 3600, 50 * 2 / 3600])


def test_a_plan_is_read_as_it_was_written_and_knows_its_shapes_in_a_larger_sweep():
    plan = plan_of()
    before = planned(plan, estimate(plan, CPU, samples_for(plan)), "2026-01-01T00:00:00Z")
    again = type(before).model_validate_json(before.model_dump_json())
    assert again == before
    assert before.trials == 6
    # More points, and an arm that nobody had planned.
    larger = plan_of(
        arms={"p": {}, "c": {"model.stem": "conv"}, "deep": {"model.depth": 3}},
        design={"kind": "random", "points": 5},
    )
    records = {t.id: Record(outcome="finished", rows={1: row(1, 10.0)}) for t in larger.trials}
    p, c, deep, everything = planned_actual(larger, again, records)
    assert [r.planned_seconds and r.planned_seconds.central for r in (p, c, deep)] == [36.0, 36.0, None]
    assert (deep.planned_hours, deep.planned_peak_gib, deep.basis) == (None, None, None)
    # What had no plan is not in the sum.
    assert (everything.trials_run, everything.planned_hours.central) == (10, pytest.approx(10 * 36 / 3600))


def test_a_step_of_the_preflight_tells_the_seconds_of_its_shape_unless_rows_do():
    plan = plan_of()
    first, second = subjects(plan, plan.trials)
    held, epochs = counted(plan, first.shape, on_gpu=False)
    checked = [Checked(first, held.peak, 0.25, None), Checked(second, held.peak, 0.0, None)]
    # A step without a time tells nothing.
    [sample] = samples_of_steps(plan, checked, CPU.device, CPU.nodes)
    assert (sample.shape, sample.basis) == (first.shape, "preflight")
    # 1199 digits in ten steps of up to 128, and the selection split, forward only, of 299.
    forward = plan.cost(first.trials[0]).model.flops
    steps, evaluated = 10 * held.step.flops, 299 * forward
    assert sample.seconds[0] == pytest.approx(0.25 * (steps + evaluated) / held.step.flops, rel=1e-6)
    span, basis = seconds_per_epoch(first.shape, epochs, CPU.device, [sample], None)
    assert (span.central, basis) == (sample.seconds[0], "preflight")
    assert (span.low, span.high) == (span.central / 2, span.central * 2)
    other, _ = seconds_per_epoch(second.shape, epochs, CPU.device, [sample], None)
    assert other.high / other.low == pytest.approx(4)
    rows = dataclasses.replace(sample, seconds=(9.0,), basis="measured")
    assert seconds_per_epoch(first.shape, epochs, CPU.device, [sample, rows], None)[1] == "measured"


@pytest.mark.parametrize(
    ("decoded", "cores", "on_gpu", "seconds"),
    [
        # 100 steps of 0.1 s; 350 images a second and core. One of the cores computes.
        (0, 1, True, 10),
        (3500, 1, True, 10 + 10),
        (3500, 2, True, 10),
        (35_000, 5, True, 25),
        # On a CPU nobody else decodes.
        (3500, 5, False, 20),
    ],
)
def test_a_step_of_the_preflight_counts_with_the_decoding_that_it_did_not_see(
    decoded, cores, on_gpu, seconds
):
    epochs = Epochs(Work(100e9, 0, 0), decoded, Work())
    found = seconds_of_steps(0.1, Work(1e9, 0, 0), epochs, cores, on_gpu)
    assert found == pytest.approx(seconds)


def test_the_first_run_keeps_a_plan_of_every_shape_unless_there_are_too_many(tmp_path, monkeypatch):
    plan = plan_of()
    largest = subjects(plan, plan.trials)[0]
    checked = [Checked(largest, 1, 0.25, None)]
    (tmp_path / "x").mkdir()
    assert preflight.record_plan(tmp_path / "x", plan, CPU.nodes, checked)
    kept = load_planned(tmp_path / "x")
    assert (kept.trials, kept.unit) == (6, "core-hours")
    assert {key: one.basis for key, one in kept.shapes.items()} == {
        shape_key(shape_of(trial)): "preflight" if shape_of(trial) == largest.shape else "scaled"
        for trial in plan.trials
    }
    assert kept.hours.low < kept.hours.central < kept.hours.high
    monkeypatch.setattr(preflight, "MAX_RECORDED_SHAPES", 1)
    assert not preflight.record_plan(tmp_path / "y", plan, CPU.nodes, checked)
    assert load_planned(tmp_path / "y") is None


def test_spans_add_and_scale():
    assert Span(1, 2, 3) * 2 + Span(1, 1, 1) == Span(3, 5, 7)


def test_the_plan_of_a_large_machine_is_told_in_json(tmp_path, monkeypatch):
    from pathlib import Path

    monkeypatch.chdir(tmp_path)
    file = Path(__file__).parents[3] / "search_spaces" / "lr_wd.yaml"
    arguments = ["plan", str(file), "--points", "1", "--on", "8xH100", "--price-per-gpu-hour", "3"]
    told = CliRunner().invoke(app, [*arguments, "--json"])
    assert told.exit_code == 0, told.output
    cost = json.loads(told.stdout)["cost"]
    assert (cost["device"], cost["unit"], cost["lanes"]) == ("H100", "GPU-hours", [4])
    assert len(cost["shapes"]) == 4
    assert cost["price"]["central"] == pytest.approx(3 * cost["hours"]["central"])
    monkeypatch.setenv("COLUMNS", "100")
    shown = CliRunner().invoke(app, arguments)
    assert "data sheet" in shown.stdout
    assert "GPU-hours on H100" in shown.stdout
    assert not list(tmp_path.iterdir())
