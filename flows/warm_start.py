"""The former student that new ones start from, brought into the snapshot as a model folder.

`distill.warm_start` names the champion, a folder of a checkout (`models/NAME`, `ship/STUDENT`) or a
sealed bundle. A bundle holds what ships and no float weights; DVC's cache holds those, under the
MD5 that its manifest names. Nothing is fetched.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from flows import ledger
from flows.bundle import MANIFEST, read_manifest, verify
from flows.cache import FILES
from flows.candidate import CHAMPION
from flows.state import Checkout
from flows.workspace import cache
from tasks.core.errors import DataError
from tasks.core.files import read_json, sha256
from tasks.core.models import WEIGHTS, Architecture, ModelSpec, write_spec
from tasks.core.params import check

if TYPE_CHECKING:
    from flows.params import Params
    from tasks.core.tables import Schema

Former = tuple[Path, Path]  # of a torch network: its spec, its weights
NONE = "set distill.warm_start: null"


def former(checkout: Checkout, params: Params) -> Callable[[Path, Schema], None] | None:
    """What writes the model folder that `distill.warm_start` asks for; None if it asks for none.

    It raises a `DataError`, before anything trains, if no shipped rung can start from that model.
    """
    asked = params.distill.warm_start
    if asked is None:
        return None
    place = _champion(checkout, params.name) if asked == CHAMPION else checkout.home / asked
    for made in ("models", "ship"):
        if place.resolve().is_relative_to((checkout.root / made).resolve()):
            raise DataError(
                f"{place}: is what a run here makes, so each would start another; name a copy "
                "outside, a sealed bundle, or champion"
            )
    spec, weights = _found(checkout, place)

    def write(folder: Path, data: Schema) -> None:
        from tasks.distill.warm_start import read_former

        folder.mkdir(parents=True)
        shutil.copyfile(weights, folder / WEIGHTS)
        write_spec(folder, check(ModelSpec, read_json(spec), where=str(spec)))
        try:
            architecture = read_former(folder, data)[0].architecture
        except DataError as error:
            raise DataError(str(error).replace(str(folder), str(place))) from None
        if params.distill.plan is None:  # else the rungs are not settled yet
            _fitting(place, architecture, params)

    return write


def check_start(checkout: Checkout, params: Params) -> None:
    """Under `plan: auto`, once its rungs are written: one that ships can start from them."""
    if params.distill.warm_start is not None and params.distill.plan is not None:
        path = checkout.root / "data" / "raw" / "warm_start" / "spec.json"
        spec = check(ModelSpec, read_json(path), where=str(path))
        _fitting(Path(params.distill.warm_start), spec.architecture, params)


def _fitting(place: Path, architecture: Architecture | None, params: Params) -> None:
    ships = params.distill.ship
    if all(params.distill.rungs[name].architecture != architecture for name in ships):
        raise DataError(
            f"{place}: has another architecture than {' and '.join(ships)} "
            f"({architecture}); give the rung that one, or {NONE}"
        )


def _champion(checkout: Checkout, name: str) -> Path:
    """The sealed bundle of the champion, as the ledger says."""
    standing = ledger.champions(ledger.read(checkout), name, CHAMPION)
    if not standing:
        raise DataError(
            f"distill.warm_start: {name} has no champion yet; promote one first, or {NONE}"
        )
    return checkout.bundles / standing[-1].bundle


def _found(checkout: Checkout, place: Path) -> Former:
    """The float network that a folder or bundle holds or stands for."""
    if (place / MANIFEST).is_file():
        return _of_bundle(checkout, place)
    pairs = [(place / f"float.{end}") for end in ("json", "safetensors")]
    spec, weights = pairs if pairs[0].is_file() else (place / "spec.json", place / WEIGHTS)
    for file in (spec, weights):
        if not file.is_file():
            raise DataError(
                f"{file}: no such file; distill.warm_start is champion, or a folder such as "
                "models/student or ship/student"
            )
    return spec, weights


def _of_bundle(checkout: Checkout, bundle: Path) -> Former:
    """The float student that a bundle's model was made of, from DVC's cache."""
    for problem in verify(bundle):
        raise DataError(f"{bundle}: {problem}; restore it, or {NONE}")
    shipped = check(ModelSpec, read_json(bundle / "spec.json"), where=str(bundle / "spec.json"))
    origin = shipped.learned_from
    if origin is None:
        raise DataError(f"{bundle}: does not say what it was made of; {NONE}")
    path = f"models/{origin.name}"
    gone = DataError(
        f"{bundle}: DVC's cache has no {path} of it any more; name a folder that holds its float "
        f"weights, or {NONE}"
    )
    store = cache(checkout) / FILES
    listing = _object(store, read_manifest(bundle).circumstances.objects.get(path, ""))
    if listing is None:
        raise gone
    files = {entry["relpath"]: entry["md5"] for entry in json.loads(listing.read_text())}
    spec, weights = (_object(store, files.get(name, "")) for name in ("spec.json", WEIGHTS))
    if spec is None or weights is None or sha256(weights) != origin.sha256:
        raise gone
    return spec, weights


def _object(store: Path, md5: str) -> Path | None:
    """What DVC's cache holds under an MD5."""
    path = store / md5[:2] / md5[2:]
    return path if path.is_file() else None
