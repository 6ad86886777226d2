"""Export, contract and slimming: what the file holds, and that the arithmetic survives."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from tasks.core.errors import DataError
from tasks.core.session import open_session, score
from tasks.core.tables import Schema, Table
from tasks.modalities.vision.networks import ResidualNetwork
from tasks.modalities.vision.scorers import network_scorer
from tasks.quantize.calibrate import calibration_rows
from tasks.quantize.contract import shipped, with_valid
from tasks.quantize.dynamic import dynamic
from tasks.quantize.export import export
from tasks.quantize.halves import half
from tasks.quantize.params import Calibration
from tasks.quantize.slim import slim
from tasks.quantize.static import static
from tasks.quantize.weight_only import weight_only

CALIBRATION = Calibration(rows=64, method="minmax")
SCHEMES = ["float32", "dynamic", "static", "float16", "bfloat16", "weights8", "weights4"]


@pytest.fixture(scope="module")
def graphs(floats: onnx.ModelProto, train_rows: Table) -> dict[str, onnx.ModelProto]:
    images = calibration_rows(train_rows, 64)
    return {
        "float32": floats,
        "dynamic": dynamic(floats),
        "static": static(floats, images, CALIBRATION),
        "float16": half(floats, "float16"),
        "bfloat16": half(floats, "bfloat16"),
        "weights8": weight_only(floats, 8),
        "weights4": weight_only(floats, 4),
    }


def test_the_export_says_what_torch_says(
    student: ResidualNetwork, floats: onnx.ModelProto, val_rows: Table
) -> None:
    ours, _ = score(open_session(floats.SerializeToString()), val_rows.images)
    theirs = network_scorer(student)(val_rows.images)  # BatchNorm not folded

    assert np.abs(ours - theirs).max() <= 1e-4
    assert (ours.argmax(1) == theirs.argmax(1)).all()


def test_the_export_has_plain_operators_and_no_traces(floats: onnx.ModelProto) -> None:
    assert {n.op_type for n in floats.graph.node} == {
        "Sub", "Div", "Conv", "Relu", "Add", "ReduceMean", "Gemm",
    }  # fmt: skip
    assert not floats.metadata_props
    assert not floats.graph.value_info
    assert not any(n.metadata_props or n.name or n.doc_string for n in floats.graph.node)
    assert [(i.domain, i.version) for i in floats.opset_import] == [("", 20)]
    assert floats.producer_version == ""  # it would name the build of torch
    assert {"stem.weight", "head.bias"} <= {t.name for t in floats.graph.initializer}


def test_a_network_without_an_onnx_form_is_a_data_error(data: Schema) -> None:
    class Odd(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.eigvals(x).real

    with pytest.raises(DataError, match="cannot be exported"):
        export(Odd(), data)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_slimming_keeps_logits_bit_equal(
    graphs: dict[str, onnx.ModelProto], scheme: str, val_rows: Table
) -> None:
    raw = graphs[scheme].SerializeToString()
    small = slim(graphs[scheme])

    before, _ = score(open_session(raw), val_rows.images)
    after, _ = score(open_session(small), val_rows.images)

    assert np.array_equal(before, after)
    share = {"float32": 0.85, "float16": 0.75, "bfloat16": 0.75}.get(scheme, 0.65)
    assert len(small) < share * len(raw)


def test_slimming_twice_changes_nothing(graphs: dict[str, onnx.ModelProto]) -> None:
    once = slim(graphs["static"])

    assert slim(onnx.load_from_string(once)) == once


@pytest.mark.parametrize("scheme", SCHEMES)
def test_slimming_keeps_every_type_that_is_stored(
    graphs: dict[str, onnx.ModelProto], scheme: str, data: Schema
) -> None:
    def stored(model: onnx.ModelProto) -> dict[int, int]:
        """How many values of each type."""
        counts: dict[int, int] = {}
        for t in model.graph.initializer:
            if len(t.dims) > 1:
                counts[t.data_type] = counts.get(t.data_type, 0) + int(np.prod(t.dims))
        return counts

    final = onnx.load_from_string(shipped(graphs[scheme], data))

    assert stored(final) == stored(graphs[scheme])


def test_slimming_leaves_its_argument_alone(graphs: dict[str, onnx.ModelProto]) -> None:
    before = graphs["static"].SerializeToString(deterministic=True)
    slim(graphs["static"])

    assert graphs["static"].SerializeToString(deterministic=True) == before


def test_equal_initializers_are_shared_and_unused_ones_go() -> None:
    node = helper.make_node
    graph = helper.make_graph(
        [node("Add", ["x", "first"], ["t"]), node("Mul", ["t", "second"], ["y"])],
        "a graph with a long name",
        [helper.make_tensor_value_info("x", 1, ["batch", 2])],
        [helper.make_tensor_value_info("y", 1, ["batch", 2])],
        [numpy_helper.from_array(np.array([1, 2], np.float32), n) for n in ("first", "second")]
        + [numpy_helper.from_array(np.array([9, 9], np.float32), "unused")],
    )
    small = onnx.load_from_string(
        slim(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))
    )

    assert [t.name for t in small.graph.initializer] == ["a"]
    assert [list(n.input) for n in small.graph.node] == [["x", "a"], ["b", "a"]]
    assert (small.graph.input[0].name, small.graph.output[0].name) == ("x", "y")


def test_an_attribute_that_is_not_the_default_stays(graphs: dict[str, onnx.ModelProto]) -> None:
    small = onnx.load_from_string(slim(graphs["float32"]))
    convolutions = [n for n in small.graph.node if n.op_type == "Conv"]
    named = [{a.name for a in n.attribute} for n in convolutions]

    assert any("strides" in names for names in named)
    assert any("strides" not in names for names in named)
    assert not any("group" in names or "dilations" in names for names in named)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_valid_says_which_rows_to_trust(
    graphs: dict[str, onnx.ModelProto], scheme: str, data: Schema, val_rows: Table
) -> None:
    session = open_session(shipped(graphs[scheme], data))
    x = val_rows.images[:8].astype(np.float32)
    x[1, 2, 15, 19] = np.nan
    x[2, 0, 0, 0] = np.inf
    x[3, 1, 3, 3] = -np.inf
    x[4, 0, 5, 5] = 255.01
    x[5, 0, 5, 5] = -0.01
    x[6, 0, 0, 0], x[6, 0, 0, 1] = 0.0, 255.0  # the range is closed

    _, valid = session.run(None, {"input": x})

    assert valid.tolist() == [True, False, False, False, False, False, True, True]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_batch_of_any_size_is_scored(
    graphs: dict[str, onnx.ModelProto], data: Schema, val_rows: Table, count: int
) -> None:
    session = open_session(shipped(graphs["static"], data))

    logits, valid = session.run(None, {"input": val_rows.images[:count].astype(np.float32)})

    assert logits.shape == (count, 3)
    assert valid.shape == (count,)


def test_the_contract_leaves_its_argument_alone(floats: onnx.ModelProto, data: Schema) -> None:
    with_valid(floats, data)

    assert [o.name for o in floats.graph.output] == ["logits"]


def test_an_int8_student_is_a_third_of_its_float_file(
    graphs: dict[str, onnx.ModelProto], data: Schema
) -> None:
    # Of 1,400 weights: at this size, names and scales weigh as much as the weights do.
    assert len(shipped(graphs["static"], data)) < 9_000


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_temperature_divides_the_logits_and_changes_no_answer(
    graphs: dict[str, onnx.ModelProto], scheme: str, data: Schema, val_rows: Table
) -> None:
    plain, _ = score(open_session(shipped(graphs[scheme], data)), val_rows.images)
    sharp, _ = score(open_session(shipped(graphs[scheme], data, 0.5)), val_rows.images)

    assert np.array_equal(sharp, 2 * plain)
    assert np.array_equal(sharp.argmax(1), plain.argmax(1))
