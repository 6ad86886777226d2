"""The baseline is real, deterministic and bounded in cost."""

from __future__ import annotations

import numpy as np
import pytest

from tasks.core.tables import Table
from tasks.judge import baseline
from tasks.judge.baseline import features, fit_and_predict
from tasks.judge.case import Case


def rows(images: np.ndarray, labels: np.ndarray) -> Table:
    """A table with made-up row ids in no order."""
    ids = np.array([f"{(7919 * i) % 100_003:064d}" for i in range(len(labels))])
    return Table(ids, labels.astype(np.int64), images)


def separable(count: int, seed: int) -> Table:
    """Two classes that differ in one pixel of an image of 1×3×5."""
    generator = np.random.default_rng(seed)
    images = generator.random((count, 1, 3, 5)).astype(np.float32)
    labels = (images[:, 0, 1, 2] > 0.5).astype(np.int64)
    return rows(images, labels)


def test_it_learns_what_is_linear() -> None:
    found = fit_and_predict(separable(400, 0), separable(200, 1))

    assert (found.predicted == separable(200, 1).labels).mean() > 0.9
    assert (found.rows, found.features) == (400, 15)


def test_it_gives_the_same_predictions_twice() -> None:
    train, test = separable(200, 0), separable(50, 1)

    once, again = fit_and_predict(train, test), fit_and_predict(train, test)

    assert once.predicted.tolist() == again.predicted.tolist()


def test_large_tables_are_capped_at_the_rows_with_the_smallest_hashes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train, test = separable(400, 0), separable(200, 1)
    smallest = train.take(np.sort(np.argsort(train.rows)[:100]))
    expected = fit_and_predict(smallest, test)
    monkeypatch.setattr(baseline, "ROWS", 100)

    capped = fit_and_predict(train, test)

    assert capped.rows == 100
    assert capped.predicted.tolist() == expected.predicted.tolist()


def test_large_images_become_block_means() -> None:
    image = np.arange(3 * 100 * 70, dtype=np.float32).reshape(1, 3, 100, 70)

    found = features(image)

    assert found.shape[1] <= baseline.FEATURES
    assert found[0, 0] == pytest.approx(image[0, 0, :3, :3].mean())
    assert found[0, -1] == pytest.approx(image[0, 2, 99:, 69:].mean())


def test_bytes_do_not_overflow_in_block_means() -> None:
    assert features(np.full((1, 1, 200, 200), 255, np.uint8)).max() == 255


def test_one_class_to_learn_is_one_answer() -> None:
    train = rows(np.zeros((10, 1, 2, 2), np.uint8), np.full(10, 3))

    assert set(fit_and_predict(train, separable(5, 0)).predicted) == {3}


def test_quarantined_rows_do_not_teach_the_baseline(case: Case) -> None:
    assert case.baseline.rows == 39
