"""From images to the tensor that a tower takes: the checkpoint's own validation transform.

It is open_clip's transform itself, built from the checkpoint's `preprocess_cfg` (size, mean, std,
interpolation, resize_mode), so that nothing can differ from what stock open_clip would compute. For
several images the last two steps, scaling to [0, 1] and normalising, run on all of them at once and
give the same bits: a dozen small operations per image would keep the interpreter busy while the
tower computes in another thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dermaudit.data import read_image
from dermaudit.errors import UserInputError

#: One image: a path, a PIL image, uint8 pixels (height, width, 3), or a uint8 tensor (3, height, width).
ImageInput: TypeAlias = str | os.PathLike[str] | Image.Image | np.ndarray | Tensor


class Preprocess:
    """Callable that prepares images for a tower.

    One image (`ImageInput`) gives (3, s, s), as open_clip's own transform does. A list of images, or
    an array (n, height, width, 3) or a tensor (n, 3, height, width), gives (n, 3, s, s). A file is
    turned upright by its EXIF tag and transparent pixels become white; a PIL image is used as it is.

    `config` is the complete configuration, `size` = (height, width).
    """

    def __init__(self, config: dict[str, Any]) -> None:
        from open_clip.transform import MaybeToTensor, PreprocessCfg, image_transform_v2
        from torchvision.transforms import Compose, Normalize

        size = config["size"]
        height, width = (size, size) if isinstance(size, int) else size
        self.size: tuple[int, int] = (height, width)
        self.config: dict[str, Any] = {
            **config,
            "size": list(self.size),
            "mean": [float(v) for v in config["mean"]],
            "std": [float(v) for v in config["std"]],
        }
        transform = image_transform_v2(
            PreprocessCfg(**{**self.config, "size": self.size}), is_train=False
        )
        self.transform = cast(Compose, transform)  # several are returned for training only
        steps: list[Callable[..., Any]] = self.transform.transforms
        *self._resize_steps, to_tensor, normalize = steps
        self._can_batch = (
            type(to_tensor) is MaybeToTensor
            and type(normalize) is Normalize
            and bool(np.all(np.float32(self.config["std"])))  # 0: torchvision's own error
        )

    def __call__(self, images: ImageInput | Sequence[ImageInput]) -> Tensor:
        """Prepare one image or several.

        Raises UserInputError for anything that is not an image, BadImage for a file that cannot be
        decoded.
        """
        listed, is_single = as_list(images)
        if is_single:
            return self._prepared(listed[0])
        if not listed:
            return torch.empty(0, 3, *self.size)
        if not self._can_batch:
            return torch.stack([self._prepared(image) for image in listed])
        pixels = np.stack([np.asarray(self._resized(image)) for image in listed])
        return torch.from_numpy(self._normalised(pixels))

    def unless_prepared(self, images: ImageInput | Sequence[ImageInput]) -> Tensor:
        """Return floating-point tensors as they are (a list of them stacked), other images prepared."""
        if isinstance(images, Tensor):
            return images if images.is_floating_point() else self(images)
        listed, _ = as_list(images)
        tensors = [x for x in listed if isinstance(x, Tensor) and x.is_floating_point()]
        if not tensors:
            return self(images)
        if len(tensors) < len(listed) or len({x.shape for x in tensors}) > 1:
            raise UserInputError(
                "a list with prepared images (floating-point tensors) may hold nothing else, and all "
                "must have one shape",
                "prepare all of them: tower.preprocess(images)",
            )
        return torch.stack(tensors)

    def _prepared(self, image: ImageInput) -> Tensor:
        prepared = self.transform(_as_pil(image))
        assert isinstance(prepared, Tensor)
        return prepared

    def _resized(self, image: ImageInput) -> Image.Image:
        """Return the image in RGB and in the tower's size."""
        resized = _as_pil(image)
        for step in self._resize_steps:
            resized = step(resized)
        return resized

    def _normalised(self, pixels: np.ndarray) -> np.ndarray:
        """Return (n, 3, s, s) float32 for pixels (n, s, s, 3) uint8.

        With numpy and not torch: it uses one thread and releases the interpreter while it computes.
        """
        mean, std = (
            np.array(self.config[name], np.float32)[:, None, None] for name in ("mean", "std")
        )
        x = np.empty((len(pixels), 3, *pixels.shape[1:3]), np.float32)
        np.divide(pixels.transpose(0, 3, 1, 2), np.float32(255), out=x)
        np.subtract(x, mean, out=x)
        return np.divide(x, std, out=x)


def as_list(images: ImageInput | Sequence[ImageInput]) -> tuple[list[ImageInput], bool]:
    """Return the images as a list, and whether the argument is one image and not several.

    Raises UserInputError if it is neither.
    """
    if isinstance(images, (str, os.PathLike, Image.Image)):
        return [images], True
    if isinstance(images, (np.ndarray, Tensor)):
        return ([images], True) if images.ndim != 4 else (list(images), False)
    if isinstance(images, Sequence):
        return list(images), False
    raise _not_an_image(images)


def _as_pil(image: ImageInput) -> Image.Image:
    if isinstance(image, (str, os.PathLike)):
        return Image.fromarray(read_image(Path(image)))
    if isinstance(image, Image.Image):
        if image.mode.startswith(("I", "F")):  # Pillow's conversion to RGB would clip it at 255
            raise UserInputError(
                f"a PIL image of mode {image.mode} has more than 8 bits per channel",
                "give the path of the file, or convert the image to RGB",
            )
        if not (image.width and image.height):
            raise UserInputError(f"the PIL image is empty: {image.width} x {image.height} pixels")
        return image
    if isinstance(image, Tensor) and image.dtype == torch.uint8 and image.shape[:-2] == (3,):
        image = image.permute(1, 2, 0).contiguous().cpu().numpy()
    if (
        not isinstance(image, np.ndarray)
        or image.dtype != np.uint8
        or image.ndim != 3
        or image.shape[2] != 3
        or not image.size
    ):
        raise _not_an_image(image)
    return Image.fromarray(image)


def _not_an_image(value: object) -> UserInputError:
    given = type(value).__name__
    if isinstance(value, (np.ndarray, Tensor)):
        given = f"{value.dtype} {tuple(value.shape)}"
    return UserInputError(
        "an image must be uint8 of shape (height, width, 3), a uint8 tensor (3, height, width), "
        f"a PIL image or a path, not {given}"
    )
