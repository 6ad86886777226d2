"""What a comparison of chains comes to: `reports/plan.json`, its schema and the recommendation.

Direct distillation is given up only for a chain whose gain over it is significant on validation
rows. Takes right and wrong flags, trains nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import field_serializer

from tasks.core.params import Section
from tasks.core.reports import MAX_STEP
from tasks.core.statistics import clustered_bootstrap
from tasks.distill.params import Rung
from tasks.distill.propose import written

REPORT = Path("reports/plan.json")
PLOT = REPORT.with_suffix(".png")
CONFIDENCE = 0.975  # one-sided; two chains are set against direct, and share five in a hundred

Flags = NDArray[np.bool_]


class Gain(Section):
    """What a chain gains over direct distillation, as a share of rows, with one-sided bounds."""

    value: float
    low: float
    high: float


class Candidate(Section):
    """One chain: its rungs, what it costs for one training row, and how right each seed is.

    `links` names the rungs from the teacher down, and `parameters` is in that order.
    """

    name: str
    links: tuple[str, ...]
    rungs: dict[str, Rung]
    parameters: tuple[int, ...]
    flops: int
    arithmetic: str
    largest_step: float
    accuracy: tuple[float, ...]  # one per seed
    gain: Gain | None  # None for direct

    @field_serializer("rungs")
    def _as_written(self, rungs: dict[str, Rung]) -> dict[str, Any]:
        return written(rungs)

    @property
    def mean(self) -> float:
        """Over seeds."""
        return sum(self.accuracy) / len(self.accuracy)


class PlanReport(Section):
    """`reports/plan.json`. `recommended` is what the evidence says; `write` what `distill` would
    train, since it refuses a step of more than 10:1."""

    format: Literal["stillhouse/plan/1"] = "stillhouse/plan/1"
    student: str
    teacher: str  # SHA-256
    fingerprint: str
    seeds: int
    rows: int  # of validation
    confidence: float
    method: str
    chains: tuple[Candidate, ...]  # direct, assistant, dense
    recommended: str
    write: str | None
    why: str


def gains(right: Mapping[str, Flags]) -> dict[str, Gain]:
    """The gain of every chain but `direct` over it; flags (seeds, rows) by chain."""
    found = {}
    for name, flags in right.items():
        if name == "direct":
            continue
        difference = flags.astype(np.float64) - right["direct"]
        low, high = clustered_bootstrap(difference, confidence=CONFIDENCE)
        found[name] = Gain(value=float(difference.mean()), low=low, high=high)
    return found


def recommended(found: Mapping[str, Gain]) -> str:
    """The chain of the largest significant gain, else direct.

    >>> assistant = Gain(value=0.012, low=-0.001, high=0.025)
    >>> recommended({"assistant": assistant, "dense": Gain(value=0.011, low=0.004, high=0.018)})
    'dense'
    >>> recommended({"assistant": assistant})
    'direct'
    """
    significant = {name: gain.value for name, gain in found.items() if gain.low > 0}
    return max(significant, key=lambda name: significant[name]) if significant else "direct"


def writable(chosen: str, steps: Mapping[str, float]) -> str | None:
    """`chosen`, or the assistant's chain in the place of one with a step that is too large."""
    return next((n for n in (chosen, "assistant") if steps[n] <= MAX_STEP), None)


def why(chosen: str, found: Mapping[str, Gain], steps: Mapping[str, float], seeds: int) -> str:
    """The recommendation in a sentence or two."""
    each = "; ".join(
        f"{name} {100 * g.value:+.2f} points, between {100 * g.low:+.2f} and {100 * g.high:+.2f}"
        for name, g in found.items()
    )
    basis = f"({each}; {seeds} seeds, each bound at {100 * CONFIDENCE:g} %)"
    if chosen == "direct":
        said = f"direct distillation: no chain gains significantly over it at equal compute {basis}"
    else:
        said = f"the {chosen} chain: its gain over direct at equal compute is significant {basis}"
    if steps[chosen] <= MAX_STEP:
        return f"{said}."
    instead = writable(chosen, steps)
    remedy = (
        "the assistant's chain is what can be trained, at no gain that was shown"
        if instead
        else "it needs a larger student or one more rung"
    )
    return (
        f"{said}. Its step of {steps[chosen]:.1f}:1 was taken for the comparison alone: distill "
        f"refuses more than {MAX_STEP:.0f}:1, so {remedy}."
    )
