"""All bad inputs, by the heading under which docs/errors.md shows them."""

from __future__ import annotations

from tests.bad_input.bundles import BUNDLES
from tests.bad_input.case import Case
from tests.bad_input.folders import FOLDERS
from tests.bad_input.lifecycle import LIFECYCLE
from tests.bad_input.parameters import PARAMETERS
from tests.bad_input.surroundings import SURROUNDINGS
from tests.bad_input.tables import TABLES
from tests.bad_input.teachers import TEACHERS

CASES: dict[str, tuple[Case, ...]] = {
    "Parameters and commands": PARAMETERS,
    "Raw data": (*FOLDERS, *TABLES),
    "A given teacher": TEACHERS,
    "Verdicts and sealed bundles": BUNDLES,
    "Promotion, schedule, disk": LIFECYCLE,
    "Around it": SURROUNDINGS,
}
