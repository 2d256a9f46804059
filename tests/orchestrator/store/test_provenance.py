"""The commit of code whose repository was left behind."""

import shutil
import subprocess
import sys

import pytest

from orchestrator.store import provenance
from trainables.errors import UserError

NOTHING = {"commit": "", "changed": ""}


def git(folder, *arguments):
    config = ("-c", "user.name=a", "-c", "user.email=a@b")
    done = subprocess.run(
        ["git", *config, *arguments], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A repository with the two packages and a file for a cluster."""
    root = (tmp_path / "here").resolve()
    for file in ("orchestrator/cli/a.py", "trainables/b.py", "cluster/local.yaml"):
        (root / file).parent.mkdir(parents=True)
        (root / file).write_text(f"# {file}\n")
    (root / ".gitignore").write_text("commit.json\n__pycache__\n")
    git(root, "init")
    git(root, "add", ".")
    git(root, "commit", "-m", "first")
    monkeypatch.setattr(provenance, "source_root", lambda: root)
    return root


@pytest.fixture
def shipped(tree, tmp_path, monkeypatch):
    """Returns a function that copies the packages alone, as `ray up` does, and makes the copy what runs."""

    def ship():
        there = (tmp_path / "there").resolve()
        for package in provenance.PACKAGES:
            shutil.copytree(tree / package, there / package, ignore=shutil.ignore_patterns("__pycache__"))
        monkeypatch.setattr(provenance, "source_root", lambda: there)
        return there

    return ship


def test_the_commit_travels_with_the_packages(tree, shipped):
    commit = git(tree, "rev-parse", "HEAD")
    assert provenance.write_commit() == f"orchestrator/commit.json: {commit[:12]}"
    there = shipped()
    # Python writes these when it first runs.
    (there / "trainables" / "__pycache__").mkdir()
    (there / "trainables" / "__pycache__" / "b.pyc").write_bytes(b"x")
    assert provenance._code() == {"commit": commit, "changed": ""}


def test_changes_are_those_of_the_packages_and_not_of_the_addresses_of_a_cluster(tree, shipped):
    (tree / "cluster" / "local.yaml").write_text("head_ip: 192.0.2.1\n")
    assert provenance._code()["changed"] == ""
    (tree / "trainables" / "b.py").write_text("changed\n")
    here = provenance._code()
    assert len(here["changed"]) == 8
    assert provenance.write_commit().endswith(" with changes")
    shipped()
    assert provenance._code() == here


def test_code_that_was_changed_after_its_commit_was_written_down_is_of_unknown_commit(tree, shipped):
    provenance.write_commit()
    (tree / "orchestrator" / "cli" / "a.py").write_text("changed\n")
    shipped()
    assert provenance._code() == NOTHING


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"digest": 1, "commit": "a"}'])
def test_a_damaged_file_is_no_commit(tree, shipped, text):
    (tree / "orchestrator" / "commit.json").write_text(text)
    shipped()
    assert provenance._code() == NOTHING


def test_a_repository_is_believed_before_the_file(tree):
    (tree / "orchestrator" / "commit.json").write_text("{}")
    assert provenance._code()["commit"] == git(tree, "rev-parse", "HEAD")


def test_without_a_repository_there_is_nothing_to_write_down(shipped):
    there = shipped()
    with pytest.raises(UserError, match="not the root of a git repository"):
        provenance.write_commit()
    assert not (there / "orchestrator" / "commit.json").exists()


def test_the_command_of_the_readme_says_what_is_wrong_and_nothing_else(tmp_path):
    from orchestrator.store.provenance import source_root

    for package in provenance.PACKAGES:
        shutil.copytree(
            source_root() / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.store.provenance"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
