"""Gangs: how many cores a worker decodes on."""

import pytest
import ray

from orchestrator.execution import worker
from orchestrator.trials.gang import Gang, Node
from tests.support.sweeps import plan_of
from trainables.context import this_process

AUTO = Gang(1, 1, None, shares_cores=True)


@pytest.mark.parametrize(
    ("gang", "nodes", "cores"),
    [
        # 48 cores and 4 GPUs: 12 for each, 3 for a quarter.
        (AUTO, [Node(48, 4)], 12),
        (Gang(1, 1, 0.25, shares_cores=True), [Node(48, 4)], 3),
        (Gang(4, 1, 1.0, shares_cores=True), [Node(48, 4)], 12),
        # Machines without GPUs, as a head, do not count; of the others, the least.
        (AUTO, [Node(64, 0), Node(48, 4), Node(8, 1)], 8),
        # Never none, and one where no GPU is.
        (AUTO, [Node(2, 4)], 1),
        (AUTO, [Node(16, 0)], 1),
        # What the file says is what it gets.
        (Gang(1, 5, 1.0), [Node(48, 4)], 5),
    ],
    ids=str,
)
def test_a_worker_decodes_on_its_share_of_the_cores(gang, nodes, cores):
    assert gang.on(nodes).cores_on(nodes) == cores


def test_the_share_is_the_default_and_reserves_one_core():
    assert {trial.gang for trial in plan_of(resources={}).trials} == {AUTO}
    assert AUTO.on([Node(16, 0)]) == Gang(1, 1, 0.0)
    assert {trial.gang for trial in plan_of(resources={"gpus_per_worker": 0}).trials} == {Gang(1, 1, 0.0)}
    asked = plan_of(resources={"cpus_per_worker": 3})
    assert {trial.gang for trial in asked.trials} == {Gang(1, 3, None)}
    # Recorded plans hold digests of this text.
    assert AUTO.key == "1 worker(s) with 1 CPU each"


def test_a_worker_asks_ray_for_the_cores_of_its_own_machine(monkeypatch):
    nodes = [
        {"NodeID": "head", "Resources": {"CPU": 8.0}},
        {"NodeID": "here", "Resources": {"CPU": 48.0, "GPU": 4.0}},
        {"NodeID": "thin", "Resources": {"GPU": 1.0}},
    ]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    assert [worker._cores_on("here", 1.0), worker._cores_on("here", 0.5)] == [12, 6]
    assert worker._cores_on("thin", 1.0) == 1


def test_a_gpu_has_a_loader_process_for_each_core_but_its_own(monkeypatch):
    monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
    assert this_process(device="cuda", cores=12).loader_workers == 11
    assert this_process(device="cuda", threads=3).loader_workers == 2
    # Without a GPU the process that trains decodes, as results must not depend on the machine.
    assert this_process(cores=12).loader_workers == 0
