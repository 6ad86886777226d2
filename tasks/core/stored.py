"""Tensors that may be larger than memory: written as a stream, read row by row.

A small file is mapped, and every process shares its pages. Of a large one each row is read on its
own: the kernel maps whole stretches of a file (megabytes since Linux 6.18) around each row that is
touched, so that a shuffled epoch would make all of it resident. Never unpickles anything.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from tasks.core.errors import DataError
from tasks.core.files import blamed_on, whole

MAPPED = 64 * 2**20  # bytes; a larger tensor is read row by row
DTYPES = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U8": torch.uint8,
    "I16": torch.int16,
    "I32": torch.int32,
}  # of safetensors
CODES = {dtype: code for code, dtype in DTYPES.items()}


@dataclass(frozen=True)
class OnDisk:
    """A tensor of `shape` at `offset` of `file`; what is asked for is read, nothing is kept."""

    file: BinaryIO
    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        """The rows that `index` (not negative) names, or those of a slice, as a tensor of our own.

        A file that has become too short is a `DataError`.
        """
        size, handle = _bytes(self.shape[1:], self.dtype), self.file.fileno()
        if isinstance(index, slice):
            start, stop, _ = index.indices(len(self))
            count = stop - start
            content = _read(handle, count * size, self.offset + start * size)
        else:
            count = len(index)
            content = b"".join(
                [os.pread(handle, size, self.offset + at * size) for at in index.tolist()]
            )
        if len(content) != count * size:
            raise DataError(f"{self.file.name}: became shorter while it was read; run again")
        return torch.frombuffer(bytearray(content), dtype=self.dtype).view(-1, *self.shape[1:])

    def __del__(self) -> None:
        self.file.close()


def _read(handle: int, count: int, offset: int) -> bytes:
    """`count` bytes, or those that there are: the system reads 2 GB at once at most."""
    parts = []
    while count and (part := os.pread(handle, count, offset)):
        parts.append(part)
        count, offset = count - len(part), offset + len(part)
    return b"".join(parts)


Stored = Tensor | OnDisk  # both give rows by `[index]` and `[start:stop]`


def stored(file: BinaryIO, offset: int, shape: tuple[int, ...], dtype: torch.dtype) -> Stored:
    """The tensor at `offset` of an open file, mapped if it is small; takes the file over."""
    if _bytes(shape, dtype) > MAPPED:
        return OnDisk(file, offset, shape, dtype)
    with file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # nobody can write to it
    count = math.prod(shape)
    return torch.frombuffer(mapped, dtype=dtype, count=count, offset=offset).view(shape)


def read_stored(path: Path, name: str) -> Stored:
    """Open tensor `name` of a safetensors file that holds it alone; else a `DataError`."""
    file = path.open("rb")
    try:
        size = path.stat().st_size
        length = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(min(length, size)))[name]
        shape, dtype = tuple(map(int, entry["shape"])), DTYPES[entry["dtype"]]
        whole_file = 8 + length + _bytes(shape, dtype) == size and min(shape) > 0
    except (ValueError, KeyError, TypeError) as error:
        file.close()
        raise DataError(f"{path}: not the safetensors file it should be ({error!r})") from None
    if not whole_file:
        file.close()
        raise DataError(f"{path}: holds another number of bytes than its header says")
    return stored(file, 8 + length, shape, dtype)


class Stream:
    """A safetensors file in the making. `sha256()` is that of the bytes written so far."""

    def __init__(
        self, path: Path, file: BinaryIO, name: str, shape: tuple[int, ...], dtype: torch.dtype
    ) -> None:
        self.path, self.file, self.dtype = path, file, dtype
        self.left = _bytes(shape, dtype)
        self.digest = hashlib.sha256()
        entry = {"dtype": CODES[dtype], "shape": shape, "data_offsets": (0, self.left)}
        header = json.dumps({name: entry}).encode()
        header += b" " * (-len(header) % 8)  # so that the tensor is aligned
        self._put(len(header).to_bytes(8, "little") + header)

    def write(self, block: Tensor) -> None:
        """Append rows. In the wrong dtype or beyond the shape they are a `ValueError`."""
        content = block.contiguous().view(torch.uint8).numpy().tobytes()
        self.left -= len(content)
        if block.dtype != self.dtype or self.left < 0:
            raise ValueError(f"{self.path}: {block.dtype} rows that the header does not announce")
        self._put(content)

    def sha256(self) -> str:
        return self.digest.hexdigest()

    def _put(self, content: bytes) -> None:
        self.digest.update(content)
        with blamed_on(self.path):  # a full disk names no file
            self.file.write(content)


@contextmanager
def streamed(path: Path, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Iterator[Stream]:
    """Yield a stream for one tensor; `path` appears when all of it was written, or not at all.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.safetensors"
    >>> with streamed(path, "a", (2, 2), torch.uint8) as stream:
    ...     stream.write(torch.tensor([[1, 2]], dtype=torch.uint8))
    ...     stream.write(torch.tensor([[3, 4]], dtype=torch.uint8))
    >>> read_stored(path, "a").tolist()
    [[1, 2], [3, 4]]
    """
    with whole(path) as scratch, scratch.open("wb") as file:
        stream = Stream(path, file, name, shape, dtype)
        yield stream
        if stream.left:
            raise ValueError(f"{path}: {stream.left} bytes are missing")


def _bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """How much a tensor takes.

    >>> _bytes((3, 2), torch.float16)
    12
    """
    return math.prod(shape) * dtype.itemsize
