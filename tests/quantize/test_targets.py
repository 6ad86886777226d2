"""Targets: what each makes of activations and weights, and that its file says what floats say."""

from __future__ import annotations

import platform

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tasks.core.session import open_session, score
from tasks.core.tables import Schema, Table
from tasks.core.twin import Twin
from tasks.modalities.vision.scorers import network_scorer
from tasks.quantize.calibrate import calibration_rows
from tasks.quantize.contract import shipped
from tasks.quantize.params import Calibration
from tasks.quantize.qat import QuantizationAware
from tasks.quantize.saturation import layers
from tasks.quantize.static import static
from tasks.quantize.targets import ARM64, AVX2, VNNI, Target, target

TARGETS = (AVX2, VNNI, ARM64)


@pytest.fixture(scope="module", params=TARGETS, ids=lambda t: t.name)
def made(
    request: pytest.FixtureRequest, floats: onnx.ModelProto, train_rows: Table
) -> tuple[Target, onnx.ModelProto]:
    aim: Target = request.param
    return aim, static(floats, calibration_rows(train_rows, 64), Calibration(rows=64), aim)


def zeros(model: onnx.ModelProto) -> list[np.ndarray]:
    """The zero points of activations."""
    stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    nodes = [n for n in model.graph.node if n.op_type == "QuantizeLinear"]
    return [stored[node.input[2]] for node in nodes]


def test_activations_are_of_the_targets_type(made: tuple[Target, onnx.ModelProto]) -> None:
    aim, model = made
    found = zeros(model)

    assert found
    assert {str(zero.dtype) for zero in found} == {"int8" if aim is ARM64 else "uint8"}
    assert {int(zero) for zero in found} >= ({0} if aim is ARM64 else set())
    assert (len({int(zero) for zero in found}) == 1) is aim.symmetric


def test_weights_are_confined_where_pairs_may_saturate(
    made: tuple[Target, onnx.ModelProto],
) -> None:
    aim, model = made
    stored = [numpy_helper.to_array(t) for t in model.graph.initializer]
    largest = [
        int(np.abs(w.astype(int)).max()) for w in stored if w.dtype == np.int8 and w.ndim > 1
    ]

    assert all(layer.safe for layer in layers(model)) is aim.confined
    assert (set(largest) == {127}) is not aim.confined


def test_the_file_says_what_the_floats_say_and_so_does_its_twin(
    made: tuple[Target, onnx.ModelProto], floats: onnx.ModelProto, data: Schema, val_rows: Table
) -> None:
    content = shipped(made[1], data)
    ours = score(open_session(content), val_rows.images)[0].argmax(1)
    theirs = score(open_session(shipped(floats, data)), val_rows.images)[0].argmax(1)
    twin = network_scorer(Twin(onnx.load_from_string(content)))(val_rows.images).argmax(1)

    # Full range on a CPU without VNNI may saturate: there the twin alone keeps to the arithmetic.
    assert (twin == theirs).mean() >= 0.97
    if made[0] is not VNNI:
        assert (ours == theirs).mean() >= 0.97
        assert (ours == twin).mean() >= 0.999


def test_training_keeps_to_the_target(
    made: tuple[Target, onnx.ModelProto], floats: onnx.ModelProto
) -> None:
    aim, model = made
    net = QuantizationAware(model, floats, aim.confined)
    for scale in net.weight_scales:
        scale.data -= 0.1  # finer than what cannot saturate, and clipped
    written = net.written()

    assert all(layer.safe for layer in layers(written)) is aim.confined
    assert [z.dtype for z in zeros(written)] == [z.dtype for z in zeros(model)]


@pytest.mark.parametrize(
    ("machine", "expected"), [("x86_64", AVX2), ("aarch64", ARM64), ("arm64", ARM64)]
)
def test_auto_is_this_machine(
    monkeypatch: pytest.MonkeyPatch, machine: str, expected: Target
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert target("auto") == expected
    assert target("x86-vnni") == VNNI
