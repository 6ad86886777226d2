"""Every preset is a whole params file: valid, with each key that a stage names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.params import checked

ROOT = Path(__file__).parents[1]
PRESETS = sorted((ROOT / "presets").glob("*.yaml"))


def named(stage: dict[str, Any]) -> Iterator[str]:
    """The parameters of a stage, but for those of one rung or family."""
    for name in stage.get("do", stage).get("params", []):
        yield re.sub(r"\.\$\{[^}]+\}$", "", name)


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_is_valid_as_a_whole(path: Path) -> None:
    checked(yaml.safe_load(path.read_text()), path.name)


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_has_every_key_that_a_stage_names(path: Path) -> None:
    content = yaml.safe_load(path.read_text())
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]

    for name in {name for stage in stages.values() for name in named(stage)}:
        at = content
        for key in name.split("."):
            assert key in at, f"{path.name} lacks {name}, without which DVC runs no stage"
            at = at[key]


def test_the_presets_are_the_reference_workloads_and_the_users_own_images() -> None:
    assert sorted(path.stem for path in PRESETS) == [
        "digits", "fashion-mnist", "fashion-mnist-robust", "images",
    ]  # fmt: skip
