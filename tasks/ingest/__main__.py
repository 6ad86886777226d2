"""Raw snapshot -> train, val and test tables, with their fingerprint."""

from __future__ import annotations

import numpy as np

from tasks.core.errors import DataError
from tasks.core.files import digest, sha256, write_json
from tasks.core.params import section
from tasks.core.stage import main
from tasks.core.tables import DATA, SPLITS, Fingerprint, Split, Table, write_table
from tasks.ingest.params import Shares
from tasks.ingest.split import assign, row_id
from tasks.modalities.vision.snapshot import read_snapshot


def run(_: list[str]) -> None:
    """Read `data/raw`, write the tables and `data/fingerprint.json`."""
    shares = section("data.split", Shares)
    info, images = read_snapshot(DATA / "raw")
    code = {name: index for index, name in enumerate(info.data.classes)}
    labels = np.array([code[label] for label in images.labels], dtype=np.int64)
    ids = [row_id(image) for image in images.pixels]
    side = assign(ids, shares)
    # Sorted by content: the order of files in a folder or of rows in a query changes nothing.
    order = np.lexsort((labels, np.array(ids)))
    table = Table(np.array(ids)[order], labels[order], images.pixels[order])
    splits = {}
    for split in SPLITS:
        part = table.take(side[order] == split)
        if not len(part):
            raise DataError(
                f"data/raw: no row falls into {split}; add rows or raise data.split.{split}"
            )
        path = DATA / f"{split}.parquet"
        write_table(path, part)
        counts = np.bincount(part.labels, minlength=len(code)).tolist()
        splits[split] = Split(
            rows=len(part),
            sha256=sha256(path),
            per_class=dict(zip(info.data.classes, counts, strict=True)),
        )
        print(f"ingest: {split} {len(part):,} rows")
    train = table.take(side[order] == "train").images
    content = {
        "format": "stillhouse/fingerprint/1",
        "data": info.data.model_dump(mode="json"),
        "snapshot": info.sha256,
        "splits": {name: split.model_dump(mode="json") for name, split in splits.items()},
        "mean": round(float(train.mean(dtype=np.float64)), 6),
        "std": round(max(float(train.std(dtype=np.float64)), 1e-6), 6),
    }
    fingerprint = Fingerprint.model_validate({**content, "digest": digest(content)})
    write_json(DATA / "fingerprint.json", fingerprint.model_dump(mode="json"))


if __name__ == "__main__":
    main(run)
