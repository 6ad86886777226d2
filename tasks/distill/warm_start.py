"""Former weights that a rung of the same architecture starts from, instead of random ones.

They lie in `data/raw/warm_start/`, a model folder that the flow brings: no stage asks a registry.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tasks.core.errors import DataError
from tasks.core.models import Architecture, ModelSpec, finite, read_spec
from tasks.core.tables import DATA, Schema
from tasks.modalities.vision.networks import ResidualNetwork
from tasks.modalities.vision.scorers import load_network

FOLDER = DATA / "raw" / "warm_start"


def read_former(folder: Path, data: Schema) -> tuple[ModelSpec, ResidualNetwork]:
    """The network in `folder`; a `DataError` says why one of today's data cannot start from it."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no former weights here; `stillhouse run` brings them")
    spec = read_spec(folder)
    if spec.kind != "torch":
        raise DataError(f"{folder}: is of kind {spec.kind}; a warm start needs a torch network")
    norm = spec.normalisation
    if spec.architecture is None or norm is None:
        raise DataError(f"{folder}: spec.json has no architecture or normalisation; restore it")
    was = spec.data
    if (was.classes, was.shape, was.dtype) != (data.classes, data.shape, data.dtype) or (
        data.dtype == "uint8" and was.range != data.range  # that of floats is as it was seen
    ):
        raise DataError(
            f"{folder}: learned from data of other classes, shape or values than today's; "
            "set distill.warm_start: null"
        )
    try:
        net = load_network(folder, spec)
    except RuntimeError:
        raise DataError(f"{folder}: weights and spec.json do not fit; restore the pair") from None
    if not np.allclose((norm.mean, norm.std), (float(net.mean), float(net.std)), rtol=1e-3):
        raise DataError(
            f"{folder}: weights normalise otherwise than spec.json says; restore the pair"
        )
    if not finite(net.state_dict()):
        raise DataError(f"{folder}: weights hold NaN or infinity; set distill.warm_start: null")
    return spec, net


def start_from(
    net: ResidualNetwork, architecture: Architecture, data: Schema, folder: Path
) -> ModelSpec | None:
    """Give `net` the former weights, with the normalisation that they were trained under.

    Returns their spec; None, and `net` as it was, where they are of another architecture.
    """
    spec, former = read_former(folder, data)
    if spec.architecture != architecture:
        return None
    net.load_state_dict(former.state_dict())
    return spec
