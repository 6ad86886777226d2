"""The CPU that an int8 file is made for: the type of activations, and how fine weights may be.

ONNX Runtime's kernels on x86 take uint8 activations; those of arm64 multiply int8 by int8 fastest,
with ranges symmetric about zero. With VNNI, and on arm64, products are added in int32 and weights
may use all of int8; on an x86 without VNNI pairs of products may saturate (see `saturation`). So
may those of a file for arm64 where it is measured, on an x86, which shifts int8 activations to
uint8: its weights keep to what cannot, and what was judged here answers alike there.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import Literal

from onnxruntime.quantization import QuantType

Name = Literal["auto", "x86-avx2", "x86-vnni", "arm64"]


@dataclass(frozen=True)
class Target:
    """`confined`: weights keep to what cannot saturate on any x86; `symmetric`: of activations."""

    name: str
    activation: QuantType = QuantType.QUInt8
    symmetric: bool = False
    confined: bool = False


AVX2 = Target("x86-avx2", confined=True)
VNNI = Target("x86-vnni")
ARM64 = Target("arm64", activation=QuantType.QInt8, symmetric=True, confined=True)


def target(name: Name) -> Target:
    """The target called `name`. `auto`: arm64 on such a CPU, else `x86-avx2`, also where this CPU
    has VNNI: the file is as small and as fast, means the same on all of them, and is made alike on
    all of them.

    >>> target("x86-vnni").confined
    False
    """
    if name == "auto":
        return ARM64 if platform.machine().lower() in ("arm64", "aarch64") else AVX2
    return {known.name: known for known in (AVX2, VNNI, ARM64)}[name]
