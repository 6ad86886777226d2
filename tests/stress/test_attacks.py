"""Attacks: exactly inside the ball and the range, and strong enough to break a plain network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from tasks.core.metrics import correct
from tasks.core.tables import Table
from tasks.core.twin import Twin
from tasks.modalities.vision.scorers import network_scorer
from tasks.stress.attacks.apgd import apgd
from tasks.stress.attacks.balls import Norm, around, ball
from tasks.stress.attacks.objectives import (
    cross_entropy,
    disagreement,
    gradients,
    low_margin,
    margin,
    slope,
)
from tasks.stress.attacks.square import square
from tasks.stress.case import Case
from tasks.stress.ladder import judged

NORMS = ("linf", "l2")


def inside(
    images: np.ndarray, clean: np.ndarray, radius: float, low: float, high: float, norm: Norm
) -> bool:
    """Exact: the float32 values are compared in float64."""
    moved = images.astype(np.float64) - clean.astype(np.float64)
    far = np.abs(moved).max() if norm == "linf" else np.sqrt((moved**2).sum((1, 2, 3))).max()
    return bool(
        images.dtype == np.float32
        and far <= radius
        and images.min() >= low
        and images.max() <= high
    )


def sampled(case: Case) -> Table:
    return case.test.take(case.sample(case.budget.attacked))


def random() -> np.random.Generator:
    return np.random.default_rng(0)


@given(
    st.floats(1e-3, 2),
    st.floats(-100, 100),
    st.floats(0.1, 300),
    st.integers(0, 9),
    st.sampled_from(NORMS),
)
@example(1.0, 5.5e-38, 1.0, 0, "l2")  # less than a float64 keeps beside the centre
@settings(max_examples=80, deadline=None)
def test_what_a_ball_hands_out_is_never_outside_it(
    epsilon: float, low: float, wide: float, seed: int, norm: Norm
) -> None:
    high, radius = float(np.float32(low + wide)), epsilon * wide
    low = float(np.float32(low))
    drawn = np.random.default_rng(seed)
    clean = np.clip(drawn.uniform(low, high, (3, 2, 4, 4)).astype(np.float32), low, high)
    bounds = ball(clean, radius, low, high, norm)
    far = clean + drawn.normal(0, 3 * radius, clean.shape)
    for images in (bounds.project(far), bounds.sample(drawn), bounds.project(clean)):
        assert inside(images, clean, radius, low, high, norm)
    if norm == "linf":
        assert inside(bounds.low, clean, radius, low, high, norm)
        assert inside(bounds.high, clean, radius, low, high, norm)
    assert np.array_equal(bounds.project(clean), clean)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("world", ["digits", "colour"])
@pytest.mark.parametrize("epsilon", [0.02, 0.3])
def test_attacked_images_stay_inside_the_ball_and_the_range(
    world: str, epsilon: float, norm: Norm, request: pytest.FixtureRequest
) -> None:
    case = request.getfixturevalue(world).case()
    rows = sampled(case)
    bounds = around(rows.images, epsilon, case.data, norm)
    low, high = case.data.range
    objective = cross_entropy(case.float_network)
    climbed, _ = apgd(objective, rows.images, rows.labels, bounds, 5, random())
    searched, _, _ = square(case.score, rows.images, rows.labels, bounds, 20, random())
    clean = rows.images.astype(np.float32)
    for images in (climbed, searched):
        assert images.shape == rows.images.shape
        assert inside(images, clean, epsilon * (high - low), low, high, norm)


@pytest.mark.parametrize("world", ["digits", "colour"])
def test_apgd_leaves_a_plain_network_at_chance_within_half_the_range(
    world: str, request: pytest.FixtureRequest
) -> None:
    case = request.getfixturevalue(world).case()
    rows = case.test
    bounds = around(rows.images, 0.5, case.data)
    objective = low_margin(case.float_network)
    images, _ = apgd(objective, rows.images, rows.labels, bounds, 10, random(), judged(case.score))
    assert correct(case.student_logits, rows.labels).mean() > 0.8
    assert correct(case.score(images), rows.labels).mean() <= 1 / len(case.data.classes)


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.05), ("l2", 0.3)])
def test_apgd_finds_a_lower_margin_than_the_best_of_many_random_points(
    digits, norm: Norm, epsilon: float
) -> None:
    case, drawn = digits.case(), random()
    rows = sampled(case)
    bounds = around(rows.images, epsilon, case.data, norm)
    score = network_scorer(case.float_network)
    never = lambda images, labels: margin(score(images), labels) + 1e6  # noqa: E731 - none leaves
    _, found = apgd(
        low_margin(case.float_network), rows.images, rows.labels, bounds, 10, drawn, never
    )
    climbed = found - np.float32(1e6)
    tries = [margin(score(bounds.sample(drawn)), rows.labels) for _ in range(50)]
    least = np.min(tries, axis=0)
    assert (climbed <= least + 0.1).mean() > 0.95
    assert climbed.mean() < least.mean() - 0.1


def test_more_steps_break_more_rows_than_one(digits) -> None:
    case = digits.case()
    rows = sampled(case)
    bounds = around(rows.images, 0.06, case.data)
    objective = cross_entropy(case.float_network)
    broken = [
        int((apgd(objective, rows.images, rows.labels, bounds, steps)[1] < 0).sum())
        for steps in (1, 20)
    ]
    assert broken[1] > broken[0]


def test_apgd_halves_its_step_at_a_checkpoint_where_a_row_no_longer_rises() -> None:
    """On a parabola whose top lies within the ball, a step that never shrinks cannot come near."""
    top, seen = 0.3, []

    def objective(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        value = -((images - top) ** 2).sum((1, 2, 3))
        seen.append(images.detach().numpy().copy())
        return value, torch.stack([torch.ones(len(labels)), torch.zeros(len(labels))], 1)

    clean = np.zeros((1, 1, 1, 1), dtype=np.float32)
    bounds = ball(clean, 1.0, -1.0, 1.0)
    apgd(objective, clean, np.zeros(1, dtype=np.int64), bounds, 60)
    assert abs(seen[1].item() - 1.0) < 1e-6, "the first step is the whole ball"
    assert max(abs(x.item() - top) for x in seen[-5:]) < 0.05


def test_what_rows_leave_unspent_lets_the_others_begin_again_within_the_budget(digits) -> None:
    case, steps = digits.case(), 20
    rows = sampled(case)
    climbed: list[int] = []

    def judge(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        climbed.append(len(labels))
        return margin(case.score(images), labels)

    bounds = around(rows.images, 0.09, case.data)
    objective = cross_entropy(case.float_network)
    apgd(objective, rows.images, rows.labels, bounds, steps, None, judge)
    once, climbed[:] = len(climbed), []
    apgd(objective, rows.images, rows.labels, bounds, steps, random(), judge)
    assert once <= steps + 1 < len(climbed) <= 3 * (steps + 1)
    assert sum(climbed) - len(rows) <= len(rows) * (steps + 1)


def test_a_row_is_left_alone_once_the_judge_is_content(digits) -> None:
    case = digits.case()
    rows = sampled(case)
    asked: list[int] = []

    def judge(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        asked.append(len(labels))
        return margin(case.score(images), labels)

    bounds = around(rows.images, 0.1, case.data)
    objective = low_margin(case.float_network)
    images, margins = apgd(objective, rows.images, rows.labels, bounds, 20, None, judge)
    assert asked[0] == len(rows)
    assert asked == sorted(asked, reverse=True)
    assert asked[-1] < len(rows)
    assert np.array_equal(margins, margin(case.score(images), rows.labels))


def test_the_margin_leads_where_cross_entropy_has_no_gradient_left(digits) -> None:
    case = digits.case()
    rows = case.test.take(correct(case.student_logits, case.test.labels))
    sure = nn.Sequential(case.float_network, Scale(1000.0))
    images = rows.images.astype(np.float32)
    steep = slope(cross_entropy(sure), images, rows.labels)[0]
    flat = ~steep.any(axis=(1, 2, 3))
    assert flat.mean() > 0.5
    assert gradients(sure, images, rows.labels)[flat].any(axis=(1, 2, 3)).all()
    bounds = around(rows.images, 0.5, case.data)
    attacked, _ = apgd(low_margin(sure), rows.images, rows.labels, bounds, 10)
    assert correct(case.score(attacked), rows.labels)[flat].mean() < 0.1


def test_the_twin_of_the_shipped_file_leads_apgd_as_the_float_network_does(digits) -> None:
    case = digits.case()
    rows = sampled(case)
    bounds = around(rows.images, 0.1, case.data)
    left = {}
    for name, network in (("float", case.float_network), ("twin", Twin.load(case.model))):
        objective = cross_entropy(network)
        _, margins = apgd(
            objective, rows.images, rows.labels, bounds, 10, random(), judged(case.score)
        )
        left[name] = (margins >= 0).mean()
    clean = correct(case.score(rows.images), rows.labels).mean()
    assert left["twin"] <= left["float"] + 0.05 < clean


def test_the_disagreement_attack_raises_the_gap_between_teacher_and_student(digits) -> None:
    case = digits.case()
    rows = sampled(case)
    bounds = around(rows.images, 0.05, case.data)
    objective = disagreement(case.float_network, case.teacher_network)
    images = rows.images.astype(np.float32)
    before = slope(objective, images, rows.labels)[1]
    found, _ = apgd(
        objective, images, rows.labels, bounds, 10, None,
        lambda x, y: -slope(objective, x, y)[1] + 2,  # content with no gap
    )  # fmt: skip
    after = slope(objective, found, rows.labels)[1]
    assert (after >= before - 1e-6).all()
    assert after.mean() > before.mean() + 0.1


@pytest.mark.parametrize("norm", NORMS)
def test_square_lowers_the_margin_and_respects_its_budget(digits, norm: Norm) -> None:
    case = digits.case()
    rows = sampled(case)
    bounds = around(rows.images, 0.05 if norm == "linf" else 0.3, case.data, norm)
    asked = 0

    def counted(images: np.ndarray) -> np.ndarray:
        nonlocal asked
        asked += len(images)
        return case.score(images)

    images, margins, used = square(counted, rows.images, rows.labels, bounds, 60, random())
    clean = margin(case.score(rows.images), rows.labels)
    assert used.max() <= 60
    assert asked == used.sum()
    assert np.array_equal(margin(case.score(images), rows.labels), margins)
    assert (margins < clean).mean() > 0.8
    assert (used[margins < 0] < 60).any()  # rows leave early
    assert (used[margins >= 0] == 60).all()


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.08), ("l2", 0.35)])
def test_more_queries_break_more_rows(digits, norm: Norm, epsilon: float) -> None:
    case = digits.case()
    rows = sampled(case)
    bounds = around(rows.images, epsilon, case.data, norm)
    broken = [
        (square(case.score, rows.images, rows.labels, bounds, q, random())[1] < 0).mean()
        for q in (1, 200)
    ]
    assert broken[1] > broken[0] + 0.1


def test_what_becomes_of_a_row_does_not_depend_on_when_others_leave(digits) -> None:
    case = digits.case()
    rows = sampled(case)
    stubborn = rows.labels.copy()
    wrong = margin(case.score(rows.images), rows.labels) < 0.2
    stubborn[wrong] = (stubborn[wrong] + 1) % 10  # those leave at once
    bounds = around(rows.images, 0.02, case.data)
    one, _, _ = square(case.score, rows.images, rows.labels, bounds, 30, random())
    other, _, _ = square(case.score, rows.images, stubborn, bounds, 30, random())
    assert wrong.any()
    assert np.array_equal(one[~wrong], other[~wrong])


def test_no_query_of_square_repeats_the_image_that_is_there() -> None:
    """One channel, two corners: half of all squares of one pixel would change nothing."""
    clean = np.full((8, 1, 6, 6), 0.5, dtype=np.float32)
    seen: list[np.ndarray] = []

    def stubborn(images: np.ndarray) -> np.ndarray:
        seen.append(images.copy())
        return np.tile(np.float32([1, 0]), (len(images), 1))

    square(stubborn, clean, np.zeros(8, dtype=np.int64), ball(clean, 0.1, 0, 1), 60, random())
    for images in seen[1:]:
        assert (images != seen[0]).any(axis=(1, 2, 3)).all()


@pytest.mark.parametrize("objective", [cross_entropy, low_margin])
def test_attacks_leave_weights_and_their_gradients_alone(digits, objective) -> None:
    case = digits.case()
    rows = sampled(case)
    before = {k: v.clone() for k, v in case.float_network.state_dict().items()}
    bounds = around(rows.images, 0.1, case.data)
    apgd(objective(case.float_network), rows.images, rows.labels, bounds, 2)
    after = case.float_network.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert not case.float_network.training
    assert all(p.grad is None and p.requires_grad for p in case.float_network.parameters())


def test_a_gradient_that_does_not_exist_or_is_not_finite_is_zero() -> None:
    images, labels = np.ones((2, 1, 2, 2), np.float32), np.zeros(2, np.int64)
    for network in (Blank(0.0), Blank(float("nan"))):
        steep, _, _ = slope(low_margin(network), images, labels)
        assert not steep.any()


class Scale(nn.Module):
    """Logits times a constant: as sure as a network can be."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        return logits * self.factor


class Blank(nn.Module):
    """Knows nothing of its images: no gradient, or one that is NaN."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.slope == 0.0:
            return torch.zeros(len(images), 2)
        flat = images.flatten(1)
        return torch.stack([flat.sum(1) * self.slope, flat.sum(1) * 0], 1)
