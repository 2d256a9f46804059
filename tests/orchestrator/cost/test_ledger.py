"""Where the time went, worked out by hand; that it adds up under faults is `test_chaos`'s part."""

import dataclasses

from orchestrator.cost.ledger import Ledger, ledger
from orchestrator.trials.events import (
    AttemptBegan,
    AttemptEnded,
    DeviceUsed,
    Event,
    InFlight,
    LaneOpened,
    PhaseBegan,
    PreflightDone,
    Pulse,
    RetryWanted,
    SessionBegan,
    SessionClosed,
)
from trainables.base import DeviceUse

LANES, DEVICES = 2, 4


def session(began: float, *events: Event, closed: float | None = None) -> list[Event]:
    """A run with two lanes of two cores, whose Ray is up five seconds after it began."""
    phase = PhaseBegan(time=began + 5, lanes=LANES, devices=DEVICES, device="core")
    made = [SessionBegan(time=began + 5, began=began), phase, *events]
    return made if closed is None else [*made, SessionClosed(time=closed)]


def end(
    trial: str, kind: str, started: float, ended: float, steps: tuple[int, int], heard: float, final=True
):
    from_step, step = steps
    return AttemptEnded(
        trial=trial, attempt=1, end=kind, detail="", seconds=ended - started, time=ended, final=final,
        from_step=from_step, step=step, heard=heard,
    )  # fmt: skip


def test_a_run_in_which_nothing_went_wrong():
    events = session(
        100.0,
        AttemptBegan(trial="a", attempt=1, lane="x", time=120.0),
        AttemptBegan(trial="b", attempt=1, lane="y", time=130.0),
        end("a", "finished", 120.0, 180.0, (0, 50), 180.0),
        end("b", "finished", 130.0, 170.0, (0, 50), 170.0),
        closed=190.0,
    )
    spent = ledger(events)
    # Two cores a lane: 60 and 40 s of training, 20 and 30 s until it began, 10 and 20 s after it.
    assert spent == Ledger("core", useful=200.0, queued=60.0, start_up=100.0)
    assert spent.total == DEVICES * spent.wall == DEVICES * 90.0


def test_a_lost_attempt_costs_what_was_not_heard_of_and_what_is_done_again():
    events = session(
        100.0,
        AttemptBegan(trial="a", attempt=1, lane="x", time=110.0),
        # Step 40 was heard of at 150, its death at 160; the checkpoint had 30 steps.
        end("a", "lost", 110.0, 160.0, (0, 40), 150.0, final=False),
        AttemptBegan(trial="a", attempt=2, lane="x", time=170.0),
        end("a", "finished", 170.0, 190.0, (30, 50), 190.0),
        closed=190.0,
    )
    spent = ledger(events)
    per_lane = DEVICES / LANES
    # Of the 20 s of the second attempt, the first 10 of 20 steps had been done.
    assert spent.useful == per_lane * (40.0 + 10.0)
    assert spent.replayed == per_lane * 10.0
    assert spent.lost == per_lane * 10.0
    # Until the first trial, from the loss to the next, and the lane that never had one.
    assert spent.start_up == per_lane * (10.0 + 10.0 + 90.0)
    assert spent.total == DEVICES * 90.0


def test_a_failed_trial_is_lost_and_so_is_what_a_person_has_run_anew():
    failed = [
        AttemptBegan(trial="a", attempt=1, lane="x", time=110.0),
        end("a", "failed", 110.0, 150.0, (0, 40), 150.0),
    ]
    assert ledger(session(100.0, *failed, closed=150.0)).lost == 2 * 40.0
    finished = [
        AttemptBegan(trial="a", attempt=1, lane="x", time=110.0),
        end("a", "finished", 110.0, 150.0, (0, 40), 150.0),
    ]
    first = session(100.0, *finished, closed=150.0)
    assert ledger(first).useful == 2 * 40.0
    again = [
        RetryWanted(trial="a", time=200.0),
        *session(300.0, *(dataclasses.replace(e, time=e.time + 200) for e in finished)),
    ]
    spent = ledger([*first, *again])
    assert (spent.lost, spent.useful) == (2 * 40.0, 2 * 40.0)


def test_a_run_that_was_killed_counts_until_its_last_sign_of_life():
    events = session(
        100.0,
        AttemptBegan(trial="a", attempt=1, lane="x", time=110.0),
        Pulse(time=130.0, in_flight={"a": InFlight(0, 20, 128.0)}),
    )
    spent = ledger(events)
    assert spent.total == DEVICES * 30.0
    assert (spent.useful, spent.lost) == (2 * 18.0, 2 * 2.0)


def test_checks_before_the_first_trial_have_a_heading_of_their_own():
    events = session(100.0, AttemptBegan(trial="a", attempt=1, lane="x", time=130.0), closed=140.0)
    events.insert(1, PreflightDone(time=105.0, seconds=8.0))
    spent = ledger(events)
    assert spent.preflight == DEVICES * 8.0
    assert spent.total == DEVICES * 40.0


def test_the_time_of_attempts_is_told_by_device():
    events = session(
        100.0,
        AttemptBegan(trial="a", attempt=1, lane="x", time=110.0),
        DeviceUsed(trial="a", attempt=1, use=DeviceUse(name="NVIDIA L4", cuda="13.0")),
        AttemptBegan(trial="b", attempt=1, lane="y", time=120.0),
        DeviceUsed(trial="b", attempt=1, use=DeviceUse(name="Tesla T4", cuda="13.0")),
        end("b", "finished", 120.0, 140.0, (0, 40), 140.0),
        end("a", "lost", 110.0, 150.0, (0, 40), 150.0, final=False),
        # Of an earlier version, which did not tell.
        AttemptBegan(trial="a", attempt=2, lane="x", time=160.0),
        end("a", "finished", 160.0, 170.0, (40, 50), 170.0),
        closed=170.0,
    )
    assert ledger(events).trials_on == {"NVIDIA L4": 2 * 40.0, "Tesla T4": 2 * 20.0, "": 2 * 10.0}


def test_lanes_of_several_sizes_count_by_their_own_devices():
    def opened(lane: str, devices: float, time: float) -> LaneOpened:
        return LaneOpened(time=time, lane=lane, devices=devices)

    events = [
        SessionBegan(time=105.0, began=100.0, lanes=(4,)),
        PhaseBegan(time=105.0, lanes=4, devices=4, device="GPU"),
        # One of two GPUs beside one of one GPU. The fourth GPU has nothing to do.
        opened("x", 2, 106.0),
        opened("y", 1, 106.0),
        AttemptBegan(trial="small", attempt=1, lane="y", time=110.0),
        AttemptBegan(trial="large", attempt=1, lane="x", time=120.0),
        end("small", "finished", 110.0, 140.0, (0, 50), 140.0),
        # The lane of one GPU becomes one of two.
        opened("y", 2, 142.0),
        AttemptBegan(trial="other", attempt=1, lane="y", time=150.0),
        end("large", "lost", 120.0, 160.0, (0, 40), 160.0, final=False),
        opened("x", 2, 162.0),
        AttemptBegan(trial="large", attempt=2, lane="x", time=165.0),
        end("large", "finished", 165.0, 185.0, (40, 60), 185.0),
        end("other", "finished", 150.0, 200.0, (0, 50), 200.0),
        SessionClosed(time=200.0),
    ]
    spent = ledger(events)
    useful = 1 * (140 - 110) + 2 * (160 - 120) + 2 * (200 - 150) + 2 * (185 - 165)
    # All four until the first lane opened, and each lane from its opening to its next trial.
    starting = 4 * 6 + 2 * 14 + 1 * 4 + 2 * 8 + 2 * 3
    assert spent == Ledger("GPU", useful=useful, start_up=starting, queued=400 - useful - starting)
    assert spent.total == 4 * spent.wall == 400.0
    assert spent.trials_on == {"": useful}


def test_without_openings_all_lanes_have_the_same_devices_as_in_earlier_versions():
    events = session(
        100.0,
        AttemptBegan(trial="a", attempt=1, lane="x", time=120.0),
        end("a", "finished", 120.0, 180.0, (0, 50), 180.0),
        closed=190.0,
    )
    # The second lane never had a trial.
    assert ledger(events) == Ledger("core", useful=2 * 60.0, queued=2 * 10.0, start_up=2 * (20.0 + 90.0))
