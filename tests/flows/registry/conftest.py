"""Fixtures: a small project that has run, on a real SQLite store that is copied, not made anew."""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.state import Checkout, Servers, adopt
from tests.flows.registry.acts import up
from tests.flows.registry.project import Project, build


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with its tables and nothing in them: seconds to make, so made once."""
    state = tmp_path_factory.mktemp("store")
    before = dict(os.environ)
    adopt(Checkout(state, state, Servers()))
    from mlflow import MlflowClient

    uri = f"sqlite:///{state / 'mlflow.db'}"
    MlflowClient(uri, uri).search_experiments()
    os.environ.clear()
    os.environ.update(before)
    return state / "mlflow.db"


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project, built once."""
    root = tmp_path_factory.mktemp("template") / "trees"
    root.mkdir()
    build(root)
    return root


@pytest.fixture
def trees(tmp_path: Path, template: Path, empty_store: Path) -> Project:
    """A project of one's own, with an empty MLflow store."""
    root = tmp_path / "my trees"  # a space, as in many a home folder
    shutil.copytree(template, root)
    checkout = Checkout(root, root, Servers())
    checkout.state.mkdir()
    shutil.copyfile(empty_store, checkout.state / "mlflow.db")
    return Project(checkout)


@pytest.fixture(scope="session")
def until() -> Callable[[Callable[[], Any], float], Any]:
    """Ask again until the answer is true; an AssertionError after the deadline."""

    def wait(question: Callable[[], Any], seconds: float = 30.0) -> Any:
        deadline, pause = time.monotonic() + seconds, threading.Event()
        while time.monotonic() < deadline:
            if answer := question():
                return answer
            pause.wait(0.05)
        raise AssertionError(f"not within {seconds} s")

    return wait


@pytest.fixture
def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture
def first(trees: Project) -> Project:
    """A committed project with one candidate, version 1."""
    trees.commit()
    assert trees.run() == 1
    return trees


@pytest.fixture
def second(first: Project) -> Project:
    """Version 1 is champion; version 2 is a candidate nearly like it."""
    up(first, 1)
    first.another_student(like=0.99)
    assert first.run() == 2
    return first
