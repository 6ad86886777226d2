"""The model card: what a stranger must know before the file replaces anything, in one page.

Written from the reproducible verdict, it holds no measured figure and equal inputs give an equal
card; from the whole verdict, it also tells what was measured. It praises nothing: where the student
is weaker and what the figures cannot show stands beside what they do.
"""

from __future__ import annotations

from collections.abc import Iterable

from tasks.core.reports import Gate
from tasks.core.tables import SPLITS
from tasks.judge.card_costs import costs
from tasks.judge.case import Case
from tasks.judge.markdown import cell, number, percent, table, times
from tasks.judge.params import Distillation, Recipe, Requirements
from tasks.judge.portability import section as portability
from tasks.judge.stress import stress_gates
from tasks.judge.summary import NAME
from tasks.judge.verdict import Verdict

ROLES = {
    "teacher": "teacher",
    "rung": "rung",
    "float_student": "float student",
    "student": "what ships",
}
LISTED = 30  # classes named in the card; all are in the spec
CONSUMER = """\
import json, numpy as np, onnxruntime as ort

classes = json.load(open("spec.json"))["data"]["classes"]
session = ort.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])

def predict(images):  # raw values, float32, shape (rows, {shape})
    logits, valid = session.run(["logits", "valid"], {{"input": images}})
    if not valid.all():
        raise ValueError(f"rows {{np.flatnonzero(~valid)}}: not all in {low:g} .. {high:g}")
    return [classes[i] for i in logits.argmax(axis=1)]
"""


def card(
    project: str,
    case: Case,
    verdict: Verdict,
    requirements: Requirements,
    distillation: Distillation,
) -> str:
    """The card in Markdown, with what was measured if `verdict` has it."""
    title = "passes its gates" if verdict.approved else "is refused"
    sections = (
        f"# {project}: `{case.student}` {title}",
        headline(verdict),
        _chain(verdict),
        _gates(verdict, requirements),
        _stress(case),
        _weaker(verdict, case),
        _data(case),
        _making(case, distillation),
        costs(verdict),
        portability(verdict),
        _limits(verdict),
        _use(case),
    )
    return "\n\n".join(sections) + "\n"


def headline(verdict: Verdict) -> str:
    """What was gained and what it cost, in one sentence; for a refused student also why."""
    teacher, student = verdict.chain[0], verdict.chain[-1]
    points, sure = 100 * verdict.loss_upper, f"{100 * verdict.confidence:.0f} % confidence"
    loss = (
        f"no worse than its teacher by more than {points:.2f} points"
        if points >= 0
        else f"better than its teacher by at least {-points:.2f} points"
    )
    said = (
        f"**{times(verdict.compression)} fewer parameters, "
        f"{times(verdict.compression_bytes)} smaller file, {percent(student.accuracy)} against "
        f"the teacher's {100 * teacher.accuracy.value:.1f} %: {loss}, with {sure}.**"
    )
    if verdict.approved:
        return said
    names = ", ".join(f"`{gate.name}`" for gate in verdict.failed)
    return f"{said}\n\n**Refused** by {names}: do not ship it."


def _chain(verdict: Verdict) -> str:
    head = (
        "model",
        "",
        "accuracy",
        "rows",
        "of teacher's",
        "parameters",
        "fewer",
        "FLOPs",
        "bytes",
    )
    rows = [
        (
            link.name,
            ROLES[link.role],
            percent(link.accuracy),
            link.split,
            f"{100 * link.retention:.1f} %",
            f"{link.parameters:,}",
            f"{times(link.compression)}",
            "?" if link.flops is None else f"{link.flops:,}",
            f"{link.bytes:,}",
        )
        for link in verdict.chain
    ]
    base = verdict.baseline
    note = (
        f"Bounds are one-sided {100 * verdict.confidence:.0f} % (Wilson). Rungs are known on "
        "validation rows only, since every choice is made there. Logistic regression on raw "
        f"values reaches {percent(base.accuracy)} on the test rows (fitted on {base.rows:,} rows, "
        f"{base.features:,} features)."
    )
    return f"## The chain\n\n{table(head, rows)}\n\n{note}"


def _gates(verdict: Verdict, requirements: Requirements) -> str:
    measured = verdict.measured.gates if verdict.measured else ()
    rows = [
        (
            f"`{gate.name}`",
            "pass" if gate.passed else "**FAIL**",
            number(gate.value),
            number(gate.bound),
            gate.why,
        )
        for gate in _failed_first((*verdict.gates, *measured))
    ]
    note = (
        "Gates compare bounds of the final ONNX file, run by ONNX Runtime; a missing figure "
        "fails. The latency budget "
        f"({requirements.latency_ms:g} ms) is a gate too, on the machine that ships: see "
        "`measured` in the verdict."
    )
    return f"## Gates\n\n{table(('gate', '', 'value', 'bound', 'why'), rows)}\n\n{note}"


def _stress(case: Case) -> str:
    rows = []
    for family, heard in case.stress.items():
        if isinstance(heard, str):
            rows.append((family, "", "**FAIL**", heard))
            continue
        gates = stress_gates(family, heard)
        passed = sum(gate.passed for gate in gates)
        summary = heard.results.get("summary")
        figures = summary if isinstance(summary, dict) else {}
        said = ", ".join(
            f"{name.replace('_', ' ')} {value:.4g}"
            for name, value in figures.items()
            if isinstance(value, int | float)
        )
        rows.append((family, f"{heard.rows:,}", f"{passed} of {len(gates)} gates", said))
    return (
        "## Under stress\n\n"
        + table(("family", "rows", "", "found"), rows)
        + f"\n\n![how much of what each gate allows is used]({NAME})"
        + "\n\nReports, plots and the kept examples that broke it are in `stress/`."
    )


def _weaker(verdict: Verdict, case: Case) -> str:
    unknown = [family for family, heard in case.stress.items() if isinstance(heard, str)]
    silent = f"\n\nNothing is known under: {', '.join(unknown)}." if unknown else ""
    if not verdict.weaker:
        return f"## Where it is weaker\n\nIn nothing that was compared is it behind.{silent}"
    rows = [
        (
            w.where,
            "?" if w.rows is None else f"{w.rows:,}",
            f"{100 * w.teacher:.1f} %",
            f"{100 * w.student:.1f} %",
            f"{100 * w.loss:.1f}",
            "" if w.q is None else f"{w.q:.2g}",
        )
        for w in verdict.weaker
    ]
    head = ("where", "rows", "teacher", "student", "points lost", "q")
    return (
        "## Where it is weaker\n\n"
        + table(head, rows)
        + "\n\nThe worst ones. `q` is the share of false alarms if such a loss is taken as real "
        "(exact McNemar, Benjamini-Hochberg over classes); a few rows of difference are often "
        f"chance.{silent}"
    )


def _data(case: Case) -> str:
    splits = ", ".join(f"{case.data.splits[s].rows:,} {s}" for s in SPLITS if s in case.data.splits)
    low, high = case.data.data.range
    names = case.data.data.classes
    shape = " × ".join(map(str, case.data.data.shape))
    aside = "; ".join(f"{count:,} for *{cell(reason)}*" for reason, count in case.set_aside.items())
    kept = (
        f"Validation set aside from training: {aside}." if aside else "Validation set no row aside."
    )
    return (
        f"## Data\n\nRows: {splits}. One row: {shape} raw values, {case.data.data.dtype}, "
        f"{low:g} to {high:g}. {len(names)} classes: {cell(', '.join(names[:LISTED]))}"
        f"{' …' if len(names) > LISTED else ''}. A row's content decides "
        f"its split. {kept} Test rows chose nothing.\n\nDigest of the data: "
        f"`{case.data.digest}`."
    )


def _making(case: Case, distillation: Distillation) -> str:
    steps = []
    for name in [*(rung.name for rung in case.rung.lineage[1:]), case.student]:
        recipe = distillation.rungs.get(name)
        steps.append(f"`{name}` ({_taught(recipe)})" if recipe else f"`{name}`")
    chosen = case.chosen or "the frontier does not say which."
    return (
        "## How it was made\n\nEach model learned from the one before: `teacher` → "
        f"{' → '.join(steps)}. The last was exported to ONNX and quantized in several ways, each "
        f"measured on validation rows as the file it would ship as. Taken: {cell(chosen)}\n\n"
        f"SHA-256 of `model.onnx`: `{case.spec.sha256}`; of the teacher's weights: "
        f"`{case.teacher_spec.sha256}`."
    )


def _taught(recipe: Recipe) -> str:
    """The weighted sum of losses that a rung learned by, the heaviest first.

    >>> losses = {"cross_entropy": 0.1, "kd": 0.9}
    >>> _taught(Recipe.model_validate({"training": {"epochs": 1}, "losses": losses}))
    '0.9 kd + 0.1 cross_entropy at temperature 4'
    """
    heaviest = sorted(recipe.losses.items(), key=lambda item: (-item[1], item[0]))
    total = " + ".join(f"{weight:g} {name}" for name, weight in heaviest)
    return f"{total} at temperature {recipe.temperature:g}"


def _limits(verdict: Verdict) -> str:
    finest = 100 * verdict.margin_resolution
    return (
        "## Limits\n\n"
        f"- {verdict.rows:,} test rows decide. Even if student and teacher never differed on "
        f"them, no loss below {finest:.2f} points could be excluded, and each row on which they "
        "differ widens that: this is why the margin is no finer. More test rows would narrow it."
        "\n- The figures hold for data like these. `valid` tells values out of range, not images "
        "of something else.\n- The attacks that were tried are a lower bound of what an attacker "
        "can do."
    )


def _use(case: Case) -> str:
    low, high = case.data.data.range
    shape = ", ".join(map(str, case.data.data.shape))
    code = CONSUMER.format(shape=shape, low=low, high=high)
    return f"## Use\n\nBeside `model.onnx` and `spec.json`:\n\n```python\n{code}```"


def _failed_first(gates: Iterable[Gate]) -> list[Gate]:
    return sorted(gates, key=lambda gate: gate.passed)
