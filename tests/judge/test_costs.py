"""What making the student cost, beside what it saves: by hand on the small world's figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tasks.core.cost import cpu
from tasks.core.files import read_json, write_json
from tasks.judge.__main__ import run
from tasks.judge.card_costs import costs
from tasks.judge.case import Case
from tasks.judge.costs import Noted, break_even, measured_costs, operations
from tasks.judge.params import Distillation, Quantization, Teaching
from tasks.judge.verdict import Costs, Latency, MeasuredCosts, Times, read_verdict
from tests.judge.conftest import PARAMS

ROWS = 39  # 40 training rows, one of them set aside
CARD = Path("reports/student/card.md")
FAST = Latency(teacher=3.0, float_student=1.0, student=0.5)


@pytest.fixture
def told(case: Case) -> Callable[..., MeasuredCosts]:
    """`told(latency, given=False, **changes)`: costs of stages that noted round figures."""

    def tell(
        latency: Latency = FAST, given: bool = False, **changes: dict[str, Any]
    ) -> MeasuredCosts:
        here: dict[str, Any] = {"model": "here"}
        noted = {
            "teacher": Noted(here, 100.0, 20.0),
            "assistant": Noted(here, 40.0, 2.0),
            "student": Noted(here, 30.0, 1.0),
            "quantize-student": Noted(here, 7.0, None),
        }
        for name, change in changes.items():
            noted[name] = replace(noted[name], **change)
        spec = case.teacher_spec.model_copy(
            update={"fingerprint": None if given else case.teacher_spec.fingerprint}
        )
        return measured_costs(noted, spec, case.rung, latency, here, watts=36.0)

    return tell


def test_training_counts_three_passes_a_row_and_epoch_and_a_bank_one_a_view(
    case: Case, counted: Callable[[Case], Costs]
) -> None:
    costs, teacher = counted(case), case.teacher_spec.flops
    assert teacher is not None

    assert {step.name: step.flops for step in costs.steps} == {
        "teacher": 3 * 4 * ROWS * teacher,
        "bank of teacher": 3 * ROWS * teacher,
        "assistant": (3 * 1 + 3) * ROWS * 2000,
        "student": (3 * 1 + 3) * ROWS * 480,
        "quantization of student": 3 * 2 * ROWS * 480,
    }
    assert costs.below_teacher.flops == sum(step.flops or 0 for step in costs.steps[1:])
    assert (costs.teacher, costs.student) == (teacher, 480)
    predictions = costs.break_even.predictions
    assert predictions is not None
    saved = teacher - 480
    assert (predictions - 1) * saved < costs.below_teacher.flops <= predictions * saved


def test_a_live_teacher_and_an_adversarial_search_are_counted(
    case: Case, distillation: Distillation
) -> None:
    teaching = Teaching.model_validate(PARAMS["teach"])
    quantize = Quantization.model_validate(PARAMS["quantize"])
    recipe = distillation.rungs["student"].model_dump()
    live = {**recipe, "signal": "live"}
    searched = {**recipe, "losses": {"adversarial": 1.0}, "adversary": {"steps": 2}}

    def flops(changed: dict[str, Any]) -> int:
        rungs = {**distillation.rungs, "student": changed}
        changed_to = Distillation.model_validate({**distillation.model_dump(), "rungs": rungs})
        return operations(case, teaching, changed_to, quantize).steps[3].flops or 0

    before = flops(recipe)
    assert flops(live) - before == 1 * ROWS * 2000, "one epoch of the assistant above"
    assert flops(searched) - before == (2 * 2 + 3) * ROWS * 480, "two steps, and what they find"


def test_out_of_fold_teaching_of_k_folds_costs_as_much_as_k_trainings_on_all_rows(
    case: Case, distillation: Distillation
) -> None:
    teaching = Teaching.model_validate(PARAMS["teach"] | {"folds": 5})
    quantize = Quantization.model_validate(PARAMS["quantize"])

    costs = operations(case, teaching, distillation, quantize)

    assert costs.steps[0].flops == 5 * 3 * 4 * ROWS * (case.teacher_spec.flops or 0)


def test_a_teacher_that_meets_an_adversary_is_counted_for_each_step_of_the_search(
    case: Case, distillation: Distillation
) -> None:
    teaching = Teaching.model_validate(PARAMS["teach"] | {"adversary": {"steps": 2}})
    quantize = Quantization.model_validate(PARAMS["quantize"])

    costs = operations(case, teaching, distillation, quantize)

    once = 4 * ROWS * (case.teacher_spec.flops or 0)
    assert costs.steps[0].flops == (1 + 2 * 2 + 3) * once, "the row, two steps, and what they find"


def test_a_search_without_training_adds_no_operations(
    case: Case, world: Path, counted: Callable[[Case], Costs]
) -> None:
    params = world / "params.yaml"
    params.write_text(params.read_text().replace("- qat\n", "- dynamic\n"))

    run(["student"])
    costs = read_verdict(Path("reports/student/verdict.json")).costs

    assert costs is not None
    assert [s.name for s in costs.steps] == ["teacher", "bank of teacher", "assistant", "student"]
    assert [s.name for s in counted(case).steps][-1] == "quantization of student"


def test_of_a_black_box_no_operations_are_known_and_none_are_taken_for_nought(
    case: Case, counted: Callable[[Case], Costs]
) -> None:
    box = case.teacher_spec.model_copy(update={"flops": None, "fingerprint": None})

    costs = counted(replace(case, teacher_spec=box))

    assert [step.flops for step in costs.steps[:2]] == [None, None]
    assert costs.steps[2].flops == 6 * ROWS * 2000
    assert costs.below_teacher.flops is None
    assert costs.break_even.predictions is None
    assert "unknown" in costs.break_even.why


def test_a_given_teachers_own_training_is_unknown_but_not_what_came_after(
    case: Case, counted: Callable[[Case], Costs], told: Callable[..., MeasuredCosts]
) -> None:
    given = case.teacher_spec.model_copy(update={"fingerprint": None})

    costs, measured = counted(replace(case, teacher_spec=given)), told(given=True)

    assert costs.steps[0].flops is None
    assert costs.break_even.predictions == counted(case).break_even.predictions
    assert measured.steps[0].cpu_seconds is None
    assert measured.steps[0].watt_hours is None
    assert measured.below_teacher == told().below_teacher


def test_energy_is_cpu_seconds_times_watts_and_the_teacher_is_not_below_itself(
    told: Callable[..., MeasuredCosts],
) -> None:
    costs = told()

    # 36 W are 0.01 Wh a second.
    assert {s.name: (s.cpu_seconds, s.watt_hours) for s in costs.steps} == {
        "teacher": (100, 1.0),
        "bank of teacher": (20, 0.2),
        "assistant": (42, 0.42),
        "student": (31, 0.31),
        "quantization of student": (7, 0.07),
    }
    assert (costs.below_teacher.cpu_seconds, costs.below_teacher.watt_hours) == (100, 1.0)
    assert costs.per_1000_predictions["teacher"].cpu_seconds == 3.0
    assert costs.per_1000_predictions["teacher"].joules == 108.0
    assert costs.per_1000_predictions["student"].joules == 18.0
    assert "36 W" in costs.method
    assert "judge.watts" in costs.method
    assert costs.elsewhere == ()


def test_the_break_even_is_what_was_spent_below_over_what_one_prediction_saves(
    told: Callable[..., MeasuredCosts],
) -> None:
    assert told().break_even.predictions == 40_000  # 100 s over 2.5 ms
    assert told().break_even.why == "paid back after about 40,000 predictions"


def test_a_student_that_is_no_faster_is_never_paid_back(
    told: Callable[..., MeasuredCosts],
) -> None:
    slow = told(Latency(teacher=0.5, float_student=0.5, student=0.5)).break_even

    assert slow.predictions is None
    assert slow.why.startswith("never paid back")


@pytest.mark.parametrize(
    ("stage", "figure"),
    [
        ("teacher", "bank_cpu_seconds"),
        ("assistant", "bank_cpu_seconds"),
        ("student", "cpu_seconds"),
    ],
)
def test_a_stage_that_noted_no_time_makes_the_sum_unknown(
    told: Callable[..., MeasuredCosts], stage: str, figure: str
) -> None:
    costs = told(**{stage: {figure: None}})

    assert costs.below_teacher.cpu_seconds is None
    assert costs.below_teacher.watt_hours is None
    assert costs.break_even.predictions is None


def test_steps_that_ran_on_another_cpu_are_named(told: Callable[..., MeasuredCosts]) -> None:
    assert told(assistant={"cpu": {"model": "there"}}).elsewhere == ("assistant",)
    assert told(teacher={"cpu": {"model": "there"}}).elsewhere == ("teacher", "bank of teacher")


def test_nothing_to_pay_back_is_paid_back_at_once() -> None:
    assert break_even(0.0, 2.0, 1.0).predictions == 0


def test_the_card_of_this_machine_adds_what_was_measured_to_the_one_that_is_sealed(
    world: Path,
) -> None:
    write_json(
        world / "measured/assistant.json", {"cpu": {}, "cpu_seconds": 5, "bank_cpu_seconds": 1}
    )

    run(["student"])
    verdict = read_verdict(Path("reports/student/verdict.json"))
    told, sealed = CARD.read_text(), Path("evidence/student/card.md").read_text()

    assert verdict.measured is not None
    costs = verdict.measured.costs
    assert costs is not None
    assert f"### Measured on {cpu()['model']}" in told
    assert "| teacher | 10.5 | 0.0292 |" in told
    assert "| assistant | 6 | 0.0167 |" in told
    assert "| below the teacher | 10 | 0.0278 |" in told  # 0.5 + 6 + 2.5 + 1
    assert f"What lies below the teacher is {costs.break_even.why}." in told
    assert "Energy is estimated" in told
    assert "Made on another CPU, so not quite comparable: assistant." in told
    assert "see `reports/student/card.md`" in sealed
    assert set(sealed.splitlines()) - set(told.splitlines()) == {
        line for line in sealed.splitlines() if "see `reports/student/card.md`" in line
    }


def test_operations_are_evidence_and_cpu_seconds_are_not(world: Path) -> None:
    run(["student"])
    sealed = read_json(world / "evidence/student/verdict.json")

    assert sealed["costs"] == read_json(world / "reports/student/verdict.json")["costs"]
    assert "cpu_seconds" not in str(sealed)
    assert "watt" not in str(sealed)


def test_a_verdict_from_before_runtimes_were_told_shows_the_medians(world: Path) -> None:
    run(["student"])
    verdict = read_verdict(world / "reports/student/verdict.json")
    assert verdict.measured is not None
    before = verdict.measured.model_copy(update={"runtime": {}})
    older = verdict.model_copy(update={"measured": before})

    assert "rows a second" in costs(verdict)
    assert "| prediction | ms for one | joules for 1,000 |" in costs(older)
    assert "rows a second" not in costs(older)


@pytest.mark.parametrize(
    ("ships", "said"),
    [
        ((1.5, 3.0), "takes 25 % more time than the float student for one row, 40 % less for 64."),
        ((0.6, 6.0), "takes 50 % less time than the float student for one row, 20 % more for 64."),
    ],
)
def test_the_card_says_whether_int8_is_slower_and_by_how_much(
    ships: tuple[float, float], said: str, world: Path
) -> None:
    run(["student"])
    verdict = read_verdict(world / "reports/student/verdict.json")
    assert verdict.measured is not None
    told = dict(verdict.measured.runtime)
    for role, (one, many) in {"float_student": (1.2, 5.0), "student": ships}.items():
        times = {"one": Times(p50=one, p95=9.0), "many": Times(p50=many, p95=9.0)}
        told[role] = told[role].model_copy(update=times)
    measured = verdict.measured.model_copy(update={"runtime": told})

    assert said in costs(verdict.model_copy(update={"measured": measured}))
