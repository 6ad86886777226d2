"""`params.yaml` as a whole: every section checked before any work, and `--set` applied to it.

The schemas belong to the stages; this module only gathers them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from io import StringIO
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import Field, field_validator

from tasks.core.errors import ParamsError
from tasks.core.layers import Shapes, check_layers, layer_shapes
from tasks.core.models import Architecture, Normalisation
from tasks.core.params import Section, check, read
from tasks.core.tables import Schema
from tasks.distill.losses import Weighted
from tasks.distill.params import DistillParams
from tasks.ingest.params import DataParams
from tasks.judge.params import JudgeParams, Requirements
from tasks.modalities.vision.networks import ResidualNetwork, build
from tasks.quantize.params import QuantizeParams
from tasks.stress.params import StressParams
from tasks.teach.params import TeachParams
from tasks.validate.params import ValidateParams

OPEN = ("train", "safetensors")  # teachers whose layers can be read; any other is a black box
SHAPE = (1, 8, 8)  # of an image; which layers there are and which are maps is the same for any


class Params(Section):
    """All of `params.yaml`."""

    name: str  # part of a registered model's name
    threads: int = Field(ge=1, le=256)
    data: DataParams
    validate_: ValidateParams = Field(alias="validate")
    teach: TeachParams
    distill: DistillParams
    quantize: QuantizeParams
    stress: StressParams
    judge: JudgeParams
    requirements: Requirements

    @field_validator("name")
    @classmethod
    def _word(cls, name: str) -> str:
        if not re.fullmatch(r"[a-z][a-z0-9_-]{0,63}", name):
            raise ValueError("must be a word of a-z, 0-9, _ and -, of 64 letters at most")
        return name


def check_params(root: Path) -> Params:
    """Every section of `root/params.yaml`; errors name the key and the nearest right one."""
    return checked(read(root / "params.yaml"), "params.yaml")


def checked(content: Any, where: str) -> Params:
    """`content` as `Params`; section by section, so that an error begins with its section."""
    for name, field in Params.model_fields.items():
        section, schema = field.alias or name, field.annotation
        if isinstance(schema, type) and issubclass(schema, Section) and section in content:
            check(schema, content[section], where=f"{where}: {section}")
    params = check(Params, content, where=where)
    check_signals(params, where)
    return params


def check_signals(params: Params, where: str) -> None:
    """Refuse a rung that asks more of the model above than it can show, before anything trains."""
    for name, rung in params.distill.rungs.items():
        of_teacher, at = rung.from_ == "teacher", f"{where}: distill.rungs.{name}"
        if of_teacher and rung.signal == "live" and params.teach.folds:
            raise ParamsError(
                f"{at}.signal: a live teacher has seen every training row, and teach.folds asks "
                "for labels out of fold; set signal: bank, or folds: null"
            )
        if not rung.layers:
            continue
        if of_teacher and params.teach.source not in OPEN:
            raise ParamsError(
                f"{at}.layers: a teacher of source {params.teach.source} is a black box and shows "
                f"no layers; use losses that read logits, or source {' or '.join(OPEN)}"
            )
        own = _hollow(rung.architecture)
        check_layers(own, rung.layers, f"{at}.layers: {name}")
        if of_teacher and params.teach.source == "safetensors":
            continue  # its architecture is in its folder: the stage looks
        above = params.teach if of_teacher else params.distill.rungs[rung.from_]
        theirs, hollow = tuple(rung.layers.values()), _hollow(above.architecture)
        check_layers(hollow, theirs, f"{at}.layers: {rung.from_}")
        with torch.device("meta"):
            read = (layer_shapes(own, rung.layers, SHAPE), layer_shapes(hollow, theirs, SHAPE))
            try:
                Weighted(rung, Shapes((0, 1), *read))
            except ParamsError as error:
                raise ParamsError(f"{at}.{error}") from None


def _hollow(architecture: Architecture) -> ResidualNetwork:
    """A network without weights: its layers have the names that they have for any data."""
    data = Schema(modality="vision", shape=SHAPE, dtype="uint8", range=(0, 1), classes=("a",))
    with torch.device("meta"):
        return build(architecture, data, Normalisation(mean=0, std=1))


def assigned(text: str, assignments: Iterable[str]) -> str:
    """`text` (YAML) with each `section.key=value` applied; comments stay.

    Values are YAML. Raises `ParamsError` for an assignment without `=`, a value that is not YAML,
    or a path through something that has no keys. An unknown key is left for `checked` to refuse.

    >>> print(assigned("teach:\\n  seed: 0  # fixed\\n", ["teach.seed=3"]), end="")
    teach:
      seed: 3  # fixed
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    yaml = YAML()
    yaml.width = 4096
    yaml.preserve_quotes = True
    content = yaml.load(text)
    for assignment in assignments:
        path, equals, value = assignment.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(keys):
            raise ParamsError(f"--set {assignment}: write section.key=value")
        try:
            parsed = YAML(typ="safe").load(value)
        except YAMLError:
            raise ParamsError(
                f"--set {assignment}: '{value}' is not a YAML value; quote it"
            ) from None
        at = content
        for key in keys[:-1]:
            at = at.setdefault(key, {})
            if not isinstance(at, dict):
                raise ParamsError(
                    f"--set {assignment}: '{key}' is a value and has no keys; write "
                    f"--set {'.'.join(keys[: keys.index(key) + 1])}=value"
                )
        if not isinstance(at.get(keys[-1]), dict) or isinstance(parsed, dict):
            at[keys[-1]] = parsed
        else:
            raise ParamsError(
                f"--set {assignment}: '{path}' is a section; name one of its keys: "
                + ", ".join(map(str, at[keys[-1]]))
            )
    written = StringIO()
    yaml.dump(content, written)
    return written.getvalue()


def with_rungs(text: str, rungs: Mapping[str, Any]) -> str:
    """`text` (a `params.yaml`) with `distill.rungs` replaced; all around them stays as it is.

    >>> text = "distill:\\n  rungs:  # mine\\n    a: {from: b}  # old\\n\\n# next\\njudge: 1\\n"
    >>> rungs = {"student": {"from": "teacher", "losses": {"kd": 1.0}}}
    >>> print(with_rungs(text, rungs), end="")
    distill:
      rungs:  # mine
        student:
          from: teacher
          losses: {kd: 1.0}
    <BLANKLINE>
    # next
    judge: 1
    """
    key, value = _pair(_pair(yaml.compose(text), "distill")[1], "rungs")
    if value.flow_style:
        return text[: value.start_mark.index] + _flow(rungs) + text[value.end_mark.index :]
    block, indent = [], " " * (key.start_mark.column + 2)
    for name, rung in rungs.items():
        block.append(f"{indent}{name}:\n")
        block += [f"{indent}  {part}: {_flow(content)}\n" for part, content in rung.items()]
    lines = text.splitlines(keepends=True)
    end = _last(value).end_mark.line + 1
    return "".join([*lines[: key.start_mark.line + 1], *block, *lines[end:]])


def _pair(mapping: Any, name: str) -> tuple[yaml.Node, Any]:
    """Key and value of `name`; the file was checked, so it is there."""
    return next((key, value) for key, value in mapping.value if key.value == name)


def _last(node: Any) -> yaml.Node:
    """What ends last of a block mapping: where comments begin that belong to what follows."""
    while isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        node = node.value[-1][1] if isinstance(node, yaml.MappingNode) else node.value[-1]
    found: yaml.Node = node
    return found


def _flow(value: Any) -> str:
    """A value as YAML on one line."""
    said = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6)
    return said.removesuffix("...\n").strip()
