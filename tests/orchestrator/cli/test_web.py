"""The live pages: what is served, when a report is made anew, and what is not served."""

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.report_scale import large_plan
from benchmarks.screens import made_up_run
from orchestrator.cli import watching
from orchestrator.cli.web import Pages, make, server
from orchestrator.store.folder import save_question
from orchestrator.store.journal import encode
from orchestrator.trials.events import SessionClosed


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder with one sweep under way and one that has not begun."""
    plan = large_plan(1, 2, epochs=2)
    for name in ("half", "fresh"):
        save_question(tmp_path / "runs" / name, plan, declare=False)
        (tmp_path / "runs" / name / "journal").mkdir()
    events = made_up_run(plan, lanes=2)
    (tmp_path / "runs/half/journal/000001.jsonl").write_text("".join(map(encode, events)))
    (tmp_path / "runs/secret.txt").write_text("not for everybody")
    return tmp_path / "runs"


def until(condition: Callable[[], bool]) -> None:
    """Waits for another thread, not long."""
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "did not happen"
        time.sleep(0.01)


@pytest.fixture
def gate() -> threading.Event:
    """Open until a test closes it: reports that are being made wait before it."""
    opened = threading.Event()
    opened.set()
    return opened


@pytest.fixture
def served(runs: Path, tmp_path: Path, gate: threading.Event) -> Iterator[tuple[str, Pages, list[str]]]:
    """Address, pages and the names of sweeps whose reports were made."""
    made: list[str] = []

    def maker(folder: Path, target: Path) -> str:
        gate.wait(30)
        made.append(folder.name)
        if (folder / "broken").exists():
            return "FolderError: it is broken <badly>"
        target.mkdir(parents=True, exist_ok=True)
        state = {
            "name": "trees",
            "question": "is it <b>?",
            "trials": 8,
            "ended": 3,
            "failed": 1,
            "best": [["all", "a", 2.5]],
        }
        (target / "state.json").write_text(json.dumps(state))
        (target / "report.html").write_text(
            f"<html><body class='x'><h1>report {len(made)}</h1></body></html>"
        )
        return ""

    pages = Pages(runs, tmp_path / "scratch", every_seconds=0, maker=maker)
    with server(pages, "127.0.0.1", 0, lambda name: f"http://127.0.0.1:5001/{name}") as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{http.server_address[1]}", pages, made
        http.shutdown()
        thread.join()
        pages.close()


def get(address: str, **headers: str) -> str:
    with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=30) as answer:
        return answer.read().decode()


def status_of(address: str, **headers: str) -> int:
    with pytest.raises(urllib.error.HTTPError) as refused:
        get(address, **headers)
    refused.value.close()
    return refused.value.code


def test_the_index_names_every_sweep_and_links_to_mlflow(served, gate):
    address, pages, made = served
    gate.clear()
    assert "loading" in get(address + "/")
    gate.set()
    until(lambda: sorted(made) == ["fresh", "half"] and pages.page("half").version == 1)
    until(lambda: pages.page("fresh").version == 1)
    page = get(address + "/")
    assert 'href="half/"' in page
    assert 'href="fresh/"' in page
    assert "http://127.0.0.1:5001/" in page
    assert "3/8" in page
    assert "is it &lt;b&gt;?" in page


def test_a_report_is_made_when_it_is_looked_at_and_anew_when_the_journal_has_grown(served, runs, gate):
    address, pages, made = served
    gate.clear()
    assert "is being written" in get(address + "/half/")
    gate.set()
    until(lambda: pages.page("half").version == 1)
    assert "<h1>report 1</h1>" in get(address + "/half/")
    assert json.loads(get(address + "/half/version.json"))["version"] == 1
    for _ in range(3):
        get(address + "/half/")
    assert made == ["half"]
    with (runs / "half/journal/000001.jsonl").open("a") as file:
        file.write(encode(SessionClosed(time=0)))
    get(address + "/half/version.json")
    until(lambda: pages.page("half").version == 2)
    page = get(address + "/half/")
    assert "<h1>report 2</h1>" in page
    # The bar stands inside the page, and knows which report it stands over.
    assert page.index("<body class='x'>") < page.index("live: 3 of 8") < page.index("<h1>")
    assert "told.version !== 2" in page
    # By the name of the sweep, which is not that of its folder.
    assert 'href="http://127.0.0.1:5001/trees"' in page


def test_a_report_that_cannot_be_made_is_said_so_and_the_others_are_served(served, runs):
    address, pages, _ = served
    (runs / "half/broken").touch()
    get(address + "/half/")
    until(lambda: bool(pages.page("half").fault))
    assert "it is broken &lt;badly&gt;" in get(address + "/half/")
    get(address + "/fresh/")
    until(lambda: pages.page("fresh").version == 1)


def test_only_reports_are_served_and_only_to_this_machine(served):
    address, pages, _ = served
    get(address + "/half/")
    until(lambda: pages.page("half").version == 1)
    assert "<h1>report" in get(address + "/half/report.html")
    for path in ("/nobody/", "/half", "/half/none.svg", "/half/../../runs/secret.txt", "/secret.txt"):
        assert status_of(address + path) == 404
    assert status_of(address + "/half/%2e%2e/%2e%2e/runs/secret.txt") == 404
    # A name of somebody else's that leads here.
    assert status_of(address + "/", Host="evil.example") == 403
    with pytest.raises(urllib.error.HTTPError, match="501"):
        urllib.request.urlopen(address + "/half/", data=b"{}", timeout=30)


def test_a_report_is_not_made_more_often_than_asked(runs, tmp_path):
    made: list[str] = []
    pages = Pages(
        runs, tmp_path / "scratch", every_seconds=3600, maker=lambda f, t: made.append(f.name) or "x"
    )
    pages.page("half")
    until(lambda: bool(pages.page("half").fault))
    for size in range(3):
        (runs / "half/journal/000001.jsonl").write_text("x" * size)
        pages.page("half")
    pages.page("fresh")
    until(lambda: "fresh" in made)
    assert made == ["half", "fresh"]
    pages.close()


def test_the_report_of_a_partial_sweep_is_made_beside_it_and_leaves_it_alone(runs, tmp_path):
    before = {path: path.read_bytes() for path in runs.rglob("*") if path.is_file()}
    make(runs / "half", tmp_path / "target")
    assert {path: path.read_bytes() for path in runs.rglob("*") if path.is_file()} == before
    ends = sum(b'"kind":"end"' in line for line in before[runs / "half/journal/000001.jsonl"].splitlines())
    assert 0 < ends < 8
    assert f"{ends} of 8 trials" in (tmp_path / "target" / "report.html").read_text()
    state = json.loads((tmp_path / "target" / "state.json").read_text())
    assert (state["trials"], state["ended"]) == (8, ends)


def test_ui_prints_two_addresses_the_second_once_mlflow_answers(runs, monkeypatch, capsys):
    asked: list[str] = []

    class Starting(BaseHTTPRequestHandler):
        """A server that has its port before it can answer."""

        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200 if len(asked) > 2 else 503)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

    ended: list[str] = []
    child = SimpleNamespace(poll=lambda: None, terminate=lambda: ended.append("child"))
    monkeypatch.setattr("time.sleep", lambda _: None)
    # The handlers of this process stay as they are.
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with ThreadingHTTPServer(("127.0.0.1", 0), Starting) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        address = f"http://127.0.0.1:{http.server_address[1]}/#/experiments"
        monkeypatch.setattr(watching, "_mlflow_pages", lambda *_: (address, child))
        monkeypatch.setattr(ThreadingHTTPServer, "serve_forever", lambda self: ended.append("reports"))
        watching.ui(runs, port=0, host="127.0.0.1", every=30, track=True)
        http.shutdown()
        thread.join()
    reports, mlflow = capsys.readouterr().out.splitlines()
    assert reports.startswith("reports: http://127.0.0.1:")
    assert mlflow == f"MLflow:  {address}"
    assert asked[:3] == ["/health"] * 3
    assert ended == ["reports", "child"]
