"""`models/RUNG/above/`: the float rungs between a rung and its teacher, handed on with it.

So whoever compares a student with its teacher sees every step between them, in one folder. The
teacher itself is not copied: it lies in `models/teacher`, whatever its kind.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from tasks.core.errors import DataError
from tasks.core.files import write_bytes
from tasks.core.models import WEIGHTS, ModelSpec, read_spec

ABOVE = "above"
TEACHER = "teacher"


def hand_on(above: Path, folder: Path) -> None:
    """Copy the rung in `above`, and those that it was handed itself, to `folder/above/NAME/`."""
    shutil.rmtree(folder / ABOVE, ignore_errors=True)
    spec = read_spec(above)
    if spec.name == TEACHER:
        return
    handed = above / ABOVE
    for source in (above, *(handed.iterdir() if handed.is_dir() else ())):
        name = spec.name if source == above else source.name
        for file in ("spec.json", WEIGHTS):
            write_bytes(folder / ABOVE / name / file, (source / file).read_bytes())


def read_lineage(folder: Path, student: ModelSpec, teacher: ModelSpec) -> dict[str, ModelSpec]:
    """Name -> spec of the rungs in `folder/above/`, from the one below `teacher` to the one above
    `student`. A `DataError` if one is missing, or is another than the rung below it learned from.

    A student that does not say what it learned from has no lineage.
    """
    found: dict[str, ModelSpec] = {}
    spec = student
    while (origin := spec.learned_from) is not None:
        place = folder / ABOVE / origin.name
        above = teacher if origin.name == TEACHER else read_spec(place)
        if above.sha256 != origin.sha256 or origin.name in found:
            where = f"models/{TEACHER}" if above is teacher else place
            raise DataError(f"{where}: is not what '{spec.name}' learned from; run distill")
        if above is teacher:
            break
        found[origin.name] = spec = above
    return dict(reversed(found.items()))
