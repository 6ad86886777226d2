"""Taking raw data: scikit-learn's digits, a folder of images, or a Parquet of images.

Runs outside the DAG, before it; writes `data/raw`, which DVC tracks. Every flaw of a source is
found here, before anything is written.
"""

from __future__ import annotations

import filecmp
import io
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from tasks.core.errors import DataError, TeacherError
from tasks.core.files import inside
from tasks.modalities.vision.snapshot import Images, checked, write_snapshot

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm"}
MODES = {"1", "L", "P", "RGB", "CMYK", "YCbCr"}  # nothing is lost on the way to L or RGB
TEACHER_FILES = ("spec.json", "weights.safetensors", "model.onnx")


def take(source: str, path: Path | None, teacher: Path | None, folder: Path) -> bool:
    """Write the snapshot of `source` (and a given teacher) to `folder`; True if anything changed.

    `source`: "digits", "images" (a folder with one sub-folder per class) or "parquet".
    """
    if source == "digits":
        images, value_range, name = digits(), (0.0, 16.0), "scikit-learn digits"
    else:
        assert path is not None  # noqa: S101 - the `data` section holds that
        images = image_folder(path) if source == "images" else image_parquet(path)
        value_range, name = _range(images.pixels), f"{source} {path.name}"
    checked(images, name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".raw."))
    try:
        write_snapshot(fresh, images, value_range, name)
        if teacher is not None:
            _copy_teacher(teacher, fresh / "teacher")
        if _same(fresh, folder):
            return False
        old = folder.with_name(".raw.old")
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
        folder.chmod(0o755)
        shutil.rmtree(old, ignore_errors=True)
        return True
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def digits() -> Images:
    """scikit-learn's 1,797 real 8×8 digits, values 0..16 (UCI, Alpaydin & Kaynak 1998)."""
    from sklearn.datasets import load_digits

    content = load_digits()
    pixels = content.images.astype(np.uint8)[:, None]
    return Images(
        pixels, [str(t) for t in content.target], [f"digits/{i}" for i in range(len(pixels))]
    )


def image_folder(path: Path) -> Images:
    """Images in one sub-folder per class. All of one size and mode; links stay inside."""
    if not path.is_dir():
        raise DataError(f"{path}: no such folder; set data.path to a folder of class sub-folders")
    files = sorted(
        p for c in sorted(path.iterdir()) if c.is_dir() for p in sorted(c.iterdir()) if p.is_file()
    )
    arrays = [_decoded(inside(path, p), str(p.relative_to(path))) for p in files]
    origins = [p.relative_to(path).as_posix() for p in files]
    return Images(_stacked(arrays, origins, path), [p.parent.name for p in files], origins)


def image_parquet(path: Path) -> Images:
    """A Parquet with `image` (encoded bytes, or nested lists H×W or C×H×W) and `label`."""
    try:
        content = pq.read_table(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; set data.path to a Parquet file") from None
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file ({error})") from None
    missing = {"image", "label"} - set(content.column_names)
    if missing:
        raise DataError(f"{path}: has no column '{min(missing)}'; it needs image and label")
    labels = content["label"].to_pylist()
    for at, label in enumerate(labels):
        if not isinstance(label, str | int) or isinstance(label, bool) or label == "":
            raise DataError(f"{path}: row {at} has label {label!r}; labels are text or integers")
    origins = [f"row {i}" for i in range(len(labels))]
    arrays = [
        _decoded(io.BytesIO(value), origin)
        if isinstance(value, bytes)
        else _listed(value, origin, path)
        for value, origin in zip(content["image"].to_pylist(), origins, strict=True)
    ]
    return Images(_stacked(arrays, origins, path), [str(v) for v in labels], origins)


def _decoded(source: Path | io.BytesIO, origin: str) -> NDArray[np.uint8]:
    """One image file as uint8 (C, H, W): grey stays one channel, everything else becomes RGB."""
    if isinstance(source, Path) and source.suffix.lower() not in SUFFIXES:
        raise DataError(f"{origin}: not an image file; remove it or convert it to PNG")
    try:
        with Image.open(source) as image:
            mode, grey = image.mode, image.mode in ("1", "L")
            if mode not in MODES:
                raise DataError(
                    f"{origin}: is of mode {mode}, whose values 8 bits or three channels cannot "
                    "hold; convert it to 8-bit grey or RGB, or give a Parquet of numbers"
                )
            pixels = np.asarray(image.convert("L" if grey else "RGB"), dtype=np.uint8)
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError):
        raise DataError(f"{origin}: cannot be decoded as an image; mend or remove it") from None
    return pixels[None] if grey else pixels.transpose(2, 0, 1)


def _listed(value: object, origin: str, path: Path) -> NDArray[np.uint8] | NDArray[np.float32]:
    """One image given as nested lists."""
    try:
        pixels: NDArray[Any] = np.asarray(value)
    except ValueError:
        raise DataError(f"{path}: {origin} is ragged; every line needs the same length") from None
    if pixels.dtype.kind not in "iuf" or pixels.ndim not in (2, 3):
        raise DataError(f"{path}: {origin} is not an image of numbers (H×W or C×H×W)")
    if pixels.ndim == 2:
        pixels = pixels[None]
    if pixels.dtype.kind != "f" and pixels.min() >= 0 and pixels.max() <= 255:
        return pixels.astype(np.uint8)
    return pixels.astype(np.float32)


def _stacked(
    arrays: list[NDArray[np.uint8]] | list[NDArray[np.uint8] | NDArray[np.float32]],
    origins: list[str],
    path: Path,
) -> NDArray[np.uint8] | NDArray[np.float32]:
    """All images in one array; a size that differs is named."""
    if not arrays:
        raise DataError(f"{path}: holds no images; add one sub-folder of images per class")
    for array, origin in zip(arrays, origins, strict=True):
        if array.shape != arrays[0].shape:
            raise DataError(
                f"{path}: {origin} is {_size(array)} but {origins[0]} is "
                f"{_size(arrays[0])}; bring all images to one size and mode"
            )
    stacked: NDArray[Any] = np.stack(arrays)
    return stacked


def _size(array: NDArray[np.uint8] | NDArray[np.float32]) -> str:
    return "×".join(map(str, array.shape)) + " (C×H×W)"


def _range(pixels: NDArray[np.uint8] | NDArray[np.float32]) -> tuple[float, float]:
    """[0, 255] for bytes, [0, 1] where it fits, else the range seen."""
    if pixels.dtype == np.uint8:
        return 0.0, 255.0
    low, high = float(np.nanmin(pixels)), float(np.nanmax(pixels))
    return (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)


def _copy_teacher(source: Path, into: Path) -> None:
    """Copy a given teacher's files, by name; nothing else of its folder is read."""
    if not (source / "spec.json").is_file():
        raise TeacherError(
            f"{source}: no spec.json here; teach.path is a folder with spec.json "
            "beside weights.safetensors or model.onnx"
        )
    into.mkdir(parents=True)
    for name in TEACHER_FILES:
        if (source / name).is_file():
            shutil.copyfile(inside(source, source / name), into / name)


def _same(a: Path, b: Path) -> bool:
    """Both folders hold the same files with the same bytes."""
    if not b.is_dir():
        return False
    ours, theirs = ({p.relative_to(f) for p in f.rglob("*") if p.is_file()} for f in (a, b))
    return ours == theirs and all(filecmp.cmp(a / p, b / p, shallow=False) for p in ours)
