"""Surroundings that must not break the tool: streams, terminals, environment variables, containers."""

import io
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.columns import Columns
from rich.console import Group
from rich.panel import Panel
from rich.text import Text

from orchestrator import load_sweep
from orchestrator.backends import local
from orchestrator.cli import process
from orchestrator.cli.options import _console_class, again, log_console, make_console, say
from orchestrator.cli.watchers import Signals, Watchers
from orchestrator.execution.preflight_child import Child
from orchestrator.monitor.terminal import rows_table
from orchestrator.report import plotting
from orchestrator.store import provenance
from orchestrator.trials.gang import Gang
from tests.support.sweeps import plan_of, sweep_tree
from trainables.base import DataError
from trainables.data.parquet import Parquet
from trainables.errors import UserError
from trainables.io.children import own_program
from trainables.io.machine import cache_folder
from trainables.io.streams import printable
from trainables.io.surroundings import check_surroundings
from trainables.io.yaml import YamlError, parse_yaml
from trainables.profiling.dry_run import Request

ROOT = Path(__file__).parents[3]
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


@pytest.fixture(autouse=True)
def environment():
    """What a test changes of the environment without pytest's help is undone, too."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


TEXTS = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=12)


SIZES = ["COLUMNS", "LINES", "TERMINAL_WIDTH", "JUPYTER_COLUMNS", "JUPYTER_LINES"]
OURS = ["VITC_SWEEP_CACHE", "VITC_SWEEP_CACHE_GB", "VITC_SWEEP_NOTIFY"]
OTHERS = ["MPLBACKEND", "HOME", "LOGNAME", "TMPDIR", "SOURCE_DATE_EPOCH", "PYTORCH_VERSION"]
VARIABLES = st.dictionaries(
    st.sampled_from([*SIZES, *OURS, *OTHERS]), TEXTS | st.sampled_from(["5", "/dev/null"])
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(VARIABLES)
def test_any_environment_is_made_usable_or_refused_by_name(monkeypatch, variables):
    with monkeypatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        process.prepare()
        for name in SIZES:
            assert int(os.environ.get(name, "80")) >= 5
        assert "MPLBACKEND" not in os.environ
        assert os.path.expanduser("~") != "~"
        local.ray_folder()
        try:
            process.check()
        except UserError as error:
            # What a variable holds may be on several lines.
            named = [name for name in OURS if re.search(f"^{name}: ", str(error), re.MULTILINE)]
            assert named
            assert all(name in variables for name in named)


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


def test_git_is_asked_about_our_folder_whatever_a_hook_has_set(tmp_path, monkeypatch):
    for name in ("ours", "theirs"):
        (tmp_path / name).mkdir()
        line = f"git init -q && git -c user.name=a -c user.email=a@b commit -q --allow-empty -m {name}"
        subprocess.run(line, shell=True, cwd=tmp_path / name, check=True)
    monkeypatch.setattr(provenance, "source_root", lambda: (tmp_path / "ours").resolve())
    expected = provenance._code()
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "theirs" / ".git"))
    assert provenance._code() == expected
    assert len(expected["commit"]) == 40


def test_changes_in_any_encoding_are_recorded(tmp_path, monkeypatch):
    file = tmp_path / "orchestrator" / "file.txt"
    file.parent.mkdir()
    file.write_text("a")
    line = "git init -q && git add . && git -c user.name=a -c user.email=a@b commit -q -m a"
    subprocess.run(line, shell=True, cwd=tmp_path, check=True)
    file.write_bytes("größe".encode("iso-8859-1"))
    monkeypatch.setattr(provenance, "source_root", tmp_path.resolve)
    assert provenance._code()["changed"]


# --- other programs -----------------------------------------------------------------------------------


@pytest.fixture
def shadowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with files that have the names of modules of libraries."""
    for name in ("random", "types", "statistics", "queue", "copy", "torch"):
        (tmp_path / f"{name}.py").write_text("print('my own helpers')\nraise SystemExit('user file')\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("module", "arguments", "code"), [("orchestrator", ["examples"], 0), ("trainables", ["nothing.yaml"], 2)]
)
def test_python_m_imports_nothing_from_the_current_folder(shadowed, module, arguments, code):
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(
        command, capture_output=True, timeout=120, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == code, done.stderr
    assert b"user file" not in done.stderr


def test_a_child_finds_our_packages_and_nothing_in_the_current_folder(shadowed, monkeypatch):
    # As from a checkout that is not installed.
    monkeypatch.delenv("PYTHONPATH", raising=False)
    code = "import random, orchestrator, trainables; assert random.random; print(sys.argv[1:])"
    command = own_program(code, "a", "b c")
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=60)
    assert (done.returncode, done.stdout) == (0, "['a', 'b c']\n"), done.stderr


def test_what_a_child_prints_is_no_reply(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text("print('hello from a site', flush=True)\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    trial = plan_of().trials[0]
    with Child(on_gpu=False, timeout_seconds=120) as child:
        assert child(Gang(1, 1, 0.0), Request(trial.config)).rule == ""


def test_a_home_that_does_not_exist_is_a_message():
    with pytest.raises(DataError, match="~nobody-of-this-name"):
        Parquet(path="~nobody-of-this-name/data.parquet").info()


def test_without_a_home_copies_of_data_go_to_temporary_files(monkeypatch):
    monkeypatch.delenv("VITC_SWEEP_CACHE", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert cache_folder() == Path(tempfile.gettempdir(), "vitc-sweep-cache")


# --- signals ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
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


def test_a_terminal_that_goes_away_stops_neither_us_nor_the_processes_we_start():
    before = signal.getsignal(signal.SIGHUP)
    with Signals():
        signal.raise_signal(signal.SIGHUP)
        child = [sys.executable, "-c", "import signal; signal.raise_signal(signal.SIGHUP); print('alive')"]
        assert subprocess.run(child, capture_output=True, check=True).stdout == b"alive\n"
    assert signal.getsignal(signal.SIGHUP) == before


@pytest.mark.parametrize("quiet", [False, True])
def test_an_interrupted_command_says_how_to_go_on(capsys, quiet):
    with (
        pytest.raises(BaseException) as ended,
        Watchers(make_console(quiet), False, None, "vitc-sweep x 'a b'"),
    ):
        signal.raise_signal(signal.SIGTERM)
    assert getattr(ended.value, "exit_code", None) == 130
    captured = capsys.readouterr()
    assert "To continue, run:  vitc-sweep x 'a b'\n" in (captured.err if quiet else captured.out)


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


def test_a_number_that_numpy_reads_at_its_import_is_dropped_if_it_is_none(monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "x")
    process.prepare()
    assert "SOURCE_DATE_EPOCH" not in os.environ
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    process.prepare()
    assert os.environ["SOURCE_DATE_EPOCH"] == "1700000000"


def test_a_message_does_not_steer_the_terminal(tmp_path):
    done = run("status", tmp_path / "\x1b[31mred")
    assert done.returncode == 2
    assert b"\\x1b[31mred" in done.stderr
    assert b"\x1b" not in done.stderr


ESCAPES = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202eevil"
STEERING = set("\x1b\x07\x9b\u202e")


def test_a_question_does_not_steer_the_terminal(tmp_path):
    done = run("plan", sweep_file(tmp_path, f"A or B{ESCAPES}?"), "--no-measure")
    assert done.returncode == 0
    shown = done.stdout.decode()
    # The library drops the bell.
    assert r"A or B\x1b[2J\x1b]0;owned\x9b31m\u202eevil?" in shown
    assert not set(shown) & STEERING


def test_nothing_that_a_console_prints_steers_the_terminal(capsys):
    text = Text.assemble(("x" + ESCAPES, "red"))
    console = make_console()
    for one in (
        "x" + ESCAPES,
        text,
        rows_table([{ESCAPES: ESCAPES}]),
        Panel(text),
        Group(text, Columns([text])),
    ):
        console.print(one, markup=False)
    say(make_console(quiet=True), ESCAPES, "red")
    log = io.StringIO()
    log_console(log).print(text)
    shown = "".join(capsys.readouterr()) + log.getvalue()
    assert shown.count(r"\x1b[2J") > 7
    assert not set(shown) & STEERING


def test_colours_of_our_own_are_left(monkeypatch):
    console = _console_class()(file=(file := io.StringIO()), force_terminal=True, color_system="standard")
    console.print("a", style="red")
    assert file.getvalue() == "\x1b[31ma\x1b[0m\n"


def test_what_people_write_is_printable():
    assert printable("Est-ce mieux\u00a0? 猫\u3000白 👨\u200d👩\u200d👧 می\u200cخواهم") == (
        "Est-ce mieux\u00a0? 猫\u3000白 👨\u200d👩\u200d👧 می\u200cخواهم"
    )


# --- what is looked at before anything is loaded ------------------------------------------------------


def test_all_faulty_variables_are_told_at_once_before_anything_is_loaded(tmp_path):
    faulty = {
        "VITC_SWEEP_CACHE_GB": "much",
        "VITC_SWEEP_NOTIFY": "mail 'open",
        "VITC_SWEEP_CACHE": str(sweep_file(tmp_path)),
        "PYTORCH_CUDA_ALLOC_CONF": "garbage",
        "TORCH_LOGS": "garbage",
    }
    done = run("plan", sweep_file(tmp_path), **faulty)
    assert (done.returncode, done.stdout) == (2, b"")
    lines = done.stderr.decode().splitlines()
    assert [line.split(":")[0] for line in lines[:3]] == [
        "VITC_SWEEP_CACHE_GB",
        "VITC_SWEEP_CACHE",
        "VITC_SWEEP_NOTIFY",
    ]
    assert lines[3].startswith(
        "torch cannot be loaded with PYTORCH_CUDA_ALLOC_CONF=garbage, TORCH_LOGS=garbage: "
    )
    assert len(lines) == 4


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("TORCH_LOGS", "garbage", "Invalid log settings: garbage"),
        ("TORCH_LOGS_FORMAT", "x", "Invalid format 'x'"),
        ("TORCHINDUCTOR_COMPILE_THREADS", "x", "invalid literal for int() with base 10: 'x'"),
    ],
)
def test_a_variable_that_keeps_torch_from_loading_is_named_with_the_cause(name, value, told):
    with pytest.raises(UserError) as refused:
        check_surroundings(environment=os.environ | {name: value, "TORCH_HOME": "/x"})
    [line] = str(refused.value).splitlines()
    assert line.startswith(f"torch cannot be loaded with {name}={value}: {told}")


def test_variables_that_are_right_are_no_fault(tmp_path):
    right = {
        "VITC_SWEEP_CACHE_GB": "2.5",
        "VITC_SWEEP_CACHE": str(tmp_path / "not yet"),
        "PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:128",
    }
    check_surroundings(environment=os.environ | right)


def test_harmless_variables_of_containers_load_nothing(monkeypatch):
    monkeypatch.setattr(subprocess, "run", None)
    names = ("TORCH_HOME", "PYTORCH_VERSION", "TORCH_CUDA_ARCH_LIST", "PYTORCH_BUILD_NUMBER", "TORCH_NCCL_X")
    check_surroundings(environment=dict.fromkeys(names, "x"))


def test_a_cache_is_the_same_for_workers_in_other_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VITC_SWEEP_CACHE", "cache")
    process.prepare()
    assert os.environ["VITC_SWEEP_CACHE"] == str(tmp_path / "cache")


@pytest.mark.parametrize(
    "command",
    [
        "vitc-sweep plan x.yaml",
        "vitc-sweep status x",
        "python -m orchestrator examples",
        "python -m trainables x.yaml",
    ],
)
def test_a_current_folder_that_was_deleted_is_one_message(command, tmp_path):
    line = f"mkdir {tmp_path}/gone && cd {tmp_path}/gone && rmdir {tmp_path}/gone && {command}"
    path = f"{COMMAND.parent}:{os.environ['PATH']}"
    done = run(shell=line, PATH=path, PYTHONPATH=str(ROOT))
    assert done.returncode == 2
    assert done.stderr == b"the current folder was deleted, or cannot be reached: change to another one\n"


def test_the_library_says_so_too(tmp_path, monkeypatch):
    file = sweep_file(tmp_path)
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(UserError, match="current folder was deleted"):
        load_sweep(file)
