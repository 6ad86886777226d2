"""Training rows as the trainer and the bank stream them: memory grows with the batch, not the data.

Labels and keys lie in memory (16 bytes a row); images lie in an unnamed file behind a memory map,
so nothing is left behind by a crash. Never reads validation or test rows.
"""

from __future__ import annotations

import hashlib
import mmap
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from tasks.core.errors import DataError
from tasks.core.tables import DATA, Schema, Table, set_aside

BLOCK = 4096  # rows in memory at a time while a table is read
UNLABELLED = -1  # the label of a row of the transfer set

View = Callable[[Tensor, NDArray[np.int64], int], Tensor]  # images, index, k -> view k of them


@dataclass(frozen=True)
class Rows:
    """`images` (N, C, H, W) in the raw dtype, `labels` (N,) int64, `keys` (N,): what a row's views
    are drawn from. `digest` covers every row id, in order."""

    images: Tensor
    labels: Tensor
    keys: NDArray[np.uint64]
    digest: str
    mapped: mmap.mmap | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def release(self) -> None:
        """Give back the memory of images that were looked at; they stay readable."""
        if self.mapped is not None:
            self.mapped.madvise(mmap.MADV_DONTNEED)


def row_keys(rows: NDArray[np.str_] | list[str]) -> NDArray[np.uint64]:
    """The first 64 bits of each row's SHA-256: what a view is drawn from."""
    return np.array([int(row[:16], 16) for row in rows], dtype=np.uint64)


def in_memory(table: Table) -> Rows:
    """The rows of a table that is in memory anyway."""
    digest = hashlib.sha256()
    _digested(digest, table.rows.tolist())
    images = torch.from_numpy(np.ascontiguousarray(table.images))
    labels = torch.from_numpy(table.labels)
    return Rows(images, labels, row_keys(table.rows), digest.hexdigest())


def read_rows(schema: Schema, folder: Path = DATA) -> Rows:
    """The training rows that validation did not set aside, images left on disk."""
    keep = set_aside(folder / "quarantine.parquet", "train")
    labels, keys, digest = [], [], hashlib.sha256()
    with tempfile.TemporaryFile(dir=folder) as spool:
        for rows, block_labels, images in _blocks(folder / "train.parquet", schema, keep):
            _digested(digest, rows)
            keys.append(row_keys(rows))
            labels.append(block_labels)
            spool.write(images.tobytes())
        spool.flush()
        if not spool.tell():
            raise DataError(f"{folder / 'train.parquet'}: no rows are left to train on; add some")
        mapped = mmap.mmap(spool.fileno(), 0)  # shared: the file outlives its handle
    values = np.frombuffer(mapped, dtype=schema.dtype).reshape(-1, *schema.shape)
    return Rows(
        torch.from_numpy(values),
        torch.from_numpy(np.concatenate(labels)),
        np.concatenate(keys),
        digest.hexdigest(),
        mapped,
    )


def _blocks(
    path: Path, schema: Schema, aside: set[int]
) -> Iterator[tuple[list[str], NDArray[np.int64], NDArray[np.generic]]]:
    """Row ids, labels and images of a table, a block at a time, without the rows `aside`."""
    start, size = 0, int(np.prod(schema.shape))
    try:
        with pq.ParquetFile(path, pre_buffer=False) as table:
            for block in table.iter_batches(BLOCK):
                keep = np.array([start + i not in aside for i in range(len(block))])
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
