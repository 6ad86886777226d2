"""Corruptions: deterministic, in range, of the raw dtype, and worse at higher severities."""

from __future__ import annotations

import hashlib
from itertools import pairwise

import numpy as np
import pytest
from scipy import ndimage

from tasks.core.tables import Schema
from tasks.modalities.vision.corruptions import KINDS, SEVERITIES, corrupt

GREY = Schema(modality="vision", shape=(1, 8, 8), dtype="uint8", range=(0, 16), classes=("a", "b"))
COLOUR = Schema(
    modality="vision", shape=(3, 16, 20), dtype="float32", range=(-1, 1), classes=("a", "b")
)
SCHEMAS = pytest.mark.parametrize("data", [GREY, COLOUR], ids=["grey", "colour"])
EVERY_KIND = pytest.mark.parametrize("kind", list(KINDS))


def smooth(data: Schema, count: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Images with structure, over most of the range, and the names of their rows."""
    random = np.random.default_rng(3)
    sigma = min(data.shape[1:]) / 10
    raw = ndimage.gaussian_filter(random.random((count, *data.shape)), (0, 0, sigma, sigma))
    unit = (raw - raw.min()) / (raw.max() - raw.min())
    low, high = data.range
    images = unit * (high - low) + low
    if data.dtype == "uint8":
        images = np.rint(images)
    images = images.astype(data.dtype)
    return images, np.array([hashlib.sha256(i.tobytes()).hexdigest() for i in images])


@SCHEMAS
@EVERY_KIND
def test_a_corrupted_image_keeps_shape_dtype_and_range(kind: str, data: Schema) -> None:
    images, rows = smooth(data)
    ends = np.stack([np.full(data.shape, v) for v in data.range]).astype(data.dtype)
    images, rows = np.concatenate([images, ends]), np.append(rows, ["f" * 64, "0" * 64])
    for severity in range(1, SEVERITIES + 1):
        corrupted = corrupt(images, rows, kind, severity, data, seed=0)
        assert corrupted.shape == images.shape
        assert corrupted.dtype == np.dtype(data.dtype)
        assert np.isfinite(corrupted).all()
        assert corrupted.min() >= data.range[0]
        assert corrupted.max() <= data.range[1]


@SCHEMAS
@EVERY_KIND
def test_a_higher_severity_distorts_more(kind: str, data: Schema) -> None:
    images, rows = smooth(data)
    original = images.astype(np.float64)
    distortions = [
        np.abs(corrupt(images, rows, kind, s, data, seed=0) - original).mean()
        for s in range(1, SEVERITIES + 1)
    ]
    assert distortions[0] > 0
    assert all(b >= a * 0.98 for a, b in pairwise(distortions))
    assert distortions[-1] > 1.3 * distortions[0]


@EVERY_KIND
def test_an_image_is_corrupted_alike_alone_and_among_others(kind: str) -> None:
    images, rows = smooth(GREY)
    together = corrupt(images, rows, kind, 3, GREY, seed=5)
    alone = corrupt(images[7:8], rows[7:8], kind, 3, GREY, seed=5)
    np.testing.assert_array_equal(together[7], alone[0])


RANDOM = ["gaussian_noise", "shot_noise", "impulse_noise", "motion_blur", "brightness",
          "fog", "snow", "occlusion", "translation", "rotation", "scaling", "elastic"]  # fmt: skip


@pytest.mark.parametrize("kind", RANDOM)
def test_a_random_corruption_depends_on_the_seed_and_on_the_row(kind: str) -> None:
    images, rows = smooth(COLOUR)
    first = corrupt(images, rows, kind, 3, COLOUR, seed=0)
    assert (corrupt(images, rows, kind, 3, COLOUR, seed=1) != first).any()
    assert (corrupt(images, rows[::-1], kind, 3, COLOUR, seed=0) != first).any()


def test_at_least_fifteen_kinds_differ_from_each_other() -> None:
    images, rows = smooth(COLOUR, 4)
    seen = {corrupt(images, rows, kind, 3, COLOUR, seed=0).tobytes() for kind in KINDS}
    assert len(seen) == len(KINDS) >= 15


def test_shot_noise_leaves_dark_pixels_almost_alone() -> None:
    images = np.zeros((20, 3, 16, 20), dtype=np.float32)
    images[:, :, :, 10:] = 0.5
    images[:, :, :, :10] = -1
    rows = np.array([f"{i:064x}" for i in range(20)])
    noise = np.abs(corrupt(images, rows, "shot_noise", 3, COLOUR, seed=0) - images)
    assert noise[..., 10:].mean() > 3 * noise[..., :10].mean() > 0


def test_a_veil_of_fog_brightens_what_is_dark_and_takes_contrast() -> None:
    images, rows = smooth(COLOUR)
    veiled = corrupt(images, rows, "fog", 5, COLOUR, seed=0)
    assert veiled.mean() > images.mean()
    assert veiled.std() < 0.8 * images.std()


def test_snow_only_brightens_and_grows_with_its_severity() -> None:
    images, rows = smooth(COLOUR)
    few, many = (corrupt(images, rows, "snow", s, COLOUR, seed=0) for s in (1, 5))
    assert (few >= images - 1e-6).all()
    assert (many > images + 1e-6).mean() > 3 * (few > images + 1e-6).mean() > 0


def test_scaling_keeps_the_centre_and_moves_the_border() -> None:
    images = np.zeros((30, 3, 17, 21), dtype=np.float32)
    images[..., 8, 10] = 1.0
    data = COLOUR.model_copy(update={"shape": (3, 17, 21)})
    rows = np.array([f"{i:064x}" for i in range(30)])
    scaled = corrupt(images, rows, "scaling", 5, data, seed=0)
    assert np.allclose(scaled[..., 8, 10], 1.0, atol=1e-5)
    areas = (scaled > 0.05).sum(axis=(1, 2, 3))
    assert areas.max() > areas.min()


def test_an_occlusion_covers_its_share_of_the_area() -> None:
    images, rows = smooth(COLOUR)
    changed = (corrupt(images, rows, "occlusion", 5, COLOUR, seed=0) != images).any(axis=1)
    assert 0.15 < changed.mean(axis=(1, 2)).mean() < 0.25


@pytest.mark.parametrize("severity", [0, SEVERITIES + 1])
def test_a_severity_out_of_bounds_is_refused(severity: int) -> None:
    images, rows = smooth(GREY, 2)
    with pytest.raises(ValueError, match=f"severity {severity} is not within 1 to 5"):
        corrupt(images, rows, "contrast", severity, GREY, seed=0)
