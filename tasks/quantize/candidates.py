"""Every scheme that was asked for, as a final file: contract added, slimmed, path-free."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import onnx
from pydantic import JsonValue

from tasks.core.bank import Bank
from tasks.core.errors import DataError
from tasks.core.rows import Rows, in_memory
from tasks.core.session import open_session, score
from tasks.core.tables import Schema, Table
from tasks.core.trainer import train as fit
from tasks.modalities.vision.networks import ResidualNetwork
from tasks.modalities.vision.training import validator, viewer
from tasks.modalities.vision.views import Views
from tasks.quantize.calibrate import Calibrated, calibrate, calibration_rows
from tasks.quantize.contract import shipped
from tasks.quantize.dynamic import dynamic
from tasks.quantize.export import export
from tasks.quantize.halves import HALVES, half
from tasks.quantize.layers import layers
from tasks.quantize.mixed import MIXTURES, Bounds, mixture
from tasks.quantize.params import QuantizeParams, Scheme
from tasks.quantize.qat import QuantizationAware, guided
from tasks.quantize.search import REFERENCE
from tasks.quantize.sensitivity import Sensitivity, sensitivities, some_rows
from tasks.quantize.static import quantized
from tasks.quantize.targets import target
from tasks.quantize.weight_only import weight_only

SCHEMES: tuple[str, ...] = get_args(Scheme)


@dataclass(frozen=True)
class Built:
    """`files`: scheme -> file, float32 first; `left_out`: scheme -> why there is none; what each
    layer costs on `sensitivity_rows` rows; and what the mixtures consist of."""

    files: dict[str, bytes]
    left_out: dict[str, str]
    sensitivity: tuple[Sensitivity, ...]
    sensitivity_rows: int
    mixtures: dict[str, JsonValue]


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
    budget_ms: float,
    folder: Path,
    checkpoint: Callable[[str], Path],
) -> Built:
    """Every candidate that was asked for. `net` is folded; `bank` is needed for qat alone, whose
    history goes to `folder`; `checkpoint` is where a scheme keeps what it would resume from. Every
    file divides its logits by `temperature`; a mixture takes no longer than `budget_ms`."""
    floats = export(net, data)
    graphs, left_out = _converted(floats, params)
    few = some_rows(val, params.sensitivity.rows)
    found: tuple[Sensitivity, ...] = ()
    mixtures: dict[str, JsonValue] = {}

    def finished(graph: onnx.ModelProto) -> bytes:
        return shipped(graph, data, temperature)

    if layers(floats) or set(params.schemes) != {REFERENCE}:
        images = calibration_rows(train, params.calibration.rows)
        calibrated = calibrate(floats, images, params.calibration, target(params.target))
        found = sensitivities(floats, calibrated, few, temperature)
        if "static" in params.schemes:
            graphs["static"] = quantized(calibrated)
        if bank is not None and "qat" in params.schemes:
            graphs["qat"] = _tuned(
                calibrated, floats, data, rows, val, bank, views, params, folder,
                checkpoint("qat"),
            )  # fmt: skip
        reference, _ = score(open_session(finished(floats)), val.images)
        bounds = Bounds(val, reference, params.goals, budget_ms)
        for scheme in (scheme for scheme in MIXTURES if scheme in params.schemes):
            about = {"params": params.model_dump(mode="json")}
            mixed = mixture(
                scheme, floats, calibrated, found, bounds, finished, checkpoint(scheme), about
            )
            graphs[scheme], mixtures[scheme] = mixed.graph, mixed.entry()
    files = {scheme: finished(graph) for scheme, graph in graphs.items()}
    return Built(files, left_out, found, len(few), mixtures)


def _converted(
    floats: onnx.ModelProto, params: QuantizeParams
) -> tuple[dict[str, onnx.ModelProto], dict[str, str]]:
    """The graphs that need no rows, float32 first, and why the schemes left out have none."""
    graphs = {REFERENCE: floats}
    left_out = {s: "not in quantize.schemes" for s in SCHEMES if s not in params.schemes}
    left_out.pop(REFERENCE, None)
    makers: dict[str, Callable[[], onnx.ModelProto]] = {
        "dynamic": lambda: dynamic(floats),
        "weights8": lambda: weight_only(floats, 8),
        "weights4": lambda: weight_only(floats, 4),
    }
    graphs |= {scheme: make() for scheme, make in makers.items() if scheme in params.schemes}
    for kind in HALVES:
        if kind in params.schemes:
            try:
                graphs[kind] = half(floats, kind)
            except DataError as error:
                left_out[kind] = str(error)
    return graphs, left_out


def _tuned(
    calibrated: Calibrated,
    floats: onnx.ModelProto,
    data: Schema,
    rows: Rows,
    val: Table,
    bank: Bank,
    views: Views,
    params: QuantizeParams,
    folder: Path,
    checkpoints: Path,
) -> onnx.ModelProto:
    """The calibrated graph after quantization-aware fine-tuning under the bank."""
    graph = quantized(calibrated)
    net = QuantizationAware(graph, floats, calibrated.target.confined)
    fit(
        net,
        rows,
        guided(params.temperature, params.alpha),
        params.qat,
        view=viewer(rows, views, data),
        signal=bank.signal,
        validate=validator(net, in_memory(val)),
        history=folder / "history.jsonl",
        what="qat",
        checkpoints=checkpoints,
        about={
            "graph": hashlib.sha256(graph.SerializeToString(deterministic=True)).hexdigest(),
            "bank": bank.info.model_dump(mode="json"),
            "val": hashlib.sha256(
                "".join(val.rows.tolist()).encode() + val.labels.tobytes()
            ).hexdigest(),
            "temperature": params.temperature,
            "alpha": params.alpha,
        },
    )
    return net.written()
