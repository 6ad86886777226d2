"""`stillhouse history`: the ledger as sentences and as data, and where the registry differs."""

from __future__ import annotations

import json

from flows import ledger
from flows.history import as_json, check_registry, prose
from flows.ledger import Comparison, Line, Look, Model
from flows.promote import promote
from flows.state import Checkout, Servers
from flows.store import opened
from tests.flows.registry.project import Project


def model(number: int) -> Model:
    bundle = f"student-{number:012d}"
    return Model(
        student="student",
        subject="ab" * 32,
        sha256="cd" * 32,
        bundle=bundle,
        candidate=number,
        version=number,
    )


def line(number: int, step: str, candidate: int, **more: object) -> Line:
    own = {
        "number": number,
        "at": f"2026-11-2{number}T03:00:00+00:00",
        "act": "promote",
        "step": step,
        "name": "trees",
        "alias": "champion",
        "by": "Ada",
        "reason": "better",
        "commit": "c0" * 20,
        "model": model(candidate),
        "previous": "0" * 64,
        "digest": f"{number:064d}",
    }
    return Line.model_validate(own | more)


COMPARISON = Comparison(
    lost=3, gained=1, loss_upper=0.0123, loss_upper_looks=0.02, margin=0.02, confidence=0.95
)
LOOK = Look(test="7e" * 32, rows=1200, number=2)


def test_an_empty_ledger_says_what_to_type() -> None:
    assert list(prose([])) == [
        "Nothing was ever promoted here; `stillhouse promote VERSION` does.",
    ]


def test_the_story_is_told_from_the_first_line_and_today_stands_on_top() -> None:
    said = list(
        prose(
            [
                line(1, "confirmed", 1),
                line(2, "refused", 2, look=LOOK, comparison=COMPARISON, why="may be worse"),
                line(3, "confirmed", 3, former=model(1), look=LOOK, comparison=COMPARISON),
                line(4, "abandoned", 4, why="cut off"),
                line(5, "confirmed", 1, act="rollback", former=model(3), by="Grace"),
            ]
        )
    )

    assert (
        said[0] == "trees@champion is version 1 (student-000000000001), since 2026-11-25 03:00 UTC."
    )
    told = "\n".join(said)
    assert "2026-11-21 03:00 UTC  Ada promoted version 1 (student-000000000001): the first" in told
    assert "Ada asked to promote version 2 (student-000000000002) and was refused." in told
    assert "Refused: may be worse." in told
    assert "to champion, in place of version 1 (student-000000000001)." in told
    assert (
        "Decision 2 on these 1,200 test rows: 3 lost and 1 gained against the champion; worse by "
        "at most 1.23 points with 95 % confidence, 2 allowed."
    ) in told
    assert "A promote by Ada to version 4 (student-000000000004) was cut off" in told
    assert "Grace rolled champion back from version 3" in told
    assert said[-1].startswith("5 lines, each sealed by the next")


def test_an_open_act_is_told_as_one() -> None:
    said = list(prose([line(1, "confirmed", 1), line(2, "intent", 2)]))

    assert any("Ada began a promote that is not closed yet" in text for text in said)


def test_for_machines_it_is_every_line_and_who_stands() -> None:
    content = json.loads(json.dumps(as_json([line(1, "confirmed", 1)], ["moved by hand"])))

    assert content["champions"]["trees"]["champion"][0]["candidate"] == 1
    assert content["lines"][0]["by"] == "Ada"
    assert content["problems"] == ["moved by hand"]


def test_a_champion_moved_by_hand_is_reported(trees: Project) -> None:
    trees.commit()
    trees.run()
    promote(trees.checkout, 1, "Ada", "first", print)
    assert check_registry(trees.checkout, ledger.read(trees.checkout)) == []

    with opened(trees.checkout) as store:
        store.client.delete_registered_model_alias("trees", "champion")

    (problem,) = check_registry(trees.checkout, ledger.read(trees.checkout))
    assert "alias champion is on none in the registry, the ledger says student-" in problem


def test_a_registry_that_does_not_answer_is_a_problem_and_no_crash(
    trees: Project, free_port: int
) -> None:
    away = Checkout(trees.root, trees.root, Servers(mlflow=f"http://127.0.0.1:{free_port}"))

    (problem,) = check_registry(away, [line(1, "confirmed", 1)])

    assert f"http://127.0.0.1:{free_port}" in problem
