"""DVC's cache of a checkout: who uses it at the moment, what names its objects, what nothing names.

`dvc gc` is not used: it knows no age, so that it would remove what a stage wrote a moment ago and
no lock names yet; it keeps what a commit, a tag or a project folder names, but not what a sealed
bundle or the record of a run does; one old commit with a `dvc.yaml` that no longer parses stops
it; it never removes entries of the run cache. Here, whatever looks like an MD5 in a lock names an
object, a named folder names its files, and what is young is named too. Nothing is fetched.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from flows import repository
from flows.recovery import SAFE_LOADER, kept_lock
from flows.state import Checkout
from tasks.core.errors import DataError

MD5 = re.compile(r"\b[0-9a-f]{32}(?:\.dir)?\b")
FILES = Path("files", "md5")  # of objects, below the cache's folder
ENTRIES = Path("runs")  # the run cache: a folder for each input, a lock entry for each result
DISCARDED = ".discarded-"  # what is being removed


@dataclass(frozen=True)
class Leftovers:
    """What nothing names, in the order of removal: what names others comes before them."""

    entries: tuple[Path, ...]  # of the run cache
    objects: tuple[Path, ...]  # listings of folders, then files

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(size_of(path) for path in (*self.entries, *self.objects))

    def remove(self) -> None:
        """Remove all; cut off anywhere, the next search finds the rest."""
        for path in self.entries:
            discard(path)  # DVC stumbles over a folder without entries
        for path in self.objects:
            path.unlink(missing_ok=True)


@contextmanager
def in_use(checkout: Checkout) -> Iterator[None]:
    """A run is at work, here or in a workspace: nothing leaves the cache or the bundles."""
    with _lock(checkout) as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield


@contextmanager
def unused(checkout: Checkout) -> Iterator[bool]:
    """Keep runs waiting while the block removes things; yields False where one is at work."""
    with _lock(checkout) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


@contextmanager
def _lock(checkout: Checkout) -> Iterator[int]:
    checkout.state.mkdir(parents=True, exist_ok=True)
    lock = os.open(checkout.state / "cache.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        yield lock
    finally:
        os.close(lock)


def discard(path: Path) -> None:
    """Remove a file or folder: under its name it is whole or absent, whenever this is cut off."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    gone = path
    if not path.name.startswith(DISCARDED):
        gone = path.with_name(f"{DISCARDED}{path.name}")
        if gone.exists():  # of the same name, cut off before
            shutil.rmtree(gone)
        path.rename(gone)
    shutil.rmtree(gone)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; links count for themselves."""
    inside = path.rglob("*") if path.is_dir() and not path.is_symlink() else [path]
    return sum(p.lstat().st_size for p in inside if p.is_symlink() or p.is_file())


def names(text: str) -> set[str]:
    """MD5s in a `dvc.lock`, a `.dvc` file or the listing of a folder, whole or torn.

    >>> names("md5: 00112233445566778899aabbccddeeff.dir, sha: 0011223344556677")
    {'00112233445566778899aabbccddeeff.dir'}
    """
    return set(MD5.findall(text))


def named_in_tree(place: Checkout) -> set[str]:
    """What the locks in a working tree name, committed or not; trees below `runs/` are others'."""
    found = set()
    for path in [place.root / "dvc.lock", kept_lock(place), *_dvc_files(place.root)]:
        if path.is_file():
            found |= names(path.read_text(errors="replace"))
    return found


def _dvc_files(root: Path) -> Iterator[Path]:
    for folder, below, files in os.walk(root):
        below[:] = [name for name in below if not name.startswith(".") and name != "runs"]
        yield from (Path(folder, name) for name in files if name.endswith(".dvc"))


def named_in_git(root: Path) -> set[str]:
    """What the locks at every branch, tag and other ref name, and those at the HEAD."""
    if not _in_git(root):
        return set()
    trees = set(_git(root, "for-each-ref", "--format=%(tree)%0a%(*tree)").split())
    head = repository.commit(root)
    blobs = set()
    for tree in trees | ({head} if head else set()):
        for line in _git(root, "ls-tree", "-r", "-z", "--full-tree", tree).split("\0"):
            kind, _, path = line.partition("\t")
            if path.rpartition("/")[2] == "dvc.lock" or path.endswith(".dvc"):
                blobs.add(kind.split()[2])
    return {name for blob in blobs for name in names(_git(root, "cat-file", "blob", blob))}


def worktrees(root: Path) -> dict[Path, bool]:
    """Working trees that git knows of beside `root` -> whether somebody locked them."""
    if not _in_git(root):
        return {}
    told = _git(root, "worktree", "list", "--porcelain").split("\n\n")
    blocks = [block.strip().splitlines() for block in told if block.strip()]
    found = {
        Path(block[0].removeprefix("worktree ")): any(line.startswith("locked") for line in block)
        for block in blocks
    }
    return {path: locked for path, locked in found.items() if path != root}


def prune_worktrees(root: Path) -> None:
    """Let git forget the working trees that are gone."""
    if _in_git(root):
        _git(root, "worktree", "prune")


def _in_git(root: Path) -> bool:
    return any((folder / ".git").exists() for folder in (root, *root.parents))


def _git(root: Path, *arguments: str) -> str:
    """What git says; where it cannot, a `DataError`: what it would have named is not known."""
    command = ["git", *arguments]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, check=True)
    except FileNotFoundError:
        raise DataError(f"{root}: git is not installed; install it, then free space") from None
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().splitlines()
        raise DataError(
            f"{root}: git {arguments[0]} failed ({said[0] if said else 'without a word'}); "
            "mend the repository, then free space"
        ) from None
    return done.stdout.decode(errors="replace")


def leftovers(cache: Path, named: set[str], before: float) -> Leftovers:
    """What lies in `cache` since before a time (s since the epoch) and is not in `named`."""
    objects = {
        f"{path.parent.name}{path.name}": path
        for path in (cache / FILES).glob("*/*")
        if path.is_file()
    }
    kept = named | {name for name, path in objects.items() if path.stat().st_mtime >= before}
    for name in [n for n in kept if n.endswith(".dir") and n in objects]:
        kept |= names(objects[name].read_text(errors="replace"))
    free = [(not name.endswith(".dir"), path) for name, path in objects.items() if name not in kept]
    left = tuple(path for _, path in sorted(free))
    return Leftovers(tuple(_entries(cache, kept & objects.keys(), before)), left)


def _entries(cache: Path, there: set[str], before: float) -> Iterator[Path]:
    """Entries of the run cache whose results are not all `there`; where none stays, the folder."""
    for folder in (cache / ENTRIES).glob("*/*"):
        if folder.name.startswith(DISCARDED):
            yield folder
            continue
        entries = list(folder.iterdir())
        gone = [e for e in entries if e.stat().st_mtime < before and not _results(e) <= there]
        yield from gone if len(gone) < len(entries) else [folder]


def _results(entry: Path) -> set[str]:
    """The objects that an entry of the run cache would bring back."""
    try:
        content = yaml.load(entry.read_bytes(), SAFE_LOADER)  # noqa: S506
        return {str(out.get("md5")) for out in content["outs"]}
    except (yaml.YAMLError, KeyError, TypeError, AttributeError):
        return {"not an entry"}
