"""Dermoscopic structures painted on the lesion, one function each, and the order they go in.

Every structure scales with the image, so that it can be seen at 96 px, and draws from the stream
of its own concept.
"""

from __future__ import annotations

import numpy as np

from .fields import cut, fractal, noise, ramp, stamp
from .lesion import Canvas, Lesion


def _mesh(x, y, warp_x, warp_y, period: float, angle: float):
    """Honeycomb: -1.5 on the lines' crossings, 3 in the middle of a hole; `period` in x units."""
    wave = np.float32(2 * np.pi / (period * 0.866))
    total = np.zeros_like(x)
    for k in range(3):
        turn = angle + k * np.pi / 3 * 2
        c, s = np.float32(np.cos(turn)), np.float32(np.sin(turn))
        total += np.cos(((x + warp_x) * c + (y + warp_y) * s) * wave)
    return total


def network_typical(canvas: Canvas) -> None:
    """Regular thin brown lines around even holes, fading at the edge."""
    lesion, size = canvas.lesion, canvas.image.shape[0]
    rng = canvas.scene.stream("pigment_network_typical")
    wx, wy = (
        noise(rng, size, size, 5) * np.float32(0.04) + noise(rng, size, size, 13) * np.float32(0.02)
        for _ in range(2)
    )
    mesh = _mesh(lesion.x, lesion.y, wx, wy, rng.uniform(0.105, 0.14), rng.uniform(0, 3))
    body = lesion.alpha * ramp(lesion.d, 1.02, 0.8)
    faint = np.float32(0.72) + np.float32(0.28) * ramp(fractal(rng, size, size, 6, 2), -1.2, 0.8)
    line = ramp(mesh, 0.1, -0.9) * body * faint
    hole = ramp(mesh, 0.6, 1.9) * body
    dark = lesion.colour("color_dark_brown") * np.float32(rng.uniform(0.6, 0.95))
    canvas.image += (
        (hole * np.float32(rng.uniform(0.03, 0.09)))[..., None]
        * np.array([1.0, 0.85, 0.7], dtype=np.float32)
        * np.float32(lesion.tone)
    )
    canvas.lay(
        "pigment_network_typical", line * np.float32(rng.uniform(0.52, 0.78)), dark, opaque=0.6
    )


def network_atypical(canvas: Canvas) -> None:
    """Uneven broad lines, wide and narrow holes, in part of the lesion, ending abruptly."""
    lesion, size = canvas.lesion, canvas.image.shape[0]
    rng = canvas.scene.stream("pigment_network_atypical")
    wx, wy = (
        noise(rng, size, size, 6) * np.float32(0.10) + noise(rng, size, size, 12) * np.float32(0.03)
        for _ in range(2)
    )
    mesh = _mesh(lesion.x, lesion.y, wx, wy, rng.uniform(0.17, 0.24), rng.uniform(0, 3))
    where = cut(fractal(rng, size, size, 4, 2), lesion.inside, rng.uniform(0.5, 0.75), 0.12)
    body = lesion.alpha * where
    thick = noise(rng, size, size, 5) * np.float32(0.5)
    uneven = np.float32(0.65) + np.float32(0.35) * ramp(noise(rng, size, size, 9), -0.8, 0.6)
    line = ramp(mesh + thick, 0.2, -0.55) * body * uneven
    hole = ramp(mesh + thick, 0.7, 2.0) * body
    dark = lesion.colour("color_dark_brown") * np.array([0.5, 0.5, 0.55], dtype=np.float32)
    canvas.image += (
        (hole * np.float32(rng.uniform(0.02, 0.08)))[..., None]
        * np.array([1.0, 0.85, 0.75], dtype=np.float32)
        * np.float32(lesion.tone)
    )
    canvas.lay(
        "pigment_network_atypical", line * np.float32(rng.uniform(0.75, 0.9)), dark, opaque=0.6
    )


def _scatter(rng: np.random.Generator, lesion: Lesion, n: int, reach: float = 0.88):
    """N points spread evenly over the lesion, in pixels, none too near to another."""
    size = lesion.x.shape[0]
    angle = rng.uniform(0, 2 * np.pi, 4 * n)
    px, py = lesion.place(angle, reach * np.sqrt(rng.uniform(0, 1, 4 * n)))
    gap = 0.75 * lesion.radius * size / 2 / np.sqrt(n)
    far = (px[:, None] - px) ** 2 + (py[:, None] - py) ** 2 > gap * gap
    kept: list[int] = []
    free = np.ones(4 * n, dtype=bool)
    for k in range(4 * n):
        if free[k]:
            kept.append(k)
            free &= far[k]
            if len(kept) == n:
                break
    return px[kept], py[kept]


def globules(canvas: Canvas) -> None:
    """Round dots, darker than the lesion's own colour: brown ones, or red lacunae in a red one."""
    lesion, size = canvas.lesion, canvas.image.shape[0]
    rng = canvas.scene.stream("globules")
    px, py = _scatter(rng, lesion, int(rng.integers(12, 30)))
    radii = rng.uniform(0.013, 0.026) * size * rng.uniform(0.8, 1.25, px.size)
    alpha = stamp(size, size, px, py, radii) * lesion.alpha
    seen = canvas.scene.concepts
    brown = seen["color_light_brown"] or seen["color_dark_brown"]
    colour = (
        lesion.colour("color_dark_brown") * np.float32(rng.uniform(0.5, 0.75))
        if brown
        else lesion.colour("color_red") * np.array([0.62, 0.3, 0.5], dtype=np.float32)
    )
    canvas.lay("globules", alpha * np.float32(rng.uniform(0.75, 0.92)), colour)


def streaks(canvas: Canvas) -> None:
    """Dark radial fingers across the border, all around or in one sector."""
    lesion, size = canvas.lesion, canvas.image.shape[0]
    rng = canvas.scene.stream("streaks")
    spread = rng.uniform(2.2, 6.28)
    n = int(np.ceil(spread * rng.uniform(2.6, 3.6)))
    angles = rng.uniform(0, 6.28) + (np.arange(n) + rng.uniform(-0.3, 0.3, n)) * spread / n
    inner, outer = rng.uniform(0.68, 0.88, n), rng.uniform(1.1, 1.32, n)
    along = np.linspace(0, 1, max(int(size * 0.26), 24))
    angle = angles[:, None] + rng.normal(0, 0.09, n)[:, None] * along
    # The outline at the finger's root carries it: a jagged outline must not bend it.
    r = lesion.radius_at(angles)[:, None] * (inner[:, None] + (outer - inner)[:, None] * along)
    px = (lesion.centre[0] + r * np.cos(angle) + 1) * size / 2
    py = (lesion.centre[1] + r * np.sin(angle) + 1) * size / 2
    bulb = rng.random() < 0.4
    taper = (0.85 + 0.35 * along) if bulb else (1.15 - 0.65 * along)
    radii = rng.uniform(0.0075, 0.0115) * size * np.broadcast_to(taper, px.shape)
    alpha = stamp(size, size, px.ravel(), py.ravel(), radii.ravel())
    colour = lesion.colour("color_dark_brown") * np.float32(rng.uniform(0.45, 0.8))
    canvas.lay("streaks", alpha * np.float32(rng.uniform(0.75, 0.92)), colour)


def regression(canvas: Canvas) -> None:
    """White scar-like area peppered with grey-blue granules."""
    lesion, size = canvas.lesion, canvas.image.shape[0]
    rng = canvas.scene.stream("regression")
    area = lesion.region(rng, "regression", rng.uniform(0.2, 0.34), 0.34)
    scar = area * np.float32(rng.uniform(0.72, 0.9))
    texture = 1 + 0.04 * fractal(rng, size, size, 16, 2)
    canvas.lay("regression", scar, lesion.colour("color_white") * texture[..., None])
    px, py = _scatter(rng, lesion, 90, reach=1.0)
    columns = np.clip(px.astype(int), 0, size - 1)
    rows = np.clip(py.astype(int), 0, size - 1)
    keep = area[rows, columns] > 0.35
    dots = stamp(size, size, px[keep], py[keep], rng.uniform(0.006, 0.009) * size) * area
    canvas.lay("regression", dots * np.float32(0.7), lesion.colour("color_blue_gray") * 0.8)
    canvas.credit("color_white", scar * (1 - dots))


def veil(canvas: Canvas) -> None:
    """Confluent blue under a whitish ground-glass film."""
    lesion, size = canvas.lesion, canvas.image.shape[0]
    rng = canvas.scene.stream("blue_whitish_veil")
    area = lesion.region(rng, "blue_whitish_veil", rng.uniform(0.3, 0.5), 0.42)
    alpha = area * np.float32(rng.uniform(0.72, 0.88))
    film = ramp(fractal(rng, size, size, 6, 3), -0.8, 1.6)[..., None]
    blue = lesion.colour("color_blue_gray") * np.array([0.9, 0.97, 1.08], dtype=np.float32)
    colour = blue * (1 - 0.75 * film) + lesion.colour("veil") * np.float32(1.18) * 0.75 * film
    canvas.lay("blue_whitish_veil", alpha, colour)
    canvas.credit("color_blue_gray", alpha)


def vessels(canvas: Canvas) -> None:
    """Arborising vessels: sharp bright red trunks that branch into thinner ones."""
    lesion, size = canvas.lesion, canvas.image.shape[0]
    rng = canvas.scene.stream("arborising_vessels")
    reach = lesion.radius * size / 2
    xs, ys, radii = [], [], []

    def grow(x: float, y: float, way: float, length: float, radius: float, depth: int) -> None:
        n = max(int(length / max(radius, 0.4)), 3)
        heading = way + np.cumsum(rng.normal(0, 0.55 / np.sqrt(n), n))
        step = length / n
        px = x + np.cumsum(np.cos(heading)) * step
        py = y + np.cumsum(np.sin(heading)) * step
        xs.append(px)
        ys.append(py)
        radii.append(np.linspace(radius, radius * 0.75, n))
        if depth == 0:
            return
        for _ in range(2 if depth == 1 else 3):
            k = int(rng.integers(n // 3, n))
            turn = rng.choice([-1, 1]) * rng.uniform(0.45, 1.0)
            grow(px[k], py[k], heading[k] + turn, length * 0.6, radius * 0.72, depth - 1)

    for _ in range(int(rng.integers(2, 5))):
        angle = rng.uniform(0, 2 * np.pi)
        start = rng.uniform(0.6, 1.0)
        px, py = lesion.place(np.array(angle), np.array(start))
        way = angle + np.pi + rng.normal(0, 0.4)
        width = rng.uniform(0.0075, 0.0105) * size
        grow(float(px), float(py), way, reach * rng.uniform(0.65, 1.1), width, 2)
    alpha = stamp(size, size, np.concatenate(xs), np.concatenate(ys), np.concatenate(radii))
    alpha = alpha * ramp(lesion.d, 1.3, 1.1)
    canvas.lay(
        "arborising_vessels", alpha * np.float32(rng.uniform(0.78, 0.92)), lesion.colour("vessel")
    )


def ulceration(canvas: Canvas) -> None:
    """Paint a sharply bounded raw area with crust, blood and a wet shine."""
    lesion, size = canvas.lesion, canvas.image.shape[0]
    rng = canvas.scene.stream("ulceration")
    area = lesion.region(rng, "ulceration", rng.uniform(0.1, 0.2), 0.06)
    crust = ramp(fractal(rng, size, size, 14, 3), -0.5, 1.0)[..., None]
    raw = lesion.colour("crust")
    yellow = np.array([0.72, 0.46, 0.22], dtype=np.float32) * np.float32(lesion.tone**0.4)
    colour = raw * (1 - 0.7 * crust) + yellow * 0.7 * crust
    wet = ramp(noise(rng, size, size, 26), 1.5, 2.1)[..., None]
    canvas.lay("ulceration", area * np.float32(0.93), colour * (1 - wet) + np.float32(0.95) * wet)


def milia(canvas: Canvas) -> None:
    """Small round whitish cysts with a soft halo."""
    lesion, size = canvas.lesion, canvas.image.shape[0]
    rng = canvas.scene.stream("milia_like_cyst")
    px, py = _scatter(rng, lesion, int(rng.integers(5, 13)), reach=0.8)
    radii = rng.uniform(0.011, 0.022, px.size) * size
    core = stamp(size, size, px, py, radii)
    # The halo is a wider, weaker disc: a blur would leave a trace outside its own alpha.
    halo = stamp(size, size, px, py, radii + 0.014 * size) * np.float32(0.3)
    alpha = np.maximum(core * np.float32(rng.uniform(0.68, 0.92)), halo) * lesion.alpha
    canvas.lay("milia_like_cyst", alpha, lesion.colour("keratin"))


def scale(canvas: Canvas) -> None:
    """Whitish flakes that lie on the surface, in patches."""
    lesion, size = canvas.lesion, canvas.image.shape[0]
    rng = canvas.scene.stream("scale")
    across = int(rng.integers(20, 36))
    flake = noise(rng, size, size, 32, across) + noise(rng, size, size, 56)
    patches = noise(rng, size, size, 5)
    near = ramp(lesion.d, 1.12, 0.9)
    alpha = cut(flake + 0.8 * patches, lesion.inside, rng.uniform(0.17, 0.27), 0.4) * near
    bright = 1 + np.float32(0.07) * noise(rng, size, size, 40)
    canvas.lay(
        "scale",
        alpha * np.float32(rng.uniform(0.75, 0.92)),
        lesion.colour("keratin") * np.float32(0.97) * bright[..., None],
    )


# Below, then above: pigment, what lies in the skin, what lies on it.
BELOW_REGIONS = (
    ("pigment_network_typical", network_typical),
    ("pigment_network_atypical", network_atypical),
    ("globules", globules),
    ("streaks", streaks),
)
ABOVE_REGIONS = (
    ("blue_whitish_veil", veil),
    ("regression", regression),
    ("arborising_vessels", vessels),
    ("ulceration", ulceration),
    ("milia_like_cyst", milia),
    ("scale", scale),
)
