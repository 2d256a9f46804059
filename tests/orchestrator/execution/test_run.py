"""`vitc-sweep run` from outside, on a real Ray: killed, interrupted, continued, on a cluster of two nodes."""

import json
import os
import pty
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from orchestrator.report.document import results_rows
from orchestrator.store.folder import open_folder
from orchestrator.store.journal import read_journal
from orchestrator.trials.events import AttemptBegan, AttemptEnded, BreakerTripped, SessionBegan
from orchestrator.trials.records import fold
from tests.support.by_hand import by_hand, outcomes_of
from tests.support.ports import free_port
from tests.support.sweeps import sweep_tree, tiny_base

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1800)]

#: Seconds after which a command hangs, however busy the machine is; idle ones take tens of seconds.
PATIENCE = 600


def sweep_file(folder: Path, points: int, epochs: int = 3) -> Path:
    tree = sweep_tree(
        base=tiny_base(schedule={"epochs": epochs, "warmup": "10%"}),
        vary={"optim.lr": {"log_uniform": [1e-3, 1e-2]}},
        design={"kind": "sobol", "points": points},
    )
    del tree["name"]
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def start_cli(*arguments: str | Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [Path(sys.executable).with_name("vitc-sweep"), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def results(folder: Path) -> list[dict[str, Any]]:
    """The results table without what measures the machine."""
    opened = open_folder(folder)
    timed = ("busy_seconds", "attempts")
    rows = results_rows(opened.plan, opened.records)
    return [{key: value for key, value in row.items() if key not in timed} for row in rows]


def records_in(folder: Path) -> dict[str, Any]:
    return fold(read_journal(folder).events)


def ends_in(folder: Path) -> list[str]:
    return [
        event.trial
        for event in read_journal(folder).events
        if isinstance(event, AttemptEnded) and event.final
    ]


def ends_by_halving(folder: Path, arms: dict[str, str], rungs: tuple[int, ...]) -> dict[str, int]:
    """The epoch that each trial that halving ends has to end with, from the rows in the order they came.

    At a rung a trial goes on if its error is no worse than the median of those of its arm that were there
    before; the first always does.
    """
    ended: dict[str, int] = {}
    there: dict[tuple[str, int], list[float]] = {}
    for path in sorted((folder / "journal").glob("*.jsonl")):
        for line in path.read_text().splitlines():
            event = json.loads(line[9:])
            if event["kind"] != "epoch" or event["row"]["epoch"] not in rungs:
                continue
            trial, epoch, error = event["trial"], event["row"]["epoch"], event["row"]["val_error_pct"]
            before = there.setdefault((arms[trial], epoch), [])
            if before and error > statistics.median(before):
                ended[trial] = epoch
            before.append(error)
    return ended


@pytest.mark.slow
def test_after_a_kill_of_everything_run_again_repeats_nothing_and_ends_the_same(tmp_path, cluster):
    file, folder = sweep_file(tmp_path, 4), tmp_path / "runs" / "tiny"
    # A cluster of its own: this is the one that is to go with the process.
    process = start_cli("run", file, "--out", folder, "--no-mlflow")
    deadline = time.monotonic() + PATIENCE
    while len(ends_in(folder)) < 3:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    # Nobody told Ray; its processes notice by themselves. Its agents, which hold nothing, take a minute.
    holding = [member for member in family if member.is_running() and "Agent" not in member.name()]
    _, survivors = psutil.wait_procs(holding, timeout=30)
    assert not survivors
    before = ends_in(folder)
    assert 3 <= len(before) < 8

    # Preflight has been there, and would be again.
    here = ("--no-mlflow", "--no-preflight", "--address", cluster)
    again = start_cli("run", file, "--out", folder, *here, "--set", "resources.lanes=1")
    output = again.communicate(timeout=PATIENCE)[0]
    assert again.returncode == 0, output
    assert f"{8 - len(before)} trials to run, {len(before)} have ended before" in output
    after = ends_in(folder)
    assert sorted(after) == sorted(set(after))
    assert after[: len(before)] == before

    undisturbed = by_hand(open_folder(folder).plan.trials)
    assert outcomes_of(records_in(folder)) == undisturbed
    ended = results(folder)
    assert {row["state"] for row in ended} == {"finished"}

    finished = start_cli("run", file, "--out", folder, "--no-mlflow")
    assert "nothing to do, all 8 trials have ended" in finished.communicate(timeout=PATIENCE)[0]
    assert finished.returncode == 0
    assert ends_in(folder) == after

    anew = start_cli("retry", folder, "--trial", after[0][:8], *here)
    output = anew.communicate(timeout=PATIENCE)[0]
    assert anew.returncode == 0, output
    assert "1 trials to run, 7 have ended before" in output
    assert ends_in(folder) == [*after, after[0]]
    assert outcomes_of(records_in(folder)) == undisturbed
    assert results(folder) == ended


@pytest.mark.slow
@pytest.mark.long
def test_a_reader_that_leaves_and_a_terminal_that_goes_away_end_nothing(tmp_path):
    file = sweep_file(tmp_path, 1)
    command = Path(sys.executable).with_name("vitc-sweep")
    options = "--no-mlflow --no-preflight"
    line = f"set -o pipefail; {command} run {file} --out {tmp_path}/piped {options} | head -1"
    subprocess.run(["bash", "-c", line], check=True, timeout=PATIENCE, stdout=subprocess.DEVNULL)
    assert len(ends_in(tmp_path / "piped")) == 2

    folder = tmp_path / "closed"
    pid, terminal = pty.fork()
    if not pid:
        os.execv(command, [str(command), "run", str(file), "--out", str(folder), *options.split()])
    while not (folder / "output.log").exists():
        os.read(terminal, 4096)
    # Sends SIGHUP to the process, which leads the terminal's session.
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert len(ends_in(folder)) == 2
    assert "report: " in (folder / "output.log").read_text()


@pytest.mark.slow
@pytest.mark.long
def test_a_stop_takes_seconds_says_how_to_go_on_and_going_on_does(tmp_path, cluster):
    # So long that a trial is in flight whenever the run is stopped.
    file, folder = sweep_file(tmp_path, 2, epochs=20), tmp_path / "runs" / "tiny"
    one_lane = ("--no-mlflow", "--no-preflight", "--set", "resources.lanes=1")
    process = start_cli("run", file, "--out", folder, *one_lane)
    while not (folder / "lease.json").exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    second = start_cli("run", file, "--out", folder, "--no-mlflow")
    assert f"is in use by process {process.pid} on " in second.communicate(timeout=PATIENCE)[0]
    assert second.returncode == 2
    while not any(record.rows for record in records_in(folder).values()):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=PATIENCE)[0]
    assert time.monotonic() - began < 20
    assert process.returncode == 130
    assert f"To continue, run:  vitc-sweep run {file} --out {folder}" in output
    assert "Traceback" not in output
    # Of Ray, when a thread starts a second cluster.
    assert "WARNING" not in output

    more = (*one_lane, "--points", "3", "--address", cluster)
    again = start_cli("run", file, "--out", folder, *more)
    before = len(ends_in(folder))
    while len(ends_in(folder)) == before:
        assert again.poll() is None, again.communicate()[0]
        time.sleep(0.05)
    assert f"{folder}: stopped" in start_cli("stop", folder, "--drain").communicate(timeout=PATIENCE)[0]
    output = again.communicate(timeout=PATIENCE)[0]
    # What was in flight went on to its end, and nothing was cut short.
    assert "no more are started" in output
    assert again.returncode in (0, 1), output
    assert not any(record.running for record in records_in(folder).values())

    again = start_cli("run", file, "--out", folder, *more)
    output = again.communicate(timeout=PATIENCE)[0]
    assert again.returncode == 0, output
    assert len(set(ends_in(folder))) == 6


@pytest.mark.slow
@pytest.mark.long
def test_a_search_goes_round_by_round_and_on_with_more_points(tmp_path, cluster):
    tree = yaml.safe_load(sweep_file(tmp_path, 4, epochs=4).read_text())
    tree["search"] = {"sampler": "tpe", "round": 2, "halving": {"grace_epochs": 1, "reduction_factor": 2}}
    tree["resources"] = {"lanes": 1}
    file, folder = tmp_path / "peak.yaml", tmp_path / "runs" / "peak"
    file.write_text(yaml.safe_dump(tree))
    here = ("--no-preflight", "--no-mlflow", "--address", cluster)
    first = start_cli("run", file, "--out", folder, *here)
    said, _ = first.communicate(timeout=PATIENCE)
    assert first.returncode == 0, said
    assert "round 1 of 2" in said
    assert "round 2 of 2" in said
    assert "no draws from the space" in said
    assert "Ray stopped the run" not in said
    rows = results(folder)
    assert [(row["arm"], row["point"], row["role"]) for row in rows] == [
        (arm, point, "search") for point in range(4) for arm in ("c", "p")
    ]
    # An error at a rung that is worse than the median of those that came there before ends a trial.
    ended_at = ends_by_halving(folder, {row["trial"]: row["arm"] for row in rows}, rungs=(1, 2))
    assert ended_at
    assert {row["trial"]: row["epochs"] for row in rows if row["state"] == "stopped"} == ended_at
    assert all(row["epochs"] == 4 for row in rows if row["state"] == "finished")
    assert {row["state"] for row in rows} == {"finished", "stopped"}
    longer = start_cli("run", file, "--out", folder, *here, "--points", "5")
    said, _ = longer.communicate(timeout=PATIENCE)
    assert longer.returncode == 0, said
    assert results(folder)[:8] == rows
    assert [row["point"] for row in results(folder)[8:]] == [4, 4]


@pytest.mark.slow
@pytest.mark.long
def test_a_sweep_runs_on_a_cluster_of_two_nodes_by_its_address(tmp_path, cluster):
    # So long that the lane that is up first does not do it all.
    file, folder = sweep_file(tmp_path, 2, epochs=50), tmp_path / "runs" / "tiny"
    process = start_cli("run", file, "--out", folder, "--no-mlflow", "--address", cluster)
    output = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 0, output
    events = read_journal(folder).events
    assert [event.lanes for event in events if isinstance(event, SessionBegan)] == [(2,)]
    assert [event.kind for event in events[:3]] == ["session", "preflight", "phase"]
    attempts = [event for event in events if isinstance(event, AttemptBegan)]
    assert len({event.lane for event in attempts}) == 2
    # Two nodes of one CPU each: the lanes cannot have sat on one.
    assert len({event.node for event in attempts}) == 2
    assert (folder / "report" / "report.html").is_file()


@pytest.mark.slow
@pytest.mark.long
def test_a_gpu_that_torch_cannot_use_is_refused_or_ends_the_run_and_a_trial_without_one_stays_off_it(
    tmp_path,
):
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "num_gpus": 1, "include_dashboard": True, "dashboard_host": "127.0.0.1"}
    # A Ray of another test may not have left the usual port yet.
    node["dashboard_port"] = free_port()
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        file = sweep_file(tmp_path, 1)
        run = ("run", file, "--no-mlflow", "--address", cluster.address)
        refused = start_cli(*run, "--out", tmp_path / "refused")
        said, _ = refused.communicate(timeout=PATIENCE)
        assert refused.returncode == 2, said
        assert "claims a GPU, and torch cannot use it: it has no NVIDIA driver; torch" in " ".join(
            said.split()
        )
        assert not (tmp_path / "refused").exists()

        ended = start_cli(*run, "--out", tmp_path / "ended", "--no-preflight")
        said, _ = ended.communicate(timeout=PATIENCE)
        assert ended.returncode == 1, said
        words = " ".join(said.split())
        assert "stopped early: 3 worker groups in a row did not start: a worker process died: " in words
        assert "no NVIDIA driver" in words.partition("stopped early")[2]
        [told] = [e for e in read_journal(tmp_path / "ended").events if isinstance(e, BreakerTripped)]
        assert told.arm == ""
        assert not any(record.attempts for record in records_in(tmp_path / "ended").values())

        # Nothing was lost: without the GPU the same folder goes on to its end.
        again = start_cli(*run, "--out", tmp_path / "ended", "--set", "resources.gpus_per_worker=0")
        said, _ = again.communicate(timeout=PATIENCE)
        assert again.returncode == 0, said
        assert {record.outcome for record in records_in(tmp_path / "ended").values()} == {"finished"}
    finally:
        cluster.shutdown()
