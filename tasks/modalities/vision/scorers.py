"""One way to ask any model on disk for logits, whatever kind it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax, logsumexp

from tasks.core.models import ModelSpec, read_ensemble, read_spec, read_weights, weights_path
from tasks.core.session import open_session, score
from tasks.modalities.vision.huggingface import load_huggingface
from tasks.modalities.vision.networks import ResidualNetwork, build


class Scorer(Protocol):
    """Logits (N, classes) in float32 of raw images (N, C, H, W)."""

    def __call__(self, images: NDArray[np.generic], /) -> NDArray[np.float32]: ...


def load_network(folder: Path, spec: ModelSpec | None = None) -> ResidualNetwork:
    """The torch network of a model folder, in eval mode."""
    spec = spec or read_spec(folder)
    assert spec.architecture is not None  # noqa: S101 - kind "torch" has both
    assert spec.normalisation is not None  # noqa: S101
    net = build(spec.architecture, spec.data, spec.normalisation)
    net.load_state_dict(read_weights(weights_path(folder, spec)))
    return net.eval()


def network_scorer(net: torch.nn.Module, batch: int = 256) -> Scorer:
    """Score with a torch network; it is put in eval mode and no gradient is kept."""

    def logits(images: NDArray[np.generic], /) -> NDArray[np.float32]:
        net.eval()
        out = []
        with torch.inference_mode():
            for start in range(0, len(images), batch):
                block = np.array(images[start : start + batch], dtype=np.float32)  # writable
                out.append(net(torch.from_numpy(block)).numpy())
        return np.concatenate(out)

    return logits


def load_scorer(folder: Path, threads: int = 1) -> Scorer:
    """A scorer for a model folder of any kind; `threads` is for ONNX Runtime, torch has its own."""
    spec = read_spec(folder)
    match spec.kind:
        case "torch":
            return network_scorer(load_network(folder, spec))
        case "huggingface":
            return network_scorer(load_huggingface(folder, spec.data))
        case "ensemble":
            members = read_ensemble(folder)
            scorers = [load_scorer(folder / member.folder, threads) for member in members]
            return mixture(scorers, [member.weight for member in members])
    session = open_session(weights_path(folder, spec), threads)
    return lambda images: score(session, images)[0]


def mixture(scorers: Sequence[Scorer], weights: Sequence[float]) -> Scorer:
    """Logits whose softmax is the weighted mean of the members' probabilities.

    >>> sure = lambda images: np.log(np.tile(np.float32([0.9, 0.1]), (len(images), 1)))
    >>> unsure = lambda images: np.zeros((len(images), 2), np.float32)
    >>> np.exp(mixture([sure, unsure], [0.5, 0.5])(np.zeros((1, 1, 4, 4)))).round(3).tolist()
    [[0.699999988079071, 0.30000001192092896]]
    """
    shares = np.log(np.array(weights, dtype=np.float64))[:, None, None]

    def logits(images: NDArray[np.generic], /) -> NDArray[np.float32]:
        each = np.stack([scorer(images) for scorer in scorers]).astype(np.float64)
        mixed = logsumexp(log_softmax(each, axis=2) + shares, axis=0)
        return np.asarray(mixed, dtype=np.float32)

    return logits
