"""What a rung learns from: refused before anything trains, or a loss and a signal that work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from tasks.core.bank import Bank, BankForm, read_bank
from tasks.core.banking import write_bank
from tasks.core.errors import DataError, ParamsError, StillhouseError, TeacherError
from tasks.core.files import sha256
from tasks.core.models import (
    ONNX,
    WEIGHTS,
    Architecture,
    ModelSpec,
    Normalisation,
    parameters,
    read_spec,
    write_spec,
    write_weights,
)
from tasks.core.params import check
from tasks.core.rows import Rows, in_memory
from tasks.core.seeds import derived, deterministic
from tasks.core.signal import Signal
from tasks.core.tables import UNLABELLED, Table
from tasks.core.trainer import Training, train
from tasks.distill.above import check_rows, taught_by
from tasks.distill.losses import Weighted
from tasks.distill.params import Rung
from tasks.modalities.vision.networks import flops
from tasks.modalities.vision.scorers import load_scorer
from tasks.modalities.vision.training import viewer
from tasks.modalities.vision.views import Views
from tests.distill.lessons import INSIDE, RUNG, SCHEMA, network, rung

VIEWS = Views(count=2, seed=0, shift=1)
WITHIN = {"signal": "live", "layers": {"body.0": "body.1", "body.1": "body.2"}}


@pytest.fixture
def rows() -> Rows:
    draw = np.random.default_rng(1)
    names = np.array([f"{derived(0, i):016x}" + "0" * 48 for i in range(32)])
    images = draw.integers(0, 16, (32, 1, 8, 8)).astype(np.uint8)
    return in_memory(Table(names, np.arange(32) % 4, images))


def model(folder: Path, name: str, widths: tuple[int, ...], rows: Rows, **more: Any) -> Bank:
    """A model folder with a bank, untrained; returns the bank."""
    net = network(widths).eval()
    spec = ModelSpec(
        name=name,
        kind="torch",
        architecture=Architecture(widths=widths),
        normalisation=Normalisation(mean=8, std=5),
        data=SCHEMA,
        parameters=parameters(net.state_dict()),
        bytes=4,
        flops=flops(net, SCHEMA),
        sha256=write_weights(folder / WEIGHTS, net.state_dict()),
    )
    write_spec(folder, spec)
    score, views = load_scorer(folder), VIEWS.model_dump()
    digest = spec.sha256
    write_bank(
        folder / "bank",
        rows,
        digest,
        views,
        viewer(rows, VIEWS, SCHEMA),
        lambda x, _: score(x),
        **more,
    )
    return read_bank(folder / "bank", rows, digest, views, BankForm())


def learned(
    net: nn.Module,
    rows: Rows,
    loss: Weighted,
    signal: Signal,
    folder: Path,
    layers: tuple[str, ...] = (),
) -> list[float]:
    """Train for three epochs; the loss of each."""
    train(
        net,
        rows,
        loss,
        Training(epochs=3, batch=16, learning_rate=0.01),
        view=viewer(rows, VIEWS, SCHEMA),
        validate=lambda: 0.0,
        history=folder / "history.jsonl",
        what="test",
        signal=signal,
        layers=layers,
    )
    lines = (folder / "history.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def test_a_projector_trains_with_the_student_and_is_no_part_of_it(
    rows: Rows, tmp_path: Path
) -> None:
    deterministic(0, threads=1)
    bank, net = model(tmp_path, "teacher", (6, 8, 10), rows), network()
    names = set(net.state_dict())
    both = check(Rung, RUNG | WITHIN | {"losses": {"hint": 1.0, "kd": 1.0}}, "rung")
    loss, signal = taught_by("pupil", both, net, tmp_path, read_spec(tmp_path), bank, 1)
    before = [p.detach().clone() for p in loss.parameters()]

    learned(net, rows, loss, signal, tmp_path, tuple(both.layers))

    assert [tuple(p.shape) for p in before] == [(8, 4, 1, 1), (8,), (10, 8, 1, 1), (10,)]
    moved = zip(before, loss.parameters(), strict=True)
    assert all(not torch.equal(old, new) for old, new in moved)
    assert set(net.state_dict()) == names


def test_a_live_teacher_below_a_bank_out_of_fold_is_refused(rows: Rows, tmp_path: Path) -> None:
    bank, live = model(tmp_path, "teacher", (6, 8, 10), rows, folds=5), rung("kd", signal="live")
    with pytest.raises(TeacherError, match=r"pupil\.signal: a live teacher has seen the rows"):
        taught_by("pupil", live, network(), tmp_path, read_spec(tmp_path), bank, 1)


def test_adversarial_distillation_trains_and_meets_each_batch_twice(
    rows: Rows, tmp_path: Path
) -> None:
    deterministic(0, threads=1)
    bank, net = model(tmp_path, "teacher", (6, 8, 10), rows), network()
    robust, spec = rung("adversarial"), read_spec(tmp_path)
    loss, signal = taught_by("pupil", robust, net, tmp_path, spec, bank, 1)

    first, *_, last = learned(net, rows, loss, signal, tmp_path)

    assert last < first
    steps = 3 * (32 // 16)
    assert net.bn.num_batches_tracked == 2 * steps, "clean and attacked, and nothing between"


def test_a_loss_draws_the_same_whatever_was_loaded_before(rows: Rows, tmp_path: Path) -> None:
    bank, net = model(tmp_path, "teacher", (6, 8, 10), rows), network()
    spec, drawn = read_spec(tmp_path), []
    for signal in ("bank", "live"):
        taught_by("pupil", rung("kd", signal=signal), net, tmp_path, spec, bank, 1)
        drawn.append(float(torch.rand(())))
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("signal", ["bank", "live"])
def test_models_further_up_speak_from_the_bank_whoever_is_nearest(
    rows: Rows, tmp_path: Path, signal: str
) -> None:
    first = model(tmp_path / "teacher", "teacher", (6, 8, 10), rows)
    bank = model(tmp_path / "tutor", "tutor", (4, 10), rows, above=first, hand_on=True)
    spec = read_spec(tmp_path / "tutor")
    guided = rung("dense", **{"from": "tutor", "signal": signal})
    check_rows("pupil", guided, rows.labels, bank)
    _, asked = taught_by("pupil", guided, network(), tmp_path / "tutor", spec, bank, 1)
    index = torch.arange(8)
    images = viewer(rows, VIEWS, SCHEMA)(rows.images[:8].float(), index.numpy(), 1)

    nearest, further = asked(images, index, 1)

    said = torch.from_numpy(load_scorer(tmp_path / "tutor")(images.numpy()))
    assert torch.allclose(nearest.logits, said, atol=0 if signal == "live" else 1e-2, rtol=1e-5)
    assert torch.equal(further.logits, first.said(index, 1))


def black_box(folder: Path, pixels: np.ndarray) -> ModelSpec:
    """Make the model in `folder` an ONNX file that multiplies flattened images by `pixels`."""
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("MatMul", ["f", "w"], ["y"])],
        "teacher",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(pixels, "w")],
    )
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), folder / ONNX)
    opaque = {"kind": "onnx", "architecture": None, "normalisation": None}
    spec = read_spec(folder).model_copy(update=opaque | {"sha256": sha256(folder / ONNX)})
    write_spec(folder, spec)
    return spec


def test_a_live_black_box_is_asked_itself_whatever_its_bank_says(
    rows: Rows, tmp_path: Path
) -> None:
    bank = model(tmp_path, "teacher", (6, 8, 10), rows)
    pixels = np.random.default_rng(2).normal(size=(64, 4)).astype(np.float32)
    spec, asking = black_box(tmp_path, pixels), rung("kd", signal="live")
    index = torch.arange(8)
    images = viewer(rows, VIEWS, SCHEMA)(rows.images[:8].float(), index.numpy(), 1)

    _, signal = taught_by("pupil", asking, network(), tmp_path, spec, bank, 1)
    (said,) = signal(images, index, 1)

    by_hand = torch.from_numpy(images.flatten(1).numpy() @ pixels)
    assert torch.allclose(said.logits, by_hand, atol=1e-3)
    assert not torch.allclose(bank.said(index, 1), by_hand, atol=1)


def refused(rows: Rows, folder: Path, losing: Rung, labels: Tensor | None = None) -> str:
    """What is said of a rung that cannot work below the model in `folder`."""
    bank = read_bank(
        folder / "bank", rows, read_spec(folder).sha256, VIEWS.model_dump(), BankForm()
    )
    with pytest.raises(StillhouseError) as caught:
        check_rows("pupil", losing, rows.labels if labels is None else labels, bank)
        taught_by("pupil", losing, network(), folder, read_spec(folder), bank, 1)
    assert caught.type in (DataError, ParamsError, TeacherError)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        (
            "hint",
            {"signal": "live", "layers": {"body.9": "body.0"}},
            "distill.rungs.pupil.layers: pupil: no layer 'body.9'; did you mean 'body.1'?",
        ),
        (
            "attention",
            {"signal": "live", "layers": {"body.0": "bodi"}},
            "distill.rungs.pupil.layers: teacher: no layer 'bodi'; did you mean 'body'?",
        ),
        ("dense", {}, "dense learns from all models above, and 'teacher' hands none on"),
    ],
)
def test_what_the_model_above_does_not_have_is_said_before_training(
    rows: Rows, tmp_path: Path, name: str, options: dict[str, Any], says: str
) -> None:
    model(tmp_path, "teacher", (6, 8, 10), rows)
    assert says in refused(rows, tmp_path, rung(name, **options))


@pytest.mark.parametrize("name", ["hint", "attention", "rkd", "similarity"])
def test_the_layers_of_a_black_box_are_refused(rows: Rows, tmp_path: Path, name: str) -> None:
    model(tmp_path, "teacher", (6, 8, 10), rows)
    spec = read_spec(tmp_path)
    (tmp_path / WEIGHTS).rename(tmp_path / "model.onnx")  # as far as anybody looks
    write_spec(tmp_path, spec.model_copy(update={"kind": "onnx", "architecture": None}))
    said = refused(rows, tmp_path, rung(name, **INSIDE))
    assert said.startswith("distill.rungs.pupil.layers: 'teacher' is a black box (onnx)")


def test_rows_without_any_label_are_no_lesson_for_labels_alone(rows: Rows, tmp_path: Path) -> None:
    bank = model(tmp_path, "teacher", (6, 8, 10), rows)
    nobody = torch.full_like(rows.labels, UNLABELLED)
    says = "distill.rungs.pupil.losses: no training row has a label"
    assert says in refused(rows, tmp_path, rung("cross_entropy"), nobody)
    one = nobody.clone()
    one[0] = 2
    check_rows("pupil", rung("cross_entropy"), one, bank)
    check_rows("pupil", rung("kd"), nobody, bank)
