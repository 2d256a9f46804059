"""The folder of a local cluster is short enough for its sockets, or the user hears before anything runs."""

import os
from pathlib import Path

import pytest
from ray._private.utils import validate_socket_filepath

from orchestrator.backends import local
from orchestrator.backends.local import NoFolder, check_temporary_folder, ray_folder

#: A socket of a session, with the largest process id of Linux.
SOCKET = "session_2026-11-26_23-59-59_999999_4194304/sockets/plasma_store"


def test_a_short_folder_is_where_ray_would_put_it(tmp_path):
    for variables in ({"TMPDIR": "/tmp"}, {"RAY_TMPDIR": "/tmp", "TMPDIR": "/" + "x" * 90}, {}):
        assert ray_folder(variables) == "/tmp/ray"


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
def test_another_folder_is_chosen_if_sockets_would_not_fit(tmp_path, variable):
    for length in range(1, 120):
        long = tmp_path / ("x" * length)
        found = ray_folder({variable: str(long)})
        # Ray's own check of what it opens below.
        validate_socket_filepath(f"{found}/{SOCKET}")
        assert found == f"{long}/ray" or len(f"{long}/ray/{SOCKET}") > 104


@pytest.mark.parametrize("value", ["", "relative", "/dev/null/x"])
def test_a_folder_that_is_none_is_not_taken(value):
    assert ray_folder({"TMPDIR": value}).startswith("/tmp/")


def test_without_any_folder_the_message_says_what_to_set(tmp_path):
    system = tmp_path / ("x" * 100)
    with pytest.raises(NoFolder, match="set RAY_TMPDIR to a folder") as error:
        ray_folder({"TMPDIR": "/proc/self"}, system)
    assert "too long a path for sockets" in str(error.value)


def test_a_folder_of_another_user_is_left_alone(monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != "/tmp/ray")
    monkeypatch.setattr(Path, "exists", lambda path: str(path) in ("/", "/tmp", "/tmp/ray"))
    monkeypatch.setattr(Path, "is_dir", lambda path: True)
    assert ray_folder({}) == f"/tmp/ray-{os.getuid()}"


def test_no_temporary_folder_is_said_before_anything_runs(monkeypatch):
    def none() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(local.tempfile, "gettempdir", none)
    with pytest.raises(NoFolder, match="set TMPDIR"):
        check_temporary_folder()
