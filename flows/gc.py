"""`stillhouse gc`: frees what is past its age and what nothing names, and says how much that was.

What names others goes first: workspaces and records of runs, then MLflow's runs, then bundles, then
objects of DVC's cache; so a gc that is cut off leaves only more for the next one. What a registered
version or a line of the ledger names is never removed, nor anything while a run works with it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.filesize import decimal

from flows import cache, expiry, ledger
from flows.bundle import MANIFEST, read_manifest
from flows.expiry import Registered
from flows.outputs import lock_key, read_lock
from flows.recovery import dvc_waits
from flows.running import busy, end, hold, orphans, records
from flows.runs import Run, read_runs
from flows.seal import latest
from flows.state import Checkout
from flows.workspace import cache as cache_of
from tasks.core.errors import ParamsError

DAY = 86400.0
BUNDLE = re.compile(r".+-[0-9a-f]{12}")


@dataclass(frozen=True)
class Freed:
    """Something that goes: in words, its bytes, and how it is removed."""

    what: str
    size: int
    remove: Callable[[], object]


@dataclass(frozen=True)
class Kept:
    """What stays and keeps other things: working trees, records of runs, names of bundles that a
    version or the ledger holds."""

    places: tuple[Checkout, ...]
    runs: tuple[Run, ...]
    registered: Registered
    forever: frozenset[str]


def collect(checkout: Checkout, older_than_days: float, dry_run: bool) -> Iterator[str]:
    """Free what is older than so many days; yields what was freed, line by line, then the total.

    With `dry_run` nothing is removed and the lines say what would be. Raises a `DataError` while
    a run or a promotion is at work in the checkout.
    """
    if not 0 <= older_than_days < float("inf"):
        raise ParamsError(f"--older-than {older_than_days}: must be a number of days, 0 or more")
    home = Checkout(checkout.home, checkout.home, checkout.servers)
    before = time.time() - older_than_days * DAY
    total = 0
    with hold(home), ledger.alone(home):
        for found in _everything(home, before):
            if isinstance(found, str):
                yield found
                continue
            if not dry_run:
                found.remove()
            total += found.size
            yield f"{found.what}: {decimal(found.size)}"
    yield f"{'would free' if dry_run else 'freed'} {decimal(total)}"


def _everything(home: Checkout, before: float) -> Iterator[Freed | str]:
    """All that may go, in the order of removal, and lines about what stays nevertheless."""
    registered, runs = expiry.registered(home), read_runs(home)
    old = [path for path, run in runs.items() if not run.working and _end(run) < before]
    places = [home]
    for place in _workspaces(home):
        why = _stays(home, place, list(runs.values()), before)
        if why is None:
            size = cache.size_of(place.root)
            yield Freed(f"workspace {_name(place)}", size, partial(_leave, home, place))
            continue
        places.append(place)
        if why:
            yield f"workspace {_name(place)} stays: {why}"
    with cache.unused(home) as free:
        if not free:
            yield "a run is at work in a workspace: bundles, MLflow and DVC's cache stay"
            return
        kept = Kept(
            tuple(places),
            tuple(run for path, run in runs.items() if path not in old),
            registered,
            registered.bundles | _in_ledger(home),
        )
        if old:
            size = sum(map(cache.size_of, old))
            yield Freed(
                _counted(len(old), "record of a run", "records of runs"),
                size,
                partial(_discard, *old),
            )
        scratch = list(_scratch(home, before))
        if scratch:
            size = sum(map(cache.size_of, scratch))
            yield Freed("what failed or was cut off", size, partial(_discard, *scratch))
        bundles = _bundles(home, kept, before)
        yield from _tracked(home, kept, bundles, before)
        for bundle in bundles:
            size = cache.size_of(bundle)
            yield Freed(f"bundle {bundle.name}", size, partial(_discard, bundle))
        yield from _objects(home, kept, bundles, before)


def _counted(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _end(run: Run) -> float:
    """When a run ended; of a killed one only its beginning is known."""
    return (run.ended or run.began).timestamp()


def _name(place: Checkout) -> str:
    return place.root.relative_to(place.home).as_posix()


def _discard(*paths: Path) -> None:
    for path in paths:
        cache.discard(path)


def _workspaces(home: Checkout) -> list[Checkout]:
    """Folders below `runs/` that we made: whole, or known to git and not yet ours."""
    known = cache.worktrees(home.root)
    found = []
    for path in sorted((home.root / "runs").glob("[!.]*")):
        if not path.is_symlink() and (path in known or (path / ".stillhouse" / "home").is_file()):
            found.append(Checkout(path, home.root, home.servers))
    return found


def _stays(home: Checkout, place: Checkout, runs: list[Run], before: float) -> str | None:
    """Why a workspace stays, "" where it is just young; None if it may go."""
    own = [run for run in runs if run.workspace == _name(place)]
    holder = busy(place)
    if holder or any(run.working for run in own):
        return f"a run is at work in it ({holder or 'by its record'})"
    if cache.worktrees(home.root).get(place.root, False):
        return "it is locked; `git worktree unlock` it"
    last = max(map(_end, own)) if own else place.root.stat().st_mtime
    return None if last < before else ""


def _leave(home: Checkout, place: Checkout) -> None:
    """Remove a workspace; git forgets it. `git worktree remove`, cut off, would refuse to go on."""
    with hold(place):
        for record in records(place):
            end(orphans(place, record.name))
        cache.discard(place.root)
    cache.prune_worktrees(home.root)


def _scratch(home: Checkout, before: float) -> Iterator[Path]:
    """What failed stages wrote, what was cut off in writing, and what was cut off in removal."""
    for place in (home.root / "runs", home.bundles):
        yield from place.glob(f"{cache.DISCARDED}*")
    yield from home.own.glob(f"failed/{cache.DISCARDED}*")
    for pattern in ("failed/[!.]*", "bundles/.sealing-*", "runs/.*.json", "dvc.lock.torn"):
        yield from (p for p in home.state.glob(pattern) if p.lstat().st_mtime < before)


def _in_ledger(home: Checkout) -> frozenset[str]:
    """Names of the bundles that any line of the ledger names."""
    models = [m for line in ledger.read(home) for m in (line.model, line.former) if m is not None]
    return frozenset(model.bundle for model in models)


def _bundles(home: Checkout, kept: Kept, before: float) -> list[Path]:
    """Bundles past their age that no version, ledger line or kept run names, and that are not the
    last of a student that ships."""
    last = {latest(place, student) for place in kept.places for student in place.shipped}
    named = kept.forever | {s.bundle for run in kept.runs for s in run.students.values()}
    return [
        path
        for path in _sealed(home)
        if path not in last
        and path.name not in named
        and (path / MANIFEST).stat().st_mtime < before
        and read_manifest(path).subject.digest not in kept.registered.subjects
    ]


def _sealed(home: Checkout) -> list[Path]:
    """Every sealed bundle; one that is not whole is an error, since what it names is not known."""
    found = sorted(path for path in home.bundles.glob("*") if BUNDLE.fullmatch(path.name))
    for path in found:
        read_manifest(path)
    return found


def _tracked(
    home: Checkout, kept: Kept, bundles: list[Path], before: float
) -> Iterator[Freed | str]:
    """MLflow's runs; those of kept locks and bundles stay."""
    if home.servers.mlflow is not None:
        yield f"MLflow's runs stay: {home.servers.mlflow} is the team's"
        return
    keys = {read_manifest(b).circumstances.lock for b in _sealed(home) if b not in bundles}
    for place in kept.places:
        if (place.root / "dvc.lock").is_file():
            keys.add(lock_key(read_lock(place.root)))
    old = expiry.expired(home, kept.registered, keys, before)
    if old.kept_back:
        yield f"MLflow's runs stay: {old.kept_back}"
    elif old.runs:
        runs = _counted(len(old.runs), "run of MLflow", "runs of MLflow")
        what = f"{runs}, {_counted(len(old.models), 'model', 'models')}"
        yield Freed(what, old.size, partial(expiry.remove, home, old))


def _objects(
    home: Checkout, kept: Kept, bundles: list[Path], before: float
) -> Iterator[Freed | str]:
    """What nothing names in DVC's cache, if that is the checkout's own."""
    if not (home.root / ".dvc").is_dir():
        return
    store = cache_of(home)
    if not store.resolve().is_relative_to(home.root / ".dvc"):
        yield f"DVC's cache stays: {store} may be shared"
        return
    staying = {path.name: read_manifest(path) for path in _sealed(home) if path not in bundles}
    manifests = staying | expiry.manifests(home, kept.forever - staying.keys())
    lost = kept.forever - manifests.keys()
    if lost:
        yield f"DVC's cache stays: {min(lost)} is registered, but its manifest is nowhere"
        return
    named = _named(home, kept) | {
        o for m in manifests.values() for o in m.circumstances.objects.values()
    }
    with dvc_waits(home.root, "lock") as held:
        if not held:
            yield "DVC's cache stays: a DVC command is at work"
            return
        left = cache.leftovers(store, named, before)
        if left.entries or left.objects:
            objects = _counted(len(left.objects), "object", "objects")
            yield Freed(f"{objects} of DVC's cache that nothing names", left.size, left.remove)


def _named(home: Checkout, kept: Kept) -> set[str]:
    """What locks name, in git and in every working tree that stays, and what runs left behind."""
    others = [p for p in cache.worktrees(home.root) if not p.is_relative_to(home.root / "runs")]
    named = cache.named_in_git(home.root) | {o for r in kept.runs for o in r.objects.values()}
    for place in (*kept.places, *(Checkout(path, path, home.servers) for path in others)):
        named |= cache.named_in_tree(place)
    return named
