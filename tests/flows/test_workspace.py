"""`--set` and `--preset` work in a worktree; the checkout stays as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.params import assigned, check_params
from flows.running import hold
from flows.state import find_checkout
from flows.workspace import prepare, requested
from tasks.core.errors import DataError, ParamsError


def test_the_real_parameters_are_valid() -> None:
    params = check_params(Path(__file__).parents[2])

    assert params.distill.ship


def set_in(text: str, assignment: str) -> Any:
    return yaml.safe_load(assigned(text, [assignment]))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("3", 3),
        ("1e-3", 0.001),
        ("true", True),
        ("null", None),
        ("[student, other]", ["student", "other"]),
        ("a b", "a b"),
        ("'3'", "3"),
        ("x=y", "x=y"),
    ],
)
def test_a_value_is_typed_as_yaml(value: str, expected: object) -> None:
    assert set_in("a: {b: 0}\n", f"a.b={value}") == {"a": {"b": expected}}


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("a.b", "write section.key=value"),
        ("a..b=1", "write section.key=value"),
        ("a.b.c=1", "'b' is a value and has no keys"),
        ("a=1", "'a' is a section; name one of its keys: b"),
        ("a.b=[1", "'[1' is not a YAML value"),
    ],
)
def test_an_assignment_that_cannot_be_says_why(assignment: str, said: str) -> None:
    with pytest.raises(ParamsError) as caught:
        assigned("a: {b: 0}\n", [assignment])

    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("teach.training.epoch=2", "teach.training.epoch: unknown key; did you mean 'epochs'?"),
        ("quantize.calibration.row=64", "did you mean 'rows'?"),
        ("distill.rungs.student.temprature=1", "did you mean 'temperature'?"),
        ("stress.fidelity.agrement=1", "did you mean 'agreement'?"),
        ("jugde.margin=0.1", "jugde: unknown key; did you mean 'judge'?"),
        ("teach.training.epochs=many", "got 'many'"),
        ("distill.rungs.student.from=nobody", "'nobody'"),
    ],
)
def test_parameters_are_checked_whole_before_anything_is_made(
    tiny: Any, assignment: str, said: str
) -> None:
    with pytest.raises(ParamsError) as caught:
        requested(tiny.checkout, None, [assignment])

    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tiny.root / "runs").exists()


def test_a_workspace_is_the_last_commit_with_its_own_parameters_and_our_cache(tiny: Any) -> None:
    (tiny.root / "step.py").write_text("not committed")
    before = tiny.call("git", "status", "--porcelain").stdout

    name, params = requested(tiny.checkout, None, ["teach.training.epochs=2"])
    folder = prepare(tiny.checkout, name, params)

    assert yaml.safe_load((folder / "params.yaml").read_text())["teach"]["training"]["epochs"] == 2
    assert "# what the bank stores" in (folder / "params.yaml").read_text()  # comments stay
    assert "def run" in (folder / "step.py").read_text()
    workspace = find_checkout(folder)
    assert (workspace.root, workspace.home) == (folder, tiny.root)
    assert workspace.state == tiny.checkout.state
    assert workspace.running != tiny.checkout.running
    assert tiny.call("git", "status", "--porcelain").stdout == before
    assert (
        yaml.safe_load((tiny.root / "params.yaml").read_text())["teach"]["training"]["epochs"] > 2
    )


def test_a_workspace_takes_its_outs_from_our_cache_and_the_checkout_keeps_its_graph(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.dag import read_graph
    from flows.recovery import recover

    folder = prepare(tiny.checkout, *requested(tiny.checkout, "digits", []))
    monkeypatch.chdir(folder)

    recover(find_checkout(folder))

    assert folder == tiny.root / "runs" / "digits"
    assert (folder / "out/join.txt").read_text() == "1"
    assert read_graph(folder).stale == {}
    assert len(read_graph(tiny.root).stages) == 5
    assert not (folder / ".dvc/cache").exists()


def test_the_same_request_finds_the_same_workspace_at_todays_commit(tiny: Any) -> None:
    wanted = requested(tiny.checkout, "digits", ["threads=1"])
    first = prepare(tiny.checkout, *wanted)
    (first / "kept.txt").touch()
    (tiny.root / "step.py").open("a").write("# newer\n")
    tiny.call("git", "-c", "user.name=t", "-c", "user.email=t@e.org", "commit", "-qam", "newer")

    second = prepare(tiny.checkout, *requested(tiny.checkout, "digits", ["threads=1"]))

    assert first == second
    assert (second / "kept.txt").exists()
    assert "# newer" in (second / "step.py").read_text()
    assert yaml.safe_load((second / "params.yaml").read_text())["threads"] == 1
    assert requested(tiny.checkout, "digits", ["threads=3"])[0] != wanted[0]


def test_a_workspace_in_which_a_run_is_alive_stays_as_it_is(tiny: Any) -> None:
    wanted = requested(tiny.checkout, "digits", [])
    folder = prepare(tiny.checkout, *wanted)
    (tiny.root / "step.py").open("a").write("# newer\n")
    tiny.call("git", "-c", "user.name=t", "-c", "user.email=t@e.org", "commit", "-qam", "newer")

    with (
        hold(find_checkout(folder)),
        pytest.raises(DataError, match="runs/digits: another run works here \\(process"),
    ):
        prepare(tiny.checkout, *wanted)

    assert "# newer" not in (folder / "step.py").read_text()


def test_an_unknown_preset_names_those_there_are(tiny: Any) -> None:
    with pytest.raises(ParamsError, match="no such preset; there is digits"):
        requested(tiny.checkout, "digit", [])


def test_without_a_commit_the_error_says_what_is_needed(tiny: Any) -> None:
    tiny.call("git", "checkout", "--quiet", "--orphan", "empty")

    with pytest.raises(DataError, match="needs a git repository with a commit"):
        requested(tiny.checkout, None, ["threads=1"])
