"""What a crash leaves behind is mended by the next command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows.dag import read_graph
from flows.recovery import keep_lock, locked_outs, recover
from flows.running import MARK, MENDING, busy, hold, lives, orphans, records, write_record
from tasks.core.errors import DataError


def test_after_kill_9_the_orphan_ends_and_the_outs_are_back(
    tiny: Any, prefect_url: str, until: Any
) -> None:
    tiny.change("left", value=2, wait="never")
    (tiny.root / "began-left").unlink()
    flow = tiny.start(prefect_url)
    until((tiny.root / "began-left").exists)
    children = psutil.Process(flow.pid).children(recursive=True)

    flow.kill()
    flow.communicate()
    left_alone = [p for p in children if lives(p) and "step.py" in p.cmdline()]
    scratch = tiny.root / "out" / ".left.txt.half.txt"
    scratch.touch()
    notes = recover(tiny.checkout)

    assert len(left_alone) >= 1
    assert notes == [
        "ended left, which a dead run had left running",
        "checked out out/left.txt again",
    ]
    assert not any(lives(p) for p in children)
    assert tiny.out("left").read_text() == "1"
    assert not scratch.exists()
    assert records(tiny.checkout) == []
    assert recover(tiny.checkout) == []
    assert read_graph(tiny.root).stale == {
        "left": ("left modified",),
        "join": ("follows left",),
    }


def test_a_run_that_is_alive_is_left_alone(tiny: Any) -> None:
    write_record(tiny.checkout, "left", os.getpid(), ("out/left.txt",))
    with hold(tiny.checkout):
        holder = busy(tiny.checkout)

        assert recover(tiny.checkout) == []

    assert holder is not None
    assert f"process {os.getpid()}" in holder
    assert [r.name for r in records(tiny.checkout)] == ["left"]


def test_a_command_that_mends_before_it_looks_is_waited_for(tiny: Any) -> None:
    mending, done = threading.Event(), threading.Event()

    def look() -> None:
        with hold(tiny.checkout, MENDING):
            mending.set()
            done.wait(0.8)  # longer than a glance

    thread = threading.Thread(target=look)
    thread.start()
    mending.wait()
    with hold(tiny.checkout):
        assert not thread.is_alive() or not done.is_set()
    thread.join()


def test_outs_that_a_bare_dvc_repro_is_making_are_left_to_it(tiny: Any, until: Any) -> None:
    tiny.change("left", value=2, wait="go")
    (tiny.root / "began-left").unlink()
    command = [sys.executable, "-m", "dvc", "repro", "--single-item", "left"]
    with subprocess.Popen(command, cwd=tiny.root, stdout=subprocess.DEVNULL) as repro:
        until((tiny.root / "began-left").exists)
        tiny.out("left").unlink()
        tiny.out("right").unlink()

        assert recover(tiny.checkout) == []

        (tiny.root / "go").touch()
    assert repro.returncode == 0
    assert tiny.out("left").read_text() == "2"
    assert recover(tiny.checkout) == ["checked out out/right.txt again"]


def test_what_a_bare_dvc_repro_writes_is_not_taken_for_what_a_killed_run_wrote(
    tiny: Any, until: Any
) -> None:
    write_record(tiny.checkout, "left", 0, ("out/left.txt",))
    tiny.change("left", value=2, wait="go")
    (tiny.root / "began-left").unlink()
    command = [sys.executable, "-m", "dvc", "repro", "--single-item", "left"]
    with subprocess.Popen(command, cwd=tiny.root, stdout=subprocess.DEVNULL) as repro:
        until((tiny.root / "began-left").exists)
        half = (tiny.out("left"), tiny.out("left").with_name(".left.txt.x1y2"))
        for path in half:
            path.write_text("half")

        assert recover(tiny.checkout) == []

        assert [path.read_text() for path in half] == ["half", "half"]
        (tiny.root / "go").touch()
    assert repro.returncode == 0
    recover(tiny.checkout)
    assert records(tiny.checkout) == []
    assert tiny.out("left").read_text() == "2"
    assert not half[1].exists()


def test_without_a_lock_file_no_outs_are_locked(tiny: Any) -> None:
    keep_lock(tiny.checkout)
    (tiny.root / "dvc.lock").unlink()

    assert locked_outs(tiny.root, "left") == []


def test_outs_of_a_lock_that_dvc_is_writing_are_those_of_our_copy(tiny: Any) -> None:
    keep_lock(tiny.checkout)
    lock = tiny.root / "dvc.lock"
    lock.write_bytes(b"")

    assert locked_outs(tiny.root, "left") == ["out/left.txt"]


def test_a_second_run_says_who_is_first(tiny: Any) -> None:
    with (
        hold(tiny.checkout),
        pytest.raises(DataError, match=f"another run works here \\(process {os.getpid()} since"),
        hold(tiny.checkout),
    ):
        pass

    assert busy(tiny.checkout) is None


def test_a_workspace_that_gc_removed_while_it_was_waited_for_stays_gone(tiny: Any) -> None:
    place = replace(tiny.checkout, root=tiny.root / "runs" / "gone")
    with pytest.raises(DataError, match="gone: `stillhouse gc` has just removed it"), hold(place):
        pass

    assert not place.root.exists()


def test_a_process_with_a_recorded_number_but_without_the_mark_is_spared(tiny: Any) -> None:
    write_record(tiny.checkout, "left", os.getpid(), ())

    assert orphans(tiny.checkout, "left") == []
    assert MARK not in os.environ


def test_a_record_that_was_cut_off_still_names_its_stage(tiny: Any) -> None:
    write_record(tiny.checkout, "left", 1, ())
    path = tiny.root / ".stillhouse/running/left.json"
    path.write_text(path.read_text()[:20])

    assert [r.name for r in records(tiny.checkout)] == ["left"]


def rwlock(tiny: Any) -> Path:
    path: Path = tiny.root / ".dvc/tmp/rwlock"
    return path


def test_a_torn_lock_table_no_longer_blocks(tiny: Any) -> None:
    rwlock(tiny).write_text('{"write": {"/a')
    with pytest.raises(DataError, match="DVC cannot read the DAG"):
        read_graph(tiny.root)

    notes = recover(tiny.checkout)

    assert notes == ["removed DVC's lock table, which a crash had torn"]
    assert read_graph(tiny.root).stale == {}


def test_a_lock_table_that_names_a_process_that_is_not_dvc_no_longer_blocks(tiny: Any) -> None:
    entry = {"pid": 1, "cmd": "dvc repro"}
    rwlock(tiny).write_text(json.dumps({"write": {str(tiny.out("left")): entry}}))
    with pytest.raises(DataError, match="busy"):
        read_graph(tiny.root)

    recover(tiny.checkout)

    assert read_graph(tiny.root).stale == {}


@pytest.mark.parametrize("share", [0, 0.5, 0.9])
def test_a_torn_lock_file_comes_back_from_our_copy(tiny: Any, share: float) -> None:
    lock = tiny.root / "dvc.lock"
    keep_lock(tiny.checkout)
    whole = lock.read_bytes()
    lock.write_bytes(whole[: int(len(whole) * share)])

    notes = recover(tiny.checkout)

    assert notes == ["restored dvc.lock, which a crash had torn, from the last whole copy"]
    assert lock.read_bytes() == whole
    assert read_graph(tiny.root).stale == {}


def test_without_our_copy_a_torn_lock_file_comes_back_from_git(tiny: Any) -> None:
    lock = tiny.root / "dvc.lock"
    whole = lock.read_bytes()
    lock.write_bytes(whole[: len(whole) // 2].rsplit(b":", 1)[0])

    notes = recover(tiny.checkout)

    assert notes == ["restored dvc.lock, which a crash had torn, from the last commit"]
    assert lock.read_bytes() == whole


def test_a_torn_lock_file_without_any_copy_is_set_aside_and_stages_come_from_the_cache(
    tiny: Any,
) -> None:
    tiny.call("git", "rm", "--cached", "--quiet", "dvc.lock")
    tiny.call("git", "-c", "user.name=t", "-c", "user.email=t@e.org", "commit", "-qm", "no lock")
    (tiny.root / "dvc.lock").write_text("schema: '2.0'\nstages:\n  gro")

    notes = recover(tiny.checkout)

    assert notes == ["set a torn dvc.lock aside; stages come back from DVC's run cache"]
    assert not (tiny.root / "dvc.lock").exists()
    for began in tiny.root.glob("began-*"):
        began.unlink()
    tiny.repro()
    assert list(tiny.root.glob("began-*")) == []


def test_missing_outs_are_checked_out_and_edited_ones_are_left(tiny: Any) -> None:
    tiny.out("left").unlink()
    tiny.out("right").unlink()
    tiny.out("right").write_text("by hand")

    notes = recover(tiny.checkout)

    assert notes == ["checked out out/left.txt again"]
    assert tiny.out("right").read_text() == "by hand"


@pytest.mark.parametrize("scratch", ["evidence/.student.x1y2", "ship/.student.partial"])
def test_a_half_written_folder_beside_an_out_is_removed(tiny: Any, scratch: str) -> None:
    folder = tiny.root / scratch
    folder.mkdir(parents=True)
    (folder / "half.json").touch()
    (folder.parent / ".other.x1y2").mkdir()
    write_record(tiny.checkout, "left", 0, (str(Path(scratch).parent / "student"),))

    recover(tiny.checkout)

    assert [path.name for path in folder.parent.iterdir()] == [".other.x1y2"]


def test_a_half_taken_snapshot_is_removed(tiny: Any) -> None:
    (tiny.root / "data/.raw.abc").mkdir(parents=True)

    recover(tiny.checkout)

    assert list((tiny.root / "data").iterdir()) == []
