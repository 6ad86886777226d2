"""scikit-learn's digits: the data that needs no download."""

from __future__ import annotations

import numpy as np

from tasks.modalities.vision.snapshot import Images


def digits() -> Images:
    """scikit-learn's 1,797 real 8×8 digits, values 0..16 (UCI, Alpaydin & Kaynak 1998)."""
    from sklearn.datasets import load_digits

    content = load_digits()
    pixels = content.images.astype(np.uint8)[:, None]
    return Images(
        pixels, [str(t) for t in content.target], [f"digits/{i}" for i in range(len(pixels))]
    )
