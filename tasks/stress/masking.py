"""Gradient masking: is a student robust, or are the attacks on it blind?

Three signs that gradients lead nowhere (Athalye et al., 2018; Carlini et al., 2019): they are zero;
a black box without them breaks clearly more rows; a class is still recognised when every pixel may
move by half the range, which leaves nothing to recognise. Any of them fails the family.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from tasks.core.reports import Gate, at_least, at_most
from tasks.core.seeds import generator
from tasks.core.statistics import tango_upper, wilson
from tasks.core.tables import Table
from tasks.stress.attacks import around, gradients, pgd
from tasks.stress.case import Case

BLIND = 0.2  # share of rows by which a black box may beat the gradients
SIGHTED = 0.5  # share of rows whose gradient must lead somewhere
HALF = 0.5  # of the range, as an epsilon
Broken = dict[str, NDArray[np.bool_]]  # attack -> which target rows (N,) it broke


def masking(
    case: Case, networks: dict[str, nn.Module], target: Table, broken: list[Broken], steps: int
) -> tuple[dict[str, Any], tuple[Gate, ...]]:
    """The three checks on the `target` rows, which are right when clean.

    `networks`: those that PGD climbs, by the attack's name; `broken`: one item per epsilon.
    """
    checks = (
        _sighted(networks, target),
        _black_box(networks, broken),
        _half_range(case, networks, target, steps),
    )
    results: dict[str, Any] = {}
    for found, _ in checks:
        results |= found
    return results, tuple(gate for _, gate in checks)


def _sighted(networks: dict[str, nn.Module], target: Table) -> tuple[dict[str, Any], Gate]:
    """Share of rows where the margin has a gradient, in the network where fewest have."""
    n, images = len(target), target.images.astype(np.float32)
    moving = {
        name: int(gradients(network, images, target.labels, "margin").any(axis=(1, 2, 3)).sum())
        for name, network in networks.items()
    }
    fewest = min(moving.values())
    gate = at_least(
        "adversarial.masking.gradients",
        wilson(fewest, n)[0],
        SIGHTED,
        f"{fewest} of {n} rows have a gradient that is not zero; where gradients vanish, PGD finds "
        "nothing and proves nothing. The lower 95 % bound of the share is compared.",
    )
    return {"gradients": {name: count / n for name, count in moving.items()}}, gate


def _black_box(networks: dict[str, nn.Module], broken: list[Broken]) -> tuple[dict[str, Any], Gate]:
    """By how many rows Square beats the gradients, at the epsilon where it does so most."""
    excess, bounds = [], []
    for attacks in broken:
        white = np.logical_or.reduce([attacks[name] for name in networks])
        lost = int((attacks["square"] & ~white).sum())
        gained = int((white & ~attacks["square"]).sum())
        excess.append((lost - gained) / len(white))
        bounds.append(tango_upper(lost, gained, len(white)))
    gate = at_most(
        "adversarial.masking.black_box",
        max(bounds),
        BLIND,
        f"Without gradients Square breaks {max(excess):+.1%} of the rows more than PGD does with "
        "them, at worst over epsilons; far above zero, gradients are masked. The upper 95 % bound "
        "is compared.",
    )
    return {"black_box_excess": max(excess)}, gate


def _half_range(
    case: Case, networks: dict[str, nn.Module], target: Table, steps: int
) -> tuple[dict[str, Any], Gate]:
    """Rows that the student still has right when PGD may move each pixel by half the range."""
    bounds = around(target.images, HALF, case.data)
    holds = np.ones(len(target), dtype=bool)
    for name, network in networks.items():
        random = generator(case.seed, "stress", name, "half")
        images = pgd(network, target.images, target.labels, bounds, steps, random)
        holds &= case.score(images).argmax(axis=1) == target.labels
    left, n, chance = int(holds.sum()), len(target), 1 / len(case.data.classes)
    gate = at_most(
        "adversarial.masking.half_range",
        wilson(left, n)[0],
        chance,
        f"PGD within half the range leaves {left} of {n} rows right; above chance "
        f"({chance:.1%}) the attack is broken, not the student strong. The lower 95 % bound is "
        "compared.",
    )
    return {"accuracy_at_half_range": left / n}, gate
