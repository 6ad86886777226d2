"""What a rung starts from and learns on: former weights, rows that have no label or were lost,
and layers of a live teacher."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from tasks.core.adversary import Adversary
from tasks.core.bank import Bank, BankForm, read_bank
from tasks.core.banking import write_bank
from tasks.core.errors import DataError
from tasks.core.models import (
    Architecture,
    ModelSpec,
    Normalisation,
    Origin,
    read_weights,
    write_spec,
    write_weights,
)
from tasks.core.rows import Rows, in_memory
from tasks.core.seeds import deterministic
from tasks.core.tables import UNLABELLED, Fingerprint, Schema, Split, Table
from tasks.core.trainer import train
from tasks.distill import training
from tasks.distill.params import Rung
from tasks.distill.training import Material, learn
from tasks.distill.warm_start import read_former
from tasks.ingest.split import row_id
from tasks.modalities.vision.networks import build
from tasks.modalities.vision.training import viewer
from tasks.modalities.vision.views import Views

DIGITS = Schema(
    modality="vision",
    shape=(1, 8, 8),
    dtype="uint8",
    range=(0, 16),
    classes=tuple("0123456789"),
)
SMALL, BATCH = Architecture(widths=(8, 16)), 50


def rung(epochs: int, learning_rate: float, architecture: Architecture = SMALL) -> Rung:
    return Rung.model_validate(
        {
            "from": "teacher",
            "architecture": architecture.model_dump(),
            "training": {"epochs": epochs, "batch": BATCH, "learning_rate": learning_rate},
            "losses": {"kd": 0.9, "cross_entropy": 0.1},
        }
    )


class World:
    """Digits, and a teacher whose bank says of each row what it shows."""

    def __init__(self, root: Path) -> None:
        content = load_digits()
        images = content.images.astype(np.uint8)[:, None]
        ids = np.array([row_id(image) for image in images])
        self.root, self.table = root, Table(ids, content.target.astype(np.int64), images)
        net = build(SMALL, DIGITS, Normalisation(mean=5, std=6))
        self.teacher = spec(root / "teacher", net.state_dict(), "teacher")

    def material(self, rows: slice, unlabelled: slice = slice(0, 0)) -> Material:
        """Training rows, then some without their label; a fixed part is for validation."""
        seen, more = (self.table.take(np.arange(1797)[part]) for part in (rows, unlabelled))
        both = Table(*(np.concatenate(p) for p in zip(parts(seen), parts(more), strict=True)))
        labels = np.concatenate([seen.labels, np.full(len(more), UNLABELLED)])
        learned = in_memory(Table(both.rows, labels, both.images))
        views, form = Views(count=1, shift=0), BankForm()
        self._bank(self.teacher, learned, both.labels, views, form)
        split = Split(rows=1, per_class={}, sha256="0")
        fingerprint = Fingerprint(
            format="stillhouse/fingerprint/1", data=DIGITS, snapshot="0", mean=4.9, std=6.0,
            splits={"train": split}, digest="0",
        )  # fmt: skip
        val = in_memory(self.table.take(np.arange(1400, 1797)))
        return Material(fingerprint, learned, val, views, form)

    def tutor(self, on: Material, shown: np.ndarray) -> None:
        """A rung below the teacher, whose bank says `shown` of the rows."""
        views = on.views.model_dump()
        above = read_bank(self.root / "teacher/bank", on.rows, self.teacher.sha256, views, on.form)
        net = build(SMALL, DIGITS, Normalisation(mean=5, std=6))
        tutor = spec(self.root / "tutor", net.state_dict(), "tutor")
        self._bank(tutor, on.rows, shown, on.views, on.form, above)

    def _bank(
        self, model: ModelSpec, rows: Rows, shown: np.ndarray, views: Views, form: BankForm,
        above: Bank | None = None,
    ) -> None:  # fmt: skip
        def score(_: np.ndarray, index: np.ndarray) -> np.ndarray:
            return 8 * np.eye(10, dtype=np.float32)[shown[index]]

        write_bank(
            self.root / model.name / "bank", rows, model.sha256, views.model_dump(),
            viewer(rows, views, DIGITS), score, form, above,
        )  # fmt: skip

    def learn(
        self, name: str, recipe: Rung, on: Material, above: str = "teacher"
    ) -> tuple[ModelSpec, list[float]]:
        """The student's spec, and its accuracy on validation rows after each epoch."""
        deterministic(0, threads=1)
        folder = self.root / name
        told, _ = learn(
            "student", recipe, self.root / above, folder, on, self.root / f"c-{name}", name
        )
        lines = (folder / "history.jsonl").read_text().splitlines()
        return told, [json.loads(line)["val_accuracy"] for line in lines]


def parts(table: Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return table.rows, table.labels, table.images


def spec(folder: Path, state: dict[str, torch.Tensor], name: str) -> ModelSpec:
    """Write a model folder of the small architecture."""
    found = ModelSpec(
        name=name, kind="torch", architecture=SMALL, normalisation=Normalisation(mean=5, std=6),
        data=DIGITS, parameters=1, bytes=4, flops=None,
        sha256=write_weights(folder / "weights.safetensors", state),
    )  # fmt: skip
    write_spec(folder, found)
    return found


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    torch.manual_seed(0)
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def former(world: World) -> Path:
    """A student of the first 700 rows."""
    world.learn("former", rung(12, 0.02), world.material(slice(0, 700)))
    return world.root / "former"


def steps_to(accuracy: float, history: list[float], rows: int) -> int:
    """Optimiser steps until validation first reached `accuracy`."""
    epoch = next(i for i, reached in enumerate(history, start=1) if reached >= accuracy)
    return epoch * (rows // BATCH)


def test_on_new_data_a_warm_start_is_as_good_in_a_fraction_of_the_steps(
    world: World, former: Path
) -> None:
    new = slice(700, 1400)
    _, cold = world.learn("cold", rung(12, 0.02), world.material(new))

    warm = replace(world.material(new), warm_start=former)
    told, history = world.learn("warm", rung(3, 0.005), warm)

    assert max(cold) > 0.9, "a target that means something"
    assert 4 * steps_to(max(cold), history, 700) <= steps_to(max(cold), cold, 700)
    assert told.warm_start == Origin(name="student", sha256=read_former(former, DIGITS)[0].sha256)


def test_a_warm_start_keeps_the_normalisation_that_its_weights_know(
    world: World, former: Path
) -> None:
    on = world.material(slice(0, 100))
    other = replace(on, fingerprint=on.fingerprint.model_copy(update={"mean": 12.0, "std": 1.0}))

    told, _ = world.learn("kept", rung(1, 1e-6), replace(other, warm_start=former))

    assert told.normalisation == Normalisation(mean=4.9, std=6.0)
    assert float(read_weights(world.root / "kept/weights.safetensors")["mean"]) == pytest.approx(
        4.9
    )


def test_a_rung_of_another_architecture_starts_afresh(world: World, former: Path) -> None:
    on, wide = world.material(slice(0, 100)), rung(1, 0.01, Architecture(widths=(8, 24)))

    afresh, _ = world.learn("afresh", wide, on)
    beside, _ = world.learn("beside", wide, replace(on, warm_start=former))

    assert beside.warm_start is None
    assert beside.sha256 == afresh.sha256


def test_rows_of_the_transfer_set_teach_the_student_without_a_label(world: World) -> None:
    few, more = slice(0, 100), slice(100, 700)

    alone, without = world.learn("alone", rung(6, 0.02), world.material(few))
    told, with_them = world.learn("transfer", rung(6, 0.02), world.material(few, more))

    assert told.sha256 != alone.sha256
    assert with_them[-1] > without[-1] + 0.05


def test_rows_that_the_model_above_lost_weigh_more_by_flip_weight(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    on, lost, given = world.material(slice(0, 100)), np.arange(100) < 20, {}
    world.tutor(on, (on.rows.labels.numpy() + lost) % 10)

    def noted(*arguments: Any, **options: Any) -> None:
        given.update(options)
        train(*arguments, **options)

    monkeypatch.setattr(training, "train", noted)
    recipe = rung(1, 0.02).model_copy(update={"flip_weight": 5.0})
    world.learn("mindful", recipe, on, above="tutor")

    assert given["weights"].numpy() == pytest.approx(np.where(lost, 6, 1) / 2)


@pytest.mark.parametrize("loss", ["hint", "attention"])
def test_a_rung_learns_from_the_layers_of_a_live_teacher(world: World, loss: str) -> None:
    inside = {"losses": {loss: 1.0}, "signal": "live", "layers": {"body.0": "body.1"}}
    recipe = rung(3, 0.02).model_copy(update=inside)

    world.learn(loss, recipe, world.material(slice(0, 100)))

    lines = (world.root / loss / "history.jsonl").read_text().splitlines()
    first, *_, last = (json.loads(line)["loss"] for line in lines)
    assert last < first


def test_a_rung_that_meets_an_adversary_keeps_the_epoch_that_an_attack_leaves_most_of(
    world: World,
) -> None:
    """Within half the range nothing is left to recognise; by clean rows this rung is right. Where
    no epoch is chosen, the attack is spared."""
    recipe = rung(6, 0.02)
    attacked = recipe.model_copy(
        update={
            "losses": {"adversarial": 1.0},
            "adversary": Adversary(epsilon=0.5, steps=1, step=1e-9),
        }
    )
    training = recipe.training.model_copy(update={"patience": 6})
    choosing = attacked.model_copy(update={"training": training})
    _, plain = world.learn("plain", attacked, world.material(slice(0, 700)))
    _, left = world.learn("attacked", choosing, world.material(slice(0, 700)))
    assert plain[-1] > 0.8
    assert left[-1] < 0.3


def _spec(**change: object) -> Callable[[Path, ModelSpec], None]:
    return lambda folder, found: write_spec(folder, found.model_copy(update=change))


def _nan(folder: Path, found: ModelSpec) -> None:
    state = read_weights(folder / "weights.safetensors")
    state["head.bias"][0] = float("nan")
    digest = write_weights(folder / "weights.safetensors", state)
    write_spec(folder, found.model_copy(update={"sha256": digest}))


def _cut(folder: Path, _: ModelSpec) -> None:
    path = folder / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-4])


def _gone(folder: Path, _: ModelSpec) -> None:
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (_spec(data=DIGITS.model_copy(update={"classes": ("a", "b")})), "of other classes, shape"),
        (_spec(data=DIGITS.model_copy(update={"shape": (1, 9, 9)})), "of other classes, shape"),
        (_spec(data=DIGITS.model_copy(update={"range": (0.0, 255.0)})), "of other classes, shape"),
        (_spec(architecture=Architecture(widths=(4, 8))), "weights and spec.json do not fit"),
        (_spec(architecture=None), "has no architecture or normalisation"),
        (_spec(normalisation=Normalisation(mean=7, std=3)), "normalise otherwise than spec.json"),
        (_nan, "weights hold NaN or infinity"),
        (_cut, "is not the file that"),
        (_gone, "no former weights here; `stillhouse run` brings them"),
    ],
)
def test_weights_that_nothing_can_start_from_are_refused(
    tmp_path: Path, harm: Callable[[Path, ModelSpec], None], says: str
) -> None:
    folder = tmp_path / "warm_start"
    net = build(SMALL, DIGITS, Normalisation(mean=5, std=6))
    harm(folder, spec(folder, net.state_dict(), "student"))

    with pytest.raises(DataError, match=says):
        read_former(folder, DIGITS)
