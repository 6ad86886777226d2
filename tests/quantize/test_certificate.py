"""The certificate: what it states, of which file, and that it repeats itself."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from tasks.core.files import canonical, read_json
from tasks.core.models import ONNX
from tasks.quantize.certificate import certificate


def test_the_shipped_file_has_one_that_covers_every_layer(quantized: tuple[Path, Path]) -> None:
    folder = quantized[0] / "ship/student"
    stated = read_json(folder / "certificate.json")

    assert stated["format"] == "stillhouse/certificate/1"
    assert stated["model_sha256"] == hashlib.sha256((folder / ONNX).read_bytes()).hexdigest()
    assert stated["portable"] is True
    assert stated["limit"] == [-32768, 32767]
    assert [layer["op"] for layer in stated["layers"]] == ["Conv"] * 6 + ["Gemm"]
    values = {name for node in onnx.load(str(folder / ONNX)).graph.node for name in node.output}
    for layer in stated["layers"]:
        assert layer["safe"]
        assert -32768 <= layer["lowest"] < 0 < layer["highest"] <= 32767
        assert -127 <= layer["levels"][0] < layer["levels"][1] <= 127
        assert layer["name"] in values
    assert "0 to 255" in stated["method"]


def test_it_depends_on_nothing_but_the_file(quantized: tuple[Path, Path]) -> None:
    content = (quantized[0] / "ship/student" / ONNX).read_bytes()

    assert canonical(certificate(content)) == canonical(certificate(content))
    written = (quantized[1] / "ship/student/certificate.json").read_text()
    assert canonical(certificate(content)) == written


def test_one_heavy_pair_makes_a_file_unportable(quantized: tuple[Path, Path]) -> None:
    model = onnx.load(str(quantized[0] / "ship/student" / ONNX))
    weights = next(
        t for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT8 and t.dims[1:]
    )
    heavier = np.array(numpy_helper.to_array(weights))
    heavier[0].reshape(-1)[:2] = 127
    weights.CopyFrom(numpy_helper.from_array(heavier, weights.name))

    stated = certificate(model.SerializeToString())

    assert stated["portable"] is False
    layers = json.loads(canonical(stated))["layers"]
    assert [layer["highest"] for layer in layers if not layer["safe"]] == [2 * 127 * 255]
    assert sum(layer["unsafe"] for layer in layers) == 1


def test_a_float_file_has_nothing_to_saturate(quantized: tuple[Path, Path]) -> None:
    stated = certificate((quantized[0] / "ship/student/float.onnx").read_bytes())

    assert (stated["portable"], stated["layers"]) == (True, [])
