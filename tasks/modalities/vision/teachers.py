"""A given teacher's files, taken into the snapshot by name; nothing else of its folder is read."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from tasks.core.errors import TeacherError
from tasks.core.files import inside
from tasks.core.models import FILES, ONNX, WEIGHTS

Source = Literal["safetensors", "onnx", "huggingface"]
SOURCES: tuple[Source, ...] = get_args(Source)

PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib"}


@dataclass(frozen=True)
class Given:
    """A teacher of kind `source` in the folder `path`; `place` is its own below `raw/teacher`."""

    source: Source
    path: Path
    place: str = "."


def copy_teachers(teachers: Sequence[Given], into: Path) -> None:
    """Copy each teacher's files to its place below `into`; a missing one is a `TeacherError`."""
    for given in teachers:
        names = _hugging(given.path) if given.source == "huggingface" else _own(given.path)
        (into / given.place).mkdir(parents=True)
        for name in names:
            shutil.copyfile(inside(given.path, given.path / name), into / given.place / name)


def _own(folder: Path) -> list[str]:
    """`spec.json` and the weights beside it."""
    if not (folder / "spec.json").is_file():
        raise TeacherError(
            f"{folder}: no spec.json here; teach.path is a folder with spec.json "
            "beside weights.safetensors or model.onnx"
        )
    found = [name for name in (WEIGHTS, ONNX) if (folder / name).is_file()]
    if not found:
        raise TeacherError(
            f"{folder}: no weights.safetensors or model.onnx here{_closed(folder)}; save the "
            "weights with safetensors, or export them to ONNX"
        )
    return ["spec.json", *found]


def _hugging(folder: Path) -> list[str]:
    """What `save_pretrained` of a model and of its image processor write."""
    for name in FILES["huggingface"]:
        if not (folder / name).is_file():
            closed = _closed(folder) if name.endswith(".safetensors") else ""
            raise TeacherError(
                f"{folder}: no {name} here{closed}; a Hugging Face teacher is a folder with "
                f"{', '.join(FILES['huggingface'])}, as save_pretrained writes them"
            )
    return list(FILES["huggingface"])


def _closed(folder: Path) -> str:
    """Of weights that may hold code: that they were seen, and why they stay unread."""
    there = folder.iterdir() if folder.is_dir() else ()
    found = sorted(path.name for path in there if path.suffix in PICKLES)
    return f" ({found[0]} stays closed: a pickle can execute)" if found else ""
