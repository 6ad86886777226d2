"""Relational distillation (RKD, Park et al., 2019): distances and angles between rows of a batch.

Of the named layers, flattened, or of the logits where none is named: a bank is enough then. A
relation belongs to two or three rows, so sample weights cannot act here. Distances are in units of
their mean, angles are cosines; both are free of scale, so no temperature applies.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tasks.core.layers import pairs
from tasks.core.signal import Batch, Student
from tasks.distill.params import Rung

USES = ("layers",)
ANGLE = 2.0  # of angles against distances, as in the paper (25 and 50)
TOGETHER = 128  # rows whose angles are compared: memory grows with the cube
SMALL = 1e-12  # squared distance of rows that coincide
ROUNDING = 1e-5  # of the mean squared distance: as near as bfloat16 tells rows apart


def loss(student: Student, batch: Batch, rung: Rung) -> Tensor:
    """Huber's loss of distances plus twice that of angles, averaged over the layers."""
    losses = []
    for ours, theirs in pairs(rung.layers, student, batch.teacher):
        near, far = ours.flatten(1), theirs.flatten(1)
        losses.append(_distances(near, far) + ANGLE * _angles(near, far))
    return torch.stack(losses).mean()


def _distances(student: Tensor, teacher: Tensor) -> Tensor:
    """Of all pairs of two rows."""
    apart = ~torch.eye(len(student), dtype=torch.bool, device=student.device)
    ours, theirs = (_squared(x)[apart].sqrt() for x in (student, teacher))
    return F.smooth_l1_loss(ours / ours.mean(), theirs / theirs.mean())


def _angles(student: Tensor, teacher: Tensor) -> Tensor:
    """Of all triples of three rows, within parts of at most `TOGETHER` rows."""
    parts = -(-len(student) // TOGETHER)
    errors = []
    for near, far in zip(student.chunk(parts), teacher.chunk(parts), strict=True):
        apart = _apart(near.detach()) & _apart(far)
        distinct = apart[:, :, None] & apart[:, None, :] & apart[None, :, :]
        each = F.smooth_l1_loss(_cosines(near), _cosines(far), reduction="none")
        errors.append((each * distinct).sum() / max(int(distinct.sum()), 1))
    return torch.stack(errors).mean()


def _apart(rows: Tensor) -> Tensor:
    """Which pairs of rows (N, N) do not coincide: an angle at those that do is noise. A bank
    rounds, so a teacher's coincide more often than a student's."""
    squared = _squared(rows)
    return squared > ROUNDING * squared.mean()


def _cosines(rows: Tensor) -> Tensor:
    """[j, i, k]: the cosine of the angle at row j between rows i and k, by inner products alone:
    differences of all pairs would hold (N, N, features) at once."""
    inner = _inner(rows)
    at = inner.diagonal()
    product = inner[None] - inner[:, :, None] - inner[:, None, :] + at[:, None, None]
    length = _squared(rows).sqrt()
    return product / (length[:, :, None] * length[:, None, :])


def _squared(rows: Tensor) -> Tensor:
    """Squared distances (N, N)."""
    inner = _inner(rows)
    at = inner.diagonal()
    return (at[:, None] + at[None] - 2 * inner).clamp(min=SMALL)


def _inner(rows: Tensor) -> Tensor:
    """Inner products (N, N) of rows about their mean, where less is lost to rounding."""
    centred = rows - rows.mean(0)
    return centred @ centred.T
