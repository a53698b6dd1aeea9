"""Every architecture is fitted, exported and opened by stock sae-lens; penalties, resampling, bad rows."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from sae_rows import held_out, planted

from dermaudit.errors import UserInputError
from dermaudit.sae.inference.model import ThresholdSAE, load_sae
from dermaudit.sae.store.rows import EmbeddingRows
from dermaudit.sae.training.architectures.ortho import likeness
from dermaudit.sae.training.architectures.registry import architecture
from dermaudit.sae.training.calibrate import fold
from dermaudit.sae.training.loop import fit_sae, fit_saes
from dermaudit.sae.training.recipe import ARCHITECTURES, SAERecipe, dermfm_zero
from dermaudit.sae.training.resample import resample
from dermaudit.sae.training.sae_lens_model import build, dense_step, held_out_sums

BASE = SAERecipe(d_sae=48, k=4, samples=40_000, batch=200, lr=5e-3, dead_window=2000)
KINDS = {
    **{name: dataclasses.replace(BASE, architecture=name) for name in ARCHITECTURES},
    "topk-as-topk": dataclasses.replace(BASE, architecture="topk", export="topk"),
    "relu_l1-as-published": SAERecipe(
        **{**dermfm_zero(24), "d_sae": 48, "epochs": 30.0, "batch": 200}
    ),
}


@pytest.fixture(scope="module")
def fits(rows):
    torch.set_num_threads(1)
    found = fit_saes(
        EmbeddingRows.of(rows["train"]),
        rows["val"],
        list(KINDS.values()),
        site="visual.pooled",
        model_name="toy",
    )
    return dict(zip(KINDS, found, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_sae_lens_opens_it_and_gives_the_same_codes(fits, rows, tmp_path, kind):
    from sae_lens import SAE

    sae = fits[kind].sae
    sae.save(tmp_path)
    stock = SAE.load_from_disk(tmp_path)
    on_disk = {"topk-as-topk": "topk"} | {
        name: "standard" for name in KINDS if name.startswith("relu")
    }
    assert stock.cfg.architecture() == on_disk.get(kind, "jumprelu")
    assert stock.cfg.metadata.hook_name == "visual.pooled"
    x = torch.from_numpy(rows["test"])
    ours, theirs = load_sae(tmp_path).encode(x), stock.encode(x).detach()
    assert torch.equal(ours, sae.encode(x))
    near = torch.zeros_like(ours, dtype=torch.bool)
    if hasattr(sae, "threshold"):
        near = (sae.pre(x) - sae.threshold).abs() < 1e-5  # rounding may move it over the gate
    assert near.double().mean() < 1e-3
    torch.testing.assert_close(ours[~near], theirs[~near], atol=1e-5, rtol=0)
    torch.testing.assert_close(sae.decode(ours), stock.decode(ours).detach(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_exported_sae_has_the_l0_of_training(fits, rows, kind):
    """It is k for the TopK family and jumprelu, and that of the last steps for a penalty without k."""
    fitted = fits[kind]
    measured = held_out(fitted.sae, torch.from_numpy(rows["train"]))["l0"]
    end = [line["l0"] for line in fitted.log if line["step"] <= fitted.summary["best_step"]][-1]
    if fitted.recipe.has_k:
        # A topk row has k, but for one with fewer positive pre-activations.
        assert measured == pytest.approx(fitted.recipe.k, rel=0.02)
        assert kind != "jumprelu" or end > 1.1 * fitted.recipe.k  # the penalty alone was not enough
    else:
        assert measured == pytest.approx(end, rel=0.05)


def test_jumprelu_thresholds_are_shifted_to_k_or_unchanged(rows, monkeypatch):
    """Exported thresholds differ from the learned ones by one shift, or not at all without k."""
    far = dataclasses.replace(BASE, architecture="jumprelu", samples=8000, l0_coefficient=0.3)
    step = dataclasses.replace(far, l0_penalty="step")
    learned = []
    monkeypatch.setattr(
        "dermaudit.sae.training.loop.fold", lambda *a: learned.append(fold(*a)) or fold(*a)
    )
    both = [
        fit_saes(EmbeddingRows.of(rows["train"]), rows["val"], [recipe], site="s", model_name="t")[
            0
        ].sae
        for recipe in (far, step)
    ]
    before, sae = learned[0].threshold, both[0]
    x = torch.from_numpy(rows["train"])
    assert before.std() > 0
    old = ThresholdSAE(sae.W_enc, sae.W_dec, sae.b_enc, sae.b_dec, before)
    assert float((old.encode(x) > 0).sum(1).double().mean()) > 2 * far.k  # far off before
    assert float((sae.encode(x) > 0).sum(1).double().mean()) == pytest.approx(far.k, rel=0.02)
    shift = sae.threshold - before
    torch.testing.assert_close(shift, shift.mean().expand(48), atol=1e-6, rtol=0)
    assert torch.equal(sae.threshold.argsort(stable=True), before.argsort(stable=True))
    assert sae.metadata["k"] == far.k
    sae = both[1]
    assert torch.equal(sae.threshold, learned[1].threshold) and "k" not in sae.metadata


@pytest.mark.parametrize("kind", KINDS)
def test_decoder_rows_are_unit_and_rows_are_reconstructed(fits, rows, kind):
    sae = fits[kind].sae
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(48), atol=1e-5, rtol=0)
    measured = held_out(sae, torch.from_numpy(rows["test"]))
    assert measured["fvu"] < (0.9 if kind == "relu_l1-as-published" else 0.5)
    assert fits[kind].summary["held_fvu_training"] < 0.9


def test_first_latents_of_matryoshka_reconstruct_alone(fits, rows):
    """Its first 12 latents reconstruct better than 12 latents of an SAE without an order."""
    x = torch.from_numpy(rows["test"])

    def fvu_of_first(sae, n):
        z = sae.encode(x)
        z[:, n:] = 0
        return float(((x - sae.decode(z)) ** 2).sum() / ((x - x.mean(0)) ** 2).sum())

    assert fvu_of_first(fits["matryoshka"].sae, 12) < 0.8 * fvu_of_first(fits["batchtopk"].sae, 12)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_step_equals_that_of_sae_lens(name):
    """Loss, gradients and active latents are compared, with dead latents for AuxK."""
    # sae-lens has no penalty on like decoder rows: without it ortho is its BatchTopK.
    settings = {"ortho_coefficient": 0.0} if name == "ortho" else {}
    recipe = dataclasses.replace(BASE, architecture=name, penalty_warmup=0.0, **settings)
    x = torch.from_numpy(planted(64)) * 5
    dead = torch.zeros(48, dtype=torch.bool)
    dead[::3] = True
    sides = []
    for take in (
        architecture(name).step,
        lambda sae, recipe, x, dead, _: dense_step(sae, x, dead),
    ):
        sae = build(recipe, x.mean(0), dtype=torch.float32, device=torch.device("cpu"))
        taken = take(sae, recipe, x, dead, 0.5)
        taken.loss.backward()
        sides.append((taken, {name: p.grad for name, p in sae.named_parameters()}))
    (ours, grads), (theirs, expected) = sides
    assert ours.loss.item() == pytest.approx(theirs.loss.item(), rel=1e-5)
    assert torch.equal(ours.fired, theirs.fired) and float(ours.l0) == pytest.approx(
        float(theirs.l0)
    )
    for name, grad in expected.items():
        torch.testing.assert_close(
            grads[name], grad, atol=1e-5 * float(grad.abs().max()), rtol=1e-4
        )


def test_aligned_latents_read_their_own_direction_with_a_gain_of_one(fits):
    sae = fits["aligned"].sae
    torch.testing.assert_close((sae.W_enc * sae.W_dec.t()).sum(0), torch.ones(48))
    plain = (fits["batchtopk"].sae.W_enc * fits["batchtopk"].sae.W_dec.t()).sum(0)
    assert (plain - 1).abs().max() > 0.05
    checks = [line["held_fvu"] for line in fits["aligned"].log if "held_fvu" in line]
    assert checks[-1] < 1.1 * min(checks) < 0.75 * checks[0]  # it goes on learning


def test_likeness_of_decoder_rows_by_hand():
    # Cosines: rows 0 and 1 have .6, row 2 has -1 with row 0 and 0 at most: (.36 + .36 + 0) / 3.
    decoder = torch.tensor([[2.0, 0.0], [0.6, 0.8], [-1.0, 0.0]])
    decoder.requires_grad_(True)
    found = likeness(decoder, 0)
    assert float(found.detach()) == pytest.approx(0.24)
    found.backward()
    step = decoder.detach() - 0.1 * decoder.grad
    assert float(likeness(step, 0)) < 0.24
    # In chunks of 2 a row is compared with at most one other.
    assert float(likeness(decoder.detach(), 1, chunk=2)) <= 0.24
    assert likeness(decoder.detach(), 1, chunk=2) == likeness(decoder.detach(), 1, chunk=2)


def test_ortho_makes_decoder_rows_less_alike(fits, rows):
    plain, ortho = (likeness(fits[name].sae.W_dec, 0) for name in ("batchtopk", "ortho"))
    assert ortho < 0.9 * plain
    recipe = dataclasses.replace(KINDS["ortho"], ortho_coefficient=0.0)
    without, _ = fit_sae(rows["train"], rows["val"], recipe, site="", model_name="")
    torch.testing.assert_close(without.W_dec, fits["batchtopk"].sae.W_dec, atol=1e-3, rtol=1e-2)


def test_build_depends_on_the_seed_and_keeps_the_state_of_torch():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    mean = torch.ones(24)
    first, again, other = (
        build(
            dataclasses.replace(BASE, seed=seed),
            mean,
            dtype=torch.float32,
            device=torch.device("cpu"),
        )
        for seed in (1, 1, 2)
    )
    assert torch.equal(first.W_enc, again.W_enc) and not torch.equal(first.W_enc, other.W_enc)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first.b_dec, mean)


def test_relu_l1_gradient_is_orthogonal_to_unit_decoder_rows(rows):
    """The gradient has no component along a decoder row."""
    recipe = KINDS["relu_l1"]
    sae = build(recipe, torch.zeros(24), dtype=torch.float32, device=torch.device("cpu"))
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(48))
    dense_step(
        sae, torch.from_numpy(rows["train"][:200]) * 5, torch.zeros(48, dtype=torch.bool)
    ).loss.backward()
    architecture("relu_l1").constrain_gradient(sae)
    along = (sae.W_dec.grad * sae.W_dec).sum(1)
    assert along.abs().max() < 1e-5 * sae.W_dec.grad.abs().max()


def test_relu_l1_objective_equals_the_published_loss():
    """‖x − x̂‖² + λ Σz with the published λ is d times the published loss."""
    recipe = SAERecipe(**{**dermfm_zero(24), "d_sae": 48})
    sae = build(recipe, torch.zeros(24), dtype=torch.float64, device=torch.device("cpu"))
    assert not sae.b_dec.any()
    x = torch.from_numpy(planted(40)).double()
    z = torch.relu((x - sae.b_dec) @ sae.W_enc + sae.b_enc)
    squares = ((x - z @ sae.W_dec - sae.b_dec) ** 2).sum(1)
    published = (squares / 24 + 3e-5 * z.sum(1)).mean()
    taken = dense_step(sae, x, torch.zeros(48, dtype=torch.bool))
    assert taken.loss.item() == pytest.approx(24 * published.item(), rel=1e-9)
    residual, penalty = held_out_sums(sae, x, ("l1_loss",))
    assert float(residual + penalty) == pytest.approx(40 * taken.loss.item(), rel=1e-9)


def test_penalty_warms_up():
    recipe = dataclasses.replace(KINDS["relu_l1"], penalty_warmup=0.5)
    sae = build(recipe, torch.zeros(24), dtype=torch.float32, device=torch.device("cpu"))
    x, dead = torch.from_numpy(planted(40)), torch.zeros(48, dtype=torch.bool)
    at = [
        float(architecture("relu_l1").step(sae, recipe, x, dead, share).losses["l1_loss"])
        for share in (0.0, 0.25, 0.5, 1.0)
    ]
    assert (
        at[0] == 0 and at[1] == pytest.approx(at[3] / 2, rel=1e-5) and at[2] == pytest.approx(at[3])
    )


def test_early_stopping_of_a_penalty_uses_the_whole_objective(rows):
    """By the reconstruction alone the first, dense SAE would be kept, because the penalty worsens it."""
    recipe = dataclasses.replace(
        BASE, architecture="relu_l1", l1_coefficient=4.0, penalty_warmup=1.0, lr=1e-2
    )
    fitted = fit_saes(
        EmbeddingRows.of(rows["train"]), rows["val"], [recipe], site="s", model_name="t"
    )[0]
    checks = [line for line in fitted.log if "held_fvu" in line]
    assert min(checks, key=lambda line: line["held_fvu"])["step"] < fitted.summary["best_step"]
    assert min(checks, key=lambda line: line["held_score"])["step"] == fitted.summary["best_step"]


def test_learning_rate_follows_warm_up_and_decay():
    recipe = dataclasses.replace(BASE, lr=1.0, warmup=0.1, decay="linear")
    assert [round(recipe.learning_rate(at, 100), 6) for at in (0, 4, 9, 10, 55, 99)] == [
        0.1,
        0.5,
        1.0,
        1.0,
        0.5,
        round(1 / 90, 6),
    ]
    flat = dataclasses.replace(recipe, decay="none", warmup=0.0)
    assert {flat.learning_rate(at, 100) for at in range(100)} == {1.0}
    cosine = dataclasses.replace(recipe, decay="cosine")
    assert cosine.learning_rate(55, 100) == pytest.approx(0.5)


# ---- resampling


def test_resampled_latents_start_at_the_worst_rows():
    recipe = dataclasses.replace(BASE, architecture="relu_l1")
    sae = build(recipe, torch.zeros(24), dtype=torch.float32, device=torch.device("cpu"))
    optimizer = torch.optim.Adam(sae.parameters(), lr=1e-3)
    x = torch.from_numpy(planted(60)) * 0.01
    x[17] = torch.arange(24.0)  # the only row that is badly explained
    dense_step(sae, x, torch.zeros(48, dtype=torch.bool)).loss.backward()
    optimizer.step()
    architecture("relu_l1").constrain_weights(sae)
    dead = torch.zeros(48, dtype=torch.bool)
    dead[[3, 40]] = True
    before = {name: value.clone() for name, value in sae.named_parameters()}
    moments = {name: optimizer.state[p]["exp_avg"].clone() for name, p in sae.named_parameters()}
    assert resample(sae, optimizer, dead, x, np.random.default_rng(0)) == 2
    direction = (x[17] - sae.b_dec) / (x[17] - sae.b_dec).norm()
    torch.testing.assert_close(sae.W_dec[3], direction)
    length = before["W_enc"].norm(dim=0)[~dead].mean()
    torch.testing.assert_close(sae.W_enc[:, 3], 0.2 * length * direction)
    # The other takes another row: none is given twice.
    torch.testing.assert_close(sae.W_enc[:, 40], 0.2 * length * sae.W_dec[40])
    assert (sae.W_dec[40] @ direction).abs() < 0.99
    assert sae.b_enc[3] == 0
    for name, parameter in sae.named_parameters():
        moment = optimizer.state[parameter]["exp_avg"]
        if name == "b_dec":
            assert torch.equal(moment, moments[name]) and torch.equal(parameter, before[name])
            continue
        axis = parameter.ndim - 1 if name == "W_enc" else 0
        assert not moment.index_select(axis, torch.tensor([3, 40])).any()
        alive = (~dead).nonzero()[:, 0]
        assert torch.equal(
            moment.index_select(axis, alive), moments[name].index_select(axis, alive)
        )
        assert torch.equal(
            parameter.index_select(axis, alive), before[name].index_select(axis, alive)
        )


def test_resample_works_without_dead_and_without_live_latents():
    recipe = dataclasses.replace(BASE, architecture="relu_l1")
    sae = build(recipe, torch.zeros(24), dtype=torch.float32, device=torch.device("cpu"))
    optimizer = torch.optim.Adam(sae.parameters())
    rng, x = np.random.default_rng(0), torch.from_numpy(planted(10))
    assert resample(sae, optimizer, torch.zeros(48, dtype=torch.bool), x, rng) == 0
    assert resample(sae, optimizer, torch.ones(48, dtype=torch.bool), x, rng) == 48
    assert torch.isfinite(sae.W_dec).all() and torch.isfinite(sae.W_enc).all()


def test_resampling_leaves_fewer_dead_latents(rows):
    """With a penalty that kills most latents, resampling keeps more of them alive."""
    recipe = dataclasses.replace(
        BASE,
        architecture="relu_l1",
        d_sae=96,
        l1_coefficient=3.0,
        lr=2e-2,
        penalty_warmup=0.0,
        patience=99,
    )
    ends = []
    for every in (0, 4000):
        one = dataclasses.replace(recipe, resample_every=every)
        log = fit_saes(
            EmbeddingRows.of(rows["train"]), rows["val"], [one], site="s", model_name="t"
        )[0].log
        ends.append(log[-1]["dead"])
    assert ends[0] > 0.2 and ends[1] < 0.8 * ends[0]


# ---- rows that cannot be learned from


def test_rows_that_are_not_finite_are_left_out_or_fatal(rows, capsys):
    from dermaudit.sae.training.loop import FitSession

    train = rows["train"].copy()
    train[[5, 1999]] = np.nan
    short = dataclasses.replace(BASE, samples=2000)
    fit = fit_saes(EmbeddingRows.of(train), rows["val"], [short], site="s", model_name="t")[0]
    assert "2 of 2000 rows at s are not finite (row 5, 1999): left out" in capsys.readouterr().err
    assert fit.summary["n_train"] == 1998 and fit.summary["n_not_finite"] == 2
    clean = fit_saes(
        EmbeddingRows.of(np.delete(train, [5, 1999], 0)),
        rows["val"],
        [short],
        site="s",
        model_name="t",
    )[0]
    assert torch.equal(fit.sae.W_enc, clean.sae.W_enc)
    with pytest.raises(UserInputError, match=r"2 of 2000 rows at s are not finite \(row 5, 1999\)"):
        fit_saes(
            EmbeddingRows.of(train),
            rows["val"],
            [short],
            site="s",
            model_name="t",
            session=FitSession(drop_bad=False),
        )


def test_equal_rows_are_refused(rows):
    with pytest.raises(UserInputError, match="all 100 rows are equal"):
        fit_sae(np.ones((100, 24), np.float32), rows["val"], BASE, site="s", model_name="t")


def test_diverged_fit_is_reported(rows):
    wild = dataclasses.replace(
        BASE, architecture="relu_l1", lr=1e30, clip=0.0, samples=2000, warmup=0.0, decay="none"
    )
    with pytest.raises(UserInputError, match="diverged.*never a number"):
        fit_sae(rows["train"], rows["val"], wild, site="s", model_name="t")
