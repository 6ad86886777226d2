"""Files as artefacts: canonical JSON, SHA-256, and writes that are whole or absent.

Never opens anything that can execute; never leaves a half-written file under its final name.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from tasks.core.errors import DataError


@contextmanager
def blamed_on(path: Path) -> Iterator[None]:
    """Let an error about a scratch of `path`, or about no file (a full disk names none), name it.

    >>> with blamed_on(Path("data/raw")):
    ...     raise OSError(28, "No space left", "data/.raw.x/images.parquet")
    Traceback (most recent call last):
    OSError: [Errno 28] No space left: 'data/raw'
    """
    try:
        yield
    except OSError as error:
        if not error.filename or f".{path.name}." in str(error.filename):
            error.filename = str(path)
        raise


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield a scratch path beside `path`; on success it is fsynced and takes its name.

    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "a.txt"
    >>> with whole(target) as scratch:
    ...     _ = scratch.write_text("done")
    >>> target.read_text()
    'done'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with blamed_on(path):
        prefix = f".{path.name}."
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=prefix, suffix=path.suffix)
        os.close(handle)
        scratch = Path(name)
        try:
            yield scratch
            with scratch.open("rb") as written:
                os.fsync(written.fileno())
            scratch.chmod(0o644)
            scratch.replace(path)
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        finally:
            scratch.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path`, whole or not at all."""
    with whole(path) as scratch:
        scratch.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 `text` to `path`, whole or not at all."""
    write_bytes(path, text.encode())


def canonical(value: Any) -> str:
    """JSON with sorted keys and without NaN: equal values give equal bytes.

    >>> canonical({"b": 1, "a": 0.5})
    '{\\n  "a": 0.5,\\n  "b": 1\\n}\\n'
    """
    return json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Write `value` as canonical JSON."""
    write_text(path, canonical(value))


def read_json(path: Path) -> Any:
    """Read a JSON file; a missing or broken one is a `DataError` that names it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; run the stage that writes it") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON ({error}); mend it or run its stage") from None


def sha256(path: Path) -> str:
    """Hex SHA-256 of one file, read in blocks."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@cache
def first_sha256(path: Path) -> str:
    """Of code: as it was when this process first asked, which is what runs, whatever is edited."""
    return sha256(path)


def tree_sha256(folder: Path) -> dict[str, str]:
    """Relative POSIX path -> SHA-256, for every file below `folder`, in sorted order."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): sha256(p) for p in files}


def digest(value: Mapping[str, Any]) -> str:
    """Hex SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def inside(folder: Path, path: Path) -> Path:
    """`path` resolved, if it stays inside `folder` (links followed); else a `DataError`."""
    resolved = path.resolve()
    if not resolved.is_relative_to(folder.resolve()):
        raise DataError(f"{path}: leads out of {folder}; put a copy of the file inside it")
    return resolved
