"""Faults of an SQLite file that MLflow is to write to, found without MLflow, whose import takes seconds."""

import contextlib
import importlib.util
import os
import re
import sqlite3
from pathlib import Path

#: Seconds to wait for another process that writes.
_BUSY_SECONDS = 5.0


def sqlite_fault(path: Path, made: Path | None = None) -> str:
    """Returns why runs could not be written to an SQLite store, else an empty text. Writes nothing.

    Args:
      path: the file; it need not exist.
      made: a folder that will be made before the first run is written, if it does not exist.
    """
    folder = path.parent
    if not folder.is_dir():
        return "" if folder == made else f"there is no folder {folder}"
    if not os.access(folder, os.W_OK):
        return f"{folder} may not be written to"
    if not path.exists():
        return ""
    if not path.is_file():
        return f"{path} is no file"
    if not os.access(path, os.R_OK | os.W_OK):
        return f"{path} may not be written to"
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None)) as store:
            store.execute("BEGIN IMMEDIATE")
            version = _version(store)
            store.execute("ROLLBACK")
    except sqlite3.Error as error:
        # Another run writes at this moment.
        return "" if "locked" in str(error) else f"{path}: {error}"
    if version is not None and version not in (newest := _newest_versions()):
        return (
            f"{path} was written by another version of MLflow (its tables are {version}, and this one's "
            f"{', '.join(newest)}); to bring it up to date:  mlflow db upgrade sqlite:///{path}"
        )
    return ""


def _version(store: sqlite3.Connection) -> str | None:
    """Returns the version of MLflow's tables. None if the file has none yet."""
    if not store.execute("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'").fetchone():
        return None
    row = store.execute("SELECT version_num FROM alembic_version").fetchone()
    return str(row[0]) if row else None


def _newest_versions() -> list[str]:
    """Returns the versions of tables that the installed MLflow makes: those that no other follows."""
    spec = importlib.util.find_spec("mlflow")
    [root] = spec.submodule_search_locations if spec and spec.submodule_search_locations else [""]
    versions, followed = [], set()
    for file in Path(root, "store", "db_migrations", "versions").glob("*.py"):
        text = file.read_text("utf-8")
        versions += re.findall(r'^revision\s*=\s*["\'](\w+)', text, re.MULTILINE)
        followed |= set(re.findall(r'^down_revision\s*=\s*["\'](\w+)', text, re.MULTILINE))
    return [version for version in versions if version not in followed]
