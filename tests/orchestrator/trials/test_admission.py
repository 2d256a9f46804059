"""Lanes of several gangs at once: within the cluster, without deadlock, and the largest first."""

import heapq
import random
from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.trials.admission import OpenLane, admit
from orchestrator.trials.gang import Gang, Node, num_lanes

_gangs = st.builds(
    Gang, workers=st.integers(1, 4), cpus=st.integers(1, 3), gpus=st.sampled_from([0.0, 1.0])
) | st.builds(Gang, workers=st.just(1), cpus=st.integers(1, 2), gpus=st.sampled_from([0.25, 0.5]))
_nodes = st.lists(st.builds(Node, cpus=st.integers(1, 8), gpus=st.integers(0, 4)), min_size=1, max_size=5)


def named(nodes: list[Node]) -> dict[str, Node]:
    return {f"node{index}": node for index, node in enumerate(nodes)}


def check_room(nodes: dict[str, Node], lanes: list[OpenLane]) -> None:
    cpus, gpus = defaultdict[str, float](float), defaultdict[str, float](float)
    for lane in lanes:
        assert len(lane.places) == lane.gang.workers
        for place in lane.places:
            cpus[place] += lane.gang.cpus
            gpus[place] += lane.gang.gpus or 0
    for name, node in nodes.items():
        assert cpus[name] <= node.cpus
        assert gpus[name] <= node.gpus + 1e-9


def simulate(
    nodes: dict[str, Node], trials: list[tuple[Gang, float]], limit: int | None = None
) -> tuple[float, list[tuple[float, Gang]]]:
    """Runs trials of given lengths. Returns the time at which all have ended, and the start of each."""
    queues: dict[Gang, list[float]] = {}
    for gang, seconds in trials:
        queues.setdefault(gang, []).append(seconds)
    lanes: dict[str, OpenLane] = {}
    ends: list[tuple[float, str]] = []
    starts: list[tuple[float, Gang]] = []
    now = 0.0
    while any(queues.values()) or ends:
        decision = admit(nodes, lanes, {gang: len(queue) for gang, queue in queues.items()}, limit)
        for name in decision.close:
            assert not lanes.pop(name).busy
        for lane in decision.open:
            lanes[f"lane{len(starts)}-{len(lanes)}-{now}"] = lane._replace(busy=False)
        for name, lane in lanes.items():
            if not lane.busy and queues[lane.gang]:
                lanes[name] = lane._replace(busy=True)
                starts.append((now, lane.gang))
                heapq.heappush(ends, (now + queues[lane.gang].pop(0), name))
        check_room(nodes, list(lanes.values()))
        assert limit is None or len(lanes) <= limit
        assert ends, "deadlock"
        now, name = heapq.heappop(ends)
        lanes[name] = lanes[name]._replace(busy=False)
    return now, starts


@given(_nodes, _gangs, st.integers(0, 30), st.none() | st.integers(1, 8))
def test_one_gang_has_as_many_lanes_as_fit(
    nodes: list[Node], gang: Gang, waiting: int, limit: int | None
) -> None:
    decision = admit(named(nodes), {}, {gang: waiting}, limit)
    fit = num_lanes(gang, nodes, waiting)
    assert len(decision.open) == (fit if limit is None else min(fit, limit))


@settings(max_examples=100, deadline=None)
@given(
    _nodes,
    st.lists(st.tuples(_gangs, st.floats(0.1, 10)), max_size=25),
    st.none() | st.integers(1, 4),
)
def test_every_trial_runs_within_the_cluster(
    nodes: list[Node], trials: list[tuple[Gang, float]], limit: int | None
) -> None:
    fitting = [(gang, seconds) for gang, seconds in trials if num_lanes(gang, nodes, 1)]
    _, starts = simulate(named(nodes), fitting, limit)
    assert Counter(gang for _, gang in starts) == Counter(gang for gang, _ in fitting)


@pytest.mark.parametrize("seed", range(50))
def test_mixes_of_one_two_and_four_end_near_the_bound(seed: int) -> None:
    """List scheduling of rigid jobs ends within twice the larger of the longest trial and work per CPU."""
    rng = random.Random(seed)
    nodes = named([Node(2, 0)] * 4)
    trials = [(Gang(rng.choice((1, 2, 4)), 1, 0.0), rng.uniform(1, 10)) for _ in range(40)]
    makespan, _ = simulate(nodes, trials)
    work = sum(gang.workers * seconds for gang, seconds in trials)
    assert makespan <= 2 * max(work / 8, max(seconds for _, seconds in trials))


SMALL, LARGE = Gang(1, 1, 0.0), Gang(2, 1, 0.0)


def test_smaller_trials_fill_what_the_largest_leaves() -> None:
    decision = admit(named([Node(3, 0)]), {}, {LARGE: 5, SMALL: 5})
    assert Counter(lane.gang for lane in decision.open) == {LARGE: 1, SMALL: 1}


def test_room_is_reserved_for_the_largest() -> None:
    """One of two small trials has ended. No small one follows it, because a large one waits for its CPU."""
    lanes = {"a": OpenLane(SMALL, ("node0",), busy=True), "b": OpenLane(SMALL, ("node0",))}
    assert admit(named([Node(2, 0)]), lanes, {LARGE: 1, SMALL: 9}) == ([], ["b"])
    # A machine beside the reserved ones is filled.
    decision = admit(named([Node(2, 0), Node(1, 0), Node(1, 0)]), lanes, {LARGE: 1, SMALL: 9})
    assert Counter(lane.gang for lane in decision.open)[LARGE] == 1


def test_an_idle_lane_stays_while_nobody_needs_its_room() -> None:
    lanes = {"a": OpenLane(LARGE, ("node0", "node0"))}
    assert admit(named([Node(2, 0)]), lanes, {}) == ([], [])
    assert admit(named([Node(3, 0)]), lanes, {SMALL: 1}) == ([OpenLane(SMALL, ("node0",), True)], [])
    assert admit(named([Node(2, 0)]), lanes, {SMALL: 1}).close == ["a"]


def test_a_gang_that_fits_nowhere_reserves_nothing() -> None:
    decision = admit(named([Node(1, 0)]), {}, {LARGE: 1, SMALL: 1})
    assert [lane.gang for lane in decision.open] == [SMALL]


def test_the_limit_keeps_a_place_for_the_largest() -> None:
    """Two lanes at most: with one busy, the free one goes to the large gang and not to small trials."""
    lanes = {"a": OpenLane(SMALL, ("node0",), busy=True), "b": OpenLane(SMALL, ("node1",))}
    decision = admit(named([Node(2, 0), Node(2, 0)]), lanes, {LARGE: 1, SMALL: 9}, limit=2)
    assert [lane.gang for lane in decision.open] == [LARGE]
    assert decision.close == ["b"]
