"""`python -m tasks.distill.compare SEEDS`: is an assistant worth it? Chains at equal compute.

Each chain to the first student that ships is trained with every seed and scored on validation rows.
What is finished is kept below `checkpoints/of-plan/`, so that an interrupted comparison goes on
where it stopped. Writes `reports/plan.json` and its plot; no stage, and no test row is read.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from tasks.core.bank import INFO
from tasks.core.checkpoint import CHECKPOINTS, remove_checkpoint
from tasks.core.errors import DataError, ParamsError
from tasks.core.files import digest, first_sha256, read_json, write_bytes, write_json
from tasks.core.models import MODELS, Architecture, ModelSpec, read_spec
from tasks.core.params import read, section
from tasks.core.seeds import deterministic
from tasks.core.stage import main
from tasks.core.trainer import Training
from tasks.distill.chains import (
    METHOD,
    arithmetic,
    candidates,
    compute,
    largest_step,
    plan,
    planned,
)
from tasks.distill.decision import (
    CONFIDENCE,
    PLOT,
    REPORT,
    Candidate,
    Flags,
    PlanReport,
    gains,
    recommended,
    why,
    writable,
)
from tasks.distill.params import DistillParams, Rung
from tasks.distill.plan_plot import plan_png
from tasks.distill.propose import Chain, Ground, ground, size
from tasks.distill.training import Material, bank_of, learn, read_material
from tasks.modalities.vision.scorers import load_scorer
from tasks.modalities.vision.training import predicted

TEACHER = MODELS / "teacher"
PLANS = CHECKPOINTS / "of-plan"  # no name of a rung has a hyphen
SCORES = "val.safetensors"  # of a finished student
OWN = ("compare.py", "chains.py", "decision.py", "plan_plot.py", "propose.py")  # train nothing

Links = list[tuple[str, Rung]]  # from the one below the teacher down


def run(arguments: list[str]) -> None:
    """Compare the chains with `arguments[0]` seeds; write the report and its plot."""
    if len(arguments) != 1 or not arguments[0].isdecimal():
        raise ParamsError("usage: python -m tasks.distill.compare SEEDS")
    seeds = int(arguments[0])
    if seeds < 2:
        raise ParamsError(f"--seeds {seeds}: one seed knows no spread; give 2 or more")
    if not (TEACHER / "spec.json").is_file():
        raise DataError(f"{TEACHER}: not there, and every chain learns from it; `stillhouse run`")
    params, teacher = section("distill", DistillParams), read_spec(TEACHER)
    own, teaching = section("teach.architecture", Architecture), section("teach.training", Training)
    threads = int(read()["threads"])
    deterministic(0, threads)
    bench = Bench(read_material(), teacher, threads)
    on = ground(params, teacher.parameters, own, teaching, teacher.data)
    views = bench.on.views.count
    if params.plan and not planned(params, on, views):
        raise ParamsError(
            "params.yaml: distill.rungs: are not what plan: auto proposes; "
            "type `stillhouse plan --write`"
        )
    chains = candidates(plan(params, on), on, views)
    for name, chain in chains.items():
        print(f"plan: {name}: {arithmetic(chain, on.data, views)}", flush=True)
    right = compared(chains, seeds, bench)
    result = report(params.ship[0], chains, right, bench, on)
    write_json(REPORT, result.model_dump(mode="json"))
    write_bytes(PLOT, plan_png(result))
    bench.forget_others()


def compared(chains: Mapping[str, Chain], seeds: int, bench: Bench) -> dict[str, Flags]:
    """Which validation rows each chain's student has right: (seeds, rows) by chain."""
    labels = bench.on.val.labels.numpy()
    found: dict[str, list[Flags]] = {name: [] for name in chains}
    total = len(chains) * seeds
    for seed in range(seeds):
        for name, chain in chains.items():
            count = sum(map(len, found.values())) + 1
            flags = bench.predicted(_seeded(chain, seed), f"plan {name} seed {seed}") == labels
            found[name].append(flags)
            print(f"plan: {count}/{total}: {name}, seed {seed}: {100 * flags.mean():.2f} %")
    return {name: np.stack(flags) for name, flags in found.items()}


def report(
    student: str, chains: Mapping[str, Chain], right: Mapping[str, Flags], bench: Bench, on: Ground
) -> PlanReport:
    """What the flags (seeds, rows) of each chain come to."""
    found = gains(right)
    steps = {name: largest_step(chain, on) for name, chain in chains.items()}
    chosen, views = recommended(found), bench.on.views.count
    seeds, rows = right["direct"].shape
    return PlanReport(
        student=student,
        teacher=bench.teacher.sha256,
        fingerprint=bench.on.fingerprint.digest,
        seeds=seeds,
        rows=rows,
        confidence=CONFIDENCE,
        method=METHOD,
        chains=tuple(
            Candidate(
                name=name,
                links=tuple(chain),
                rungs=chain,
                parameters=tuple(size(rung.architecture, on.data) for rung in chain.values()),
                flops=compute(chain, on.data, views),
                arithmetic=arithmetic(chain, on.data, views),
                largest_step=steps[name],
                accuracy=tuple(float(flags.mean()) for flags in right[name]),
                gain=found.get(name),
            )
            for name, chain in chains.items()
        ),
        recommended=chosen,
        write=writable(chosen, steps),
        why=why(chosen, found, steps, seeds),
    )


@dataclass
class Bench:
    """Where chains are trained: on what, from which teacher; each finished model is kept.

    A folder is named after all that decides what is in it: the rungs down to it, teacher, data,
    views, threads and code. What two chains share is trained once.
    """

    on: Material
    teacher: ModelSpec
    threads: int
    used: set[str] = field(default_factory=set)

    def predicted(self, links: Links, what: str) -> NDArray[np.int64]:
        """The class (rows,) that the last of `links` gives each validation row."""
        folder = self._folder(links)
        file = folder / SCORES
        if not file.is_file():
            self._learn(links, what)
            write_bytes(file, save({"predicted": predicted(load_scorer(folder), self.on.val)}))
        try:
            return load_file(file)["predicted"].astype(np.int64)
        except (SafetensorError, KeyError):
            raise DataError(f"{file}: is torn; remove {folder} and run again") from None

    def forget_others(self) -> None:
        """Remove what other comparisons left, and of this one all but the students' scores."""
        for folder in PLANS.iterdir():
            kept = folder.name in self.used and (folder / SCORES).is_file()
            for path in folder.iterdir() if kept else [folder]:
                if path.name != SCORES:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _learn(self, links: Links, what: str) -> None:
        """Train the last of `links`, and whatever above it is not there yet, with its bank."""
        for place in range(1, len(links)):
            if not (self._folder(links[:place]) / "bank" / INFO).is_file():
                self._taught(links[:place], what, banked=True)
        self._taught(links, what, banked=False)

    def _taught(self, links: Links, what: str, banked: bool) -> None:
        *above, (name, rung) = links
        folder = self._folder(links)
        parent = self._folder(above) if above else TEACHER
        deterministic(rung.training.seed, self.threads)  # as a stage begins, whatever was kept
        unfinished = folder / "unfinished"
        _, bank = learn(name, rung, parent, folder, self.on, unfinished, f"{what}: {name}")
        if banked:
            bank_of(folder, rung, bank, self.on)
        remove_checkpoint(unfinished)

    def _folder(self, links: Links) -> Path:
        about = {
            "links": [[name, rung.model_dump(mode="json", by_alias=True)] for name, rung in links],
            "teacher": self.teacher.sha256,
            "bank": read_json(TEACHER / "bank" / INFO),  # out-of-fold answers are not the teacher's
            "torch": torch.__version__,
            "data": self.on.fingerprint.digest,
            "rows": self.on.rows.digest,
            "views": self.on.views.model_dump(mode="json"),
            "form": self.on.form.model_dump(mode="json"),
            "threads": self.threads,
            "code": _code(),
        }
        key = digest(about)[:16]
        self.used.add(key)
        return PLANS / key


def _seeded(chain: Chain, seed: int) -> Links:
    """The chain as it is trained with one more seed. Every rung above the student hands on, which a
    loss that reads the nearest model alone does not notice: so chains share what they can."""
    *above, student = chain.items()
    links = [(name, rung.model_copy(update={"hand_on": True})) for name, rung in above]
    return [
        (name, rung.model_copy(update={"training": _reseeded(rung.training, seed)}))
        for name, rung in [*links, student]
    ]


def _reseeded(training: Training, seed: int) -> Training:
    return training.model_copy(update={"seed": training.seed + seed})


def _code() -> dict[str, str]:
    """SHA-256 of every module that may take part in a training: another code, other weights."""
    root = Path(__file__).parents[1]
    found = [p for part in ("core", "modalities", "distill") for p in (root / part).rglob("*.py")]
    return {
        p.relative_to(root).as_posix(): first_sha256(p) for p in sorted(found) if p.name not in OWN
    }


if __name__ == "__main__":
    main(run)
