"""Sealed bundles and MLflow's runs past their age, on a real store; versions and ledger hold."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from flows import expiry, ledger, registry, tracking
from flows.gc import collect
from flows.seal import seal, verify
from flows.state import Checkout
from flows.store import KIND, opened
from tasks.core.errors import DataError

DAY = 86_400_000  # ms


def gc(project: Any, days: float = 30) -> list[str]:
    return list(collect(project.checkout, days, dry_run=False))


def old_run(project: Any, name: str, days: int, **tags: str) -> str:
    """A run of ours that ended so many days ago, with an artefact."""
    from mlflow.utils.time import get_current_time_millis

    with opened(project.checkout) as store:
        run = store.begin(name, {KIND: "run"} | {f"stillhouse.{k}": v for k, v in tags.items()})
        store.client.log_text(run.info.run_id, "a report", "report.txt")
        ended = get_current_time_millis() - days * DAY
        store.client.set_terminated(run.info.run_id, "FINISHED", end_time=ended)
    return str(run.info.run_id)


def there(project: Any) -> set[str]:
    """Our runs in the store, deleted ones too."""
    with opened(project.checkout) as store:
        return {run.info.run_id for run in expiry._runs(store, [store.experiment])}


def reports(project: Any) -> set[str]:
    """Runs whose artefact is there."""
    return {p.parts[-3] for p in (project.checkout.state / "artifacts").rglob("report.txt")}


def sealed(project: Any, register: bool) -> Path:
    """The bundle of a student, sealed long ago."""
    run = tracking.project(project.checkout)
    bundle = seal(project.checkout, "student")
    os.utime(bundle / "manifest.json", (0, 0))
    if register:
        assert registry.register(project.checkout, "student", bundle, run)
    return bundle


def in_ledger(project: Any, bundle: Path) -> None:
    """A line that names a bundle, as a promotion writes it."""
    model = ledger.Model(
        student="student", subject="ab" * 32, sha256="cd" * 32, bundle=bundle.name, candidate=1
    )
    ledger.append(
        project.checkout,
        act="promote",
        step="refused",
        name="trees",
        alias="champion",
        by="t",
        reason="a test",
        commit="0" * 40,
        model=model,
    )


def test_runs_past_their_age_go_with_their_artefacts_unless_a_younger_one_links_to_them(
    trees: Any,
) -> None:
    old_run(trees, "old", 40)
    computed = old_run(trees, "computed", 40)
    young = old_run(trees, "young", 20, computed_by=computed)

    said = gc(trees)

    assert there(trees) == reports(trees) == {young, computed}
    assert said == ["1 run of MLflow, 0 models: 8 bytes", "freed 8 bytes"]


def test_the_run_of_todays_lock_stays_however_old(trees: Any) -> None:
    run = tracking.project(trees.checkout)

    gc(trees, days=0)

    assert run in there(trees)
    assert tracking.project(trees.checkout) == run


def test_cut_off_between_deleting_and_removing_the_next_one_ends_it(
    trees: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = old_run(trees, "old", 40)

    def cut_off(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(expiry, "_empty_trash", cut_off)
        gc(trees)
    between = there(trees)
    gc(trees)

    assert (between, there(trees), reports(trees)) == ({old}, set(), set())


def test_a_bundle_that_only_the_ledger_names_stays(trees: Any) -> None:
    first = sealed(trees, register=False)
    in_ledger(trees, first)
    trees.another_student(seed=7)
    second = sealed(trees, register=False)
    trees.another_student(seed=8)
    last = sealed(trees, register=False)

    said = gc(trees)

    assert (verify(first), second.exists(), verify(last)) == ([], False, [])
    assert f"bundle {second.name}" in "\n".join(said)


def test_a_bundle_that_is_not_old_stays(trees: Any) -> None:
    first = sealed(trees, register=False)
    os.utime(first / "manifest.json")
    trees.another_student()
    sealed(trees, register=False)

    gc(trees)

    assert verify(first) == []


def test_a_model_without_a_version_goes_and_one_with_a_version_stays(trees: Any) -> None:
    sealed(trees, register=True)
    trees.another_student()
    sealed(trees, register=True)
    trees.another_student(seed=8)
    sealed(trees, register=False)
    with opened(trees.checkout) as store:
        store.client.delete_registered_model_alias("trees-candidates", "candidate")
        store.client.delete_model_version("trees-candidates", "1")
        kept = expiry._folder(store.client.get_model_version_download_uri("trees-candidates", "2"))

    gc(trees, days=0)

    assert trees.rows()["logged_models"] == 1
    assert (kept / "model.onnx").is_file()
    assert len(list((trees.checkout.state / "artifacts").rglob("MLmodel"))) == 1


def test_a_deleted_experiment_is_not_lost_with_the_runs(trees: Any) -> None:
    old = old_run(trees, "old", 40)
    with opened(trees.checkout) as store:
        store.client.delete_experiment(store.client.create_experiment("somebody's"))

    said = gc(trees)

    assert said[0].startswith("MLflow's runs stay: experiment 'somebody's' is deleted")
    assert there(trees) == {old}


def test_a_model_that_was_deleted_under_its_version_is_not_lost(trees: Any) -> None:
    sealed(trees, register=True)
    old = old_run(trees, "old", 40)
    with opened(trees.checkout) as store:
        (model,) = expiry._models(store, [store.experiment])
        store.client.delete_logged_model(model.model_id)

    said = gc(trees)

    assert "a registered version needs it" in said[0]
    assert there(trees) >= {old}
    assert (expiry._folder(model.artifact_location) / "model.onnx").is_file()


def test_a_copied_checkout_leaves_the_artefacts_of_the_original(trees: Any, tmp_path: Path) -> None:
    old = old_run(trees, "old", 40)
    copied = tmp_path / "copied"
    shutil.copytree(trees.root, copied)

    said = list(collect(Checkout(copied, copied, trees.checkout.servers), 30, dry_run=False))

    assert said == ["freed 0 bytes"]
    assert reports(trees) == {old}


def test_while_somebody_promotes_nothing_is_freed(trees: Any) -> None:
    old = old_run(trees, "old", 40)

    with ledger.alone(trees.checkout), pytest.raises(DataError, match="promotion"):
        gc(trees)

    assert there(trees) == {old}
