"""Ledger and registry: a crash is settled, a difference is said, what was lost comes back."""

from __future__ import annotations

import json
import signal

import pytest

from flows import ledger
from flows.act import put_back, settle
from flows.history import check_registry
from flows.store import opened
from tasks.core.errors import DataError, GateError
from tests.flows.registry.acts import back, in_a_process, standing, steps, up
from tests.flows.registry.project import Project


def test_an_alias_moved_by_hand_stops_every_act(second: Project) -> None:
    up(second, 2)
    with opened(second.checkout) as store:
        store.client.set_registered_model_alias("trees", "champion", "1")

    for act in (lambda: up(second, 1), lambda: back(second)):
        with pytest.raises(DataError, match=r"champion is on version 1 .* set it back in MLflow"):
            act()


def test_a_ledger_that_was_cut_is_noticed_by_the_registry(second: Project) -> None:
    path = ledger.path(second.checkout)
    path.unlink()

    with pytest.raises(DataError, match="the registry knows 2 lines of it, and not these 0"):
        up(second, 2)


@pytest.mark.parametrize("left", [1, 3])
def test_a_ledger_cut_to_an_open_act_settles_nothing(second: Project, left: int) -> None:
    up(second, 2)
    path = ledger.path(second.checkout)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:left]))
    cut, before = path.read_bytes(), second.registry()

    assert settle(second.checkout) == []

    assert (path.read_bytes(), second.registry()) == (cut, before)
    with pytest.raises(DataError, match=f"knows 4 lines of it, and not these {left}"):
        up(second, 2)


def test_a_refusal_cannot_be_cut_off_unseen(second: Project) -> None:
    second.another_student(seed=11, like=0.7)
    number = second.run()
    assert number is not None
    with pytest.raises(GateError):
        up(second, number)
    path = ledger.path(second.checkout)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))

    with pytest.raises(DataError, match="knows 3 lines of it, and not these 2"):
        up(second, 2)


AFTER_A_WIPE = """\
import json
from flows import ledger
from flows.history import check_registry
from flows.promote import rollback
from flows.state import adopt, find_checkout
from tests.flows.registry.project import Project

checkout = find_checkout()
adopt(checkout)
assert Project(checkout).run() == 1  # the candidate of today, in a new registry
rollback(checkout, "Grace", "drift", print)
lines = ledger.read(checkout)
found = [m.candidate for m in ledger.champions(lines, "trees", "champion")]
print(json.dumps({"champion": found, "problems": check_registry(checkout, lines)}))
"""


def test_what_was_deleted_in_the_registry_is_put_back(second: Project) -> None:
    up(second, 2)
    with opened(second.checkout) as store:
        store.client.delete_registered_model_alias("trees", "previous")
        store.client.delete_model_version("trees", "2")

    (note,) = put_back(second.checkout)

    assert note.startswith("put trees@champion back")
    assert standing(second) == {"champion": 2, "previous": 1}
    assert check_registry(second.checkout, ledger.read(second.checkout)) == []


def test_a_wiped_registry_is_put_back_from_ledger_and_bundles(second: Project) -> None:
    up(second, 2)
    second.another_student(seed=8, like=0.99)
    assert second.run() == 3
    up(second, 3)
    for path in second.checkout.state.glob("mlflow.db*"):
        path.unlink()

    done = in_a_process(second, AFTER_A_WIPE)

    assert done.returncode == 0, done.stderr
    assert "put trees@champion back into the registry, as the ledger says" in done.stdout
    rows = second.registry()["registered_model_aliases"]
    assert len([row for row in rows if {"trees", "champion"} <= set(row)]) == 1
    assert len([row for row in rows if {"trees", "previous"} <= set(row)]) == 1
    said = json.loads(done.stdout.splitlines()[-1])
    assert said == {"champion": [1, 2], "problems": []}


CRASH = """\
import os, signal, sys
from flows import act, champion, ledger, promote
from flows.state import adopt, find_checkout

point, act_name, number = sys.argv[1], sys.argv[2], int(sys.argv[3])
checkout = find_checkout()
adopt(checkout)


def dying(function, after):
    def called(*arguments, **named):
        if after:
            function(*arguments, **named)
        os.kill(os.getpid(), signal.SIGKILL)
    return called


def twice(function):
    calls = []
    def called(*arguments, **named):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **named)
    return called


from mlflow import MlflowClient
if point == "after intent":
    act.admit = dying(act.admit, after=False)
elif point == "after copy":
    act.admit = dying(act.admit, after=True)
elif point == "after alias":
    name = "set_registered_model_alias"
    setattr(MlflowClient, name, dying(getattr(MlflowClient, name), after=True))
elif point == "before confirmation":
    act.point = dying(act.point, after=True)
elif point == "before signature":
    act.sign = dying(act.sign, after=False)
elif point == "torn confirmation":
    write = os.fsync
    def torn(descriptor):
        path = ledger.path(checkout)
        if b"confirmed" in path.read_bytes().splitlines()[-1]:
            os.truncate(path, path.stat().st_size - 20)
            os.kill(os.getpid(), signal.SIGKILL)
        write(descriptor)
    os.fsync = torn
if act_name == "promote":
    promote.promote(checkout, number, "Ada", "better", print)
else:
    promote.rollback(checkout, "Ada", "worse", print)
"""
POINTS = {  # where it dies -> whether the act counts
    "after intent": False,
    "after copy": False,
    "after alias": True,
    "before confirmation": True,
    "torn confirmation": True,
    "before signature": True,
}


def die(trees: Project, point: str, act: str, number: int = 0) -> None:
    """Act in a process of its own that is killed at `point`."""
    done = in_a_process(trees, CRASH, point, act, str(number))
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.parametrize(("point", "counts"), POINTS.items(), ids=POINTS)
def test_a_promotion_killed_between_any_two_steps_is_settled_to_one_of_two_states(
    second: Project, point: str, counts: bool
) -> None:
    die(second, point, "promote", 2)

    settle(second.checkout)

    assert standing(second) == ({"champion": 2, "previous": 1} if counts else {"champion": 1})
    assert steps(second)[-1] == ("promote confirmed" if counts else "promote abandoned")
    with opened(second.checkout) as store:
        assert len(store.client.search_model_versions("name = 'trees'")) == (2 if counts else 1)
    assert settle(second.checkout) == []
    if not counts:
        up(second, 2)
    assert standing(second) == {"champion": 2, "previous": 1}


@pytest.mark.parametrize(("point", "counts"), [("after intent", False), ("after alias", True)])
def test_a_first_promotion_that_is_killed_stands_in_nobodys_way(
    first: Project, point: str, counts: bool
) -> None:
    die(first, point, "promote", 1)

    settle(first.checkout)
    assert put_back(first.checkout) == []

    assert steps(first)[-1] == ("promote confirmed" if counts else "promote abandoned")
    if not counts:
        up(first, 1)
    assert standing(first) == {"champion": 1}


@pytest.mark.parametrize("point", ["after copy", "after alias", "torn confirmation"])
def test_a_rollback_killed_between_any_two_steps_is_settled_to_one_of_two_states(
    second: Project, point: str
) -> None:
    up(second, 2)

    die(second, point, "rollback")
    settle(second.checkout)

    counts = POINTS[point]
    assert standing(second) == ({"champion": 1} if counts else {"champion": 2, "previous": 1})
    assert steps(second)[-1] == ("rollback confirmed" if counts else "rollback abandoned")
