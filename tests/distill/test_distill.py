import pytest
import torch
from torch.nn import functional as F

from tasks.core.errors import GateError, ParamsError
from tasks.core.layers import Shapes
from tasks.core.models import ModelSpec
from tasks.core.params import check
from tasks.core.signal import Batch, Outputs, Student
from tasks.core.tables import Schema
from tasks.distill.losses import Weighted
from tasks.distill.params import Rung
from tasks.distill.report import check_ratio, report

SCHEMA = Schema(modality="vision", shape=(1, 4, 4), dtype="uint8", range=(0, 1), classes=("a", "b"))

BARE = Shapes((0, 1), {}, {})

RUNG = {
    "from": "teacher",
    "architecture": {"widths": [4]},
    "training": {"epochs": 1, "learning_rate": 0.1},
    "temperature": 2.0,
}


def rung(**losses: float) -> Rung:
    return Rung.model_validate(RUNG | {"losses": losses})


def spec(name: str, parameters: int) -> ModelSpec:
    return ModelSpec(
        name=name,
        kind="onnx",
        architecture=None,
        normalisation=None,
        data=SCHEMA,
        parameters=parameters,
        bytes=4 * parameters,
        flops=None,
        sha256="0",
    )


def test_the_loss_is_the_weighted_sum_of_its_parts() -> None:
    torch.manual_seed(0)
    student = Student(torch.randn(8, 3))
    labels = torch.randint(0, 3, (8,))
    batch = Batch(torch.zeros(8, 1, 4, 4), labels, (Outputs(torch.randn(8, 3)),))
    both = Weighted(rung(kd=0.9, cross_entropy=0.1), BARE)(student, batch)
    soft = Weighted(rung(kd=1.0), BARE)(student, batch)
    hard = F.cross_entropy(student.logits, labels)
    assert float(both) == pytest.approx(0.9 * float(soft) + 0.1 * float(hard), rel=1e-5)


def test_an_unknown_loss_gets_the_nearest_one() -> None:
    with pytest.raises(ParamsError, match="no loss 'cross_entrpy'; did you mean 'cross_entropy'"):
        check(Rung, RUNG | {"losses": {"cross_entrpy": 1.0}}, where="rung")


def test_a_step_of_more_than_ten_to_one_is_refused_before_training() -> None:
    check_ratio("teacher", 1000, "student", 100)
    with pytest.raises(GateError, match=r"10\.1:1, more than 10:1 in one step"):
        check_ratio("teacher", 1010, "student", 100)


def test_a_report_knows_the_ladder_above_it() -> None:
    teacher = report(spec("teacher", 1000), 98, 100, None)
    assistant = report(spec("assistant", 200), 97, 100, teacher)
    student = report(spec("student", 50), 96, 100, assistant)
    assert [r.name for r in student.lineage] == ["teacher", "assistant"]
    assert student.compression == 4.0
    assert student.retention == pytest.approx(96 / 97)
