"""What quantize certifies of the shipped file's portability, as far as the judge can believe it.

A certificate that is missing, broken, about another file or at odds with itself fails its gate.
What was tried on this machine (`trial`) stands beside it in the card, and never in the evidence.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import model_validator

from tasks.core.errors import StillhouseError
from tasks.core.files import read_json
from tasks.core.params import Section, check
from tasks.core.reports import Gate, at_most
from tasks.judge.verdict import Verdict

NAME = "certificate.json"
ONE_CPU = "x86-vnni"  # the target whose files may saturate elsewhere


class Layer(Section):
    """A layer on an int8 kernel: `lowest` and `highest` sum of two products over `channels`."""

    name: str
    op: str
    channels: int
    levels: tuple[int, int]
    lowest: int
    highest: int
    unsafe: int
    safe: bool


class Certificate(Section):
    """`stillhouse/certificate/1`, as quantize writes it."""

    format: Literal["stillhouse/certificate/1"]
    model_sha256: str
    target: str  # the CPU that the file was made for
    portable: bool
    limit: tuple[int, int]
    layers: tuple[Layer, ...]
    method: str

    @model_validator(mode="after")
    def _consistent(self) -> Certificate:
        low, high = self.limit
        within = [low <= layer.lowest and layer.highest <= high for layer in self.layers]
        if within != [layer.safe for layer in self.layers] or self.portable != all(within):
            raise ValueError("'portable' contradicts the layers; run quantize again")
        return self


Certified = Certificate | str  # a certificate, or why there is none to believe


def read_certificate(folder: Path, sha256: str) -> Certified:
    """The certificate in `folder` of the shipped file `sha256`, or why it does not count."""
    path = folder / NAME
    try:
        found = check(Certificate, read_json(path), where=str(path))
    except StillhouseError as error:
        return f"There is no certificate to believe: {error}"
    if found.model_sha256 != sha256:
        return "The certificate is about another file than the one that ships"
    return found


def portability(certified: Certified) -> Gate:
    """No sum of two products can saturate in any layer, with VNNI or without it; a file that was
    made for one kind of CPU alone passes, and says so."""
    if isinstance(certified, str):
        return at_most("portability", None, 0, f"{certified}.")
    unsafe = [layer for layer in certified.layers if not layer.safe]
    if unsafe:
        named = ", ".join(
            f"{layer.op} {layer.name} ({layer.unsafe} of {layer.channels} channels)"
            for layer in unsafe
        )
        why = f"Sums of two products may saturate on CPUs without VNNI in {named}."
    elif certified.layers:
        low = min(layer.lowest for layer in certified.layers)
        high = max(layer.highest for layer in certified.layers)
        why = (
            f"Proven for {len(certified.layers)} int8 layers: sums of two products stay in "
            f"{low:,} .. {high:,}, int16 holds {certified.limit[0]:,} .. {certified.limit[1]:,}."
        )
    else:
        why = "No layer runs in int8, so there is nothing that could saturate."
    allowed = 0
    if certified.target == ONE_CPU:
        allowed, why = len(unsafe), f"{why} It was made for {certified.target} alone."
    return at_most("portability", len(unsafe), allowed, why)


def everywhere(certified: Certified) -> bool:
    """Whether the file has to mean the same on every x86."""
    return isinstance(certified, str) or certified.target != ONE_CPU


def section(verdict: Verdict) -> str:
    """The card's section: the proof, and what was tried or why not."""
    proof = next((gate.why for gate in verdict.gates if gate.name == "portability"), "Not proven.")
    trial = verdict.measured.portability if verdict.measured else None
    if trial is not None:
        said = trial.why
    else:
        said = (
            "Whether it was tried on another CPU: see "
            f"`reports/{verdict.student.name}/card.md`, or `measured` in a sealed `manifest.json`."
        )
    return f"## Portability\n\n{proof} {said}"
