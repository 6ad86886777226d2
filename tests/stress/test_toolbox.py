"""Our attacks beside those of the Adversarial Robustness Toolbox (ART), at an equal budget."""

from __future__ import annotations

from copy import deepcopy
from itertools import product

import numpy as np
import pytest
import torch

from tasks.core.metrics import correct
from tasks.core.session import score
from tasks.modalities.vision.scorers import network_scorer
from tasks.stress.attacks.apgd import apgd
from tasks.stress.attacks.balls import Ball, Norm, around
from tasks.stress.attacks.objectives import cross_entropy
from tasks.stress.attacks.square import square


@pytest.mark.parametrize(
    ("norm", "epsilons"), [("linf", (0.03, 0.06, 0.09)), ("l2", (0.15, 0.2, 0.25, 0.3))]
)
def test_apgd_finds_as_many_rows_as_the_adversarial_robustness_toolbox(
    digits, norm: Norm, epsilons: tuple[float, ...]
) -> None:
    """In sum over radii and starts, and but for one row in a hundred: from one start, either finds
    a row or two that the other does not."""
    from art.attacks.evasion import AutoProjectedGradientDescent
    from art.estimators.classification import PyTorchClassifier

    case = digits.case()
    score = network_scorer(case.float_network)
    rows = case.test.take(correct(score(case.test.images), case.test.labels))
    frozen = deepcopy(case.float_network).requires_grad_(False)  # ART would ask for all gradients
    classifier = PyTorchClassifier(
        frozen,
        torch.nn.CrossEntropyLoss(),
        case.data.shape,
        len(case.data.classes),
        clip_values=case.data.range,
        device_type="cpu",
    )
    steps, ours, theirs = 20, 0, 0
    for epsilon, seed in product(epsilons, range(3)):
        bounds = around(rows.images, epsilon, case.data, norm)
        climbed, start = cross_entropy(case.float_network), np.random.default_rng(seed)
        _, margins = apgd(climbed, rows.images, rows.labels, bounds, steps, start)
        np.random.seed(seed)  # noqa: NPY002 - ART draws from the global state
        images = AutoProjectedGradientDescent(
            classifier, norm=2 if norm == "l2" else np.inf, eps=bounds.radius, verbose=False,
            eps_step=2 * bounds.radius, max_iter=steps, nb_random_init=1, batch_size=256,
        ).generate(rows.images.astype(np.float32), rows.labels)  # fmt: skip
        found = sound(images, bounds) & ~correct(score(images), rows.labels)
        assert 0 < found.sum() < len(rows)
        ours, theirs = ours + int((margins < 0).sum()), theirs + int(found.sum())
    assert ours >= 0.99 * theirs


@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.06), ("l2", 0.3)])
def test_square_finds_at_least_as_many_rows_as_the_adversarial_robustness_toolbox(
    digits, norm: Norm, epsilon: float
) -> None:
    from art.attacks.evasion import SquareAttack
    from art.estimators.classification import BlackBoxClassifierNeuralNetwork

    case = digits.case()
    rows = case.test.take(correct(case.score(case.test.images), case.test.labels))
    bounds, queries = around(rows.images, epsilon, case.data, norm), 60
    _, margins, _ = square(
        case.score, rows.images, rows.labels, bounds, queries, np.random.default_rng(0)
    )

    def logits(images: np.ndarray) -> np.ndarray:
        return score(case.session, images)[0]  # not `case.score`, which refuses ART's own NaN

    classifier = BlackBoxClassifierNeuralNetwork(
        logits,
        case.data.shape,
        len(case.data.classes),
        channels_first=True,
        clip_values=case.data.range,
    )
    np.random.seed(0)  # noqa: NPY002 - ART draws from the global state
    theirs = SquareAttack(
        classifier, norm=2 if norm == "l2" else np.inf, eps=bounds.radius, max_iter=queries,
        nb_restarts=1, batch_size=256, verbose=False,
    ).generate(rows.images.astype(np.float32), rows.labels)  # fmt: skip
    found = sound(theirs, bounds) & ~correct(logits(theirs), rows.labels)
    assert (margins < 0).any()
    assert (margins < 0).sum() >= found.sum()


def sound(images: np.ndarray, bounds: Ball) -> np.ndarray:
    """Which rows are finite and in the ball, but for rounding: ART's Square divides by zero in L2
    and hands out NaN."""
    moved = images.astype(np.float64) - bounds.centre
    far = (
        np.abs(moved).max((1, 2, 3))
        if bounds.norm == "linf"
        else np.sqrt((moved**2).sum((1, 2, 3)))
    )
    return np.isfinite(images).all((1, 2, 3)) & (far <= bounds.radius * 1.0001)
