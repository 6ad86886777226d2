"""Taking raw data: a data set, a folder, files; perhaps unlabelled images, a teacher, a warm start.

Runs outside the DAG, before it; writes `data/raw`, which DVC tracks. Every flaw of a source is
found here, before anything is written.
"""

from __future__ import annotations

import filecmp
import hashlib
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from tasks.core.errors import DataError
from tasks.core.files import blamed_on
from tasks.core.tables import Schema
from tasks.modalities.vision.decoding import size
from tasks.modalities.vision.snapshot import (
    Images,
    Kind,
    Pixels,
    checked,
    finite,
    write_snapshot,
)
from tasks.modalities.vision.sources.digits import digits
from tasks.modalities.vision.sources.folder import labelled_folder, unlabelled_folder
from tasks.modalities.vision.sources.idx import idx_files
from tasks.modalities.vision.sources.parquet import labelled_parquet, unlabelled_parquet
from tasks.modalities.vision.teachers import Given, copy_teachers

Fits = Callable[[Given, Schema], object]


def take(
    source: str,
    path: Path | None,
    teachers: Sequence[Given] | None,
    folder: Path,
    fits: Fits | None = None,
    classes: tuple[str, ...] | None = None,
    unlabelled: Mapping[Kind, Path] | None = None,
    start: Callable[[Path, Schema], None] | None = None,
    subgroups: Sequence[str] = (),
) -> bool:
    """Write the snapshot of `source` (and given teachers) to `folder`; True if anything changed.

    `source`: "digits", "images" (a folder with one sub-folder per class), "parquet", or "idx" (a
    folder of MNIST's four files, whose labels `classes` names). `unlabelled`: a folder or a Parquet
    of images without labels, by what they are for. `fits` sees a teacher and the data, and raises
    if the one cannot teach the other; `subgroups` names further columns of a Parquet; `start`
    writes former weights to the folder that it is given, or raises.
    """
    images = _labelled(source, path, classes, subgroups)
    name = "scikit-learn digits" if path is None else f"{source} {path.name}"
    checked(images, str(path or name))
    if images.test is None:  # what is published stays as it is: validate sets such rows aside
        unambiguous(images, str(path or name))
    value_range = (0.0, 16.0) if source == "digits" else _range(images.pixels)
    more = {
        kind: _unlabelled(kind, path, images, value_range)
        for kind, path in (unlabelled or {}).items()
    }
    with blamed_on(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        try:
            info = write_snapshot(fresh, images, value_range, name, more)
            copy_teachers(teachers or (), fresh / "teacher")
            for teacher in teachers or ():
                if fits is not None:
                    fits(teacher, info.data)
            if start is not None:
                start(fresh / "warm_start", info.data)
            return _replaced(folder, fresh)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)


def _labelled(
    source: str, path: Path | None, classes: tuple[str, ...] | None, subgroups: Sequence[str]
) -> Images:
    if path is None:
        return digits()
    if source == "idx":
        return idx_files(path, classes)
    return labelled_folder(path) if source == "images" else labelled_parquet(path, subgroups)


def _unlabelled(
    kind: Kind, path: Path, images: Images, value_range: tuple[float, float]
) -> tuple[Pixels, list[str]]:
    """Images without labels and their origins; they must be such as the labelled ones are."""
    if not path.exists():
        raise DataError(f"{path}: no such folder or file; correct data.{kind}")
    read = unlabelled_folder if path.is_dir() else unlabelled_parquet
    pixels, origins = read(path, kind)
    finite(pixels, origins, str(path))
    if pixels.shape[1:] != images.pixels.shape[1:]:
        raise DataError(
            f"{path}: {origins[0]} is {size(pixels.shape[1:])} but the labelled images are "
            f"{size(images.pixels.shape[1:])}; bring all images to one size and mode"
        )
    low, high = value_range
    if pixels.dtype != images.pixels.dtype or pixels.min() < low or pixels.max() > high:
        raise DataError(
            f"{path}: holds {pixels.dtype} of {pixels.min():g} to {pixels.max():g} but the data "
            f"is {images.pixels.dtype} of {low:g} to {high:g}; scale all images alike"
        )
    return pixels, origins


def _replaced(folder: Path, fresh: Path) -> bool:
    """Let `fresh` take the place of `folder`, unless both are the same."""
    if _same(fresh, folder):
        return False
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    folder.chmod(0o755)
    shutil.rmtree(old, ignore_errors=True)
    return True


def unambiguous(images: Images, where: str) -> None:
    """Refuse an image that has two labels: no model can be right about both."""
    first: dict[bytes, int] = {}
    pairs: list[tuple[int, int]] = []
    for at, pixels in enumerate(images.pixels):
        before = first.setdefault(hashlib.sha256(pixels.tobytes()).digest(), at)
        if images.labels[before] != images.labels[at]:
            pairs.append((before, at))
    if pairs:
        told = " and ".join(f"{images.origins[i]} ('{images.labels[i]}')" for i in pairs[0])
        raise DataError(
            f"{where}: {told} are the same image under two labels ({len(pairs)} in all); "
            "correct the label, or remove both"
        )


def _range(pixels: Pixels) -> tuple[float, float]:
    """[0, 255] for bytes, [0, 1] where it fits, else the range seen."""
    if pixels.dtype == np.uint8:
        return 0.0, 255.0
    low, high = float(np.nanmin(pixels)), float(np.nanmax(pixels))
    return (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)


def _same(a: Path, b: Path) -> bool:
    """Both folders hold the same files with the same bytes."""
    if not b.is_dir():
        return False
    ours, theirs = ({p.relative_to(f) for p in f.rglob("*") if p.is_file()} for f in (a, b))
    return ours == theirs and all(filecmp.cmp(a / p, b / p, shallow=False) for p in ours)
