"""A tower that can be checked by hand: means of an image's quarters as tokens, behind a class token."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dermaudit.errors import unknown

BLOCK = "visual.blocks.1.hook_resid_post"
SITES = ["visual.pooled", BLOCK]


class Tower:
    """Four tokens of width 3 after a class token of nines; counts the images it sees."""

    fingerprint, n_prefix_tokens, n_blocks = "f" * 64, 1, 3
    preprocess_config = {"size": 8}
    seen = 0

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def preprocess(self, images):
        if not len(images):
            return torch.empty(0, 3, 8, 8)
        return torch.from_numpy(np.stack(images)).float().permute(0, 3, 1, 2) / 255

    def encode_image(self, x, normalize=True):
        Tower.seen += len(x)
        return torch.nn.functional.normalize(x.mean((2, 3)), dim=1)

    def run_with_cache(self, x, names_filter):
        assert names_filter(BLOCK) and not names_filter("visual.blocks.0.hook_resid_post")
        cells = torch.nn.functional.avg_pool2d(x, x.shape[-1] // 2).flatten(2).transpose(1, 2)
        tokens = torch.cat([torch.full_like(cells[:, :1], 9.0), cells], 1)
        return self.encode_image(x), {BLOCK: self.scale * tokens}

    def check_site(self, site):
        if site not in (*SITES, "text.pooled"):
            raise unknown("site", site, SITES)

    def site_width(self, site):
        return 3

    def site_grid(self, site):
        return 2, 2


def write_pictures(folder: Path, n: int, first: int = 0) -> list[str]:
    """`n` random pictures of 8 x 8, numbers `first` and up; their paths."""
    folder.mkdir(exist_ok=True)
    paths = []
    for i in range(first, first + n):
        paths.append(str(folder / f"{i:02d}.png"))
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(paths[-1])
    return paths
