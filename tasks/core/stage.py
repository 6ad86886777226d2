"""How `python -m tasks.STAGE` starts and ends: one line for an error, and the exit code it means.

DVC notes code and parameters as they are when a stage ends. So that it notes none of what nobody
ran, a stage whose own have changed meanwhile fails.

DVC turns an exit code of 2 into 255 and may hide the text, so the outcome is also written to the
file that `STILLHOUSE_OUTCOME` names, where the flow reads it.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.core.errors import DataError, StillhouseError, of_system
from tasks.core.files import write_json
from tasks.core.params import ASKED, PARAMS, read

CODE = Path(__file__).parents[1]  # tasks/


def main(stage: Callable[[list[str]], None]) -> None:
    """Run `stage` with the command's arguments; never returns normally on failure."""
    code, message = 0, ""
    try:
        before = _written()
        stage(sys.argv[1:])
        _unchanged(before)
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
    """Parameters, and when each file of our code was written last."""

    params: dict[str, Any]
    code: dict[str, tuple[int, int]]


def _written() -> Written:
    params = read() if PARAMS.is_file() else {}
    return Written(params, {str(path): _stamp(path) for path in CODE.rglob("*.py")})


def _stamp(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_mtime_ns, found.st_size


def _unchanged(before: Written) -> None:
    """A `DataError` if what this process has read of parameters or code is not as it was."""
    after = _written()
    changed = [
        f"{PARAMS}: {name}"
        for name in ("threads", *sorted(ASKED))
        if _inside(before.params, name) != _inside(after.params, name)
    ]
    files = {module.__file__ for n, module in list(sys.modules.items()) if n.startswith("tasks.")}
    files.add(getattr(sys.modules["__main__"], "__file__", None))
    changed += [path for path, stamp in sorted(before.code.items())
                if path in files and after.code.get(path) != stamp]  # fmt: skip
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
