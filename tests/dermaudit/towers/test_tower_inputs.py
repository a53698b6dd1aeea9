"""What `encode_image` accepts: other dtypes, one image, no image, unprepared images; what it refuses."""

from __future__ import annotations

import copy
import re

import numpy as np
import pytest
import torch
from PIL import Image

from dermaudit.errors import UserInputError
from dermaudit.towers import HookedTower


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 0), (torch.float16, 5e-3), (torch.bfloat16, 5e-2)]
)
def test_prepared_images_of_another_dtype_are_converted(tower, images, dtype, tolerance):
    out = tower.encode_image(images.to(dtype))
    assert out.dtype == torch.float32
    assert (out - tower.encode_image(images)).abs().max() <= tolerance
    assert torch.equal(out, tower.encode_image(images.to(dtype).float()))


def test_a_model_of_another_dtype_takes_the_same_images(
    tower, tiny_model, images, photos, preprocess_cfg
):
    wide = HookedTower(
        copy.deepcopy(tiny_model).double(), tokenizer=None, preprocess_cfg=preprocess_cfg
    )
    for given in (images, images.double(), images.half(), photos):
        assert wide.encode_image(given).dtype == torch.float64
    torch.testing.assert_close(
        wide.encode_image(images).float(), tower.encode_image(images), atol=1e-5, rtol=0
    )


def test_unprepared_images_are_prepared_first(tower, images, photos, tmp_path):
    expected = tower.encode_image(images)
    path = tmp_path / "photo.png"
    Image.fromarray(photos[1]).save(path)
    pixels = torch.from_numpy(photos).permute(0, 3, 1, 2)
    forms = [photos, list(photos), pixels, [photos[0], path, Image.fromarray(photos[2])]]
    for given in forms:
        assert torch.equal(tower.encode_image(given), expected)
    assert torch.equal(tower.encode_image(list(images)), expected)


def test_one_image_gives_one_vector(tower, images, photos):
    expected = tower.encode_image(images[:1])[0]
    for given in (images[0], photos[0], Image.fromarray(photos[0])):
        assert torch.equal(tower.encode_image(given), expected)
    assert tower.encode_image(images[0], normalize=False).shape == (tower.d_pooled,)


@pytest.mark.parametrize("empty", [[], torch.empty(0, 3, 64, 64), np.empty((0, 9, 9, 3), np.uint8)])
def test_no_image_gives_no_vector(tower, empty):
    assert tower.encode_image(empty).shape == (0, tower.d_pooled)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.zeros(2, 3, 60, 64), r"the shape \(2, 3, 60, 64\); .* takes \(n, 3, 64, 64\)"),
        (torch.zeros(2, 64, 64, 3), r"the shape \(2, 64, 64, 3\)"),
        (torch.zeros(64, 64), r"the shape \(64, 64\)"),
        (torch.zeros(2, 3, 64, 64, dtype=torch.int64), "an image must be uint8"),
        (np.zeros((2, 3, 64, 64), np.float32), "an image must be uint8"),
        ([torch.zeros(3, 64, 64), np.zeros((9, 9, 3), np.uint8)], "prepare all of them"),
        ([torch.zeros(3, 64, 64), torch.zeros(3, 64, 60)], "must have one shape"),
    ],
)
def test_images_that_do_not_fit_are_refused_in_one_sentence(tower, given, message):
    with pytest.raises(UserInputError) as refused:
        tower.encode_image(given)
    error = refused.value
    assert error.exit_code == 2 and "\n" not in error.message
    assert re.search(message, f"{error.message} {error.hint}")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_values_that_are_not_finite_are_refused(tower, images, value):
    broken = images.clone()
    broken[1, 0, 3, 3] = value
    with pytest.raises(UserInputError, match=r"1 of 3 hold NaN or infinity .*: 1\)"):
        tower.encode_image(broken)
