"""The student's int8 files on ARM: an arm64 Debian's Python under QEMU, on two kinds of core.

The small root of that Debian is put together from its packages and from wheels, each time anew, and
nothing is installed on this machine. It needs `qemu-user`, `apt-get` and a Debian that has Python
3.11 (12, bookworm); where it cannot be made the rows say nothing and the reason is printed.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks import reference
from benchmarks.clone import ROOT
from benchmarks.fashion_data import table
from benchmarks.quantize import CALIBRATION, TRIED, bound
from benchmarks.table import Row, row
from tasks.core.models import read_spec
from tasks.core.seeds import deterministic
from tasks.core.session import open_session, score
from tasks.modalities.vision.networks import folded
from tasks.modalities.vision.scorers import load_network
from tasks.quantize.calibrate import calibrate, calibration_rows
from tasks.quantize.contract import shipped
from tasks.quantize.export import export
from tasks.quantize.static import quantized
from tasks.quantize.targets import ARM64, AVX2

COMMAND = "make bench-arm64"
PYTHON = "3.11"
PACKAGES = (
    *(f"{name}{PYTHON}-{part}" for name, part in
      (("python", "minimal"), ("libpython", "minimal"), ("libpython", "stdlib"))),
    "libc6", "libstdc++6", "libgcc-s1", "zlib1g", "libexpat1", "libffi8", "libbz2-1.0", "liblzma5",
    "libssl3",
)  # fmt: skip
WHEELS = ("numpy", "onnx", "onnxruntime")


@dataclass(frozen=True)
class Core:
    """A core as QEMU calls it, what tells it from the other, and how Linux describes it:
    QEMU shows the description of this machine, which ONNX Runtime does not survive."""

    name: str
    what: str
    part: str
    features: str

    @property
    def cpuinfo(self) -> str:
        """`/proc/cpuinfo`."""
        return (
            f"processor\t: 0\nFeatures\t: {self.features}\nCPU implementer\t: 0x41\n"
            f"CPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: {self.part}\nCPU revision\t: 1\n"
        )


CORES = (
    Core("cortex-a53", "no dot product", "0xd03", "fp asimd crc32"),
    Core("cortex-a76", "dot product", "0xd0b", "fp asimd crc32 atomics asimdrdm asimddp"),
)


def run() -> list[Row]:
    """Both files on both cores, against this CPU."""
    deterministic(0, threads=1)
    learn, test = table(test=False), table(test=True)
    folder = reference.STANDARD / "student"
    spec = read_spec(folder)
    graph = export(folded(load_network(folder, spec).eval()), spec.data)
    images = calibration_rows(learn, CALIBRATION.rows)[:]
    files = {
        target.name: shipped(quantized(calibrate(graph, images, CALIBRATION, target)), spec.data)
        for target in (ARM64, AVX2)
    }
    lost = 100 * bound(shipped(graph, spec.data), files[ARM64.name], test)
    rows = [
        row(f"made for {ARM64.name}: accuracy lost to the float student (95 %, paired), points",
            lost, "", "<= 0.3", COMMAND)
    ]  # fmt: skip
    there: dict[tuple[str, Core], NDArray[np.float32]] = {}
    few, tried = test.images[:TRIED], list(product(files, CORES))
    with tempfile.TemporaryDirectory(prefix="stillhouse-bench-") as scratch:
        root = Path(scratch) / "root"
        try:
            debian(Path(scratch), root)
            for name, core in tried:
                print(f"bench-arm64: made for {name}, on a {core.name}", flush=True)
                there[name, core] = emulate(root, core, files[name], few)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"bench-arm64: not tried: {error}", flush=True)
    for name, core in tried:
        what = f"made for {name}, on an emulated {core.name} ({core.what}), {TRIED} rows"
        rows += against(what, files[name], few, there.get((name, core)))
    return rows


def against(
    what: str, content: bytes, images: NDArray[np.generic], there: NDArray[np.float32] | None
) -> list[Row]:
    """Logits from `there`, if there are any, against those of this CPU."""
    here = score(open_session(content), images)[0]
    same = None if there is None else float((there.argmax(1) == here.argmax(1)).mean())
    largest = None if there is None else float(np.abs(there - here).max())
    return [
        row(f"{what}: predictions equal to this CPU's", same, "", ">= 1", COMMAND),
        row(f"{what}: largest difference of a logit", largest, "", "", COMMAND),
    ]


def debian(scratch: Path, root: Path) -> None:
    """Unpack the arm64 packages into `root`, and the pinned wheels into its folder `site`."""
    lists, cache, debs = (scratch / name for name in ("lists", "cache", "debs"))
    for folder in (lists / "partial", cache / "archives" / "partial", debs, root / "proc"):
        folder.mkdir(parents=True)
    options = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Sandbox::User": "root",
        "Dir::State::lists": str(lists),
        "Dir::State::status": "/dev/null",
        "Dir::Cache": str(cache),
    }
    apt = ["apt-get", "-qq", *(word for k, v in options.items() for word in ("-o", f"{k}={v}"))]
    subprocess.run([*apt, "update"], check=True)
    subprocess.run([*apt, "download", *PACKAGES], cwd=debs, check=True)
    for package in sorted(debs.glob("*.deb")):
        subprocess.run(["dpkg-deb", "--extract", package, root], check=True)
    platforms = [f"manylinux_{v}_aarch64" for v in ("2_28", "2_27", "2_17")] + [
        "manylinux2014_aarch64"
    ]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
         "--target", root / "site", "--only-binary", ":all:", "--python-version", PYTHON,
         *(word for name in platforms for word in ("--platform", name)),
         "-c", ROOT / "constraints.txt", *WHEELS],
        check=True,
    )  # fmt: skip


def emulate(
    root: Path, core: Core, content: bytes, images: NDArray[np.generic]
) -> NDArray[np.float32]:
    """Logits that the file gives on `core`."""
    (root / "proc" / "cpuinfo").write_text(core.cpuinfo)
    file = root / "model.onnx"
    file.write_bytes(content)
    np.save(root / "images.npy", images, allow_pickle=False)
    python = root / "usr" / "bin" / f"python{PYTHON}"
    subprocess.run(
        ["qemu-aarch64", "-cpu", core.name, "-L", root, "-E", f"PYTHONPATH={root / 'site'}",
         python, "-m", "tasks.judge.emulated", file, root],
        cwd=ROOT, check=True,
    )  # fmt: skip
    logits: NDArray[np.float32] = np.load(root / "logits.npy", allow_pickle=False)
    return logits
