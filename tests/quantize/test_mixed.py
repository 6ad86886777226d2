"""Mixtures: the way of the search, what it leaves behind, and the files that come of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import onnx
import pytest

from tasks.core.errors import DataError
from tasks.core.session import open_session, score
from tasks.core.tables import Schema, Table
from tasks.quantize.calibrate import Calibrated, calibrate, calibration_rows
from tasks.quantize.contract import shipped
from tasks.quantize.mixed import (
    MIXTURES,
    STATE,
    Bounds,
    Evaluated,
    Kind,
    Low,
    Mixture,
    by_sensitivity,
    mixture,
    search,
)
from tasks.quantize.params import Calibration
from tasks.quantize.search import Goals
from tasks.quantize.sensitivity import Cost, Sensitivity, sensitivities
from tasks.quantize.static import quantized
from tasks.quantize.weight_only import weight_only

ORDER = ["a", "b", "c", "d"]


def judged(
    accurate: Callable[[Low], bool], seen: list[Low], most: int = 99, fast: bool = True
) -> Callable[[Low], Evaluated]:
    """Candidates of 10 bytes and 1, 2, 4 or 8 more for each layer that is high; `most` may be."""

    def evaluate(high: Low) -> Evaluated:
        seen.append(high)
        size = 10 + sum(2 ** ORDER.index(name) for name in high)
        return Evaluated(
            high=tuple(sorted(high)),
            bytes=size,
            accuracy=1.0,
            bound=0.0,
            latency_ms=1.0,
            accurate=accurate(high),
            settled=accurate(high) and fast,
            qualifies=accurate(high) and fast and size <= most,
        )

    return evaluate


def test_nothing_rises_if_all_layers_may_be_low(tmp_path: Path) -> None:
    seen: list[Low] = []

    assert search(ORDER, judged(lambda _: True, seen), tmp_path / STATE, "k") == (frozenset(), 1)
    assert seen == [frozenset()]


def test_layers_rise_in_order_until_it_qualifies_and_those_in_vain_fall_again(
    tmp_path: Path,
) -> None:
    seen: list[Low] = []

    high, evaluated = search(
        ORDER, judged(lambda high: {"a", "c"} <= high, seen), tmp_path / STATE, "k"
    )

    assert high == {"a", "c"}
    assert [set(s) for s in seen] == [
        set(), {"a"}, {"a", "b"}, {"a", "b", "c"}, {"a", "c"}, {"c"},
    ]  # fmt: skip
    assert evaluated == len(seen)


def test_all_rise_if_nothing_qualifies(tmp_path: Path) -> None:
    high, evaluated = search(ORDER, judged(lambda _: False, []), tmp_path / STATE, "k")

    assert (high, evaluated) == (set(ORDER), 5)


@pytest.mark.parametrize("most", [15, 11])
def test_nothing_rises_further_once_only_bytes_are_missed(most: int, tmp_path: Path) -> None:
    seen: list[Low] = []

    def accurate(high: Low) -> bool:
        return {"a", "c"} <= high

    high, _ = search(ORDER, judged(accurate, seen, most), tmp_path / STATE, "k")

    assert high == {"a", "c"}  # of 15 bytes: at 11 the smallest that is accurate
    assert [set(s) for s in seen] == [
        set(), {"a"}, {"a", "b"}, {"a", "b", "c"}, {"a", "c"}, {"c"},
    ]  # fmt: skip


def test_an_accurate_candidate_that_is_slow_is_the_smallest_of_its_kind(tmp_path: Path) -> None:
    evaluate = judged(lambda high: "b" in high, [], fast=False)

    high, evaluated = search(ORDER, evaluate, tmp_path / STATE, "k")

    assert (high, evaluated) == ({"a", "b"}, 5)


def test_a_layer_that_is_larger_low_stays_high(tmp_path: Path) -> None:
    def evaluate(high: Low) -> Evaluated:
        found = judged(lambda high: "b" in high, [])(high)
        return found.model_copy(update={"bytes": 20 - len(high)})

    assert search(ORDER, evaluate, tmp_path / STATE, "k")[0] == {"a", "b"}


@pytest.mark.parametrize("killed", range(1, 6))
def test_what_a_killed_search_evaluated_is_not_evaluated_again(killed: int, tmp_path: Path) -> None:
    whole: list[Low] = []
    evaluate = judged(lambda high: {"a", "c"} <= high, whole)
    expected = search(ORDER, evaluate, tmp_path / "whole" / STATE, "k")
    seen: list[Low] = []

    def dies(high: Low) -> Evaluated:
        if len(seen) == killed:
            raise KeyboardInterrupt
        return judged(lambda high: {"a", "c"} <= high, seen)(high)

    with pytest.raises(KeyboardInterrupt):
        search(ORDER, dies, tmp_path / STATE, "k")
    again = search(ORDER, judged(lambda high: {"a", "c"} <= high, seen), tmp_path / STATE, "k")

    assert again == expected
    assert seen == whole
    assert (tmp_path / STATE).read_bytes() == (tmp_path / "whole" / STATE).read_bytes()


def test_the_state_of_another_search_is_ignored(tmp_path: Path) -> None:
    seen: list[Low] = []
    search(ORDER, judged(lambda _: False, seen), tmp_path / STATE, "before")

    high, _ = search(ORDER, judged(lambda _: True, seen), tmp_path / STATE, "after")

    assert high == frozenset()
    assert len(seen) == 6
    assert json.loads((tmp_path / STATE).read_text())["key"] == "after"


def test_a_state_that_is_cut_off_is_named(tmp_path: Path) -> None:
    search(ORDER, judged(lambda _: True, []), tmp_path / STATE, "k")
    whole = (tmp_path / STATE).read_text()
    (tmp_path / STATE).write_text(whole[:-10])

    with pytest.raises(DataError, match=r"search\.json: truncated or changed .*; delete .*anew"):
        search(ORDER, judged(lambda _: True, []), tmp_path / STATE, "k")


def test_the_most_sensitive_per_byte_comes_first() -> None:
    def one(layer: str, weights: int, static: float, four: float) -> Sensitivity:
        costs = {"static": static, "weights8": 0.01, "weights4": four}
        return Sensitivity(layer, weights, {way: Cost(kl, 0.0) for way, kl in costs.items()})

    found = [one("large", 1000, 0.9, 0.05), one("small", 10, 0.1, 0.02), one("mid", 100, 0.2, 0.5)]

    assert by_sensitivity("mixed", found) == ["small", "mid", "large"]
    assert by_sensitivity("weights_mixed", found) == ["mid", "small", "large"]


@pytest.fixture(scope="module")
def calibrated(floats: onnx.ModelProto, train_rows: Table) -> Calibrated:
    return calibrate(
        floats,
        calibration_rows(train_rows, 64),
        Calibration(rows=64, method="percentile", percentile=90),
    )


@pytest.fixture(scope="module")
def found(
    floats: onnx.ModelProto, calibrated: Calibrated, val_rows: Table
) -> tuple[Sensitivity, ...]:
    return sensitivities(floats, calibrated, val_rows, 1.0)


Mix = Callable[..., Mixture]


@pytest.fixture(scope="module")
def mix(
    floats: onnx.ModelProto,
    calibrated: Calibrated,
    found: Sequence[Sensitivity],
    data: Schema,
    val_rows: Table,
) -> Mix:
    """`mix(scheme, drop, folder, finished)`: a real search on the small student. Labels are the
    float student's answers, so that whatever changes one is lost."""
    logits, _ = score(open_session(shipped(floats, data)), val_rows.images)
    rows = Table(val_rows.rows, logits.argmax(1), val_rows.images)

    def run(
        scheme: Kind,
        drop: float,
        folder: Path,
        finished: Callable[[onnx.ModelProto], bytes] = lambda graph: shipped(graph, data),
        budget_ms: float = 1000.0,
        most: int | None = None,
    ) -> Mixture:
        bounds = Bounds(rows, logits, Goals(drop, most), budget_ms)
        return mixture(scheme, floats, calibrated, found, bounds, finished, folder, {})

    return run


def within_reach(scheme: Kind, mix: Mix, folder: Path) -> float:
    """A bound that two or more layers must rise for, and fewer than all."""
    mix(scheme, 0.0, folder)  # none is kept to, so that every layer rises in turn
    bounds = [one["bound"] for one in json.loads((folder / STATE).read_text())["evaluated"]]
    return next(b for i, b in enumerate(bounds) if 2 <= i < 7 and b < min(bounds[:i]))


@pytest.mark.parametrize("scheme", MIXTURES)
def test_a_killed_search_of_real_files_ends_with_the_same_bytes(
    scheme: Kind, mix: Mix, data: Schema, tmp_path: Path
) -> None:
    drop, made = within_reach(scheme, mix, tmp_path / "probe"), list[bytes]()

    def counted(graph: onnx.ModelProto) -> bytes:
        made.append(shipped(graph, data))
        return made[-1]

    expected = mix(scheme, drop, tmp_path / "whole", counted)
    whole, made[:] = made[2:], []  # the first two make the key

    def dies(graph: onnx.ModelProto) -> bytes:
        if len(made) == 4:
            raise KeyboardInterrupt
        return counted(graph)

    with pytest.raises(KeyboardInterrupt):
        mix(scheme, drop, tmp_path / "killed", dies)
    before, made[:] = made[2:], []
    again = mix(scheme, drop, tmp_path / "killed", counted)

    assert len(before) == 2
    assert before + made[2:] == whole
    assert shipped(again.graph, data) == shipped(expected.graph, data)
    assert again.high == expected.high
    assert 0 < len(again.high) < 7


@pytest.mark.parametrize("scheme", MIXTURES)
def test_a_loose_bound_leaves_every_layer_low(
    scheme: Kind,
    mix: Mix,
    floats: onnx.ModelProto,
    calibrated: Calibrated,
    data: Schema,
    tmp_path: Path,
) -> None:
    low = weight_only(floats, 4) if scheme == "weights_mixed" else quantized(calibrated)

    found = mix(scheme, 1.0, tmp_path)

    assert (found.high, found.evaluated) == ((), 1)
    assert shipped(found.graph, data) == shipped(low, data)


@pytest.mark.parametrize("scheme", MIXTURES)
def test_an_impossible_bound_raises_every_layer(
    scheme: Kind, mix: Mix, floats: onnx.ModelProto, data: Schema, tmp_path: Path
) -> None:
    high = weight_only(floats, 8) if scheme == "weights_mixed" else floats

    found = mix(scheme, 0.0, tmp_path)

    assert (len(found.high), found.evaluated) == (7, 8)
    assert shipped(found.graph, data) == shipped(high, data)


@pytest.mark.parametrize("scheme", MIXTURES)
def test_a_byte_goal_out_of_reach_does_not_raise_every_layer(
    scheme: Kind, mix: Mix, tmp_path: Path
) -> None:
    drop = within_reach(scheme, mix, tmp_path / "probe")

    assert mix(scheme, 1.0, tmp_path / "loose", most=1).high == ()
    free, bound = (
        mix(scheme, drop, tmp_path / "free"),
        mix(scheme, drop, tmp_path / "bound", most=1),
    )
    assert (bound.high, bound.evaluated) == (free.high, free.evaluated)


def test_a_budget_of_time_vetoes_a_candidate(mix: Mix, tmp_path: Path) -> None:
    assert mix("weights_mixed", 1.0, tmp_path, budget_ms=1e-9).evaluated == 8


def test_a_changed_parameter_begins_anew(mix: Mix, tmp_path: Path) -> None:
    mix("weights_mixed", 0.0, tmp_path)

    assert mix("weights_mixed", 1.0, tmp_path).evaluated == 1
