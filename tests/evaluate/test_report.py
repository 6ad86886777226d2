import numpy as np
import pytest

from tasks.core.errors import DataError, GateError
from tasks.evaluate.report import evaluate, gate


def predictions(right: int, wrong: int) -> tuple[np.ndarray, np.ndarray]:
    """Confident logits of two classes with a known number of hits."""
    labels = np.arange(right + wrong) % 2
    answer = np.where(np.arange(right + wrong) < right, labels, 1 - labels)
    return (np.eye(2)[answer] * 6).astype(np.float32), labels.astype(np.int64)


def test_a_teacher_that_meets_its_target_passes_with_interval_and_temperature() -> None:
    report = evaluate(predictions(90, 10), predictions(180, 20), 0.94, "m", "f")
    assert report.met
    assert report.test.accuracy.value == 0.9
    assert report.test.accuracy.low < 0.9 < report.test.accuracy.high
    assert report.temperature > 1.5, "over-confident on validation rows"
    assert report.test.ece_calibrated < report.test.ece
    gate(report)


@pytest.mark.parametrize("where", ["validation", "test"])
def test_a_teacher_that_answers_nan_is_refused(where: str) -> None:
    val, test = predictions(90, 10), predictions(180, 20)
    (val if where == "validation" else test)[0][:3] = np.nan
    with pytest.raises(DataError, match=f"teacher: answers 3 of .* {where} rows with NaN"):
        evaluate(val, test, 0.94, "m", "f")


def test_a_teacher_below_95_percent_of_its_target_is_refused_with_its_figures() -> None:
    report = evaluate(predictions(90, 10), predictions(90, 10), 0.97, "m", "f")
    assert not report.met
    with pytest.raises(GateError, match=r"90\.0 % \(.*\) is below 95%"):
        gate(report)
