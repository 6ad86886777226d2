"""The shipped file on another CPU: the certificate's claim, tried.

The first test rows are scored once more, by a Python on an emulated CPU, and compared with this
CPU's answers: on a Haswell, where pairs of products saturate, if this one has VNNI; if it saturates
itself, on a Nehalem, where they are added in int32 as VNNI does. It needs QEMU's user emulation and
an x86_64; where it cannot be tried it says so and decides nothing, and is never called passed.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tasks.core.cost import cpu
from tasks.core.reports import at_most
from tasks.judge.case import Case, scored
from tasks.judge.verdict import Measured, Trial

EMULATOR = "qemu-x86_64"
VNNI = {"avx512_vnni", "avx_vnni"}
CPUS = {"Haswell": "AVX2, no VNNI", "Nehalem": "no AVX2: exact sums, as with VNNI"}
SECONDS = 900  # for all rows; a student of 50 KB takes 6 for 500
ROOT = Path(__file__).parents[2]

Answers = tuple[NDArray[np.float32], NDArray[np.bool_]]


def attempt(case: Case, rows: int) -> Trial:
    """Try the shipped file on the `rows` test rows of the smallest hashes."""
    if rows == 0:
        return untried("judge.trial_rows is 0")
    index = np.argsort(case.test.rows, kind="stable")[:rows]
    other = other_cpu()
    there = emulate(case.file, case.test.images[index], other)
    if isinstance(there, str):
        return untried(there)
    logits, valid = there
    here = case.shipped.logits[index]
    predicted = scored(logits, case.test.labels[index], valid).predicted
    different = int((predicted != case.shipped.predicted[index]).sum())
    apart = float(np.abs(logits - here).max())
    largest = apart if np.isfinite(apart) else None  # the gate `valid_rows` refuses such a file
    return Trial(
        tried=True,
        cpu=other,
        rows=len(index),
        different=different,
        largest_difference=largest,
        why=(
            f"Tried on {len(index):,} test rows: an emulated {other} ({CPUS[other]}) "
            f"answers {different:,} of them otherwise than this CPU; the largest difference of a "
            f"logit is {'not finite' if largest is None else f'{largest:.2g}'}."
        ),
    )


def untried(why: str) -> Trial:
    """No trial, and the reason."""
    return Trial(tried=False, cpu=other_cpu(), rows=0, why=f"Not tried on another CPU: {why}.")


def other_cpu() -> str:
    """The CPU to emulate: one that adds pairs in the way that this one does not."""
    isa = cpu()["isa"]
    saturates = isinstance(isa, list) and "avx2" in isa and not VNNI.intersection(map(str, isa))
    return "Nehalem" if saturates else "Haswell"


def with_trial(measured: Measured, trial: Trial, decides: bool = True) -> Measured:
    """`measured` with the trial, which is a gate if there was one and it `decides`."""
    gates = measured.gates
    if trial.tried and decides:
        gates = (*gates, at_most("portability_trial", trial.different, 0, trial.why))
    return measured.model_copy(update={"portability": trial, "gates": gates})


def emulate(model: Path, images: NDArray[np.generic], other: str) -> Answers | str:
    """Logits and `valid` that the file `model` gives on the CPU `other`, or why there are none."""
    emulator = shutil.which(EMULATOR)
    if platform.machine() != "x86_64":
        return f"this CPU is {platform.machine()}, and only an x86_64 emulates another here"
    if emulator is None:
        return f"{EMULATOR} is not installed (Debian's package qemu-user)"
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        np.save(folder / "images.npy", images, allow_pickle=False)
        command = [emulator, "-cpu", other, sys.executable, "-m", "tasks.judge.emulated"]
        try:
            done = subprocess.run(
                [*command, str(model.resolve()), str(folder)],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"the emulated {other} took longer than {SECONDS} s; lower judge.trial_rows"
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if line.strip()]
            return f"the emulated {other} failed ({said[-1] if said else done.returncode})"
        logits = np.load(folder / "logits.npy", allow_pickle=False)
        return logits, np.load(folder / "valid.npy", allow_pickle=False)
