"""A Parquet of images: `image` (encoded bytes, or nested lists) and, where labelled, `label`."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.core.errors import DataError
from tasks.core.subgroups import MISSING, MOST
from tasks.modalities.vision.decoding import decoded, listed, stacked
from tasks.modalities.vision.snapshot import Images, Kind, Pixels


def labelled_parquet(path: Path, subgroups: Sequence[str] = ()) -> Images:
    """`image` (encoded bytes, or nested lists H×W or C×H×W), `label` (text or integers), and the
    columns `subgroups`, of text, integers or booleans."""
    content = _content(path, "data.path", ("image", "label", *subgroups))
    labels = content["label"].to_pylist()
    for at, label in enumerate(labels):
        if not isinstance(label, str | int) or isinstance(label, bool) or label == "":
            raise DataError(f"{path}: row {at} has label {label!r}; labels are text or integers")
        if isinstance(label, int) and label < 0:
            raise DataError(
                f"{path}: row {at} has label {label}, and labels count from 0; label or remove it"
            )
    pixels, origins = _images(content, path)
    groups = {name: _group(content, name, path) for name in subgroups}
    numbers = all(isinstance(label, int) for label in labels)
    classes = tuple(map(str, sorted(set(labels)))) if numbers else None  # 2 before 10
    return Images(pixels, [str(label) for label in labels], origins, classes, groups=groups)


def _group(content: pa.Table, name: str, path: Path) -> list[str]:
    """A subgroup column as text; rows without a value are a subgroup too."""
    values = content[name].to_pylist()
    for at, value in enumerate(values):
        if value is not None and not isinstance(value, str | int):
            raise DataError(
                f"{path}: row {at} has {name} {value!r}; subgroups are text, integers or booleans"
            )
    found = [MISSING if value is None or value == "" else str(value) for value in values]
    if len(set(found)) > MOST:
        raise DataError(
            f"{path}: column '{name}' has {len(set(found)):,} values, and a subgroup column at "
            f"most {MOST}; group them, or remove it from data.subgroups"
        )
    return found


def unlabelled_parquet(path: Path, kind: Kind) -> tuple[Pixels, list[str]]:
    """`image` alone, and the rows' numbers. A label would be left out without a word: refused."""
    content = _content(path, f"data.{kind}", ("image",))
    if "label" in content.column_names:
        raise DataError(f"{path}: data.{kind} has no labels; remove the column 'label'")
    return _images(content, path)


def _content(path: Path, key: str, columns: tuple[str, ...]) -> pa.Table:
    try:
        content = pq.read_table(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; set {key} to a Parquet file") from None
    except (pa.ArrowException, OSError) as error:
        first = str(error).splitlines()[0]
        raise DataError(f"{path}: not a readable Parquet file ({first}); write it again") from None
    missing = set(columns) - set(content.column_names)
    if missing:
        needs = " and ".join(columns)
        raise DataError(f"{path}: has no column '{min(missing)}'; it needs {needs}")
    if not len(content):
        raise DataError(f"{path}: holds no images; add some rows")
    return content


def _images(content: pa.Table, path: Path) -> tuple[Pixels, list[str]]:
    origins = [f"row {i}" for i in range(len(content))]
    arrays = [
        decoded(io.BytesIO(value), f"{path}: {origin}")
        if isinstance(value, bytes)
        else listed(value, f"{path}: {origin}")
        for value, origin in zip(content["image"].to_pylist(), origins, strict=True)
    ]
    return stacked(arrays, origins, path), origins
