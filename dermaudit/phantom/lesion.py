"""The lesion: its outline, its base colours and its colour regions, and the canvas that they are drawn on.

Positions are in the units of `fields.coordinates`; `d` is the distance from the lesion's centre
divided by the outline's radius in that direction: 0 at the centre, 1 on the outline.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .bias import BASE_COLORS, IMPLIES
from .fields import Array, coordinates, cut, fractal, lay, ramp
from .scene import Scene
from .skin import TONE

BINS = 1024

# sRGB in [0, 1] on fair skin, and how strongly the skin's tone darkens it.
PIGMENT = {
    "color_light_brown": ((0.70, 0.465, 0.285), 1.0),
    "color_dark_brown": ((0.39, 0.215, 0.125), 0.9),
    "color_red": ((0.74, 0.36, 0.36), 0.6),
    "color_black": ((0.10, 0.08, 0.085), 0.6),
    "color_blue_gray": ((0.39, 0.42, 0.485), 0.6),
    "color_white": ((0.93, 0.87, 0.85), 0.3),
    "veil": ((0.54, 0.59, 0.70), 0.5),
    "crust": ((0.45, 0.13, 0.10), 0.5),
    "vessel": ((0.72, 0.10, 0.17), 0.4),
    "keratin": ((0.97, 0.92, 0.82), 0.2),
}

# Things that take up room in the lesion each have a sector of their own, present or not, so that
# they seldom cover each other and their place says nothing about the others.
SLOTS = (
    "color_black",
    "regression",
    "ulceration",
    "color_blue_gray",
    "color_white",
    "blue_whitish_veil",
    "color_second",
)
# Usual share of the lesion that each takes, and how much they may take together: the base colour
# must remain to be seen.
USUAL = {"blue_whitish_veil": 0.4, "regression": 0.27, "color_second": 0.4, "ulceration": 0.15}
ROOM = 0.68


@dataclass
class Lesion:
    """Geometry of one lesion at one size. Fields are (size, size); `outline` has BINS radii.

    `slots` are directions (radians), `tone` darkens pigments with the skin, `room` shrinks
    the regions where there are many, `taken` grows with each region that is drawn.
    """

    x: Array
    y: Array
    d: Array
    angle: Array
    alpha: Array
    inside: Array
    outline: Array
    centre: tuple[float, float]
    radius: float
    slots: dict[str, float]
    tone: float
    room: float
    taken: Array

    def colour(self, name: str) -> Array:
        """Return the colour of a pigment on this skin: (3,)."""
        value, weight = PIGMENT[name]
        return np.array(value, dtype=np.float32) * np.float32(self.tone**weight)

    def radius_at(self, angle: Array) -> Array:
        """Outline radius in a direction (radians)."""
        turn = np.mod(angle, 2 * np.pi) / (2 * np.pi)
        return self.outline[(turn * BINS).astype(int) % BINS]

    def place(self, angle: Array, d: Array) -> tuple[Array, Array]:
        """Pixel x and y of points given by direction and relative distance."""
        size = self.x.shape[0]
        r = self.radius_at(angle) * d
        px = (self.centre[0] + r * np.cos(angle) + 1) * size / 2
        py = (self.centre[1] + r * np.sin(angle) + 1) * size / 2
        return px, py

    def region(self, rng: np.random.Generator, slot: str, share: float, soft: float) -> Array:
        """Blotch around the sector of `slot` that covers about `share` of the lesion."""
        size = self.x.shape[0]
        angle = self.slots[slot] + rng.normal(0, 0.25)
        d = rng.uniform(0.25, 0.6)
        r = float(self.radius_at(np.array(angle))) * d
        ax = self.centre[0] + r * np.cos(angle)
        ay = self.centre[1] + r * np.sin(angle)
        near = np.hypot(self.x - np.float32(ax), self.y - np.float32(ay)) / np.float32(self.radius)
        # Regions avoid each other, so that each one that is present can be seen.
        score = 0.42 * fractal(rng, size, size, 7, 3) - 1.5 * near - 2 * self.taken
        alpha = cut(score, self.inside, share * self.room, soft) * self.alpha
        self.taken = np.maximum(self.taken, alpha)
        return alpha


@dataclass
class Canvas:
    """The image being painted, and the visible part of every concept so far."""

    scene: Scene
    image: Array
    lesion: Lesion
    masks: dict[str, Array] | None = None

    def lay(self, name: str | None, alpha: Array, colour: Array, opaque: float = 1.0) -> None:
        """Paint `colour` with `alpha` and credit it to concept `name`; what lies below fades."""
        self.image = lay(self.image, alpha, colour)
        if self.masks is None:
            return
        left = 1 - alpha * np.float32(opaque)
        for other in self.masks:
            if other != name:
                self.masks[other] = self.masks[other] * left
        if name is not None:
            self.credit(name, alpha)

    def credit(self, name: str, alpha: Array) -> None:
        """Add `alpha` to the mask of `name` without painting."""
        if self.masks is not None:
            before = self.masks.get(name)
            self.masks[name] = alpha if before is None else 1 - (1 - before) * (1 - alpha)


def shape_lesion(scene: Scene, size: int) -> Lesion:
    """Outline and soft alpha of the lesion; asymmetry and irregular border change it here."""
    rng = scene.stream("lesion")
    cx, cy = np.clip(rng.normal(0, 0.1, 2), -0.24, 0.24)
    radius = rng.uniform(0.34, 0.68)
    aspect = rng.uniform(0.74, 0.98)
    axis = rng.uniform(0, np.pi)
    edge = rng.uniform(0.08, 0.22)
    ragged = rng.uniform(0.02, 0.045)
    theta = np.arange(BINS) / BINS * 2 * np.pi
    turned = theta - axis
    outline = 1 / np.hypot(np.cos(turned), np.sin(turned) / aspect)
    # Mirror-symmetric waves (no phase about the axes), and a trace of wobble: no lesion is ideal.
    k = np.array([4, 6, 8])[:, None]
    outline = outline * (1 + rng.normal(0, 0.018, k.shape) * np.cos(k * turned)).prod(0)
    k = np.array([3, 5, 7, 9])[:, None]
    phase = rng.uniform(0, 2 * np.pi, k.shape)
    outline = outline * (1 + rng.normal(0, 0.008, k.shape) * np.cos(k * theta + phase)).prod(0)
    slots = dict(zip(SLOTS, rng.permutation(len(SLOTS)), strict=True))
    first = rng.uniform(0, 2 * np.pi)
    turn = {name: first + 2 * np.pi * int(slot) / len(SLOTS) for name, slot in slots.items()}

    if scene.concepts["asymmetry"]:
        own = scene.stream("asymmetry")
        for k, size_of in ((1, 0.16), (3, 0.14), (5, 0.07)):
            phase = own.uniform(0, 2 * np.pi)
            outline = outline * (1 + own.uniform(0.6, 1.2) * size_of * np.cos(k * theta + phase))
        off = np.angle(np.exp(1j * (theta - own.uniform(0, 2 * np.pi))))
        outline = outline * (1 + own.uniform(0.15, 0.4) * np.exp(-((off / 0.55) ** 2)))
    if scene.concepts["irregular_border"]:
        own = scene.stream("irregular_border")
        k = np.arange(5, 17)[:, None]
        waves = np.cos(k * theta + own.uniform(0, 2 * np.pi, k.shape))
        jag = (own.normal(0, 1, k.shape) * waves / k**0.6).sum(0)
        # Stronger here than there: real borders are cut in some places and smooth in others.
        jag = jag / jag.std() * (1 + 0.5 * np.cos(theta + own.uniform(0, 2 * np.pi)))
        outline = outline * np.exp(own.uniform(0.045, 0.075) * jag)
        edge = own.uniform(0.035, 0.07)
        ragged = own.uniform(0.075, 0.11)
    # The area does not depend on the two concepts: size must not give them away.
    outline = (outline * radius / np.sqrt(np.mean(outline**2))).astype(np.float32)

    gx, gy = coordinates(size, size)
    x, y = gx - np.float32(cx), gy - np.float32(cy)
    angle = np.arctan2(y, x)
    turn_of = angle * np.float32(BINS / (2 * np.pi))
    at = turn_of.astype(np.int32) % BINS
    d = np.hypot(x, y) / outline[at]
    d = d + fractal(rng, size, size, 10, 3) * np.float32(ragged)
    # The border is sharper on one side than on the other.
    edge = np.float32(edge) * (1 + np.float32(0.5) * np.cos(angle + np.float32(first)))
    alpha = ramp(d, 1 + edge, 1 - edge)
    alpha[alpha < 0.004] = 0
    return Lesion(
        x=gx,
        y=gy,
        d=d,
        angle=angle,
        alpha=alpha,
        inside=alpha > 0.6,
        outline=outline,
        centre=(float(cx), float(cy)),
        radius=float(radius),
        slots=turn,
        tone=TONE[scene.skin_type],
        room=min(1.0, ROOM / max(_asked(scene), 1e-6)),
        taken=np.zeros_like(alpha),
    )


def _asked(scene: Scene) -> float:
    """Share of the lesion that the scene's regions would take if each had its usual share."""
    seen = scene.concepts
    by_structure = {color for name, color in IMPLIES.items() if seen[name]}
    names = [name for name in SLOTS[:-1] if seen[name] and name not in by_structure]
    names += ["color_second"] * (sum(seen[name] for name in BASE_COLORS) - 1)
    return sum(USUAL.get(name, 0.19) for name in names)


def paint_base(canvas: Canvas) -> None:
    """Paint the base colours: the strongest on the whole lesion, the others in regions of it."""
    scene, lesion = canvas.scene, canvas.lesion
    rng = scene.stream("base")
    size = canvas.image.shape[0]
    order = [BASE_COLORS[k] for k in rng.permutation(len(BASE_COLORS))]
    present = [name for name in order if scene.concepts[name]]
    cloud = fractal(rng, size, size, 6, 4)
    grain = fractal(rng, size, size, 20, 3)
    # Pigment is uneven at every scale: the skin shines through where it is thin.
    thin = rng.uniform(0.1, 0.38) * ramp(cloud + 0.7 * grain, 0.0, 2.2)
    body = lesion.alpha * (np.float32(rng.uniform(0.84, 0.96)) - thin)
    shade = (
        1 + cloud * np.float32(rng.uniform(0.06, 0.13)) + grain * np.float32(rng.uniform(0.04, 0.1))
    )
    if scene.concepts["asymmetry"]:
        # Colour is off-axis as well: one side darker than the other.
        own = scene.stream("asymmetry_shade")
        way = own.uniform(0, 2 * np.pi)
        slope = (lesion.x - lesion.centre[0]) * np.cos(way) + (
            lesion.y - lesion.centre[1]
        ) * np.sin(way)
        shade = shade * (1 + np.float32(own.uniform(0.15, 0.4)) * slope / lesion.radius)
    shade = shade[..., None].astype(np.float32)
    # A faint halo of the same pigment around the lesion; too weak to count as lesion.
    halo = ramp(lesion.d, rng.uniform(1.15, 1.6), 0.85) * np.float32(rng.uniform(0.0, 0.22))
    canvas.image = lay(canvas.image, halo, lesion.colour(present[0]))
    canvas.lay(present[0], body.astype(np.float32), lesion.colour(present[0]) * shade)
    for rank, name in enumerate(present[1:]):
        share = rng.uniform(0.32, 0.5) if rank == 0 else rng.uniform(0.2, 0.3)
        soft = rng.uniform(0.2, 0.5)
        if rank == 0 and rng.random() < 0.5:
            # Often the second colour is the centre or the rim.
            score = 0.35 * fractal(rng, size, size, 7, 3) + (
                lesion.d if rng.random() < 0.5 else -lesion.d
            )
            score = score - 2 * lesion.taken
            alpha = cut(score, lesion.inside, share * lesion.room, soft) * lesion.alpha
            lesion.taken = np.maximum(lesion.taken, np.float32(0.6) * alpha)
        else:
            alpha = lesion.region(rng, "color_second", share, soft)
        canvas.lay(name, alpha * np.float32(0.92), lesion.colour(name) * shade)


def paint_regions(canvas: Canvas) -> None:
    """Structureless black, blue-grey and white areas."""
    scene, lesion = canvas.scene, canvas.lesion
    size = canvas.image.shape[0]
    by_structure = {color for name, color in IMPLIES.items() if scene.concepts[name]}
    for name, soft in (("color_black", 0.25), ("color_blue_gray", 0.38), ("color_white", 0.38)):
        if not scene.concepts[name] or name in by_structure:
            continue
        rng = scene.stream(name)
        alpha = lesion.region(rng, name, rng.uniform(0.12, 0.26), soft)
        texture = 1 + np.float32(0.07) * fractal(rng, size, size, 14, 3)[..., None]
        strength = np.float32(rng.uniform(0.8, 0.95))
        canvas.lay(name, alpha * strength, lesion.colour(name) * texture)
