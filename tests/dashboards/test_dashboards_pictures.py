"""Thumbnails and patch maps."""

from __future__ import annotations

import io
import os

import numpy as np
import pytest
from PIL import Image
from toy_run import GRID, PATCHES, POOLED

from dermaudit.dashboards.exhibits import pictures
from dermaudit.dashboards.exhibits.run_view import RunView
from dermaudit.errors import EvidenceError, StaleArtifactError
from dermaudit.run.directory import open_run


def test_thumbnail_is_a_small_webp(whole_run) -> None:
    picture = Image.open(io.BytesIO(pictures.thumbnail(RunView.open(whole_run), 3)))
    assert picture.format == "WEBP" and max(picture.size) == pictures.SIDE


def test_an_image_that_is_missing_or_altered_is_reported(own_run) -> None:
    view = RunView.open(own_run)
    path = view.image_file(0)
    Image.fromarray(np.zeros((48, 48, 3), np.uint8)).save(path)
    with pytest.raises(StaleArtifactError, match="image 0 was altered"):
        pictures.thumbnail(view, 0)
    path.unlink()
    with pytest.raises(EvidenceError, match="not where the run found it"):
        pictures.thumbnail(view, 0)


def test_images_are_found_after_run_and_data_moved_together(own_run, monkeypatch, tmp_path) -> None:
    run = open_run(own_run)
    run.meta["data"]["root"] = "../data"
    run.save()
    moved = own_run.parent.rename(tmp_path / "elsewhere") / own_run.name
    monkeypatch.chdir(tmp_path)
    assert RunView.open(os.path.relpath(moved)).image_file(0) is not None


def test_patch_values_are_the_stored_codes(whole_run) -> None:
    view = RunView.open(whole_run)
    codes = view.codes(PATCHES)
    latents, values = codes.row(70)
    for latent, value in zip(latents[:4], values[:4], strict=True):
        grid = pictures.patch_values(view, 70, PATCHES, int(latent))
        assert grid.shape == GRID and grid.max() == pytest.approx(value, rel=1e-5)


def test_pooled_site_has_no_map(whole_run) -> None:
    with pytest.raises(EvidenceError, match="no grid of patches"):
        pictures.patch_values(RunView.open(whole_run), 0, POOLED, 0)


def test_overlay_outlines_without_colour() -> None:
    """With the colour taken away (opacity 0) the outline alone still marks what fires, on any skin."""
    values = np.zeros((4, 4))
    values[1, 2] = 1.0
    for skin in (30, 240):
        image = np.full((64, 64, 3), skin, np.uint8)
        found = pictures.overlay(image, values, 1.0, 0.0)
        assert (found == 0).all(-1).any() and (found == 255).all(-1).any()
        assert np.array_equal(found[:8, :24], image[:8, :24])


def test_overlay_keeps_the_absolute_scale() -> None:
    """A weak activation is not stretched to look like a strong one."""
    image = np.full((32, 32, 3), 128, np.uint8)
    weak, strong = (
        pictures.overlay(image, np.full((1, 1), v), 1.0, 1.0)[16, 16] for v in (0.1, 1.0)
    )
    assert tuple(weak) == pictures.LEVELS[0] and tuple(strong) == pictures.LEVELS[-1]
