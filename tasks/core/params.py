"""`params.yaml` at the edge: strict sections, errors that name the key and the nearest right one.

Each stage owns the schema of its section in `tasks/STAGE/params.py`; this module only reads.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from tasks.core.errors import ParamsError

PARAMS = Path("params.yaml")


class Section(BaseModel):
    """A typed, frozen part of `params.yaml`; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


S = TypeVar("S", bound=BaseModel)


def read(path: Path = PARAMS) -> dict[str, Any]:
    """The whole file as plain data."""
    try:
        content = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ParamsError(f"{path}: no such file; run from the root of a checkout") from None
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f" line {where.line + 1}" if where else ""
        raise ParamsError(f"{path}:{line} is not valid YAML; mend or restore it") from None
    if not isinstance(content, dict):
        raise ParamsError(f"{path}: holds no sections; restore it from git")
    return content


def section(name: str, schema: type[S], path: Path = PARAMS) -> S:
    """One section of `path`, checked against `schema`. A dotted `name` walks into it."""
    content: Any = read(path)
    walked: list[str] = []
    for part in name.split("."):
        walked.append(part)
        if not isinstance(content, dict) or part not in content:
            raise ParamsError(f"{path}: section '{'.'.join(walked)}' is missing; add it")
        content = content[part]
    return check(schema, content, where=f"{path}: {name}")


def check(schema: type[S], content: Any, where: str) -> S:
    """`content` as `schema`, or a one-line `ParamsError` that says where and what to write."""
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        at = f"{where}.{key}" if key else where
        if first["type"] == "extra_forbidden":
            near = difflib.get_close_matches(key.split(".")[-1], _keys(schema), n=1)
            hint = f"did you mean '{near[0]}'?" if near else "remove it"
            raise ParamsError(f"{at}: unknown key; {hint}") from None
        got = first.get("input")
        shown = "" if isinstance(got, dict | list) else f" (got {got!r})"
        raise ParamsError(f"{at}: {first['msg']}{shown}") from None


def _keys(schema: type[BaseModel]) -> list[str]:
    """Every key that `schema` or a section nested in it knows."""
    found: list[str] = []
    for name, field in schema.model_fields.items():
        found.append(field.alias or name)
        for inner in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                found.extend(_keys(inner))
    return found
