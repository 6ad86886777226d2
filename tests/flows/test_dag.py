"""The graph is DVC's, and says in words why a stage is stale."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from flows.dag import read_graph
from tasks.core.errors import DataError


def test_edges_are_those_of_dvc_yaml(fresh: Any) -> None:
    written = yaml.safe_load((fresh.root / "dvc.yaml").read_text())["stages"]
    writer = {out: stage for stage, entry in written.items() for out in entry["outs"]}
    expected = {
        (writer[dep], stage)
        for stage, entry in written.items()
        for dep in entry["deps"]
        if dep in writer
    }

    graph = read_graph(fresh.root)

    assert graph.edges == expected
    assert {stage.name for stage in graph} == set(written)


def test_parents_come_first(fresh: Any) -> None:
    order = [stage.name for stage in read_graph(fresh.root)]

    assert order.index("grow") < order.index("left") < order.index("join")
    assert order.index("right") < order.index("join")


def test_a_stage_that_never_ran_says_so(fresh: Any) -> None:
    assert read_graph(fresh.root).stale["grow"] == ("never ran here",)


def test_nothing_is_stale_after_a_run(tiny: Any) -> None:
    assert read_graph(tiny.root).stale == {}


def test_names_do_not_depend_on_the_working_directory(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.change("left", value=2)
    monkeypatch.chdir(tiny.root / "out")

    assert set(read_graph(tiny.root).stale) == {"left", "join"}


def test_a_changed_parameter_is_named_and_stales_what_follows(tiny: Any) -> None:
    tiny.change("left", value=2)

    stale = read_graph(tiny.root).stale

    assert stale == {"left": ("left modified",), "join": ("follows left",)}


def test_a_changed_command_a_missing_out_and_an_edited_one_are_told_apart(tiny: Any) -> None:
    dvc = tiny.root / "dvc.yaml"
    dvc.write_text(dvc.read_text().replace("python step.py alone", "python  step.py alone"))
    tiny.out("left").unlink()
    tiny.out("join").unlink()
    tiny.out("join").write_text("edited")

    stale = read_graph(tiny.root).stale

    assert stale["alone"] == ("its command changed",)
    assert stale["left"] == ("its out/left.txt was deleted",)
    assert "out/left.txt is missing (left writes it)" in stale["join"]
    assert "its out/join.txt was changed by hand" in stale["join"]


def test_a_circle_is_one_line(tiny: Any) -> None:
    dvc = tiny.root / "dvc.yaml"
    content = yaml.safe_load(dvc.read_text())
    content["stages"]["grow"]["deps"].append("out/join.txt")
    dvc.write_text(yaml.safe_dump(content))

    with pytest.raises(DataError, match="DVC cannot read the DAG") as caught:
        read_graph(tiny.root)

    assert "\n" not in str(caught.value)


def test_outs_are_relative_to_the_root(tiny: Any) -> None:
    assert read_graph(tiny.root).stages["left"].outs == ("out/left.txt",)
