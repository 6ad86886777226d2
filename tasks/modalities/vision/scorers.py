"""One way to ask any model for logits: a torch network or an ONNX black box on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from tasks.core.models import ModelSpec, read_spec, read_weights, weights_path
from tasks.core.session import open_session, score
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
    """A scorer for a model folder of either kind."""
    spec = read_spec(folder)
    if spec.kind == "torch":
        return network_scorer(load_network(folder, spec))
    session = open_session(weights_path(folder, spec), threads)
    return lambda images: score(session, images)[0]
