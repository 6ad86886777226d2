"""Rungs, budgets (`distill.plan`) and comparisons (`stillhouse plan`) that cannot be."""

from __future__ import annotations

from typing import Any

from tests.bad_input.case import Case, params


def asked(**budget: Any) -> dict[str, object]:
    """Parameters that ask for a plan within `budget`."""
    return {"distill.plan": "auto", "distill.budget": budget}


STUDENT = "distill.rungs.student"
BUDGET = "params.yaml: distill.budget"

PLANS = (
    Case(
        "a step of more than 10:1",
        params({f"{STUDENT}.architecture.widths": [1, 2, 4]}),
        (f"{STUDENT}: ", "more than 10:1 in one step", "add a rung between them"),
        code=1,
    ),
    Case(
        "a batch larger than the data",
        params({f"{STUDENT}.training.batch": 5000}),
        (f"params.yaml: {STUDENT}.training.batch: 5000 is larger than all", "lower it"),
    ),
    Case(
        "a budget of an unknown kind",
        params(asked(flop=1_000_000)),
        (f"{BUDGET}.flop: unknown key", "did you mean 'flops'?"),
    ),
    Case(
        "a budget of two kinds",
        params(asked(parameters=7_000, bytes=20_000)),
        (f"{BUDGET}: names parameters and bytes", "give exactly one of parameters, flops, bytes"),
    ),
    Case(
        "a budget of zero",
        params(asked(parameters=0)),
        (f"{BUDGET}.parameters: must be greater than or equal to 1", "(got 0)"),
    ),
    Case(
        "a plan without a budget",
        params({"distill.plan": "auto"}),
        ("params.yaml: distill: 'plan: auto' and 'budget' belong together", "give both"),
    ),
    Case(
        "a plan for two students",
        params(asked(parameters=7_000) | {"distill.ship": ["assistant", "student"]}),
        ("params.yaml: distill: 'plan: auto' makes one student, and ship names 2", "name one"),
    ),
    Case(
        "a budget larger than the teacher",
        params(asked(parameters=400_000)),
        (f"{BUDGET}.parameters: 400,000 is more than any network below", "ask for at most 302,773"),
        ("plan", "--write"),
    ),
    Case(
        "a budget smaller than any network",
        params(asked(bytes=100)),
        (f"{BUDGET}.bytes: 100 is less than the smallest network", "ask for at least 1,592"),
        ("plan", "--write"),
    ),
    Case(
        "rungs that are not the plan's",
        params(asked(parameters=7_000)),
        ("distill.rungs: are not what plan: auto proposes", "type `stillhouse plan --write`"),
    ),
    Case(
        "`plan --write` without a plan",
        params({"distill.plan": None}),
        ("distill.plan: null leaves distill.rungs as written", "set plan: auto"),
        ("plan", "--write"),
    ),
    Case(
        "a comparison with one seed",
        params({"distill.plan": None}),
        ("--seeds 1: one seed knows no spread", "give 2 or more"),
        ("plan", "--seeds", "1"),
    ),
    Case(
        "a comparison below a teacher of other parameters",
        params({"teach.training.epochs": 3}),
        ("models/teacher: is not of today's data and parameters", "type `stillhouse run` first"),
        ("plan",),
    ),
)
