"""The recipe for an MLflow server in cluster/README.md: PostgreSQL, a bucket, logins, four runs at once."""

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from orchestrator.monitor.tracking import Tracker, unanswered
from orchestrator.store.folder import open_folder
from tests.cluster.readme import README, Commands, section
from tests.support.ports import free_port

ROOT = Path(__file__).parents[2]
SMALL = ROOT / "tests" / "fixtures" / "folder_v0" / "small"
RUNS = 4
DATABASE_PASSWORD, ADMIN_PASSWORD, USER_PASSWORD = "of-the-database", "of-the-administrator", "of-the-sweeps"

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(400)]


def postgres_programs() -> Path | None:
    places = [*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
    return next((place for place in places if (place / "initdb").is_file()), None)


def missing() -> str:
    """Describes what this machine lacks."""
    lacking = [name for name in ("moto", "psycopg2", "flask_wtf", "boto3") if find_spec(name) is None]
    if postgres_programs() is None:
        lacking.append("PostgreSQL under /usr/lib/postgresql")
    if os.getuid() == 0 and not any(user.pw_name == "postgres" for user in pwd.getpwall()):
        lacking.append("a user postgres, as PostgreSQL does not run as root")
    return ", ".join(lacking)


def wait_for(port: int, process: subprocess.Popen, log: Path) -> None:
    for _ in range(1200):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    raise AssertionError(log.read_text())


@contextlib.contextmanager
def started(command, log: Path, port: int, **settings):
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True, **settings)
    try:
        wait_for(port, process, log)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 15)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()


@contextlib.contextmanager
def postgres(place: Path, port: int):
    programs = postgres_programs()
    as_user = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.getuid() == 0 else {}
    home = Path(tempfile.mkdtemp(prefix="vitc-postgres-"))
    try:
        (home / "password").write_text(DATABASE_PASSWORD)
        if as_user:
            for path in (home, home / "password"):
                shutil.chown(path, "postgres", "postgres")
        subprocess.run(
            [
                *(programs / "initdb", "-D", home / "data", "-A", "scram-sha-256", "-U", "mlflow"),
                *(f"--pwfile={home / 'password'}", "--no-sync"),
            ],
            check=True,
            capture_output=True,
            cwd=home,
            **as_user,
        )
        command = [programs / "postgres", "-D", home / "data", "-k", home, "-h", "127.0.0.1", "-p", str(port)]
        with started(command, place / "postgres.log", port, cwd=home, **as_user):
            login = os.environ | {"PGPASSWORD": DATABASE_PASSWORD}
            for name in ("mlflow", "mlflow_users"):
                make = [programs / "createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "mlflow", name]
                for _ in range(50):  # it listens a moment before it accepts
                    done = subprocess.run(make, env=login, capture_output=True, text=True)
                    if done.returncode == 0:
                        break
                    time.sleep(0.1)
                assert done.returncode == 0, done.stderr
            yield
    finally:
        shutil.rmtree(home, ignore_errors=True)


def one_run(folder: Path, uri: str) -> None:
    """A process that sends a recorded sweep."""
    import mlflow  # noqa: F401  # so that all four ask for the experiment at the same moment

    opened = open_folder(folder)
    tracker = Tracker(opened.plan, folder, uri)
    print("ready", flush=True)
    input()
    tracker.start()
    tracker.observe(opened.events)
    if fault := tracker.close(120):
        raise SystemExit(fault)


@pytest.fixture
def service(tmp_path, monkeypatch):
    if lacking := missing():
        pytest.skip(f"this machine lacks {lacking}")
    database_port, bucket_port, port = free_port(), free_port(), free_port()
    home = tmp_path / "home" / "mlflow-server"
    (home / "bin").mkdir(parents=True)
    mlflow = home / "bin" / "mlflow"
    mlflow.write_text(f'#!/bin/sh\nexec {sys.executable} -P -m mlflow "$@"\n')
    mlflow.chmod(0o755)
    replace = {
        "CHANGE-admin-password": ADMIN_PASSWORD,
        "CHANGE-user-password": USER_PASSWORD,
        "CHANGE-to-a-long-random-text": "0123456789abcdef",
        "mlflow:CHANGE@db.example": f"mlflow:{DATABASE_PASSWORD}@127.0.0.1:{database_port}",
    }
    recipe = Commands(
        section(README.read_text("utf-8"), "MLflow as a service"),
        replace | {"http://127.0.0.1:5000": f"http://127.0.0.1:{port}"},
    )
    login = (README.parent / "mlflow" / "auth.ini").read_text("utf-8")
    for placeholder in ("CHANGE-admin-password", "mlflow:CHANGE@db.example"):
        assert placeholder in login
        login = login.replace(placeholder, replace[placeholder])
    (home / "auth.ini").write_text(login)
    recipe.take("python3 -m venv")
    recipe.take("~/mlflow-server/bin/pip")
    lines = [recipe.take("export MLFLOW_AUTH"), recipe.take("export MLFLOW_FLASK")]
    lines += [recipe.take("export MLFLOW_BACKEND")]
    lines += [f"exec {recipe.take('~/mlflow-server/bin/mlflow')} --port {port}"]
    s3 = {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "MLFLOW_S3_ENDPOINT_URL": f"http://127.0.0.1:{bucket_port}",
    }
    environment = os.environ | s3 | {"HOME": str(tmp_path / "home"), "MLFLOW_DISABLE_TELEMETRY": "true"}
    moto = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(bucket_port)]
    with (
        postgres(tmp_path, database_port),
        started(moto, tmp_path / "moto.log", bucket_port),
    ):
        import boto3

        client = boto3.client(
            "s3",
            endpoint_url=s3["MLFLOW_S3_ENDPOINT_URL"],
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
            region_name="us-east-1",
        )
        client.create_bucket(Bucket="bucket")
        log = tmp_path / "mlflow.log"
        with started(["bash", "-c", "\n".join(lines)], log, port, env=environment, cwd=tmp_path):
            made = subprocess.run(["bash", "-c", recipe.take("curl")], capture_output=True, text=True)
            assert made.returncode == 0, made.stderr + log.read_text()
            for line in (recipe.take("export MLFLOW_TRACKING_URI"), recipe.take("export MLFLOW_TRACKING_U")):
                for word in line.split()[1:]:
                    monkeypatch.setenv(*word.split("=", 1))
            yield client, f"http://127.0.0.1:{port}", log


def test_four_runs_write_to_a_server_with_a_login_at_once(service, tmp_path, monkeypatch):
    bucket, uri, _log = service
    # The first answer of a server that has just started may take longer than the limit of a request.
    deadline = time.monotonic() + 120
    while (fault := unanswered(uri)) and time.monotonic() < deadline:
        time.sleep(1)
    assert fault == ""
    folders = [shutil.copytree(SMALL, tmp_path / f"run-{i}") for i in range(RUNS)]
    code = (
        "import pathlib, sys; from tests.cluster.test_mlflow_service import one_run; "
        "one_run(pathlib.Path(sys.argv[1]), sys.argv[2])"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    runs = [subprocess.Popen([sys.executable, "-c", code, f, uri], cwd=ROOT, **pipes) for f in folders]
    try:
        assert [run.stdout.readline() for run in runs] == ["ready\n"] * RUNS
        for run in runs:
            run.stdin.write("\n")
            run.stdin.flush()
        said = [run.communicate(timeout=240)[1] for run in runs]
    finally:
        for run in runs:
            run.kill()
    assert [run.returncode for run in runs] == [0] * RUNS, said

    from mlflow import MlflowClient

    client, opened = MlflowClient(uri), open_folder(SMALL)
    (experiment,) = [e for e in client.search_experiments() if e.name != "Default"]
    found = client.search_runs([experiment.experiment_id], max_results=1000)
    parents = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    assert sorted(run.data.tags["sweep_folder"] for run in parents) == sorted(map(str, folders))
    epochs = {trial: len(record.rows) for trial, record in opened.records.items() if record.rows}
    for parent in parents:
        nested = [r for r in found if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
        seen = {
            r.data.tags["trial_id"]: len(client.get_metric_history(r.info.run_id, "train_loss"))
            for r in nested
        }
        assert {trial: seen[trial] for trial in epochs} == epochs
        assert {r.data.tags["trial_id"]: r.data.tags["outcome"] for r in nested} == {
            trial: record.outcome for trial, record in opened.records.items()
        }
    keys = [entry["Key"] for entry in bucket.list_objects_v2(Bucket="bucket")["Contents"]]
    for parent in parents:
        assert [key for key in keys if parent.info.run_id in key and key.endswith("/sweep.yaml")]

    for password in ("wrong-password-of-somebody", ""):
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
        fault = unanswered(uri)
        assert fault.startswith(f"MLflow at {uri} accepts no runs")
        assert "\n" not in fault
        assert "wrong-password" not in fault
        assert "authenticat" in fault
