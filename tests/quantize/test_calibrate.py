"""Calibration: rows are read when needed, once for all schemes, and memory does not grow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from tasks.core.tables import Table
from tasks.quantize.calibrate import BATCH, calibrate, calibration_rows
from tasks.quantize.layers import layers
from tasks.quantize.params import Calibration
from tasks.quantize.static import quantized, static

ROOT = Path(__file__).parents[2]
PEAKS = """
import json
from pathlib import Path
import numpy as np
from onnx import TensorProto, helper, numpy_helper
from tasks.core.tables import Table
from tasks.quantize.calibrate import calibrate, calibration_rows
from tasks.quantize.params import Calibration

def peak():  # of this process alone: ru_maxrss begins at what its parent took
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))

rng = np.random.default_rng(0)
images = rng.random((20_000, 1, 32, 32), np.float32)  # 82 MB, held before and after
table = Table(np.array([f"{i:064x}" for i in range(20_000)]), np.zeros(20_000, np.int64), images)
weight = rng.normal(size=(2, 1, 8, 8)).astype(np.float32)
graph = helper.make_graph(
    [helper.make_node("Conv", ["x", "w"], ["y"], strides=[8, 8], kernel_shape=[8, 8])], "g",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1, 32, 32])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2, 4, 4])],
    [numpy_helper.from_array(weight, "w")],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
peaks = {}
for count in (1_000, 20_000):
    for method in ("minmax", "percentile", "entropy"):
        calibrate(model, calibration_rows(table, count), Calibration(rows=count, method=method))
    peaks[count] = peak()
print(json.dumps(peaks))
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="peak memory is Linux's")
def test_memory_does_not_grow_with_the_rows() -> None:
    environment = {
        "PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", PEAKS], env=environment, capture_output=True, text=True, check=True
    )

    peaks = json.loads(done.stdout)

    assert peaks["20000"] <= 1.05 * peaks["1000"], peaks


def test_images_are_read_by_place_and_by_slice(train_rows: Table) -> None:
    images = calibration_rows(train_rows, 20)
    chosen = np.sort(np.argsort(train_rows.rows)[:20])

    assert np.array_equal(images[3:9], train_rows.images[chosen[3:9]])
    assert np.array_equal(images[19], train_rows.images[chosen[19]])
    assert len(list(images)) == 20


def test_an_array_and_rows_of_a_table_calibrate_alike(
    floats: onnx.ModelProto, train_rows: Table
) -> None:
    count = BATCH + 9
    images, calibration = calibration_rows(train_rows, count), Calibration(rows=count)

    assert static(floats, images, calibration) == static(floats, images[:], calibration)


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy"])
def test_one_calibration_serves_many_graphs(
    method: str, floats: onnx.ModelProto, train_rows: Table
) -> None:
    images = calibration_rows(train_rows, 64)
    calibration = Calibration.model_validate({"rows": 64, "method": method})
    shared = calibrate(floats, images, calibration)
    before = {name: shared.ranges[name].range_value for name in shared.ranges}

    for layer in layers(floats):
        quantized(shared, floating={layer.name})
    last = quantized(shared)

    assert last == static(floats, images, calibration)
    after = {name: shared.ranges[name].range_value for name in shared.ranges}
    assert after == before  # which the quantizer would write into
