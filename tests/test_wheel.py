"""The wheel that is built of the repository: it has the examples, and works without the repository."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("orchestrator", "trainables", "search_spaces")


def test_the_wheel_has_all_modules_and_the_examples_and_runs_without_the_repository(tmp_path):
    tree = tmp_path / "tree"
    # What a build leaves behind stays out of the repository.
    for name in PACKAGES:
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    built = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*built, "--wheel-dir", tmp_path, tree], check=True, capture_output=True, cwd=tmp_path)
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "installed")
    wanted = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for pattern in ("*.py", "*.yaml", "*.j2")
        for path in (ROOT / package).rglob(pattern)
    }
    assert wanted - names == set()
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator", "examples", "lr_wd"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "installed")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    copied = tmp_path / "search_spaces" / "lr_wd.yaml"
    assert copied.read_bytes() == (ROOT / "search_spaces" / "lr_wd.yaml").read_bytes()
