"""What README says beyond its first section, on the same cluster: buckets, copies, lost connections, jobs."""

import re
import shlex
from pathlib import Path

from orchestrator.store.folder import open_folder
from orchestrator.store.journal import read_journal
from orchestrator.trials.events import EpochDone
from orchestrator.trials.records import fold
from tests.cluster.machines import Lab, Terminal
from tests.cluster.readme import README, Commands, section
from tests.cluster.walk import StepFailed, Steps
from tests.support.by_hand import by_hand, outcomes_of
from tests.support.s3 import KEYS

#: Port of the S3 program on the user's machine.
S3_PORT = 9000

#: What a user types after logging in to the head.
RUN = "vitc-sweep run search_spaces/lr_wd.yaml --address auto"

#: So long that a trial has a state in the bucket, and is far from its end, when its machine goes.
LONG = "--points 1 --set schedule.epochs=40"

#: As short as a sweep of two arms and two cells can be.
SHORT = "--points 1 --set schedule.epochs=5"


class Beyond(Steps):
    """Each method is a step, and returns what was seen."""

    def __init__(self, lab: Lab) -> None:
        super().__init__(lab)
        text = README.read_text()
        names = {"cluster/gpu.yaml": "cluster/local.yaml"}
        self.jobs = Commands(section(text, "From your own machine, as a job"), names, "text")
        self.copies = Commands(section(text, "On all of these"), {}, "text")
        self.servers: list[Terminal] = []

    def store(self) -> str:
        """Starts an S3 program on the user's machine, and gives all machines its credentials."""
        lines = [f"{name.lower()} = {value}" for name, value in KEYS.items() if name.endswith(("ID", "KEY"))]
        for machine in (self.desk, *self.lab.others):
            (machine.home / ".aws").mkdir(exist_ok=True)
            (machine.home / ".aws" / "credentials").write_text("\n".join(["[default]", *lines, ""]))
        self.servers.append(self.desk.start(f"python -m moto.server -H {self.desk.address} -p {S3_PORT}"))
        self._until(lambda: "Running on" in self.servers[0].text(), 60, self.servers[0].text)
        self._s3("c.create_bucket(Bucket='bucket')")
        # On the user's machine, too, the project is installed, as README says at its top.
        self._do("python -m pip install --quiet --editable .")
        return f"a bucket at {self.desk.address}:{S3_PORT}"

    def ssh_dies(self) -> str:
        """Starts a sweep by ssh with its states in the bucket, and kills the connection."""
        self.out = self.head.home / "runs" / "states"
        place = f"--set resources.checkpoints={self._bucket('states')} --set resources.keep=last"
        window = self._by_ssh(f"{RUN} {LONG} {place} --out ~/runs/states")
        self._until(lambda: any(isinstance(e, EpochDone) for e in self._events(self.out)), 150, window.text)
        window.hang_up()
        return "first epoch on record; the ssh client was killed"

    def lose_again(self) -> str:
        """Ends a machine in the midst of a trial whose state is in the bucket."""
        states: list[str] = []

        def saved(trial: str, epochs: int) -> bool:
            # The name of a state begins with the number of whole epochs in it.
            states[:] = [
                key
                for key in self._keys(f"states/states/{trial}/checkpoint/")
                if int(Path(key).name.split("-")[0]) > 0
            ]
            return epochs >= 3 and bool(states)

        self.interrupted, self.lost_node = self._lose(self.out, saved)
        return f"{self.lost.name} ended in the midst of {self.interrupted[:8]}; the bucket has its state"

    def resumes(self) -> str:
        """Waits until the trial goes on elsewhere, from the bucket."""
        end, began = self._elsewhere(self.out, self.interrupted, self.lost_node)
        rows: list[int] = []

        def goes_on() -> bool:
            rows[:] = [
                event.row.epoch
                for event in self._events(self.out)
                if isinstance(event, EpochDone)
                and (event.trial, event.attempt) == (self.interrupted, began.attempt)
            ]
            return bool(rows)

        self._until(goes_on, 60, lambda: "no epoch of it")
        if rows[0] == 1:
            raise StepFailed("it started over")
        return f"recorded as {end.end}; its next attempt begins with epoch {rows[0]}"

    def same(self) -> str:
        """Waits for the end. Nothing shows that a machine was lost, and nothing is where it should not be."""
        self._finished(self.out, 4, 480)
        self._until(
            lambda: not any("vitc-sweep run" in line for line in self.head.processes()), 60, lambda: "it runs"
        )
        trials = open_folder(self.out).plan.trials
        found = outcomes_of(fold(read_journal(self.out).events))
        [interrupted] = [trial for trial in trials if trial.id == self.interrupted]
        if found[interrupted.id] != by_hand([interrupted])[interrupted.id]:
            raise StepFailed("rows and final weights are not those of an undisturbed trial")
        wanted = {
            f"states/states/{trial.id}/{name}" for trial in trials for name in ("final.pt", "final.json")
        }
        if (there := set(self._keys("states/"))) != wanted:
            raise StepFailed(f"the bucket has {sorted(there)}")
        if left := self._files_of([trial.id for trial in trials]):
            raise StepFailed(f"machines have files of ended trials: {left}")
        return "the trial is the undisturbed one to the bit; the bucket has the weights of 4, and no state"

    def pipe_breaks(self) -> str:
        """Lets the reader of the output leave after a line."""
        self.piped = self.head.home / "runs" / "piped"
        window = self._by_ssh(f"{RUN} {SHORT} --out ~/runs/piped | head -1; echo ended ${{PIPESTATUS[0]}}")
        self._until(lambda: "ended 0" in window.text(), 400, window.text)
        window.hang_up()
        self._finished(self.piped, 4, 10)
        return "4 of 4 trials finished, exit code 0"

    def copy(self) -> str:
        """Copies the results through the bucket to the user's machine."""
        up, down = (
            self.copies.take(verb)
            .replace("~/runs/lr_wd", "~/runs/states")
            .replace("runs/lr_wd", "runs/states")
            for verb in ("vitc-sweep sync-up", "vitc-sweep sync-down")
        )
        window = self._by_ssh(f"{self._addressed(up)}; echo ended $?")
        self._until(lambda: "ended 0" in window.text(), 90, window.text)
        window.hang_up()
        self._do(self._addressed(down))
        said = self._do("vitc-sweep verify runs/states", seconds=120)
        return said.strip().splitlines()[-1]

    def job(self) -> str:
        """Submits a sweep from the user's machine through a tunnel of `ray dashboard`, and attaches to it."""
        (self.desk.home / "project" / "my.yaml").write_text(
            (self.desk.home / "project" / "search_spaces" / "lr_wd.yaml").read_text()
        )
        self.servers.append(self.desk.start(f"cd project; {self._note(self.jobs.take('ray dashboard'))}"))
        self._until(
            lambda: self.desk.run("curl -s -o /dev/null http://127.0.0.1:8265/api/version").status == 0,
            60,
            self.servers[-1].text,
            pause=2,
        )
        submit, cut = re.subn(
            r" --set data=.*", f" {SHORT}", self.jobs.take("vitc-sweep submit"), flags=re.DOTALL
        )
        if not cut:
            raise StepFailed(f"README's submit has no data: {submit}")
        token = "export RAY_AUTH_MODE=token RAY_AUTH_TOKEN=$(cat ~/.ray/auth_token);"
        self._do(f"{token} {submit}", seconds=120, expect="submitted as my-1")
        self._do(f"{token} {self.jobs.take('vitc-sweep attach')}", seconds=240, expect="4 trials in ")
        self.jobs.take("vitc-sweep stop")
        self._do(f"{token} {self.jobs.take('vitc-sweep logs')}", expect="report: ")
        self._finished(self.head.home / "runs" / "my", 4, 10)
        return "4 of 4 trials finished; its output came through the tunnel, exit code 0"

    def end_servers(self) -> str:
        """Ends what the steps have started on the user's machine."""
        for server in self.servers:
            server.hang_up()
        for machine in self.lab.others:
            (machine.home / ".aws" / "credentials").unlink()
            (machine.home / ".aws").rmdir()
        return "nothing of it is left"

    # ------------------------------------------------------------------------------------------- helpers

    def _bucket(self, path: str) -> str:
        """Returns an address in the bucket, quoted for the shell."""
        return f"'s3://bucket/{path}?region=us-east-1&endpoint_override=http://{self.desk.address}:{S3_PORT}'"

    def _addressed(self, command: str) -> str:
        """Replaces the address in the bucket by one with what this bucket needs."""
        return re.sub(r"s3://bucket/(\S+)", lambda found: self._bucket(found[1]), command)

    def _by_ssh(self, command: str) -> Terminal:
        """Starts a command on the head in a login shell, as a user who has logged in does."""
        self._note(f"ssh -t root@{self.head.address}   # there:\n{command}")
        inside = "bash -lic " + shlex.quote(f"cd ~/vitc-sweep; {command}")
        login = f"ssh -t -i ~/.ssh/vitc-sweep root@{self.head.address}"
        return self.desk.start(f"{login} {shlex.quote(inside)}")

    def _s3(self, code: str) -> str:
        """Runs Python code on the user's machine, with `c`, a client of the store."""
        keys = {name.lower(): value for name, value in KEYS.items() if name.endswith(("ID", "KEY"))}
        store = {"endpoint_url": f"http://{self.desk.address}:{S3_PORT}", "region_name": "us-east-1", **keys}
        script = f"import boto3; c = boto3.client('s3', **{store}); {code}"
        result = self.desk.run(f"python -c {shlex.quote(script)}")
        if result.status:
            raise StepFailed(result.output)
        return result.output

    def _keys(self, prefix: str) -> list[str]:
        """Returns the keys of the files in the bucket that begin so, without the markers of folders."""
        listed = self._s3(
            "print(*(o['Key'] for p in c.get_paginator('list_objects_v2').paginate(Bucket='bucket', "
            f"Prefix='{prefix}') for o in p.get('Contents', [])))"
        )
        return [key for key in listed.split() if not key.endswith("/")]

    def _files_of(self, trials: list[str]) -> list[Path]:
        """Returns the files of trials on all machines, but for their logs in the results."""
        return [
            path
            for machine in self.lab.others
            for place in (machine.home, machine.tmp)
            for path in place.rglob("*")
            if any(trial in str(path.relative_to(place)) for trial in trials)
            and not path.is_relative_to(self.out)
            and path.is_file()
        ]
