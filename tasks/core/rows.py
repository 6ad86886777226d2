"""Rows as the trainer and the bank stream them: memory grows with the batch, not the data.

Labels and keys lie in memory (16 bytes a row); images lie in an unnamed file, so that a crash
leaves nothing behind. Never reads test rows.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from tasks.core.errors import DataError
from tasks.core.files import blamed_on
from tasks.core.stored import Stored, stored
from tasks.core.tables import DATA, Schema, Table, set_aside

BLOCK = 2**20  # values in memory at a time while a table is read
T = TypeVar("T", bound=np.generic)

View = Callable[[Tensor, NDArray[np.int64], int], Tensor]  # images, index, k -> view k of them


@dataclass(frozen=True)
class Rows:
    """`images` (N, C, H, W) in the raw dtype, to be asked for rows by index or slice; `labels` (N,)
    int64, `keys` (N,): what a row's views are drawn from. `digest` covers every row id, in order.
    """

    images: Stored
    labels: Tensor
    keys: NDArray[np.uint64]
    digest: str

    def __len__(self) -> int:
        return len(self.labels)


def row_keys(rows: NDArray[np.str_] | list[str]) -> NDArray[np.uint64]:
    """The first 64 bits of each row's SHA-256: what a view is drawn from."""
    return np.array([int(row[:16], 16) for row in rows], dtype=np.uint64)


def in_memory(table: Table) -> Rows:
    """The rows of a table that is in memory anyway."""
    digest = hashlib.sha256()
    _digested(digest, table.rows.tolist())
    images, labels = torch.tensor(table.images), torch.tensor(table.labels)  # Arrow's: read-only
    return Rows(images, labels, row_keys(table.rows), digest.hexdigest())


def read_rows(schema: Schema, folder: Path = DATA, transfer: bool = False) -> Rows:
    """The training rows that validation did not set aside, images left on disk.

    With `transfer`, those of the transfer set follow, labelled `UNLABELLED`: for whoever learns
    from a model and not from labels, and for the bank that it learns from.
    """
    names = ("train", "transfer") if transfer else ("train",)
    tables = [(folder / f"{n}.parquet", set_aside(folder / "quarantine.parquet", n)) for n in names]
    return _spooled(tables, schema, folder)


def read_validation(schema: Schema, folder: Path = DATA) -> Rows:
    """The validation rows, images left on disk."""
    return _spooled([(folder / "val.parquet", set())], schema, folder)


def _spooled(tables: list[tuple[Path, set[int]]], schema: Schema, folder: Path) -> Rows:
    """The rows of all `tables`, each without those set aside, copied to an unnamed file."""
    labels: list[NDArray[np.int64]] = []
    keys: list[NDArray[np.uint64]] = []
    digest = hashlib.sha256()
    spool = cast(BinaryIO, tempfile.TemporaryFile(dir=folder))  # noqa: SIM115 - outlives this call
    blocks = (block for path, aside in tables for block in _blocks(path, schema, aside))
    for rows, block_labels, images in blocks:
        _digested(digest, rows)
        keys.append(row_keys(rows))
        labels.append(block_labels)
        with blamed_on(folder):
            spool.write(images.tobytes())
    if not spool.tell():
        raise DataError(f"{tables[0][0]}: no rows are left; add some")
    with blamed_on(folder):
        spool.flush()
    every_label, every_key = torch.from_numpy(_joined(labels)), _joined(keys)
    shape, dtype = (len(every_label), *schema.shape), getattr(torch, schema.dtype)
    return Rows(stored(spool, 0, shape, dtype), every_label, every_key, digest.hexdigest())


def _joined(blocks: list[NDArray[T]]) -> NDArray[T]:
    """All blocks as one array; the list is emptied, so that they are held twice only meanwhile."""
    joined = np.concatenate(blocks)
    blocks.clear()
    return joined


def _blocks(
    path: Path, schema: Schema, aside: set[int]
) -> Iterator[tuple[list[str], NDArray[np.int64], NDArray[np.generic]]]:
    """Row ids, labels and images of a table, a block at a time, without the rows `aside`."""
    start, size = 0, int(np.prod(schema.shape))
    try:
        with pq.ParquetFile(path, pre_buffer=False) as table:
            for block in table.iter_batches(max(1, BLOCK // size), use_threads=False):
                keep = np.array([start + i not in aside for i in range(len(block))], dtype=bool)
                start += len(block)
                flat = block["pixels"].flatten().to_numpy(zero_copy_only=False)
                if len(flat) != len(block) * size:
                    raise DataError(f"{path}: rows do not have {size} values each; run ingest")
                images = flat.astype(schema.dtype, copy=False).reshape(-1, size)[keep]
                rows = np.array(block["row"].to_pylist(), dtype=object)[keep].tolist()
                yield rows, block["label"].to_numpy()[keep].astype(np.int64), images
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; run `stillhouse run` or `dvc checkout`") from None
    except pa.ArrowException as error:
        raise DataError(f"{path}: not a readable Parquet file ({error}); run ingest") from None


def _digested(digest: hashlib._Hash, rows: list[str]) -> None:
    digest.update("".join(f"{row}\n" for row in rows).encode())
