"""Mixtures: each layer in the lower precision that it can bear, or in a higher one.

`weights_mixed` stores the weights of a layer in int4 or int8; `mixed` makes a layer static int8 or
leaves it float. All layers start low. The one whose sensitivity per byte is largest goes up, until
the candidate qualifies (`search.refusal`, and the latency budget, which may only veto) or misses
`quantize.bytes` alone, as a layer that goes up adds bytes; then each that went up is tried low
again, the least sensitive first. Every candidate is measured as the file
that would ship. What was measured is kept, so that a killed search goes on where it was.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from pydantic import JsonValue, ValidationError

from tasks.core.checkpoint import code
from tasks.core.errors import DataError
from tasks.core.files import digest, read_json, write_json
from tasks.core.params import Section
from tasks.core.tables import Table
from tasks.quantize.calibrate import Calibrated
from tasks.quantize.search import Goals, latency, measure, refusal
from tasks.quantize.sensitivity import Sensitivity
from tasks.quantize.static import quantized
from tasks.quantize.weight_only import Bits, weight_only

Low = frozenset[str]
Kind = Literal["weights_mixed", "mixed"]
MIXTURES: tuple[Kind, ...] = ("weights_mixed", "mixed")
STATE = "search.json"


class Evaluated(Section):
    """A candidate: the layers in the higher precision, in the graph's order, and its measures.

    `accurate`: it is within accuracy_drop and sound; `settled`: it keeps to all but, at most,
    `quantize.bytes`; `qualifies`: to all.
    """

    high: tuple[str, ...]
    bytes: int
    accuracy: float
    bound: float
    latency_ms: float
    accurate: bool = False
    settled: bool = False
    qualifies: bool


class Trail(Section):
    """`search.json`: every candidate so far, of the search `key`, in the order of evaluation."""

    format: Literal["stillhouse/mixed-search/1"] = "stillhouse/mixed-search/1"
    key: str
    evaluated: tuple[Evaluated, ...] = ()


@dataclass(frozen=True)
class Mixture:
    """What a search found: the graph, its layers in the higher precision, and how many candidates
    were evaluated for it."""

    graph: onnx.ModelProto
    high: tuple[str, ...]
    evaluated: int

    def entry(self) -> dict[str, JsonValue]:
        """For `frontier.json`."""
        return {"high": list(self.high), "evaluated": self.evaluated}


@dataclass(frozen=True)
class Bounds:
    """When a candidate qualifies: on `val`, against the logits `floats` of the float32 file there,
    by `goals`, and by the budget of its median latency in milliseconds."""

    val: Table
    floats: NDArray[np.float32]
    goals: Goals
    budget_ms: float


def mixture(
    scheme: Kind,
    floats: onnx.ModelProto,
    calibrated: Calibrated,
    found: Sequence[Sensitivity],
    bounds: Bounds,
    finished: Callable[[onnx.ModelProto], bytes],
    folder: Path,
    about: Mapping[str, Any],
) -> Mixture:
    """The mixture of `floats` that qualifies in the fewest bytes that the search came by; if none
    does, the smallest that is accurate, or all layers high. `finished` makes a graph the file that
    ships. The state lies in `folder`; it is of this search only if graphs, rows, bounds, code and
    `about` are the same."""
    names = [one.layer for one in found]

    def graph(high: Low) -> onnx.ModelProto:
        if scheme == "mixed":
            return quantized(calibrated, floating=high) if len(high) < len(names) else floats
        bits: dict[str, Bits] = {name: 8 if name in high else 4 for name in names}
        return weight_only(floats, bits)

    def evaluate(high: Low) -> Evaluated:
        content = finished(graph(high))
        times = latency(content, bounds.val)
        candidate = measure(scheme, content, bounds.val, bounds.floats, times)
        accurate = refusal(candidate, replace(bounds.goals, bytes=None)) is None
        settled = accurate and not bounds.goals.slow(candidate, bounds.budget_ms)
        return Evaluated(
            high=tuple(name for name in names if name in high),
            bytes=candidate.bytes,
            accuracy=candidate.accuracy,
            bound=candidate.bound,
            latency_ms=candidate.latency_ms,
            accurate=accurate,
            settled=settled,
            qualifies=settled and refusal(candidate, bounds.goals) is None,
        )

    order = by_sensitivity(scheme, found)
    ends = (graph(frozenset()), graph(frozenset(names)))
    key = digest(
        {
            **about,
            "scheme": scheme,
            "order": order,
            "graphs": [hashlib.sha256(finished(end)).hexdigest() for end in ends],
            "val": hashlib.sha256(
                "".join(bounds.val.rows.tolist()).encode() + bounds.val.labels.tobytes()
            ).hexdigest(),
            "bounds": [asdict(bounds.goals), bounds.budget_ms],
            "code": list(code()),
        }
    )
    high, evaluated = search(order, evaluate, folder / STATE, key)
    return Mixture(graph(high), tuple(name for name in names if name in high), evaluated)


def by_sensitivity(scheme: Kind, found: Sequence[Sensitivity]) -> list[str]:
    """The layers, those first that lose most per byte in the lower precision.

    In a scheme the bytes that a layer saves are its number of weights times the same number.
    """

    def gain(one: Sensitivity) -> float:
        if scheme == "mixed":
            return one.costs["static"].kl / one.weights
        return (one.costs["weights4"].kl - one.costs["weights8"].kl) / one.weights

    return [one.layer for one in sorted(found, key=gain, reverse=True)]


def search(
    order: Sequence[str], evaluate: Callable[[Low], Evaluated], path: Path, key: str
) -> tuple[Low, int]:
    """The layers in the higher precision, and how many candidates were evaluated to find them.

    `order`: every layer, the one first that is to go up first. What `path` holds of the search
    `key` is not evaluated again. Where nothing qualifies: the smallest accurate candidate of those
    evaluated, else the last.
    """
    trail = {frozenset(one.high): one for one in read_trail(path, key)}

    def evaluated(high: Low) -> Evaluated:
        if high not in trail:
            trail[high] = evaluate(high)
            write_json(
                path, Trail(key=key, evaluated=tuple(trail.values())).model_dump(mode="json")
            )
        return trail[high]

    high: Low = frozenset()
    risen: list[str] = []
    for layer in order:
        if evaluated(high).settled:
            break
        high, risen = high | {layer}, [*risen, layer]
    if evaluated(high).settled:
        for layer in reversed(risen):
            tried = evaluated(high - {layer})
            if tried.settled and tried.bytes < evaluated(high).bytes:
                high -= {layer}
    if not evaluated(high).qualifies:
        accurate = [one for one in trail.values() if one.accurate]
        high = frozenset(min(accurate, key=lambda one: one.bytes).high) if accurate else high
    return high, len(trail)


def read_trail(path: Path, key: str) -> tuple[Evaluated, ...]:
    """The candidates that `path` holds of the search `key`; none of another search."""
    if not path.is_file():
        return ()
    try:
        trail = Trail.model_validate(read_json(path))
    except (DataError, ValidationError):
        raise DataError(
            f"{path}: truncated or changed since it was written; delete {path.parent}; the search "
            "then begins anew"
        ) from None
    return trail.evaluated if trail.key == key else ()
