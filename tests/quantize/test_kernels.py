"""ONNX Runtime's own kernels add pairs as the proof assumes, where this CPU saturates at all."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from tasks.core.cost import cpu
from tasks.core.session import open_session
from tasks.quantize.saturation import layers
from tests.quantize.pairs import conv, matmul, rounded, saturating

VNNI = {"avx512_vnni", "avx_vnni"}
ISA = set(cpu()["isa"])  # type: ignore[arg-type]
pairs_saturate = pytest.mark.skipif(
    "avx2" not in ISA or bool(VNNI & ISA),
    reason="this CPU does not add products in int16: it has VNNI, or is no x86 with AVX2",
)


@pairs_saturate
@pytest.mark.parametrize("rows", [1, 5])
def test_kernels_of_this_cpu_add_neighbours_along_k_in_int16(rows: int) -> None:
    """Whatever the weights, ONNX Runtime gives what the simulated pairs give."""
    rng = np.random.default_rng(0)
    weights = rng.integers(-127, 128, (23, 20)).astype(np.int8)
    x = rng.integers(128, 256, (rows, 23)).astype(np.uint8)

    (y,) = open_session(matmul(weights).SerializeToString()).run(None, {"x": x})

    expected = np.stack([saturating(row, weights.T) for row in x])
    assert np.array_equal(y, expected)
    assert not np.array_equal(y, x.astype(np.int64) @ weights)  # and that is not exact


@pairs_saturate
def test_a_convolution_pairs_channels_and_not_columns() -> None:
    """1 x 2 over two inputs: the heavy weights of the first output lie side by side in the file,
    those of the second in (height, width, channel)."""
    weights = np.zeros((2, 2, 1, 2), np.int8)
    weights[0, 0, 0, :], weights[1, :, 0, 0] = 127, 127

    x = np.full((1, 2, 4, 4), 255, np.float32)
    (y,) = open_session(conv(weights).SerializeToString()).run(None, {"x": x})

    assert (y[0, :, 0, 0] / 16384).tolist() == [round(64770 / 16384), round(32767 / 16384)]


@pairs_saturate
@pytest.mark.parametrize(("inputs", "outputs"), [(3, 5), (4, 16), (8, 24)])
def test_a_safe_convolution_is_exact_here_and_a_saturating_one_is_not(
    inputs: int, outputs: int
) -> None:
    """Odd sizes go through im2col, multiples of 4 inputs and 16 outputs through ConvSym."""
    rng = np.random.default_rng(1)
    floating = np.abs(rng.normal(size=(outputs, inputs, 3, 3))).astype(np.float32)
    safe, unsafe = rounded(floating), np.full((outputs, inputs, 3, 3), 127, np.int8)
    x = np.full((2, inputs, 4, 4), 255, np.float32)

    def answers(weights: NDArray[np.int8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        (y,) = open_session(conv(weights).SerializeToString()).run(None, {"x": x})
        sums = 255 * weights.astype(np.int64).sum(axis=(1, 2, 3))
        return y[:, :, 0, 0], (16384 * np.round(sums / 16384)).astype(np.float32)

    assert layers(conv(safe))[0].safe
    assert not layers(conv(unsafe))[0].safe
    y, exact = answers(safe)
    assert np.array_equal(y, np.broadcast_to(exact, y.shape))
    y, exact = answers(unsafe)
    assert (y < exact).all()
