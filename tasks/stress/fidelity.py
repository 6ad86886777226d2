"""Fidelity: how often, where and how far the final student departs from its teacher, and by whom.

Every float rung between the two is asked as well, so that each row lost (a negative flip) or gained
(a positive one) has the step that caused it: distillation to one of the rungs, or quantization. The
ledger of these rows is kept, and the next candidate is asked them again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pydantic import Field

from tasks.core.files import read_json
from tasks.core.lineage import ABOVE, read_lineage
from tasks.core.metrics import js, kl, softmax
from tasks.core.models import MODELS, ModelSpec, read_spec
from tasks.core.params import Section, check
from tasks.core.reports import Gate, at_least, at_most
from tasks.core.statistics import wilson
from tasks.modalities.vision.scorers import load_network, network_scorer
from tasks.stress.case import SHIP, Case, Outcome, rate
from tasks.stress.flips import NEGATIVE, POSITIVE, flip_ledger

Labels = NDArray[np.int64]


class Params(Section):
    """Bounds of the agreement with the teacher, and of the share of rows that it alone has right
    (negative flips)."""

    agreement: float = Field(ge=0, le=1)
    negative_flips: float = Field(ge=0, le=1)


def run(case: Case, params: Params) -> Outcome:
    """Compare all test rows with the teacher's stored predictions, step by step."""
    labels, says = case.test.labels, predictions(case)
    teacher, student = says["teacher"], says[case.student]
    ledger = flip_ledger(case.test.rows, labels, says, _margin(case.student_logits, labels))
    distance = kl(case.teacher_logits, case.student_logits)
    symmetric = js(case.teacher_logits, case.student_logits)
    agrees = teacher == student
    lost = (teacher == labels) & (student != labels)
    classes = {
        name: rate(agrees[labels == index])
        for index, name in enumerate(case.data.classes)
        if bool((labels == index).any())
    }
    steps = [_step(name, said, teacher, labels, ledger) for name, said in says.items()]
    results = {
        "agreement": rate(agrees),
        "int8_agreement_with_float": rate(student == says[_floating(case)]),
        "steps": steps,
        "negative_flips": rate(lost) | _counted(ledger, NEGATIVE, case.data.classes),
        "positive_flips": _counted(ledger, POSITIVE, case.data.classes),
        "kl": {"mean": float(distance.mean()), "p95": float(np.percentile(distance, 95))},
        "js": {"mean": float(symmetric.mean()), "p95": float(np.percentile(symmetric, 95))},
        "classes": classes,
        "summary": {
            "agreement": float(agrees.mean()),
            "negative_flips": float(lost.mean()),
            "kl": float(distance.mean()),
            "js": float(symmetric.mean()),
        },
    }
    figure = _figure(classes, steps, {"KL(teacher ‖ student)": distance, "JS": symmetric})
    return Outcome(len(labels), results, _gates(agrees, lost, params), figure, {"flips": ledger})


def predictions(case: Case) -> dict[str, Labels]:
    """Step -> predicted classes (N,), in order: teacher, rungs, float student, shipped file.

    Raises `DataError` if a rung between them was not handed on, or is another than the one learned
    from.
    """
    folder, path = MODELS / case.student, SHIP / case.student / "float.json"
    student = check(ModelSpec, read_json(path), where=str(path))
    rungs = read_lineage(folder, student, read_spec(MODELS / "teacher"))
    networks = {name: load_network(folder / ABOVE / name, spec) for name, spec in rungs.items()}
    floats = {**networks, _floating(case): case.float_network}
    return {
        "teacher": case.teacher_logits.argmax(axis=1),
        **{name: network_scorer(n)(case.test.images).argmax(axis=1) for name, n in floats.items()},
        case.student: case.student_logits.argmax(axis=1),
    }


def _floating(case: Case) -> str:
    """How the float student is called, here and in the verdict's chain."""
    return f"{case.student} (float)"


def _margin(logits: NDArray[np.float32], labels: Labels) -> NDArray[np.float64]:
    """Probability of the label less the largest other (N,): negative where the row is wrong."""
    probabilities = softmax(logits)
    index = np.arange(len(labels))
    own = probabilities[index, labels]
    probabilities[index, labels] = -1
    return np.asarray(own - probabilities.max(axis=1))


def _step(
    name: str, said: Labels, teacher: Labels, labels: Labels, ledger: pa.Table
) -> dict[str, Any]:
    """One step in the report, and the flips that it caused."""
    caused = list(zip(ledger["kind"].to_pylist(), ledger["caused_by"].to_pylist(), strict=True))
    return {
        "name": name,
        "accuracy": rate(said == labels),
        "agreement": rate(said == teacher),
        "negative_flips": caused.count((NEGATIVE, name)),
        "positive_flips": caused.count((POSITIVE, name)),
    }


def _counted(ledger: pa.Table, kind: str, classes: tuple[str, ...]) -> dict[str, Any]:
    """Flips of one kind: how many, and of which classes, the most first."""
    flips = [flip for flip in ledger.select(["label", "kind"]).to_pylist() if flip["kind"] == kind]
    counts = np.bincount([flip["label"] for flip in flips], minlength=len(classes))
    order = np.argsort(-counts, kind="stable")
    return {
        "rows": len(flips),
        "classes": [{"name": classes[i], "rows": int(counts[i])} for i in order if counts[i]],
    }


def _gates(agrees: NDArray[np.bool_], lost: NDArray[np.bool_], params: Params) -> tuple[Gate, ...]:
    n, same, flipped = len(agrees), int(agrees.sum()), int(lost.sum())
    return (
        at_least(
            "fidelity.agreement",
            wilson(same, n)[0],
            params.agreement,
            f"Student and teacher answer alike on {same} of {n} test rows; the lower 95 % bound is "
            "compared.",
        ),
        at_most(
            "fidelity.negative_flips",
            wilson(flipped, n)[1],
            params.negative_flips,
            f"The teacher has {flipped} of {n} test rows right that the student has wrong; the "
            "upper 95 % bound of the share is compared.",
        ),
    )


def _figure(
    classes: Mapping[str, Mapping[str, float]],
    steps: list[dict[str, Any]],
    distances: Mapping[str, NDArray[np.float64]],
) -> Figure:
    """Agreement per class with intervals, flips by the step that caused them, and divergence."""
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    _agreement(left, classes)
    names, places = [step["name"] for step in steps[1:]], np.arange(len(steps) - 1)
    for kind, sign, colour in ((NEGATIVE, -1, "0.35"), (POSITIVE, 1, "0.85")):
        counts = np.array([step[f"{kind}_flips"] for step in steps[1:]])
        bars = middle.bar(places, sign * counts, color=colour, edgecolor="black", label=kind)
        middle.bar_label(bars, [str(count) for count in counts], padding=2, fontsize=8)
    middle.axhline(0, color="black", linewidth=0.8)
    middle.margins(y=0.15)
    middle.set_xticks(places, [name[:18] for name in names])
    middle.set(xlabel="step that caused it", ylabel="flips (lost below, gained above)")
    middle.legend(fontsize=8)
    for (name, distance), style in zip(distances.items(), ("k-", "k--"), strict=True):
        share = np.arange(1, len(distance) + 1) / len(distance)
        right.plot(np.maximum(np.sort(distance), 1e-9), share, style, label=name)
    right.set(xscale="log", xlabel="divergence, nats", ylabel="share of rows at most this")
    right.legend(fontsize=8)
    return figure


def _agreement(axes: Axes, classes: Mapping[str, Mapping[str, float]]) -> None:
    value = np.array([c["value"] for c in classes.values()])
    error = [
        value - [c["low"] for c in classes.values()],
        [c["high"] for c in classes.values()] - value,
    ]
    places = np.arange(len(classes))
    axes.errorbar(places, value, yerr=np.abs(error), fmt="ko", capsize=3)
    axes.set_xticks(
        places, [str(name)[:12] for name in classes], rotation=90 if len(classes) > 6 else 0
    )
    axes.set(
        xlabel="class",
        ylabel="agreement with the teacher",
        ylim=(min(0.5, float(value.min()) - 0.1), 1.02),
    )
