"""Gradient masking: is a student robust, or are the attacks on it blind?

Three signs that gradients lead nowhere (Athalye et al., 2018; Carlini et al., 2019): they are zero;
a black box without them breaks many rows that they did not; a class is still recognised when every
pixel may move by half the range, which leaves nothing to recognise. Any of them fails the family.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from tasks.core.reports import Gate, at_least, at_most
from tasks.core.statistics import wilson
from tasks.core.tables import Table
from tasks.stress.attacks.apgd import apgd
from tasks.stress.attacks.balls import around
from tasks.stress.attacks.objectives import cross_entropy, gradients, low_margin
from tasks.stress.case import Case
from tasks.stress.ladder import judged

BLIND = 0.2  # share of rows that may fall to the black box alone
SIGHTED = 0.5  # share of rows whose gradient must lead somewhere
HALF = 0.5  # of the range, as an epsilon


def masking(
    case: Case, networks: dict[str, nn.Module], target: Table, square_alone: int
) -> tuple[dict[str, Any], tuple[Gate, ...]]:
    """The three checks on the `target` rows, which are right when clean.

    `networks`: those that lead APGD; `square_alone`: rows that Square broke and no gradient had, in
    the norm where they are most.
    """
    checks = (
        _sighted(networks, target),
        _black_box(square_alone, len(target)),
        _half_range(case, networks, target),
    )
    results: dict[str, Any] = {}
    for found, _ in checks:
        results |= found
    return results, tuple(gate for _, gate in checks)


def _sighted(networks: dict[str, nn.Module], target: Table) -> tuple[dict[str, Any], Gate]:
    """Share of rows where the margin has a gradient, in the network where fewest have."""
    n, images = len(target), target.images.astype(np.float32)
    moving = {
        name: int(gradients(network, images, target.labels).any(axis=(1, 2, 3)).sum())
        for name, network in networks.items()
    }
    fewest = min(moving.values())
    gate = at_least(
        "adversarial.masking.gradients",
        wilson(fewest, n)[0],
        SIGHTED,
        f"{fewest} of {n} rows have a gradient that is not zero; where gradients vanish, APGD "
        "finds nothing and proves nothing. The lower 95 % bound of the share is compared.",
    )
    return {"gradients": {name: count / n for name, count in moving.items()}}, gate


def _black_box(square_alone: int, n: int) -> tuple[dict[str, Any], Gate]:
    """Rows that no gradient broke and Square did: by so much, at most, does it beat them."""
    gate = at_most(
        "adversarial.masking.black_box",
        wilson(square_alone, n)[1],
        BLIND,
        f"Without gradients Square breaks {square_alone} of {n} rows that APGD with them did not; "
        "where these are many, gradients are masked. The upper 95 % bound of the share is "
        "compared.",
    )
    return {"black_box_alone": square_alone / n}, gate


def _half_range(
    case: Case, networks: dict[str, nn.Module], target: Table
) -> tuple[dict[str, Any], Gate]:
    """Rows that the student still has right when APGD may move each pixel by half the range; it
    begins at the rows themselves, since random noise of that size would break many by itself."""
    bounds = around(target.images, HALF, case.data)
    left = np.arange(len(target))
    for network in networks.values():
        for objective in (cross_entropy(network), low_margin(network)):
            rows, near = target.take(left), bounds.take(left)
            if len(rows) == 0:
                break
            steps, judge = case.budget.steps, judged(case.score)
            _, margins = apgd(objective, rows.images, rows.labels, near, steps, judge=judge)
            left = left[margins >= 0]
    n, chance = len(target), 1 / len(case.data.classes)
    gate = at_most(
        "adversarial.masking.half_range",
        wilson(len(left), n)[0],
        chance,
        f"APGD within half the range leaves {len(left)} of {n} rows right; above chance "
        f"({chance:.1%}) the attack is broken, not the student strong. The lower 95 % bound is "
        "compared.",
    )
    return {"accuracy_at_half_range": len(left) / n}, gate
