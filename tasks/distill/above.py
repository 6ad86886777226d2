"""The models above a rung as its losses see them: the loss and the signal that a training is given.

What cannot work is refused here, before anything trains: a black box whose layers are asked for,
layers that do not exist, models that were not handed on, rows without any label.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from tasks.core.bank import Bank
from tasks.core.errors import DataError, ParamsError, TeacherError
from tasks.core.layers import Shapes, check_layers, layer_shapes
from tasks.core.live import live_network, live_scorer
from tasks.core.models import ModelSpec
from tasks.core.seeds import derived
from tasks.core.signal import Signal
from tasks.core.tables import UNLABELLED
from tasks.distill.losses import Weighted
from tasks.distill.params import Rung, needs
from tasks.modalities.vision.scorers import load_network, load_scorer


def check_rows(name: str, rung: Rung, labels: Tensor, bank: Bank) -> None:
    """Raise an error if the losses of the rung cannot learn from these `labels` and this bank."""
    if bool((labels == UNLABELLED).all()) and all("labels" in needs(loss) for loss in rung.losses):
        raise DataError(
            f"distill.rungs.{name}.losses: no training row has a label, and "
            f"{', '.join(rung.losses)} learns from labels alone; add kd, or labelled rows"
        )
    for loss in rung.losses:
        if "handed_on" in needs(loss) and not bank.above:
            raise ParamsError(
                f"distill.rungs.{name}.losses: {loss} learns from all models above, and "
                f"'{rung.from_}' hands none on; set hand_on there, or use kd"
            )


def taught_by(
    name: str, rung: Rung, net: nn.Module, folder: Path, spec: ModelSpec, bank: Bank, threads: int
) -> tuple[Weighted, Signal]:
    """The rung's loss and signal. `folder` and `spec` are of the model above, whose `bank` this is;
    a live signal asks that model itself, and the bank for the ones above it.

    Raises `TeacherError` for layers of a black box and `ParamsError` for layers that do not exist.
    """
    where = f"distill.rungs.{name}.layers"
    if rung.layers and spec.kind != "torch":
        raise TeacherError(
            f"{where}: '{rung.from_}' is a black box ({spec.kind}) and shows no layers; use losses "
            "that read logits, or a teacher as safetensors"
        )
    if rung.signal == "live" and bank.info.folds:
        raise TeacherError(
            f"distill.rungs.{name}.signal: a live teacher has seen the rows that teach.folds keeps "
            "from the networks of its bank; use signal: bank"
        )
    signal: Signal = bank.signal
    student, teacher = {}, {}
    if rung.signal == "live" and spec.kind == "torch":
        above, theirs = load_network(folder, spec), tuple(rung.layers.values())
        check_layers(net, rung.layers, f"{where}: {name}")
        check_layers(above, theirs, f"{where}: {rung.from_}")
        student = layer_shapes(net, rung.layers, spec.data.shape)
        teacher = layer_shapes(above, theirs, spec.data.shape)
        signal = _nearest_live(live_network(above, theirs), bank)
    elif rung.signal == "live":
        signal = _nearest_live(live_scorer(load_scorer(folder, threads)), bank)
    # What a loss draws is the same whether a network was loaded, which draws too, or a bank read.
    torch.manual_seed(derived(rung.training.seed, name, "loss"))
    return Weighted(rung, Shapes(spec.data.range, student, teacher)), signal


def _nearest_live(nearest: Signal, bank: Bank) -> Signal:
    """The model above asked itself, and `bank` for the models above that one, if it has them."""
    if not bank.above:
        return nearest
    return lambda images, index, view: (
        *nearest(images, index, view),
        *bank.signal(images, index, view)[1:],
    )
