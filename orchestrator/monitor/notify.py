"""Messages about a run to a webhook or a command. A failure to send never disturbs the run."""

import json
import os
import queue
import re
import shlex
import shutil
import socket
import subprocess
import threading
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from orchestrator.monitor.progress import Progress
from orchestrator.trials.events import AttemptEnded, BreakerTripped, Event

#: Longest seconds for one message, and for the messages in flight at the end of a run.
SEND_SECONDS, CLOSE_SECONDS = 20.0, 25.0


class Notifier:
    """Sends a message at the first result, when a run stops itself, and at the end.

    A message is one JSON object: `event` (first_result, breaker, end), `text` for people (which Slack and
    Mattermost show), sweep, folder, host, trials, ended, failed, and `best`, the lowest error per cell and
    arm. It is POSTed to an http(s) URL, or written to the standard input of a command, which is started
    without a shell. A thread sends the messages, so a receiver that hangs does not delay the run.
    """

    def __init__(self, target: str | None, sweep: str, folder: Path) -> None:
        """
        Args:
          target: a URL or a command. $NAMES in it are taken from the environment, so that no file has to
            contain a secret. None sends nothing.
          sweep: the name of the sweep.
          folder: the folder of the sweep.
        """
        self._target = os.path.expandvars(target).strip() if target else ""
        self._sweep, self._folder = sweep, folder
        self._progress: Progress | None = None
        self._told: set[str] = set()
        self._failure = ""
        self._messages: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._send_all, name="notify", daemon=True)
        if self._target:
            self._thread.start()

    def observe(self, progress: Progress, events: Iterable[Event]) -> None:
        """Sends messages about new events that `progress` includes already."""
        self._progress = progress
        if not self._target:
            return
        for event in events:
            match event:
                case BreakerTripped():
                    self._tell("breaker", f"stopped early: {event.detail}")
                case AttemptEnded(end="finished", final=True):
                    self._tell("first_result", "has its first result")

    def end(self, how: str) -> str | None:
        """Sends how the run ended, and waits for up to CLOSE_SECONDS until the message is out.

        Returns:
          A warning about messages that were not delivered, without the target's secrets. None if all were.
        """
        if not self._target:
            return None
        if self._progress is not None:
            self._tell("end", how)
        self._messages.put(None)
        self._thread.join(timeout=CLOSE_SECONDS)
        if self._thread.is_alive():
            return f"{self._public_name()} did not accept its message in time"
        return self._failure or None

    def _tell(self, event: str, text: str) -> None:
        assert self._progress is not None
        if event in self._told:
            return
        self._told.add(event)
        progress = self._progress
        total, failed = len(progress.plan.trials), sum(tally.failed for tally in progress.tallies)
        counts = f"{progress.ended} of {total} trials have ended" + (f", {failed} failed" if failed else "")
        self._messages.put(
            {
                "event": event,
                "text": f"{self._sweep} {text}; {counts}",
                "sweep": self._sweep,
                "folder": str(self._folder),
                "host": socket.gethostname(),
                "trials": total,
                "ended": progress.ended,
                "failed": failed,
                "best": [
                    {"cell": tally.cell, "arm": tally.arm, "val_error_pct": tally.best_pct}
                    for tally in progress.tallies
                ],
            }
        )

    def _send_all(self) -> None:
        while (message := self._messages.get()) is not None:
            try:
                self._send(json.dumps(message).encode())
            except Exception as error:  # a failure to send must not stop the run
                # Without the error's text, because it may contain the URL.
                self._failure = f"{self._public_name()} did not accept a message: {type(error).__name__}"

    def _send(self, body: bytes) -> None:
        if _is_url(self._target):
            request = urllib.request.Request(
                self._target, data=body, headers={"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=SEND_SECONDS):
                return
        subprocess.run(
            shlex.split(self._target),
            input=body,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=SEND_SECONDS,
            check=True,
        )

    def _public_name(self) -> str:
        """Returns the target without possible secrets: the host of a URL, the program of a command."""
        if _is_url(self._target):
            return f"the webhook at {urlsplit(self._target).hostname}"
        # Split at blanks, because shlex may fail on the command that this message is about.
        return f"the command {Path(self._target.split()[0]).name}"


def target_fault(target: str) -> str:
    """Returns why no message can go to a target, else an empty text. Does not repeat what may be a secret."""
    target = os.path.expandvars(target).strip()
    if "://" in target.partition(" ")[0]:
        if unset := re.search(r"\$\{?(\w+)", target):
            return f"names the variable {unset[1]}, which is not set"
        try:
            parts = urlsplit(target)
            named = bool(parts.hostname) and parts.port != 0
        except ValueError:
            named = False
        return "" if named and _is_url(target) else "must be the URL of an http or https server, or a command"
    try:
        words = shlex.split(target)
    except ValueError:
        return "must be a command: a quotation mark is not closed"
    if not words:
        return "is empty"
    return "" if shutil.which(words[0]) else f"there is no command called {words[0]!r} here"


def _is_url(target: str) -> bool:
    return urlsplit(target).scheme in ("http", "https")
