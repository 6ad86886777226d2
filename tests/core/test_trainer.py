"""The training loop: the same bits again, and what each of its options changes."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from tasks.core.errors import DataError
from tasks.core.optimiser import one_cycle
from tasks.core.rows import Rows
from tasks.core.signal import Batch, Student
from tasks.core.trainer import Training, TrainingError, computes_bfloat16
from tests.core.small_training import Relational, run, small_rows

in_bfloat16 = pytest.mark.skipif(
    not computes_bfloat16(), reason="this CPU does not compute in bfloat16"
)


def plain(student: Student, batch: Batch) -> Tensor:
    return batch.mean(F.cross_entropy(student.logits, batch.labels, reduction="none"))


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=in_bfloat16)])
def test_training_twice_gives_the_same_bits(tmp_path: Path, precision: str) -> None:
    changes = {"precision": precision, "ema": 0.9}
    first, second = (run(tmp_path / n, changes).state_dict() for n in "ab")
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert (tmp_path / "a/history.jsonl").read_bytes() == (
        tmp_path / "b/history.jsonl"
    ).read_bytes()


def test_another_seed_gives_another_order(tmp_path: Path) -> None:
    first, second = run(tmp_path / "a"), run(tmp_path / "b", {"seed": 1})
    assert not torch.equal(first.head.weight, second.head.weight)


def test_history_has_a_line_an_epoch_and_the_loss_falls(tmp_path: Path) -> None:
    run(tmp_path, {"epochs": 6}, plain)
    assert [line["epoch"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert lines(tmp_path)[-1]["loss"] < lines(tmp_path)[0]["loss"]


@pytest.mark.parametrize("epochs", [1, 2, 3, 4, 5, 6])
def test_a_training_of_a_few_steps_runs(tmp_path: Path, epochs: int) -> None:
    run(tmp_path, {"epochs": epochs, "batch": 100})
    assert len(lines(tmp_path)) == epochs


@pytest.mark.parametrize("steps", [6, 20, 1000])
def test_the_schedule_is_that_of_torch(steps: int) -> None:
    optimiser = torch.optim.AdamW([torch.zeros(1, requires_grad=True)])
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1.0, total_steps=steps, pct_start=0.2)
    for step in range(steps):
        group = optimiser.param_groups[0]
        assert one_cycle(step, steps) == pytest.approx((group["lr"], group["betas"][0]), abs=1e-9)
        optimiser.step()
        if step < steps - 1:
            theirs.step()


@in_bfloat16
def test_a_loss_in_bfloat16_sees_float32(tmp_path: Path) -> None:
    kinds: set[torch.dtype] = set()

    def loss(student: Student, batch: Batch) -> Tensor:
        assert student.forward is not None
        asked = student.forward(batch.images)
        kinds.update(x.dtype for x in (student.logits, asked, *student.features.values()))
        return plain(student, batch)

    low = run(tmp_path / "a", {"precision": "bfloat16"}, loss)
    assert kinds == {torch.float32}
    assert not torch.equal(low.head.weight, run(tmp_path / "b", None, plain).head.weight)
    assert low.head.weight.dtype == torch.float32


@pytest.mark.parametrize("unit", ["avx512_bf16", "amx_bf16", "bf16"])
def test_auto_is_bfloat16_where_the_cpu_computes_in_it(
    monkeypatch: pytest.MonkeyPatch, unit: str
) -> None:
    auto = Training(epochs=1, learning_rate=0.1, precision="auto")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {unit: True, "avx2": True})
    assert auto.low
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {unit: False, "avx2": True})
    assert not auto.low


def test_bfloat16_is_refused_where_the_cpu_does_not_compute_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    with pytest.raises(DataError, match="small: this CPU does not compute in bfloat16; set prec"):
        run(tmp_path, {"precision": "bfloat16"}, plain)
    run(tmp_path, {"precision": "auto"}, plain)


def test_averaged_weights_are_those_that_are_validated_and_kept(tmp_path: Path) -> None:
    epochs = 8
    plain_net = run(tmp_path / "a", {"epochs": epochs, "learning_rate": 0.05}, plain)
    late = run(tmp_path / "b", {"epochs": epochs, "learning_rate": 0.05, "ema": 0.999}, plain)
    early = run(tmp_path / "c", {"epochs": epochs, "learning_rate": 0.05, "ema": 1e-9}, plain)
    for (name, kept), other in zip(
        plain_net.state_dict().items(), late.state_dict().values(), strict=True
    ):
        if name.endswith(("weight", "running_mean", "running_var")):
            assert not torch.equal(kept, other), name
    assert all(
        torch.allclose(a, b, atol=1e-5)
        for a, b in zip(plain_net.state_dict().values(), early.state_dict().values(), strict=True)
    )
    accuracies = [[line["val_accuracy"] for line in lines(tmp_path / n)] for n in "abc"]
    assert accuracies[0] == accuracies[2] != accuracies[1]
    assert accuracies[1][-1] == accuracy(late)


def accuracy(net: torch.nn.Module) -> float:
    rows = small_rows()
    with torch.inference_mode():
        predicted = net.eval()(rows.images[:].float()).argmax(1)
    return round(float((predicted == rows.labels).float().mean()), 6)


def test_a_training_stops_where_validation_gains_nothing_and_keeps_the_best(tmp_path: Path) -> None:
    changes = {"epochs": 40, "learning_rate": 0.2, "patience": 2}
    net = run(tmp_path, changes, plain)
    seen = [line["val_accuracy"] for line in lines(tmp_path)]
    best = seen.index(max(seen))
    assert len(seen) == best + 1 + 2 < 40
    assert seen[-1] < max(seen)
    assert accuracy(net) == max(seen)


def test_a_loss_that_learns_is_trained_with_the_network(tmp_path: Path) -> None:
    loss = Relational()
    before = loss.projector.weight.clone()
    run(tmp_path, None, loss)
    assert not torch.equal(before, loss.projector.weight)


def test_each_row_of_a_batch_has_its_weight(tmp_path: Path) -> None:
    weights = small_rows().labels * 0.9 + 0.1
    seen = []

    def loss(student: Student, batch: Batch) -> Tensor:
        assert batch.weights is not None
        seen.append(torch.equal(batch.weights, batch.labels * 0.9 + 0.1))
        return plain(student, batch)

    run(tmp_path, None, loss, weights=weights)
    assert seen == [True] * 15
    with pytest.raises(DataError, match=r"\(7,\) weights for 100 training rows; give one a row"):
        run(tmp_path, None, plain, weights=weights[:7])


def test_a_batch_larger_than_the_data_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="batch 101 is larger than the 100 training rows"):
        run(tmp_path, {"batch": 101})


def test_a_loss_that_is_not_finite_stops_the_run_and_saves_the_batch(tmp_path: Path) -> None:
    rows = small_rows()
    broken = rows.images[:].float()
    broken[3] = torch.nan
    rows = Rows(broken, rows.labels, rows.keys, "broken")
    with pytest.raises(TrainingError) as stop:
        run(tmp_path, None, plain, rows)
    (line,) = str(stop.value).splitlines()
    file = tmp_path / "checkpoints" / "failed.safetensors"
    assert f"the batch is in {file}; lower its learning_rate" in line
    kept, position = load_file(file), json.loads(file.with_suffix(".json").read_text())
    assert sorted(kept) == ["above.0", "images", "index", "labels"]
    assert 3 in kept["index"]
    assert bool(kept["images"][kept["index"] == 3].isnan().any())
    assert torch.equal(kept["labels"], rows.labels[kept["index"]])
    assert (position["epoch"], position["loss"]) == (1, "nan")
    assert f"epoch 1, step {position['step']}" in line
    assert position["learning_rate"] > 0


def test_a_log_says_how_fast_it_goes_and_how_long_it_will_take(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.core.progress.EVERY", 0.0)
    run(tmp_path, {"epochs": 2, "batch": 50}, plain)
    said = capsys.readouterr().out.splitlines()
    assert [line.split(" loss ")[0] for line in said] == [
        "small: epoch 1/2 step 1/2", "small: epoch 1/2 step 2/2", "small: epoch 1/2",
        "small: epoch 2/2 step 1/2", "small: epoch 2/2 step 2/2", "small: epoch 2/2",
    ]  # fmt: skip
    assert " val 0." in said[2]
    assert all(" images/s, ETA " in line for line in said)
    assert said[-1].endswith("ETA 0 s")


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="another C library")
def test_a_step_uses_the_memory_of_the_one_before_it(tmp_path: Path) -> None:
    code = """
import resource, sys
from pathlib import Path
import torch
from tests.core.small_training import run, small_rows

faults = []
def seen(_):
    [torch.ones(2**21) for _ in range(12)]  # 96 MiB: 24,576 pages
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
run(Path(sys.argv[1]), seen=seen)
print((faults[-1] - faults[4]) / (len(faults) - 5))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert float(done.stdout.splitlines()[-1]) < 1000


def test_a_full_disk_while_a_checkpoint_is_made_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: Path, __: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left on device") as refusal:
        run(tmp_path, {"checkpoint": 2})
    assert str(refusal.value.filename).startswith(str(tmp_path / "checkpoints"))
