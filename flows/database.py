"""MLflow's database of a checkout, looked at before work starts and before MLflow opens it.

MLflow itself would take seconds to load, wait long for a lock, and call a newer database an older
one. Never writes; a database that is not there yet is none of its business.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

from tasks.core.errors import StillhouseError

PATIENCE = 5.0  # seconds; our own writers take turns, and MLflow's pages read in milliseconds


class TrackingError(StillhouseError):
    """MLflow does not answer, or its database is not one."""


def examine(path: Path) -> None:
    """Raise a `TrackingError` if `path` is there and MLflow here cannot write to it."""
    if not path.is_file():
        return
    if not os.access(path, os.W_OK):  # SQLite would find that out only as it writes
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    try:
        with closing(sqlite3.connect(path, timeout=PATIENCE, isolation_level=None)) as database:
            database.execute("BEGIN IMMEDIATE")  # what a writer needs; given back unused
            tables = database.execute("SELECT name FROM sqlite_master").fetchall()
            versions = ("alembic_version",) in tables
            found = database.execute("SELECT * FROM alembic_version").fetchall() if versions else []
            database.execute("ROLLBACK")
    except sqlite3.Error as error:
        raise TrackingError(f"{path}: {error}; {_remedy(error)}") from None
    for (version,) in found:
        if not _known(version):
            raise TrackingError(
                f"{path}: written by another MLflow (its schema {version} is unknown to the one "
                "installed); install that MLflow, or move the file away: the next run rebuilds it"
            )


def _remedy(error: sqlite3.Error) -> str:
    match getattr(error, "sqlite_errorname", "").split("_")[1:2]:
        case ["BUSY" | "LOCKED"]:
            return "end the process that holds it (`fuser` names it) and run again"
        case ["FULL" | "IOERR"]:
            return "free some space and run again"
    return "move that file away; the next run rebuilds it"


def _known(version: str) -> bool:
    """Whether the installed MLflow has a migration of that name; it is not imported for that."""
    spec = find_spec("mlflow")
    places = (spec.submodule_search_locations if spec else None) or []
    folders = [Path(place) / "store" / "db_migrations" / "versions" for place in places]
    named = [path.name for folder in folders for path in folder.glob("*.py")]
    return not named or any(name.startswith(f"{version}_") for name in named)
