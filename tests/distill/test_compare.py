"""Chains at equal compute, and a recommendation that needs a significant gain."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from numpy.typing import NDArray

from tasks.core.banking import write_bank
from tasks.core.errors import DataError, ParamsError
from tasks.core.files import read_json, write_json
from tasks.core.models import (
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
from tasks.core.rows import in_memory
from tasks.core.tables import QUARANTINE, Fingerprint, Schema, Split, Table, write_table
from tasks.core.trainer import Training
from tasks.distill import compare
from tasks.distill.chains import arithmetic, candidates, compute, largest_step, plan, planned
from tasks.distill.decision import Gain, PlanReport, gains, recommended, why, writable
from tasks.distill.params import DistillParams, Rung
from tasks.distill.plan_plot import plan_png
from tasks.distill.propose import Ground, down_to, ground, midway, operations, size, written
from tasks.modalities.vision.networks import build, flops
from tasks.modalities.vision.training import viewer
from tasks.modalities.vision.views import Views

DATA = Schema(
    modality="vision", shape=(1, 8, 8), dtype="uint8", range=(0, 16), classes=("a", "b", "c")
)
OWN = Architecture(widths=(8, 16))
TEACHING = Training(epochs=1, batch=20, learning_rate=0.01)
VIEWS = Views(count=2, seed=0)
TEACHER = size(OWN, DATA)
RUNGS: dict[str, Any] = {
    "assistant": {
        "from": "teacher",
        "architecture": {"widths": [5, 6]},
        "training": {"epochs": 1, "batch": 20, "learning_rate": 0.01},
        "losses": {"kd": 0.9, "cross_entropy": 0.1},
    },
    "student": {
        "from": "assistant",
        "architecture": {"widths": [4]},
        "training": {"epochs": 2, "batch": 20, "learning_rate": 0.01, "patience": 1},
        "losses": {"dkd": 0.6, "kd": 0.3, "cross_entropy": 0.1},
    },
}


def distill(**changes: Any) -> DistillParams:
    return check(DistillParams, {"ship": ["student"], "rungs": RUNGS} | changes, "distill")


def on(params: DistillParams, teacher: int = TEACHER) -> Ground:
    return ground(params, teacher, OWN, TEACHING, DATA)


def test_direct_gets_epochs_for_what_the_assistant_costs_and_no_more() -> None:
    params = distill()
    chains = candidates(plan(params, on(params)), on(params), views=4)
    spent = {name: compute(chain, DATA, 4) for name, chain in chains.items()}
    step = 3 * operations(Architecture(widths=(4,)), DATA)

    assert list(chains["direct"]) == ["student"]
    assert chains["direct"]["student"].from_ == "teacher"
    assert spent["assistant"] == spent["dense"]
    assert 0 <= spent["assistant"] - spent["direct"] < step


def test_compute_is_counted_as_it_says() -> None:
    params = distill()
    assistant = operations(Architecture(widths=(5, 6)), DATA)
    student = operations(Architecture(widths=(4,)), DATA)
    chain = candidates(plan(params, on(params)), on(params), views=4)["assistant"]
    total = 3 * assistant * 1 + assistant * 4 + 3 * student * 2

    assert compute(chain, DATA, 4) == total
    assert arithmetic(chain, DATA, 4) == (
        f"assistant 3 x {assistant:,} x 1 epochs + its bank {assistant:,} x 4 views + "
        f"student 3 x {student:,} x 2 epochs = {total:,} FLOPs a row"
    )


def test_a_dense_chain_hands_on_and_learns_from_all_above() -> None:
    params = distill()
    dense = candidates(plan(params, on(params)), on(params), views=4)["dense"]

    assert dense["assistant"].hand_on
    assert dense["assistant"].losses == {"kd": 0.9, "cross_entropy": 0.1}
    assert dense["student"].losses == {"dense": 0.9, "cross_entropy": 0.1}
    assert check(DistillParams, {"ship": ["student"], "rungs": written(dense)}, "p").rungs == dense


def test_rungs_written_as_a_dense_chain_are_compared_with_plain_ones() -> None:
    params = distill()
    dense = candidates(plan(params, on(params)), on(params), views=4)["dense"]
    guided = params.model_copy(update={"rungs": dense})

    again = candidates(plan(guided, on(guided)), on(guided), views=4)

    losses = {name: list(chain.values())[-1].losses for name, chain in again.items()}
    assert losses["direct"] == losses["assistant"]
    assert "dense" not in losses["direct"]
    assert "dense" in losses["dense"]


def test_every_chain_trains_for_all_of_its_epochs() -> None:
    params = distill()
    for chain in candidates(plan(params, on(params)), on(params), views=4).values():
        assert all(rung.training.patience is None for rung in chain.values())


def test_a_chain_without_an_assistant_gets_one_halfway() -> None:
    params = distill(rungs={"student": RUNGS["student"] | {"from": "teacher"}})
    chain = candidates(plan(params, on(params)), on(params), views=4)["assistant"]
    above, student = chain.values()
    halfway = midway(student.architecture, on(params))

    assert (above.from_, above.architecture, student.from_) == ("teacher", halfway, "assistant")
    assert size(OWN, DATA) > size(halfway, DATA) > size(student.architecture, DATA)


def test_what_has_no_counterpart_in_the_other_chains_is_refused() -> None:
    params = distill(rungs=RUNGS | {"student": RUNGS["student"] | {"signal": "live"}})
    with pytest.raises(ParamsError, match=r"rungs\.student\.signal: chains are compared on banks"):
        candidates(plan(params, on(params)), on(params), views=4)


def test_an_adversary_of_no_weight_is_left_out_of_a_dense_chain() -> None:
    idle = {
        "losses": {"adversarial": 0.0, "kd": 1.0},
        "adversary": {"epsilon": 0.1, "steps": 2, "step": 0.1},
    }
    params = distill(rungs=RUNGS | {"student": RUNGS["student"] | idle})
    student = candidates(plan(params, on(params)), on(params), views=4)["dense"]["student"]

    assert (student.losses, student.adversary) == ({"dense": 1.0}, None)


def test_a_student_meets_its_adversary_in_every_chain_and_what_that_costs_is_counted() -> None:
    met = {
        "losses": {"adversarial": 0.5, "kd": 0.4, "cross_entropy": 0.1},
        "adversary": {"epsilon": 0.1, "steps": 2, "step": 0.1},
    }
    params = distill(rungs=RUNGS | {"student": RUNGS["student"] | met})
    chains = candidates(plan(params, on(params)), on(params), views=4)
    students = {name: chain["student"] for name, chain in chains.items()}
    passes = 3 + 2 * 2 + 3  # the row, two moves and what is found
    step = passes * operations(Architecture(widths=(4,)), DATA)
    spent = {name: compute(chain, DATA, 4) for name, chain in chains.items()}

    assert {student.adversary for student in students.values()} == {
        params.rungs["student"].adversary
    }
    assert students["direct"].losses == students["assistant"].losses == met["losses"]
    assert students["dense"].losses == {"dense": 0.4, "adversarial": 0.5, "cross_entropy": 0.1}
    assert compute({"student": students["assistant"]}, DATA, 4) == 2 * step
    assert 0 <= spent["assistant"] - spent["direct"] < step
    assert "student 10 x " in arithmetic(chains["assistant"], DATA, 4)


def auto(rungs: dict[str, Rung]) -> DistillParams:
    content = {"plan": "auto", "budget": {"parameters": 1_000}, "rungs": written(rungs)}
    return distill(**content)


def test_written_rungs_are_the_plans_if_proposed_or_compared_and_trainable() -> None:
    base = on(distill(), teacher=9_000)  # 22:1 to the student: it needs an assistant
    proposal = down_to("student", Architecture(widths=(4,)), base)
    compared = candidates(proposal, base, views=4)
    other = dict(proposal, student=proposal["student"].model_copy(update={"temperature": 9.0}))

    assert largest_step(compared["direct"], base) > 10
    assert planned(auto(proposal), base, views=4)
    assert planned(auto(compared["dense"]), base, views=4)
    assert not planned(auto(compared["direct"]), base, views=4)
    assert not planned(auto(other), base, views=4)


def flags(*shares: float, rows: int = 200) -> NDArray[np.bool_]:
    """(seeds, rows): of each seed the first rows are right, as large a share as is said."""
    return np.stack([np.arange(rows) < share * rows for share in shares])


def test_a_significant_gain_and_nothing_less_is_recommended() -> None:
    direct = flags(0.80, 0.80, 0.80)
    clear = gains({"direct": direct, "assistant": flags(0.9, 0.91, 0.9), "dense": direct})
    mixed = gains({"direct": direct, "assistant": flags(0.95, 0.78, 0.84), "dense": direct})
    worse = gains({"direct": direct, "assistant": flags(0.7, 0.7, 0.7), "dense": direct})

    assert recommended(clear) == "assistant"
    assert mixed["assistant"].value > 0 > mixed["assistant"].low
    assert (recommended(mixed), recommended(worse)) == ("direct", "direct")


def test_direct_beyond_ten_to_one_is_told_and_the_assistant_is_written() -> None:
    found = {"assistant": Gain(value=0.001, low=-0.01, high=0.012)}
    steps = {"direct": 44.2, "assistant": 7.0, "dense": 7.0}
    said = why("direct", found, steps, seeds=5)

    assert "no chain gains significantly over it at equal compute (assistant +0.10 points" in said
    assert "step of 44.2:1 was taken for the comparison alone" in said
    assert writable("direct", steps) == "assistant"
    assert writable("direct", steps | {"direct": 9.0}) == "direct"
    assert writable("direct", {"direct": 400.0, "assistant": 20.0}) is None


def table(count: int, seed: int) -> Table:
    """Noise whose brightness is the class."""
    draw = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    images = draw.integers(0, 9, (count, 1, 8, 8)) + 3 * labels[:, None, None, None]
    names = np.array([hashlib.sha256(image.tobytes()).hexdigest() for image in images])
    return Table(names, labels, images.astype(np.uint8))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with tables, parameters and a teacher whose bank knows the labels."""
    root = tmp_path_factory.mktemp("source")
    train, val = table(60, 0), table(45, 1)
    none = train.take(np.zeros(len(train), dtype=bool))
    for name, content in (("train", train), ("val", val), ("transfer", none)):
        write_table(root / f"data/{name}.parquet", content)
    empty = {field.name: pa.array([], field.type) for field in QUARANTINE}
    pq.write_table(pa.table(empty, schema=QUARANTINE), root / "data/quarantine.parquet")
    split = Split(rows=1, per_class={}, sha256="0")
    splits = {"train": split, "val": split, "test": split}
    norm = Normalisation(mean=7.0, std=4.0)
    fingerprint = Fingerprint(
        format="stillhouse/fingerprint/1", data=DATA, snapshot="0", mean=norm.mean, std=norm.std,
        splits=splits, digest="0",
    )  # fmt: skip
    write_json(root / "data/fingerprint.json", fingerprint.model_dump(mode="json"))
    torch.manual_seed(0)
    net, folder = build(OWN, DATA, norm), root / "models/teacher"
    count = parameters(net.state_dict())
    spec = ModelSpec(
        name="teacher", kind="torch", architecture=OWN, normalisation=norm, data=DATA,
        parameters=count, bytes=4 * count, flops=flops(net, DATA),
        sha256=write_weights(folder / WEIGHTS, net.state_dict()),
    )  # fmt: skip
    write_spec(folder, spec)
    rows, known = in_memory(train), 4 * np.eye(3, dtype=np.float32)[train.labels]
    write_bank(
        folder / "bank", rows, spec.sha256, VIEWS.model_dump(), viewer(rows, VIEWS, DATA),
        lambda _, index: known[index],
    )  # fmt: skip
    params = {
        "threads": 1,
        "teach": {
            "architecture": OWN.model_dump(mode="json"),
            "training": TEACHING.model_dump(mode="json"),
            "views": VIEWS.model_dump(),
            "bank": {},
        },
        "distill": {"ship": ["student"], "rungs": RUNGS},
    }
    (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    return root


Learned = dict[str, int]  # what was trained, in order -> models that taught beside the nearest


@contextmanager
def watched() -> Iterator[Learned]:
    """What `compare` trains; the real training goes on."""
    seen: Learned = {}
    learn: Callable[..., Any] = compare.learn

    def noting(*arguments: Any) -> Any:
        begun = np.random.get_state()[1][0]  # noqa: NPY002 - what a loss might draw from
        assert begun == arguments[1].training.seed, "a training begins as a stage does"
        spec, bank = learn(*arguments)
        seen[arguments[-1]] = len(bank.above)
        return spec, bank

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "learn", noting)
        yield seen


@pytest.fixture(scope="module")
def compared(source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Learned]:
    """A project in which two seeds were compared; copied for each test."""
    folder = tmp_path_factory.mktemp("compared") / "project"
    shutil.copytree(source, folder)
    with pytest.MonkeyPatch.context() as patch, watched() as seen:
        patch.chdir(folder)
        compare.run(["2"])
    return folder, seen


def entered(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `folder` as the working directory."""
    shutil.copytree(folder, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


@pytest.fixture
def project(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return entered(source, tmp_path, monkeypatch)


@pytest.fixture
def again(compared: tuple[Path, Learned], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return entered(compared[0], tmp_path, monkeypatch)


def test_a_comparison_goes_on_where_it_was_interrupted_and_ends_the_same(
    compared: tuple[Path, Learned], project: Path
) -> None:
    whole, every = compared
    real: Callable[..., Any] = compare.learn
    with watched() as before, pytest.MonkeyPatch.context() as patch:
        noting: Callable[..., Any] = compare.learn

        def failing(*arguments: Any) -> Any:
            if len(before) == 4:
                raise KeyboardInterrupt
            return noting(*arguments)

        patch.setattr(compare, "learn", failing)
        with pytest.raises(KeyboardInterrupt):
            compare.run(["2"])
    assert compare.learn is real
    with watched() as after:
        compare.run(["2"])

    # One assistant a seed, which both chains share, and the student of each chain.
    assert len(every) == 2 * 4
    assert [*before, *after] == list(every)
    for file in (compare.REPORT, compare.PLOT):
        assert (project / file).read_bytes() == (whole / file).read_bytes()


@pytest.mark.usefixtures("again")
def test_what_is_finished_is_not_trained_again_and_another_seed_adds_its_own() -> None:
    with watched() as nothing:
        compare.run(["2"])
    with watched() as added:
        compare.run(["3"])

    assert not nothing
    assert len(added) == 4
    assert all("seed 2" in what for what in added)


def test_another_rung_begins_anew_and_what_it_replaces_is_removed(again: Path) -> None:
    path = again / "params.yaml"
    text = path.read_text()
    path.write_text(text.replace("dkd: 0.6", "dkd: 0.5").replace(" kd: 0.3", " kd: 0.4"))
    with watched() as anew:
        compare.run(["2"])

    assert len(anew) == 2 * 3  # the dense student has neither: it is as it was
    assert len(list((again / compare.PLANS).iterdir())) == 2 * 3


@pytest.mark.parametrize(
    ("what", "other"),
    [("_code", dict), ("torch", SimpleNamespace(__version__="0.0"))],
)
@pytest.mark.usefixtures("again")
def test_other_code_or_another_torch_begins_anew(
    monkeypatch: pytest.MonkeyPatch, what: str, other: object
) -> None:
    monkeypatch.setattr(compare, what, other)
    with watched() as anew:
        compare.run(["2"])
    assert len(anew) == 2 * 4


def test_another_number_of_threads_begins_anew(again: Path) -> None:
    path = again / "params.yaml"
    path.write_text(path.read_text().replace("threads: 1", "threads: 2"))
    with watched() as anew:
        compare.run(["2"])
    assert len(anew) == 2 * 4


def test_of_what_is_finished_the_scores_alone_are_kept(again: Path) -> None:
    found = [path for path in (again / compare.PLANS).rglob("*") if path.is_file()]
    assert {path.name for path in found} == {compare.SCORES}


def test_another_bank_of_the_same_teacher_begins_anew(again: Path) -> None:
    path = again / "models/teacher/bank/bank.json"
    write_json(path, read_json(path) | {"folds": 5})  # answers of other networks, same weights
    with watched() as anew:
        compare.run(["2"])

    assert len(anew) == 2 * 4  # an assistant and three students, for each seed


def test_the_report_tells_what_was_compared_and_scores_validation_rows_alone(
    again: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compare.run(["2"])
    report = check(PlanReport, json.loads((again / compare.REPORT).read_text()), "report")
    said = capsys.readouterr().out
    direct, _, dense = report.chains

    assert not (again / "data/test.parquet").exists()
    assert (report.seeds, report.rows, report.student) == (2, 45, "student")
    assert [chain.name for chain in report.chains] == ["direct", "assistant", "dense"]
    assert report.teacher == read_spec(again / "models/teacher").sha256
    for chain in report.chains:
        assert len(chain.accuracy) == 2
        assert chain.arithmetic in said
    assert dense.links == ("assistant", "student")
    assert direct.gain is None
    assert dense.gain is not None
    assert dense.gain.value == pytest.approx(dense.mean - direct.mean)
    assert dense.gain.low <= dense.gain.value <= dense.gain.high
    assert "plan: 6/6: dense, seed 1" in said


def test_the_plot_is_the_same_twice_and_another_for_other_figures(again: Path) -> None:
    report = check(PlanReport, json.loads((again / compare.REPORT).read_text()), "report")
    other = report.model_copy(update={"recommended": "dense"})

    assert plan_png(report) == (again / compare.PLOT).read_bytes()
    assert plan_png(other) != plan_png(report)


def test_the_dense_student_learns_from_the_teacher_too(compared: tuple[Path, Learned]) -> None:
    _, seen = compared

    assert seen["plan dense seed 0: student"] == 1
    assert seen["plan direct seed 0: student"] == 0


def test_without_a_teacher_it_says_what_to_run(project: Path) -> None:
    shutil.rmtree(project / "models")
    with pytest.raises(DataError, match=r"models/teacher: not there, .* `stillhouse run`"):
        compare.run(["2"])


@pytest.mark.usefixtures("project")
def test_one_seed_is_refused() -> None:
    with pytest.raises(ParamsError, match="--seeds 1: one seed knows no spread"):
        compare.run(["1"])


def test_rungs_that_are_not_the_proposal_are_not_compared(project: Path) -> None:
    path = project / "params.yaml"
    content = yaml.safe_load(path.read_text())
    content["distill"] |= {"plan": "auto", "budget": {"parameters": 1_000}}
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ParamsError, match="type `stillhouse plan --write`"):
        compare.run(["2"])


def test_a_score_file_that_is_torn_is_named(again: Path) -> None:
    file = min((again / compare.PLANS).rglob(compare.SCORES))
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(DataError, match="is torn; remove checkpoints/of-plan/"):
        compare.run(["2"])
