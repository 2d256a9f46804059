"""Surroundings that must not break the tool: streams, terminals, environment variables, containers."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import orchestrator.backends.ray_cluster as ray_cluster
from orchestrator.cli import process
from orchestrator.cli.options import again
from orchestrator.cli.watchers import Signals
from orchestrator.report import plotting
from orchestrator.store import provenance
from tests.support.sweeps import sweep_tree
from trainables.io import machine
from trainables.io.yaml import YamlError, parse_yaml

COMMAND = Path(sys.executable).with_name("vitc-sweep")


def run(*arguments: str | Path, shell: str = "", folder: Path | None = None, **environment: str) -> Any:
    """Runs the command in a process of its own, with variables added to the environment."""
    line = [COMMAND, *map(str, arguments)] if not shell else ["bash", "-c", shell, str(COMMAND), *arguments]
    return subprocess.run(
        line, capture_output=True, env=os.environ | environment, cwd=folder, timeout=120, check=False
    )


def sweep_file(folder: Path, question: str = "A or B?") -> Path:
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(sweep_tree(question=question), allow_unicode=True), "utf-8")
    return path


# --- streams ------------------------------------------------------------------------------------------


NO_UTF8 = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_text_that_the_terminal_cannot_show_ends_nothing(tmp_path):
    file = sweep_file(tmp_path, "Größer als 😀 → ok?")
    done = run("plan", file, "--no-measure", PYTHONIOENCODING="ascii", **NO_UTF8)
    assert done.returncode == 0, done.stderr
    assert b"small  Gr??er als ? ? ok?" in done.stdout


@pytest.mark.parametrize("encoding", ["ascii", "iso-8859-1", "utf-8"])
def test_a_message_that_the_terminal_cannot_show_is_one(encoding):
    done = run("größe→😀", PYTHONIOENCODING=encoding, **NO_UTF8)
    assert done.returncode == 2
    assert b"No such command" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    "shell",
    ['"$0" examples | head -1', '"$0" examples >&-', '"$0" examples 2>&-', '"$0" examples >/dev/full'],
)
def test_output_that_nobody_reads_is_no_error(shell):
    done = run(shell="set -o pipefail; " + shell)
    assert done.returncode == 0
    assert done.stderr == b""


def test_what_was_shown_before_the_reader_left_is_whole():
    done = run(shell='"$0" examples | head -2')
    assert len(done.stdout.splitlines()) == 2


# --- environment --------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", ["", "auto", "0", "-5", "7", "1e9", "99999999999", "१२३"])
def test_a_width_that_is_none_is_not_used(monkeypatch, columns):
    for name in ("COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)
    done = run("examples", COLUMNS=columns, LINES=columns)
    assert done.returncode == 0, done.stderr
    assert "lr_wd" in done.stdout.decode()
    assert done.stdout == run("examples").stdout


TEXTS = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=12)


NAMES = st.sampled_from(["COLUMNS", "LINES", "MPLBACKEND", "HOME", "LOGNAME", "TMPDIR"])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(st.sampled_from(["COLUMNS", "LINES", "MPLBACKEND", "HOME", "LOGNAME", "TMPDIR"]), TEXTS)
)
def test_any_environment_is_made_usable(monkeypatch, variables):
    with monkeypatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        process.prepare()
        assert int(os.environ.get("COLUMNS", "80")) >= 40
        assert "MPLBACKEND" not in os.environ
        assert os.path.expanduser("~") != "~"
        ray_cluster._short_folder()


def test_a_user_without_home_and_name_has_some(monkeypatch):
    import getpass

    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.setattr(getpass, "getuser", nobody)
    for name in ("HOME", "LOGNAME"):
        monkeypatch.delenv(name, raising=False)
    process.prepare()
    assert Path(os.environ["HOME"]).is_dir()
    assert os.environ["LOGNAME"] == str(os.getuid())


def test_figures_are_the_same_whatever_the_user_has_set():
    @plotting.styled
    def draw() -> Any:
        figure = plotting.Figure(figsize=(2, 1))
        figure.subplots().plot([1, 2], [3, 4], label="x")
        return figure

    before = plotting.to_svg(draw())
    hostile = {"text.usetex": True, "axes.facecolor": "black", "lines.linewidth": 9, "svg.fonttype": "none"}
    with matplotlib.rc_context(hostile):
        assert plotting.to_svg(draw()) == before
        assert matplotlib.rcParams["text.usetex"] is True


def test_a_notebooks_backend_does_not_stop_the_command():
    code = "from orchestrator.cli import process; process.prepare(); import orchestrator.report.plotting"
    hostile = os.environ | {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    subprocess.run([sys.executable, "-c", code], env=hostile, check=True)


def test_modules_of_the_current_folder_do_not_take_the_place_of_pythons(tmp_path):
    for name in ("random", "statistics", "types", "torch", "json"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('this is not the module you are looking for')")
    done = run("preflight", sweep_file(tmp_path), "--no-mlflow", folder=tmp_path)
    assert done.returncode == 0, done.stderr.decode()


# --- machine ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("max 100000", 4), ("100000 100000", 1), ("150000 100000", 2), ("10 1000", 1), ("", 4)],
)
def test_only_cpus_that_may_be_used_count(tmp_path, monkeypatch, quota, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    monkeypatch.setattr(machine, "_QUOTA", tmp_path / "cpu.max")
    (tmp_path / "cpu.max").write_text(quota)
    assert machine.usable_cpus() == expected


@pytest.mark.parametrize(
    ("quota", "period", "expected"), [("-1", "100000", 4), ("200000", "100000", 2), ("x", "1", 4)]
)
def test_the_first_version_of_control_groups_counts_too(tmp_path, monkeypatch, quota, period, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    monkeypatch.setattr(machine, "_QUOTA", tmp_path / "none")
    monkeypatch.setattr(machine, "_OLD_QUOTA", tmp_path / "cpu.cfs_quota_us")
    (tmp_path / "cpu.cfs_quota_us").write_text(quota)
    (tmp_path / "cpu.cfs_period_us").write_text(period)
    assert machine.usable_cpus() == expected


def test_rays_sockets_find_room_under_a_long_temporary_folder(monkeypatch):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/scratch/" + "x" * 60)
    assert ray_cluster._short_folder() == "/tmp/ray"
    monkeypatch.setenv("TMPDIR", "/scratch/user")
    assert ray_cluster._short_folder() is None


def test_the_commit_of_a_repository_around_the_installation_is_not_ours(tmp_path, monkeypatch):
    def git(*arguments: str) -> None:
        config = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", *config, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    git("commit", "--allow-empty", "-m", "the user's own")
    inside = tmp_path / ".venv" / "site-packages"
    inside.mkdir(parents=True)
    monkeypatch.setattr(provenance, "source_root", lambda: inside)
    assert provenance._code() == {"commit": "", "changed": ""}
    monkeypatch.setattr(provenance, "source_root", lambda: tmp_path.resolve())
    assert len(provenance._code()["commit"]) == 40


# --- signals ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_stops_and_the_next_ones_do_not_hurry_it(number):
    with Signals() as signals:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
        for other in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.raise_signal(other)
        signals.end(None)  # type: ignore[arg-type]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_nohup_is_respected():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_command_that_goes_on_has_all_that_was_said():
    options = {"out": Path("my runs"), "points": None, "address": "auto", "set": ["a=1", "b={c: d}"]}
    assert again("run", Path("q.yaml"), options) == (
        "vitc-sweep run q.yaml --out 'my runs' --address auto --set a=1 --set 'b={c: d}'"
    )


# --- files --------------------------------------------------------------------------------------------


def test_a_character_that_json_writes_as_two_escapes_is_one():
    text = '{"question": "\\ud83d\\ude00?", "\\ud83d\\ude00": 1}'
    assert parse_yaml(text, "x") == {"question": "😀?", "😀": 1}
    with pytest.raises(YamlError, match="one half of a character"):
        parse_yaml('{"question": "\\ud83d"}', "x")


@pytest.mark.parametrize("text", ["9" * 5000, "a: " + "9" * 5000, "[" * 5000, "\x85: 1", "a\0b: 1"])
def test_odd_text_is_a_fault_or_a_value(text):
    with contextlib.suppress(YamlError):
        parse_yaml(text, "x")
