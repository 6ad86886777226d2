"""The stage as a whole: what it writes, that it repeats itself, and how it fails."""

from __future__ import annotations

import csv
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
from tasks.core.files import read_json, sha256, tree_sha256
from tasks.core.models import ONNX, WEIGHTS, ModelSpec, read_spec, read_weights
from tasks.core.session import check_onnx, open_session
from tasks.core.stage import main
from tasks.core.tables import Schema, Table, write_table
from tasks.core.twin import Twin
from tasks.quantize import candidates
from tasks.quantize.__main__ import run
from tasks.quantize.export import export

Project = Callable[[], Path]


def test_two_folders_and_users_ship_the_same_bytes(quantized: tuple[Path, Path]) -> None:
    first, second = (tree_sha256(folder / "ship/student") for folder in quantized)

    assert first == second
    assert set(first) == {
        "model.onnx", "spec.json", "float.onnx", "float.safetensors", "float.json",
        "frontier.json", "frontier.csv", "frontier.png", "sensitivity.json", "sensitivity.png",
        "parity.json", "certificate.json", "history.jsonl",
    }  # fmt: skip


def test_no_shipped_file_names_a_folder_or_a_user(quantized: tuple[Path, Path]) -> None:
    for file in (
        "model.onnx", "float.onnx", "spec.json", "frontier.json", "frontier.csv", "parity.json",
        "sensitivity.json", "certificate.json",
    ):  # fmt: skip
        content = (quantized[0] / "ship/student" / file).read_bytes()
        for word in (b"distiller", b"checkout", b"/tmp", b".py", b"site-packages", b"torch/"):
            assert word not in content, (file, word)


def test_the_shipped_model_is_an_int8_file_that_its_spec_names(
    quantized: tuple[Path, Path],
) -> None:
    folder = quantized[0] / "ship/student"
    spec, source = read_spec(folder), read_spec(quantized[0] / "models/student")
    check_onnx(folder / ONNX)

    assert spec.kind == "onnx"
    assert spec.bytes == (folder / ONNX).stat().st_size
    assert (spec.parameters, spec.flops, spec.architecture) == (
        source.parameters, source.flops, source.architecture,
    )  # fmt: skip
    assert spec.learned_from is not None
    assert spec.learned_from.sha256 == source.sha256


def test_the_float_student_ships_beside_it(quantized: tuple[Path, Path]) -> None:
    folder = quantized[0] / "ship/student"
    spec = ModelSpec.model_validate(read_json(folder / "float.json"))

    assert spec == read_spec(quantized[0] / "models/student")
    assert sha256(folder / "float.safetensors") == spec.sha256
    assert (
        read_weights(folder / "float.safetensors").keys()
        == read_weights(quantized[0] / "models/student" / WEIGHTS).keys()
    )


def test_the_frontier_holds_every_scheme_and_no_time(quantized: tuple[Path, Path]) -> None:
    document = read_json(quantized[0] / "ship/student/frontier.json")
    candidates = {c["scheme"]: c for c in document["candidates"]}

    assert set(candidates) == {"float32", "dynamic", "static", "qat"}
    assert [c for c in candidates.values() if c["chosen"]] == [candidates[document["chosen"]]]
    assert all(c["reason"] for c in candidates.values())
    assert "_ms" not in json.dumps(document)
    assert document["chosen"] in ("static", "qat")
    assert "batch" in candidates["dynamic"]["reason"]  # its ranges span the batch
    assert document["why"].startswith(document["chosen"])


def test_the_frontier_says_which_schemes_it_lacks(quantized: tuple[Path, Path]) -> None:
    document = read_json(quantized[0] / "ship/student/frontier.json")

    assert set(document["left_out"]) == {
        "float16", "bfloat16", "weights8", "weights4", "weights_mixed", "mixed",
    }  # fmt: skip
    assert set(document["left_out"].values()) == {"not in quantize.schemes"}


def test_the_table_holds_what_the_frontier_holds(quantized: tuple[Path, Path]) -> None:
    folder = quantized[0] / "ship/student"
    with (folder / "frontier.csv").open(newline="") as stream:
        table = list(csv.DictReader(stream))

    listed = read_json(folder / "frontier.json")["candidates"]
    assert [{k: str(v) for k, v in entry.items()} for entry in listed] == [
        {k: line[k] for k in listed[0]} for line in table
    ]


def test_the_sensitivity_covers_every_layer(quantized: tuple[Path, Path]) -> None:
    document = read_json(quantized[0] / "ship/student/sensitivity.json")

    assert document["format"] == "stillhouse/sensitivity/1"
    assert (document["student"], document["rows"]) == ("student", 160)
    assert len(document["layers"]) == 7
    assert "_ms" not in json.dumps(document)


def test_times_are_measured_apart_with_the_cpu(quantized: tuple[Path, Path]) -> None:
    measured = read_json(quantized[0] / "measured/quantize-student.json")

    assert set(measured["latency_ms"]) == {"float32", "dynamic", "static", "qat"}
    assert all(t["p95"] >= t["p50"] > 0 for t in measured["latency_ms"].values())
    assert measured["budget_ms"] == 2000.0
    assert measured["vetoed"] == []
    with (quantized[0] / "measured/frontier-student.csv").open(newline="") as stream:
        table = {line["scheme"]: line for line in csv.DictReader(stream)}
    assert {
        scheme: {"p50": float(line["latency_ms"]), "p95": float(line["latency_ms_p95"])}
        for scheme, line in table.items()
    } == {
        scheme: {q: times[q] for q in ("p50", "p95")}
        for scheme, times in measured["latency_ms"].items()
    }
    picture = (quantized[0] / "measured/frontier-student.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert measured["cpu"]["model"]


def test_parity_holds_on_rows_of_validation_and_training(quantized: tuple[Path, Path]) -> None:
    document = read_json(quantized[0] / "ship/student/parity.json")

    assert {gate["name"] for gate in document["gates"]} == {
        "export", "export_agreement", "twin", "optimisation", "threads", "batch",
    }  # fmt: skip
    assert document["rows"] == 160 + 256
    assert document["passed"], document


def test_weights_have_a_scale_per_channel_and_more_than_seven_bits(
    quantized: tuple[Path, Path],
) -> None:
    model = onnx.load(str(quantized[0] / "ship/student" / ONNX))
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    made = {n.output[0]: n for n in model.graph.node}
    layers = [n for n in model.graph.node if n.op_type in ("Conv", "Gemm")]

    assert len(layers) == 7
    largest = []
    for layer in layers:
        weight = made[layer.input[1]]
        integers, scales = stored[weight.input[0]], stored[weight.input[1]]
        assert integers.dtype == np.int8
        assert scales.shape == (len(integers),)
        assert len(np.unique(scales)) > 1
        largest.append(np.abs(integers.astype(int)).max())
    assert 64 < max(largest) <= 127


def test_classes_and_range_travel_inside_the_file(
    quantized: tuple[Path, Path], data: Schema
) -> None:
    meta = open_session(quantized[0] / "ship/student" / ONNX).get_modelmeta().custom_metadata_map

    assert json.loads(meta["classes"]) == list(data.classes)
    assert json.loads(meta["range"]) == list(data.range)


def test_the_twin_of_the_shipped_file_loads(quantized: tuple[Path, Path]) -> None:
    assert Twin.load(quantized[0] / "ship/student" / ONNX).output == "logits"


def _with(folder: Path, **quantize: object) -> None:
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params["quantize"] |= quantize
    (folder / "params.yaml").write_text(yaml.safe_dump(params))


def _shipped_before() -> None:
    Path("ship/student").mkdir(parents=True)
    Path("ship/student/model.onnx").write_bytes(b"the former one")


def test_a_budget_vetoes_and_nothing_half_written_stays(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = project()
    monkeypatch.chdir(folder)
    _with(folder, schemes=["static"])
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params["requirements"]["latency_ms"] = 1e-6
    (folder / "params.yaml").write_text(yaml.safe_dump(params))

    run(["student"])

    assert read_json(Path("measured/quantize-student.json"))["vetoed"] == ["float32", "static"]
    document = read_json(Path("ship/student/frontier.json"))
    assert document["chosen"] == "float32"
    assert "no candidate qualifies" in document["why"]
    assert [p.name for p in Path("ship").iterdir()] == ["student"]


def test_mixtures_are_candidates_that_say_what_they_consist_of(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = project()
    monkeypatch.chdir(folder)
    _with(folder, schemes=["weights4", "weights8", "weights_mixed", "mixed"], accuracy_drop=0.018,
          sensitivity={"rows": 50})  # fmt: skip

    run(["student"])

    document = read_json(Path("ship/student/frontier.json"))
    sizes = {c["scheme"]: c["bytes"] for c in document["candidates"]}
    assert set(sizes) == {"float32", "weights4", "weights8", "weights_mixed", "mixed"}
    assert sizes["weights4"] <= sizes["weights_mixed"] <= sizes["weights8"]
    assert set(document["mixtures"]) == {"weights_mixed", "mixed"}
    layers = [one["layer"] for one in read_json(Path("ship/student/sensitivity.json"))["layers"]]
    assert all(set(m["high"]) <= set(layers) for m in document["mixtures"].values())
    assert read_json(Path("ship/student/sensitivity.json"))["rows"] == 50
    assert not list(Path("checkpoints").rglob("search.json"))


def test_a_bank_of_other_views_is_refused_and_the_old_shipment_stays(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = project()
    monkeypatch.chdir(folder)
    _shipped_before()
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
    _with(folder, schemes=["int4"])

    with pytest.raises(ParamsError, match=r"quantize\.schemes\.0"):
        run(["student"])


def test_a_goal_out_of_reach_ends_the_stage_and_the_old_shipment_stays(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = project()
    monkeypatch.chdir(folder)
    _shipped_before()
    _with(folder, schemes=["weights8"], bytes=1000)

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
    _shipped_before()
    _with(folder, schemes=["static"], calibration={"rows": 256})
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
