"""`frontier.png`: bytes, and elsewhere time, against validation accuracy; `sensitivity.png`: what
each layer costs. All are readable in black and white.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from tasks.quantize.search import REFERENCE, Candidate, Choice
from tasks.quantize.sensitivity import Sensitivity

MARKS = {  # of a way to quantize a layer: marker and filling
    "static": ("s", "black", "int8 weights and activations"),
    "weights8": ("o", "white", "int8 weights"),
    "weights4": ("^", "0.6", "int4 weights"),
}
NEAR = 0.15  # of the width: labels closer than that would cover each other
SEEN = 1e-9  # KL in nats; what is below stands here, where the logarithm begins


def frontier_png(candidates: Sequence[Candidate], choice: Choice, accuracy_drop: float) -> bytes:
    """A bar under each candidate reaches down to what it may lose; below the line is refused."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    _candidates(axes, candidates, choice, accuracy_drop, lambda c: c.bytes)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_xlabel("bytes of the file")
    return _png(figure)


def times_png(
    candidates: Sequence[Candidate], choice: Choice, accuracy_drop: float, budget_ms: float
) -> bytes:
    """The same against time: a line to the right of each candidate reaches to its 95th percentile.
    Right of the upright line the median is over its budget; the line is there if any comes near."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    for c in candidates:
        axes.plot([c.latency_ms, c.latency_ms_p95], [c.accuracy] * 2, color="0.6", zorder=1)
    _candidates(axes, candidates, choice, accuracy_drop, lambda c: c.latency_ms)
    if max(c.latency_ms_p95 for c in candidates) > budget_ms / 2:
        axes.axvline(budget_ms, color="black", linestyle=":", linewidth=1)
    axes.set_xlabel("milliseconds for one row on one thread: median, and 95th percentile")
    return _png(figure)


def _candidates(
    axes: Axes,
    candidates: Sequence[Candidate],
    choice: Choice,
    accuracy_drop: float,
    across: Callable[[Candidate], float],
) -> None:
    """Every candidate at its accuracy on validation rows, by what `across` says of it."""
    floats = next(c.accuracy for c in candidates if c.scheme == REFERENCE)
    axes.axhline(floats - accuracy_drop, color="black", linestyle=":", linewidth=1)
    axes.annotate(
        "allowed",
        (0.99, floats - accuracy_drop),
        xycoords=("axes fraction", "data"),
        ha="right",
        va="bottom",
        fontsize=8,
    )
    labels: dict[tuple[float, float], list[str]] = {}
    for c in candidates:
        chosen, at = c.scheme == choice.chosen, across(c)
        labels.setdefault((at, c.accuracy), []).append(c.scheme)
        axes.plot([at] * 2, [floats - c.bound, c.accuracy], color="0.6", linewidth=2, zorder=1)
        axes.scatter(
            [at],
            [c.accuracy],
            s=120 if chosen else 50,
            zorder=3 if chosen else 2,
            marker="*" if chosen else "o",
            facecolor="black" if chosen else "white",
            edgecolor="black",
        )
    span = max(at for at, _ in labels) - min(at for at, _ in labels)
    above, before = 0, -math.inf
    for place, names in sorted(labels.items()):
        above = above + 1 if place[0] - before < NEAR * span else 0
        before = place[0]
        axes.annotate(
            ", ".join(sorted(names)),
            place,
            xytext=(5, 6 + 12 * above),  # neighbours' labels stand above each other
            textcoords="offset points",
            fontsize=8,
        )
    axes.margins(x=0.2, y=0.3)
    axes.set_ylabel("accuracy on validation rows")
    axes.set_title(f"chosen: {choice.chosen}", fontsize=10)


def sensitivity_png(found: Sequence[Sensitivity]) -> bytes:
    """A row for each layer, in the order of the graph; the further right, the dearer."""
    figure = Figure(figsize=(6.4, 1.6 + 0.3 * len(found)), layout="constrained")
    axes = figure.subplots()
    for way, (marker, filling, label) in MARKS.items():
        axes.scatter(
            [max(one.costs[way].kl, SEEN) for one in found],
            range(len(found)),
            marker=marker,
            facecolor=filling,
            edgecolor="black",
            label=label,
            zorder=2,
        )
    axes.set_yticks(range(len(found)), [one.layer for one in found], fontsize=8)
    axes.set_ylim(max(len(found), 1) - 0.5, -0.5)
    axes.grid(axis="y", color="0.85", zorder=0)
    if found:
        axes.set_xscale("log")
    axes.set_xlabel("mean KL from the float student's probabilities, in nats, validation rows")
    figure.legend(loc="outside upper center", ncols=3, fontsize=8, frameon=False)
    return _png(figure)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    return buffer.getvalue()
