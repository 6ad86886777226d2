"""What was judged and is no longer what it was: found by `verify` and `show`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bad_input.case import Case, untouched, written

VERIFY = ("verify",)


def sealed(harm: Callable[[Path], object]) -> Callable[[Path], None]:
    """Harm the one sealed bundle."""

    def arrange(root: Path) -> None:
        (bundle,) = (root / ".stillhouse/bundles").iterdir()
        harm(bundle)

    return arrange


def _swap(name: str) -> Callable[[Path], object]:
    """Another file of the same kind in its place."""
    others = {
        "model.onnx": "ship/student/float.onnx",
        "predictions.parquet": "reports/teacher/predictions.parquet",
    }

    def harm(bundle: Path) -> None:
        (bundle / name).write_bytes((bundle.parents[2] / others[name]).read_bytes())

    return harm


def _change(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content, indent=2))


def _looser(bundle: Path) -> None:
    """A threshold that was not the one that judged."""
    _change(bundle / "verdict.json", lambda verdict: verdict["gates"][0].update(bound=0.5))


def _approved(root: Path) -> None:
    _change(root / "reports/student/verdict.json", lambda verdict: verdict.update(approved=False))


BUNDLES = (
    Case(
        "another model in a sealed bundle",
        sealed(_swap("model.onnx")),
        ("model.onnx: its SHA-256 is not the sealed one; it was changed", "do not use it"),
        VERIFY,
        code=1,
    ),
    Case(
        "other predictions in a sealed bundle",
        sealed(_swap("predictions.parquet")),
        ("predictions.parquet: its SHA-256 is not the sealed one; it was changed", "do not use it"),
        VERIFY,
        code=1,
    ),
    Case(
        "a threshold changed after the verdict",
        sealed(_looser),
        ("verdict.json: its SHA-256 is not the sealed one; it was changed", "do not use it"),
        VERIFY,
        code=1,
    ),
    Case(
        "a file that is gone from a sealed bundle",
        sealed(lambda bundle: (bundle / "card.md").unlink()),
        ("card.md: missing", "do not use it"),
        VERIFY,
        code=1,
    ),
    Case(
        "a file added to a sealed bundle",
        sealed(lambda bundle: (bundle / "run.pkl").write_bytes(b"")),
        ("run.pkl: not in the subject; it was added", "do not use it"),
        VERIFY,
        code=1,
    ),
    Case(
        "a manifest that is not JSON",
        sealed(lambda bundle: (bundle / "manifest.json").write_text("{")),
        ("manifest.json: not valid JSON", "mend it"),
        VERIFY,
    ),
    Case(
        "a bundle that is not there",
        untouched,
        ("nowhere: no bundle here", "run `stillhouse run`"),
        ("verify", "nowhere"),
    ),
    Case(
        "a verdict turned round by hand",
        _approved,
        ("reports/student/verdict.json", "'approved' contradicts the gates", "run the judge again"),
        ("show",),
    ),
    Case(
        "a verdict that is cut off",
        written("reports/student/verdict.json", b"{"),
        ("reports/student/verdict.json: not valid JSON", "run its stage"),
        ("show",),
    ),
)
