"""`params.yaml` as a whole: every section checked before any work, and `--set` applied to it.

The schemas belong to the stages; this module only gathers them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from io import StringIO
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from tasks.core.errors import ParamsError
from tasks.core.params import Section, check, read
from tasks.distill.params import DistillParams
from tasks.ingest.params import DataParams
from tasks.judge.params import JudgeParams, Requirements
from tasks.quantize.params import QuantizeParams
from tasks.stress.params import StressParams
from tasks.teach.params import TeachParams
from tasks.validate.params import ValidateParams


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
    return check(Params, content, where=where)


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
