"""Tokens replaced by their reconstructions, through the rest of a real tower."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import log_softmax

from dermaudit.data import BadImage, read_image
from dermaudit.sae import ThresholdSAE
from dermaudit.sae.evaluation.recovered import Ablation, recovered_report
from dermaudit.sae.inference.spliced import spliced_embeddings
from dermaudit.towers import ZeroShot, load_model

SITE = "visual.blocks.11.hook_resid_post"


@pytest.fixture(scope="module")
def tower():
    return load_model("phantom-vit")


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    found = []
    for i in range(5):
        pixels = np.kron(
            rng.integers(0, 256, (4, 4, 3), dtype=np.uint8), np.ones((24, 24, 1), np.uint8)
        )
        found.append(folder / f"{i}.png")
        Image.fromarray(pixels).save(found[-1])
    return found


def sae_of(d: int, scale: float = 1.0) -> ThresholdSAE:
    """Both signs of every coordinate: reconstructs x times `scale`, whatever x is."""
    both = torch.cat([torch.eye(d), -torch.eye(d)])
    return ThresholdSAE(
        both.T.contiguous(), scale * both, torch.zeros(2 * d), torch.zeros(d), torch.zeros(2 * d)
    )


def test_a_perfect_reconstruction_changes_nothing(tower, paths):
    d = tower.site_width(SITE)
    before = tower.encode_image(tower.preprocess([read_image(p) for p in paths]), normalize=True)
    found = spliced_embeddings(tower, SITE, "patch", sae_of(d), paths, np.zeros(d))
    np.testing.assert_array_equal(found["clean"], before.detach().numpy())
    np.testing.assert_allclose(found["sae"], found["clean"], atol=1e-5)
    np.testing.assert_array_equal(found["ablated"], found["zero"])  # the mean is nothing here
    assert np.abs(found["zero"] - found["clean"]).max() > 0.05
    # And nothing stays in the tower.
    again = tower.encode_image(tower.preprocess([read_image(p) for p in paths]), normalize=True)
    assert torch.equal(again, before)


def test_spliced_embeddings_equal_hooks_written_by_hand(tower, paths):
    """By transformer-lens' own hooks: halved tokens, and the mean token at every place."""
    d = tower.site_width(SITE)
    mean = np.random.default_rng(1).normal(size=d)
    found = spliced_embeddings(tower, SITE, "patch", sae_of(d, 0.5), paths, mean)
    x = tower.preprocess([read_image(p) for p in paths])
    first = tower.n_prefix_tokens

    def half(value, hook):
        return torch.cat([value[:, :first], value[:, first:] / 2], 1)

    def average(value, hook):
        token = torch.from_numpy(mean.astype(np.float32))
        return torch.cat([value[:, :first], token.expand_as(value[:, first:])], 1)

    for name, hook in (("sae", half), ("ablated", average)):
        with torch.no_grad():
            expected = tower.run_with_hooks(x, fwd_hooks=[(SITE, hook)])
        np.testing.assert_allclose(found[name], expected.numpy(), atol=2e-6)


def test_recovered_cross_entropy_by_hand_for_ablated_tokens(tower):
    """By hand: mean- and zero-ablated embeddings of their own for every image."""
    zero_shot = ZeroShot(
        tower, {"mel": ["melanoma"], "nv": ["nevus"], "bcc": ["basal cell carcinoma"]}
    )
    rng = np.random.default_rng(2)
    clean, sae, ablated, zero = (rng.normal(size=(40, tower.d_pooled)) for _ in range(4))
    labels = [("mel", "nv", "bcc")[i % 3] for i in range(40)]
    found = recovered_report(
        zero_shot,
        clean,
        sae,
        labels,
        np.arange(40),
        Ablation(ablated, zero, "mean token"),
        n_draws=20,
    )
    weight, scale = zero_shot.weight.detach().double().numpy(), float(zero_shot.logit_scale)
    truth = np.arange(40) % 3

    def entropy(x):
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        return -log_softmax(scale * unit @ weight.T, axis=1)[np.arange(40), truth].mean()

    by_way = [entropy(x) for x in (clean, sae, ablated, zero)]
    assert found["cross_entropy"]["value"] == pytest.approx(by_way[1], abs=1e-5)
    assert found["cross_entropy"]["control_is"] == "mean token"
    recovered = [(by_way[1] - base) / (by_way[0] - base) for base in by_way[2:]]
    assert found["cross_entropy_recovered"]["value"] == pytest.approx(recovered[0], rel=1e-4)
    assert found["cross_entropy_recovered"]["control"] == pytest.approx(recovered[1], rel=1e-4)


def test_a_missing_image_raises_bad_image(tower, paths, tmp_path):
    with pytest.raises(BadImage, match="does not exist"):
        spliced_embeddings(
            tower,
            SITE,
            "patch",
            sae_of(tower.site_width(SITE)),
            [tmp_path / "none.png"],
            np.zeros(1),
        )
