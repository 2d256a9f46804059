"""The last words of the connected cluster's autoscaler about machines that are missing.

Ray's first autoscaler writes its state to a key of the GCS, the second one answers a call. The second one
leaves out why a launch failed (Ray 2.60), so that is taken from its log, if this process runs on the head.
All of this is for people only. Where the format is another one, or no autoscaler runs, it says nothing.
"""

import contextlib
import json
import re
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.experimental.internal_kv import _internal_kv_get

from orchestrator.trials.numerals import duration
from trainables.io.storage import redacted

#: Seconds to wait for an answer of the GCS.
_TIMEOUT_SECONDS = 3

#: Characters of a reason, failed launches, and bytes at the end of the autoscaler's log that are looked at.
_MOST_CHARACTERS, _MOST_FAILURES, _LOG_BYTES = 300, 3, 2**18


@dataclass(frozen=True, slots=True)
class Failure:
    """The last failed launch of a node type: its time in seconds since 1970, and the reason if known."""

    time: float
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """The state of an autoscaler.

    Attributes:
      requested: number of machines that the autoscaler has asked for, by node type.
      starting: number of machines that are there and do not run Ray yet, by node type.
      failures: the last failed launch of each node type that has one.
      error: why the autoscaler itself has ended; empty if it has not.
    """

    requested: Mapping[str, int] = field(default_factory=dict)
    starting: Mapping[str, int] = field(default_factory=dict)
    failures: Mapping[str, Failure] = field(default_factory=dict)
    error: str = ""

    def text(self, now: float) -> str:
        """Returns the report in one line. Empty if it has nothing. `now` is in seconds since 1970."""
        parts = [f"the autoscaler failed: {_short(self.error)}"] if self.error else []
        parts += [f"{count} {kind} requested" for kind, count in sorted(self.requested.items())]
        parts += [f"{count} {kind} starting" for kind, count in sorted(self.starting.items())]
        newest = sorted(self.failures.items(), key=lambda item: -item[1].time)
        for kind, failure in newest[:_MOST_FAILURES]:
            ago = duration(max(round(now - failure.time), 1)).replace(".0 s", " s")
            parts.append(f"the last launch of {kind} failed {ago} ago{_after_colon(failure.reason)}")
        return "; ".join(parts)


def last_word() -> str:
    """Returns what the autoscaler last said, in one line. Empty if it said nothing, and after any error."""
    text = ""
    with contextlib.suppress(Exception):  # of Ray's internals, whose form may change
        text = redacted(_report().text(time.time()))
    return text


def _report() -> Report:
    address = ray.get_runtime_context().gcs_address
    if is_autoscaler_v2(fetch_from_server=True):
        return second(get_cluster_status(address, timeout=_TIMEOUT_SECONDS), _log())
    state = _internal_kv_get(ray_constants.DEBUG_AUTOSCALING_STATUS) or b"{}"
    return first(json.loads(state), _internal_kv_get(ray_constants.DEBUG_AUTOSCALING_ERROR) or b"")


def first(state: Mapping[str, Any], error: bytes) -> Report:
    """Returns the report of the first autoscaler.

    Args:
      state: the JSON that it keeps in the GCS.
      error: the text that it leaves when it has ended by an error.
    """
    found = state.get("autoscaler_report") or {}
    requested = found.get("pending_launches") or {}
    starting = Counter(kind for _, kind, _ in found.get("pending_nodes") or ())
    records = (found.get("node_availability_summary") or {}).get("node_availabilities") or {}
    failures = {}
    for kind, record in records.items():
        if not record["is_available"]:
            why = record.get("unavailable_node_information") or {}
            reason = ": ".join(filter(None, (why.get("category"), why.get("description"))))
            failures[kind] = Failure(record["last_checked_timestamp"], reason)
    lines = error.decode(errors="replace").strip().splitlines()
    return Report(requested, starting, failures, lines[-1] if lines else "")


def second(status: Any, log: str = "") -> Report:
    """Returns the report of the second autoscaler.

    Args:
      status: its `ClusterStatus`.
      log: the end of its log.
    """
    requested = Counter[str]()
    for launch in status.pending_launches:
        requested[launch.ray_node_type_name] += launch.count
    starting = Counter(node.ray_node_type_name for node in status.pending_nodes)
    failures: dict[str, Failure] = {}
    for launch in status.failed_launches:
        kind, when = launch.ray_node_type_name, launch.failed_ts_s or launch.request_ts_s
        if kind not in failures or failures[kind].time < when:
            reason = _of_details(launch.details or "") or _of_log(log, kind)
            failures[kind] = Failure(when, reason)
    return Report(requested, starting, failures)


def _of_details(details: str) -> str:
    """Returns the reason in the details of a failed launch. Providers of clouds leave it out."""
    return re.sub(r"^launch failed with .* with request id \S+:", "", details, flags=re.DOTALL).strip()


def _of_log(log: str, kind: str) -> str:
    """Returns the reason of the last failed launch in the autoscaler's log."""
    found: list[str] = re.findall(rf"-- Failed to launch \d+ nodes of type {re.escape(kind)}: (.*)", log)
    return re.sub(r"^Node Launch Exception \(([^)]*)\): ", r"\1: ", found[-1]) if found else ""


def _log() -> str:
    """Returns the end of the second autoscaler's log. Empty if it is on another machine."""
    node = ray._private.worker._global_node
    path = Path(node.get_logs_dir_path()) / ray_constants.MONITOR_LOG_FILE_NAME
    with contextlib.suppress(OSError), path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _LOG_BYTES))
        return str(file.read(), "utf-8", "replace")
    return ""


def _after_colon(reason: str) -> str:
    return f": {_short(reason)}" if reason else ""


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _MOST_CHARACTERS else f"{line[: _MOST_CHARACTERS - 1]}…"
