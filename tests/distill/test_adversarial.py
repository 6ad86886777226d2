"""Adversarial distillation: where the worst image is, and what the search leaves alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tasks.core.signal import Batch, Outputs, Student
from tests.distill.by_hand import Array, kl, soft
from tests.distill.lessons import THEIRS, drawn, loss, network


class Linear(nn.Module):
    """BatchNorm without scale, then logits: a network whose worst image is known."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1, affine=False)
        self.head = nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(x).flatten(1))
        return logits


def asked(net: nn.Module, images: Tensor, teacher: Tensor) -> tuple[Student, Batch]:
    labels = torch.zeros(len(images), dtype=torch.long)
    return Student(net(images), {}, net, net), Batch(images, labels, (Outputs(teacher),))


def test_the_worst_image_of_a_linear_network_is_the_corner_of_its_box() -> None:
    torch.manual_seed(0)
    net = Linear().eval()  # BatchNorm is the identity, up to its epsilon
    images = torch.full((1, 1, 8, 8), 8.0)
    sure = torch.tensor([[60.0, 0.0, 0.0, 0.0]])  # so KL is -log q of class 0
    with torch.no_grad():
        net.head.weight[1:] = 0  # so the only way is down the first row of weights
    attack = loss("adversarial", adversary={"epsilon": 0.125, "steps": 6, "step": 0.08})
    out, said = asked(net, images, sure)
    value = attack(out, said).item()
    weights = net.head.weight.detach().double().numpy()[0]
    corner = 8.0 - 2.0 * np.sign(weights)  # epsilon 1/8 of a range of 16
    scaled = 1 / np.sqrt(1 + net.norm.eps)

    def divergence(x: Array) -> float:
        z = net.head.bias.detach().double().numpy().copy()
        z[0] += weights @ (x * scaled)
        return 9 * kl(soft(sure, 3)[0], soft(torch.from_numpy(z[None]), 3)[0])

    expected = 5 / 6 * divergence(corner) + 1 / 6 * divergence(np.full(64, 8.0))
    assert value == pytest.approx(expected, rel=1e-4)


def test_an_attacked_image_stays_near_and_in_the_range_of_the_data() -> None:
    torch.manual_seed(0)
    net, images = network(), torch.rand(8, 1, 8, 8) * 16
    images[:2], images[2:4] = 0.0, 16.0
    (attack,) = loss("adversarial").learned.children()
    out, said = asked(net, images, drawn(8, 4))
    near = attack.worst(out, images, said.teacher.logits)
    assert float((near - images).abs().max()) <= 0.05 * 16 + 1e-5
    assert (float(near.min()), float(near.max())) == (0.0, 16.0)
    assert float((near - images).abs().mean()) > 0.2, "it went somewhere"


def test_more_steps_find_a_worse_image_and_one_step_a_worse_one_than_none() -> None:
    torch.manual_seed(0)
    net, images, teacher = network().eval(), torch.rand(16, 1, 8, 8) * 16, drawn(16, 4)

    def harm(steps: int, step: float) -> float:
        adversary = {"epsilon": 0.1, "steps": steps, "step": step}
        torch.manual_seed(3)
        return loss("adversarial", adversary=adversary)(*asked(net, images, teacher)).item()

    still, fast, slow = harm(1, 1e-9), harm(1, 0.125), harm(10, 0.025)
    assert still < fast < slow


def test_the_search_begins_anywhere_near_the_image() -> None:
    net, images = network().eval(), torch.full((32, 1, 8, 8), 8.0)
    adversary = {"epsilon": 0.125, "steps": 1, "step": 1e-9}
    (attack,) = loss("adversarial", adversary=adversary).learned.children()
    out, said = asked(net, images, drawn(32, 4))
    first, second = (attack.worst(out, images, said.teacher.logits) - images for _ in range(2))
    assert first.std().item() == pytest.approx(2 / 3**0.5, rel=0.05), "uniform up to 2"
    assert abs(float((first * second).mean())) < 0.1, "and elsewhere each time"


def test_the_search_leaves_statistics_modes_and_gradients_as_they_were() -> None:
    torch.manual_seed(0)
    net = network().train()
    frozen = net.get_submodule("body.0.bn1").eval()
    out, said = asked(net, torch.rand(8, 1, 8, 8) * 16, drawn(8, 4))
    before = int(net.bn.num_batches_tracked)
    loss("adversarial")(out, said)
    assert int(net.bn.num_batches_tracked) == before + 1, "x' alone, and once"
    assert [m for m in net.modules() if not m.training] == [frozen]
    assert all(p.grad is None for p in net.parameters())


def test_adversarial_distillation_weights_its_rows() -> None:
    weights = torch.tensor([2.0, 0.0])
    net = Linear().eval()
    out, said = asked(net, torch.rand(2, 1, 8, 8) * 16, THEIRS[:2])
    both = Batch(said.images, said.labels, said.above, weights)
    first = asked(net, said.images[:1], THEIRS[:1])
    attack = loss("adversarial", adversary={"epsilon": 1e-6, "steps": 1, "step": 1e-6})
    assert attack(out, both).item() == pytest.approx(attack(*first).item(), rel=1e-3)
