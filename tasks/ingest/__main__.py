"""Raw snapshot -> train, val, test, transfer and strangers tables, with their fingerprint."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.core.errors import DataError
from tasks.core.files import digest, sha256, write_json
from tasks.core.params import section
from tasks.core.stage import main
from tasks.core.subgroups import SUBGROUPS, write_subgroups
from tasks.core.tables import (
    DATA,
    SPLITS,
    UNLABELLED,
    Fingerprint,
    Split,
    Table,
    Unlabelled,
    write_table,
)
from tasks.ingest.params import Shares
from tasks.ingest.split import row_id, sides
from tasks.modalities.vision.snapshot import (
    KINDS,
    Kind,
    SnapshotInfo,
    read_snapshot,
    read_unlabelled,
)


def run(_: list[str]) -> None:
    """Read `data/raw`, write the tables and `data/fingerprint.json`."""
    shares = section("data.split", Shares)
    info, images = read_snapshot(DATA / "raw")
    code = {name: index for index, name in enumerate(info.data.classes)}
    labels = np.array([code[label] for label in images.labels], dtype=np.int64)
    ids = [row_id(image) for image in images.pixels]
    side = sides(ids, shares, images.test)
    copies = int((side == "").sum())
    if copies:
        print(
            f"ingest: {copies:,} rows left out of train and val, which are in the given test split"
        )
    # Sorted by content: the order of files in a folder or of rows in a query changes nothing.
    order = np.lexsort((labels, np.array(ids)))
    table = Table(np.array(ids)[order], labels[order], images.pixels[order])
    splits = {s: _write(s, table.take(side[order] == s), info.data.classes) for s in SPLITS}
    tested = order[side[order] == "test"]
    groups = {name: np.array(values)[tested].tolist() for name, values in images.groups.items()}
    write_subgroups(SUBGROUPS, np.array(ids)[tested].tolist(), groups)
    unlabelled: dict[Kind, Unlabelled] = {}
    taken = set(ids)
    for kind in KINDS:  # a stranger that is in the transfer set would be learned from
        unlabelled[kind] = _write_unlabelled(kind, info, taken)
    train = table.take(side[order] == "train").images
    content: dict[str, Any] = {
        "format": "stillhouse/fingerprint/1",
        "data": info.data.model_dump(mode="json"),
        "snapshot": info.sha256,
        "splits": {name: split.model_dump(mode="json") for name, split in splits.items()},
        "mean": round(float(train.mean(dtype=np.float64)), 6),
        "std": round(max(float(train.std(dtype=np.float64)), 1e-6), 6),
    }
    if copies:
        content["copies_of_test"] = copies
    for kind, written in unlabelled.items():
        if getattr(info, kind) is not None:
            content[kind] = written.model_dump(mode="json")
    fingerprint = Fingerprint.model_validate({**content, "digest": digest(content)})
    write_json(DATA / "fingerprint.json", fingerprint.model_dump(mode="json", exclude_none=True))


def _write(split: str, part: Table, classes: tuple[str, ...]) -> Split:
    if not len(part):
        raise DataError(
            f"data/raw: no row falls into {split}; add rows or raise data.split.{split}"
        )
    path = DATA / f"{split}.parquet"
    write_table(path, part)
    counts = np.bincount(part.labels, minlength=len(classes)).tolist()
    print(f"ingest: {split} {len(part):,} rows")
    return Split(
        rows=len(part), sha256=sha256(path), per_class=dict(zip(classes, counts, strict=True))
    )


def _write_unlabelled(kind: Kind, info: SnapshotInfo, taken: set[str]) -> Unlabelled:
    """A table without labels: each image once, none that is `taken`, to which they are added;
    perhaps empty."""
    images = read_unlabelled(DATA / "raw", info, kind)
    ids, first = np.unique(np.array([row_id(i) for i in images], dtype="U64"), return_index=True)
    new = np.array([row not in taken for row in ids.tolist()], dtype=bool)
    rows, index = ids[new], first[new]
    labels: NDArray[np.int64] = np.full(len(rows), UNLABELLED, dtype=np.int64)
    path = DATA / f"{kind}.parquet"
    write_table(path, Table(rows, labels, images[index]))
    taken.update(rows.tolist())
    left_out = len(images) - len(rows)
    if len(images):
        print(
            f"ingest: {kind} {len(rows):,} rows; {left_out:,} left out, which come twice or are "
            "in another table"
        )
    return Unlabelled(rows=len(rows), left_out=left_out, sha256=sha256(path))


if __name__ == "__main__":
    main(run)
