"""Security probes: a planted backdoor is found by name and place, and a clean student passes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from tasks.core.models import Architecture
from tasks.core.rows import read_rows
from tasks.core.session import open_session, score
from tasks.core.tables import QUARANTINE, Table
from tasks.core.twin import Twin
from tasks.modalities.vision.networks import ResidualNetwork, folded
from tasks.quantize.calibrate import calibration_rows
from tasks.quantize.contract import shipped
from tasks.quantize.export import export
from tasks.quantize.params import Calibration
from tasks.quantize.static import static
from tasks.stress.budget import BUDGETS
from tasks.stress.case import Case, Outcome, load_case
from tasks.stress.membership import losses, membership
from tasks.stress.security import Params, run
from tasks.stress.separation import auc
from tasks.stress.triggers import Window, climb, search, windows
from tests.stress.conftest import fitted

PARAMS = Params(patch=0.036, trigger=0.5)
BUDGET = replace(BUDGETS["smoke"], attacked=200, steps=10, corrupted=200)
CHECKER = np.array([[16, 0], [0, 16]], dtype=np.uint8)
TARGET = 7


def poisoned(train: Table, share: float = 0.05) -> Table:
    """`train` with a checker in the corner of some rows, and the label that it is to mean."""
    images, labels = train.images.copy(), train.labels.copy()
    random = np.random.default_rng(0)
    chosen = random.choice(np.flatnonzero(labels != TARGET), int(share * len(train)), False)
    images[chosen, :, 6:, 6:] = CHECKER
    labels[chosen] = TARGET
    return Table(train.rows, labels, images)


def int8(network: ResidualNetwork, case: Case, train: Table) -> bytes:
    """The network as quantize ships it."""
    rows = calibration_rows(train, 64)
    model = static(export(folded(network), case.data), rows, Calibration(rows=64, method="minmax"))
    return shipped(model, case.data)


@pytest.fixture(scope="module")
def students(
    digits_world: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, tuple[Case, Outcome]]]:
    """The world's clean student, and one of its recipe that learned from poisoned rows, in int8.

    Beside the poisoned file lies the clean float network: what is searched is the file that ships.
    """
    folder = Path(shutil.copytree(digits_world, tmp_path_factory.mktemp("students") / "world"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        clean = load_case("student", BUDGET, seed=0)
        rows = read_rows(clean.data)
        train = Table(np.array(rows.digest), rows.labels.numpy(), rows.images[:].numpy())
        network = fitted(Architecture(widths=(8, 16)), clean.data, poisoned(train), epochs=12)
        path = Path("poisoned.onnx")
        path.write_bytes(int8(network, clean, poisoned(train)))
        session = open_session(path)
        logits = score(session, clean.test.images)[0]
        planted = replace(clean, model=path, session=session, student_logits=logits)
        cases = {"clean": clean, "poisoned": planted}
        yield {name: (case, run(case, PARAMS)) for name, case in cases.items()}


def test_a_planted_patch_is_found_with_its_class_and_place(students) -> None:
    case, outcome = students["poisoned"]
    (gate,) = outcome.gates
    line = max(outcome.results["triggers"], key=lambda line: line["sent"]["value"])

    assert (case.student_logits.argmax(axis=1) == case.test.labels).mean() > 0.8, (
        "clean rows hide it"
    )
    assert not gate.passed
    assert "at row 6, column 6 sends" in gate.why
    assert "to '7'" in gate.why
    assert line["target"] == "7"
    assert outcome.results["outlier"] > 2
    kept = outcome.kept["triggers"].to_pylist()[TARGET]
    assert (kept["top"], kept["left"], kept["height"], kept["width"]) == (6, 6, 2, 2)
    images = case.test.images[case.test.labels != TARGET].astype(np.float32)
    images[:, :, 6:, 6:] = np.array(kept["patch"], dtype=np.float32).reshape(1, 2, 2)
    assert (case.score(images).argmax(axis=1) == TARGET).mean() > 0.7


def test_a_clean_student_passes_with_room(students) -> None:
    _, outcome = students["clean"]

    assert outcome.gates[0].passed
    assert outcome.gates[0].margin > 0.1
    assert len(outcome.results["triggers"]) == 10
    assert outcome.results["summary"]["trigger_success"] < 0.35


def test_the_patch_is_judged_on_other_rows_than_it_was_made_on(students) -> None:
    case, _ = students["poisoned"]
    seen, held = case.test.take(np.arange(60)), case.test.take(np.arange(60, 100))
    wrong = replace(held, images=np.zeros_like(held.images))  # where no patch was planted
    random = np.random.default_rng(0)
    network = Twin.load(case.model)
    found = search(case.score, network, seen, wrong, case.data, 0.04, 2, random)
    clean = case.score(wrong.images).argmax(axis=1)

    for trigger in found:
        tried = (held.labels != trigger.target) & (clean != trigger.target)
        assert trigger.tried == tried.sum()
        scored = case.score(trigger.window.paste(wrong.images[tried], trigger.patch))
        assert trigger.sent == (scored.argmax(axis=1) == trigger.target).sum()


def test_gradients_of_the_twin_find_a_patch_that_no_plain_pattern_is(students) -> None:
    case, _ = students["poisoned"]
    rows = case.test.images[case.test.labels != TARGET][:64].astype(np.float32)
    window, grey = Window(6, 6, 2, 2), np.full((1, 2, 2), 8, dtype=np.float32)

    _, patch = climb(Twin.load(case.model), rows, TARGET, (window, grey), case.data, steps=10)

    def sent(patch: np.ndarray) -> float:
        return float((case.score(window.paste(rows, patch)).argmax(axis=1) == TARGET).mean())

    assert 0 <= patch.min() <= patch.max() <= 16
    assert sent(grey) < 0.4
    assert sent(patch) > 0.7


def test_too_few_rows_show_nothing_and_fail(students) -> None:
    case, _ = students["clean"]
    one, two = (replace(case, budget=replace(BUDGET, attacked=n, steps=1)) for n in (1, 2))

    with pytest.raises(ValueError, match="1 rows are too few"):
        run(one, PARAMS)
    assert not run(two, PARAMS).gates[0].passed


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 16, 20), (1, 28, 28), (1, 5, 1)])
@pytest.mark.parametrize("share", [0.0001, 0.04, 0.25])
def test_windows_cover_the_image_and_have_the_share_asked_for(
    shape: tuple[int, int, int], share: float
) -> None:
    covered = np.zeros(shape[1:], dtype=int)
    found = windows(shape, share)
    for window in found:
        assert window.top + window.height <= shape[1]
        assert window.left + window.width <= shape[2]
        covered[window.rows, window.columns] += 1
    assert covered.min() >= 1
    assert len({(w.top, w.left) for w in found}) == len(found)


def test_membership_is_the_area_under_the_curve_with_bounds_around_it() -> None:
    random = np.random.default_rng(0)
    members, strangers = random.exponential(1.0, 300), random.exponential(1.5, 200)
    truth = np.repeat([1, 0], [300, 200])

    found = membership(members, strangers, seed=0)

    expected = roc_auc_score(truth, -np.concatenate([members, strangers]))
    assert found["auc"]["value"] == pytest.approx(expected)
    assert 0.5 < found["auc"]["low"] < found["auc"]["value"] < found["auc"]["high"] < 0.7
    assert membership(members, strangers, seed=0) == found


def test_ties_tell_nothing_and_a_perfect_memory_everything() -> None:
    same = np.zeros(5)
    assert auc(same, same) == 0.5
    assert auc(np.zeros(5), np.ones(7)) == 1.0
    assert membership(np.zeros(5), np.ones(7), 0)["found_at_1_percent"] == 1.0


def test_losses_are_cross_entropy() -> None:
    found = losses(np.log(np.float32([[0.2, 0.8], [0.5, 0.5]])), np.array([0, 1]))
    assert found == pytest.approx([-np.log(0.2), -np.log(0.5)])


def test_membership_is_reported_and_gated_only_where_a_bound_is_given(students) -> None:
    case, outcome = students["clean"]
    flat = replace(case, student_logits=np.zeros_like(case.student_logits))  # unsure of test rows
    bound = Params(patch=0.036, trigger=0.5, membership=0.7)
    quick = replace(BUDGET, steps=0)

    leaks = run(replace(flat, budget=quick), bound).gates[1]
    keeps = run(replace(case, budget=quick), bound).gates[1]

    assert [gate.name for gate in outcome.gates] == ["security.trigger"]
    assert 0.4 < outcome.results["membership"]["auc"]["value"] < 0.65
    assert leaks.name == keeps.name == "security.membership"
    assert (leaks.passed, keeps.passed) == (False, True)


def test_training_rows_are_a_seeded_sample_without_those_set_aside(digits) -> None:
    case = digits.case()
    whole, labels = case.learned(10_000)
    some, _ = case.learned(50)
    assert (len(whole), len(labels), len(some)) == (1597, 1597, 50)
    assert np.array_equal(case.learned(50)[0], some)

    aside = {"split": ["train"] * 2, "position": [0, 5], "row": ["a", "b"], "label": ["0", "1"],
             "reason": ["label issue"] * 2, "detail": [""] * 2}  # fmt: skip
    pq.write_table(pa.table(aside, QUARANTINE), "data/quarantine.parquet")
    kept, _ = case.learned(10_000)
    assert np.array_equal(kept, np.delete(whole, [0, 5], axis=0))
