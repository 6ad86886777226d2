"""One rung of the chain: a network learns from the banked logits of the one above.

It banks its own logits in turn, whether a rung learns from it today or not: one that is added
tomorrow then trains without training this one again. Weights of the rungs above are handed on.
"""

from __future__ import annotations

from pathlib import Path

from tasks.core.bank import Bank
from tasks.core.checkpoint import CHECKPOINTS, remove_checkpoint
from tasks.core.cost import cpu_seconds
from tasks.core.errors import ParamsError
from tasks.core.files import read_json, write_json
from tasks.core.lineage import hand_on
from tasks.core.models import MODELS, ModelSpec, read_spec
from tasks.core.params import check, read, section
from tasks.core.reports import RungReport
from tasks.core.seeds import deterministic
from tasks.core.stage import main
from tasks.distill.params import Rung
from tasks.distill.propose import size
from tasks.distill.report import check_ratio, report
from tasks.distill.training import Material, bank_of, learn, read_material
from tasks.distill.warm_start import FOLDER
from tasks.modalities.vision.scorers import load_scorer
from tasks.modalities.vision.training import predicted


def run(arguments: list[str]) -> None:
    """Train rung `arguments[0]`; write `models/RUNG/` and `measured/RUNG.json`."""
    if len(arguments) != 1:
        raise ParamsError("usage: python -m tasks.distill RUNG")
    name = arguments[0]
    rung = section(f"distill.rungs.{name}", Rung)
    deterministic(rung.training.seed, threads=int(read()["threads"]))
    with cpu_seconds() as training:
        asked = read()["distill"].get("warm_start")
        material = read_material(FOLDER if asked else None)
        bank = _distilled(name, rung, material)
    with cpu_seconds() as banking:
        bank_of(MODELS / name, rung, bank, material)
    write_json(
        Path("measured") / f"{name}.json",
        {
            **training,
            "bank_cpu_seconds": banking["cpu_seconds"],
            "bank_views": material.views.count,  # one view: what an epoch with it live would add
        },
    )
    remove_checkpoint(CHECKPOINTS / name)


def _distilled(name: str, rung: Rung, on: Material) -> Bank:
    """Train and write the rung's weights, spec, history and report; returns the bank that it
    learned from."""
    above, folder = MODELS / rung.from_, MODELS / name
    teacher = read_spec(above)
    own = size(rung.architecture, on.fingerprint.data)
    check_ratio(teacher.name, teacher.parameters, name, own)
    spec, bank = learn(name, rung, above, folder, on, CHECKPOINTS / name, f"distill@{name}")
    hand_on(above, folder)
    hits = int((predicted(load_scorer(folder), on.val) == on.val.labels.numpy()).sum())
    result = report(spec, hits, len(on.val), _report_above(above, teacher))
    write_json(folder / "report.json", result.model_dump(mode="json"))
    print(
        f"distill@{name}: {spec.parameters:,} parameters, validation accuracy "
        f"{100 * result.val_accuracy.value:.2f} %, {result.compression:.1f}:1"
    )
    return bank


def _report_above(above: Path, spec: ModelSpec) -> RungReport:
    """The report of the rung above; the teacher's comes from its evaluation."""
    if spec.name == "teacher":
        evaluated = read_json(Path("reports/teacher/report.json"))["val"]
        rows = evaluated["rows"]
        return report(spec, round(evaluated["accuracy"]["value"] * rows), rows, None)
    return check(RungReport, read_json(above / "report.json"), where=str(above / "report.json"))


if __name__ == "__main__":
    main(run)
