"""`vitc-sweep attach`: the output of another process's run, and its exit code."""

import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from orchestrator.cli.watchers import Watchers
from orchestrator.store.output import output_path
from trainables.errors import UserError

Cli = Callable[..., tuple[int, str, str]]


def watchers() -> Watchers:
    from orchestrator.cli.options import make_console

    return Watchers(make_console(quiet=True), False, None, "vitc-sweep run my.yaml")


def sweep(folder: Path) -> Path:
    # What a run leaves that did something.
    folder.mkdir()
    (folder / "sweep.yaml").write_text("name: my\n")
    return folder


@pytest.mark.parametrize("code", [0, 1, 130])
def test_it_shows_all_of_a_run_that_is_at_work_and_ends_as_that_does(cli, tmp_path, code):
    folder, there = sweep(tmp_path / "my"), threading.Event()

    def run() -> None:
        held = watchers()
        with contextlib.suppress(typer.Exit), held.holding(folder):
            there.set()
            for number in range(5):
                held._log.write(f"trial {number}\n")
                time.sleep(0.2)
            raise typer.Exit(code)

    runner = threading.Thread(target=run)
    runner.start()
    there.wait()
    found, said, _ = cli("attach", folder)
    runner.join()
    assert found == code
    assert said == "".join(f"trial {number}\n" for number in range(5))


@pytest.mark.parametrize(
    ("error", "code"),
    [(UserError("my.yaml: no"), 2), (KeyboardInterrupt(), 130), (ZeroDivisionError(), 1), (None, 1)],
)
def test_the_code_of_a_run_that_has_ended_is_the_one_that_its_command_had(cli, tmp_path, error, code):
    folder = sweep(tmp_path / "my")
    try:
        with watchers().holding(folder):
            if error is not None:
                raise error
    except BaseException as ended:
        if ended is not error:
            raise
    assert cli("attach", folder)[0] == code


def test_a_run_that_was_killed_is_told_from_one_that_ended(cli, tmp_path):
    folder = sweep(tmp_path / "my")
    script = f"""
import os, signal
from tests.orchestrator.cli.test_attach import watchers
from pathlib import Path
held = watchers()
with held.holding(Path({str(folder)!r})):
    held._log.write("half a trial\\n")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[3])
    assert killed.returncode == -signal.SIGKILL
    code, said, advice = cli("attach", folder)
    assert (code, said) == (1, "half a trial\n")
    assert "it was killed" in advice
    assert f"vitc-sweep run {folder}/sweep.yaml --out {folder}" in advice


def test_a_folder_without_a_run_is_refused(cli, tmp_path):
    code, _, message = cli("attach", sweep(tmp_path / "my"))
    assert code == 2
    assert "no run is at work there, and none has left its output" in message


def test_ctrl_c_ends_attach_alone_and_says_how_to_stop_the_run(cli, tmp_path, monkeypatch):
    folder = sweep(tmp_path / "my")
    with watchers().holding(folder) as lease:

        def interrupted(_: float) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("orchestrator.cli.watching.time.sleep", interrupted)
        code, _, advice = cli("attach", folder)
        assert code == 130
        assert f"To stop it:  vitc-sweep stop {folder}" in advice
        assert lease.stop_wanted() is None
        assert json.loads((folder / "lease.json").read_text())["host"]


def test_a_run_that_did_nothing_leaves_no_folder(tmp_path):
    with watchers().holding(tmp_path / "new"):
        assert output_path(tmp_path / "new").is_file()
    assert not (tmp_path / "new").exists()
