"""Idx files, transfer sets and former weights that nobody can learn from or start from."""

from __future__ import annotations

import gzip
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.bad_input.case import Case, params

Harm = Callable[[Path], object]

SPLIT = {"train": 0.8, "val": 0.2, "test": "given"}
IMAGES, LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte"


def idx(harm: Harm, **data: object) -> Harm:
    """`idx/`: 20 train and 10 test images of 4×4 in two classes, then harmed."""

    def arrange(root: Path) -> None:
        (root / "idx").mkdir()
        for name, count in (("train", 20), ("t10k", 10)):
            images = np.arange(count * 16, dtype=np.uint16).astype(np.uint8).tobytes()
            head = struct.pack(">HBB3I", 0, 8, 3, count, 4, 4)
            path = root / "idx" / f"{name}-images-idx3-ubyte.gz"
            path.write_bytes(gzip.compress(head + images))
            labels = struct.pack(">HBBI", 0, 8, 1, count) + bytes([0, 1] * (count // 2))
            (root / "idx" / f"{name}-labels-idx1-ubyte").write_bytes(labels)
        values = {"source": "idx", "path": "idx", "split": SPLIT} | data
        params({f"data.{key}": value for key, value in values.items()})(root)
        harm(root / "idx")

    return arrange


def _as_found(_: Path) -> None:
    """The files are sound."""


def _fewer_labels(folder: Path) -> None:
    (folder / LABELS).write_bytes(struct.pack(">HBBI", 0, 8, 1, 19) + bytes([0] * 19))


def transfer(images: list[object], **columns: list[str]) -> Harm:
    """`more.parquet` as a transfer set of the digits."""

    def arrange(root: Path) -> None:
        pq.write_table(pa.table({"image": images, **columns}), root / "more.parquet")
        params({"data.transfer": "more.parquet"})(root)

    return arrange


def _classes_of_transfer(root: Path) -> None:
    (root / "more" / "seven").mkdir(parents=True)
    Image.new("L", (8, 8)).save(root / "more/seven/0.png")
    params({"data.transfer": "more"})(root)


def start(rung: str, harm: Harm = _as_found) -> Harm:
    """`former/`: a rung of this checkout, harmed, as a warm start."""

    def arrange(root: Path) -> None:
        shutil.copytree(root / "models" / rung, root / "former")
        params({"distill.warm_start": "former"})(root)
        harm(root / "former")

    return arrange


DARK = [[[0] * 8] * 8] * 3
IDX = (
    Case(
        "a folder of idx files that is not there",
        params({"data.source": "idx", "data.path": "idx", "data.split": SPLIT}),
        ("idx: no such folder", "set data.path to a folder of idx files"),
    ),
    Case(
        "an idx file that is missing",
        idx(lambda folder: (folder / LABELS).unlink()),
        (f"idx: has no {LABELS}, plain or .gz", "correct data.path"),
    ),
    Case(
        "a file that is no idx file",
        idx(lambda folder: (folder / LABELS).write_bytes(b"PNG!")),
        (f"{LABELS}: not an idx file (magic 504e4721)", "replace it"),
    ),
    Case(
        "an idx file that is cut off",
        idx(lambda folder: os.truncate(folder / LABELS, 20)),
        (f"{LABELS}: its header promises 20 values and it holds 12", "fetch it again"),
    ),
    Case(
        "a compressed idx file that is cut off",
        idx(lambda folder: os.truncate(folder / IMAGES, 60)),
        (f"{IMAGES}: not a whole gzip file", "fetch it again"),
    ),
    Case(
        "more images than labels",
        idx(_fewer_labels),
        ("idx: train has 20 images and 19 labels", "give files of one data set"),
    ),
    Case(
        "fewer names than labels",
        idx(_as_found, classes=["a", "b", "c"]),
        ("idx: label 2 is in no file", "data.classes names every label in its order"),
    ),
    Case(
        "a transfer set that is not there",
        params({"data.transfer": "more"}),
        ("more: no such folder or file", "correct data.transfer"),
    ),
    Case(
        "strangers that are not there",
        params({"data.strangers": "more"}),
        ("more: no such folder or file", "correct data.strangers"),
    ),
    Case(
        "a transfer set with labels",
        transfer(DARK, label=["0"] * 3),
        ("more.parquet: data.transfer has no labels", "remove the column 'label'"),
    ),
    Case(
        "a transfer set in folders of classes",
        _classes_of_transfer,
        ("more/seven: images of data.transfer have no classes", "move them up"),
    ),
    Case(
        "a transfer set of another size",
        transfer([[[0] * 9] * 9]),
        ("more.parquet: row 0 is 1×9×9", "1×8×8", "bring all images to one size"),
    ),
    Case(
        "a transfer set of another scale",
        transfer([[[200] * 8] * 8]),
        ("more.parquet: holds uint8 of 200 to 200", "uint8 of 0 to 16", "scale all images alike"),
    ),
    Case(
        "a warm start from a champion that there is not",
        params({"distill.warm_start": "champion"}),
        ("distill.warm_start: digits has no champion yet", "set distill.warm_start: null"),
    ),
    Case(
        "a warm start from a folder without weights",
        params({"distill.warm_start": "former"}),
        ("former/spec.json: no such file", "distill.warm_start is champion, or a folder"),
    ),
    Case(
        "a warm start from another architecture",
        start("assistant"),
        ("former: has another architecture than student", "set distill.warm_start: null"),
    ),
    Case(
        "a warm start from weights that are not those of its spec",
        start("student", lambda folder: os.truncate(folder / "weights.safetensors", 99)),
        ("weights.safetensors: is not the file that", "former/spec.json names", "restore the pair"),
    ),
)
