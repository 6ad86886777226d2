"""Three weeks of a small project, then `stillhouse gc`: what a version or the ledger names stays.

DVC, git, seal and MLflow are real; only the student is not trained.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows import expiry, registry, tracking
from flows.dag import read_graph
from flows.gc import collect
from flows.runs import read_runs, recorded
from flows.seal import seal, verify
from flows.state import Checkout
from flows.store import opened
from tests.flows.conftest import ROOT, Tiny
from tests.flows.registry.project import judged, model_bytes, write_spec

NAME = "digits-candidates"


@dataclasses.dataclass
class Weeks:
    """A project that was retrained, and what gc did to it."""

    tiny: Tiny
    bundles: list[Path] = dataclasses.field(default_factory=list)
    versions: list[int | None] = dataclasses.field(default_factory=list)
    locks: list[str] = dataclasses.field(default_factory=list)
    would: tuple[str, ...] = ()
    untouched: bool = False
    said: tuple[str, ...] = ()
    runs: tuple[int, ...] = ()  # of MLflow, before and after

    @property
    def checkout(self) -> Checkout:
        return self.tiny.checkout

    def week(self, number: int, approved: bool) -> None:
        """New data, another student, a run on record."""
        self.tiny.change("grow", value=number)
        self.tiny.repro()
        root = self.tiny.root
        (root / "ship/student/model.onnx").write_bytes(model_bytes(number))
        write_spec(root / "ship/student")
        judged(root, approved)
        with recorded(self.checkout) as story:
            run = tracking.project(self.checkout)
            bundle = seal(self.checkout, "student")
            version = registry.register(self.checkout, "student", bundle, run)
            story.tell("student", bundle=bundle.name, version=version, approved=approved)
        self.bundles.append(bundle)
        self.versions.append(version)
        self.locks.append((root / "dvc.lock").read_text())

    def object_of(self, week: int) -> Path:
        """Where DVC's cache holds what `grow` wrote in a week."""
        lock = self.locks[week]
        name = lock[lock.index("out/grow.txt") :].split("md5: ")[1][:32]
        return self.tiny.root / ".dvc/cache/files/md5" / name[:2] / name[2:]

    def count_runs(self) -> int:
        with opened(self.checkout) as store:
            return len(list(expiry._runs(store, [store.experiment])))

    def everything(self) -> dict[str, bytes]:
        """Every file that gc could remove."""
        places = (self.checkout.state, self.tiny.root / ".dvc/cache")
        files = (path for place in places for path in place.rglob("*") if path.is_file())
        return {str(path): path.read_bytes() for path in files if path.suffix != ".lock"}


@pytest.fixture(scope="module")
def weeks(
    grown: Path, template: Path, empty_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Weeks]:
    """Approved and registered; refused; approved and registered; then gc of all that may go."""
    root = tmp_path_factory.mktemp("weeks") / "tiny"
    shutil.copytree(grown, root, symlinks=True)
    for name in ("data", "evidence", "measured", "models", "reports", "ship"):
        shutil.copytree(template / name, root / name)
    lived = Weeks(Tiny(root))
    lived.checkout.state.mkdir()
    shutil.copyfile(empty_store, lived.checkout.state / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        patch.setenv("PYTHONPATH", str(ROOT))
        for number, approved in ((1, True), (2, False), (3, True)):
            lived.week(number, approved)
        before, count = lived.everything(), lived.count_runs()
        lived.would = tuple(collect(lived.checkout, 0, dry_run=True))
        lived.untouched = lived.everything() == before
        lived.said = tuple(collect(lived.checkout, 0, dry_run=False))
        lived.runs = (count, lived.count_runs())
        yield lived


def test_a_dry_run_says_what_would_go_and_removes_nothing(weeks: Weeks) -> None:
    assert weeks.untouched
    assert [line.replace("would free", "freed") for line in weeks.would] == list(weeks.said)


def test_what_a_version_names_stays_and_the_rest_goes(weeks: Weeks) -> None:
    first, refused, last = weeks.bundles

    assert weeks.versions == [1, None, 2]
    assert (verify(first), refused.exists(), verify(last)) == ([], False, [])
    assert [weeks.object_of(week).is_file() for week in range(3)] == [True, False, True]
    assert weeks.runs[0] - weeks.runs[1] == 6  # the refused week's own, and its five stages'
    assert read_runs(weeks.checkout) == {}
    assert [line.partition(":")[0] for line in weeks.said] == [
        "3 records of runs",
        "6 runs of MLflow, 0 models",
        f"bundle {refused.name}",
        "1 object of DVC's cache that nothing names",
        weeks.said[-1],
    ]


def test_a_second_time_there_is_nothing_to_free_and_nothing_is_stale(weeks: Weeks) -> None:
    assert list(collect(weeks.checkout, 0, dry_run=False)) == ["freed 0 bytes"]
    assert read_graph(weeks.tiny.root).stale == {}


def test_a_version_still_has_its_bundle_its_model_and_the_runs_of_its_stages(
    weeks: Weeks, tmp_path: Path
) -> None:
    with opened(weeks.checkout) as store:
        for number in ("1", "2"):
            version = store.client.get_model_version(NAME, number)
            run, place = str(version.run_id), version.tags["stillhouse.bundle"]
            stages = store.runs({"mlflow.parentRunId": run})
            links = {s.data.tags.get("stillhouse.computed_by") for s in stages} - {None}
            model = expiry._folder(store.client.get_model_version_download_uri(NAME, number))

            assert verify(Path(store.client.download_artifacts(run, place, str(tmp_path)))) == []
            assert len(stages) == 5
            assert {store.client.get_run(str(link)).info.status for link in links} <= {"FINISHED"}
            assert (model / "model.onnx").is_file()


def test_a_versions_data_come_back_and_what_went_is_made_again(weeks: Weeks) -> None:
    (weeks.tiny.root / "dvc.lock").write_text(weeks.locks[0])
    done = weeks.tiny.call(sys.executable, "-m", "dvc", "checkout", "--force")
    back = weeks.tiny.out("grow").read_text()

    weeks.tiny.change("grow", value=2)
    weeks.tiny.repro()  # its entry in the run cache names what is gone

    assert (done.returncode, back) == (0, "1"), done.stderr
    assert weeks.tiny.out("grow").read_text() == "2"
    assert weeks.object_of(1).is_file()
