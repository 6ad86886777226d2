"""Three chains to one student at equal compute: direct, by an assistant, and densely guided.

Compute is counted, not measured: training passes and banking, in floating-point operations. What
the assistants of a chain cost, the direct student gets as more epochs. Trains nothing.
"""

from __future__ import annotations

from itertools import pairwise

from tasks.core.errors import ParamsError
from tasks.core.reports import MAX_STEP
from tasks.core.tables import Schema
from tasks.distill.params import DistillParams, Rung
from tasks.distill.propose import Chain, Ground, down_to, midway, named, operations, size

PASSES = 3  # a training step is one forward pass and a backward pass of about two
MOVES = 2  # of an adversary's search: backwards to the image alone, no weight learns
METHOD = (
    "Equal compute, counted for one training row: each rung costs 3 x its forward FLOPs x epochs "
    "(6 + 2k in place of 3 where it meets an adversary of k steps), "
    "and each assistant's bank its forward FLOPs x views. Assistant and dense chain cost the same; "
    "the direct student gets epochs for what the assistants cost, rounded down. The teacher, its "
    "bank, validation and the student's own bank are the same for all and not counted."
)


def chain_to(name: str, params: DistillParams) -> Chain:
    """The rungs that lead to rung `name`, the one below the teacher first."""
    links = [name]
    while params.rungs[links[0]].from_ != "teacher":
        links.insert(0, params.rungs[links[0]].from_)
    return {link: params.rungs[link] for link in links}


def plan(params: DistillParams, ground: Ground) -> Chain:
    """The chain to the first student that ships: as written, or under `plan: auto` as proposed for
    the student that is written."""
    name = params.ship[0]
    if params.plan is None:
        return chain_to(name, params)
    return down_to(name, params.rungs[name].architecture, ground)


def candidates(chain: Chain, ground: Ground, views: int) -> dict[str, Chain]:
    """`direct`, `assistant` and `dense` to the student of `chain`, at equal compute.

    `views`: how many of each row a bank holds. A chain without an assistant gets one halfway. All
    learn from banks, for a fixed number of epochs; a rung that cannot is a `ParamsError`.
    """
    for name, rung in chain.items():
        _comparable(name, rung)
    chain = {name: _plain(rung) for name, rung in chain.items()}
    name, student = list(chain.items())[-1]
    if len(chain) == 1:
        halfway = named(name, [midway(student.architecture, ground), student.architecture], ground)
        assistant, own = halfway.items()
        chain = dict([assistant, (name, student.model_copy(update={"from_": own[1].from_}))])
    epochs = compute(chain, ground.data, views) / compute_of_epoch(student, ground.data)
    direct = _trained_for(student, int(epochs))
    direct = direct.model_copy(update={"from_": "teacher", "flip_weight": 0.0})
    fixed = {n: _trained_for(r, r.training.epochs) for n, r in chain.items()}
    return {"direct": {name: direct}, "assistant": fixed, "dense": _dense(fixed)}


def compute(chain: Chain, data: Schema, views: int) -> int:
    """FLOPs for each training row: of all trainings, and of the banks between them."""
    trained = sum(r.training.epochs * compute_of_epoch(r, data) for r in chain.values())
    banked = sum(views * operations(r.architecture, data) for r in list(chain.values())[:-1])
    return trained + banked


def compute_of_epoch(rung: Rung, data: Schema) -> int:
    """FLOPs of one training row in one epoch."""
    return _passes(rung) * operations(rung.architecture, data)


def _passes(rung: Rung) -> int:
    """Forward passes that a step costs, an adversary's search and its find included."""
    return PASSES + (MOVES * rung.adversary.steps + PASSES if rung.adversary else 0)


def arithmetic(chain: Chain, data: Schema, views: int) -> str:
    """How `compute` comes about, in words."""
    *above, (name, student) = chain.items()
    parts = [f"{_trained(n, rung, data)} + {_banked(rung, data, views)}" for n, rung in above]
    total = compute(chain, data, views)
    return f"{' + '.join([*parts, _trained(name, student, data)])} = {total:,} FLOPs a row"


def _trained(name: str, rung: Rung, data: Schema) -> str:
    forward = operations(rung.architecture, data)
    return f"{name} {_passes(rung)} x {forward:,} x {rung.training.epochs} epochs"


def _banked(rung: Rung, data: Schema, views: int) -> str:
    return f"its bank {operations(rung.architecture, data):,} x {views} views"


def largest_step(chain: Chain, ground: Ground) -> float:
    """The largest ratio of parameters from one link to the next; `distill` refuses above 10:1."""
    sizes = [ground.teacher, *(size(rung.architecture, ground.data) for rung in chain.values())]
    return max(above / below for above, below in pairwise(sizes))


def planned(params: DistillParams, ground: Ground, views: int) -> bool:
    """Whether the written rungs are the plan's: the proposed chain, or one that was compared."""
    proposed = plan(params, ground)
    compared = candidates(proposed, ground, views).values()
    allowed = [proposed, *(c for c in compared if largest_step(c, ground) <= MAX_STEP)]
    return params.rungs in allowed


def _dense(chain: Chain) -> Chain:
    """Every rung hands on what it learned from; from the second on, each learns from all above:
    `dense` takes the place of the losses that know one model only, but for `adversarial`."""
    *above, (name, student) = chain.items()
    handing = {n: _handing(rung) for n, rung in above}
    return {n: _guided(rung) for n, rung in (handing | {name: student}).items()}


def _plain(rung: Rung) -> Rung:
    """The rung as it learns from the model above alone."""
    losses = dict(rung.losses)
    if weight := losses.pop("dense", 0.0):
        losses["kd"] = round(losses.get("kd", 0.0) + weight, 6)
    return rung.model_copy(update={"losses": losses})


def _handing(rung: Rung) -> Rung:
    return rung.model_copy(update={"hand_on": True})


def _guided(rung: Rung) -> Rung:
    if rung.from_ == "teacher":
        return rung
    own = {name: rung.losses.get(name, 0.0) for name in ("adversarial", "cross_entropy")}
    losses = {"dense": sum(rung.losses.values()) - sum(own.values())} | own
    kept = {"from_", "architecture", "training", "temperature", "hand_on", "flip_weight"}
    weighed = {name: w for name, weight in losses.items() if (w := round(weight, 6))}
    if rung.adversary and "adversarial" in weighed:
        kept.add("adversary")
    said = rung.model_dump(by_alias=True, include=kept)
    return Rung.model_validate(said | {"losses": weighed})


def _trained_for(rung: Rung, epochs: int) -> Rung:
    """The rung with so many epochs, all of them: early stopping would make compute unequal."""
    training = rung.training.model_copy(update={"epochs": max(1, epochs), "patience": None})
    return rung.model_copy(update={"training": training})


def _comparable(name: str, rung: Rung) -> None:
    """Refuse what has no counterpart in the other chains."""
    if rung.signal != "bank":
        where = f"params.yaml: distill.rungs.{name}"
        raise ParamsError(f"{where}.signal: chains are compared on banks; set signal: bank")
