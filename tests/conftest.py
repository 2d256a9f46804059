"""What several test files share: one CPU thread, examples that do not change, tiny runs and data sets."""

import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Before torch is imported, and for the processes that tests start: results depend on it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import settings
from PIL import Image

settings.register_profile("default", deadline=None, derandomize=True)
settings.load_profile("default")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Has what starts Ray run by one worker of xdist, one after the other: there is one cluster for them."""
    for item in items:
        if item.get_closest_marker("ray"):
            item.add_marker(pytest.mark.xdist_group("ray"))


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder of the tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VITC_SWEEP_CACHE", str(folder := tmp_path_factory.mktemp("cache")))
        yield folder


@pytest.fixture
def run_tree() -> Callable[..., dict[str, Any]]:
    """A run of a few seconds on digits as the tree of its file; settings by dotted path on top."""
    from trainables.presets import set_paths

    def make(**settings: Any) -> dict[str, Any]:
        tree: dict[str, Any] = {
            "model": {"family": "vit", "image_size": 16, "patch_size": 8, "width": 16, "depth": 2},
            "data": "digits",
            "optim": {"name": "adamw", "lr": 2e-3, "weight_decay": 0.1},
            "schedule": {"epochs": 2},
            "batch_size": 128,
        }
        tree["model"] |= {"heads": 2, "mlp_ratio": 2}
        set_paths(tree, {path.replace("__", "."): value for path, value in settings.items()})
        return tree

    return make


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """The address of a Ray cluster of two nodes with a CPU each, for the tests that leave it as it was.

    Starting a cluster takes as long as most of what they run on it.
    """
    from ray.cluster_utils import Cluster

    # Ray lowers the priority of its workers; beside other tests a trial would crawl.
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "include_dashboard": True, "dashboard_host": "127.0.0.1"},
    )
    try:
        cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        yield cluster.address
    finally:
        cluster.shutdown()


@pytest.fixture
def no_pdfs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves the PDFs out of reports, whose fonts cost more than all else of a small one."""
    from orchestrator.report import page

    monkeypatch.setattr(page, "MAX_PDFS", 0)


def png(pixels: Any, mode: str | None = None) -> bytes:
    """An array or image as the bytes of a PNG file."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.asarray(pixels, np.uint8), mode)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def parquet_file(
    path: Path, images: list[bytes | None], labels: list[int], classes: list[str] | None = None
) -> Path:
    """Images and labels in a file of the Hugging Face layout; returns its path."""
    features = {"image": {"_type": "Image"}, "label": {"names": classes, "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})} if classes else None
    image_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", image_type), ("label", pa.int64())], metadata=metadata)
    rows = [{"bytes": data, "path": None} for data in images]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table([pa.array(rows, image_type), pa.array(labels, pa.int64())], schema=schema), path)
    return path


@pytest.fixture
def write_parquet(tmp_path: Path) -> Callable[..., Path]:
    """Writes images and labels in the Hugging Face layout; returns the file."""

    def write(name: str, *content: Any) -> Path:
        return parquet_file(tmp_path / name, *content)

    return write


@pytest.fixture
def png_bytes() -> Callable[..., bytes]:
    """An array or image as the bytes of a PNG file."""
    return png


@pytest.fixture
def cli(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs a command in this process; gives exit code, standard output, standard error."""
    from orchestrator.cli.app import main

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["vitc-sweep", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return call


@pytest.fixture
def shell(cli: Callable[..., tuple[int, str, str]]) -> Callable[..., tuple[int, str]]:
    """Runs a command in this process; gives exit code and all that it prints."""

    def call(*arguments: str | Path) -> tuple[int, str]:
        code, out, err = cli(*arguments)
        return code, out + err

    return call
