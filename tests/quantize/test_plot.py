"""The pictures of the frontier agree with the choice: one star, and an x with its reason for all
that was refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.markers import MarkerStyle
from matplotlib.text import Annotation, Text

from tasks.quantize.plot import frontier_figure, frontier_png, times_figure, times_png
from tasks.quantize.search import Candidate, Goals, choose

BUDGET = 3.0
GOALS = Goals(accuracy_drop=0.02)
FLOATS = Candidate("float32", 30_000, 300, 0.97, 0, 0, 0.0, 1.0, 0.0, 1.0, 2.0)
STATIC = replace(FLOATS, scheme="static", bytes=12_000, accuracy=0.96, lost=3, bound=0.018)
DYNAMIC = replace(FLOATS, scheme="dynamic", bytes=11_000, batch_delta=0.2, bound=0.01)
POOR = replace(FLOATS, scheme="weights4", bytes=8_000, accuracy=0.9, bound=0.09)
SLOW = replace(FLOATS, scheme="weights8", bytes=10_000, accuracy=0.965, latency_ms=9.0,
               latency_ms_p95=9.5)  # fmt: skip
LARGE = replace(FLOATS, scheme="float16", bytes=20_000, accuracy=0.969)
ALL = (FLOATS, STATIC, DYNAMIC, POOR, SLOW, LARGE)


def frontier_axes(candidates: Sequence[Candidate], goals: Goals = GOALS) -> Axes:
    choice = choose(candidates, goals, BUDGET)
    return frontier_figure(candidates, choice, goals.accuracy_drop).axes[0]


def times_axes(
    candidates: Sequence[Candidate], goals: Goals = GOALS, budget: float = BUDGET
) -> Axes:
    choice = choose(candidates, goals, budget)
    return times_figure(candidates, choice, goals.accuracy_drop, budget).axes[0]


def markers(axes: Axes) -> dict[tuple[float, float], tuple[str, bool]]:
    """Place -> its marker, and whether that is filled with black."""
    outlines = {}
    for name in "*xo":
        style = MarkerStyle(name)
        outlines[name] = style.get_path().transformed(style.get_transform()).vertices
    found = {}
    for collection in axes.collections:
        assert isinstance(collection, PathCollection)
        vertices = collection.get_paths()[0].vertices
        (name,) = [n for n, outline in outlines.items() if np.array_equal(outline, vertices)]
        ((x, y),) = np.asarray(collection.get_offsets()).tolist()
        filled = name != "x" and collection.get_facecolor().tolist() == [[0, 0, 0, 1]]  # type: ignore[union-attr]
        found[x, y] = (name, filled)
    return found


def texts(axes: Axes) -> set[str]:
    return {text.get_text() for text in axes.texts}


def uprights(axes: Axes) -> dict[float, str]:
    """Where upright lines from edge to edge stand, and their style."""
    return {
        float(np.asarray(line.get_xdata())[0]): str(line.get_linestyle())
        for line in axes.lines
        if np.asarray(line.get_ydata()).tolist() == [0, 1]
    }


def test_a_star_ships_a_circle_qualifies_and_an_x_does_not() -> None:
    assert markers(frontier_axes(ALL)) == {
        (12_000, 0.96): ("*", True),
        (30_000, 0.97): ("o", False),
        (20_000, 0.969): ("o", False),
        (11_000, 0.97): ("x", False),
        (8_000, 0.9): ("x", False),
        (10_000, 0.965): ("x", False),
    }


def test_the_picture_of_times_uses_the_same_marks() -> None:
    assert markers(times_axes((STATIC, FLOATS, POOR, SLOW))) == {
        (1.0, 0.96): ("*", True),
        (1.0, 0.97): ("o", False),
        (1.0, 0.9): ("x", False),
        (9.0, 0.965): ("x", False),
    }


def test_the_star_is_alone_even_where_the_float_student_is_vetoed_itself() -> None:
    axes = frontier_axes([replace(FLOATS, latency_ms=9.0), POOR])

    assert markers(axes) == {(30_000, 0.97): ("*", True), (8_000, 0.9): ("x", False)}
    assert "float32: too slow" in texts(axes)


def test_a_label_says_why_a_candidate_does_not_qualify() -> None:
    goals = replace(GOALS, bytes=15_000)
    expected = {
        "static", "dynamic: batch", "weights4: accuracy", "weights8: too slow",
        "float16: too large", "float32: too large",
    }  # fmt: skip

    assert texts(frontier_axes(ALL, goals)) == expected | {"allowed", "bytes allowed"}


def test_labels_of_one_place_have_a_line_each() -> None:
    same = replace(FLOATS, scheme="dynamic", batch_delta=0.2)

    assert "dynamic: batch\nfloat32" in texts(frontier_axes([FLOATS, STATIC, same]))


def test_labels_do_not_cover_each_other_or_a_marker() -> None:
    near = [replace(STATIC, scheme=f"scheme{i}", bytes=12_000 + 100 * i) for i in range(6)]
    axes = frontier_axes([FLOATS, *near])
    axes.figure.draw_without_rendering()  # type: ignore[union-attr]

    boxes = [
        Text.get_window_extent(text)  # without its line
        for text in axes.texts
        if text.get_text().startswith("scheme")
    ]
    points = axes.transData.transform([(c.bytes, c.accuracy) for c in near])
    assert len(boxes) == 6
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])
        assert not any(box.contains(x, y) for x, y in points)


def test_goals_are_lines_on_the_axis_they_are_of() -> None:
    goals = replace(GOALS, bytes=15_000, latency_ms_p95=1.5, latency_margin=1.5)
    frontier, times = frontier_axes(ALL, goals), times_axes(ALL, goals)

    assert uprights(frontier) == {15_000: "--"}
    assert uprights(times) == {BUDGET: ":", 2.25: "--"}  # with its margin
    assert {"median allowed", "95th percentile allowed"} <= texts(times)


def test_goals_not_given_are_no_lines() -> None:
    assert uprights(frontier_axes(ALL)) == {}
    assert uprights(times_axes(ALL)) == {BUDGET: ":"}


def test_a_limit_far_above_all_candidates_would_squeeze_them_and_is_left_out() -> None:
    goals = Goals(0.02, bytes=60_001, latency_ms_p95=20.0)

    assert uprights(frontier_axes(ALL, goals)) == {}
    assert uprights(times_axes(ALL, goals, budget=20.0)) == {}
    assert uprights(frontier_axes(ALL, replace(goals, bytes=59_999))) == {59_999: "--"}


def test_the_order_of_candidates_does_not_change_the_labels() -> None:
    def placed(candidates: Sequence[Candidate]) -> set[tuple[str, tuple[float, float]]]:
        return {
            (text.get_text(), text.get_position())
            for text in frontier_axes(candidates).texts
            if isinstance(text, Annotation)
        }

    assert placed(ALL) == placed(ALL[::-1])


def test_the_pictures_are_the_same_every_time() -> None:
    choice = choose(ALL, GOALS, BUDGET)

    first, second = (frontier_png(ALL, choice, 0.02) for _ in range(2))
    assert first == second
    assert first.startswith(b"\x89PNG")
    assert times_png(ALL, choice, 0.02, BUDGET) == times_png(ALL, choice, 0.02, BUDGET)


def test_the_picture_of_bytes_holds_no_time() -> None:
    later = [replace(c, latency_ms=c.latency_ms + 0.1, latency_ms_p95=9.9) for c in ALL]

    drawn, again = (frontier_png(c, choose(c, GOALS, BUDGET), 0.02) for c in (ALL, later))
    assert drawn == again


def test_the_picture_of_times_moves_with_them() -> None:
    def drawn(slow: float) -> bytes:
        candidates = [FLOATS, replace(STATIC, latency_ms_p95=slow)]
        return times_png(candidates, choose(candidates, GOALS, BUDGET), 0.02, BUDGET)

    assert drawn(2.5) != drawn(2.6)
