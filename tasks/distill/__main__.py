"""One rung of the chain: a network learns from the banked logits of the one above.

It banks its own logits in turn, whether a rung learns from it today or not: one that is added
tomorrow then trains without training this one again.
"""

from __future__ import annotations

from pathlib import Path

import torch

from tasks.core.bank import read_bank, write_bank
from tasks.core.cost import cpu_seconds
from tasks.core.errors import ParamsError
from tasks.core.files import read_json, write_json
from tasks.core.metrics import correct
from tasks.core.models import (
    MODELS,
    WEIGHTS,
    ModelSpec,
    Normalisation,
    Origin,
    parameters,
    read_spec,
    write_spec,
    write_weights,
)
from tasks.core.params import check, read, section
from tasks.core.reports import RungReport
from tasks.core.rows import Rows, read_rows
from tasks.core.seeds import derived, deterministic
from tasks.core.stage import main
from tasks.core.tables import read_fingerprint, read_split
from tasks.core.trainer import train
from tasks.distill.losses import weighted
from tasks.distill.params import Rung
from tasks.distill.report import check_ratio, report
from tasks.modalities.vision.networks import build, flops
from tasks.modalities.vision.scorers import load_scorer, network_scorer
from tasks.modalities.vision.training import validator, viewer
from tasks.modalities.vision.views import Views


def run(arguments: list[str]) -> None:
    """Train rung `arguments[0]`; write `models/RUNG/` and `measured/RUNG.json`."""
    if len(arguments) != 1:
        raise ParamsError("usage: python -m tasks.distill RUNG")
    name = arguments[0]
    rung = section(f"distill.rungs.{name}", Rung)
    views = section("teach.views", Views)
    deterministic(rung.training.seed, threads=int(read()["threads"]))
    with cpu_seconds() as training:
        rows = _distilled(name, rung, views)
    with cpu_seconds() as banking:
        folder = MODELS / name
        write_bank(
            folder / "bank",
            rows,
            read_spec(folder).sha256,
            views.model_dump(),
            viewer(rows, views),
            load_scorer(folder),
        )
    write_json(
        Path("measured") / f"{name}.json", {**training, "bank_cpu_seconds": banking["cpu_seconds"]}
    )


def _distilled(name: str, rung: Rung, views: Views) -> Rows:
    """Train and write the rung's weights, spec, history and report; returns the rows it saw."""
    fingerprint = read_fingerprint()
    data = fingerprint.data
    above, folder = MODELS / rung.from_, MODELS / name
    teacher = read_spec(above)
    norm = Normalisation(mean=fingerprint.mean, std=fingerprint.std)
    torch.manual_seed(derived(rung.training.seed, name))
    net = build(rung.architecture, data, norm)
    count = parameters(net.state_dict())
    check_ratio(teacher, name, count)
    loss = weighted(rung)
    rows, val = read_rows(data), read_split("val", data)
    bank = read_bank(above / "bank", rows, teacher.sha256, views.model_dump())

    train(
        net,
        rows,
        loss,
        rung.training,
        viewer(rows, views),
        bank.signal,
        validator(net, val),
        folder / "history.jsonl",
        f"distill@{name}",
    )

    digest = write_weights(folder / WEIGHTS, net.state_dict())
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
        fingerprint=fingerprint.digest,
    )
    write_spec(folder, spec)
    hits = int(correct(network_scorer(net)(val.images), val.labels).sum())
    result = report(spec, hits, len(val), _report_above(above, teacher))
    write_json(folder / "report.json", result.model_dump(mode="json"))
    print(
        f"distill@{name}: {count:,} parameters, validation accuracy "
        f"{100 * result.val_accuracy.value:.2f} %, {result.compression:.1f}:1"
    )
    return rows


def _report_above(above: Path, spec: ModelSpec) -> RungReport:
    """The report of the rung above; the teacher's comes from its evaluation."""
    if spec.name == "teacher":
        evaluated = read_json(Path("reports/teacher/report.json"))["val"]
        rows = evaluated["rows"]
        return report(spec, round(evaluated["accuracy"]["value"] * rows), rows, None)
    return check(RungReport, read_json(above / "report.json"), where=str(above / "report.json"))


if __name__ == "__main__":
    main(run)
