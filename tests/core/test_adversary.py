"""The search of an adversary that trains: how far its steps go, and what `harder` finds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tasks.core.adversary import Adversary, harder, search
from tasks.core.signal import Student

WIDE = 1.0  # an epsilon so large that nothing is clipped, in a range of 1,000


class Sum(nn.Module):
    """The sum of all pixels: its slope points up everywhere."""

    def forward(self, images: Tensor) -> Tensor:
        return images.sum((1, 2, 3))[:, None]


@pytest.mark.parametrize(("steps", "far"), [(1, 1.0), (2, 1.5), (4, 2.5)])
def test_steps_fall_evenly_from_the_first_towards_nothing(steps: int, far: float) -> None:
    attack = search(Adversary(epsilon=WIDE, steps=steps, step=0.01), 0.0, 1000.0)
    images, net = torch.full((2, 1, 3, 3), 500.0), Sum()
    found = []
    for step in (attack, search(Adversary(epsilon=WIDE, steps=1, step=1e-12), 0.0, 1000.0)):
        torch.manual_seed(0)
        found.append(step.worst(Student(net(images), {}, net, net), images, lambda z: z.sum()))
    moved = found[0] - found[1]
    inside = (found[0] < 1000) & (found[1] > 0)
    assert inside.any()
    assert moved[inside].tolist() == pytest.approx([10 * far] * int(inside.sum()), abs=1e-3)


@pytest.mark.parametrize(("project", "far"), [(True, 100.0), (False, 200.0)])
def test_without_projection_one_step_goes_beyond_epsilon(project: bool, far: float) -> None:
    adversary = Adversary(epsilon=0.1, steps=1, step=0.1, project=project)
    images, net = torch.full((64, 1, 3, 3), 500.0), Sum()
    torch.manual_seed(0)
    near = search(adversary, 0.0, 1000.0).worst(
        Student(net(images), {}, net, net), images, lambda z: z.sum()
    )
    assert float((near - images).max()) == pytest.approx(far, rel=0.02)
    bright = search(adversary, 0.0, 550.0).worst(
        Student(net(images), {}, net, net), images, lambda z: z.sum()
    )
    assert float(bright.max()) == 550.0, "the range of the data holds all the same"


def test_a_harder_search_looks_as_far_with_more_steps() -> None:
    weak = Adversary(epsilon=0.1, steps=1, step=0.125)
    assert harder(weak.model_copy(update={"project": False})) == harder(weak)
    assert harder(weak) == Adversary(epsilon=0.1, steps=10, step=0.2)
