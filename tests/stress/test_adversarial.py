"""The adversarial family: worst case per row, paired with the teacher, and masking is caught."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from tasks.core.metrics import correct
from tasks.core.session import open_session
from tasks.core.statistics import wilson
from tasks.core.twin import Twin
from tasks.stress import adversarial, ladder
from tasks.stress.adversarial import Params, plans, run
from tasks.stress.attacks import apgd as climbing
from tasks.stress.attacks import objectives
from tasks.stress.budget import BUDGETS, Budget
from tasks.stress.case import Case, Outcome, load_case
from tasks.stress.curve import Curve
from tasks.stress.kept import rescore
from tasks.stress.ladder import Fallen, Plan, descend, teacher_falls
from tasks.stress.masking import masking
from tasks.stress.profiles import Robust

PARAMS = Params(
    linf=(0.1, 0.015),
    l2=(0.3,),
    profile="standard",
    margin=0.3,
    robust=Robust(epsilon=0.1, accuracy=0.65),
)
LED = {
    "float_apgd_ce", "float_apgd_margin", "twin_apgd_ce", "twin_apgd_margin", "square",
}  # fmt: skip
TAUGHT = {"teacher_apgd_ce", "teacher_apgd_margin", "diva"}
MASKING = [
    "adversarial.masking.gradients",
    "adversarial.masking.black_box",
    "adversarial.masking.half_range",
]


class Stepped(nn.Module):
    """Rounds its input to coarse steps: gradients are zero, and the network is no stronger."""

    def __init__(self, network: nn.Module, step: float) -> None:
        super().__init__()
        self.network, self.step = network, step

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network(torch.round(images / self.step) * self.step)


@pytest.fixture(scope="module", params=["digits_world", "colour_world"])
def attacked(request: pytest.FixtureRequest) -> tuple[Case, Outcome]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(request.getfixturevalue(request.param))
        case = load_case("student", BUDGETS["smoke"], seed=0)
        return case, run(case, PARAMS)


def test_the_report_covers_every_epsilon_and_attack(attacked: tuple[Case, Outcome]) -> None:
    case, outcome = attacked
    lines = outcome.results["epsilons"]
    known = [(line["norm"], line["epsilon"]) for line in lines]
    assert known == [("linf", 0.015), ("linf", 0.1), ("l2", 0.3)]
    assert outcome.rows == min(64, len(case.test))
    assert [set(line["attacks"]) for line in lines] == [LED | TAUGHT, LED, LED]
    for line in lines:
        assert line["student"]["low"] <= line["student"]["value"] <= line["student"]["high"]
    clean = outcome.results["clean"]["student"]["value"]
    accuracy = [clean, *(line["student"]["value"] for line in lines[:2])]
    assert accuracy == sorted(accuracy, reverse=True)
    assert lines[1]["student"]["value"] < clean
    assert lines[2]["student"]["value"] < clean
    assert set(outcome.results["summary"]) == {
        "robust_accuracy_0.015", "robust_accuracy_0.1", "robust_accuracy_l2_0.3", "area",
    }  # fmt: skip


def test_every_fall_is_counted_once_at_the_smallest_epsilon_and_met_by_no_later_attack(
    attacked: tuple[Case, Outcome],
) -> None:
    _, outcome = attacked
    lines = [line for line in outcome.results["epsilons"] if line["norm"] == "linf"]
    right = round(outcome.results["clean"]["student"]["value"] * outcome.rows)
    for line in lines:
        for name, tried in line["attacks"].items():
            assert name == "diva" or tried["rows"] <= right
            if name in LED:
                assert tried["rows"] == right, "it meets all that stand and no other"
            right -= tried["broke"]
        assert right == round(line["student"]["value"] * outcome.rows)


def test_there_is_a_gate_for_small_epsilons_the_curve_and_each_sign_of_masking(
    attacked: tuple[Case, Outcome],
) -> None:
    _, outcome = attacked
    names = [gate.name for gate in outcome.gates]
    assert names == ["adversarial.epsilon_0.015", "adversarial.area", *MASKING]
    assert all(gate.passed for gate in outcome.gates[2:])


@pytest.mark.parametrize(("accuracy", "passed"), [(0.0, True), (0.65, False)])
def test_the_profile_robust_asks_for_a_lower_bound_alone(
    digits, accuracy: float, passed: bool
) -> None:
    robust = Robust(epsilon=0.1, accuracy=accuracy)
    params = PARAMS.model_copy(update={"profile": "robust", "robust": robust, "l2": ()})
    outcome = run(digits.case(), params)
    assert [gate.name for gate in outcome.gates] == ["adversarial.robust", *MASKING]
    gate, line = outcome.gates[0], outcome.results["epsilons"][-1]
    assert gate.value == line["student"]["low"]
    assert gate.passed is passed


@pytest.mark.parametrize("epsilon", [-0.1, 0.0, 1.01, float("nan")])
def test_an_epsilon_below_zero_or_beyond_the_range_is_refused(epsilon: float) -> None:
    with pytest.raises(ValidationError):
        Params.model_validate({**PARAMS.model_dump(), "linf": (epsilon,)})
    if epsilon < 1:
        with pytest.raises(ValidationError):
            Params.model_validate({**PARAMS.model_dump(), "l2": (epsilon,)})


def test_the_profile_standard_needs_an_epsilon_at_which_it_compares() -> None:
    wrong = {**PARAMS.model_dump(), "profile": "standard", "linf": (0.03, 0.1)}
    with pytest.raises(ValidationError, match=r"epsilon of 0\.016 or less, and linf has none"):
        Params.model_validate(wrong)


def test_the_profile_robust_needs_its_epsilon_among_those_attacked() -> None:
    wrong = {**PARAMS.model_dump(), "profile": "robust", "linf": (0.01,)}
    with pytest.raises(ValidationError, match="not in linf; add it"):
        Params.model_validate(wrong)


def test_the_teacher_leads_at_one_small_epsilon_and_everywhere_for_a_release(digits) -> None:
    params = PARAMS.model_copy(update={"linf": (0.1, 0.0157, 0.0078, 0.0157)})
    linf, l2 = plans(digits.case(BUDGETS["ci"]), params)
    assert linf == Plan("linf", (0.0078, 0.0157, 0.1), frozenset({0.0157}))
    assert l2 == Plan("l2", (0.3,), frozenset())
    assert all(
        plan.led_by_teacher == set(plan.epsilons)
        for plan in plans(digits.case(BUDGETS["release"]), params)
    )


def test_the_area_under_a_curve_is_that_of_trapezoids() -> None:
    falls = np.array([0.0, 0.1, 0.4, np.inf])
    curve = Curve("linf", (0.1, 0.4), [], falls, falls)
    assert curve.areas("student").tolist() == pytest.approx([0, 0.125, 0.625, 1])


def test_kept_examples_are_in_the_ball_and_fool_the_shipped_file_again(
    attacked: tuple[Case, Outcome],
) -> None:
    case, outcome = attacked
    kept = outcome.kept["kept"].to_pydict()
    clean = dict(zip(case.test.rows, case.test.images, strict=True))
    labels = dict(zip(case.test.rows, case.test.labels, strict=True))
    low, high = case.data.range
    assert len(kept["row"]) == outcome.results["kept"] > 0
    assert len(set(zip(kept["row"], kept["norm"], strict=True))) == len(kept["row"])
    for row, label, predicted, norm, epsilon, pixels in zip(
        *(kept[k] for k in ("row", "label", "predicted", "norm", "epsilon", "pixels")), strict=True
    ):
        image = np.array(pixels, dtype=np.float32).reshape(case.data.shape)
        answer, valid = case.session.run(None, {"input": image[None]})
        assert answer.argmax() == predicted != label == labels[row]
        assert valid.all()
        moved = image.astype(np.float64) - clean[row]
        far = np.abs(moved).max() if norm == "linf" else np.sqrt((moved**2).sum())
        assert far <= epsilon * (high - low)
    assert set(zip(kept["norm"], kept["epsilon"], strict=True)) == {
        ("linf", 0.015), ("linf", 0.1), ("l2", 0.3),
    }  # fmt: skip


@pytest.mark.parametrize("said", ["label", "other"])
def test_a_kept_example_that_does_not_reproduce_or_fools_nobody_is_an_error(
    attacked: tuple[Case, Outcome], said: str
) -> None:
    case, outcome = attacked
    kept = outcome.kept["kept"]
    changed = "label" if said == "other" else "predicted"
    place = kept.schema.get_field_index(changed)
    source = kept["predicted"] if said == "other" else kept["label"]
    false = kept.set_column(place, kept.schema.field(place), source)
    with pytest.raises(ValueError, match=f"{len(kept)} of {len(kept)} kept examples"):
        rescore(case, false)


def test_the_family_scores_what_it_keeps_once_more(digits, monkeypatch: pytest.MonkeyPatch) -> None:
    scored: list[int] = []
    monkeypatch.setattr(adversarial, "rescore", lambda _, kept: scored.append(len(kept)))
    outcome = run(digits.case(), PARAMS)
    assert scored == [outcome.results["kept"]]


def test_a_fragile_student_loses_the_gates_against_a_robust_teacher(digits) -> None:
    case = digits.case()
    assert case.teacher_network is not None
    sturdy = replace(case, teacher_network=Constant(case), teacher=oracle(case))
    params = PARAMS.model_copy(update={"margin": 0.03})
    outcome = run(sturdy, params)
    small, area = outcome.gates[:2]
    assert (small.name, small.passed) == ("adversarial.epsilon_0.015", False)
    assert (area.name, area.passed) == ("adversarial.area", False)
    assert outcome.results["epsilons"][0]["teacher"]["value"] == 1.0


def test_diva_finds_rows_that_the_student_alone_gets_wrong(digits) -> None:
    case = digits.case()
    rows = case.test.take(case.sample(64))
    target = rows.take(correct(case.score(rows.images), rows.labels))
    plan = Plan("linf", (0.05,), frozenset({0.05}))
    _, (level,) = descend(case, {"float": case.float_network}, target, plan)
    assert level.disagree is not None
    assert 0 < level.disagree.sum() < len(target)
    assert level.attacks["diva"].rows > level.attacks["square"].rows, "it meets fallen rows too"


def test_diva_finds_no_disagreement_with_a_teacher_that_answers_as_the_student(digits) -> None:
    plain = digits.case()
    case = replace(plain, teacher=plain.score)  # its network leads away from the truth all the same
    rows = case.test.take(case.sample(64))
    target = rows.take(correct(case.score(rows.images), rows.labels))
    plan = Plan("linf", (0.1,), frozenset({0.1}))
    fallen, (level,) = descend(case, {"float": case.float_network}, target, plan)
    assert level.disagree is not None
    assert level.disagree.sum() == 0 < np.isfinite(fallen.epsilon).sum()


def test_a_black_box_teacher_is_attacked_by_square_and_leads_nobody(digits) -> None:
    case = replace(digits.case(), teacher_network=None)
    outcome = run(case, PARAMS)
    assert outcome.results["teacher_attack"] == "square"
    assert all(set(line["attacks"]) == LED for line in outcome.results["epsilons"])
    assert (
        outcome.results["epsilons"][1]["teacher"]["value"]
        < outcome.results["clean"]["teacher"]["value"]
    )


def test_a_teacher_falls_at_the_smallest_epsilon_that_breaks_it(digits) -> None:
    case = digits.case()
    rows = case.test.take(correct(case.teacher_logits, case.test.labels))
    falls = teacher_falls(case, rows, "linf", (0.03, 0.3))
    assert set(falls) == {0.03, 0.3}
    assert (falls == 0.03).sum() == (teacher_falls(case, rows, "linf", (0.03,)) == 0.03).sum()


def test_a_student_that_is_never_right_is_an_error(digits) -> None:
    case = digits.case()
    wrong = replace(case.test, labels=(case.student_logits.argmax(axis=1) + 1) % 10)
    with pytest.raises(ValueError, match="right on none of 64 rows"):
        run(replace(case, test=wrong), PARAMS)


def test_a_student_whose_logits_are_nan_is_an_error(digits, tmp_path: Path) -> None:
    case = digits.case()
    model = onnx.load(str(case.model))
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) == 2:
            values = np.full(tuple(tensor.dims), np.nan, np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(model, str(tmp_path / "nan.onnx"))
    with pytest.raises(ValueError, match="not finite"):
        run(replace(case, session=open_session(tmp_path / "nan.onnx")), PARAMS)


def test_an_answer_of_nan_under_attack_counts_as_broken(digits) -> None:
    case = digits.case()
    rows = case.test.take(np.arange(3))
    fallen = Fallen("linf", rows)
    margins = objectives.margin(np.full((3, 10), np.nan, np.float32), rows.labels)
    assert fallen.note(np.arange(3), fallen.images, margins, 0.1, "square").broke == 3
    assert fallen.by("square") == 3


def test_masked_gradients_are_caught_by_all_three_signs(digits, tmp_path: Path) -> None:
    plain, path = digits.case(), tmp_path / "blind.onnx"  # so coarse that noise is no attack
    ship_stepped(plain.model, path, step=12.0)
    case, blind = replace(plain, session=open_session(path)), Stepped(plain.float_network, 12.0)
    rows = case.test.take(case.sample(case.budget.attacked))
    target = rows.take(correct(case.score(rows.images), rows.labels))
    networks: dict[str, nn.Module] = {"float": blind}
    searching = replace(case, budget=Budget(64, 64, 64, steps=6, queries=100))
    fallen, _ = descend(searching, networks, target, Plan("linf", (0.15,), frozenset()))
    results, gates = masking(searching, networks, target, fallen.by("square"))
    assert results["gradients"] == {"float": 0.0}
    assert results["black_box_alone"] > 0.2
    assert [gate.passed for gate in gates] == [False, False, False]


def test_each_sign_of_masking_is_judged_by_the_bound_that_is_against_the_student(digits) -> None:
    """And gradients are those of the network where fewest rows have one."""
    case = digits.case()
    rows = case.test.take(case.sample(32))
    target = rows.take(correct(case.score(rows.images), rows.labels))
    n, blind = len(target), Stepped(case.float_network, 12.0)
    results, gates = masking(case, {"float": case.float_network, "blind": blind}, target, 3)
    assert results["gradients"] == {"float": 1.0, "blind": 0.0}
    assert gates[0].value == 0.0
    assert not gates[0].passed
    assert gates[1].value == wilson(3, n)[1]
    seeing, _, _ = masking(case, {"float": case.float_network}, target, 3)[1]
    assert seeing.value == wilson(n, n)[0] < 1


def zero(*arguments: object) -> tuple[np.ndarray, ...]:
    """A gradient attack that was broken: it finds no slope anywhere."""
    steep, value, margins = objectives.slope(*arguments)
    return np.zeros_like(steep), value, margins


def test_an_attack_that_lost_its_gradients_is_caught(
    digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = replace(digits.case(), budget=Budget(64, 64, 64, steps=5, queries=200))
    sound = run(case, PARAMS.model_copy(update={"l2": ()}))
    monkeypatch.setattr(climbing, "slope", zero)
    weak = run(case, PARAMS.model_copy(update={"l2": ()}))
    assert all(gate.passed for gate in sound.gates if gate.name in MASKING)
    failed = {gate.name for gate in weak.gates if gate.name in MASKING and not gate.passed}
    assert failed >= {"adversarial.masking.black_box", "adversarial.masking.half_range"}


def test_an_attack_that_takes_tiny_steps_is_caught(digits, monkeypatch: pytest.MonkeyPatch) -> None:
    case = replace(digits.case(), budget=Budget(64, 64, 64, steps=5, queries=200))
    honest = climbing.apgd

    def feeble(objective, images, labels, bounds, *rest, judge=None):
        """One step, a hundredth of the ball, from the image itself."""
        small = replace(bounds, radius=bounds.radius / 100)
        return honest(objective, images, labels, small, 1, None, rest[2] if rest[2:] else judge)

    monkeypatch.setattr(ladder, "apgd", feeble)
    monkeypatch.setattr("tasks.stress.masking.apgd", feeble)
    weak = run(case, PARAMS.model_copy(update={"l2": ()}))
    failed = {gate.name for gate in weak.gates if gate.name in MASKING and not gate.passed}
    assert failed == {"adversarial.masking.black_box", "adversarial.masking.half_range"}


def test_the_twin_leads_where_the_float_network_has_no_gradient(digits) -> None:
    case = digits.case()
    rows = case.test.take(case.sample(64))
    target = rows.take(correct(case.score(rows.images), rows.labels))
    blind = Stepped(case.float_network, 1e-3)
    networks: dict[str, nn.Module] = {"float": blind, "twin": Twin.load(case.model)}
    fallen, _ = descend(case, networks, target, Plan("linf", (0.1,), frozenset()))
    assert fallen.by("twin_apgd_ce") + fallen.by("twin_apgd_margin") > len(target) / 4


def ship_stepped(model: Path, path: Path, step: float) -> None:
    """The ONNX file of `Stepped`: `model` behind three nodes that round its input."""
    stepped = onnx.load(str(model))
    graph, name = stepped.graph, stepped.graph.input[0].name
    for node in graph.node:
        node.input[:] = ["stepped" if value == name else value for value in node.input]
    made = [
        onnx.helper.make_node("Div", [name, "step"], ["scaled"]),
        onnx.helper.make_node("Round", ["scaled"], ["rounded"]),
        onnx.helper.make_node("Mul", ["rounded", "step"], ["stepped"]),
    ]
    nodes = [*made, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.append(onnx.helper.make_tensor("step", 1, [], [step]))
    onnx.save(stepped, str(path))


class Constant(nn.Module):
    """Gives logits that no perturbation changes, with a gradient, and is always right: its only
    class is the true one."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.flat = torch.from_numpy(
            case.test.images.reshape(len(case.test), -1).astype(np.float32)
        )
        self.answers = torch.eye(len(case.data.classes))[torch.from_numpy(case.test.labels)]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        nearest = torch.cdist(images.detach().flatten(1), self.flat).argmin(1)
        return self.answers[nearest] + images.sum((1, 2, 3))[:, None] * 0


def oracle(case: Case) -> Callable[[np.ndarray], np.ndarray]:
    """A teacher that knows each row whatever is done to it within a tenth of the range."""
    flat = case.test.images.reshape(len(case.test), -1).astype(np.float32)

    def score(images: np.ndarray) -> np.ndarray:
        far = ((images.reshape(len(images), 1, -1) - flat) ** 2).sum(axis=2)
        return np.eye(10, dtype=np.float32)[case.test.labels[far.argmin(axis=1)]]

    return score
