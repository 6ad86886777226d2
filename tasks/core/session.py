"""ONNX files as data: checked before they are opened, scored through ONNX Runtime on the CPU.

A file may only use operators of `ai.onnx` and `com.microsoft`, keeps its weights inside itself and
stays under a size; anything else is refused before a session sees it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from tasks.core.errors import DataError

DOMAINS = {"", "ai.onnx", "com.microsoft"}
MAX_BYTES = 2**31  # protobuf's own limit
VALID = "valid"  # the output by which a shipped file says which rows are of its data


def check_onnx(path: Path) -> onnx.ModelProto:
    """Read `path` if it is a safe ONNX file; otherwise a `DataError` that says what is wrong."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; export the model to it")
    if path.stat().st_size >= MAX_BYTES:
        raise DataError(
            f"{path}: larger than {MAX_BYTES:,} bytes, more than an ONNX file can hold by itself; "
            "export a smaller model"
        )
    try:
        model = onnx.load(str(path), load_external_data=False)
        _self_contained(model, path)
        onnx.checker.check_model(model)
    except DataError:
        raise
    except Exception as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: not a valid ONNX file ({first}); export it again") from None
    return model


def _self_contained(model: onnx.ModelProto, path: Path) -> None:
    """Refuse weights that lie elsewhere, and operators that somebody else would have to bring."""
    for tensor in tensors(model.graph):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise DataError(
                f"{path}: weight '{tensor.name}' lies outside the file; "
                "save it with external_data=False"
            )
    for graph in _graphs(model.graph):
        for node in graph.node:
            if node.domain not in DOMAINS:
                raise DataError(
                    f"{path}: operator {node.domain}::{node.op_type} is outside the allowed "
                    "domains ai.onnx and com.microsoft; export without custom operators"
                )


def tensors(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    """Every tensor that `graph` holds: initialisers, sparse ones, constants, and nested graphs'."""
    found: list[onnx.TensorProto] = []
    for part in _graphs(graph):
        found.extend(part.initializer)
        for sparse in part.sparse_initializer:
            found.extend([sparse.values, sparse.indices])
        for node in part.node:
            for attribute in node.attribute:
                found.extend([attribute.t] if attribute.HasField("t") else [])
                found.extend(attribute.tensors)
    return found


def _graphs(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    """`graph` and every graph nested in its nodes."""
    found = [graph]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                found.extend(_graphs(attribute.g))
            for inner in attribute.graphs:
                found.extend(_graphs(inner))
    return found


def open_session(
    model: Path | bytes, threads: int = 1, optimise: bool = True
) -> ort.InferenceSession:
    """A CPU session with fixed threads. A path is checked first; bytes are ours already."""
    if isinstance(model, Path):
        check_onnx(model)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = str(model) if isinstance(model, Path) else model
    try:
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        name = model if isinstance(model, Path) else "the model"
        first = str(error).splitlines()[0]
        raise DataError(f"{name}: ONNX Runtime cannot open it ({first})") from None


def score(
    session: ort.InferenceSession, images: NDArray[np.generic], batch: int = 256
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Logits (N, classes) and `valid` (N,) of raw `images` (N, C, H, W), in batches.

    Logits are the first output. A model without one called `valid` (a given teacher) counts as
    valid throughout; what else it says is not asked.
    """
    name, said = session.get_inputs()[0].name, [output.name for output in session.get_outputs()]
    asked = [said[0], *(n for n in said[1:] if n == VALID)]
    logits, valid = [], []
    for start in range(0, max(len(images), 1), batch):
        first, *rest = session.run(asked, {name: images[start : start + batch].astype(np.float32)})
        logits.append(first)
        valid.append(rest[0] if rest else np.ones(len(first), dtype=bool))
    return np.concatenate(logits), np.concatenate(valid)
