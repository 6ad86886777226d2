"""The stage as a whole: what it writes, that it repeats itself, and how it fails."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml

from tasks.core.files import read_json, sha256, tree_sha256
from tasks.core.metrics import fit_temperature
from tasks.core.models import ONNX, WEIGHTS, ModelSpec, read_spec, read_weights
from tasks.core.session import check_onnx, open_session, score
from tasks.core.tables import Schema, Table
from tasks.core.twin import Twin
from tasks.modalities.vision.networks import ResidualNetwork
from tasks.modalities.vision.scorers import network_scorer
from tasks.quantize.__main__ import run
from tests.quantize.conftest import with_params

Project = Callable[[], Path]


def test_two_folders_and_users_ship_the_same_bytes(quantized: tuple[Path, Path]) -> None:
    first, second = (tree_sha256(folder / "ship/student") for folder in quantized)

    assert first == second
    assert set(first) == {
        "model.onnx", "spec.json", "float.onnx", "float.safetensors", "float.json",
        "frontier.json", "frontier.csv", "frontier.png", "sensitivity.json", "sensitivity.csv",
        "sensitivity.png", "parity.json", "certificate.json", "history.jsonl",
    }  # fmt: skip


def test_no_shipped_file_names_a_folder_or_a_user(quantized: tuple[Path, Path]) -> None:
    for file in (
        "model.onnx", "float.onnx", "spec.json", "frontier.json", "frontier.csv", "parity.json",
        "sensitivity.json", "sensitivity.csv", "certificate.json",
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


def test_what_ships_is_calibrated_on_validation_rows(
    quantized: tuple[Path, Path], student: ResidualNetwork, val_rows: Table
) -> None:
    logits = network_scorer(student)(val_rows.images)
    temperature = fit_temperature(logits, val_rows.labels)

    found, _ = score(open_session(quantized[0] / "ship/student/float.onnx"), val_rows.images)

    assert abs(temperature - 1) > 0.05
    assert np.abs(found - logits / temperature).max() < 1e-3


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


def test_a_budget_vetoes_and_nothing_half_written_stays(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = project()
    monkeypatch.chdir(folder)
    with_params(folder, schemes=["static"])
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
    schemes = ["weights4", "weights8", "weights_mixed", "mixed"]
    with_params(folder, schemes=schemes, accuracy_drop=0.018, sensitivity={"rows": 50})

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
