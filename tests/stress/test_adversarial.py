"""The adversarial family: worst case per row, paired with the teacher, and masking is caught."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from tasks.core.metrics import correct
from tasks.core.session import open_session
from tasks.stress import adversarial
from tasks.stress.adversarial import Params, rescore, run
from tasks.stress.attacks import around, pgd, square
from tasks.stress.budget import BUDGETS
from tasks.stress.case import Case, Outcome, load_case
from tasks.stress.masking import masking

PARAMS = Params(epsilons=(0.1, 0.02), margin=0.3)


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
    assert [line["epsilon"] for line in lines] == [0.02, 0.1]
    assert outcome.rows == min(64, len(case.test))
    for line in lines:
        assert set(line["attacks"]) == {"float_pgd", "twin_pgd", "square"}
        assert line["student"]["value"] <= min(line["attacks"].values())
        assert line["student"]["low"] <= line["student"]["value"] <= line["student"]["high"]
    accuracy = [outcome.results["clean"]["student"]["value"]]
    accuracy += [line["student"]["value"] for line in lines]
    assert accuracy == sorted(accuracy, reverse=True)
    assert accuracy[-1] < accuracy[0]


def test_there_is_a_gate_per_epsilon_and_per_sign_of_masking(
    attacked: tuple[Case, Outcome],
) -> None:
    _, outcome = attacked
    assert [gate.name for gate in outcome.gates] == [
        "adversarial.epsilon_0.02",
        "adversarial.epsilon_0.1",
        "adversarial.masking.gradients",
        "adversarial.masking.black_box",
        "adversarial.masking.half_range",
    ]
    assert all(gate.passed for gate in outcome.gates[2:])


def test_kept_examples_are_in_the_ball_and_fool_the_shipped_file_again(
    attacked: tuple[Case, Outcome],
) -> None:
    case, outcome = attacked
    kept = outcome.kept["kept"].to_pydict()
    clean = dict(zip(case.test.rows, case.test.images, strict=True))
    labels = dict(zip(case.test.rows, case.test.labels, strict=True))
    low, high = case.data.range
    assert len(kept["row"]) == outcome.results["kept"] > 0
    for row, label, predicted, epsilon, pixels in zip(
        *(kept[k] for k in ("row", "label", "predicted", "epsilon", "pixels")), strict=True
    ):
        image = np.array(pixels, dtype=np.float32).reshape(case.data.shape)
        answer, valid = case.session.run(None, {"input": image[None]})
        assert answer.argmax() == predicted != label == labels[row]
        assert valid.all()
        assert np.abs(image.astype(np.float64) - clean[row]).max() <= epsilon * (high - low)
    assert set(kept["epsilon"]) <= {0.02, 0.1}
    assert max(kept["epsilon"]) == 0.1


def test_a_kept_example_that_does_not_reproduce_is_an_error(
    attacked: tuple[Case, Outcome],
) -> None:
    case, outcome = attacked
    kept = outcome.kept["kept"]
    place = kept.schema.get_field_index("predicted")
    false = kept.set_column(place, kept.schema.field(place), kept["label"])
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
    outcome = run(sturdy, PARAMS)
    gate = outcome.gates[1]
    assert gate.name == "adversarial.epsilon_0.1"
    assert not gate.passed
    assert outcome.results["epsilons"][1]["teacher"]["value"] == 1.0


def test_a_black_box_teacher_is_attacked_by_square(digits) -> None:
    case = replace(digits.case(), teacher_network=None)
    outcome = run(case, PARAMS)
    assert outcome.results["teacher_attack"] == "square"
    assert (
        outcome.results["epsilons"][1]["teacher"]["value"]
        < outcome.results["clean"]["teacher"]["value"]
    )


def test_a_student_that_is_never_right_is_an_error(digits) -> None:
    case = digits.case()
    wrong = replace(case.test, labels=(case.student_logits.argmax(axis=1) + 1) % 10)
    with pytest.raises(ValueError, match="right on none of 64 rows"):
        run(replace(case, test=wrong), PARAMS)


def test_masked_gradients_are_caught_by_all_three_signs(digits, tmp_path: Path) -> None:
    plain, path = digits.case(), tmp_path / "blind.onnx"  # so coarse that noise is no attack
    ship_stepped(plain.model, path, step=12.0)
    case, blind = replace(plain, session=open_session(path)), Stepped(plain.float_network, 12.0)
    rows = case.test.take(case.sample(case.budget.attacked))
    target = rows.take(correct(case.score(rows.images), rows.labels))
    bounds, random = around(target.images, 0.15, case.data), np.random.default_rng(0)
    white = pgd(blind, target.images, target.labels, bounds, 6, random)
    black, _ = square(case.score, target.images, target.labels, bounds, 100, random)
    broken = {
        "float_pgd": ~correct(case.score(white), target.labels),
        "square": ~correct(case.score(black), target.labels),
    }
    results, gates = masking(case, {"float_pgd": blind}, target, [broken], steps=6)
    assert results["gradients"] == {"float_pgd": 0.0}
    assert results["black_box_excess"] > 0.2
    assert [gate.passed for gate in gates] == [False, False, False]


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
    """Gives logits that no perturbation changes, with a gradient."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.classes = len(case.data.classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.sum((1, 2, 3))[:, None] * torch.zeros(self.classes)


def oracle(case: Case) -> Callable[[np.ndarray], np.ndarray]:
    """A teacher that knows each row whatever is done to it within a tenth of the range."""
    flat = case.test.images.reshape(len(case.test), -1).astype(np.float32)

    def score(images: np.ndarray) -> np.ndarray:
        far = ((images.reshape(len(images), 1, -1) - flat) ** 2).sum(axis=2)
        return np.eye(10, dtype=np.float32)[case.test.labels[far.argmin(axis=1)]]

    return score
