"""Dynamic int8: weights stored in int8, activation ranges taken from each batch as it comes.

No calibration is needed. Ranges over a whole batch make a row's logits depend on its neighbours,
which the search measures and refuses.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic

from tasks.quantize.prepare import QUANTIZABLE, prepare


def dynamic(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` with ConvInteger and MatMulInteger; weights in [-64, 64], with which no pair of
    products saturates (see `saturation`)."""
    with tempfile.TemporaryDirectory() as scratch:
        source, target = Path(scratch) / "float.onnx", Path(scratch) / "dynamic.onnx"
        onnx.save(prepare(model), str(source))
        quantize_dynamic(
            source,
            target,
            op_types_to_quantize=list(QUANTIZABLE),
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
        )
        return onnx.load(str(target))
