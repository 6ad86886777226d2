"""The trainer, the bank and the views: what one saw is what the other stored."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tasks.core.bank import read_bank, write_bank
from tasks.core.errors import DataError
from tasks.core.kd import kd
from tasks.core.metrics import cosine
from tasks.core.models import Architecture, Normalisation, parameters
from tasks.core.rows import in_memory
from tasks.core.seeds import derived, deterministic
from tasks.core.tables import Schema, Table
from tasks.core.trainer import Training, TrainingError, train
from tasks.modalities.vision.networks import ResidualNetwork, build, folded
from tasks.modalities.vision.scorers import network_scorer
from tasks.modalities.vision.training import viewer
from tasks.modalities.vision.views import Views, apply

SCHEMA = Schema(
    modality="vision", shape=(1, 8, 8), dtype="uint8", range=(0, 16), classes=("a", "b", "c")
)
VIEWS = Views(count=4, seed=3, shift=1, flip=True)


@pytest.fixture
def table() -> Table:
    draw = np.random.default_rng(1)
    labels = np.arange(60) % 3
    images = draw.integers(0, 6, (60, 1, 8, 8)) + 5 * labels[:, None, None, None]
    rows = np.array([f"{derived(0, i):016x}" + "0" * 48 for i in range(60)])
    return Table(rows, labels, images.astype(np.uint8))


def network(seed: int = 0) -> ResidualNetwork:
    torch.manual_seed(seed)
    return build(Architecture(widths=(4, 8)), SCHEMA, Normalisation(mean=8, std=5))


def trained(table: Table, history: Path, **changes: object) -> ResidualNetwork:
    deterministic(0, threads=1)
    net = network()
    training = Training.model_validate({"epochs": 3, "batch": 20, "learning_rate": 0.01, **changes})
    train(
        net,
        in_memory(table),
        lambda out, batch: F.cross_entropy(out.logits, batch.labels),
        training,
        viewer(in_memory(table), VIEWS),
        None,
        lambda: 0.5,
        history,
        "test",
    )
    return net


def test_training_twice_gives_the_same_bits(table: Table, tmp_path: Path) -> None:
    first, second = (trained(table, tmp_path / n).state_dict() for n in "ab")
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_another_seed_gives_another_order(table: Table, tmp_path: Path) -> None:
    first, second = trained(table, tmp_path / "a"), trained(table, tmp_path / "b", seed=1)
    assert not torch.equal(first.head.weight, second.head.weight)


def test_history_has_a_line_an_epoch_and_the_loss_falls(table: Table, tmp_path: Path) -> None:
    trained(table, tmp_path / "h.jsonl", epochs=6)
    lines = [json.loads(line) for line in (tmp_path / "h.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert lines[-1]["loss"] < lines[0]["loss"]


@pytest.mark.parametrize("epochs", [1, 2, 3, 4, 5, 6])
def test_a_training_of_a_few_steps_runs(table: Table, tmp_path: Path, epochs: int) -> None:
    trained(table, tmp_path / "h", epochs=epochs, batch=60)
    assert len((tmp_path / "h").read_text().splitlines()) == epochs


def test_a_batch_larger_than_the_data_is_refused_before_training(
    table: Table, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="batch 64 is larger than the 60 training rows"):
        trained(table, tmp_path / "h", batch=64)


def test_a_loss_that_is_not_finite_stops_the_run(table: Table, tmp_path: Path) -> None:
    broken = Table(table.rows, table.labels, np.full((60, 1, 8, 8), np.nan, np.float32))
    with pytest.raises(TrainingError, match="the loss is nan in epoch 1"):
        trained(broken, tmp_path / "h")


def test_the_bank_holds_the_logits_of_the_very_view_that_the_student_sees(
    table: Table, tmp_path: Path
) -> None:
    net = network().eval()
    rows = in_memory(table)
    view, index = viewer(rows, VIEWS), torch.arange(60)
    write_bank(tmp_path, rows, "model", VIEWS.model_dump(), view, network_scorer(net))
    bank = read_bank(tmp_path, rows, "model", VIEWS.model_dump())
    for k in range(2 * VIEWS.count):
        seen = view(torch.from_numpy(table.images).float(), index.numpy(), k)
        with torch.no_grad():
            live = net(seen).numpy()
        banked = bank.signal(seen, index, k)[0].logits.numpy()
        assert cosine(live, banked) >= 0.9999
        assert np.abs(live - banked).max() < 5e-3
        other = bank.signal(seen, index, k + 1)[0].logits.numpy()
        assert np.abs(live - other).max() > 1e-2, "views differ, so a wrong view would show"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("model", "of another model"),
        ("views", "of other views"),
        ("rows", "of other training rows"),
        ("bytes", "truncated or changed"),
    ],
)
def test_a_bank_that_does_not_match_says_why(
    table: Table, tmp_path: Path, change: str, says: str
) -> None:
    rows = in_memory(table)
    view = viewer(rows, VIEWS)
    write_bank(tmp_path, rows, "m", VIEWS.model_dump(), view, network_scorer(network()))
    model, views = "m", VIEWS.model_dump()
    if change == "model":
        model = "n"
    if change == "views":
        views = {**views, "seed": 4}
    if change == "rows":
        rows = in_memory(table.take(np.arange(60)[::-1].copy()))
    if change == "bytes":
        file = tmp_path / "logits.safetensors"
        file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(DataError, match=says):
        read_bank(tmp_path, rows, model, views)


def test_view_zero_is_the_row_and_views_are_shifts_or_mirrors(table: Table) -> None:
    images, keys = torch.from_numpy(table.images).float(), in_memory(table).keys
    assert torch.equal(apply(images, keys, 0, VIEWS), images)
    plain = Views(count=8, seed=0, shift=1)
    padded = torch.nn.functional.pad(images, [1] * 4)
    moved = apply(images, keys, 1, plain)
    shifts = [padded[:, :, y : y + 8, x : x + 8] for y in range(3) for x in range(3)]
    for row in range(60):
        assert any(torch.equal(moved[row], shifted[row]) for shifted in shifts)


def test_views_come_round_again_after_an_odd_cycle_too(table: Table) -> None:
    images, keys = torch.from_numpy(table.images).float(), in_memory(table).keys
    odd = Views(count=5, seed=0, shift=1, flip=True)
    for k in range(5):
        assert torch.equal(apply(images, keys, k, odd), apply(images, keys, k + 5, odd))


def test_flips_alternate_from_view_to_view(table: Table) -> None:
    images, keys = torch.from_numpy(table.images).float(), in_memory(table).keys
    still = Views(count=4, seed=0, shift=0, flip=True)
    first, second = (apply(images, keys, k, still) for k in (1, 2))
    assert torch.equal(first.flip(3), second)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 16.0])
def test_kd_equals_its_definition(temperature: float) -> None:
    draw = np.random.default_rng(0)
    s, t = draw.normal(size=(7, 5)), draw.normal(size=(7, 5))
    p, q = (np.exp(x / temperature) / np.exp(x / temperature).sum(1, keepdims=True) for x in (t, s))
    expected = (p * np.log(p / q)).sum() / 7 * temperature**2
    assert float(kd(torch.tensor(s), torch.tensor(t), temperature).mean()) == pytest.approx(
        expected
    )


def test_the_gradient_of_kd_keeps_its_size_across_temperatures() -> None:
    torch.manual_seed(0)
    signal, sizes = torch.randn(64, 10), []
    for temperature in (2.0, 8.0, 32.0):
        logits = torch.randn(64, 10, generator=torch.Generator().manual_seed(1)).requires_grad_()
        kd(logits, signal, temperature).mean().backward()
        assert logits.grad is not None
        sizes.append(float(logits.grad.norm()))
    assert max(sizes) / min(sizes) < 2, sizes


def test_folding_batchnorm_changes_no_logit(table: Table, tmp_path: Path) -> None:
    net = trained(table, tmp_path / "h")
    images = torch.from_numpy(table.images).float()
    flat = folded(net)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in flat.modules())
    with torch.no_grad():
        assert torch.allclose(net(images), flat(images), atol=1e-4)


def test_parameters_count_weights_and_not_running_statistics() -> None:
    net = network()
    assert parameters(net.state_dict()) == sum(p.numel() for p in net.parameters())
