"""Raw data are an input, not a stage: take the snapshot that `params.yaml` names and track it.

An unchanged source costs nothing below; a changed one makes the DAG stale.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from flows.dag import opened
from flows.freshness import date
from flows.state import Checkout
from tasks.core.errors import DataError
from tasks.core.params import read

if TYPE_CHECKING:
    from flows.params import Params
    from tasks.core.tables import Schema
    from tasks.ingest.params import DataParams
    from tasks.modalities.vision.snapshot import Kind
    from tasks.modalities.vision.teachers import Given
    from tasks.teach.params import TeachParams

RAW = "data/raw"


def acquire(checkout: Checkout, params: Params) -> None:
    """Write `data/raw` from `data.source` (and `teach.path`) and `dvc add` it if it changed.

    Paths in `params.yaml` are relative to the checkout, in a workspace to the one that made it.
    Nothing is replaced unless DVC can track it, the data can be learned from, a given teacher can
    teach them and a student can start from the former weights that `distill.warm_start` names.
    """
    from flows.warm_start import former
    from tasks.modalities.vision.acquire import take

    read(checkout.root / "dvc.yaml")
    known = tracked(checkout.root)
    source, given = _located(checkout, params.data.path), _given(checkout, params.teach)
    changed = take(
        params.data.source,
        source,
        given,
        checkout.root / RAW,
        _fits,
        params.data.classes,
        _unlabelled(checkout, params.data),
        former(checkout, params),
        params.data.subgroups,
    )
    if changed or not known:
        track(checkout)


def _unlabelled(checkout: Checkout, data: DataParams) -> dict[Kind, Path]:
    """Where images without labels lie, by what they are for."""
    named: dict[Kind, Path | None] = {
        "transfer": _located(checkout, data.transfer),
        "strangers": _located(checkout, data.strangers),
    }
    return {kind: path for kind, path in named.items() if path is not None}


def _given(checkout: Checkout, teach: TeachParams) -> list[Given]:
    """The teacher that is given, or the members of an ensemble; none where one is trained."""
    from tasks.modalities.vision.teachers import Given

    if teach.source == "train" or teach.source == "ensemble":
        return [
            Given(member.source, checkout.home / member.path, f"members/{number}")
            for number, member in enumerate(teach.members)
        ]
    assert teach.path is not None  # noqa: S101 - the `teach` section holds that
    return [Given(teach.source, checkout.home / teach.path)]


def _fits(given: Given, data: Schema) -> None:
    """Whether a given teacher can teach the data: what the stage would find only after others."""
    from tasks.teach.given import read_given

    spec = read_given(given.path, given.source, data)
    if spec.created:
        date(spec.created, f"{given.path / 'spec.json'}: created")


def _located(checkout: Checkout, path: PurePath | None) -> Path | None:
    return None if path is None else checkout.home / path


def tracked(root: Path) -> bool:
    """DVC knows `data/raw` as it lies there."""
    with opened(root) as repo:
        path = root / f"{RAW}.dvc"
        return path.is_file() and not repo.status(targets=[str(path)])


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
        raise DataError(
            f"{checkout.root / RAW}: DVC cannot track it ({reason}); `dvc add {RAW}` says more"
        )
