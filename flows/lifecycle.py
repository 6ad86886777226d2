"""Commands for a model's life after `run`: promote, rollback, history, schedule, runs, gc.

Thin, as `flows/cli.py`; each is a function elsewhere, imported when it is asked for.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console

from flows.ledger import Line
from flows.state import Checkout
from tasks.core.errors import ParamsError

By = Annotated[str | None, typer.Option("--by", metavar="NAME", help="Who decides.")]
Reason = Annotated[str | None, typer.Option("--reason", metavar="TEXT", help="Why.")]
AsJson = Annotated[bool, typer.Option("--json", help="For machines.")]


def add(
    app: typer.Typer, recovered: Callable[[], Checkout], console: Callable[[], Console]
) -> None:
    """Add the commands to `app`. `recovered`: the checkout, mended."""

    @app.command()
    def promote(
        version: Annotated[int, typer.Argument(help="A version of NAME-candidates.")],
        by: By = None,
        reason: Reason = None,
    ) -> None:
        """Make a candidate the champion, after every check, on the record."""
        checkout = recovered()
        from flows.promote import default_name, promote

        named = _asked(by, "--by", "your name", lambda: default_name(checkout.root))
        told = _asked(reason, "--reason", f"why version {version}")
        line = promote(checkout, version, named, told, _passed)
        _changed(line)

    @app.command()
    def rollback(
        by: By = None,
        reason: Reason = None,
        student: Annotated[str, typer.Option(help="Whose, where several ship.")] = "",
    ) -> None:
        """Bring the champion before this one back."""
        checkout = recovered()
        from flows.promote import default_name, rollback

        named = _asked(by, "--by", "your name", lambda: default_name(checkout.root))
        told = _asked(reason, "--reason", "why go back")
        line = rollback(checkout, named, told, _passed, student)
        _changed(line)

    @app.command()
    def history(
        as_json: AsJson = False,
        flips: Annotated[bool, typer.Option("--flips", help="Rows lost, by version.")] = False,
    ) -> None:
        """Show who was champion, since when, by whose word and on which figures."""
        checkout = recovered()
        from flows import ledger
        from flows.history import as_json as as_data
        from flows.history import check_registry, prose

        lines = ledger.read(checkout)
        if flips:
            _flips(checkout, lines, as_json)
            raise typer.Exit(0)
        problems = check_registry(checkout, lines)
        if as_json:
            print(json.dumps(as_data(lines, problems), indent=2, ensure_ascii=False))
        else:
            for said in prose(lines):
                print(said)
            for problem in problems:
                print(f"warning: {problem}", file=sys.stderr)
        raise typer.Exit(1 if problems else 0)

    @app.command()
    def schedule(
        cron: Annotated[str, typer.Option(help='When, as in "0 3 * * 1".')],
        timezone: Annotated[str, typer.Option(help="An IANA name.")] = "UTC",
        port: Annotated[int, typer.Option(help="Of Prefect's server and pages.")] = 4200,
    ) -> None:
        """Retrain by the clock, each run in a workspace at today's commit, until Ctrl-C."""
        checkout = recovered()
        from flows.schedule import schedule

        raise typer.Exit(schedule(checkout, console(), cron, timezone, port))

    @app.command()
    def runs(as_json: AsJson = False) -> None:
        """List the runs of this checkout and its workspaces, the newest first."""
        checkout = recovered()
        from flows.runs import show_runs

        show_runs(console(), checkout, as_json)

    @app.command()
    def gc(
        older_than: Annotated[float, typer.Option(min=0, help="Days.")] = 30,
        dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    ) -> None:
        """Free old workspaces, runs and cache, never what a version or the ledger names."""
        checkout = recovered()
        from flows.gc import collect

        for said in collect(checkout, older_than, dry_run):
            print(said)


def _asked(
    given: str | None, option: str, what: str, default: Callable[[], str] | None = None
) -> str:
    """An option, or what the person at the terminal answers."""
    if given is not None:
        return given
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise ParamsError(f"{option}: is missing, and nobody is here to ask; give {option} TEXT")
    answer: str = typer.prompt(what, default=(default() if default else "") or None)
    return answer


def _passed(said: str) -> None:
    print(f"ok  {said}", flush=True)


def _flips(checkout: Checkout, lines: Sequence[Line], as_json: bool) -> None:
    from flows import ledger
    from flows.regressions import promoted, regressed, told

    for name in ledger.names(lines):
        models = promoted(lines, name)
        rows = regressed(checkout, name, models)
        if as_json:
            print(json.dumps({"name": name, "versions": [m.version for m in models],
                              "rows": [asdict(row) for row in rows]}))  # fmt: skip
        else:
            for said in told(name, models, rows):
                print(said)


def _changed(line: Line) -> None:
    before = "" if line.former is None else f"; version {line.former.version} was before it"
    print(f"{line.alias}: {line.name} version {line.model.version}{before}")
    print("next:")
    print("  stillhouse history  # the whole story")
    print(f"  models:/{line.name}@{line.alias}  # where MLflow serves it from")
