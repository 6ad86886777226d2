"""The residual family: its gradients, where a library's are wrong."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from tasks.core.models import Architecture, Normalisation
from tasks.core.tables import Schema
from tasks.modalities.vision.networks import Residual, build

# A process of its own, since the defect writes where it must not.
GRADIENTS = """
import torch
from tasks.modalities.vision.networks import Residual

for inputs in {inputs}:
    torch.manual_seed(0)
    block = Residual(inputs, 2 * inputs, 2).to(memory_format=torch.channels_last)
    exact = Residual(inputs, 2 * inputs, 2).double()  # in float64 no such kernel is used
    exact.load_state_dict(block.state_dict())
    x = torch.randn(32, inputs, 14, 14).to(memory_format=torch.channels_last)
    weight = torch.randn(32, 2 * inputs, 7, 7)
    (block(x) * weight).sum().backward()
    (exact(x.double()) * weight).sum().backward()
    ours, theirs = block.shortcut.weight.grad, exact.shortcut.weight.grad.float()
    assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max())), inputs
"""


@pytest.mark.parametrize("inputs", [range(2, 9), range(9, 25, 3)])
def test_the_shortcut_has_the_right_gradient_at_any_width(inputs: range) -> None:
    code = GRADIENTS.format(inputs=list(inputs))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_gradients_between_blocks_are_channels_last() -> None:
    last = torch.channels_last
    block = Residual(4, 8, 2).to(memory_format=last).train()  # type: ignore[call-overload]
    x = torch.rand(2, 4, 7, 7).to(memory_format=last).requires_grad_()
    (gradient,) = torch.autograd.grad(block(x).square().sum(), x)
    assert gradient.is_contiguous(memory_format=last)


@pytest.mark.parametrize(
    ("stride", "strides", "sides"),
    [(1, None, [28, 14, 7]), (2, None, [14, 7, 4]), (1, (2, 2, 1), [14, 7, 7])],
)
def test_each_stage_halves_the_image_as_often_as_its_architecture_says(
    stride: int, strides: tuple[int, ...] | None, sides: list[int]
) -> None:
    data = Schema(modality="vision", shape=(1, 28, 28), dtype="uint8", range=(0, 255),
                  classes=("a", "b"))  # fmt: skip
    said = {"widths": (4, 8, 12), "stride": stride, "strides": strides}
    net = build(Architecture.model_validate(said), data, Normalisation(mean=0.0, std=1.0))
    seen: list[int] = []
    for stage in net.body:
        stage.register_forward_hook(lambda _, __, out: seen.append(out.shape[-1]))
    net(torch.zeros(2, 1, 28, 28))
    assert seen == sides


def test_strides_for_another_number_of_stages_are_refused() -> None:
    with pytest.raises(ValueError, match="'strides' names 2 and 'widths' 3 stages"):
        Architecture(widths=(4, 8, 12), strides=(1, 2))
