"""Raw data are an input, not a stage: take the snapshot that `params.yaml` names and track it.

An unchanged source costs nothing below; a changed one makes the DAG stale.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from flows.state import Checkout
from tasks.core.errors import DataError

if TYPE_CHECKING:
    from flows.params import Params

RAW = "data/raw"


def acquire(checkout: Checkout, params: Params) -> None:
    """Write `data/raw` from `data.source` (and `teach.path`) and `dvc add` it if it changed.

    Paths in `params.yaml` are relative to the checkout, in a workspace to the one that made it.
    """
    from tasks.modalities.vision.acquire import take

    source, given = _located(checkout, params.data.path), _located(checkout, params.teach.path)
    changed = take(params.data.source, source, given, checkout.root / RAW)
    if changed or not tracked(checkout.root):
        track(checkout)


def _located(checkout: Checkout, path: PurePath | None) -> Path | None:
    return None if path is None else checkout.home / path


def tracked(root: Path) -> bool:
    """DVC knows `data/raw` as it lies there."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    if not (root / f"{RAW}.dvc").is_file():
        return False
    try:
        with Repo(str(root)) as repo:
            return not repo.status(targets=[str(root / f"{RAW}.dvc")])
    except DvcException:
        return False


def track(checkout: Checkout) -> None:
    """`dvc add data/raw`."""
    added = subprocess.run(
        [sys.executable, "-m", "dvc", "--wait-for-lock", "add", "--quiet", RAW],
        cwd=checkout.root,
        env=checkout.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if added.returncode:
        said = [line for line in added.stderr.splitlines() if line.startswith("ERROR: ")]
        reason = said[0][7:] if said else f"exit code {added.returncode}"
        raise DataError(f"{checkout.root / RAW}: DVC cannot track it ({reason})")
