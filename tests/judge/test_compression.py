"""How far a chain may shrink, by step and overall, and what it must have stood for that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from tasks.core.reports import Gate, StressReport
from tasks.judge import gates
from tasks.judge.case import Case


def test_a_step_above_ten_to_one_fails_though_the_whole_is_stressed(case: Case) -> None:
    rung = case.rung.model_copy(update={"lineage": case.rung.lineage[:1], "parameters": 240})

    assert gates.compression_validated(case).passed
    assert not gates.compression_validated(replace(case, rung=rung)).passed


@pytest.mark.parametrize(
    "family", ["adversarial", "corruptions", "edge_cases", "fidelity", "calibration", "security"]
)
def test_more_than_ten_to_one_overall_needs_every_stress_family_by_name(
    case: Case, family: str, report: Callable[..., StressReport], gate: Callable[..., Gate]
) -> None:
    others = {name: heard for name, heard in case.stress.items() if name != family}
    lost = report(family, case.spec.sha256, gates=(gate("held", False),))

    missing = gates.compression_validated(replace(case, stress=others))
    crashed = gates.compression_validated(replace(case, stress={**others, family: "It crashed"}))
    failed = gates.compression_validated(replace(case, stress={**others, family: lost}))

    assert not missing.passed
    assert f"missing: {family}." in missing.why
    for refused in (crashed, failed):
        assert not refused.passed
        assert f"not passed: {family}." in refused.why


def test_more_than_ten_to_one_overall_needs_a_family_of_ones_own_too(case: Case) -> None:
    gate = gates.compression_validated(replace(case, stress={**case.stress, "fog": "It crashed"}))

    assert not gate.passed
    assert "not passed: fog." in gate.why


def test_ten_to_one_overall_stands_on_no_stress_family(case: Case) -> None:
    small = case.teacher_spec.model_copy(update={"parameters": 2400})

    assert gates.compression_validated(replace(case, teacher_spec=small, stress={})).passed


@pytest.mark.parametrize("parameters", [0, -1])
@pytest.mark.parametrize("field", ["teacher_spec", "rung", "spec"])
def test_compression_of_a_link_without_parameters_fails(
    case: Case, field: str, parameters: int
) -> None:
    empty = getattr(case, field).model_copy(update={"parameters": parameters})
    gate = gates.compression_validated(replace(case, **{field: empty}))

    assert not gate.passed
    assert gate.value is None


def test_compression_without_a_lineage_fails(case: Case) -> None:
    orphan = case.rung.model_copy(update={"lineage": ()})

    assert not gates.compression_validated(replace(case, rung=orphan)).passed
