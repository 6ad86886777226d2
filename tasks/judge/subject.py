"""The subject of a decision: which files it is about, by SHA-256, and one digest over them.

Equal between two builders; what is approved, signed and registered.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tasks.core.files import digest, tree_sha256
from tasks.core.params import Section

SUBJECT = "subject.json"


class Subject(Section):
    """`subject.json`: SHA-256 of every other file of the folder, and one digest over them."""

    format: Literal["stillhouse/subject/1"] = "stillhouse/subject/1"
    digest: str
    files: dict[str, str]


def subject(folder: Path) -> Subject:
    """What `folder` holds now, `subject.json` itself left out."""
    files = {name: value for name, value in tree_sha256(folder).items() if name != SUBJECT}
    return Subject(digest=digest(files), files=files)
