"""The bank: what one model said is what the next one hears, and nobody else's words are taken."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from tasks.core import stored
from tasks.core.bank import Bank, BankForm, BankInfo, read_bank
from tasks.core.banking import write_bank
from tasks.core.errors import DataError, ParamsError, TeacherError
from tasks.core.metrics import cosine
from tasks.core.models import Architecture, Normalisation
from tasks.core.rows import Rows, in_memory
from tasks.core.seeds import derived
from tasks.core.tables import Schema, Table
from tasks.modalities.vision.networks import ResidualNetwork, build
from tasks.modalities.vision.scorers import network_scorer
from tasks.modalities.vision.training import viewer
from tasks.modalities.vision.views import Views

CLASSES = 12
SCHEMA = Schema(
    modality="vision", shape=(1, 8, 8), dtype="uint8", range=(0, 16),
    classes=tuple(f"c{i}" for i in range(CLASSES)),
)  # fmt: skip
VIEWS = Views(count=4, seed=3, shift=1, flip=True)
FULL = BankForm()
EVERY = torch.arange(60)


@pytest.fixture
def table() -> Table:
    draw = np.random.default_rng(1)
    images = draw.integers(0, 16, (60, 1, 8, 8)).astype(np.uint8)
    names = np.array([f"{derived(0, i):016x}" + "0" * 48 for i in range(60)])
    return Table(names, np.arange(60) % 3, images)


@pytest.fixture
def rows(table: Table) -> Rows:
    return in_memory(table)


def network(seed: int = 0) -> ResidualNetwork:
    torch.manual_seed(seed)
    return build(Architecture(widths=(4, 8)), SCHEMA, Normalisation(mean=8, std=5)).eval()


def banked(
    folder: Path,
    rows: Rows,
    net: ResidualNetwork | None = None,
    form: BankForm = FULL,
    above: Bank | None = None,
    hand_on: bool = False,
    scale: float = 1.0,
) -> Bank:
    """A bank of a network in batches that do not divide the rows, written and read back."""
    score = network_scorer(net or network())
    write_bank(
        folder, rows, folder.name, VIEWS.model_dump(), viewer(rows, VIEWS, SCHEMA),
        lambda images, _: score(images) * np.float32(scale), form, above, hand_on, batch=32,
    )  # fmt: skip
    return opened(folder, rows, form)


def opened(folder: Path, rows: Rows, form: BankForm = FULL) -> Bank:
    return read_bank(folder, rows, folder.name, VIEWS.model_dump(), form)


def live(net: ResidualNetwork, rows: Rows, k: int) -> NDArray[np.float32]:
    seen = viewer(rows, VIEWS, SCHEMA)(rows.images[:].float(), EVERY.numpy(), k)
    return network_scorer(net)(seen.numpy())


def said(bank: Bank, k: int, index: Tensor = EVERY) -> Tensor:
    return bank.signal(torch.empty(0), index, k)[0].logits


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("limit", [0, 2**20], ids=["row by row", "mapped"])
def test_the_bank_holds_the_logits_of_the_very_view_that_the_student_sees(
    rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, limit: int
) -> None:
    monkeypatch.setattr(stored, "MAPPED", limit)
    bank = banked(tmp_path, rows, form=BankForm.model_validate({"dtype": dtype}))
    for k in range(2 * VIEWS.count):  # views come round again
        truth = live(network(), rows, k)
        assert cosine(truth, said(bank, k).numpy()) >= 0.9999
        assert np.abs(truth - said(bank, k).numpy()).max() < 1e-2
        assert np.abs(truth - said(bank, k + 1).numpy()).max() > 2e-2, "a wrong view would show"
    index = torch.tensor([59, 3, 3])
    assert torch.equal(said(bank, 2, index), said(bank, 2)[index])


def test_the_top_classes_keep_their_probability_and_the_others_share_the_rest(
    rows: Rows, tmp_path: Path
) -> None:
    bank = banked(tmp_path, rows, form=BankForm(top=3))
    truth = F.softmax(torch.from_numpy(live(network(), rows, 1)), 1)
    kept = F.softmax(said(bank, 1), 1)
    largest, classes = truth.topk(3, dim=1)
    assert torch.allclose(kept.gather(1, classes), largest, atol=1e-3)
    others = torch.full_like(kept, 1.0).scatter(1, classes, 0.0).bool()
    share = (1 - largest.sum(1)) / (CLASSES - 3)
    assert torch.allclose(kept[others].view(60, -1), share[:, None].expand(-1, 9), atol=1e-3)


@pytest.mark.parametrize(
    ("classes", "dtype"), [(256, torch.uint8), (257, torch.int16), (40_000, torch.int32)]
)
def test_class_indices_take_the_smallest_type_that_holds_them(
    classes: int, dtype: torch.dtype
) -> None:
    form = BankForm(top=2)
    logits = torch.zeros(1, classes)
    logits[0, classes - 1], logits[0, 7] = 9.0, 5.0
    values, places = form.packed(logits)
    assert places is not None
    assert places.dtype == dtype
    restored = form.unpacked(values, places, classes)
    assert restored.argmax() == classes - 1
    assert restored[0, [classes - 1, 7, 0]].tolist() == [9.0, 5.0, 0.0]


def test_a_top_that_leaves_no_class_out_is_refused_before_anything_is_written(
    rows: Rows, tmp_path: Path
) -> None:
    with pytest.raises(ParamsError, match=r"teach\.bank\.top: 12 is not below the 12 classes"):
        banked(tmp_path / "m", rows, form=BankForm(top=12))
    assert not list(tmp_path.iterdir())


def test_the_bank_states_how_near_it_is_to_the_live_model(
    rows: Rows, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bank = banked(tmp_path, rows, form=BankForm(dtype="bfloat16"))
    cosines, equal = [], []
    for k in range(VIEWS.count):
        truth, kept = torch.from_numpy(live(network(), rows, k)).double(), said(bank, k).double()
        cosines.append((truth * kept).sum(1) / truth.norm(dim=1) / kept.norm(dim=1))
        equal.append((truth.argmax(1) == kept.argmax(1)).double())
    fidelity = bank.info.fidelity
    assert fidelity.cosine_min == pytest.approx(float(torch.cat(cosines).min()), abs=1e-8)
    assert fidelity.cosine_mean == pytest.approx(float(torch.cat(cosines).mean()), abs=1e-8)
    assert fidelity.agreement == pytest.approx(float(torch.cat(equal).mean()), abs=1e-8)
    assert 0.9999 <= fidelity.cosine_min < fidelity.cosine_mean < 1
    assert f"cosine {fidelity.cosine_mean:.6f}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("scale", "says"),
    [
        (1e-7, r"as float16 the logits differ from the model's \(cosine 0\.\d+\)"),
        (1e6, "are beyond float16; set teach.bank.dtype: bfloat16"),
        (math.nan, "gives logits that are not finite; retrain it"),
        (math.inf, "gives logits that are not finite; retrain it"),
    ],
)
def test_logits_that_the_form_cannot_hold_stop_the_banking_and_leave_nothing(
    rows: Rows, tmp_path: Path, scale: float, says: str
) -> None:
    with pytest.raises(TeacherError, match=says):
        banked(tmp_path, rows, scale=scale)
    assert not list(tmp_path.iterdir())
    if 0 < scale < math.inf:
        banked(tmp_path, rows, scale=scale, form=BankForm(dtype="bfloat16"))


def test_a_row_of_zeros_is_kept_as_it_is(rows: Rows, tmp_path: Path) -> None:
    bank = banked(tmp_path, rows, scale=0.0)
    assert bank.info.fidelity.cosine_min == 1


def test_a_banking_that_fails_leaves_the_former_bank_as_it_was(rows: Rows, tmp_path: Path) -> None:
    before = said(banked(tmp_path, rows), 1)
    with pytest.raises(TeacherError):
        banked(tmp_path, rows, scale=math.nan)
    assert torch.equal(said(opened(tmp_path, rows), 1), before)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("model", r"of another model \(bank\), not other"),
        ("rows", "of other training rows"),
        ("views", "of other views"),
        ("dtype", "in another form .float16, all classes., not bfloat16, all classes"),
        ("top", "in another form .float16, all classes., not float16, top 3"),
        ("shorter", "logits.safetensors: truncated or changed"),
        ("other bytes", "logits.safetensors: truncated or changed"),
        ("gone", "logits.safetensors: truncated or changed"),
    ],
)
def test_a_bank_that_does_not_match_says_what_differs(
    rows: Rows, table: Table, tmp_path: Path, change: str, says: str
) -> None:
    folder = tmp_path / "bank"
    banked(folder, rows)
    file, model, views, form = folder / "logits.safetensors", "bank", VIEWS.model_dump(), FULL
    match change:
        case "model":
            model = "other"
        case "rows":
            rows = in_memory(table.take(np.arange(60)[::-1].copy()))
        case "views":
            views = {**views, "seed": 4}
        case "dtype":
            form = BankForm(dtype="bfloat16")
        case "top":
            form = BankForm(top=3)
        case "shorter":
            file.write_bytes(file.read_bytes()[:-8])
        case "other bytes":
            file.write_bytes(file.read_bytes()[:-1] + b"\x00")
        case "gone":
            file.unlink()
    with pytest.raises(DataError, match=says):
        read_bank(folder, rows, model, views, form)


@pytest.mark.parametrize("files", [{}, {"logits": ""}, {"../spec": "0"}])
def test_a_page_that_names_no_logits_or_other_files_is_refused(
    rows: Rows, tmp_path: Path, files: dict[str, str]
) -> None:
    banked(tmp_path / "bank", rows)
    page = tmp_path / "bank/bank.json"
    page.write_text(json.dumps(json.loads(page.read_text()) | {"files": files}))
    with pytest.raises((DataError, ParamsError)):
        opened(tmp_path / "bank", rows)


def test_a_bank_carries_those_of_the_models_above_nearest_first(rows: Rows, tmp_path: Path) -> None:
    teacher = banked(tmp_path / "teacher", rows, network(1))
    first = banked(tmp_path / "first", rows, network(2), above=teacher, hand_on=True)
    second = banked(tmp_path / "second", rows, network(3), above=first, hand_on=True)
    plain = banked(tmp_path / "plain", rows, network(4), above=second)
    expected = [said(bank, 1) for bank in (second, first, teacher)]
    for folder in ("teacher", "first"):
        (tmp_path / folder).rename(tmp_path / f"moved {folder}")
    heard = opened(tmp_path / "second", rows).signal(torch.empty(0), EVERY, 1)
    assert len(heard) == 3
    assert all(torch.equal(h.logits, e) for h, e in zip(heard, expected, strict=True))
    assert second.info.above == ("first", "teacher")
    assert len(plain.signal(torch.empty(0), EVERY, 1)) == 1


def test_a_bank_that_is_carried_is_checked_like_any_other(rows: Rows, tmp_path: Path) -> None:
    teacher = banked(tmp_path / "teacher", rows, network(1))
    banked(tmp_path / "first", rows, network(2), above=teacher, hand_on=True)
    file = tmp_path / "first/1/logits.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(DataError, match=r"first/1/logits\.safetensors: truncated"):
        opened(tmp_path / "first", rows)


def test_flips_are_rows_that_the_model_above_had_right_and_this_one_has_wrong(
    rows: Rows, tmp_path: Path
) -> None:
    answers = [live(network(seed), rows, 0).argmax(1) for seed in (1, 2)]
    labels = torch.from_numpy(answers[0].copy())  # the one above is right throughout ...
    labels[30:] = torch.from_numpy(answers[1][30:])  # ... then this one is
    labels[:10] = -1  # no label, no flip
    labelled = replace(rows, labels=labels)
    teacher = banked(tmp_path / "teacher", labelled, network(1))
    rung = banked(tmp_path / "rung", labelled, network(2), above=teacher)
    expected = [10 <= i < 30 and answers[0][i] != answers[1][i] for i in range(60)]
    assert rung.flipped is not None
    assert rung.flipped.tolist() == expected
    assert any(expected)
    assert teacher.flipped is None


def test_flipped_rows_weigh_more_and_the_mean_stays_one(rows: Rows, tmp_path: Path) -> None:
    bank = banked(tmp_path, rows)
    some = replace(bank, flipped=EVERY < 15)
    weights = some.weights(3.0)
    assert weights is not None
    assert float(weights.mean()) == pytest.approx(1.0)
    assert float(weights[0] / weights[59]) == pytest.approx(4.0)
    assert some.weights(0.0) is None
    assert bank.weights(3.0) is None, "a model that learned from no bank lost nothing"


def test_the_page_of_a_bank_is_the_same_for_the_same_model(rows: Rows, tmp_path: Path) -> None:
    first, second = (banked(tmp_path / place / "m", rows).info for place in "ab")
    assert first == second
    assert isinstance(first, BankInfo)
    one, two = (tmp_path / place / "m/logits.safetensors" for place in "ab")
    assert one.read_bytes() == two.read_bytes()
