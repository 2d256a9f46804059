"""Who runs what and who tries again: the rules, one by one; `test_chaos` has them all at once."""

from collections import deque
from typing import Any

from orchestrator.execution.dispatch import LANE_SILENCE_SECONDS, MAX_LOSSES, Dispatch, Job
from orchestrator.trials.events import AttemptBegan, AttemptEnded, BreakerTripped, DeviceUsed, LaneOpened
from orchestrator.trials.gang import ONE_CORE, Gang, Node
from orchestrator.trials.outcomes import fingerprint
from tests.orchestrator.store.test_journal import row
from trainables.base import DeviceUse


def dispatch_of(*trials: str, retries: int = 1, breaker: int = 5, **arms: str) -> Dispatch:
    made = Dispatch(breaker)
    made.add(Job(trial, arms.get(trial, "arm"), "", retries=retries) for trial in trials)
    return made


def lane_on(made: Dispatch, lane: str, node: str, now: float = 0.0) -> int:
    made.open(lane, now)
    while (made.poll(lane, now) or {}).keys() == {"gang"}:
        pass
    return made.enter(lane, node, now)


def ends(made: Dispatch) -> list[tuple[str, str, bool]]:
    return [(e.trial, e.end, e.final) for e in made.events if isinstance(e, AttemptEnded)]


def take(made: Dispatch, lane: str, last: int, now: float = 1.0) -> Any:
    attempt = made.take(lane, last, now)
    return None if attempt is None else (attempt.number, attempt.job.trial)


def test_every_rank_gets_the_same_trial_and_the_next_only_after_its_end():
    made = dispatch_of("a", "b")
    last = lane_on(made, "x", "n1")
    number, trial = take(made, "x", last)
    assert trial == "a"
    assert take(made, "x", last) == (number, "a")
    assert take(made, "x", number) is None
    made.end("x", number, "finished", "", 2.0)
    made.open("x", 2.0)
    assert take(made, "x", number) == (number + 1, "b")


def test_what_failed_goes_on_on_another_machine_where_there_is_one():
    made = dispatch_of("a", "b")
    x, y = lane_on(made, "x", "n1"), lane_on(made, "y", "n2")
    number, _ = take(made, "x", x)
    other, trial = take(made, "y", y)
    assert trial == "b"
    made.end("x", number, "failed", "broken", 2.0)
    # It waits, and holds its slot, although the trial is free.
    assert take(made, "x", number) is None
    made.end("y", other, "finished", "", 3.0)
    # The lane that waited has no more to wait for; the other goes on in its own slot.
    assert made.poll("x", 3.0) == {"done": True}
    assert take(made, "y", other) == (other + 1, "a")
    made.end("y", other + 1, "finished", "", 4.0)
    assert made.num_open == 0
    assert ends(made) == [("a", "failed", False), ("b", "finished", True), ("a", "finished", True)]


def test_what_failed_is_tried_again_in_its_place_where_there_is_no_other():
    made = dispatch_of("a", retries=1)
    last = lane_on(made, "x", "n1")
    number, _ = take(made, "x", last)
    made.end("x", number, "failed", "broken", 2.0)
    assert take(made, "x", number) == (number + 1, "a")
    made.end("x", number + 1, "failed", "broken", 3.0)
    assert ends(made) == [("a", "failed", False), ("a", "failed", True)]


def test_a_preempted_trial_is_tried_again_without_limit_and_a_lost_one_unless_it_never_gets_on():
    made = dispatch_of("a", retries=0)
    last = lane_on(made, "x", "n1")
    for _ in range(50):
        take(made, "x", last)
        made.lose("x", "node", "its machine has gone", 2.0)
        last = made.enter("x", "n1", 3.0)
    for _ in range(MAX_LOSSES - 1):
        take(made, "x", last)
        made.lose("x", "process", "died", 4.0)
        last = made.enter("x", "n1", 5.0)
    # It gets on: the count begins anew, by a checkpoint further on or by an epoch.
    number, _ = take(made, "x", last)
    made.beat("x", number, 7, 6.0)
    for _ in range(MAX_LOSSES - 1):
        made.lose("x", "process", "died", 7.0)
        last = made.enter("x", "n1", 8.0)
        number, _ = take(made, "x", last)
        made.beat("x", number, 7, 8.5)
    made.lose("x", "process", "died", 9.0)
    trial, end, final = ends(made)[-1]
    assert (trial, end, final) == ("a", "failed", True)
    assert "5 times in a row" in made.events[-1].detail


def test_memory_that_ran_out_is_an_outcome_and_not_the_next_trials_trouble():
    made = dispatch_of("a", "b")
    last = lane_on(made, "x", "n1")
    take(made, "x", last)
    made.lose("x", "memory", "Ray killed a worker", 2.0)
    assert ends(made) == [("a", "out_of_memory", True)]
    made.open("x", 2.0)
    last = made.enter("x", "n1", 3.0)
    assert take(made, "x", last)[1] == "b"


def test_the_same_error_again_and_again_in_one_arm_stops_the_run_with_one_message():
    names = [f"t{i}" for i in range(20)]
    made = dispatch_of(*names, retries=0, breaker=3, **dict.fromkeys(names[::2], "good"))
    last = lane_on(made, "x", "n1")
    handed_out = []
    while (taken := take(made, "x", last)) is not None:
        last, trial = taken
        handed_out.append(trial)
        good = names.index(trial) % 2 == 0
        detail = "" if good else f"shape [{len(handed_out)}, 7] at 0x7f{len(handed_out)}a"
        made.end("x", last, "finished" if good else "failed", detail, 2.0)
        made.open("x", 2.0)
    # The other arm's good trials in between do not hide it.
    assert handed_out == names[:6]
    assert made.stopped_by.startswith("3 trials of arm in a row ended with the same error: shape [6, 7]")
    assert sum(isinstance(e, BreakerTripped) for e in made.events) == 1


def test_different_errors_and_retries_of_one_trial_do_not_trip_the_breaker():
    made = dispatch_of("a", "b", "c", retries=10, breaker=2)
    last = lane_on(made, "x", "n1")
    for detail in ["one"] * 5:
        last, _ = take(made, "x", last)
        made.end("x", last, "failed", detail, 2.0)
    assert made.handing_out
    assert fingerprint("failed", "a 12") == fingerprint("failed", "a 13") != fingerprint("failed", "b 12")


def test_draining_lets_what_is_in_flight_end_and_stopping_does_not():
    for drains in (True, False):
        made = dispatch_of("a", "b", "c")
        x, y = lane_on(made, "x", "n1"), lane_on(made, "y", "n1")
        number, _ = take(made, "x", x)
        take(made, "y", y)
        if drains:
            made.drain()
            assert made.row("x", number, row(1, 3.0), 2.0)
            made.end("x", number, "finished", "", 3.0)
            made.end("y", made.desks["y"].number, "failed", "again?", 3.0)
            # No more tries either; the next run has it.
            assert ends(made) == [("a", "finished", True), ("b", "failed", False)]
        else:
            made.stop(2.0)
            assert ends(made) == [("a", "cancelled", True), ("b", "cancelled", True)]
            assert not made.beat("x", number, 6, 2.0)
        assert not any(desk.slot for desk in made.desks.values())
        assert take(made, "x", number) is None


def test_workers_of_a_group_that_was_replaced_are_sent_away():
    made = dispatch_of("a", "b")
    last = lane_on(made, "x", "n1")
    number, _ = take(made, "x", last)
    fresh = made.enter("x", "n1", 5.0)
    assert made.leaves("x", number)
    assert take(made, "x", number) is None
    assert not made.beat("x", number, 3, 5.0)
    assert made.end("x", number, "finished", "", 5.0) is None
    assert take(made, "x", fresh)[1] == "a"


def test_a_lane_that_falls_silent_loses_its_trial_to_another():
    made = dispatch_of("a", "b")
    x, y = lane_on(made, "x", "n1"), lane_on(made, "y", "n1")
    take(made, "x", x)
    number, _ = take(made, "y", y)
    made.poll("y", 100.0)
    assert made.tend(LANE_SILENCE_SECONDS + 1.0) == ["x"]
    made.end("y", number, "finished", "", 101.0)
    made.open("y", 101.0)
    assert take(made, "y", number)[1] == "a"
    # Should it have been alive after all, it is told to leave.
    assert made.poll("x", 102.0) == {"done": True}
    assert made.leaves("x", made.desks["x"].number)


def staged(*first_stages: tuple[str, str], breaker: int = 5) -> Dispatch:
    """Trials, each with the one it starts from, if any."""
    made = Dispatch(breaker)
    firsts = {first for _, first in first_stages}
    made.add(Job(t, "arm", "", after=first, is_first=t in firsts) for t, first in first_stages)
    return made


def test_a_trial_waits_for_the_one_it_starts_from_and_then_has_its_old_place():
    made = staged(("f", ""), ("a", "f"), ("b", ""), ("c", ""))
    x, y = lane_on(made, "x", "n1"), lane_on(made, "y", "n1")
    x, trial = take(made, "x", x)
    assert trial == "f"
    # A second lane passes it over.
    y, trial = take(made, "y", y)
    assert trial == "b"
    # An end that is none changes nothing.
    made.lose("x", "node", "its machine has gone", 2.0)
    x = made.enter("x", "n1", 2.0)
    x, trial = take(made, "x", x)
    assert trial == "f"
    made.end("x", x, "finished", "", 3.0)
    made.open("x", 3.0)
    assert take(made, "x", x)[1] == "a"
    made.end("y", y, "finished", "", 4.0)
    made.open("y", 4.0)
    assert take(made, "y", y)[1] == "c"


def test_lanes_wait_while_all_that_is_left_waits_and_go_on_once_it_may():
    made = staged(("f", ""), ("a", "f"), ("b", "f"))
    x, y = lane_on(made, "x", "n1"), lane_on(made, "y", "n1")
    x, _ = take(made, "x", x)
    assert take(made, "y", y) is None
    assert made.poll("y", 1.0) is None
    made.end("x", x, "finished", "", 2.0)
    # One slot of two ends; both lanes have a trial to take.
    assert made.poll("y", 2.0) == {"done": True}
    made.open("y", 2.0)
    assert {take(made, "x", x)[1], take(made, "y", y)[1]} == {"a", "b"}


def test_what_starts_from_a_trial_without_weights_comes_to_the_same_end_and_no_breaker_trips():
    made = staged(("f", ""), ("g", "f"), *((f"a{i}", "g") for i in range(3)), breaker=2)
    last = lane_on(made, "x", "n1")
    number, _ = take(made, "x", last)
    made.end("x", number, "out_of_memory", "no room", 2.0)
    assert ends(made) == [(trial, "out_of_memory", True) for trial in ("f", "g", "a0", "a1", "a2")]
    details = [event.detail for event in made.events if isinstance(event, AttemptEnded)]
    assert details[1] == "f, which it starts from, ran out of memory: no room"
    assert details[2] == f"g, which it starts from, ran out of memory: {details[1]}"
    assert [e.trial for e in made.events if isinstance(e, AttemptBegan)] == ["f"]
    assert (made.num_open, made.stopped_by) == (0, "")
    assert made.poll("x", 2.0) == {"done": True}


def test_a_stop_ends_nothing_that_waits():
    made = staged(("f", ""), ("a", "f"))
    take(made, "x", lane_on(made, "x", "n1"))
    made.stop(2.0)
    assert ends(made) == [("f", "cancelled", True)]


def test_how_first_stages_of_earlier_runs_ended_is_told():
    made = Dispatch()
    jobs = [Job("a", "arm", "", after="f"), Job("b", "arm", "", after="g")]
    made.add(jobs, {"f": ("diverged", "nan"), "g": ("finished", "")}, 5.0)
    assert ends(made) == [("a", "diverged", True)]
    assert made.events[-1].detail == "f, which it starts from, diverged: nan"
    assert made.num_open == 1
    assert take(made, "x", lane_on(made, "x", "n1"))[1] == "b"


def test_work_per_event_does_not_grow_with_the_number_of_trials():
    made = dispatch_of(*(f"t{i}" for i in range(5000)))
    [queue] = made.queues.values()
    made.queues = {ONE_CORE: (counted := CountingQueue(queue))}
    last = lane_on(made, "x", "n1")
    for _ in range(5000):
        last, _ = take(made, "x", last)
        made.end("x", last, "finished", "", 2.0)
        made.take_events()
        if made.num_open:
            made.open("x", 2.0)
            made.poll("x", 2.0)
    assert counted.looked_at <= 2 * 5000


class CountingQueue(deque):  # type: ignore[type-arg]
    """A deque that counts how often one looks at an element."""

    looked_at = 0

    def __iter__(self):
        for item in super().__iter__():
            self.looked_at += 1
            yield item


def test_a_trial_that_loses_its_device_twice_has_failed_and_another_loses_nothing():
    made = dispatch_of("bad", "good")
    last = lane_on(made, "x", "n1")
    for again in (True, False):
        number, trial = take(made, "x", last)
        assert trial == "bad"
        made.end("x", number, "lost", "its GPU stopped working: Xid 31", 2.0)
        # Its process leaves, and the next group comes.
        last = made.enter("x", "n1", 3.0)
        assert made.job("x", number) is None
        if not again:
            made.open("x", 3.0)
    assert ends(made) == [("bad", "lost", False), ("bad", "failed", True)]
    assert made.events[-1].detail == "its GPU stopped working: Xid 31, twice"
    number, trial = take(made, "x", last)
    made.end("x", number, "finished", "", 4.0)
    assert ends(made)[-1] == ("good", "finished", True)


def test_worker_groups_that_never_start_end_the_run_with_their_reason():
    made = dispatch_of("a", "b")
    made.open("x", 0.0)
    for second in range(1, 3):
        assert made.poll("x", 0.0) == {"gang": ONE_CORE}
        made.lose("x", "process", "a worker process died: ValueError: no GPU", float(second))
        made.vacate("x", float(second))
        assert made.handing_out
    made.lose("x", "process", "a worker process died: ValueError: no GPU", 3.0)
    [told] = [event for event in made.events if isinstance(event, BreakerTripped)]
    assert told.detail == "3 worker groups in a row did not start: a worker process died: ValueError: no GPU"
    assert (told.arm, made.handing_out, made.num_open) == ("", False, 2)
    # The slot that waited for it is over, so the run ends.
    assert made.poll("x", 3.0) == {"gang": ONE_CORE}
    assert made.poll("x", 3.0) == {"done": True}


def test_a_group_that_starts_or_a_machine_that_is_missing_does_not_count_as_one_that_never_starts():
    made = dispatch_of("a")
    made.open("x", 0.0)
    for second in range(2):
        made.lose("x", "process", "it died", float(second))
    made.enter("x", "n1", 3.0)
    for second in range(4, 6):
        # The first of these is the group that had started.
        made.lose("x", "process", "it died", float(second))
    for second in range(6, 20):
        made.lose("x", "node", "its machine has gone", float(second))
    assert made.handing_out
    # Nor does a lane on a bad machine end the work of the others.
    lane_on(made, "y", "n2", 20.0)
    for second in range(20, 30):
        made.lose("x", "process", "it died", float(second))
    assert made.handing_out


def test_the_device_of_an_attempt_is_recorded_and_that_of_one_that_is_over_is_not():
    made = dispatch_of("a")
    last = lane_on(made, "x", "n1")
    number, _ = take(made, "x", last)
    made.uses("x", number, DeviceUse(name="H100"))
    made.uses("x", number - 1, DeviceUse(name="of the group before"))
    made.uses("y", number, DeviceUse(name="of another lane"))
    made.end("x", number, "lost", "", 2.0)
    made.uses("x", number, DeviceUse(name="too late"))
    [told] = [event for event in made.events if isinstance(event, DeviceUsed)]
    assert told == DeviceUsed(trial="a", attempt=1, use=DeviceUse(name="H100"))


PAIR, FOUR = Gang(2, 1, 0.0), Gang(4, 1, 0.0)


def mixed(nodes: dict[str, Node], seats: int, limit: int | None = None, **gangs: Gang) -> Dispatch:
    """A run of trials by their gangs, after the first decision; its lanes are called 0, 1, 2..."""
    made = Dispatch()
    made.add(Job(trial, "arm", "", gang=gang) for trial, gang in gangs.items())
    for seat in range(seats):
        made.open(str(seat), 0.0)
    made.settle(nodes, 0.0, limit, asks=limit is not None)
    return made


def told(made: Dispatch) -> dict[str, Gang]:
    """The gangs that lanes are told now."""
    messages = {lane: made.poll(lane, 1.0) for lane in made.desks}
    return {lane: message["gang"] for lane, message in messages.items() if message and "gang" in message}


def test_trials_of_several_gangs_run_at_the_same_time_the_largest_first():
    made = mixed({"n": Node(3, 0)}, 3, a=ONE_CORE, b=ONE_CORE, c=PAIR)
    assert told(made) == {"0": PAIR, "1": ONE_CORE}
    pair, one = made.enter("0", "n", 1.0, ("n", "n")), made.enter("1", "n", 1.0, ("n",))
    assert take(made, "0", pair)[1] == "c"
    assert take(made, "1", one)[1] == "a"
    opened = [(e.lane, e.devices) for e in made.events if isinstance(e, LaneOpened)]
    assert opened == [("0", 2), ("1", 1)]


def test_a_lane_whose_gang_has_no_trial_left_gets_another_one():
    made = mixed({"n": Node(2, 0)}, 2, a=ONE_CORE, b=ONE_CORE, c=PAIR)
    assert told(made) == {"0": PAIR}
    number, trial = take(made, "0", made.enter("0", "n", 1.0, ("n", "n")))
    assert trial == "c"
    made.end("0", number, "finished", "", 2.0)
    assert made.poll("0", 2.0) == {"done": True}
    made.open("0", 2.0)
    # Its workers would stay if nobody needed their room.
    made.settle({"n": Node(2, 0)}, 2.0)
    assert made.leaves("0", number)
    made.vacate("0", 3.0)
    made.settle({"n": Node(2, 0)}, 3.0)
    assert told(made) == {"0": ONE_CORE, "1": ONE_CORE}


def test_the_largest_waits_for_trials_in_flight_and_no_others_begin_there():
    made = mixed({"n": Node(2, 0)}, 2, a=ONE_CORE, b=ONE_CORE, d=ONE_CORE)
    assert told(made) == {"0": ONE_CORE, "1": ONE_CORE}
    numbers = {lane: take(made, lane, made.enter(lane, "n", 1.0, ("n",)))[0] for lane in ("0", "1")}
    # A pair that comes late, as after its first stage.
    made.add([Job("c", "arm", "", gang=PAIR)])
    made.settle({"n": Node(2, 0)}, 2.0)
    made.end("0", numbers["0"], "finished", "", 3.0)
    made.open("0", 3.0)
    made.settle({"n": Node(2, 0)}, 3.0)
    # Not the third trial of one core, for which there would be room.
    assert take(made, "0", numbers["0"]) is None
    assert made.leaves("0", numbers["0"])
    made.vacate("0", 4.0)
    made.end("1", numbers["1"], "finished", "", 5.0)
    made.open("1", 5.0)
    made.settle({"n": Node(2, 0)}, 5.0)
    made.vacate("1", 6.0)
    made.settle({"n": Node(2, 0)}, 6.0)
    assert list(told(made).values()) == [PAIR]


def test_a_lane_that_was_lost_with_its_machine_gets_a_gang_that_fits_on_those_that_are_left():
    nodes = {"m": Node(4, 0), "n": Node(1, 0)}
    made = mixed(nodes, 2, a=FOUR, b=ONE_CORE)
    assert told(made) == {"0": FOUR, "1": ONE_CORE}
    take(made, "0", made.enter("0", "m", 1.0, ("m",) * 4))
    made.lose("0", "node", "its machine has gone", 2.0)
    made.vacate("0", 3.0)
    del nodes["m"]
    made.settle(nodes, 3.0)
    assert told(made) == {}
    # Another machine comes, into the same dictionary.
    nodes |= {"o": Node(4, 0)}
    made.settle(nodes, 4.0)
    assert told(made) == {"0": FOUR}


def test_with_a_number_of_lanes_they_wait_for_machines_that_are_not_there_yet():
    made = mixed({}, 3, limit=3, a=ONE_CORE, b=ONE_CORE, c=PAIR, d=PAIR)
    assert sorted(told(made).values(), key=lambda gang: gang.size) == [ONE_CORE, PAIR, PAIR]
    assert mixed({}, 3, a=ONE_CORE, c=PAIR).poll("0", 1.0) is None


def test_workers_that_were_lost_get_no_trial_any_more_although_they_ask():
    made = dispatch_of("a")
    last = lane_on(made, "x", "n1")
    number, _ = take(made, "x", last)
    made.lose("x", "process", "a worker died", 2.0)
    assert made.leaves("x", number)
    assert take(made, "x", number) is None
    made.vacate("x", 3.0)
    # Nor once the lane has another gang, whose workers are not there yet.
    assert made.poll("x", 3.0) == {"gang": ONE_CORE}
    assert made.leaves("x", number)
    assert take(made, "x", number) is None
    assert take(made, "x", made.enter("x", "n1", 4.0))[1] == "a"
    assert made.desks["x"].attempt.job.losses == 1


def test_a_lane_that_tune_loses_between_two_trials_holds_no_room():
    nodes = {"n": Node(2, 0)}
    made = mixed(nodes, 2, a=PAIR, b=ONE_CORE)
    assert told(made) == {"0": PAIR}
    number, _ = take(made, "0", made.enter("0", "n", 1.0, ("n", "n")))
    made.end("0", number, "finished", "", 2.0)
    # It is not heard of again, so it does not say that its workers have left.
    assert made.poll("0", 2.0) == {"done": True}
    made.settle(nodes, 2.0)
    assert made.poll("1", 2.0) == {"gang": ONE_CORE}
    number, _ = take(made, "1", made.enter("1", "n", 3.0, ("n",)))
    # A pair that comes late, as after its first stage.
    made.add([Job("c", "arm", "", gang=PAIR)])
    made.end("1", number, "finished", "", 4.0)
    late = 5.0 + LANE_SILENCE_SECONDS
    made.open("1", late)
    made.tend(late)
    made.vacate("1", late)
    made.settle(nodes, late)
    assert made.poll("1", late) == {"gang": PAIR}


def test_a_lane_that_was_taken_for_dead_and_lives_gets_a_gang_again():
    made = dispatch_of("a")
    number, _ = take(made, "x", lane_on(made, "x", "n1"))
    assert made.tend(LANE_SILENCE_SECONDS + 1.0) == ["x"]
    assert made.poll("x", 70.0) == {"done": True}
    made.open("x", 71.0)
    assert made.leaves("x", number)
    assert made.poll("x", 71.0) == {"gang": ONE_CORE}
    assert take(made, "x", made.enter("x", "n1", 80.0))[1] == "a"


def test_a_lane_that_waits_for_another_machine_does_not_keep_a_trial_from_a_lane_with_room():
    nodes = {"n": Node(2, 0)}
    made = mixed(nodes, 3, limit=3, a=PAIR, b=ONE_CORE, c=ONE_CORE)
    # Both small trials wait for another machine.
    assert told(made) == {"0": PAIR, "1": ONE_CORE, "2": ONE_CORE}
    number, _ = take(made, "0", made.enter("0", "n", 1.0, ("n", "n")))
    made.end("0", number, "finished", "", 2.0)
    made.open("0", 2.0)
    made.settle(nodes, 2.0, 3, asks=True)
    # It never comes, so they get the room of the pair, whose workers leave.
    assert made.leaves("0", number)
