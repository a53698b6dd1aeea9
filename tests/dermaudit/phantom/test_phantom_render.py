"""Determinism, truth and the pixel identity of twins."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dermaudit.errors import UserInputError
from dermaudit.phantom import ARTIFACTS, CONCEPTS, DIAGNOSES, load_bias_table, render, sample

ALL_ARTIFACTS = load_bias_table().changed({"artifact": {"default": dict.fromkeys(ARTIFACTS, 1.0)}})
SEEDS = st.integers(0, 2**31 - 1)


def test_same_seed_same_bytes_in_any_order():
    forward = [render(sample(1000, index), 48).rgb.tobytes() for index in range(6)]
    backward = [render(sample(1000, index), 48).rgb.tobytes() for index in reversed(range(6))]
    assert forward == backward[::-1]
    assert len(set(forward)) == 6


def test_masks_do_not_move_a_pixel():
    scene = sample(1000, 3)
    assert np.array_equal(render(scene, 64).rgb, render(scene, 64, masks=True).rgb)
    assert render(scene, 64).masks == {}


@pytest.mark.parametrize("size", [32, 96, 131])
def test_any_size(size):
    phantom = render(sample(1001, 0), size, masks=True)
    assert phantom.rgb.shape == (size, size, 3)
    assert phantom.rgb.dtype == np.uint8
    assert all(mask.shape == (size, size) for mask in phantom.masks.values())


def test_masks_exist_exactly_for_what_is_present():
    for index in range(60):
        phantom = render(sample(1002, index), 96, masks=True)
        assert set(phantom.masks) == {"lesion", *CONCEPTS, *ARTIFACTS}
        for name, present in (phantom.concepts | phantom.artifacts).items():
            mask = phantom.masks[name]
            assert mask.dtype == np.float32
            assert mask.min() >= 0 and mask.max() <= 1
            # Not a trace: at 96 px at least a dozen pixels show it.
            assert (mask > 0.3).sum() >= 12 if present else not mask.any(), (index, name)


def test_asymmetry_is_the_lesion_and_irregular_border_its_band():
    row = {"asymmetry": 1.0, "irregular_border": 1.0}
    table = load_bias_table().changed({"concept": {"default": row}})
    masks = render(sample(1003, 0, table), 96, masks=True).masks
    assert np.array_equal(masks["asymmetry"], masks["lesion"])
    band = masks["irregular_border"] > 0.5
    assert 0.02 < band.mean() < 0.6
    # The lesion's own outline runs inside the band.
    half = np.abs(masks["lesion"] - 0.5) < 0.2
    assert band[half].mean() > 0.95


@pytest.mark.parametrize("name", ARTIFACTS)
@given(seed=SEEDS, size=st.integers(24, 100))
@settings(max_examples=12, deadline=None)
def test_twin_without_an_artifact(name, seed, size):
    scene = sample(seed, 0, ALL_ARTIFACTS)
    whole = render(scene, size, masks=True)
    twin = render(scene, size, masks=True, without=name)
    outside = whole.masks[name] == 0
    assert np.array_equal(whole.rgb[outside], twin.rgb[outside])
    assert twin.artifacts[name] == 0 and not twin.masks[name].any()
    assert whole.artifacts[name] == 1 and whole.masks[name].any()
    for other in {"lesion", *CONCEPTS, *ARTIFACTS} - {name}:
        assert np.array_equal(whole.masks[other], twin.masks[other]), other


@pytest.mark.parametrize("name", ARTIFACTS)
def test_the_artifact_changes_the_pixels_that_it_claims(name):
    table = load_bias_table().changed(
        {"artifact": {"default": {other: float(other == name) for other in ARTIFACTS}}}
    )
    for index in range(8):
        scene = sample(1004, index, table)
        whole = render(scene, 96, masks=True)
        twin = render(scene, 96, without=name)
        moved = np.abs(whole.rgb.astype(int) - twin.rgb).max(axis=2)
        strong = whole.masks[name] > 0.6
        assert strong.any() or name in ("gel_bubble", "gel_border")
        assert not strong.any() or np.median(moved[strong]) > 15


def test_a_table_that_changes_one_probability_changes_that_factor_alone(ruler_table):
    low = ruler_table(0.0, 0.0)
    high = ruler_table(1.0, 1.0)
    for index in range(10):
        without, with_ruler = sample(1005, index, low), sample(1005, index, high)
        assert without.concepts == with_ruler.concepts
        assert without.artifacts | {"ruler": 1} == with_ruler.artifacts
        assert np.array_equal(render(without, 48).rgb, render(with_ruler, 48, without="ruler").rgb)


def test_leaving_out_an_absent_artifact_changes_nothing():
    scene = next(s for s in (sample(1006, i) for i in range(50)) if not s.artifacts["ink"])
    assert np.array_equal(render(scene, 48).rgb, render(scene, 48, without="ink").rgb)


def test_unknown_artifact_offers_the_closest():
    with pytest.raises(UserInputError, match="did you mean 'ruler'"):
        render(sample(1000, 0), 48, without="rular")


def test_scene_names():
    scene = sample(1000, 0)
    assert scene.diagnosis in DIAGNOSES and scene.skin_type in range(1, 7)
    assert tuple(scene.concepts) == CONCEPTS and tuple(scene.artifacts) == ARTIFACTS
