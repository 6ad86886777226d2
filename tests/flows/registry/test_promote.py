"""Promotion and rollback: what is checked, and what is written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows import ledger
from flows.bundle import read_manifest
from flows.contest import Scored, alike
from flows.history import prose
from flows.ledger import Flips
from flows.promote import promote
from flows.regressions import promoted, regressed, told
from flows.repository import tree
from flows.seal import seal
from flows.store import opened
from tasks.core.errors import DataError, GateError, ParamsError, StillhouseError
from tasks.core.files import read_json, write_json
from tasks.core.session import open_session, score
from tasks.core.tables import Table
from tests.flows.registry.acts import back, standing, steps, up
from tests.flows.registry.project import JUDGE, STRESS, Project, model_bytes, rows_of_the_test


def test_the_first_promotion_makes_a_champion_and_two_lines(first: Project) -> None:
    said: list[str] = []

    line = promote(first.checkout, 1, " Ada  Lovelace ", "first release", said.append)

    assert standing(first) == {"champion": 1}
    assert steps(first) == ["promote intent", "promote confirmed"]
    assert (line.by, line.reason, line.alias, line.model.version) == (
        "Ada Lovelace",
        "first release",
        "champion",
        1,
    )
    assert line.comparison is None
    assert any("no champion yet" in text for text in said)
    assert any("clean process" in text for text in said)


def test_the_next_promotion_compares_on_the_same_rows_and_keeps_the_former(
    second: Project,
) -> None:
    line = up(second, 2)

    assert standing(second) == {"champion": 2, "previous": 1}
    assert line.former is not None
    assert line.former.candidate == 1
    assert line.look is not None
    assert (line.look.rows, line.look.number) == (200, 2)
    assert line.comparison is not None
    assert line.comparison.loss_upper <= line.comparison.margin == 0.05
    assert line.comparison.loss_upper <= line.comparison.loss_upper_looks


def test_a_promotion_says_what_became_of_the_rows_that_the_champion_had_lost(
    second: Project,
) -> None:
    test, said = rows_of_the_test(), list[str]()
    wrong = [
        set(np.flatnonzero(score(open_session(content), test.images)[0].argmax(1) != test.labels))
        for content in (model_bytes(), model_bytes(seed=7, like=0.99))
    ]
    assert wrong[0] == {0, 50, 100, 150}
    recur, new = len(wrong[0] & wrong[1]), len(wrong[1] - wrong[0])

    line = promote(second.checkout, 2, "Ada", "better", said.append)

    assert line.comparison is not None
    assert line.comparison.flips == Flips(recur=recur, mended=4 - recur, new=new, gone=0)
    told = f"flips: {recur} recur, {4 - recur} mended, {new} new since version 1"
    assert any(told in text for text in said)
    assert f"    F{told[1:]}." in list(prose(ledger.read(second.checkout)))


def test_the_rows_that_versions_lost_are_told_side_by_side(second: Project) -> None:
    test = rows_of_the_test()
    up(second, 2)
    lines = ledger.read(second.checkout)

    models = promoted(lines, lines[-1].name)
    found = {r.row: r for r in regressed(second.checkout, lines[-1].name, models)}

    assert [model.version for model in models] == [1, 2]
    wrong = [
        score(open_session(content), test.images)[0].argmax(1) != test.labels
        for content in (model_bytes(), model_bytes(seed=7, like=0.99))
    ]
    assert set(found) == set(test.rows[wrong[0] | wrong[1]])
    for place, row in enumerate(test.rows):
        if row in found:
            assert found[row].marks == tuple("x" if w[place] else "." for w in wrong)
            assert (found[row].label, found[row].caused_by) == (test.labels[place], "student")
    said = list(told("x", models, tuple(found.values())))
    assert said[1].endswith("versions 1, 2")
    assert len(said) == 2 + len(found)


def test_a_champion_without_a_flip_ledger_is_compared_all_the_same(
    second: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.contest.FLIPS", "stress/fidelity/none.parquet")

    line = up(second, 2)

    assert line.comparison is not None
    assert line.comparison.flips is None


def test_a_worse_student_is_refused_by_bound_and_the_refusal_is_a_look(second: Project) -> None:
    second.another_student(seed=11, like=0.7)
    number = second.run()
    assert number == 3
    before = second.registry()["model_versions"], standing(second)

    with pytest.raises(GateError, match=r"may be worse than the champion by .* allows 5"):
        up(second, number)

    assert (second.registry()["model_versions"], standing(second)) == before
    assert steps(second)[-1] == "promote refused"
    line = up(second, 2)
    assert line.look is not None
    assert line.look.number == 3


def test_rollback_brings_the_former_champion_back_and_can_be_undone(second: Project) -> None:
    up(second, 2)

    line = back(second)
    assert standing(second) == {"champion": 1}
    assert line.former is not None
    assert (line.act, line.model.candidate, line.former.candidate) == ("rollback", 1, 2)

    up(second, 2)
    assert standing(second) == {"champion": 2, "previous": 1}
    with opened(second.checkout) as store:
        assert len(store.client.search_model_versions("name = 'trees'")) == 2


def test_without_a_former_champion_there_is_no_way_back(first: Project) -> None:
    with pytest.raises(DataError, match="there is none"):
        back(first)
    up(first, 1)
    with pytest.raises(DataError, match="version 1 is the first"):
        back(first)


def edit_manifest(trees: Project, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the circumstances of a registered bundle, in MLflow's artefacts."""
    (place,) = (trees.checkout.state / "artifacts").rglob("bundles/*/manifest.json")
    content = read_json(place)
    change(content["circumstances"])
    write_json(place, content)


def dirty_tree(trees: Project) -> None:
    (trees.root / "notes.txt").write_text("uncommitted")


def detached(trees: Project) -> None:
    trees.git("checkout", "-q", "--detach")


def no_repository(trees: Project) -> None:
    (trees.root / ".git").rename(trees.root.parent / "git-moved-away")
    os.environ["GIT_CEILING_DIRECTORIES"] = str(trees.root.parent)


def other_threshold(trees: Project) -> None:
    content = {"margin": 0.9, "macro_f1_margin": 0.05, "class_margin": 0.2, "seed": 0}
    trees.set_params(judge=content)
    trees.commit("loosened")


def other_stress(trees: Project) -> None:
    trees.set_params(stress=STRESS | {"adversarial": {"margin": 0.01}})
    trees.commit("tightened")


def another_family(trees: Project) -> None:
    trees.set_params(stress=STRESS | {"families": ["adversarial", "slices"]})
    trees.commit("asked for more")


def sealed_dirty(trees: Project) -> None:
    edit_manifest(trees, lambda c: c.update(dirty=True, changes=["tasks/judge/gates.py"]))


def unknown_commit(trees: Project) -> None:
    edit_manifest(trees, lambda c: c.update(commit="5" * 40))


def without_thresholds(trees: Project) -> None:
    edit_manifest(trees, lambda c: c.update(thresholds={}))


def swapped_in_bundle(trees: Project) -> None:
    (place,) = (trees.checkout.state / "artifacts").rglob("bundles/*/model.onnx")
    place.write_bytes(place.read_bytes() + b"\0")


def swapped_for_consumers(trees: Project) -> None:
    (place,) = (trees.checkout.state / "artifacts").rglob("models/**/model.onnx")
    place.write_bytes(place.read_bytes() + b"\0")


def edit_mlmodel(old: str, new: str) -> Callable[[Project], None]:
    def spoil(trees: Project) -> None:
        (place,) = (trees.checkout.state / "artifacts").rglob("models/**/MLmodel")
        assert old in place.read_text()
        place.write_text(place.read_text().replace(old, new))

    spoil.__name__ = f"mlmodel_with_{new.strip().replace(' ', '_')}"
    return spoil


def another_file(trees: Project) -> None:
    (place,) = (trees.checkout.state / "artifacts").rglob("models/**/MLmodel")
    (place.parent / "helper.py").write_text("import os")


def other_subject(trees: Project) -> None:
    with opened(trees.checkout) as store:
        args = ("trees-candidates", "1", "stillhouse.subject", "5" * 64)
        store.client.set_model_version_tag(*args)


def broken_index(trees: Project) -> None:
    (trees.root / ".git/index").write_bytes(b"no index")


def name_that_is_not_utf8(trees: Project) -> None:
    Path(os.fsdecode(os.fsencode(trees.root) + b"/caf\xe9.txt")).touch()


def hidden_file(trees: Project) -> None:
    trees.git("config", "status.showUntrackedFiles", "no")
    (trees.root / "new_loss.py").write_text("")


def bundle_lost(trees: Project) -> None:
    (place,) = (trees.checkout.state / "artifacts").rglob("bundles/*/manifest.json")
    for path in place.parent.rglob("*"):
        if path.is_file():
            path.unlink()


def rows_lost(trees: Project) -> None:
    (trees.root / "data/test.parquet").unlink()


REFUSALS: list[tuple[Callable[[Project], None], str]] = [
    (dirty_tree, r"not as committed \(notes.txt\); commit or restore it first"),
    (detached, "detached HEAD at .* `git switch` to a branch first"),
    (no_repository, "no git repository with a commit here; `git init`"),
    (other_threshold, r"other thresholds .*judge.margin: 0.05 then, 0.9 now.*stillhouse run"),
    (other_stress, r"other thresholds .*stress.adversarial.margin: 0.03 then, 0.01 now"),
    (another_family, r"other thresholds .*stress.families: "),
    (sealed_dirty, r"not as committed \(tasks/judge/gates.py\).*commit, `stillhouse run`"),
    (unknown_commit, "commit 555555555555, which this repository does not hold"),
    (without_thresholds, "incomplete, it does not say by which thresholds"),
    (swapped_in_bundle, "model.onnx: its SHA-256 is not the sealed one"),
    (swapped_for_consumers, "its model.onnx is not the one that was judged"),
    (edit_mlmodel("loader_module: mlflow.onnx", "loader_module: evil"), "MLmodel loads something"),
    (edit_mlmodel("data: model.onnx", "data: other.onnx"), "MLmodel loads something else"),
    (edit_mlmodel("code: null", "code: code"), "MLmodel loads something else"),
    (edit_mlmodel("flavors:", "flavours: ["), "MLmodel loads something else"),
    (another_file, "its model holds helper.py"),
    (other_subject, "its bundle is of another subject"),
    (broken_index, "git cannot tell what has changed"),
    (hidden_file, r"not as committed \(new_loss.py\)"),
    (name_that_is_not_utf8, r"not as committed \(caf.\.txt\)"),
    (bundle_lost, "incomplete|no such file"),
    (rows_lost, r"data/test.parquet.*neither here nor in DVC's cache; `dvc pull`"),
]


@pytest.mark.parametrize(("spoil", "said"), REFUSALS, ids=[s.__name__ for s, _ in REFUSALS])
def test_what_cannot_be_promoted_is_refused_and_leaves_no_trace(
    first: Project, spoil: Callable[[Project], None], said: str
) -> None:
    spoil(first)
    before = first.registry()

    with pytest.raises(StillhouseError, match=said):
        up(first, 1)

    assert first.registry() == before
    assert steps(first) == []


def test_a_version_that_does_not_exist_is_named_with_those_that_do(first: Project) -> None:
    with pytest.raises(DataError, match="no version 7; there is 1"):
        up(first, 7)


def test_the_champion_is_not_promoted_again(first: Project) -> None:
    up(first, 1)
    with pytest.raises(DataError, match="is the champion already, as version 1"):
        up(first, 1)


@pytest.mark.parametrize("text", ["", "  ", "x" * 501, "bell \a"])
def test_a_name_and_a_reason_are_asked_for(first: Project, text: str) -> None:
    with pytest.raises(ParamsError, match="--reason: write between 1 and 500"):
        up(first, 1, reason=text)
    with pytest.raises(ParamsError, match="--by: write between 1 and 500"):
        back(first, by=text)


def test_another_task_has_champions_of_its_own(second: Project) -> None:
    second.set_params(name="shrubs")
    second.commit("another task")
    assert second.run() == 1

    line = up(second, 1)

    assert (line.name, line.former) == ("shrubs", None)
    assert standing(second) == {"champion": 1}
    with pytest.raises(DataError, match="shrubs: no champion to go back to"):
        back(second)


def test_rollback_tries_the_file_that_consumers_load(second: Project) -> None:
    up(second, 2)
    for place in (second.checkout.state / "artifacts").rglob("models/**/model.onnx"):
        place.write_bytes(b"garbage")

    with pytest.raises(DataError, match=r"its model.onnx is not the one that was judged"):
        back(second)
    assert standing(second) == {"champion": 2, "previous": 1}


def test_rollback_needs_no_clean_tree(second: Project) -> None:
    up(second, 2)
    dirty_tree(second)

    assert back(second).model.candidate == 1


def test_other_thresholds_that_change_no_evidence_are_sealed_anew(first: Project) -> None:
    first.set_params(judge=JUDGE | {"class_margin": 0.21})
    first.commit("tightened")
    with pytest.raises(DataError, match=r"judge.class_margin: 0.2 then, 0.21 now"):
        up(first, 1)

    first.lock(judge=JUDGE | {"class_margin": 0.21})  # judged again, to the same bytes
    assert first.run() == 1
    assert up(first, 1).model.candidate == 1


def test_a_family_that_is_not_asked_for_may_change(first: Project) -> None:
    first.set_params(stress=STRESS | {"slices": {"margin": 0.05}})
    first.commit("a family for later")
    assert up(first, 1).model.candidate == 1


def test_a_test_table_that_grew_is_no_new_one(second: Project) -> None:
    rows = [f"{i:064x}" for i in range(150)] + [f"{i:064x}" for i in range(900, 950)]
    table = Table(np.array(rows), np.zeros(200, np.int64), np.zeros((200, 1, 1, 1), np.float32))
    of_old = Scored(table, "77" * 32, np.zeros((200, 2), np.float32))
    lines = ledger.read(second.checkout)

    assert ledger.looks(lines, alike(second.checkout, lines, of_old)) == 1
    others = Table(np.array([f"{i:064x}" for i in range(500, 700)]), table.labels, table.images)
    of_new = Scored(others, "78" * 32, of_old.logits)
    assert ledger.looks(lines, alike(second.checkout, lines, of_new)) == 0


def test_code_that_changes_while_a_run_is_at_work_makes_it_dirty(trees: Project) -> None:
    trees.commit()
    begun = tree(trees.root)
    trees.commit("meanwhile")

    bundle = seal(trees.checkout, "student", begun)

    made = read_manifest(bundle).circumstances
    assert (made.dirty, made.changes) == (True, ("the working tree, while the run was at work",))


def test_sealing_again_from_a_clean_tree_makes_a_dirty_student_promotable(trees: Project) -> None:
    trees.commit()
    (trees.root / "notes.txt").write_text("not yet committed")
    assert trees.run() == 1
    with pytest.raises(DataError, match="not as committed"):
        up(trees, 1)

    trees.commit("with the notes")
    assert trees.run() == 1
    up(trees, 1)

    (bundle,) = trees.checkout.bundles.iterdir()
    assert not read_manifest(bundle).circumstances.dirty
