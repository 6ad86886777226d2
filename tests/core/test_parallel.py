"""Two processes that share each batch train what one trains."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tasks.core.errors import DataError, ParamsError
from tasks.core.parallel import World, joined
from tests.core.small_training import run

ROOT = Path(__file__).parents[2]
TOLERANCE = 1e-4  # of any weight after 20 steps


def test_a_batch_that_cannot_be_shared_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.core.trainer.joined", lambda: World(rank=0, size=3))
    with pytest.raises(DataError, match="cannot be shared among 3 processes"):
        run(tmp_path)


def test_processes_on_two_machines_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "TORCHELASTIC_RUN_ID": "run", "LOCAL_WORLD_SIZE": "1", "WORLD_SIZE": "2"
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    with pytest.raises(ParamsError, match="must be on one machine"):
        joined()


def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    changes = {"epochs": 4, "ema": 0.5}
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         str(ROOT / "tests/core/small_training.py"), str(tmp_path / "two"), json.dumps(changes)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    one = run(tmp_path / "one", changes).state_dict()
    two = load_file(tmp_path / "two/weights.safetensors")
    other = load_file(tmp_path / "two/other/weights.safetensors")

    apart = {k: float((one[k].double() - two[k].double()).abs().max()) for k in one}
    assert max(apart.values()) <= TOLERANCE, apart
    assert all(torch.equal(two[k], other[k]) for k in two), "both processes hold the same"
    assert not (tmp_path / "two/other/history.jsonl").exists(), "the first alone writes"
    histories = [
        [json.loads(line) for line in (tmp_path / n / "history.jsonl").read_text().splitlines()]
        for n in ("one", "two")
    ]
    for ours, theirs in zip(*histories, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-3)
