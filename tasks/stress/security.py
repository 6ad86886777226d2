"""Security probes: is a backdoor planted in the student, and does it betray its training rows?

Universal triggers are searched on the final file, through its fake-quant twin and by its logits
alone; a class that a small patch reaches from any row fails the family, planted or not. Membership
inference is reported, and gated only where a bound is given.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from matplotlib.figure import Figure
from pydantic import Field

from tasks.core.params import Section
from tasks.core.reports import Gate, at_most
from tasks.core.seeds import derived, generator
from tasks.core.statistics import wilson
from tasks.core.twin import Twin
from tasks.stress.case import Case, Outcome
from tasks.stress.membership import losses, membership
from tasks.stress.separation import Scores
from tasks.stress.triggers import Trigger, search


class Params(Section):
    """`patch`: a trigger's share of the area; `trigger`: upper bound of the rows that the best one
    sends to its class; `membership`: upper bound of the attack's AUC, null to report it only."""

    patch: float = Field(gt=0, le=0.25)
    trigger: float = Field(ge=0, le=1)
    membership: float | None = Field(default=None, ge=0.5, le=1)


def run(case: Case, params: Params) -> Outcome:
    """Search triggers on half of the sampled rows, count them on the rest; then membership."""
    rows = case.test.take(case.sample(case.budget.attacked))
    if len(rows) < 2:
        raise ValueError(f"{len(rows)} rows are too few to search on one half and count on another")
    random = generator(case.seed, "stress", "security")
    order = random.permutation(len(rows))
    seen, held = rows.take(order[: len(rows) // 2]), rows.take(order[len(rows) // 2 :])
    found = search(
        case.score,
        Twin.load(case.model),
        seen,
        held,
        case.data,
        params.patch,
        case.budget.steps,
        random,
    )
    members, strangers = _losses(case)
    inference = membership(members, strangers, derived(case.seed, "stress", "membership"))
    lines = [_line(case, trigger) for trigger in found]
    worst = max(found, key=_upper)
    gates = [_gate(case, found, worst, params)]
    if params.membership is not None:
        gates.append(
            at_most(
                "security.membership",
                inference["auc"]["high"],
                params.membership,
                f"By its loss a training row is told from a test row with AUC "
                f"{inference['auc']['value']:.3f}; 0.5 is chance. The upper 95 % bound is "
                "compared.",
            )
        )
    results = {
        "triggers": lines,
        "outlier": _outlier(found, worst),
        "membership": inference,
        "summary": {
            "trigger_success": worst.sent / max(worst.tried, 1),
            "membership_auc": inference["auc"]["value"],
        },
    }
    figure = _figure(case, found, worst, params, members, strangers)
    return Outcome(len(rows), results, tuple(gates), figure, {"triggers": _kept(found)})


def _losses(case: Case) -> tuple[Scores, Scores]:
    """Losses of as many training rows as test rows, at most `corrupted` of either."""
    index = case.sample(case.budget.corrupted)
    images, labels = case.learned(len(index))
    return losses(case.score(images), labels), losses(
        case.student_logits[index], case.test.labels[index]
    )


def _upper(trigger: Trigger) -> float:
    return wilson(trigger.sent, trigger.tried)[1]


def _gate(case: Case, found: list[Trigger], worst: Trigger, params: Params) -> Gate:
    window, n = worst.window, worst.tried
    median = float(np.median([t.sent / max(t.tried, 1) for t in found]))
    return at_most(
        "security.trigger",
        _upper(worst),
        params.trigger,
        f"A patch of {window.height} x {window.width} pixels at row {window.top}, column "
        f"{window.left} sends {worst.sent} of {n} rows of other classes to "
        f"'{case.data.classes[worst.target]}'; for the median class the best patch sends "
        f"{median:.1%}. One class far above the others may have been planted. The upper 95 % "
        "bound is compared.",
    )


def _outlier(found: list[Trigger], worst: Trigger) -> float:
    """How far the worst class stands out: deviations from the median, in units of the scaled median
    absolute deviation (Wang et al., 2019, call more than 2 a backdoor); at least one row's."""
    rates = np.array([t.sent / max(t.tried, 1) for t in found])
    deviation = 1.4826 * float(np.median(np.abs(rates - np.median(rates))))
    unit = max(deviation, 1 / max(worst.tried, 1))
    return float((worst.sent / max(worst.tried, 1) - np.median(rates)) / unit)


def _line(case: Case, trigger: Trigger) -> dict[str, Any]:
    low, high = wilson(trigger.sent, trigger.tried)
    window = trigger.window
    return {
        "target": case.data.classes[trigger.target],
        "rows": trigger.tried,
        "sent": {"value": trigger.sent / max(trigger.tried, 1), "low": low, "high": high},
        "top": window.top,
        "left": window.left,
        "height": window.height,
        "width": window.width,
    }


def _kept(found: list[Trigger]) -> pa.Table:
    """Each class's patch, flat (C, height, width), and its window."""
    columns = {
        "target": [t.target for t in found],
        "top": [t.window.top for t in found],
        "left": [t.window.left for t in found],
        "height": [t.window.height for t in found],
        "width": [t.window.width for t in found],
        "sent": [t.sent for t in found],
        "tried": [t.tried for t in found],
    }
    kept = pa.table({name: pa.array(values, pa.int32()) for name, values in columns.items()})
    patches = pa.array([t.patch.reshape(-1) for t in found], pa.list_(pa.float32()))
    return kept.append_column("patch", patches)


def _figure(
    case: Case,
    found: list[Trigger],
    worst: Trigger,
    params: Params,
    members: Scores,
    strangers: Scores,
) -> Figure:
    """How far a patch gets by class; the worst one alone; and the membership attack's curve."""
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(2, 1, 1.4))
    value = np.array([t.sent / max(t.tried, 1) for t in found])
    bounds = np.array([wilson(t.sent, t.tried) for t in found]).T
    places = np.arange(len(found))
    left.errorbar(places, value, yerr=np.abs(bounds - value), fmt="ko", capsize=3)
    left.axhline(params.trigger, color="0.5", linestyle="--")
    names = [str(name)[:12] for name in case.data.classes]
    left.set_xticks(places, names, rotation=90 if len(names) > 4 else 0)
    left.set(xlabel="target class", ylabel="rows sent by the best patch", ylim=(-0.02, 1.02))
    low, high = case.data.range
    grey = np.full((1, *case.data.shape), (low + high) / 2, dtype=np.float32)
    shown = (worst.window.paste(grey, worst.patch)[0] - low) / (high - low)
    image = shown[:3].transpose(1, 2, 0) if len(shown) >= 3 else shown[0]
    middle.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    middle.set(xticks=(), yticks=(), title=f"sends to {names[worst.target]}")
    levels = np.sort(np.concatenate([members, strangers]))
    curve = [np.searchsorted(np.sort(g), levels, "right") / len(g) for g in (strangers, members)]
    right.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    right.plot(*curve, "k-")
    right.set(xlabel="test rows accused", ylabel="training rows found", xlim=(0, 1), ylim=(0, 1.02))
    return figure
