"""Adversarial robustness in L-infinity and L2: the worst case per row, as the ONNX session has it.

`ladder` attacks each row that is right when clean, and the teacher likewise, so that both are
compared row by row. Under the profile `standard` the student may be no worse than its teacher at
small epsilons and over the whole curve; under `robust` it must withstand a large one by itself.
Whether little damage means robustness or blind attacks is asked by `masking`, always.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import nn

from tasks.core.metrics import correct
from tasks.core.params import Section
from tasks.core.reports import Gate, at_least, at_most
from tasks.core.statistics import paired_bootstrap_upper, tango_upper, wilson
from tasks.core.tables import Table
from tasks.core.twin import Twin
from tasks.stress.attacks.balls import Norm
from tasks.stress.budget import BUDGETS
from tasks.stress.case import Case, Outcome, rate
from tasks.stress.kept import kept_examples, rescore
from tasks.stress.ladder import SQUARE, Level, Plan, descend, teacher_falls
from tasks.stress.masking import masking

Flags = NDArray[np.bool_]
SMALL = 0.016  # 4 of 255, and what it is rounded to: up to here a student may not lose to a teacher


class Robust(Section):
    """What the profile `robust` asks: the accuracy that is left within `epsilon` of the range."""

    epsilon: float = Field(gt=0, le=1)
    accuracy: float = Field(ge=0, le=1)


class Params(Section):
    """Epsilons: shares of the range in L-infinity; in L2 lengths of an image scaled to 0..1.

    `margin`: by how much the student may be worse than the teacher.
    """

    linf: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(min_length=1)
    l2: tuple[Annotated[float, Field(gt=0)], ...]
    profile: Literal["standard", "robust"]
    margin: float = Field(ge=0, le=1)
    robust: Robust

    @model_validator(mode="after")
    def _measured(self) -> Params:
        if self.profile == "robust" and self.robust.epsilon not in self.linf:
            raise ValueError(
                f"profile robust asks for epsilon {self.robust.epsilon:g}, which is not in linf; "
                "add it"
            )
        return self


@dataclass(frozen=True)
class Curve:
    """One norm. Falls are over all sampled rows (N,): the smallest epsilon that breaks each, 0 for
    one that is wrong when clean, infinity for one that holds."""

    norm: Norm
    epsilons: tuple[float, ...]
    levels: list[Level]
    student: NDArray[np.float64]
    teacher: NDArray[np.float64]

    def holds(self, who: Literal["student", "teacher"], epsilon: float) -> Flags:
        """Which rows are still right within `epsilon`."""
        fall: NDArray[np.float64] = getattr(self, who)
        return np.asarray(fall > epsilon)

    def areas(self, who: Literal["student", "teacher"]) -> NDArray[np.float64]:
        """Per row the area under its accuracy-epsilon curve, as a share of all (trapezoids)."""
        x = np.array([0.0, *self.epsilons])
        flags = np.stack([self.holds(who, epsilon) for epsilon in x])
        return np.asarray(np.trapezoid(flags.astype(np.float64), x, axis=0) / x[-1])


def run(case: Case, params: Params) -> Outcome:
    """Attack the sampled rows in each norm, smallest epsilon first."""
    rows = case.test.take(case.sample(case.budget.attacked))
    right = correct(case.score(rows.images), rows.labels)
    taught = correct(case.teacher(rows.images), rows.labels)
    if not right.any():
        raise ValueError(f"the student is right on none of {len(rows)} rows; nothing to attack")
    networks: dict[str, nn.Module] = {"float": case.float_network, "twin": Twin.load(case.model)}
    target = rows.take(right)  # the rest is broken already
    curves, fallen = [], []
    for plan in plans(case, params):
        fell, levels = descend(case, networks, target, plan)
        teacher = teacher_falls(case, rows.take(taught), plan.norm, plan.epsilons)
        falls = np.zeros(len(rows)), np.zeros(len(rows))
        falls[0][right], falls[1][taught] = fell.epsilon, teacher
        curves.append(Curve(plan.norm, plan.epsilons, levels, *falls))
        fallen.append(fell)
    square_alone = max(found.by(SQUARE) for found in fallen)
    blindness, masking_gates = masking(case, networks, target, square_alone)
    kept = kept_examples(case, fallen)
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
        "teacher_attack": SQUARE if case.teacher_network is None else "apgd",
        "summary": {_key(line): line["student"]["value"] for line in lines}
        | {"area": area["student"]},
    }
    gates = (*_gates(curves[0], rows, params), *masking_gates)
    return Outcome(len(rows), results, gates, _figure(clean, curves, lines), {"kept": kept})


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


def _gates(linf: Curve, rows: Table, params: Params) -> tuple[Gate, ...]:
    """Those of the profile."""
    if params.profile == "robust":
        return (_withstands(linf, params.robust),)
    small = (epsilon for epsilon in linf.epsilons if epsilon <= SMALL)
    return (*(_no_worse(linf, epsilon, params.margin) for epsilon in small),
            _area(linf, rows, params.margin))  # fmt: skip


def _no_worse(curve: Curve, epsilon: float, allowed: float) -> Gate:
    student, teacher = curve.holds("student", epsilon), curve.holds("teacher", epsilon)
    lost, gained = int((teacher & ~student).sum()), int((student & ~teacher).sum())
    n = len(student)
    return at_most(
        f"adversarial.epsilon_{epsilon:g}",
        tango_upper(lost, gained, n),
        allowed,
        f"Under attack within {epsilon:g} of the range, the student keeps {student.mean():.1%} of "
        f"{n} rows and the teacher {teacher.mean():.1%} ({lost} rows lost, {gained} gained); the "
        "upper 95 % bound of the loss is compared.",
    )


def _area(curve: Curve, rows: Table, allowed: float) -> Gate:
    student, teacher = curve.areas("student"), curve.areas("teacher")
    return at_most(
        "adversarial.area",
        paired_bootstrap_upper(teacher, student, rows.labels),
        allowed,
        f"Over all epsilons up to {curve.epsilons[-1]:g} of the range, the area under the "
        f"student's accuracy is {student.mean():.1%} and under the teacher's {teacher.mean():.1%}; "
        "the upper 95 % bound of the loss (paired bootstrap) is compared.",
    )


def _withstands(curve: Curve, robust: Robust) -> Gate:
    holds = curve.holds("student", robust.epsilon)
    return at_least(
        "adversarial.robust",
        wilson(int(holds.sum()), len(holds))[0],
        robust.accuracy,
        f"Under attack within {robust.epsilon:g} of the range, the student keeps "
        f"{holds.mean():.1%} of {len(holds)} rows; the lower 95 % bound is compared.",
    )


def _lines(curve: Curve) -> list[dict[str, Any]]:
    """Each epsilon in the report; `disagree` is over the target rows."""
    return [
        {
            "epsilon": level.epsilon,
            "norm": curve.norm,
            "student": rate(curve.holds("student", level.epsilon)),
            "teacher": rate(curve.holds("teacher", level.epsilon)),
            "attacks": {name: asdict(tried) for name, tried in level.attacks.items()},
            "square_queries_median": level.queries,
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
