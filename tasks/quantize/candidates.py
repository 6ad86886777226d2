"""Every scheme that was asked for, as a final file: contract added, slimmed, path-free."""

from __future__ import annotations

import hashlib
from pathlib import Path

import onnx

from tasks.core.bank import Bank
from tasks.core.rows import Rows
from tasks.core.tables import Schema, Table
from tasks.core.trainer import train as fit
from tasks.modalities.vision.networks import ResidualNetwork
from tasks.modalities.vision.training import validator, viewer
from tasks.modalities.vision.views import Views
from tasks.quantize.contract import shipped
from tasks.quantize.dynamic import dynamic
from tasks.quantize.export import export
from tasks.quantize.params import QuantizeParams
from tasks.quantize.qat import QuantizationAware, guided
from tasks.quantize.search import REFERENCE
from tasks.quantize.static import calibration_rows, static


def build(
    net: ResidualNetwork,
    data: Schema,
    train: Table,
    rows: Rows,
    val: Table,
    bank: Bank | None,
    views: Views,
    params: QuantizeParams,
    temperature: float,
    folder: Path,
    checkpoints: Path,
) -> dict[str, bytes]:
    """Scheme -> file, float32 first. `net` is folded; `bank` is needed for qat alone, whose history
    goes to `folder` and its `checkpoints` elsewhere. Every file divides its logits by
    `temperature`."""
    floats = export(net, data)
    graphs = {REFERENCE: floats}
    if "dynamic" in params.schemes:
        graphs["dynamic"] = dynamic(floats)
    if {"static", "qat"} & set(params.schemes):
        images = calibration_rows(train, params.calibration.rows)
        calibrated = static(floats, images, params.calibration)
        if "static" in params.schemes:
            graphs["static"] = calibrated
        if bank is not None and "qat" in params.schemes:
            graphs["qat"] = _tuned(
                calibrated, floats, rows, val, bank, views, params, folder, checkpoints
            )
    return {scheme: shipped(graph, data, temperature) for scheme, graph in graphs.items()}


def _tuned(
    calibrated: onnx.ModelProto,
    floats: onnx.ModelProto,
    rows: Rows,
    val: Table,
    bank: Bank,
    views: Views,
    params: QuantizeParams,
    folder: Path,
    checkpoints: Path,
) -> onnx.ModelProto:
    """The calibrated graph after quantization-aware fine-tuning under the bank."""
    net = QuantizationAware(calibrated, floats)
    fit(
        net,
        rows,
        guided(params.temperature, params.alpha),
        params.qat,
        view=viewer(rows, views),
        signal=bank.signal,
        validate=validator(net, val),
        history=folder / "history.jsonl",
        what="qat",
        checkpoints=checkpoints,
        about={
            "graph": hashlib.sha256(calibrated.SerializeToString(deterministic=True)).hexdigest(),
            "bank": bank.info.model_dump(mode="json"),
            "val": hashlib.sha256(
                "".join(val.rows.tolist()).encode() + val.labels.tobytes()
            ).hexdigest(),
            "temperature": params.temperature,
            "alpha": params.alpha,
        },
    )
    return net.written()
