"""What a run says while no machine is there, and when it gives up: a clock and machines of the test's own."""

import pytest

from orchestrator.execution.waiting import Decision, Waiting, Watch, missing
from orchestrator.trials.gang import Gang, Node
from trainables.errors import Unavailable

GPU, CPU = Gang(1, 4, 1.0), Gang(1, 1, 0.0)
HEAD = Node(0, 0)


def test_a_wait_is_told_after_5_s_then_every_30_s_and_given_up_at_its_limit():
    waiting = Waiting(100.0, lambda: "capacity")
    told = [(second, waiting.decide(GPU, 1000.0 + second)) for second in range(102)]
    assert [(second, decision) for second, decision in told if decision != Decision()] == [
        (5, Decision("waiting for a machine with 4 CPU and 1 GPU, 5 s; Ray: capacity")),
        (30, Decision("waiting for a machine with 4 CPU and 1 GPU, 30 s; Ray: capacity")),
        (60, Decision("waiting for a machine with 4 CPU and 1 GPU, 1 min; Ray: capacity")),
        (90, Decision("waiting for a machine with 4 CPU and 1 GPU, 1 min 30 s; Ray: capacity")),
        (100, Decision("", "no machine with 4 CPU and 1 GPU in 1 min 40 s; Ray: capacity")),
        (101, Decision("", "no machine with 4 CPU and 1 GPU in 1 min 40 s; Ray: capacity")),
    ]


def test_ray_is_asked_for_lines_only_and_not_named_where_it_says_nothing():
    asked = []
    waiting = Waiting(60.0, lambda: asked.append(None) or "")
    lines = [waiting.decide(CPU, second).line for second in range(0, 31)]
    assert list(filter(None, lines)) == [
        "waiting for a machine with 1 CPU, 5 s",
        "waiting for a machine with 1 CPU, 30 s",
    ]
    assert len(asked) == 2


def test_a_machine_that_comes_ends_the_wait_and_the_next_one_begins_anew():
    waiting = Waiting(60.0, lambda: "")
    waiting.decide(CPU, 0.0)
    assert waiting.decide(CPU, 59.0).line
    assert waiting.decide(None, 59.5) == Decision()
    assert waiting.decide(CPU, 61.0) == Decision()
    assert waiting.decide(CPU, 66.0) == Decision("waiting for a machine with 1 CPU, 5 s")
    assert waiting.decide(CPU, 121.0).gives_up


def test_looks_that_come_late_are_told_at_the_last_round_time_and_none_twice():
    waiting = Waiting(3600.0, lambda: "")
    waiting.decide(CPU, 0.0)
    lines = [waiting.decide(CPU, second).line for second in (100.0, 119.9, 121.0)]
    assert lines == [
        "waiting for a machine with 1 CPU, 1 min 30 s",
        "",
        "waiting for a machine with 1 CPU, 2 min",
    ]


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([], GPU),
        ([HEAD], GPU),
        # Too few CPUs beside the GPU, and too few GPUs beside the CPUs.
        ([HEAD, Node(3, 1), Node(64, 0)], GPU),
        ([HEAD, Node(4, 1)], None),
    ],
)
def test_a_machine_is_missing_if_a_trial_would_fit_on_none(nodes, expected):
    assert missing([GPU], nodes) == expected


def test_the_first_gang_without_room_is_named_with_all_its_workers():
    pair = Gang(2, 4, 0.5)
    assert missing([CPU, pair, GPU], [Node(4, 0)]) == pair
    assert missing([CPU], [Node(4, 0)]) is None
    waiting = Waiting(5.0, lambda: "")
    waiting.decide(pair, 0.0)
    assert waiting.decide(pair, 5.0).gives_up == "no room for 2 workers with 4 CPU and 0.5 GPU each in 5 s"


def test_a_watch_looks_once_a_second_tells_and_gives_up():
    now, told, looks = [0.0], [], []
    watch = Watch(0.1, told.append, lambda: looks.append(now[0]) or [HEAD], lambda: "", lambda: now[0])
    reasons = []
    for tenth in range(62):
        now[0] = tenth / 10
        reasons.append(watch.look(lambda: [CPU]))
    assert looks == [0, 1, 2, 3, 4, 5, 6]
    assert told == ["waiting for a machine with 1 CPU, 5 s"]
    assert list(filter(None, reasons)) == ["no machine with 1 CPU in 6 s (--wait-minutes)"]
    now[0] = 7.0
    with pytest.raises(Unavailable, match=r"^gave up: no machine with 1 CPU in 6 s \(--wait-minutes\)\. "):
        watch.check(lambda: [CPU])


def test_a_watch_asks_for_nothing_while_nothing_is_wanted():
    now, told = [0.0], []
    watch = Watch(0.1, told.append, lambda: [HEAD], lambda: "", lambda: now[0])
    for second in range(0, 60, 5):
        now[0] = second
        # A trial runs at each second look.
        assert not watch.look(lambda: [CPU] if now[0] % 10 else [])
    assert told == []
