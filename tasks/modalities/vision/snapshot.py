"""The raw snapshot of images: its form, and how it is written and read.

`images.parquet` holds `image` (a fixed-size list of C·H·W values), `label` and `origin`,
`group.COLUMN` for each subgroup column, and `split` ("test" or null) where the source has a test
split of its own; `transfer.parquet` and `strangers.parquet`, if they are there, hold images without
labels; `snapshot.json` describes all. An input of the DAG, tracked by DVC.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tasks.core.errors import DataError
from tasks.core.files import read_json, sha256, whole, write_json
from tasks.core.params import Section, check
from tasks.core.tables import Schema

MIN_PER_CLASS = 5

Pixels = NDArray[np.uint8] | NDArray[np.float32]
Kind = Literal["transfer", "strangers"]  # of images without labels: learned from, or none of these
KINDS: tuple[Kind, ...] = get_args(Kind)


class UnlabelledInfo(Section):
    """`transfer.parquet` or `strangers.parquet`: its rows and the SHA-256 of the file."""

    rows: int
    sha256: str


class SnapshotInfo(Section):
    """`snapshot.json`."""

    format: Literal["stillhouse/snapshot/1"] = "stillhouse/snapshot/1"
    data: Schema
    source: str
    rows: int
    sha256: str  # of images.parquet
    transfer: UnlabelledInfo | None = None
    strangers: UnlabelledInfo | None = None


@dataclass(frozen=True)
class Images:
    """Labelled images in memory: `pixels` (N, C, H, W) raw, `labels` and `origins` (N,) text.

    `classes`: in the source's own order; None where it has none, and they are sorted by name.
    `test` (N,): the rows of the source's own test split; None where it has none. `groups`: subgroup
    column -> value (N,) of each row.
    """

    pixels: Pixels
    labels: list[str]
    origins: list[str]
    classes: tuple[str, ...] | None = None
    test: NDArray[np.bool_] | None = None
    groups: Mapping[str, list[str]] = field(default_factory=dict)


def checked(images: Images, where: str) -> Images:
    """`images` if they can be learned from; otherwise a `DataError` that names the first flaw."""
    if not len(images.pixels):
        raise DataError(f"{where}: holds no images; add some")
    finite(images.pixels, images.origins, where)
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


def finite(pixels: Pixels, origins: list[str], where: str) -> None:
    """Raise a `DataError` if a pixel of (N, C, H, W) is NaN or infinite."""
    bad = ~np.isfinite(pixels.reshape(len(pixels), -1)).all(axis=1)
    if bad.any():
        raise DataError(
            f"{where}: {origins[int(bad.argmax())]} has NaN or infinite pixels "
            f"({int(bad.sum())} in all); mend or remove them"
        )


def write_snapshot(
    folder: Path,
    images: Images,
    value_range: tuple[float, float],
    source: str,
    unlabelled: Mapping[Kind, tuple[Pixels, list[str]]] | None = None,
) -> SnapshotInfo:
    """Write a snapshot; equal images give equal bytes. `unlabelled`: images and their origins."""
    columns = {
        "image": _lists(images.pixels),
        "label": pa.array(images.labels, pa.string()),
        "origin": pa.array(images.origins, pa.string()),
    }
    columns |= {f"group.{n}": pa.array(v, pa.string()) for n, v in images.groups.items()}
    if images.test is not None:
        given = ["test" if test else None for test in images.test]
        columns["split"] = pa.array(given, pa.string())
    channels, height, width = images.pixels.shape[1:]
    data = Schema(
        modality="vision",
        shape=(channels, height, width),
        dtype="uint8" if images.pixels.dtype == np.uint8 else "float32",
        range=value_range,
        classes=images.classes or tuple(sorted(set(images.labels))),
    )
    info = SnapshotInfo(
        data=data,
        source=source,
        rows=len(images.pixels),
        sha256=_written(folder / "images.parquet", columns),
        **{kind: _write_unlabelled(folder, kind, *u) for kind, u in (unlabelled or {}).items()},
    )
    write_json(folder / "snapshot.json", info.model_dump(mode="json", exclude_none=True))
    return info


def _write_unlabelled(
    folder: Path, kind: Kind, pixels: Pixels, origins: list[str]
) -> UnlabelledInfo:
    columns = {"image": _lists(pixels), "origin": pa.array(origins, pa.string())}
    return UnlabelledInfo(rows=len(pixels), sha256=_written(folder / f"{kind}.parquet", columns))


def _lists(pixels: Pixels) -> pa.FixedSizeListArray:
    flat = pa.array(np.ascontiguousarray(pixels).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, int(np.prod(pixels.shape[1:])))


def _written(path: Path, columns: dict[str, pa.Array]) -> str:
    """Write a Parquet; returns its SHA-256."""
    with whole(path) as scratch:
        pq.write_table(pa.table(columns), scratch, compression="zstd")
    return sha256(path)


def read_snapshot(folder: Path) -> tuple[SnapshotInfo, Images]:
    """Read and check a snapshot; each flaw is a one-line `DataError`."""
    path = folder / "snapshot.json"
    if not path.is_file():
        raise DataError(
            f"{folder}: no snapshot here; `stillhouse run` takes one, or `dvc checkout`"
        )
    info = check(SnapshotInfo, read_json(path), where=str(path))
    file = folder / "images.parquet"
    content = _content(file, info.sha256)
    given = "split" in content.column_names
    images = Images(
        _pixels(content, file, info.data),
        content["label"].to_pylist(),
        content["origin"].to_pylist(),
        info.data.classes,
        np.array([s == "test" for s in content["split"].to_pylist()]) if given else None,
        {
            name.removeprefix("group."): content[name].to_pylist()
            for name in content.column_names
            if name.startswith("group.")
        },
    )
    return info, checked(images, str(file))


def read_unlabelled(folder: Path, info: SnapshotInfo, kind: Kind) -> Pixels:
    """The images (N, C, H, W) of the transfer set or of the strangers; none if there are none."""
    stated: UnlabelledInfo | None = getattr(info, kind)
    if stated is None:
        return np.zeros((0, *info.data.shape), dtype=info.data.dtype)
    file = folder / f"{kind}.parquet"
    return _pixels(_content(file, stated.sha256), file, info.data)


def _content(file: Path, stated: str) -> pa.Table:
    """A Parquet of the snapshot, if it is the one that `snapshot.json` names."""
    if not file.is_file() or sha256(file) != stated:
        raise DataError(
            f"{file}: missing, truncated or changed since {file.parent / 'snapshot.json'} was "
            "written; run `dvc checkout data/raw.dvc` or take the snapshot again"
        )
    return pq.read_table(file)


def _pixels(content: pa.Table, file: Path, data: Schema) -> Pixels:
    """The images of a Parquet of the snapshot, (N, C, H, W), all within the declared range."""
    values = content["image"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    pixels: Pixels = values.reshape(-1, *data.shape)
    low, high = data.range
    if pixels.min() < low or pixels.max() > high:
        raise DataError(
            f"{file}: pixels leave the declared range [{low}, {high}]; take the snapshot again"
        )
    return pixels
