"""What the steps of the cluster test share: commands on the user's machine, and looks at the others."""

import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from orchestrator.store.journal import read_journal
from orchestrator.trials.events import AttemptBegan, AttemptEnded, EpochDone, Event
from tests.cluster.machines import Answers, Lab, Machine, Terminal

ROOT = Path(__file__).parents[2]

#: Limits of time are for a machine with nothing beside the test. Several times as long shows a hang as well.
PATIENCE = 3

#: What makes README's sweep a small one: 8 trials of some 10 seconds.
SMALL = "--points 2 --set schedule.epochs=10"


class StepFailed(Exception):
    """A step did not show what it should. The message says what was seen instead."""


def copy_project(target: Path) -> None:
    """Makes a repository of the project as it is, with changes that are not committed."""
    subprocess.run(["git", "clone", "--quiet", "--no-local", ROOT, target], check=True)
    kept = "git ls-files -z --cached --others --exclude-standard | rsync -a --from0 --ignore-missing-args"
    subprocess.run(f"{kept} --files-from=- . '{target}'", shell=True, check=True, cwd=ROOT)


class Steps:
    """Methods for steps. `ran` has the commands of all steps so far."""

    def __init__(self, lab: Lab) -> None:
        self.lab, self.desk, self.head = lab, lab.desk, lab.others[0]
        self.lost = lab.others[-1]
        self.ran: list[str] = []

    def _attached(self, command: str, tries: int = 3) -> Terminal:
        """Returns a terminal with a shell on the head.

        Ray runs `tmux attach || tmux new`. The second may still meet the server that the first has started
        and that ends for lack of sessions. Then a user tries again, too.
        """
        window = self.desk.start(f"cd project; {command}")
        self._until(lambda: "# " in window.text() or not window.runs(), 60, window.text)
        if window.runs():
            return window
        if tries == 1:
            raise StepFailed(f"{command}\n{window.text()}")
        return self._attached(command, tries - 1)

    def _note(self, command: str) -> str:
        self.ran.append(command)
        return command

    def _do(
        self,
        command: str,
        answers: Answers = (),
        seconds: float = 90,
        expect: str = "",
        folder: str = "project",
    ) -> str:
        """Runs a command on the user's machine and returns its output."""
        seconds *= PATIENCE
        result = self.desk.run(f"cd {folder}; {self._note(command)}", answers, seconds)
        if result.status or result.timed_out or expect not in result.output:
            why = f"not ended in {seconds:.0f} s" if result.timed_out else f"exit status {result.status}"
            raise StepFailed(f"{command}\n{why}, expected {expect!r}:\n{result.output}")
        return result.output

    def _until(
        self, true: Callable[[], bool], seconds: float, seen: Callable[[], str], pause: float = 0.5
    ) -> None:
        deadline = time.monotonic() + PATIENCE * seconds
        while not true():
            if time.monotonic() > deadline:
                raise StepFailed(f"not within {PATIENCE * seconds:.0f} s:\n{seen()}")
            time.sleep(pause)

    def _events(self, folder: Path) -> list[Event]:
        return list(read_journal(folder).events) if (folder / "journal").exists() else []

    def _lose(self, folder: Path, ready: Callable[[str, int], bool]) -> tuple[str, str]:
        """Ends the machine `lost` in the midst of a trial.

        Args:
          folder: the results, as this computer sees them.
          ready: whether a trial, after so many epochs, has come to the midst.

        Returns:
          The trial, and the machine's id in Ray.
        """
        node, trial = self._node(self.lost), ""

        def in_the_midst() -> bool:
            nonlocal trial
            running = {}
            for event in self._events(folder):
                match event:
                    case AttemptBegan() if event.node == node:
                        running[event.trial] = 0
                    case EpochDone() if event.trial in running:
                        running[event.trial] += 1
                    case AttemptEnded():
                        running.pop(event.trial, None)
            trial = next((name for name, epochs in running.items() if ready(name, epochs)), "")
            return bool(trial)

        self._until(in_the_midst, 120, lambda: f"no trial on {self.lost.name}", pause=0.2)
        self.lost.kill()
        return trial, node

    def _elsewhere(self, folder: Path, trial: str, node: str) -> tuple[AttemptEnded, AttemptBegan]:
        """Waits until a trial has begun on another machine. Returns how it ended first, and how it began."""
        began: list[AttemptBegan] = []

        def elsewhere() -> bool:
            nonlocal began
            began = [e for e in self._events(folder) if isinstance(e, AttemptBegan) and e.trial == trial]
            return began[-1].node != node

        self._until(elsewhere, 150, lambda: f"attempts: {began}")
        [end] = [
            event
            for event in self._events(folder)
            if isinstance(event, AttemptEnded) and (event.trial, event.attempt) == (trial, began[0].attempt)
        ]
        return end, began[-1]

    def _finished(self, folder: Path, trials: int, seconds: float) -> None:
        """Waits for the report of a sweep whose trials have all finished, each once."""
        self._until(
            lambda: (folder / "report" / "summary.json").exists(),
            seconds,
            lambda: str(self._events(folder)[-3:]),
        )
        ends = [
            event.end
            for event in self._events(folder)
            if isinstance(event, AttemptEnded) and event.final and event.end != "cancelled"
        ]
        if ends != ["finished"] * trials:
            raise StepFailed(f"ends of trials: {ends}")

    def _processes(self) -> list[str]:
        return [f"{m.name}: {line[:100]}" for m in self.lab.others for line in m.processes()]

    def _node(self, machine: Machine) -> str:
        """Returns the id of a machine in Ray."""
        [node] = set(re.findall(r"--node-id=(\w+)", " ".join(machine.processes())))
        return node
