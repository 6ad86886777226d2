"""`frontier.png`: bytes, and elsewhere time, against validation accuracy; `sensitivity.png`: what
each layer costs. All are readable in black and white. A star ships, a circle qualifies, an x does
not, and says why.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Mapping, Sequence

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
LETTER, LINE, MARK = 4.6, 12, 5  # points: a label's letter and line, and half a marker
SCALE = 72 / 100  # points in a pixel of a new figure
LEADER = {"arrowstyle": "-", "color": "0.6", "linewidth": 0.5, "relpos": (0, 0.5)}
SEEN = 1e-9  # KL in nats; what is below stands here, where the logarithm begins


def frontier_png(candidates: Sequence[Candidate], choice: Choice, accuracy_drop: float) -> bytes:
    """`frontier_figure` as a file, the same every time."""
    return _png(frontier_figure(candidates, choice, accuracy_drop))


def frontier_figure(
    candidates: Sequence[Candidate], choice: Choice, accuracy_drop: float
) -> Figure:
    """A bar under each candidate reaches down to what it may lose; below the line is refused. Right
    of the dashed line a file is larger than the goal; it is there if any comes near."""
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    _limit(axes, "bytes", choice.goals.bytes, [c.bytes for c in candidates], "--")
    _candidates(axes, candidates, choice, accuracy_drop, lambda c: c.bytes)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_xlabel("bytes of the file")
    return figure


def times_png(
    candidates: Sequence[Candidate], choice: Choice, accuracy_drop: float, budget_ms: float
) -> bytes:
    """`times_figure` as a file."""
    return _png(times_figure(candidates, choice, accuracy_drop, budget_ms))


def times_figure(
    candidates: Sequence[Candidate], choice: Choice, accuracy_drop: float, budget_ms: float
) -> Figure:
    """The same against time: a line to the right of each candidate reaches to its 95th percentile.
    Right of the dotted line the median is over its budget, right of the dashed one that percentile
    over its goal; a line is there if any comes near."""
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    for c in candidates:
        axes.plot([c.latency_ms, c.latency_ms_p95], [c.accuracy] * 2, color="0.6", zorder=1)
    tails = [c.latency_ms_p95 for c in candidates]
    _limit(axes, "median", budget_ms, tails, ":")
    _limit(axes, "95th percentile", choice.goals.p95_budget_ms, tails, "--")
    _candidates(axes, candidates, choice, accuracy_drop, lambda c: c.latency_ms)
    axes.set_xlabel("milliseconds for one row on one thread: median, and 95th percentile")
    return figure


def _limit(axes: Axes, what: str, limit: float | None, values: Sequence[float], style: str) -> None:
    """An upright line where more is a veto; none if all `values` are far below."""
    if limit is None or max(values) <= limit / 2:
        return
    axes.axvline(limit, color="black", linestyle=style, linewidth=1)
    axes.annotate(
        f"{what} allowed",
        (limit, 0.02),
        xycoords=("data", "axes fraction"),
        xytext=(-2, 0),
        textcoords="offset points",
        rotation=90,
        ha="right",
        va="bottom",
        fontsize=8,
    )


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
        why = choice.labels.get(c.scheme)
        within = not chosen and not why
        labels.setdefault((at, c.accuracy), []).append(f"{c.scheme}: {why}" if why else c.scheme)
        axes.plot([at] * 2, [floats - c.bound, c.accuracy], color="0.6", linewidth=2, zorder=1)
        axes.scatter(
            [at],
            [c.accuracy],
            s=120 if chosen else 50,
            zorder=4 if chosen else 3 if why else 2,
            marker="*" if chosen else "x" if why else "o",
            facecolor="white" if within else "black",
            edgecolor="black" if within else None,  # an x has none
        )
    axes.margins(x=0.2, y=0.4)
    axes.autoscale_view()
    _label(axes, labels)
    axes.set_ylabel("accuracy on validation rows")
    axes.set_title(f"chosen: {choice.chosen}", fontsize=10)


def _label(axes: Axes, labels: Mapping[tuple[float, float], list[str]]) -> None:
    """Names at their places, a line each: the nearest free room above or below takes them."""
    points = {place: SCALE * axes.transData.transform(place) for place in labels}
    taken = [(x - MARK, y - MARK, x + MARK, y + MARK) for x, y in points.values()]
    for place, names in sorted(labels.items()):
        x, y = points[place]
        width, height = LETTER * max(map(len, names)), LINE * len(names)
        for step in itertools.count():
            rise = MARK + step // 2 * LINE // 2
            up = rise if step % 2 == 0 else -rise - height
            box = (x + MARK, y + up, x + MARK + width, y + up + height)
            if not any(_covers(box, other) for other in taken):
                break
        taken.append(box)
        axes.annotate(
            "\n".join(sorted(names)),
            place,
            xytext=(MARK, up),
            textcoords="offset points",
            va="bottom",
            fontsize=8,
            arrowprops={**LEADER} if rise > MARK else None,
        )


def _covers(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Whether two boxes of left, bottom, right and top overlap."""
    return all(one[i] < other[i + 2] and other[i] < one[i + 2] for i in (0, 1))


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
