"""Validation while a network trains: clean, and under attack where it meets an adversary."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tasks.core.adversary import Adversary
from tasks.core.rows import Rows, in_memory
from tasks.core.tables import Schema, Table
from tasks.modalities.vision import training
from tasks.modalities.vision.training import attacked_validator, validator
from tasks.modalities.vision.views import Views

DATA = Schema(
    modality="vision", shape=(1, 2, 2), dtype="uint8", range=(0, 100), classes=("dark", "light")
)


class Threshold(nn.Module):
    """Light, where the mean of an image is above 50."""

    def forward(self, images: Tensor) -> Tensor:
        over = images.mean((1, 2, 3)) - 50
        return torch.stack([-over, over], 1)


def rows(*means: int) -> Rows:
    """Images of one value each, labelled rightly."""
    images = np.repeat(np.array(means, np.uint8), 4).reshape(-1, 1, 2, 2)
    names = np.array([f"{i:064d}" for i in range(len(means))])
    return in_memory(Table(names, (np.array(means) > 50).astype(np.int64), images))


def test_what_is_left_is_what_stands_further_from_the_boundary_than_an_attack_reaches() -> None:
    table, net = rows(0, 35, 39, 41, 59, 61, 100, 100), Threshold()
    assert validator(net, table)() == 1.0
    for steps in (1, 2):  # the training's own, which validation does not use
        adversary = Adversary(epsilon=0.1, steps=steps, step=1e-6)
        assert attacked_validator(net, table, DATA, adversary)() == 6 / 8


def test_asking_changes_neither_the_answer_nor_the_numbers_that_training_draws() -> None:
    table, net = rows(*range(20, 80)), Threshold().train()
    left = attacked_validator(net, table, DATA, Adversary(epsilon=0.2, step=0.1))
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    assert left() == left()
    assert torch.equal(torch.rand(3), expected)


def test_so_many_rows_are_attacked_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "ATTACKED", 3)
    monkeypatch.setattr(training, "BATCH", 2)
    left = attacked_validator(
        Threshold(), rows(0, 45, 100, 49, 49), DATA, Adversary(epsilon=0.1, step=0.1)
    )
    assert left() == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("span", "border"), [((0.0, 255.0), 0.0), ((250.0, 310.0), 250.0), ((-9.0, -2.0), -2.0)]
)
def test_what_a_shift_brings_in_is_a_value_of_the_data(
    span: tuple[float, float], border: float
) -> None:
    data = Schema(**DATA.model_dump() | {"dtype": "float32", "range": span})
    table = rows(*range(20, 80))
    images = torch.full((60, 1, 2, 2), span[1])

    seen = training.viewer(table, Views(count=2, shift=1), data)(images, np.arange(60), 1)

    assert set(seen.unique().tolist()) == {span[1], border}
