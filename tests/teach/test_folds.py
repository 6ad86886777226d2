"""Out-of-fold labels: each row's come from a network that never saw it, and they are less sure."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from numpy.typing import NDArray
from scipy.special import softmax

from tasks.core.bank import BankForm, read_bank
from tasks.core.errors import DataError, ParamsError
from tasks.core.files import write_json
from tasks.core.models import read_spec
from tasks.core.params import check
from tasks.core.rows import Rows, in_memory, read_rows
from tasks.core.tables import (
    QUARANTINE,
    UNLABELLED,
    Fingerprint,
    Split,
    Table,
    Unlabelled,
    write_table,
)
from tasks.core.trainer import _Run
from tasks.modalities.vision.scorers import load_scorer
from tasks.teach import __main__ as stage
from tasks.teach.__main__ import run
from tasks.teach.folds import check_folds, chosen, fold_of, out_of_fold
from tasks.teach.params import TeachParams
from tests.teach.conftest import DATA, safetensors

ROOT = Path(__file__).parents[2]
Checkout = Callable[..., Path]

SECTION = {
    "source": "train",
    "architecture": {"widths": [8]},
    "training": {"epochs": 30, "batch": 8, "learning_rate": 0.05},
    "views": {"count": 1},
    "bank": {},
}
HASHES = np.random.default_rng(3).bytes(40 * 32)
IDS = np.array([HASHES[i : i + 32].hex() for i in range(0, len(HASHES), 32)])


@pytest.fixture
def rows() -> Rows:
    """40 rows; row i is all i."""
    images = np.arange(40, dtype=np.uint8)[:, None, None, None] * np.ones((1, 1, 4, 4), np.uint8)
    return in_memory(Table(IDS, np.arange(40) % 2, images))


def test_a_rows_fold_is_its_own_whatever_other_rows_there_are(rows: Rows) -> None:
    folds = fold_of(rows.keys, 4)
    assert set(folds.tolist()) == {0, 1, 2, 3}
    assert np.array_equal(fold_of(rows.keys[::3], 4), folds[::3])


def test_each_answer_is_of_the_network_that_never_saw_the_row(rows: Rows) -> None:
    fold = fold_of(rows.keys, 3)
    seen = [chosen(rows, fold != f) for f in range(3)]

    def scorer(number: int) -> object:
        known = {int(image.flatten()[0]) for image in seen[number].images[:]}

        def score(images: NDArray[np.generic]) -> NDArray[np.float32]:
            values = images[:, 0, 0, 0].astype(int).tolist()
            assert not known & set(values), "a network is asked about a row that it has seen"
            return np.float32([[number, value] for value in values])

        return score

    score = out_of_fold([scorer(f) for f in range(3)], fold)  # type: ignore[misc]
    index = np.random.default_rng(0).permutation(40)
    found = score(rows.images[torch.from_numpy(index)].numpy(), index)

    assert found[:, 0].tolist() == fold[index].tolist()
    assert found[:, 1].tolist() == index.tolist(), "answers come in the order of the question"


def test_chosen_rows_are_looked_up_and_named_anew(rows: Rows) -> None:
    keep = np.arange(40) % 5 == 0
    some = chosen(rows, keep)

    assert len(some) == 8
    assert some.images[torch.tensor([1, 3])][:, 0, 0, 0].tolist() == [5, 15]
    assert some.images[2:4][:, 0, 0, 0].tolist() == [10, 15]
    assert np.array_equal(some.keys, rows.keys[keep])
    assert some.labels.tolist() == rows.labels[::5].tolist()
    assert len({rows.digest, some.digest, chosen(rows, ~keep).digest}) == 3


@pytest.mark.parametrize(
    ("folds", "batch", "says"),
    [
        (20, 8, "folds 20 are too many for 12 training rows; lower"),
        (2, 12, "leave .* rows to a network, less than a batch of 12; raise teach.folds or lower"),
    ],
)
def test_folds_that_leave_too_little_are_refused(folds: int, batch: int, says: str) -> None:
    fold = fold_of(np.arange(0, 24, 2, dtype=np.uint64), folds)
    with pytest.raises(DataError, match=says):
        check_folds(fold, folds, batch)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"folds": 1}, "greater than or equal to 2"),
        ({"folds": 21}, "less than or equal to 20"),
        ({"folds": 2, "source": "onnx", "path": "given"}, "'folds' needs source: train"),
        ({"source": "ensemble"}, "'members' names 0, and an ensemble has two or more"),
        ({"members": [{"source": "onnx", "path": "a"}] * 2}, "'members' belongs to source: ens"),
        ({"source": "ensemble", "path": "given"}, "'path' is needed for a given teacher, and null"),
        ({"source": "huggingface"}, "'path' is needed for a given teacher"),
    ],
)
def test_a_section_that_contradicts_itself_is_refused(change: dict[str, object], says: str) -> None:
    with pytest.raises(ParamsError, match=says):
        check(TeachParams, SECTION | change, where="params.yaml: teach")


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkout:
    """A working directory with 30 training rows of noise whose labels are noise too, some without
    one, and `teach` changed as given."""
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 2, 40)
    labels[38:] = UNLABELLED
    images = draw.integers(0, 17, (40, 1, 4, 4)).astype(np.uint8)
    places = {"train": slice(0, 30), "val": slice(30, 38), "transfer": slice(38, 40)}
    for split, index in places.items():
        table = Table(IDS[index], labels[index], images[index])
        write_table(tmp_path / f"data/{split}.parquet", table)
    empty = {field.name: pa.array([], field.type) for field in QUARANTINE}
    pq.write_table(pa.table(empty, schema=QUARANTINE), tmp_path / "data/quarantine.parquet")
    any_split = Split(rows=1, per_class={}, sha256="0")
    fingerprint = Fingerprint(
        format="stillhouse/fingerprint/1", data=DATA, snapshot="0", mean=8, std=5, digest="0",
        splits=dict.fromkeys(("train", "val", "test"), any_split),
        transfer=Unlabelled(rows=2, left_out=0, sha256="0"),
    )  # fmt: skip
    write_json(tmp_path / "data/fingerprint.json", fingerprint.model_dump(mode="json"))
    monkeypatch.chdir(tmp_path)

    def changed(**teach: object) -> Path:
        content = {"threads": 1, "teach": SECTION | teach}
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
        return tmp_path

    return changed


def banked(root: Path) -> tuple[Rows, NDArray[np.float64], NDArray[np.float64]]:
    """The bank's rows, and two probabilities of each: the bank's and the teacher's own."""
    folder, rows = root / "models/teacher", read_rows(DATA, transfer=True)
    views = check(TeachParams, SECTION, where="").views.model_dump()
    bank = read_bank(folder / "bank", rows, read_spec(folder).sha256, views, BankForm())
    said, teacher = bank.said(torch.arange(len(rows)), 0).numpy(), load_scorer(folder)
    return rows, softmax(said, axis=1), softmax(teacher(rows.images[:].numpy()), axis=1)


def test_out_of_fold_labels_are_less_sure_than_those_of_a_network_that_knows_the_rows(
    checkout: Checkout,
) -> None:
    root = checkout()
    run([])
    _, in_sample, teacher = banked(root)
    assert np.abs(in_sample - teacher).max() < 1e-2
    first = read_spec(root / "models/teacher")

    checkout(folds=3)
    run([])
    rows, unseen, same = banked(root)

    index, labels = np.arange(30), rows.labels[:30].numpy()
    assert len(rows) == 32
    own, theirs = in_sample[index, labels], unseen[index, labels]
    assert own.mean() > 0.9, "a network that cannot overfit makes this test idle"
    assert theirs.mean() < own.mean() - 0.2
    assert read_spec(root / "models/teacher") == first, "the teacher itself learns from all rows"
    assert np.array_equal(same, teacher)
    assert json.loads((root / "models/teacher/bank/bank.json").read_text())["folds"] == 3
    assert len(list((root / "models/teacher/folds").glob("*.jsonl"))) == 3


def test_two_processes_write_the_teacher_and_the_bank_that_one_writes(checkout: Checkout) -> None:
    root = checkout(folds=2)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         "-m", "tasks.teach"],
        cwd=root, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(" rows as float16") == 1, "the first process alone banks"
    _, shared, teacher = banked(root)
    shutil.rmtree(root / "models")
    run([])
    _, alone, same = banked(root)

    assert np.abs(teacher - same).max() < 1e-3
    assert np.abs(shared - alone).max() < 1e-3


def test_a_stage_that_was_killed_while_it_banked_does_not_train_again(
    checkout: Checkout, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, steps, step = checkout(folds=2), [], _Run._step

    def counted(training: _Run, index: torch.Tensor) -> float:
        steps.append(training.what)
        return step(training, index)

    monkeypatch.setattr(_Run, "_step", counted)
    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr(stage, "write_bank", Mock(side_effect=KeyboardInterrupt))
        run([])
    assert set(steps) == {"teach", "teach-fold-1", "teach-fold-2"}
    steps.clear()
    run([])
    assert not steps
    assert not list((root / "checkpoints").iterdir())


def test_too_many_folds_stop_the_stage_before_it_trains(checkout: Checkout) -> None:
    root = checkout(folds=20)
    with pytest.raises(DataError, match="folds 20 are too many for 30 training rows"):
        run([])
    assert not (root / "models").exists()


def test_the_stage_takes_an_ensemble_from_the_snapshot_and_banks_its_answers(
    checkout: Checkout,
) -> None:
    members = [{"source": "safetensors", "path": "elsewhere"}] * 2
    root = checkout(source="ensemble", members=members)
    for number in (0, 1):
        safetensors(root / f"data/raw/teacher/members/{number}", seed=number)
    run([])

    _, said, teacher = banked(root)
    assert read_spec(root / "models/teacher").kind == "ensemble"
    assert np.abs(said - teacher).max() < 1e-3
