"""Telling somebody who is not looking: a webhook or a command, which never disturbs the run."""

import json
import os
import queue
import shlex
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

#: Seconds that one message may take, and that the end of a run waits for messages under way.
SEND_SECONDS, CLOSE_SECONDS = 20.0, 25.0


class Notifier:
    """Sends a message at the first result, when a run stops itself, and at the end.

    A message is one JSON object: `event` (first_result, breaker, end), `text` for people (what Slack and
    Mattermost show), sweep, folder, host, trials, ended, failed, and `best`, the lowest error per cell and
    arm. It is POSTed to an http(s) URL, or written to the standard input of a command, which is started
    without a shell. A thread sends, so a receiver that hangs holds nothing up.
    """

    def __init__(self, target: str | None, sweep: str, folder: Path) -> None:
        """
        Args:
          target: a URL or a command; $NAMES in it are taken from the environment, so that a file need not
            hold a secret. None tells nobody.
          sweep: its name.
          folder: its folder.
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
        """Looks at what has happened, after `progress` has taken it in."""
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
        """Tells how the run ended, and waits a little until that is out.

        Returns:
          A line about messages that did not get through, without the target's secrets; None if all did.
        """
        if not self._target:
            return None
        if self._progress is not None:
            self._tell("end", how)
        self._messages.put(None)
        self._thread.join(timeout=CLOSE_SECONDS)
        if self._thread.is_alive():
            return f"{self._public_name()} did not take its message in time"
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
            except Exception as error:  # whatever it is, the run goes on
                # Its text may hold the URL.
                self._failure = f"{self._public_name()} did not take a message: {type(error).__name__}"

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
        """The target without what may be secret: the host of a URL, the program of a command."""
        if _is_url(self._target):
            return f"the webhook at {urlsplit(self._target).hostname}"
        # By blanks alone: what cannot be split as a shell would is a failure that is told of, too.
        return f"the command {Path(self._target.split()[0]).name}"


def _is_url(target: str) -> bool:
    return urlsplit(target).scheme in ("http", "https")
