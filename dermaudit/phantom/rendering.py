"""The pixels of a scene: skin, lesion, structures, camera, and then the artifacts one by one.

The camera's blur and noise come before the artifacts, and an artifact changes nothing where its
alpha is 0: an image and its twin without one artifact agree there bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from dermaudit.errors import unknown

from .artifacts import alpha_and_colour
from .captions import caption, subcaptions
from .fields import Array, lay, ramp
from .lesion import Canvas, paint_base, paint_regions, shape_lesion
from .scene import Scene
from .skin import paint_skin, photograph
from .structures import ABOVE_REGIONS, BELOW_REGIONS
from .vocabulary import ARTIFACTS, CONCEPTS


@dataclass
class Phantom:
    """One rendered image with its truth.

    `rgb` is uint8 (size, size, 3). `masks` (where asked for) holds float32 (size, size) fields in
    [0, 1] for "lesion", every concept and every artifact: all 0 where absent. A concept's mask is
    its visible part before artifacts are laid on; an artifact's is its alpha.
    """

    rgb: Array
    seed: int
    index: int
    diagnosis: str
    skin_type: int
    concepts: dict[str, int]
    artifacts: dict[str, int]
    caption: str
    subcaptions: list[str]
    masks: dict[str, Array] = field(default_factory=dict)


def render(
    scene: Scene, size: int = 96, masks: bool = False, without: str | None = None
) -> Phantom:
    """Render `scene` at `size` x `size` pixels, `without` one of its artifacts if asked.

    Errors: UserInputError for an unknown artifact. An artifact that the scene does not show may
    be left out: the image is then the same.
    """
    if without is not None and without not in ARTIFACTS:
        raise unknown("artifact", without, ARTIFACTS)
    if size < 16:
        raise ValueError(f"size {size} is below 16 px")
    lesion = shape_lesion(scene, size)
    canvas = Canvas(scene, paint_skin(scene, size), lesion, {} if masks else None)
    paint_base(canvas)
    for name, paint in BELOW_REGIONS:
        if scene.concepts[name]:
            paint(canvas)
    paint_regions(canvas)
    for name, paint in ABOVE_REGIONS:
        if scene.concepts[name]:
            paint(canvas)
    image = np.clip(photograph(scene, canvas.image), 0, 1)

    alphas = {}
    artifacts = dict(scene.artifacts)
    if without is not None:
        artifacts[without] = 0
    for name in ARTIFACTS:
        if artifacts[name]:
            alphas[name], colour = alpha_and_colour(name, size, size, scene.stream(name))
            image = lay(image, alphas[name], colour)

    shown = Scene(
        scene.seed, scene.index, scene.diagnosis, scene.skin_type, scene.concepts, artifacts
    )
    return Phantom(
        rgb=np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8),
        seed=scene.seed,
        index=scene.index,
        diagnosis=scene.diagnosis,
        skin_type=scene.skin_type,
        concepts=dict(scene.concepts),
        artifacts=artifacts,
        caption=caption(shown),
        subcaptions=subcaptions(shown),
        masks=_masks(canvas, alphas) if canvas.masks is not None else {},
    )


def _masks(canvas: Canvas, alphas: dict[str, Array]) -> dict[str, Array]:
    lesion, seen = canvas.lesion, canvas.scene.concepts
    found = dict(canvas.masks or {})
    if seen["asymmetry"]:
        found["asymmetry"] = lesion.alpha
    if seen["irregular_border"]:
        found["irregular_border"] = ramp(np.abs(lesion.d - 1), 0.22, 0.1)
    nothing = np.zeros(lesion.alpha.shape, dtype=np.float32)
    nothing.setflags(write=False)
    masks = {"lesion": lesion.alpha}
    for name in CONCEPTS:
        present = seen[name] and name in found
        masks[name] = np.clip(found[name], 0, 1).astype(np.float32) if present else nothing
    for name in ARTIFACTS:
        masks[name] = alphas.get(name, nothing)
    return masks
