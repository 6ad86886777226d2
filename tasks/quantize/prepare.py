"""Before quantization: shapes inferred, constants folded, and something there to quantize."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import onnx
from onnxruntime.quantization.shape_inference import quant_pre_process

from tasks.core.errors import DataError

QUANTIZABLE = ("Conv", "Gemm", "MatMul")  # operators with weights
RESULTS = ("Add", "GlobalAveragePool", "MaxPool", "Mul", "Relu")  # int8 between two of those


def prepare(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` as ONNX Runtime's quantizers want it; a `DataError` if no layer has weights."""
    weights = {stored.name for stored in model.graph.initializer}
    layers = [
        n
        for n in model.graph.node
        if n.op_type in QUANTIZABLE and weights.intersection(n.input[1:2])
    ]
    if not layers:
        raise DataError(
            f"the student has no layer that can be quantized ({', '.join(QUANTIZABLE)} with "
            "weights); set quantize.schemes to [float32]"
        )
    logging.getLogger("onnxruntime.quantization").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as scratch:
        source, target = Path(scratch) / "float.onnx", Path(scratch) / "prepared.onnx"
        onnx.save(model, str(source))
        quant_pre_process(source, target)
        return onnx.load(str(target))
