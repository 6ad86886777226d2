"""Adversarial robustness in L-infinity: the worst of white-box and black-box attacks, row by row.

Each row that is right when clean meets PGD on the float student and on the fake-quant twin, both
transferred, and the Square attack on the ONNX session itself; what counts is the worst of them, as
the ONNX session scores it. The teacher meets the same PGD (or Square, if it is a black box), so the
comparison is paired. A row once broken stays broken at every larger epsilon. Whether little damage
means robustness or blindness is asked by `masking`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pydantic import Field
from torch import nn

from tasks.core.metrics import correct
from tasks.core.params import Section
from tasks.core.progress import tracked
from tasks.core.reports import Gate, at_most
from tasks.core.seeds import generator
from tasks.core.statistics import tango_upper
from tasks.core.tables import Table
from tasks.core.twin import Twin
from tasks.stress.attacks import Images, Labels, around, margin, pgd, square
from tasks.stress.case import Case, Outcome, rate
from tasks.stress.masking import masking

Flags = NDArray[np.bool_]


class Params(Section):
    """L-infinity budgets as shares of the range; `margin` of non-inferiority to the teacher."""

    epsilons: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(min_length=1)
    margin: float = Field(ge=0, le=1)


@dataclass(frozen=True)
class Attacked:
    """One attack's images of the target rows, and what the ONNX session says of them (N,)."""

    images: Images
    margins: NDArray[np.float32]
    predicted: Labels


@dataclass(frozen=True)
class Budget:
    """One epsilon. Flags are over all sampled rows and true where the model is still right."""

    epsilon: float
    attacks: dict[str, Attacked]  # of the target rows alone
    student: Flags
    teacher: Flags
    queries: float  # median over target rows, of Square


def run(case: Case, params: Params) -> Outcome:
    """Attack the sampled rows at each epsilon, smallest first."""
    rows = case.test.take(case.sample(case.budget.attacked))
    networks: dict[str, nn.Module] = {
        "float_pgd": case.float_network,
        "twin_pgd": Twin.load(case.model),
    }
    right = correct(case.score(rows.images), rows.labels)
    taught = correct(case.teacher(rows.images), rows.labels)
    target = rows.take(right)  # the rest is broken already
    if len(target) == 0:
        raise ValueError(f"the student is right on none of {len(rows)} rows; nothing to attack")
    budgets, student, teacher = [], right.copy(), taught.copy()
    for epsilon in tracked(sorted(params.epsilons), "adversarial: epsilon"):
        attacks, queries = _attack(case, networks, target, epsilon)
        for attack in attacks.values():
            student[right] &= attack.predicted == target.labels
        teacher[teacher] = _teacher_holds(case, rows.take(teacher), epsilon)
        budgets.append(Budget(epsilon, attacks, student.copy(), teacher.copy(), queries))
    broken = [
        {name: a.predicted != target.labels for name, a in budget.attacks.items()}
        for budget in budgets
    ]
    blindness, masking_gates = masking(case, networks, target, broken, case.budget.steps)
    kept = _kept(case, target, budgets)
    clean = {"student": rate(right), "teacher": rate(taught)}
    lines = [_line(budget, target, len(rows)) for budget in budgets]
    results = {
        "clean": clean,
        "epsilons": lines,
        "masking": blindness,
        "kept": kept.num_rows,
        "teacher_attack": "square" if case.teacher_network is None else "pgd",
        "summary": {f"robust_accuracy_{b.epsilon:g}": float(b.student.mean()) for b in budgets},
    }
    gates = (*(_gate(budget, params.margin) for budget in budgets), *masking_gates)
    return Outcome(len(rows), results, gates, _figure(clean, lines), {"kept": kept})


def _attack(
    case: Case, networks: dict[str, nn.Module], target: Table, epsilon: float
) -> tuple[dict[str, Attacked], float]:
    """Every attack on the student by name, and the median of Square's queries."""
    bounds = around(target.images, epsilon, case.data)
    found = {
        name: pgd(
            network,
            target.images,
            target.labels,
            bounds,
            case.budget.steps,
            generator(case.seed, "stress", name, str(epsilon)),
        )
        for name, network in networks.items()
    }
    found["square"], queries = square(
        case.score,
        target.images,
        target.labels,
        bounds,
        case.budget.queries,
        generator(case.seed, "stress", "square", str(epsilon)),
    )
    scored = {}
    for name, images in found.items():
        logits = case.score(images)
        scored[name] = Attacked(images, margin(logits, target.labels), logits.argmax(axis=1))
    return scored, float(np.median(queries))


def _teacher_holds(case: Case, rows: Table, epsilon: float) -> Flags:
    """Which of `rows` the teacher still has right when it is attacked itself."""
    if len(rows) == 0:
        return np.zeros(0, dtype=bool)
    bounds = around(rows.images, epsilon, case.data)
    random = generator(case.seed, "stress", "teacher", str(epsilon))
    if case.teacher_network is not None:
        images = pgd(
            case.teacher_network, rows.images, rows.labels, bounds, case.budget.steps, random
        )
    else:
        images, _ = square(
            case.teacher, rows.images, rows.labels, bounds, case.budget.queries, random
        )
    return correct(case.teacher(images), rows.labels)


def _gate(budget: Budget, allowed: float) -> Gate:
    lost = int((budget.teacher & ~budget.student).sum())
    gained = int((budget.student & ~budget.teacher).sum())
    n = len(budget.student)
    return at_most(
        f"adversarial.epsilon_{budget.epsilon:g}",
        tango_upper(lost, gained, n),
        allowed,
        f"Under attack within {budget.epsilon:g} of the range, the student keeps "
        f"{budget.student.mean():.1%} of {n} rows and the teacher {budget.teacher.mean():.1%} "
        f"({lost} rows lost, {gained} gained); the upper 95 % bound of the loss is compared.",
    )


def _line(budget: Budget, target: Table, n: int) -> dict[str, Any]:
    """One epsilon in the report; per attack, the accuracy that it alone leaves of all rows."""
    alone = {
        name: float((attack.predicted == target.labels).sum() / n)
        for name, attack in budget.attacks.items()
    }
    return {
        "epsilon": budget.epsilon,
        "student": rate(budget.student),
        "teacher": rate(budget.teacher),
        "attacks": alone,
        "square_queries_median": budget.queries,
    }


def _kept(case: Case, target: Table, budgets: list[Budget]) -> pa.Table:
    """Per broken row its worst image at the largest epsilon that breaks it, scored once more."""
    columns: dict[str, list[Any]] = {
        name: [] for name in ("row", "label", "predicted", "epsilon", "attack", "pixels")
    }
    for place in range(len(target)):
        for budget in reversed(budgets):
            flips = {
                name: float(attack.margins[place])
                for name, attack in budget.attacks.items()
                if attack.predicted[place] != target.labels[place]
            }
            if flips:
                worst = min(flips, key=lambda name: flips[name])
                attack = budget.attacks[worst]
                values = (
                    str(target.rows[place]),
                    int(target.labels[place]),
                    int(attack.predicted[place]),
                    budget.epsilon,
                    worst,
                    attack.images[place].reshape(-1),
                )
                for column, value in zip(columns.values(), values, strict=True):
                    column.append(value)
                break
    pixels = pa.array(columns.pop("pixels"), pa.list_(pa.float32()))
    kept = pa.table(
        columns,
        schema=pa.schema(
            [
                ("row", pa.string()),
                ("label", pa.int32()),
                ("predicted", pa.int32()),
                ("epsilon", pa.float64()),
                ("attack", pa.string()),
            ]
        ),
    ).append_column("pixels", pixels)
    rescore(case, kept)
    return kept


def rescore(case: Case, kept: pa.Table) -> None:
    """Score the kept images as they are stored; one that is no longer wrong is an error."""
    flat = kept["pixels"].combine_chunks().flatten().to_numpy()
    images = flat.reshape(-1, *case.data.shape).astype(np.float32)
    predicted = case.score(images).argmax(axis=1)
    differs = int((predicted != kept["predicted"].to_numpy()).sum())
    if differs:
        raise ValueError(
            f"{differs} of {kept.num_rows} kept examples do not reproduce; "
            "the model's answers depend on the batch"
        )


def _figure(clean: dict[str, Any], lines: list[dict[str, Any]]) -> Figure:
    """Accuracy against epsilon: student and teacher with intervals, each attack alone."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    x = [0.0, *(line["epsilon"] for line in lines)]
    for name, style, colour in (("student", "o-", "black"), ("teacher", "s--", "0.45")):
        points = [clean[name], *(line[name] for line in lines)]
        value, low, high = (np.array([p[k] for p in points]) for k in ("value", "low", "high"))
        error = np.maximum([value - low, high - value], 0)
        axes.errorbar(x, value, yerr=error, fmt=style, color=colour, capsize=3, label=name)
    for marker, name in zip("^vs", lines[0]["attacks"], strict=True):
        axes.plot(
            x[1:],
            [line["attacks"][name] for line in lines],
            color="0.3",
            marker=marker,
            fillstyle="none",
            linestyle="none",
            label=f"student, {name.replace('_', ' ')} alone",
        )
    axes.set(xlabel="epsilon (share of the range, L∞)", ylabel="accuracy", ylim=(-0.02, 1.02))
    axes.legend(frameon=False)
    return figure
