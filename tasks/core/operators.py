"""ONNX operators in torch, one function each, as the twin executes them.

A function takes the node's attributes and its operands (None where one is omitted) and follows the
ONNX specification of opset 18, quantization included: integers are carried in float tensors, so
that gradients pass, and rounding is half to even with a straight-through gradient. An attribute
value that a function does not implement is a `DataError`; nothing is approximated in silence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx
import torch
from torch import Tensor
from torch.nn import functional as F

from tasks.core.errors import DataError

Attributes = Mapping[str, Any]
Operator = Callable[..., Tensor | tuple[Tensor, ...]]
RANGES = {torch.uint8: (0, 255), torch.int8: (-128, 127), torch.int32: (-(2**31), 2**31 - 1)}
TYPES = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.INT32: torch.int32,
    onnx.TensorProto.INT64: torch.int64,
    onnx.TensorProto.BOOL: torch.bool,
}


def straight_through(x: Tensor) -> Tensor:
    """`x` rounded half to even; its gradient is that of `x`.

    >>> x = torch.tensor([0.5, 1.5, -0.2], requires_grad=True)
    >>> y = straight_through(x)
    >>> y.tolist()
    [0.0, 2.0, 0.0]
    >>> y.sum().backward()
    >>> x.grad.tolist()
    [1.0, 1.0, 1.0]
    """
    return x + (x.round() - x).detach()


def fake_quantize(x: Tensor, scale: Tensor, zero: Tensor | float, low: int, high: int) -> Tensor:
    """The integers (as floats) that stand for `x`: rounded, shifted by `zero` and clipped.

    Where `x` is clipped its gradient is zero; `scale` gets the gradient of LSQ (Esser et al., 2020)
    once the result is multiplied by it again.
    """
    return torch.clamp(straight_through(x / scale) + zero, low, high)


def along(values: Tensor, ndim: int, axis: int) -> Tensor:
    """A scale or zero point, shaped to broadcast along `axis`; a scalar stays one."""
    if values.numel() == 1:
        return values.reshape(())
    shape = [1] * ndim
    shape[axis] = values.numel()
    return values.reshape(shape)


def quantize_linear(a: Attributes, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """QuantizeLinear; without a zero point the type is uint8."""
    axis = a.get("axis", 1)
    low, high = RANGES[torch.uint8 if zero is None else zero.dtype]
    shift = 0.0 if zero is None else along(zero, x.ndim, axis).float()
    return fake_quantize(x, along(scale, x.ndim, axis), shift, low, high)


def dequantize_linear(
    a: Attributes, x: Tensor, scale: Tensor, zero: Tensor | None = None
) -> Tensor:
    """DequantizeLinear."""
    axis = a.get("axis", 1)
    shift = 0.0 if zero is None else along(zero, x.ndim, axis).float()
    return (x.float() - shift) * along(scale, x.ndim, axis)


def dynamic_quantize_linear(_: Attributes, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """DynamicQuantizeLinear: uint8 over the range of this very tensor, which always holds zero."""
    values = x.detach()
    low, high = values.amin().clamp(max=0.0), values.amax().clamp(min=0.0)
    scale = (high - low) / 255
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero = torch.clamp(-low / scale, 0, 255).round()
    return fake_quantize(x, scale, zero, 0, 255), scale, zero


def conv(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Conv over two spatial axes."""
    if x.ndim != 4 or a.get("auto_pad", "NOTSET") != "NOTSET":
        raise DataError("Conv: the twin knows two spatial axes and explicit pads; export so")
    pads = _pads(a)
    symmetric = pads[0] == pads[2] and pads[1] == pads[3]
    if not symmetric:
        x = F.pad(x, [pads[1], pads[3], pads[0], pads[2]])
    strides = a.get("strides", [1, 1])
    if weight.shape[2:] == (1, 1) and not any(pads):
        # The same, but for oneDNN's gradient (https://github.com/uxlfoundation/oneDNN/issues/6035).
        x, strides = x[:, :, :: strides[0], :: strides[1]], [1, 1]
    return F.conv2d(
        x,
        weight,
        bias,
        strides,
        pads[:2] if symmetric else 0,
        a.get("dilations", [1, 1]),
        a.get("group", 1),
    )


def conv_integer(
    a: Attributes,
    x: Tensor,
    weight: Tensor,
    x_zero: Tensor | None = None,
    w_zero: Tensor | None = None,
) -> Tensor:
    """ConvInteger: integers in, integers out, padding with the zero point."""
    return conv(a, _centred(x, x_zero), _centred(weight, w_zero))


def matmul_integer(
    _: Attributes,
    x: Tensor,
    weight: Tensor,
    x_zero: Tensor | None = None,
    w_zero: Tensor | None = None,
) -> Tensor:
    """MatMulInteger; a zero point of the weights may be per column."""
    return _centred(x, x_zero) @ _centred(weight, w_zero, weight.ndim - 1)


def gemm(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Gemm."""
    x = x.T if a.get("transA", 0) else x
    weight = weight.T if a.get("transB", 0) else weight
    y = x @ weight
    alpha, beta = a.get("alpha", 1.0), a.get("beta", 1.0)
    y = y if alpha == 1.0 else alpha * y
    return y if bias is None else y + (bias if beta == 1.0 else beta * bias)


def reduce_mean(a: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """ReduceMean."""
    if axes is None and a.get("noop_with_empty_axes", 0):
        return x
    over = list(range(x.ndim)) if axes is None else axes.tolist()
    return x.mean(over, keepdim=bool(a.get("keepdims", 1)))


def clip(_: Attributes, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """Clip; either bound may be absent."""
    x = x if low is None else torch.maximum(x, low)
    return x if high is None else torch.minimum(x, high)


def max_pool(a: Attributes, x: Tensor) -> Tensor:
    """MaxPool over two spatial axes; padding never wins."""
    if x.ndim != 4 or a.get("auto_pad", "NOTSET") != "NOTSET":
        raise DataError("MaxPool: the twin knows two spatial axes and explicit pads; export so")
    pads = _pads(a)
    x = F.pad(x, [pads[1], pads[3], pads[0], pads[2]], value=float("-inf"))
    return F.max_pool2d(
        x,
        a["kernel_shape"],
        a.get("strides", [1, 1]),
        0,
        a.get("dilations", [1, 1]),
        bool(a.get("ceil_mode", 0)),
    )


def reshape(a: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    """Reshape; 0 keeps an axis, -1 takes the rest."""
    kept = not a.get("allowzero", 0)
    sizes = [x.shape[i] if n == 0 and kept else int(n) for i, n in enumerate(shape.tolist())]
    return x.reshape(sizes)


def flatten(a: Attributes, x: Tensor) -> Tensor:
    """Flatten into two axes."""
    axis = a.get("axis", 1)
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def squeeze(_: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Squeeze."""
    return x.squeeze() if axes is None else x.squeeze(axes.tolist())


def unsqueeze(_: Attributes, x: Tensor, axes: Tensor) -> Tensor:
    """Unsqueeze; axes count in the result."""
    ndim = x.ndim + axes.numel()
    for axis in sorted(int(n) % ndim for n in axes.tolist()):
        x = x.unsqueeze(axis)
    return x


def shape_of(a: Attributes, x: Tensor) -> Tensor:
    """Shape."""
    return torch.tensor(x.shape[a.get("start", 0) : a.get("end")])


def gather(a: Attributes, x: Tensor, index: Tensor) -> Tensor:
    """Gather along one axis."""
    axis = a.get("axis", 0) % x.ndim
    taken = x.index_select(axis, index.reshape(-1) % x.shape[axis])
    return taken.reshape([*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]])


def cast(a: Attributes, x: Tensor) -> Tensor:
    """Cast to float32, int32, int64 or bool, from any type."""
    if a["to"] not in TYPES:
        raise DataError(f"Cast: the twin does not know element type {a['to']}; export in float32")
    return x.to(TYPES[a["to"]])


def _pads(a: Attributes) -> Sequence[int]:
    pads: Sequence[int] = a.get("pads", [0, 0, 0, 0])
    return pads


def _centred(x: Tensor, zero: Tensor | None = None, axis: int = 0) -> Tensor:
    """Integers minus their zero point, in float32 (exact below 2**24)."""
    return x.float() if zero is None else x.float() - along(zero, x.ndim, axis).float()


OPERATORS: dict[str, Operator] = {
    "Add": lambda _, x, y: x + y,
    "Cast": cast,
    "Clip": clip,
    "Concat": lambda a, *parts: torch.cat(parts, a["axis"]),
    "Conv": conv,
    "ConvInteger": conv_integer,
    "DequantizeLinear": dequantize_linear,
    "Div": lambda _, x, y: x / y,
    "DynamicQuantizeLinear": dynamic_quantize_linear,
    "Flatten": flatten,
    "Gather": gather,
    "Gemm": gemm,
    "GlobalAveragePool": lambda _, x: x.mean((2, 3), keepdim=True),
    "Identity": lambda _, x: x,
    "MatMul": lambda _, x, y: x @ y,
    "MatMulInteger": matmul_integer,
    "MaxPool": max_pool,
    "Mul": lambda _, x, y: x * y,
    "QuantizeLinear": quantize_linear,
    "ReduceMean": reduce_mean,
    "Relu": lambda _, x: F.relu(x),
    "Reshape": reshape,
    "Shape": shape_of,
    "Squeeze": squeeze,
    "Sub": lambda _, x, y: x - y,
    "Transpose": lambda a, x: x.permute(a.get("perm", list(range(x.ndim))[::-1])),
    "Unsqueeze": unsqueeze,
}
