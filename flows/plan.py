"""`distill.rungs` beside the data and the teacher, before DVC reads them: as `plan: auto` has them
(`stillhouse plan --write`), and whether the stages can take them as they are.

Beside what `acquire` takes, only the rungs of `params.yaml` are written; `tasks.distill` proposes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from flows.acquire import RAW, acquire
from flows.cache import in_use
from flows.comparison import read_report
from flows.running import hold
from flows.state import Checkout
from tasks.core.errors import ParamsError
from tasks.core.files import read_json, write_text
from tasks.core.params import check, parse

if TYPE_CHECKING:
    from flows.params import Params
    from tasks.core.models import Architecture
    from tasks.core.tables import Schema
    from tasks.distill.decision import PlanReport
    from tasks.distill.propose import Chain, Ground
    from tasks.modalities.vision.snapshot import SnapshotInfo
    from tasks.teach.params import TeachParams


def write_plan(checkout: Checkout) -> Iterator[str]:
    """Write `distill.rungs` of `params.yaml` as `plan: auto` has them; says what they are.

    That is the proposal for the budget, or the chain that a comparison of it recommended.
    """
    with hold(checkout), in_use(checkout):
        params = _params(checkout)
        if params.distill.plan is None:
            raise ParamsError(
                "params.yaml: distill.plan: null leaves distill.rungs as written; set plan: auto "
                "and distill.budget"
            )
        acquire(checkout, params)
        on = ground(checkout, params)
        chain, source = _chosen(checkout, params, on)
        _write(checkout, chain)
    yield f"params.yaml: distill.rungs is now {source}"
    yield from (f"  {line}" for line in described(chain, on))


def settle(checkout: Checkout, params: Params) -> str | None:
    """Before DVC reads the rungs: under `plan: auto` they must be the plan's.

    In a workspace, whose `params.yaml` is written for it anyway, they are written, and a note is
    returned; elsewhere a `ParamsError` says what to type. `data/raw` must be there.
    """
    if params.distill.plan is None:
        return None
    from tasks.distill.chains import planned
    from tasks.distill.propose import propose

    on, name = ground(checkout, params), params.distill.ship[0]
    latency = params.distill.budget is not None and params.distill.budget.kind == "latency_ms"
    if planned(params.distill, on, params.teach.views.count) and (
        latency or _student(params, on) == params.distill.rungs[name].architecture
    ):
        return None  # a latency is not measured again: the student would change with the weather
    if checkout.root == checkout.home:
        raise ParamsError(
            "params.yaml: distill.rungs: are not what plan: auto proposes for distill.budget; "
            "type `stillhouse plan --write`"
        )
    assert params.distill.budget is not None  # noqa: S101 - plan: auto has one
    chain = propose(name, params.distill.budget, on)
    _write(checkout, chain)
    return f"plan: auto: {', '.join(described(chain, on))}"


def check_steps(checkout: Checkout, params: Params) -> None:
    """Refuse at once what a rung's own stage would refuse once its teacher has trained: a step of
    more than 10:1, and a batch larger than the data. `data/raw` must be there.

    An ensemble's size is known when it has chosen among its members: its stage looks.
    """
    from tasks.distill.propose import size
    from tasks.distill.report import check_ratio

    info, rungs = _snapshot(checkout), params.distill.rungs
    rows = info.rows + (info.transfer.rows if info.transfer else 0)
    batches = {f"distill.rungs.{name}": rung.training.batch for name, rung in rungs.items()}
    if params.teach.source == "train":
        batches["teach"] = params.teach.training.batch
    for where, batch in batches.items():
        if batch > rows:
            raise ParamsError(
                f"params.yaml: {where}.training.batch: {batch} is larger than all {rows} rows of "
                "the data; lower it"
            )
    sizes = {name: size(rung.architecture, info.data) for name, rung in rungs.items()}
    if params.teach.source != "ensemble":
        sizes["teacher"] = _teacher_size(checkout.root, params.teach, info.data)
    for name, rung in rungs.items():
        if rung.from_ in sizes:
            check_ratio(rung.from_, sizes[rung.from_], name, sizes[name])


def ground(checkout: Checkout, params: Params) -> Ground:
    """What a proposal stands on: the data's shape and the teacher's size, before anything runs."""
    from tasks.distill import propose

    data = _snapshot(checkout).data
    teach = params.teach
    return propose.ground(
        params.distill,
        _teacher_size(checkout.root, teach, data),
        teach.architecture,
        teach.training,
        data,
    )


def described(chain: Chain, on: Ground) -> list[str]:
    """Each rung in a few words."""
    from tasks.distill.propose import size

    above, found = on.teacher, []
    for name, rung in chain.items():
        own = size(rung.architecture, on.data)
        widths = " ".join(map(str, rung.architecture.widths))
        found.append(
            f"{name} from {rung.from_}: {own:,} parameters ({above / own:.1f}:1), widths {widths}, "
            f"{rung.training.epochs} epochs"
        )
        above = own
    return found


def _snapshot(checkout: Checkout) -> SnapshotInfo:
    from tasks.modalities.vision.snapshot import SnapshotInfo

    path = checkout.root / RAW / "snapshot.json"
    return check(SnapshotInfo, read_json(path), where=str(path))


def _params(checkout: Checkout) -> Params:
    from flows.params import check_params

    return check_params(checkout.root)


def _student(params: Params, on: Ground) -> Architecture:
    from tasks.distill.propose import student

    assert params.distill.budget is not None  # noqa: S101 - plan: auto has one
    return student(params.distill.budget, on)


def _teacher_size(root: Path, teach: TeachParams, data: Schema) -> int:
    """Parameters of the teacher: of a given one, counted in its files; of one to be trained, by its
    architecture; of an ensemble, of the members that it kept, or of all before it was made."""
    from tasks.core.models import MODELS, read_spec
    from tasks.distill.propose import size
    from tasks.teach.given import read_given

    if teach.source == "train":
        return size(teach.architecture, data)
    given, made = root / RAW / "teacher", root / MODELS / "teacher"
    if teach.source != "ensemble":
        return read_given(given, teach.source, data).parameters
    if (made / "spec.json").is_file() and (spec := read_spec(made)).kind == "ensemble":
        return spec.parameters
    return sum(
        read_given(given / f"members/{number}", member.source, data).parameters
        for number, member in enumerate(teach.members)
    )


def _chosen(checkout: Checkout, params: Params, on: Ground) -> tuple[Chain, str]:
    """What to write, and in words where it comes from."""
    from tasks.core.models import MODELS, read_spec
    from tasks.distill.chains import candidates
    from tasks.distill.decision import REPORT
    from tasks.distill.propose import down_to

    name = params.distill.ship[0]
    proposed = down_to(name, _student(params, on), on)
    if (checkout.root / REPORT).is_file():
        report = read_report(checkout.root)
        compared = candidates(proposed, on, params.teach.views.count)
        teacher = checkout.root / MODELS / "teacher"
        same = {chain.name: chain.rungs for chain in report.chains} == compared
        known = (teacher / "spec.json").is_file() and read_spec(teacher).sha256 == report.teacher
        if same and known and _of_these_data(checkout.root, report) and report.write is not None:
            said = f"the {report.write} chain, as {REPORT} recommends"
            if report.write != report.recommended:
                said = (
                    f"the {report.write} chain; {REPORT} recommends {report.recommended}, "
                    "which has a step that distill refuses"
                )
            return compared[report.write], said
    return proposed, "the proposal for distill.budget"


def _of_these_data(root: Path, report: PlanReport) -> bool:
    """The report's tables are those of the snapshot that lies there now."""
    path = root / "data" / "fingerprint.json"
    if not path.is_file():
        return False
    today, snapshot = read_json(path), read_json(root / RAW / "snapshot.json")["sha256"]
    return (report.fingerprint, snapshot) == (today["digest"], today["snapshot"])


def _write(checkout: Checkout, chain: Chain) -> None:
    """Replace the rungs in `params.yaml`, which is still valid as a whole."""
    from flows.params import checked, with_rungs
    from tasks.distill.propose import written

    path = checkout.root / "params.yaml"
    text = with_rungs(path.read_text(encoding="utf-8"), written(chain))
    checked(parse(text, str(path)), str(path))
    write_text(path, text)
