"""The short form of `make chaos`, and the proof that it would notice."""

import pytest

from orchestrator.cost.ledger import ledger
from orchestrator.execution.dispatch import Dispatch
from tests.chaos.simulation import simulate


def test_sixty_simulated_sweeps_under_fire_end_as_if_undisturbed():
    survived = [simulate(seed) for seed in range(60)]
    faults = sum(world.faults.total() for world in survived)
    assert faults > 150


@pytest.mark.parametrize(
    ("method", "broken"),
    [
        # A group that is gone keeps its trial for ever.
        ("_lose", lambda self, lane, state, cause, detail, now: None),
        # Rows are taken from whoever sends them.
        ("_attempt", lambda self, lane, number: (d := self.desks[lane]) and d.attempt and (d, d.attempt)),
        # Nobody looks after silent lanes.
        ("tend", lambda self, now: []),
        # What was lost is not tried again.
        ("_tries_again", lambda self, job, end: False),
        # Lanes keep their gang, though trials of another one wait.
        ("vacate", lambda self, lane, now: None),
        # What waits for a first stage waits for ever, or is handed out whatever has become of that one.
        ("_end_first", lambda self, job, *rest: None),
        ("_end_without_attempt", lambda self, job, *rest: self.queues[job.gang].append(job)),
    ],
)
def test_a_dispatcher_with_a_fault_does_not_survive_them(monkeypatch, method, broken):
    monkeypatch.setattr(Dispatch, method, broken)

    def survives(seed: int) -> bool:
        try:
            # Without deaths of the command, after which all begins anew.
            simulate(seed, kinds=("worker", "lane", "twin"))
        except (AssertionError, AttributeError, KeyError):
            return False
        return True

    assert not all(survives(seed) for seed in range(60))


def test_the_ledger_knows_how_much_was_done_twice():
    # Of workers that die alone every step is known; so much is replayed as was trained before.
    for seed in range(20):
        world = simulate(seed, kinds=("worker",))
        spent = ledger(world.events())
        truth = world.truth
        assert spent.replayed == pytest.approx(truth.replayed_seconds, abs=8 * world.step_seconds)
        assert spent.useful + spent.replayed == pytest.approx(truth.trained_seconds, rel=0.02)
