"""The command line `stillhouse`: thin; each command is a function elsewhere.

Exit codes: 0 done, 1 refused by a gate, 2 bad input, 3 crash, 130 interrupted. An error is one
line on stderr; `--debug` adds the trace.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from flows import ledger, lifecycle
from flows.state import Checkout, adopt, find_checkout
from tasks.core.errors import DataError, GateError, StillhouseError, of_system

app = typer.Typer(
    name="stillhouse",
    help="Distil a big model into small int8 ONNX students, with the evidence for shipping them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Sets = Annotated[
    list[str],
    typer.Option(
        "--set", metavar="KEY=VALUE", help="section.key=value, in a workspace at the last commit."
    ),
]
Preset = Annotated[str | None, typer.Option(help="presets/NAME.yaml, in a workspace.")]
Student = Annotated[str | None, typer.Argument(help="A shipped student; default: all of them.")]
Bundle = Annotated[Path | None, typer.Argument(help="A sealed bundle; default: the latest.")]


@app.callback()
def settings(
    debug: Annotated[bool, typer.Option("--debug", help="Show the trace of an error.")] = False,
) -> None:
    """Options of every command; `main` has read them already."""


@app.command()
def run(set_: Sets = [], preset: Preset = None) -> None:  # noqa: B006 - typer copies it
    """Bring everything up to date: data, stages, verdict, seal, registry."""
    checkout = _recovered()
    if set_ or preset is not None:
        _in_workspace(checkout, preset, set_)
    from flows.run import run as run_all

    raise typer.Exit(run_all(checkout, _console()))


def _in_workspace(checkout: Checkout, preset: str | None, assignments: list[str]) -> None:
    """Go on as the workspace's own process, with its own code; never returns."""
    from flows.workspace import prepare, requested

    name, params = requested(checkout, preset, assignments)
    folder = prepare(checkout, name, params)
    print(f"working in {folder}, at the last commit; the checkout stays as it is", flush=True)
    debug = ["--debug"] if "--debug" in sys.argv else []
    os.chdir(folder)
    command = [sys.executable, "-m", "flows.cli", *debug, "run"]
    os.execve(sys.executable, command, checkout.environment())  # noqa: S606 - no shell wanted


@app.command()
def plan(
    write: Annotated[
        bool, typer.Option("--write", help="Write the rungs of `plan: auto` into params.yaml.")
    ] = False,
    seeds: Annotated[int, typer.Option(help="Of each chain that is compared.")] = 5,
) -> None:
    """Compare chains to the student at equal compute, or propose rungs for a budget."""
    checkout = _recovered()
    if write:
        from flows.plan import write_plan

        for said in write_plan(checkout):
            print(said)
        return
    from flows.comparison import compare, show_plan

    show_plan(_console(), compare(checkout, seeds))


@app.command()
def status() -> None:
    """Show which stages are stale, and why."""
    checkout = _recovered()
    from flows.dag import read_graph
    from flows.running import busy, records

    holder = busy(checkout)
    if holder:
        at_work = ", ".join(r.name for r in records(checkout) if r.outs) or "between stages"
        print(f"a run is at work ({holder}): {at_work}")
        return
    graph = read_graph(checkout.root)
    for stage in graph:
        why = graph.stale.get(stage.name)
        print(f"{stage.name}: {'stale: ' + '; '.join(why) if why else 'fresh'}")
    print("`stillhouse run` brings them up to date" if graph.stale else "nothing to do")


@app.command()
def show(
    student: Student = None,
    as_json: Annotated[bool, typer.Option("--json", help="verdict.json as it is.")] = False,
) -> None:
    """Show the last verdict."""
    checkout = _recovered()
    from flows.show import last_verdict, verdict_path
    from flows.show import show as show_one

    students = _shipped(checkout, student)
    if not as_json:
        for name in students:
            show_one(_console(), checkout, name)
        return
    for name in students:
        last_verdict(checkout, name)
    verdicts = {s: json.loads(verdict_path(checkout, s).read_text()) for s in students}
    chosen = verdicts[students[0]] if len(students) == 1 else verdicts
    print(json.dumps(chosen, indent=2, ensure_ascii=False))


@app.command()
def verify(bundle: Bundle = None) -> None:
    """Check a sealed bundle against its manifest."""
    checkout = _recovered()
    from flows.seal import latest
    from flows.seal import verify as problems_of

    bundles = [bundle] if bundle else [latest(checkout, s) for s in _shipped(checkout, None)]
    refused = 0
    for one in bundles:
        if one is None or not one.is_dir():
            raise DataError(f"{one or checkout.bundles}: no bundle here; run `stillhouse run`")
        problems = problems_of(one)
        for problem in problems:
            remedy = "do not use it; move it away, and `stillhouse run` seals again"
            print(f"error: {one}: {problem}; {remedy}", file=sys.stderr)
        print(f"{one}: {'does not hold' if problems else 'whole, and as its manifest says'}")
        refused += bool(problems)
    raise typer.Exit(GateError.exit_code if refused else 0)


@app.command()
def doctor() -> None:
    """Show versions, CPU, state, what is missing and how to mend it."""
    checkout = find_checkout()
    adopt(checkout)
    from flows.doctor import examine
    from flows.recovery import recover

    for note in recover(checkout):
        print(f"mended: {note}")
    ill = False
    for finding in examine(checkout):
        print(f"{'mend' if finding.remedy else 'ok  '}  {finding.what}: {finding.found}")
        if finding.remedy:
            print(f"      -> {finding.remedy}")
        ill = ill or bool(finding.remedy)
    raise typer.Exit(DataError.exit_code if ill else 0)


def _console() -> Console:
    """Standard output; a log is wide enough for the table."""
    wide = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 110
    return Console(width=wide)


def _recovered() -> Checkout:
    """The checkout around the working directory, mended."""
    checkout = find_checkout()
    adopt(checkout)
    from flows.recovery import recover

    for note in recover(checkout):
        print(note, file=sys.stderr)
    if ledger.unsettled(checkout):
        from flows.act import settle

        for note in settle(checkout):
            print(note, file=sys.stderr)
    return checkout


def _shipped(checkout: Checkout, student: str | None) -> list[str]:
    """`student`, or every student that ships."""
    ship = list(checkout.shipped)
    if student is not None and student not in ship:
        raise DataError(
            f"'{student}' does not ship; distill.ship names {', '.join(ship) or 'none'}"
        )
    return [student] if student is not None else ship


lifecycle.add(app, _recovered, _console)


def main() -> None:
    """The entry point: every error becomes one line and the exit code that it means."""
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        code = app(arguments, standalone_mode=False) or 0
    except typer.Exit as error:
        code = error.exit_code
    except typer.TyperException as error:
        said = error.format_message().rstrip(".")
        code = _failed(f"{said}; `stillhouse --help` shows what there is", 2, debug)
    except StillhouseError as error:
        code = _failed(str(error), error.exit_code, debug)
    except (KeyboardInterrupt, typer.Abort):
        code = _failed("interrupted", 130, debug)
    except Exception as error:
        refusal = of_system(error) if isinstance(error, OSError) else None
        hint = "" if debug else "; --debug shows the trace"
        unforeseen = f"{type(error).__name__}: {error}{hint}"
        code = _failed(refusal or unforeseen, 2 if refusal else 3, debug)
    sys.exit(code)


def _failed(message: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
