"""Attacks: exactly inside the ball and the range, and strong enough to break a plain network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tasks.core.metrics import correct
from tasks.core.twin import Twin
from tasks.modalities.vision.scorers import network_scorer
from tasks.stress.attacks import around, ball, gradients, margin, pgd, square


def inside(images: np.ndarray, clean: np.ndarray, radius: float, low: float, high: float) -> bool:
    """Exact: the float32 values are compared in float64."""
    far = np.abs(images.astype(np.float64) - clean.astype(np.float64)).max()
    return bool(
        images.dtype == np.float32
        and far <= radius
        and images.min() >= low
        and images.max() <= high
    )


@given(st.floats(1e-3, 2), st.floats(-100, 100), st.floats(0.1, 300), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_a_corner_is_never_outside_the_ball(
    epsilon: float, low: float, wide: float, seed: int
) -> None:
    high, radius = float(np.float32(low + wide)), epsilon * wide
    low = float(np.float32(low))
    random = np.random.default_rng(seed)
    clean = np.clip(random.uniform(low, high, (3, 2, 4, 4)).astype(np.float32), low, high)
    bounds = ball(clean, radius, low, high)
    assert inside(bounds.low, clean, radius, low, high)
    assert inside(bounds.high, clean, radius, low, high)


@pytest.mark.parametrize("world", ["digits", "colour"])
@pytest.mark.parametrize("epsilon", [0.02, 0.3])
def test_attacked_images_stay_inside_the_ball_and_the_range(
    world: str, epsilon: float, request: pytest.FixtureRequest
) -> None:
    case = request.getfixturevalue(world).case()
    rows, random = case.test.take(case.sample(case.budget.attacked)), np.random.default_rng(0)
    bounds = around(rows.images, epsilon, case.data)
    low, high = case.data.range
    climbed = pgd(case.float_network, rows.images, rows.labels, bounds, 5, random)
    searched, _ = square(case.score, rows.images, rows.labels, bounds, 20, random)
    for images in (climbed, searched):
        assert images.shape == rows.images.shape
        assert inside(images, rows.images.astype(np.float32), epsilon * (high - low), low, high)


@pytest.mark.parametrize("world", ["digits", "colour"])
def test_pgd_leaves_a_plain_network_at_chance_within_half_the_range(
    world: str, request: pytest.FixtureRequest
) -> None:
    case = request.getfixturevalue(world).case()
    rows = case.test
    bounds = around(rows.images, 0.5, case.data)
    images = pgd(case.float_network, rows.images, rows.labels, bounds, 10, np.random.default_rng(0))
    logits = case.score(images)
    assert correct(case.student_logits, rows.labels).mean() > 0.8
    assert correct(logits, rows.labels).mean() <= 1 / len(case.data.classes)


def test_pgd_finds_a_lower_margin_than_the_best_of_many_random_points(digits) -> None:
    case, random = digits.case(), np.random.default_rng(0)
    rows = case.test.take(case.sample(case.budget.attacked))
    bounds = around(rows.images, 0.05, case.data)
    score = network_scorer(case.float_network)
    climbed = margin(
        score(pgd(case.float_network, rows.images, rows.labels, bounds, 10, random)), rows.labels
    )
    tries = [
        margin(
            score(np.where(random.random(rows.images.shape) < 0.5, bounds.low, bounds.high)),
            rows.labels,
        )
        for _ in range(50)
    ]
    assert (climbed <= np.min(tries, axis=0) + 1e-5).mean() > 0.95
    assert climbed.mean() < np.min(tries, axis=0).mean() - 0.1


def test_pgd_attacks_the_margin_where_cross_entropy_has_no_gradient_left(digits) -> None:
    case = digits.case()
    rows = case.test.take(correct(case.student_logits, case.test.labels))
    sure = nn.Sequential(case.float_network, Scale(1000.0))
    images = rows.images.astype(np.float32)
    flat = ~gradients(sure, images, rows.labels, "cross_entropy").any(axis=(1, 2, 3))
    assert flat.mean() > 0.5
    bounds = around(rows.images, 0.5, case.data)
    attacked = pgd(sure, rows.images, rows.labels, bounds, 10, np.random.default_rng(0))
    assert correct(case.score(attacked), rows.labels)[flat].mean() < 0.1


def test_the_twin_of_the_shipped_file_leads_pgd_as_the_float_network_does(digits) -> None:
    case = digits.case()
    rows = case.test.take(case.sample(case.budget.attacked))
    bounds = around(rows.images, 0.1, case.data)
    left = {}
    for name, network in (("float", case.float_network), ("twin", Twin.load(case.model))):
        images = pgd(network, rows.images, rows.labels, bounds, 10, np.random.default_rng(0))
        left[name] = correct(case.score(images), rows.labels).mean()
    assert (
        left["twin"] <= left["float"] + 0.05 < correct(case.score(rows.images), rows.labels).mean()
    )


def test_square_lowers_the_margin_and_respects_its_budget(digits) -> None:
    case = digits.case()
    rows = case.test.take(case.sample(case.budget.attacked))
    bounds = around(rows.images, 0.05, case.data)
    asked = 0

    def counted(images: np.ndarray) -> np.ndarray:
        nonlocal asked
        asked += len(images)
        return case.score(images)

    images, used = square(counted, rows.images, rows.labels, bounds, 60, np.random.default_rng(0))
    clean = margin(case.score(rows.images), rows.labels)
    found = margin(case.score(images), rows.labels)
    assert used.max() <= 60
    assert asked == used.sum()
    assert (found < clean).mean() > 0.9
    assert (used[found < 0] < 60).any()  # rows leave early
    assert (used[found >= 0] == 60).all()


def test_more_queries_break_at_least_as_many_rows(digits) -> None:
    case = digits.case()
    rows = case.test.take(case.sample(case.budget.attacked))
    bounds = around(rows.images, 0.08, case.data)
    left = [
        correct(
            case.score(
                square(case.score, rows.images, rows.labels, bounds, q, np.random.default_rng(0))[0]
            ),
            rows.labels,
        ).mean()
        for q in (1, 200)
    ]
    assert left[1] < left[0] - 0.1


def test_pgd_leaves_weights_and_mode_alone(digits) -> None:
    case = digits.case()
    rows = case.test.take(case.sample(case.budget.attacked))
    before = {k: v.clone() for k, v in case.float_network.state_dict().items()}
    pgd(
        case.float_network,
        rows.images,
        rows.labels,
        around(rows.images, 0.1, case.data),
        2,
        np.random.default_rng(0),
    )
    after = case.float_network.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert not case.float_network.training
    assert all(p.grad is None for p in case.float_network.parameters())


class Scale(nn.Module):
    """Logits times a constant: as sure as a network can be."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        return logits * self.factor
