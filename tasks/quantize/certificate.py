"""`certificate.json`: the proof that the shipped file answers alike on every x86 CPU, or where it
does not hold. A function of the file and of its target alone; nothing is measured."""

from __future__ import annotations

import hashlib

import onnx
from pydantic import JsonValue

from tasks.quantize.saturation import LIMITS, layers
from tasks.quantize.targets import AVX2

METHOD = (
    "Kernels without VNNI multiply uint8 activations by int8 weights and add two products at a "
    "time in int16, where a sum beyond its limits saturates. Lowest and highest are the extremes "
    "of such a sum over a layer's output channels, over all pairs of the stored weights, paired "
    "along (height, width, channel) and along (channel, height, width), and over all activations "
    "from 0 to 255. Within the limits no sum can saturate, whatever the input. Layers in float32 "
    "have no such sums and are not listed; their last bits may differ between CPUs."
)


def certificate(content: bytes, target: str = AVX2.name) -> dict[str, JsonValue]:
    """`stillhouse/certificate/1` of the ONNX file `content`, made for `target`."""
    found = layers(onnx.load_from_string(content))
    return {
        "format": "stillhouse/certificate/1",
        "model_sha256": hashlib.sha256(content).hexdigest(),
        "target": target,
        "portable": all(layer.safe for layer in found),
        "limit": list(LIMITS),
        "layers": [
            {
                "name": layer.name,
                "op": layer.op,
                "channels": layer.channels,
                "levels": list(layer.levels),
                "lowest": layer.lowest,
                "highest": layer.highest,
                "unsafe": layer.unsafe,
                "safe": layer.safe,
            }
            for layer in found
        ],
        "method": METHOD,
    }
