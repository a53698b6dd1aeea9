"""The artifact renderer: ruler, ink, hair, gel bubble, gel border, dark corner, patch.

The same code draws on phantoms and on real photographs. An artifact is an alpha and a colour that
depend on the image's size and on the artifact's own random stream, never on the pixels below, and
it changes nothing where its alpha is 0. Lengths are shares of the shorter side.
"""

from __future__ import annotations

import numpy as np

from dermaudit.errors import UserInputError, unknown

from .fields import Array, bezier, coordinates, fractal, lay, noise, polyline, ramp, stamp
from .seeds import stream
from .vocabulary import ARTIFACTS

# Alphas below one grey level become 0: a mask must not cover pixels that do not change.
FAINT = 0.02


def draw_artifact(name: str, rgb: Array, seed: int) -> tuple[Array, Array]:
    """Draw artifact `name` onto a photograph.

    `rgb` is uint8 (height, width, 3), at least 16 px a side, and stays as it is. Returns the new
    uint8 image and the alpha, float32 (height, width) in [0, 1]; pixels with alpha 0 are the same
    bytes. One (name, size, seed) always gives the same drawing.
    Errors: UserInputError for an unknown name or another kind of array.
    """
    if name not in ARTIFACTS:
        raise unknown("artifact", name, ARTIFACTS)
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3:
        raise UserInputError(
            f"draw_artifact needs an RGB image of bytes, got {rgb.dtype} of shape {rgb.shape}",
            "convert it first: np.asarray(image.convert('RGB'))",
        )
    height, width = rgb.shape[:2]
    if min(height, width) < 16:
        raise UserInputError(f"image of {width} x {height} px is too small to draw {name} on")
    alpha, colour = alpha_and_colour(name, height, width, stream(seed, 0, f"draw:{name}"))
    out = lay(rgb.astype(np.float32), alpha, np.clip(colour, 0, 1) * np.float32(255))
    return np.rint(np.clip(out, 0, 255)).astype(np.uint8), alpha


def alpha_and_colour(
    name: str, height: int, width: int, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Return alpha (height, width) and colour (3,) or (height, width, 3), both in [0, 1]."""
    alpha, colour = _DRAW[name](height, width, rng)
    alpha = np.clip(alpha, 0, 1).astype(np.float32)
    alpha[alpha < FAINT] = 0
    return alpha, np.clip(np.asarray(colour, dtype=np.float32), 0, 1)


def _stack(layers: list[tuple[Array, Array]]) -> tuple[Array, Array]:
    """Combine several layers, the last on top, into one alpha and one colour."""
    alpha, colour = layers[0]
    premultiplied = alpha[..., None] * np.asarray(colour, dtype=np.float32)
    for a, colour in layers[1:]:
        alpha = a + alpha * (1 - a)
        laid = a[..., None] * np.asarray(colour, dtype=np.float32)
        premultiplied = laid + premultiplied * (1 - a[..., None])
    return alpha, premultiplied / np.maximum(alpha, np.float32(1e-6))[..., None]


def _side(height: int, width: int, rng: np.random.Generator) -> tuple[Array, Array, float]:
    """Return a random side of the image: (its middle, inward unit vector, length), in pixels."""
    which = int(rng.choice(4, p=[0.5, 0.2, 0.15, 0.15]))
    middle = [(width / 2, height), (width / 2, 0), (0, height / 2), (width, height / 2)][which]
    inward = [(0, -1), (0, 1), (1, 0), (-1, 0)][which]
    return np.array(middle), np.array(inward, dtype=float), (width, width, height, height)[which]


def _ruler(height: int, width: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Ticks along a line: engraved bar with "mm", bare ticks at the edge, or a black-white bar."""
    unit = min(height, width)
    middle, inward, length = _side(height, width, rng)
    kind = rng.choice(["bar", "ticks", "blocks"], p=[0.6, 0.27, 0.13])
    tilt = rng.normal(0, {"bar": 0.12, "ticks": 0.04, "blocks": 0.015}[str(kind)])
    if kind == "bar" and rng.random() < 0.2:
        tilt = rng.choice([-1, 1]) * rng.uniform(0.3, 0.6)
    c, s = np.cos(tilt), np.sin(tilt)
    inward = np.array([inward[0] * c - inward[1] * s, inward[0] * s + inward[1] * c])
    along = np.array([-inward[1], inward[0]])
    if kind == "blocks":
        return _blocks(height, width, rng, middle, inward, along)
    away = rng.uniform(0.05, 0.16) if kind == "bar" else rng.uniform(0.015, 0.06)
    centre = middle + inward * away * unit + along * rng.uniform(-0.12, 0.12) * length
    span = rng.uniform(0.42, 0.8) * length if kind == "bar" else rng.uniform(0.5, 1.1) * length
    gap = rng.uniform(0.03, 0.05) * unit
    thin = rng.uniform(0.0045, 0.0065) * unit
    tall = rng.uniform(0.03, 0.045) * unit
    n = max(int(span / gap), 6)
    bend = rng.uniform(0, 0.14) if kind == "ticks" and rng.random() < 0.5 else 0.0
    points = []
    for k in range(n + 1):
        share = k / n - 0.5
        foot = centre + along * share * n * gap + inward * bend * unit * (0.25 - share**2) * 4
        long = 1.6 if k % 10 == 0 else 1.3 if k % 5 == 0 else 1.0
        points.append(polyline(np.array([foot, foot + inward * tall * long]), max(thin, 0.4)))
    if kind == "bar":
        ends = np.array([centre - along * n * gap / 2, centre + along * n * gap / 2])
        points.append(polyline(ends, max(thin, 0.4)))
        points += _letters(centre - along * (n * gap / 2), inward, along, unit, thin, rng)
    dots = np.concatenate(points)
    wide = thin if kind == "bar" else thin * rng.uniform(1.1, 1.7)
    alpha = stamp(height, width, dots[:, 0], dots[:, 1], wide)
    dark = np.array([0.10, 0.09, 0.09]) + rng.uniform(0, 0.12)
    return alpha * np.float32(rng.uniform(0.72, 0.96)), dark


def _letters(
    at: Array, inward: Array, along: Array, unit: int, thin: float, rng: np.random.Generator
) -> list[Array]:
    """Two small "m" outside the bar's line, at its beginning."""
    high = 0.022 * unit
    strokes = []
    for k in range(2):
        origin = at - inward * high * 1.7 + along * k * high * 1.5
        for x in (0.0, 0.55, 1.1):
            foot = origin + along * x * high
            strokes.append(polyline(np.array([foot, foot + inward * high]), max(thin, 0.4)))
        top = origin + inward * high
        strokes.append(polyline(np.array([top, top + along * 1.1 * high]), max(thin, 0.4)))
    return strokes if rng.random() < 0.8 else []


def _blocks(
    height: int, width: int, rng: np.random.Generator, middle: Array, inward: Array, along: Array
) -> tuple[Array, Array]:
    """Black and white blocks of one millimetre along a side."""
    unit = min(height, width)
    x, y = coordinates(height, width)
    px, py = (x * unit + width) / 2 - middle[0], (y * unit + height) / 2 - middle[1]
    depth = (px * inward[0] + py * inward[1]).astype(np.float32) / unit
    run = (px * along[0] + py * along[1]).astype(np.float32) / unit
    high, period = rng.uniform(0.035, 0.055), rng.uniform(0.09, 0.13)
    soft = 1.0 / unit
    alpha = ramp(depth, high + soft, high - soft)
    wave = np.abs(np.mod(run / period + rng.random(), 1) - 0.5) * 2
    black = ramp(wave, 0.5 + 2 * soft / period, 0.5 - 2 * soft / period)[..., None]
    return alpha * np.float32(0.96), 0.95 - 0.88 * black


def _ink(height: int, width: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Marker pen on skin: dots around the lesion, hatched strokes, an arc, or an arrow."""
    unit = min(height, width)
    kind = rng.choice(["dots", "hatch", "arc", "stroke"], p=[0.3, 0.28, 0.24, 0.18])
    points, radius = [], rng.uniform(0.008, 0.015) * unit
    middle = np.array([width / 2, height / 2])
    reach = np.array([width, height]) / 2

    def at(angle: float, d: float) -> Array:
        return middle + reach * d * np.array([np.cos(angle), np.sin(angle)])

    def scribble(origin: Array, size: float, turns: int, tilt: float) -> Array:
        zig = np.stack([np.linspace(-1, 1, 2 * turns + 1), np.tile([-1, 1], turns + 1)[:-1]], 1)
        zig = zig * [rng.uniform(0.5, 1.0), rng.uniform(0.35, 0.7)]
        zig += rng.normal(0, 0.12, zig.shape)
        c, s = np.cos(tilt), np.sin(tilt)
        return origin + size * zig @ np.array([[c, s], [-s, c]])

    if kind == "dots":
        n, start = int(rng.integers(3, 8)), rng.uniform(0, 6.28)
        for k in range(n):
            origin = at(start + 6.28 * k / n + rng.normal(0, 0.2), rng.uniform(0.68, 0.98))
            points.append(scribble(origin, rng.uniform(0.02, 0.05) * unit, 2, rng.uniform(0, 3)))
    elif kind == "hatch":
        start = rng.uniform(0, 6.28)
        for _ in range(int(rng.integers(1, 4))):
            origin = at(start + rng.normal(0, 0.9), rng.uniform(0.75, 1.05))
            size = rng.uniform(0.09, 0.18) * unit
            points.append(scribble(origin, size, int(rng.integers(4, 8)), rng.uniform(0, 3)))
    elif kind == "arc":
        start, sweep = rng.uniform(0, 6.28), rng.uniform(0.9, 2.6)
        turn = start + np.linspace(0, sweep, 30)
        d = rng.uniform(0.78, 1.0) + 0.05 * np.cumsum(rng.normal(0, 0.25, 30))
        points.append(np.stack([at(a, r) for a, r in zip(turn, d, strict=True)]))
        radius *= rng.uniform(1.2, 2.0)
    else:
        angle = rng.uniform(0, 6.28)
        tip, tail = at(angle, 0.72), at(angle + rng.normal(0, 0.15), 1.15)
        points.append(np.array([tail, tip]))
        for turn in (-0.6, 0.6):
            back = np.arctan2(*(tail - tip)[::-1]) + turn
            wing = tip + 0.1 * unit * np.array([np.cos(back), np.sin(back)])
            points.append(np.array([tip, wing]))
        radius *= 1.3
    dots = np.concatenate([polyline(line, max(radius * 0.6, 0.4)) for line in points])
    shape = stamp(height, width, dots[:, 0], dots[:, 1], radius)
    # Ink breaks over the furrows of the skin, and lies unevenly.
    grain = noise(rng, height, width, 44) * np.float32(0.22) + noise(rng, height, width, 9) * 0.12
    alpha = shape * np.clip(np.float32(rng.uniform(0.62, 0.85)) + grain, 0.12, 0.95)
    hues = [(0.33, 0.22, 0.58), (0.27, 0.27, 0.62), (0.42, 0.25, 0.55), (0.20, 0.20, 0.36)]
    colour = np.array(hues[int(rng.choice(4, p=[0.45, 0.25, 0.2, 0.1]))]) + rng.normal(0, 0.03, 3)
    return alpha, colour


def _hair(height: int, width: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Long curved hairs with a common direction, or short shaved stubble."""
    unit = min(height, width)
    stubble = rng.random() < 0.2
    n = int(rng.integers(14, 40)) if stubble else int(np.exp(rng.uniform(np.log(4), np.log(28))))
    direction = rng.uniform(0, np.pi)
    spread = rng.uniform(0.15, 0.9)
    radius = rng.uniform(0.0042, 0.0075) * unit
    lines = []
    for _ in range(n):
        way = direction + rng.normal(0, spread)
        size = rng.uniform(0.06, 0.12) * unit if stubble else rng.uniform(0.4, 1.3) * unit
        step = np.array([np.cos(way), np.sin(way)]) * size
        centre = rng.uniform(-0.05, 1.05, 2) * [width, height]
        side = np.array([-step[1], step[0]]) * rng.normal(0, 0.05 if stubble else 0.28)
        curve = bezier(np.array([centre - step / 2, centre + side, centre + step / 2]))
        lines.append(polyline(curve, max(radius * 0.9, 0.5)))
    counts = [len(line) for line in lines]
    each = np.repeat(radius * rng.uniform(0.7, 1.15, n), counts)
    dots = np.concatenate(lines)
    alpha = stamp(height, width, dots[:, 0], dots[:, 1], each)
    shades = [(0.10, 0.08, 0.08), (0.22, 0.14, 0.10), (0.38, 0.25, 0.14), (0.62, 0.58, 0.52)]
    colour = np.array(shades[int(rng.choice(4, p=[0.5, 0.3, 0.14, 0.06]))])
    return alpha * np.float32(rng.uniform(0.75, 0.97)), colour + rng.normal(0, 0.02)


def _gel_bubble(height: int, width: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Air bubbles: dark rim, light inner rim, a highlight on the side of the lamp."""
    x, y = coordinates(height, width)
    n = int(rng.integers(2, 9))
    lamp = rng.uniform(0, 2 * np.pi)
    edge_x, edge_y = float(x.max()), float(y.max())
    soft = 2.4 / min(height, width)
    layers = []
    cluster = rng.uniform(-0.9, 0.9, 2)
    for k in range(n):
        r = float(np.exp(rng.uniform(np.log(0.045), np.log(0.17)))) if k else rng.uniform(0.09, 0.2)
        if rng.random() < 0.5:
            at = cluster + rng.normal(0, 0.25, 2)
        else:
            way = rng.uniform(0, 2 * np.pi)
            at = np.array([np.cos(way), np.sin(way)]) * rng.uniform(0.6, 1.15)
        cx, cy = np.clip(at, -1.0, 1.0) * [edge_x, edge_y]
        left, right = np.searchsorted(x[0], [cx - r * 1.3, cx + r * 1.3])
        top, bottom = np.searchsorted(y[:, 0], [cy - r * 1.3, cy + r * 1.3])
        window = (slice(top, bottom), slice(left, right))
        d = np.hypot(x[window] - cx, y[window] - cy) / np.float32(r)
        toward = ((x[window] - cx) * np.cos(lamp) + (y[window] - cy) * np.sin(lamp)) / r
        rim = np.maximum(soft / r, 0.09)
        dark = ramp(np.abs(d - 1), rim * 1.3, 0) * (0.55 - 0.25 * np.clip(toward, -1, 1))
        bright = ramp(np.abs(d - 0.8), rim * 1.6, 0) * np.clip(0.45 + 0.45 * toward, 0.1, 0.9)
        spot_x, spot_y = cx + 0.5 * r * np.cos(lamp), cy + 0.5 * r * np.sin(lamp)
        spot = ramp(
            np.hypot(x[window] - spot_x, y[window] - spot_y), max(0.26 * r, 1.2 * soft), 0.0
        )
        body = ramp(d, 1, 1 - rim) * 0.10
        layers.append((window, body, dark, np.maximum(bright, spot * 0.95)))
    alpha = np.zeros((height, width), dtype=np.float32)
    light = np.zeros((height, width), dtype=np.float32)
    for window, body, dark, bright in layers:
        for a, value in ((body, 0.93), (dark, 0.22), (bright, 0.98)):
            before = alpha[window]
            after = a + before * (1 - a)
            light[window] = (a * value + light[window] * before * (1 - a)) / np.maximum(after, 1e-6)
            alpha[window] = after
    tint = np.array([1.0, 0.985, 0.96], dtype=np.float32)
    return alpha, light[..., None] * tint


def _gel_border(height: int, width: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Draw the edge of the immersion film: a bright and a dark line on a wide arc, and a tint beyond."""
    x, y = coordinates(height, width)
    r = rng.uniform(0.9, 1.6)
    way = rng.uniform(0, 2 * np.pi)
    # The arc passes at this distance from the image's middle: near its side.
    pass_at = rng.uniform(0.62, 0.9)
    cx, cy = (pass_at - r) * np.cos(way), (pass_at - r) * np.sin(way)
    angle = np.arctan2(y - cy, x - cx)
    wave = sum(
        rng.normal(0, 0.012) * np.cos(k * angle + rng.uniform(0, 6.28)) for k in (2, 3, 5, 8)
    )
    d = (np.hypot(x - cx, y - cy) - r - wave).astype(np.float32)
    thick = max(rng.uniform(0.014, 0.026), 1.6 / min(height, width))
    strength = np.float32(0.5) + np.float32(0.5) * ramp(
        fractal(rng, height, width, 4, 2), -1.5, 0.4
    )
    bright = ramp(np.abs(d), thick, thick * 0.25) * strength * rng.uniform(0.5, 0.85)
    dark = ramp(np.abs(d - 1.9 * thick), thick * 1.2, 0) * strength * rng.uniform(0.35, 0.6)
    beyond = ramp(d, 0, thick) * rng.uniform(0.08, 0.2)
    shade = rng.uniform(0.3, 0.9)
    return _stack(
        [
            (beyond.astype(np.float32), np.array([shade, shade * 0.97, shade * 0.95])),
            (dark.astype(np.float32), np.array([0.25, 0.19, 0.18])),
            (bright.astype(np.float32), np.array([0.98, 0.97, 0.95])),
        ]
    )


def _dark_corner(height: int, width: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Draw the round field of the dermatoscope: black beyond it, in all corners or in some."""
    x, y = coordinates(height, width)
    far = float(np.hypot(x.max(), y.max()))
    # The field's radius as a share of the half diagonal: a full black ring, or corners alone.
    r = far * (rng.uniform(0.64, 0.74) if rng.random() < 0.2 else rng.uniform(0.78, 0.91))
    cx, cy = rng.normal(0, 0.06, 2)
    d = np.hypot((x - cx) * rng.uniform(0.97, 1.03), y - cy).astype(np.float32)
    soft = rng.uniform(0.02, 0.06) if rng.random() < 0.6 else rng.uniform(0.1, 0.22)
    alpha = ramp(d, r - soft, r + soft) * np.float32(rng.uniform(0.9, 1.0))
    return alpha, np.array([0.035, 0.03, 0.04]) * rng.uniform(0.3, 1.6)


def _patch(height: int, width: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Coloured paper or plastic discs that reach in from a side; now and then a gauze corner."""
    x, y = coordinates(height, width)
    ex, ey = float(x.max()), float(y.max())
    colours = [
        (0.33, 0.74, 0.70),
        (0.05, 0.55, 0.83),
        (0.93, 0.55, 0.18),
        (0.91, 0.82, 0.12),
        (0.15, 0.67, 0.42),
        (0.80, 0.80, 0.81),
    ]
    weights = [0.28, 0.2, 0.18, 0.12, 0.08, 0.14]
    weave = noise(rng, height, width, 60) * np.float32(0.02)
    weave = weave + noise(rng, height, width, 6) * np.float32(0.015)
    soft = 1.6 / min(height, width)
    layers = []
    way = rng.uniform(0, 2 * np.pi)
    for _ in range(2 if rng.random() < 0.22 else 1):
        r = rng.uniform(0.38, 0.75)
        c, s = np.cos(way), np.sin(way)
        # On the image's outline in this direction, then a little outward.
        side = min(ex / max(abs(c), 1e-6), ey / max(abs(s), 1e-6)) + rng.uniform(0.0, 0.5) * r
        cx, cy = side * c, side * s
        d = np.hypot((x - cx) * rng.uniform(0.85, 1.1), y - cy).astype(np.float32)
        if rng.random() < 0.12:
            turn = rng.uniform(-0.4, 0.4)
            u = (x - cx) * np.cos(turn) + (y - cy) * np.sin(turn)
            v = (y - cy) * np.cos(turn) - (x - cx) * np.sin(turn)
            d = np.maximum(np.abs(u), np.abs(v)).astype(np.float32)
        colour = np.array(colours[int(rng.choice(6, p=weights))]) * rng.uniform(0.85, 1.05)
        shadow = ramp(d, r + 0.07, r) * np.float32(0.28)
        disc = ramp(d, r + soft, r - soft)
        lit = 1 + weave + 0.05 * (d - r)
        layers += [(shadow, np.array([0.25, 0.18, 0.16])), (disc, colour * lit[..., None])]
        way += rng.uniform(1.8, 4.4)
    return _stack(layers)


_DRAW = {
    "ruler": _ruler,
    "ink": _ink,
    "hair": _hair,
    "gel_bubble": _gel_bubble,
    "gel_border": _gel_border,
    "dark_corner": _dark_corner,
    "patch": _patch,
}
