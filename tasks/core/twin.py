"""The fake-quant twin: an ONNX file of ours executed in torch, so that what ships has gradients.

The twin is no second artefact: it reads `model.onnx` itself, float or int8, and runs the operators
that our exports use. Rounding passes gradients straight through inside the clip range and stops
them outside (Bengio et al., 2013). It never trains, writes a file, or guesses at an operator that
it does not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from tasks.core.errors import DataError
from tasks.core.operators import OPERATORS
from tasks.core.session import check_onnx

OPSET = 18  # the oldest whose operators mean what `operators` does


@dataclass(frozen=True)
class Step:
    """One node: where its operands come from and go to; an empty name is an omitted operand."""

    operator: str
    attributes: Mapping[str, object]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class Twin(nn.Module):
    """An ONNX graph as a differentiable torch module: raw images (N, C, H, W) to logits.

    Only what the first output needs is executed. Whatever depends on no input is computed once.
    """

    def __init__(self, model: onnx.ModelProto, name: str = "model") -> None:
        super().__init__()
        opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
        if opset < OPSET:
            raise DataError(
                f"{name}: made for opset {opset}, whose operators may mean something else; "
                f"export it for {OPSET} or later"
            )
        graph = model.graph
        self.input = graph.input[0].name
        self.output = graph.output[0].name
        self.constants = {t.name: tensor(t) for t in graph.initializer}
        self.steps: list[Step] = []
        for node in _needed(graph):
            if node.domain not in ("", "ai.onnx") or node.op_type not in OPERATORS:
                raise DataError(
                    f"{name}: the twin cannot execute operator "
                    f"{node.domain or 'ai.onnx'}::{node.op_type}, which gives '{node.output[0]}'; "
                    "add it to tasks/core/operators.py"
                )
            step = Step(
                node.op_type,
                {a.name: _attribute(a) for a in node.attribute},
                tuple(node.input),
                tuple(node.output),
            )
            if all(value in self.constants for value in step.inputs if value):
                self._execute(step, self.constants)
            else:
                self.steps.append(step)

    @classmethod
    def load(cls, source: Path | onnx.ModelProto) -> Twin:
        """The twin of a file (checked first) or of a model in memory."""
        if isinstance(source, Path):
            return cls(check_onnx(source), str(source))
        return cls(source)

    def forward(self, images: Tensor, values: Mapping[str, Tensor] | None = None) -> Tensor:
        """Float32 logits (N, classes) of raw `images`.

        `values` replaces named values of the graph, constants or results, by tensors of the caller:
        this is how quantization-aware training puts its own weights and scales in.
        """
        known = {**self.constants, **(values or {}), self.input: images.float()}
        for step in self.steps:
            if step.outputs[0] not in known:
                self._execute(step, known)
        return known[self.output]

    @staticmethod
    def _execute(step: Step, known: dict[str, Tensor]) -> None:
        operands = [known[value] if value else None for value in step.inputs]
        results = OPERATORS[step.operator](step.attributes, *operands)
        if isinstance(results, Tensor):
            results = (results,)
        known.update(zip(step.outputs, results, strict=False))


def tensor(stored: onnx.TensorProto) -> Tensor:
    """An initializer as a torch tensor of the same type; int4 as int8."""
    values = np.array(numpy_helper.to_array(stored))
    if stored.data_type == onnx.TensorProto.INT4:
        return torch.from_numpy(values.astype(np.int8))
    if stored.data_type == onnx.TensorProto.BFLOAT16:  # torch takes no array of it; this is exact
        return torch.from_numpy(values.astype(np.float32)).bfloat16()
    return torch.from_numpy(values)


def _attribute(attribute: onnx.AttributeProto) -> object:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, onnx.TensorProto):
        return tensor(value)
    return value.decode() if isinstance(value, bytes) else value


def _needed(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The nodes that the first output depends on, in their order."""
    wanted, kept = {graph.output[0].name}, []
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted.update(node.input)
    return kept[::-1]
