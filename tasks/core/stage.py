"""How `python -m tasks.STAGE` starts and ends: one line for an error, and the exit code it means.

DVC turns an exit code of 2 into 255 and may hide the text, so the outcome is also written to the
file that `STILLHOUSE_OUTCOME` names, where the flow reads it.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from tasks.core.errors import StillhouseError, of_system
from tasks.core.files import write_json


def main(stage: Callable[[list[str]], None]) -> None:
    """Run `stage` with the command's arguments; never returns normally on failure."""
    code, message = 0, ""
    try:
        stage(sys.argv[1:])
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


def _trace() -> None:
    """A crash is ours to mend: its trace goes to the log."""
    traceback.print_exc()
