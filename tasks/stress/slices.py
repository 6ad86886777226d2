"""Slices: is some group of rows ruined, while the average looks well?

Each class is one, on all test rows; so is each value of a column that `data.subgroups` declares,
with a gate for each column. More are found by what an image looks like and where the
teacher's logits lie: on one half of the rows, drawn by seed and stratified by class, and tested on
the other half, so that their p-values are honest. The student's own logits would find its errors by
its doubts, and no student is as sure as its teacher there; so they take no part.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pydantic import Field

from tasks.core.metrics import correct
from tasks.core.params import Section
from tasks.core.reports import Gate, at_most
from tasks.core.seeds import generator
from tasks.core.statistics import benjamini_hochberg, mcnemar_loss, tango_upper
from tasks.modalities.vision.features import describe
from tasks.stress.case import Case, Outcome, finite, rate
from tasks.stress.slicing import Features, Flags, find_slices

SUPPORT = 30  # rows, of either half
SHARE = 0.01  # of the rows of a half, where that is more
ALPHA = 0.05
COMPONENTS = 3  # of the teacher's logits
SHOWN = 12  # slices in the plot, worst first


class Params(Section):
    """A slice whose loss against the teacher is above `margin`, and significant, is ruined."""

    margin: float = Field(ge=0, le=1)


@dataclass(frozen=True)
class Tested:
    """One slice. `q`: one-sided exact McNemar for a loss, adjusted over all slices; `least_q`: the
    smallest that its rows allow, if every row that the teacher has right were lost."""

    name: str
    teacher: Flags
    student: Flags
    q: float
    least_q: float

    @property
    def lost(self) -> int:
        """Rows that the teacher alone has right."""
        return int((self.teacher & ~self.student).sum())

    @property
    def gained(self) -> int:
        """Rows that the student alone has right."""
        return int((self.student & ~self.teacher).sum())

    @property
    def loss(self) -> float:
        """Net, as a share of its rows."""
        return (self.lost - self.gained) / len(self.teacher)

    def state(self, margin: float) -> str:
        """What may be said of it: ruined, undecided, too few rows, or holds."""
        if self.loss > margin and self.q <= ALPHA:
            return "ruined"
        if self.loss > margin and self.least_q > ALPHA:
            return "undecided"
        return "holds" if len(self.teacher) >= SUPPORT else "too few rows"

    def line(self, margin: float) -> dict[str, Any]:
        """As the report states it; bounds of the loss are Tango's."""
        rows = len(self.teacher)
        return {
            "where": self.name,
            "rows": rows,
            "teacher": rate(self.teacher),
            "student": rate(self.student),
            "lost": self.lost,
            "gained": self.gained,
            "loss": {
                "value": self.loss,
                "low": -tango_upper(self.gained, self.lost, rows),
                "high": tango_upper(self.lost, self.gained, rows),
            },
            "q": self.q,
            "state": self.state(margin),
        }


def run(case: Case, params: Params) -> Outcome:
    """Test every class, find slices on one half of the rows and test them on the other."""
    labels, features = case.test.labels, describe_rows(case)
    logits = (case.teacher_logits, finite(case.student_logits))
    teacher, student = (correct(x, labels) for x in logits)
    searched = half(labels, case.seed)
    support = max(SUPPORT, round(SHARE * searched.sum()))
    enough = min(searched.sum(), (~searched).sum()) >= 2 * support
    lost = teacher.astype(np.int64) - student
    mine = {name: values[searched] for name, values in features.items()}
    slices = find_slices(mine, lost[searched], support) if enough else []
    members = [(f"class {name}", labels == index) for index, name in enumerate(case.data.classes)]
    declared = {column: _values(column, values) for column, values in case.subgroups.items()}
    members += [value for values in declared.values() for value in values]
    members += [(str(found), found.holds(features) & ~searched) for found in slices]
    tested = examine(members, teacher, student)
    lines = [found.line(params.margin) for found in tested]
    by_name = dict(zip((t.name for t in tested), lines, strict=True))
    subgroups = {c: [by_name[name] for name, _ in values] for c, values in declared.items()}
    own = {name for values in declared.values() for name, _ in values}
    plain = [line for line in lines if line["where"] not in own]
    classes = [line for line in plain if line["where"].startswith("class ")]
    results = {
        "classes": classes,
        "found": plain[len(classes) :],
        "subgroups": subgroups,
        "features": list(features),
        "searched_rows": int(searched.sum()),
        "tested_rows": int((~searched).sum()),
        "support": support,
        "summary": {
            "ruined_slices": sum(line["state"] == "ruined" for line in lines),
            "worst_slice_loss": max(line["loss"]["value"] for line in lines),
        },
    }
    gate = _gate(plain, len(slices), bool(enough), 2 * support, params.margin)
    more = (_subgroup(column, found, params.margin) for column, found in subgroups.items())
    return Outcome(len(labels), results, (gate, *more), _figure(lines, params.margin))


def _values(column: str, values: NDArray[np.str_]) -> list[tuple[str, Flags]]:
    """Each value of a declared column, by name, and its rows (N,)."""
    return [(f"{column} = {value}", values == value) for value in np.unique(values).tolist()]


def _subgroup(column: str, lines: Sequence[dict[str, Any]], margin: float) -> Gate:
    """No value of a declared column is ruined; one of few rows is named, or counts as ruined."""
    named = {
        state: [f"{line['where']} ({line['lost']} of {line['rows']} lost)" for line in lines
                if line["state"] == state]
        for state in ("ruined", "undecided", "too few rows")
    }  # fmt: skip
    few = [*named["undecided"], *named["too few rows"]]
    return at_most(
        f"slices.subgroup.{column}",
        len(named["ruined"]) + len(named["undecided"]),
        0,
        f"{len(lines)} subgroups by {column}. "
        + (f"Ruined: {'; '.join(named['ruined'])}; " if named["ruined"] else "None is ruined: ")
        + f"more than {100 * margin:g} points behind the teacher and significant."
        + (f" Too few rows to tell: {'; '.join(few)}." if few else ""),
    )


def half(labels: NDArray[np.int64], seed: int) -> Flags:
    """The rows (N,) to search: every second of each class, in an order drawn by `seed`.

    >>> searched = half(np.array([0, 0, 1, 1, 1, 1]), seed=0)
    >>> int(searched[:2].sum()), int(searched[2:].sum())
    (1, 2)
    """
    drawn = generator(seed, "stress", "slices").permutation(len(labels))
    chosen = np.zeros(len(labels), dtype=bool)
    chosen[np.lexsort((drawn, labels))[::2]] = True
    return chosen


def describe_rows(case: Case) -> Features:
    """What slices are made of: features of the images, and components of the teacher's logits."""
    found = describe(case.test.images, case.data) | _components(
        case.teacher_logits, case.data.classes
    )
    # So that a row at a threshold is on the same side on every machine.
    return {name: values.round(6) for name, values in found.items()}


def _components(
    logits: NDArray[np.float32], classes: tuple[str, ...]
) -> dict[str, NDArray[np.float64]]:
    """The first principal components of logits, named after the classes that they tell apart."""
    values = logits.astype(np.float64)
    values = values - values.mean(axis=1, keepdims=True)  # a constant added says nothing
    _, axes = np.linalg.eigh(np.cov(values, rowvar=False))
    found = {}
    for axis in axes.T[::-1][: min(COMPONENTS, len(classes) - 1)]:
        axis = axis * np.sign(axis[np.abs(axis).argmax()])
        name = f"teacher's '{classes[axis.argmax()]}' against '{classes[axis.argmin()]}'"
        found[name] = (values - values.mean(axis=0)) @ axis
    return found


def examine(members: Sequence[tuple[str, Flags]], teacher: Flags, student: Flags) -> list[Tested]:
    """Each slice that has rows, in order. `members`: name and rows (N,); `teacher` and `student`:
    which rows (N,) each has right; q-values over all slices together."""
    parts = [(name, teacher[rows], student[rows]) for name, rows in members if rows.any()]
    p = [mcnemar_loss(int((t & ~s).sum()), int((s & ~t).sum())) for _, t, s in parts]
    adjusted = benjamini_hochberg(p)
    least = [min(1.0, len(parts) * mcnemar_loss(int(t.sum()), 0)) for _, t, _ in parts]
    return [Tested(*part, q, low) for part, q, low in zip(parts, adjusted, least, strict=True)]


def _gate(
    lines: Sequence[dict[str, Any]], found: int, enough: bool, needed: int, margin: float
) -> Gate:
    """No slice is ruined; one that has too few rows for a verdict on its loss counts as one."""
    by = {
        state: [f"{line['where']} ({line['lost']} of {line['rows']} lost)" for line in lines
                if line["state"] == state]
        for state in ("ruined", "undecided", "too few rows")
    }  # fmt: skip
    if not enough:
        return at_most(
            "slices.ruined",
            None,
            0,
            f"Too few rows: a half to find slices on and one to test them on need {needed} each.",
        )
    ruined = f"Ruined: {'; '.join(by['ruined'])};" if by["ruined"] else "None is ruined:"
    few = [*by["undecided"], *by["too few rows"]]
    return at_most(
        "slices.ruined",
        len(by["ruined"]) + len(by["undecided"]),
        0,
        f"{len(lines) - found} classes and {found} slices found on other rows. {ruined} more than "
        f"{100 * margin:g} points behind the teacher and significant (exact McNemar, "
        "Benjamini-Hochberg over all)."
        + (f" Too few rows to tell: {'; '.join(few)}." if few else ""),
    )


def _figure(lines: Sequence[dict[str, Any]], margin: float) -> Figure:
    """The worst slices: loss with its 95 % bounds, ruined ones filled."""
    worst = sorted(lines, key=lambda line: -line["loss"]["value"])[:SHOWN][::-1]
    figure = Figure(figsize=(9, 1.4 + 0.42 * len(worst)), layout="constrained")
    axes = figure.subplots()
    for place, line in enumerate(worst):
        loss = line["loss"]
        error = [[loss["value"] - loss["low"]], [loss["high"] - loss["value"]]]
        ruined = line["state"] == "ruined"
        axes.errorbar(
            loss["value"], place, xerr=np.maximum(error, 0), fmt="ks" if ruined else "ko",
            capsize=3, markerfacecolor="black" if ruined else "white",
        )  # fmt: skip
    axes.axvline(0, color="0.6", linewidth=0.8)
    axes.axvline(margin, color="black", linestyle="--", linewidth=1, label="margin")
    names = [f"{textwrap.fill(line['where'], 44)} ({line['rows']})" for line in worst]
    axes.set_yticks(range(len(worst)), names, fontsize=8, parse_math=False)
    axes.set_ylim(-0.6, len(worst) - 0.4)
    axes.set(xlabel="accuracy lost to the teacher, with 95 % bounds; filled: ruined")
    axes.legend(fontsize=8, loc="lower right")
    return figure
