"""`ship/STUDENT/`: everything beside `model.onnx`, written beside and renamed whole."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from tasks.core.files import sha256, write_bytes, write_json
from tasks.core.models import ONNX, ModelSpec, Origin, weights_path, write_spec
from tasks.quantize.certificate import certificate


@dataclass(frozen=True)
class Shipment:
    """What a student ships with. `student` is the spec of the float student in folder `source`."""

    student: ModelSpec
    source: Path
    model: bytes
    floats: bytes
    frontier: Mapping[str, JsonValue]
    table: bytes
    picture: bytes
    sensitivity: Mapping[str, JsonValue]
    sensitivity_table: bytes
    sensitivity_picture: bytes
    parity: Mapping[str, JsonValue]
    target: str


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """Yield an empty scratch folder beside `folder`; on success it takes its place."""
    scratch = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        yield scratch
        shutil.rmtree(folder, ignore_errors=True)
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_shipment(folder: Path, shipment: Shipment) -> None:
    """Write the files of `shipment` into `folder`."""
    student = shipment.student
    write_bytes(folder / ONNX, shipment.model)
    write_bytes(folder / "float.onnx", shipment.floats)
    write_bytes(folder / "float.safetensors", weights_path(shipment.source, student).read_bytes())
    write_json(folder / "float.json", student.model_dump(mode="json"))
    write_json(folder / "frontier.json", shipment.frontier)
    write_bytes(folder / "frontier.csv", shipment.table)
    write_bytes(folder / "frontier.png", shipment.picture)
    write_json(folder / "sensitivity.json", shipment.sensitivity)
    write_bytes(folder / "sensitivity.csv", shipment.sensitivity_table)
    write_bytes(folder / "sensitivity.png", shipment.sensitivity_picture)
    write_json(folder / "parity.json", shipment.parity)
    write_json(folder / "certificate.json", certificate(shipment.model, shipment.target))
    write_spec(
        folder,
        student.model_copy(
            update={
                "kind": "onnx",
                "bytes": len(shipment.model),
                "sha256": sha256(folder / ONNX),
                "learned_from": Origin(name=student.name, sha256=student.sha256),
            }
        ),
    )
