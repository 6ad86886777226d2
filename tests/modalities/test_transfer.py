"""Images without labels, to learn from or as strangers, must be such as the labelled ones are."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tasks.core.errors import DataError
from tasks.core.files import tree_sha256
from tasks.modalities.vision.acquire import take
from tasks.modalities.vision.snapshot import Kind, read_snapshot, read_unlabelled

Shape = tuple[int, ...]


def unlabelled(path: Path, shape: Shape = (8, 8), scale: float = 1, **columns: list[str]) -> Path:
    """A Parquet of five images of digits' size."""
    draw = np.random.default_rng(0).integers(0, 17, (5, *shape))
    images = (draw * scale if scale != 1 else draw).tolist()
    pq.write_table(pa.table({"image": images, **columns}), path)
    return path


def take_with(path: Path | None, raw: Path, kind: Kind = "transfer") -> bool:
    return take("digits", None, None, raw, unlabelled={} if path is None else {kind: path})


def test_a_parquet_of_images_alone_is_kept_beside_the_labelled_ones(tmp_path: Path) -> None:
    path = unlabelled(tmp_path / "x.parquet")

    take_with(path, tmp_path / "raw")

    info, images = read_snapshot(tmp_path / "raw")
    assert (info.rows, len(images.labels)) == (1797, 1797)
    assert info.transfer is not None
    assert info.transfer.rows == 5
    stored = pq.read_table(path)["image"].to_pylist()
    assert read_unlabelled(tmp_path / "raw", info, "transfer")[:, 0].tolist() == stored


def test_a_folder_of_images_gives_the_same_as_a_parquet_of_them(tmp_path: Path) -> None:
    path = unlabelled(tmp_path / "x.parquet")
    (tmp_path / "loose").mkdir()
    for i, image in enumerate(pq.read_table(path)["image"].to_pylist()):
        Image.fromarray(np.array(image, np.uint8)).save(tmp_path / f"loose/{i}.png")

    read = []
    for transfer in (path, tmp_path / "loose"):
        take_with(transfer, tmp_path / "raw")
        info, _ = read_snapshot(tmp_path / "raw")
        read.append(read_unlabelled(tmp_path / "raw", info, "transfer"))

    assert np.array_equal(*read)


def test_a_snapshot_without_a_transfer_set_is_as_it_was_and_reads_as_none(tmp_path: Path) -> None:
    take_with(None, tmp_path / "raw")

    info, _ = read_snapshot(tmp_path / "raw")
    assert {p.name for p in (tmp_path / "raw").iterdir()} == {"images.parquet", "snapshot.json"}
    assert "transfer" not in (tmp_path / "raw/snapshot.json").read_text()
    assert read_unlabelled(tmp_path / "raw", info, "transfer").shape == (0, 1, 8, 8)


@pytest.mark.parametrize(
    ("shape", "scale", "columns", "says"),
    [
        ((9, 9), 1, {}, r"row 0 is 1×9×9 .* but the labelled images are 1×8×8"),
        ((8, 8), 1 / 16, {}, "holds float32 of 0 to 1 but the data is uint8 of 0 to 16"),
        ((8, 8), 15, {}, "holds uint8 of 0 to 240 but the data is uint8 of 0 to 16"),
        ((8, 8), float("nan"), {}, "row 0 has NaN or infinite pixels"),
        ((8, 8), 1, {"label": ["a"] * 5}, "data.transfer has no labels; remove the column"),
    ],
)
def test_images_of_another_kind_are_refused_and_the_old_snapshot_stays(
    tmp_path: Path, shape: Shape, scale: float, columns: dict[str, list[str]], says: str
) -> None:
    take_with(None, tmp_path / "raw")
    before = tree_sha256(tmp_path / "raw")

    with pytest.raises(DataError, match=says) as caught:
        take_with(unlabelled(tmp_path / "x.parquet", shape, scale, **columns), tmp_path / "raw")

    assert "\n" not in str(caught.value)
    assert tree_sha256(tmp_path / "raw") == before


def test_a_transfer_set_that_is_missing_or_has_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such folder or file; correct data\.transfer"):
        take_with(tmp_path / "nowhere", tmp_path / "raw")
    (tmp_path / "loose" / "cat").mkdir(parents=True)
    with pytest.raises(DataError, match=r"images of data\.transfer have no classes; move them up"):
        take_with(tmp_path / "loose", tmp_path / "raw")


def test_a_transfer_set_changed_behind_its_back_is_refused(tmp_path: Path) -> None:
    take_with(unlabelled(tmp_path / "x.parquet"), tmp_path / "raw")
    file = tmp_path / "raw" / "transfer.parquet"
    file.write_bytes(file.read_bytes()[:-1])
    info, _ = read_snapshot(tmp_path / "raw")

    with pytest.raises(DataError, match="missing, truncated or changed"):
        read_unlabelled(tmp_path / "raw", info, "transfer")


def test_strangers_are_kept_beside_a_transfer_set_and_are_not_one(tmp_path: Path) -> None:
    few, raw = unlabelled(tmp_path / "x.parquet"), tmp_path / "raw"
    many = tmp_path / "y.parquet"
    pq.write_table(pa.table({"image": [[[0] * 8] * 8] * 7}), many)

    take("digits", None, None, raw, unlabelled={"transfer": few, "strangers": many})

    info, _ = read_snapshot(raw)
    assert info.transfer is not None
    assert info.strangers is not None
    assert (info.transfer.rows, info.strangers.rows) == (5, 7)
    assert read_unlabelled(raw, info, "strangers").max() == 0
    assert read_unlabelled(raw, info, "transfer").max() > 0


def test_what_is_wrong_with_strangers_is_said_of_them(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such folder or file; correct data\.strangers"):
        take_with(tmp_path / "nowhere", tmp_path / "raw", "strangers")
    labelled = unlabelled(tmp_path / "x.parquet", label=["a"] * 5)
    with pytest.raises(DataError, match=r"data\.strangers has no labels"):
        take_with(labelled, tmp_path / "raw", "strangers")
