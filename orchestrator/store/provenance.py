"""The code, versions and machine that produced a result."""

import contextlib
import hashlib
import importlib.resources
import json
import os
import platform
import subprocess
import sys
import time
import zlib
from importlib import metadata
from pathlib import Path
from typing import Any

from trainables.errors import UserError
from trainables.io.json import parse_json
from trainables.io.machine import processor, usable_cpus


def provenance() -> dict[str, Any]:
    """Returns code, versions and machine, for record.json."""
    import torch

    from trainables.gpu import driver_version

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
            "driver": driver_version(),
            "cuda": torch.version.cuda or "",
        },
    }


def source_root() -> Path:
    """Returns the folder that holds the packages `orchestrator` and `trainables`."""
    return Path(str(importlib.resources.files("orchestrator"))).resolve().parent


#: The packages whose code decides the results of a run.
PACKAGES = ("orchestrator", "trainables")


def _code() -> dict[str, str]:
    """Returns the commit of the source tree, and a CRC-32 of the uncommitted changes of the packages.

    Without a repository, they are what `write_commit` has written, if the code is still the same.
    """
    root = source_root()
    return _of_repository(root) or _written_down(root) or {"commit": "", "changed": ""}


def _of_repository(root: Path) -> dict[str, str] | None:
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
            changed = git("diff", "--no-ext-diff", "--no-color", "HEAD", "--", *PACKAGES)
            return {"commit": commit, "changed": f"{zlib.crc32(changed.encode()):08x}" if changed else ""}
    return None


def _commit_file(root: Path) -> Path:
    """Returns the path of the file that names the commit where the repository is not shipped.

    It is in a package, so that it travels with the code.
    """
    return root / PACKAGES[0] / "commit.json"


def _written_down(root: Path) -> dict[str, str] | None:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        found = parse_json(_commit_file(root).read_text("utf-8"))
        # Code that was changed since is not what that commit holds.
        if found["digest"] == _digest(root):
            return {"commit": str(found["commit"]), "changed": str(found["changed"])}
    return None


def _digest(root: Path) -> str:
    """Returns the SHA-256 of all files of the packages but bytecode and the file with the commit."""
    digest = hashlib.sha256()
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts and path != _commit_file(root):
                content = hashlib.sha256(path.read_bytes()).hexdigest()
                digest.update(f"{path.relative_to(root).as_posix()} {content}\n".encode())
    return digest.hexdigest()


def write_commit() -> str:
    """Writes down the commit, for machines that get the code without its repository. Returns a message."""
    root = source_root()
    if (code := _of_repository(root)) is None:
        raise UserError(f"{root} is not the root of a git repository, so there is no commit to write down")
    path = _commit_file(root)
    path.write_text(json.dumps(code | {"digest": _digest(root)}, indent=2) + "\n", encoding="utf-8")
    return f"{path.relative_to(root)}: {code['commit'][:12]}" + (" with changes" if code["changed"] else "")


if __name__ == "__main__":
    try:
        print(write_commit())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
