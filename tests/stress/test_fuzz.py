"""Fuzz of the scoring function: whatever float32 comes in, it is declared invalid or answered."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tasks.core.session import open_session, score
from tasks.core.tables import Schema
from tasks.stress.edge_cases import legal

REFERENCE = (
    Path(__file__).parents[2] / "benchmarks/reference/standard/student/model.onnx"
)  # int8, as shipped
DATA = Schema(
    modality="vision", shape=(1, 28, 28), dtype="uint8", range=(0, 255), classes=tuple("0123456789")
)
INSIDE = st.floats(0, 255, width=32)
ANY = st.floats(width=32)  # NaN, infinities, -0 and subnormals too


def images(values: st.SearchStrategy[float], fill: st.SearchStrategy[float]) -> st.SearchStrategy:
    """Batches of one to three rows; most pixels of an example are one value."""
    shapes = st.integers(1, 3).map(lambda rows: (rows, *DATA.shape))
    return arrays(np.float32, shapes, elements=values, fill=fill)


@pytest.fixture(scope="module")
def session() -> ort.InferenceSession:
    return open_session(REFERENCE)


@given(batch=st.one_of(images(INSIDE, INSIDE), images(ANY, INSIDE), images(ANY, ANY)))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_any_float32_is_declared_invalid_or_gets_a_finite_answer_that_no_batch_changes(
    batch: np.ndarray, session: ort.InferenceSession
) -> None:
    logits, valid = score(session, batch, len(batch))
    alone, valid_alone = score(session, batch, 1)

    assert np.array_equal(valid, legal(batch, DATA))
    assert np.array_equal(valid, valid_alone)
    assert np.isfinite(logits[valid]).all()
    assert np.array_equal(logits[valid].view(np.uint32), alone[valid].view(np.uint32))
