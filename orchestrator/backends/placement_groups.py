"""Removal of Ray placement groups whose maker is dead, and which still reserve CPUs and GPUs.

A placement group made by an actor lives until that actor and its job have ended. If a lane is killed, its
group reserves a lane's share of the cluster until the run ends. If it is killed while it makes the group, the
group may stay for ever (Ray 2.60; found by `python -m tests.chaos --seed 10`). So the name of each group says
which actor made it, and any run removes a group whose maker is dead.
"""

import contextlib

import ray
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.state import get_actor, list_actors, list_placement_groups
from ray.util.state.common import PlacementGroupState

_PREFIX = "vitc-sweep"

_MOST = 10_000


def name_of(actor_id: str, number: int) -> str:
    """Returns the name of an actor's placement group."""
    return f"{_PREFIX}-{actor_id}-{number}"


def _maker_of(name: str | None) -> str | None:
    """Returns the id of the actor that made a group of `name_of`. None for groups of others."""
    match (name or "").rsplit("-", 2):
        case [prefix, actor_id, _] if prefix == _PREFIX:
            return actor_id
    return None


def remove_orphans() -> list[str]:
    """Removes our placement groups whose maker is dead, of this run and of earlier ones.

    Groups without a name of ours are never removed, nor are those of a lane that lives in another run.

    Returns:
      Ids of the removed groups. Empty if the cluster does not answer, which other code reports.
    """
    if not ray.is_initialized():
        # The State API would start a cluster.
        return []
    try:
        # Groups first: a maker that is not among the actors afterwards is dead, and not yet to come.
        makers = {group.placement_group_id: _maker_of(group.name) for group in _groups()}
        alive = {
            actor.actor_id
            for actor in list_actors(
                address=_address(),
                filters=[("state", "!=", "DEAD")],
                limit=_MOST,
                raise_on_missing_output=False,
            )
        }
        orphans = [
            group
            for group, maker in makers.items()
            # Asked again one by one, because the list of a large cluster is cut off.
            if maker is not None and maker not in alive and _is_dead(maker)
        ]
    except Exception:  # errors of the State API, and of the HTTP client below it
        return []
    return [group for group in orphans if _remove(group)]


def remove_own() -> None:
    """Removes all groups of this job. Called when its run has ended."""
    if not ray.is_initialized():
        return
    with contextlib.suppress(Exception):
        own = ray.get_runtime_context().get_job_id()
        for group in _groups():
            if group.creator_job_id == own:
                _remove(group.placement_group_id)


def _is_dead(actor_id: str) -> bool:
    actor = get_actor(actor_id, address=_address())
    return actor is None or actor.state == "DEAD"


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
