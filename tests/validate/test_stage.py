"""`python -m tasks.validate`: files in, files out, exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tasks.core.errors import DataError, GateError, ParamsError
from tasks.core.files import read_json
from tasks.core.rows import read_rows
from tasks.core.tables import QUARANTINE, Table, read_quarantine, write_table
from tasks.validate.__main__ import run

REPORT = Path("reports/validation/report.json")
DOCS = Path("reports/validation/docs")
REPO = Path(__file__).parents[2]


def test_the_report_the_quarantine_and_the_data_docs_are_written(blobs, checkout, capfd):
    data = blobs()
    checkout(data.with_rows("train", data.tables["train"].images[4:5], [1]))

    run([])

    report = read_json(REPORT)
    assert report["format"] == "stillhouse/validation/1"
    assert report["passed"] is True
    assert report["rows"] == {"train": 91, "val": 30, "test": 30}
    assert report["classes"]["train"] == {"ash": 30, "elm": 31, "oak": 30}
    assert report["expectations"][0].keys() == {
        "split",
        "name",
        "severity",
        "success",
        "observed",
        "why",
    }
    assert pq.read_schema("data/quarantine.parquet").equals(QUARANTINE)
    assert read_quarantine(Path("data/quarantine.parquet"))["position"] == [90]
    assert (DOCS / "index.html").is_file()
    pages = {p.parent.parent.parent.name for p in DOCS.glob("validations/*/*/*/*.html")}
    assert pages == {"files", "train", "val", "test", "classes", "pixels"}
    out, err = capfd.readouterr()
    assert err == ""
    assert out.splitlines() == [
        "validate: 151 rows in 3 tables",
        f"validate: {len(report['expectations'])} expectations, 0 critical and 1 warnings fail",
        "warning: train: exact_copies: 1 of 91: row 90 (copy_in_this_split 1); "
        "nothing to do if the quarantine agrees with you",
        "validate: train: 1 rows set aside from training: exact_duplicate",
    ]


def test_an_unlabelled_row_that_is_nearly_a_test_row_is_kept_from_training(blobs, checkout, capfd):
    data = blobs()
    checkout(data)
    images = data.tables["test"].images[3:5].copy()
    images[0, 0, 0, 0] += 1
    images[1] = images[1][..., ::-1]
    names = np.array(["a" * 64, "b" * 64])
    write_table(Path("data/transfer.parquet"), Table(names, np.array([-1, -1]), images))

    run([])

    found = read_quarantine(Path("data/quarantine.parquet"))
    assert (found["split"], found["row"]) == (["transfer"], ["a" * 64])
    assert "to test position 3" in found["detail"][0]
    assert "transfer: 1 rows set aside from training: near_duplicate" in capfd.readouterr().out
    rows = read_rows(data.schema, transfer=True)
    assert len(rows) == len(data.tables["train"]) + 1


def test_two_runs_write_the_same_bytes_and_old_docs_do_not_remain(blobs, checkout):
    data = blobs()
    labels = data.tables["train"].labels.copy()
    labels[6] = 2
    checkout(data.with_labels("train", labels))
    written = []
    for _ in range(2):
        run([])
        written.append((REPORT.read_bytes(), Path("data/quarantine.parquet").read_bytes()))

    assert written[0] == written[1]
    report = read_json(REPORT)
    assert report["set_aside"] == {"train": {"label_issue": 1}}
    assert report["counts"]["failed_warning"] == 0
    assert len(list(DOCS.glob("validations/train/*/*/*.html"))) == 1


def test_critical_failures_stop_after_everything_is_written(blobs, checkout):
    checkout(blobs(dtype="float32").with_value("train", 5, np.nan))

    with pytest.raises(GateError, match=r"train: missing_values .* see reports/validation/docs"):
        run([])

    assert read_json(REPORT)["passed"] is False
    failed = [e for e in read_json(REPORT)["expectations"] if not e["success"]]
    assert all(e["remedy"] for e in failed)
    quarantine = read_quarantine(Path("data/quarantine.parquet"))
    assert (quarantine["position"], quarantine["reason"]) == ([5], ["missing_value"])
    assert (DOCS / "index.html").is_file()


def test_a_table_of_another_type_is_judged_by_its_file_alone(blobs, checkout):
    checkout(blobs())
    table = pq.read_table("data/val.parquet")
    pq.write_table(table.set_column(1, "label", table["label"].cast("int64")), "data/val.parquet")

    with pytest.raises(
        GateError, match=r"validate: val: types fails, .*label_type is int64 \(1 more\)"
    ):
        run([])

    report = read_json(REPORT)
    assert "rows" not in report
    failed = {(e["split"], e["name"]) for e in report["expectations"] if not e["success"]}
    assert failed == {("val", "types"), ("val", "fingerprint")}
    assert read_quarantine(Path("data/quarantine.parquet"))["row"] == []


def test_a_table_changed_after_ingest_is_noticed(blobs, checkout):
    folder = checkout(blobs())
    declared = json.loads((folder / "data/fingerprint.json").read_text())
    declared["splits"]["test"]["sha256"] = "0" * 64
    (folder / "data/fingerprint.json").write_text(json.dumps(declared))

    with pytest.raises(GateError, match="test: fingerprint fails"):
        run([])


def test_an_unknown_option_and_an_argument_are_refused_in_one_line(blobs, checkout):
    checkout(blobs(), near_duplicates=0.9)

    with pytest.raises(ParamsError, match="did you mean 'near_duplicate'"):
        run([])
    with pytest.raises(ParamsError, match="takes no arguments"):
        run(["train"])


def test_a_missing_table_says_which_stage_writes_it(blobs, checkout):
    folder = checkout(blobs())
    (folder / "data/test.parquet").unlink()

    with pytest.raises(DataError, match=r"data/test\.parquet: no such file; run ingest"):
        run([])


def test_the_command_exits_with_1_and_one_line_and_leaves_nothing_of_its_own(blobs, checkout):
    folder = checkout(blobs(), min_rows={"train": 1000, "val": 20, "test": 20})
    home = folder / "home"
    home.mkdir()
    environment = {k: v for k, v in os.environ.items() if k != "GX_ANALYTICS_ENABLED"}
    environment |= {"PYTHONPATH": str(REPO), "HOME": str(home)}

    done = subprocess.run(
        [sys.executable, "-m", "tasks.validate"],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 1
    assert done.stderr == (
        "error: validate: train: row_count fails, 90 (1 more); add raw rows or lower "
        "validate.min_rows.train; see reports/validation/docs/index.html\n"
    )
    assert sorted(p.name for p in folder.iterdir()) == ["data", "home", "params.yaml", "reports"]
    assert list(home.iterdir()) == []
