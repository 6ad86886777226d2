"""A benchmark's rows: how they are judged, written and printed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tasks.core.cost import cpu
from tasks.core.files import read_json, write_json

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Row:
    """One figure against its bar. `bar` is text: ">= 0.99" or "<= 90"; empty if there is none."""

    what: str
    value: float | None
    unit: str
    bar: str
    met: bool | None
    baseline: float | None
    ratio: float | None
    runs: int
    cpu: str
    command: str


def row(
    what: str,
    value: float | None,
    unit: str,
    bar: str,
    command: str,
    runs: int = 1,
    baseline: float | None = None,
) -> Row:
    """A row; a value that is missing misses its bar."""
    value = None if value is None else float(value)  # NumPy's own floats compare to NumPy's bools
    ratio = value / baseline if value is not None and baseline else None
    rounded = None if value is None else round(value, 4)
    return Row(
        what,
        rounded,
        unit,
        bar,
        _met(value, bar),
        baseline,
        None if ratio is None else round(ratio, 3),
        runs,
        _cpu(),
        command,
    )


def _cpu() -> str:
    """The model, which may be told of several CPUs alike, and what decides how fast int8 runs."""
    here = cpu()
    isa = here["isa"]
    return f"{here['model']} ({', '.join(map(str, isa))})" if isinstance(isa, list) else ""


def _met(value: float | None, bar: str) -> bool | None:
    """Whether `value` keeps the bar.

    >>> _met(0.995, ">= 0.99"), _met(91, "<= 90"), _met(None, "<= 90"), _met(3, "")
    (True, False, False, None)
    """
    if not bar:
        return None
    sign, limit = bar.split()
    if value is None:
        return False
    return value >= float(limit) if sign == ">=" else value <= float(limit)


def write(name: str, rows: list[Row]) -> None:
    """Write `benchmarks/results/NAME.json`."""
    write_json(RESULTS / f"{name}.json", {"rows": [asdict(r) for r in rows]})


def show(name: str, rows: list[Row]) -> None:
    """Print the table; a row that misses its bar says so."""
    table = Table(title=f"bench-{name}", title_justify="left")
    for column in ("what", "value", "bar", "met"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for r in rows:
        value = "–" if r.value is None else f"{r.value:,g} {r.unit}".strip()
        table.add_row(r.what, value, r.bar, {True: "yes", False: "NO", None: ""}[r.met])
    Console(width=100).print(table)


def results() -> str:
    """`docs/results.md` as Markdown, made from every file in `benchmarks/results/`."""
    parts = [
        "# Results",
        "",
        "Made by `python -m benchmarks results` from `benchmarks/results/`. Why a hyper-parameter "
        "is what it is stands beside it in `params.yaml` and `presets/`.",
        "",
    ]
    for path in sorted(RESULTS.glob("*.json"), key=lambda path: path.stem):
        content = read_json(path)
        rows = content["rows"]
        cpus = ", ".join(sorted({r["cpu"] for r in rows}))
        parts += [
            f"## {path.stem}",
            "",
            f"`{content.get('command', f'make bench-{path.stem}')}`, on {cpus}.",
            *(["", content["note"]] if "note" in content else []),  # of a run in parts
            "",
            "| What | Value | Bar | Met | Runs | Command |",
            "|---|---|---|---|---|---|",
        ]
        for r in rows:
            value = "–" if r["value"] is None else f"{r['value']:,g} {r['unit']}".strip()
            met = {True: "yes", False: "**no**", None: ""}[r["met"]]
            parts.append(
                f"| {r['what']} | {value} | {r['bar']} | {met} | {r['runs']} | `{r['command']}` |"
            )
        parts.append("")
    return "\n".join(parts)
