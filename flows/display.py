"""What a run shows while it works: one line per stage in a terminal, plain lines in a log.

Only shows. Colours follow NO_COLOR; a log gets every line that a stage prints, behind its name.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.spinner import Spinner
from rich.table import Table

from flows.dag import Graph
from flows.runner import Outcome

WORDS = {"ran": "done", "restored": "back from the cache", "unchanged": "unchanged"}


class Display(Protocol):
    """Told of what happens, from any thread."""

    def note(self, text: str) -> None: ...
    def planned(self, graph: Graph) -> None: ...
    def began(self, stage: str) -> None: ...
    def line(self, stage: str, text: str) -> None: ...
    def done(self, outcome: Outcome) -> None: ...
    def failed(self, stage: str, why: str) -> None: ...
    def blocked(self, stage: str, cause: str) -> None: ...


@dataclass(frozen=True)
class Plain:
    """Plain lines, for logs and pipes."""

    console: Console

    def _say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def note(self, text: str) -> None:
        self._say(text)

    def planned(self, graph: Graph) -> None:
        for stage in graph:
            if stage.name not in graph.stale:
                self._say(f"{stage.name}: cached")

    def began(self, stage: str) -> None:
        self._say(f"{stage}: began")

    def line(self, stage: str, text: str) -> None:
        self._say(f"{stage} | {text.removeprefix(f'{stage}: ')}")

    def done(self, outcome: Outcome) -> None:
        self._say(f"{outcome.stage}: {WORDS[outcome.how]} ({outcome.seconds:.1f} s)")

    def failed(self, stage: str, why: str) -> None:
        self._say(f"{stage}: failed: {why}")

    def blocked(self, stage: str, cause: str) -> None:
        self._say(f"{stage}: not begun, because {cause} failed")


@dataclass
class Row:
    """One stage on the screen."""

    mark: str
    text: str
    began: float | None = None


class Screen:
    """A live table, for terminals."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._rows: dict[str, Row] = {}
        self._notes: list[str] = []
        self._guard = threading.Lock()
        self._spinner = Spinner("dots")

    def __rich__(self) -> Group:
        table = Table.grid(padding=(0, 2))
        with self._guard:
            for name, row in self._rows.items():
                mark = self._spinner if row.began else row.mark
                since = f"{time.monotonic() - row.began:.0f} s" if row.began else ""
                table.add_row(mark, name, f"[dim]{since}[/dim]", escape(row.text))
        return Group(table)

    def _set(self, stage: str, mark: str, text: str, began: float | None = None) -> None:
        with self._guard:
            self._rows[stage] = Row(mark, text, began)

    def note(self, text: str) -> None:
        self._console.print(text, style="dim", markup=False)

    def planned(self, graph: Graph) -> None:
        for stage in graph:
            stale = stage.name in graph.stale
            self._set(stage.name, "·" if stale else "[green]✓[/green]", "" if stale else "cached")

    def began(self, stage: str) -> None:
        self._set(stage, "", "", time.monotonic())

    def line(self, stage: str, text: str) -> None:
        with self._guard:
            self._rows[stage].text = text.removeprefix(f"{stage}: ")

    def done(self, outcome: Outcome) -> None:
        text = f"{WORDS[outcome.how]}, {outcome.seconds:.1f} s"
        self._set(outcome.stage, "[green]✓[/green]", text)

    def failed(self, stage: str, why: str) -> None:
        self._set(stage, "[red]✗[/red]", why)

    def blocked(self, stage: str, cause: str) -> None:
        self._set(stage, "[yellow]-[/yellow]", f"not begun, because {cause} failed")


@contextmanager
def display(console: Console) -> Iterator[Display]:
    """The display that suits `console`, for the length of a run."""
    if not console.is_terminal:
        yield Plain(console)
        return
    screen = Screen(console)
    with Live(screen, console=console, refresh_per_second=8):
        yield screen
