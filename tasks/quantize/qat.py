"""Quantization-aware fine-tuning: the twin of the int8 graph, trained under the teacher's bank.

Float master weights, their scales per channel and the scales of activations are trained (LSQ,
Esser et al., 2020) through the very arithmetic of the file; afterwards int8 weights, int32 biases
and scales are written back into the same graph. So what was trained is what ships. For a `confined`
target a scale is never finer than the weights of the moment allow without saturation, so the file
is as portable as before.
Zero points and structure never change, and BatchNorm is folded before, so there are no statistics
left to freeze.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from tasks.core.errors import DataError
from tasks.core.kd import kd
from tasks.core.operators import along, fake_quantize, straight_through
from tasks.core.signal import Batch, Loss, Student
from tasks.core.tables import UNLABELLED
from tasks.core.twin import Twin, tensor
from tasks.quantize.saturation import LEVELS, safe_scales

SUFFIX = "_quantized"  # what the quantizer adds to the name of a weight or bias


@dataclass(frozen=True)
class Stored:
    """A weight or bias of the quantized graph: its float result, integers, scale and axis."""

    result: str
    integers: str
    scale: str
    axis: int


@dataclass(frozen=True)
class Layer:
    """A Conv, Gemm or MatMul: its weight, its bias, and the scale of what enters it."""

    weight: Stored
    bias: Stored | None
    entering: str


class QuantizationAware(nn.Module):
    """The training form of a static int8 graph; `forward` is that of the twin it will become."""

    def __init__(
        self, quantized: onnx.ModelProto, floats: onnx.ModelProto, confined: bool = True
    ) -> None:
        super().__init__()
        self.confined = confined
        self.model = quantized
        self.twin = Twin(quantized)
        self.layers = list(_layers(quantized.graph))
        self.scales = list(_activation_scales(quantized.graph))
        master = {stored.name: tensor(stored) for stored in floats.graph.initializer}
        known = self.twin.constants
        self.weights = nn.ParameterList(_master(master, layer.weight) for layer in self.layers)
        self.biases = nn.ParameterList(
            _master(master, layer.bias) if layer.bias else torch.zeros(0) for layer in self.layers
        )
        # Scales are trained as logarithms: always positive, and a step is a share of the scale.
        self.weight_scales = nn.ParameterList(
            known[layer.weight.scale].log() for layer in self.layers
        )
        self.activation_scales = nn.ParameterList(known[name].log() for name in self.scales)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of raw `images` under fake quantization."""
        values = {
            name: log.exp() for name, log in zip(self.scales, self.activation_scales, strict=True)
        }
        for i, layer in enumerate(self.layers):
            scale = self._scale(i)
            integers, steps = self._weight(i, scale)
            values[layer.weight.result] = integers * steps
            if layer.bias:
                whole, step = self._bias(i, scale)
                values[layer.bias.result] = whole * step
        return self.twin(images, values)  # type: ignore[no-any-return]

    def written(self) -> onnx.ModelProto:
        """The quantized graph with what was trained in its initializers; nothing else differs."""
        new: dict[str, Tensor] = {}
        with torch.no_grad():
            for name, log in zip(self.scales, self.activation_scales, strict=True):
                new[name] = log.exp()
            for i, layer in enumerate(self.layers):
                new[layer.weight.scale] = scale = self._scale(i)
                new[layer.weight.integers], _ = self._weight(i, scale)
                if layer.bias:
                    new[layer.bias.integers], new[layer.bias.scale] = self._bias(i, scale)
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        for stored in model.graph.initializer:
            if stored.name in new:
                was = numpy_helper.to_array(stored)
                value = new[stored.name].numpy().astype(was.dtype).reshape(was.shape)
                stored.CopyFrom(numpy_helper.from_array(value, stored.name))
        return model

    def _scale(self, i: int) -> Tensor:
        """Scale of weight `i`: as trained, or the safe one where that is larger. Gradients reach
        what is trained either way, so a scale that was raised can leave its bound again."""
        trained: Tensor = self.weight_scales[i].exp()
        if not self.confined:
            return trained
        weight = self.weights[i].detach().numpy()
        safe = torch.from_numpy(safe_scales(weight, self.layers[i].weight.axis))
        return trained + (torch.maximum(trained, safe) - trained).detach()

    def _weight(self, i: int, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Integers of weight `i`, and its scale, shaped to multiply them."""
        weight = self.weights[i]
        scale = along(scale, weight.ndim, self.layers[i].weight.axis)
        return fake_quantize(weight, scale, 0.0, *LEVELS), scale

    def _bias(self, i: int, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Integers of bias `i` and its scale: of the weight times that of what enters."""
        entering = self.activation_scales[self.scales.index(self.layers[i].entering)].exp()
        step = (entering * scale).detach()
        return straight_through(self.biases[i] / step), step


def guided(temperature: float, alpha: float) -> Loss:
    """`alpha` parts of the teacher's soft labels and the rest of cross-entropy."""

    def loss(student: Student, batch: Batch) -> Tensor:
        each = nn.functional.cross_entropy(
            student.logits, batch.labels, reduction="none", ignore_index=UNLABELLED
        )
        soft = kd(student.logits, batch.teacher.logits, temperature).mean()
        return alpha * soft + (1 - alpha) * each.mean()

    return loss


def _layers(graph: onnx.GraphProto) -> Iterator[Layer]:
    """Every node whose weight is a stored int8 tensor."""
    stored = {t.name for t in graph.initializer}
    made = {n.output[0]: n for n in graph.node if n.op_type == "DequantizeLinear"}
    for node in graph.node:
        sources = [made.get(name) for name in node.input]
        if len(sources) < 2 or sources[0] is None or sources[1] is None:
            continue
        if node.op_type == "DequantizeLinear" or sources[1].input[0] not in stored:
            continue
        third = sources[2] if len(sources) > 2 else None
        bias = _stored(third) if third is not None else None
        yield Layer(_stored(sources[1]), bias, sources[0].input[1])


def _stored(node: onnx.NodeProto) -> Stored:
    axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
    return Stored(node.output[0], node.input[0], node.input[1], axis)


def _activation_scales(graph: onnx.GraphProto) -> Iterator[str]:
    """The scale of every QuantizeLinear, once."""
    yield from dict.fromkeys(n.input[1] for n in graph.node if n.op_type == "QuantizeLinear")


def _master(floats: dict[str, Tensor], stored: Stored) -> Tensor:
    name = stored.integers.removesuffix(SUFFIX)
    if name not in floats:
        raise DataError(
            f"quantized weight '{stored.integers}' has no float master '{name}' to train from; "
            "leave qat out of quantize.schemes"
        )
    return floats[name].clone()
