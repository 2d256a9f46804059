"""Where states lie, whose weights are kept, and that nothing is deleted before what replaces it is there."""

import asyncio
import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError

from orchestrator.backends import ray_cluster
from orchestrator.cost import estimate
from orchestrator.execution import run, worker
from orchestrator.execution.coordinator import Coordinator
from orchestrator.execution.dispatch import Job
from orchestrator.store.folder import record_retries
from orchestrator.store.weights import KeptWeights, WeightStore
from orchestrator.sweep.config import Resources
from orchestrator.trials.events import SessionBegan
from orchestrator.trials.gang import Node
from tests.orchestrator.store.test_journal import row
from tests.support import sweeps as support
from tests.trainables.training.test_checkpoint import FakeClerk
from trainables.config import TrainConfig
from trainables.context import Context
from trainables.training.checkpoint import Store
from trainables.training.transfer import final_weights

#: Trials in the order in which they end: id, group, error.
ENDS = [
    ("a", "x", 30.0),
    ("b", "y", 9.0),
    ("c", "x", 20.0),
    ("d", "x", 25.0),
    ("e", "y", 9.0),
    ("f", "x", 10.0),
]


def run_through(folder: Path, keep: str, ends=ENDS, place: str | None = None) -> list[str]:
    """Has a clerk take these trials to their end, one after the other; a line per file deleted."""
    clerk = Coordinator(str(folder), keep=keep, checkpoints=place)
    states = WeightStore(folder, place)
    deleted = []

    async def go() -> None:
        await clerk.note(SessionBegan(time=0.0, began=0.0))
        await clerk.add([Job(trial, "arm", "{}", group=group) for trial, group, _ in ends])
        await clerk.open_slot("lane")
        last = await clerk.enter("lane", "node")
        for trial, _, error in ends:
            await clerk.open_slot("lane")
            last, job = await clerk.take("lane", last)
            assert job["trial"] == trial
            Store(states.checkpoint(trial)).write({"epoch": 1, "step": 0})
            await clerk.row("lane", last, row(1, error))
            if (kept := await clerk.keeps("lane", last, error)) is not None:
                states.keep(kept, lambda file, trial=trial: file.write(trial.encode()))
            before = {kept.trial for kept in states.kept()}
            await clerk.end("lane", last, "finished", "", kept=kept)
            deleted.append("".join(sorted(before - {kept.trial for kept in states.kept()})))

    asyncio.run(go())
    return deleted


def kept_in(states: WeightStore) -> dict[str, str]:
    return {kept.trial: kept.group for kept in states.kept()}


def test_the_best_of_each_group_keeps_its_weights_and_the_one_before_goes_after_it_is_there(tmp_path):
    # `c` replaces `a`, `f` replaces `c`; `e` is only as good as `b`, `d` is worse than `c`.
    assert run_through(tmp_path, "best") == ["", "", "a", "", "", "c"]
    assert kept_in(WeightStore(tmp_path)) == {"b": "y", "f": "x"}
    assert (tmp_path / "trials" / "f" / "final.pt").read_bytes() == b"f"


def test_a_later_run_goes_on_from_what_is_kept(tmp_path):
    run_through(tmp_path, "best", ENDS[:3])
    assert run_through(tmp_path, "best", [("g", "x", 21.0), ("h", "x", 19.0)]) == ["", "c"]
    assert kept_in(WeightStore(tmp_path)) == {"b": "y", "h": "x"}


def test_what_a_killed_clerk_could_not_delete_any_more_the_next_one_does(tmp_path):
    states = WeightStore(tmp_path)
    for trial, group, error in ENDS:
        states.keep(KeptWeights(trial, group, error), lambda file: file.write(b"weights"))
    # Half written or half deleted: the word of it alone is no weights, nor are they without it.
    (tmp_path / "trials" / "f" / "final.pt").unlink()
    (tmp_path / "trials" / "b" / "final.json").write_text("{")
    Coordinator(str(tmp_path), keep="best")
    assert kept_in(states) == {"c": "x", "e": "y"}


@pytest.mark.parametrize(("keep", "trials"), [("none", ""), ("last", "abcdef")])
def test_all_finished_trials_keep_theirs_or_none_does(keep, trials, tmp_path):
    assert run_through(tmp_path, keep) == [""] * len(ENDS)
    assert "".join(sorted(kept_in(WeightStore(tmp_path)))) == trials


def test_states_in_another_place_lie_under_the_sweep_s_name_and_are_deleted_there(tmp_path):
    place = (tmp_path / "bucket").as_uri()
    run_through(tmp_path / "runs" / "small", "best", place=place)
    files = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file())
    assert files == [
        *(f"bucket/small/{trial}/final.{kind}" for trial in "bf" for kind in ("json", "pt")),
        "runs/small/journal/000001.jsonl",
    ]


def test_a_trial_that_is_to_run_anew_keeps_no_state(tmp_path):
    states = WeightStore(tmp_path)
    Store(states.checkpoint("a")).write({"epoch": 1, "step": 0})
    for trial in "ab":
        states.keep(KeptWeights(trial, "x", 1.0), lambda file: file.write(b"weights"))
    record_retries(tmp_path, ["a"])
    assert Store(states.checkpoint("a")).paths() == []
    assert kept_in(states) == {"b": "x"}


def test_a_worker_keeps_the_weights_that_its_digest_is_of(run_tree, tmp_path, monkeypatch):
    monkeypatch.setattr(worker.ray, "get", lambda value: value)
    monkeypatch.setattr(worker.ray, "wait", lambda values, timeout: (values, []))
    config = TrainConfig.model_validate(run_tree(schedule__epochs=1))
    clerk, asked = FakeClerk(), []
    kept = KeptWeights("abc", "all p", 12.5)
    clerk.keeps = SimpleNamespace(remote=lambda *rest: asked.append(rest) or kept)
    settings = {"clerk": clerk, "lane": "lane", "folder": str(tmp_path), "hang_seconds": 600}
    settings["key"] = "small-1"
    job = {"trial": "abc", "config": config.model_dump_json(), "attempt": 1, "epochs": 0}
    worker._run_job(job, 1, settings | {"checkpoints": None}, Context())
    assert asked == [("lane", 1, clerk.rows[-1]["val_error_pct"])]
    [(end, _, log, weights, told)] = clerk.ends
    assert (end, log, told) == ("finished", "", kept)
    with (tmp_path / "trials" / "abc" / "final.pt").open("rb") as file:
        # As `--start` reads them.
        tensors = final_weights(file)
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(name.encode() + tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    assert digest.hexdigest()[:16] == weights
    assert json.loads((tmp_path / "trials" / "abc" / "final.json").read_text())["val_error_pct"] == 12.5


def test_weights_that_an_earlier_version_kept_are_found(tmp_path):
    folder = tmp_path / "trials" / "abc"
    folder.mkdir(parents=True)
    (folder / "final.pt").write_bytes(b"weights")
    (folder / "final.json").write_text('{"trial": "abc", "group": "all p", "val_top1_error_pct": 12.5}')
    assert WeightStore(tmp_path).kept() == [KeptWeights("abc", "all p", 12.5)]


def test_weights_that_cannot_be_written_cost_a_line_and_no_trial(tmp_path, monkeypatch):
    monkeypatch.setattr("trainables.training.checkpoint.BACKOFF_SECONDS", (0.0, 0.0))
    tries = []

    def refuse(file) -> None:
        tries.append(file)
        raise OSError(28, "No space left on device")

    fault = worker.keep_weights(WeightStore(tmp_path), KeptWeights("a", "x", 1.0), refuse)
    assert fault.endswith("weights are not kept: [Errno 28] No space left on device")
    assert len(tries) == 3
    assert WeightStore(tmp_path).kept() == []


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("states", "absolute path"),
        ("~/states", "absolute path"),
        ("s3://me:hunter2@bucket", "carries a password"),
    ],
)
def test_a_place_that_is_another_one_in_each_process_or_has_a_secret_is_refused(place, words):
    with pytest.raises(ValidationError, match=words):
        Resources(checkpoints=place)


def plan_of(**resources):
    return support.plan_of(
        base=support.tiny_base(),
        arms={"p": {"model.width": 16}, "q": {"model.width": 32}},
        design={"kind": "sobol", "points": 8},
        resources={"gpus_per_worker": 0} | resources,
    )


def test_what_is_stored_follows_from_the_number_of_parameters():
    def params(width: int) -> int:
        # Patch embedding, positions of 4 patches and the class, class token, 2 blocks of attention and an MLP
        # of twice the width with 2 norms each, last norm, head.
        block = 4 * width * (width + 1) + width * 2 * width * 2 + 3 * width + 4 * width
        return (3 * 64 + 1) * width + 6 * width + 2 * block + 2 * width + 10 * (width + 1)

    small, large = 4 * params(16), 4 * params(32)
    nodes = [Node(cpus=3, gpus=0)]
    found = {keep: estimate.storage(plan_of(keep=keep), nodes) for keep in ("none", "best", "last")}
    assert found["none"].kept_gib == 0
    assert found["last"].kept_gib * 2**30 == 8 * (small + large)
    # One per arm, and on each of three lanes one that is about to replace it.
    assert found["best"].kept_gib * 2**30 == small + large + 3 * large
    # AdamW has two moments per parameter and a step count of 4 bytes per tensor; two are kept, one written.
    in_flight = found["none"].checkpoint_gib * 2**30 / (3 * 3)
    assert 0 < in_flight - 3 * large < 4 * 100


def test_a_run_that_may_store_too_much_does_not_start_and_both_numbers_are_told(monkeypatch, tmp_path):
    from orchestrator.execution.session import Preparation, Session

    nodes = [Node(cpus=3, gpus=0)]
    total = sum(
        getattr(estimate.storage(plan_of(keep="last"), nodes), k) for k in ("checkpoint_gib", "kept_gib")
    )
    assert estimate.storage_fault(plan_of(keep="last", max_checkpoint_gib=total * 1.001), nodes) == ""
    plan = plan_of(keep="last", max_checkpoint_gib=1e-4)
    monkeypatch.setattr(ray_cluster, "connect", lambda address: None)
    monkeypatch.setattr(ray_cluster, "nodes", lambda: nodes)
    monkeypatch.setattr(run, "Run", lambda *_: pytest.fail("started"))
    session = Session(SimpleNamespace(folder=tmp_path / "out"))
    with pytest.raises(
        ray_cluster.ClusterError, match=rf"max_checkpoint_gib is 0.0001, and up to {total:.3g} GiB"
    ):
        session.run_rounds(plan, Preparation())
    assert list(tmp_path.iterdir()) == []
