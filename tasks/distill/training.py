"""A rung learns from the bank of the model above, and banks its own logits: of a run, or of a plan.

`tasks.distill` does it once for each rung that `params.yaml` names, `tasks.distill.compare` for
each chain and seed that it compares. Reads no test rows and decides nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from tasks.core.bank import Bank, BankForm, read_bank
from tasks.core.banking import write_bank
from tasks.core.models import (
    WEIGHTS,
    ModelSpec,
    Normalisation,
    Origin,
    parameters,
    read_spec,
    write_spec,
    write_weights,
)
from tasks.core.parallel import go_on_alone
from tasks.core.params import section
from tasks.core.rows import Rows, read_rows, read_validation
from tasks.core.seeds import derived
from tasks.core.tables import Fingerprint, read_fingerprint
from tasks.core.trainer import train
from tasks.distill.above import check_rows, taught_by
from tasks.distill.params import Rung
from tasks.distill.warm_start import start_from
from tasks.modalities.vision.networks import build, flops
from tasks.modalities.vision.scorers import load_scorer
from tasks.modalities.vision.training import attacked_validator, validator, viewer
from tasks.modalities.vision.views import Views


@dataclass(frozen=True)
class Material:
    """What every rung learns on: training rows, validation rows, what their banks look like, and
    the folder of former weights, where a rung of their architecture starts from them."""

    fingerprint: Fingerprint
    rows: Rows
    val: Rows
    views: Views
    form: BankForm
    warm_start: Path | None = None


def read_material(warm_start: Path | None = None) -> Material:
    """The tables of the working directory, and `teach.views` and `teach.bank` of `params.yaml`."""
    fingerprint = read_fingerprint()
    return Material(
        fingerprint,
        read_rows(fingerprint.data, transfer=True),
        read_validation(fingerprint.data),
        section("teach.views", Views),
        section("teach.bank", BankForm),
        warm_start,
    )


def learn(
    name: str, rung: Rung, above: Path, folder: Path, on: Material, checkpoints: Path, what: str
) -> tuple[ModelSpec, Bank]:
    """Train rung `name` from the model in `above`; write weights, spec and history to `folder`.

    Returns its spec and the bank that it learned from.
    """
    teacher, data = read_spec(above), on.fingerprint.data
    norm = Normalisation(mean=on.fingerprint.mean, std=on.fingerprint.std)
    torch.manual_seed(derived(rung.training.seed, name))
    net = build(rung.architecture, data, norm)
    former = start_from(net, rung.architecture, data, on.warm_start) if on.warm_start else None
    if former is not None and former.normalisation is not None:
        norm = former.normalisation
    bank = read_bank(above / "bank", on.rows, teacher.sha256, on.views.model_dump(), on.form)
    check_rows(name, rung, on.rows.labels, bank)
    loss, signal = taught_by(name, rung, net, above, teacher, bank, torch.get_num_threads())
    validate = validator(net, on.val)
    if rung.adversary is not None and rung.training.patience is not None:  # it chooses the epoch
        validate = attacked_validator(net, on.val, data, rung.adversary)
    train(
        net,
        on.rows,
        loss,
        rung.training,
        view=viewer(on.rows, on.views, data),
        validate=validate,
        history=folder / "history.jsonl",
        what=what,
        signal=signal,
        weights=bank.weights(rung.flip_weight),
        layers=tuple(rung.layers),
        checkpoints=checkpoints,
        about={
            "data": on.fingerprint.digest,
            "bank": bank.info.model_dump(mode="json"),
            "rung": rung.model_dump(mode="json", exclude={"training"}),
            "warm_start": former and former.sha256,
        },
    )
    go_on_alone()
    digest = write_weights(folder / WEIGHTS, net.state_dict())
    count = parameters(net.state_dict())
    spec = ModelSpec(
        name=name,
        kind="torch",
        architecture=rung.architecture,
        normalisation=norm,
        data=data,
        parameters=count,
        bytes=4 * count,
        flops=flops(net, data),
        sha256=digest,
        learned_from=Origin(name=teacher.name, sha256=teacher.sha256),
        warm_start=former and Origin(name=former.name, sha256=former.sha256),
        fingerprint=on.fingerprint.digest,
    )
    write_spec(folder, spec)
    return spec, bank


def bank_of(folder: Path, rung: Rung, above: Bank, on: Material) -> None:
    """Write the bank of the model in `folder`, which learned from the bank `above`."""
    score = load_scorer(folder)
    write_bank(
        folder / "bank",
        on.rows,
        read_spec(folder).sha256,
        on.views.model_dump(),
        viewer(on.rows, on.views, on.fingerprint.data),
        lambda images, _: score(images),
        on.form,
        above,
        rung.hand_on,
    )
