"""The part of this machine that the process may use."""

import os
from pathlib import Path

#: Where the quota of a container's CPU time stands: of version 2 of control groups, and of version 1.
_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_OLD_QUOTA = Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")


def cache_folder() -> Path:
    """Returns this machine's folder for copies of large data sets and for files that no other machine needs.

    The variable VITC_SWEEP_CACHE overrides it.
    """
    return Path(os.environ.get("VITC_SWEEP_CACHE", "~/.cache/vitc-sweep")).expanduser()


def usable_cpus() -> int:
    """Returns the number of CPUs that the process may use: by its affinity and its container's quota."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(affinity, int(_quota(affinity) + 0.5)))


def _quota(otherwise: float) -> float:
    try:
        if _QUOTA.exists():
            quota, period = _QUOTA.read_text("utf-8").split()
        else:
            quota = _OLD_QUOTA.read_text("utf-8").strip()
            period = _OLD_QUOTA.with_name("cpu.cfs_period_us").read_text("utf-8").strip()
        share = float(quota) / float(period)
    # "max" is no number.
    except (OSError, ValueError, ZeroDivisionError):
        return otherwise
    return share if share > 0 else otherwise
