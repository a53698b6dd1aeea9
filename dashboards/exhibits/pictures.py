"""Pictures for pages: thumbnails, and maps of one latent over the patches of an image.

A map keeps its absolute scale (five steps up to the latent's largest value in the whole run), shows
patches as the cells they are, and draws an outline in black on white, so that it is read on light
and on dark skin and without colour.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass

import numpy as np

from dermaudit.errors import EvidenceError, StaleArtifactError

from .latents import firing_condition
from .run_view import RunView

SIDE = 160
MAP_SIDE = 360
# Five steps of cividis (Nuñez et al., doi 10.1371/journal.pone.0199239): even for colour-blind eyes.
LEVELS = ((0, 32, 77), (65, 77, 107), (124, 123, 120), (188, 175, 111), (255, 234, 70))


@dataclass(frozen=True)
class PatchMap:
    """An image with the activations of one latent over it.

    `picture` and `plain` (without the map) are webp bytes of the same size; `values` (h, w) are the
    codes of the patches; `top` is the latent's largest value in the run; `fires` is the condition
    under which the latent is active, as a clause.
    """

    picture: bytes
    plain: bytes
    values: np.ndarray
    top: float
    fires: str

    @property
    def in_words(self) -> str:
        """The content of the map in numbers: its alt text."""
        fires = int((self.values > 0).sum())
        return f"largest {self.values.max():.2f}, fires in {fires} of {self.values.size} patches"

    @property
    def edges(self) -> list[float]:
        """The lower bounds of the five steps."""
        return [self.top * i / len(LEVELS) for i in range(len(LEVELS))]


def pixels(view: RunView, row: int, side: int) -> np.ndarray:
    """Return image `row` with its longer side scaled to `side` px.

    EvidenceError when the file is missing, StaleArtifactError when it was changed after the run.
    """
    from dermaudit.data import read_image
    from dermaudit.data.images.decode import read_header

    path = view.image_file(row)
    if path is None:
        raise EvidenceError(f"the file of image {row} is not where the run found it")
    if "sha256" in view.images.column_names:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest != view.images["sha256"][row].as_py():
            raise StaleArtifactError(f"image {row} was altered after the run read it")
    header = read_header(path)
    width, height = header.width, header.height
    if header.orientation >= 5:  # by EXIF the camera was turned on its side
        width, height = height, width
    scale = side / max(width, height)
    return read_image(path, (max(1, round(height * scale)), max(1, round(width * scale))))


def webp(array: np.ndarray) -> bytes:
    """Return an image (h, w, 3) uint8 as webp bytes."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(array).save(out, format="WEBP", quality=80, method=2)
    return out.getvalue()


def thumbnail(view: RunView, row: int, side: int = SIDE) -> bytes:
    """Return image `row` as webp bytes, a few kB."""
    return webp(pixels(view, row, side))


def patch_values(view: RunView, row: int, site: str, latent: int) -> np.ndarray:
    """Return the codes of one latent at the patches of one image, (h, w)."""
    import torch

    from dermaudit.sae import LatentSuppressor

    acts, grid = view.patch_activations(site, row)
    # The suppressor encodes this latent alone; the SAE itself would encode all of them.
    values = LatentSuppressor(view.sae(site), [latent]).encode(torch.from_numpy(acts))[:, 0].numpy()
    if values.size != grid[0] * grid[1]:
        raise EvidenceError(
            f"{site} stores {values.size} tokens, not a grid of {grid[0]} x {grid[1]}"
        )
    return values.reshape(grid)


def patch_map(
    view: RunView, row: int, site: str, latent: int, *, opacity: float = 0.55, side: int = MAP_SIDE
) -> PatchMap:
    """Return the map of a latent over an image. EvidenceError at a pooled site; see also `pixels`."""
    image = pixels(view, row, side)
    values = patch_values(view, row, site, latent)
    top = float(view.codes(site).column(latent).max())
    picture = overlay(image, values, max(top, float(values.max()), 1e-12), opacity)
    return PatchMap(webp(picture), webp(image), values, top, firing_condition(view, site, latent))


def overlay(image: np.ndarray, values: np.ndarray, top: float, opacity: float) -> np.ndarray:
    """Return image (H, W, 3) with codes (h, w) over it: colour and an outline where a latent is active.

    Around the strongest two steps the outline is twice as thick.
    """
    height, width = image.shape[:2]
    y = np.minimum(np.arange(height) * values.shape[0] // height, values.shape[0] - 1)
    x = np.minimum(np.arange(width) * values.shape[1] // width, values.shape[1] - 1)
    fine = values[np.ix_(y, x)]
    step = np.clip((fine / top * len(LEVELS)).astype(int), 0, len(LEVELS) - 1)
    colour = np.array(LEVELS, dtype=float)[step]
    fires = fine > 0
    out = image.astype(float)
    out[fires] = (1 - opacity) * out[fires] + opacity * colour[fires]
    for area, thick in ((fires, 1), (fine >= 0.6 * top, 2)):
        edge = _edge(area)
        out[_grow(edge, thick + 1)] = 255
        out[_grow(edge, thick - 1)] = 0
    return np.rint(out).astype(np.uint8)


def _edge(area: np.ndarray) -> np.ndarray:
    """Return the pixels of `area` next to a pixel outside it; the picture's border is outside."""
    padded = np.pad(area, 1)
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return area & ~inside


def _grow(area: np.ndarray, by: int) -> np.ndarray:
    for _ in range(by):
        padded = np.pad(area, 1)
        area = padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:] | area
    return area
