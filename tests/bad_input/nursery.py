"""`stillhouse` many times over: each in a process of its own, forked from one that has imported it.

torch alone takes a second to import. What is forked has its own folder, arguments, streams and exit
code, as if it had been typed. Run as a program: reads one request per line, answers with one line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

IMPORTED = (
    "dvc.repo",
    "flows.params",
    "flows.run",
    "flows.seal",
    "flows.show",
    "flows.workspace",
    "onnxruntime",
    "ruamel.yaml",
    "sklearn.datasets",
    "tasks.modalities.vision.acquire",
    "tasks.stress.adversarial",
    "tasks.teach.given",
)


@dataclass(frozen=True)
class Nursery:
    """The process that forks."""

    process: subprocess.Popen[str]

    def command(self, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
        """`stillhouse WORDS`, typed in `folder`."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        said = [folder.parent / name for name in ("stdout", "stderr")]
        request = {"folder": str(folder), "words": words, "said": [str(path) for path in said]}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        code = int(self.process.stdout.readline())
        out, errors = (path.read_text(errors="surrogateescape") for path in said)
        return subprocess.CompletedProcess(words, code, out, errors)


@contextmanager
def nursery(code: Path, environment: dict[str, str]) -> Iterator[Nursery]:
    """A nursery of the code that lies in `code`."""
    program = [sys.executable, str(Path(__file__))]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        program,
        cwd=code,
        env=environment | {"PYTHONPATH": str(code)},
        stdin=pipe,
        stdout=pipe,
        text=True,
    ) as process:
        yield Nursery(process)
        assert process.stdin is not None
        process.stdin.close()


def serve() -> None:
    """Fork for every request until there are no more."""
    for module in IMPORTED:
        __import__(module)
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if not pid:
            be(request)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def be(request: dict[str, Any]) -> NoReturn:
    """Become the command that was asked for."""
    from flows.cli import main

    streams = [os.open(os.devnull, os.O_RDONLY), *map(_created, request["said"])]
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.chdir(request["folder"])
    os.environ.pop("PYTHONPATH")
    sys.argv = ["stillhouse", *request["words"]]
    code: int | str | None = 3
    try:
        main()
    except SystemExit as end:
        code = end.code
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 3)


def _created(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)


if __name__ == "__main__":
    serve()
