"""Machines made of Linux namespaces, each with processes, files and a network address of its own.

A machine is an sshd in its own mount, process, network and host name namespaces. It has a home, a /tmp and
a /dev/shm of its own, sees one CPU, and dies with all its processes when its first process is killed. One
bridge joins the machines. It leads nowhere else, so no packet leaves this computer. Everything is gone when
the process that made the machines ends, even by SIGKILL.
"""

import contextlib
import fcntl
import os
import pty
import pwd
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import psutil

#: Port of every sshd: not 22, so that what README says about other ports is tried, too.
SSH_PORT = 2222

#: What the machines are made of.
_PROGRAMS = (
    *("unshare", "nsenter", "setpriv", "taskset", "mount", "ip"),
    *("sshd", "ssh", "ssh-keygen", "ssh-copy-id", "rsync", "tmux", "git"),
)

#: Where local.yaml installs, below the home.
VENV = "vitc-sweep/.venv"

_NAMESPACES = ("--mount", "--pid", "--net", "--uts", "--fork")

_SSHD = f"""\
Port {SSH_PORT}
HostKey /run/host_key
PidFile none
UsePAM no
UseDNS no
PasswordAuthentication no
PermitRootLogin prohibit-password
"""


def why_not() -> str:
    """Returns why machines cannot be made here, or ""."""
    if sys.platform != "linux":
        return "machines need Linux"
    if os.geteuid() != 0:
        return "machines need root, to make namespaces"
    if missing := [name for name in _PROGRAMS if not _program(name)]:
        return f"not installed: {', '.join(missing)}"
    if not Path("/etc/skel/.bashrc").exists() or not Path("/etc/skel/.profile").exists():
        return "/etc/skel has no .bashrc or no .profile"
    attempt = subprocess.run(
        ["unshare", *_NAMESPACES, "ip", "link", "add", "one", "type", "veth", "peer", "name", "two"],
        capture_output=True,
        text=True,
    )
    return f"no namespaces with a network here: {attempt.stderr.strip()}" if attempt.returncode else ""


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin:/usr/bin:/bin")


Answers = Sequence[tuple[str, str]]


class Result(NamedTuple):
    """The end of a command: its exit status, all its output, and whether it was ended for taking too long."""

    status: int
    output: str
    timed_out: bool


class Terminal:
    """A command that runs in a terminal of its own. A thread reads what it writes, so that it never waits."""

    def __init__(self, command: Sequence[str], environment: dict[str, str], answers: Answers) -> None:
        self._keyboard, terminal = pty.openpty()
        self._process = subprocess.Popen(
            command,
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            env=environment,
            start_new_session=True,
            # So that ssh, which asks the terminal and not its standard input, can ask.
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(terminal)
        self._read = bytearray()
        self._answers, self._answered = list(answers), 0
        self._reader = threading.Thread(target=self._collect, daemon=True)
        self._reader.start()

    def _collect(self) -> None:
        with contextlib.suppress(OSError):  # so Linux says that no process has the terminal any more
            while part := os.read(self._keyboard, 65536):
                self._read += part
                if self._answers and self._answers[0][0] in self.text()[self._answered :]:
                    self._answered = len(self.text())
                    self.type(self._answers.pop(0)[1])

    def runs(self) -> bool:
        return self._process.poll() is None

    def type(self, text: str) -> None:
        os.write(self._keyboard, text.encode())

    def text(self) -> str:
        """Returns what was written so far, without the codes for colours and places."""
        return re.sub(
            r"\x1b[\[(][0-9;?]*[A-Za-z]|[\x0e\x0f\r]", "", bytes(self._read).decode(errors="replace")
        )

    def hang_up(self) -> None:
        """Ends the command at once, as a closed window or a lost connection does."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self.finish(10)

    def finish(self, seconds: float) -> Result:
        """Waits for the end of the command, and ends it after so many seconds."""
        timed_out = False
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            timed_out = True
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        status = self._process.wait()
        # A process that was left behind, such as ssh's shared connection, may keep the terminal open.
        self._reader.join(1)
        if not self._reader.is_alive():
            os.close(self._keyboard)
        return Result(status, self.text(), timed_out)


class Machine:
    """A machine, which runs once it has been booted.

    Attributes:
      name, address: its host name and its only IP address.
      home, tmp: the folders that it has there, as this computer sees them.
    """

    def __init__(self, folder: Path, address: str, core: int) -> None:
        self.name, self.address = folder.name, address
        self.home, self.tmp, self._run = folder / "home", folder / "tmp", folder / "run"
        self._folder, self._core = folder, core
        # The home that a new user gets, whose .profile reads .bashrc.
        shutil.copytree("/etc/skel", self.home)
        for part in (self.home / ".ssh", self.tmp, self._run / "sshd"):
            part.mkdir(parents=True)
        for part in (self.home, self.home / ".ssh", self._run / "sshd"):
            part.chmod(0o700)
        self.tmp.chmod(0o1777)
        (self._run / "online").write_text("0\n")
        (self._run / "hosts").write_text(f"127.0.0.1 localhost\n{address} {self.name}\n")
        (self._run / "sshd_config").write_text(_SSHD)
        _make_key(self._run / "host_key", "host")
        self._process: subprocess.Popen[str] | None = None
        self._init: psutil.Process | None = None

    def boot(self) -> None:
        """Starts the machine, without a network."""
        self._process = subprocess.Popen(
            [
                *("setpriv", "--pdeathsig", "KILL", "taskset", "--cpu-list", str(self._core)),
                *("unshare", *_NAMESPACES, "--mount-proc", "--kill-child=SIGKILL"),
                *("bash", "-c", _script(self._folder)),
            ],
            stdout=subprocess.PIPE,
            stderr=(self._folder / "log").open("w"),
            stdin=subprocess.DEVNULL,
            text=True,
            cwd="/",
            start_new_session=True,
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            raise RuntimeError(f"{self.name} does not start: {(self._folder / 'log').read_text()}")
        (self._init,) = psutil.Process(self._process.pid).children()

    @property
    def init(self) -> int:
        """The id of its first process, as this computer numbers it."""
        assert self._init is not None, f"{self.name} does not run"
        return self._init.pid

    def runs(self) -> bool:
        return self._init is not None

    def kill(self) -> None:
        """Ends the machine with everything that runs on it, as a power cut does. Only its home stays."""
        if self._process is not None:
            # Its `unshare` takes the first process along, and that all others.
            self._process.kill()
            self._process.wait()
        self._process = self._init = None
        for path in self.tmp.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def ip(self, command: str) -> None:
        """Changes the network of the machine."""
        # In its network only, because `netns PID` means a process as this computer numbers it.
        inside = ["nsenter", f"--target={self.init}", "--net"]
        result = subprocess.run([*inside, "ip", *command.split()], capture_output=True, text=True)
        if result.returncode:
            raise RuntimeError(f"{self.name}: ip {command}: {result.stderr}")

    def run(self, command: str, answers: Answers = (), seconds: float = 60) -> Result:
        """Runs a command as `start` does, and waits for its end."""
        return self.start(command, answers).finish(seconds)

    def start(self, command: str, answers: Answers = ()) -> Terminal:
        """Starts a shell command in the home of the machine, in a terminal, as a user would after logging in.

        Args:
          command: for bash.
          answers: a question of the command, and what the user then types.
        """
        home = pwd.getpwuid(0).pw_dir
        environment = {"HOME": home, "USER": "root", "TERM": "xterm", "LANG": "C.UTF-8"}
        environment["PATH"] = f"{home}/{VENV}/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
        inside = ["nsenter", f"--target={self.init}", *_NAMESPACES[:4]]
        return Terminal([*inside, "bash", "-c", f"cd; {command}"], environment, answers)

    def processes(self) -> list[str]:
        """Returns the command lines of its processes but sshd."""
        found = []
        own = os.readlink(f"/proc/{self.init}/ns/pid")
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                same = os.readlink(f"/proc/{process.pid}/ns/pid") == own
                if same and process.name() != "sshd" and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(" ".join(process.cmdline()))
        return found

    def files(self) -> set[str]:
        """Returns the paths of its files in home and /tmp, with ~ for the home. A folder ends in "/"."""
        found = set()
        for root, name in ((self.home, "~"), (self.tmp, "/tmp")):
            for path in (*root.iterdir(), *(root / ".ssh").glob("*")):
                found.add(f"{name}/{path.relative_to(root)}" + "/" * path.is_dir())
        return found


@dataclass(frozen=True)
class Lab:
    """The user's own machine, which has a key for the login to the others, and these, the head first.

    `shared` is a folder that all of them see, at the same path.
    """

    desk: Machine
    others: list[Machine]
    shared: Path

    def boot(self, machine: Machine) -> None:
        """Starts one of the other machines, and connects it."""
        machine.boot()
        self.desk.ip(f"link add to-{machine.name} type veth peer name eth0 netns {machine.init}")
        self.desk.ip(f"link set to-{machine.name} master bridge up")
        machine.ip(f"addr add {machine.address}/24 dev eth0")
        machine.ip("link set eth0 up")


@contextlib.contextmanager
def machines(addresses: Sequence[str]) -> Iterator[Lab]:
    """Yields running machines: the user's, and one at each of the addresses of one /24 network."""
    folder = Path(tempfile.mkdtemp(prefix="vitc-cluster-"))
    # Not in the usual place, which each machine has for itself.
    shared = Path(tempfile.mkdtemp(prefix="vitc-cluster-", dir="/var/tmp"))
    cores = sorted(os.sched_getaffinity(0))
    desk = Machine(folder / "desk", f"{addresses[0].rpartition('.')[0]}.1", cores[0])
    names = ["head", *(f"worker{number}" for number in range(1, len(addresses)))]
    others = [
        Machine(folder / name, address, cores[number % len(cores)])
        for number, (name, address) in enumerate(zip(names, addresses, strict=True))
    ]
    try:
        desk.boot()
        desk.ip("link add bridge type bridge")
        desk.ip(f"addr add {desk.address}/24 dev bridge")
        desk.ip("link set bridge up")
        key = desk.home / ".ssh" / "id_ed25519"
        _make_key(key, "user")
        lab = Lab(desk, others, shared)
        for machine in others:
            shutil.copy(key.with_suffix(".pub"), machine.home / ".ssh" / "authorized_keys")
            lab.boot(machine)
        yield lab
    finally:
        for machine in (*others, desk):
            machine.kill()
        for used in (folder, shared):
            shutil.rmtree(used)


def _make_key(path: Path, comment: str) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", path], check=True)


def _script(folder: Path) -> str:
    """Returns what the first process of a machine does: it mounts the machine's files and becomes sshd."""
    home = pwd.getpwuid(0).pw_dir
    own = {home: folder / "home", "/tmp": folder / "tmp", "/run": folder / "run"}
    # The environment that runs this must stay visible, even if it lies in what is hidden.
    lines = []
    for kept in (Path(sys.prefix), Path(sys.base_prefix)):
        for hidden, instead in own.items():
            if kept.is_relative_to(hidden):
                place = instead / kept.relative_to(hidden)
                place.mkdir(parents=True, exist_ok=True)
                lines.append(f"mount --bind {shlex.quote(str(kept))} {shlex.quote(str(place))}")
    # /tmp last, because `folder` is in it.
    for hidden, instead in sorted(own.items(), key=lambda item: item[0] == "/tmp"):
        lines.append(f"mount --rbind {shlex.quote(str(instead))} {shlex.quote(hidden)}")
    return "\n".join(
        [
            "set -eu",
            *lines,
            "mount -t tmpfs shm /dev/shm",
            # One CPU, whether it is asked for by files of the kernel or by limits of a container.
            "mount --bind /run/online /sys/devices/system/cpu/online",
            "mount -t tmpfs none /sys/fs/cgroup",
            "mount --bind /run/hosts /etc/hosts",
            f"hostname {folder.name}",
            "ip link set lo up",
            *virtual_environment(f"{home}/{VENV}"),
            "echo ready",
            f"exec {_program('sshd')} -D -e -f /run/sshd_config",
        ]
    )


def virtual_environment(venv: str) -> list[str]:
    """Returns shell lines that make a virtual environment which links all packages of another one.

    It installs from local files only.
    """
    python = shlex.quote(str(Path(sys.base_prefix) / "bin" / "python3"))
    link = shlex.quote(next(path for path in sys.path if path.endswith("site-packages")))
    script = f"#!{venv}/bin/python\\nimport sys\\nfrom ray.scripts.scripts import main\\nsys.exit(main())\\n"
    return [
        "install() {",
        f"test -x {venv}/bin/python && return",
        f"mkdir -p $(dirname {venv})",
        f"{python} -m venv --without-pip {venv}",
        f"echo {link} > $(echo {venv}/lib/python3.*/site-packages)/linked.pth",
        # For this setting pip reads "false" as "do not isolate".
        f"printf '[install]\\nno-index = true\\nno-build-isolation = false\\n' > {venv}/pip.conf",
        f"printf '{script}' > {venv}/bin/ray",
        f"chmod +x {venv}/bin/ray",
        "}",
        "install",
    ]
