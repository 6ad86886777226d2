"""A teacher that was trained elsewhere: checked against today's data before it teaches anyone.

Its folder holds a `spec.json` of a few keys (`GivenSpec`) beside `weights.safetensors`, or beside a
`model.onnx` of any framework, which then teaches as a black box; or it is what Hugging Face's
`save_pretrained` wrote. Nothing that a file says of its own size is believed.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from textwrap import shorten

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from tasks.core.errors import DataError, TeacherError
from tasks.core.files import inside, read_json, sha256
from tasks.core.models import (
    FILES,
    ONNX,
    WEIGHTS,
    Architecture,
    ModelSpec,
    Normalisation,
    content_sha256,
    finite,
    parameters,
    read_weights,
    write_spec,
)
from tasks.core.params import Section, check
from tasks.core.session import check_onnx, open_session, score, tensors
from tasks.core.tables import Schema
from tasks.modalities.vision.huggingface import load_huggingface
from tasks.modalities.vision.networks import build, flops
from tasks.modalities.vision.scorers import network_scorer
from tasks.modalities.vision.teachers import Source


class GivenSpec(Section):
    """What `spec.json` of a given teacher must say. The rest is counted here, never believed."""

    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    architecture: Architecture | None = None  # safetensors only
    normalisation: Normalisation | None = None  # safetensors only
    created: str | None = None  # ISO date, for teach.max_age


def read_given(folder: Path, source: Source, data: Schema) -> ModelSpec:
    """The full spec of the teacher in `folder`.

    Raises `TeacherError` if its classes, input shape, weights or file are not fit to teach.
    """
    if not folder.is_dir():
        raise TeacherError(
            f"{folder}: no given teacher in the snapshot; set teach.path and run "
            "`stillhouse run`, which copies it there"
        )
    try:
        if source == "huggingface":
            return _huggingface(folder, data)
        given = _stated(folder, source, data)
        return (
            _torch(folder, given, data) if source == "safetensors" else _onnx(folder, given, data)
        )
    except DataError as error:
        raise TeacherError(str(error)) from None


def write_given(given: Path, folder: Path, source: Source, data: Schema, name: str) -> ModelSpec:
    """Check the teacher in `given` and copy it to the model folder `folder`."""
    spec = read_given(given, source, data).model_copy(update={"name": name})
    folder.mkdir(parents=True, exist_ok=True)
    for file in FILES[spec.kind]:
        shutil.copyfile(inside(given, given / file), folder / file)
    write_spec(folder, spec)
    return spec


def _stated(folder: Path, source: Source, data: Schema) -> GivenSpec:
    """What `spec.json` says, if that fits the data and the weights are there."""
    where = folder / "spec.json"
    given = check(GivenSpec, read_json(where), where=str(where))
    if given.classes != data.classes:
        odd = sorted(set(given.classes) ^ set(data.classes))
        raise TeacherError(
            f"{where}: its classes are not the data's in the same order "
            f"({', '.join(odd) or 'other order'}); give a teacher of these classes"
        )
    if given.shape != data.shape:
        raise TeacherError(
            f"{where}: takes {given.shape}, the data is {data.shape}; give a teacher of this shape"
        )
    weights = folder / (WEIGHTS if source == "safetensors" else ONNX)
    if not weights.is_file():
        raise TeacherError(
            f"{weights}: no such file, and teach.source is {source}; put it there, or correct "
            "teach.source"
        )
    return given


def _torch(folder: Path, given: GivenSpec, data: Schema) -> ModelSpec:
    """Safetensors of the residual family."""
    if given.architecture is None or given.normalisation is None:
        raise TeacherError(
            f"{folder / 'spec.json'}: needs architecture and normalisation; for another "
            "architecture export it to ONNX and set teach.source: onnx"
        )
    path = folder / WEIGHTS
    state = read_weights(path)
    if not finite(state):
        raise TeacherError(f"{path}: holds NaN or infinite weights; give sound ones")
    net = build(given.architecture, data, given.normalisation)
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        first = shorten(str(error).splitlines()[1].strip(), 80, placeholder=" ...")
        raise TeacherError(
            f"{path}: does not fit its architecture ({first}); correct `architecture` in spec.json"
        ) from None
    said, held = given.normalisation, (float(net.mean), float(net.std))
    if not np.allclose((said.mean, said.std), held, rtol=1e-3):
        raise TeacherError(
            f"{path}: normalises by mean {held[0]:g} and std {held[1]:g}, spec.json says "
            f"{said.mean:g} and {said.std:g}; correct `normalisation` in spec.json"
        )
    count = parameters(state)
    return ModelSpec(
        name="teacher",
        kind="torch",
        architecture=given.architecture,
        normalisation=given.normalisation,
        data=data,
        parameters=count,
        bytes=4 * count,
        flops=flops(net, data),
        sha256=sha256(path),
        created=given.created,
    )


def _onnx(folder: Path, given: GivenSpec, data: Schema) -> ModelSpec:
    """Any safe ONNX file with one image input and logits as its first output."""
    path = folder / ONNX
    model = check_onnx(path)
    count = _weights(model, path)
    session = open_session(path)
    blank = np.full((1, *data.shape), data.range[0])
    noise = np.random.default_rng(0).uniform(*data.range, (16, *data.shape))
    probe = np.concatenate([blank, noise])
    try:
        logits, _ = score(session, probe)
    except Exception as error:
        raise TeacherError(
            f"{path}: cannot score float32 input of shape (N, {', '.join(map(str, data.shape))}) "
            f"({str(error).splitlines()[0]}); export it with that input and a free batch size"
        ) from None
    if logits.shape != (len(probe), len(data.classes)):
        raise TeacherError(
            f"{path}: gives {logits.shape[1:]} outputs for {len(data.classes)} "
            "classes; its first output must be the logits"
        )
    if not np.isfinite(logits[0]).all():
        raise TeacherError(f"{path}: answers a blank image with NaN; give a teacher that is sound")
    if _probabilities(logits):
        raise TeacherError(
            f"{path}: gives probabilities, not logits; export it without its softmax"
        )
    return ModelSpec(
        name="teacher",
        kind="onnx",
        architecture=None,
        normalisation=None,
        data=data,
        parameters=count,
        bytes=4 * count,
        flops=None,
        sha256=sha256(path),
        created=given.created,
    )


def _huggingface(folder: Path, data: Schema) -> ModelSpec:
    """An image classifier of `transformers`, behind its own preprocessing."""
    net = load_huggingface(folder, data)
    try:
        logits = network_scorer(net)(np.full((2, *data.shape), data.range[0], dtype=np.float32))
    except Exception as error:
        raise TeacherError(
            f"{folder}: cannot score images of shape {data.shape} "
            f"({shorten(' '.join(str(error).split()), 100, placeholder=' ...')}); correct `size` "
            "in preprocessor_config.json"
        ) from None
    if logits.shape != (2, len(data.classes)) or not np.isfinite(logits).all():
        raise TeacherError(
            f"{folder}: answers two blank images with logits of shape {logits.shape}, or with NaN; "
            f"give a sound teacher of {len(data.classes)} classes"
        )
    count = sum(parameter.numel() for parameter in net.parameters())
    return ModelSpec(
        name="teacher",
        kind="huggingface",
        architecture=None,
        normalisation=None,
        data=data,
        parameters=count,
        bytes=4 * count,
        flops=flops(net, data),
        sha256=content_sha256(folder, "huggingface"),
    )


def _probabilities(outputs: NDArray[np.float32]) -> bool:
    """Whether every row is a distribution: as logits these would teach next to nothing."""
    return bool((outputs >= 0).all()) and np.allclose(outputs.sum(axis=1), 1, rtol=0, atol=1e-3)


def _weights(model: onnx.ModelProto, path: Path) -> int:
    """Number of weights in initialisers and constants; NaN or infinite ones are refused."""
    count = 0
    for tensor in tensors(model.graph):
        values = numpy_helper.to_array(tensor)
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise TeacherError(
                f"{path}: weight '{tensor.name}' has NaN or infinite values; give sound ones"
            )
        count += values.size if values.dtype.kind == "f" or values.dtype.itemsize == 1 else 0
    if not count:
        raise TeacherError(f"{path}: holds no weights; a teacher that learned something has some")
    return count
