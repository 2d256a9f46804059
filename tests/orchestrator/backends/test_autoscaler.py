"""What is told of Ray's autoscalers: from their own classes, and from both of them at work."""

import re
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.autoscaler._private.autoscaler import AutoscalerSummary
from ray.autoscaler._private.node_provider_availability_tracker import (
    NodeAvailabilityRecord,
    NodeAvailabilitySummary,
    UnavailableNodeInformation,
)
from ray.autoscaler.v2.instance_manager.node_provider import LaunchNodeError
from ray.autoscaler.v2.schema import ClusterStatus, LaunchRequest, NodeInfo

from orchestrator.backends import autoscaler
from orchestrator.backends.autoscaler import Failure, Report, first, second
from tests.support.fake_cloud import cloud

LAST = "the last launch of worker failed"


def failed(kind: str, when: int, cause: str = "", details: str | None = None) -> LaunchRequest:
    """A failed launch, with details as Ray's reconciler writes them."""
    if details is None:
        details = f"launch failed with {LaunchNodeError(kind, 1, 'a-b-1', 0, details=cause)}"
    status = LaunchRequest.Status.FAILED
    return LaunchRequest("m7i", kind, 1, status, when - 5, failed_ts_s=when, details=details)


def test_the_first_autoscaler_is_told_by_what_it_writes_to_the_gcs():
    quota = UnavailableNodeInformation("VcpuLimitExceeded", "You have requested more vCPU capacity than 0")
    records = {
        "gpu": NodeAvailabilityRecord("gpu", False, 970.0, quota),
        "cpu": NodeAvailabilityRecord("cpu", True, 999.0, None),
    }
    pending = [("10.0.0.4", "gpu", "setting-up"), ("10.0.0.5", "gpu", "waiting-for-ssh")]
    summary = AutoscalerSummary({}, {}, pending, {"gpu": 3}, [], NodeAvailabilitySummary(records))
    text = first({"autoscaler_report": asdict(summary)}, b"").text(1000.0)
    assert text == (
        "3 gpu requested; 2 gpu starting; the last launch of gpu failed 30 s ago: VcpuLimitExceeded: "
        "You have requested more vCPU capacity than 0"
    )


def test_a_first_autoscaler_that_has_failed_or_not_begun_is_told_by_its_last_line():
    assert first({}, b"").text(0.0) == ""
    error = (
        b"The autoscaler failed with the following error:\nTraceback\n  File x\nNoCredentials: none found\n"
    )
    assert first({}, error).text(0.0) == "the autoscaler failed: NoCredentials: none found"


def test_the_second_autoscaler_is_told_by_its_status_and_reasons_by_its_log():
    pending = LaunchRequest("m7i", "gpu", 2, LaunchRequest.Status.PENDING, 990)
    starting = NodeInfo("m7i", "cpu", "i-1", "10.0.0.4")
    log = (
        "INFO node_provider.py:491 -- Failed to launch 1 nodes of type gpu: Node Launch Exception (Old): a\n"
        "INFO node_provider.py:491 -- Failed to launch 2 nodes of type gpu: Node Launch Exception "
        "(UnauthorizedOperation): You are not authorized to perform this operation\n"
        "INFO node_provider.py:491 -- Failed to launch 1 nodes of type gpu2: another type's\n"
    )
    status = ClusterStatus(
        pending_launches=[pending, pending],
        pending_nodes=[starting],
        failed_launches=[failed("gpu", 900), failed("gpu", 940), failed("gpu", 920)],
    )
    assert second(status, log).text(1000.0) == (
        "4 gpu requested; 1 cpu starting; the last launch of gpu failed 1 min 00 s ago: "
        "UnauthorizedOperation: You are not authorized to perform this operation"
    )
    # The log is on another machine.
    assert second(status).text(1000.0).endswith("the last launch of gpu failed 1 min 00 s ago")


def test_reasons_that_the_second_autoscaler_knows_itself_come_from_it():
    quota = 'pods "gpu" is forbidden: exceeded quota'
    launches = [failed("pod", 1, quota), failed("old", 7, details="failed to allocate after 4 attempts")]
    assert second(ClusterStatus(failed_launches=launches)).failures == {
        "pod": Failure(1, quota),
        "old": Failure(7, "failed to allocate after 4 attempts"),
    }


def test_a_long_reason_is_cut_and_put_on_one_line():
    [reason] = (
        Report(failures={"gpu": Failure(0, "Encoded\n authorization " + "x" * 999)})
        .text(1)
        .split("ago: ")[1:]
    )
    assert reason.startswith("Encoded authorization xxx")
    assert len(reason) == 300
    many = {str(number): Failure(number) for number in range(9)}
    assert re.findall(r"launch of (\d)", Report(failures=many).text(9)) == ["8", "7", "6"]


@pytest.mark.parametrize("state", [ValueError("no cluster"), "not JSON", b'{"autoscaler_report": [1]}'])
def test_another_format_or_no_answer_is_told_by_nothing(monkeypatch, state):
    def get(_: str) -> Any:
        if isinstance(state, Exception):
            raise state
        return state

    monkeypatch.setattr(autoscaler, "is_autoscaler_v2", lambda **_: False)
    monkeypatch.setattr(autoscaler, "_internal_kv_get", get)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: type("Context", (), {"gcs_address": "x"}))
    assert autoscaler.last_word() == ""


def until(text: Callable[[], str], wanted: str) -> str:
    """The first text that matches, after a minute the last one."""
    deadline = time.monotonic() + 60
    while not re.search(wanted, said := text()) and time.monotonic() < deadline:
        time.sleep(0.5)
    return said


@pytest.mark.ray
@pytest.mark.timeout(300)
@pytest.mark.parametrize("is_second", [False, True])
def test_an_autoscaler_whose_launches_fail_is_quoted_and_is_silent_without_demand(
    tmp_path: Path, is_second: bool
):
    reason = "InsufficientInstanceCapacity: There is no Spot capacity in zone b"
    with cloud(tmp_path, is_second) as (address, _):
        ray.init(address=address, log_to_driver=False)
        try:
            time.sleep(3)
            assert autoscaler.last_word() == ""
            ray.remote(num_cpus=1)(lambda: None).remote()
            said = until(autoscaler.last_word, rf"{LAST} \d+ s ago: {reason}$")
            assert re.fullmatch(rf"(1 worker requested; )?{LAST} \d+ s ago: {reason}", said)
        finally:
            ray.shutdown()
