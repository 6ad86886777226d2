"""The command line, begun often; and an option that writes docs/errors.md anew."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bad_input.nursery import Nursery, nursery

STRAY = ("PREFECT_", "MLFLOW_", "STILLHOUSE_")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-errors", action="store_true", help="write docs/errors.md anew")


@pytest.fixture(scope="session")
def stillhouse(pipeline: Path) -> Iterator[Nursery]:
    """`stillhouse` as the checkout in which everything has run has it."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(STRAY)}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    with nursery(pipeline, environment) as ready:
        yield ready
