"""Calibration: over-confidence, selective risk, and strangers that confidence should tell apart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from tasks.core.errors import ParamsError
from tasks.core.metrics import softmax
from tasks.core.params import check
from tasks.core.tables import Schema
from tasks.modalities.vision.outliers import KINDS, outliers
from tasks.stress import calibration
from tasks.stress.separation import auc, auc_bounds, passing


def test_an_over_confident_student_fails_calibration(digits) -> None:
    case = digits.case()
    sure = replace(case, student_logits=case.student_logits * 100)
    unsure = replace(case, student_logits=case.student_logits * 0.01)
    plain, over, under = (
        calibration.run(c, calibration.Params(ece=0.3)) for c in (case, sure, unsure)
    )
    assert plain.gates[0].passed
    assert not under.gates[0].passed
    assert over.results["student"]["nll"] > plain.results["student"]["nll"]
    assert under.results["student"]["brier"] > plain.results["student"]["brier"]
    for outcome in (plain, over, under):
        assert outcome.results["student"]["ece_upper"] >= outcome.results["student"]["ece"]
        assert outcome.gates[0].value == outcome.results["student"]["ece_upper"]


def test_selective_risk_is_lowest_when_errors_are_the_least_confident() -> None:
    labels = np.zeros(4, dtype=np.int64)
    good = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.4, 0.6]])
    bad = np.array([[0.1, 0.9], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]])
    assert calibration.risks(good, labels)[-1] == calibration.risks(bad, labels)[-1] == 0.25
    assert calibration.risks(good, labels).mean() < calibration.risks(bad, labels).mean()


def test_risk_at_a_coverage_is_the_error_rate_of_the_most_confident_rows(digits) -> None:
    case = digits.case()
    outcome = calibration.run(case, calibration.Params(ece=0.3))
    found = outcome.results["student"]["risk_at_coverage"]
    probabilities = softmax(case.student_logits)
    wrong = probabilities.argmax(axis=1) != case.test.labels
    first = np.argsort(-probabilities.max(axis=1), kind="stable")[:160]

    assert set(found) == {"0.8", "0.9", "1"}
    assert found["0.8"] == wrong[first].mean()
    assert found["1"] == wrong.mean()


def test_separation_agrees_with_scikit_learn() -> None:
    random = np.random.default_rng(0)
    strange, own = random.normal(0, 1, 80).round(1), random.normal(1, 1, 120).round(1)  # with ties
    truth, scores = np.repeat([0, 1], [80, 120]), np.concatenate([strange, own])
    false, true, _ = roc_curve(truth, scores)

    assert auc(strange, own) == pytest.approx(roc_auc_score(truth, scores))
    assert passing(strange, own, 0.95) == pytest.approx(false[np.argmax(true >= 0.95)])
    assert passing(own, own, 0.95) >= 0.95


def test_the_bounds_of_auc_miss_the_truth_as_rarely_as_they_say() -> None:
    random = np.random.default_rng(0)
    truth, missed = 0.7602, [0, 0]  # of normal scores, one deviation apart: Phi(1 / sqrt(2))
    for seed in range(30):
        found = auc_bounds(random.normal(0, 1, 60), random.normal(1, 1, 60), seed)
        missed[0] += found["low"] > truth
        missed[1] += found["high"] < truth
    assert max(missed) <= 5  # of 30 at 5 %, exceeded three times in a thousand


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize(("shape", "span"), [((1, 8, 8), (0, 16)), ((3, 16, 20), (-1, 1))])
def test_strangers_stay_in_the_range_and_are_seeded(
    kind: str, shape: tuple[int, int, int], span: tuple[float, float]
) -> None:
    random = np.random.default_rng(0)
    images = random.uniform(*span, (9, *shape)).astype(np.float32)
    data = Schema(modality="vision", shape=shape, dtype="float32", range=span, classes=("a", "b"))

    made, again = (outliers(kind, images, data, np.random.default_rng(1)) for _ in range(2))

    assert made.shape == images.shape
    assert made.dtype == np.float32
    assert made.min() >= span[0]
    assert made.max() <= span[1]
    assert np.array_equal(made, again)
    assert not np.array_equal(made, images)


def test_permuted_keeps_each_rows_pixels_and_inverted_is_its_own_inverse() -> None:
    images = np.random.default_rng(0).integers(2, 19, (5, 3, 4, 6)).astype(np.float32)
    data = Schema(
        modality="vision", shape=(3, 4, 6), dtype="uint8", range=(2, 18), classes=("a", "b")
    )
    random = np.random.default_rng(1)
    shuffled = outliers("permuted", images, data, random)
    colours = [sorted(map(tuple, i.reshape(5, 3, -1)[0].T.tolist())) for i in (images, shuffled)]

    assert colours[0] == colours[1], "a pixel keeps its colours"
    twice = outliers("inverted", outliers("inverted", images, data, random), data, random)
    assert np.array_equal(twice, images)


def test_strangers_are_told_apart_where_confidence_falls_and_not_where_it_does_not(digits) -> None:
    case = digits.case()
    params = calibration.Params(ece=0.3, ood=("noise", "permuted"), ood_auroc=0.7)
    blind = replace(case, student_logits=case.score(outliers(
        "permuted", case.test.images, case.data, np.random.default_rng(5)
    )))  # fmt: skip

    sound, unsure = (calibration.run(c, params) for c in (case, blind))

    assert sound.gates[1].name == "calibration.ood_auroc"
    assert sound.gates[1].passed
    assert not unsure.gates[1].passed
    found = sound.results["ood"]["permuted"]
    for score in ("confidence", "energy"):
        assert found[score]["auroc"]["low"] <= found[score]["auroc"]["value"]
        assert 0 <= found[score]["fpr95"] <= 1
    assert sound.results["summary"]["auroc_permuted"] == found["confidence"]["auroc"]["value"]
    worst = min(sound.results["ood"].values(), key=lambda f: f["confidence"]["auroc"]["low"])
    assert sound.gates[1].value == worst["confidence"]["auroc"]["low"]


def test_strangers_are_measured_only_where_the_preset_names_them_and_gated_only_with_a_bound(
    digits,
) -> None:
    case = digits.case()
    none = calibration.run(case, calibration.Params(ece=0.3))
    some = calibration.run(case, calibration.Params(ece=0.3, ood=("inverted",)))
    assert none.results["ood"] == {}
    assert set(some.results["ood"]) == {"inverted"}
    assert len(none.gates) == len(some.gates) == 1


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"ood": ["foggy"]}, "ood"),
        ({"ood": ["noise", "noise"]}, "names a kind twice"),
        ({"ood_auroc": 0.8}, "needs a kind of strangers"),
    ],
)
def test_strangers_that_cannot_be_are_refused(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ParamsError, match=said):
        check(calibration.Params, {"ece": 0.3, **wrong}, "params.yaml: stress.calibration")


def test_given_strangers_are_asked_too_and_the_gate_is_on_the_kind_told_worst(digits) -> None:
    case = digits.case()
    rows = case.test.images
    asked = calibration.Params(ece=0.3, ood=("noise",), ood_auroc=0.6)

    none = calibration.run(case, asked)
    dark = calibration.run(replace(case, strangers=np.zeros_like(rows[:20])), asked)
    same = calibration.run(replace(case, strangers=rows), asked)

    assert set(none.results["ood"]) == {"noise"}
    assert set(dark.results["ood"]) == {"noise", "given"}
    assert dark.results["ood"]["given"]["rows"] == 20
    assert dark.results["summary"]["auroc_given"] != 0.5
    found = same.results["ood"]["given"]["confidence"]["auroc"]
    assert found["value"] == pytest.approx(0.5, abs=0.1)
    assert "'given'" in same.gates[1].why
    assert not same.gates[1].passed, "what is of the data cannot be told from it"
