"""`params.yaml` at the edge: strict sections, errors that name the key and the nearest right one.

Each stage owns the schema of its section in `tasks/STAGE/params.py`; this module only reads.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator
from pydantic_core import ErrorDetails

from tasks.core.errors import ParamsError

PARAMS = Path("params.yaml")


class Section(BaseModel):
    """A typed, frozen part of `params.yaml`; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _counted(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML reads `yes` and `on` as true, and pydantic would read true as 1."""
        kinds = _kinds(cls.model_fields[str(info.field_name)].annotation)
        if kinds & {int, float} and bool not in kinds and _has_truth(value):
            raise ValueError("must be a number, not a truth value")
        return value


def _kinds(annotation: Any) -> set[Any]:
    """Every type that `annotation` is made of.

    >>> _kinds(dict[str, float] | None) == {dict, str, float, type(None)}
    True
    """
    parts = get_args(annotation)
    return {get_origin(annotation) or annotation}.union(*map(_kinds, parts)) - {UnionType, Union}


def _has_truth(value: Any) -> bool:
    """Whether a YAML value is true or false, or a list or mapping that holds such a value."""
    inside = value.values() if isinstance(value, dict) else value
    nested = isinstance(value, dict | list | tuple) and any(map(_has_truth, inside))
    return isinstance(value, bool) or nested


S = TypeVar("S", bound=BaseModel)


def read(path: Path = PARAMS) -> dict[str, Any]:
    """The whole file as plain data."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ParamsError(f"{path}: no such file; run from the root of a checkout") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ParamsError(f"{path}: line {line} is not UTF-8 text; save it as UTF-8") from None
    return parse(text, str(path))


def parse(text: str, where: str) -> dict[str, Any]:
    """YAML as plain data. Two equal keys are refused: a reader keeps the last without a word."""
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        _unique(node, where, set())
        content = loader.construct_document(node) if node else None
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        line = f" line {mark.line + 1}" if mark else ""
        why = f" ({problem})" if problem else ""
        raise ParamsError(f"{where}:{line} is not valid YAML{why}; mend or restore it") from None
    except RecursionError:
        raise ParamsError(f"{where}: nests too deep; mend or restore it") from None
    if not isinstance(content, dict):
        raise ParamsError(f"{where}: holds no sections; restore it from git")
    return content


def _unique(node: yaml.Node | None, where: str, done: set[int]) -> None:
    """Refuse two equal keys in one mapping, anywhere; a node that has two names is walked once."""
    if id(node) in done:
        return
    done.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _unique(item, where, done)
    elif isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            line, name = key.start_mark.line + 1, str(key.value)
            if name in lines:
                raise ParamsError(
                    f"{where}: line {line}: '{name}' is there already, on line {lines[name]}; "
                    "rename or remove one"
                )
            lines[name] = line
            _unique(value, where, done)


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
        found = error.errors()
        first = next((e for e in found if e["type"] == "extra_forbidden"), found[0])
        key = ".".join(str(part) for part in first["loc"])
        at = f"{where}{'.' if ': ' in where else ': '}{key}" if key else where
        raise ParamsError(f"{at}: {_said(schema, key, first)}") from None


def _said(schema: type[BaseModel], key: str, error: ErrorDetails) -> str:
    """What is wrong with `key` and what to write instead."""
    got = error.get("input")
    shown = repr(got) if len(repr(got)) <= 60 else f"{repr(got)[:60]}..."
    match error["type"]:
        case "extra_forbidden":
            return f"unknown key; {_nearest(schema, key.split('.')[-1])}"
        case "missing":
            return "is missing; add it"
        case "model_type" | "dict_type":
            return f"must be a section of keys (got {shown})"
    said = error["msg"].removeprefix("Value error, ").replace("Input should be", "must be", 1)
    quiet = isinstance(got, dict | list) or schema.model_config.get("hide_input_in_errors")
    return said if quiet else f"{said} (got {shown})"


def _nearest(schema: type[BaseModel], key: str) -> str:
    """The known key that was probably meant; with its section where only that is missing."""
    known = _keys(schema)
    near = difflib.get_close_matches(key, known, n=1)
    if not near:
        return "remove it"
    return f"did you mean '{known[key] if near[0] == key else near[0]}'?"


def _keys(schema: type[BaseModel]) -> dict[str, str]:
    """Every key that `schema` or a section nested in it knows -> its dotted place in `schema`."""
    found: dict[str, str] = {}
    for field_name, field in schema.model_fields.items():
        name = field.alias or field_name
        found.setdefault(name, name)
        for inner in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                for key, place in _keys(inner).items():
                    found.setdefault(key, f"{name}.{place}")
    return found
