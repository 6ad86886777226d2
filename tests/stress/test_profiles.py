"""Gates of attacks: what a profile compares, and samples that end as soon as they are settled."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tasks.core.statistics import anytime_lower, tango_upper, wilson
from tasks.stress import adversarial
from tasks.stress.adversarial import Params, run
from tasks.stress.budget import BUDGETS
from tasks.stress.case import Outcome
from tasks.stress.curve import Curve, joined
from tasks.stress.ladder import Level, Tried
from tasks.stress.profiles import Profile, Robust, gates, settled

STANDARD = Profile(profile="standard", margin=0.1, robust=Robust(epsilon=0.1, accuracy=0.65))
ROBUST = STANDARD.model_copy(update={"profile": "robust"})
EPSILONS = (0.01, 0.1)


def curve(student: list[float], teacher: list[float], copies: int = 1) -> Curve:
    """In random order, as bounds on the run ask for it."""
    order = np.random.default_rng(0).permutation(len(student) * copies)
    return Curve(
        "linf", EPSILONS, [], np.tile(student, copies)[order], np.tile(teacher, copies)[order]
    )


def labels(of: Curve) -> np.ndarray:
    return np.zeros(len(of.student), np.int64)


def by_name(of: Curve, asks: Profile, in_parts: bool) -> dict[str, float]:
    return {gate.name: gate.value for gate in gates(of, asks, labels(of), in_parts)}


def test_a_fixed_sample_is_judged_by_the_bounds_of_fixed_samples() -> None:
    some = curve([np.inf, np.inf, 0.1, 0.01], [np.inf, np.inf, np.inf, 0.1], copies=50)
    assert by_name(some, ROBUST, in_parts=False) == {"adversarial.robust": wilson(100, 200)[0]}
    found = by_name(some, STANDARD, in_parts=False)
    assert found["adversarial.epsilon_0.01"] == tango_upper(50, 0, 200)
    assert set(found) == {"adversarial.epsilon_0.01", "adversarial.area"}


def test_a_sample_that_may_end_at_any_look_is_judged_by_bounds_that_hold_at_each() -> None:
    some = curve([np.inf, np.inf, 0.1, 0.01], [np.inf, np.inf, np.inf, 0.1], copies=50)
    held = anytime_lower(some.student > 0.1)
    assert by_name(some, ROBUST, in_parts=True) == {"adversarial.robust": held}
    found = by_name(some, STANDARD, in_parts=True)
    kept = np.where(some.student > 0.01, 0.5, 0.0)  # what falls at 0.01 is lost
    assert found["adversarial.epsilon_0.01"] == pytest.approx(1 - 2 * anytime_lower(kept))
    fixed = by_name(some, STANDARD, in_parts=False)
    assert all(found[name] > fixed[name] for name in fixed), "looking costs width"
    told = [gate.why for gate in gates(some, STANDARD, labels(some), in_parts=True)]
    assert all("that holds at every look" in because for because in told)


@pytest.mark.parametrize(
    ("student", "decided"),
    [
        ([np.inf] * 9 + [0.0], True),  # 90 % left: passes
        ([np.inf] * 4 + [0.0] * 6, True),  # 40 % left: fails
        ([np.inf] * 13 + [0.0] * 7, False),  # 65 % left: nobody knows
    ],
)
def test_the_profile_robust_is_settled_where_its_bounds_leave_no_doubt(
    student: list[float], decided: bool
) -> None:
    some = curve(student, student, copies=200 // len(student))
    assert settled(some, ROBUST, labels(some)) is decided


def test_the_profile_standard_is_settled_when_each_of_its_gates_is() -> None:
    equal = curve([np.inf, 0.0], [np.inf, 0.0], copies=100)
    assert settled(equal, STANDARD, labels(equal))
    lost = curve([0.0] * 10, [np.inf] * 9 + [0.0], copies=20)
    assert settled(lost, STANDARD, labels(lost)), "lost beyond doubt is settled too"
    # Within 0.01 nothing is lost; over all epsilons the area loses a tenth, which is the margin.
    doubtful = curve([np.inf] * 9 + [0.1], [np.inf] * 10, copies=20)
    only_small = replace(doubtful, teacher=doubtful.student)
    assert settled(only_small, STANDARD, labels(only_small))
    # Within 0.01 a tenth is lost, which is the margin; of the area, half as much.
    soon = curve([np.inf] * 9 + [0.01], [np.inf] * 9 + [0.1], copies=40)
    assert not settled(soon, STANDARD, labels(soon))
    assert settled(replace(soon, epsilons=(0.1,)), STANDARD, labels(soon))
    at_the_margin = STANDARD.model_copy(update={"margin": 0.045})
    assert not settled(doubtful, at_the_margin, labels(doubtful))


def test_curves_of_parts_add_up() -> None:
    def part(rows: int, broke: int, queries: list[int]) -> Curve:
        level = Level(0.1, {"square": Tried(rows, broke)}, np.array(queries, np.int64), None)
        falls = np.arange(rows, dtype=np.float64)
        return Curve("linf", (0.1,), [level], falls, falls + 1)

    whole = joined([part(2, 1, [3, 4]), part(3, 0, [5])])
    assert whole.student.tolist() == [0, 1, 0, 1, 2]
    assert whole.teacher.tolist() == [1, 2, 1, 2, 3]
    (level,) = whole.levels
    assert level.attacks == {"square": Tried(5, 1)}
    assert (level.queries.tolist(), level.disagree) == ([3, 4, 5], None)


def test_a_sample_that_is_settled_because_it_passed_does_pass() -> None:
    """A student that falls where its teacher does: its bound on 200 rows is the very margin."""
    equal = curve([np.inf, 0.1], [np.inf, 0.1], copies=100)
    tight = STANDARD.model_copy(update={"margin": 0.03})
    assert settled(equal, tight, labels(equal))
    assert all(gate.passed for gate in gates(equal, tight, labels(equal), in_parts=True))


def test_equal_curves_of_a_handful_of_rows_prove_too_little() -> None:
    few = curve([np.inf], [np.inf], copies=3)
    assert not any(gate.passed for gate in gates(few, STANDARD, labels(few)))


PARAMS = Params(
    linf=(0.02, 0.1),
    l2=(0.3,),
    profile="robust",
    margin=0.3,
    robust=Robust(epsilon=0.1, accuracy=0.65),
)
LOOKING = replace(BUDGETS["smoke"], attacked=120, look=40)


def met(outcome: Outcome) -> tuple[int, int]:
    return outcome.rows, outcome.results["planned"]


@pytest.mark.parametrize(("accuracy", "rows"), [(0.65, 40), (0.0, 40), (0.05, 120)])
def test_a_sample_ends_at_the_first_look_that_settles_it(
    digits, accuracy: float, rows: int
) -> None:
    """Next to nothing is left of this student: 65 % is refuted at once, 0 % is true of anyone, and
    5 % stays in doubt."""
    asked = PARAMS.model_copy(update={"robust": Robust(epsilon=0.1, accuracy=accuracy)})
    outcome = run(digits.case(LOOKING), asked)
    assert met(outcome) == (rows, 120)
    assert outcome.gates[0].passed is (accuracy == 0.0)
    lines = [line for line in outcome.results["epsilons"] if line["norm"] == "linf"]
    right = round(outcome.results["clean"]["student"]["value"] * rows)
    for line in lines:
        right -= sum(tried["broke"] for tried in line["attacks"].values())
        assert right == round(line["student"]["value"] * rows), "parts add up to the whole"
    assert len(set(outcome.kept["kept"]["row"].to_pylist())) <= rows


def test_a_fixed_sample_never_ends_early(digits) -> None:
    whole = replace(LOOKING, look=120)
    assert met(run(digits.case(whole), PARAMS)) == (120, 120)


def test_a_part_without_a_row_to_attack_is_no_error(
    digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = digits.case(replace(LOOKING, look=1, attacked=12))
    first, table = case.sample(12)[0], case.test
    labels = table.labels.copy()
    labels[first] = (case.student_logits[first].argmax() + 1) % 10
    monkeypatch.setattr(adversarial, "settled", lambda *_: False)
    assert met(run(replace(case, test=replace(table, labels=labels)), PARAMS)) == (12, 12)
