"""The views and the losses of the loop, and the network that it trains."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tasks.core.kd import kd
from tasks.core.models import Architecture, Normalisation, parameters
from tasks.core.rows import in_memory
from tasks.core.seeds import derived
from tasks.core.tables import Schema, Table
from tasks.modalities.vision.networks import ResidualNetwork, build, folded
from tasks.modalities.vision.views import Views, apply
from tests.core.small_training import run

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
    net = run(tmp_path)
    images = torch.from_numpy(table.images).float()
    flat = folded(net)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in flat.modules())
    with torch.no_grad():
        assert torch.allclose(net(images), flat(images), atol=1e-4)


def test_parameters_count_weights_and_not_running_statistics() -> None:
    net = network()
    assert parameters(net.state_dict()) == sum(p.numel() for p in net.parameters())
