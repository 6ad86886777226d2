"""How `python -m tasks.STAGE` starts and ends: one line for an error, and the exit code it means.

DVC notes code and parameters as they are when a stage ends. So that it notes none of what nobody
ran, a stage whose own have changed since its modules were loaded fails.

DVC turns an exit code of 2 into 255 and may hide the text, so the outcome is also written to the
file that `STILLHOUSE_OUTCOME` names, where the flow reads it.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.core.errors import DataError, StillhouseError, of_system
from tasks.core.files import first_sha256, sha256, write_json
from tasks.core.params import PARAMS, read

DAG = Path("dvc.yaml")
CODE = Path(__file__).parents[1]  # tasks/


def main(stage: Callable[[list[str]], None]) -> None:
    """Run `stage` with the command's arguments; never returns normally on failure."""
    code, message = 0, ""
    try:
        name, arguments = _stage(), sys.argv[1:]
        before = _written(name, arguments, first_sha256)
        stage(arguments)
        _unchanged(before, _written(name, arguments, sha256))
    except StillhouseError as error:
        code, message = error.exit_code, str(error)
    except KeyboardInterrupt:
        code, message = 130, "interrupted"
    except MemoryError:
        code, message = 3, "out of memory; lower the batch size or the rows read"
    except OSError as error:
        refusal = of_system(error)
        code = 2 if refusal else 3
        message = refusal or f"{error.filename or 'a file'}: {error.strerror or error}"
        if not refusal:
            _trace()
    except Exception as error:
        code, message = 3, f"{type(error).__name__}: {error}"
        _trace()
    outcome = os.environ.get("STILLHOUSE_OUTCOME")
    if code and outcome:
        write_json(Path(outcome), {"code": code, "message": message})
    if code:
        print(f"error: {message}", file=sys.stderr)
        sys.exit(code)


@dataclass(frozen=True)
class Written:
    """The parameters that DVC notes of this stage, and the SHA-256 of each file of our code."""

    params: dict[str, Any]
    code: dict[str, str]


def _stage() -> str:
    """The stage that this process was started for, `python -m tasks.STAGE`; empty if for none."""
    started = sys.modules["__main__"].__spec__
    package, _, file = started.name.rpartition(".") if started else ("", "", "")
    return package.removeprefix("tasks.") if file == "__main__" else ""


def _written(name: str, arguments: list[str], digest: Callable[[Path], str]) -> Written:
    dag = read(DAG) if name and DAG.is_file() else {}
    stage = _inside(dag, f"stages.{name}") or {}
    asked = stage.get("do", stage).get("params", [])
    listed = [_filled(key, arguments) for key in asked if isinstance(key, str)]
    params = read() if listed and PARAMS.is_file() else {}
    code = {}
    for path in CODE.rglob("*.py") if listed else ():
        with suppress(FileNotFoundError):  # an editor's dangling link, or just removed
            code[str(path)] = digest(path)
    return Written({key: _inside(params, key) for key in listed}, code)


def _filled(key: str, arguments: list[str]) -> str:
    """A parameter of `dvc.yaml`, for the item that the stage was started for.

    >>> _filled("stress.${item.family}", ["student", "slices"])
    'stress.slices'
    """
    names = ("${key}", "${item}", "${item.student}", "${item.family}")
    values = [arguments[0] if arguments else ""] * 3 + arguments[1:2]
    for name, value in zip(names, values, strict=False):
        key = key.replace(name, value)
    return key


def _unchanged(before: Written, after: Written) -> None:
    """A `DataError` if a parameter, or code that this process has loaded, is not as it was."""
    changed = [
        f"{PARAMS}: {key}"
        for key, value in before.params.items()
        if key not in after.params or after.params[key] != value
    ]
    loaded = {module.__file__ for n, module in list(sys.modules.items()) if n.startswith("tasks.")}
    loaded.add(getattr(sys.modules["__main__"], "__file__", None))
    changed += [path for path, digest in sorted(before.code.items())
                if path in loaded and after.code.get(path) != digest]  # fmt: skip
    if changed:
        raise DataError(
            f"{changed[0]}: changed while the stage ran, so what it made is of neither; run again"
        )


def _inside(content: Any, name: str) -> Any:
    """The value at a dotted place; None where there is none."""
    for part in name.split("."):
        content = content.get(part) if isinstance(content, dict) else None
    return content


def _trace() -> None:
    """A crash is ours to mend: its trace goes to the log."""
    traceback.print_exc()
