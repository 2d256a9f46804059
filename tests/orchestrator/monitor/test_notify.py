"""Messages go out once each, and neither a receiver nor a secret gets in the way."""

import http.server
import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.report_scale import large_plan
from benchmarks.screens import made_up_run
from orchestrator.monitor import notify
from orchestrator.monitor.notify import Notifier
from orchestrator.monitor.observers import NotifyObserver
from orchestrator.monitor.progress import Progress
from orchestrator.store.folder import save_question
from orchestrator.sweep.document import Override
from orchestrator.sweep.load import load_sweep
from orchestrator.trials.events import BreakerTripped
from orchestrator.trials.trial import Plan
from trainables.errors import UserError

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def plan() -> Plan:
    return large_plan(1, 4, epochs=2)


@pytest.fixture
def webhook() -> Iterator[tuple[str, list[dict]]]:
    """The address of a receiver, and what it has received."""
    received: list[dict] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.headers["Content-Type"] == "application/json"
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(500 if "broken" in self.path else 204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", received
        server.shutdown()
        thread.join()


def run(plan: Plan, target: str | None) -> str | None:
    """A run from its first event to its end, as the command line tells it."""
    notifier, progress = Notifier(target, "large", Path("runs/large")), Progress(plan, {})
    events = made_up_run(plan, lanes=2, share=1.0, failing=0)
    breaker = BreakerTripped(time=0.0, arm="vit_p", detail="5 trials in a row: OSError")
    for event in [*events, breaker, breaker]:
        progress.observe([event])
        notifier.observe(progress, [event])
    return notifier.end("has ended")


def test_a_webhook_is_told_of_the_first_result_the_breaker_and_the_end_once_each(plan, webhook):
    address, received = webhook
    assert run(plan, address) is None
    assert [message["event"] for message in received] == ["first_result", "breaker", "end"]
    first, breaker, end = received
    assert first["ended"] < end["ended"] == end["trials"] == len(plan.trials)
    assert "OSError" in breaker["text"]
    assert end["text"].startswith(
        f"large has ended; {len(plan.trials)} of {len(plan.trials)} trials have ended"
    )
    assert end["folder"] == "runs/large"
    best = {(entry["cell"], entry["arm"]): entry["val_error_pct"] for entry in end["best"]}
    progress = Progress(plan, {})
    progress.observe(made_up_run(plan, lanes=2, share=1.0, failing=0))
    assert best == {(tally.cell, tally.arm): tally.best_pct for tally in progress.tallies}


def test_a_command_gets_the_message_on_its_input_and_no_shell(plan, tmp_path, monkeypatch):
    script = tmp_path / "tell me.py"
    script.write_text("import sys\nopen(sys.argv[1], 'a').write(sys.stdin.read() + '\\n')\n")
    monkeypatch.setenv("PLACE", str(tmp_path / "told; touch hacked"))
    assert run(plan, f"{sys.executable} '{script}' \"$PLACE\"") is None
    told = [json.loads(line) for line in (tmp_path / "told; touch hacked").read_text().splitlines()]
    assert [message["event"] for message in told] == ["first_result", "breaker", "end"]


@pytest.mark.parametrize(
    ("target", "named"),
    [
        ("http://me:hunter2@127.0.0.1:9/T000/hunter2", "the webhook at 127.0.0.1"),
        ("/no/such/program --token hunter2", "the command program"),
        ("false hunter2", "the command false"),
        ("sh -c 'hunter2", "the command sh"),
    ],
)
def test_a_notifier_that_fails_is_one_line_without_its_secrets(plan, target, named):
    warning = run(plan, target)
    assert warning is not None
    assert warning.startswith(named)
    assert "hunter2" not in warning
    assert "\n" not in warning


def test_a_receiver_that_refuses_is_said_so_and_gets_the_rest(plan, webhook):
    address, received = webhook
    assert "HTTPError" in str(run(plan, f"{address}/broken"))
    assert len(received) == 3


def test_a_receiver_that_hangs_holds_nothing_up(plan, monkeypatch):
    monkeypatch.setattr(notify, "CLOSE_SECONDS", 0.05)
    released = threading.Event()
    monkeypatch.setattr(Notifier, "_send", lambda self, body: released.wait(30))
    began = time.monotonic()
    assert "did not accept its message in time" in str(run(plan, "http://127.0.0.1:9/"))
    assert time.monotonic() - began < 20
    released.set()


def test_without_a_target_nothing_is_started(plan):
    before = threading.active_count()
    notifier = Notifier(None, "large", Path("runs/large"))
    assert threading.active_count() == before
    assert notifier.end("has ended") is None


def test_the_key_of_the_file_is_not_written_to_the_folder(plan, tmp_path):
    secret = "https://hooks.example.org/T000/hunter2"
    sweep = load_sweep(ROOT / "search_spaces" / "lr_wd.yaml", [Override.parse(f"notify={secret}")])
    assert sweep.notify == secret
    assert "hunter2" not in repr(sweep)
    save_question(tmp_path / "x", Plan(sweep, plan.trials, plan.infos))
    for path in (tmp_path / "x").rglob("*"):
        assert path.is_dir() or b"hunter2" not in path.read_bytes()


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("htp://hooks.example.org/hunter2", "must be the URL of an http or https server, or a command"),
        ("https:///hunter2", "must be the URL of an http or https server, or a command"),
        ("https://[::1/hunter2", "must be the URL of an http or https server, or a command"),
        (
            "https://hooks.example.org/$NO_SUCH_TOKEN/hunter2",
            "names the variable NO_SUCH_TOKEN, which is not set",
        ),
        ("sh -c 'hunter2", "must be a command: a quotation mark is not closed"),
        ("no-such-command hunter2", "there is no command called 'no-such-command' here"),
        ("  ", "is empty"),
    ],
)
def test_a_target_that_cannot_be_reached_is_told_before_the_run_without_secrets(plan, target, told):
    with pytest.raises(UserError) as refused:
        NotifyObserver(target).planned(plan, plan.trials)
    assert str(refused.value) == f"notify: {told}"


@pytest.mark.parametrize(
    "target", [None, "https://hooks.example.org:8443/a", "sh -c 'mail -s x'", sys.executable]
)
def test_a_target_that_may_be_reached_is_no_fault(plan, target):
    NotifyObserver(target).planned(plan, plan.trials)
