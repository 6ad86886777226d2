"""neural-compressor's static int8 with defaults: `python rival.py FLOAT.onnx ROWS.npy OUT.onnx`.

Runs in an environment of its own (`benchmarks/rival.txt`), since it wants other versions than ours;
so nothing of ours is imported here.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
from neural_compressor import PostTrainingQuantConfig, quantization


class Rows:
    """Calibration rows (N, C, H, W) in float32, in the shape that `quantization.fit` asks for."""

    batch_size = 64

    def __init__(self, images: np.ndarray) -> None:
        self.images = images

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(0, len(self.images), self.batch_size):
            block = self.images[start : start + self.batch_size]
            yield block, np.zeros(len(block), np.int64)


def main() -> None:
    """Quantize and save."""
    floats, rows, out = sys.argv[1:]
    config = PostTrainingQuantConfig(approach="static", quant_format="QDQ")
    images = np.load(rows, allow_pickle=False)
    made = quantization.fit(model=floats, conf=config, calib_dataloader=Rows(images))
    made.save(out)


if __name__ == "__main__":
    main()
