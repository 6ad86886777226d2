"""Train a teacher, or take a given one; then bank its logits for every rung below."""

from __future__ import annotations

import shutil

import torch
from torch import Tensor
from torch.nn import functional as F

from tasks.core.bank import write_bank
from tasks.core.cost import cpu_seconds
from tasks.core.files import write_json
from tasks.core.models import (
    MODELS,
    WEIGHTS,
    ModelSpec,
    Normalisation,
    parameters,
    weights_path,
    write_spec,
    write_weights,
)
from tasks.core.params import read, section
from tasks.core.rows import Rows, read_rows
from tasks.core.seeds import derived, deterministic
from tasks.core.signal import Batch, Student
from tasks.core.stage import main
from tasks.core.tables import DATA, Fingerprint, read_fingerprint, read_split
from tasks.core.trainer import train
from tasks.modalities.vision.networks import build, flops
from tasks.modalities.vision.scorers import load_scorer
from tasks.modalities.vision.training import validator, viewer
from tasks.teach.given import read_given
from tasks.teach.params import TeachParams

FOLDER = MODELS / "teacher"


def run(_: list[str]) -> None:
    """Write `models/teacher/` (weights, spec, history, bank) and `measured/teacher.json`."""
    params = section("teach", TeachParams)
    deterministic(params.training.seed, threads=int(read()["threads"]))
    fingerprint = read_fingerprint()
    rows = read_rows(fingerprint.data)
    with cpu_seconds() as training:
        spec = _taught(params, fingerprint, rows)
    with cpu_seconds() as banking:
        write_bank(
            FOLDER / "bank",
            rows,
            spec.sha256,
            params.views.model_dump(),
            viewer(rows, params.views),
            load_scorer(FOLDER, torch.get_num_threads()),
        )
    write_json(
        DATA.parent / "measured" / "teacher.json",
        {**training, "bank_cpu_seconds": banking["cpu_seconds"]},
    )


def _taught(params: TeachParams, fingerprint: Fingerprint, rows: Rows) -> ModelSpec:
    """The teacher's weights and spec, trained here or copied from the snapshot."""
    if params.source == "train":
        return _trained(params, fingerprint, rows)
    given = DATA / "raw" / "teacher"
    spec = read_given(given, params.source, fingerprint.data)
    FOLDER.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(weights_path(given, spec), weights_path(FOLDER, spec))
    write_spec(FOLDER, spec)
    return spec


def _trained(params: TeachParams, fingerprint: Fingerprint, rows: Rows) -> ModelSpec:
    """A residual network trained on labels with smoothing."""
    data = fingerprint.data
    norm = Normalisation(mean=fingerprint.mean, std=fingerprint.std)
    torch.manual_seed(derived(params.training.seed, "teacher"))
    net = build(params.architecture, data, norm)

    def loss(student: Student, batch: Batch) -> Tensor:
        return F.cross_entropy(student.logits, batch.labels, label_smoothing=params.label_smoothing)

    train(
        net,
        rows,
        loss,
        params.training,
        viewer(rows, params.views),
        None,
        validator(net, read_split("val", data)),
        FOLDER / "history.jsonl",
        "teach",
    )
    digest = write_weights(FOLDER / WEIGHTS, net.state_dict())
    count = parameters(net.state_dict())
    spec = ModelSpec(
        name="teacher",
        kind="torch",
        architecture=params.architecture,
        normalisation=norm,
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
