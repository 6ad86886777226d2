"""A folder of images: one sub-folder per class, or none for images without labels."""

from __future__ import annotations

from pathlib import Path

from tasks.core.errors import DataError
from tasks.core.files import inside
from tasks.modalities.vision.decoding import (
    SUFFIXES,
    decoded,
    image_files,
    stacked,
    visible,
)
from tasks.modalities.vision.snapshot import Images, Kind, Pixels


def labelled_folder(path: Path) -> Images:
    """Images in one sub-folder per class. All of one size and mode; links stay inside."""
    if not path.is_dir():
        raise DataError(f"{path}: no such folder; set data.path to a folder of class sub-folders")
    files = [file for entry in visible(path) for file in _members(path, entry)]
    if not files:
        raise DataError(f"{path}: holds no images; add one sub-folder of images per class")
    pixels, origins = _read(path, files)
    return Images(pixels, [file.parent.name for file in files], origins)


def unlabelled_folder(path: Path, kind: Kind) -> tuple[Pixels, list[str]]:
    """Images that lie in the folder itself, and their names."""
    for entry in visible(path):
        if entry.is_dir():
            raise DataError(f"{entry}: images of data.{kind} have no classes; move them up")
    return _read(path, image_files(path))


def _members(path: Path, entry: Path) -> list[Path]:
    """The files of one class. Whatever would be left out without a word is an error."""
    if not entry.is_dir():
        if entry.suffix.lower() in SUFFIXES:
            raise DataError(f"{entry}: belongs to no class; move it into its class's sub-folder")
        return []
    inside(path, entry)
    return image_files(entry)


def _read(path: Path, files: list[Path]) -> tuple[Pixels, list[str]]:
    arrays = [decoded(inside(path, file), str(file)) for file in files]
    origins = [file.relative_to(path).as_posix() for file in files]
    return stacked(arrays, origins, path), origins
