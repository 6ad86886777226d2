"""Calibration: the range of every activation, from training rows that are read batch by batch.

A batch is run, its extremes or histograms are merged, and its activations are dropped: memory grows
with the batch, not with the rows. Validation and test rows are never seen.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod
from onnxruntime.quantization.calibrate import TensorsData, create_calibrator
from onnxruntime.quantization.quant_utils import load_model_with_shape_infer

from tasks.core.errors import DataError
from tasks.core.tables import Table
from tasks.quantize.params import Calibration
from tasks.quantize.prepare import QUANTIZABLE, RESULTS, prepare
from tasks.quantize.targets import AVX2, Target

METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "percentile": CalibrationMethod.Percentile,
    "entropy": CalibrationMethod.Entropy,
}
KINDS = [*QUANTIZABLE, *RESULTS, "ReduceMean"]  # what the quantizer may make int8
BATCH = 64


class Images(Sequence[NDArray[np.generic]]):
    """Some raw images (C, H, W) of a table, copied only when they are asked for."""

    def __init__(self, table: Table, index: NDArray[np.int64]) -> None:
        self._images, self._index = table.images, index

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, place: Any) -> Any:
        """One image, or those of a slice as one array."""
        return self._images[self._index[place]]


@dataclass(frozen=True)
class Calibrated:
    """A float graph that is ready for the quantizer, each node named, ONNX Runtime's range of each
    of its activations, by name, and the CPU that it is to be quantized for."""

    model: onnx.ModelProto
    ranges: TensorsData
    target: Target = AVX2


def calibration_rows(train: Table, count: int) -> Images:
    """`count` raw images of training rows, those of the smallest hashes, read when needed.

    A row's hash is as good as random, and a growing snapshot changes few of the rows chosen.
    """
    index = np.sort(np.argsort(train.rows, kind="stable")[:count])
    images = Images(train, index)
    bad = [
        start + i
        for start in range(0, len(images), BATCH)
        for i, image in enumerate(images[start : start + BATCH])
        if not np.isfinite(image).all()
    ]
    if bad:
        raise DataError(
            f"{len(bad)} of {len(images)} calibration rows hold NaN or infinity (first: row "
            f"{train.rows[index[bad[0]]][:12]}); quarantine them in validate"
        )
    return images


def calibrate(
    model: onnx.ModelProto,
    images: NDArray[np.generic] | Images,
    calibration: Calibration,
    target: Target = AVX2,
) -> Calibrated:
    """The ranges of the activations of `model` on raw `images` (N, C, H, W)."""
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()):
        source = Path(scratch) / "float.onnx"
        onnx.save(_named(prepare(model)), str(source))
        calibrator = create_calibrator(
            source,
            KINDS,
            str(Path(scratch) / "augmented.onnx"),
            METHODS[calibration.method],
            extra_options={"symmetric": False, "percentile": calibration.percentile},
        )
        for block in _blocks(model.graph.input[0].name, images):
            calibrator.collect_data(block)
        return Calibrated(load_model_with_shape_infer(source), calibrator.compute_data(), target)


def _named(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` with names for its nodes, by which the quantizer can be told to leave one out."""
    for i, node in enumerate(model.graph.node):
        node.name = f"n{i}"
    return model


class _Block(CalibrationDataReader):  # type: ignore[misc]
    """One batch for a calibrator."""

    def __init__(self, feed: dict[str, NDArray[np.float32]]) -> None:
        self._feeds = iter([feed])

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        return next(self._feeds, None)


def _blocks(name: str, images: NDArray[np.generic] | Images) -> Iterator[_Block]:
    for start in range(0, len(images), BATCH):
        yield _Block({name: images[start : start + BATCH].astype(np.float32)})
