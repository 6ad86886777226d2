"""Each loss written out from its paper in NumPy and float64, row by row, with nothing of ours."""

from __future__ import annotations

from itertools import permutations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tests.distill.lessons import FAR, LABELS, NEAR, OURS, THEIRS

Array = NDArray[np.float64]


def soft(logits: Tensor, temperature: float) -> Array:
    powers = np.exp(logits.double().numpy() / temperature)
    return np.asarray(powers / powers.sum(1, keepdims=True))


def kl(p: Array, q: Array) -> float:
    return float((p * np.log(p / q)).sum())


def cross_entropy_by_hand() -> float:
    return float(np.mean([-np.log(soft(OURS, 1)[i, k]) for i, k in enumerate(LABELS)]))


def kd_by_hand(temperature: float = 3.0, teacher: Tensor = THEIRS) -> float:
    p, q = soft(teacher, temperature), soft(OURS, temperature)
    return temperature**2 * float(np.mean([kl(p[i], q[i]) for i in range(6)]))


def dkd_by_hand(labels: list[int] | None = None) -> float:
    """Eq. 7 of the paper."""
    p, q, rows = soft(THEIRS, 3), soft(OURS, 3), []
    for i, right in enumerate(labels or LABELS.tolist()):
        wrong = [k for k in range(4) if k != right]
        both = [np.array([d[i, right], 1 - d[i, right]]) for d in (p, q)]
        among = [d[i, wrong] / d[i, wrong].sum() for d in (p, q)]
        rows.append(1.5 * kl(*both) + 4.0 * kl(*among))
    return 9 * float(np.mean(rows))


def dist_by_hand() -> float:
    p, q = soft(THEIRS, 3), soft(OURS, 3)
    inter = [1 - np.corrcoef(p[i], q[i])[0, 1] for i in range(6)]
    intra = [1 - np.corrcoef(p[:, k], q[:, k])[0, 1] for k in range(4)]
    return float(np.mean(inter) + np.mean(intra))


def pooled(maps: Tensor) -> Array:
    """4×4 to 2×2 by means of 2×2."""
    values = maps.double().numpy()
    return values.reshape(*values.shape[:2], 2, 2, 2, 2).mean((3, 5))


def hint_by_hand(kernel: Tensor, bias: Tensor) -> float:
    k, b = (p.detach().double().numpy() for p in (kernel, bias))
    projected = np.einsum("oc,nchw->nohw", k[:, :, 0, 0], pooled(NEAR)) + b[:, None, None]
    return float(((projected - FAR.double().numpy()) ** 2).mean())


def attention_by_hand() -> float:
    near = pooled((NEAR**2).sum(1, keepdim=True))[:, 0].reshape(6, -1)
    far = (FAR.double().numpy() ** 2).sum(1).reshape(6, -1)
    each = [
        ((a / np.sqrt((a**2).sum()) - b / np.sqrt((b**2).sum())) ** 2).sum()
        for a, b in zip(near, far, strict=True)
    ]
    return float(np.mean(each))


def huber(a: float, b: float) -> float:
    return 0.5 * (a - b) ** 2 if abs(a - b) <= 1 else abs(a - b) - 0.5


def rkd_by_hand(first: Tensor = OURS, second: Tensor = THEIRS) -> float:
    s, t = (x.flatten(1).double().numpy() for x in (first, second))
    two = list(permutations(range(6), 2))
    mean_s, mean_t = (np.mean([np.linalg.norm(x[i] - x[j]) for i, j in two]) for x in (s, t))
    distances = [
        huber(
            float(np.linalg.norm(s[i] - s[j]) / mean_s), float(np.linalg.norm(t[i] - t[j]) / mean_t)
        )
        for i, j in two
    ]

    def angle(x: Array, i: int, j: int, k: int) -> float:
        a, b = x[i] - x[j], x[k] - x[j]
        return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))

    angles = [huber(angle(s, i, j, k), angle(t, i, j, k)) for i, j, k in permutations(range(6), 3)]
    return float(np.mean(distances) + 2 * np.mean(angles))


def similarity_by_hand(first: Tensor = OURS, second: Tensor = THEIRS) -> float:
    matrices = []
    for x in (first, second):
        rows = x.flatten(1).double().numpy()
        gram = rows @ rows.T
        matrices.append(gram / np.linalg.norm(gram, axis=1, keepdims=True))
    return float(((matrices[0] - matrices[1]) ** 2).sum() / 36)
