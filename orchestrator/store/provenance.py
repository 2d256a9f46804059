"""The code, versions and machine that produced a result."""

import contextlib
import importlib.resources
import os
import platform
import subprocess
import sys
import time
import zlib
from importlib import metadata
from pathlib import Path
from typing import Any

from orchestrator.cost.devices import processor
from trainables.io.machine import usable_cpus


def provenance() -> dict[str, Any]:
    """Returns code, versions and machine, for record.json."""
    import torch

    packages = ("vitc-sweep", "torch", "torchvision", "timm", "ray", "mlflow", "pyarrow", "numpy", "scipy")
    versions = {}
    for package in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "code": _code(),
        "python": sys.version.split()[0],
        "versions": versions,
        "machine": {
            "system": platform.platform(),
            "cpus": usable_cpus(),
            "processor": processor(),
            "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        },
    }


def source_root() -> Path:
    """Returns the folder that holds the packages `orchestrator` and `trainables`."""
    return Path(str(importlib.resources.files("orchestrator"))).resolve().parent


def _code() -> dict[str, str]:
    """Returns the commit of the source tree, and a CRC-32 of the uncommitted changes."""
    root = source_root()
    # A hook of another repository sets GIT_DIR, which git believes more than the folder.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        done = subprocess.run(command, capture_output=True, timeout=20, env=environment)
        # Changes may be in any encoding.
        return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else ""

    with contextlib.suppress(OSError, subprocess.SubprocessError):
        # Installed in a folder of the user's own repository, the code is not what that commit holds.
        top = git("rev-parse", "--show-toplevel")
        if top and Path(top).resolve() == root and (commit := git("rev-parse", "HEAD")):
            changed = git("diff", "--no-ext-diff", "--no-color", "HEAD")
            return {"commit": commit, "changed": f"{zlib.crc32(changed.encode()):08x}" if changed else ""}
    return {"commit": "", "changed": ""}
