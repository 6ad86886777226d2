"""Mends what a crash left behind; every command begins with it.

DVC rewrites `dvc.lock` and its lock table in place and removes a stage's outs before it runs, so a
crash can leave a torn file, missing outs and a stage that runs on. Nothing here touches a checkout
in which a run is alive, but that the server of a dead schedule, through which it works, is ended;
and nothing that DVC's cache cannot give back is removed.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import yaml

from flows.running import MENDING, busy, end, forget, hold, orphans, records
from flows.state import Checkout
from tasks.core.errors import DataError
from tasks.core.files import write_bytes

SAFE_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def recover(checkout: Checkout) -> list[str]:
    """Mend the checkout and what it started, unless a run is alive there; says what was mended."""
    notes = _mended(checkout)
    if checkout.root == checkout.home:  # then a schedule, its firing and workspaces in turn
        started = (checkout.state / name for name in ("schedule", "firing"))
        for folder in (*started, *sorted((checkout.home / "runs").glob("*"))):
            place = replace(checkout, root=folder)
            notes += _mended(place) if records(place) else []
    return notes


def _mended(checkout: Checkout) -> list[str]:
    if busy(checkout):
        return []
    try:
        with hold(checkout, MENDING):
            return mend(checkout)
    except DataError:  # somebody began a run just now and mends it itself
        return []


def mend(checkout: Checkout) -> list[str]:
    """What `recover` does, for a caller that holds the checkout."""
    notes: list[str] = []
    for record in records(checkout):
        left = orphans(checkout, record.name)
        end(left)
        if left:
            notes.append(f"ended {record.name}, which a dead run had left running")
    notes += mend_lock_table(checkout.root)
    notes += mend_lock(checkout)
    made = _repro(checkout.root)
    for record in records(checkout):
        if made and record.outs:
            continue  # what lies there may be what it writes; the next command sees
        if record.outs:
            set_aside(checkout, record.name, record.outs)
        remove_scratch(checkout.root, record.outs)
        forget(checkout, record.name)
    for scratch in (checkout.root / "data").glob(".raw.*"):
        shutil.rmtree(scratch, ignore_errors=True)
    back = [] if made else restore(checkout.root, missing_outs(checkout.root))
    if back:
        named = ", ".join(back) if len(back) <= 3 else f"{len(back)} missing outs"
        notes.append(f"checked out {named} again")
    keep_lock(checkout)
    return notes


@contextmanager
def dvc_waits(root: Path, name: str) -> Iterator[bool]:
    """Hold the lock file under which DVC writes (`lock` for dvc.lock, `rwlock.lock` for its lock
    table); yields False if some DVC process does not let go of it."""
    import zc.lockfile  # type: ignore[import-untyped]

    lock = None
    for _ in range(100):
        try:
            lock = zc.lockfile.LockFile(str(root / ".dvc" / "tmp" / name))
            break
        except zc.lockfile.LockError:
            time.sleep(0.02)
        except OSError:  # no .dvc/tmp: DVC has not run here yet
            break
    try:
        yield lock is not None
    finally:
        if lock is not None:
            lock.close()


def mend_lock_table(root: Path) -> list[str]:
    """`.dvc/tmp/rwlock`: torn, or with entries of dead processes, it can block every command."""
    path = root / ".dvc" / "tmp" / "rwlock"
    with dvc_waits(root, "rwlock.lock") as held:
        if not held or not path.is_file():
            return []
        try:
            table = json.loads(path.read_text())
            entries = [
                *table.get("write", {}).values(),
                *(e for readers in table.get("read", {}).values() for e in readers),
            ]
            numbers = {int(entry["pid"]) for entry in entries}
        except (ValueError, AttributeError, KeyError, TypeError):
            path.unlink()
            return ["removed DVC's lock table, which a crash had torn"]
        if numbers and not any(_is_dvc(number) for number in numbers):
            path.unlink()
    return []


def _repro(root: Path) -> bool:
    """Whether `dvc repro`, typed by somebody, runs a stage here: the outs that it has removed are
    missing because they are being made."""
    try:
        table = json.loads((root / ".dvc" / "tmp" / "rwlock").read_text())
        return any(_is_dvc(int(entry["pid"])) for entry in table.get("write", {}).values())
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return False


def _is_dvc(number: int) -> bool:
    try:
        return any("dvc" in part for part in psutil.Process(number).cmdline())
    except psutil.Error:
        return False


def kept_lock(checkout: Checkout) -> Path:
    """Our copy of the last whole `dvc.lock`."""
    return checkout.own / "dvc.lock"


def mend_lock(checkout: Checkout) -> list[str]:
    """A torn `dvc.lock` comes back from our copy, else from git, else it is set aside."""
    path, copy = checkout.root / "dvc.lock", kept_lock(checkout)
    with dvc_waits(checkout.root, "lock") as held:
        if not held or not path.is_file():
            return []
        content = path.read_bytes()
        kept = copy.read_bytes() if copy.is_file() else b""
        cut = len(content) < len(kept) and kept.startswith(content)
        if whole_lock(content) and not cut:
            return []
        for source, former in (("whole copy", kept), ("commit", _committed(checkout.root))):
            if whole_lock(former):
                write_bytes(path, former)
                return [f"restored dvc.lock, which a crash had torn, from the last {source}"]
        path.replace(checkout.own / "dvc.lock.torn")
    return ["set a torn dvc.lock aside; stages come back from DVC's run cache"]


def _committed(root: Path) -> bytes:
    """`dvc.lock` of the last commit; empty if there is none."""
    command = ["git", "show", "HEAD:./dvc.lock"]
    return subprocess.run(command, cwd=root, capture_output=True, check=False).stdout


def whole_lock(content: bytes) -> bool:
    """`content` reads as a `dvc.lock` whose every stage names its command."""
    try:
        lock = yaml.load(content, SAFE_LOADER)  # noqa: S506 - the C twin of the safe loader
        return bool(lock["schema"]) and all("cmd" in s for s in lock.get("stages", {}).values())
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, KeyError, AttributeError):
        return False


def keep_lock(checkout: Checkout) -> None:
    """Copy `dvc.lock` while no DVC process can write it."""
    path = checkout.root / "dvc.lock"
    with dvc_waits(checkout.root, "lock") as held:
        content = path.read_bytes() if held and path.is_file() else b""
    if whole_lock(content):
        write_bytes(kept_lock(checkout), content)


def locked_outs(root: Path, stage: str | None = None) -> list[str]:
    """Outs that `dvc.lock` names, of one stage or of all; as our copy has it where DVC is writing
    it, which it does in place. None where there is no `dvc.lock`."""
    path, copy = root / "dvc.lock", root / ".stillhouse" / "dvc.lock"
    if not path.is_file():
        return []
    with dvc_waits(root, "lock") as held:
        still = held or not (root / ".dvc" / "tmp").is_dir()  # DVC has not run here yet
        content = path.read_bytes() if still else b""
    if not whole_lock(content):
        content = copy.read_bytes() if copy.is_file() else b""
    if not whole_lock(content):
        return []
    stages = yaml.load(content, SAFE_LOADER).get("stages", {})  # noqa: S506
    chosen = stages.values() if stage is None else [stages.get(stage, {})]
    return [out["path"] for entry in chosen for out in entry.get("outs", [])]


def missing_outs(root: Path) -> list[str]:
    """Outs that `dvc.lock` names and the working tree lacks."""
    return [out for out in locked_outs(root) if not (root / out).exists()]


def restore(root: Path, outs: Iterable[str]) -> list[str]:
    """Check `outs` out of DVC's cache; returns those that came back."""
    wanted = {str((root / out).resolve().parent / Path(out).name): out for out in outs}
    if not wanted:
        return []
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(str(root), _wait_for_lock=True) as repo:
            known = {out.fs_path for out in repo.index.outs if out.hash_info}
            targets = [path for path in wanted if path in known]
            if targets:
                repo.checkout(targets=targets, force=True, allow_missing=True)
    except DvcException:
        return []  # an out that the cache lacks is stale: its stage runs again
    return [out for out in wanted.values() if (root / out).exists()]


def set_aside(checkout: Checkout, stage: str, outs: Iterable[str]) -> Path | None:
    """Move what a failed stage has written to `.stillhouse/failed/STAGE/`; None if nothing."""
    folder = checkout.own / "failed" / stage
    shutil.rmtree(folder, ignore_errors=True)
    for out in outs:
        if (checkout.root / out).exists():
            target = folder / out
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(checkout.root / out, target)  # `data` may lie on a disk of its own
    return folder if folder.is_dir() else None


def remove_scratch(root: Path, outs: Iterable[str]) -> None:
    """Remove half-written files and folders, `.NAME.*`, that lie beside `outs`."""
    for out in outs:
        path = root / out
        for scratch in path.parent.glob(f".{path.name}.*"):
            if scratch.is_dir() and not scratch.is_symlink():
                shutil.rmtree(scratch, ignore_errors=True)
            else:
                scratch.unlink(missing_ok=True)
