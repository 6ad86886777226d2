"""Type a how-to page as a reader would: write its files, edit its params, compare its output.

What the test does is what the reader reads: a block is the file that the paragraph before it names
last, a yaml block is merged into that file, and a console block is typed line by line.
"""

from __future__ import annotations

import doctest
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ruamel.yaml import YAML

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LOOSE = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


class Type(Protocol):
    """Types one command, as a list of words; returns what it printed and its exit code."""

    def __call__(self, words: list[str], /) -> tuple[str, int]: ...


@dataclass(frozen=True)
class Block:
    """One fenced block; `file` is named by the words before it."""

    language: str
    text: str
    file: str | None


def blocks(page: str) -> Iterator[Block]:
    """The fenced blocks of a page in their order.

    >>> [one] = blocks("Save this as `a.py`:\\n\\n```python\\nprint(1)\\n```\\n")
    >>> one
    Block(language='python', text='print(1)\\n', file='a.py')
    """
    end = 0
    for found in BLOCK.finditer(page):
        named = re.findall(r"`([^`\n]+)`", page[end : found.start()].rstrip().split("\n\n")[-1])
        end = found.end()
        yield Block(found[1], found[2], named[-1] if named else None)


def commands(console: str) -> Iterator[tuple[str, str]]:
    """Each command of a console block with the output that is shown below it.

    >>> list(commands("$ one\\n1\\n$ two \\\\\\n    more\\n"))
    [('one', '1\\n'), ('two more', '')]
    """
    joined = re.sub(r"\\\n\s*", "", console)
    for part in re.split(r"^\$ ", joined, flags=re.MULTILINE)[1:]:
        command, _, shown = part.partition("\n")
        yield command, shown


def alike(shown: str, printed: str) -> bool:
    """The output is as shown, where `...` stands for anything and spaces do not count.

    >>> alike("a 1.0 s\\n...\\nz\\n", "a   1.0 s\\nb\\nz\\n"), alike("a\\n", "a\\nb\\n")
    (True, False)
    """
    return doctest.OutputChecker().check_output(shown, printed, LOOSE)


def merge(path: Path, edit: str) -> None:
    """Apply a reader's edit to a YAML file: keys that are shown, all else as it was."""
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    content = yaml.load(path)
    _merge(content, yaml.load(edit))
    yaml.dump(content, path)


def _merge(into: dict[str, object], edit: dict[str, object]) -> None:
    for key, value in edit.items():
        old = into.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            _merge(old, value)
        else:
            into[key] = value


def follow(page: Path, folder: Path, type_: Type) -> None:
    """Do all that `page` says in the checkout `folder`."""
    for block in blocks(page.read_text()):
        if block.language == "console":
            hold(page.name, block.text, type_)
            continue
        assert block.file is not None, f"{page.name}: which file is this?\n{block.text}"
        path = folder / block.file
        if block.language == "yaml":
            merge(path, block.text)
        else:
            path.write_text(block.text)


def hold(page: str, console: str, type_: Type) -> None:
    """Type a console block; only a command before `echo $?` may end with anything but 0."""
    code, typed = 0, ""
    for command, shown in commands(console):
        if command == "echo $?":
            printed, code = f"{code}\n", 0
        else:
            assert code == 0, f"{page}: `{typed}` ended with {code}"
            printed, code = type_(shlex.split(command))
        typed = command
        told = f"{page}: `{command}` should print\n{shown}\nand printed\n{printed}"
        assert not shown or alike(shown, printed), told
    assert code == 0, f"{page}: `{typed}` ended with {code}"
