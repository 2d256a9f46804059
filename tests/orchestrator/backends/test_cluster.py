import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

CLUSTER = Path(__file__).parents[3] / "cluster"
CONFIGS = sorted(CLUSTER.glob("*.yaml"))


def read(path: Path) -> dict[str, Any]:
    # As `ray up` reads it.
    config: dict[str, Any] = yaml.safe_load(path.read_text())
    return config


def commands(config: dict[str, Any]) -> list[str]:
    return [line for key, lines in config.items() if key.endswith("_commands") for line in lines]


def test_every_file_is_known() -> None:
    others = {
        "Dockerfile",
        "Dockerfile.dockerignore",
        "README.md",
        "aws",
        "kuberay",
        "mlflow",
        "slurm.sbatch",
    }
    assert {path.name for path in CLUSTER.iterdir()} == {"gcp.yaml", "gpu.yaml", "local.yaml", *others}
    assert {path.name for path in (CLUSTER / "aws").iterdir()} == {
        "cache.sh",
        "head.json",
        "trust.json",
        "worker.json",
    }
    readme = (CLUSTER / "README.md").read_text()
    assert all(path.name in readme for path in CONFIGS)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_ray_accepts_the_configuration(path: Path) -> None:
    """What `ray up` does with a file before it first asks the provider anything."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(read(path))
    validate_config(prepared)
    head = prepared["available_node_types"][prepared["head_node_type"]]
    own = prepared["provider"]["type"] == "local"
    assert head["max_workers"] == (len(prepared["provider"]["worker_ips"]) if own else 0)
    # Nothing of the provider's defaults is left, which install a Ray of their own.
    assert set(commands(prepared)) == set(commands(read(path)))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
@pytest.mark.parametrize(
    ("key", "value"),
    [("available_node_types", {"gpu": {"resources": {"GPU": "four"}}}), ("auth", {"usr": "me"})],
)
def test_ray_refuses_what_is_wrong(path: Path, key: str, value: Any) -> None:
    """So that accepting says something."""
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(read(path))
    prepared[key] = value
    with pytest.raises(ValidationError):
        validate_config(prepared)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_machines_get_the_pinned_project_and_a_private_dashboard(path: Path) -> None:
    config = read(path)
    install = [line for line in config["setup_commands"] if "pip install" in line]
    assert install
    assert all("--constraint ~/vitc-sweep/constraints.txt" in line for line in install)
    assert all("--editable ~/vitc-sweep" in line for line in install)
    sources = dict(config["file_mounts"])
    assert sources.pop("~/.ray/auth_token") == "~/.ray/auth_token"
    for target, source in sources.items():
        assert target == f"~/vitc-sweep/{source}"
        assert (CLUSTER.parent / source).exists()
    # All that an installation reads, and nothing as large as a virtual environment or results.
    project = tomllib.loads((CLUSTER.parent / "pyproject.toml").read_text())
    needed = {"pyproject.toml", "constraints.txt", "search_spaces", project["project"]["readme"]}
    # The packages are found by the names of their folders: `orchestrator*`.
    needed |= {name.rstrip("*") for name in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    needed |= set(project["project"]["license-files"])
    assert set(sources.values()) - {"cluster/aws/cache.sh"} == needed
    (start,) = [line for line in config["head_start_ray_commands"] if "ray start --head" in line]
    # Lanes are released through it; it has no password.
    assert "--include-dashboard=true" in start
    assert "--dashboard-host=127.0.0.1" in start
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in start
    starts = [line for line in commands(config) if "ray start" in line]
    assert len(starts) == 2
    assert all("ulimit -n 65536" in line for line in starts)


@pytest.mark.parametrize("name", ["gpu.yaml", "gcp.yaml"])
def test_trials_run_on_gpu_machines_and_not_on_the_head(name: str) -> None:
    config = read(CLUSTER / name)
    types = config["available_node_types"]
    head = types.pop(config["head_node_type"])
    assert head["resources"] == {"CPU": 0}
    for gpu in types.values():
        assert gpu["resources"] == {"CPU": 48, "GPU": 4}
        assert gpu["min_workers"] == 0
        # One image: Python must be the same everywhere.
        for key in ("ImageId", "disks"):
            assert gpu["node_config"].get(key) == head["node_config"].get(key)
    assert sum(gpu["max_workers"] for gpu in types.values()) == config["max_workers"] == 8
    assert config["idle_timeout_minutes"] > 0


def test_rays_second_autoscaler_still_does_not_know_the_head_of_local_machines(tmp_path, monkeypatch):
    """Without a head it starts no worker. If this fails, Ray has fixed it: drop the setting in local.yaml."""
    from types import SimpleNamespace

    from ray.autoscaler._private.local.node_provider import record_local_head_state_if_needed
    from ray.autoscaler._private.util import prepare_config
    from ray.autoscaler.v2.autoscaler import Autoscaler
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig

    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    config = AutoscalingConfig(prepare_config(read(CLUSTER / "local.yaml")), skip_content_hash=True)
    head = config.get_provider_config()["head_ip"]
    # As the monitor on the head makes it, just after `ray up`.
    autoscaler = Autoscaler(
        session_name="session",
        config_reader=SimpleNamespace(get_cached_autoscaling_config=lambda: config),
        gcs_client=SimpleNamespace(address=f"{head}:6379"),
    )
    provider = autoscaler._cloud_instance_provider
    assert head not in provider.get_non_terminated()
    # What version 1 does, which the file so asks for.
    record_local_head_state_if_needed(provider.v1_provider)
    assert head in provider.get_non_terminated()
    [start] = [
        line for line in read(CLUSTER / "local.yaml")["head_start_ray_commands"] if "ray start" in line
    ]
    assert "RAY_enable_autoscaler_v2=0 ~/vitc-sweep/.venv/bin/ray start" in start


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_files_hold_no_tab_and_no_key(path: Path) -> None:
    text = path.read_text()
    assert "\t" not in text
    # Access keys of AWS, private keys, secrets by name.
    assert not re.search(r"A[KS]IA[0-9A-Z]{16}|PRIVATE KEY|secret", text)
