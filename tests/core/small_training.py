"""A training of seconds that uses all that the trainer offers; also a program, to be killed.

`python small_training.py FOLDER CHANGES...` trains once for each set of changes (JSON), each in a
process and sub-folder of its own, and says of each how many steps it made and how it ended. Under
torchrun it trains once, in parallel.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tasks.core.kd import kd
from tasks.core.models import Architecture, Normalisation
from tasks.core.rows import Rows
from tasks.core.seeds import derived, deterministic
from tasks.core.signal import Batch, Loss, Outputs, Student
from tasks.core.tables import Schema
from tasks.core.trainer import Training, train
from tasks.modalities.vision.networks import ResidualNetwork, build
from tasks.modalities.vision.views import Views, apply

SCHEMA = Schema(
    modality="vision", shape=(1, 8, 8), dtype="uint8", range=(0, 16), classes=("a", "b", "c")
)
VIEWS = Views(count=4, seed=3, shift=1, flip=True)
DEFAULT = {"epochs": 3, "batch": 20, "learning_rate": 0.01}


def small_rows(count: int = 100) -> Rows:
    """Noise whose brightness is the class, with some labels wrong."""
    draw = np.random.default_rng(1)
    labels = np.arange(count) % 3
    images = draw.integers(0, 8, (count, 1, 8, 8)) + 3 * labels[:, None, None, None]
    labels[::7] = 0
    keys = np.array([derived(0, i) for i in range(count)], dtype=np.uint64)
    return Rows(torch.from_numpy(images.astype(np.uint8)), torch.from_numpy(labels), keys, "rows")


def network() -> ResidualNetwork:
    torch.manual_seed(0)
    return build(Architecture(widths=(4, 8)), SCHEMA, Normalisation(mean=8, std=5))


class Relational(nn.Module):
    """A learned projector of a layer, noise from every generator, a layer of the teacher's, the
    student asked once more, and the correlation of both over the batch: each of them goes wrong
    where a batch is not whole."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.projector = nn.Linear(8, 3)

    def forward(self, student: Student, batch: Batch) -> Tensor:
        hint = self.projector(student.features["body.1"].mean((2, 3)))
        noise = random.random() + np.random.random()  # noqa: NPY002 - as somebody's loss may
        noisy = hint + 0.01 * torch.randn_like(hint) * noise
        teacher, above = batch.teacher.logits, batch.teacher.features["above"]
        assert student.forward is not None
        again = student.forward(batch.images.flip(3))
        s, t = (x - x.mean(0) for x in (student.logits, teacher))
        correlation = (s * t).sum(0) / (s.norm(dim=0) * t.norm(dim=0) + 1e-6)
        return (
            batch.mean(kd(student.logits, teacher, 2.0))
            + batch.mean(kd(again, teacher, 2.0))
            + (noisy - above).square().mean()
            + 1
            - correlation.mean()
        )


def run(
    folder: Path,
    changes: dict[str, object] | None = None,
    loss: Loss | None = None,
    rows: Rows | None = None,
    seen: Callable[[Tensor], object] = lambda _: None,
    weights: Tensor | None = None,
) -> ResidualNetwork:
    """Train in `folder`; `seen` is told of each batch of images."""
    deterministic(0, threads=1)
    rows = rows or small_rows()
    net = network()
    said = torch.randn(len(rows), 3, generator=torch.Generator().manual_seed(2)) * 3

    def view(images: Tensor, index: np.ndarray, k: int) -> Tensor:
        seen(images)
        return apply(images, rows.keys[index], k, VIEWS)

    def validate() -> float:
        with torch.inference_mode():
            logits = net.eval()(rows.images[:].float())
        return float((logits.argmax(1) == rows.labels).float().mean())

    train(
        net,
        rows,
        loss or Relational(),
        Training.model_validate({**DEFAULT, **(changes or {})}),
        view=view,
        validate=validate,
        history=folder / "history.jsonl",
        what="small",
        signal=lambda _, index, __: (Outputs(said[index], {"above": said[index].flip(1)}),),
        weights=weights,
        layers=("body.1",),
        checkpoints=folder / "checkpoints",
    )
    return net


def mortal(folder: Path, changes: dict[str, object]) -> None:
    """Train, and die where `changes` say: at the n-th batch, rename or removal of a file."""
    count = {"batch": 0, "replace": 0, "unlink": 0}
    fatal = {key: changes.pop(key, 0) for key in count}

    def counted(what: str) -> None:
        count[what] += 1
        if count[what] == fatal[what]:
            os.kill(os.getpid(), signal.SIGKILL)

    replace, unlink = Path.replace, Path.unlink

    def replacing(path: Path, target: Path) -> Path:
        counted("replace")
        return replace(path, target)

    def unlinking(path: Path, missing_ok: bool = False) -> None:
        if path.suffix == ".safetensors" and not path.name.startswith("."):
            counted("unlink")
        unlink(path, missing_ok)

    Path.replace, Path.unlink = replacing, unlinking  # type: ignore[method-assign,assignment]
    net = run(folder, changes, seen=lambda _: counted("batch"))
    save_file(
        {k: v.contiguous() for k, v in net.state_dict().items()}, folder / "weights.safetensors"
    )
    print(json.dumps(count), flush=True)


def main() -> None:
    folder, changes = Path(sys.argv[1]), [json.loads(text) for text in sys.argv[2:]]
    if "RANK" in os.environ:
        if os.environ["RANK"] != "0":
            folder = folder / "other"
        return mortal(folder, changes[0])
    for change in changes:
        pid = os.fork()
        if not pid:
            mortal(folder / change.pop("folder"), change)
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
    return None


if __name__ == "__main__":
    main()
