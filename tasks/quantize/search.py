"""The search: every candidate is measured on its final file, and the fewest bytes that qualify win.

A candidate qualifies if the bound of its loss of accuracy against the float student, on validation
rows, is within the limit, and a row's logits do not depend on its batch. Time ranks nothing: a
budget may veto. Test rows are never seen here.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from tasks.core.cost import latency_ms
from tasks.core.metrics import correct
from tasks.core.session import open_session, score
from tasks.core.statistics import tango_upper
from tasks.core.tables import Table
from tasks.quantize.export import INPUT

REFERENCE = "float32"
CONFIDENCE = 0.95  # one-sided, of the bound
TOLERANCE = 1e-4  # in logits: what floating point may explain
BATCHED = 256  # rows scored one by one and together
SHOWN = ("scheme", "bytes", "accuracy", "lost", "gained", "bound", "agreement", "batch_delta")
TIMES = ("latency_ms", "latency_ms_p95")


@dataclass(frozen=True)
class Candidate:
    """A final file on `rows` validation rows, against the float student.

    `lost`: rows that only the float student has right; `gained`: the reverse; `bound`: the upper
    bound of (lost - gained) / rows; `batch_delta`: the largest change of a logit between batch 1
    and 64; `latency_ms` and `latency_ms_p95`: the measured median and 95th percentile, which are
    written under `measured` only.
    """

    scheme: str
    bytes: int
    rows: int
    accuracy: float
    lost: int
    gained: int
    bound: float
    agreement: float
    batch_delta: float
    latency_ms: float
    latency_ms_p95: float


@dataclass(frozen=True)
class Goals:
    """What a candidate must keep to. `accuracy_drop`: the bound of its loss; `bytes` of its file
    and `latency_ms_p95` of one row on one thread, None where not asked for; above
    `latency_margin` times the latter is a veto."""

    accuracy_drop: float
    bytes: int | None = None
    latency_ms_p95: float | None = None
    latency_margin: float = 1.0

    @property
    def p95_budget_ms(self) -> float | None:
        """What the 95th percentile may take before it is a veto; None where not asked for."""
        return None if self.latency_ms_p95 is None else self.latency_ms_p95 * self.latency_margin

    def slow(self, c: Candidate, budget_ms: float) -> bool:
        """Whether the times of `c` are a veto; `budget_ms` is for its median, with its margin."""
        limit = self.p95_budget_ms
        return c.latency_ms > budget_ms or (limit is not None and c.latency_ms_p95 > limit)


@dataclass(frozen=True)
class Refusal:
    """Why a candidate does not qualify: `label` in a word or two, `reason` in a sentence."""

    label: str
    reason: str


SLOW = Refusal("too slow", "over a latency budget (see measured/)")


@dataclass(frozen=True)
class Choice:
    """The scheme chosen by `goals`, one sentence on it, and a sentence on every candidate;
    `labels`: of those that do not qualify alone, why, in a word or two."""

    chosen: str
    why: str
    reasons: dict[str, str]
    vetoed: tuple[str, ...]
    labels: dict[str, str]
    goals: Goals


def measure(
    scheme: str, content: bytes, val: Table, floats: NDArray[np.float32], times: Mapping[str, float]
) -> Candidate:
    """Score the file `content` on `val`; `floats` are the logits of the float32 file there,
    `times` its `latency`."""
    session = open_session(content)
    logits, _ = score(session, val.images)
    right, reference = correct(logits, val.labels), correct(floats, val.labels)
    lost, gained = int((reference & ~right).sum()), int((right & ~reference).sum())
    few = val.images[:BATCHED]
    delta = np.abs(score(session, few, batch=1)[0] - score(session, few, batch=64)[0]).max()
    return Candidate(
        scheme=scheme,
        bytes=len(content),
        rows=len(val),
        accuracy=float(right.mean()),
        lost=lost,
        gained=gained,
        # The reference is the float student: it loses nothing to itself, by identity.
        bound=0.0 if scheme == REFERENCE else tango_upper(lost, gained, len(val), CONFIDENCE),
        agreement=float((logits.argmax(1) == floats.argmax(1)).mean()),
        batch_delta=round(float(delta), 6),
        latency_ms=times["p50"],
        latency_ms_p95=times["p95"],
    )


def choose(candidates: Sequence[Candidate], goals: Goals, budget_ms: float) -> Choice:
    """The qualifying candidate of the fewest bytes; ties by accuracy, then by name.

    If none qualifies the float student itself is chosen, and `why` says so. A candidate above
    `budget_ms` is vetoed.
    """
    slow = {c.scheme for c in candidates if goals.slow(c, budget_ms)}
    out = {
        c.scheme: found
        for c in candidates
        if (found := refusal(c, goals) or (SLOW if c.scheme in slow else None))
    }
    order = sorted(candidates, key=lambda c: (c.bytes, -c.accuracy, c.scheme))
    fit = [c for c in order if c.scheme not in out]
    best = fit[0] if fit else next(c for c in order if c.scheme == REFERENCE)
    reasons = {
        c.scheme: out[c.scheme].reason if c.scheme in out else _behind(c, best) for c in order
    }
    if fit:
        reasons[best.scheme] = why = (
            f"{best.scheme}: the fewest bytes ({best.bytes:,}) of the candidates that qualify; it "
            f"loses at most {_points(best.bound)} points against the float student, "
            f"{_points(goals.accuracy_drop)} are allowed"
        )
    else:
        reasons[best.scheme] = why = (
            f"{best.scheme}: no candidate qualifies, so the float student ships as it is"
        )
    smaller = [c for c in order if order.index(c) < order.index(best)]
    if smaller:
        why += f". The next smaller, {smaller[-1].scheme}: {reasons[smaller[-1].scheme]}"
    labels = {scheme: found.label for scheme, found in out.items()}
    return Choice(best.scheme, why + ".", reasons, tuple(sorted(slow)), labels, goals)


def latency(content: bytes, val: Table) -> dict[str, float]:
    """Milliseconds of one row on one thread."""
    session, row = open_session(content), val.images[:1].astype(np.float32)
    return latency_ms(lambda: session.run(None, {INPUT: row}))


def frontier(
    student: str,
    candidates: Sequence[Candidate],
    choice: Choice,
    accuracy_drop: float,
    left_out: Mapping[str, str] | None = None,
    mixtures: Mapping[str, JsonValue] | None = None,
) -> dict[str, JsonValue]:
    """`frontier.json`: every candidate, losers included, and why this one. No times.

    `left_out`: why there is no candidate of a scheme; `mixtures`: which layers of a mixed one are
    in the higher precision.
    """
    return {
        "format": "stillhouse/frontier/1",
        "student": student,
        "rows": candidates[0].rows,
        "confidence": CONFIDENCE,
        "accuracy_drop": accuracy_drop,
        "chosen": choice.chosen,
        "why": choice.why,
        "candidates": [*_entries(candidates, choice)],
        "left_out": dict(left_out or {}),
        "mixtures": dict(mixtures or {}),
    }


def frontier_csv(
    candidates: Sequence[Candidate], choice: Choice, times: tuple[str, ...] = ()
) -> bytes:
    """`frontier.csv`: the candidates of `frontier.json`, one a line; with `times`, which stand
    under `measured` alone."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [*SHOWN, *times, "chosen", "reason"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(_entries(candidates, choice, times))
    return text.getvalue().encode()


def _entries(
    candidates: Sequence[Candidate], choice: Choice, times: tuple[str, ...] = ()
) -> Iterator[dict[str, JsonValue]]:
    """The candidates, smallest first."""
    for c in sorted(candidates, key=lambda c: (c.bytes, c.scheme)):
        yield {
            **{name: getattr(c, name) for name in (*SHOWN, *times)},
            "chosen": c.scheme == choice.chosen,
            "reason": choice.reasons[c.scheme],
        }


def refusal(c: Candidate, goals: Goals) -> Refusal | None:
    """Why `c` does not qualify, time apart; None if it does."""
    if not c.batch_delta <= TOLERANCE:
        return Refusal(
            "batch",
            f"refused: the logits of a row change by up to {c.batch_delta:.2g} with the other "
            "rows of its batch",
        )
    if not c.bound <= goals.accuracy_drop:
        return Refusal(
            "accuracy",
            f"refused: it may lose {_points(c.bound)} points against the float student (upper "
            f"bound; {c.lost} lost, {c.gained} gained of {c.rows} rows), "
            f"{_points(goals.accuracy_drop)} are allowed",
        )
    if goals.bytes is not None and c.bytes > goals.bytes:
        return Refusal(
            "too large", f"refused: {c.bytes:,} bytes, and quantize.bytes allows {goals.bytes:,}"
        )
    return None


def _behind(c: Candidate, best: Candidate) -> str:
    if c.bytes > best.bytes:
        return f"qualifies, and is {c.bytes - best.bytes:,} bytes larger than {best.scheme}"
    return f"qualifies with the bytes of {best.scheme}, which is no less accurate"


def _points(share: float) -> str:
    return f"{100 * share:.2f}"
