"""Rows from disk: the same rows however they are held, and memory that does not grow."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tasks.core import rows as reading
from tasks.core import stored
from tasks.core.rows import in_memory, read_rows, read_validation
from tasks.core.seeds import derived
from tasks.core.stored import OnDisk
from tasks.core.tables import QUARANTINE, Schema, Table, write_table

ROOT = Path(__file__).parents[2]
SCHEMA = Schema(
    modality="vision", shape=(1, 4, 4), dtype="uint8", range=(0, 255), classes=("a", "b")
)


def quarantined(folder: Path, positions: list[int]) -> None:
    columns = {field.name: pa.nulls(len(positions), field.type) for field in QUARANTINE}
    columns |= {"split": pa.array(["train"] * len(positions), pa.string())}
    columns |= {"position": pa.array(positions, pa.int64())}
    pq.write_table(pa.table(columns, schema=QUARANTINE), folder / "quarantine.parquet")


@pytest.fixture
def table(tmp_path: Path) -> Table:
    draw = np.random.default_rng(0)
    names = np.array([f"{derived(0, i):016x}" + "0" * 48 for i in range(50)])
    images = draw.integers(0, 255, (50, 1, 4, 4)).astype(np.uint8)
    table = Table(names, draw.integers(0, 2, 50), images)
    write_table(tmp_path / "train.parquet", table)
    return table


@pytest.mark.parametrize("limit", [0, 2**20], ids=["row by row", "mapped"])
def test_rows_from_disk_are_those_of_the_table_without_the_quarantine(
    table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(stored, "MAPPED", limit)
    monkeypatch.setattr(reading, "BLOCK", 8 * 16)  # so that rows come in several blocks
    quarantined(tmp_path, [0, 9, 49])
    expected = in_memory(table.take(np.setdiff1d(np.arange(50), [0, 9, 49])))
    found = read_rows(SCHEMA, tmp_path)
    assert isinstance(found.images, OnDisk) == (limit == 0)
    assert torch.equal(found.images[:], expected.images[:])
    index = torch.tensor([46, 3, 3])
    assert torch.equal(found.images[index], expected.images[index])
    assert torch.equal(found.labels, expected.labels)
    assert np.array_equal(found.keys, expected.keys)
    assert (len(found), found.digest) == (47, expected.digest)


def test_validation_rows_are_all_those_of_their_table(table: Table, tmp_path: Path) -> None:
    (tmp_path / "train.parquet").rename(tmp_path / "val.parquet")
    expected, found = in_memory(table), read_validation(SCHEMA, tmp_path)
    assert torch.equal(found.images[:], expected.images[:])
    assert torch.equal(found.labels, expected.labels)
    assert found.digest == expected.digest


def test_tensors_of_a_table_are_not_its_own_arrays(table: Table) -> None:
    """Those are Arrow's, and not to be written to."""
    made = in_memory(table)
    assert isinstance(made.images, torch.Tensor)
    for tensor, array in ((made.images, table.images), (made.labels, table.labels)):
        assert not np.shares_memory(tensor.numpy(), array)


@pytest.mark.usefixtures("table")
def test_nothing_lies_beside_the_tables(tmp_path: Path) -> None:
    quarantined(tmp_path, [])
    found = read_rows(SCHEMA, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"train.parquet", "quarantine.parquet"}
    assert len(found.images[:1]) == 1, "and the images are still there"


STREAMED = """
import sys
from pathlib import Path
import numpy as np
import torch
from tasks.core.bank import BankForm, read_bank
from tasks.core.banking import write_bank
from tasks.core.rows import read_rows, read_validation
from tasks.core.tables import Schema, Table, write_table
from tasks.modalities.vision.training import validator
from tests.core.test_rows import quarantined

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))

def use(folder, count):
    from tasks.core import stored
    stored.MAPPED = 2**16
    schema = Schema(modality="vision", shape=(1, 28, 28), dtype="uint8", range=(0, 255),
                    classes=("a", "b"))
    rows, score = read_rows(schema, folder), lambda images, _: images[:, 0, :40, 0] + 1
    write_bank(folder / "bank", rows, "m", {"count": 1}, lambda images, index, k: images, score)
    bank = read_bank(folder / "bank", rows, "m", {"count": 1}, BankForm())
    for index in torch.randperm(len(rows)).split(256):
        rows.images[index], bank.signal(None, index, 0)
    validator(Net(), read_validation(schema, folder))()

class Net(torch.nn.Module):
    def forward(self, x):
        return x[:, 0, 0, :2]

torch.set_num_threads(1)
base = Path(sys.argv[1])
use(base / "40000", 40000)
before = peak()
use(base / "120000", 120000)
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="peak memory is Linux's")
def test_more_rows_take_no_more_memory_than_their_labels(tmp_path: Path) -> None:
    for count in (40000, 120000):
        names = np.array([f"{i:064x}" for i in range(count)])
        images = np.zeros((count, 1, 28, 28), np.uint8)
        for split in ("train", "val"):
            path = tmp_path / f"{count}/{split}.parquet"
            write_table(path, Table(names, np.zeros(count, np.int64), images))
        quarantined(tmp_path / f"{count}", [])
    done = subprocess.run(
        [sys.executable, "-c", STREAMED, str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    grown = int(done.stdout.split()[-1]) / 1024
    assert grown < 20, f"{grown:.0f} MB more, where the images are 63 MB more"
