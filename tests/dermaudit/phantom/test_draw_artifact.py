"""The artifact renderer on photographs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dermaudit.errors import UserInputError
from dermaudit.phantom import ARTIFACTS, draw_artifact


@pytest.mark.parametrize("name", ARTIFACTS)
@given(seed=st.integers(0, 2**31 - 1), height=st.integers(16, 90), width=st.integers(16, 90))
@settings(max_examples=12, deadline=None)
def test_pixels_outside_alpha_are_the_same_bytes(name, seed, height, width):
    rgb = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    before = rgb.copy()
    out, alpha = draw_artifact(name, rgb, seed)
    assert np.array_equal(rgb, before)
    assert out.dtype == np.uint8 and out.shape == rgb.shape
    assert alpha.dtype == np.float32 and alpha.shape == (height, width)
    assert alpha.min() >= 0 and alpha.max() <= 1
    assert np.array_equal(out[alpha == 0], rgb[alpha == 0])


@pytest.mark.parametrize("name", ARTIFACTS)
def test_it_is_drawn_for_every_seed_and_never_hides_the_image(name):
    grey = np.full((96, 96, 3), 160, dtype=np.uint8)
    for seed in range(40):
        out, alpha = draw_artifact(name, grey, seed)
        assert (alpha > 0.3).sum() >= 20, seed
        assert (alpha > 0.3).mean() < 0.75, seed
        assert not np.array_equal(out, grey)
        assert np.array_equal(out, draw_artifact(name, grey, seed)[0])


def test_streams_differ_by_seed_and_by_name():
    grey = np.full((64, 64, 3), 160, dtype=np.uint8)
    drawn = {draw_artifact(name, grey, seed)[0].tobytes() for name in ARTIFACTS for seed in (1, 2)}
    assert len(drawn) == 2 * len(ARTIFACTS)


@pytest.mark.parametrize("bad", [np.zeros((64, 64)), np.zeros((64, 64, 3)), np.zeros((64, 64, 4))])
def test_other_arrays_are_refused(bad):
    with pytest.raises(UserInputError, match="needs an RGB image of bytes"):
        draw_artifact("ruler", bad, 0)


def test_too_small_and_unknown():
    with pytest.raises(UserInputError, match="too small"):
        draw_artifact("ruler", np.zeros((8, 64, 3), dtype=np.uint8), 0)
    with pytest.raises(UserInputError, match="did you mean 'gel_bubble'"):
        draw_artifact("gel_buble", np.zeros((64, 64, 3), dtype=np.uint8), 0)


def test_render_command_draws_on_every_readable_image(main, image_folder, tmp_path):
    folder, out = image_folder("a.png", "sub/b.jpg"), tmp_path / "out"
    (folder / "bad.png").write_bytes(b"no image")
    argv = ("data", "render", folder, "--artifact", "ruler", "--out", out, "--json")
    done = main(*argv)
    assert done.rc == 0, done.stderr
    assert done.json()["n_images"] == 2
    assert [skipped["image"] for skipped in done.json()["skipped"]] == ["bad.png"]
    for name in ("a.png", "sub/b.png"):
        with Image.open(out / "images" / name) as drawn, Image.open(out / "alpha" / name) as alpha:
            assert drawn.mode == "RGB" and alpha.mode == "L" and drawn.size == alpha.size
    refused = main(*argv)
    assert refused.rc == 2 and "already holds images" in refused.stderr
    assert main(*argv, "--force").rc == 0


@pytest.mark.parametrize(
    ("artifact", "message"),
    [
        ("rular", "did you mean 'ruler'"),
        ("ruler", "none of the 1 images of"),
    ],
)
def test_render_command_refuses_in_one_sentence(main, tmp_path, artifact, message):
    (tmp_path / "a.png").write_bytes(b"no image")
    done = main("data", "render", tmp_path, "--artifact", artifact, "--out", tmp_path / "out")
    assert done.rc == 2 and message in done.stderr and "Traceback" not in done.stderr
