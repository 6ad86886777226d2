"""What a rung reports: its size, its quality, and the ladder above it."""

from __future__ import annotations

from tasks.core.errors import GateError
from tasks.core.models import ModelSpec
from tasks.core.reports import MAX_STEP, Rate, RungReport
from tasks.core.statistics import wilson


def check_ratio(above: str, larger: int, name: str, parameters: int) -> None:
    """Refuse a step of more than 10:1, from the `larger` model `above`, before anything trains."""
    ratio = larger / parameters
    if ratio > MAX_STEP:
        raise GateError(
            f"distill.rungs.{name}: {larger:,} parameters ({above}) to "
            f"{parameters:,} is {ratio:.1f}:1, more than {MAX_STEP:.0f}:1 in one step; add a rung "
            "between them or widen this one"
        )


def report(spec: ModelSpec, hits: int, rows: int, above: RungReport | None) -> RungReport:
    """The report of a model that has `hits` of `rows` validation rows right."""
    low, high = wilson(hits, rows)
    accuracy = Rate(value=hits / rows, low=low, high=high)
    return RungReport(
        name=spec.name,
        learned_from=above.name if above else None,
        parameters=spec.parameters,
        flops=spec.flops,
        bytes=spec.bytes,
        val_accuracy=accuracy,
        retention=accuracy.value / above.val_accuracy.value if above else None,
        compression=above.parameters / spec.parameters if above else None,
        lineage=(*above.lineage, above.model_copy(update={"lineage": ()})) if above else (),
    )
