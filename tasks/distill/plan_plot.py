"""`plan.png`: the seeds' accuracies of each chain, and what it gains over direct distillation.

Readable in black and white; equal figures give equal bytes.
"""

from __future__ import annotations

import io

from matplotlib.figure import Figure

from tasks.distill.decision import PlanReport


def plan_png(report: PlanReport) -> bytes:
    """Left: a dot a seed and a bar at the mean. Right: the gain with its bounds, and zero."""
    figure = Figure(figsize=(8.0, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for place, chain in enumerate(report.chains):
        points = [100 * accuracy for accuracy in chain.accuracy]
        left.scatter([place] * len(points), points, facecolor="white", edgecolor="black", zorder=2)
        mean = 100 * chain.mean
        left.plot([place - 0.25, place + 0.25], [mean, mean], color="black", linewidth=2)
    left.set_xticks(range(len(report.chains)), [chain.name for chain in report.chains])
    left.margins(x=0.25, y=0.15)
    left.set_ylabel("accuracy on validation rows (%)")
    left.set_title(f"{report.student}: {report.seeds} seeds, equal compute", fontsize=10)
    gains = {chain.name: chain.gain for chain in report.chains if chain.gain is not None}
    for place, (name, gain) in enumerate(gains.items()):
        right.plot([100 * gain.low, 100 * gain.high], [place, place], color="0.5", linewidth=3)
        chosen = name == report.recommended
        right.scatter(
            [100 * gain.value],
            [place],
            s=120 if chosen else 50,
            marker="*" if chosen else "o",
            facecolor="black" if chosen else "white",
            edgecolor="black",
            zorder=2,
        )
    right.axvline(0.0, color="black", linestyle=":", linewidth=1)
    right.set_yticks(range(len(gains)), list(gains))
    right.margins(x=0.15, y=0.5)
    right.set_xlabel(f"points over direct; each bound at {100 * report.confidence:g} %")
    right.set_title(f"recommended: {report.recommended}", fontsize=10)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    return buffer.getvalue()
