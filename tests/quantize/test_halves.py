"""float16 and bfloat16: what is stored, what it loses, and what does not fit."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper

from tasks.core.errors import DataError
from tasks.core.rows import in_memory
from tasks.core.session import open_session, score
from tasks.core.tables import Schema, Table
from tasks.modalities.vision.networks import ResidualNetwork, folded
from tasks.modalities.vision.views import Views
from tasks.quantize.candidates import build
from tasks.quantize.halves import BIAS, HALVES, TYPES, Half, half
from tasks.quantize.layers import layers
from tasks.quantize.params import QuantizeParams


def with_value(model: onnx.ModelProto, name: str, value: float) -> onnx.ModelProto:
    """A copy whose tensor `name` begins with `value`."""
    changed = copy.deepcopy(model)
    tensor = next(t for t in changed.graph.initializer if t.name == name)
    values = numpy_helper.to_array(tensor).copy()
    values.flat[0] = value
    tensor.CopyFrom(numpy_helper.from_array(values, name))
    return changed


@pytest.mark.parametrize("kind", HALVES)
def test_every_weight_is_stored_in_16_bits_and_rounded_to_nearest(
    kind: Half, floats: onnx.ModelProto
) -> None:
    model = half(floats, kind)
    before = {t.name: numpy_helper.to_array(t) for t in floats.graph.initializer}
    after = {t.name: t for t in model.graph.initializer}
    precision = torch.float16 if kind == "float16" else torch.bfloat16

    assert len(layers(floats)) == 7
    for layer in layers(floats):
        stored = after[f"{layer.name}:stored"]
        assert stored.data_type == TYPES[kind]
        expected = torch.from_numpy(before[layer.name].copy()).to(precision).float()
        assert np.array_equal(numpy_helper.to_array(stored).astype(np.float32), expected)
        assert layer.name not in after


@pytest.mark.parametrize("kind", HALVES)
def test_answers_stay(kind: Half, floats: onnx.ModelProto, val_rows: Table) -> None:
    before, _ = score(open_session(floats.SerializeToString()), val_rows.images)
    after, _ = score(open_session(half(floats, kind).SerializeToString()), val_rows.images)

    share = 2.0 ** (-11 if kind == "float16" else -8)
    assert 0 < np.abs(after - before).max() < 8 * share * np.abs(before).max()


def test_a_bias_is_stored_in_16_bits_if_that_takes_fewer_bytes(floats: onnx.ModelProto) -> None:
    short, long = layers(floats)[0].bias, layers(floats)[1].bias
    assert short is not None
    assert long is not None
    model = copy.deepcopy(floats)
    for tensor in model.graph.initializer:
        if tensor.name == long:  # arithmetic does not matter here
            tensor.CopyFrom(numpy_helper.from_array(np.ones(BIAS, np.float32), long))

    kinds = {t.name: t.data_type for t in half(model, "float16").graph.initializer}

    assert kinds[short] == TensorProto.FLOAT
    assert kinds[f"{long}:stored"] == TensorProto.FLOAT16


def test_a_value_beyond_float16_is_named_with_what_holds_it(floats: onnx.ModelProto) -> None:
    large = with_value(floats, "stem.weight", 1e5)

    with pytest.raises(DataError, match=r"weight 'stem\.weight' holds 100000, .* use bfloat16"):
        half(large, "float16")
    half(large, "bfloat16")


def test_the_largest_value_of_float16_is_not_beyond_it(floats: onnx.ModelProto) -> None:
    half(with_value(floats, "stem.weight", 65504.0), "float16")


def test_a_scheme_that_cannot_be_built_is_left_out_with_the_reason(
    student: ResidualNetwork, data: Schema, train_rows: Table, val_rows: Table, tmp_path: Path
) -> None:
    net = folded(student)
    with torch.no_grad():
        next(p for p in net.parameters() if p.ndim == 4)[0, 0, 0, 0] = 1e5
    params = QuantizeParams.model_validate(
        {
            "schemes": ["float16", "bfloat16"],
            "calibration": {"rows": 16},
            "qat": {"epochs": 1, "batch": 32, "learning_rate": 0.001, "weight_decay": 0.0},
            "accuracy_drop": 0.1,
            "latency_margin": 1.0,
        }
    )

    built = build(
        net, data, train_rows, in_memory(train_rows), val_rows, None, Views(), params, 1.0,
        1000.0, tmp_path, lambda scheme: tmp_path / scheme,
    )  # fmt: skip

    assert list(built.files) == ["float32", "bfloat16"]
    assert "beyond the range of float16; use bfloat16" in built.left_out["float16"]
    assert built.left_out["static"] == "not in quantize.schemes"
    assert not {"float32", "bfloat16"} & set(built.left_out)
