"""The residual family: its gradients, where a library's are wrong."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from tasks.core.models import Architecture, Normalisation
from tasks.core.tables import Schema
from tasks.modalities.vision.batch_norm import BatchNorm
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


@pytest.mark.parametrize("channels", range(1, 9))
@pytest.mark.parametrize("side", [3, 7, 8])  # of 3 and 7: too few pixels to fill lanes of some
def test_few_channels_are_normalised_as_torch_does_it(channels: int, side: int) -> None:
    torch.manual_seed(channels)
    ours, exact = BatchNorm(channels), torch.nn.BatchNorm2d(channels).double()
    for value in (ours.weight, ours.bias):
        torch.nn.init.uniform_(value, 0.5, 2)
    exact.load_state_dict(ours.state_dict())
    spread = torch.arange(1.0, channels + 1)[:, None, None]
    x = (100 + spread * torch.randn(7, channels, side, side)).to(memory_format=torch.channels_last)
    pull, found = torch.randn_like(x), []
    for norm, images in ((ours, x.clone()), (exact, x.double())):
        images.requires_grad_()
        y = norm(images)
        drawn = (y * pull).sum()
        found.append([y, *torch.autograd.grad(drawn, (images, norm.weight, norm.bias))])
        assert all(t.is_contiguous(memory_format=torch.channels_last) for t in found[-1][:2])
    for mine, right in zip(*found, strict=True):
        assert (mine - right).abs().max() < 1e-4 * right.abs().max()
    assert ours.num_batches_tracked == 1
    for name in ("running_mean", "running_var"):
        assert torch.allclose(getattr(ours, name), getattr(exact, name).float(), rtol=1e-5), name
    assert torch.equal(ours.eval()(x), torch.nn.BatchNorm2d.forward(ours, x))


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
