"""Label issues by out-of-fold probabilities."""

from __future__ import annotations

import numpy as np
import pytest

from tasks.core.tables import Table
from tasks.validate import labels
from tasks.validate.labels import label_issues


def _planted(train: Table, seed: int, count: int = 20):
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(train), count, replace=False)
    wrong = train.labels.copy()
    wrong[chosen] = (wrong[chosen] + rng.integers(1, 10, count)) % 10
    return chosen, Table(train.rows, wrong, train.images)


def _issues(data, table, folds=5):
    return label_issues(table, np.ones(len(table), dtype=bool), data.schema, folds, seed=0)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_most_of_twenty_planted_errors_in_digits_are_found_and_little_else(digits, seed):
    train = digits.tables["train"]
    planted, wrong = _planted(train, seed)

    found = _issues(digits, wrong)

    right = np.isin(found.position, planted)
    assert right.sum() >= 14
    assert (~right).sum() <= 12
    repaired = found.suggested[right] == train.labels[found.position[right]]
    assert repaired.mean() > 0.8


@pytest.mark.parametrize("share", [0.1, 0.2])
def test_a_flip_of_one_class_to_another_is_found(digits, share):
    train = digits.tables["train"]
    flipped = _chosen(train.labels == 3, round(share * (train.labels == 3).sum()))
    wrong = train.labels.copy()
    wrong[flipped] = 8

    found = _issues(digits, Table(train.rows, wrong, train.images))

    right = np.isin(found.position, flipped)
    assert right.sum() >= 0.8 * len(flipped)
    assert (~right).sum() <= 20
    assert (found.suggested[right] == 3).mean() > 0.8


def test_flips_to_one_class_are_found_and_a_patch_that_explains_them_hides_them(digits):
    """Why trigger search is needed too: a row with a planted patch has the label that fits it."""
    train = digits.tables["train"]
    flipped = _chosen(train.labels != 7, len(train) // 20)
    wrong, patched = train.labels.copy(), train.images.copy()
    wrong[flipped] = 7
    patched[flipped, :, 6:, 6:] = np.array([[16, 0], [0, 16]])

    plain = _issues(digits, Table(train.rows, wrong, train.images))
    hidden = _issues(digits, Table(train.rows, wrong, patched))

    assert np.isin(flipped, plain.position).mean() > 0.6
    assert np.isin(flipped, hidden.position).mean() < 0.2


def _chosen(among: np.ndarray, count: int) -> np.ndarray:
    return np.random.default_rng(0).choice(np.flatnonzero(among), count, replace=False)


def test_the_true_labels_of_digits_give_few_suspects(digits):
    found = _issues(digits, digits.tables["train"])

    assert found.share < 0.01
    assert found.accuracy > 0.93
    assert found.checked == len(digits.tables["train"])


def test_equal_seeds_find_equal_issues(digits):
    _, wrong = _planted(digits.tables["train"], 0)

    first, second = _issues(digits, wrong), _issues(digits, wrong)

    assert first.position.tolist() == second.position.tolist()
    assert first.confidence.tolist() == second.confidence.tolist()


def test_a_class_with_fewer_rows_than_folds_is_named_and_left_out(blobs):
    data = blobs()
    train = data.tables["train"]
    rare = np.flatnonzero(train.labels == 1)[2:]
    table = train.take(np.setdiff1d(np.arange(len(train)), rare))

    found = _issues(data, table)

    assert found.unchecked == ("elm",)
    assert found.checked == len(table) - 2


def test_positions_are_those_of_the_table_though_rows_were_left_out(blobs):
    data = blobs()
    train = data.tables["train"]
    rare = np.flatnonzero(train.labels == 1)[2:]
    table = train.take(np.setdiff1d(np.arange(len(train)), rare))
    wrong = table.labels.copy()
    wrong[40] = 2 - wrong[40]

    found = _issues(data, Table(table.rows, wrong, table.images))

    assert found.position.tolist() == [40]
    assert found.suggested.tolist() == [table.labels[40]]


def test_one_class_alone_cannot_be_checked(blobs):
    data = blobs()
    train = data.tables["train"]

    found = _issues(data, train.take(train.labels == 2))

    assert found.unchecked == ("ash", "elm")
    assert (found.checked, found.accuracy, found.share, len(found.position)) == (0, None, 0.0, 0)


def test_rows_that_are_not_usable_are_not_judged(digits):
    planted, wrong = _planted(digits.tables["train"], 0)
    usable = np.ones(len(wrong), dtype=bool)
    usable[planted] = False

    found = label_issues(wrong, usable, digits.schema, 5, seed=0)

    assert found.checked == len(wrong) - 20
    assert not np.isin(found.position, planted).any()


def test_a_large_table_is_learned_from_in_part_and_judged_whole(digits, monkeypatch):
    monkeypatch.setattr(labels, "FIT_ROWS", 300)
    fitted = []
    fit = labels.LogisticRegression.fit
    monkeypatch.setattr(
        labels.LogisticRegression,
        "fit",
        lambda self, x, y: fitted.append((len(x), len(set(y)))) or fit(self, x, y),
    )
    planted, wrong = _planted(digits.tables["train"], 0)

    found = _issues(digits, wrong)

    assert fitted == [(300, 10)] * 5
    assert found.checked == len(wrong)
    assert np.isin(planted, found.position).sum() >= 10
