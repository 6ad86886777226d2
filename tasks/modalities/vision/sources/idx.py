"""The four idx files of MNIST's format (LeCun, Cortes & Burges): train and test, images and labels.

The test files are the data's own test split, with which published figures are compared. A file is
read no further than its header says.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from tasks.core.errors import DataError
from tasks.core.files import inside
from tasks.modalities.vision.decoding import size
from tasks.modalities.vision.snapshot import Images

BYTES = 0x08  # the format's code for unsigned bytes
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
PARTS = {"train": "train", "test": "t10k"}  # ours -> as the files are called


def idx_files(path: Path, names: tuple[str, ...] | None) -> Images:
    """`train-images-idx3-ubyte`, `train-labels-idx1-ubyte` and the same of `t10k`, plain or .gz.

    `names[i]` is the class of label i; without names a class is called by its number. Classes keep
    the order of the labels.
    """
    if not path.is_dir():
        package = "install the Debian package dataset-fashion-mnist, or " if path == DEBIAN else ""
        raise DataError(f"{path}: no such folder; {package}set data.path to a folder of idx files")
    parts = {part: _part(path, called) for part, called in PARTS.items()}
    (train, _), (test, _) = parts.values()
    if train.shape[1:] != test.shape[1:]:
        raise DataError(
            f"{path}: test images are {size(test.shape[1:])} but train images are "
            f"{size(train.shape[1:])}; give files of one data set"
        )
    codes = np.concatenate([labels for _, labels in parts.values()])
    classes = _classes(path, codes, names)
    return Images(
        np.concatenate([pixels for pixels, _ in parts.values()]),
        [classes[code] for code in codes.tolist()],
        [f"{part} row {i}" for part, (_, labels) in parts.items() for i in range(len(labels))],
        classes=tuple(classes.values()),
        test=np.repeat([False, True], [len(train), len(test)]),
    )


def _classes(path: Path, codes: NDArray[np.uint8], names: tuple[str, ...] | None) -> dict[int, str]:
    """Label -> class, in the order of labels."""
    found = np.unique(codes).tolist()
    if names is None:
        return {code: str(code) for code in found}
    if found != list(range(len(names))):
        odd = min(set(found) ^ set(range(len(names))))
        what = "is in the files and has no name" if odd in found else "is in no file"
        raise DataError(
            f"{path}: label {odd} {what}; data.classes names every label in its order, from 0"
        )
    return dict(enumerate(names))


def _part(path: Path, called: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images (N, 1, H, W) and labels (N,) of one half of the data."""
    images, labels = (
        _read(_file(path, f"{called}-{name}-idx{axes}-ubyte"), axes)
        for name, axes in (("images", 3), ("labels", 1))
    )
    if len(images) != len(labels):
        raise DataError(
            f"{path}: {called} has {len(images)} images and {len(labels)} labels; "
            "give files of one data set"
        )
    return images[:, None], labels


def _file(path: Path, name: str) -> Path:
    for file in (path / name, path / f"{name}.gz"):
        if file.is_file():
            return inside(path, file)
    raise DataError(f"{path}: has no {name}, plain or .gz; put it there, or correct data.path")


def _read(file: Path, axes: int) -> NDArray[np.uint8]:
    """The array of one idx file, which must have `axes` axes of unsigned bytes."""
    try:
        with _opened(file) as stream:
            head = stream.read(4)
            if head[:2] != b"\0\0" or len(head) < 4:
                raise DataError(f"{file}: not an idx file (magic {head.hex()}); replace it")
            if head[2:] != bytes([BYTES, axes]):
                raise DataError(
                    f"{file}: magic {head.hex()} is not that of {axes} axes of unsigned bytes "
                    f"(0000{BYTES:02x}{axes:02x}); replace it"
                )
            shape = struct.unpack(f">{axes}I", stream.read(4 * axes).ljust(4 * axes, b"\0"))
            wanted = math.prod(shape)
            content = _at_most(stream, wanted + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{file}: not a whole gzip file ({error}); fetch it again") from None
    if not wanted or len(content) != wanted:
        longer = "more" if len(content) > wanted else f"{len(content):,}"
        raise DataError(
            f"{file}: its header promises {wanted:,} values and it holds {longer}; fetch it again"
        )
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)


def _opened(file: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(file)) if file.suffix == ".gz" else file.open("rb")


def _at_most(stream: BinaryIO, count: int) -> bytes:
    """Up to `count` bytes, in blocks: a header that lies asks for no memory."""
    found = bytearray()
    while block := stream.read(min(2**20, count - len(found))):
        found += block
    return bytes(found)
