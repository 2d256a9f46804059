"""Machines made of Linux namespaces, each with processes, files and a network address of its own.

A machine is an sshd in its own mount, process, network and host name namespaces. It has a home, a /tmp and
a /dev/shm of its own, sees one CPU, and dies with all its processes when its first process is killed. One
bridge joins the machines. It leads nowhere else, so no packet leaves this computer. Everything is gone when
the process that made the machines ends, even by SIGKILL.
"""

import contextlib
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
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import psutil

#: Port of every sshd: not 22, so that what README says about other ports is tried, too.
SSH_PORT = 2222

#: What the machines are made of.
_PROGRAMS = ("unshare", "nsenter", "setpriv", "taskset", "ip", "mount", "sshd", "ssh", "ssh-keygen", "rsync")

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
    attempt = subprocess.run(
        ["unshare", *_NAMESPACES, "ip", "link", "add", "one", "type", "veth", "peer", "name", "two"],
        capture_output=True,
        text=True,
    )
    return f"no namespaces with a network here: {attempt.stderr.strip()}" if attempt.returncode else ""


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin:/usr/bin:/bin")


class Result(NamedTuple):
    """The end of a command: its exit status, all its output, and whether it was ended for taking too long."""

    status: int
    output: str
    timed_out: bool


class Terminal:
    """A command that runs in a terminal of its own. A thread reads what it writes, so that it never waits."""

    def __init__(self, command: Sequence[str], environment: dict[str, str], answer: str) -> None:
        self._keyboard, terminal = pty.openpty()
        self._process = subprocess.Popen(
            command, stdin=terminal, stdout=terminal, stderr=terminal, env=environment, start_new_session=True
        )
        os.close(terminal)
        os.write(self._keyboard, answer.encode())
        self._read = bytearray()
        self._reader = threading.Thread(target=self._collect, daemon=True)
        self._reader.start()

    def _collect(self) -> None:
        with contextlib.suppress(OSError):  # so Linux says that no process has the terminal any more
            while part := os.read(self._keyboard, 65536):
                self._read += part

    def running(self) -> bool:
        return self._process.poll() is None

    def finish(self, seconds: float) -> Result:
        """Waits for the end of the command, and ends it after so many seconds."""
        timed_out = False
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            timed_out = True
            os.killpg(self._process.pid, signal.SIGKILL)
        status = self._process.wait()
        # A process that was left behind, such as ssh's shared connection, may keep the terminal open.
        self._reader.join(1)
        if not self._reader.is_alive():
            os.close(self._keyboard)
        text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", bytes(self._read).decode(errors="replace"))
        return Result(status, text, timed_out)


@dataclass(frozen=True)
class Machine:
    """A running machine.

    Attributes:
      name, address: its host name and its only IP address.
      folder: holds its files as this computer sees them: `home`, `tmp`, `run`.
      process: the `unshare` that started it.
      init: the process that all its processes end with, as this computer numbers it.
    """

    name: str
    address: str
    folder: Path
    process: subprocess.Popen[str]
    init: psutil.Process

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def run(self, command: str, answer: str = "", seconds: float = 60) -> Result:
        """Runs a command as `start` does, and waits for its end."""
        return self.start(command, answer).finish(seconds)

    def start(self, command: str, answer: str = "") -> Terminal:
        """Starts a shell command in the home of the machine, in a terminal, as a user would after logging in.

        Args:
          command: for bash.
          answer: what the user types.
        """
        home = pwd.getpwuid(0).pw_dir
        environment = {"HOME": home, "USER": "root", "TERM": "dumb", "LANG": "C.UTF-8", "COLUMNS": "110"}
        environment["PATH"] = f"{home}/venv/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
        inside = ["nsenter", f"--target={self.init.pid}", *_NAMESPACES[:4]]
        return Terminal([*inside, "bash", "-c", f"cd; {command}"], environment, answer)

    def processes(self) -> list[str]:
        """Returns the command lines of its processes but sshd. A process without one is a zombie."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                same = os.readlink(f"/proc/{process.pid}/ns/pid") == self._namespace()
                if same and process.name() != "sshd" and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(" ".join(process.cmdline()))
        return found

    def _namespace(self) -> str:
        return os.readlink(f"/proc/{self.init.pid}/ns/pid")

    def files(self) -> set[str]:
        """Returns the paths of the entries of its home and /tmp, and of what these contain but the venv's."""
        found = set()
        for top, hidden in (("home", "~"), ("tmp", "/tmp")):
            root = self.folder / top
            for path in [*root.glob("*"), *root.glob(".ssh/*"), *root.glob("*/*")]:
                found.add(f"{hidden}/{path.relative_to(root)}")
        return found

    def kill(self) -> None:
        """Ends the machine with everything that runs on it, as a power cut does."""
        self.init.kill()
        self.process.wait()


@contextlib.contextmanager
def machines(addresses: Sequence[str]) -> Iterator[tuple[Machine, list[Machine]]]:
    """Yields the user's own machine, and one machine at each of the addresses of one /24 network.

    The user's machine has a key for the login to the others, as ~/.ssh/id_ed25519.
    """
    prefix = addresses[0].rpartition(".")[0]
    with contextlib.ExitStack() as undo:
        folder = Path(tempfile.mkdtemp(prefix="vitc-cluster-"))
        undo.callback(shutil.rmtree, folder, ignore_errors=True)
        desk = _boot(folder, "desk", f"{prefix}.1", core=0, undo=undo)
        _ip(desk, "link add bridge type bridge")
        _ip(desk, f"addr add {desk.address}/24 dev bridge")
        _ip(desk, "link set bridge up")
        key = desk.home / ".ssh" / "id_ed25519"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "user", "-f", key], check=True)
        cores = sorted(os.sched_getaffinity(0))
        others = []
        for number, address in enumerate(addresses):
            name = "head" if number == 0 else f"worker{number}"
            machine = _boot(folder, name, address, cores[number % len(cores)], undo)
            _ip(desk, f"link add to-{name} type veth peer name eth0 netns {machine.init.pid}")
            _ip(desk, f"link set to-{name} master bridge up")
            _ip(machine, f"addr add {address}/24 dev eth0")
            _ip(machine, "link set eth0 up")
            shutil.copy(key.with_suffix(".pub"), machine.home / ".ssh" / "authorized_keys")
            others.append(machine)
        yield desk, others


def _ip(machine: Machine, command: str) -> None:
    # In its network only, because `netns PID` means a process as this computer numbers it.
    inside = ["nsenter", f"--target={machine.init.pid}", "--net"]
    result = subprocess.run([*inside, "ip", *command.split()], capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{machine.name}: ip {command}: {result.stderr}")


def _boot(folder: Path, name: str, address: str, core: int, undo: contextlib.ExitStack) -> Machine:
    """Starts a machine without a network."""
    folder = folder / name
    for part in ("home/.ssh", "tmp", "run/sshd"):
        (folder / part).mkdir(parents=True)
    for part in ("home", "home/.ssh", "run/sshd"):
        (folder / part).chmod(0o700)
    (folder / "tmp").chmod(0o1777)
    (folder / "home" / ".bashrc").touch()
    (folder / "run" / "online").write_text("0\n")
    (folder / "run" / "hosts").write_text(f"127.0.0.1 localhost\n{address} {name}\n")
    (folder / "run" / "sshd_config").write_text(_SSHD)
    host_key = folder / "run" / "host_key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", host_key], check=True)
    process = subprocess.Popen(
        [
            *("setpriv", "--pdeathsig", "KILL", "taskset", "--cpu-list", str(core)),
            *("unshare", *_NAMESPACES, "--mount-proc", "--kill-child=SIGKILL", "bash", "-c", _script(folder)),
        ],
        stdout=subprocess.PIPE,
        stderr=(folder / "log").open("w"),
        stdin=subprocess.DEVNULL,
        text=True,
        cwd="/",
        start_new_session=True,
    )
    undo.callback(_end, process)
    assert process.stdout is not None
    if process.stdout.readline() != "ready\n":
        raise RuntimeError(f"{name} does not start: {(folder / 'log').read_text()}")
    (init,) = psutil.Process(process.pid).children()
    return Machine(name, address, folder, process, init)


def _end(process: subprocess.Popen[str]) -> None:
    """Ends a machine. Its `unshare` passes SIGKILL on by dying."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGKILL)
    process.wait()


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
    python = shlex.quote(str(Path(sys.base_prefix) / "bin" / "python3"))
    link = shlex.quote(next(path for path in sys.path if path.endswith("site-packages")))
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
            *_venv(f"{home}/venv", python, link),
            "echo ready",
            f"exec {_program('sshd')} -D -e -f /run/sshd_config",
        ]
    )


def _venv(venv: str, python: str, link: str) -> list[str]:
    """Returns shell lines that make a virtual environment which links all packages of another one.

    It installs from local files only.
    """
    script = f"#!{venv}/bin/python\\nimport sys\\nfrom ray.scripts.scripts import main\\nsys.exit(main())\\n"
    return [
        # For this setting pip reads "false" as "isolate: false".
        f"{python} -m venv --without-pip {venv}",
        f"echo {link} > $(echo {venv}/lib/python3.*/site-packages)/linked.pth",
        f"printf '[install]\\nno-index = true\\nno-build-isolation = false\\n' > {venv}/pip.conf",
        f"printf '{script}' > {venv}/bin/ray",
        f"chmod +x {venv}/bin/ray",
    ]
