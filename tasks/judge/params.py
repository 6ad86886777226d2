"""The `judge` and `requirements` sections: what an approved student must show.

Of other stages' sections the judge reads a few keys, for its card and to know what must be there.
"""

from __future__ import annotations

from pydantic import BaseModel, Field

from tasks.core.params import Section


class JudgeParams(Section):
    """`judge`: relative gates and their statistics. Margins are shares of rows."""

    confidence: float = Field(default=0.95, gt=0.5, lt=1)  # one-sided
    margin: float = Field(gt=0, lt=1)
    macro_f1_margin: float = Field(gt=0, lt=1)
    class_margin: float = Field(gt=0, lt=1)
    bootstrap: int = Field(default=1000, ge=100)
    seed: int = Field(ge=0)
    trial_rows: int = Field(default=500, ge=0, le=10_000)  # tried on an emulated CPU; 0: none
    watts: float = Field(default=10.0, gt=0)  # of a busy core: an assumption, for energy alone


class Requirements(Section):
    """`requirements`: absolute gates."""

    teacher_accuracy: float = Field(gt=0, le=1)
    accuracy: float = Field(gt=0, le=1)
    bytes: int = Field(gt=0)
    latency_ms: float = Field(gt=0)


class Epochs(BaseModel):
    """Of a training: how often it saw each row."""

    epochs: int


class Views(BaseModel):
    """Of `teach.views`: how many of each row a bank holds."""

    count: int


class Search(BaseModel):
    """Of `adversary`: how often each adversarial image is moved."""

    steps: int


def sought(adversary: Search | None) -> int:
    """Forward passes, for each row, of a search for its worst image and of learning from that: no
    weight learns in a step of the search, whose backward pass takes about one."""
    return 2 * adversary.steps + 3 if adversary else 0


class Teaching(BaseModel):
    """Of `teach`: what making the teacher and its bank took."""

    training: Epochs
    folds: int | None = None
    adversary: Search | None = None
    views: Views

    @property
    def passes(self) -> int:
        """Forward passes of the teacher that its training took, for each row. With an adversary it
        learns from what that finds, and passes the row itself once. Each of k further networks of
        out-of-fold teaching sees all rows but a k-th: k - 1 more."""
        of_row = 1 if self.adversary else 3
        return self.training.epochs * (self.folds or 1) * (of_row + sought(self.adversary))


class Quantization(BaseModel):
    """Of `quantize`: whether a candidate was trained, and for how long."""

    schemes: tuple[str, ...]
    qat: Epochs


class Recipe(BaseModel):
    """How a rung was taught. `losses`: weights of the sum, by name."""

    training: Epochs
    temperature: float = 4.0
    losses: dict[str, float]
    signal: str = "bank"
    adversary: Search | None = None

    @property
    def passes(self) -> int:
        """Forward passes of the student that its training took, for each row."""
        adversary = self.adversary if "adversarial" in self.losses else None
        return self.training.epochs * (3 + sought(adversary))


class Distillation(BaseModel):
    """Of `distill`: what ships, and how each rung was taught."""

    ship: tuple[str, ...]
    rungs: dict[str, Recipe]


class Families(BaseModel):
    """Of `stress`: the families that must have reported."""

    families: tuple[str, ...] = Field(min_length=1)
