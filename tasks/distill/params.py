"""The `distill` section: the rungs of the chain and which of them ship."""

from __future__ import annotations

import re
from difflib import get_close_matches
from pathlib import Path

from pydantic import Field, field_validator, model_validator

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


class Rung(Section):
    """One step of the chain: a network that learns from the one that `from` names."""

    from_: str = Field(alias="from")
    architecture: Architecture
    training: Training
    temperature: float = Field(default=4.0, gt=0)
    losses: dict[str, float] = Field(min_length=1)  # weights of the sum, by file in losses/

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


class DistillParams(Section):
    """`distill`. Checked as a graph: every parent exists, no circle, `ship` names rungs."""

    ship: tuple[str, ...] = Field(min_length=1)
    rungs: dict[str, Rung] = Field(min_length=1)

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
