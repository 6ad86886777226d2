"""A candidate against the champion: both files scored anew on the test rows of the candidate.

The rows are those that the candidate was judged on, found by digest: in the checkout, else in DVC's
cache. Splits are by content, so as long as `data.split` stays none of them was ever in the
champion's training. Reads files, returns figures; what they mean is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from flows.bundle import read_manifest, read_shipped
from flows.ledger import Comparison, Flips, Line
from flows.state import Checkout
from tasks.core.errors import DataError, GateError
from tasks.core.files import read_json, sha256
from tasks.core.params import check
from tasks.core.session import open_session, score
from tasks.core.statistics import tango_upper
from tasks.core.tables import Fingerprint, Table, read_table
from tasks.judge.compare import pair, per_class, ruined
from tasks.judge.params import JudgeParams
from tasks.stress.flips import replay

TEST = "data/test.parquet"
FLIPS = "stress/fidelity/flips.parquet"
AGREEMENT = 0.999  # of answers here and where the candidate was judged


@dataclass(frozen=True)
class Scored:
    """The test rows, their digest, and a model's answers: logits (N, classes)."""

    test: Table
    sha256: str
    logits: NDArray[np.float32]

    @property
    def correct(self) -> NDArray[np.bool_]:
        right: NDArray[np.bool_] = self.logits.argmax(axis=1) == self.test.labels
        return right


def rescore(checkout: Checkout, bundle: Path) -> Scored:
    """The candidate's answers on its test rows, which must be those that it was judged by.

    Raises `DataError` if the rows are not to be found or are others than the bundle names, and
    `GateError` if the file answers otherwise here than where it was judged.
    """
    test, digest = test_rows(checkout, bundle)
    try:
        stored = pq.read_table(bundle / "predictions.parquet", columns=["row", "student"])
    except (pa.ArrowException, OSError, KeyError) as error:
        raise DataError(f"{bundle}/predictions.parquet: not readable ({error})") from None
    if stored["row"].to_pylist() != test.rows.tolist():
        raise DataError(f"{bundle}: was judged on other rows than {TEST} with its digest holds")
    logits, valid = score(open_session(bundle / "model.onnx"), test.images)
    judged = np.array(stored["student"].to_pylist(), dtype=np.float32).argmax(axis=1)
    differ = int((judged != logits.argmax(axis=1)).sum()) + int((~valid).sum())
    if differ > (1 - AGREEMENT) * len(test):
        raise GateError(
            f"{bundle.name}: answers {differ} of {len(test)} test rows otherwise here than where "
            "it was judged; judge it on this kind of CPU with `stillhouse run`"
        )
    return Scored(test, digest, logits)


def test_rows(checkout: Checkout, bundle: Path) -> tuple[Table, str]:
    """The test table that a bundle was judged on, and its SHA-256."""
    path = bundle / "data.json"
    data = check(Fingerprint, read_json(path).get("fingerprint"), where=f"{path}: fingerprint")
    wanted = data.splits["test"].sha256
    found = next(
        (p for p in _places(checkout, bundle) if p.is_file() and sha256(p) == wanted), None
    )
    if found is None:
        raise DataError(
            f"{bundle}: the test rows that it was judged on ({TEST}, SHA-256 {wanted[:12]}) are "
            "neither here nor in DVC's cache; `dvc pull`, or run at its commit again"
        )
    return read_table(found, data.data), wanted


def _places(checkout: Checkout, bundle: Path) -> list[Path]:
    places = [checkout.root / TEST]
    md5 = read_manifest(bundle).circumstances.objects.get(TEST)
    if md5 is not None:
        from flows.workspace import cache

        places.append(cache(checkout) / "files" / "md5" / md5[:2] / md5[2:])
    return places


def alike(checkout: Checkout, lines: Sequence[Line], scored: Scored) -> set[str]:
    """SHA-256 of the test tables of former decisions that share half of these rows or more.

    A snapshot that grows makes a new table each time, of mostly the same rows.
    """
    found, rows = {scored.sha256}, set(scored.test.rows.tolist())
    former = {line.look.test: line.model.bundle for line in lines if line.look is not None}
    for test, bundle in former.items():
        path = checkout.bundles / bundle / "predictions.parquet"
        if test not in found and path.is_file():
            known = pq.read_table(path, columns=["row"])["row"].to_pylist()
            if 2 * len(rows.intersection(known)) >= len(rows):
                found.add(test)
    return found


def against(
    champion: Path, scored: Scored, judge: JudgeParams, bundle: Path, looks: int
) -> Comparison:
    """Compare the candidate's answers with those of the champion's file on the same rows.

    `looks`: decisions on these rows, this one included. A champion of other classes or another
    input is a `DataError`: the two answer different questions.
    """
    ours, theirs = read_shipped(bundle).data, read_shipped(champion).data
    if (ours.classes, ours.shape, ours.dtype) != (theirs.classes, theirs.shape, theirs.dtype):
        raise DataError(
            f"{bundle.name}: classes or input differ from the champion's ({champion.name}), so no "
            "row compares them; give the new task a `name` of its own in params.yaml"
        )
    logits, valid = score(open_session(champion / "model.onnx"), scored.test.images)
    if not valid.all():
        raise DataError(
            f"{champion.name}: the champion calls {int((~valid).sum())} of {len(valid)} test rows "
            f"invalid, since the data have left its range {list(theirs.range)}; "
            "give the new data a `name` of its own in params.yaml"
        )
    reference = logits.argmax(axis=1) == scored.test.labels
    counts = pair(reference, scored.correct)
    classes = per_class(reference, scored.correct, scored.test.labels, ours.classes)
    alpha = 1 - judge.confidence
    return Comparison(
        lost=counts.lost,
        gained=counts.gained,
        loss_upper=round(counts.upper(judge.confidence), 6),
        loss_upper_looks=round(
            tango_upper(counts.lost, counts.gained, counts.rows, 1 - alpha / looks), 6
        ),
        margin=judge.margin,
        confidence=judge.confidence,
        ruined=tuple(c.name for c in ruined(classes, judge.class_margin, judge.confidence)),
        flips=replayed(champion, scored, bundle),
    )


def replayed(champion: Path, scored: Scored, bundle: Path) -> Flips | None:
    """The rows of the champion's flip ledger, asked of the candidate in `bundle`; None where the
    champion was not put through `fidelity`, or before that kept a ledger."""
    if not (champion / FLIPS).is_file():
        return None
    said = pq.read_table(bundle / "predictions.parquet", columns=["teacher"])["teacher"]
    teacher = np.array(said.to_pylist(), dtype=np.float32).argmax(axis=1)
    test, answers = scored.test, scored.logits.argmax(axis=1)
    try:
        found = replay(pq.read_table(champion / FLIPS), test.rows, test.labels, teacher, answers)
    except DataError:
        return None
    return Flips(
        recur=len(found.recur), mended=len(found.mended), new=len(found.new), gone=len(found.gone)
    )
