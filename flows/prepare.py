"""The databases of a checkout, made ahead of the first run: `python -m flows.prepare`.

Part of the set-up, not needed for anything: a run makes what is missing, and takes longer then.
"""

from __future__ import annotations

from flows.server import Standby
from flows.state import adopt, find_checkout
from flows.tracking import warm


def main() -> None:
    """Create Prefect's database by starting its server once, and MLflow's beside it."""
    checkout = find_checkout()
    adopt(checkout)
    with Standby(checkout) as prefect:
        prefect.begin()
        warm(checkout)
        prefect.adopt()


if __name__ == "__main__":
    main()
