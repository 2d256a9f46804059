"""A cloud on this machine: a provider for Ray's autoscaler, and a cluster whose machines it launches.

Not Ray's `AutoscalingCluster`, which stops every Ray of the machine, and needs a file that its wheel lacks.
"""

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FakeMultiNodeProvider
from ray.autoscaler.node_launch_exception import NodeLaunchException
from ray.cluster_utils import Cluster

from tests.support.ports import free_port

ROOT = Path(__file__).parents[2]

#: What the cloud answers to a launch while it has no capacity.
CATEGORY, DESCRIPTION = "InsufficientInstanceCapacity", "There is no Spot capacity in zone b"


class Provider(FakeMultiNodeProvider):
    """Launches machines once a file is there. Until then each launch fails."""

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        [address] = [word.partition("=")[2] for word in sys.argv if word.startswith("--gcs-address=")]
        super().__init__(provider_config | {"gcs_address": address}, cluster_name)

    def create_node_with_resources_and_labels(self, *arguments: Any) -> None:
        """Launches machines, or raises what a cloud without capacity does."""
        if not Path(self.provider_config["opens"]).exists():
            raise NodeLaunchException(CATEGORY, DESCRIPTION, None)
        super().create_node_with_resources_and_labels(*arguments)


@contextlib.contextmanager
def cloud(folder: Path, second: bool) -> Iterator[tuple[str, Path]]:
    """Starts a head without CPUs, and an autoscaler that knows one type of machine, `worker` with a CPU.

    Args:
      folder: for the autoscaler's configuration.
      second: whether it is Ray's second autoscaler.

    Yields:
      The address, and the file whose appearance lets launches succeed.
    """
    opens, config = folder / "opens", folder / "autoscaling.json"
    lists = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands")
    lists += ("head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files")
    tree = {
        "cluster_name": "cloud",
        "max_workers": 1,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 10,
        "provider": {
            "type": "external",
            "module": "tests.support.fake_cloud.Provider",
            "opens": str(opens),
            "launch_multiple": True,
            "disable_node_updaters": True,
            "head_node_id": FAKE_HEAD_NODE_ID,
        },
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "available_node_types": {
            "ray.head.default": {"resources": {}, "node_config": {}, "max_workers": 0},
            "worker": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 1},
        },
        "head_node_type": "ray.head.default",
        **{name: [] for name in lists},
    }
    config.write_text(json.dumps(tree))
    head_only = {
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_enable_autoscaler_v2": str(int(second)),
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        "PYTHONPATH": str(ROOT),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in head_only.items():
            patch.setenv(name, value)
        dashboard = {"include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": free_port()}
        args = {"num_cpus": 0, "autoscaling_config": str(config)} | dashboard
        cluster = Cluster(initialize_head=True, head_node_args=args)
    try:
        yield cluster.address, opens
    finally:
        cluster.shutdown()
