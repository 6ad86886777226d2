"""Small real tables, and the two ways to validate them: as arrays, and as the stage does."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from sklearn.datasets import load_digits
from threadpoolctl import threadpool_limits

from tasks.core.files import digest, sha256, write_json
from tasks.core.tables import Fingerprint, Schema, Split, Table, write_table
from tasks.validate.examine import table_files
from tasks.validate.params import ValidateParams
from tasks.validate.validation import Validation, validate

PARAMS = {
    "min_rows": {"train": 60, "val": 20, "test": 20},
    "min_share": 0.2,
    "near_duplicate": 0.995,
    "label_issues": {"folds": 3, "max_share": 0.05},
    "seed": 0,
}


@dataclass(frozen=True)
class Data:
    """Tables and their schema, and ways to plant what should be found in them."""

    schema: Schema
    tables: dict[str, Table]

    def with_rows(self, split: str, images: np.ndarray, labels: list[int]) -> Data:
        """The same data with rows at the end of `split`."""
        table = self.tables[split]
        stacked = np.concatenate([table.images, images.astype(table.images.dtype)])
        every = np.concatenate([table.labels, np.array(labels, dtype=np.int64)])
        return self.replaced(split, Table(row_ids(stacked), every, stacked))

    def with_value(self, split: str, position: int, value: float) -> Data:
        """The same data with the first pixel of one row changed."""
        images = self.tables[split].images.copy()
        images[position, 0, 0, 0] = value
        return self.replaced(split, Table(row_ids(images), self.tables[split].labels, images))

    def with_labels(self, split: str, labels: np.ndarray) -> Data:
        """The same data with other labels in `split`."""
        return self.replaced(split, replace(self.tables[split], labels=labels))

    def replaced(self, split: str, table: Table) -> Data:
        """The same data with another table."""
        return Data(self.schema, {**self.tables, split: table})

    def write(self, folder: Path) -> Fingerprint:
        """Write tables and fingerprint as ingest does."""
        splits = {}
        for split, table in self.tables.items():
            write_table(folder / f"{split}.parquet", table)
            splits[split] = Split(
                rows=len(table), per_class={}, sha256=sha256(folder / f"{split}.parquet")
            )
        train = self.tables["train"].images
        write_table(folder / "transfer.parquet", self.tables["train"].take(np.arange(0)))
        content: dict[str, Any] = {
            "format": "stillhouse/fingerprint/1",
            "data": self.schema.model_dump(mode="json"),
            "snapshot": "0" * 64,
            "splits": {k: v.model_dump() for k, v in splits.items()},
            "mean": float(np.nanmean(train, dtype=np.float64)),
            "std": float(np.nanstd(train, dtype=np.float64)),
        }
        content["digest"] = digest(content)
        write_json(folder / "fingerprint.json", content)
        return Fingerprint.model_validate(content)


def row_ids(images: np.ndarray) -> np.ndarray:
    """SHA-256 of each image."""
    return np.array([hashlib.sha256(i.tobytes()).hexdigest() for i in images], dtype="U64")


def params_of(changes: dict[str, Any]) -> dict[str, Any]:
    """`PARAMS` with changes."""
    return {**PARAMS, **changes}


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """As the stage runs: sums of floats depend on the number of threads."""
    with threadpool_limits(limits=1):
        yield


@pytest.fixture
def blobs() -> Callable[..., Data]:
    """Data of three classes: a noisy prototype each, without copies or label issues."""

    def make(shape: tuple[int, int, int] = (1, 4, 4), dtype: str = "uint8") -> Data:
        rng = np.random.default_rng(7)
        high = 255.0 if dtype == "uint8" else 1.0
        prototypes = rng.uniform(0.2, 0.8, (3, *shape)) * high
        tables = {}
        for split, rows in {"train": 90, "val": 30, "test": 30}.items():
            labels = np.arange(rows, dtype=np.int64) % 3
            noisy = prototypes[labels] + rng.normal(0, 0.08 * high, (rows, *shape))
            images = noisy.clip(0, high).astype(dtype)
            tables[split] = Table(row_ids(images), labels, images)
        schema = Schema(
            modality="vision",
            shape=shape,
            dtype=dtype,
            range=(0, high),
            classes=("ash", "elm", "oak"),
        )
        return Data(schema, tables)

    return make


@pytest.fixture(scope="session")
def digits() -> Data:
    """scikit-learn's digits, split as a run would, by hash."""
    bunch = load_digits()
    images = bunch.images.astype(np.uint8)[:, None]
    labels, rows = bunch.target.astype(np.int64), row_ids(images)
    place = np.array([int(row[:8], 16) / 2**32 for row in rows])
    masks = {"train": place < 0.6, "val": (place >= 0.6) & (place < 0.75), "test": place >= 0.75}
    tables = {s: Table(rows[m], labels[m], images[m]) for s, m in masks.items()}
    schema = Schema(
        modality="vision",
        shape=(1, 8, 8),
        dtype="uint8",
        range=(0, 16),
        classes=tuple(map(str, range(10))),
    )
    return Data(schema, tables)


@pytest.fixture
def judge(tmp_path: Path) -> Callable[..., Validation]:
    """Validate data, with `PARAMS` changed by keyword."""

    def run(data: Data, **changes: Any) -> Validation:
        fingerprint = data.write(tmp_path / "data")
        params = ValidateParams.model_validate(params_of(changes))
        files = table_files(fingerprint, tmp_path / "data")
        return validate(files, data.tables, fingerprint, params, tmp_path / "docs")

    return run


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A working directory with data and params.yaml, as the stage finds it."""

    def make(data: Data, **changes: Any) -> Path:
        data.write(tmp_path / "data")
        (tmp_path / "params.yaml").write_text(yaml.safe_dump({"validate": params_of(changes)}))
        monkeypatch.chdir(tmp_path)
        return tmp_path

    return make
