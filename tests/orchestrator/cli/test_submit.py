"""`vitc-sweep submit`, and attach, stop and logs with --address, against a server in the place of Ray's."""

import http.server
import json
import shlex
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.backends import ray_jobs
from tests.support.sweeps import sweep_tree

Cli = Callable[..., tuple[int, str, str]]


class Dashboard(http.server.ThreadingHTTPServer):
    """What Ray's answers to a client of jobs, without a cluster behind it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.status = 200
        self.page = b""
        self.jobs: list[dict[str, Any]] = []
        self.asked: list[str] = []
        self.submitted: list[dict[str, Any]] = []
        self.output = "all of it\n"
        self.address = f"http://127.0.0.1:{self.server_address[1]}"

    def add(self, job_id: str, status: str, **more: Any) -> None:
        self.jobs.append(
            {
                "type": "SUBMISSION",
                "submission_id": job_id,
                "status": status,
                "entrypoint": "x",
                "start_time": len(self.jobs),
                "metadata": {
                    "vitc_sweep": "my",
                    "vitc_sweep_folder": "~/runs/my",
                    "vitc_sweep_command": "vitc-sweep submit my.yaml",
                },
            }
            | more
        )


class _Answer(http.server.BaseHTTPRequestHandler):
    server: Dashboard

    def _respond(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        ours, path = self.server, self.path
        ours.asked.append(f"{self.command} {path}")
        status, answer = ours.status, ours.page
        if not answer and status == 200:
            if path == "/api/version":
                content: Any = {"version": "4", "ray_version": "2.60.0", "ray_commit": ""}
            elif path == "/api/jobs/" and self.command == "POST":
                ours.submitted.append(json.loads(body))
                job_id = ours.submitted[-1]["submission_id"]
                content = {"job_id": job_id, "submission_id": job_id}
            elif path == "/api/jobs/":
                content = ours.jobs
            elif path.startswith("/api/packages/"):
                content, status = {}, 404 if self.command == "GET" else 200
            elif path.endswith("/logs"):
                content = {"logs": ours.output}
            elif path.endswith("/stop"):
                ours.jobs[0]["status"] = "STOPPED"
                content = {"stopped": True}
            elif path.endswith("/tail"):
                content, status = {}, 404
            else:
                content = next(job for job in ours.jobs if job["submission_id"] == path.split("/")[3])
            answer = json.dumps(content).encode()
        self.send_response(status)
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST = do_PUT = _respond

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


@pytest.fixture
def ray() -> Iterator[Dashboard]:
    with Dashboard() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    tree = sweep_tree()
    del tree["name"]
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(tree))
    return "my.yaml"


def test_the_run_is_a_job_of_the_head_that_can_be_continued_with_all_that_was_said(cli, ray, file):
    more = ["--set", "schedule.epochs=2", "--set", "optim.weight_decay=0.1", "--points", "8"]
    code, said, error = cli("submit", file, "--address", ray.address, *more, "--no-mlflow")
    assert (code, error) == (0, "")
    [job] = ray.submitted
    words = shlex.split(job["entrypoint"])
    assert words[:7] == ["exec", "vitc-sweep", "run", "sweep.yaml", "--address", "auto", "--out"]
    assert words[7] == "~/runs/my"
    assert words[-1] == "--no-mlflow"
    command = f"vitc-sweep submit my.yaml --address {ray.address} --points 8"
    assert words[words.index("--again") + 1] == job["metadata"]["vitc_sweep_command"]
    assert words[words.index("--again") + 1].startswith(command)
    assert "--set schedule.epochs=2 --set optim.weight_decay=0.1" in job["metadata"]["vitc_sweep_command"]
    # The run ends within a second; but a machine may be busy.
    assert int(job["runtime_env"]["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]) > 3
    assert said.splitlines() == [
        "submitted as my-1; results go to ~/runs/my on the head",
        f"output:  vitc-sweep attach my-1 --address {ray.address}",
        f"stop:    vitc-sweep stop my-1 --address {ray.address}",
    ]


def test_it_is_submitted_where_it_was_said_whatever_the_environment_says(cli, ray, file, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    assert cli("submit", file, "--address", ray.address)[0] == 0


def test_local_data_are_refused_before_anybody_is_asked(cli, ray, file):
    code, said, error = cli(
        "submit", file, "--address", ray.address, "--set", "data=photos.parquet", "--set", "batch_size=-1"
    )
    assert (code, said) == (2, "")
    assert "base.data: is a path of this machine" in error
    assert "base.batch_size" in error
    assert ray.asked == []


def test_data_of_the_cluster_are_named_as_nobody_has_looked_at_them(cli, ray, file):
    _, said, _ = cli("submit", file, "--address", ray.address, "--set", "data=/nowhere/photos")
    assert "not looked at here, must be on the cluster: /nowhere/photos" in said


@pytest.mark.parametrize("out", ["runs/my", "s3://bucket/runs"])
def test_a_folder_that_is_none_of_the_heads_is_refused(cli, ray, file, out):
    code, _, error = cli("submit", file, "--address", ray.address, "--out", out)
    assert code == 2
    assert "folder of the head" in error
    assert ray.asked == []


def test_a_second_job_for_a_folder_is_refused_while_the_first_is_at_work(cli, ray, file):
    ray.add("my-1", "RUNNING")
    code, _, error = cli("submit", file, "--address", ray.address)
    assert (code, error) == (2, "~/runs/my: is in use by the job my-1\n")
    assert cli("submit", file, "--address", ray.address, "--out", "~/runs/other")[0] == 0
    ray.jobs[0]["status"] = "FAILED"
    assert cli("submit", file, "--address", ray.address)[0] == 0
    assert [job["submission_id"] for job in ray.submitted] == ["my-2", "my-2"]


@pytest.mark.parametrize("address", ["auto", "127.0.0.1:8265", "ray://127.0.0.1:10001", "http://me:x@host"])
@pytest.mark.parametrize("verb", ["submit", "attach"])
def test_an_address_of_another_kind_is_refused(cli, file, verb, address):
    code, _, error = cli(verb, file, "--address", address)
    assert code == 2
    assert "127.0.0.1:8265" in error or "password" in error


def test_an_address_where_nobody_is_takes_one_line(cli, file):
    code, said, error = cli("submit", file, "--address", "http://127.0.0.1:1")
    assert (code, said) == (2, "")
    assert error.startswith("http://127.0.0.1:1: no Ray dashboard answers there")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("status", "page", "told"),
    [
        (401, b"Unauthorized", "RAY_AUTH_MODE=token"),
        (403, b"Forbidden", "RAY_AUTH_MODE=token"),
        (200, b"<html>", "is no Ray dashboard"),
        (200, b"{}", "is no Ray dashboard"),
        (500, b"oh", "is no Ray dashboard"),
    ],
)
def test_a_server_that_refuses_or_is_none_of_rays_takes_one_line(cli, ray, file, status, page, told):
    ray.status, ray.page = status, page
    for verb in (("submit", file), ("attach", "my-1"), ("stop", "my-1"), ("logs", "my-1")):
        code, said, error = cli(*verb, "--address", ray.address)
        assert (code, said) == (2, "")
        assert told in error
        assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        ("SUCCEEDED", 0, 0),
        ("FAILED", 1, 1),
        ("FAILED", 2, 2),
        ("FAILED", 75, 75),
        ("FAILED", -9, 1),
        ("FAILED", 127, 1),
        ("FAILED", None, 1),
        ("STOPPED", None, 130),
    ],
)
def test_attach_shows_the_output_and_ends_as_the_run_did(cli, ray, status, code, expected):
    ray.add("my-1", status, driver_exit_code=code, message="no such place\nmore")
    found, said, error = cli("attach", "my-1", "--address", ray.address)
    assert (found, said) == (expected, "all of it\n")
    if code == -9 or status == "STOPPED":
        assert "To continue:  vitc-sweep submit my.yaml" in error
    if code == 127:
        assert "no vitc-sweep on the PATH" in error
    if status == "FAILED" and code is None:
        assert "no such place." in error


@pytest.mark.parametrize("name", ["my", "~/runs/my", "my-2"])
def test_a_job_is_found_by_its_sweep_or_folder_and_the_one_at_work_comes_first(ray, name):
    ray.add("my-1", "FAILED")
    ray.add("my-2", "RUNNING")
    ray.add("my-3", "STOPPED")
    ray.add("other", "RUNNING", metadata={})
    assert ray_jobs.Jobs(ray.address).find(name).id == "my-2"


def test_without_one_at_work_it_is_the_last_and_an_unknown_one_is_refused_with_those_there_are(ray):
    ray.add("my-1", "FAILED")
    ray.add("my-2", "STOPPED")
    jobs = ray_jobs.Jobs(ray.address)
    assert jobs.find("my").id == "my-2"
    with pytest.raises(ray_jobs.JobsError, match="has no job nope; its jobs: my-2, my-1"):
        jobs.find("nope")


def test_stop_waits_until_the_job_has_ended_and_says_how_to_continue(cli, ray):
    ray.add("my-1", "RUNNING")
    code, said, _ = cli("stop", "my", "--address", ray.address)
    assert (code, said) == (0, "my-1: stopped. To continue:  vitc-sweep submit my.yaml\n")
    code, _, error = cli("stop", "my", "--address", ray.address)
    assert (code, error) == (2, "my-1: has ended already\n")


def test_logs_prints_the_output_of_a_job_and_is_for_folders_with_a_trial(cli, ray, tmp_path):
    ray.add("my-1", "RUNNING")
    assert cli("logs", "my-1", "--address", ray.address)[:2] == (0, "all of it\n")
    assert cli("logs", "my-1", "p/0", "--address", ray.address)[0] == 2
    code, _, error = cli("logs", tmp_path)
    assert code == 2
    assert "name a trial" in error


def test_output_that_is_read_again_from_its_beginning_is_shown_once(ray):
    ray.add("my-1", "RUNNING")
    jobs = ray_jobs.Jobs(ray.address)
    readings = iter([["one\n", "two\n"], ["one\n", "two\nthr"], ["one\ntwo\nthree\n"]])

    async def tail(_: str):
        pieces = next(readings)
        for piece in pieces:
            yield piece
        if len(pieces) == 1:
            ray.jobs[0] |= {"status": "SUCCEEDED", "driver_exit_code": 0}
        raise ConnectionError

    jobs._client.tail_job_logs = tail
    ray.output = "one\ntwo\nthree\nfour\n"
    shown: list[str] = []

    class Sink:
        def write(self, text: str) -> None:
            shown.append(text)

    job = jobs.follow(jobs.find("my"), Sink())
    assert job.exit_code == 0
    assert "".join(shown) == "one\ntwo\nthree\nfour\n"


def test_a_cluster_that_goes_away_ends_attach_with_1_and_the_job_goes_on(cli, ray, monkeypatch):
    ray.add("my-1", "RUNNING")
    monkeypatch.setattr(ray_jobs.Jobs, "_look", _away)
    code, _, error = cli("attach", "my-1", "--address", ray.address)
    assert code == 1
    assert "Where the job is at work, it goes on" in error
    assert f"vitc-sweep attach my-1 --address {ray.address}" in error


def _away(*_: object) -> None:
    raise ray_jobs.ClusterAway("gone")


def test_ctrl_c_ends_attach_alone_and_says_how_to_stop_the_job(cli, ray, monkeypatch):
    ray.add("my-1", "RUNNING")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ray_jobs.Jobs, "follow", interrupted)
    code, _, error = cli("attach", "my-1", "--address", ray.address)
    assert code == 130
    assert f"To stop it:  vitc-sweep stop my-1 --address {ray.address}" in error
    assert not any("stop" in asked for asked in ray.asked)
