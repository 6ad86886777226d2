"""A given teacher is checked before it teaches anyone."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from tasks.core.errors import TeacherError
from tasks.core.files import write_json
from tasks.core.models import Architecture, Normalisation, write_weights
from tasks.core.tables import Schema
from tasks.modalities.vision.networks import build
from tasks.teach.given import read_given

DATA = Schema(modality="vision", shape=(1, 4, 4), dtype="uint8", range=(0, 16), classes=("a", "b"))
SPEC = {
    "classes": ["a", "b"],
    "shape": [1, 4, 4],
    "architecture": {"widths": [4]},
    "normalisation": {"mean": 8.0, "std": 4.0},
}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A sound teacher in safetensors."""
    net = build(Architecture(widths=(4,)), DATA, Normalisation(mean=8, std=4))
    write_json(tmp_path / "spec.json", SPEC)
    write_weights(tmp_path / "weights.safetensors", net.state_dict())
    return tmp_path


def black_box(
    folder: Path, classes: int = 2, value: float = 0.1, operator: tuple[str, str] = ("", "MatMul")
) -> Path:
    """A linear ONNX teacher of flattened pixels."""
    write_json(folder / "spec.json", {"classes": ["a", "b"], "shape": [1, 4, 4]})
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["x"], ["f"]),
            helper.make_node(operator[1], ["f", "w"], ["y"], domain=operator[0]),
        ],
        "teacher",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", classes])],
        [numpy_helper.from_array(np.full((16, classes), value, np.float32), "w")],
    )
    opsets = [helper.make_opsetid("", 17)]
    if operator[0]:
        opsets.append(helper.make_opsetid(operator[0], 1))
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), folder / "model.onnx")
    return folder


def test_a_sound_teacher_is_counted_not_believed(weights: Path) -> None:
    spec = read_given(weights, "safetensors", DATA)
    net = build(Architecture(widths=(4,)), DATA, Normalisation(mean=8, std=4))
    assert spec.parameters == sum(p.numel() for p in net.parameters())
    assert spec.bytes == 4 * spec.parameters
    assert spec.flops is not None


def test_an_onnx_file_of_any_framework_may_teach(tmp_path: Path) -> None:
    spec = read_given(black_box(tmp_path), "onnx", DATA)
    assert (spec.kind, spec.parameters, spec.bytes) == ("onnx", 32, 128)


def test_what_an_onnx_file_says_beside_its_logits_is_not_asked(tmp_path: Path) -> None:
    model = onnx.load(black_box(tmp_path) / "model.onnx")
    model.graph.node.append(helper.make_node("ReduceMean", ["y"], ["mean"], keepdims=0))
    model.graph.output.append(helper.make_tensor_value_info("mean", TensorProto.FLOAT, []))
    onnx.save(model, tmp_path / "model.onnx")

    assert read_given(tmp_path, "onnx", DATA).parameters == 32


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"classes": ["a", "c"]}, r"classes are not the data's .*\(b, c\)"),
        ({"classes": ["b", "a"]}, "other order"),
        ({"shape": [1, 5, 5]}, r"takes \(1, 5, 5\)"),
        ({"architecture": {"widths": [8]}}, "does not fit its architecture"),
        ({"architecture": None}, "needs architecture and normalisation"),
        ({"normalisation": {"mean": 7.0, "std": 4.0}}, "normalises by mean 8 and std 4, spec.json"),
    ],
)
def test_a_spec_that_does_not_fit_is_one_line(
    weights: Path, change: dict[str, object], says: str
) -> None:
    write_json(weights / "spec.json", SPEC | change)
    with pytest.raises(TeacherError, match=says) as caught:
        read_given(weights, "safetensors", DATA)
    assert "\n" not in str(caught.value)


def test_a_pickle_is_refused_unopened(weights: Path) -> None:
    torch.save({"evil": torch.zeros(1)}, weights / "weights.safetensors")
    with pytest.raises(TeacherError, match="not a safetensors file"):
        read_given(weights, "safetensors", DATA)


def test_nan_weights_are_refused(weights: Path, tmp_path: Path) -> None:
    net = build(Architecture(widths=(4,)), DATA, Normalisation(mean=8, std=4))
    with torch.no_grad():
        net.head.weight[0, 0] = float("nan")
    write_weights(weights / "weights.safetensors", net.state_dict())
    with pytest.raises(TeacherError, match="NaN or infinite weights"):
        read_given(weights, "safetensors", DATA)
    with pytest.raises(TeacherError, match="weight 'w' has NaN"):
        read_given(black_box(tmp_path, value=float("nan")), "onnx", DATA)


def test_weights_in_constants_count_and_are_checked_too(tmp_path: Path) -> None:
    model = onnx.load(black_box(tmp_path) / "model.onnx")
    weight = model.graph.initializer.pop()
    model.graph.node.insert(0, helper.make_node("Constant", [], ["w"], value=weight))
    onnx.save(model, tmp_path / "model.onnx")
    assert read_given(tmp_path, "onnx", DATA).parameters == 32

    wrong = numpy_helper.from_array(np.full((16, 2), np.inf, np.float32), "w")
    model.graph.node[0].attribute[0].t.CopyFrom(wrong)
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(TeacherError, match="weight 'w' has NaN or infinite"):
        read_given(tmp_path, "onnx", DATA)


def test_an_onnx_without_weights_teaches_nobody(tmp_path: Path) -> None:
    black_box(tmp_path)
    graph = helper.make_graph(
        [helper.make_node("ReduceMax", ["x"], ["y"], axes=[1, 2], keepdims=0)],
        "empty",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
    )
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), tmp_path / "model.onnx")
    with pytest.raises(TeacherError, match="holds no weights"):
        read_given(tmp_path, "onnx", DATA)


def test_an_onnx_of_other_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match=r"gives \(3,\) outputs for 2 classes"):
        read_given(black_box(tmp_path, classes=3), "onnx", DATA)


def test_an_operator_outside_the_allowed_domains_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match=r"evil::Run"):
        read_given(black_box(tmp_path, operator=("evil", "Run")), "onnx", DATA)


def test_external_weights_are_refused(tmp_path: Path) -> None:
    model = onnx.load(black_box(tmp_path) / "model.onnx")
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../../secret")
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(TeacherError, match=r"outside|not a valid ONNX"):
        read_given(tmp_path, "onnx", DATA)


def ending(folder: Path, operator: str, *inputs: str) -> Path:
    """A linear teacher whose outputs sum to 0, and one operator behind it."""
    model = onnx.load(black_box(folder) / "model.onnx")
    drawn = np.random.default_rng(0).normal(0, 0.1, (16, 1)).astype(np.float32)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(drawn * np.float32([1, -1]), "w"))
    model.graph.initializer.append(numpy_helper.from_array(np.float32([0.5]), "half"))
    model.graph.node[1].output[0] = "z"
    model.graph.node.append(helper.make_node(operator, ["z", *inputs], ["y"]))
    onnx.save(model, folder / "model.onnx")
    return folder


def test_probabilities_are_refused(tmp_path: Path) -> None:
    says = r"model\.onnx: gives probabilities, not logits; export it without its softmax$"
    with pytest.raises(TeacherError, match=says):
        read_given(ending(tmp_path, "Softmax"), "onnx", DATA)


@pytest.mark.parametrize("last", [("LogSoftmax",), ("Relu",), ("Add", "half")])
def test_outputs_below_0_or_of_another_sum_than_1_are_logits(
    tmp_path: Path, last: tuple[str, ...]
) -> None:
    assert read_given(ending(tmp_path, *last), "onnx", DATA).kind == "onnx"


def test_a_batch_of_fixed_size_is_refused(tmp_path: Path) -> None:
    model = onnx.load(black_box(tmp_path) / "model.onnx")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(TeacherError, match="export it with that input and a free batch size"):
        read_given(tmp_path, "onnx", DATA)


def test_a_missing_folder_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match=r"set teach\.path"):
        read_given(tmp_path / "none", "onnx", DATA)
