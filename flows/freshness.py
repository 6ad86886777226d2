"""The gate on the teacher's age and data: what only the flow can judge, since it has a clock.

A teacher is outdated when it is older than `teach.max_age` days, or was evaluated on other data
than today's. Its age counts from the date that its spec states, else from the moment that this
checkout first saw its weights.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from flows.state import Checkout
from tasks.core.errors import DataError, GateError
from tasks.core.files import read_json, write_json


def check_teacher(checkout: Checkout, max_age: int, now: datetime) -> None:
    """Raise `GateError` if the evaluated teacher is outdated at `now`; `max_age` is in days."""
    spec = read_json(checkout.root / "models/teacher/spec.json")
    report = read_json(checkout.root / "reports/teacher/report.json")
    today = read_json(checkout.root / "data/fingerprint.json")
    if report["model_sha256"] != spec["sha256"]:
        raise GateError("models/teacher: not the teacher that reports/teacher judges; run evaluate")
    if report["fingerprint"] != today["digest"]:
        raise GateError(
            f"models/teacher: evaluated on other data ({report['fingerprint'][:12]}) than today's "
            f"({today['digest'][:12]}); run evaluate"
        )
    age = now - _born(checkout, spec, now)
    if age < -timedelta(days=1):
        raise GateError(
            f"models/teacher: made in the future ({spec['created']}); correct 'created' in its "
            "spec.json or this machine's clock"
        )
    if age > timedelta(days=max_age):
        raise GateError(
            f"models/teacher: {age.days} days old, more than teach.max_age = {max_age}; "
            "give a newer one, take new data, or raise teach.max_age"
        )


def _born(checkout: Checkout, spec: dict[str, Any], now: datetime) -> datetime:
    """When the teacher was made, as its spec says, or first seen here."""
    if spec.get("created"):
        return date(spec["created"], "models/teacher/spec.json: created")
    path = checkout.state / "teachers.json"
    seen: dict[str, str] = read_json(path) if path.is_file() else {}
    if spec["sha256"] not in seen:
        seen[spec["sha256"]] = now.isoformat()
        write_json(path, seen)
    return date(seen[spec["sha256"]], f"{path}: {spec['sha256'][:12]}")


def date(text: str, where: str) -> datetime:
    """An ISO date that somebody wrote down; without a zone it is UTC."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise DataError(f"{where}: '{text}' is not an ISO date; write 2025-01-31") from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)
