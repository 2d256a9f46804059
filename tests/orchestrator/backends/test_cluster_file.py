"""`vitc-sweep cluster check`: faults of files for `ray up`, all at once, before anything is made."""

import gzip
import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from orchestrator.backends.cluster_file import AWS_GPU_MACHINES, ClusterFileError, check

ROOT = Path(__file__).parents[3]
CLUSTER = ROOT / "cluster"

#: Values in the place of those that cluster/ marks CHANGE.
FILLED = {
    "ami-CHANGE": "ami-0123456789abcdef0",
    "CHANGE-bucket": "bucket",
    "CHANGE-project": "project",
    "projects/CHANGE/global/images/CHANGE": "projects/p/global/images/i",
    "192.0.2.": "10.0.0.",
}


@pytest.fixture
def home(tmp_path):
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("0" * 64)
    return tmp_path


def filled(name: str) -> str:
    text = (CLUSTER / name).read_text()
    for placeholder, value in FILLED.items():
        text = text.replace(placeholder, value)
    return text


def faults(text: str, home: Path) -> str:
    path = home / "file.yaml"
    path.write_text(text)
    with pytest.raises(ClusterFileError) as error:
        check(path, home, ROOT)
    return str(error.value).replace(str(path), "file.yaml")


def changed(name: str, *keys, value) -> str:
    """A filled file with one value changed; None takes the key away."""
    config = yaml.safe_load(filled(name))
    # Anchors stand for the same object, and only one place is to change.
    config = json.loads(json.dumps(config))
    place = config
    for key in keys[:-1]:
        place = place[key]
    if value is None:
        del place[keys[-1]]
    else:
        place[keys[-1]] = value
    return yaml.safe_dump(config, sort_keys=False)


@pytest.mark.parametrize("name", ["gpu.yaml", "gcp.yaml", "local.yaml"])
def test_a_file_that_is_filled_in_has_no_fault(name, home):
    (home / name).write_text(filled(name))
    assert check(home / name, home, ROOT) == {"gpu": "aws", "gcp": "gcp", "local": "local"}[name[:-5]]


@pytest.mark.parametrize("name", ["gpu.yaml", "gcp.yaml", "local.yaml"])
def test_what_is_marked_change_is_what_is_refused(name, home):
    text = (CLUSTER / name).read_text()
    said = faults(text, home)
    # A mark stands on its line, or above it where a comment does not fit.
    marked = {
        at if line.split("#")[0].strip() else at + 1
        for at, line in enumerate(text.splitlines(), 1)
        if re.search(r"# CHANGE\b", line)
    }
    named = {int(line) for line in re.findall(r"file.yaml:(\d+):", said)}
    assert len(marked) == len(named)
    # Two lines of comment may follow the mark.
    assert all(any(0 <= one - mark <= 2 for mark in marked) for one in named)


def run(file: str, home: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "orchestrator", "cluster", "check", file],
        cwd=ROOT,
        env={**os.environ, "HOME": str(home), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


def test_the_message_for_a_change_that_is_left_and_a_missing_token(tmp_path):
    done = run("cluster/gpu.yaml", tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert (
        re.sub(r":\d+:\d+:", ":LINE:", done.stderr)
        == """\
cluster/gpu.yaml: 3 faults
  cluster/gpu.yaml:LINE: available_node_types.head.node_config.ImageId: must be an image of your region, \
such as ami-0123456789abcdef0 (got 'ami-CHANGE')
  cluster/gpu.yaml:LINE: file_mounts.~/.ray/auth_token: does not exist on this machine; run \
`ray get-auth-token --generate` (got '~/.ray/auth_token')
  cluster/gpu.yaml:LINE: head_setup_commands.0: holds CHANGE where a value of yours must stand \
(got 'VITC_SWEEP_STATES=s3://CHANGE-bucket/states')
"""
    )
    places = [int(line) for line in re.findall(r"gpu.yaml:(\d+):", done.stderr)]
    lines = (CLUSTER / "gpu.yaml").read_text().splitlines()
    assert [lines[at - 1].split()[0] for at in places] == ["ImageId:", "~/.ray/auth_token:", "-"]


def test_a_file_without_faults_says_what_was_not_asked(home):
    (home / "file.yaml").write_text(filled("gpu.yaml"))
    done = run(str(home / "file.yaml"), home)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(
        "no fault found. aws was not asked: image, quota and rights show when it starts.\n"
    )
    assert done.stderr == ""


TYPES = "available_node_types"


@pytest.mark.parametrize(
    ("name", "keys", "value", "expected"),
    [
        ("gpu", (TYPES, "gpu", "node_config", "ImageId"), None, "CUDA 11.2 (got nothing)"),
        ("gpu", (TYPES, "gpu", "node_config", "ImageId"), "", "CUDA 11.2 (got '')"),
        ("gpu", (TYPES, "head", "node_config", "ImageId"), "ami-00000000000000000", "must be an image"),
        ("gpu", (TYPES, "head", "node_config", "IamInstanceProfile"), None, "a role that may do all"),
        ("gpu", (TYPES, "gpu", "node_config", "IamInstanceProfile"), None, "cannot read s3://"),
        ("gpu", (TYPES, "gpu_on_demand", "node_config", "IamInstanceProfile"), {}, "vitc-sweep-worker"),
        ("gpu", (TYPES, "gpu", "node_config", "MetadataOptions"), None, "HttpTokens: required"),
        ("gpu", (TYPES, "gpu", "node_config", "MetadataOptions"), {"HttpTokens": "optional"}, "optional"),
        ("gpu", (TYPES, "gpu", "resources"), {"CPU": 48, "GPU": 8}, "must be {CPU: 48, GPU: 4}, of g6.12x"),
        ("gpu", (TYPES, "gpu", "resources", "GPU"), 0.5, "must be a whole number"),
        ("gpu", (TYPES, "gpu", "resources", "GPU"), -1, "must be a whole number"),
        ("gcp", (TYPES, "gpu", "resources", "CPU"), 3, "must be at least 4"),
        ("gcp", (TYPES, "gpu", "resources"), {"CPU": 0}, "must be at least 1"),
        ("gpu", (TYPES, "gpu", "max_workers"), 9, "must be at most that of all machines, which is 8"),
        ("gpu", (TYPES, "gpu", "min_workers"), 7, "must be at most max_workers, which is 6"),
        ("gpu", ("provider", "region"), "eu-west-1", "must name zones of the region, such as eu-west-1a"),
        ("gcp", ("provider", "region"), "europe-west4", "such as europe-west4-a"),
        ("gcp", (TYPES, "gpu", "node_config", "serviceAccounts"), None, "cannot read gs://"),
        ("gpu", ("head_setup_commands",), [], "must export VITC_SWEEP_STATES=s3://"),
        ("gcp", ("head_setup_commands", 0), "export VITC_SWEEP_STATES=s3://b/x", "STATES=gs://"),
        *((name, ("file_mounts", "~/.ray/auth_token"), None, "no token") for name in ("gpu", "gcp", "local")),
        ("local", ("worker_start_ray_commands", 1), "ray start --address=$RAY_HEAD_IP:6379", "RAY_AUTH_MODE"),
        (
            "local",
            ("head_start_ray_commands", 1),
            "RAY_AUTH_MODE=token true; ray start --head",
            "RAY_AUTH_MODE",
        ),
        ("local", ("head_start_ray_commands",), ["ray stop"], "no `ray start`"),
        ("local", ("file_mounts", "~/vitc-sweep/README.md"), "READYOU.md", "run in the project's folder"),
        # Of Ray itself.
        ("local", ("auth", "ssh_usr"), "me", "Ray refuses it: Additional properties"),
        ("gpu", ("head_node_type",), "tail", "Ray refuses it: ValueError"),
        ("gcp", ("max_workers",), "eight", "Ray refuses it: 'eight' is not of type 'integer'"),
        ("gpu", ("provider", "region"), None, "provider.region: must be the region of"),
    ],
)
def test_a_fault_is_named(name, keys, value, expected, home):
    said = faults(changed(f"{name}.yaml", *keys, value=value), home)
    assert expected in said
    # With another head, the former one counts as a worker without a CPU.
    if keys != ("head_node_type",):
        assert said.startswith("file.yaml: 1 fault\n"), said


def test_another_provider_is_refused(home):
    said = faults(changed("local.yaml", "provider", "type", value="azure"), home)
    assert "provider.type: must be one of aws, gcp, local" in said


def test_a_file_of_another_kind_is_refused(home):
    for text in ("question: Why?\n", "- 1\n", "text\n", ""):
        assert "provider.type: must be one of" in faults(text, home)


@pytest.mark.skipif(find_spec("moto") is None, reason="not installed: moto")
def test_machines_of_aws_have_the_gpus_that_aws_says():
    import moto

    place = Path(moto.__file__).parent / "ec2" / "resources" / "instance_types.json.gz"
    types = json.loads(gzip.decompress(place.read_bytes()))
    for name, machine in AWS_GPU_MACHINES.items():
        gpus = sum(gpu["Count"] for gpu in types[name]["GpuInfo"]["Gpus"])
        assert machine == (types[name]["VCpuInfo"]["DefaultVCpus"], gpus), name


# ------------------------------------------------------------------------------------------- cache.sh


@pytest.mark.parametrize(
    ("disks", "mounted", "made"),
    [
        (
            {"nvme0n1": ("Elastic Block Store", "/"), "nvme1n1": ("NVMe Instance Storage", "")},
            False,
            "nvme1n1",
        ),
        (
            {
                "nvme1n1": ("NVMe Instance Storage", "/opt/dlami/nvme"),
                "nvme2n1": ("NVMe Instance Storage", ""),
            },
            False,
            "nvme2n1",
        ),
        ({"nvme0n1": ("Elastic Block Store", "/")}, False, None),
        ({"nvme1n1": ("NVMe Instance Storage", "")}, True, None),
    ],
)
def test_the_cache_is_on_an_unused_disk_of_the_machine(disks, mounted, made, tmp_path):
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    cache = tmp_path / "cache"
    lists = "\n".join(
        f"/dev/{name} Amazon\\\\x20EC2\\\\x20{model.replace(' ', chr(92) * 2 + 'x20')}"
        for name, (model, _) in disks.items()
    )
    one = "\n".join(f'/dev/{name}) echo "{name} {where}";;' for name, (_, where) in disks.items())
    programs = {
        "mountpoint": f"exit {0 if mounted else 1}",
        "lsblk": f'case "$2" in NAME,MODEL) printf "{lists}\n";; *) case "$3" in {one} esac;; esac',
        "sudo": f'echo "$@" >> {tmp_path}/done; case $1 in mkdir) "$@";; esac',
    }
    if mounted:
        cache.mkdir()
    for name, body in programs.items():
        (bin_folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (bin_folder / name).chmod(0o755)
    done = subprocess.run(
        ["sh", CLUSTER / "aws" / "cache.sh", cache],
        env={"PATH": f"{bin_folder}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "done").read_text().splitlines()
    disks_made = [line.split()[-1] for line in lines if line.startswith("mkfs")]
    assert disks_made == ([f"/dev/{made}"] if made else [])
    assert [line for line in lines if line.startswith("mount ")] == (
        [f"mount /dev/{made} {cache}"] if made else []
    )
    assert lines[-1].startswith("chown ")
