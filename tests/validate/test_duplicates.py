"""Exact and near duplicates."""

from __future__ import annotations

import numpy as np
import pytest

from tasks.core.tables import Table
from tasks.validate import duplicates
from tasks.validate.duplicates import exact, near


def _near(data, threshold=0.995):
    return near(data.tables, exact(data.tables), threshold)


def test_data_without_copies_has_none(blobs):
    data = blobs()

    copies, alike = exact(data.tables), _near(data)

    for split in data.tables:
        assert not copies[split].later.any()
        assert not copies[split].conflicting.any()
        assert not copies[split].misnamed.any()
        assert set(copies[split].elsewhere) == {""}
        assert sum(alike[split].pairs.values()) == 0


def test_the_later_of_two_equal_rows_is_the_copy_and_knows_the_first(blobs):
    data = blobs()
    data = data.with_rows("train", data.tables["train"].images[4:5], [1])

    copies = exact(data.tables)["train"]

    assert np.flatnonzero(copies.later).tolist() == [90]
    assert copies.first[90] == 4


def test_an_image_in_two_splits_is_found_in_both(blobs):
    data = blobs()
    data = data.with_rows("train", data.tables["test"].images[2:3], [2])

    copies = exact(data.tables)

    assert copies["train"].elsewhere[90] == "test"
    assert copies["test"].elsewhere[2] == "train"


def test_both_rows_of_an_image_under_two_labels_conflict(blobs):
    data = blobs()
    data = data.with_rows("train", data.tables["train"].images[4:5], [2])

    copies = exact(data.tables)["train"]

    assert np.flatnonzero(copies.conflicting).tolist() == [4, 90]


def test_a_row_id_that_names_two_images_is_misnamed(blobs):
    data = blobs()
    table = data.tables["val"]
    rows = table.rows.copy()
    rows[0] = rows[1]

    copies = exact(data.replaced("val", Table(rows, table.labels, table.images)).tables)["val"]

    assert np.flatnonzero(copies.misnamed).tolist() == [0, 1]


@pytest.mark.parametrize("other", ["test", "val"])
def test_a_train_row_nearly_equal_to_a_protected_row_is_found_with_its_position(blobs, other):
    data = blobs()
    planted = data.tables[other].images[5:6].astype(int) + np.eye(4, dtype=int)[None, None]
    data = data.with_rows("train", planted.clip(0, 255), [2])

    alike = _near(data)

    assert np.flatnonzero(alike["train"].similarity).tolist() == [90]
    assert alike["train"].split[90] == other
    assert alike["train"].position[90] == 5
    assert not alike[other].similarity.any()
    assert alike["train"].pairs[other] == 1


def test_a_brighter_and_flatter_copy_is_near(blobs):
    data = blobs(dtype="float32")
    planted = 0.5 * data.tables["test"].images[3:4] + 0.3
    data = data.with_rows("train", planted, [0])

    assert np.flatnonzero(_near(data, 0.9999)["train"].similarity).tolist() == [90]


def test_near_copies_within_a_split_are_counted_once_a_pair(blobs):
    data = blobs()
    planted = data.tables["train"].images[:3].astype(int) + np.eye(4, dtype=int)[None, None]
    data = data.with_rows("train", planted.clip(0, 255), [0, 1, 2])

    alike = _near(data)["train"]

    assert alike.pairs == {"test": 0, "val": 0, "train": 3}
    assert not alike.similarity.any()


def test_equal_images_are_exact_copies_not_near_ones(blobs):
    data = blobs()
    data = data.with_rows("train", data.tables["test"].images[2:3], [2])

    assert _near(data)["train"].pairs["test"] == 0


def test_constant_images_and_images_with_nan_are_like_nothing(blobs):
    data = blobs(dtype="float32")
    flat = np.full((2, 1, 4, 4), 0.1, dtype=np.float32)
    flat[1] = 0.7
    broken = data.tables["test"].images[:1].copy()
    broken[0, 0, 0, 0] = np.nan
    data = data.with_rows("train", flat, [0, 1]).with_rows("test", flat[:1] + 0.1, [0])
    data = data.with_rows("val", broken, [0])

    alike = _near(data, 0.5)

    assert not alike["train"].similarity[90:].any()
    assert not alike["val"].similarity[30:].any()


@pytest.mark.parametrize("threshold", [0.9, 0.96])
def test_filter_and_blocks_find_exactly_what_comparing_all_pairs_finds(threshold, monkeypatch):
    monkeypatch.setattr(duplicates, "BLOCK_VALUES", 3000)
    rng = np.random.default_rng(1)
    base = rng.normal(size=(150, 2, 10, 15))
    images = (base[rng.integers(0, 150, 400)] + rng.normal(0, 0.2, (400, 2, 10, 15))).astype("f4")
    ids = np.array([f"{i:064x}" for i in range(400)])
    cuts = {"train": (0, 240), "val": (240, 300), "test": (300, 400)}
    tables = {
        s: Table(ids[a:b], np.zeros(b - a, np.int64), images[a:b]) for s, (a, b) in cuts.items()
    }

    found = near(tables, exact(tables), threshold)

    flat = {s: t.images.reshape(len(t), -1).astype(np.float64) for s, t in tables.items()}
    unit = {s: (x - x.mean(1, keepdims=True)) for s, x in flat.items()}
    unit = {s: x / np.linalg.norm(x, axis=1, keepdims=True) for s, x in unit.items()}
    inner = {s: np.tril(x @ x.T, -1) >= threshold for s, x in unit.items()}
    protected = unit["train"] @ np.concatenate([unit["test"], unit["val"]]).T
    assert found["train"].pairs["train"] == inner["train"].sum() > 50
    assert found["val"].pairs["val"] == inner["val"].sum() > 0
    assert found["train"].pairs["test"] == (protected[:, :100] >= threshold).sum() > 50
    hit = protected.max(axis=1) >= threshold
    assert (found["train"].similarity > 0).tolist() == hit.tolist()
    best = protected.argmax(axis=1)[hit]
    assert found["train"].position[hit].tolist() == np.where(best < 100, best, best - 100).tolist()
    assert found["train"].split[hit].tolist() == np.where(best < 100, "test", "val").tolist()
