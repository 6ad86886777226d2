"""Static int8 (QDQ): weights per channel, activation ranges fixed on training rows.

Weights are int8, activations uint8, and each channel has the finest scale with which no pair of
products leaves int16, so that the file means the same on every CPU (see `saturation`). Logits stay
float: on 256 levels classes would tie. Calibration rows are streamed, never held at once;
validation and test rows are never seen.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import create_calibrator
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.quant_utils import load_model_with_shape_infer

from tasks.core.errors import DataError
from tasks.core.tables import Table
from tasks.quantize.params import Calibration
from tasks.quantize.prepare import QUANTIZABLE, RESULTS, prepare
from tasks.quantize.saturation import channel_axis, safe_scales

METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "percentile": CalibrationMethod.Percentile,
    "entropy": CalibrationMethod.Entropy,
}
BATCH = 64


def calibration_rows(train: Table, count: int) -> NDArray[np.generic]:
    """`count` raw images (N, C, H, W) of training rows, those of the smallest hashes.

    A row's hash is as good as random, and a growing snapshot changes few of the rows chosen.
    """
    chosen = train.take(np.sort(np.argsort(train.rows, kind="stable")[:count]))
    bad = ~np.isfinite(chosen.images.reshape(len(chosen), -1)).all(axis=1)
    if bad.any():
        raise DataError(
            f"{int(bad.sum())} of {len(chosen)} calibration rows hold NaN or infinity (first: row "
            f"{chosen.rows[bad][0][:12]}); quarantine them in validate"
        )
    return chosen.images


def static(
    model: onnx.ModelProto, images: NDArray[np.generic], calibration: Calibration
) -> onnx.ModelProto:
    """`model` with QuantizeLinear/DequantizeLinear pairs, calibrated on raw `images`."""
    kinds = [*QUANTIZABLE, *RESULTS, "ReduceMean"]
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()):
        source = Path(scratch) / "float.onnx"
        onnx.save(prepare(model), str(source))
        calibrator = create_calibrator(
            source,
            kinds,
            str(Path(scratch) / "augmented.onnx"),
            METHODS[calibration.method],
            extra_options={"symmetric": False, "percentile": calibration.percentile},
        )
        for block in _blocks(model.graph.input[0].name, images):
            calibrator.collect_data(block)
        floats = load_model_with_shape_infer(source)
        quantizer = QDQQuantizer(
            floats,
            per_channel=True,
            reduce_range=True,  # [-64, 64], always safe, for weights without scales of ours
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=calibrator.compute_data(),
            nodes_to_quantize=[],
            nodes_to_exclude=[],
            op_types_to_quantize=kinds,
            extra_options={
                "OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"],
                "TensorQuantOverrides": _scales(floats.graph),
            },
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()
        quantized: onnx.ModelProto = quantizer.model.model
        return quantized


def _scales(graph: onnx.GraphProto) -> dict[str, list[dict[str, object]]]:
    """Safe scales of each layer's weights, by name, as the quantizer takes them per channel.

    Weights that several layers share, or of another rank than a layer's, get none.
    """
    stored = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    used = Counter(name for node in graph.node for name in node.input)
    found = {}
    for node in graph.node:
        weight = stored.get(node.input[1]) if node.op_type in QUANTIZABLE else None
        if weight is None or weight.ndim < 2 or used[node.input[1]] > 1:
            continue
        if node.op_type == "MatMul" and weight.ndim > 2:
            continue
        axis = channel_axis(node)
        found[node.input[1]] = [
            {"axis": axis, "scale": scale, "zero_point": np.int8(0)}
            for scale in safe_scales(weight, axis)
        ]
    return found


class _Block(CalibrationDataReader):  # type: ignore[misc]
    """One batch for a calibrator."""

    def __init__(self, feed: dict[str, NDArray[np.float32]]) -> None:
        self._feeds = iter([feed])

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        return next(self._feeds, None)


def _blocks(name: str, images: NDArray[np.generic]) -> Iterator[_Block]:
    for start in range(0, len(images), BATCH):
        yield _Block({name: images[start : start + BATCH].astype(np.float32)})
