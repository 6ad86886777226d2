"""What a model takes to run: latency in turn, load time and memory in a process of its own."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tasks.core.errors import DataError
from tasks.judge.case import Case
from tasks.judge.runtime import alone, quietest, runtimes


def wide(path: Path, columns: int) -> Path:
    """A file whose one weight is (64, `columns`) float32."""
    weight = np.random.default_rng(0).normal(size=(64, columns)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["input"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weight"], ["wide"]),
            helper.make_node("ReduceSum", ["wide", "axes"], ["logits"]),
        ],
        "wide",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 1])],
        [
            numpy_helper.from_array(weight, "weight"),
            numpy_helper.from_array(np.array([1]), "axes"),
        ],
    )
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), str(path))
    return path


def test_latency_takes_the_quietest_of_the_rounds() -> None:
    times = quietest({"slow": lambda: time.sleep(0.002), "fast": lambda: None})

    assert times["slow"].p95 >= times["slow"].p50 >= 2.0
    assert times["fast"].p50 < times["slow"].p50


def test_every_model_is_run_by_one_row_and_by_many(world: Path, case: Case) -> None:
    found = runtimes("student", case.teacher_spec, case.test.images[:5])

    assert list(found) == ["teacher", "float_student", "student"]
    assert found["teacher"].bytes == case.teacher_spec.bytes
    assert found["student"].bytes == (world / "ship/student/model.onnx").stat().st_size
    for runtime in found.values():
        assert runtime.load_ms > 0
        assert min(runtime.one.p50, runtime.many.p50) > 0  # a loaded machine decides which is more
        assert runtime.rows_per_second == pytest.approx(64_000 / runtime.many.p50, rel=1e-3)


def test_memory_is_that_of_the_model(tmp_path: Path) -> None:
    images = np.zeros((1, 1, 8, 8), np.float32)
    _, small = alone(wide(tmp_path / "small.onnx", 1), images)
    _, large = alone(wide(tmp_path / "large.onnx", 200_000), images)

    assert small is not None
    assert large is not None
    assert large - small > 51  # MB: the weight's 51.2 MB, at least once


def test_a_model_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"none")
    with pytest.raises(DataError, match=r"model.onnx: cannot be loaded by a process of its own"):
        alone(tmp_path / "model.onnx", np.zeros((1, 1, 8, 8), np.float32))
