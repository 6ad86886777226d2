"""Taking raw data: scikit-learn's digits, a folder of images, or a Parquet of images.

Runs outside the DAG, before it; writes `data/raw`, which DVC tracks. Every flaw of a source is
found here, before anything is written.
"""

from __future__ import annotations

import filecmp
import hashlib
import io
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unicodedata import category

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from tasks.core.errors import DataError, TeacherError
from tasks.core.files import blamed_on, inside
from tasks.core.tables import Schema
from tasks.modalities.vision.snapshot import Images, checked, write_snapshot

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm"}
MODES = {"1", "L", "P", "RGB", "CMYK", "YCbCr"}  # nothing is lost on the way to L or RGB
TEACHER_FILES = ("spec.json", "weights.safetensors", "model.onnx")

Fits = Callable[[Path, Schema], object]


def take(
    source: str, path: Path | None, teacher: Path | None, folder: Path, fits: Fits | None = None
) -> bool:
    """Write the snapshot of `source` (and a given teacher) to `folder`; True if anything changed.

    `source`: "digits", "images" (a folder with one sub-folder per class) or "parquet". `fits` sees
    the teacher's folder and the data, and raises if the one cannot teach the other.
    """
    if source == "digits":
        images, name = digits(), "scikit-learn digits"
    else:
        assert path is not None  # noqa: S101 - the `data` section holds that
        images = image_folder(path) if source == "images" else image_parquet(path)
        name = f"{source} {path.name}"
    unambiguous(checked(images, str(path or name)), str(path or name))
    value_range = (0.0, 16.0) if source == "digits" else _range(images.pixels)
    with blamed_on(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        try:
            info = write_snapshot(fresh, images, value_range, name)
            if teacher is not None:
                _copy_teacher(teacher, fresh / "teacher")
                if fits is not None:
                    fits(teacher, info.data)
            return _replaced(folder, fresh)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)


def _replaced(folder: Path, fresh: Path) -> bool:
    """Let `fresh` take the place of `folder`, unless both are the same."""
    if _same(fresh, folder):
        return False
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    folder.chmod(0o755)
    shutil.rmtree(old, ignore_errors=True)
    return True


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
    files = [file for entry in _visible(path) for file in _members(path, entry)]
    arrays = [_decoded(inside(path, file), str(file)) for file in files]
    origins = [file.relative_to(path).as_posix() for file in files]
    return Images(_stacked(arrays, origins, path), [file.parent.name for file in files], origins)


def _visible(folder: Path) -> list[Path]:
    """What lies in `folder`, in order; hidden entries are the system's and no images."""
    found = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    for entry in found:
        if {category(letter) for letter in entry.name} & {"Cc", "Cs"}:  # control, or not UTF-8
            raise DataError(f"{folder}: {entry.name!a} is not a readable name; rename it")
    return found


def _members(path: Path, entry: Path) -> list[Path]:
    """The files of one class. Whatever would be left out without a word is an error."""
    if not entry.is_dir():
        if entry.suffix.lower() in SUFFIXES:
            raise DataError(f"{entry}: belongs to no class; move it into its class's sub-folder")
        return []
    inside(path, entry)
    files = _visible(entry)
    if not files:
        raise DataError(f"{entry}: holds no images; add some or remove the folder")
    for file in files:
        if not file.is_file():
            raise DataError(f"{file}: neither an image file nor a link to one; remove it")
    return files


def image_parquet(path: Path) -> Images:
    """A Parquet with `image` (encoded bytes, or nested lists H×W or C×H×W) and `label`."""
    try:
        content = pq.read_table(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; set data.path to a Parquet file") from None
    except (pa.ArrowException, OSError) as error:
        first = str(error).splitlines()[0]
        raise DataError(f"{path}: not a readable Parquet file ({first}); write it again") from None
    missing = {"image", "label"} - set(content.column_names)
    if missing:
        raise DataError(f"{path}: has no column '{min(missing)}'; it needs image and label")
    if not len(content):
        raise DataError(f"{path}: holds no images; add some rows")
    labels = content["label"].to_pylist()
    for at, label in enumerate(labels):
        if not isinstance(label, str | int) or isinstance(label, bool) or label == "":
            raise DataError(f"{path}: row {at} has label {label!r}; labels are text or integers")
        if isinstance(label, int) and label < 0:
            raise DataError(
                f"{path}: row {at} has label {label}, and labels count from 0; label or remove it"
            )
    origins = [f"row {i}" for i in range(len(labels))]
    arrays = [
        _decoded(io.BytesIO(value), f"{path}: {origin}")
        if isinstance(value, bytes)
        else _listed(value, f"{path}: {origin}")
        for value, origin in zip(content["image"].to_pylist(), origins, strict=True)
    ]
    return Images(_stacked(arrays, origins, path), [str(v) for v in labels], origins)


def unambiguous(images: Images, where: str) -> None:
    """Refuse an image that has two labels: no model can be right about both."""
    first: dict[bytes, int] = {}
    pairs: list[tuple[int, int]] = []
    for at, pixels in enumerate(images.pixels):
        before = first.setdefault(hashlib.sha256(pixels.tobytes()).digest(), at)
        if images.labels[before] != images.labels[at]:
            pairs.append((before, at))
    if pairs:
        told = " and ".join(f"{images.origins[i]} ('{images.labels[i]}')" for i in pairs[0])
        raise DataError(
            f"{where}: {told} are the same image under two labels ({len(pairs)} in all); "
            "correct the label, or remove both"
        )


def _decoded(source: Path | io.BytesIO, where: str) -> NDArray[np.uint8]:
    """One image file as uint8 (C, H, W): grey stays one channel, everything else becomes RGB."""
    if isinstance(source, Path) and source.suffix.lower() not in SUFFIXES:
        raise DataError(f"{where}: not an image file; remove it or convert it to PNG")
    try:
        with Image.open(source) as image:
            mode, grey = image.mode, image.mode in ("1", "L")
            converted = image.convert("L" if grey else "RGB") if mode in MODES else None
    except Exception:  # a decoder meets a broken file in its own ways
        raise DataError(f"{where}: cannot be decoded as an image; mend or remove it") from None
    if converted is None:
        raise DataError(
            f"{where}: is of mode {mode}, whose values 8 bits or three channels cannot "
            "hold; convert it to 8-bit grey or RGB, or give a Parquet of numbers"
        )
    pixels = np.asarray(converted, dtype=np.uint8)
    return pixels[None] if grey else pixels.transpose(2, 0, 1)


def _listed(value: object, where: str) -> NDArray[np.uint8] | NDArray[np.float32]:
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
    found = [name for name in TEACHER_FILES if (source / name).is_file()]
    if found == ["spec.json"]:
        others = sorted(p.name for p in source.iterdir() if p.name not in TEACHER_FILES)
        closed = f" ({others[0]} stays closed: a pickle can execute)" if others else ""
        raise TeacherError(
            f"{source}: no weights.safetensors or model.onnx here{closed}; save the weights with "
            "safetensors, or export them to ONNX"
        )
    into.mkdir(parents=True)
    for name in found:
        shutil.copyfile(inside(source, source / name), into / name)


def _same(a: Path, b: Path) -> bool:
    """Both folders hold the same files with the same bytes."""
    if not b.is_dir():
        return False
    ours, theirs = ({p.relative_to(f) for p in f.rglob("*") if p.is_file()} for f in (a, b))
    return ours == theirs and all(filecmp.cmp(a / p, b / p, shallow=False) for p in ours)
