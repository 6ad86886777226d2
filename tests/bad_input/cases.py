"""All bad inputs, by the heading under which docs/errors.md shows them."""

from __future__ import annotations

from tests.bad_input.bundles import BUNDLES
from tests.bad_input.case import Case
from tests.bad_input.ensembles import ENSEMBLES
from tests.bad_input.folders import FOLDERS
from tests.bad_input.idx import IDX
from tests.bad_input.lifecycle import LIFECYCLE
from tests.bad_input.losses import LOSSES
from tests.bad_input.parameters import PARAMETERS
from tests.bad_input.plans import PLANS
from tests.bad_input.surroundings import SURROUNDINGS
from tests.bad_input.tables import TABLES
from tests.bad_input.teachers import TEACHERS

CASES: dict[str, tuple[Case, ...]] = {
    "Parameters and commands": (*PARAMETERS, *LOSSES, *PLANS),
    "Raw data": (*FOLDERS, *TABLES, *IDX),
    "A given teacher": (*TEACHERS, *ENSEMBLES),
    "Verdicts and sealed bundles": BUNDLES,
    "Promotion, schedule, disk": LIFECYCLE,
    "Around it": SURROUNDINGS,
}
