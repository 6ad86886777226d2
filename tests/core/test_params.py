from pathlib import Path

import pytest
import yaml

from tasks.core.errors import ParamsError
from tasks.core.params import read, section
from tasks.distill.params import DistillParams
from tasks.ingest.params import DataParams
from tasks.teach.params import TeachParams

ROOT = Path(__file__).parents[2]


def edited(tmp_path: Path, edit: str, value: object) -> Path:
    """params.yaml with the dotted key `edit` set to `value`."""
    content = read(ROOT / "params.yaml")
    *parents, last = edit.split(".")
    at = content
    for part in parents:
        at = at[part]
    at[last] = value
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_an_unknown_key_gets_the_nearest_known_one(tmp_path: Path) -> None:
    path = edited(tmp_path, "teach.training.epoch", 3)
    with pytest.raises(
        ParamsError, match=r"teach.training.epoch: unknown key; did you mean 'epochs'"
    ):
        section("teach", TeachParams, path)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("teach.training.epochs", "many", "valid integer"),
        ("teach.training.epochs", 0, "greater than or equal to 1"),
        ("teach.training.learning_rate", float("nan"), "finite"),
        ("teach.source", "pickle", "'train', 'safetensors', 'onnx', 'huggingface' or 'ensemble'"),
        ("teach.source", "onnx", "'path' is needed"),
    ],
)
def test_a_value_out_of_range_is_named_with_what_was_got(
    tmp_path: Path, key: str, value: object, says: str
) -> None:
    with pytest.raises(ParamsError, match=says) as caught:
        section("teach", TeachParams, edited(tmp_path, key, value))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("distill.rungs.student.from", "asistant", "name one of teacher, assistant, student"),
        ("distill.rungs.assistant.from", "student", "circle"),
        ("distill.ship", ["pupil"], "ship names 'pupil'"),
        ("distill.ship", ["student", "student"], "twice"),
        ("distill.rungs.student.losses", {"kd": 0.0}, "sum to 0"),
        ("distill.rungs.student.losses", {"kdd": 1.0}, "no loss 'kdd'; did you mean 'kd'"),
        ("distill.rungs.student.architecture.widths", [8, -4], "greater than or equal to 1"),
        ("distill.rungs.student.temperature", 0, "greater than 0"),
        ("distill.rungs.student.temperature", True, "a number, not a truth value"),
        ("distill.rungs.student.losses", {"kd": True}, "a number, not a truth value"),
        ("distill.rungs.student.architecture.widths", [True, 8], "a number, not a truth value"),
        ("distill.rungs.student.training.patience", True, "a number, not a truth value"),
    ],
)
def test_a_chain_that_cannot_be_walked_is_refused(
    tmp_path: Path, key: str, value: object, says: str
) -> None:
    with pytest.raises(ParamsError, match=says):
        section("distill", DistillParams, edited(tmp_path, key, value))


def test_shares_that_do_not_sum_to_one_are_refused(tmp_path: Path) -> None:
    path = edited(tmp_path, "data.split.train", 0.7)
    with pytest.raises(ParamsError, match="must sum to 1"):
        section("data", DataParams, path)


def test_a_missing_section_and_broken_yaml_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("name: x\n")
    with pytest.raises(ParamsError, match="section 'teach' is missing"):
        section("teach", TeachParams, path)
    path.write_text("a: [1\nb: 2")
    with pytest.raises(ParamsError, match=r"line 2 is not valid YAML"):
        read(path)
