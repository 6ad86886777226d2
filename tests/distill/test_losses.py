"""Every loss against its paper's formula."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tasks.core.errors import ParamsError
from tasks.core.layers import Shapes
from tasks.core.params import check
from tasks.core.signal import Batch, Outputs, Student
from tasks.core.tables import UNLABELLED
from tasks.distill.losses import Weighted
from tasks.distill.params import Rung
from tests.distill.by_hand import (
    attention_by_hand,
    cross_entropy_by_hand,
    dist_by_hand,
    dkd_by_hand,
    hint_by_hand,
    kd_by_hand,
    rkd_by_hand,
    similarity_by_hand,
    soft,
)
from tests.distill.lessons import (
    FAR,
    INSIDE,
    LABELS,
    NEAR,
    OURS,
    RANGE,
    RUNG,
    SHAPES,
    THEIRS,
    batch,
    drawn,
    loss,
    student,
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cross_entropy", cross_entropy_by_hand()),
        ("kd", kd_by_hand()),
        ("dkd", dkd_by_hand()),
        ("dist", dist_by_hand()),
        ("attention", attention_by_hand()),
        ("rkd", rkd_by_hand()),
        ("similarity", similarity_by_hand()),
    ],
)
def test_a_loss_equals_its_papers_formula(name: str, expected: float) -> None:
    assert float(loss(name, SHAPES)(student(), batch())) == pytest.approx(expected, rel=1e-4)


def test_kd_of_two_classes_equals_what_paper_and_pencil_say() -> None:
    # Student 1/2 : 1/2, teacher 3/4 : 1/4 at T = 2; KL = ln 2 - H(3/4) = 0.1308 nats, times 4.
    logits = torch.tensor([[0.0, 0.0]])
    teacher = 2 * torch.tensor([[0.75, 0.25]]).log()
    said = Batch(torch.zeros(1, 1, 8, 8), torch.tensor([0]), (Outputs(teacher),))
    assert float(loss("kd", temperature=2.0)(Student(logits), said)) == pytest.approx(
        4 * 0.130812, rel=1e-4
    )


def test_dkd_with_the_teachers_own_weight_is_kd() -> None:
    # Of one row: KD = TCKD + (1 - p) NCKD, p being the teacher's belief in the right class.
    p = soft(THEIRS[:1], 3)[0, 0]
    said = batch(THEIRS[:1], labels=LABELS[:1])
    decoupled = loss("dkd", dkd={"alpha": 1.0, "beta": 1 - p})(student(OURS[:1]), said)
    assert float(decoupled) == pytest.approx(float(loss("kd")(student(OURS[:1]), said)), rel=1e-4)


def test_hint_projects_and_pools_as_the_paper_says() -> None:
    weighted = loss("hint", SHAPES)
    assert [tuple(p.shape) for p in weighted.parameters()] == [(5, 3, 1, 1), (5,)]
    assert weighted(student(), batch()).item() == pytest.approx(
        hint_by_hand(*weighted.parameters()), rel=1e-4
    )


def test_hint_reads_vectors_as_maps_of_one_pixel() -> None:
    shapes = Shapes(RANGE, {"near": (3,)}, {"far": (5,)})
    near, far = drawn(6, 3), drawn(6, 5, seed=9)
    weighted = loss("hint", shapes)
    kernel, bias = (p.detach() for p in weighted.parameters())
    expected = ((near @ kernel[:, :, 0, 0].T + bias - far) ** 2).mean()
    value = weighted(student(near=near), batch(far=far))
    assert value.item() == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "by_hand"), [("rkd", rkd_by_hand), ("similarity", similarity_by_hand)]
)
def test_relations_are_those_of_the_named_layers(name: str, by_hand: Any) -> None:
    value = loss(name, SHAPES, **INSIDE)(student(), batch())
    assert float(value) == pytest.approx(by_hand(NEAR, FAR), rel=1e-4)
    assert by_hand(NEAR, FAR) != pytest.approx(by_hand(), rel=0.1), "the logits would say otherwise"


@pytest.mark.parametrize("name", ["hint", "attention", "rkd", "similarity"])
def test_several_layers_count_as_their_mean(name: str) -> None:
    shapes = Shapes(RANGE, {"near": (3, 4, 4), "n": (3, 4, 4)}, {"far": (5, 2, 2), "f": (5, 2, 2)})
    out = Student(OURS, {"near": NEAR, "n": drawn(6, 3, 4, 4, seed=7)})
    said = Batch(torch.zeros(6, 1), LABELS, (Outputs(THEIRS, {"far": FAR, "f": FAR.flip(0)}),))
    two = {"near": "far", "n": "f"}
    both = loss(name, shapes, signal="live", layers=two)
    alone = [loss(name, shapes, signal="live", layers=dict([pair])) for pair in two.items()]
    if name == "hint":  # projectors are drawn; give each pair the one that both have for it
        state = list(both.state_dict().values())
        for place, one in enumerate(alone):
            for parameter, value in zip(one.parameters(), state[2 * place :], strict=False):
                parameter.data.copy_(value)
    parts = [float(one(out, said)) for one in alone]
    assert parts[0] != pytest.approx(parts[1], rel=1e-3)
    assert float(both(out, said)) == pytest.approx(np.mean(parts), rel=1e-5)


def test_dense_is_the_mean_of_kd_to_every_model_above() -> None:
    second = drawn(6, 4, seed=8)
    said = Batch(torch.zeros(6, 1), LABELS, (Outputs(THEIRS), Outputs(second)))
    value = loss("dense")(student(), said)
    expected = (kd_by_hand() + kd_by_hand(teacher=second)) / 2
    assert float(value) == pytest.approx(expected, rel=1e-4)


def test_dense_without_a_second_model_says_what_to_do() -> None:
    with pytest.raises(ParamsError, match="hands nothing on; set hand_on in the rung above"):
        loss("dense")(student(), batch())


def test_relations_of_many_rows_are_compared_in_parts() -> None:
    ours, theirs = drawn(257, 4), drawn(257, 4, seed=1)
    said = batch(theirs, labels=torch.zeros(257, dtype=torch.long))
    assert 0 < float(loss("rkd")(student(ours), said)) < 2


@pytest.mark.parametrize("name", ["rkd", "similarity", "dist"])
def test_relations_bear_rows_that_coincide_equal_logits_and_a_batch_of_two(name: str) -> None:
    near, equal = OURS[[0, 0, 1]] + 1e-4 * drawn(3, 4), OURS[:3].clone()
    equal[0] = 1.0
    for ours in (OURS[[0, 0, 1]], near, equal, OURS[:2]):
        logits = ours.clone().requires_grad_()
        labels = LABELS[: len(ours)]
        value = loss(name)(student(logits), batch(THEIRS[: len(ours)], labels=labels))
        value.backward()
        assert logits.grad is not None
        assert bool(torch.isfinite(value))
        assert float(logits.grad.norm()) < 100, "one row must not drown all others"


def test_an_angle_at_rows_that_the_teacher_does_not_tell_apart_says_nothing() -> None:
    """A bank rounds: of two rows that become one, a third that is almost there has no angle."""
    apart, ours = THEIRS.clone(), OURS.clone().requires_grad_()
    apart[1] = apart[0] + 1e-5 * drawn(4)
    other = apart.clone()
    other[1] = apart[0] + 1e-5 * drawn(4).flip(0)
    values = [float(loss("rkd")(student(ours), batch(said)).detach()) for said in (apart, other)]
    assert values[0] == pytest.approx(values[1], abs=1e-3)  # distances are rounded too


@pytest.mark.parametrize("name", ["cross_entropy", "kd", "dkd", "dense", "hint", "attention"])
def test_a_rows_weight_is_its_share_of_the_loss(name: str) -> None:
    weights = torch.tensor([0.0, 2.0, 1.0, 0.5, 0.5, 2.0])
    second = THEIRS.flip(0)
    weighted = loss(name, SHAPES)

    def value(rows: list[int], weights: Tensor | None) -> float:
        above = (Outputs(THEIRS[rows], {"far": FAR[rows]}), Outputs(second[rows]))
        said = Batch(torch.zeros(len(rows), 1), LABELS[rows], above, weights)
        return float(weighted(student(OURS[rows], NEAR[rows]), said))

    alone = [value([row], None) for row in range(6)]
    assert value([*range(6)], weights) == pytest.approx(
        float(np.mean(weights.numpy() * alone)), rel=1e-4
    )


@pytest.mark.parametrize("name", ["rkd", "similarity"])
def test_a_relation_has_no_weight(name: str) -> None:
    weights = torch.tensor([0.0, 2.0, 1.0, 0.5, 0.5, 2.0])
    assert float(loss(name)(student(), batch(weights=weights))) == float(
        loss(name)(student(), batch())
    )


def test_a_row_without_a_label_says_nothing_to_cross_entropy() -> None:
    labels = LABELS.clone()
    labels[2:] = UNLABELLED
    some = loss("cross_entropy")(student(), batch(labels=labels))
    first = loss("cross_entropy")(student(OURS[:2]), batch(THEIRS[:2], labels=LABELS[:2]))
    assert float(some) == pytest.approx(float(first) * 2 / 6, rel=1e-5)


def test_for_a_row_without_a_label_dkd_takes_the_teachers_first_choice() -> None:
    value = loss("dkd")(student(), batch(labels=torch.full((6,), UNLABELLED)))
    assert float(value) == pytest.approx(dkd_by_hand(THEIRS.argmax(1).tolist()), rel=1e-4)


def test_a_projector_is_learned_and_a_weight_of_zero_scales_it_away() -> None:
    both = check(Rung, RUNG | INSIDE | {"losses": {"kd": 0.25, "hint": 0.0}}, "rung")
    weighted = Weighted(both, SHAPES)
    assert len(list(weighted.parameters())) == 2
    assert weighted(student(), batch()).item() == pytest.approx(0.25 * kd_by_hand(), rel=1e-4)


@pytest.mark.parametrize("layer", ["hint", "attention"])
def test_a_layer_of_the_wrong_kind_is_named(layer: str) -> None:
    shapes = Shapes(RANGE, {"near": (3, 4)}, {"far": (5, 2, 2)})
    with pytest.raises(ParamsError, match=r"name (another|a convolutional layer)"):
        loss(layer, shapes)
