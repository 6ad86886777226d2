"""Former weights are brought as files: from the champion's bundle and DVC's cache, or a folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from flows import ledger
from flows.bundle import read_manifest
from flows.candidate import CHAMPION
from flows.ledger import Model
from flows.params import Params, check_params
from flows.seal import latest
from flows.state import Checkout, Servers
from flows.warm_start import check_start, former
from tasks.core.errors import DataError
from tasks.core.models import read_spec
from tasks.core.tables import read_fingerprint


@pytest.fixture
def checkout(pipeline: Path, tmp_path: Path) -> Checkout:
    """A copy of a checkout that has run, without a champion."""
    left_out = shutil.ignore_patterns("artifacts", "prefect", "ledger.jsonl", "runs")
    root = Path(shutil.copytree(pipeline, tmp_path / "copy", symlinks=True, ignore=left_out))
    return Checkout(root, root, Servers())


def asked(checkout: Checkout, warm_start: str) -> Params:
    params = check_params(checkout.root)
    distill = params.distill.model_copy(update={"warm_start": warm_start})
    return params.model_copy(update={"distill": distill})


def brought(checkout: Checkout, warm_start: str) -> Path:
    """The model folder that `distill.warm_start` brings."""
    write = former(checkout, asked(checkout, warm_start))
    assert write is not None
    folder = checkout.root / "brought"
    shutil.rmtree(folder, ignore_errors=True)
    write(folder, read_fingerprint(checkout.root / "data/fingerprint.json").data)
    return folder


def sealed(checkout: Checkout) -> Path:
    bundle = latest(checkout, "student")
    assert bundle is not None
    return bundle


def promoted(checkout: Checkout) -> None:
    """The ledger says that today's student is champion."""
    bundle = sealed(checkout)
    subject = read_manifest(bundle).subject
    model = Model(
        student="student",
        subject=subject.digest,
        sha256=subject.files["model.onnx"],
        bundle=bundle.name,
        candidate=1,
    )
    said = {"act": "promote", "name": "digits", "alias": CHAMPION, "by": "A", "reason": "better"}
    ledger.append(checkout, **said, step="confirmed", commit="0" * 40, model=model)


@pytest.fixture
def elsewhere(checkout: Checkout) -> Path:
    """What another checkout made."""
    folder = checkout.root.with_name("elsewhere")
    for name in ("models", "ship"):
        shutil.copytree(checkout.root / name, folder / name, symlinks=True)
    return folder


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize(
    "place",
    ["champion", "bundle", "../elsewhere/models/student", "../elsewhere/ship/student"],
)
def test_a_former_student_is_brought_as_its_float_weights(checkout: Checkout, place: str) -> None:
    promoted(checkout)
    wanted = read_spec(checkout.root / "models/student")
    if place == "champion":  # the student of today may be another one
        shutil.rmtree(checkout.root / "models/student")
        shutil.rmtree(checkout.root / "ship/student")

    found = brought(checkout, str(sealed(checkout)) if place == "bundle" else place)

    assert {file.name for file in found.iterdir()} == {"spec.json", "weights.safetensors"}
    assert read_spec(found) == wanted


def test_no_champion_no_folder_and_weights_that_were_freed_are_one_line_each(
    checkout: Checkout,
) -> None:
    with pytest.raises(DataError, match="digits has no champion yet; promote one first"):
        brought(checkout, "champion")
    with pytest.raises(
        DataError, match=r"nowhere/spec\.json: no such file; distill\.warm_start is"
    ):
        brought(checkout, "nowhere")
    promoted(checkout)
    md5 = read_manifest(sealed(checkout)).circumstances.objects["models/student"]
    (checkout.root / ".dvc/cache/files/md5" / md5[:2] / md5[2:]).unlink()
    with pytest.raises(DataError, match="DVC's cache has no models/student of it any more"):
        brought(checkout, "champion")


@pytest.mark.usefixtures("elsewhere")
def test_weights_that_no_shipped_rung_can_start_from_are_refused(checkout: Checkout) -> None:
    with pytest.raises(DataError, match=r"models/assistant: has another architecture than student"):
        brought(checkout, "../elsewhere/models/assistant")


@pytest.mark.usefixtures("elsewhere")
def test_under_a_plan_the_architecture_is_checked_once_the_rungs_are_settled(
    checkout: Checkout,
) -> None:
    params = asked(checkout, "../elsewhere/models/assistant")
    planned = params.model_copy(
        update={"distill": params.distill.model_copy(update={"plan": "auto"})}
    )
    write = former(checkout, planned)
    assert write is not None
    folder = checkout.root / "data/raw/warm_start"
    write(folder, read_fingerprint(checkout.root / "data/fingerprint.json").data)

    with pytest.raises(DataError, match="assistant: has another architecture than student"):
        check_start(checkout, planned)


def test_what_a_run_here_makes_is_no_former_student(checkout: Checkout) -> None:
    for place in ("ship/student", "models/student"):
        with pytest.raises(DataError, match="is what a run here makes"):
            brought(checkout, place)


def test_nothing_is_brought_where_nothing_is_asked_for(checkout: Checkout) -> None:
    assert former(checkout, check_params(checkout.root)) is None
