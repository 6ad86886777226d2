"""Train a teacher, or take a given one or several; then bank its logits for every rung below."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.core.adversary import search
from tasks.core.banking import write_bank
from tasks.core.checkpoint import CHECKPOINTS, remove_checkpoint
from tasks.core.cost import cpu_seconds
from tasks.core.files import write_json
from tasks.core.models import (
    MODELS,
    WEIGHTS,
    ModelSpec,
    Normalisation,
    parameters,
    write_spec,
    write_weights,
)
from tasks.core.parallel import go_on_alone, joined
from tasks.core.params import read, section
from tasks.core.rows import Rows, read_rows, read_validation
from tasks.core.seeds import derived, deterministic
from tasks.core.signal import Batch, Student
from tasks.core.stage import main
from tasks.core.tables import DATA, Fingerprint, read_fingerprint, read_split
from tasks.core.trainer import train
from tasks.modalities.vision.networks import build, flops
from tasks.modalities.vision.scorers import load_scorer, network_scorer
from tasks.modalities.vision.training import attacked_validator, validator, viewer
from tasks.teach.ensemble import write_ensemble
from tasks.teach.folds import RowScorer, check_folds, chosen, fold_of, out_of_fold
from tasks.teach.given import write_given
from tasks.teach.params import TeachParams

FOLDER = MODELS / "teacher"


def run(_: list[str]) -> None:
    """Write `models/teacher/` (weights, spec, history, bank) and `measured/teacher.json`."""
    params = section("teach", TeachParams)
    deterministic(params.training.seed, threads=int(read()["threads"]))
    fingerprint = read_fingerprint()
    params.bank.fits(len(fingerprint.data.classes))
    rows = read_rows(fingerprint.data)
    banked = read_rows(fingerprint.data, transfer=True) if fingerprint.transfer else rows
    if params.folds:
        check_folds(fold_of(rows.keys, params.folds), params.folds, params.training.batch)
    with cpu_seconds() as training:
        spec = _taught(params, fingerprint, rows)
        score = _scorer(params, fingerprint, rows, banked)
    with cpu_seconds() as banking:
        write_bank(
            FOLDER / "bank",
            banked,
            spec.sha256,
            params.views.model_dump(),
            viewer(banked, params.views, fingerprint.data),
            score,
            params.bank,
            folds=params.folds,
        )
    write_json(
        DATA.parent / "measured" / "teacher.json",
        {
            **training,
            "bank_cpu_seconds": banking["cpu_seconds"],
            "bank_views": params.views.count,  # one view: what an epoch with a live teacher adds
        },
    )
    for name in ("teacher", *map(_fold, range(params.folds or 0))):
        remove_checkpoint(CHECKPOINTS / name)


def _taught(params: TeachParams, fingerprint: Fingerprint, rows: Rows) -> ModelSpec:
    """The teacher's weights and spec, trained here or copied from the snapshot."""
    data, given = fingerprint.data, DATA / "raw" / "teacher"
    if params.source == "train":
        return _trained(params, fingerprint, rows)
    joined()
    go_on_alone()  # what is given needs no second process
    if params.source == "ensemble":
        sources = [member.source for member in params.members]
        return write_ensemble(
            given, FOLDER, sources, data, read_split("val", data), torch.get_num_threads()
        )
    return write_given(given, FOLDER, params.source, data, "teacher")


def _scorer(params: TeachParams, fingerprint: Fingerprint, rows: Rows, banked: Rows) -> RowScorer:
    """What the bank is told of the rows `banked`: the teacher's own answers, or those of one more
    network for each fold, trained on the labelled `rows` of all others."""
    if params.folds is None:
        teacher = load_scorer(FOLDER, torch.get_num_threads())
        return lambda images, _: teacher(images)
    fold, scorers = fold_of(rows.keys, params.folds), []
    for number in range(params.folds):
        name, history = _fold(number), FOLDER / "folds" / f"{number + 1}.jsonl"
        seen = chosen(rows, fold != number)
        scorers.append(network_scorer(_network(params, fingerprint, seen, name, history)))
    return out_of_fold(scorers, fold_of(banked.keys, params.folds))


def _fold(number: int) -> str:
    """What the network is called that never sees fold `number` (from 0)."""
    return f"teacher-fold-{number + 1}"


def _network(
    params: TeachParams, fingerprint: Fingerprint, rows: Rows, name: str, history: Path
) -> nn.Module:
    """A residual network trained on labels with smoothing; `name` draws its first weights."""
    norm = Normalisation(mean=fingerprint.mean, std=fingerprint.std)
    torch.manual_seed(derived(params.training.seed, name))
    net = build(params.architecture, fingerprint.data, norm)

    adversary, data = params.adversary, fingerprint.data

    def loss(student: Student, batch: Batch) -> Tensor:
        def wrong(logits: Tensor) -> Tensor:
            return F.cross_entropy(logits, batch.labels, label_smoothing=params.label_smoothing)

        if adversary is None:
            return wrong(student.logits)
        assert student.forward is not None  # noqa: S101 - the trainer gives it
        near = search(adversary, *data.range).worst(student, batch.images, wrong)
        # Of x' alone, as in Madry et al. (2018); but BatchNorm has seen the clean batch too.
        return wrong(student.forward(near))

    val = read_validation(data)
    validate = validator(net, val)
    if adversary is not None and params.training.patience is not None:  # it chooses the epoch
        validate = attacked_validator(net, val, data, adversary)
    train(
        net,
        rows,
        loss,
        params.training,
        view=viewer(rows, params.views, data),
        validate=validate,
        history=history,
        what=name.replace("teacher", "teach"),
        checkpoints=CHECKPOINTS / name,
        about={
            "data": fingerprint.digest,
            "views": params.views.model_dump(),
            "label_smoothing": params.label_smoothing,
            "adversary": adversary and adversary.model_dump(),
        },
    )
    return net


def _trained(params: TeachParams, fingerprint: Fingerprint, rows: Rows) -> ModelSpec:
    """The network that learned from all rows."""
    data = fingerprint.data
    net = _network(params, fingerprint, rows, "teacher", FOLDER / "history.jsonl")
    go_on_alone()
    digest = write_weights(FOLDER / WEIGHTS, net.state_dict())
    count = parameters(net.state_dict())
    spec = ModelSpec(
        name="teacher",
        kind="torch",
        architecture=params.architecture,
        normalisation=Normalisation(mean=fingerprint.mean, std=fingerprint.std),
        data=data,
        parameters=count,
        bytes=4 * count,
        flops=flops(net, data),
        sha256=digest,
        fingerprint=fingerprint.digest,
    )
    write_spec(FOLDER, spec)
    return spec


if __name__ == "__main__":
    main(run)
