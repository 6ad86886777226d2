"""Common corruptions of images: noise, blur, weather, light, geometry, codecs, in five severities.

What a camera, a scanner or a pipeline does to an image by accident (Hendrycks & Dietterich, 2019).
Strengths are shares of the value range and of the image's sides, so 8×8 and 224×224 are treated
alike. A corrupted image has the raw dtype and stays in the declared range. It depends on nothing
but the seed, the row, the kind and the severity; all severities of a row share one random draw, so
a higher one is more of the same. Nothing here knows a model.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from tasks.core.seeds import generator
from tasks.core.tables import Schema

SEVERITIES = 5
Unit = NDArray[np.float64]  # one image (C, H, W) with values in [0, 1]
Corruption = Callable[[Unit, int, np.random.Generator], Unit]


def corrupt(
    images: NDArray[np.generic],
    rows: NDArray[np.str_],
    kind: str,
    severity: int,
    data: Schema,
    seed: int,
) -> NDArray[np.generic]:
    """Raw `images` (N, C, H, W) under corruption `kind` of `KINDS` at `severity` 1 to 5.

    `rows` (N,) names each image's row, whose random stream it is drawn from. The result has the
    dtype and the closed range of `data`.
    """
    if not 1 <= severity <= SEVERITIES:
        raise ValueError(f"severity {severity} is not within 1 to {SEVERITIES}")
    apply, (low, high) = KINDS[kind], data.range
    result = np.empty(images.shape, dtype=data.dtype)
    for place, (image, row) in enumerate(zip(images, rows, strict=True)):
        unit = (image.astype(np.float64) - low) / (high - low)
        changed = apply(unit, severity, generator(seed, "corruption", kind, str(row)))
        raw = np.clip(changed, 0.0, 1.0) * (high - low) + low
        if data.dtype == "uint8":
            raw = np.rint(raw)
        result[place] = np.clip(raw.astype(data.dtype), *_ends(data))
    return result


def _ends(data: Schema) -> tuple[np.generic, np.generic]:
    """The ends of the range in the raw dtype, so that rounding cannot leave it."""
    kind = np.dtype(data.dtype).type
    return kind(data.range[0]), kind(data.range[1])


def _level(severity: int, mildest: float, step: float) -> float:
    return mildest + step * (severity - 1)


def gaussian_noise(image: Unit, severity: int, random: np.random.Generator) -> Unit:
    """Sensor noise, standard deviation 0.06 to 0.26 of the range."""
    return image + random.normal(size=image.shape) * _level(severity, 0.06, 0.05)


def shot_noise(image: Unit, severity: int, random: np.random.Generator) -> Unit:
    """Photon noise: variance grows with the signal; 60 down to 5 photons at full brightness.

    Anscombe's approximation of Poisson by a scaled normal keeps one draw for all severities.
    """
    photons = (60.0, 30.0, 16.0, 9.0, 5.0)[severity - 1]
    return image + random.normal(size=image.shape) * np.sqrt(np.maximum(image, 0.02) / photons)


def impulse_noise(image: Unit, severity: int, random: np.random.Generator) -> Unit:
    """Salt and pepper on 3 % to 23 % of the positions, the same in every channel."""
    where, salt = random.random((2, *image.shape[1:]))
    hit = where < _level(severity, 0.03, 0.05)
    return np.where(hit, (salt < 0.5).astype(np.float64), image)


def gaussian_blur(image: Unit, severity: int, random: np.random.Generator) -> Unit:  # noqa: ARG001
    """Out of focus: sigma 7 % to 19 % of the shorter side."""
    sigma = _level(severity, 0.07, 0.03) * min(image.shape[1:])
    return np.asarray(ndimage.gaussian_filter(image, (0, sigma, sigma), mode="nearest"))


def motion_blur(image: Unit, severity: int, random: np.random.Generator) -> Unit:
    """The mean along a straight path of 15 % to 47 % of the shorter side, at any angle."""
    angle = random.uniform(0, np.pi)
    length = _level(severity, 0.15, 0.08) * min(image.shape[1:])
    steps = np.linspace(-0.5, 0.5, 9) * length
    moved = [
        ndimage.shift(image, (0, s * np.sin(angle), s * np.cos(angle)), order=1, mode="nearest")
        for s in steps
    ]
    return np.asarray(np.mean(moved, axis=0))


def zoom_blur(image: Unit, severity: int, random: np.random.Generator) -> Unit:  # noqa: ARG001
    """A camera that moves in: the mean over magnifications of 1 to 1.1, up to 1 to 1.5."""
    furthest = _level(severity, 0.1, 0.1)
    return np.asarray(np.mean([_magnified(image, 1 + furthest * k / 4) for k in range(5)], axis=0))


def fog(image: Unit, severity: int, random: np.random.Generator) -> Unit:
    """A bright veil of uneven depth that hides 20 % to 60 % of the light on average."""
    sides = image.shape[1:]
    depth = ndimage.gaussian_filter(random.random(sides), min(sides) / 5, mode="wrap")
    depth = (depth - depth.mean()) / max(float(np.ptp(depth)), 1e-9)
    hidden = np.clip(_level(severity, 0.2, 0.1) * (1 + depth), 0, 1)
    return np.asarray(image * (1 - hidden) + 0.9 * hidden)


def snow(image: Unit, severity: int, random: np.random.Generator) -> Unit:
    """Falling flakes: white streaks from 3 % to 15 % of the positions, a twelfth of a side long."""
    sides = image.shape[1:]
    flakes = (random.random(sides) < _level(severity, 0.03, 0.03)).astype(np.float64)
    length = max(2, round(sides[0] / 12))
    for _ in range(length - 1):
        flakes = np.maximum(flakes, 0.8 * np.roll(flakes, (1, 1), axis=(0, 1)))
    return np.maximum(image, flakes)


def brightness(image: Unit, severity: int, random: np.random.Generator) -> Unit:
    """All values up or down by 8 % to 40 % of the range."""
    return image + _sign(random) * _level(severity, 0.08, 0.08)


def contrast(image: Unit, severity: int, random: np.random.Generator) -> Unit:  # noqa: ARG001
    """Values pulled to the image's mean: 80 % down to 20 % of the contrast is left."""
    mean = image.mean()
    return np.asarray(mean + (image - mean) * _level(severity, 0.8, -0.15))


def occlusion(image: Unit, severity: int, random: np.random.Generator) -> Unit:
    """A patch in the image's mean colour over 4 % to 20 % of the area, somewhere."""
    height, width = image.shape[1:]
    side = np.sqrt(_level(severity, 0.04, 0.04))
    h, w = max(1, round(side * height)), max(1, round(side * width))
    down, right = random.random(2)
    top, left = int(down * (height - h + 1)), int(right * (width - w + 1))
    changed = image.copy()
    changed[:, top : top + h, left : left + w] = image.mean(axis=(1, 2), keepdims=True)
    return changed


def translation(image: Unit, severity: int, random: np.random.Generator) -> Unit:
    """A shift by 4 % to 20 % of each side, diagonally; the border's values are repeated."""
    share = _level(severity, 0.04, 0.04)
    offset = (0, _sign(random) * share * image.shape[1], _sign(random) * share * image.shape[2])
    return np.asarray(ndimage.shift(image, offset, order=1, mode="nearest"))


def rotation(image: Unit, severity: int, random: np.random.Generator) -> Unit:
    """A turn by 6° to 38° about the centre, either way."""
    degrees = _sign(random) * _level(severity, 6, 8)
    return np.asarray(
        ndimage.rotate(image, degrees, axes=(1, 2), reshape=False, order=1, mode="nearest")
    )


def scaling(image: Unit, severity: int, random: np.random.Generator) -> Unit:
    """Nearer or further by a factor of 1.08 to 1.4; the border's values are repeated."""
    factor = _level(severity, 1.08, 0.08)
    return _magnified(image, factor if random.random() < 0.5 else 1 / factor)


def elastic(image: Unit, severity: int, random: np.random.Generator) -> Unit:
    """Soft material: smooth displacements of 2 % to 6 % of the shorter side on average."""
    sides = image.shape[1:]
    shorter = min(sides)
    moved = ndimage.gaussian_filter(random.normal(size=(2, *sides)), (0, shorter / 8, shorter / 8))
    size = float(np.hypot(*moved).mean())
    moved *= _level(severity, 0.02, 0.01) * shorter / max(size, 1e-9)
    places = np.indices(sides) + moved
    return np.stack(
        [ndimage.map_coordinates(channel, places, order=1, mode="nearest") for channel in image]
    )


def pixelate(image: Unit, severity: int, random: np.random.Generator) -> Unit:  # noqa: ARG001
    """Down to 85 % to 45 % of each side by area, and back by repetition."""
    height, width = image.shape[1:]
    share = _level(severity, 0.85, -0.10)
    small = max(1, round(share * width)), max(1, round(share * height))
    channels = []
    for channel in image.astype(np.float32):
        shrunk = Image.fromarray(channel).resize(small, Image.Resampling.BOX)
        channels.append(np.asarray(shrunk.resize((width, height), Image.Resampling.NEAREST)))
    return np.stack(channels).astype(np.float64)


def jpeg(image: Unit, severity: int, random: np.random.Generator) -> Unit:  # noqa: ARG001
    """JPEG at quality 40 down to 4, the range scaled to 0..255; other than 3 channels are grey."""
    quality = (40, 25, 15, 8, 4)[severity - 1]
    byte = np.rint(np.clip(image, 0.0, 1.0) * 255).astype(np.uint8)
    planes = [byte.transpose(1, 2, 0)] if len(byte) == 3 else list(byte)
    decoded = []
    for plane in planes:
        buffer = io.BytesIO()
        Image.fromarray(plane).save(buffer, "JPEG", quality=quality)
        with Image.open(buffer) as stored:
            decoded.append(np.asarray(stored, dtype=np.float64) / 255)
    return decoded[0].transpose(2, 0, 1) if len(byte) == 3 else np.stack(decoded)


def _magnified(image: Unit, factor: float) -> Unit:
    """The image enlarged about its centre, or shrunk where `factor` is below 1."""
    middle = (np.array(image.shape[1:]) - 1) / 2
    offset = (0, *(middle - middle / factor))
    matrix = (1, 1 / factor, 1 / factor)
    return np.asarray(
        ndimage.affine_transform(image, matrix, offset, order=1, mode="nearest"), dtype=np.float64
    )


def _sign(random: np.random.Generator) -> float:
    return 1.0 if random.random() < 0.5 else -1.0


KINDS: dict[str, Corruption] = {
    kind.__name__: kind
    for kind in (
        gaussian_noise,
        shot_noise,
        impulse_noise,
        gaussian_blur,
        motion_blur,
        zoom_blur,
        fog,
        snow,
        brightness,
        contrast,
        occlusion,
        translation,
        rotation,
        scaling,
        elastic,
        pixelate,
        jpeg,
    )
}
