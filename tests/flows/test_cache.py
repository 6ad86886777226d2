"""What names an object of DVC's cache, and what is left over; each rule on a cache made by hand."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from flows.cache import DISCARDED, discard, leftovers, named_in_git, named_in_tree, size_of
from tasks.core.errors import DataError

LONG_AGO = 1_000_000.0
BEFORE = 2_000_000.0


class Cache:
    """A cache folder; `put` and `entry` return names, all of long ago unless told."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def put(self, content: str, suffix: str = "", at: float = LONG_AGO) -> str:
        name = hashlib.md5(content.encode()).hexdigest() + suffix  # noqa: S324
        self._write(self.root / "files/md5" / name[:2] / name[2:], content, at)
        return name

    def listing(self, *names: str, at: float = LONG_AGO) -> str:
        content = [{"md5": name, "relpath": f"{i}.bin"} for i, name in enumerate(names)]
        return self.put(json.dumps(content), ".dir", at)

    def entry(self, key: str, value: str, out: str, at: float = LONG_AGO) -> Path:
        lock = f"cmd: python step.py\nouts:\n- path: out\n  hash: md5\n  md5: {out}\n"
        path = self.root / "runs" / key[:2] / key / value
        self._write(path, lock, at)
        return path

    def _write(self, path: Path, content: str, at: float) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        os.utime(path, (at, at))

    def objects(self) -> set[str]:
        files = (self.root / "files/md5").glob("*/*")
        return {f"{path.parent.name}{path.name}" for path in files}

    def sweep(self, *named: str) -> None:
        leftovers(self.root, set(named), BEFORE).remove()


@pytest.fixture
def store(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def test_what_is_named_stays_and_a_named_folder_keeps_its_files(store: Cache) -> None:
    file, inside, gone = store.put("file"), store.put("inside"), store.put("gone")
    folder, left = store.listing(inside), store.listing(inside, gone)

    store.sweep(file, folder)

    assert store.objects() == {file, inside, folder}
    assert {gone, left}.isdisjoint(store.objects())


def test_what_is_young_stays_with_the_files_of_a_young_folder(store: Cache) -> None:
    inside, old = store.put("inside"), store.put("old")
    young, folder = store.put("young", at=BEFORE + 1), store.listing(inside, at=BEFORE + 1)

    store.sweep()

    assert store.objects() == {inside, young, folder}
    assert old not in store.objects()


def test_listings_go_before_files_and_entries_of_the_run_cache_before_both(store: Cache) -> None:
    file = store.put("file")
    folder = store.listing(file)
    entry = store.entry("ab" * 32, "cd" * 32, folder)

    left = leftovers(store.root, set(), BEFORE)

    assert [path.name for path in left.objects] == [folder[2:], file[2:]]
    assert left.entries == (entry.parent,)
    assert left.size == size_of(store.root)


def test_an_entry_of_the_run_cache_goes_when_its_result_does(store: Cache) -> None:
    kept, gone = store.put("kept"), store.put("gone")
    alone = store.entry("aa" * 32, "01" * 32, gone)
    beside, stays = store.entry("bb" * 32, "02" * 32, gone), store.entry("bb" * 32, "03" * 32, kept)
    young = store.entry("cc" * 32, "04" * 32, gone, at=BEFORE + 1)

    store.sweep(kept)

    assert not alone.parent.exists()  # DVC stumbles over a folder without entries
    assert (beside.exists(), stays.exists(), young.exists()) == (False, True, True)


def test_what_was_cut_off_in_removal_goes_the_next_time(tmp_path: Path, store: Cache) -> None:
    entry = store.entry("aa" * 32, "01" * 32, store.put("gone"), at=BEFORE + 1)
    entry.parent.rename(entry.parent.with_name(f"{DISCARDED}{entry.parent.name}"))
    for name in ("folder", f"{DISCARDED}folder"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()

    store.sweep()
    discard(tmp_path / "folder")

    assert list((store.root / "runs/aa").iterdir()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_locks_name_objects_in_every_branch_and_tag_and_uncommitted(tiny: Any) -> None:
    name = {n: hashlib.md5(n.encode()).hexdigest() for n in "bthw"}  # noqa: S324
    identity = ["-c", "user.name=t", "-c", "user.email=t@e.org"]

    def commit(letter: str, *words: str) -> None:
        (tiny.root / "raw.dvc").write_text(f"outs:\n- md5: {name[letter]}\n  path: raw\n")
        tiny.call("git", "add", "raw.dvc")
        tiny.call("git", *identity, "commit", "-qm", letter)
        for word in words:
            tiny.call("git", *identity, *word.split())

    commit("b", "branch side", "checkout -q --detach")
    commit("t", "tag -a v1 -m v1")
    commit("h")
    (tiny.root / "raw.dvc").write_text(f"outs:\n- md5: {name['w']}\n  path: raw\n")

    in_git, in_tree = named_in_git(tiny.root), named_in_tree(tiny.checkout)

    assert {name["b"], name["t"], name["h"]} <= in_git
    assert name["w"] not in in_git
    assert name["w"] in in_tree


def test_a_repository_that_git_cannot_read_is_no_reason_to_free_all_it_names(tiny: Any) -> None:
    (tiny.root / ".git" / "HEAD").write_text("torn")

    with pytest.raises(DataError, match="mend the repository"):
        named_in_git(tiny.root)
