"""A given teacher that cannot teach: found at acquisition, before `data/raw` is replaced."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file, save_file

from tests.bad_input.case import REMOVED, Case, edited, params

Harm = Callable[[Path], object]


def network(harm: Harm) -> Harm:
    """`given/`: the teacher that was trained here, as safetensors, then harmed."""

    def arrange(root: Path) -> None:
        ours = json.loads((root / "models/teacher/spec.json").read_text())
        shape, classes = ours["data"]["shape"], ours["data"]["classes"]
        spec = {key: ours[key] for key in ("architecture", "normalisation")}
        _given(root, "safetensors", spec | {"shape": shape, "classes": classes})
        shutil.copy(root / "models/teacher/weights.safetensors", root / "given")
        harm(root / "given")

    return arrange


def black_box(harm: Harm) -> Harm:
    """`given/`: a linear model as ONNX, which may teach too, then harmed."""

    def arrange(root: Path) -> None:
        data = json.loads((root / "models/teacher/spec.json").read_text())["data"]
        _given(root, "onnx", {key: data[key] for key in ("shape", "classes")})
        _linear(tuple(data["shape"]), len(data["classes"]))(root / "given")
        harm(root / "given")

    return arrange


def _given(root: Path, source: str, spec: dict[str, object]) -> None:
    (root / "given").mkdir()
    (root / "given/spec.json").write_text(json.dumps(spec))
    params({"teach.source": source, "teach.path": "given"})(root)


def _spec(values: Mapping[str, object]) -> Harm:
    def harm(folder: Path) -> None:
        path = folder / "spec.json"
        path.write_text(json.dumps(edited(json.loads(path.read_text()), values)))

    return harm


def _write(name: str, content: bytes) -> Harm:
    return lambda folder: (folder / name).write_bytes(content)


def _rename(name: str, to: str) -> Harm:
    return lambda folder: (folder / name).rename(folder / to)


def _remove(name: str) -> Harm:
    return lambda folder: (folder / name).unlink()


def _cut(folder: Path) -> None:
    os.truncate(folder / "weights.safetensors", 1000)


def _link(folder: Path) -> None:
    (folder / "weights.safetensors").rename(folder.parent / "elsewhere.safetensors")
    (folder / "weights.safetensors").symlink_to(folder.parent / "elsewhere.safetensors")


def _pickle(name: str) -> Harm:
    """What `torch.save` writes, under a name that promises otherwise."""

    def harm(folder: Path) -> None:
        import torch

        torch.save({"weight": torch.zeros(2)}, folder / name)

    return harm


def _nan_weight(folder: Path) -> None:
    path = folder / "weights.safetensors"
    state = load_file(path)
    state[max(state, key=lambda name: state[name].size)].flat[0] = np.nan
    save_file(state, path)


def _model(change: Callable[[onnx.ModelProto], object]) -> Harm:
    """Change the ONNX file, and write it as it then is."""

    def harm(folder: Path) -> None:
        model = onnx.load(folder / "model.onnx")
        change(model)
        (folder / "model.onnx").write_bytes(model.SerializeToString())

    return harm


def _external(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../secret")


def _foreign(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "evil"
    model.opset_import.append(helper.make_opsetid("evil", 1))


def _softmax(model: onnx.ModelProto) -> None:
    model.graph.node[-1].output[0] = "z"
    model.graph.node.append(helper.make_node("Softmax", ["z"], ["y"]))


def _linear(shape: tuple[int, ...], classes: int, value: float = 0.1) -> Harm:
    """A model of one product, for images of `shape`."""
    weights = np.full((int(np.prod(shape)), classes), value, np.float32)
    return _graph(shape, [("Flatten", ["x"], ["f"]), ("MatMul", ["f", "w"], ["y"])], weights)


def _graph(
    shape: tuple[int, ...], nodes: list[tuple[str, list[str], list[str]]], weights: np.ndarray
) -> Harm:
    def harm(folder: Path) -> None:
        graph = helper.make_graph(
            [helper.make_node(*node) for node in nodes],
            "teacher",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *shape])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", weights.shape[-1]])],
            [numpy_helper.from_array(weights, "w")],
        )
        opsets = [helper.make_opsetid("", 17)]
        onnx.save(
            helper.make_model(graph, opset_imports=opsets, ir_version=9), folder / "model.onnx"
        )

    return harm


_ROOTS = _graph(
    (1, 8, 8),
    [("Flatten", ["x"], ["f"]), ("MatMul", ["f", "w"], ["z"]), ("Log", ["z"], ["y"])],
    np.full((64, 10), -1, np.float32),
)

TEACHERS = (
    Case(
        "a teacher's folder that is not there",
        params({"teach.source": "onnx", "teach.path": "given"}),
        ("given: no spec.json here", "teach.path is a folder with spec.json beside"),
    ),
    Case(
        "a teacher without spec.json",
        network(_remove("spec.json")),
        ("given: no spec.json here", "teach.path is a folder with spec.json beside"),
    ),
    Case(
        "spec.json that is not JSON",
        network(_write("spec.json", b"{classes: [a]}")),
        ("given/spec.json: not valid JSON", "mend it"),
    ),
    Case(
        "spec.json with an unknown key",
        network(_spec({"clases": []})),
        ("given/spec.json: clases: unknown key", "did you mean 'classes'?"),
    ),
    Case(
        "spec.json without an architecture",
        network(_spec({"architecture": REMOVED})),
        ("given/spec.json: needs architecture and normalisation", "export it to ONNX"),
    ),
    Case(
        "a date that is none",
        network(_spec({"created": "last May"})),
        ("given/spec.json: created: 'last May' is not an ISO date", "write 2025-01-31"),
    ),
    Case(
        "a teacher of other classes",
        network(_spec({"classes": [*"012345678", "ten"]})),
        ("given/spec.json: its classes are not the data's", "(9, ten)", "of these classes"),
    ),
    Case(
        "a teacher of the classes in another order",
        network(_spec({"classes": [*"9876543210"]})),
        ("given/spec.json: its classes are not the data's", "(other order)", "of these classes"),
    ),
    Case(
        "a teacher of another input shape",
        network(_spec({"shape": [3, 32, 32]})),
        ("given/spec.json: takes (3, 32, 32), the data is (1, 8, 8)", "of this shape"),
    ),
    Case(
        "an architecture that does not fit the weights",
        network(_spec({"architecture.widths": [8, 16]})),
        ("given/weights.safetensors: does not fit its architecture", "correct `architecture`"),
    ),
    Case(
        "weights of another format than teach.source",
        network(_rename("weights.safetensors", "model.onnx")),
        ("given/weights.safetensors: no such file, and teach.source is safetensors", "correct"),
    ),
    Case(
        "a pickle named weights.safetensors",
        network(_pickle("weights.safetensors")),
        ("given/weights.safetensors: not a safetensors file", "save the weights with safetensors"),
    ),
    Case(
        "a pickle named model.onnx",
        black_box(_pickle("model.onnx")),
        ("given/model.onnx: not a valid ONNX file", "export it again"),
    ),
    Case(
        "a pickle alone",
        network(_rename("weights.safetensors", "teacher.pt")),
        ("given: no weights.safetensors or model.onnx here (teacher.pt stays closed", "save the"),
    ),
    Case(
        "weights that are cut off",
        network(_cut),
        ("given/weights.safetensors: not a safetensors file", "save the weights with safetensors"),
    ),
    Case(
        "weights that are a link out of the folder",
        network(_link),
        ("given/weights.safetensors: leads out of", "put a copy of the file inside it"),
    ),
    Case(
        "weights that are NaN",
        network(_nan_weight),
        ("given/weights.safetensors: holds NaN or infinite weights", "give sound ones"),
    ),
    Case(
        "an ONNX file with weights that are NaN",
        black_box(_linear((1, 8, 8), classes=10, value=np.nan)),
        ("given/model.onnx: weight 'w'", "has NaN or infinite values", "give sound ones"),
    ),
    Case(
        "an ONNX file whose weights lie outside its folder",
        black_box(_model(_external)),
        ("given/model.onnx: weight 'w'", "lies outside the file", "external_data=False"),
    ),
    Case(
        "an operator outside the allowed domains",
        black_box(_model(_foreign)),
        ("given/model.onnx: operator evil::Flatten", "export without custom operators"),
    ),
    Case(
        "an ONNX file of other classes",
        black_box(_linear((1, 8, 8), classes=3)),
        ("given/model.onnx: gives (3,) outputs for 10 classes", "must be the logits"),
    ),
    Case(
        "an ONNX file of another input shape",
        black_box(_linear((3, 32, 32), classes=10)),
        ("given/model.onnx: cannot score float32 input of shape (N, 1, 8, 8)", "export it with"),
    ),
    Case(
        "an ONNX file that answers NaN",
        black_box(_ROOTS),
        ("given/model.onnx: answers a blank image with NaN", "give a teacher that is sound"),
    ),
    Case(
        "an ONNX file that ends in a softmax",
        black_box(_model(_softmax)),
        ("given/model.onnx: gives probabilities, not logits", "export it without its softmax"),
    ),
    Case(
        "an ONNX file that is cut off",
        black_box(lambda folder: os.truncate(folder / "model.onnx", 200)),
        ("given/model.onnx: not a valid ONNX file", "export it again"),
    ),
)
