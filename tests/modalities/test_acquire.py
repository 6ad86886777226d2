"""Every flaw of a source is one line that names it, and the old snapshot stays."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tasks.core.errors import DataError
from tasks.core.files import tree_sha256
from tasks.modalities.vision.acquire import take
from tasks.modalities.vision.decoding import decoded
from tasks.modalities.vision.snapshot import read_snapshot


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of six RGB images, 16 × 20."""
    draw = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(6):
            pixels = draw.integers(0, 255, (16, 20, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pets" / name / f"{i}.png")
    return tmp_path / "pets"


def parquet(path: Path, images: list[object], labels: list[object]) -> Path:
    pq.write_table(pa.table({"image": images, "label": labels}), path)
    return path


def test_digits_come_with_their_range_and_classes(tmp_path: Path) -> None:
    assert take("digits", None, None, tmp_path / "raw")
    info, images = read_snapshot(tmp_path / "raw")
    assert (info.rows, info.data.shape, info.data.range) == (1797, (1, 8, 8), (0, 16))
    assert len(info.data.classes) == 10
    assert images.pixels.dtype == np.uint8


def test_an_unchanged_source_changes_nothing(tmp_path: Path) -> None:
    assert take("digits", None, None, tmp_path / "raw")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "raw").iterdir()}
    assert not take("digits", None, None, tmp_path / "raw")
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "raw").iterdir()} == before


def test_a_folder_of_images_becomes_a_snapshot(folder: Path, tmp_path: Path) -> None:
    assert take("images", folder, None, tmp_path / "raw")
    info, images = read_snapshot(tmp_path / "raw")
    assert info.data.shape == (3, 16, 20)
    assert info.data.classes == ("cat", "dog")
    first = np.asarray(Image.open(folder / "cat" / "0.png")).transpose(2, 0, 1)
    assert np.array_equal(images.pixels[0], first)
    assert images.origins[0] == "cat/0.png"


def test_a_parquet_of_lists_or_of_encoded_bytes_gives_the_same_pixels(
    folder: Path, tmp_path: Path
) -> None:
    files = sorted(folder.rglob("*.png"))
    labels = [f.parent.name for f in files]
    encoded = parquet(tmp_path / "e.parquet", [f.read_bytes() for f in files], labels)
    lists = [np.asarray(Image.open(f)).transpose(2, 0, 1).tolist() for f in files]
    listed = parquet(tmp_path / "l.parquet", lists, labels)
    take("parquet", encoded, None, tmp_path / "a")
    take("parquet", listed, None, tmp_path / "b")
    assert np.array_equal(
        read_snapshot(tmp_path / "a")[1].pixels, read_snapshot(tmp_path / "b")[1].pixels
    )


def _size(folder: Path) -> None:
    Image.new("RGB", (8, 8)).save(folder / "cat" / "9.png")


def _undecodable(folder: Path) -> None:
    (folder / "cat" / "0.png").write_bytes(b"\x89PNG but not really")


def _truncated(folder: Path) -> None:
    file = folder / "cat" / "0.png"
    file.write_bytes(file.read_bytes()[:200])


def _sixteen_bits(folder: Path) -> None:
    Image.fromarray(np.full((16, 20), 4000, np.uint16)).save(folder / "cat" / "0.png")


def _transparent(folder: Path) -> None:
    Image.new("RGBA", (20, 16), (1, 2, 3, 4)).save(folder / "cat" / "0.png")


def _clear_palette(folder: Path) -> None:
    Image.new("P", (20, 16)).save(folder / "cat" / "0.png", transparency=0)


def _pages(folder: Path) -> None:
    (folder / "cat" / "0.png").unlink()
    pages = [Image.new("RGB", (20, 16), (i, 0, 0)) for i in range(3)]
    pages[0].save(folder / "cat" / "0.tiff", save_all=True, append_images=pages[1:])


def _no_image(folder: Path) -> None:
    (folder / "cat" / "notes.txt").write_text("hello")


def _link(folder: Path) -> None:
    (folder.parent / "x.png").write_bytes((folder / "cat" / "0.png").read_bytes())
    (folder / "cat" / "x.png").symlink_to(folder.parent / "x.png")


def _one_class(folder: Path) -> None:
    for file in (folder / "dog").iterdir():
        file.unlink()
    (folder / "dog").rmdir()


def _rare(folder: Path) -> None:
    for i in range(2, 6):
        (folder / "dog" / f"{i}.png").unlink()


def _empty(folder: Path) -> None:
    for file in folder.rglob("*.png"):
        file.unlink()


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (_size, r"cat/9.png is 3×8×8 .* but cat/0.png is 3×16×20"),
        (_undecodable, r"cat/0.png: cannot be decoded"),
        (_truncated, r"cat/0.png: cannot be decoded"),
        (_sixteen_bits, r"cat/0.png: is of mode I;16"),
        (_transparent, r"cat/0.png: is of mode RGBA"),
        (_clear_palette, r"cat/0.png: has transparent parts"),
        (_pages, r"cat/0.tiff: holds 3 images; give each a file"),
        (_no_image, r"cat/notes.txt: not an image file"),
        (_link, "leads out of"),
        (_one_class, r"only one class \('cat'\)"),
        (_rare, "class 'dog' has 2 images"),
        (_empty, "holds no images"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_flawed_folder_is_named_and_the_old_snapshot_stays(
    folder: Path, tmp_path: Path, harm: object, says: str
) -> None:
    take("images", folder, None, tmp_path / "raw")
    before = tree_sha256(tmp_path / "raw")
    harm(folder)  # type: ignore[operator]
    with pytest.raises(DataError, match=says) as caught:
        take("images", folder, None, tmp_path / "raw")
    assert "\n" not in str(caught.value)
    assert tree_sha256(tmp_path / "raw") == before
    assert not list(tmp_path.glob(".raw.*"))


def test_a_photo_is_seen_as_the_camera_was_held(tmp_path: Path) -> None:
    tall = Image.new("L", (4, 6))
    tall.paste(255, (0, 0, 4, 2))  # its top is white
    turned, orientation = tall.transpose(Image.Transpose.ROTATE_90), Image.Exif()
    orientation[0x0112] = 6  # to be turned a quarter clockwise
    turned.save(tmp_path / "held.png", exif=orientation)

    pixels = decoded(tmp_path / "held.png", "held.png")

    assert pixels.tolist() == np.asarray(tall)[None].tolist()


@pytest.mark.parametrize(
    ("images", "labels", "says"),
    [
        ([[[0.1, float("nan")]]] * 10, ["a", "b"] * 5, "NaN or infinite"),
        ([[[0.1, float("inf")]]] * 10, ["a", "b"] * 5, "NaN or infinite"),
        ([[[1, 2], [3]]] * 10, ["a", "b"] * 5, "ragged"),
        ([["x"]] * 10, ["a", "b"] * 5, "not an image of numbers"),
        ([[[1]]] * 10, [None, "b"] * 5, "row 0 has label None"),
        ([[[1]]] * 10, [0.5, 1.5] * 5, "row 0 has label 0.5"),
    ],
)
def test_a_flawed_parquet_is_one_line(
    tmp_path: Path, images: list[object], labels: list[object], says: str
) -> None:
    with pytest.raises(DataError, match=says):
        take("parquet", parquet(tmp_path / "x.parquet", images, labels), None, tmp_path / "raw")
    assert not (tmp_path / "raw").exists()


def test_integer_labels_are_classes_in_the_order_of_numbers(tmp_path: Path) -> None:
    labels = [n for n in (10, 9, 2, 1) for _ in range(5)]
    images = [[[n, i], [i, n]] for i, n in enumerate(labels)]
    take("parquet", parquet(tmp_path / "x.parquet", images, labels), None, tmp_path / "raw")
    assert read_snapshot(tmp_path / "raw")[0].data.classes == ("1", "2", "9", "10")


def test_a_parquet_that_is_none_or_lacks_a_column_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_text("hello")
    with pytest.raises(DataError, match="not a readable Parquet"):
        take("parquet", tmp_path / "x.parquet", None, tmp_path / "raw")
    pq.write_table(pa.table({"image": [1]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match="no column 'label'"):
        take("parquet", tmp_path / "x.parquet", None, tmp_path / "raw")
    with pytest.raises(DataError, match="no such file"):
        take("parquet", tmp_path / "y.parquet", None, tmp_path / "raw")


def test_a_snapshot_changed_behind_its_back_is_refused(tmp_path: Path) -> None:
    take("digits", None, None, tmp_path / "raw")
    file = tmp_path / "raw" / "images.parquet"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DataError, match="missing, truncated or changed"):
        read_snapshot(tmp_path / "raw")


def grouped(path: Path, folder: Path, **columns: list[object]) -> Path:
    """The images of `folder` as a Parquet with further columns, each value of which is repeated."""
    files = sorted(folder.rglob("*.png"))
    content = {"image": [f.read_bytes() for f in files], "label": [f.parent.name for f in files]}
    more = {n: [v[i % len(v)] for i in range(len(files))] for n, v in columns.items()}
    pq.write_table(pa.table(content | more), path)
    return path


def test_declared_columns_come_along_as_text_and_others_do_not(
    folder: Path, tmp_path: Path
) -> None:
    source = grouped(tmp_path / "x.parquet", folder, site=["A", None], device=[1, 2, 3], other=[0])
    take("parquet", source, None, tmp_path / "raw", subgroups=("site", "device"))
    _, images = read_snapshot(tmp_path / "raw")
    assert set(images.groups) == {"site", "device"}
    assert images.groups["site"][:2] == ["A", "(missing)"]
    assert images.groups["device"][:4] == ["1", "2", "3", "1"]


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({}, "has no column 'site'; it needs image and label and site"),
        ({"site": [1.5]}, "row 0 has site 1.5; subgroups are text, integers or booleans"),
    ],
)
def test_a_subgroup_column_that_is_none_is_one_line(
    columns: dict[str, list[object]], says: str, folder: Path, tmp_path: Path
) -> None:
    source = grouped(tmp_path / "x.parquet", folder, **columns)
    with pytest.raises(DataError, match=says):
        take("parquet", source, None, tmp_path / "raw", subgroups=("site",))


def test_a_column_of_names_is_no_subgroup(tmp_path: Path) -> None:
    images = [np.full((4, 4), i).tolist() for i in range(60)]
    labels = [["a", "b"][i % 2] for i in range(60)]
    content = {"image": images, "label": labels, "patient": [f"p{i}" for i in range(60)]}
    pq.write_table(pa.table(content), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"'patient' has 60 values, .* at most 50"):
        take("parquet", tmp_path / "x.parquet", None, tmp_path / "raw", subgroups=("patient",))
