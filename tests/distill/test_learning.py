"""What holds for every loss: a step lowers it, an equal student has none, T changes little."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tasks.core.layers import Shapes, Taps, layer_shapes
from tasks.core.live import live_network
from tasks.core.signal import Batch, Outputs, Student
from tasks.distill.params import available_losses
from tests.distill.lessons import FAR, LABELS, RANGE, SCHEMA, THEIRS, TINY, drawn, loss, network


def fitting(name: str) -> dict[str, Any]:
    """Options for networks as `network` makes them."""
    inside = {"signal": "live", "layers": {"body.0": "body.1", "body.1": "body.2"}}
    return inside if name in ("hint", "attention") else {}


@pytest.mark.parametrize("name", available_losses())
def test_training_with_a_loss_lowers_it(name: str) -> None:
    torch.manual_seed(1)
    net, teacher = network(), network((6, 8, 10))
    images, labels = torch.rand(16, 1, 8, 8) * 16, torch.arange(16) % 4
    layers: dict[str, str] = fitting(name).get("layers", {})
    shapes = Shapes(
        RANGE,
        layer_shapes(net, layers, SCHEMA.shape),
        layer_shapes(teacher, layers.values(), SCHEMA.shape),
    )
    (above,) = live_network(teacher, tuple(layers.values()))(images, torch.arange(16), 0)
    said = Batch(images, labels, (above, Outputs(above.logits.flip(0))))
    weighted = loss(name, shapes, **fitting(name))
    learned = [*net.parameters(), *weighted.parameters()]
    optimiser = torch.optim.Adam(learned, lr=0.003)
    values = []
    with Taps(net, layers) as taps:
        for _ in range(12):
            torch.manual_seed(2)
            value = weighted(Student(net(images), taps.features, net, net), said)
            optimiser.zero_grad()
            value.backward()
            optimiser.step()
            values.append(float(value.detach()))
    assert values[1] < values[0]
    assert values[-1] < 0.95 * values[0]


@pytest.mark.parametrize("name", [n for n in available_losses() if n != "cross_entropy"])
def test_a_student_that_says_what_its_teacher_says_has_nothing_to_learn(name: str) -> None:
    shapes = Shapes(RANGE, {"near": (5, 2, 2)}, {"far": (5, 2, 2)})
    weighted = loss(name, shapes, **({"adversary": TINY} if name == "adversarial" else {}))
    for kernel in weighted.parameters():
        nn.init.dirac_(kernel) if kernel.ndim == 4 else nn.init.zeros_(kernel)
    out = Student(THEIRS, {"near": FAR}, lambda _: THEIRS + 0 * _.sum(), nn.Identity())
    said = Batch(torch.ones(6, 1, 8, 8), LABELS, (Outputs(THEIRS, {"far": FAR}), Outputs(THEIRS)))
    assert abs(float(weighted(out, said))) < 1e-5


@pytest.mark.parametrize("name", ["kd", "dkd", "dist", "dense", "adversarial"])
def test_a_gradient_keeps_its_size_across_temperatures(name: str) -> None:
    sizes, teacher = [], drawn(64, 4, seed=2, scale=1.0)
    images, labels = torch.ones(64, 1, 8, 8), torch.arange(64) % 4
    for temperature in (2.0, 8.0, 32.0):
        ours = drawn(64, 4, seed=1, scale=1.0).requires_grad_()
        out = Student(ours, {}, lambda x, ours=ours: ours + 0 * x.sum(), nn.Identity())
        said = Batch(images, labels, (Outputs(teacher), Outputs(teacher.flip(0))))
        loss(name, temperature=temperature)(out, said).backward()
        assert ours.grad is not None
        sizes.append(float(ours.grad.norm()))
    assert max(sizes) / min(sizes) < 1.2, sizes
