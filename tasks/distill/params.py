"""The `distill` section: the rungs of the chain and which of them ship."""

from __future__ import annotations

import importlib
import re
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Literal

from pydantic import Field, field_validator, model_validator

from tasks.core.adversary import Adversary
from tasks.core.models import Architecture
from tasks.core.params import Section
from tasks.core.trainer import Training

NAME = r"^[a-z][a-z0-9_]{0,31}$"  # a folder, a stage and an MLflow tag


def available_losses() -> list[str]:
    """The names of all losses: the files of `losses/`.

    >>> {"cross_entropy", "kd"} <= set(available_losses())
    True
    """
    folder = Path(__file__).parent / "losses"
    return sorted(p.stem for p in folder.glob("*.py") if p.stem != "__init__")


def loss_file(name: str) -> ModuleType:
    """The module of one loss; a `ValueError` says why it cannot be imported."""
    try:
        return importlib.import_module(f"tasks.distill.losses.{name}")
    except Exception as error:
        raise ValueError(
            f"tasks/distill/losses/{name}.py cannot be imported ({error}); mend it"
        ) from None


def needs(name: str) -> tuple[str, ...]:
    """What a loss cannot do without.

    >>> needs("hint"), needs("kd")
    (('layers',), ())
    """
    found: tuple[str, ...] = getattr(loss_file(name), "NEEDS", ())
    return found


def reads(name: str) -> tuple[str, ...]:
    """What a loss reads, whether it needs it or not."""
    return (*needs(name), *getattr(loss_file(name), "USES", ()))


class Decoupling(Section):
    """Of the loss `dkd`: weights of the right class against all others, and of those."""

    alpha: float = Field(default=1.0, ge=0)
    beta: float = Field(default=8.0, ge=0)  # the paper's for CIFAR-100; more for a surer teacher


class Rung(Section):
    """One step of the chain: a network that learns from the one that `from` names.

    `layers` names pairs for losses that look inside: a layer of this network and the one above's
    that it is to follow. A bank has logits alone, so they need `signal: live`.
    """

    from_: str = Field(alias="from")
    architecture: Architecture
    training: Training
    temperature: float = Field(default=4.0, gt=0)
    losses: dict[str, float] = Field(min_length=1)  # weights of the sum, by file in losses/
    signal: Literal["bank", "live"] = "bank"  # remembered, or asked again for each batch
    layers: dict[str, str] = Field(default={})  # student's layer -> that of the one above
    dkd: Decoupling = Decoupling()
    adversary: Adversary | None = None
    hand_on: bool = False  # its bank carries those of the models above, for a densely guided chain
    flip_weight: float = Field(default=0.0, ge=0)  # added for rows that a rung above lost

    @field_validator("losses")
    @classmethod
    def _weighty(cls, losses: dict[str, float]) -> dict[str, float]:
        known = available_losses()
        for name in losses:
            if name not in known:
                near = get_close_matches(name, known, n=1)
                hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
                raise ValueError(f"no loss '{name}'; {hint}")
        if min(losses.values()) < 0 or sum(losses.values()) <= 0:
            raise ValueError("loss weights must not be negative, and must not sum to 0")
        return losses

    @model_validator(mode="after")
    def _equipped(self) -> Rung:
        for part in ("layers", "adversary", "dkd"):
            given = bool(getattr(self, part)) and part in self.model_fields_set
            needing = [name for name in self.losses if part in needs(name)]
            if needing and not given:
                raise ValueError(f"loss '{needing[0]}' needs '{part}', which is not there; add it")
            if given and not any(part in reads(name) for name in self.losses):
                raise ValueError(
                    f"no loss of this rung reads '{part}'; remove it, or add one that does: "
                    + ", ".join(name for name in available_losses() if part in reads(name))
                )
        if self.layers and self.signal == "bank":
            raise ValueError(
                "a bank holds logits and no layers; set signal: live, or remove 'layers'"
            )
        return self


class Budget(Section):
    """`distill.budget`: what the student that `plan: auto` proposes may cost, in one of four kinds.

    `bytes` and `flops` (of one row) are those of the float32 network; so is `latency_ms`, measured
    on this CPU, one row on one thread.
    """

    parameters: int | None = Field(default=None, ge=1)
    flops: int | None = Field(default=None, ge=1)
    bytes: int | None = Field(default=None, ge=1)
    latency_ms: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _one_kind(self) -> Budget:
        given = [kind for kind in Budget.model_fields if getattr(self, kind) is not None]
        if len(given) != 1:
            said = " and ".join(given) or "none"
            known = ", ".join(Budget.model_fields)
            raise ValueError(f"names {said}; give exactly one of {known}")
        return self

    @property
    def kind(self) -> str:
        """Which of the four.

        >>> Budget(bytes=20_000).kind, Budget(bytes=20_000).limit
        ('bytes', 20000)
        """
        return next(kind for kind in Budget.model_fields if getattr(self, kind) is not None)

    @property
    def limit(self) -> float:
        """How much of it."""
        limit: float = getattr(self, self.kind)
        return limit


class DistillParams(Section):
    """`distill`. Checked as a graph: every parent exists, no circle, `ship` names rungs.

    With `plan: auto` the rungs are those that `stillhouse plan --write` proposes for `budget`.
    """

    ship: tuple[str, ...] = Field(min_length=1)
    warm_start: str | None = Field(default=None, min_length=1)  # champion, or a folder
    plan: Literal["auto"] | None = None
    budget: Budget | None = None
    rungs: dict[str, Rung] = Field(min_length=1)

    @model_validator(mode="after")
    def _planned(self) -> DistillParams:
        if (self.plan is None) != (self.budget is None):
            raise ValueError(
                "'plan: auto' and 'budget' belong together; give both, or neither for the rungs "
                "as written"
            )
        if self.plan and len(self.ship) != 1:
            raise ValueError(
                f"'plan: auto' makes one student, and ship names {len(self.ship)}; name one"
            )
        return self

    @model_validator(mode="after")
    def _chained(self) -> DistillParams:
        for name, rung in self.rungs.items():
            if not re.fullmatch(NAME, name) or name == "teacher":
                raise ValueError(f"rung '{name}': a name has a-z, 0-9 and _, and is not 'teacher'")
            if rung.from_ != "teacher" and rung.from_ not in self.rungs:
                known = ", ".join(["teacher", *self.rungs])
                raise ValueError(
                    f"rung '{name}' learns from '{rung.from_}', which is no rung; "
                    f"name one of {known}"
                )
            if rung.flip_weight and rung.from_ == "teacher":
                raise ValueError(
                    f"rung '{name}': flip_weight is for rows that a rung above lost, and it learns "
                    "from the teacher; remove it"
                )
            guided = [loss for loss in rung.losses if "handed_on" in needs(loss)]
            if guided and (rung.from_ == "teacher" or not self.rungs[rung.from_].hand_on):
                remedy = "" if rung.from_ == "teacher" else f"set hand_on in '{rung.from_}', or "
                raise ValueError(
                    f"rung '{name}': {guided[0]} learns from all models above, and "
                    f"'{rung.from_}' hands none on; {remedy}use kd"
                )
        for name in self.rungs:
            seen, at = [name], self.rungs[name].from_
            while at != "teacher":
                if at in seen:
                    raise ValueError(
                        f"rungs {' -> '.join([*seen, at])} form a circle; let one "
                        "learn from teacher"
                    )
                seen.append(at)
                at = self.rungs[at].from_
        for name in self.ship:
            if name not in self.rungs:
                known = ", ".join(self.rungs)
                raise ValueError(f"ship names '{name}', which is no rung; name one of {known}")
            if self.ship.count(name) > 1:
                raise ValueError(f"ship names '{name}' twice; name it once")
        return self
