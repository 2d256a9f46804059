"""Which Ray a run joins, and what it says where it may not: none is started here."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import ray
from ray._private.services import canonicalize_bootstrap_address

from orchestrator.backends import ray_cluster
from orchestrator.cost.devices import this_machine

ROOT = Path(__file__).parents[3]


@pytest.fixture
def asked(monkeypatch):
    """Keyword arguments of `ray.init`, which then does nothing."""
    calls = []
    monkeypatch.setattr(ray, "init", lambda **options: calls.append(options))
    monkeypatch.setattr(ray.worker, "get_dashboard_url", lambda: "127.0.0.1:8265")
    monkeypatch.setattr(ray._private.worker, "print_to_stdstream", None)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    # What an earlier test has left to undo is not undone here.
    monkeypatch.setattr(ray_cluster, "_undo", contextlib.ExitStack())
    return calls


def test_without_an_address_ray_is_started_and_no_other_one_joined(asked, monkeypatch):
    ray_cluster.connect(None)
    [options] = asked
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    # By Ray's own reading None stands for a new cluster; without an address RAY_ADDRESS would count.
    assert canonicalize_bootstrap_address(options["address"]) is None
    assert canonicalize_bootstrap_address(None) == "10.0.0.1:6379"


def test_the_dashboard_of_a_ray_that_is_started_is_for_this_machine_only(asked):
    ray_cluster.connect(None)
    assert asked[0]["dashboard_host"] == "127.0.0.1"


@pytest.mark.parametrize(
    "call",
    [
        lambda: ray.get([]),
        lambda: ray.util.placement_group([{}]),
        lambda: ray.util.get_current_placement_group(),
    ],
)
def test_a_thread_that_outlives_its_cluster_starts_no_second_one(asked, monkeypatch, call):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    ray_cluster.connect(None)
    asked.clear()

    def call_ray():
        # Without a cluster each of them ends in some error.
        with contextlib.suppress(Exception):
            call()

    thread = threading.Thread(target=call_ray)
    thread.start()
    thread.join()
    assert asked == []
    # A user's own call still starts it.
    call_ray()
    assert len(asked) == 1


def test_workers_are_given_no_variables_but_ours(asked, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    ray_cluster.connect("10.0.0.1:6379")
    [options] = asked
    assert options["address"] == "10.0.0.1:6379"
    # Ray shows a job's environment in its dashboard.
    assert all(name.startswith(("RAY_", "TUNE_")) for name in options["runtime_env"]["env_vars"])


def test_workers_import_nothing_from_the_current_folder(asked, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    ray_cluster.connect(None)
    config = asked[0]["job_config"]
    # As `ray.init` does it.
    config._py_driver_sys_path.extend([str(tmp_path)])
    config.set_runtime_env({})
    assert list(config._get_proto_job_config().py_driver_sys_path) == [str(ROOT)]


def test_what_a_run_needs_of_ray_is_not_up_to_the_environment(asked, monkeypatch):
    monkeypatch.setenv("RAY_TRAIN_V2_ENABLED", "0")
    monkeypatch.setattr(ray._private.ray_constants, "RAY_ENABLE_UV_RUN_RUNTIME_ENV", True)
    ray_cluster.connect(None)
    assert os.environ["RAY_TRAIN_V2_ENABLED"] == "1"
    assert not ray._private.ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV
    ray_cluster.shutdown()
    assert os.environ["RAY_TRAIN_V2_ENABLED"] == "0"


def test_ray_has_the_cores_that_this_process_may_use(asked):
    [core, *_] = before = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    try:
        ray_cluster.connect(None)
        machine = this_machine()
    finally:
        os.sched_setaffinity(0, before)
    assert (asked[0]["num_cpus"], machine.nodes[0].cpus) == (1, 1)


def test_leaving_a_cluster_leaves_signals_that_are_ignored_ignored(asked):
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray_cluster.connect(None)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        ray_cluster.shutdown()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_cluster_that_wants_a_token_is_told_of_in_one_line(tmp_path):
    """Ray looks for the token before it looks for the cluster, so none is needed."""
    code = (
        "from orchestrator.backends import ray_cluster\n"
        "try: ray_cluster.connect('127.0.0.1:1')\n"
        "except ray_cluster.ClusterError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"RAY_AUTH_MODE": "token", "HOME": str(tmp_path)},
        timeout=300,
    )
    assert done.stdout.startswith("the Ray cluster at 127.0.0.1:1 wants a token: set RAY_AUTH_MODE=token")
    assert done.stdout.count("\n") == 1
