"""Several given teachers as one: the mixture of their probabilities, weighted on validation rows.

A member that the weights leave next to nothing is dropped: it would be paid for at every look.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from tasks.core.errors import TeacherError
from tasks.core.files import write_json
from tasks.core.models import (
    ENSEMBLE,
    Ensemble,
    Member,
    ModelSpec,
    content_sha256,
    write_spec,
)
from tasks.core.tables import Schema, Table
from tasks.modalities.vision.scorers import load_scorer
from tasks.modalities.vision.teachers import Source
from tasks.teach.given import write_given
from tasks.teach.mixture import convex_weights

SHARE = 0.01  # a member below it is dropped
TINY = 1e-30  # a likelihood is never less: one row cannot forbid a member


def write_ensemble(
    given: Path, folder: Path, sources: Sequence[Source], data: Schema, val: Table, threads: int
) -> ModelSpec:
    """Write the ensemble of the teachers in `given/members/N` to `folder`; says who was dropped.

    Every member is checked before the first one scores a row.
    """
    places = [f"members/{number}" for number in range(len(sources))]
    specs = [
        write_given(given / place, folder / place, source, data, f"member {number}")
        for number, (place, source) in enumerate(zip(places, sources, strict=True))
    ]
    likelihoods = np.stack(
        [likelihood(_sound(load_scorer(folder / p, threads)(val.images), given / p), val.labels)
         for p in places]
    )  # fmt: skip
    shares = kept(likelihoods)
    for place, share, spec in zip(places, shares, specs, strict=True):
        said = f"weight {share:.3f}" if share else f"dropped: below {100 * SHARE:g} % of the weight"
        print(f"teach: {spec.name} ({spec.kind}, {spec.parameters:,} parameters) {said}")
        if not share:
            shutil.rmtree(folder / place)
    chosen = [(p, s, float(w)) for p, s, w in zip(places, specs, shares, strict=True) if w]
    members = tuple(Member(folder=p, sha256=s.sha256, weight=w) for p, s, w in chosen)
    write_json(folder / ENSEMBLE, Ensemble(members=members).model_dump(mode="json"))
    spec = summed([s for _, s, _ in chosen], content_sha256(folder, "ensemble"))
    write_spec(folder, spec)
    return spec


def _sound(logits: NDArray[np.float32], member: Path) -> NDArray[np.float32]:
    """`logits`, if all are finite."""
    if not np.isfinite(logits).all():
        raise TeacherError(f"{member}: answers a validation row with NaN; give a sound teacher")
    return logits


def likelihood(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """The probability (N,) that `logits` (N, classes) give each row's own label."""
    probabilities = softmax(logits.astype(np.float64), axis=1)
    return np.maximum(probabilities[np.arange(len(labels)), labels], TINY)


def kept(likelihoods: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights (M,) of sum 1; a member whose share would be below `SHARE` has none, and the
    others share anew what it leaves."""
    chosen = np.arange(len(likelihoods))
    while (shares := convex_weights(likelihoods[chosen])).min() < SHARE:
        chosen = chosen[shares >= SHARE]
    weights = np.zeros(len(likelihoods))
    weights[chosen] = shares
    return weights


def summed(specs: Sequence[ModelSpec], digest: str) -> ModelSpec:
    """The spec of an ensemble: all that its members weigh and cost, as old as the oldest."""
    flops = [spec.flops for spec in specs if spec.flops is not None]
    dates = [spec.created for spec in specs if spec.created is not None]
    return ModelSpec(
        name="teacher",
        kind="ensemble",
        architecture=None,
        normalisation=None,
        data=specs[0].data,
        parameters=sum(spec.parameters for spec in specs),
        bytes=sum(spec.bytes for spec in specs),
        flops=sum(flops) if len(flops) == len(specs) else None,
        sha256=digest,
        created=min(dates, default=None),
    )
