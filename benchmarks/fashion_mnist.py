"""Fashion-MNIST end to end: the preset in a clone, five seeds of its student, taught and untaught.

Everything is chosen on validation rows; the test rows are scored here once, at the end. What comes
out is compared with the committed references, or becomes them (`benchmarks/reference.py`). With
`STILLHOUSE_TEACHER=reference` the committed teacher teaches, and none is trained.
"""

from __future__ import annotations

import os
import subprocess
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ruamel.yaml import YAML

from benchmarks import reference
from benchmarks.clone import REFUSED, ROOT, STILLHOUSE, clone, workplace
from benchmarks.table import Row, row
from tasks.core.files import read_json
from tasks.core.metrics import correct
from tasks.core.models import read_spec
from tasks.core.statistics import clustered_bootstrap
from tasks.core.tables import Table, read_fingerprint, read_split
from tasks.modalities.vision.scorers import load_network, load_scorer
from tasks.stress.attacks.apgd import apgd
from tasks.stress.attacks.balls import around
from tasks.stress.attacks.objectives import cross_entropy, low_margin

SEEDS = 5
COMMAND = "make bench-fashion-mnist"
TEACHER = "STILLHOUSE_TEACHER"
STUDENT = "student"  # the rung that five seeds are trained of
ATTACKED, STEPS, EPSILON = 1000, 20, 4 / 255  # test rows, steps of APGD, share of the range


def run() -> list[Row]:
    """Train all of it and score it; hours become an hour by leaving the machine alone."""
    with workplace("fashion-mnist") as folder:
        if not folder.exists():
            clone(folder)
            _seeded(folder)
        ran(folder)
        return _rows(folder)


def _seeded(folder: Path) -> None:
    """The preset as `params.yaml`, with every seed of `STUDENT` and its twins on labels alone."""
    yaml = YAML()
    content: dict[str, Any] = yaml.load(ROOT / "presets" / "fashion-mnist.yaml")
    rungs = content["distill"]["rungs"]
    for seed in range(SEEDS):
        for name in (_taught(seed), _alone(seed)):
            rungs[name] = rung = deepcopy(rungs[STUDENT])
            rung["training"]["seed"] = seed
            if name == _alone(seed):
                rung["losses"] = {"cross_entropy": 1.0}
    if os.environ.get(TEACHER) == "reference":
        content["teach"] |= {"source": "safetensors", "path": str(reference.given(folder.parent))}
    yaml.dump(content, folder / "params.yaml")


def _taught(seed: int) -> str:
    return STUDENT if seed == 0 else f"{STUDENT}_{seed}"


def _alone(seed: int) -> str:
    return f"labels_{seed}"


def ran(folder: Path) -> None:
    """`stillhouse run` in a clone; its lines are shown as they come."""
    done = subprocess.run([*STILLHOUSE, "run"], cwd=folder, check=False)
    if done.returncode not in (0, REFUSED):
        raise RuntimeError(f"stillhouse run ended with {done.returncode}")


def _rows(folder: Path) -> list[Row]:
    """What the models of the run reach on the test rows, each scored once."""
    data = read_fingerprint(folder / "data" / "fingerprint.json").data
    test = read_split("test", data, folder / "data")
    models = folder / "models"
    teacher = hits(models / "teacher", test)
    taught = np.stack([hits(models / _taught(s), test) for s in range(SEEDS)])
    alone = np.stack([hits(models / _alone(s), test) for s in range(SEEDS)])
    size = read_spec(models / "teacher").parameters / read_spec(models / STUDENT).parameters
    gain, least = _gained(taught, alone)
    few = test.take(np.argsort(test.rows, kind="stable")[:ATTACKED])
    stood = np.stack([stands(models / _taught(s), few) for s in range(SEEDS)])
    stood_alone = np.stack([stands(models / _alone(s), few) for s in range(SEEDS)])
    stood_gain, stood_least = _gained(stood, stood_alone)
    attacked = f"stands 4 of 255 (APGD, {ATTACKED:,} test rows)"
    agreed = [agrees(models / _taught(s), models / "teacher", test) for s in range(SEEDS)]
    agreed_alone = [agrees(models / _alone(s), models / "teacher", test) for s in range(SEEDS)]
    spent = read_json(folder / "measured" / "teacher.json")
    trained = os.environ.get(TEACHER) != "reference"
    reached = {p.name: float(hits(p, test).mean()) for p in sorted(models.iterdir())}
    return [
        row("teacher's test accuracy (10,000 rows)", teacher.mean(), "", ">= 0.94", COMMAND),
        *([row("teacher, one thread", spent["cpu_seconds"] / 60, "CPU-min", "<= 25", COMMAND)]
          if trained else []),
        row("its bank", spent["bank_cpu_seconds"] / 60, "CPU-min", "", COMMAND),
        row("teacher's parameters over the student's", size, "x", ">= 10", COMMAND),
        row("student keeps of the teacher's test accuracy, mean of seeds",
            taught.mean() / teacher.mean(), "", ">= 0.99", COMMAND, SEEDS),
        row("student's test accuracy, mean of seeds", taught.mean(), "", "", COMMAND, SEEDS),
        row("the same on labels alone, mean of seeds", alone.mean(), "", "", COMMAND, SEEDS),
        row("gain over labels alone, points", gain, "", "", COMMAND, SEEDS),
        row("its lower bound (95 %, rows and seeds resampled), points", least, "", ">= 0", COMMAND,
            SEEDS),
        row("student agrees with its teacher, mean of seeds", np.mean(agreed), "", "", COMMAND,
            SEEDS),
        row("the same on labels alone, mean of seeds", np.mean(agreed_alone), "", "", COMMAND,
            SEEDS),
        row(f"{attacked}: teacher", stands(models / "teacher", few).mean(), "", "", COMMAND),
        row(f"{attacked}: student, mean of seeds", stood.mean(), "", "", COMMAND, SEEDS),
        row(f"{attacked}: the same on labels alone, mean of seeds", stood_alone.mean(), "", "",
            COMMAND, SEEDS),
        row("gain over labels alone under attack, points", stood_gain, "", "", COMMAND, SEEDS),
        row("its lower bound under attack (95 %, rows and seeds resampled), points", stood_least,
            "", "", COMMAND, SEEDS),
        *reference.compared(reference.STANDARD, folder, reached, COMMAND),
    ]  # fmt: skip


def _gained(taught: NDArray[np.bool_], alone: NDArray[np.bool_]) -> tuple[float, float]:
    """The mean of `taught` above `alone` (seeds, rows), in points, and its lower bound."""
    differences = taught.astype(np.int64) - alone.astype(np.int64)
    return float(100 * differences.mean()), 100 * clustered_bootstrap(differences)[0]


def stands(folder: Path, test: Table) -> NDArray[np.bool_]:
    """Which test rows the float network in `folder` has right wherever APGD looks around them."""
    net, data = load_network(folder), read_spec(folder).data
    bounds, standing = around(test.images, EPSILON, data, "linf"), hits(folder, test)
    for objective in (cross_entropy(net), low_margin(net)):
        random = np.random.default_rng(0)
        _, margins = apgd(objective, test.images, test.labels, bounds, STEPS, random)
        standing &= margins >= 0
    return standing


def agrees(folder: Path, teacher: Path, test: Table) -> float:
    """The share of test rows of which two models say the same."""
    said = [load_scorer(place)(test.images).argmax(axis=1) for place in (folder, teacher)]
    return float((said[0] == said[1]).mean())


def hits(folder: Path, test: Table) -> NDArray[np.bool_]:
    """Which test rows the model in `folder` has right."""
    return correct(load_scorer(folder)(test.images), test.labels)
