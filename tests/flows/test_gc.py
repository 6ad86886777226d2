"""`stillhouse gc` and workspaces, records and scratch: what is old goes, what is at work stays."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from flows.cache import DISCARDED, in_use, unused
from flows.gc import collect
from flows.running import MARK, hold, record_path, write_record
from flows.runs import Run, folder, read_runs, recorded
from flows.state import Checkout, find_checkout
from flows.store import this_process
from flows.workspace import prepare, requested
from tasks.core.errors import DataError, ParamsError
from tasks.core.files import write_json


def gc(tiny: Any, days: float = 30) -> list[str]:
    return list(collect(tiny.checkout, days, dry_run=False))


def workspace(tiny: Any, threads: int, made: float = 40) -> Checkout:
    """A workspace that was made so many days ago."""
    place = prepare(tiny.checkout, *requested(tiny.checkout, None, [f"threads={threads}"]))
    then = (datetime.now(UTC) - timedelta(days=made)).timestamp()
    os.utime(place, (then, then))
    return find_checkout(place)


def ran(place: Checkout, ended: float | None, process: str = "") -> Path:
    """The record of a run in `place` that ended so many days ago; None: it has no end."""
    now = datetime.now(UTC)
    run = Run(
        workspace=place.root.relative_to(place.home).as_posix(),
        commit=None,
        dirty=False,
        process=process or this_process(),
        began=now - timedelta(days=50),
        ended=None if ended is None else now - timedelta(days=ended),
    )
    path = folder(place) / f"{len(read_runs(place))}.json"
    write_json(path, run.model_dump(mode="json"))
    return path


def dead() -> str:
    """The mark of a process that has ended."""
    machine, _, start = this_process().split(":")
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return f"{machine}:{process.pid}:{start}"


def test_a_workspace_goes_by_the_end_of_its_last_run_with_its_records(tiny: Any) -> None:
    old, young = workspace(tiny, 1), workspace(tiny, 3)
    never = workspace(tiny, 4, made=20)
    records = [ran(old, 45), ran(old, 31), ran(young, 31), ran(young, 29)]

    said = gc(tiny)

    assert [place.root.exists() for place in (old, young, never)] == [False, True, True]
    assert [path.exists() for path in records] == [False, False, False, True]
    assert old.root.name not in tiny.call("git", "worktree", "list").stdout
    assert said[0].startswith(f"workspace runs/{old.root.name}: ")


def test_a_killed_run_counts_from_its_beginning_and_a_living_one_stays(tiny: Any) -> None:
    killed, living = workspace(tiny, 1), workspace(tiny, 3)
    ran(killed, None, dead())
    record = ran(living, None)

    said = gc(tiny)

    assert (killed.root.exists(), living.root.exists()) == (False, True)
    assert list(read_runs(tiny.checkout)) == [record]
    assert f"workspace runs/{living.root.name} stays: a run is at work in it" in " ".join(said)


def test_a_busy_workspace_stays_and_so_does_what_its_run_could_need(tiny: Any) -> None:
    busy, idle = workspace(tiny, 1), workspace(tiny, 3)
    record = ran(tiny.checkout, 40)

    with hold(busy), in_use(busy):
        said = gc(tiny)

    assert (busy.root.exists(), idle.root.exists(), record.exists()) == (True, False, True)
    assert said[-2] == "a run is at work in a workspace: bundles, MLflow and DVC's cache stay"


def test_runs_share_the_cache_and_whoever_removes_has_it_alone(tiny: Any) -> None:
    def taken() -> bool:
        with (tiny.checkout.state / "cache.lock").open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    with in_use(tiny.checkout), in_use(tiny.checkout), unused(tiny.checkout) as beside_runs:
        shared = not taken()
    with unused(tiny.checkout) as alone:
        held = taken()

    assert (beside_runs, shared) == (False, True)
    assert (alone, held, taken()) == (True, True, False)


def test_while_a_run_works_in_the_checkout_nothing_is_freed(tiny: Any) -> None:
    old = workspace(tiny, 1)

    with hold(tiny.checkout), pytest.raises(DataError, match="another run works here"):
        gc(tiny)

    assert old.root.exists()


def test_a_locked_worktree_and_a_folder_of_somebody_else_stay(tiny: Any) -> None:
    locked = workspace(tiny, 1)
    tiny.call("git", "worktree", "lock", str(locked.root))
    mine = tiny.root / "runs" / "notes"
    mine.mkdir()
    os.utime(mine, (0, 0))

    said = gc(tiny, days=0)

    assert (locked.root.exists(), mine.exists()) == (True, True)
    assert said[0].endswith("stays: it is locked; `git worktree unlock` it")


def test_a_stage_that_a_killed_run_left_in_a_workspace_is_ended_with_it(tiny: Any) -> None:
    place = workspace(tiny, 1)
    stage = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"],
        env=os.environ | {MARK: str(record_path(place, "teach"))},
    )
    write_record(place, "teach", stage.pid, ("models/teacher",))

    gc(tiny)

    assert stage.wait(10) != 0
    assert not place.root.exists()


def test_cut_off_while_a_workspace_is_removed_the_next_one_ends_it(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = workspace(tiny, 1)

    def cut_off(path: Path) -> None:
        (path / ".git").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", cut_off)
        gc(tiny)
    between = [path.name for path in (tiny.root / "runs").iterdir()]
    gc(tiny)

    assert between == [f"{DISCARDED}{place.root.name}"]
    assert list((tiny.root / "runs").iterdir()) == []
    again = prepare(tiny.checkout, *requested(tiny.checkout, None, ["threads=1"]))
    assert (again / "step.py").is_file()


def test_a_workspace_that_goes_at_the_moment_it_is_asked_for_is_no_reason_to_touch_the_checkout(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = workspace(tiny, 1)
    asked = requested(tiny.checkout, None, ["threads=1"])
    (tiny.root / "step.py").write_text("not committed")

    @contextmanager
    def freed_before(checkout: Checkout) -> Iterator[None]:
        gc(tiny)
        with hold(checkout):
            yield

    with monkeypatch.context() as patch, pytest.raises(DataError, match="run again"):
        patch.setattr("flows.workspace.hold", freed_before)
        prepare(tiny.checkout, *asked)

    assert (tiny.root / "step.py").read_text() == "not committed"
    assert prepare(tiny.checkout, *asked) == place.root


def test_what_failed_and_was_cut_off_goes_by_age(tiny: Any) -> None:
    state = tiny.checkout.state
    old = [state / "failed/teach", state / "bundles/.sealing-x", state / "runs/.1.json.y.json"]
    young = state / "failed/judge"
    for path in (*old, young):
        path.mkdir(parents=True)
    for path in old:
        os.utime(path, (0, 0))

    gc(tiny)

    assert [path.exists() for path in (*old, young)] == [False, False, False, True]


def age(folder: Path) -> None:
    """Make everything below a folder very old."""
    for path in folder.rglob("*"):
        os.utime(path, (0, 0))


def test_a_kept_record_keeps_what_its_run_left_in_the_cache(tiny: Any) -> None:
    cache = tiny.root / ".dvc/cache"
    two = cache / "files/md5/c8/1e728d9d4c2f636f067f89cc14862c"  # the MD5 of "2"
    tiny.change("grow", value=2)
    tiny.repro()
    with recorded(tiny.checkout):
        pass
    tiny.change("grow", value=3)
    tiny.repro()
    age(cache)

    gc(tiny)
    kept = two.is_file()
    shutil.rmtree(folder(tiny.checkout))
    gc(tiny)

    assert (kept, two.exists()) == (True, False)


def test_a_cache_that_lies_elsewhere_is_left(tiny: Any, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    object_ = shared / "files/md5/00/112233445566778899aabbccddeeff"
    object_.parent.mkdir(parents=True)
    object_.touch()
    age(shared)
    tiny.call(sys.executable, "-m", "dvc", "config", "cache.dir", str(shared))

    said = gc(tiny)

    assert said == [f"DVC's cache stays: {shared} may be shared", "freed 0 bytes"]
    assert object_.exists()


@pytest.mark.parametrize("days", [-1.0, float("nan"), float("inf")])
def test_an_age_that_is_none_is_refused(tiny: Any, days: float) -> None:
    with pytest.raises(ParamsError, match="--older-than"):
        gc(tiny, days)
