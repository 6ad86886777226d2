"""The idx files of MNIST's format: what they hold, and what is wrong with them in one line."""

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tasks.core.errors import DataError
from tasks.modalities.vision.acquire import take
from tasks.modalities.vision.snapshot import Images, read_snapshot
from tasks.modalities.vision.sources.idx import DEBIAN

NAMES = ("shirt", "bag")


def idx(values: NDArray[np.uint8]) -> bytes:
    head = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    return head + values.tobytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve train and six test images of 2×3, labels 0 and 1 in turn; the images compressed."""
    draw = np.random.default_rng(0)
    for name, count in (("train", 12), ("t10k", 6)):
        images = draw.integers(0, 256, (count, 2, 3)).astype(np.uint8)
        labels = (np.arange(count) % 2).astype(np.uint8)
        (tmp_path / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (tmp_path / f"{name}-labels-idx1-ubyte").write_bytes(idx(labels))
    return tmp_path


def taken(folder: Path, classes: tuple[str, ...] | None = None) -> tuple[tuple[str, ...], Images]:
    take("idx", folder, None, folder / "raw", classes=classes)
    info, images = read_snapshot(folder / "raw")
    return info.data.classes, images


def test_the_test_files_are_marked_as_the_given_test_split(folder: Path) -> None:
    _, images = taken(folder)

    assert images.pixels.shape == (18, 1, 2, 3)
    assert images.test is not None
    assert images.test.tolist() == [False] * 12 + [True] * 6
    assert (images.origins[0], images.origins[12]) == ("train row 0", "test row 0")
    stored = gzip.decompress((folder / "t10k-images-idx3-ubyte.gz").read_bytes())
    assert images.pixels[12:].tobytes() == stored[16:]


def test_classes_keep_the_order_of_the_labels_and_not_of_their_names(folder: Path) -> None:
    classes, images = taken(folder, NAMES)

    assert classes == NAMES
    assert images.labels[:3] == ["shirt", "bag", "shirt"]


def test_without_names_a_class_is_called_by_its_number(folder: Path) -> None:
    many = np.arange(60, dtype=np.uint8) % 12
    draw = np.random.default_rng(1).integers(0, 256, (60, 2, 3)).astype(np.uint8)
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(draw)))
    (folder / "train-labels-idx1-ubyte").write_bytes(idx(many))

    classes, _ = taken(folder)

    assert classes == tuple(map(str, range(12))), "in the order of numbers: 2 before 10"


def test_a_published_image_under_two_labels_is_left_to_validation(folder: Path) -> None:
    images = np.zeros((12, 2, 3), dtype=np.uint8)
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))

    _, found = taken(folder)

    assert len(found.labels) == 18


def _change(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    def harm(folder: Path) -> None:
        path = folder / name
        if name.endswith(".gz"):
            path.write_bytes(gzip.compress(change(gzip.decompress(path.read_bytes()))))
        else:
            path.write_bytes(change(path.read_bytes()))

    return harm


LABELS, IMAGES = "train-labels-idx1-ubyte", "train-images-idx3-ubyte.gz"
FEWER = idx(np.zeros(11, dtype=np.uint8))
WIDE = idx(np.zeros((12, 2, 4), dtype=np.uint8))


@pytest.mark.parametrize(
    ("harm", "classes", "says"),
    [
        (lambda f: (f / LABELS).unlink(), None, f"has no {LABELS}, plain or .gz"),
        (_change(LABELS, lambda b: b"PNG!" + b), None, f"{LABELS}: not an idx file .magic 504e"),
        (_change(IMAGES, lambda b: b[:2]), None, "not an idx file .magic 0000"),
        (_change(LABELS, lambda b: b"\0\0\x0d\1" + b[4:]), None, "magic 00000d01 is not .*0801"),
        (_change(IMAGES, lambda b: b"\0\0\x08\1" + b[4:]), None, "magic 00000801 is not .*0803"),
        (_change(LABELS, lambda b: b[:-3]), None, "promises 12 values and it holds 9; fetch"),
        (_change(LABELS, lambda b: b[:6]), None, "promises 0 values and it holds 0"),
        (_change(IMAGES, lambda b: b + b"!"), None, "promises 72 values and it holds more"),
        (_change(LABELS, lambda _: FEWER), None, "train has 12 images and 11 labels"),
        (_change(IMAGES, lambda _: WIDE), None, r"test images are 1×2×3 .* train images are 1×2×4"),
        (lambda f: (f / IMAGES).write_bytes((f / IMAGES).read_bytes()[:-9]), None, "not a whole g"),
        (lambda f: (f / IMAGES).write_bytes(b"hello"), None, "not a whole gzip file"),
        (lambda _: None, ("a", "b", "c"), "label 2 is in no file; data.classes names"),
        (lambda _: None, ("a",), "label 1 is in the files and has no name"),
    ],
)  # fmt: skip
def test_a_flawed_file_is_named_in_one_line(
    folder: Path, harm: Callable[[Path], object], classes: tuple[str, ...] | None, says: str
) -> None:
    harm(folder)

    with pytest.raises(DataError, match=says) as caught:
        taken(folder, classes)

    assert "\n" not in str(caught.value)
    assert not (folder / "raw").exists()


def test_a_header_that_lies_asks_for_no_memory(folder: Path) -> None:
    _change(IMAGES, lambda b: b[:4] + b"\xff" * 12 + b[16:])(folder)

    with pytest.raises(DataError, match="values and it holds 72"):
        taken(folder)


def test_a_link_out_of_the_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    for file in folder.glob("*ubyte*"):
        file.rename(inner / file.name)
    (inner / LABELS).rename(tmp_path / LABELS)
    (inner / LABELS).symlink_to(tmp_path / LABELS)

    with pytest.raises(DataError, match="leads out of"):
        taken(inner)


def test_the_debian_package_is_named_where_its_folder_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = tmp_path / "fashion-mnist"
    monkeypatch.setattr("tasks.modalities.vision.sources.idx.DEBIAN", missing)

    with pytest.raises(DataError, match="install the Debian package dataset-fashion-mnist, or set"):
        take("idx", missing, None, tmp_path / "raw")

    assert str(DEBIAN) == "/usr/share/datasets/fashion-mnist"
