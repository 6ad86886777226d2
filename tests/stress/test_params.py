"""The `stress` section: families are files, found by name."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

import tasks.stress
from tasks.core.errors import ParamsError
from tasks.core.params import check, section
from tasks.stress.params import StressParams, family, known, read_params

ROOT = Path(tasks.stress.__file__).parents[2]
OURS = {"adversarial", "calibration", "corruptions", "edge_cases", "fidelity", "security", "slices"}


def changed(**values: object) -> dict[str, Any]:
    content = yaml.safe_load((ROOT / "params.yaml").read_text())["stress"]
    return {**content, **values}


def test_the_families_are_found_by_their_files() -> None:
    assert set(known()) >= OURS


def test_the_projects_own_section_is_right() -> None:
    params = section("stress", StressParams, ROOT / "params.yaml")
    assert set(params.families) >= OURS


def test_an_unknown_family_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(ParamsError, match=r"'corruption'.*did you mean 'corruptions'\?"):
        check(StressParams, changed(families=["corruption"]), "params.yaml: stress")


@pytest.mark.parametrize("name", ["attacks", "case", "params", "__main__", "../judge", "x-y", ""])
def test_a_module_that_is_no_family_is_refused(name: str) -> None:
    with pytest.raises(ParamsError, match="no file"):
        family(name)


def test_a_listed_family_without_its_section_is_refused() -> None:
    content = changed()
    del content["fidelity"]
    with pytest.raises(ParamsError, match=r"section 'stress\.fidelity' is missing"):
        check(StressParams, content, "params.yaml: stress")


def test_a_family_listed_twice_is_refused() -> None:
    with pytest.raises(ParamsError, match="names one twice"):
        check(StressParams, changed(families=["fidelity", "fidelity"]), "params.yaml: stress")


def test_an_unknown_option_of_a_family_is_refused_with_the_nearest_one() -> None:
    wrong = {**changed()["adversarial"], "linff": [0.1]}
    with pytest.raises(ParamsError, match=r"stress\.adversarial\.linff: .*'linf'\?"):
        check(StressParams, changed(adversarial=wrong), "params.yaml: stress")


def test_a_stray_key_of_the_section_is_refused() -> None:
    with pytest.raises(ParamsError, match=r"'fidelty'.*did you mean 'fidelity'\?"):
        check(StressParams, changed(fidelty={"agreement": 0.9}), "params.yaml: stress")


def test_a_stage_run_reads_its_own_family_only(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(
        "stress: {budget: ci, seed: 3, fidelity: {agreement: 0.5, negative_flips: 0.1}, "
        "corruptions: broken}"
    )
    found, shared, options = read_params("fidelity", path)
    assert (found.name, shared.budget, shared.seed) == ("fidelity", "ci", 3)
    assert options.model_dump() == {"agreement": 0.5, "negative_flips": 0.1}


def test_a_new_family_is_one_file_and_its_section(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = Path(tasks.stress.__file__).parent
    new = tmp_path / "stress"
    shutil.copytree(package, new, ignore=shutil.ignore_patterns("__pycache__"))
    (new / "novelty.py").write_text(
        "from tasks.core.params import Section\n"
        "class Params(Section):\n    depth: int\n"
        "def run(case, params): ...\n"
    )
    monkeypatch.setattr(tasks.stress, "__path__", [str(new)])
    monkeypatch.setattr("tasks.stress.params.FOLDER", new)
    content = changed(families=["novelty"], novelty={"depth": 2})
    assert check(StressParams, content, "params.yaml: stress").families == ("novelty",)
