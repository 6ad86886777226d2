"""The raw snapshot of labelled images: its form, and how it is written and read.

`images.parquet` holds `image` (a fixed-size list of C·H·W values), `label` and `origin`;
`snapshot.json` describes it. A snapshot is an input of the DAG, tracked by DVC.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tasks.core.errors import DataError
from tasks.core.files import read_json, sha256, whole, write_json
from tasks.core.params import Section, check
from tasks.core.tables import Schema

MIN_PER_CLASS = 5


class SnapshotInfo(Section):
    """`snapshot.json`."""

    format: Literal["stillhouse/snapshot/1"] = "stillhouse/snapshot/1"
    data: Schema
    source: str
    rows: int
    sha256: str  # of images.parquet


@dataclass(frozen=True)
class Images:
    """Labelled images in memory: `pixels` (N, C, H, W) raw, `labels` and `origins` (N,) text."""

    pixels: NDArray[np.uint8] | NDArray[np.float32]
    labels: list[str]
    origins: list[str]


def checked(images: Images, where: str) -> Images:
    """`images` if they can be learned from; otherwise a `DataError` that names the first flaw."""
    if not len(images.pixels):
        raise DataError(f"{where}: holds no images; add some")
    bad = ~np.isfinite(images.pixels.reshape(len(images.pixels), -1)).all(axis=1)
    if bad.any():
        at = int(bad.argmax())
        raise DataError(
            f"{where}: {images.origins[at]} has NaN or infinite pixels "
            f"({int(bad.sum())} in all); mend or remove them"
        )
    names, counts = np.unique(images.labels, return_counts=True)
    if len(names) < 2:
        raise DataError(f"{where}: only one class ('{names[0]}'); add a second one")
    if counts.min() < MIN_PER_CLASS:
        rare = names[counts.argmin()]
        raise DataError(
            f"{where}: class '{rare}' has {counts.min()} images; at least "
            f"{MIN_PER_CLASS} are needed to split it; add some or remove the class"
        )
    return images


def write_snapshot(
    folder: Path, images: Images, value_range: tuple[float, float], source: str
) -> SnapshotInfo:
    """Write a snapshot; equal images give equal bytes."""
    pixels = np.ascontiguousarray(images.pixels)
    flat = pa.array(pixels.reshape(-1))
    size = int(np.prod(pixels.shape[1:]))
    content = pa.table(
        {
            "image": pa.FixedSizeListArray.from_arrays(flat, size),
            "label": pa.array(images.labels, pa.string()),
            "origin": pa.array(images.origins, pa.string()),
        }
    )
    path = folder / "images.parquet"
    with whole(path) as scratch:
        pq.write_table(content, scratch, compression="zstd")
    channels, height, width = pixels.shape[1:]
    data = Schema(
        modality="vision",
        shape=(channels, height, width),
        dtype="uint8" if pixels.dtype == np.uint8 else "float32",
        range=value_range,
        classes=tuple(sorted(set(images.labels))),
    )
    info = SnapshotInfo(data=data, source=source, rows=len(pixels), sha256=sha256(path))
    write_json(folder / "snapshot.json", info.model_dump(mode="json"))
    return info


def read_snapshot(folder: Path) -> tuple[SnapshotInfo, Images]:
    """Read and check a snapshot; each flaw is a one-line `DataError`."""
    path = folder / "snapshot.json"
    if not path.is_file():
        raise DataError(
            f"{folder}: no snapshot here; `stillhouse run` takes one, or `dvc checkout`"
        )
    info = check(SnapshotInfo, read_json(path), where=str(path))
    file = folder / "images.parquet"
    if not file.is_file() or sha256(file) != info.sha256:
        raise DataError(
            f"{file}: missing, truncated or changed since {path} was written; "
            "run `dvc checkout data/raw.dvc` or take the snapshot again"
        )
    content = pq.read_table(file)
    values = content["image"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    images = Images(
        values.reshape(-1, *info.data.shape),
        content["label"].to_pylist(),
        content["origin"].to_pylist(),
    )
    low, high = info.data.range
    if images.pixels.min() < low or images.pixels.max() > high:
        raise DataError(
            f"{file}: pixels leave the declared range [{low}, {high}]; take the snapshot again"
        )
    return info, checked(images, str(file))
