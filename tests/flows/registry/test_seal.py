from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.bundle import read_manifest
from flows.outputs import lock_key, read_lock
from flows.seal import latest, seal, verify
from tasks.core.cost import cpu
from tasks.core.errors import DataError
from tasks.core.files import digest, read_json, sha256, tree_sha256, write_json
from tasks.judge.verdict import as_json, read_verdict


def git(folder: Path, *arguments: str) -> None:
    author = ["-c", "user.name=t", "-c", "user.email=t@localhost"]
    subprocess.run(["git", *author, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def committed(trees: Any) -> Any:
    """The project in a repository, everything committed but what `.gitignore` names."""
    (trees.root / ".gitignore").write_text(".stillhouse/\n")
    git(trees.root, "init", "-q", "-b", "main")
    git(trees.root, "add", "-A")
    git(trees.root, "commit", "-qm", "a run")
    return trees


def test_a_bundle_holds_the_evidence_and_two_parts_of_a_manifest(committed: Any) -> None:
    bundle = seal(committed.checkout, "student")

    manifest = read_manifest(bundle)
    evidence = committed.root / "evidence/student"
    assert bundle.name == f"student-{manifest.subject.digest[:12]}"
    assert manifest.subject.model_dump(mode="json") == read_json(evidence / "subject.json")
    sealed = tree_sha256(bundle)
    del sealed["manifest.json"]
    assert sealed == tree_sha256(evidence)
    here = manifest.circumstances
    assert here.commit is not None
    assert len(here.commit) == 40
    assert (here.branch, here.dirty) == ("main", False)
    assert here.lock == lock_key(read_lock(committed.root))
    assert here.packages["onnxruntime"]
    assert here.cpu == cpu()
    assert here.sealed_at.endswith("+00:00")
    assert here.measured == read_verdict(committed.root / "reports/student/verdict.json").measured
    assert here.measured_again is None
    assert verify(bundle) == []


def test_a_changed_tree_is_dirty_but_a_new_lock_is_not(committed: Any) -> None:
    (committed.root / "dvc.lock").write_text((committed.root / "dvc.lock").read_text() + "\n")
    first = seal(committed.checkout, "student")
    committed.another_student()
    second = seal(committed.checkout, "student")

    assert not read_manifest(first).circumstances.dirty
    assert read_manifest(second).circumstances.dirty


def test_without_git_a_bundle_is_dirty_and_of_no_commit(
    trees: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(trees.root.parent))

    here = read_manifest(seal(trees.checkout, "student")).circumstances

    assert (here.commit, here.branch, here.dirty) == (None, None, True)


def test_sealing_the_same_subject_again_keeps_the_first_manifest(trees: Any) -> None:
    first = seal(trees.checkout, "student")
    manifest = (first / "manifest.json").read_bytes()

    assert seal(trees.checkout, "student") == first
    assert (first / "manifest.json").read_bytes() == manifest
    assert [path.name for path in trees.checkout.bundles.iterdir()] == [first.name]


def test_a_seal_that_breaks_off_leaves_no_bundle(
    trees: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("flows.seal.write_json", full)
        with pytest.raises(OSError, match="No space left"):
            seal(trees.checkout, "student")

    assert list(trees.checkout.bundles.iterdir()) == []


def test_evidence_that_contradicts_itself_is_not_sealed(trees: Any) -> None:
    (trees.root / "evidence/student/card.md").write_text("# better\n")

    with pytest.raises(DataError, match=r"card.md: its SHA-256 .*; run the judge again"):
        seal(trees.checkout, "student")

    assert list(trees.checkout.bundles.iterdir()) == []


def test_a_bundle_that_was_changed_is_not_sealed_over(trees: Any) -> None:
    (seal(trees.checkout, "student") / "card.md").write_text("# better\n")

    with pytest.raises(DataError, match="move it away and seal again"):
        seal(trees.checkout, "student")


def test_the_latest_bundle_is_that_of_todays_evidence_else_the_newest(trees: Any) -> None:
    assert latest(trees.checkout, "student") is None
    first = seal(trees.checkout, "student")
    evidence = trees.root / "evidence/student"
    shutil.copytree(evidence, trees.root / "before")
    trees.another_student()
    second = seal(trees.checkout, "student")
    assert latest(trees.checkout, "student") == second

    shutil.rmtree(evidence)
    assert latest(trees.checkout, "student") == second
    shutil.copytree(trees.root / "before", evidence)
    assert latest(trees.checkout, "student") == first
    assert latest(trees.checkout, "stud") is None


def test_latencies_of_another_cpu_are_measured_again_and_both_are_kept(
    trees: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = trees.root / "reports/student/verdict.json"
    verdict = read_verdict(path)
    assert verdict.measured is not None
    there = verdict.measured.model_copy(update={"cpu": {"model": "another"}})
    write_json(path, as_json(verdict.model_copy(update={"measured": there})))
    asked: list[str] = []

    def measured(_: Any, student: str) -> Any:
        asked.append(student)
        return verdict.measured

    monkeypatch.setattr("flows.seal._measure_again", measured)

    here = read_manifest(seal(trees.checkout, "student")).circumstances

    assert asked == ["student"]
    assert (here.measured, here.measured_again) == (there, verdict.measured)


def rewrite(bundle: Path, name: str, content: bytes) -> None:
    """Change a file and every digest that speaks of it: what a careful forger would do."""
    (bundle / name).write_bytes(content)
    manifest = read_json(bundle / "manifest.json")
    files = manifest["subject"]["files"] | {name: sha256(bundle / name)}
    manifest["subject"] |= {"files": files, "digest": digest(files)}
    write_json(bundle / "manifest.json", manifest)
    write_json(bundle / "subject.json", manifest["subject"])


def edit(path: Path, change: Callable[[Any], None]) -> bytes:
    content = read_json(path)
    change(content)
    return json.dumps(content).encode()


def other_format(bundle: Path) -> None:
    (bundle / "manifest.json").write_bytes(
        edit(bundle / "manifest.json", lambda m: m.update(format="stillhouse/manifest/0"))
    )


def no_json(bundle: Path) -> None:
    (bundle / "manifest.json").write_text("{")


def changed_byte(bundle: Path) -> None:
    content = bytearray((bundle / "model.onnx").read_bytes())
    content[200] ^= 1
    (bundle / "model.onnx").write_bytes(bytes(content))


def link_out(bundle: Path) -> None:
    outside = bundle.parent / "card.md"
    (bundle / "card.md").rename(outside)
    (bundle / "card.md").symlink_to(outside)


def link_within(bundle: Path) -> None:
    shutil.copyfile(bundle / "card.md", bundle / "stress" / "card.md")
    (bundle / "card.md").unlink()
    (bundle / "card.md").symlink_to("stress/card.md")


def outside_path(bundle: Path) -> None:
    (bundle.parent / "escape.txt").write_text("x")
    rewrite(bundle, "../escape.txt", b"x")


def disguised_path(bundle: Path) -> None:
    rewrite(bundle, "stress/../card.md", (bundle / "card.md").read_bytes())


def other_digest(bundle: Path) -> None:
    for name in ("manifest.json", "subject.json"):
        (bundle / name).write_bytes(
            edit(bundle / name, lambda m: m.get("subject", m).update(digest="0" * 64))
        )


def other_subject(bundle: Path) -> None:
    (bundle / "subject.json").write_bytes(
        edit(bundle / "subject.json", lambda s: s["files"].pop("card.md"))
    )


def without_model(bundle: Path) -> None:
    (bundle / "model.onnx").unlink()
    for name in ("manifest.json", "subject.json"):
        content = read_json(bundle / name)
        subject = content.get("subject", content)
        del subject["files"]["model.onnx"]
        subject["digest"] = digest(subject["files"])
        write_json(bundle / name, content)


def forged_verdict(bundle: Path) -> None:
    def other_model(verdict: Any) -> None:
        verdict["student"]["sha256"] = "0" * 64

    rewrite(bundle, "verdict.json", edit(bundle / "verdict.json", other_model))


def approved_by_hand(bundle: Path) -> None:
    def fail_a_gate(verdict: Any) -> None:
        verdict["gates"][0]["passed"] = False

    rewrite(bundle, "verdict.json", edit(bundle / "verdict.json", fail_a_gate))


def forged_spec(bundle: Path) -> None:
    rewrite(bundle, "spec.json", edit(bundle / "spec.json", lambda s: s.update(sha256="0" * 64)))


def forged_example(bundle: Path) -> None:
    kept = bundle / "stress/adversarial/kept.parquet"
    table = pq.read_table(kept)
    wrong = pa.array([(p + 1) % 3 for p in table["predicted"].to_pylist()], pa.int32())
    pq.write_table(table.set_column(2, "predicted", wrong), bundle.parent / "forged")
    rewrite(bundle, "stress/adversarial/kept.parquet", (bundle.parent / "forged").read_bytes())


def no_images(bundle: Path) -> None:
    rewrite(bundle, "stress/adversarial/kept.parquet", b"PAR1 and then nothing")


@pytest.mark.parametrize(
    ("tamper", "said"),
    [
        (no_json, r"manifest.json: not valid JSON"),
        (other_format, r"manifest.json: format: must be 'stillhouse/manifest/1'"),
        (lambda b: (b / "manifest.json").unlink(), r"manifest.json: no such file"),
        (lambda b: (b / "card.md").unlink(), r"card.md: missing"),
        (lambda b: (b / "subject.json").unlink(), r"subject.json: missing"),
        (lambda b: (b / "note.txt").write_text("x"), r"note.txt: not in the subject"),
        (changed_byte, r"model.onnx: its SHA-256 is not the sealed one"),
        (link_out, r"card.md: leads out of"),
        (link_within, r"card.md: a link or a path in disguise"),
        (outside_path, r"escape.txt: leads out of"),
        (disguised_path, r"stress/../card.md: a link or a path in disguise"),
        (other_digest, r"the subject's digest is not that of its files"),
        (other_subject, r"subject.json: names another subject"),
        (without_model, r"model.onnx: not in the subject"),
        (forged_verdict, r"verdict.json: judges another model"),
        (approved_by_hand, r"verdict.json: .*'approved' contradicts the gates"),
        (forged_spec, r"spec.json: describes another model"),
        (forged_example, r"4 of 4 examples score otherwise than recorded"),
        (no_images, r"kept.parquet: not a table of images of shape \(3, 4, 5\)"),
    ],
)
def test_verification_names_what_was_done_to_a_bundle(
    trees: Any, tmp_path: Path, tamper: Callable[[Path], object], said: str
) -> None:
    bundle = tmp_path / "copy"
    shutil.copytree(seal(trees.checkout, "student"), bundle)
    assert verify(bundle) == []

    tamper(bundle)

    problems = verify(bundle)
    assert len(problems) <= 2
    assert any(re.search(said, problem) for problem in problems), problems


def test_a_bundle_can_be_verified_where_it_was_carried_to(trees: Any, tmp_path: Path) -> None:
    bundle = seal(trees.checkout, "student")
    elsewhere = shutil.move(bundle, tmp_path / "a USB stick")

    assert verify(Path(elsewhere)) == []


def test_sealing_belongs_to_the_checkout_that_holds_the_state(trees: Any, tmp_path: Path) -> None:
    home = tmp_path / "home"
    workspace = replace(trees.checkout, home=home)

    assert seal(workspace, "student").parent == home / ".stillhouse" / "bundles"
