"""Removal of Ray placement groups whose maker is dead, and which still reserve CPUs and GPUs.

A placement group made by an actor lives until that actor and its job have ended. If a controller of Ray Train
is killed before its workers have started, its group reserves a lane's share of the cluster until the run
ends. If it is killed while it makes the group, the group stays for ever (Ray 2.60; found by
`python -m tests.chaos --seed 10`).
"""

import contextlib
import time
from collections.abc import Callable

import ray
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.state import list_actors, list_jobs, list_placement_groups
from ray.util.state.common import PlacementGroupState

#: Seconds for which a group must look like an orphan, because a new group has no actors for a moment.
GRACE_SECONDS = 20.0

_MOST = 10_000


class Orphans:
    """Finds and removes orphaned placement groups of the connected cluster."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: dict[str, float] = {}

    def look(self) -> list[str]:
        """Removes groups that have been orphans for GRACE_SECONDS.

        Groups of other running jobs and detached groups are never removed.

        Returns:
          Ids of the removed groups. Empty if the cluster does not answer, which other code reports.
        """
        try:
            found = self._orphans()
        except Exception:  # errors of the State API, and of the HTTP client below it
            return []
        now = self._clock()
        self._since = {group: self._since.get(group, now) for group in found}
        ripe = [group for group, since in self._since.items() if now - since >= GRACE_SECONDS]
        return [group for group in ripe if _remove(group)]

    def clear(self) -> None:
        """Removes all groups of this job. Called when the job has ended."""
        if not ray.is_initialized():
            return
        with contextlib.suppress(Exception):
            own = ray.get_runtime_context().get_job_id()
            for group in _groups():
                if group.creator_job_id == own:
                    _remove(group.placement_group_id)

    @staticmethod
    def _orphans() -> list[str]:
        if not ray.is_initialized():
            # `get_runtime_context` would start a cluster.
            return []
        own = ray.get_runtime_context().get_job_id()
        address = _address()
        running = {
            job.job_id
            for job in list_jobs(address=address, limit=_MOST, raise_on_missing_output=False)
            if job.status == "RUNNING"
        }
        actors = list_actors(
            address=address,
            filters=[("state", "!=", "DEAD")],
            detail=True,
            limit=_MOST,
            raise_on_missing_output=False,
        )
        in_use = {actor.placement_group_id for actor in actors}
        return [
            group.placement_group_id
            for group in _groups()
            if group.creator_job_id not in running
            or (
                group.creator_job_id == own
                and group.state == "CREATED"
                and group.placement_group_id not in in_use
                # Groups without CPUs are Tune's: it makes them for its own actors ahead of time.
                and any("CPU" in bundle["unit_resources"] for bundle in group.bundles)
            )
        ]


def _groups() -> list[PlacementGroupState]:
    groups = list_placement_groups(
        address=_address(), detail=True, limit=_MOST, raise_on_missing_output=False
    )
    return [group for group in groups if group.state != "REMOVED" and not group.is_detached]


def _address() -> str:
    return f"http://{ray.worker.get_dashboard_url()}"


def _remove(group: str) -> bool:
    with contextlib.suppress(Exception):
        remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(group))))
        return True
    return False
