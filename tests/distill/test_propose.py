"""Proposed rungs fit their budget, and no step of theirs is more than 10:1."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from tasks.core.errors import ParamsError
from tasks.core.models import Architecture
from tasks.core.params import check
from tasks.core.tables import Schema
from tasks.core.trainer import Training
from tasks.distill import propose
from tasks.distill.params import Budget, DistillParams, Rung
from tasks.distill.propose import Chain, Ground, operations, size

DIGITS = Schema(
    modality="vision", shape=(1, 8, 8), dtype="uint8", range=(0, 16), classes=tuple("0123456789")
)
OWN = Architecture(widths=(32, 64, 128))
TEACHING = Training(epochs=16, batch=64, learning_rate=0.004, weight_decay=0.05, ema=0.99)
GROUND = Ground(308_074, OWN, TEACHING, DIGITS)
OTHER = Ground(25_000_000, OWN, TEACHING, DIGITS)  # a black box, far above `teach.architecture`

FIGURES: dict[str, Callable[[Architecture], float]] = {
    "parameters": lambda network: size(network, DIGITS),
    "bytes": lambda network: 4 * size(network, DIGITS),
    "flops": lambda network: operations(network, DIGITS),
}


def proposed(ground: Ground = GROUND, **budget: Any) -> Chain:
    return propose.propose("student", Budget(**budget), ground)


def sizes(chain: Chain, ground: Ground = GROUND) -> list[int]:
    return [ground.teacher, *(size(rung.architecture, DIGITS) for rung in chain.values())]


def wider(network: Architecture) -> Architecture:
    return network.model_copy(update={"widths": tuple(w + 1 for w in network.widths)})


@pytest.mark.parametrize(
    ("kind", "limit"),
    [
        ("parameters", 500),
        ("parameters", 7_000),
        ("parameters", 100_000),
        ("bytes", 65_536),
        ("flops", 300_000),
    ],
)
def test_the_student_is_the_largest_network_within_the_budget(kind: str, limit: int) -> None:
    student = proposed(**{kind: limit})["student"].architecture

    assert FIGURES[kind](student) <= limit < FIGURES[kind](wider(student))


def test_a_deep_thin_network_is_taken_before_a_wide_one_of_about_its_size() -> None:
    assert proposed(parameters=7_000)["student"].architecture.widths == (4, 9, 18)
    assert len(proposed(parameters=1_000)["student"].architecture.widths) == 1  # none is so thin


@pytest.mark.parametrize("ground", [GROUND, OTHER], ids=["trained", "black_box"])
@pytest.mark.parametrize("limit", [450, 1_000, 3_300, 10_000, 30_807, 30_808, 150_000, 280_000])
def test_every_step_is_at_most_ten_to_one_and_all_are_about_equal(
    ground: Ground, limit: int
) -> None:
    chain = proposed(ground, parameters=limit)
    steps = [above / below for above, below in pairwise(sizes(chain, ground))]

    assert max(steps) <= 10
    assert max(steps) / min(steps) < 1.6
    assert [rung.from_ for rung in chain.values()] == ["teacher", *list(chain)[:-1]]
    assert len(steps) == 1 or sizes(chain, ground)[0] / sizes(chain, ground)[-1] > 10


@pytest.mark.parametrize("ratio", [9.9, 97, 99.9, 995])
def test_a_size_between_two_widths_costs_one_more_step_and_never_more_than_ten_to_one(
    ratio: float,
) -> None:
    student = Architecture(widths=(4, 9, 18))
    ground = replace(GROUND, teacher=int(ratio * size(student, DIGITS)))
    chain = propose.down_to("student", student, ground)

    assert max(above / below for above, below in pairwise(sizes(chain, ground))) <= 10
    assert len(chain) <= math.ceil(math.log10(ratio)) + 1


def test_a_black_box_gets_assistants_wider_than_the_architecture_for_training() -> None:
    assert max(proposed(OTHER, parameters=20_000)["assistant_1"].architecture.widths) > 128


def test_the_same_input_gives_the_same_rungs() -> None:
    first = proposed(parameters=20_000)
    propose.size.cache_clear()

    assert proposed(parameters=20_000) == first


@pytest.mark.parametrize("kind", ["parameters", "bytes", "flops"])
@pytest.mark.parametrize(("limit", "bound"), [(3, "least"), (10**12, "most")])
def test_a_budget_out_of_reach_is_refused_with_the_nearest_that_is_not(
    kind: str, limit: int, bound: str
) -> None:
    with pytest.raises(ParamsError, match=rf"^params.yaml: distill.budget.{kind}: .*{bound}") as e:
        proposed(**{kind: limit})
    nearest = int(str(e.value).rpartition(" ")[2].replace(",", ""))

    assert "\n" not in str(e.value)
    student = proposed(**{kind: nearest})["student"].architecture
    assert FIGURES[kind](student) <= nearest
    with pytest.raises(ParamsError, match=bound):
        proposed(**{kind: nearest + (1 if bound == "most" else -1)})


def test_a_teacher_below_every_network_is_refused() -> None:
    tiny = Ground(100, OWN, TEACHING, DIGITS)
    with pytest.raises(ParamsError, match=r"no network of .* is smaller"):
        proposed(tiny, parameters=50)


def test_a_latency_is_measured_and_vetoes_with_a_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Architecture] = []

    def measured(network: Architecture, data: Schema) -> float:
        asked.append(network)
        return operations(network, data) / 100_000

    monkeypatch.setattr(propose, "_latency", measured)
    student = proposed(latency_ms=2.0)["student"].architecture

    assert measured(student, DIGITS) <= 2.0 * propose.MARGIN
    assert size(student, DIGITS) == size(proposed(flops=220_000)["student"].architecture, DIGITS)
    assert len(asked) < 100


def test_a_latency_that_every_network_meets_ranks_none(monkeypatch: pytest.MonkeyPatch) -> None:
    one = propose._latency(OWN, DIGITS)
    monkeypatch.setattr(propose, "_latency", lambda *_: one)

    assert one > 0
    with pytest.raises(ParamsError, match="latency_ms: 100,000 is more than any network"):
        proposed(latency_ms=100_000)


def test_a_rung_is_trained_as_the_teacher_but_for_three_figures() -> None:
    grows = (308_074 / 44_014) ** 0.5
    assistant = proposed(parameters=7_000)["assistant"]

    assert size(assistant.architecture, DIGITS) == 44_014
    assert assistant.training == TEACHING.model_copy(
        update={
            "epochs": 32,
            "learning_rate": float(f"{0.004 * grows:.2g}"),
            "weight_decay": float(f"{0.05 / grows:.2g}"),
        }
    )


def params(**rungs: dict[str, Any]) -> DistillParams:
    base = {"architecture": {"widths": [8]}, "training": {"epochs": 1, "learning_rate": 0.1}}
    content = {"ship": ["student"], "rungs": {n: base | r for n, r in rungs.items()}}
    return check(DistillParams, content, "distill")


def test_temperature_and_losses_are_those_of_the_first_written_rung() -> None:
    above = {"from": "teacher", "losses": {"dist": 1.0}, "temperature": 2.0}
    below = {"from": "above", "losses": {"kd": 1.0}}
    written = params(student=below, above=above)
    ground = propose.ground(written, 308_074, OWN, TEACHING, DIGITS)

    for rung in proposed(ground, parameters=7_000).values():
        assert (rung.losses, rung.temperature) == ({"dist": 1.0}, 2.0)


def test_losses_that_need_more_than_logits_are_no_model() -> None:
    inside = {"losses": {"hint": 1.0}, "signal": "live", "layers": {"body.0": "body.0"}}
    ground = propose.ground(
        params(student={"from": "teacher"} | inside), 308_074, OWN, TEACHING, DIGITS
    )

    assert proposed(ground, parameters=7_000)["student"].losses == propose.LOSSES


def test_a_student_with_the_name_of_an_assistant_is_told_to_change_it() -> None:
    with pytest.raises(ParamsError, match="'assistant' is what a proposed assistant is called"):
        propose.propose("assistant", Budget(parameters=7_000), GROUND)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"budget": {"parameters": 7_000}}, "'plan: auto' and 'budget' belong together"),
        ({"plan": "auto"}, "'plan: auto' and 'budget' belong together"),
        ({"plan": "auto", "budget": {}}, "budget: names none; give exactly one of parameters"),
        (
            {"plan": "auto", "budget": {"bytes": 1, "flops": 1}},
            "budget: names flops and bytes; give exactly one",
        ),
        ({"plan": "auto", "budget": {"flops": 0}}, "budget.flops: must be greater than or equal"),
        ({"plan": "auto", "budget": {"flop": 1}}, "did you mean 'flops'"),
        ({"plan": "manual", "budget": {"flops": 1}}, "plan: must be 'auto'"),
        (
            {"plan": "auto", "budget": {"flops": 1}, "ship": ["student", "above"]},
            "makes one student, and ship names 2; name one",
        ),
    ],
)
def test_a_plan_that_cannot_be_is_refused(content: dict[str, Any], says: str) -> None:
    above = {"from": "teacher", "losses": {"kd": 1.0}}
    written = params(student=above, above=above).model_dump(
        mode="json", by_alias=True, exclude_defaults=True
    )
    with pytest.raises(ParamsError, match=says):
        check(DistillParams, written | content, "params.yaml: distill")


def test_a_proposed_rung_decouples_as_the_first_one_does() -> None:
    like = check(
        Rung,
        {
            "from": "teacher",
            "architecture": {"widths": [4]},
            "training": {"epochs": 1, "learning_rate": 0.1},
            "losses": {"dkd": 1.0},
            "dkd": {"alpha": 2.0, "beta": 1.0},
        },
        "rung",
    )
    chain = proposed(replace(GROUND, like=like), parameters=7_000)

    assert {(rung.dkd.alpha, rung.dkd.beta) for rung in chain.values()} == {(2.0, 1.0)}


def test_no_network_is_halfway_below_a_teacher_that_is_smaller_than_all() -> None:
    with pytest.raises(ParamsError, match=r"smaller than a teacher of 130 parameters; write dist"):
        propose.midway(Architecture(widths=(1,)), replace(GROUND, teacher=130))
