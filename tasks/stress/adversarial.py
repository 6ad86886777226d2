"""Adversarial robustness in L-infinity and L2: the worst case per row, as the ONNX session has it.

`ladder` attacks each row that is right when clean, and the teacher likewise, so that both are
compared row by row; `profiles` judges, and ends the sample early where its looks allow it. Whether
little damage means robustness or blind attacks is asked by `masking`, always.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import numpy as np
from matplotlib.figure import Figure
from pydantic import Field, model_validator
from torch import nn

from tasks.core.metrics import correct
from tasks.core.progress import tracked
from tasks.core.tables import Table
from tasks.core.twin import Twin
from tasks.stress.budget import BUDGETS
from tasks.stress.case import Case, Outcome, rate
from tasks.stress.curve import Curve, joined
from tasks.stress.kept import kept_examples, rescore
from tasks.stress.ladder import SQUARE, Fallen, Plan, descend, teacher_falls
from tasks.stress.masking import masking
from tasks.stress.profiles import SMALL, Profile, gates, settled


class Params(Profile):
    """Epsilons: shares of the range in L-infinity; in L2 lengths of an image scaled to 0..1."""

    linf: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(min_length=1)
    l2: tuple[Annotated[float, Field(gt=0)], ...]

    @model_validator(mode="after")
    def _measured(self) -> Params:
        if self.profile == "robust" and self.robust.epsilon not in self.linf:
            raise ValueError(
                f"profile robust asks for epsilon {self.robust.epsilon:g}, which is not in linf; "
                "add it"
            )
        if self.profile == "standard" and min(self.linf) > SMALL:
            raise ValueError(
                f"profile standard compares with the teacher at an epsilon of {SMALL:g} or less, "
                "and linf has none; add one"
            )
        return self


@dataclass(frozen=True)
class Met:
    """Some of the rows, under attack in one norm."""

    curve: Curve
    fallen: Fallen


def run(case: Case, params: Params) -> Outcome:
    """Attack the sampled rows in each norm, smallest epsilon first, until the gates are settled."""
    rows = case.test.take(case.sample(case.budget.attacked))  # by hash: any part is a sample too
    if not correct(case.score(rows.images), rows.labels).any():
        raise ValueError(f"the student is right on none of {len(rows)} rows; nothing to attack")
    networks: dict[str, nn.Module] = {"float": case.float_network, "twin": Twin.load(case.model)}
    asked, look = plans(case, params), case.budget.look
    met: list[list[Met]] = [[] for _ in asked]  # by norm, then by part
    ends = range(look, len(rows) + look, look)
    for end in tracked(ends, f"adversarial: {look} rows each,") if len(ends) > 1 else ends:
        part = rows.take(np.arange(end - look, min(end, len(rows))))
        for plan, known in zip(asked, met, strict=True):
            known.append(attacked(case, networks, part, plan))
        curves = [joined([m.curve for m in known]) for known in met]
        seen = rows.take(np.arange(len(curves[0].student)))
        if settled(curves[0], params, seen.labels):
            break
    right, taught = (curves[0].holds(who, 0) for who in ("student", "teacher"))
    square_alone = max(sum(m.fallen.by(SQUARE) for m in known) for known in met)
    blindness, masking_gates = masking(case, networks, seen.take(right), square_alone)
    kept = kept_examples(case, [m.fallen for known in met for m in known])
    rescore(case, kept)
    clean = {"student": rate(right), "teacher": rate(taught)}
    lines = [line for curve in curves for line in _lines(curve)]
    area = {who: float(curves[0].areas(who).mean()) for who in ("student", "teacher")}
    results = {
        "clean": clean,
        "epsilons": lines,
        "area": area,
        "masking": blindness,
        "kept": kept.num_rows,
        "planned": len(rows),  # fewer were met where the gates were settled before
        "teacher_attack": SQUARE if case.teacher_network is None else "apgd",
        "summary": {_key(line): line["student"]["value"] for line in lines}
        | {"area": area["student"]},
    }
    judged = gates(curves[0], params, seen.labels, in_parts=len(ends) > 1)
    figure = _figure(clean, curves, lines)
    return Outcome(len(seen), results, (*judged, *masking_gates), figure, {"kept": kept})


def attacked(case: Case, networks: Mapping[str, nn.Module], rows: Table, plan: Plan) -> Met:
    """Student and teacher on `rows`, each attacked where it is right when clean."""
    right = correct(case.score(rows.images), rows.labels)
    taught = correct(case.teacher(rows.images), rows.labels)
    fallen, levels = descend(case, dict(networks), rows.take(right), plan)
    falls = np.zeros(len(rows)), np.zeros(len(rows))
    falls[0][right] = fallen.epsilon
    falls[1][taught] = teacher_falls(case, rows.take(taught), plan.norm, plan.epsilons)
    return Met(Curve(plan.norm, plan.epsilons, levels, *falls), fallen)


def plans(case: Case, params: Params) -> list[Plan]:
    """What to attack: L-infinity, and L2 where asked. The teacher's network leads at the largest
    small epsilon alone, and everywhere where the budget is that of a release."""
    thorough = case.budget.steps >= BUDGETS["release"].steps
    linf, l2 = tuple(sorted(set(params.linf))), tuple(sorted(set(params.l2)))
    one = max((e for e in linf if e <= SMALL), default=linf[0])
    made = [Plan("linf", linf, frozenset(linf if thorough else (one,)))]
    if l2:
        made.append(Plan("l2", l2, frozenset(l2 if thorough else ())))
    return made


def _lines(curve: Curve) -> list[dict[str, Any]]:
    """Each epsilon in the report; `disagree` is over the target rows."""
    return [
        {
            "epsilon": level.epsilon,
            "norm": curve.norm,
            "student": rate(curve.holds("student", level.epsilon)),
            "teacher": rate(curve.holds("teacher", level.epsilon)),
            "attacks": {name: asdict(tried) for name, tried in level.attacks.items()},
            "square_queries_median": float(np.median(level.queries))
            if len(level.queries)
            else None,
            "disagree": None if level.disagree is None else rate(level.disagree),
        }
        for level in curve.levels
    ]


def _key(line: dict[str, Any]) -> str:
    norm = "" if line["norm"] == "linf" else f"{line['norm']}_"
    return f"robust_accuracy_{norm}{line['epsilon']:g}"


def _figure(clean: dict[str, Any], curves: list[Curve], lines: list[dict[str, Any]]) -> Figure:
    """Accuracy against epsilon, a panel per norm: student and teacher with intervals."""
    figure = Figure(figsize=(4.6 * len(curves) + 1.4, 4.2), layout="constrained")
    units = {"linf": "epsilon (share of the range, L∞)", "l2": "epsilon (L2, images in 0..1)"}
    for place, curve in enumerate(curves, start=1):
        axes = figure.add_subplot(1, len(curves), place)
        for name, style, colour in (("student", "o-", "black"), ("teacher", "s--", "0.45")):
            points = [clean[name], *(line[name] for line in lines if line["norm"] == curve.norm)]
            value, low, high = (np.array([p[k] for p in points]) for k in ("value", "low", "high"))
            error = np.maximum([value - low, high - value], 0)
            x = [0.0, *curve.epsilons]
            axes.errorbar(x, value, yerr=error, fmt=style, color=colour, capsize=3, label=name)
        axes.set(xlabel=units[curve.norm], ylabel="accuracy", ylim=(-0.02, 1.02))
        axes.legend(frameon=False)
    return figure
