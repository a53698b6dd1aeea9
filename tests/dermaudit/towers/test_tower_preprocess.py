"""Many images at once: the bits of open_clip's own transform of each."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from dermaudit.errors import UserInputError
from dermaudit.towers.preprocess import Preprocess

SIZES = [(64, 64), (48, 100), (201, 33), (64, 65)]


def images(seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in SIZES]


@pytest.mark.parametrize(
    ("mode", "size"),
    [
        ("squash", 64),
        ("squash", (64, 48)),
        ("shortest", 64),
        ("shortest", (48, 64)),
        ("longest", 64),
    ],
)
def test_several_images_have_the_bits_of_the_stock_transform(preprocess_cfg, mode, size):
    config = {**preprocess_cfg, "resize_mode": mode, "size": size}
    stock = image_transform_v2(PreprocessCfg(**config), is_train=False)
    own = Preprocess(config)
    given = images()
    wanted = torch.stack([stock(Image.fromarray(image)) for image in given])
    found = own(given)
    assert torch.equal(found, wanted) and found.dtype == torch.float32
    assert found.is_contiguous() and found.shape[2:] == own.size
    for image, one in zip(given, wanted, strict=True):
        assert torch.equal(own(image), one) and torch.equal(own([image])[0], one)


def test_every_byte_value_has_the_same_bits(preprocess_cfg):
    own = Preprocess({**preprocess_cfg, "size": 16})
    every = np.repeat(np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1), 3, axis=3)
    assert torch.equal(own(every)[0], own.transform(Image.fromarray(every[0])))


def test_no_image_gives_an_empty_batch(preprocess_cfg):
    assert Preprocess(preprocess_cfg)([]).shape == (0, 3, 64, 64)


def test_one_image_in_any_form_is_what_the_stock_transform_gives(preprocess_cfg, tmp_path):
    own = Preprocess(preprocess_cfg)
    stock = image_transform_v2(PreprocessCfg(**preprocess_cfg), is_train=False)
    pixels = images()[1]
    photo, path = Image.fromarray(pixels), tmp_path / "photo.png"
    photo.save(path)
    expected = stock(photo)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    forms = [photo, path, str(path), pixels, tensor]
    for form in forms:
        assert torch.equal(own(form), expected)
    assert torch.equal(own(forms), expected.expand(5, -1, -1, -1))
    assert torch.equal(own(tuple(forms[:2])), own(forms[:2]))
    assert torch.equal(own(tensor[None]), expected[None])
    for mode in ("L", "RGBA", "P"):
        assert torch.equal(own(photo.convert(mode)), stock(photo.convert(mode)))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.zeros((8, 8, 3)), r"an image must be uint8 .* not float64 \(8, 8, 3\)"),
        (np.zeros((8, 8), np.uint8), r"an image must be uint8 of shape"),
        (np.zeros((8, 8, 4), np.uint8), r"an image must be uint8 of shape"),
        (np.zeros((0, 8, 3), np.uint8), r"not uint8 \(0, 8, 3\)"),
        (torch.zeros(8, 8, 3, dtype=torch.uint8), r"not torch.uint8 \(8, 8, 3\)"),
        (torch.zeros(3, 8, 8), r"not torch.float32 \(3, 8, 8\)"),
        (None, "not NoneType"),
        (7, "not int"),
        (Image.new("I;16", (8, 8)), "mode I;16 has more than 8 bits"),
        (Image.new("RGB", (0, 8)), "empty: 0 x 8 pixels"),
        ("missing.png", "missing.png: the file does not exist"),
    ],
)
def test_what_is_not_an_image_is_refused_alone_and_among_others(preprocess_cfg, wrong, message):
    own = Preprocess(preprocess_cfg)
    for given in (wrong, [images()[0], wrong]):
        with pytest.raises(UserInputError, match=message) as refused:
            own(given)
        assert refused.value.exit_code == 2 and "\n" not in refused.value.message


def test_a_standard_deviation_of_zero_is_refused_as_torchvision_does(preprocess_cfg):
    own = Preprocess({**preprocess_cfg, "std": [0.2, 0.0, 0.2]})
    with pytest.raises(ValueError, match="std evaluated to zero"):
        own(images())
