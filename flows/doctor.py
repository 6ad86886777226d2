"""`stillhouse doctor`: what this machine and this checkout have, what they lack, how to mend it.

Looks only; recovery, which every command begins with, has mended what can be mended by itself.
"""

from __future__ import annotations

import platform
import re
import shutil
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from flows import ledger
from flows.recovery import missing_outs
from flows.running import busy
from flows.slots import cores
from flows.state import Checkout
from tasks.core.errors import StillhouseError

MIN_PYTHON = (3, 11)
MIN_FREE = 2 * 1024**3  # bytes
UNTRIED = "what ships is not tried on another CPU"


@dataclass(frozen=True)
class Finding:
    """One thing looked at; `remedy` says how to mend it, and is empty if all is well."""

    what: str
    found: str
    remedy: str = ""


def examine(checkout: Checkout) -> Iterator[Finding]:
    """Everything a run needs."""
    yield _python()
    yield from _programs()
    yield _packages(checkout.root / "constraints.txt")
    yield _cpu()
    yield _emulator()
    yield _space(checkout.root)
    yield _params(checkout.root)
    yield from _state(checkout)


def _python() -> Finding:
    remedy = "" if sys.version_info >= MIN_PYTHON else "install Python 3.11 or later"
    return Finding("python", f"{platform.python_version()} ({sys.executable})", remedy)


def _programs() -> Iterator[Finding]:
    git = shutil.which("git")
    yield Finding("git", git or "missing", "" if git else "install git")
    python = (Path(sys.executable).parent / "python").exists()
    yield Finding(
        "environment", str(Path(sys.executable).parent), "" if python else "run `make setup`"
    )


def pinned(text: str) -> dict[str, str]:
    """Name -> version of a constraints file.

    >>> pinned("# ours\\ntorch==2.13.0\\n\\nnumpy==2.4.6  # fast\\n")
    {'torch': '2.13.0', 'numpy': '2.4.6'}
    """
    return dict(re.findall(r"^([A-Za-z0-9._-]+)==([^\s;#]+)", text, flags=re.MULTILINE))


def _packages(path: Path) -> Finding:
    """Installed versions against the pinned ones; a local build label (`+cpu`) does not count."""
    for needed in (path, path.parent / "pyproject.toml"):
        if not needed.is_file():
            return Finding("packages", f"{needed.name} is missing", f"git checkout {needed.name}")
    wanted = pinned(path.read_text())
    wrong = []
    for name, pin in wanted.items():
        try:
            installed = version(name).split("+")[0]
        except PackageNotFoundError:
            installed = "missing"
        if installed != pin and (installed != "missing" or name.lower() in _named(path.parent)):
            wrong.append(f"{name} {installed}, not {pin}")
    if wrong:
        return Finding("packages", "; ".join(wrong), "pip install -c constraints.txt -e .")
    return Finding("packages", f"{len(wanted)} as pinned")


def _named(root: Path) -> set[str]:
    """The packages that a run imports itself; test tools may be missing."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    return {re.split(r"[<>=!~\[; ]", entry)[0].lower() for entry in project["dependencies"]}


def _cpu() -> Finding:
    """Cores and the instructions that int8 lives by."""
    info = Path("/proc/cpuinfo")
    flags = set(info.read_text().split()) if info.is_file() else set()
    has = [name for name in ("avx2", "avx512_vnni", "avx_vnni", "amx_int8") if name in flags]
    return Finding("cpu", f"{cores()} cores, {platform.machine()} {' '.join(has)}".rstrip())


def _emulator() -> Finding:
    """What tries a shipped file on another kind of CPU; a run goes on without it, and says so."""
    from tasks.judge.trial import EMULATOR

    there = shutil.which(EMULATOR)
    return Finding("emulator", there or f"no {EMULATOR} (Debian's qemu-user): {UNTRIED}")


def _space(root: Path) -> Finding:
    free = shutil.disk_usage(root).free
    remedy = "" if free >= MIN_FREE else "free some; `stillhouse gc` frees what nothing names"
    return Finding("disk", f"{free / 1024**3:.1f} GiB free", remedy)


def _params(root: Path) -> Finding:
    from flows.params import check_params

    try:
        check_params(root)
    except StillhouseError as error:
        return Finding("params", str(error), "mend it, or `git checkout params.yaml`")
    return Finding("params", "every section is valid")


def _ledger(checkout: Checkout) -> Finding:
    try:
        lines = ledger.read(checkout)
    except StillhouseError as error:
        return Finding("ledger", str(error), "put a copy of it back")
    return Finding("ledger", f"{len(lines)} lines, whole" if lines else "nothing promoted yet")


def _state(checkout: Checkout) -> Iterator[Finding]:
    root = checkout.root
    dvc = (root / ".dvc" / "config").is_file()
    yield Finding("dvc", "initialised" if dvc else "no .dvc", "" if dvc else "git checkout .dvc")
    yield Finding("state", str(checkout.state))
    yield _ledger(checkout)
    holder = busy(checkout)
    yield Finding("run", f"{holder} works here" if holder else "none at work")
    raw = (root / "data" / "raw").is_dir()
    if not (root / "dvc.lock").is_file():
        yield Finding("data/raw", "there" if raw else "not there yet; `stillhouse run` takes it")
        yield Finding("outs", "nothing has run here yet; `stillhouse run` does")
        return
    yield Finding("data/raw", "there" if raw else "missing", "" if raw else "stillhouse run")
    gone = missing_outs(root)
    found = f"{', '.join(gone)} missing" if gone else "all that dvc.lock names are there"
    yield Finding("outs", found, "dvc pull, or stillhouse run" if gone and not holder else "")
