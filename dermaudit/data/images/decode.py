"""One image file to one uint8 RGB array, safely: what cannot be decoded is a `BadImage`.

The size of an image is judged from its header, before a pixel is decoded. Only the formats of
`IMAGE_SUFFIXES` are tried, whatever the name (no EPS, which would start another program). Rulers, ink
and dark corners are at the borders, so an image is squashed to a square or padded, and never cropped.
"""

from __future__ import annotations

import stat
import warnings
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from dermaudit.errors import UserInputError

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
# About the mean colour of photographs: nearly 0 after normalisation. Black would look like the dark
# corner that is being audited.
_PAD_COLOUR = (124, 116, 104)
Mode = Literal["squash", "pad"]

# `ImageLimits` decides; Pillow's own warning (at 89 Mpx) would only clutter the output of a run.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# So would its remarks on broken metadata of an image that can be decoded.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


class BadImage(UserInputError):
    """An image file that cannot be used.

    `reason` says why without naming the file, `kind` is one word (missing, empty, huge, truncated,
    not_image, unreadable).
    """

    code = "bad_image"

    def __init__(
        self, reason: str, path: Path | str | None = None, kind: str = "unreadable"
    ) -> None:
        super().__init__(
            f"{path}: {reason}" if path is not None else reason,
            "repair or remove the file; without --strict it is skipped and counted",
        )
        self.reason = reason
        self.kind = kind


def no_readable_image(
    n: int, path: Path | str, first: str | None = None, reason: str = ""
) -> UserInputError:
    """Return the error for a data set at `path` none of whose `n` images can be read."""
    example = f": {first}: {reason}" if first else ""
    return UserInputError(
        f"none of the {n} images of {path} could be read{example}",
        f"see what is wrong with: dermaudit data check {path}",
    )


@dataclass(frozen=True)
class ImageLimits:
    """The largest image that is decoded. Pillow refuses more than 178 Mpx whatever `max_pixels` says."""

    max_pixels: int = 100_000_000
    max_bytes: int = 1_000_000_000


@dataclass(frozen=True)
class Header:
    """The header of an image file; `orientation` is EXIF's (1 = upright)."""

    width: int
    height: int
    mode: str
    format: str
    orientation: int
    frames: int


DEFAULT_LIMITS = ImageLimits()


def read_header(path: Path | str, limits: ImageLimits = DEFAULT_LIMITS) -> Header:
    """Size, mode and orientation of an image, without decoding it. Errors: BadImage."""
    with _Opened(path, limits) as image:
        return Header(
            *image.size,
            image.mode,
            image.format or "?",
            _orientation(image),
            getattr(image, "n_frames", 1),
        )


def read_image(
    path: Path | str,
    size: int | tuple[int, int] | None = None,
    mode: Mode = "squash",
    limits: ImageLimits = DEFAULT_LIMITS,
) -> np.ndarray:
    """Decode an image file to uint8 (height, width, 3), upright, on white where transparent.

    `size` = side of a square, or (height, width); None keeps the image's own. `squash` scales both
    sides (antialiased bicubic, as open_clip's `squash`), `pad` keeps the aspect ratio and fills the
    rest. A JPEG at least 4 times larger than asked is decoded at a fraction (DCT scaling) first.
    Errors: BadImage, also for missing, truncated, oversized and foreign files.
    """
    with _Opened(path, limits) as image:
        return _decoded(image, size, mode)


def decode_image(
    data: bytes,
    size: int | tuple[int, int] | None = None,
    mode: Mode = "squash",
    limits: ImageLimits = DEFAULT_LIMITS,
    name: str = "image",
) -> np.ndarray:
    """Decode bytes as `read_image` decodes a file: the same pixels, the same errors.

    `name` is the name of the file in messages.
    """
    with _Opened(name, limits, data) as image:
        return _decoded(image, size, mode)


def _decoded(image: Image.Image, size: int | tuple[int, int] | None, mode: Mode) -> np.ndarray:
    shape = (size, size) if isinstance(size, int) else size
    if shape is not None:
        # Twice the target leaves the antialiasing filter its support.
        side = 2 * max(shape)
        image.draft("RGB", (side, side))
    image.load()
    image = _to_rgb(_upright(image))
    if shape is not None:
        image = _resize(image, shape, mode)
    return np.array(image, dtype=np.uint8)


class _Opened:
    """Open an image with its limits checked; whatever a decoder raises leaves as BadImage."""

    def __init__(self, path: Path | str, limits: ImageLimits, data: bytes | None = None) -> None:
        self.path = Path(path)
        self.limits = limits
        self.data = data
        self.image: Image.Image | None = None

    def __enter__(self) -> Image.Image:
        try:
            n_bytes = self._n_bytes()
            if n_bytes == 0:
                raise BadImage("the file is empty", self.path, "empty")
            if n_bytes > self.limits.max_bytes:
                raise BadImage(f"{n_bytes / 1e6:.0f} MB, over the limit", self.path, "huge")
            source = self.path if self.data is None else BytesIO(self.data)
            self.image = Image.open(source, formats=_FORMATS)
            width, height = self.image.size
            if width * height > self.limits.max_pixels:
                raise BadImage(
                    f"{width} x {height} pixels, more than the limit of "
                    f"{self.limits.max_pixels / 1e6:g} million",
                    self.path,
                    "huge",
                )
        except Exception as error:
            self.__exit__(type(error), error, None)
        assert self.image is not None
        return self.image

    def _n_bytes(self) -> int:
        if self.data is not None:
            return len(self.data)
        status = self.path.stat()
        # Opening a pipe or a device of that name would block forever.
        if not stat.S_ISREG(status.st_mode):
            raise BadImage("not a file", self.path)
        return status.st_size

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self.image is not None:
            self.image.close()
        # Decoders meet hostile bytes with any exception at all (struct.error, SyntaxError,
        # ValueError, ...); one file must never stop a run of thousands.
        if isinstance(error, Exception) and not isinstance(error, UserInputError):
            reason, kind = _reason(error)
            raise BadImage(reason, self.path, kind) from error
        if error is not None and trace is None:
            raise error


def _reason(error: Exception) -> tuple[str, str]:
    """Return (reason, kind) for whatever the file system or a decoder raised."""
    if isinstance(error, FileNotFoundError):
        return "the file does not exist", "missing"
    if isinstance(error, PermissionError):
        return "no permission to read the file", "unreadable"
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image (jpg, png, webp, bmp, tif)", "not_image"
    if isinstance(error, Image.DecompressionBombError):
        return "more than 178 million pixels", "huge"
    if isinstance(error, MemoryError):
        return "not enough memory to decode it", "huge"
    text = str(error).split("\n")[0]
    if "truncated" in text.lower() or isinstance(error, EOFError):
        return "truncated: the file ends before the image does", "truncated"
    return f"cannot be decoded ({type(error).__name__}: {text})", "unreadable"


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:
        # Broken EXIF does not matter if the pixels can be decoded.
        return 1


def _upright(image: Image.Image) -> Image.Image:
    if _orientation(image) in range(2, 9):
        return ImageOps.exif_transpose(image)
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return _deep_grey(image)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _deep_grey(image: Image.Image) -> Image.Image:
    """16-bit, 32-bit and float grey to 8 bits; Pillow's own conversion would clip at 255."""
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("pixel values that are not finite")
    top = values.max(initial=0.0)
    if image.mode == "F" and top <= 1.0:
        values = values * 255.0
    elif image.mode.startswith("I;16") or top > 255:
        values = values / 257.0
    grey = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


def _resize(image: Image.Image, shape: tuple[int, int], mode: Mode) -> Image.Image:
    height, width = shape
    if mode == "squash":
        return image.resize((width, height), Image.Resampling.BICUBIC)
    if mode == "pad":
        return ImageOps.pad(image, (width, height), Image.Resampling.BICUBIC, color=_PAD_COLOUR)
    raise UserInputError(f"unknown resize mode '{mode}'", "known: squash, pad")
