"""A sweep as a job of a real Ray: submitted with a token, stopped midway, submitted again to its end."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from orchestrator.store.folder import open_folder
from orchestrator.store.journal import read_journal
from orchestrator.trials.events import AttemptEnded, SessionClosed
from tests.support.ports import free_port
from tests.support.sweeps import sweep_tree, tiny_base

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(1800)]

#: Seconds after which a command hangs, however busy the machine is; idle ones take tens of seconds.
PATIENCE = 600

#: Enough that the run goes on while the commands before its stop, which take seconds each, are tried.
TRIALS = 32


@pytest.fixture
def home() -> Iterator[Path]:
    """The head's home, with a path that is short enough for Ray's sockets."""
    folder = Path(tempfile.mkdtemp(prefix="vj", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def head(home: Path) -> Iterator[str]:
    """A head with two CPUs that asks for a token. The address of its dashboard."""
    ports = {name: free_port() for name in ("port", "dashboard-port", "dashboard-agent-listen-port")}
    options = [f"--{name}={port}" for name, port in ports.items()]
    options += [f"--temp-dir={home}/ray", "--num-cpus=2", "--include-dashboard=true"]
    options += ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", "--disable-usage-stats"]
    scripts = Path(sys.executable).parent
    environment = {name: text for name, text in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"HOME": str(home), "PATH": f"{scripts}:{os.environ['PATH']}"}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "RAY_worker_niceness": "0"}
    with (home / "head.log").open("w") as log:
        process = subprocess.Popen(
            [scripts / "ray", "start", "--head", "--block", *options],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
        )
    try:
        address = f"http://127.0.0.1:{ports['dashboard-port']}"
        deadline = time.monotonic() + PATIENCE
        while call("logs", "nobody", "--address", address)[1].find("has no job") < 0:
            assert process.poll() is None, (home / "head.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(1)
        yield address
    finally:
        process.terminate()
        process.wait()


TOKEN = "a-token-of-at-least-some-length-0123456789"


def call(*arguments: str | Path, token: str = TOKEN) -> tuple[int, str]:
    """Runs a command as on the user's machine. Gives exit code and output."""
    environment = {name: text for name, text in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [Path(sys.executable).with_name("vitc-sweep"), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token},
        timeout=PATIENCE,
    )
    return done.returncode, done.stdout


def ends_in(folder: Path) -> list[str]:
    return [
        event.trial
        for event in read_journal(folder).events
        if isinstance(event, AttemptEnded) and event.final and event.end != "cancelled"
    ]


def test_a_job_is_stopped_in_its_midst_and_submitted_again_to_its_end(home, head, tmp_path):
    base = tiny_base(schedule={"epochs": 60, "warmup": "10%"})
    tree = sweep_tree(base=base, design={"kind": "sobol", "points": TRIALS // 2})
    del tree["name"]
    file, folder = tmp_path / "tiny.yaml", home / "runs" / "tiny"
    file.write_text(yaml.safe_dump(tree))
    there = ("--address", head)
    submit = ("submit", file, *there, "--no-mlflow", "--set", "schedule.epochs=50")

    code, said = call(*submit, token="of somebody else, but just as long as it has to be")
    assert code == 2
    assert "wants a token" in said
    assert said.count("\n") == 1

    code, said = call(*submit)
    assert code == 0, said
    assert said.startswith("submitted as tiny-1; results go to ~/runs/tiny on the head\n")
    deadline = time.monotonic() + PATIENCE
    while len(ends_in(folder)) < 2:
        assert time.monotonic() < deadline, call("logs", "tiny-1", *there)[1]
        time.sleep(0.2)
    assert call(*submit) == (2, "~/runs/tiny: is in use by the job tiny-1\n")
    # By another name of the folder only the lease tells.
    code, said = call(*submit, "--out", "~/runs/../runs/tiny", "--wait")
    assert code == 2
    assert "is in use by process" in said

    code, said = call("stop", "tiny-1", *there)
    assert code == 0, said
    assert f"vitc-sweep submit {file} --address {head} --set schedule.epochs=50" in said
    # Ray gave it the time to write that it ends.
    events = read_journal(folder).events
    assert isinstance(events[-1], SessionClosed)
    assert 2 <= len(ends_in(folder)) < TRIALS
    code, said = call("attach", "tiny-1", *there)
    assert code == 130
    assert "To continue, run:  vitc-sweep submit" in said

    code, said = call(*submit)
    assert code == 0, said
    code, said = call("attach", "tiny", *there)
    assert code == 0, said
    assert "report: " in said
    opened = open_folder(folder)
    assert sorted(ends_in(folder)) == sorted(trial.id for trial in opened.plan.trials)
    assert len(ends_in(folder)) == TRIALS

    code, said = call(
        "submit", file, *there, "--set", "data=/nowhere/x.parquet", "--out", "~/other", "--wait"
    )
    assert code == 2
    assert "/nowhere/x.parquet" in said
    assert not (home / "other").exists()
