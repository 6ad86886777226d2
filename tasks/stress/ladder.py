"""The ladder of attacks: each rung meets the rows that no rung before it broke (a cascade).

APGD on the float student, then on the fake-quant twin of what ships, then on the teacher's network,
all transferred; DIVA, which looks for rows that the student alone gets wrong; and Square on the
ONNX session itself. Whatever network led there, an image counts only if the session answers wrong.
A row once broken is broken at every larger epsilon of that norm, and is not attacked there again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from tasks.core.metrics import correct
from tasks.core.progress import tracked
from tasks.core.seeds import generator
from tasks.core.tables import Table
from tasks.stress.attacks.apgd import Judge, apgd
from tasks.stress.attacks.balls import Ball, Images, Labels, Norm, around
from tasks.stress.attacks.objectives import (
    Margins,
    Objective,
    cross_entropy,
    disagreement,
    low_margin,
    margin,
)
from tasks.stress.attacks.square import square
from tasks.stress.case import Case

Flags = NDArray[np.bool_]
Score = Callable[[Images], NDArray[np.float32]]
DIVA, SQUARE = "diva", "square"
FEWER = 3  # the twin and the teacher get a third of the steps: they mostly find what the float does


@dataclass(frozen=True)
class Plan:
    """One norm: its epsilons, ascending, and at which of them the teacher's network leads too."""

    norm: Norm
    epsilons: tuple[float, ...]
    led_by_teacher: frozenset[float]


@dataclass(frozen=True)
class Tried:
    """One attack at one epsilon: the rows that it met and how many of them it broke."""

    rows: int
    broke: int


@dataclass(frozen=True)
class Level:
    """What happened to the target rows at one epsilon."""

    epsilon: float
    attacks: dict[str, Tried]
    queries: NDArray[np.int64]  # of Square, one a row that it met
    disagree: Flags | None  # rows where DIVA has the student wrong and the teacher right


class Fallen:
    """Per target row (N,) of one norm: the smallest epsilon tried that broke it (infinity: none
    did), the attack and the image."""

    def __init__(self, norm: Norm, target: Table) -> None:
        self.norm, self.target = norm, target
        self.epsilon = np.full(len(target), np.inf)
        self.attack = np.full(len(target), "", dtype="U32")
        self.images = target.images.astype(np.float32)

    @property
    def standing(self) -> NDArray[np.int64]:
        """Positions of the rows that nothing broke yet."""
        return np.flatnonzero(np.isinf(self.epsilon))

    def note(
        self, rows: NDArray[np.int64], images: Images, margins: Margins, epsilon: float, attack: str
    ) -> Tried:
        """What an attack made of `rows`; those that were standing and are wrong now have fallen."""
        new = (margins < 0) & np.isinf(self.epsilon[rows])
        fell = rows[new]
        self.epsilon[fell], self.attack[fell], self.images[fell] = epsilon, attack, images[new]
        return Tried(len(rows), len(fell))

    def by(self, attack: str) -> int:
        """How many rows `attack` broke before any other did."""
        return int((self.attack == attack).sum())


def descend(
    case: Case, networks: dict[str, nn.Module], target: Table, plan: Plan
) -> tuple[Fallen, list[Level]]:
    """Attack the `target` rows, which the student has right, at each epsilon of `plan`.

    `networks`: those that lead APGD by name; the first gets all of the budget's steps.
    """
    fallen, levels = Fallen(plan.norm, target), []
    for epsilon in tracked(plan.epsilons, f"adversarial: {plan.norm}, epsilon"):
        bounds = around(target.images, epsilon, case.data, plan.norm)
        taught = epsilon in plan.led_by_teacher
        attacks = {
            name: _led(case, name, objective, steps, bounds, epsilon, fallen)
            for name, objective, steps in _rungs(case, networks, taught)
        }
        disagree = None
        if taught and case.teacher_network is not None:
            attacks[DIVA], disagree = _diva(case, networks, bounds, epsilon, fallen)
        attacks[SQUARE], queries = _square(case, bounds, epsilon, fallen)
        levels.append(Level(epsilon, attacks, queries, disagree))
    return fallen, levels


def _rungs(
    case: Case, networks: dict[str, nn.Module], taught: bool
) -> list[tuple[str, Objective, int]]:
    """Name, objective and steps of each run of APGD."""
    led = list(networks.items())
    if taught and case.teacher_network is not None:
        led.append(("teacher", case.teacher_network))
    few = max(1, case.budget.steps // FEWER)
    rungs = []
    for place, (name, network) in enumerate(led):
        steps = few if place else case.budget.steps
        rungs.append((f"{name}_apgd_ce", cross_entropy(network), steps))
        rungs.append((f"{name}_apgd_margin", low_margin(network), steps))
    return rungs


def judged(score: Score) -> Judge:
    """The margin of a scorer; negative where it is wrong."""
    return lambda images, labels: margin(score(images), labels)


def _led(
    case: Case,
    name: str,
    objective: Objective,
    steps: int,
    bounds: Ball,
    epsilon: float,
    fallen: Fallen,
) -> Tried:
    """APGD on the rows that stand: cross-entropy from a random point, the margin from the row."""
    at = fallen.standing
    if len(at) == 0:
        return Tried(0, 0)
    rows = fallen.target.take(at)
    start = generator(case.seed, "stress", name, bounds.norm, str(epsilon))
    random = start if name.endswith("_ce") else None
    images, margins = apgd(
        objective, rows.images, rows.labels, bounds.take(at), steps, random, judged(case.score)
    )
    return fallen.note(at, images, margins, epsilon, name)


def _diva(
    case: Case, networks: dict[str, nn.Module], bounds: Ball, epsilon: float, fallen: Fallen
) -> tuple[Tried, Flags]:
    """DIVA on every target row that the teacher has right too, whether it has fallen or not."""
    assert case.teacher_network is not None  # noqa: S101 - asked before
    target, student = fallen.target, list(networks.values())[-1]  # the twin, where there is one
    disagree = np.zeros(len(target), dtype=bool)
    if len(target) == 0:
        return Tried(0, 0), disagree
    at = np.flatnonzero(correct(case.teacher(target.images), target.labels))
    if len(at) == 0:
        return Tried(0, 0), disagree

    def judge(images: Images, labels: Labels) -> Margins:
        """Negative where the student is wrong and the teacher right."""
        taught = margin(case.teacher(images), labels)
        return np.maximum(margin(case.score(images), labels), -taught)

    rows = target.take(at)
    images, gap = apgd(
        disagreement(student, case.teacher_network),
        rows.images,
        rows.labels,
        bounds.take(at),
        max(1, case.budget.steps // FEWER),
        None,
        judge,
    )
    disagree[at] = gap < 0
    margins = margin(case.score(images), rows.labels)
    return fallen.note(at, images, margins, epsilon, DIVA), disagree


def _square(
    case: Case, bounds: Ball, epsilon: float, fallen: Fallen
) -> tuple[Tried, NDArray[np.int64]]:
    """Square on the ONNX session, on the rows that no gradient broke, and its queries of each."""
    at = fallen.standing
    if len(at) == 0:
        return Tried(0, 0), at
    rows = fallen.target.take(at)
    random = generator(case.seed, "stress", SQUARE, bounds.norm, str(epsilon))
    images, margins, used = square(
        case.score, rows.images, rows.labels, bounds.take(at), case.budget.queries, random
    )
    return fallen.note(at, images, margins, epsilon, SQUARE), used


def teacher_falls(
    case: Case, rows: Table, norm: Norm, epsilons: Sequence[float]
) -> NDArray[np.float64]:
    """The smallest of `epsilons` (ascending) that breaks the teacher on each row (N,).

    The teacher is attacked itself, by APGD with both losses, or by Square if it is a black box: by
    less than the student, so a comparison flatters the teacher.
    """
    fallen = Fallen(norm, rows)
    for epsilon in tracked(epsilons, f"adversarial: {norm}, the teacher, epsilon"):
        bounds = around(rows.images, epsilon, case.data, norm)
        for name in ("cross_entropy", "margin"):
            at = fallen.standing
            if len(at) == 0:
                break
            random = generator(case.seed, "stress", "teacher", name, norm, str(epsilon))
            some, near = rows.take(at), bounds.take(at)
            if case.teacher_network is None:
                images, margins, _ = square(
                    case.teacher, some.images, some.labels, near, case.budget.queries, random
                )
            else:
                make, start = (
                    (cross_entropy, random) if name == "cross_entropy" else (low_margin, None)
                )
                images, margins = apgd(
                    make(case.teacher_network),
                    some.images,
                    some.labels,
                    near,
                    case.budget.steps,
                    start,
                )
            fallen.note(at, images, margins, epsilon, name)
            if case.teacher_network is None:
                break
    return fallen.epsilon
