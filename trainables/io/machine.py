"""The part of this machine that the process may use. Only the standard library."""

import contextlib
import os
import platform
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

#: Variables that name another folder for copies, and the limit of all copies together, in GB of 10^9 bytes.
CACHE, CACHE_LIMIT = "VITC_SWEEP_CACHE", "VITC_SWEEP_CACHE_GB"


def cache_folder() -> Path:
    """Returns this machine's folder for copies of large data sets and for files that no other machine needs.

    The variable VITC_SWEEP_CACHE overrides it. It is among the temporary files for a user without a home
    folder, as containers have them.
    """
    path = os.path.expanduser(os.environ.get(CACHE) or "~/.cache/vitc-sweep")
    # A home that is not known stays `~`.
    return Path(tempfile.gettempdir(), "vitc-sweep-cache") if path.startswith("~") else Path(path)


def cache_limit(environment: Mapping[str, str] = os.environ) -> float | None:
    """Returns the limit of all copies in bytes. None if there is none but the disk.

    Raises:
      ValueError: it is no such number.
    """
    if not (text := environment.get(CACHE_LIMIT)):
        return None
    try:
        limit = float(text)
    except ValueError:
        limit = -1.0
    if not 0 < limit < float("inf"):
        raise ValueError(f"must be a number of GB above 0, is {text!r}")
    return limit * 1e9


def processor() -> str:
    """Returns the name of this machine's processor."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def usable_cpus(system: Path = Path("/")) -> int:
    """Returns the number of cores that this process may use, at least 1.

    Counted are the cores of its affinity (taskset, Slurm), up to the quota of its control groups (Docker,
    Kubernetes), rounded to the nearest number.

    Args:
      system: root of the file system.
    """
    has_affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    return max(1, min([cores, *(int(quota + 0.5) for quota in _quotas(system))]))


def _quotas(system: Path) -> Iterator[float]:
    """Yields the quota of each control group that limits this process, in cores."""
    for base, group in _groups(system):
        # In a container the path can be that of the host, while its own group is mounted as the root.
        for folder in (base, *(base / part for part in _paths_down(group))):
            with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
                if (folder / "cpu.max").exists():
                    quota, period = (folder / "cpu.max").read_text("utf-8").split()
                else:
                    quota = (folder / "cpu.cfs_quota_us").read_text("utf-8")
                    period = (folder / "cpu.cfs_period_us").read_text("utf-8")
                # Without a limit it is `max`, which is no number, or -1.
                if float(quota) > 0:
                    yield float(quota) / float(period)


def _groups(system: Path) -> Iterator[tuple[Path, str]]:
    """Yields the mounted root of each hierarchy that can limit cores, and the path of this process in it."""
    try:
        lines = (system / "proc/self/cgroup").read_text("utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if not controllers:
            yield system / "sys/fs/cgroup", group
        elif "cpu" in controllers.split(","):
            yield system / "sys/fs/cgroup/cpu", group
            yield system / "sys/fs/cgroup" / controllers, group


def _paths_down(group: str) -> Iterator[str]:
    parts = [part for part in group.split("/") if part]
    for count in range(1, len(parts) + 1):
        yield "/".join(parts[:count])
