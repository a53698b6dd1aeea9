"""Float fields over an image: coordinates, smooth noise, thresholds by area, lines of discs.

All fields are float32 of shape (height, width). Noise is a small random grid spread by cubic
B-splines, so that the same stream gives the same picture at every size.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

Array = np.ndarray


@lru_cache(maxsize=32)
def coordinates(height: int, width: int) -> tuple[Array, Array]:
    """X and y of the pixel centres; ±1 at the ends of the shorter side, 0 in the middle."""
    half = min(height, width) / 2
    x = (np.arange(width, dtype=np.float32) + 0.5 - width / 2) / half
    y = (np.arange(height, dtype=np.float32) + 0.5 - height / 2) / half
    grid_x, grid_y = np.meshgrid(x, y)
    for field in (grid_x, grid_y):
        field.setflags(write=False)
    return grid_x, grid_y


@lru_cache(maxsize=256)
def _spline(length: int, cells: int) -> Array:
    """(length, cells + 3) weights that spread a row of cells over `length` pixels."""
    at = (np.arange(length) + 0.5) / length * cells
    cell = np.minimum(at.astype(int), cells - 1)
    t = at - cell
    weights = np.stack(
        [(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], axis=1
    )
    matrix = np.zeros((length, cells + 3))
    for k in range(4):
        matrix[np.arange(length), cell + k] = weights[:, k] / 6
    return matrix.astype(np.float32)


def noise(
    rng: np.random.Generator, height: int, width: int, cells: int, across: int | None = None
) -> Array:
    """Smooth noise of about zero mean and unit variance, `cells` bumps down and `across` wide."""
    across = cells if across is None else across
    grid = rng.standard_normal((cells + 3, across + 3), dtype=np.float32)
    # 2.08 undoes the variance that the cubic B-spline takes away.
    return (_spline(height, cells) @ grid @ _spline(width, across).T) * np.float32(2.08)


def fractal(
    rng: np.random.Generator, height: int, width: int, cells: int, octaves: int = 3
) -> Array:
    """Sum of `octaves` noises, each twice as fine and .6 as strong; about unit variance."""
    total = noise(rng, height, width, cells)
    power, gain = 1.0, 1.0
    for octave in range(1, octaves):
        gain *= 0.6
        total += np.float32(gain) * noise(rng, height, width, cells * 2**octave)
        power += gain**2
    return total / np.float32(power**0.5)


def ramp(field: Array, low: float | Array, high: float | Array) -> Array:
    """Smooth step: 0 below `low`, 1 above `high` (or the reverse when low > high)."""
    span = high - low
    # A span of plain numbers is float64; float32 keeps the field's own type.
    t = np.clip((field - low) / (span if isinstance(span, np.ndarray) else np.float32(span)), 0, 1)
    return (t * t * (3 - 2 * t)).astype(np.float32, copy=False)


def cut(score: Array, inside: Array, share: float, soft: float) -> Array:
    """Soft region that takes about `share` of the pixels of `inside`, where `score` is highest."""
    values = np.sort(score[inside])
    if values.size == 0:
        return np.zeros_like(score)
    level = float(values[min(int((1 - share) * values.size), values.size - 1)])
    return ramp(score, level - soft, level + soft)


def stamp(height: int, width: int, xs: Array, ys: Array, radii: Array | float) -> Array:
    """Anti-aliased discs in pixel units, joined by the maximum; thin ones become faint."""
    xs, ys = np.asarray(xs, dtype=np.float32), np.asarray(ys, dtype=np.float32)
    radii = np.broadcast_to(np.asarray(radii, dtype=np.float32), xs.shape)
    reach = int(np.ceil(float(radii.max()) + 1)) if xs.size else 1
    near = (xs > -reach) & (xs < width + reach) & (ys > -reach) & (ys < height + reach)
    xs, ys, radii = xs[near], ys[near], radii[near]
    wide = width + 4 * reach + 2
    field = np.zeros((height + 4 * reach + 2) * wide, dtype=np.float32)
    if xs.size:
        column, row = np.floor(xs).astype(np.intp), np.floor(ys).astype(np.intp)
        window = np.arange(-reach, reach + 1)
        dx = (column[:, None] + window + 0.5 - xs[:, None]).astype(np.float32)
        dy = (row[:, None] + window + 0.5 - ys[:, None]).astype(np.float32)
        distance = np.sqrt(dx[:, None, :] ** 2 + dy[:, :, None] ** 2)
        value = np.clip(radii[:, None, None] + 0.5 - distance, 0, 1)
        at = (row[:, None, None] + 2 * reach + window[None, :, None]) * wide + (
            column[:, None, None] + 2 * reach + window[None, None, :]
        )
        np.maximum.at(field, at.ravel(), value.ravel())
    return field.reshape(-1, wide)[2 * reach : 2 * reach + height, 2 * reach : 2 * reach + width]


def polyline(points: Array, spacing: float) -> Array:
    """Points every `spacing` pixels along the line through `points` (n, 2)."""
    steps = np.hypot(*np.diff(points, axis=0).T)
    along = np.concatenate([[0.0], np.cumsum(steps)])
    at = np.arange(0, along[-1] + 1e-6, max(spacing, 1e-3))
    return np.stack([np.interp(at, along, points[:, 0]), np.interp(at, along, points[:, 1])], 1)


def bezier(control: Array, n: int = 24) -> Array:
    """Quadratic Bézier curve through three control points (3, 2): (n, 2) points."""
    t = np.linspace(0, 1, n)[:, None]
    return (1 - t) ** 2 * control[0] + 2 * t * (1 - t) * control[1] + t**2 * control[2]


def lay(image: Array, alpha: Array, colour: Array) -> Array:
    """(1 - alpha)·image + alpha·colour; where alpha is 0 the image stays bit for bit."""
    a = alpha[..., None]
    return (1 - a) * image + a * np.asarray(colour, dtype=np.float32)
