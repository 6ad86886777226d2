"""The flow refuses an outdated teacher; the clock is given."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from flows.freshness import check_teacher
from flows.state import Checkout, Servers
from tasks.core.errors import DataError, GateError
from tasks.core.files import write_json

NOW = datetime(2025, 6, 1, 12, tzinfo=UTC)


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    """A checkout with an evaluated teacher, trained here."""
    write_spec(tmp_path, None)
    report = {"model_sha256": "a" * 64, "fingerprint": "d" * 64}
    write_json(tmp_path / "reports/teacher/report.json", report)
    write_json(tmp_path / "data/fingerprint.json", {"digest": "d" * 64})
    return Checkout(tmp_path, tmp_path, Servers())


def write_spec(root: Path, created: str | None) -> None:
    write_json(root / "models/teacher/spec.json", {"sha256": "a" * 64, "created": created})


def test_a_teacher_seen_for_the_first_time_is_fresh(checkout: Checkout) -> None:
    check_teacher(checkout, 1, NOW)


def test_the_age_of_a_trained_teacher_counts_from_when_it_was_first_seen(
    checkout: Checkout,
) -> None:
    check_teacher(checkout, 10, NOW)
    check_teacher(checkout, 10, NOW + timedelta(days=10))

    with pytest.raises(GateError, match=r"11 days old, more than teach\.max_age = 10"):
        check_teacher(checkout, 10, NOW + timedelta(days=11))


@pytest.mark.parametrize("created", ["2025-05-01", "2025-05-01T12:00:00+00:00"])
def test_the_age_of_a_given_teacher_counts_from_the_date_in_its_spec(
    checkout: Checkout, created: str
) -> None:
    write_spec(checkout.root, created)

    check_teacher(checkout, 32, NOW)
    with pytest.raises(GateError, match="days old"):
        check_teacher(checkout, 30, NOW)


def test_a_teacher_from_the_future_is_refused(checkout: Checkout) -> None:
    write_spec(checkout.root, "2099-01-01")

    with pytest.raises(GateError, match=r"made in the future \(2099-01-01\)"):
        check_teacher(checkout, 30, NOW)


def test_a_date_that_is_none_is_named(checkout: Checkout) -> None:
    write_spec(checkout.root, "last spring")

    with pytest.raises(DataError, match="'last spring' is not an ISO date"):
        check_teacher(checkout, 30, NOW)


def test_a_teacher_evaluated_on_other_data_is_refused(checkout: Checkout) -> None:
    write_json(checkout.root / "data/fingerprint.json", {"digest": "e" * 64})

    with pytest.raises(GateError, match=r"evaluated on other data \(dddddddddddd\)"):
        check_teacher(checkout, 30, NOW)


def test_a_report_about_another_teacher_is_refused(checkout: Checkout) -> None:
    report = {"model_sha256": "b" * 64, "fingerprint": "d" * 64}
    write_json(checkout.root / "reports/teacher/report.json", report)

    with pytest.raises(GateError, match="not the teacher that reports/teacher judges"):
        check_teacher(checkout, 30, NOW)
