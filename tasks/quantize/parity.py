"""Parity: the same student in torch, as float ONNX, as shipped, and as its twin says the same.

Each check is a gate that `judge` may take over; rows are validation and training rows only.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from pydantic import JsonValue
from torch import nn

from tasks.core.reports import Gate, at_least, at_most
from tasks.core.session import open_session, score
from tasks.core.twin import Twin
from tasks.modalities.vision.scorers import network_scorer

Logits = NDArray[np.float32]
EXPORT = 1e-4  # logits: torch and ONNX Runtime order their sums differently
SAME = 1e-4  # logits: threads and batches
AGREEMENT = 0.999  # of argmax: int8 kernels may round a tie the other way


def parity(
    net: nn.Module,
    temperature: float,
    floats: bytes,
    shipped: bytes,
    images: NDArray[np.generic],
) -> dict[str, JsonValue]:
    """`parity.json` of the float `net`, its float32 file and the shipped file on raw `images`.

    Both files divide the logits of `net` by `temperature`.
    """
    session = open_session(shipped)
    ours = score(session, images)[0]
    torch_logits = network_scorer(net)(images) / np.float32(temperature)
    onnx_logits = score(open_session(floats), images)[0]
    twin = Twin(onnx.load_from_string(shipped))
    twin_logits = network_scorer(twin)(images)
    plain = score(open_session(shipped, optimise=False), images)[0]
    gates = [
        at_most(
            "export",
            delta(torch_logits, onnx_logits),
            EXPORT,
            "largest difference of a logit between torch and the float ONNX file",
        ),
        at_least(
            "export_agreement",
            agreement(torch_logits, onnx_logits),
            1.0,
            "share of rows on which torch and the float ONNX file agree",
        ),
        at_least(
            "twin",
            agreement(twin_logits, ours),
            AGREEMENT,
            "share of rows on which the twin and the shipped file agree",
        ),
        at_least(
            "optimisation",
            agreement(plain, ours),
            AGREEMENT,
            "share of rows on which the shipped file agrees with itself, optimised or not",
        ),
        at_most(
            "threads",
            delta(score(open_session(shipped, threads=2), images)[0], ours),
            SAME,
            "largest difference of a logit between one thread and two",
        ),
        at_most(
            "batch",
            delta(score(session, images, batch=1)[0], score(session, images, batch=64)[0]),
            SAME,
            "largest difference of a logit between batch 1 and batch 64",
        ),
    ]
    return _report(
        gates,
        len(images),
        {
            "twin": delta(twin_logits, ours),
            "optimisation": delta(plain, ours),
        },
    )


def delta(a: Logits, b: Logits) -> float:
    """Largest absolute difference of two logit matrices."""
    return float(np.abs(a - b).max())


def agreement(a: Logits, b: Logits) -> float:
    """Share of rows with the same argmax."""
    return float((a.argmax(1) == b.argmax(1)).mean())


def _report(gates: list[Gate], rows: int, deltas: Mapping[str, float]) -> dict[str, JsonValue]:
    return {
        "format": "stillhouse/parity/1",
        "rows": rows,
        "passed": all(gate.passed for gate in gates),
        "gates": [gate.model_dump(mode="json") for gate in gates],
        "largest_difference": dict(deltas),
    }
