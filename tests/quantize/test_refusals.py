"""What the stage refuses ends in one line, and the old shipment stays."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from onnx import TensorProto, helper

from tasks.core.errors import DataError, GateError, ParamsError
from tasks.core.files import read_json, tree_sha256
from tasks.core.stage import main
from tasks.core.tables import Table, write_table
from tasks.quantize import candidates
from tasks.quantize.__main__ import run
from tasks.quantize.export import export
from tests.quantize.conftest import shipped_before, with_params

Project = Callable[[], Path]


def test_a_bank_of_other_views_is_refused_and_the_old_shipment_stays(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = project()
    monkeypatch.chdir(folder)
    shipped_before()
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params["teach"]["views"]["shift"] = 2
    (folder / "params.yaml").write_text(yaml.safe_dump(params))

    with pytest.raises(DataError, match="bank of other views"):
        run(["student"])

    assert Path("ship/student/model.onnx").read_bytes() == b"the former one"


def test_a_quarantined_row_makes_yesterdays_bank_useless(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project())
    row = {"split": "train", "position": 0, "row": "x", "label": "left", "reason": "r",
           "detail": ""}  # fmt: skip
    schema = pq.read_schema("data/quarantine.parquet")
    pq.write_table(pa.Table.from_pylist([row], schema=schema), "data/quarantine.parquet")

    with pytest.raises(DataError, match="other training rows"):
        run(["student"])


def test_a_student_of_other_data_is_refused(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project())
    path = Path("data/fingerprint.json")
    content = read_json(path)
    content["data"]["classes"][0] = "other"
    path.write_text(json.dumps(content))

    with pytest.raises(DataError, match="other data"):
        run(["student"])


def test_the_command_wants_one_student() -> None:
    with pytest.raises(ParamsError, match="usage"):
        run([])


def test_an_unknown_scheme_is_named(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = project()
    monkeypatch.chdir(folder)
    with_params(folder, schemes=["int4"])

    with pytest.raises(ParamsError, match=r"quantize\.schemes\.0"):
        run(["student"])


def test_a_goal_out_of_reach_ends_the_stage_and_the_old_shipment_stays(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = project()
    monkeypatch.chdir(folder)
    shipped_before()
    with_params(folder, schemes=["weights8"], bytes=1000)

    with pytest.raises(GateError, match="bytes 1,000 binds: weights8 is nearest with"):
        run(["student"])

    assert [p.name for p in Path("ship").rglob("*")] == ["student", "model.onnx"]
    assert Path("ship/student/model.onnx").read_bytes() == b"the former one"


def _without_layers(*_: Any) -> onnx.ModelProto:
    """A student that takes the mean of each channel for the logit of a class."""
    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["input", "axes"], ["logits"], keepdims=0)],
        "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, 16, 20])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [onnx.numpy_helper.from_array(np.array([2, 3]), "axes")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _ending_in_tanh(*student: Any) -> onnx.ModelProto:
    """An export whose logits go through an operator that the twin does not know."""
    model = export(*student)
    maker = next(node for node in model.graph.node if "logits" in node.output)
    maker.output[:] = ["before"]
    model.graph.node.append(helper.make_node("Tanh", ["before"], ["logits"]))
    return model


def _with_nan(train: Table) -> None:
    """The project's data in float32, with a training row that holds NaN."""
    for path in (Path("data/fingerprint.json"), Path("models/student/spec.json")):
        path.write_text(path.read_text().replace("uint8", "float32"))
    images = train.images.astype(np.float32)
    images[7, 0, 0, 0] = np.nan
    write_table(Path("data/train.parquet"), Table(train.rows, train.labels, images))


@pytest.mark.parametrize(
    ("exported", "nan", "message"),
    [
        (export, True, "1 of 256 calibration rows hold NaN or infinity"),
        (_without_layers, False, "the student has no layer that can be quantized"),
        (_ending_in_tanh, False, "the twin cannot execute operator ai.onnx::Tanh"),
    ],
    ids=["NaN", "no layer", "unknown operator"],
)
def test_bad_input_ends_in_one_line_and_the_old_shipment_stays(
    project: Project,
    train_rows: Table,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    exported: Callable[..., onnx.ModelProto],
    nan: bool,
    message: str,
) -> None:
    folder = project()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(candidates, "export", exported)
    monkeypatch.setattr(sys, "argv", ["quantize", "student"])
    shipped_before()
    with_params(folder, schemes=["static"], calibration={"rows": 256})
    if nan:
        _with_nan(train_rows)
    before = [tree_sha256(Path(place)) for place in ("ship", "models/student")]

    with pytest.raises(SystemExit) as ended:
        main(run)

    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert ended.value.code == 2
    assert [tree_sha256(Path(place)) for place in ("ship", "models/student")] == before
