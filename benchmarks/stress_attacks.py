"""The attacks on the committed Fashion-MNIST references: how fast, how strong, and beside ART.

Rows are those of the test table that the model in question has right, taken from its front; ours
and the Adversarial Robustness Toolbox meet the same rows, ball and budget, one after the other, on
one thread. Budgets are raw: the toolbox works in the model's own range.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from copy import deepcopy

import numpy as np
import torch
from art.attacks.evasion import AutoProjectedGradientDescent, SquareAttack
from art.estimators.classification import BlackBoxClassifierNeuralNetwork, PyTorchClassifier
from numpy.typing import NDArray

from benchmarks import reference
from benchmarks.fashion_data import table
from benchmarks.table import Row, row
from tasks.core.metrics import correct
from tasks.core.models import read_spec
from tasks.core.seeds import deterministic
from tasks.core.session import open_session, score
from tasks.core.tables import Schema, Table
from tasks.core.twin import Twin
from tasks.modalities.vision.scorers import load_network, network_scorer
from tasks.stress.attacks.apgd import apgd
from tasks.stress.attacks.balls import Ball, Images, around, lengths
from tasks.stress.attacks.objectives import cross_entropy, low_margin
from tasks.stress.attacks.square import square
from tasks.stress.budget import BUDGETS
from tasks.stress.ladder import judged

COMMAND = "make bench-stress"
STUDENT = reference.STANDARD / "student"
MODEL = STUDENT / reference.SHIPPED
CI = BUDGETS["ci"]
SMALL, EIGHT, TENTH = 2 / 255, 8 / 255, 0.1  # epsilons
TIMED, COMPARED = 500, 256  # rows
ART_QUERIES = 1000  # of Square beside ART's, as in ci

Answer = Callable[[NDArray[np.generic]], NDArray[np.float32]]


def run() -> list[Row]:
    """All rows of the table."""
    deterministic(0, threads=1)
    test, data = table(test=True), read_spec(STUDENT).data
    return [
        *square_time(test, data),
        *standard_student(test, data),
        *apgd_beside_art(test, data),
        *square_beside_art(test, data),
    ]


def shipped() -> Answer:
    """The committed student as it ships."""
    session = open_session(MODEL)
    return lambda images: score(session, images)[0]


def rightly(answer: Answer, test: Table, rows: int) -> Table:
    """The first `rows` rows that a model has right."""
    right = np.flatnonzero(correct(answer(test.images[: 2 * rows]), test.labels[: 2 * rows]))
    return test.take(right[:rows])


def square_time(test: Table, data: Schema) -> list[Row]:
    """Square at an epsilon so small that hardly a row leaves early."""
    answer = shipped()
    rows = rightly(answer, test, TIMED)
    began = time.perf_counter()
    _, margins, used = square(
        answer, rows.images, rows.labels, around(rows.images, SMALL, data), 1000,
        np.random.default_rng(0),
    )  # fmt: skip
    took = time.perf_counter() - began
    return [
        row(f"Square, 1,000 queries of {len(rows)} rows at 2/255, one thread", took, "s", "<= 60",
            COMMAND),
        row("Square, queries a second", used.sum() / took, "", "", COMMAND),
        row("Square at 2/255: rows broken", float((margins < 0).mean()), "", "", COMMAND),
    ]  # fmt: skip


def standard_student(test: Table, data: Schema) -> list[Row]:
    """What is left of all rows at a tenth of the range: APGD on float and twin, then Square."""
    answer = shipped()
    rows = test.take(np.arange(COMPARED))
    left = np.flatnonzero(correct(answer(rows.images), rows.labels))
    for network in (load_network(STUDENT), Twin.load(MODEL)):
        for objective in (cross_entropy(network), low_margin(network)):
            some = rows.take(left)
            bounds = around(some.images, TENTH, data)
            random = np.random.default_rng(0)
            _, margins = apgd(
                objective, some.images, some.labels, bounds, CI.steps, random, judged(answer)
            )
            left = left[margins >= 0]
            if not len(left):
                break
        if not len(left):
            break
    return [
        row(f"standard student at L-infinity 0.1, worst case: accuracy left of {COMPARED} rows",
            len(left) / COMPARED, "", "<= 0.1", COMMAND)
    ]  # fmt: skip


def toolbox(network: torch.nn.Module, data: Schema) -> PyTorchClassifier:
    """The float network as ART takes it, in raw values; it need not know gradients of weights."""
    return PyTorchClassifier(
        model=deepcopy(network).requires_grad_(False),
        loss=torch.nn.CrossEntropyLoss(),
        input_shape=data.shape,
        nb_classes=len(data.classes),
        clip_values=data.range,
        device_type="cpu",
    )


def seconds(attack: Callable[[], Images]) -> tuple[Images, float]:
    """What an attack found, and its CPU-seconds: all of this works on one thread."""
    began = time.process_time()
    found = attack()
    return found, time.process_time() - began


def apgd_beside_art(test: Table, data: Schema) -> list[Row]:
    """APGD with cross-entropy on the float student, one random start, in both norms."""
    network = load_network(STUDENT).eval()
    answer, made = network_scorer(network), []
    rows = rightly(answer, test, COMPARED)
    images, width = rows.images.astype(np.float32), data.range[1] - data.range[0]
    classifier = toolbox(network, data)
    for norm, epsilon in (("linf", SMALL), ("linf", EIGHT), ("l2", 0.3)):
        bounds = around(rows.images, epsilon, data, norm)
        ours, our_time = seconds(
            lambda bounds=bounds: apgd(
                cross_entropy(network), rows.images, rows.labels, bounds, CI.steps,
                np.random.default_rng(0),
            )[0]
        )  # fmt: skip
        np.random.seed(0)  # noqa: NPY002 - ART draws from the global state
        theirs, their_time = seconds(
            lambda norm=norm, epsilon=epsilon: AutoProjectedGradientDescent(
                classifier, norm=np.inf if norm == "linf" else 2, eps=epsilon * width,
                eps_step=2 * epsilon * width, max_iter=CI.steps, nb_random_init=1,
                batch_size=COMPARED, verbose=False,
            ).generate(images, rows.labels)
        )  # fmt: skip
        found = [broken(answer, x, rows, bounds) for x in (ours, theirs)]
        what = f"APGD, {norm} {epsilon:.2g}, {CI.steps} steps of {len(rows)} rows"
        made += beside(what, found, our_time, their_time, ">= 2")
    return made


def square_beside_art(test: Table, data: Schema) -> list[Row]:
    """Square on the same ONNX session."""
    answer, made = shipped(), []
    rows = rightly(answer, test, COMPARED)
    images, width = rows.images.astype(np.float32), data.range[1] - data.range[0]
    classifier = BlackBoxClassifierNeuralNetwork(
        answer, data.shape, len(data.classes), channels_first=True, clip_values=data.range
    )
    for norm, epsilon in (("linf", SMALL), ("linf", EIGHT), ("l2", 0.3)):
        bounds = around(rows.images, epsilon, data, norm)
        ours, our_time = seconds(
            lambda bounds=bounds: square(
                answer, rows.images, rows.labels, bounds, ART_QUERIES, np.random.default_rng(0)
            )[0]
        )
        np.random.seed(0)  # noqa: NPY002 - ART draws from the global state
        theirs, their_time = seconds(
            lambda norm=norm, epsilon=epsilon: SquareAttack(
                classifier, norm=np.inf if norm == "linf" else 2, eps=epsilon * width,
                max_iter=ART_QUERIES, nb_restarts=1, batch_size=COMPARED, verbose=False,
            ).generate(images, rows.labels)
        )  # fmt: skip
        found = [broken(answer, x, rows, bounds) for x in (ours, theirs)]
        what = f"Square, {norm} {epsilon:.2g}, {ART_QUERIES} queries of {len(rows)} rows"
        made += beside(what, found, our_time, their_time, ">= 4")
    return made


def broken(answer: Answer, images: Images, rows: Table, bounds: Ball) -> int:
    """Rows that are wrong, finite and, but for rounding, in the ball: ART's Square divides by zero
    in L2 and hands out NaN."""
    moved = images.astype(np.float64) - bounds.centre
    far = lengths(moved) if bounds.norm == "l2" else np.abs(moved).max((1, 2, 3), keepdims=True)
    sound = (far <= 1.0001 * bounds.radius).all((1, 2, 3))
    return int((sound & ~correct(answer(images), rows.labels)).sum())


def beside(what: str, found: list[int], ours: float, theirs: float, bar: str) -> list[Row]:
    """Rows found above ART's, and ART's time over ours."""
    return [
        row(f"{what}: rows found above ART's {found[1]}", found[0] - found[1], "", ">= 0", COMMAND),
        row(f"{what}: ART's {theirs:.2g} s over ours", theirs / ours, "x", bar, COMMAND),
    ]
