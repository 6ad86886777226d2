"""The residual family: its gradients, where a library's are wrong."""

from __future__ import annotations

import subprocess
import sys

import pytest

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
