"""A concept latent: by hand, as a latent of an SAE file, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dermaudit.errors import EvidenceError, UserInputError
from dermaudit.sae import LatentSuppressor, ThresholdSAE
from dermaudit.sae.concept_latents.latent import ConceptLatent, append_latents, out_of_fold_scores


def rows(n=120, d=12, shift=3.0, seed=0):
    """Rows with and without a concept, which adds `shift` to two of d correlated dimensions."""
    g = np.random.default_rng(seed)
    mix = np.eye(d) + 0.3 * g.standard_normal((d, d))
    without, present = (g.standard_normal((n, d)) @ mix for _ in range(2))
    present[:, :2] += shift
    return present.astype(np.float32), without.astype(np.float32)


def suppressed(latent: ConceptLatent, x: np.ndarray, renormalise: bool = False) -> np.ndarray:
    module = LatentSuppressor(latent.as_sae(), [0], renormalise=renormalise)
    return module.apply_to(torch.from_numpy(x)).x.numpy()


def test_by_hand():
    """pre = 2 x0 - 1 fires above 1; z moves along the second dimension."""
    latent = ConceptLatent(np.array([2.0, 0.0]), -1.0, 1.0, np.array([0.0, 1.0]))
    x = np.array([[0.5, 7], [1.0, 7], [2.0, 7]], dtype=np.float32)  # pre 0, 1, 3
    np.testing.assert_array_equal(suppressed(latent, x), [[0.5, 7], [1.0, 7], [2.0, 4]])


def test_means_with_and_without_are_equal_after_the_edit():
    """The condition that sets the length of the decoder, up to the gap between the out-of-fold scores that
    it is computed from and the scores of the final encoder."""
    present, absent = rows(n=2000)
    latent = ConceptLatent.fit(present, absent)
    before = present.mean(0) - absent.mean(0)
    after = suppressed(latent, present).mean(0) - suppressed(latent, absent).mean(0)
    assert np.linalg.norm(after) < 0.1 * np.linalg.norm(before)


def test_rows_where_it_does_not_fire_keep_their_bits():
    present, absent = rows()
    latent = ConceptLatent.fit(present, absent)
    x = np.concatenate([present, absent])
    z = latent.as_sae().encode(torch.from_numpy(x))[:, 0].numpy()
    edited = suppressed(latent, x, renormalise=True)
    np.testing.assert_array_equal(edited[z == 0], x[z == 0])
    assert (edited[z > 0] != x[z > 0]).any(1).all()
    assert latent.figures is not None
    # A quarter of the rows without the concept fire, by the definition of the threshold.
    assert latent.figures.fires_without == pytest.approx(0.25, abs=0.02)
    assert latent.figures.fires_with > 0.8


def test_fit_does_not_depend_on_the_scale_of_the_rows():
    present, absent = rows()
    scale = np.linspace(0.1, 10, present.shape[1]).astype(np.float32)
    one, other = (
        ConceptLatent.fit(present, absent),
        ConceptLatent.fit(present * scale, absent * scale),
    )
    np.testing.assert_allclose(
        suppressed(one, present) * scale, suppressed(other, present * scale), atol=1e-3
    )


def test_scores_are_of_encoders_that_saw_no_row_of_the_group():
    """With labels that are noise, but equal in a group, only scores that mix groups look good."""
    g = np.random.default_rng(0)
    base = g.standard_normal((40, 8))
    u = np.repeat(base, 10, axis=0) + 1e-3 * g.standard_normal((400, 8))
    present = np.repeat(g.integers(0, 2, 40), 10)
    groups = np.repeat(np.arange(40), 10).astype(str)
    from dermaudit.stats.intervals import auroc

    alone = np.arange(400).astype(str)
    mixed = auroc(present, out_of_fold_scores(u, present, alone))
    assert auroc(present, out_of_fold_scores(u, present, groups)) < 0.6 < 0.75 < mixed


def sae(d=12, h=5) -> ThresholdSAE:
    g = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=g)  # noqa: E731
    return ThresholdSAE(draw(d, h), draw(h, d), draw(h), draw(d), torch.rand(h, generator=g))


def test_appended_to_an_sae_it_encodes_the_same_and_the_others_stay():
    present, absent = rows()
    latents = [ConceptLatent.fit(present, absent), ConceptLatent.fit(absent, present)]
    one, more = sae(), append_latents(sae(), latents)
    x = torch.from_numpy(present)
    z = more.encode(x)
    torch.testing.assert_close(z[:, :5], one.encode(x))
    for column, latent in enumerate(latents):
        torch.testing.assert_close(
            z[:, 5 + column], latent.as_sae().encode(x)[:, 0], atol=2e-4, rtol=1e-4
        )


def test_saved_it_is_opened_by_sae_lens(tmp_path):
    import sae_lens

    present, absent = rows()
    more = append_latents(sae(), [ConceptLatent.fit(present, absent)])
    more.save(tmp_path)
    again = ThresholdSAE.load(tmp_path)
    theirs = sae_lens.SAE.load_from_disk(str(tmp_path))
    x = torch.from_numpy(present)
    assert torch.equal(again.encode(x), more.encode(x))
    torch.testing.assert_close(theirs.encode(x), more.encode(x), atol=1e-5, rtol=1e-5)


def two_concepts(n=400, d=20):
    """Rows of two concepts that share a direction and often go together, and their labels (n,)."""
    g = np.random.default_rng(3)
    first = g.integers(0, 2, n)
    second = np.where(g.random(n) < 0.75, first, 1 - first)
    x = g.standard_normal((n, d)).astype(np.float32)
    x[:, :2] += 3 * first[:, None]
    x[:, 1:3] += 3 * second[:, None]
    return x, first == 1, second == 1


def test_fitted_after_another_it_takes_what_is_left_and_reads_the_rows_as_they_are():
    x, first, second = two_concepts()
    one = ConceptLatent.fit(x[first], x[~first])
    two = ConceptLatent.fit(x[second], x[~second], after=[one])
    apart = ConceptLatent.fit(x[second], x[~second])
    length = np.linalg.norm(two.encoder) * np.linalg.norm(one.decoder)
    assert abs(two.encoder @ one.decoder) < 1e-9 * length
    left = x - np.outer(one.codes(x), one.decoder)
    np.testing.assert_allclose(two.codes(left), two.codes(x), atol=1e-4)

    def gap(edited):
        return np.linalg.norm(edited[second].mean(0) - edited[~second].mean(0))

    both = left - np.outer(two.codes(x), two.decoder)
    twice = left - np.outer(apart.codes(x), apart.decoder)
    assert gap(both) < 0.25 * gap(left) and gap(both) < 0.5 * gap(twice)


def test_as_an_sae_and_back_it_is_the_same_latent():
    present, absent = rows()
    latents = [ConceptLatent.fit(present, absent), ConceptLatent.fit(absent, present)]
    joined = append_latents(latents[0].as_sae(), latents[1:])
    for latent, again in zip(latents, ConceptLatent.of_sae(joined), strict=True):
        np.testing.assert_allclose(again.codes(present), latent.codes(present), atol=1e-3)
        np.testing.assert_allclose(again.decoder, latent.decoder, atol=1e-6)


def test_few_images_are_refused_with_the_counts():
    present, absent = rows()
    with pytest.raises(EvidenceError, match="9 with the concept, 120 without") as refused:
        ConceptLatent.fit(present[:9], absent)
    assert refused.value.numbers == {"n_with": 9, "n_without": 120}


def test_what_is_not_told_apart_is_refused_with_the_auroc():
    present, absent = rows(shift=0.0)
    with pytest.raises(EvidenceError, match="not told apart") as refused:
        ConceptLatent.fit(present, absent)
    low, high = refused.value.numbers["auroc_ci"]
    assert low <= 0.5 and refused.value.numbers["auroc"] < high


def test_an_image_on_both_sides_is_refused():
    present, absent = rows()
    with pytest.raises(UserInputError, match="1 images are given both with and without"):
        ConceptLatent.fit(present, np.concatenate([absent, present[:1]]))


def test_one_group_on_a_side_is_refused():
    present, absent = rows()
    with pytest.raises(EvidenceError, match="of one group"):
        ConceptLatent.fit(present, absent, groups_with=np.array(["p1"] * len(present)))


def test_another_width_is_refused():
    present, absent = rows(d=8)
    with pytest.raises(UserInputError, match="width 8 does not fit an SAE of width 12"):
        append_latents(sae(), [ConceptLatent.fit(present, absent)])


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.floats(2.0, 4.0))  # with less, some draws are refused
def test_it_fires_more_where_the_concept_is(seed, shift):
    present, absent = rows(n=60, shift=shift, seed=seed)
    figures = ConceptLatent.fit(present, absent, seed=seed).figures
    assert figures is not None
    assert figures.fires_with > figures.fires_without
    assert figures.auroc_ci[0] <= figures.auroc <= figures.auroc_ci[1]
