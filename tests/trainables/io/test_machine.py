"""Cores are counted that may be used, as affinity and control groups have it."""

import os
from pathlib import Path

import pytest

from trainables.io.machine import usable_cpus


@pytest.fixture(autouse=True)
def cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """An affinity of eight cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)


def system(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


V2, V1 = "0::/{}\n", "5:memory:/{0}\n4:cpu,cpuacct:/{0}\n1:name=systemd:/{0}\n"
QUOTA, PERIOD = "cpu.cfs_quota_us", "cpu.cfs_period_us"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        # Docker and Kubernetes with a namespace of their own: the group is the root.
        ({"proc/self/cgroup": V2.format(""), "sys/fs/cgroup/cpu.max": "200000 100000"}, 2),
        ({"proc/self/cgroup": V2.format(""), "sys/fs/cgroup/cpu.max": "240000 100000"}, 2),
        ({"proc/self/cgroup": V2.format(""), "sys/fs/cgroup/cpu.max": "150000 100000"}, 2),
        ({"proc/self/cgroup": V2.format(""), "sys/fs/cgroup/cpu.max": "10000 100000"}, 1),
        ({"proc/self/cgroup": V2.format(""), "sys/fs/cgroup/cpu.max": "max 100000"}, 8),
        ({"proc/self/cgroup": V2.format(""), "sys/fs/cgroup/cpu.max": "6400000 100000"}, 8),
        # A service of systemd, whose slice is limited.
        ({"proc/self/cgroup": V2.format("a.slice/b"), "sys/fs/cgroup/a.slice/cpu.max": "300000 100000"}, 3),
        # The first version, mounted by its name or by a link, with the path of the host.
        (
            {
                "proc/self/cgroup": V1.format("docker/abc"),
                f"sys/fs/cgroup/cpu,cpuacct/{QUOTA}": "400000",
                f"sys/fs/cgroup/cpu,cpuacct/{PERIOD}": "100000",
            },
            4,
        ),
        (
            {
                "proc/self/cgroup": V1.format("slurm/job_1"),
                f"sys/fs/cgroup/cpu/{QUOTA}": "-1",
                f"sys/fs/cgroup/cpu/{PERIOD}": "100000",
                f"sys/fs/cgroup/cpu/slurm/job_1/{QUOTA}": "500000",
                f"sys/fs/cgroup/cpu/slurm/job_1/{PERIOD}": "100000",
            },
            5,
        ),
        ({"proc/self/cgroup": V2.format(""), "sys/fs/cgroup/cpu.max": "nonsense"}, 8),
        ({"proc/self/cgroup": V2.format(""), "sys/fs/cgroup/cpu.max": "1 0"}, 8),
    ],
)
def test_the_least_of_affinity_and_quotas_counts(tmp_path, files, expected):
    assert usable_cpus(system(tmp_path, files)) == expected


def test_affinity_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3})
    assert usable_cpus(tmp_path) == 1
