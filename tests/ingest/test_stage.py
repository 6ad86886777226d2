"""The stage on small snapshots: who makes the test split, and what never reaches training."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tasks.core.errors import DataError
from tasks.core.rows import read_rows, row_keys
from tasks.core.subgroups import SUBGROUPS, read_subgroups
from tasks.core.tables import QUARANTINE, UNLABELLED, Schema, read_fingerprint, read_split
from tasks.ingest.__main__ import run
from tasks.ingest.split import row_id
from tasks.modalities.vision.snapshot import Images, Kind, write_snapshot

SHARES = "{train: 0.6, val: 0.2, test: 0.2}"
GIVEN = "{train: 0.8, val: 0.2, test: given}"
Pixels = NDArray[np.uint8]


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data/raw").mkdir(parents=True)


def pictures(count: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (count, 1, 3, 3)).astype(np.uint8)


def ingested(
    pixels: Pixels,
    split: str,
    test: NDArray[np.bool_] | None = None,
    transfer: Pixels | None = None,
    strangers: Pixels | None = None,
) -> Schema:
    """Write a snapshot and run the stage on it."""
    labels = ["ab"[i % 2] for i in range(len(pixels))]
    images = Images(pixels, labels, [f"row {i}" for i in range(len(pixels))], ("b", "a"), test)
    named: dict[Kind, Pixels | None] = {"transfer": transfer, "strangers": strangers}
    extra = {kind: (more, ["x"] * len(more)) for kind, more in named.items() if more is not None}
    write_snapshot(Path("data/raw"), images, (0.0, 255.0), "a test", extra)
    Path("params.yaml").write_text(f"data:\n  split: {split}\n")
    run([])
    return read_fingerprint().data


def rows(split: str, schema: Schema) -> set[str]:
    return set(read_split(split, schema).rows.tolist())


def test_a_given_test_split_is_the_test_split_and_the_rest_is_divided_by_content() -> None:
    pixels, test = pictures(100), np.arange(100) % 4 == 1

    schema = ingested(pixels, GIVEN, test)

    ids = np.array([row_id(image) for image in pixels])
    assert rows("test", schema) == set(ids[test])
    assert rows("train", schema) | rows("val", schema) == set(ids[~test])
    assert 0.7 < len(rows("train", schema)) / 75 < 0.9


def test_classes_keep_the_order_of_the_source() -> None:
    schema = ingested(pictures(40), SHARES)

    assert schema.classes == ("b", "a")
    table = read_split("train", schema)
    first = next(i for i, p in enumerate(pictures(40)) if row_id(p) == table.rows[0])
    assert table.labels[0] == "ba".index("ab"[first % 2])


def test_a_copy_of_a_given_test_image_leaves_train_and_val(
    capsys: pytest.CaptureFixture[str],
) -> None:
    pixels, test = pictures(100), np.arange(100) >= 80
    pixels[[3, 7, 11]] = pixels[[90, 90, 95]]
    pixels[99] = pixels[98]

    schema = ingested(pixels, GIVEN, test)

    protected = read_split("test", schema).rows
    assert len(protected) == 20, "the given split stays whole, its own copies too"
    assert not set(protected) & (rows("train", schema) | rows("val", schema))
    assert len(read_split("train", schema)) + len(read_split("val", schema)) == 77
    assert "3 rows left out of train and val" in capsys.readouterr().out
    assert read_fingerprint().copies_of_test == 3


@pytest.mark.parametrize(
    ("split", "test", "says"),
    [
        (GIVEN, None, "data/raw: has no test split of its own; write a share as data.split.test"),
        (SHARES, np.arange(40) < 9, "has a test split of its own; write data.split.test: given"),
    ],
)
def test_shares_that_the_snapshot_contradicts_are_refused(
    split: str, test: NDArray[np.bool_] | None, says: str
) -> None:
    with pytest.raises(DataError, match=says):
        ingested(pictures(40), split, test)


def empty_quarantine() -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    none = {field.name: pa.array([], field.type) for field in QUARANTINE}
    pq.write_table(pa.table(none, schema=QUARANTINE), "data/quarantine.parquet")


def test_a_transfer_row_that_is_labelled_anywhere_never_reaches_training(
    capsys: pytest.CaptureFixture[str],
) -> None:
    labelled, new = pictures(60), pictures(10, seed=1)
    empty_quarantine()

    schema = ingested(labelled, SHARES, transfer=np.concatenate([new, labelled, new[:2]]))

    learned = read_rows(schema, transfer=True)
    train = len(read_split("train", schema))
    assert len(learned) == train + 10
    assert learned.labels[train:].tolist() == [UNLABELLED] * 10
    assert set(learned.keys[train:]) == set(row_keys([row_id(image) for image in new]))
    protected = row_keys(list(rows("val", schema) | rows("test", schema)))
    assert not set(learned.keys) & set(protected)
    assert "transfer 10 rows; 62 left out" in capsys.readouterr().out
    assert len(read_rows(schema)) == train, "what learns from labels sees none of it"


def test_the_transfer_set_counts_in_the_digest_of_the_data_and_none_is_an_empty_table() -> None:
    digests = []
    for transfer in (None, pictures(5, seed=1), pictures(6, seed=1)):
        schema = ingested(pictures(40), SHARES, transfer=transfer)
        digests.append(read_fingerprint().digest)
        found = 0 if transfer is None else len(transfer)
        assert len(read_split("transfer", schema)) == found
    assert len(set(digests)) == 3


def test_strangers_have_a_table_of_their_own_that_nothing_learns_from(
    capsys: pytest.CaptureFixture[str],
) -> None:
    labelled, new = pictures(60), pictures(10, seed=1)
    empty_quarantine()
    without = read_fingerprint_of(labelled)

    schema = ingested(labelled, SHARES, strangers=np.concatenate([new, labelled[:3]]))

    assert rows("strangers", schema) == {row_id(image) for image in new}
    assert "strangers 10 rows; 3 left out" in capsys.readouterr().out
    assert len(read_split("transfer", schema)) == 0
    assert len(read_rows(schema, transfer=True)) == len(read_split("train", schema))
    assert read_fingerprint().digest != without


def read_fingerprint_of(labelled: Pixels) -> str:
    ingested(labelled, SHARES)
    return read_fingerprint().digest


def test_a_stranger_that_is_in_the_transfer_set_is_none() -> None:
    new = pictures(10, seed=1)

    schema = ingested(pictures(60), SHARES, transfer=new[:6], strangers=new[4:])

    assert rows("transfer", schema) == {row_id(image) for image in new[:6]}
    assert rows("strangers", schema) == {row_id(image) for image in new[6:]}


def test_rows_without_a_transfer_set_are_the_training_rows() -> None:
    schema = ingested(pictures(40), SHARES)
    empty_quarantine()

    both = [read_rows(schema, transfer=transfer) for transfer in (False, True)]

    assert both[0].digest == both[1].digest


def test_subgroups_follow_their_rows_into_the_test_table_and_nowhere_else() -> None:
    pixels = pictures(60)
    parity = [["even", "odd"][int(image.sum()) % 2] for image in pixels]
    labels = ["ab"[i % 2] for i in range(60)]
    images = Images(pixels, labels, ["x"] * 60, ("b", "a"), groups={"parity": parity})
    write_snapshot(Path("data/raw"), images, (0.0, 255.0), "a test")
    Path("params.yaml").write_text(f"data:\n  split: {SHARES}\n")
    run([])

    test = read_split("test", read_fingerprint().data)
    found = read_subgroups(SUBGROUPS, test.rows)
    expected = [["even", "odd"][int(image.sum()) % 2] for image in test.images]
    assert set(expected) == {"even", "odd"}
    assert {name: values.tolist() for name, values in found.items()} == {"parity": expected}
    with pytest.raises(DataError, match=r"of other rows than data/test\.parquet; run ingest"):
        read_subgroups(SUBGROUPS, test.rows[::-1])


def test_without_declared_columns_there_are_no_subgroups() -> None:
    schema = ingested(pictures(60), SHARES)
    assert read_subgroups(SUBGROUPS, read_split("test", schema).rows) == {}
