"""Where no candidate keeps to all goals: which goal binds, and how near a candidate comes. Goals
of time are shown with their margin, as they veto.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tasks.core.errors import GateError
from tasks.quantize.search import TOLERANCE, Candidate, Goals

OF: dict[str, Callable[[Candidate], float]] = {
    "accuracy_drop": lambda c: c.bound,
    "bytes": lambda c: c.bytes,
    "latency_ms_p95 x latency_margin": lambda c: c.latency_ms_p95,
    "latency_ms x latency_margin": lambda c: c.latency_ms,
}


def unreached(candidates: Sequence[Candidate], goals: Goals, budget_ms: float) -> str | None:
    """None if one of the `candidates` keeps to all goals and, in its median, to `budget_ms`; else
    one line on each goal that binds: it alone is missed by some candidate, the nearest of which is
    named. Where all miss two or more: the best that any reaches of each goal."""
    asked = (goals.accuracy_drop, goals.bytes, goals.p95_budget_ms, budget_ms)
    limits = {name: limit for name, limit in zip(OF, asked, strict=True) if limit is not None}
    sound = [c for c in candidates if c.batch_delta <= TOLERANCE]
    if not sound:
        return "the logits of every candidate depend on the other rows of a batch"
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
            said.append(f"{name} {limit:,.6g} binds: {_best(near, name, 'is nearest with')}")
    if said:
        return "; ".join(said)
    each = (
        f"{name} {limit:,.6g}: {_best(sound, name, 'reaches')}" for name, limit in limits.items()
    )
    return f"each misses two or more; {'; '.join(each)}"


def _best(candidates: Sequence[Candidate], name: str, verb: str) -> str:
    best = min(candidates, key=lambda c: (OF[name](c), c.scheme))
    return f"{best.scheme} {verb} {OF[name](best):,.6g}"


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
