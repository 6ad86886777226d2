"""Parity: each gate fails when one side answers otherwise by more than it allows, and alone."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from tasks.core.session import open_session
from tasks.core.tables import Schema, Table
from tasks.core.twin import Twin
from tasks.modalities.vision.networks import ResidualNetwork
from tasks.quantize import parity as module
from tasks.quantize.contract import shipped
from tasks.quantize.dynamic import dynamic
from tasks.quantize.parity import parity

ROWS = 2000  # so that 0.999 of them agree when one differs, and no longer when three do
TEMPERATURE = 2.0
OPENED: dict[str, dict[str, Any]] = {
    "threads": {"threads": 2}, "optimisation": {"optimise": False}, "batch": {},
}  # fmt: skip

Change = Callable[[Any, Any], Any]  # raw images and their logits to other logits


@pytest.fixture(scope="module")
def images(rows: Callable[[int, int], Table]) -> NDArray[np.uint8]:
    """Rows of which the first three are known by their first value: 255, 254 and 253."""
    images = rows(ROWS, 2).images
    images[:, 0, 0, 0] = 0
    images[:3, 0, 0, 0] = 255, 254, 253
    return images


@pytest.fixture(scope="module")
def file(floats: onnx.ModelProto, data: Schema) -> bytes:
    return shipped(floats, data, TEMPERATURE)


def nudge(by: float) -> Change:
    """The first row's logits, and no other's, change by `by`."""

    def change(images: Any, logits: Any) -> Any:
        logits[images[:, 0, 0, 0] == 255] += by
        return logits

    return change


def turn(count: int) -> Change:
    """The first `count` rows, at most three, get another answer."""

    def change(images: Any, logits: Any) -> Any:
        known = images[:, 0, 0, 0] > 255 - count
        logits[known] = logits[known][:, [1, 2, 0]]
        return logits

    return change


class Network(nn.Module):
    """`net` with other logits."""

    def __init__(self, net: nn.Module, change: Change) -> None:
        super().__init__()
        self.net, self.change = net, change

    def forward(self, images: torch.Tensor) -> Any:
        return self.change(images, self.net(images))


class Session:
    """A session with other logits, perhaps for single rows only."""

    def __init__(self, session: Any, change: Change, single: bool) -> None:
        self.session, self.change, self.single = session, change, single
        self.get_inputs = session.get_inputs
        self.get_outputs = session.get_outputs

    def run(self, names: Any, feed: dict[str, Any]) -> list[Any]:
        (images,) = feed.values()
        logits, valid = self.session.run(names, feed)
        same = self.single and len(images) > 1
        return [logits if same else self.change(images, logits), valid]


def changed(patch: pytest.MonkeyPatch, place: str, change: Change) -> None:
    """Let the twin, or the sessions of `place`, answer otherwise."""

    def opened(model: bytes, **options: Any) -> Any:
        session = open_session(model, **options)
        found = options == OPENED.get(place)
        return Session(session, change, single=place == "batch") if found else session

    patch.setattr(module, "open_session", opened)
    if place == "twin":
        patch.setattr(module, "Twin", lambda model: Network(Twin(model), change))


def failed(document: dict[str, Any]) -> set[str]:
    names = {gate["name"] for gate in document["gates"] if not gate["passed"]}
    assert document["passed"] == (not names)
    return names


@pytest.mark.parametrize(
    ("place", "change", "expected"),
    [
        ("network", nudge(0.5e-4 * TEMPERATURE), set()),
        ("network", nudge(2e-4 * TEMPERATURE), {"export"}),
        ("network", nudge(-2e-4 * TEMPERATURE), {"export"}),
        ("network", turn(1), {"export", "export_agreement"}),
        ("twin", turn(1), set()),
        ("twin", turn(3), {"twin"}),
        ("optimisation", turn(1), set()),
        ("optimisation", turn(3), {"optimisation"}),
        ("threads", nudge(0.5e-4), set()),
        ("threads", nudge(2e-4), {"threads"}),
        ("threads", nudge(math.nan), {"threads"}),
        ("batch", nudge(0.5e-4), set()),
        ("batch", nudge(2e-4), {"batch"}),
    ],
)
def test_a_gate_fails_beyond_what_it_allows_and_no_other_does(
    student: ResidualNetwork,
    file: bytes,
    images: NDArray[np.uint8],
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    change: Change,
    expected: set[str],
) -> None:
    changed(monkeypatch, place, change)
    net = Network(student, change) if place == "network" else student

    document = parity(net, TEMPERATURE, file, file, images)

    assert failed(document) == expected
    assert document["rows"] == ROWS


def test_a_network_with_one_other_weight_is_not_what_was_exported(
    student: ResidualNetwork, file: bytes, images: NDArray[np.uint8]
) -> None:
    other = copy.deepcopy(student)
    with torch.no_grad():
        other.head.bias[1] += 2e-4 * TEMPERATURE

    assert failed(parity(other, TEMPERATURE, file, file, images)) == {"export"}


def test_a_file_whose_ranges_span_the_batch_fails(
    student: ResidualNetwork, file: bytes, floats: onnx.ModelProto, data: Schema, val_rows: Table
) -> None:
    spanning = shipped(dynamic(floats), data, TEMPERATURE)

    assert "batch" in failed(parity(student, TEMPERATURE, file, spanning, val_rows.images))


@pytest.mark.parametrize("place", ["twin", "optimisation"])
def test_what_rounding_may_change_is_reported(
    student: ResidualNetwork,
    file: bytes,
    images: NDArray[np.uint8],
    monkeypatch: pytest.MonkeyPatch,
    place: str,
) -> None:
    changed(monkeypatch, place, nudge(-0.5))

    differences = parity(student, TEMPERATURE, file, file, images)["largest_difference"]

    expected = {"twin": 0.0, "optimisation": 0.0} | {place: 0.5}
    assert differences == pytest.approx(expected, abs=1e-4)
