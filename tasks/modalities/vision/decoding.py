"""One image of whatever form as an array (C, H, W), and many as one array.

Every flaw is a one-line `DataError` that names the image. Writes nothing.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any
from unicodedata import category

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from tasks.core.errors import DataError
from tasks.modalities.vision.snapshot import Pixels

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm"}
PAGED = {"GIF", "PNG", "TIFF", "WEBP"}  # not MPO: a camera's JPEG beside its own thumbnails
MODES = {"1", "L", "P", "RGB", "CMYK", "YCbCr"}  # nothing is lost on the way to L or RGB


def visible(folder: Path) -> list[Path]:
    """What lies in `folder`, in order; hidden entries are the system's and no images."""
    found = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    for entry in found:
        if {category(letter) for letter in entry.name} & {"Cc", "Cs"}:  # control, or not UTF-8
            raise DataError(f"{folder}: {entry.name!a} is not a readable name; rename it")
    return found


def image_files(folder: Path) -> list[Path]:
    """The files of a folder that holds images alone; any other entry is an error."""
    files = visible(folder)
    if not files:
        raise DataError(f"{folder}: holds no images; add some or remove the folder")
    for file in files:
        if not file.is_file():
            raise DataError(f"{file}: neither an image file nor a link to one; remove it")
    return files


def decoded(source: Path | io.BytesIO, where: str) -> NDArray[np.uint8]:
    """One image file as uint8 (C, H, W): grey stays one channel, everything else becomes RGB."""
    if isinstance(source, Path) and source.suffix.lower() not in SUFFIXES:
        raise DataError(f"{where}: not an image file; remove it or convert it to PNG")
    try:
        with Image.open(source) as image:
            mode, grey = image.mode, image.mode in ("1", "L")
            frames = getattr(image, "n_frames", 1) if image.format in PAGED else 1
            clear = "transparency" in image.info
            upright = ImageOps.exif_transpose(image)  # a camera that was held sideways
            converted = upright.convert("L" if grey else "RGB") if mode in MODES else None
    except Exception:  # a decoder meets a broken file in its own ways
        raise DataError(f"{where}: cannot be decoded as an image; mend or remove it") from None
    if frames > 1:
        raise DataError(f"{where}: holds {frames} images; give each a file of its own")
    if clear:
        raise DataError(f"{where}: has transparent parts, which RGB cannot hold; flatten it")
    if converted is None:
        raise DataError(
            f"{where}: is of mode {mode}, whose values 8 bits or three channels cannot "
            "hold; convert it to 8-bit grey or RGB, or give a Parquet of numbers"
        )
    pixels = np.asarray(converted, dtype=np.uint8)
    return pixels[None] if grey else pixels.transpose(2, 0, 1)


def listed(value: object, where: str) -> Pixels:
    """One image given as nested lists."""
    try:
        pixels: NDArray[Any] = np.asarray(value)
    except ValueError:
        raise DataError(f"{where} is ragged; every line needs the same length") from None
    if pixels.dtype.kind not in "iuf" or pixels.ndim not in (2, 3) or not pixels.size:
        raise DataError(
            f"{where} is not an image of numbers; write lists H×W or C×H×W, or encoded bytes"
        )
    if pixels.ndim == 2:
        pixels = pixels[None]
    if pixels.dtype.kind != "f" and pixels.min() >= 0 and pixels.max() <= 255:
        return pixels.astype(np.uint8)
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused
        return pixels.astype(np.float32)


def stacked(arrays: list[NDArray[np.uint8]] | list[Pixels], origins: list[str], at: Path) -> Pixels:
    """All images in one array (N, C, H, W); a size that differs is named."""
    for array, origin in zip(arrays, origins, strict=True):
        if array.shape != arrays[0].shape:
            raise DataError(
                f"{at}: {origin} is {size(array.shape)} but {origins[0]} is "
                f"{size(arrays[0].shape)}; bring all images to one size and mode"
            )
    pixels: NDArray[Any] = np.stack(arrays)
    return pixels


def size(shape: tuple[int, ...]) -> str:
    """A shape as people write it.

    >>> size((3, 16, 20))
    '3×16×20 (C×H×W)'
    """
    return "×".join(map(str, shape)) + " (C×H×W)"
