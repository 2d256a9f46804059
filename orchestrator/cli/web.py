"""Live pages of sweeps: a small read-only web server over a folder of sweep folders.

When a page is requested and the journal has grown, a separate process writes a new report into a scratch
folder. So a sweep's own files, which are sealed, are not changed, and many requests cost one report.

    python -m orchestrator.cli.web SWEEP TARGET    writes report and state of a sweep into a folder
"""

import html
import json
import mimetypes
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from orchestrator.evidence.analyses import load_collapse
from orchestrator.evidence.seal import report_details
from orchestrator.monitor.progress import Progress
from orchestrator.report.page import write_report
from orchestrator.store.folder import ANALYSES, open_folder
from orchestrator.store.lease import holder
from trainables.io.children import own_program
from trainables.io.files import write_atomically
from trainables.io.json import parse_json

#: Least seconds between two reports of one sweep.
EVERY_SECONDS = 30.0

#: Seconds after which a report that is being written is given up.
_MAKE_SECONDS = 1800.0


def make(folder: Path, target: Path) -> None:
    """Writes the present report and state of a sweep into another folder.

    Raises:
      FolderError: the folder is no sweep.
    """
    opened = open_folder(folder)
    progress = Progress(opened.plan, opened.records)
    state = {
        "name": opened.plan.sweep.name,
        "question": opened.plan.sweep.question,
        "trials": len(opened.plan.trials),
        "ended": progress.ended,
        "failed": sum(tally.failed for tally in progress.tallies),
        "best": [[tally.cell, tally.arm, tally.best_pct] for tally in progress.tallies],
    }
    write_atomically(target / "state.json", json.dumps(state))
    details = report_details(opened)
    write_report(
        opened.plan,
        opened.records,
        target,
        details,
        planned=opened.planned,
        declared=opened.declared,
        collapse=load_collapse(folder),
    )


_PROGRAM = "from pathlib import Path; from orchestrator.cli.web import make; make(*map(Path, sys.argv[1:]))"


def _make_in_process(folder: Path, target: Path) -> str:
    """Runs `make` at low priority in a separate process. Returns the error, empty if there was none."""
    command = own_program(_PROGRAM, str(folder), str(target))
    nice = ["nice", "-n", "10"] if os.name == "posix" else []
    try:
        done = subprocess.run([*nice, *command], capture_output=True, timeout=_MAKE_SECONDS)
    except (OSError, subprocess.SubprocessError) as error:
        return f"{type(error).__name__}: {error}"
    lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
    return lines[-1] if done.returncode else ""


@dataclass(slots=True)
class _Page:
    """The live report of one sweep.

    Attributes:
      sign: state of the folder when the report was started; see `_sign`.
      began: time of that start by the monotonic clock.
      version: number of reports so far.
      made: time of day at which the last one was ready.
      fault: why the last one failed, else empty.
    """

    sign: tuple[Any, ...] = ()
    began: float = float("-inf")
    version: int = 0
    made: str = ""
    fault: str = ""


class Pages:
    """The sweeps in a folder and their reports, which are written one at a time on request."""

    def __init__(
        self,
        root: Path,
        scratch: Path,
        every_seconds: float = EVERY_SECONDS,
        maker: Callable[[Path, Path], str] = _make_in_process,
    ) -> None:
        """
        Args:
          root: a folder of sweep folders, or one sweep folder.
          scratch: the folder of the reports.
          every_seconds: least time between two reports of one sweep.
          maker: a function that writes a report and returns an error, empty if there was none.
        """
        self.root, self.scratch = root, scratch
        self._every, self._maker = every_seconds, maker
        self._pages: dict[str, _Page] = {}
        self._wanted: dict[str, None] = {}
        self._condition = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="reports", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops writing reports."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()

    def sweeps(self) -> dict[str, Path]:
        """Returns sweep folders by name, looked up at every call because sweeps may start at any time."""
        if (self.root / "sweep.yaml").is_file():
            return {self.root.resolve().name: self.root}
        return {path.parent.name: path.parent for path in sorted(self.root.glob("*/sweep.yaml"))}

    def page(self, name: str) -> _Page:
        """Returns the present report of a sweep. Requests a new one if the sweep has advanced."""
        folder = self.sweeps()[name]
        with self._condition:
            page = self._pages.setdefault(name, _Page())
            if page.sign != _sign(folder):
                self._wanted[name] = None
                self._condition.notify_all()
            return page

    def report_folder(self, name: str) -> Path:
        """Returns the folder of a sweep's report."""
        return self.scratch / name

    def state(self, name: str) -> dict[str, Any]:
        """Returns the progress of a sweep, known before its report. Empty before the first request."""
        try:
            return dict(parse_json((self.report_folder(name) / "state.json").read_text("utf-8")))
        except (OSError, ValueError):
            return {}

    def _work(self) -> None:
        while True:
            with self._condition:
                due = [n for n in self._wanted if time.monotonic() - self._pages[n].began >= self._every]
                if self._closed:
                    return
                if not due:
                    self._condition.wait(timeout=0.5 if self._wanted else None)
                    continue
                name = due[0]
                del self._wanted[name]
                page, folder = self._pages[name], self.sweeps().get(name)
                if folder is None:
                    continue
                # Before the folder is read, so that later events request another report.
                page.sign, page.began = _sign(folder), time.monotonic()
            fault = self._maker(folder, self.report_folder(name))
            with self._condition:
                page.fault = fault
                if not fault:
                    page.version, page.made = page.version + 1, time.strftime("%H:%M:%S")


def _sign(folder: Path) -> tuple[Any, ...]:
    """Returns a value that changes when the journal, the question or an analysis does."""
    found = []
    for path in [
        *sorted((folder / "journal").glob("*.jsonl")),
        folder / "sweep.yaml",
        folder / "search.json",
        folder / "confirm.json",
        *(folder / name for name in ANALYSES),
    ]:
        try:
            stat = path.stat()
        except OSError:
            continue
        found.append((path.name, stat.st_size, stat.st_mtime_ns if path.suffix != ".jsonl" else 0))
    return tuple(found)


def _no_mlflow(name: str) -> str:
    return ""


def server(
    pages: Pages, host: str, port: int, mlflow: Callable[[str], str] = _no_mlflow
) -> ThreadingHTTPServer:
    """Returns a server of the pages; `serve_forever` runs it.

    Args:
      pages: what it serves.
      host, port: where it serves. Port 0 takes a free one.
      mlflow: returns the address of a sweep's runs in MLflow by the sweep's name, and of all runs by "". It
        is empty if MLflow is not served.

    Raises:
      OSError: the port is taken.
    """
    is_loopback = host in ("127.0.0.1", "localhost", "::1")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            # A page from elsewhere may point its own name at this machine; it is not to read what is here.
            asked = urlsplit(f"//{self.headers.get('Host', '')}").hostname
            if is_loopback and asked not in ("127.0.0.1", "localhost", "::1"):
                self._send(HTTPStatus.FORBIDDEN, "text/plain", b"ask for localhost")
                return
            status, kind, body = answer(pages, unquote(urlsplit(self.path).path), mlflow)
            self._send(status, kind, body)

        do_HEAD = do_GET

        def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Logs nothing, so that the terminal shows only the addresses."""

    return ThreadingHTTPServer((host, port), Handler)


def answer(
    pages: Pages, path: str, mlflow: Callable[[str], str] = _no_mlflow
) -> tuple[HTTPStatus, str, bytes]:
    """Returns the response for a path: the index at /, a live report at /NAME/, its files below."""
    if path == "/":
        return HTTPStatus.OK, _HTML, _index(pages, mlflow("")).encode()
    name, slash, rest = path.removeprefix("/").partition("/")
    if name not in pages.sweeps() or not slash:
        return HTTPStatus.NOT_FOUND, "text/plain; charset=utf-8", b"no such sweep"
    page, folder = pages.page(name), pages.report_folder(name)
    if rest == "version.json":
        told = {"version": page.version, "fault": page.fault}
        return HTTPStatus.OK, "application/json", json.dumps(told).encode()
    if rest == "":
        return HTTPStatus.OK, _HTML, _report(pages, name, mlflow).encode()
    file = (folder / rest).resolve()
    if not file.is_relative_to(folder.resolve()) or not file.is_file():
        return HTTPStatus.NOT_FOUND, "text/plain; charset=utf-8", b"no such file"
    kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
    return HTTPStatus.OK, kind, file.read_bytes()


_HTML = "text/html; charset=utf-8"

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
body { color: #1a1a1a }
table { border-collapse: collapse; width: 100% } th { text-align: left; color: #666; font-weight: normal }
th, td { padding: .35rem 1.2rem .35rem 0; border-bottom: 1px solid #ddd; vertical-align: top }
.bar { background: #eee; width: 8rem; height: .5rem; margin-top: .5rem }
.bar div { background: #2166ac; height: 100% }
small { color: #666 } .bad { color: #b2182b }
@media (prefers-color-scheme: dark) {
  body { background: #161616; color: #e6e6e6 } th, td { border-color: #333 } a { color: #8ab4f8 }
  .bar { background: #333 }
}
"""


def _index(pages: Pages, mlflow: str) -> str:
    rows = []
    for name, folder in pages.sweeps().items():
        page = pages.page(name)
        state, link = pages.state(name), f"{quote(name)}/"
        at_work = "running" if holder(folder) is not None else ""
        if not state:
            told = f'<td colspan="2">{html.escape(page.fault) or "loading"}</td>'
        else:
            share = 100 * state["ended"] / max(state["trials"], 1)
            failed = f' <span class="bad">{state["failed"]} failed</span>' if state["failed"] else ""
            best = "<br>".join(
                f"{html.escape(cell)} {html.escape(arm)} {error:.1f} %"
                for cell, arm, error in state["best"][:8]
                if error is not None
            )
            more = f"<br><small>and {len(state['best']) - 8} more</small>" if len(state["best"]) > 8 else ""
            told = (
                f"<td>{state['ended']}/{state['trials']}{failed}"
                f'<div class="bar"><div style="width:{share:.0f}%"></div></div>'
                f"<small>{at_work}</small></td><td>{best or '–'}{more}</td>"
            )
        question = html.escape(state.get("question", ""))
        rows.append(
            f'<tr><td><a href="{link}">{html.escape(name)}</a><br><small>{question}</small></td>{told}</tr>'
        )
    where = html.escape(str(pages.root))
    body = (
        f"<table><tr><th>sweep<th>trials ended<th>best error so far</tr>{''.join(rows)}</table>"
        if rows
        else f"<p>{where} contains no sweep yet.</p>"
    )
    link = f' · <a href="{html.escape(mlflow)}">MLflow</a>' if mlflow else ""
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" content="10">'
        f'<meta name="viewport" content="width=device-width"><title>Sweeps in {where}</title>'
        f"<style>{_STYLE}</style><h1>Sweeps</h1><p><small>{where}{link}</small></p>{body}</html>"
    )


def _report(pages: Pages, name: str, mlflow: Callable[[str], str]) -> str:
    """Returns the report with a bar that shows its age and reloads the page when there is a newer one."""
    page = pages.page(name)
    # The version is read before the state, because a report always has a state and both may appear anytime.
    version = page.version
    state = pages.state(name)
    # The folder may have another name than the sweep.
    runs = mlflow(state.get("name", ""))
    link = f' · <a href="{html.escape(runs)}">MLflow</a>' if runs else ""
    fault = f' · <span style="color:#b2182b">{html.escape(page.fault)}</span>' if page.fault else ""
    if not version:
        told = html.escape(page.fault) or "The report is being written."
        return (
            '<!doctype html><html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" content="2">'
            f"<title>{html.escape(name)}</title><style>{_STYLE}</style><h1>{html.escape(name)}</h1><p>{told}</p>"
            f'<p><small><a href="../">all sweeps</a>{link}</small></p></html>'
        )
    bar = (
        '<div style="position:sticky;top:0;z-index:9;background:#eef3f8;color:#333;padding:.4rem 1rem;'
        'font:13px system-ui,sans-serif;border-bottom:1px solid #cdd9e5"><a href="../">all sweeps</a>'
        f" · live: {state['ended']} of {state['trials']} trials, as of {page.made}{link}{fault}</div>"
        "<script>setInterval(async () => { try {"
        ' const told = await (await fetch("version.json")).json();'
        f" if (told.version !== {version}) location.reload();"
        " } catch {} }, 5000)</script>"
    )
    text = (pages.report_folder(name) / "report.html").read_text("utf-8")
    head, tag, rest = text.partition("<body")
    if not tag:
        return bar + text
    attributes, close, body = rest.partition(">")
    return head + tag + attributes + close + bar + body


def scratch_folder() -> "tempfile.TemporaryDirectory[str]":
    """Returns a temporary folder for reports, removed with the server."""
    return tempfile.TemporaryDirectory(prefix="vitc-sweep-ui-", ignore_cleanup_errors=True)
