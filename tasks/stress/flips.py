"""The flip ledger: each row that the shipped file lost to its teacher or gained, and at which step.

A negative flip is a row that the teacher has right and the student wrong (Yan et al., 2021); a mean
that stays the same can hide many. The ledger is evidence, and the next candidate is asked the same
rows again. Takes arrays and tables, reads no file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tasks.core.errors import DataError

NEGATIVE, POSITIVE = "negative", "positive"
Labels = NDArray[np.int64]
Rows = NDArray[np.str_]


def flip_ledger(
    rows: Rows, labels: Labels, says: Mapping[str, Labels], margin: NDArray[np.float64]
) -> pa.Table:
    """A row per flip between the first step and the last. `says`: step -> predictions (N,), from
    the teacher to the shipped file; `margin` (N,): of the shipped file.

    `predicted` holds what each step says; `caused_by` is the first step that went the last one's
    way and that no later one left; `margin` is the probability of the label less the largest other.

    >>> says = {"teacher": [0, 0], "rung": [1, 0], "student (float)": [0, 0], "student": [1, 0]}
    >>> arrays = {step: np.array(s) for step, s in says.items()}
    >>> table = flip_ledger(np.array(["a", "b"]), np.array([0, 0]), arrays, np.array([-0.2, 0.9]))
    >>> table.select(["row", "kind", "caused_by"]).to_pylist()
    [{'row': 'a', 'kind': 'negative', 'caused_by': 'student'}]
    """
    right = np.stack([predicted == labels for predicted in says.values()])
    index = np.flatnonzero(right[0] != right[-1])
    before = right[:, index] != right[-1, index]  # steps that still answered as the teacher did
    cause = len(right) - before[::-1].argmax(axis=0)  # the step after the last of them
    names = list(says)
    predicted = pa.StructArray.from_arrays(
        [pa.array(says[name][index], pa.int32()) for name in names], names=names
    )
    kinds = np.where(right[0, index], NEGATIVE, POSITIVE).tolist()
    return pa.table(
        {
            "row": pa.array(rows[index].tolist(), pa.string()),
            "label": pa.array(labels[index], pa.int32()),
            "kind": pa.array(kinds, pa.string()),
            "caused_by": pa.array([names[i] for i in cause], pa.string()),
            "margin": pa.array(margin[index], pa.float32()),
            "predicted": predicted,
        }
    )


@dataclass(frozen=True)
class Replay:
    """Rows by name. Of the former's regressions, those that `recur`, are `mended`, and are `gone`
    from the table; `new` ones are the candidate's own."""

    recur: tuple[str, ...]
    mended: tuple[str, ...]
    new: tuple[str, ...]
    gone: tuple[str, ...]


def replay(
    former: pa.Table, rows: Rows, labels: Labels, teacher: Labels, candidate: Labels
) -> Replay:
    """Ask a candidate the rows that a former student lost. `rows`, `labels`, and what the
    candidate's own teacher and the candidate predict, are (N,), of today's table.

    A former regression recurs where the candidate is wrong, whatever its teacher says. Raises
    `DataError` for a table that is no flip ledger.

    >>> former = pa.table({"row": ["a", "b", "z"], "kind": ["negative"] * 3})
    >>> zeros = np.zeros(3, dtype=np.int64)
    >>> replay(former, np.array(["a", "b", "c"]), zeros, zeros, np.array([1, 0, 1]))
    Replay(recur=('a',), mended=('b',), new=('c',), gone=('z',))
    """
    if not {"row", "kind"} <= set(former.column_names):
        raise DataError("flips.parquet: no flip ledger, it lacks the columns 'row' and 'kind'")
    kinds = zip(former["row"].to_pylist(), former["kind"].to_pylist(), strict=True)
    lost = {row for row, kind in kinds if kind == NEGATIVE}
    wrong = candidate != labels
    there = set(rows.tolist())
    failed = set(rows[wrong].tolist())
    own = set(rows[wrong & (teacher == labels)].tolist())
    return Replay(
        recur=tuple(sorted(lost & failed)),
        mended=tuple(sorted((lost & there) - failed)),
        new=tuple(sorted(own - lost)),
        gone=tuple(sorted(lost - there)),
    )
