"""From uint8 images to the tensor a tower takes: the checkpoint's own validation transform.

It is open_clip's transform itself, built from the checkpoint's `preprocess_cfg` (size, mean, std,
interpolation, resize_mode), so that nothing can differ from what stock open_clip would compute.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dermaudit.errors import UserInputError


class Preprocess:
    """`preprocess(images)`: uint8 (H, W, 3), (n, H, W, 3), or a list of (H, W, 3) -> (n, 3, s, s).

    One image gives (3, s, s). `config` is the complete configuration, `size` = (height, width).
    """

    def __init__(self, config: dict[str, Any]) -> None:
        from open_clip.transform import PreprocessCfg, image_transform_v2

        size = config["size"]
        self.size: tuple[int, int] = (size, size) if isinstance(size, int) else tuple(size)
        self.config: dict[str, Any] = {
            **config,
            "size": list(self.size),
            "mean": [float(v) for v in config["mean"]],
            "std": [float(v) for v in config["std"]],
        }
        self.transform = image_transform_v2(
            PreprocessCfg(**{**self.config, "size": self.size}), is_train=False
        )

    def __call__(self, images: np.ndarray | Sequence[np.ndarray]) -> Tensor:
        """Errors: UserInputError when an image is not uint8 with three channels."""
        if isinstance(images, np.ndarray) and images.ndim == 3:
            return self._one(images)
        if not len(images):
            return torch.empty(0, 3, *self.size)
        return torch.stack([self._one(image) for image in images])

    def _one(self, image: np.ndarray) -> Tensor:
        from PIL import Image

        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise UserInputError(
                f"an image must be uint8 of shape (height, width, 3), not {image.dtype} "
                f"{tuple(image.shape)}"
            )
        return self.transform(Image.fromarray(image))
