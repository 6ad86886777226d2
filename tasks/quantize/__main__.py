"""One student as its final file: every scheme is built and measured, one is chosen."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tasks.core.bank import Bank, BankForm, read_bank
from tasks.core.checkpoint import CHECKPOINTS, remove_checkpoint
from tasks.core.cost import cpu_seconds
from tasks.core.errors import DataError, ParamsError
from tasks.core.files import write_bytes, write_json
from tasks.core.metrics import fit_temperature
from tasks.core.models import MODELS, ModelSpec, finite, read_spec
from tasks.core.params import read, section
from tasks.core.rows import Rows, read_rows
from tasks.core.seeds import deterministic
from tasks.core.session import open_session, score
from tasks.core.stage import main
from tasks.core.tables import Schema, Table, read_fingerprint, read_split, read_train
from tasks.modalities.vision.networks import ResidualNetwork, folded
from tasks.modalities.vision.scorers import load_network, network_scorer
from tasks.modalities.vision.views import Views
from tasks.quantize.candidates import build
from tasks.quantize.goals import check_goals
from tasks.quantize.mixed import MIXTURES
from tasks.quantize.params import Budget, QuantizeParams
from tasks.quantize.parity import parity
from tasks.quantize.plot import frontier_png, sensitivity_png, times_png
from tasks.quantize.search import (
    REFERENCE,
    TIMES,
    Candidate,
    choose,
    frontier,
    frontier_csv,
    latency,
    measure,
)
from tasks.quantize.sensitivity import document
from tasks.quantize.sensitivity import table as sensitivity_table
from tasks.quantize.ship import Shipment, replaced, write_shipment
from tasks.quantize.targets import target

SHIP, MEASURED = Path("ship"), Path("measured")
PARITY_ROWS = 2048  # at least: all validation rows, and training rows where they are fewer


def run(arguments: list[str]) -> None:
    """Quantize student `arguments[0]`; write `ship/STUDENT/` and its files in `measured`."""
    if len(arguments) != 1:
        raise ParamsError("usage: python -m tasks.quantize STUDENT")
    name = arguments[0]
    params, views = section("quantize", QuantizeParams), section("teach.views", Views)
    budget = section("requirements", Budget).latency_ms * params.latency_margin
    deterministic(params.qat.seed, threads=int(read()["threads"]))
    data = read_fingerprint().data
    source = MODELS / name
    spec, net = _student(source, data)
    train, rows, val = read_train(data), read_rows(data, transfer=True), read_split("val", data)
    temperature = fit_temperature(network_scorer(net)(val.images), val.labels)
    bank = _bank(rows, views) if "qat" in params.schemes else None
    with replaced(SHIP / name) as folder:
        with cpu_seconds() as spent:
            built = build(
                folded(net), data, train, rows, val, bank, views, params, temperature, budget,
                folder, lambda scheme: CHECKPOINTS / f"{name}-{scheme}",
            )  # fmt: skip
            files = built.files
            latencies = {scheme: latency(content, val) for scheme, content in files.items()}
            candidates = _measured(files, val, latencies)
            check_goals(name, candidates, params.goals, budget)
            choice = choose(candidates, params.goals, budget)
        final = files[choice.chosen]
        images = np.concatenate([val.images, train.images])[: max(len(val), PARITY_ROWS)]
        write_shipment(
            folder,
            Shipment(
                student=spec,
                source=source,
                model=final,
                floats=files[REFERENCE],
                frontier=frontier(
                    name, candidates, choice, params.accuracy_drop, built.left_out, built.mixtures
                ),
                table=frontier_csv(candidates, choice),
                picture=frontier_png(candidates, choice, params.accuracy_drop),
                sensitivity=document(name, built.sensitivity_rows, built.sensitivity),
                sensitivity_table=sensitivity_table(built.sensitivity),
                sensitivity_picture=sensitivity_png(built.sensitivity),
                parity=parity(net, temperature, files[REFERENCE], final, images),
                target=target(params.target).name,
            ),
        )
    for scheme in ("qat", *MIXTURES):
        remove_checkpoint(CHECKPOINTS / f"{name}-{scheme}")
    timed = frontier_csv(candidates, choice, TIMES)
    write_bytes(MEASURED / f"frontier-{name}.csv", timed)
    picture = times_png(candidates, choice, params.accuracy_drop, budget)
    write_bytes(MEASURED / f"frontier-{name}.png", picture)
    write_json(
        MEASURED / f"quantize-{name}.json",
        {
            **spent,
            "latency_ms": latencies,
            "budget_ms": budget,
            "vetoed": list(choice.vetoed),
        },
    )
    print(choice.why)


def _student(folder: Path, data: Schema) -> tuple[ModelSpec, ResidualNetwork]:
    """The float student, if it is a sound network for today's data."""
    spec = read_spec(folder)
    if spec.kind != "torch":
        raise DataError(f"{folder}: a student is a torch network, not {spec.kind}; run distill")
    if spec.data != data:
        raise DataError(f"{folder}: trained for other data than data/fingerprint.json; run distill")
    net = load_network(folder, spec)
    if not finite(net.state_dict()):
        raise DataError(f"{folder}: weights hold NaN or infinity; run distill again")
    return spec, net


def _bank(rows: Rows, views: Views) -> Bank:
    """The teacher's bank, checked against today's teacher, rows and views."""
    teacher = MODELS / "teacher"
    model, form = read_spec(teacher).sha256, section("teach.bank", BankForm)
    return read_bank(teacher / "bank", rows, model, views.model_dump(), form)


def _measured(
    files: dict[str, bytes], val: Table, times: dict[str, dict[str, float]]
) -> list[Candidate]:
    """Every file on validation rows, against the float32 one."""
    floats, _ = score(open_session(files[REFERENCE]), val.images)
    return [measure(s, content, val, floats, times[s]) for s, content in files.items()]


if __name__ == "__main__":
    main(run)
