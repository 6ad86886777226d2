"""The robust preset end to end: a teacher and a student that learned at the worst image near each.

Everything is chosen on validation rows. What comes out is compared with the committed references in
`benchmarks/reference/robust`, or becomes them; `make bench-stress` attacks those, with more rows
than the gates of a run do.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from benchmarks import reference
from benchmarks.clone import ROOT, clone, workplace
from benchmarks.fashion_mnist import hits, ran
from benchmarks.table import Row, row
from tasks.core.files import read_json
from tasks.core.models import read_spec
from tasks.core.tables import read_fingerprint, read_split

COMMAND = "make bench-robust"


def run() -> list[Row]:
    """Train all of it and attack what ships: about an hour on two cores."""
    with workplace("robust") as folder:
        if not folder.exists():
            clone(folder)
            shutil.copyfile(ROOT / "presets" / "fashion-mnist-robust.yaml", folder / "params.yaml")
        ran(folder)
        return _rows(folder)


def _rows(folder: Path) -> list[Row]:
    """What the models of the run reach on the test rows, clean and under attack."""
    data = read_fingerprint(folder / "data" / "fingerprint.json").data
    test = read_split("test", data, folder / "data")
    models, reached = folder / "models", {}
    for name in reference.KEPT:
        reached[name] = float(hits(models / name, test).mean())
    size = read_spec(models / "teacher").parameters / read_spec(models / "student").parameters
    spent = {n: read_json(folder / "measured" / f"{n}.json")["cpu_seconds"] for n in reference.KEPT}
    report = read_json(folder / "reports" / "student" / "stress" / "adversarial.json")
    (worst,) = (
        line for line in report["results"]["epsilons"]
        if (line["norm"], line["epsilon"]) == ("linf", 0.1)
    )  # fmt: skip
    return [
        row("robust teacher's test accuracy (10,000 rows)", reached["teacher"], "", "", COMMAND),
        row("robust teacher, one thread", spent["teacher"] / 60, "CPU-min", "", COMMAND),
        row("robust student's test accuracy, float", reached["student"], "", ">= 0.84", COMMAND),
        row("robust student, one thread", spent["student"] / 60, "CPU-min", "", COMMAND),
        row("robust teacher's parameters over the student's", size, "x", "", COMMAND),
        row(f"L-infinity 0.1, the run's own {report['rows']} rows: the teacher keeps",
            worst["teacher"]["value"], "", "", COMMAND),
        row("the shipped student keeps", worst["student"]["value"], "", "", COMMAND),
        row("its lower bound (95 %)", worst["student"]["low"], "", ">= 0.65", COMMAND),
        *reference.compared(reference.ROBUST, folder, reached, COMMAND),
    ]  # fmt: skip
