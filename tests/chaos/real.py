"""Real sweeps under faults: `vitc-sweep run` on a cluster of several nodes, with processes killed by SIGKILL.

Every schedule is drawn from a seed: which processes are killed, when, and how often. The command is started
again whenever it was killed. Afterwards the results must equal those of an undisturbed sweep, no process or
reservation may be left, and the ledger must account for the wall time.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import yaml

from orchestrator.cost.ledger import ledger
from orchestrator.store.journal import read_journal
from orchestrator.trials.events import EpochDone, SessionBegan
from tests.chaos.simulation import finals, overlaps, phases
from tests.support.ports import free_port

#: Victims: a worker of a lane; its Tune actor with the controller of its Ray Train run; the command with its
#: driver; a node's raylet and all on it; the tracker's store.
KINDS = ("worker", "worker", "lane", "lane", "command", "node", "tracker")

#: Actors that Ray keeps for the life of a cluster.
RAYS_OWN = ("_AutoscalingCoordinatorActor",)

POINTS, EPOCHS = 3, 6
BASE = {
    "model": {"family": "vit", "image_size": 16, "patch_size": 8, "width": 16, "depth": 2, "heads": 2},
    "model.mlp_ratio": 2,
    "data": "digits",
    "optim": {"name": "adamw", "weight_decay": 0.05},
    "schedule": {"epochs": EPOCHS, "warmup": "10%"},
    "batch_size": 32,
}


def sweep_file(folder: Path) -> Path:
    """Writes a sweep of short trials with stochastic depth, mixing and averaging: all state counts."""
    tree = {
        "base": BASE | {"augment": "light"},
        "arms": {"p": {"model.stem": "patchify"}, "c": {"model.stem": "conv"}},
        "vary": {"optim.lr": {"log_uniform": [1e-3, 1e-2]}},
        "design": {"kind": "sobol", "points": POINTS},
        "resources": {"retries": 1},
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "chaos.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


class Cluster:
    """A head without CPUs for trials, and two nodes with one CPU each. Nodes may die and be replaced."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster as RayCluster

        self._cluster = RayCluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "include_dashboard": True,
                "dashboard_host": "127.0.0.1",
                "dashboard_port": free_port(),
            },
        )
        self.nodes = [self._cluster.add_node(num_cpus=1) for _ in range(2)]
        self._cluster.wait_for_nodes()
        self.address: str = self._cluster.address

    def kill_node(self, index: int) -> None:
        """Kills a node without notice and adds another one in its place."""
        self._cluster.remove_node(self.nodes[index], allow_graceful=False)
        self.nodes[index] = self._cluster.add_node(num_cpus=1)

    def leftovers(self, timeout_seconds: float = 90) -> list[str]:
        """Returns actors and placement groups that are still there after the timeout. Empty if none are."""
        from ray.util.state import list_actors, list_placement_groups

        deadline = time.monotonic() + timeout_seconds
        while True:
            found = []
            with contextlib.suppress(Exception):
                address = self._cluster.webui_url
                alive = list_actors(address=f"http://{address}", filters=[("state", "=", "ALIVE")])
                found += [f"actor {a.class_name}" for a in alive if a.class_name not in RAYS_OWN]
                groups = list_placement_groups(address=f"http://{address}")
                found += [f"placement group {g.placement_group_id}" for g in groups if g.state != "REMOVED"]
                if not found:
                    return []
            if time.monotonic() > deadline:
                return found or ["the state API does not answer"]
            time.sleep(1)

    def close(self) -> None:
        self._cluster.shutdown()


class Command:
    """A process of `vitc-sweep run` in its own session, with its output in a file."""

    def __init__(self, file: Path, out: Path, address: str, log: Path, tracker: bool) -> None:
        self.began = time.time()
        self._log = log.open("ab")
        command = [Path(sys.executable).with_name("vitc-sweep"), "run", file, "--out", out]
        # No preflight, because these schedules test a run after it has begun.
        command += ["--address", address, "--mlflow" if tracker else "--no-mlflow", "--no-preflight"]
        self.process = subprocess.Popen(
            list(map(str, command)), stdout=self._log, stderr=subprocess.STDOUT, start_new_session=True
        )

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def victims(kind: str) -> list[psutil.Process]:
    """Returns the processes of a kind in this cluster, found by the names that Ray gives them."""
    marks = {"worker": "ray::RayTrainWorker", "lane": ("ray::Lane", "ray::ResourceTrainable")}
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            words = " ".join(process.cmdline())
            if words.startswith(marks[kind]):
                found.append(process)
    return found


def run_schedule(seed: int, cluster: Cluster, folder: Path, kills: int | None = None) -> Counter[str]:
    """Runs one sweep under one schedule of kills.

    Args:
      seed: of the schedule.
      cluster: that the sweep runs on.
      folder: for its results.
      kills: number of kills; two to four if None.

    Returns:
      The number of faults that hit something, by kind.

    Raises:
      AssertionError: the sweep did not end, or ended with an error.
    """
    draw = random.Random(seed)
    folder.mkdir(parents=True)
    out, log = folder / "sweep", folder / "log.txt"
    file = sweep_file(folder)
    kinds = [draw.choice(KINDS) for _ in range(kills or draw.randint(2, 4))]
    tracker = "tracker" in kinds
    hits: Counter[str] = Counter()
    walls: list[float] = []
    command = Command(file, out, cluster.address, log, tracker)
    deadline = time.monotonic() + 300 * max(3, len(kinds))
    for kind in kinds:
        wait_for_progress(command, out, 1 if kills else draw.randint(1, 4), deadline)
        time.sleep(draw.uniform(0, 3))
        if command.process.poll() is not None:
            break
        if kind == "command":
            command.kill()
            walls.append(time.time() - command.began)
            hits[kind] += 1
            command = Command(file, out, cluster.address, log, tracker)
        elif kind == "node":
            cluster.kill_node(draw.randrange(2))
            hits[kind] += 1
        elif kind == "tracker":
            # Deleted while it is in use.
            for path in folder.glob("mlflow.db*"):
                path.unlink()
                hits[kind] += 1
        elif found := victims(kind):
            draw.choice(found).send_signal(signal.SIGKILL)
            hits[kind] += 1
    code = command.process.wait(timeout=max(1.0, deadline - time.monotonic()))
    walls.append(time.time() - command.began)
    assert code == 0, f"seed {seed}: exit code {code}\n{log.read_text()[-3000:]}"
    (folder / "walls.json").write_text(json.dumps(walls))
    return hits


def wait_for_progress(command: Command, out: Path, rows: int, deadline: float) -> None:
    """Waits until `rows` more epochs are on record, or the command has ended."""
    target = num_rows(out) + rows
    while command.process.poll() is None and num_rows(out) < target:
        assert time.monotonic() < deadline, "no progress"
        time.sleep(0.1)


def num_rows(out: Path) -> int:
    return sum(isinstance(event, EpochDone) for event in read_journal(out).events) if out.exists() else 0


def table(out: Path) -> list[dict[str, Any]]:
    """Returns the results without the columns that depend on the machine."""
    from orchestrator.report.document import results_rows
    from orchestrator.store.folder import open_folder

    opened = open_folder(out)
    timed = ("busy_seconds", "attempts")
    return [
        {key: value for key, value in row.items() if key not in timed}
        for row in results_rows(opened.plan, opened.records)
    ]


def check(out: Path, calm: Path, cluster: Cluster) -> dict[str, float]:
    """Checks the invariants that hold after any schedule.

    Returns:
      The ledger, by heading.

    Raises:
      AssertionError: an invariant is broken.
    """
    assert table(out) == table(calm)
    events = read_journal(out).events
    assert set(finals(events).values()) == {1}
    assert overlaps(events) == []
    left = cluster.leftovers()
    assert left == [], left
    spent = ledger(events)
    # Wall times by the clock of this process. The time outside the sessions is Python's start and the report.
    # A killed run is on record until its last heartbeat.
    sessions = [event for event in events if isinstance(event, SessionBegan)]
    assert len(sessions) == len(json.loads((out.parent / "walls.json").read_text()))
    capacity = 0.0
    for began, ended, devices in phases(events):
        capacity += devices * (ended - began)
    assert abs(spent.total - capacity) <= 0.01 * capacity, (spent, capacity)
    return spent.rows()


def undisturbed(cluster: Cluster, folder: Path) -> Path:
    """Runs the sweep without faults. Returns its folder."""
    folder.mkdir(parents=True)
    command = Command(sweep_file(folder), folder / "sweep", cluster.address, folder / "log.txt", False)
    assert command.process.wait(timeout=900) == 0, (folder / "log.txt").read_text()[-3000:]
    return folder / "sweep"


def close_without_orphans(cluster: Cluster) -> None:
    """Shuts the cluster down.

    Raises:
      AssertionError: a process of the cluster, or of a command in it, is still alive.
    """
    family = psutil.Process().children(recursive=True)
    cluster.close()
    _, survivors = psutil.wait_procs(family, timeout=90)
    assert not survivors, survivors


def main(count: int, first_seed: int, folder: Path, kills: int = 0) -> None:
    """Runs schedules one after the other on one cluster, and prints the faults that were survived.

    Args:
      count: number of schedules, each of two to four kills.
      first_seed: seed of the first schedule.
      folder: for results.
      kills: number of kills in one more sweep, whose ledger is printed.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # Workers of low priority would crawl if the machine does any other work.
    os.environ.setdefault("RAY_worker_niceness", "0")
    cluster = Cluster()
    total: Counter[str] = Counter()
    spent: Counter[str] = Counter()
    try:
        calm = undisturbed(cluster, folder / "calm")
        for seed in range(first_seed, first_seed + count):
            began = time.monotonic()
            hits = run_schedule(seed, cluster, folder / f"seed-{seed}")
            rows = check(folder / f"seed-{seed}" / "sweep", calm, cluster)
            total += hits
            spent.update(rows)
            said = ", ".join(f"{number} {kind}" for kind, number in sorted(hits.items())) or "none hit"
            print(f"schedule {seed}: survived {said}; {time.monotonic() - began:.0f} s", flush=True)
        if kills:
            hits = run_schedule(first_seed, cluster, folder / "many", kills)
            rows = check(folder / "many" / "sweep", calm, cluster)
            said = ", ".join(f"{number} {kind}" for kind, number in sorted(hits.items()))
            print(f"one sweep with {hits.total()} kills ({said}); its ledger in core-seconds:")
            for name, seconds in rows.items():
                print(f"  {name:10} {seconds:8.1f}  {seconds / sum(rows.values()):6.1%}")
    except BaseException:
        cluster.close()
        raise
    close_without_orphans(cluster)
    if not count:
        return
    print(f"\n{count} real schedules, {total.total()} faults injected and survived: {dict(total)}")
    whole = sum(spent.values())
    shares = ", ".join(f"{name} {seconds:.0f} s ({seconds / whole:.0%})" for name, seconds in spent.items())
    print(f"ledger of all, core-seconds: {shares}")
