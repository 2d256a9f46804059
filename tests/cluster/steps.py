"""README's way of a sweep on one's own machines, one step at a time; a machine is lost in between."""

import json
import re
import subprocess

import yaml

from orchestrator.trials.events import EpochDone
from tests.cluster.machines import SSH_PORT, Lab
from tests.cluster.readme import README, Commands, blocks, section
from tests.cluster.walk import ROOT, SMALL, StepFailed, Steps, copy_project

ADDRESSES = ("192.0.2.10", "192.0.2.11", "192.0.2.12")

#: Files that stay: results, what the shell remembers, and what libraries keep in places shared with others.
STAYS = re.compile(
    r"~/\.bash_history|~/(runs|\.cache|\.config|\.local|\.nv|\.triton)/|/tmp/(torchinductor_\w+|pymp-\w+|tmux-0)/"
)


class Walk(Steps):
    """Goes through README's section. Each method is a step, and returns what was seen."""

    def __init__(self, lab: Lab) -> None:
        super().__init__(lab)
        self.before = {machine.name: machine.files() for machine in lab.others}
        names = " ".join(machine.address for machine in lab.others)
        self.readme = Commands(section(README.read_text()), {"ubuntu@": "root@", " ".join(ADDRESSES): names})
        self.status = ""

    # ------------------------------------------------------------------------------------------- before

    def log_in(self) -> str:
        """Makes the key, brings it to all machines, and says the port where README says it."""
        [config] = blocks(self.readme.text, "text")
        if f"Port {SSH_PORT}\n" not in config:
            raise StepFailed(f"README's ssh configuration names another port than {SSH_PORT}: {config}")
        for machine in (self.desk, self.head):
            (machine.home / ".ssh" / "config").write_text(config)
        self.before[self.head.name].add("~/.ssh/config")
        self._do(self.readme.take("ssh-keygen"), folder="~")
        copy = self.readme.take("ssh-copy-id")
        for machine in self.lab.others:
            command = copy.replace(self.head.address, machine.address)
            self._do(command, answers=[("(yes/no", "yes\n")], folder="~", expect="Number of key(s) added: 1")
        return f"key on {len(self.lab.others)} machines, port {SSH_PORT}"

    def project(self) -> str:
        """Copies the project to the user's machine, as a repository, and fills in local.yaml."""
        target = self.desk.home / "project"
        copy_project(target)
        path = target / "cluster" / "local.yaml"
        workers = [machine.address for machine in self.lab.others[1:]]
        text = _changed(path.read_text(), "worker_ips", json.dumps(workers).replace('"', ""))
        text = _changed(text, "head_ip", self.head.address).replace("ssh_user: ubuntu ", "ssh_user: root ")
        if len(self.lab.others) > 2:
            # As the heads of clouds are, and as no machine of README's section is.
            text = text.replace("--head --port", "--head --num-cpus=0 --port")
        path.write_text(text)
        if yaml.safe_load(text)["auth"]["ssh_private_key"] not in self.readme.text:
            raise StepFailed("local.yaml has another key than README")
        self._do(self.readme.take("ray get-auth-token"))
        said = self._do(self.readme.take("python -m orchestrator.store.provenance"))
        return said.strip().splitlines()[-1]

    def up(self) -> str:
        """Starts the head. Ray asks whether to start, and whether it may report its use."""
        said = self._do(
            self.readme.take("ray up"),
            answers=[("[y/N]", "y\n"), ("[Y/n]", "n\n")],
            seconds=240,
            expect="New status: up-to-date",
        )
        unknown = [
            line
            for line in said.splitlines()
            if re.search(r"warn|cannot|error", line, re.IGNORECASE)
            and not re.search("refers to a file|Permanently added", line)
        ]
        return f"the head is up; other warnings: {'; '.join(unknown)[:200] or 'none'}"

    def joined(self) -> str:
        """Asks for the machines until all are there."""
        command = self.status = self.status or self.readme.take("ray exec")
        wanted = len(self.lab.others)
        said = ""

        def there() -> bool:
            nonlocal said
            said = self._do(command)
            active = re.search(r"Active:\n(.*?)Pending:", said, re.DOTALL)
            return bool(active) and sum(map(int, re.findall(r"^ (\d+) ", active[1], re.MULTILINE))) == wanted

        self._until(there, 150, lambda: said, pause=3)
        return f"{wanted} of {wanted} machines active"

    # ------------------------------------------------------------------------------------------- the sweep

    def start_run(self) -> str:
        """Attaches to the head, starts the sweep there, and closes the window."""
        self.attach = self._note(self.readme.take("ray attach"))
        window = self._attached(self.attach)
        window.type(self._note(self.readme.take("cd ")) + "\n")
        run = self.readme.take("vitc-sweep run")
        window.type(self._note(f"{run} {SMALL}") + "\n")
        self.leave = self.readme.take("exit")
        self.out = self.head.home / "runs" / "lr_wd"
        self._until(lambda: any(isinstance(e, EpochDone) for e in self._events(self.out)), 150, window.text)
        window.hang_up()
        return "first epoch on record; the terminal was closed"

    def progress(self) -> str:
        """Asks for the progress while the sweep runs."""
        said = self._do(self.readme.take("ray exec"), expect="trials")
        return next(line for line in said.splitlines() if re.search(r"\d+/8 trials", line)).strip()

    def lose(self) -> str:
        """Ends a machine in the midst of a trial."""
        self.interrupted, self.lost_node = self._lose(self.out, lambda trial, epochs: epochs >= 2)
        return f"{self.lost.name} ended in the midst of trial {self.interrupted[:8]}"

    def goes_on(self) -> str:
        """Waits until the trial has begun on another machine."""
        end, began = self._elsewhere(self.out, self.interrupted, self.lost_node)
        return f"recorded as {end.end}: {end.detail[:60]}; attempt {began.attempt} is elsewhere"

    def back(self) -> str:
        """Starts the lost machine again. It is taken in without a command."""
        self.lab.boot(self.lost)
        self._until(lambda: any("raylet" in line for line in self.lost.processes()), 120, lambda: "no Ray")
        return self.joined()

    def finished(self) -> str:
        """Waits for the end of the sweep."""
        self._finished(self.out, 8, 240)
        window = self._attached(self.attach)
        self._until(lambda: "report: " in window.text(), 60, window.text)
        window.type(self._note(self.leave) + "\n")
        self._until(
            lambda: not any(line.startswith("tmux") for line in self.head.processes()), 30, window.text
        )
        window.hang_up()
        return "8 of 8 trials finished; the shell still shows them, and is closed"

    # ------------------------------------------------------------------------------------------- after

    def results(self) -> str:
        """Copies the results and looks for the commit in their record."""
        self._do(self.readme.take("mkdir"))
        self._do(self.readme.take("ray rsync-down"))
        copy = self.desk.home / "project" / "runs" / "lr_wd"
        commit = json.loads((copy / "record.json").read_text())["code"]["commit"]
        if commit != subprocess.check_output(["git", "-C", ROOT, "rev-parse", "HEAD"], text=True).strip():
            raise StepFailed(f"the record names the commit {commit!r}")
        files = sum(path.is_file() for path in copy.rglob("*"))
        return f"{files} files, commit {commit[:12]} on record"

    def down(self) -> str:
        """Ends the cluster."""
        self._do(
            self.readme.take("ray down"), answers=[("[y/N]", "y\n")], seconds=90, expect="No nodes remaining"
        )
        return ", ".join(f"{m.name}: {len(m.processes())} processes" for m in self.lab.others)

    def remove(self) -> str:
        """Removes what is left, and shows that nothing is."""
        self._do(self.readme.take("for machine"), seconds=120)
        self._until(lambda: not self._processes(), 30, lambda: f"processes are left: {self._processes()}")
        left = {m.name: sorted(m.files() - self.before[m.name]) for m in self.lab.others}
        ours = {name: [path for path in paths if not STAYS.fullmatch(path)] for name, paths in left.items()}
        if any(ours.values()):
            raise StepFailed(f"files are left: {ours}")
        if self.readme.left():
            raise StepFailed(f"README shows what was not tried: {self.readme.left()}")
        if lines := [m.name for m in self.lab.others if "vitc-sweep" in (m.home / ".bashrc").read_text()]:
            raise StepFailed(f".bashrc is not as before: {lines}")
        shared = sorted({path for paths in left.values() for path in paths})
        return f"no process, no file but {' '.join(shared)}"


def _changed(text: str, key: str, value: str) -> str:
    """Changes the value of a key of local.yaml on the line that is marked CHANGE."""
    changed, count = re.subn(rf"(?m)^(\s+{key}: )\S.*?(\s+# CHANGE)", rf"\g<1>{value}\g<2>", text)
    if count != 1:
        raise StepFailed(f'local.yaml has no line "{key}" that is marked CHANGE')
    return changed
