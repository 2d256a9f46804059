"""The manifests for Kubernetes and the image, against KubeRay's schema. No test here reaches a Kubernetes."""

import copy
import itertools
import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from orchestrator.cli.options import asked_file

ROOT = Path(__file__).parents[3]
CLUSTER = ROOT / "cluster"
SCHEMAS = json.loads((ROOT / "tests/fixtures/kuberay/schemas.json").read_text())["schemas"]


def manifest(name: str) -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load((CLUSTER / "kuberay" / f"{name}.yaml").read_text())
    return read


CLUSTER_SPEC = manifest("cluster")["spec"]
PODS = [
    group["template"]["spec"] for group in [CLUSTER_SPEC["headGroupSpec"], *CLUSTER_SPEC["workerGroupSpecs"]]
]
WORKERS = CLUSTER_SPEC["workerGroupSpecs"]


@pytest.mark.parametrize("name", ["cluster", "job"])
def test_kuberay_accepts_the_manifest(name: str) -> None:
    tree = manifest(name)
    faults = Draft202012Validator(SCHEMAS[tree["kind"]]).iter_errors(tree)
    assert [f"{fault.json_path}: {fault.message}" for fault in faults] == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("autoscalerOptions", "version"), "v3"),
        (("headGroupSpec", "rayStartParams", "num-cpus"), 0),
        (("workerGroupSpecs", 0, "maxReplica"), 8),
        (
            ("workerGroupSpecs", 0, "template", "spec", "containers", 0, "resources", "limits", "cpu"),
            "8 cores",
        ),
        (("workerGroupSpecs", 0, "template", "spec", "terminationGracePeriodSeconds"), "2m"),
    ],
    ids=str,
)
def test_the_schema_refuses_what_is_wrong(path: tuple[Any, ...], value: Any) -> None:
    """So that accepting says something."""
    tree = copy.deepcopy(manifest("cluster"))
    inner = tree["spec"]
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    assert list(Draft202012Validator(SCHEMAS["RayCluster"]).iter_errors(tree))


def test_a_job_has_the_machines_of_a_cluster() -> None:
    assert manifest("job")["spec"]["rayClusterSpec"] == CLUSTER_SPEC


def test_the_job_asks_for_what_the_groups_can_give() -> None:
    job = manifest("job")["spec"]
    words = shlex.split(job["entrypoint"])
    assert words[:2] == ["vitc-sweep", "run"]
    sets = [word for before, word in itertools.pairwise(words) if before == "--set"]
    # As the command reads them, in the image's folder.
    resources = asked_file(ROOT / words[2], sets, None).sweep.resources
    gpus = sum(g["maxReplicas"] * int(limits(g)["nvidia.com/gpu"]) for g in WORKERS)
    assert resources.lanes == gpus
    assert resources.gpus_per_worker == 1
    assert words[words.index("--address") + 1] == "auto"
    assert words[words.index("--out") + 1].startswith("/results/")
    assert job["shutdownAfterJobFinishes"]
    assert job["backoffLimit"] > 0


def limits(group: dict[str, Any]) -> dict[str, str]:
    found: dict[str, str] = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    return found


def test_trials_run_on_gpu_pods_and_not_on_the_head() -> None:
    assert CLUSTER_SPEC["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    assert "nvidia.com/gpu" not in limits(CLUSTER_SPEC["headGroupSpec"])
    assert len({group["groupName"] for group in WORKERS}) == len(WORKERS)
    for group in WORKERS:
        pod = group["template"]["spec"]
        assert int(limits(group)["cpu"]) >= int(limits(group)["nvidia.com/gpu"]) >= 1
        assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in pod["tolerations"]
        assert group["minReplicas"] == group["replicas"] == 0
    assert CLUSTER_SPEC["enableInTreeAutoscaling"]
    assert CLUSTER_SPEC["autoscalerOptions"]["version"] == "v2"
    assert CLUSTER_SPEC["autoscalerOptions"]["idleTimeoutSeconds"] > 0


def test_a_worker_has_time_to_drain_before_it_is_killed() -> None:
    for group in WORKERS:
        pod = group["template"]["spec"]
        environment = {entry["name"]: entry["value"] for entry in pod["containers"][0]["env"]}
        drain = float(environment["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
        # Ray kills its processes after the drain, and that takes seconds, too.
        assert pod["terminationGracePeriodSeconds"] >= drain + 30


def test_all_pods_share_the_results_and_one_image() -> None:
    claim = manifest("results")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for pod in PODS:
        [container] = pod["containers"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
        assert mounts["/results"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        assert mounts["/dev/shm"]["emptyDir"]["medium"] == "Memory"
        # A ReadWriteMany volume belongs to root, unless the group of the files is set.
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["fsGroup"] == 1000
    assert len({pod["containers"][0]["image"] for pod in PODS}) == 1


def test_the_token_needs_the_version_of_ray_that_is_installed() -> None:
    assert CLUSTER_SPEC["authOptions"] == {"mode": "token"}
    [pinned] = re.findall(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert CLUSTER_SPEC["rayVersion"] == pinned


def test_the_image_holds_the_pinned_project_and_a_user_of_its_own() -> None:
    lines = (CLUSTER / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    copied = {word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = {"pyproject.toml", "constraints.txt", "search_spaces", project["project"]["readme"]}
    needed |= {name.rstrip("*") for name in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    needed |= set(project["project"]["license-files"])
    assert copied == needed
    ignore = (CLUSTER / "Dockerfile.dockerignore").read_text().splitlines()
    assert {line.removeprefix("!") for line in ignore if line.startswith("!")} == needed
    assert all(
        "--constraint constraints.txt" in line for line in lines if "install" in line and "boto3" in line
    )
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users == ["sweep"]
    assert any(
        "useradd" in line and f"--uid {PODS[0]['securityContext']['runAsUser']} sweep" in line
        for line in lines
    )
