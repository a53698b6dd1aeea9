"""Decoding: every kind of file becomes upright RGB, or is a BadImage; never a crash."""

from __future__ import annotations

import io
import os
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dermaudit.data import BadImage, ImageLimits, Manifest, decode_all, read_image
from dermaudit.data.images.decode import read_header
from dermaudit.errors import UserInputError

RED = np.array([200, 40, 30], dtype=np.uint8)


def scene(height: int = 40, width: int = 60) -> np.ndarray:
    """A picture without any symmetry: smooth, with one red corner at the top left."""
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], axis=2)
    pixels[: height // 4, : width // 4] = RED
    return pixels.astype(np.uint8)


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff"])
def test_every_supported_format(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(scene()).save(path)
    found = read_image(path)
    assert (found.dtype, found.shape) == (np.uint8, (40, 60, 3))
    lossy = suffix in ("jpg", "jpeg", "webp")
    assert np.abs(found.astype(int) - scene()).mean() <= (12 if lossy else 0)


def colour(*rgb: int) -> np.ndarray:
    return np.broadcast_to(np.array(rgb, dtype=np.uint8), (8, 8, 3))


def palette_with_transparency() -> Image.Image:
    image = Image.new("P", (8, 8), 0)
    image.putpalette([10, 20, 30] + [0, 0, 0] * 255)
    image.info["transparency"] = 0
    return image


@pytest.mark.parametrize(
    ("image", "suffix", "expected"),
    [
        (Image.new("L", (8, 8), 77), "png", colour(77, 77, 77)),
        (Image.new("1", (8, 8), 1), "png", colour(255, 255, 255)),
        (Image.new("LA", (8, 8), (77, 255)), "png", colour(77, 77, 77)),
        (Image.new("LA", (8, 8), (77, 0)), "png", colour(255, 255, 255)),
        (Image.new("RGBA", (8, 8), (200, 0, 0, 255)), "png", colour(200, 0, 0)),
        (Image.new("RGBA", (8, 8), (200, 0, 0, 0)), "png", colour(255, 255, 255)),
        (Image.new("RGBA", (8, 8), (0, 0, 0, 51)), "webp", colour(204, 204, 204)),
        (palette_with_transparency(), "png", colour(255, 255, 255)),
        (Image.new("P", (8, 8), 0), "png", colour(0, 0, 0)),
        (Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "tif", colour(255, 0, 0)),
        (Image.fromarray(np.full((8, 8), 0x8080, np.uint16)), "png", colour(128, 128, 128)),
        (Image.fromarray(np.full((8, 8), 0xFFFF, np.uint16)), "tif", colour(255, 255, 255)),
        (Image.fromarray(np.full((8, 8), 200, np.int32)), "tif", colour(200, 200, 200)),
        (Image.fromarray(np.full((8, 8), 0.5, np.float32)), "tif", colour(128, 128, 128)),
        (Image.fromarray(np.full((8, 8), 99.0, np.float32)), "tif", colour(99, 99, 99)),
    ],
    ids=lambda value: getattr(value, "mode", None),
)
def test_every_mode_becomes_rgb(tmp_path, image, suffix, expected):
    path = tmp_path / f"a.{suffix}"
    image.save(path)
    found = read_image(path)
    assert found.shape == (8, 8, 3)
    assert np.abs(found.astype(int) - expected).max() <= 1


def test_cmyk_jpeg_is_not_inverted(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - [255, 0, 0]).max() < 12


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [None, 32])
def test_a_turned_photograph_is_set_upright(tmp_path, orientation, size):
    """The camera stores the scene rotated, with an EXIF tag; the scene comes back upright."""
    stored = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.transpose(1, 0, 2),
        6: np.rot90,
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: lambda a: np.rot90(a, 3),
    }[orientation](scene())
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.png"
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif)
    assert read_header(path).orientation == orientation
    expected = scene()
    if size:
        expected = np.array(Image.fromarray(expected).resize((size, size), Image.BICUBIC))
    assert np.array_equal(read_image(path, size), expected)


def test_broken_exif_is_ignored_if_the_pixels_can_be_decoded(tmp_path):
    Image.fromarray(scene()).save(tmp_path / "a.png", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert np.array_equal(read_image(tmp_path / "a.png"), scene())


# ---- resizing


def test_squash_is_what_torchvision_and_so_open_clip_computes(tmp_path):
    transforms = pytest.importorskip("torchvision.transforms")
    path = tmp_path / "a.png"
    Image.fromarray(scene(200, 340)).save(path)
    resize = transforms.Resize((64, 64), transforms.InterpolationMode.BICUBIC, antialias=True)
    assert np.array_equal(read_image(path, 64), np.array(resize(Image.open(path))))


def test_squash_keeps_the_borders(tmp_path):
    pixels = np.full((40, 400, 3), 255, np.uint8)
    pixels[:, :40] = RED  # a ruler at the very left, which a centre crop would cut away
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = read_image(tmp_path / "a.png", 40)
    assert np.abs(found[:, :2].astype(int) - RED).max() <= 2


def test_pad_keeps_the_aspect_ratio_and_never_paints_black(tmp_path):
    Image.fromarray(np.full((20, 40, 3), 250, np.uint8)).save(tmp_path / "a.png")
    found = read_image(tmp_path / "a.png", 40, mode="pad")
    assert found.shape == (40, 40, 3)
    assert (found[10:30] == 250).all()
    assert np.ptp(found[:10].reshape(-1, 3), axis=0).max() == 0
    assert 90 < found[:10].mean() < 150, "black bars would be taken for dark corners"


def test_height_comes_first(tmp_path):
    Image.fromarray(scene()).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", (10, 30)).shape == (10, 30, 3)


def test_an_unknown_resize_mode_is_named(tmp_path):
    Image.fromarray(scene()).save(tmp_path / "a.png")
    with pytest.raises(UserInputError, match="unknown resize mode 'crop'"):
        read_image(tmp_path / "a.png", 8, mode="crop")


def test_a_large_jpeg_decoded_at_a_fraction_looks_the_same(tmp_path, monkeypatch):
    path = tmp_path / "a.jpg"
    Image.fromarray(scene(1200, 1600)).save(path, quality=95)
    drafted = read_image(path, 64)
    monkeypatch.setattr(Image.Image, "draft", lambda *args: None)
    monkeypatch.setattr("PIL.JpegImagePlugin.JpegImageFile.draft", lambda *args: None)
    whole = read_image(path, 64)
    assert not np.array_equal(drafted, whole), "the fraction was never used"
    assert np.abs(drafted.astype(int) - whole).mean() < 1


# ---- bad files


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(scene()).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "kind", "reason"),
    [
        (b"", "empty", "empty"),
        (b"hello", "not_image", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not_image", "not an image"),
        (encoded("GIF"), "not_image", "not an image"),
        (encoded("JPEG")[:700], "truncated", "ends before"),
        (encoded("PNG")[:100], "truncated", "ends before"),
        (encoded("BMP")[:3000], "truncated", "ends before"),
        # Nothing is behind these headers: only a look at the size before decoding says "pixels".
        (png_header(12_000, 12_000), "huge", "12000 x 12000 pixels, more than the limit of 100"),
        (png_header(60_000, 60_000), "huge", "more than 178 million pixels"),
        (None, "missing", "does not exist"),
    ],
    ids=["empty", "text", "eps", "gif", "jpeg", "png", "bmp", "huge", "huger", "missing"],
)
def test_a_bad_file_is_named_with_its_reason(tmp_path, content, kind, reason):
    path = tmp_path / "a.jpg"
    if content is not None:
        path.write_bytes(content)
    for size in (None, 16):
        with pytest.raises(BadImage, match=reason) as caught:
            read_image(path, size)
        assert (caught.value.kind, caught.value.exit_code) == (kind, 2)
        assert str(path) in caught.value.message and str(path) not in caught.value.reason


def test_limits_can_be_set(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(scene(40, 60)).save(path)
    read_image(path, limits=ImageLimits(max_pixels=2400))
    with pytest.raises(BadImage, match=r"60 x 40 pixels, more than the limit of 0.002399 million"):
        read_image(path, limits=ImageLimits(max_pixels=2399))
    with pytest.raises(BadImage, match="over the limit"):
        read_image(path, limits=ImageLimits(max_bytes=10))


def test_what_is_not_a_regular_file_never_blocks(tmp_path):
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    for name in ("folder.jpg", "pipe.jpg"):
        with pytest.raises(BadImage, match="not a file"):
            read_image(tmp_path / name)


FORMATS = {kind: encoded(kind) for kind in ("JPEG", "PNG", "WEBP", "BMP", "TIFF")}


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(FORMATS)), st.sampled_from([None, 16]), st.data())
def test_whatever_the_bytes_it_is_an_image_or_a_bad_image(tmp_path_factory, kind, size, data):
    """Bytes changed, removed and added at random places of an intact file."""
    content = bytearray(FORMATS[kind])
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, max(0, len(content) - 1)))
        content[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content))) :]
    path = tmp_path_factory.getbasetemp() / "fuzzed.bin"
    path.write_bytes(bytes(content))
    try:
        found = read_image(path, size, limits=ImageLimits(max_pixels=1_000_000))
    except BadImage as error:
        assert error.reason
    else:
        assert found.dtype == np.uint8 and found.ndim == 3 and found.shape[2] == 3


# ---- all images of a manifest


@pytest.fixture
def mixed(image_folder):
    """Four intact images and two bad ones, in the order a, b, c, d, e, f."""
    root = image_folder("a.png", "c.jpg", "d.png", "f.png", side=20)
    (root / "b.jpg").write_bytes(b"hello")
    (root / "e.png").write_bytes((root / "a.png").read_bytes()[:150])
    return root


def test_decode_all_lists_and_leaves_out_bad_files(mixed):
    manifest = Manifest.load(mixed)
    pixels, kept, skipped = decode_all(manifest, 16)
    assert (pixels.dtype, pixels.shape) == (np.uint8, (4, 16, 16, 3))
    assert kept.tolist() == [0, 2, 3, 5]
    assert [(row, image) for row, image, _ in skipped] == [(1, "b.jpg"), (4, "e.png")]
    assert ["not an image" in skipped[0][2], "ends before" in skipped[1][2]] == [True, True]
    for k, row in enumerate(kept):
        assert np.array_equal(pixels[k], read_image(manifest.paths()[row], 16))


def test_decode_all_is_the_same_with_threads(mixed):
    one, two = (decode_all(Manifest.load(mixed), 16, threads=n) for n in (1, 2))
    assert np.array_equal(one[0], two[0]) and np.array_equal(one[1], two[1])
    assert one[2] == two[2]


def test_decode_all_strict_stops_at_the_first_bad_file(mixed):
    with pytest.raises(BadImage, match=r"b.jpg: not an image"):
        decode_all(Manifest.load(mixed), 16, strict=True)


def test_decode_all_without_a_readable_image_is_an_error(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"hello")
    with pytest.raises(UserInputError, match=r"none of the 1 images .* a.jpg: not an image"):
        decode_all(Manifest.load(tmp_path), 16)
