"""Calibration and quantization-aware training: which rows, which errors, what is written back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from tasks.core.errors import DataError
from tasks.core.rows import in_memory
from tasks.core.session import open_session, score
from tasks.core.signal import Batch, Outputs, Student
from tasks.core.tables import Schema, Table
from tasks.core.trainer import Training, train
from tasks.core.twin import Twin
from tasks.modalities.vision.scorers import network_scorer
from tasks.modalities.vision.training import validator, viewer
from tasks.modalities.vision.views import Views
from tasks.quantize.calibrate import calibration_rows
from tasks.quantize.contract import shipped
from tasks.quantize.params import Calibration
from tasks.quantize.prepare import prepare
from tasks.quantize.qat import QuantizationAware, guided
from tasks.quantize.static import static

MINMAX = Calibration(rows=64, method="minmax")


@pytest.fixture(scope="module")
def calibrated(floats: onnx.ModelProto, train_rows: Table) -> onnx.ModelProto:
    return static(floats, calibration_rows(train_rows, 64), MINMAX)


def test_calibration_rows_do_not_depend_on_the_order_of_the_table(train_rows: Table) -> None:
    order = np.random.default_rng(0).permutation(len(train_rows))
    shuffled = train_rows.take(order)

    first, second = calibration_rows(train_rows, 20), calibration_rows(shuffled, 20)

    assert len(first) == 20
    assert {i.tobytes() for i in first} == {i.tobytes() for i in second}


def test_fewer_training_rows_than_asked_for_are_all_used(train_rows: Table) -> None:
    assert len(calibration_rows(train_rows, 10_000)) == len(train_rows)


def test_calibration_rows_with_nan_are_named(train_rows: Table) -> None:
    images = train_rows.images.astype(np.float32)
    images[7, 0, 0, 0] = np.nan

    with pytest.raises(DataError, match=f"1 of 256 .*{train_rows.rows[7][:12]}.*quarantine"):
        calibration_rows(replace(train_rows, images=images), 256)


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy"])
def test_every_method_keeps_the_student_and_repeats_itself(
    method: Literal["minmax", "percentile", "entropy"],
    floats: onnx.ModelProto,
    train_rows: Table,
    val_rows: Table,
) -> None:
    calibration = Calibration(rows=100, method=method)
    images = calibration_rows(train_rows, 100)  # two batches, the second short

    model = static(floats, images, calibration)

    logits, _ = score(open_session(model.SerializeToString()), val_rows.images)
    expected, _ = score(open_session(floats.SerializeToString()), val_rows.images)
    assert (logits.argmax(1) == expected.argmax(1)).mean() > 0.9
    again = static(floats, images, calibration)
    assert model.SerializeToString(deterministic=True) == again.SerializeToString(
        deterministic=True
    )


def test_minmax_over_batches_is_minmax_over_all(floats: onnx.ModelProto) -> None:
    """The scale of the input covers the extremes of rows that lie in different batches."""
    images = np.full((130, 3, 16, 20), 90, np.uint8)
    images[0, 0, 0, 0], images[129, 0, 0, 0] = 0, 255

    model = static(floats, images, MINMAX)

    stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    first = next(n for n in model.graph.node if n.op_type == "QuantizeLinear")
    assert float(stored[first.input[1]]) * 255 == pytest.approx(255 / 60, rel=1e-4)


def test_logits_are_not_put_on_256_levels(calibrated: onnx.ModelProto) -> None:
    maker = next(n for n in calibrated.graph.node if "logits" in n.output)

    assert maker.op_type == "Gemm"


def test_a_student_without_weights_cannot_be_quantized() -> None:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["input"], ["logits"])],
        "g",
        [helper.make_tensor_value_info("input", 1, ["batch", 3])],
        [helper.make_tensor_value_info("logits", 1, ["batch", 3])],
    )

    with pytest.raises(DataError, match="no layer that can be quantized"):
        prepare(helper.make_model(graph))


def test_untrained_it_says_what_the_calibrated_file_says(
    calibrated: onnx.ModelProto, floats: onnx.ModelProto, val_rows: Table
) -> None:
    net = QuantizationAware(calibrated, floats)

    ours = network_scorer(net)(val_rows.images)
    theirs, _ = score(open_session(calibrated.SerializeToString()), val_rows.images)

    assert len(net.layers) == 7
    assert (ours.argmax(1) == theirs.argmax(1)).mean() >= 0.99
    assert np.abs(ours - theirs).max() < 0.1 * theirs.std()


@pytest.fixture(scope="module")
def trained(
    calibrated: onnx.ModelProto,
    floats: onnx.ModelProto,
    data: Schema,
    train_rows: Table,
    val_rows: Table,
    tmp_path_factory: pytest.TempPathFactory,
) -> QuantizationAware:
    """Twelve epochs towards labels turned round: far from where calibration began."""
    net = QuantizationAware(calibrated, floats)
    signal = torch.from_numpy(6 * np.eye(3, dtype=np.float32)[(train_rows.labels + 1) % 3])
    train(
        net, in_memory(train_rows), guided(4.0, 1.0),
        Training(epochs=12, batch=32, learning_rate=0.02, weight_decay=0.0),
        view=viewer(in_memory(train_rows), Views(count=1, shift=0), data),
        signal=lambda _, index, __: (Outputs(signal[index]),),
        validate=validator(net, in_memory(val_rows)), what="qat",
        history=tmp_path_factory.mktemp("qat") / "history.jsonl",
    )  # fmt: skip
    return net


def test_what_was_trained_is_what_is_written(trained: QuantizationAware, val_rows: Table) -> None:
    model = trained.written()
    images = torch.from_numpy(val_rows.images)

    with torch.no_grad():
        ours, twin = trained(images), Twin.load(model)(images)
    file, _ = score(open_session(model.SerializeToString()), val_rows.images)

    assert torch.equal(ours, twin)
    assert (ours.numpy().argmax(1) == file.argmax(1)).mean() >= 0.99
    assert np.abs(ours.numpy() - file).max() < 0.1 * file.std()


def test_training_moves_weights_biases_and_scales_and_no_structure(
    trained: QuantizationAware, calibrated: onnx.ModelProto
) -> None:
    model = trained.written()
    before = {t.name: numpy_helper.to_array(t) for t in calibrated.graph.initializer}
    after = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}

    assert list(model.graph.node) == list(calibrated.graph.node)
    for name, value in after.items():
        assert (value.dtype, value.shape) == (before[name].dtype, before[name].shape)
        if name.endswith("zero_point"):
            assert np.array_equal(value, before[name])
    for layer in trained.layers:
        assert layer.bias is not None
        for name in (layer.weight.integers, layer.weight.scale, layer.bias.integers,
                     layer.bias.scale, layer.entering):  # fmt: skip
            assert not np.array_equal(before[name], after[name]), name
        assert np.abs(after[layer.weight.integers].astype(int)).max() <= 127
        np.testing.assert_allclose(  # what ONNX Runtime needs to add a bias in int32
            after[layer.bias.scale], after[layer.entering] * after[layer.weight.scale], rtol=1e-6
        )


def test_the_file_learned_what_the_bank_said(
    trained: QuantizationAware, val_rows: Table, calibrated: onnx.ModelProto
) -> None:
    turned = (val_rows.labels + 1) % 3

    before, _ = score(open_session(calibrated.SerializeToString()), val_rows.images)
    after, _ = score(open_session(trained.written().SerializeToString()), val_rows.images)

    assert (before.argmax(1) == turned).mean() < 0.2
    assert (after.argmax(1) == turned).mean() > 0.8


def test_alpha_weighs_soft_against_hard_labels() -> None:
    student, labels = Student(torch.tensor([[2.0, 0.0]])), torch.tensor([1])
    batch = Batch(torch.zeros(1, 1, 8, 8), labels, (student,))
    hard = float(torch.nn.functional.cross_entropy(student.logits, labels))

    assert float(guided(4.0, 1.0)(student, batch)) == pytest.approx(0.0, abs=1e-6)
    assert float(guided(4.0, 0.0)(student, batch)) == pytest.approx(hard)
    assert float(guided(4.0, 0.75)(student, batch)) == pytest.approx(0.25 * hard)


def test_a_weight_without_a_float_master_is_named(calibrated: onnx.ModelProto) -> None:
    empty = onnx.ModelProto()

    with pytest.raises(DataError, match=r"no float master .stem\.weight. to train from"):
        QuantizationAware(calibrated, empty)


def test_the_history_goes_where_the_shipment_is(quantized: tuple[Path, Path]) -> None:
    lines = (quantized[0] / "ship/student/history.jsonl").read_text().splitlines()

    assert len(lines) == 2


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy"])
def test_constant_activations_have_a_range_all_the_same(
    floats: onnx.ModelProto, train_rows: Table, data: Schema, method: str
) -> None:
    same = np.repeat(train_rows.images[:1], 64, axis=0)
    made = static(floats, same, Calibration.model_validate({"rows": 64, "method": method}))

    ours, _ = score(open_session(shipped(made, data)), same)
    theirs, _ = score(open_session(shipped(floats, data)), same)

    assert np.isfinite(ours).all()
    assert np.abs(ours - theirs).max() < 0.05 * np.abs(theirs).max()
