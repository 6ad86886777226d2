"""Where no candidate keeps to all goals: which goal binds, and how near a candidate comes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict

from tasks.core.errors import GateError
from tasks.quantize.search import TOLERANCE, Candidate, Goals

OF: dict[str, Callable[[Candidate], float]] = {
    "accuracy_drop": lambda c: c.bound,
    "bytes": lambda c: c.bytes,
    "latency_ms_p95": lambda c: c.latency_ms_p95,
    "latency_ms": lambda c: c.latency_ms,
}


def unreached(candidates: Sequence[Candidate], goals: Goals, budget_ms: float) -> str | None:
    """None if one of the `candidates` keeps to all goals and, in its median, to `budget_ms`; else
    one line on each goal that binds: it alone is missed by some candidate, the nearest of which is
    named."""
    asked = {**asdict(goals), "latency_ms": budget_ms}
    limits = {name: limit for name, limit in asked.items() if limit is not None}
    sound = [c for c in candidates if c.batch_delta <= TOLERANCE]
    missed = {
        c.scheme: [name for name, limit in limits.items() if not OF[name](c) <= limit]
        for c in sound
    }
    if not all(missed.values()):
        return None
    said = []
    for name, limit in limits.items():
        near = [c for c in sound if missed[c.scheme] == [name]]
        if near:
            best = min(near, key=lambda c: (OF[name](c), c.scheme))
            reached = f"{best.scheme} is nearest with {OF[name](best):,.6g}"
            said.append(f"{name} {limit:,.6g} binds: {reached}")
    return "; ".join(said) or "no candidate keeps to all goals but one"


def check_goals(
    student: str, candidates: Sequence[Candidate], goals: Goals, budget_ms: float
) -> None:
    """A `GateError` if `bytes` or `latency_ms_p95` were asked for and no candidate keeps to all."""
    if goals.bytes is None and goals.latency_ms_p95 is None:
        return
    if found := unreached(candidates, goals, budget_ms):
        raise GateError(
            f"{student}: no candidate keeps to all goals of quantize ({found}); raise a goal, or "
            "add to quantize.schemes"
        )
