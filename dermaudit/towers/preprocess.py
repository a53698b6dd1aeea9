"""From uint8 images to the tensor a tower takes: the checkpoint's own validation transform.

It is open_clip's transform itself, built from the checkpoint's `preprocess_cfg` (size, mean, std,
interpolation, resize_mode), so that nothing can differ from what stock open_clip would compute. Of
several images its last two steps, uint8 to [0, 1] to normalised, are done for all at once, with the same
bits: a dozen small operations an image would each take the interpreter from the thread of the tower.
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
        from open_clip.transform import MaybeToTensor, PreprocessCfg, image_transform_v2
        from torchvision.transforms import Normalize

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
        *self._shape, to_tensor, normalize = self.transform.transforms
        self._known = (
            type(to_tensor) is MaybeToTensor
            and type(normalize) is Normalize
            and bool(np.all(np.float32(self.config["std"])))  # 0: torchvision's own error
        )

    def __call__(self, images: np.ndarray | Sequence[np.ndarray]) -> Tensor:
        """Errors: UserInputError when an image is not uint8 with three channels."""
        if isinstance(images, np.ndarray) and images.ndim == 3:
            return self._one(images)
        if not len(images):
            return torch.empty(0, 3, *self.size)
        if not self._known:
            return torch.stack([self._one(image) for image in images])
        pixels = np.stack([np.asarray(self._shaped(image)) for image in images])
        return torch.from_numpy(self._normalised(pixels))

    def _one(self, image: np.ndarray) -> Tensor:
        return self.transform(_checked(image))

    def _shaped(self, image: np.ndarray) -> Any:
        """The image as Pillow's, RGB, of the tower's size."""
        shaped = _checked(image)
        for step in self._shape:
            shaped = step(shaped)
        return shaped

    def _normalised(self, pixels: np.ndarray) -> np.ndarray:
        """(n, 3, s, s) float32 of pixels (n, s, s, 3) uint8. numpy, not torch: one thread, which does
        not hold the interpreter meanwhile."""
        mean, std = (
            np.array(self.config[name], np.float32)[:, None, None] for name in ("mean", "std")
        )
        x = np.empty((len(pixels), 3, *pixels.shape[1:3]), np.float32)
        np.divide(pixels.transpose(0, 3, 1, 2), np.float32(255), out=x)
        np.subtract(x, mean, out=x)
        return np.divide(x, std, out=x)


def _checked(image: np.ndarray) -> Any:
    from PIL import Image

    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise UserInputError(
            f"an image must be uint8 of shape (height, width, 3), not {image.dtype} "
            f"{tuple(image.shape)}"
        )
    return Image.fromarray(image)
