"""README's job for Slurm on two machines: real Ray and a real run, with programs in the place of Slurm's."""

from orchestrator.store.folder import open_folder
from orchestrator.store.journal import read_journal
from orchestrator.trials.events import AttemptBegan, AttemptEnded, EpochDone
from orchestrator.trials.records import fold
from tests.cluster.machines import SSH_PORT, Lab, Terminal, virtual_environment
from tests.cluster.readme import README, Commands, section
from tests.cluster.walk import StepFailed, Steps, copy_project
from tests.support.by_hand import by_hand, outcomes_of

#: What makes README's sweep a small one: 4 trials of some 20 seconds.
SMALL = "--points 1 --set schedule.epochs=20"

JOB = 4711

#: `sbatch` starts the job at once, where it was called. `srun` runs a command on all nodes, and ends as the
#: worst of them. `scontrol` knows the nodes, and notes what else it is asked.
PROGRAMS = {
    "sbatch": """
export SLURM_JOB_ID={job} SLURM_JOB_NODELIST='node[1-2]' SLURM_NNODES={count} SLURM_CPUS_PER_TASK=1
echo $$ > {shared}/job.pid
exec bash "$@"
""",
    "srun": """
given=$(printf '%q ' "$@")
for node in {nodes}; do
    {{ export -p; printf 'cd %q && exec %s\\n' "$PWD" "$given"; }} |
        ssh -p {port} -o StrictHostKeyChecking=accept-new root@$node bash -s &
    tasks+=($!)
done
worst=0
for task in "${{tasks[@]}}"; do
    wait "$task" || {{ code=$?; [ $code -gt $worst ] && worst=$code; }}
done
exit $worst
""",
    "scontrol": """
if [ "$1" = show ]; then printf '%s\\n' {nodes}; else echo "$*" >> {shared}/asked; fi
""",
}


class Slurm(Steps):
    """Each method is a step, and returns what was seen."""

    def __init__(self, lab: Lab) -> None:
        super().__init__(lab)
        self.project = lab.shared / "project"
        self.out = self.project / "runs" / "lr_wd"
        gpus = " --set resources.gpus_per_worker=1"
        [self.command] = Commands(section(README.read_text(), "Slurm"), {gpus: f" {SMALL}"}).left()
        self.before = {machine.name: machine.files() for machine in lab.others}

    def nodes(self) -> str:
        """Installs the project on a disk that all nodes see, and what stands for Slurm."""
        copy_project(self.project)
        lines = "\n".join(virtual_environment(str(self.project / ".venv")))
        install = ".venv/bin/python -m pip install --quiet --editable ."
        result = self.head.run(f"cd {self.project}\n{lines}\n{install}", seconds=120)
        if result.status:
            raise StepFailed(result.output)
        programs = self.lab.shared / "bin"
        programs.mkdir()
        addresses = " ".join(machine.address for machine in self.lab.others)
        for name, text in PROGRAMS.items():
            known = {"job": JOB, "count": len(self.lab.others), "port": SSH_PORT}
            filled = text.format(**known, nodes=addresses, shared=self.lab.shared)
            (programs / name).write_text(f"#!/usr/bin/env bash\n{filled}")
            (programs / name).chmod(0o755)
        # Slurm needs no key; its stand-in logs in with the user's.
        key = self.desk.home / ".ssh" / "id_ed25519"
        target = self.head.home / ".ssh" / key.name
        target.write_bytes(key.read_bytes())
        target.chmod(0o600)
        return f"{len(self.lab.others)} nodes with one disk"

    def _submit(self) -> Terminal:
        path = f'PATH="{self.lab.shared}/bin:$PATH"'
        return self.head.start(f"cd {self.project}; {path} {self._note(self.command)}; echo ended $?")

    def job(self) -> str:
        """Submits the job, and waits for the first epochs on both nodes."""
        self.window = self._submit()

        def both() -> bool:
            events = self._events(self.out)
            trained = {event.trial for event in events if isinstance(event, EpochDone)}
            nodes = {e.node for e in events if isinstance(e, AttemptBegan) and e.trial in trained}
            return len(nodes) == len(self.lab.others)

        self._until(both, 200, self.window.text)
        return f"trials on {len(self.lab.others)} nodes"

    def limit(self) -> str:
        """Sends what Slurm sends before the time limit."""
        self.head.run(f"kill -TERM $(cat {self.lab.shared}/job.pid)")
        self._until(lambda: "ended " in self.window.text(), 90, self.window.text)
        if "ended 75" not in self.window.text():
            raise StepFailed(self.window.text())
        asked = (self.lab.shared / "asked").read_text()
        if asked != f"requeue {JOB}\n":
            raise StepFailed(f"Slurm was asked {asked!r}")
        self._nothing_left()
        return "exit code 75, requeued; no process is left"

    def again(self) -> str:
        """Runs the job that has come back to its end."""
        began = len(self._events(self.out))
        window = self._submit()
        self._until(lambda: "ended " in window.text(), 300, window.text)
        if "ended 0" not in window.text():
            raise StepFailed(window.text())
        self._finished(self.out, 4, 10)
        interrupted = {
            e.trial for e in self._events(self.out) if isinstance(e, AttemptEnded) and e.end == "cancelled"
        }
        trial = next(trial for trial in open_folder(self.out).plan.trials if trial.id in interrupted)
        found = outcomes_of(fold(read_journal(self.out).events))
        if found[trial.id] != by_hand([trial])[trial.id]:
            raise StepFailed("rows and final weights are not those of an undisturbed trial")
        later = [event.row.epoch for event in self._events(self.out)[began:] if isinstance(event, EpochDone)]
        return f"exit code 0; a trial that was stopped is the undisturbed one; the first epoch was {later[0]}"

    def clean(self) -> str:
        """Looks for what is left on the nodes."""
        self._nothing_left()
        own = "~/.ssh/id_ed25519", "~/.ssh/known_hosts"
        left = {m.name: sorted(m.files() - self.before[m.name] - {*own}) for m in self.lab.others}
        if any("ray" in path or "vs" in path for paths in left.values() for path in paths):
            raise StepFailed(f"files are left: {left}")
        return f"no process; files: {sorted({path for paths in left.values() for path in paths})}"

    def _nothing_left(self) -> None:
        self._until(lambda: not self._processes(), 60, lambda: f"processes are left: {self._processes()}")
