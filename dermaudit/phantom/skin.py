"""The skin around the lesion, Fitzpatrick I–VI, and the camera that sees both.

Colours are linear mixes of sRGB values in [0, 1]; images are float32 (size, size, 3).
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from .fields import Array, coordinates, fractal, noise, ramp
from .scene import Scene

# Skin under a dermatoscope, Fitzpatrick type 1..6.
SKIN = {
    1: (0.90, 0.76, 0.71),
    2: (0.87, 0.71, 0.63),
    3: (0.81, 0.64, 0.54),
    4: (0.71, 0.53, 0.43),
    5: (0.58, 0.42, 0.33),
    6: (0.45, 0.32, 0.26),
}
# How far pigments darken with the skin, so that a lesion stays darker than what is around it.
TONE = {1: 1.0, 2: 0.98, 3: 0.92, 4: 0.82, 5: 0.66, 6: 0.52}


def paint_skin(scene: Scene, size: int) -> Array:
    """Paint the bare skin of a scene: (size, size, 3)."""
    rng = scene.stream("skin")
    x, y = coordinates(size, size)
    base = np.array(SKIN[scene.skin_type], dtype=np.float32)
    base = base * rng.normal(1.0, 0.025, 3).astype(np.float32)
    # Erythema and pigment vary slowly over centimetres: red stays, green and blue follow.
    flush = fractal(rng, size, size, 3, 3)
    brown = fractal(rng, size, size, 5, 4)
    # Blotches of a millimetre: paler and redder spots that make real skin look restless.
    blotch = noise(rng, size, size, int(rng.integers(12, 20)))
    shift_blotch = np.array([-0.008, 0.014, 0.010], dtype=np.float32) * np.float32(
        rng.uniform(0.3, 2.2)
    )
    shift_flush = np.array([0.006, 0.022, 0.018], dtype=np.float32) * np.float32(
        rng.uniform(0.4, 2.2)
    )
    shift_brown = np.array([0.014, 0.021, 0.026], dtype=np.float32) * np.float32(
        rng.uniform(0.4, 2.6)
    )
    image = base * (
        1
        - flush[..., None] * shift_flush
        - brown[..., None] * shift_brown
        - blotch[..., None] * shift_blotch
    )

    # Furrows: two crossing families of fine, wavering lines.
    angle = rng.uniform(0, np.pi)
    warp = noise(rng, size, size, 6) * np.float32(0.09)
    furrow = np.zeros((size, size), dtype=np.float32)
    for turn in (0.0, rng.uniform(0.9, 1.4)):
        direction = angle + turn
        along = x * np.float32(np.cos(direction)) + y * np.float32(np.sin(direction)) + warp
        wave = np.abs(np.sin(along * np.float32(rng.uniform(14, 22))))
        furrow = np.maximum(furrow, 1 - wave * np.float32(2.5))
    patchy = ramp(noise(rng, size, size, 4), -0.6, 1.0)
    depth = rng.uniform(0.0, 0.075) * (1.3 if scene.skin_type >= 5 else 1.0)
    image *= (1 - np.float32(depth) * np.clip(furrow, 0, 1) * patchy)[..., None]

    # Diffuse superficial vessels: crests of a smooth noise, redder than the skin.
    crest = noise(rng, size, size, 9)
    net = np.exp(-((crest / np.float32(0.16)) ** 2)) * ramp(noise(rng, size, size, 3), 0, 1.2)
    strength = rng.uniform(0, 0.12) * (0.4 if scene.skin_type >= 5 else 1.0)
    image *= 1 - net[..., None] * np.array([0.15, 1.0, 0.75], dtype=np.float32) * np.float32(
        strength
    )

    if rng.random() < 0.3:
        # Lentigines and follicles: soft spots that belong to the skin, not to the lesion.
        spot = ramp(noise(rng, size, size, int(rng.integers(9, 22))), rng.uniform(1.2, 1.7), 2.8)
        spot = spot * np.float32(rng.uniform(0.15, 0.4))
        image *= 1 - spot[..., None] * np.array([0.5, 0.9, 1.1], dtype=np.float32)

    grain = noise(rng, size, size, 22) + noise(rng, size, size, 40)
    grain += np.float32(0.7) * noise(rng, size, size, 75)
    image *= (1 + grain * np.float32(rng.uniform(0.006, 0.02)))[..., None]
    return image.astype(np.float32, copy=False)


def photograph(scene: Scene, image: Array) -> Array:
    """Light, white balance, blur and sensor noise; all of it before any artifact is laid on."""
    size = image.shape[0]
    rng = scene.stream("camera")
    x, y = coordinates(size, size)
    tilt = rng.normal(0, 0.035, 2).astype(np.float32)
    fall = np.float32(rng.uniform(0.0, 0.07))
    light = 1 + x * tilt[0] + y * tilt[1] - (x * x + y * y) * fall
    exposure = np.exp(rng.normal(0.0, 0.12))
    pink = rng.normal(0.02, 0.05)
    balance = np.exp(rng.normal(0, 0.03, 3) + np.array([0.3, -0.8, 0.6]) * pink)
    gain = (exposure * balance / balance.mean()).astype(np.float32)
    image = image * light[..., None] * gain
    # A shoulder instead of clipping: bright skin keeps its texture.
    image = np.where(image > 0.85, 0.85 + 0.15 * np.tanh((image - 0.85) / 0.15), image)
    sigma = rng.uniform(0.15, 0.55) * size / 96
    if sigma > 0.3:
        image = ndimage.gaussian_filter(image, (sigma, sigma, 0), truncate=2.5)
    sensor = scene.stream("sensor")
    level = np.float32(sensor.uniform(0.004, 0.013))
    return image + level * sensor.standard_normal(image.shape, dtype=np.float32)
