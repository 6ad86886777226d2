"""One plot of all gates: how much of what each allows is used, family by family."""

from __future__ import annotations

import io
from collections.abc import Iterable

from matplotlib.figure import Figure

from tasks.core.reports import Gate

NAME = "gates.png"
END = 1.6  # of the axis: whatever is worse stands at its edge
MAIN = "the student"  # gates that no stress family has


def used(gate: Gate) -> float:
    """The share of its allowance that a gate uses: above 1 it fails. Rates are told by the errors
    that they leave, so 98 % where 96 % are asked for is a half; a figure that is missing is worse
    than any.

    >>> from tasks.core.reports import at_least, at_most
    >>> used(at_most("loss", 0.01, 0.02, "")), used(at_least("accuracy", 0.98, 0.96, ""))
    (0.5, 0.5)
    >>> used(at_most("broken", 0, 0, "")), used(at_most("broken", 1, 0, ""))
    (0.0, 1.6)
    """
    if gate.value is None or gate.margin is None:
        return END
    spent, allowed = gate.value, gate.bound
    least = gate.margin == gate.value - gate.bound and gate.value != gate.bound
    if allowed == 1 or (least and allowed < 1):  # a share of what is right, not of what is wrong
        spent, allowed = 1 - gate.value, 1 - gate.bound
    share = spent / allowed if allowed > 0 else float(gate.margin < 0) * END
    return min(max(round(share, 12), 0.0), END)


def plot(gates: Iterable[Gate]) -> bytes:
    """PNG: a line per family, a mark per gate; those that fail are filled, and named."""
    families: dict[str, list[Gate]] = {}
    for gate in gates:
        family = gate.name.split(".")[1] if gate.name.startswith("stress.") else MAIN
        families.setdefault(family, []).append(gate)
    figure = Figure(figsize=(7.5, 1.1 + 0.42 * len(families)), layout="constrained")
    axes = figure.add_subplot()
    for place, members in enumerate(families.values()):
        for gate in members:
            face = "none" if gate.passed else "black"
            axes.plot(used(gate), place, marker="o", color="black", markerfacecolor=face)
        nearest = max(members, key=lambda g: (not g.passed, used(g)))
        name = nearest.name.removeprefix(f"stress.{list(families)[place]}.")
        axes.annotate(name, (used(nearest), place), xytext=(0, 6), textcoords="offset points",
                      ha="right" if used(nearest) > END / 2 else "left", fontsize=7,
                      parse_math=False)  # fmt: skip
    axes.axvline(1.0, color="0.5", linestyle="--", linewidth=1)
    axes.set_yticks(range(len(families)), list(families))
    axes.set(xlabel="share of what the gate allows that is used", xlim=(-0.05, END + 0.05),
             ylim=(len(families) - 0.5, -0.6))  # fmt: skip
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()
