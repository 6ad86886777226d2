"""Quantization of the committed Fashion-MNIST student, side by side with what others would ship.

Accuracy is that of the 10,000 test rows; times are medians at batch 1 on one thread, the models in
turn. Sizes other than the student's carry random weights, since neither bytes nor times depend on
them. neural-compressor runs in an environment of its own, made from `rival.txt`.
"""

from __future__ import annotations

import subprocess
import tempfile
import venv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, quantize_static

from benchmarks import calibrating, reference
from benchmarks.fashion_data import table
from benchmarks.table import Row, row
from tasks.core.metrics import correct
from tasks.core.models import Architecture, ModelSpec, read_spec
from tasks.core.seeds import deterministic
from tasks.core.session import open_session, score
from tasks.core.statistics import tango_upper
from tasks.core.tables import Table
from tasks.judge.runtime import Call, quietest
from tasks.judge.trial import CPUS, emulate
from tasks.modalities.vision.networks import ResidualNetwork, build, folded
from tasks.modalities.vision.scorers import load_network
from tasks.quantize.calibrate import calibrate, calibration_rows
from tasks.quantize.contract import shipped
from tasks.quantize.export import INPUT, LOGITS, export
from tasks.quantize.params import Calibration
from tasks.quantize.static import quantized
from tasks.quantize.weight_only import weight_only

COMMAND = "make bench-quantize"
CALIBRATION = Calibration(rows=1024, method="percentile", percentile=99.99)
SIZES = {  # parameters -> the bar of int8 over float
    (12, 24, 48): ">= 1.3", (24, 48, 96): ">= 2.3", (32, 64, 128): ">= 2.7",
}  # fmt: skip
TWENTY, FIFTEENTH = (8, 16, 32), (12, 24, 48)  # 20,000 parameters; 1/15 of the teacher's
TRIED = 500  # rows under the emulated CPU
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Files:
    """One network as final files, and the graph that others quantize."""

    parameters: int
    graph: onnx.ModelProto
    float32: bytes
    static: bytes
    weights4: bytes


def run() -> list[Row]:
    """All rows of the table."""
    deterministic(0, threads=1)
    learn, test = table(test=False), table(test=True)
    spec = read_spec(reference.STANDARD / "student")
    images = calibration_rows(learn, CALIBRATION.rows)[:]
    student = files(load_network(reference.STANDARD / "student", spec), spec, images)
    ships = (reference.STANDARD / "student" / reference.SHIPPED).read_bytes()
    sizes = {w: files(untrained(w, spec), spec, images) for w in (*SIZES, TWENTY)}
    fifteenth = sizes[FIFTEENTH]
    with tempfile.TemporaryDirectory(prefix="stillhouse-bench-") as scratch:
        others = rivals(Path(scratch), student.graph, images)
        tried = trial_rows(Path(scratch), ships, test)
    return [
        *accuracy_rows(student, ships, test),
        *speed_rows(sizes, test),
        *teacher_rows({student.parameters: ships, fifteenth.parameters: fifteenth.static}, test),
        check_row(student, test),
        row("file of a student of 19,810 parameters, static int8",
            len(sizes[TWENTY].static) / 1000, "kB", "<= 26", COMMAND),
        *rival_rows(student, others, test),
        *four_bit_rows(student, test),
        *tried,
        *calibrating.rows(COMMAND),
    ]  # fmt: skip


def files(net: ResidualNetwork, spec: ModelSpec, images: NDArray[np.generic]) -> Files:
    """Every file of `net`, calibrated on raw `images`."""
    graph = export(folded(net.eval()), spec.data)
    int8 = quantized(calibrate(graph, images, CALIBRATION))
    count = sum(p.numel() for p in net.parameters())
    made = (shipped(g, spec.data) for g in (graph, int8, weight_only(graph, 4)))
    return Files(count, graph, *made)


def untrained(widths: tuple[int, ...], spec: ModelSpec) -> ResidualNetwork:
    """A network of random weights in the student's family."""
    assert spec.normalisation is not None
    torch.manual_seed(0)
    return build(Architecture(widths=widths, stride=2), spec.data, spec.normalisation)


def accuracy_rows(student: Files, ships: bytes, test: Table) -> list[Row]:
    """What static int8, and the file that the pipeline shipped, lose to the float student."""
    return [
        row(f"accuracy lost to the float student, {name}: upper bound (95 %, paired), points",
            100 * bound(student.float32, content, test), "", "<= 0.3", COMMAND)
        for name, content in (("static int8", student.static), ("as shipped", ships))
    ]  # fmt: skip


def bound(floats: bytes, content: bytes, test: Table) -> float:
    """Tango's bound of the share of test rows that `content` loses to `floats`."""
    theirs, ours = right(floats, test), right(content, test)
    lost, gained = int((theirs & ~ours).sum()), int((ours & ~theirs).sum())
    return tango_upper(lost, gained, len(test), 0.95)


def right(content: bytes, test: Table) -> NDArray[np.bool_]:
    return correct(score(open_session(content), test.images)[0], test.labels)


def call(content: bytes, test: Table) -> Call:
    """One row through ONNX Runtime."""
    session, image = open_session(content), test.images[:1].astype(np.float32)
    return lambda: session.run(None, {session.get_inputs()[0].name: image})


def medians(calls: dict[str, Call]) -> dict[str, float]:
    return {name: times.p50 for name, times in quietest(calls).items()}


def speed_rows(sizes: dict[tuple[int, ...], Files], test: Table) -> list[Row]:
    """int8 against float in ONNX Runtime, by size."""
    rows = []
    for widths, bar in SIZES.items():
        found = sizes[widths]
        times = medians({"float": call(found.float32, test), "int8": call(found.static, test)})
        rows.append(
            row(f"static int8 over float32 in ONNX Runtime, {found.parameters:,} parameters",
                times["float"] / times["int8"], "x", bar, COMMAND)
        )  # fmt: skip
    return rows


def teacher_rows(students: dict[int, bytes], test: Table) -> list[Row]:
    """int8 students, by their parameters, against the teacher as people run it, in PyTorch. The
    reference student is the file that ships; the other has random weights."""
    folder = reference.STANDARD / "teacher"
    spec = read_spec(folder)
    net, image = load_network(folder, spec), torch.from_numpy(test.images[:1].astype(np.float32))

    def teacher() -> object:
        with torch.inference_mode():
            return net(image)

    named = {f"{count:,} parameters": content for count, content in students.items()}
    times = medians({"teacher": teacher} | {n: call(f, test) for n, f in named.items()})
    size, (_, smaller) = 4 * sum(p.numel() for p in net.parameters()), named
    return [
        *(row(f"int8 student of {name} over the teacher in PyTorch, batch 1",
              times["teacher"] / times[name], "x", ">= 20", COMMAND) for name in named),
        *(row(f"teacher's float32 weights over the file of a student of {name}",
              size / len(content), "x", ">= 40" if name == smaller else "", COMMAND)
          for name, content in named.items()),
    ]  # fmt: skip


def check_row(student: Files, test: Table) -> Row:
    """What is left of the time when nothing looks whether values are finite and in range."""
    whole, bare = onnx.load_from_string(student.static), onnx.ModelProto()
    bare.CopyFrom(whole)
    wanted = {LOGITS}
    for node in reversed(whole.graph.node):
        if wanted.intersection(node.output):
            wanted.update(node.input)
        else:
            bare.graph.node.remove(node)
    del bare.graph.output[1:]
    times = medians({
        "with": call(student.static, test), "without": call(bare.SerializeToString(), test),
    })  # fmt: skip
    return row("static int8 without its check of the input: time over ours",
               times["without"] / times["with"], "x", "", COMMAND)  # fmt: skip


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """Calibration rows for `quantize_static`."""

    def __init__(self, images: NDArray[np.float32]) -> None:
        self.blocks = iter(np.split(images, range(64, len(images), 64)))

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        block = next(self.blocks, None)
        return None if block is None else {INPUT: block}


def rivals(scratch: Path, graph: onnx.ModelProto, images: NDArray[np.generic]) -> dict[str, bytes]:
    """The same graph by others, with their defaults and the same calibration rows."""
    floats, out, rows = (scratch / name for name in ("float.onnx", "out.onnx", "rows.npy"))
    onnx.save(graph, str(floats))
    np.save(rows, images.astype(np.float32), allow_pickle=False)
    quantize_static(str(floats), str(out), Reader(images.astype(np.float32)))
    found = {"quantize_static": out.read_bytes()}
    print("bench-quantize: neural-compressor in an environment of its own", flush=True)
    venv.create(scratch / "venv", with_pip=True)
    python = scratch / "venv" / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "-r", HERE / "rival.txt"]
    subprocess.run(install, check=True, stdout=subprocess.DEVNULL)
    command = [python, HERE / "rival.py", floats, rows, out]
    subprocess.run(command, cwd=scratch, check=True, stdout=subprocess.DEVNULL)
    return found | {"neural-compressor": out.read_bytes()}


def rival_rows(student: Files, others: dict[str, bytes], test: Table) -> list[Row]:
    """Bytes, time and accuracy of ours against each rival's."""
    ours, rows = right(student.static, test), []
    contents = {"ours": student.static, **others}
    times = medians({name: call(content, test) for name, content in contents.items()})
    for name, content in others.items():
        theirs = right(content, test)
        rows += [
            row(f"static int8: {name}'s bytes over ours", len(content) / len(student.static), "x",
                ">= 1", COMMAND),
            row(f"static int8: {name}'s time over ours, batch 1", times[name] / times["ours"], "x",
                ">= 1", COMMAND),
            row(f"static int8: test accuracy above {name}'s, points",
                100 * float(ours.mean() - theirs.mean()), "", ">= 0", COMMAND),
        ]  # fmt: skip
    return rows


def four_bit_rows(student: Files, test: Table) -> list[Row]:
    """Weights alone in four bits beside static int8."""
    contents = {"weights4": student.weights4, "static": student.static}
    times = medians({name: call(content, test) for name, content in contents.items()})
    return [
        row(f"{name}: {what}", value, unit, "", COMMAND)
        for name, content in contents.items()
        for what, value, unit in (
            ("bytes", float(len(content)), ""),
            ("test accuracy", float(right(content, test).mean()), ""),
            ("median, batch 1", times[name], "ms"),
        )
    ]


def trial_rows(scratch: Path, ships: bytes, test: Table) -> list[Row]:
    """The shipped file on emulated CPUs, without VNNI and as exact as with it, against this one."""
    images, file, rows = test.images[:TRIED], scratch / "student.onnx", []
    file.write_bytes(ships)
    here = score(open_session(ships), images)[0].argmax(1)
    for other, what in CPUS.items():
        print(f"bench-quantize: {TRIED} rows on an emulated {other}", flush=True)
        there = emulate(file, images, other)
        if isinstance(there, str):
            print(f"bench-quantize: not tried: {there}", flush=True)
        same = None if isinstance(there, str) else float((there[0].argmax(1) == here).mean())
        rows.append(
            row(f"predictions equal on an emulated {other} ({what}), {TRIED} rows", same, "",
                ">= 1", COMMAND)
        )  # fmt: skip
    return rows
