"""Teachers of any kind behind one interface, and several of them as one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax

from tasks.core.bank import BankForm, read_bank
from tasks.core.banking import write_bank
from tasks.core.errors import DataError, TeacherError
from tasks.core.files import write_json
from tasks.core.models import read_spec
from tasks.core.rows import in_memory
from tasks.core.tables import Table
from tasks.judge.runtime import asked
from tasks.modalities.vision.scorers import load_scorer
from tasks.modalities.vision.teachers import Given, Source, copy_teachers
from tasks.modalities.vision.training import viewer
from tasks.modalities.vision.views import Views
from tasks.teach.ensemble import kept, likelihood, write_ensemble
from tasks.teach.given import write_given
from tasks.teach.mixture import convex_weights
from tests.teach.conftest import DATA, SPEC, safetensors


def table(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> Table:
    rows = np.array([f"{i:064x}" for i in range(len(images))])
    return Table(rows, labels, images)


def labelled_by(folder: Path, images: NDArray[np.uint8]) -> Table:
    """Rows of which the teacher in `folder` is always right."""
    return table(images, load_scorer(folder)(images).argmax(1).astype(np.int64))


def test_a_member_that_answers_a_row_with_nan_is_named(
    tmp_path: Path, images: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = tmp_path / "given"
    for number in range(2):
        safetensors(given / f"members/{number}", seed=number)
    rows = table(images, np.zeros(len(images), dtype=np.int64))

    def broken(folder: Path, _: int) -> object:
        value = np.nan if folder.name == "1" else 0.0
        return lambda images: np.full((len(images), len(DATA.classes)), value, np.float32)

    monkeypatch.setattr("tasks.teach.ensemble.load_scorer", broken)
    with pytest.raises(TeacherError, match=r"members/1: answers a validation row with NaN"):
        write_ensemble(given, tmp_path / "made", ["safetensors"] * 2, DATA, rows, 1)


def test_weights_are_those_worked_by_hand() -> None:
    # Member 0 gives the labels of rows 1 to 3 probability 0.8, and of row 4 0.2; member 1 gives
    # 0.4 to each. With weight w for the first, 3 log(0.4 + 0.4 w) + log(0.4 - 0.2 w) is highest
    # where 3 / (1 + w) = 1 / (2 - w), or w = 5 / 4 > 1: all weight goes to member 0.
    assert convex_weights(np.array([[0.8, 0.8, 0.8, 0.2], [0.4] * 4])) == pytest.approx(
        [1, 0], abs=1e-3
    )
    # With two rows of each sort, 2 / (1 + w) = 2 / (2 - w), or w = 1 / 2.
    assert convex_weights(np.array([[0.8, 0.8, 0.2, 0.2], [0.4] * 4])) == pytest.approx(
        [1 / 2, 1 / 2], abs=1e-4
    )
    # Each row is explained by one member alone: the weights are the shares of rows.
    rows = np.array([[0.9, 0.9, 0.9, 1e-9], [1e-9, 1e-9, 1e-9, 0.9]])
    assert convex_weights(rows) == pytest.approx([3 / 4, 1 / 4], abs=1e-6)


def test_equal_members_share_equally() -> None:
    assert convex_weights(np.array([[0.7, 0.1, 0.5]] * 3)).tolist() == pytest.approx([1 / 3] * 3)


def test_a_member_with_next_to_no_weight_is_dropped_and_the_rest_share_anew() -> None:
    rows = np.array([[0.9] * 3 + [1e-9], [1e-9] * 3 + [0.9], [1e-6] * 4])
    assert kept(rows) == pytest.approx([3 / 4, 1 / 4, 0], abs=1e-6)
    assert kept(rows)[2] == 0


def test_likelihood_is_that_of_the_rows_own_label() -> None:
    logits = np.log(np.float32([[0.25, 0.75], [0.5, 0.5], [1.0, 1e-38]]))
    assert likelihood(logits, np.array([0, 1, 1])) == pytest.approx([0.25, 0.5, 1e-30])


def test_the_same_teacher_as_safetensors_as_onnx_and_twice_in_an_ensemble_banks_the_same(
    images: NDArray[np.uint8], exported: Path, tmp_path: Path
) -> None:
    safetensors(tmp_path / "st")
    safetensors(tmp_path / "pair/members/0")
    safetensors(tmp_path / "pair/members/1")
    val = labelled_by_given(tmp_path, images)
    specs = {
        "st": write_given(tmp_path / "st", tmp_path / "m/st", "safetensors", DATA, "teacher"),
        "onnx": write_given(exported, tmp_path / "m/onnx", "onnx", DATA, "teacher"),
        "pair": write_ensemble(
            tmp_path / "pair", tmp_path / "m/pair", ["safetensors"] * 2, DATA, val, 1
        ),
    }
    rows, views = in_memory(val), Views(count=2, shift=1)
    banked = {}
    for name, spec in specs.items():
        score, folder = load_scorer(tmp_path / "m" / name), tmp_path / "m" / name / "bank"
        view = viewer(rows, views, DATA)
        write_bank(folder, rows, spec.sha256, views.model_dump(), view, lambda x, _, s=score: s(x))
        bank = read_bank(folder, rows, spec.sha256, views.model_dump(), BankForm())
        said = np.stack([bank.said(torch.arange(len(rows)), k).numpy() for k in range(2)])
        banked[name] = log_softmax(said, axis=2)  # an ensemble's logits are log-probabilities

    assert np.abs(banked["st"]).max() > 0.1
    assert np.abs(banked["onnx"] - banked["st"]).max() < 1e-3
    assert np.abs(banked["pair"] - banked["st"]).max() < 1e-3
    assert [m["weight"] for m in ensemble(tmp_path / "m/pair")] == pytest.approx([0.5, 0.5])


def labelled_by_given(folder: Path, images: NDArray[np.uint8]) -> Table:
    write_given(folder / "st", folder / "judge", "safetensors", DATA, "teacher")
    return labelled_by(folder / "judge", images)


def ensemble(folder: Path) -> list[dict[str, object]]:
    members: list[dict[str, object]] = json.loads((folder / "ensemble.json").read_text())["members"]
    return members


def test_an_ensemble_mixes_kinds_by_probability_and_sums_their_sizes(
    vit: Path, tmp_path: Path
) -> None:
    given, folder, draw = tmp_path / "given", tmp_path / "teacher", np.random.default_rng(0)
    safetensors(given / "members/0", seed=1)
    shutil.copytree(vit, given / "members/1")
    sources: list[Source] = ["safetensors", "huggingface"]
    for number, source in enumerate(sources):
        path = given / f"members/{number}"
        write_given(path, tmp_path / f"{number}", source, DATA, "teacher")
    images = draw.integers(0, 17, (1000, 1, 4, 4)).astype(np.uint8)
    ours, theirs = (softmax(load_scorer(tmp_path / n)(images), axis=1) for n in ("0", "1"))
    labels = (draw.random(1000) < (ours + theirs)[:, 1] / 2).astype(np.int64)  # half from each

    spec = write_ensemble(given, folder, sources, DATA, table(images, labels), 1)

    weights = [float(str(m["weight"])) for m in ensemble(folder)]
    each = [softmax(load_scorer(folder / f"members/{n}")(images), axis=1) for n in (0, 1)]
    expected = sum(w * p for w, p in zip(weights, each, strict=True))
    assert min(weights) > 0.05
    assert sum(weights) == pytest.approx(1)
    assert np.exp(load_scorer(folder)(images)) == pytest.approx(expected, abs=1e-5)
    members = [read_spec(folder / f"members/{n}") for n in (0, 1)]
    assert spec.parameters == sum(m.parameters for m in members)
    assert spec.bytes == sum(m.bytes for m in members)
    assert spec.flops == sum(m.flops or 0 for m in members)
    assert read_spec(folder) == spec


def test_an_unknown_number_of_operations_stays_unknown_and_the_oldest_date_counts(
    images: NDArray[np.uint8], exported: Path, tmp_path: Path
) -> None:
    safetensors(tmp_path / "members/0")
    shutil.copytree(exported, tmp_path / "members/1")
    write_json(tmp_path / "members/0/spec.json", SPEC | {"created": "2025-06-01"})
    spec = {key: SPEC[key] for key in ("classes", "shape")}
    write_json(tmp_path / "members/1/spec.json", spec | {"created": "2025-02-01"})
    val = table(images, np.zeros(len(images), np.int64))

    found = write_ensemble(tmp_path, tmp_path / "t", ["safetensors", "onnx"], DATA, val, 1)

    assert found.flops is None
    assert found.created == "2025-02-01"


def test_a_dropped_member_is_said_and_not_kept(
    images: NDArray[np.uint8], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, seed in enumerate((1, 2)):
        safetensors(tmp_path / f"given/members/{number}", seed)
        write_given(
            tmp_path / f"given/members/{number}", tmp_path / f"{number}", "safetensors", DATA, "t"
        )
    right = labelled_by(tmp_path / "0", images)
    wrong = load_scorer(tmp_path / "1")(images).argmax(1) != right.labels
    assert wrong.any(), "the second member must be the worse one"
    val = table(right.images[wrong], right.labels[wrong])

    spec = write_ensemble(
        tmp_path / "given", tmp_path / "teacher", ["safetensors"] * 2, DATA, val, 1
    )

    assert "teach: member 1 (torch, " in capsys.readouterr().out
    assert [m["folder"] for m in ensemble(tmp_path / "teacher")] == ["members/0"]
    assert not (tmp_path / "teacher/members/1").exists()
    assert spec.parameters == read_spec(tmp_path / "0").parameters
    assert load_scorer(tmp_path / "teacher")(images).shape == (len(images), 2)


def test_a_member_that_was_exchanged_is_refused(images: NDArray[np.uint8], tmp_path: Path) -> None:
    for number in (0, 1):
        safetensors(tmp_path / f"given/members/{number}", number)
    val = table(images, np.arange(len(images)) % 2)
    write_ensemble(tmp_path / "given", tmp_path / "t", ["safetensors"] * 2, DATA, val, 1)
    first = ensemble(tmp_path / "t")[0]["folder"]
    safetensors(tmp_path / "other", seed=9)
    write_given(tmp_path / "other", tmp_path / "t" / str(first), "safetensors", DATA, "member 0")

    with pytest.raises(DataError, match=r"is not the member that .*ensemble\.json names"):
        load_scorer(tmp_path / "t")


def test_each_member_is_checked_like_a_given_teacher(
    images: NDArray[np.uint8], tmp_path: Path
) -> None:
    safetensors(tmp_path / "members/0")
    safetensors(tmp_path / "members/1")
    val = table(images, np.zeros(len(images), np.int64))
    with pytest.raises(TeacherError, match=r"members/2: no given teacher in the snapshot"):
        write_ensemble(tmp_path, tmp_path / "t", ["safetensors"] * 3, DATA, val, 1)

    write_json(tmp_path / "members/1/spec.json", SPEC | {"classes": ["a", "c"]})
    with pytest.raises(TeacherError, match=r"members/1/spec\.json: its classes are not the data's"):
        write_ensemble(tmp_path, tmp_path / "t", ["safetensors"] * 2, DATA, val, 1)


def test_members_are_taken_into_folders_of_their_own(exported: Path, tmp_path: Path) -> None:
    ours = safetensors(tmp_path / "ours")
    (ours / "notes.txt").write_text("not asked for")
    copy_teachers(
        [Given("onnx", exported, "members/0"), Given("safetensors", ours, "members/1")],
        tmp_path / "raw",
    )
    taken = sorted(p.relative_to(tmp_path / "raw").as_posix() for p in tmp_path.glob("raw/*/*/*"))
    assert taken == [
        "members/0/model.onnx",
        "members/0/spec.json",
        "members/1/spec.json",
        "members/1/weights.safetensors",
    ]


def test_the_judge_can_time_an_ensemble(
    images: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (0, 1):
        safetensors(tmp_path / f"given/members/{number}", number)
    val = table(images, np.arange(len(images)) % 2)
    folder = tmp_path / "models/teacher"
    spec = write_ensemble(tmp_path / "given", folder, ["safetensors"] * 2, DATA, val, 1)
    monkeypatch.chdir(tmp_path)

    said = asked(folder, spec)(images[:1].astype(np.float32))()

    assert np.array_equal(np.asarray(said), load_scorer(folder)(images[:1]))
