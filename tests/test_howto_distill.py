"""The page on distillation: what it shows is valid, and it leaves out no loss and no key."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from flows.params import checked
from tasks.core.trainer import Training
from tasks.distill.params import Rung, available_losses
from tests.howto import blocks, merge

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "howto-distill.md").read_text()
SHOWN = [block.text for block in blocks(PAGE) if block.language == "yaml"]


@pytest.mark.parametrize("shown", SHOWN)
def test_what_the_page_shows_is_valid_in_a_params_file(shown: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    shutil.copyfile(ROOT / "presets" / "digits.yaml", path)

    merge(path, shown)

    checked(yaml.safe_load(path.read_text()), "params.yaml")


def test_the_page_leaves_out_no_loss_and_no_key() -> None:
    keys = [field.alias or name for name, field in Rung.model_fields.items()]
    known = {*available_losses(), *keys, *Training.model_fields} - {"architecture"}

    assert not {name for name in known if name not in PAGE}
