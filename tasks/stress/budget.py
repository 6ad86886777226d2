"""How much a stress run may try: rows, steps and queries come from `stress.budget` alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Name = Literal["smoke", "ci", "release"]


@dataclass(frozen=True)
class Budget:
    """Rows are of the test table, a seeded sample; all of them where there are fewer."""

    attacked: int  # rows that adversaries attack, at most
    look: int  # rows between looks at the gates of attacks; all of them: a fixed sample
    corrupted: int  # rows that are damaged
    steps: int  # of an attack by gradients, per restart
    queries: int  # of the black box, per row


BUDGETS: dict[Name, Budget] = {
    "smoke": Budget(attacked=64, look=64, corrupted=64, steps=5, queries=50),  # does it run at all?
    "ci": Budget(attacked=256, look=256, corrupted=2000, steps=30, queries=1000),
    "release": Budget(attacked=1000, look=100, corrupted=10_000, steps=100, queries=5000),
}
