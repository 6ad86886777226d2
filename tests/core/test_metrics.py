import numpy as np
import pytest

from tasks.core import metrics


def test_ece_of_a_hand_computed_example() -> None:
    # Two rows at confidence 0.9, one of them right: |0.9 - 0.5| = 0.4.
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1]])
    assert metrics.ece(probabilities, np.array([0, 1])) == pytest.approx(0.4)


def test_the_fitted_temperature_undoes_a_known_one() -> None:
    draw = np.random.default_rng(0)
    logits = draw.normal(0, 2, (4000, 5))
    cumulative = metrics.softmax(logits).cumsum(axis=1)
    labels = (draw.random((4000, 1)) > cumulative).sum(axis=1)
    assert metrics.fit_temperature(logits * 3, labels) == pytest.approx(3.0, rel=0.1)


def test_kl_is_zero_for_equal_logits_and_ignores_a_shift() -> None:
    logits = np.random.default_rng(0).normal(size=(5, 3))
    assert metrics.kl(logits, logits + 7) == pytest.approx(np.zeros(5), abs=1e-12)


def test_macro_f1_ignores_a_class_that_never_occurs() -> None:
    labels = np.array([0, 0, 1])
    assert metrics.macro_f1(labels, labels, classes=9) == 1.0


def test_brier_and_nll_of_a_certain_right_answer_are_zero() -> None:
    certain, label = np.array([[0.0, 1.0]]), np.array([1])
    assert metrics.brier(certain, label) == 0.0
    assert metrics.negative_log_likelihood(np.array([[-50.0, 50.0]]), label) == pytest.approx(0.0)
