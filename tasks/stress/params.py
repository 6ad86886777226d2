"""The `stress` section: what all families share, and one sub-section per family.

A family is a module `tasks/stress/FAMILY.py` that holds `Params`, the schema of its sub-section,
and `run(case, params)`. So a new family is one new file and its sub-section; nothing lists them.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field, model_validator

from tasks.core.errors import ParamsError
from tasks.core.params import PARAMS, Section, check, section
from tasks.stress.budget import Name

PACKAGE, FOLDER = "tasks.stress", Path(__file__).parent


@dataclass(frozen=True)
class Family:
    """A family by name: the schema of its options and what it runs."""

    name: str
    params: type[Section]
    run: Callable[[Any, Any], Any]  # (Case, its Params) -> Outcome


def known() -> list[str]:
    """The names of all families: public modules beside this one with `Params` and `run`."""
    names = (module.name for module in pkgutil.iter_modules([str(FOLDER)]))
    return [name for name in names if not name.startswith("_") and _module(name) is not None]


def family(name: str) -> Family:
    """The family called `name`; a `ParamsError` names the nearest one that exists."""
    found = _module(name) if name.isidentifier() and not name.startswith("_") else None
    if found is None:
        families = known()
        near = difflib.get_close_matches(name, families, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(families)}"
        raise ParamsError(
            f"{PARAMS}: stress family '{name}': no file tasks/stress/{name}.py; {hint}"
        )
    return Family(name, found.Params, found.run)


def _module(name: str) -> Any | None:
    """The module of a family, or None if there is none of that name."""
    if not (FOLDER / f"{name}.py").is_file():
        return None
    module = importlib.import_module(f"{PACKAGE}.{name}")
    return module if hasattr(module, "Params") and hasattr(module, "run") else None


class Shared(Section):
    """What every family reads; sub-sections are left to their families."""

    model_config = ConfigDict(extra="ignore")

    budget: Name  # how much is tried: tasks/stress/budget.py
    seed: int = Field(ge=0)


class StressParams(Shared):
    """All of `stress`, checked as one: each listed family exists and its options are right."""

    model_config = ConfigDict(extra="allow")

    families: tuple[str, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _families(self) -> StressParams:
        if len(set(self.families)) != len(self.families):
            raise ValueError("families names one twice")
        sections = self.model_extra or {}
        for name in dict.fromkeys((*self.families, *sections)):
            found = family(name)
            if name not in sections:
                raise ParamsError(f"{PARAMS}: section 'stress.{name}' is missing; add it")
            check(found.params, sections[name], where=f"{PARAMS}: stress.{name}")
        return self


def read_params(name: str, path: Path = PARAMS) -> tuple[Family, Shared, Section]:
    """A family, what it shares with the others and its own options, and nothing else of `path`."""
    found = family(name)
    return found, section("stress", Shared, path), section(f"stress.{name}", found.params, path)
