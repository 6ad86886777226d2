"""Proposed rungs: a student that uses its budget, and assistants where 10:1 is not enough.

Networks have the proportions of the teacher's: its widths, all thinned alike, with as many of its
stages and blocks as the size allows, since deep and thin beats shallow and wide at equal size
(FitNets, Romero et al., 2015). Equal input, equal proposal; only a budget of `latency_ms` is
measured, on this CPU, and it may refuse a network but never rank two. Trains and writes nothing.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch

from tasks.core.cost import latency_ms
from tasks.core.errors import ParamsError
from tasks.core.models import Architecture, Normalisation, parameters
from tasks.core.reports import MAX_STEP
from tasks.core.tables import Schema
from tasks.core.trainer import Training
from tasks.distill.params import Budget, DistillParams, Rung, needs
from tasks.modalities.vision.networks import build, flops, folded

Chain = dict[str, Rung]  # rungs by name, the one below the teacher first

THINNEST = 4  # channels; below it a layer is a bottleneck, not a layer
FINER = 1.02  # between two widths on a ladder: 4 % in parameters
ALIKE = 0.8  # of the parameters (a tenth of the widths): the deeper of two so near is taken
MARGIN = 1.1  # a measured median wanders; above the budget by less is no veto
PATIENT = 2  # epochs of a rung over the teacher's (Beyer et al., 2022: a patient student)
TEMPERATURE, LOSSES = 4.0, {"kd": 0.9, "cross_entropy": 0.1}  # of a rung that has no model


@dataclass(frozen=True)
class Ground:
    """What a proposal stands on. `teacher`: its parameters; `own`: the architecture whose
    proportions are used and `teaching` how that is trained; `like`: a rung for temperature and
    losses; `data`: the shape of the input and the classes."""

    teacher: int
    own: Architecture
    teaching: Training
    data: Schema
    like: Rung | None = None


def ground(
    params: DistillParams, teacher: int, own: Architecture, teaching: Training, data: Schema
) -> Ground:
    """The ground of a run's proposal: temperature and losses are those of the first rung below the
    teacher that is written, if a proposed rung can have them."""
    written = [rung for rung in params.rungs.values() if rung.from_ == "teacher"]
    like = written[0] if written else None
    if like is not None and any(set(needs(loss)) - {"labels"} for loss in like.losses):
        like = None
    return Ground(teacher, own, teaching, data, like)


def propose(name: str, budget: Budget, ground: Ground) -> Chain:
    """The chain down to student `name`: `student`, and as few assistants as
    steps of at most 10:1 allow. A `ParamsError` names the nearest figure within reach."""
    return down_to(name, student(budget, ground), ground)


def student(budget: Budget, ground: Ground) -> Architecture:
    """Of the networks within `budget` and below the teacher, the deepest of those that have nearly
    (`ALIKE`) as many parameters as the largest."""
    figure = _figure(budget.kind, ground.data)
    limit = budget.limit * (MARGIN if budget.kind == "latency_ms" else 1.0)
    ladders = [ladder for shape in _shapes(ground.own) if (ladder := _ladder(shape, ground))]
    tops = [bisect_right(ladder, limit, key=figure) for ladder in ladders]
    fit = [ladder[top - 1] for ladder, top in zip(ladders, tops, strict=True) if top]
    shown = f"params.yaml: distill.budget.{budget.kind}: {budget.limit:,.12g}"
    if not ladders:
        raise ParamsError(
            f"{shown} cannot be met below a teacher of {ground.teacher:,} parameters: no network "
            "of teach.architecture's proportions is smaller; write distill.rungs and plan: null"
        )
    if not fit:
        least = min(figure(ladder[0]) for ladder in ladders)
        raise ParamsError(
            f"{shown} is less than the smallest network of teach.architecture's proportions needs; "
            f"ask for at least {math.ceil(100 * least) / 100:,.12g}"
        )
    most = max(figure(ladder[-1]) for ladder in ladders)
    if limit > most:
        raise ParamsError(
            f"{shown} is more than any network below the teacher ({ground.teacher:,} parameters) "
            f"needs; ask for at most {math.floor(100 * most) / 100:,.12g}"
        )
    largest = max(size(network, ground.data) for network in fit)
    alike = [n for n in fit if size(n, ground.data) >= ALIKE * largest]
    return max(alike, key=lambda n: (_depth(n), size(n, ground.data)))


def down_to(name: str, architecture: Architecture, ground: Ground) -> Chain:
    """The chain from the teacher to a student of this architecture, in about equal steps."""
    ratio = ground.teacher / size(architecture, ground.data)
    steps = max(1, math.ceil(math.log(ratio) / math.log(MAX_STEP) - 1e-9))
    networks = [*_between(steps, architecture, ground), architecture]
    while max(_steps(networks, ground)) > MAX_STEP:  # a size between two widths: one more step
        steps += 1
        networks = [*_between(steps, architecture, ground), architecture]
    return named(name, networks, ground)


def named(name: str, networks: Sequence[Architecture], ground: Ground) -> Chain:
    """Rungs of these networks, largest first; the last is student `name`."""
    count = len(networks) - 1
    above = ["assistant"] if count == 1 else [f"assistant_{i + 1}" for i in range(count)]
    if name in above:
        raise ParamsError(
            f"params.yaml: distill.ship: '{name}' is what a proposed assistant is called; "
            "rename the student"
        )
    names = ["teacher", *above, name]
    return {
        own: rung(network, parent, ground)
        for (parent, own), network in zip(pairwise(names), networks, strict=True)
    }


def rung(network: Architecture, parent: str, ground: Ground) -> Rung:
    """How a proposed network is trained: as the teacher is, except for three figures.

    Twice the epochs: soft labels reward patience. The learning rate grows with 1 / width, as
    Adam's does (Yang et al., 2022), so with the root of the ratio of parameters; the weight decay
    falls alike, since AdamW decays by their product.
    """
    grows = math.sqrt(size(ground.own, ground.data) / size(network, ground.data))
    training = ground.teaching.model_copy(
        update={
            "epochs": PATIENT * ground.teaching.epochs,
            "learning_rate": float(f"{ground.teaching.learning_rate * grows:.2g}"),
            "weight_decay": float(f"{ground.teaching.weight_decay / grows:.2g}"),
        }
    )
    asked: dict[str, Any] = {
        "from": parent,
        "architecture": network,
        "training": training,
        "temperature": ground.like.temperature if ground.like else TEMPERATURE,
        "losses": ground.like.losses if ground.like else LOSSES,
    }
    if "dkd" in asked["losses"] and ground.like:
        asked["dkd"] = ground.like.dkd
    return Rung.model_validate(asked)


def written(chain: Chain) -> dict[str, Any]:
    """The rungs as they stand in `params.yaml`: what is as the schema has it is left out."""
    return {
        name: rung.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        for name, rung in chain.items()
    }


def midway(architecture: Architecture, ground: Ground) -> Architecture:
    """The network halfway between teacher and student, by the ratio of parameters."""
    return _between(2, architecture, ground)[0]


@lru_cache(maxsize=4096)
def size(network: Architecture, data: Schema) -> int:
    """Parameters of a network, counted on one without weights."""
    with torch.device("meta"):
        return parameters(build(network, data, Normalisation(mean=0.0, std=1.0)).state_dict())


@lru_cache(maxsize=4096)
def operations(network: Architecture, data: Schema) -> int:
    """Floating-point operations of one row, counted on a network without weights."""
    with torch.device("meta"):
        return flops(build(network, data, Normalisation(mean=0.0, std=1.0)), data)


def _figure(kind: str, data: Schema) -> Callable[[Architecture], float]:
    """What a budget of this kind limits; each grows with the widths."""
    return {
        "parameters": lambda network: size(network, data),
        "bytes": lambda network: 4 * size(network, data),
        "flops": lambda network: operations(network, data),
        "latency_ms": lambda network: _latency(network, data),
    }[kind]


@lru_cache(maxsize=1024)
def _latency(network: Architecture, data: Schema) -> float:
    """Median time (ms) of one row on one thread, BatchNorm folded; what ships is faster."""
    net = folded(build(network, data, Normalisation(mean=0.0, std=1.0)).eval())
    row, threads = torch.zeros(1, *data.shape), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            return latency_ms(lambda: net(row), runs=50, warm_up=10)["p50"]
    finally:
        torch.set_num_threads(threads)


def _shapes(own: Architecture) -> Iterator[Architecture]:
    """The proportions of `own` with fewer stages, fewer blocks, and with a stem of stride 2."""
    for stages in range(1, len(own.widths) + 1):
        for blocks in range(1, own.blocks + 1):
            for stride in sorted({own.stride, 2}):
                update = {"widths": own.widths[:stages], "blocks": blocks, "stride": stride}
                yield own.model_copy(
                    update=update | {"strides": own.strides and own.strides[:stages]}
                )


def _ladder(shape: Architecture, ground: Ground) -> list[Architecture]:
    """Networks of the proportions of `shape` that are smaller than the teacher, thin to wide."""
    widest, thinnest = max(shape.widths), min(shape.widths)
    found, width = [], math.ceil(THINNEST * widest / thinnest)
    while width <= 4096:
        widths = tuple(max(THINNEST, round(w * width / widest)) for w in shape.widths)
        found.append(shape.model_copy(update={"widths": widths}))
        width = max(width + 1, round(width * FINER))
    return found[: bisect_right(found, ground.teacher - 1, key=lambda n: size(n, ground.data))]


def _between(steps: int, architecture: Architecture, ground: Ground) -> list[Architecture]:
    """Networks at equal ratios between teacher and student, largest first."""
    ratio = size(architecture, ground.data) / ground.teacher
    return [_nearest(ground.teacher * ratio ** (i / steps), ground) for i in range(1, steps)]


def _nearest(target: float, ground: Ground) -> Architecture:
    """The deepest network whose parameters are near `target`, else the nearest one."""

    def away(network: Architecture) -> float:
        return abs(math.log(size(network, ground.data) / target))

    near = []
    for shape in _shapes(ground.own):
        ladder = _ladder(shape, ground)
        place = bisect_right(ladder, target, key=lambda n: size(n, ground.data))
        near += ladder[max(0, place - 1) : place + 1]
    if not near:
        raise ParamsError(
            f"params.yaml: teach.architecture: no network of its proportions is smaller than a "
            f"teacher of {ground.teacher:,} parameters; write distill.rungs and plan: null"
        )
    alike = [network for network in near if away(network) <= -math.log(ALIKE)]
    return max(alike, key=lambda n: (_depth(n), -away(n))) if alike else min(near, key=away)


def _steps(networks: Sequence[Architecture], ground: Ground) -> list[float]:
    """Parameters of each link over the next one's, from the teacher down."""
    sizes = [ground.teacher, *(size(network, ground.data) for network in networks)]
    return [above / below for above, below in pairwise(sizes)]


def _depth(network: Architecture) -> tuple[int, int, int]:
    """Stages, then blocks, then a stem that sees every pixel."""
    return len(network.widths), network.blocks, -network.stride
