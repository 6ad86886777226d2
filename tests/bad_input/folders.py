"""Folders of images that nobody can learn from: found before `data/raw` is replaced."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from tests.bad_input.case import Case, params

Harm = Callable[[Path], object]


def photos(harm: Harm) -> Harm:
    """`photos/`: two classes of six images of 8×8, then harmed."""

    def arrange(root: Path) -> None:
        draw = np.random.default_rng(0)
        for name in ("cat", "dog"):
            (root / "photos" / name).mkdir(parents=True)
            for i in range(6):
                pixels = draw.integers(0, 255, (8, 8, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(root / "photos" / name / f"{i}.png")
        params({"data.source": "images", "data.path": "photos"})(root)
        harm(root / "photos")

    return arrange


def _write(name: str, content: bytes) -> Harm:
    return lambda folder: (folder / name).write_bytes(content)


def _cut(name: str, size: int) -> Harm:
    return lambda folder: os.truncate(folder / name, size)


def _save(name: str, image: Image.Image) -> Harm:
    return lambda folder: image.save(folder / name)


def _move(name: str, to: str) -> Harm:
    return lambda folder: (folder / name).rename(folder / to)


def _link(name: str, to: str) -> Harm:
    """A link to something of the checkout that is no photo."""
    return lambda folder: (folder / name).symlink_to(folder / to)


def _without(*names: str) -> Harm:
    return lambda folder: [(folder / name).unlink() for name in names]


def _only(name: str) -> Harm:
    """One class alone is left."""
    return lambda folder: [shutil.rmtree(c) for c in folder.iterdir() if c.name != name]


def _album(folder: Path) -> None:
    """A class folder that is a link out of `photos`."""
    shutil.move(folder / "dog", folder.parent / "album")
    (folder / "dog").symlink_to(folder.parent / "album")


def _subfolder(folder: Path) -> None:
    (folder / "cat" / "kittens").mkdir()


def _odd_name(folder: Path) -> None:
    (folder / "cat" / "0.png").rename(folder / "cat" / os.fsdecode(b"\xff.png"))


def _twice(folder: Path) -> None:
    for i in range(2):
        shutil.copy(folder / "cat" / f"{i}.png", folder / "dog" / f"copy{i}.png")


def _gone(folder: Path) -> None:
    shutil.rmtree(folder)


def _no_classes(folder: Path) -> None:
    _gone(folder)
    folder.mkdir()


FOLDERS = (
    Case(
        "a folder of images that is not there",
        photos(_gone),
        ("photos: no such folder", "set data.path to a folder of class sub-folders"),
    ),
    Case(
        "a folder without classes",
        photos(_no_classes),
        ("photos: holds no images", "add one sub-folder of images per class"),
    ),
    Case(
        "an empty class",
        photos(_without(*(f"dog/{i}.png" for i in range(6)))),
        ("photos/dog: holds no images", "add some or remove the folder"),
    ),
    Case(
        "one class alone",
        photos(_only("cat")),
        ("photos: only one class ('cat')", "add a second one"),
    ),
    Case(
        "a class of two images",
        photos(_without(*(f"dog/{i}.png" for i in range(2, 6)))),
        ("photos: class 'dog' has 2 images", "add some or remove the class"),
    ),
    Case(
        "images of two sizes",
        photos(_save("cat/9.png", Image.new("RGB", (9, 9)))),
        ("photos: cat/9.png is 3×9×9", "cat/0.png is 3×8×8", "bring all images to one size"),
    ),
    Case(
        "grey images among coloured ones",
        photos(_save("cat/9.png", Image.new("L", (8, 8)))),
        ("photos: cat/9.png is 1×8×8", "bring all images to one size and mode"),
    ),
    Case(
        "an image that cannot be decoded",
        photos(_write("cat/0.png", b"\x89PNG but not really")),
        ("photos/cat/0.png: cannot be decoded as an image", "mend or remove it"),
    ),
    Case(
        "an image that is cut off",
        photos(_cut("cat/0.png", 100)),
        ("photos/cat/0.png: cannot be decoded as an image", "mend or remove it"),
    ),
    Case(
        "an image of no bytes",
        photos(_cut("cat/0.png", 0)),
        ("photos/cat/0.png: cannot be decoded as an image", "mend or remove it"),
    ),
    Case(
        "a file that is no image",
        photos(_write("cat/notes.txt", b"hello")),
        ("photos/cat/notes.txt: not an image file", "remove it or convert it to PNG"),
    ),
    Case(
        "an image of 16 bits",
        photos(_save("cat/0.png", Image.fromarray(np.full((8, 8), 4000, np.uint16)))),
        ("photos/cat/0.png: is of mode I;16", "convert it to 8-bit grey or RGB"),
    ),
    Case(
        "an image with transparency",
        photos(_save("cat/0.png", Image.new("RGBA", (8, 8)))),
        ("photos/cat/0.png: is of mode RGBA", "convert it to 8-bit grey or RGB"),
    ),
    Case(
        "a link out of the folder",
        photos(_link("cat/x.png", "../ship/student/frontier.png")),
        ("photos/cat/x.png: leads out of", "put a copy of the file inside it"),
    ),
    Case(
        "a class that is a link out of the folder",
        photos(_album),
        ("photos/dog: leads out of", "put a copy of the file inside it"),
    ),
    Case(
        "a link to nothing",
        photos(_link("cat/x.png", "cat/nowhere.png")),
        ("photos/cat/x.png: neither an image file nor a link to one", "remove it"),
    ),
    Case(
        "a folder within a class",
        photos(_subfolder),
        ("photos/cat/kittens: neither an image file nor a link to one", "remove it"),
    ),
    Case(
        "an image in no class",
        photos(_move("cat/0.png", "loose.png")),
        ("photos/loose.png: belongs to no class", "move it into its class's sub-folder"),
    ),
    Case(
        "a file name that is not UTF-8",
        photos(_odd_name),
        ("photos/cat: '\\udcff.png' is not a readable name", "rename it"),
    ),
    Case(
        "the same image under two labels",
        photos(_twice),
        ("cat/0.png ('cat') and dog/copy0.png ('dog') are the same image", "(2 in all)", "correct"),
    ),
)
