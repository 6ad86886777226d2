"""`python -m benchmarks [NAME ...]` measures; `python -m benchmarks results` writes the page."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from benchmarks.table import results, show, write
from tasks.core.files import write_text

BENCHMARKS = (
    "main",
    "whole",
    "distill",
    "fashion-mnist",
    "robust",
    "views",
    "refresh",
    "quantize",
    "arm64",
    "stress",
)


def main(names: list[str]) -> int:
    """Run each benchmark in turn; 2 if a name is unknown."""
    unknown = [name for name in names if name not in (*BENCHMARKS, "results")]
    if unknown:
        print(
            f"error: no benchmark '{unknown[0]}'; known: {', '.join(BENCHMARKS)}", file=sys.stderr
        )
        return 2
    for name in names or BENCHMARKS:
        if name != "results":
            rows = importlib.import_module(f"benchmarks.{name.replace('-', '_')}").run()
            write(name, rows)
            show(name, rows)
    write_text(Path(__file__).parents[1] / "docs" / "results.md", results())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
