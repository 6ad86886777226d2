"""`frontier.png`: bytes against validation accuracy, readable in black and white."""

from __future__ import annotations

import io
from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from tasks.quantize.search import REFERENCE, Candidate, Choice


def frontier_png(candidates: Sequence[Candidate], choice: Choice, accuracy_drop: float) -> bytes:
    """A bar under each candidate reaches down to what it may lose; below the line is refused."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
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
    labels: dict[tuple[int, float], list[str]] = {}
    for c in candidates:
        chosen = c.scheme == choice.chosen
        labels.setdefault((c.bytes, c.accuracy), []).append(c.scheme)
        axes.plot([c.bytes] * 2, [floats - c.bound, c.accuracy], color="0.6", linewidth=2, zorder=1)
        axes.scatter(
            [c.bytes],
            [c.accuracy],
            s=120 if chosen else 50,
            zorder=3 if chosen else 2,
            marker="*" if chosen else "o",
            facecolor="black" if chosen else "white",
            edgecolor="black",
        )
    for place, names in labels.items():
        axes.annotate(
            ", ".join(sorted(names)), place, xytext=(7, 6), textcoords="offset points", fontsize=9
        )
    axes.margins(0.2)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_xlabel("bytes of the file")
    axes.set_ylabel("accuracy on validation rows")
    axes.set_title(f"chosen: {choice.chosen}", fontsize=10)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    return buffer.getvalue()
