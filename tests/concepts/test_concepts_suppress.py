"""Predictions under suppression with a real (tiny) tower: identity, Δlogit, modes, nothing left behind."""

from __future__ import annotations

import csv
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from concept_world import POOLED, tiny_tower, write_run

from dermaudit.concepts.heads import fit_heads
from dermaudit.concepts.inference import opened
from dermaudit.concepts.inference.options import SuppressOptions
from dermaudit.concepts.inference.predictions import suppress_images
from dermaudit.concepts.inference.suppressed_model import build
from dermaudit.concepts.inputs import known_concept
from dermaudit.concepts.recipes.distribution import distribution_of
from dermaudit.concepts.recipes.recipe import SuppressionRecipe, sae_facts
from dermaudit.concepts.recipes.weights import packed
from dermaudit.concepts.suppression.combined import make_suppressor
from dermaudit.concepts.suppression.head import pick_head, pick_target
from dermaudit.concepts.vocabulary.vocabulary import Vocabulary
from dermaudit.errors import EvidenceError, ForeignArtifactError, StaleArtifactError, UserInputError
from dermaudit.heads import LinearHead
from dermaudit.sae import LatentSuppressor, ThresholdSAE, load_sae
from dermaudit.towers import load_model

D, H, N = 24, 20, 160
S = [3, 7]


@pytest.fixture(scope="module")
def tower(tmp_path_factory):
    folder = tiny_tower(tmp_path_factory.mktemp("towers") / "tiny", D)
    return load_model(str(folder))


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (N, 4, 4, 3), dtype=np.uint8)
    return [np.kron(image, np.ones((8, 8, 1), np.uint8)) for image in coarse]


@pytest.fixture(scope="module")
def embedded(tower, images):
    with torch.no_grad():
        return tower.encode_image(tower.preprocess(images), normalize=True).numpy()


@pytest.fixture(scope="module")
def run(tower, embedded, tmp_path_factory):
    """A run of these images with a three-class head and a recipe for latents S."""
    rng = np.random.default_rng(1)
    centre = embedded.mean(0)
    W_enc = rng.normal(size=(D, H))
    pre = (embedded - centre) @ W_enc
    sae = ThresholdSAE(
        torch.from_numpy(W_enc).float(),
        torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(H, D))).float(), dim=1),
        torch.zeros(H),
        torch.from_numpy(centre).float(),
        torch.full((H,), float(np.quantile(pre, 0.7))),
        {"hook_name": POOLED},
    )
    w = SimpleNamespace(
        n=N,
        x=embedded,
        y=rng.integers(0, 2, N),
        a=(pre[:, S[0]] > 0.05).astype(float),
        groups=np.arange(N).astype(str),
        splits=np.array(["train", "val", "test", "train"] * (N // 4)),
    )
    run = write_run(tmp_path_factory.mktemp("runs") / "r", w, sae)
    run.meta["model"].update(name=tower.name, fingerprint=tower.fingerprint)
    run.save()
    scale = embedded.std(0) + 1e-6
    LinearHead(
        rng.normal(size=(3, D)).astype(np.float32),
        rng.normal(size=3).astype(np.float32),
        centre,
        scale,
        ["bkl", "mel", "nv"],
        1.0,
        POOLED,
        80,
    ).save(run.files.head())
    run.record("heads", {}, [run.files.head()], upstream=["images", "embed"])
    SuppressionRecipe(
        {
            "concept": "ruler",
            "target": "mel",
            "model": {"name": tower.name, "fingerprint": tower.fingerprint},
            "site": POOLED,
            "source": "sae",
            "sae": sae_facts(run, POOLED),
            "latents": [{"latent": j, "why": {}} for j in S],
            "weights": packed(sae, S),
            "operation": {"mode": "subtract", "renormalise": True, "error_term": "kept"},
            "distribution": distribution_of(embedded, np.arange(len(embedded))),
            "intercept": None,
            "effects": {},
            "limits": [],
            "accepted_limits": None,
            "parent": None,
            "vocabulary_sha256": "",
            "data": {},
            "protocol": {},
        }
    ).save(run.file("recipes", "ruler.recipe.json"))
    upstream = ["images", "embed", f"fit:{POOLED}"]
    run.record("recipe:ruler", {}, [run.file("recipes", "ruler.recipe.json")], upstream=upstream)
    return run


def test_predict_equal_where_nothing_fires_and_else_not(run, tower, images, embedded):
    with run.suppress("ruler", tower) as model:
        p = model.predict(images)
    silent = ~p.fired
    assert 10 < silent.sum() < N - 10
    np.testing.assert_array_equal(p.p_before[silent], p.p_after[silent])
    assert (p.p_before[~silent] != p.p_after[~silent]).any(1).all()
    np.testing.assert_array_equal(p.delta_logit[silent], 0)
    np.testing.assert_array_equal(p.z[silent], 0)
    assert not p.flipped[silent].any()
    head = LinearHead.load(run.file("heads", "label.safetensors"))
    np.testing.assert_allclose(p.p_before, head.probs(embedded), atol=1e-4)
    assert p.classes == head.classes


def test_predict_takes_images_in_any_form(run, tower, images, tmp_path):
    from PIL import Image

    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for path, image in zip(paths, images, strict=False):
        Image.fromarray(image).save(path)
    prepared = tower.preprocess(images[:5])
    with run.suppress("ruler", tower) as model:
        expected = model.predict(images[:5]).p_after
        mixed = [Image.open(paths[0]), str(paths[1]), *paths[2:]]
        for given in (paths, mixed, np.stack(images[:5]), prepared, list(prepared)):
            np.testing.assert_array_equal(model.predict(given).p_after, expected)
        alone = model.predict(images[:1]).p_after
        for given in (images[0], paths[0], mixed[0], prepared[0]):
            np.testing.assert_array_equal(model.predict(given).p_after, alone)
        assert model.predict([]).p_after.shape == (0, 3)
        with pytest.raises(UserInputError, match="not NoneType"):
            model.predict([None])


def test_attribution_maps_explain_the_logit_before_and_after_suppression(run, tower, images):
    with run.suppress("ruler", tower) as model:
        i = int(model.predict(images).fired.argmax())
        before = model.attribution_map(images[i], method="occlusion", window=16)
        after = model.attribution_map(images[i], method="occlusion", window=16, suppressed=True)
        change = model.predict(images[i])
        logits = model.head.logits(tower.encode_image(images[i]).detach().numpy()[None])
    column = change.classes.index("mel")
    assert before.score == pytest.approx(logits[0, column], abs=1e-3)
    assert after.score != before.score and before.values.shape == tower.preprocess.size


def test_delta_logit_sums_to_the_change_without_renormalising(run, tower, embedded):
    model = build(run, [SuppressionRecipe.load(run.file("recipes", "ruler.recipe.json"))], tower)
    model.suppressor.renormalise = False
    p = model.predict_rows(embedded)
    after = model.suppressor.apply_to(torch.from_numpy(embedded)).x.numpy()
    column = p.classes.index("mel")
    change = (model.head.logits(after) - model.head.logits(embedded))[:, column]
    np.testing.assert_allclose(p.delta_logit.sum(1), change, atol=1e-4)
    # Each part is −z_j (w_mel · d_j).
    sae = ThresholdSAE.load(run.file("sae", POOLED))
    direction = model.head.direction()[column]
    by_hand = -p.z * (sae.W_dec[S].numpy() @ direction)
    np.testing.assert_allclose(p.delta_logit, by_hand, atol=1e-4)


def test_delta_logit_one_latent_is_the_whole_change(run, tower, embedded):
    recipe = SuppressionRecipe.load(run.file("recipes", "ruler.recipe.json"))
    one = {
        "latents": recipe.body["latents"][:1],
        "weights": packed(load_sae(run.files.sae(POOLED)), S[:1]),
    }
    model = build(run, [SuppressionRecipe({**recipe.body, **one})], tower)
    p = model.predict_rows(embedded)
    after = model.suppressor.apply_to(torch.from_numpy(embedded)).x.numpy()
    change = (model.head.logits(after) - model.head.logits(embedded))[:, p.classes.index("mel")]
    np.testing.assert_allclose(p.delta_logit[:, 0], change, atol=1e-5)


def test_context_manager_leaves_the_model_untouched(run, tower, images):
    x = tower.preprocess(images[:8])
    weights = {name: value.clone() for name, value in tower.model.state_dict().items()}
    with torch.no_grad():
        before = tower.encode_image(x, normalize=True)
        with run.suppress("ruler", tower) as model:
            edited = model.encode_image(x)
            model.predict(images[:8])
        after = tower.encode_image(x, normalize=True)
    assert torch.equal(before, after) and not torch.equal(before, edited)
    assert tower.model.state_dict().keys() == weights.keys()
    assert all(torch.equal(tower.model.state_dict()[name], weights[name]) for name in weights)


def test_another_model_or_no_recipe_refused(run, tower):
    stranger = SimpleNamespace(fingerprint="0" * 64)
    with (
        pytest.raises(ForeignArtifactError, match="was made with another model"),
        run.suppress("ruler", stranger),
    ):
        pass
    with (
        pytest.raises(UserInputError, match="has no recipe for 'ink'") as refused,
        run.suppress("ink", tower),
    ):
        pass
    assert "it has: ruler" in refused.value.hint


def test_head_and_target_named_or_refused(run, tower):
    recipe = SuppressionRecipe.load(run.file("recipes", "ruler.recipe.json"))
    with pytest.raises(UserInputError, match="has no head 'skin'") as refused:
        build(run, [recipe], tower, head="skin")
    assert "label" in refused.value.hint and "zeroshot" in refused.value.hint
    with pytest.raises(UserInputError, match="has no class 'scc'"):
        build(run, [recipe], tower, target="scc")
    assert pick_target(["a", "mel"], None) == "mel" and pick_target(["a", "b"], None) == "b"


def test_zero_shot_head(run, tower, embedded):
    recipe = SuppressionRecipe.load(run.file("recipes", "ruler.recipe.json"))
    p = build(run, [recipe], tower, head="zeroshot").predict_rows(embedded)
    np.testing.assert_allclose(p.p_before.sum(1), 1, atol=1e-5)
    np.testing.assert_array_equal(p.p_before[~p.fired], p.p_after[~p.fired])


# ---- the table of `dermaudit suppress`


def table(run, tower, tmp_path, mode=None, dry_run=False, level=None):
    out = tmp_path / "predictions.csv"
    options = SuppressOptions(
        run=run.path,
        concept=("ruler",),
        out=out,
        mode=mode,
        level=level,
        force=True,
        dry_run=dry_run,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opened, "tower_of", lambda *_: tower)
        summary = suppress_images(opened.open_model(options), options)
    if not out.exists():
        return summary, None
    with out.open(newline="") as handle:
        return summary, list(csv.DictReader(handle))


def test_csv_documented_columns_and_the_summary_agree(run, tower, tmp_path):
    summary, rows = table(run, tower, tmp_path)
    classes = ["bkl", "mel", "nv"]
    assert list(rows[0]) == [
        "image",
        *(f"p:{c}" for c in classes),
        *(f"p_after:{c}" for c in classes),
        "p_matched:mel",
        "top1_before",
        "top1_after",
        "top1_matched",
        "flipped",
        "cause",
        "fired",
        *(f"delta_logit:mel:{j}" for j in S),
        *(f"z:{j}" for j in S),
        "relative_change",
        "unlike",
        "sha256",
    ]
    assert len(rows) == N == summary["n_images"]
    assert sum(int(r["fired"]) for r in rows) == summary["n_fired"]
    assert sum(int(r["flipped"]) for r in rows) == summary["n_flipped"]
    causes = [r["cause"] for r in rows]
    assert {k: causes.count(k) for k in summary["flips"]} == summary["flips"]
    assert summary["latents"] == [str(j) for j in S] and summary["intercept"] != 0
    for r in rows:
        assert (r["flipped"] == "1") == (r["top1_before"] != r["top1_after"])
        moved = (r["top1_before"] == "mel") != (r["top1_matched"] == "mel")
        assert (r["cause"] != "") == moved
        if r["cause"] == "edit":
            assert (r["top1_before"] == "mel") != (r["top1_after"] == "mel")
        if r["cause"] == "threshold":
            assert r["fired"] == "0"
        if r["fired"] == "0":
            assert all(r[f"p:{c}"] == r[f"p_after:{c}"] for c in classes)


def test_dry_run_writes_nothing_and_names_the_same(run, tower, tmp_path):
    dry, rows = table(run, tower, tmp_path, dry_run=True)
    assert rows is None and "out" not in dry
    wet, _ = table(run, tower, tmp_path)
    assert dry["n_flipped"] == wet["n_flipped"] and dry["mean_change"] == wet["mean_change"]


@pytest.mark.parametrize("mode", ["mean", "clamp"])
def test_modes_hold_a_latent_to_what_it_is_without_the_artifact(run, tower, embedded, mode):
    recipe = SuppressionRecipe.load(run.file("recipes", "ruler.recipe.json"))
    model = build(run, [recipe], tower, mode=mode)
    sae = ThresholdSAE.load(run.file("sae", POOLED))
    import pyarrow.parquet as pq

    t = pq.read_table(run.file("images.parquet"))
    rows = (np.array(t["split"]) != "test") & (np.array(t["artifact:ruler"]) == 0)
    z = sae.encode(torch.from_numpy(embedded))[:, S].numpy()[rows]
    expected = z.mean(0) if mode == "mean" else np.quantile(z, 0.95, axis=0)
    np.testing.assert_allclose(model.suppressor.level.numpy(), expected, rtol=1e-5)
    assert (expected > 0).any()
    plain = build(run, [recipe], tower).predict_rows(embedded)
    assert not np.array_equal(model.predict_rows(embedded).p_after, plain.p_after)
    by_module = LatentSuppressor(sae, S, mode=mode, level=torch.from_numpy(expected).float())
    np.testing.assert_allclose(
        model.suppressor.apply_to(torch.from_numpy(embedded)).x,
        by_module.apply_to(torch.from_numpy(embedded)).x,
        atol=1e-6,
    )


def free_of_ruler(run):
    """The train and val rows that are labelled as without a ruler."""
    import pyarrow.parquet as pq

    t = pq.read_table(run.file("images.parquet"))
    return (np.array(t["split"]) != "test") & (np.array(t["artifact:ruler"]) == 0)


@pytest.mark.parametrize("factor", [0.5, 0.0, 1.0])
def test_scale_by_hand(run, tower, embedded, factor):
    recipe = SuppressionRecipe.load(run.file("recipes", "ruler.recipe.json"))
    p = build(run, [recipe], tower, mode="scale", level=factor).predict_rows(embedded)
    sae = load_sae(run.file("sae", POOLED))
    z = sae.encode(torch.from_numpy(embedded))[:, S].numpy()
    by_hand = embedded - (1 - factor) * z @ sae.W_dec[S].numpy()
    by_hand /= np.linalg.norm(by_hand, axis=1, keepdims=True)
    after = np.where((z > 0).any(1)[:, None], by_hand, embedded)
    head = LinearHead.load(run.file("heads", "label.safetensors"))
    np.testing.assert_allclose(p.p_after, head.probs(after), atol=1e-4)
    plain = build(run, [recipe], tower).predict_rows(embedded)
    if factor == 0:
        np.testing.assert_array_equal(p.p_after, plain.p_after)
    if factor == 1:
        np.testing.assert_array_equal(p.p_after, p.p_before)
        assert not p.fired.any()


def test_reactive_by_hand(run, tower, embedded, tmp_path):
    """Taken off only where the codes of S together are more than in 95 % of the ruler-free train and val rows."""
    recipe = SuppressionRecipe.load(run.file("recipes", "ruler.recipe.json"))
    z = load_sae(run.file("sae", POOLED)).encode(torch.from_numpy(embedded))[:, S].numpy()
    score, free = z.sum(1), free_of_ruler(run)
    gate = np.quantile(score[free].astype(np.float64), 0.95)
    over = score > gate
    assert free.sum() >= 30 and gate > 0 and 5 < over.sum() < (z > 0).any(1).sum()
    p = build(run, [recipe], tower, mode="reactive").predict_rows(embedded)
    plain = build(run, [recipe], tower).predict_rows(embedded)
    np.testing.assert_array_equal(p.fired, over)
    np.testing.assert_array_equal(p.p_after[~over], p.p_before[~over])
    np.testing.assert_array_equal(p.p_after[over], plain.p_after[over])
    # Of each latent alone: the gate is that of both.
    np.testing.assert_allclose(
        p.delta_logit, np.where(over[:, None], plain.delta_logit, 0), atol=1e-6
    )
    summary, rows = table(run, tower, tmp_path, mode="reactive")
    assert summary["gate_level"] == pytest.approx(gate, abs=1e-6)
    assert [row["fired"] for row in rows] == [str(int(f)) for f in over]


def copied(run, tmp_path):
    import shutil

    from dermaudit.run.directory import open_run

    shutil.copytree(run.path, tmp_path / "copy")
    return open_run(tmp_path / "copy")


def record_again(run) -> None:
    """Enter every stage of a run again, upstream first, as if it had been made from the present files."""
    rank = {"images": 0, "embed": 1}
    for name, record in sorted(run.meta["stages"].items(), key=lambda item: rank.get(item[0], 2)):
        files = [run.file(output) for output in record["outputs"]]
        run.record(name, {}, files, upstream=record["upstream"], summary=record["summary"])


def test_reactive_too_few_artifact_free_images_are_no_evidence(run, tower, embedded, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    copy = copied(run, tmp_path)
    path = copy.file("images.parquet")
    t, known = pq.read_table(path), np.flatnonzero(free_of_ruler(run))[:29]
    for kept, n in ((known, 29), ([], 0)):  # without labels, all images are taken
        values = [1.0 if i < N // 2 else None for i in range(N)]
        for i in kept:
            values[i] = 0.0
        at = t.column_names.index("artifact:ruler")
        pq.write_table(t.set_column(at, "artifact:ruler", pa.array(values, pa.float64())), path)
        record_again(copy)
        recipe = SuppressionRecipe.load(copy.file("recipes", "ruler.recipe.json"))
        if n:
            with pytest.raises(EvidenceError, match="29 artifact-free rows are too few") as few:
                build(copy, [recipe], tower, mode="reactive")
            assert few.value.exit_code == 3 and few.value.numbers == {"n": n, "needed": 30}
    # `mean` and `clamp` then take all train and val images.
    level = build(copy, [recipe], tower, mode="mean").suppressor.level
    z = load_sae(run.file("sae", POOLED)).encode(torch.from_numpy(embedded))[:, S]
    np.testing.assert_allclose(level, z[np.array(t["split"]) != "test"].mean(0), rtol=1e-5)


def test_several_recipes_each_with_its_own_level_or_refused(run, tower, embedded):
    sae = load_sae(run.file("sae", POOLED))

    def recipe(concept, latent, **operation):
        body = SuppressionRecipe.load(run.file("recipes", "ruler.recipe.json")).body
        return SuppressionRecipe(
            {
                **body,
                "concept": concept,
                "latents": [{"latent": latent, "why": {}}],
                "weights": packed(sae, [latent]),
                "operation": {"renormalise": True, **operation},
            }
        )

    two = [
        recipe("ruler", 7, mode="scale", level=[0.5]),
        recipe("ink", 3, mode="scale", level=[0.25]),
    ]
    both = make_suppressor(two, run)
    assert both.names == ["7", "3"] and both.module.level.tolist() == [0.5, 0.25]
    assert make_suppressor(two, run, "scale", 0.75).module.level.tolist() == [0.75, 0.75]
    assert make_suppressor(two, run, "subtract").module.mode == "subtract"
    # A latent of two recipes is there once.
    again = [two[0], recipe("ink", 7, mode="scale", level=[0.5])]
    assert make_suppressor(again, run).names == ["7"]
    x = torch.from_numpy(embedded)
    by_sae = LatentSuppressor(sae, [7, 3], mode="scale", level=torch.tensor([0.5, 0.25]))
    torch.testing.assert_close(both.module.apply_to(x).x, by_sae.apply_to(x).x)
    mixed = [two[0], recipe("ink", 3, mode="reactive", gate_level=0.5)]
    with pytest.raises(
        UserInputError, match=r"ruler, ink suppress in different modes \(reactive, scale"
    ):
        make_suppressor(mixed, run)
    with pytest.raises(UserInputError, match="reactive takes one concept, not ruler, ink"):
        make_suppressor(mixed, run, "reactive")
    # A recipe's own gate is taken, not measured again.
    assert float(make_suppressor(mixed[1:], run).module.gate_level) == 0.5


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--mode", "scale"], "--mode scale needs --level"),
        (["--level", "0.5"], "--level 0.5 needs --mode scale"),
        (["--mode", "clamp", "--level", "0.5"], "--level 0.5 has no effect in mode clamp"),
        (["--mode", "reactve"], "did you mean 'reactive'?"),
        (["--mode", "scale", "--level", "inf"], "--level inf cannot scale codes"),
        (["--mode", "scale", "--level", "-1"], "--level"),
    ],
)
def test_mode_and_level_in_one_sentence(main, run, flags, said):
    done = main("suppress", "--concept", "ruler", "--run", run.path, *flags, "--dry-run", "--json")
    assert done.rc == 2 and said in done.json()["error"]["message"]


def test_unknown_mode_refused(run, tower, tmp_path):
    with pytest.raises(UserInputError, match="unknown suppression mode 'zero'"):
        table(run, tower, tmp_path, mode="zero")


def test_known_concept(run):
    vocabulary = Vocabulary.load()
    assert known_concept(run, vocabulary, "ruler") == "ruler"
    assert known_concept(run, vocabulary, "calibration scale") == "ruler"
    with pytest.raises(UserInputError, match="unknown concept 'rular': did you mean 'ruler'?"):
        known_concept(run, vocabulary, "rular")


# ---- heads and labels of a run


def test_fit_heads_labels_in_test_only_are_a_reason_not_a_crash(tmp_path):
    w = SimpleNamespace(
        n=60,
        x=np.random.default_rng(0).normal(size=(60, D)).astype(np.float32),
        y=np.zeros(60),
        a=np.zeros(60),
        groups=np.arange(60).astype(str),
        splits=np.array(["train", "val", "test"] * 20),
    )
    sae = ThresholdSAE(
        torch.randn(D, H), torch.randn(H, D), torch.zeros(H), torch.zeros(D), torch.zeros(H)
    )
    label = [None if s == "train" else "nv" for s in w.splits]
    run = write_run(tmp_path / "r", w, sae, label=label)
    assert "too little to fit a head: 0" in fit_heads(run)["reason"]


def test_suppress_a_concept_refused_before_is_refused_again(tower, embedded, tmp_path):
    w = SimpleNamespace(
        n=N,
        x=embedded,
        y=np.arange(N) % 2,
        a=np.arange(N) // 2 % 2,
        groups=np.arange(N).astype(str),
        splits=np.array(["train", "val", "test", "train"] * (N // 4)),
    )
    sae = ThresholdSAE(
        torch.randn(D, H), torch.randn(H, D), torch.zeros(H), torch.zeros(D), torch.zeros(H)
    )
    run = write_run(tmp_path / "r", w, sae)
    run.meta["model"].update(name=tower.name, fingerprint=tower.fingerprint)
    for _ in range(2):
        with pytest.raises(
            EvidenceError, match="ruler: images with and without the concept are not"
        ) as refused:
            table(run, tower, tmp_path)
        assert refused.value.exit_code == 3 and refused.value.numbers


def test_stale_or_altered_head_refused(run, tower, embedded, tmp_path):
    import shutil

    from dermaudit.run.directory import open_run

    shutil.copytree(run.path, tmp_path / "r")
    copy = open_run(tmp_path / "r")
    path = copy.file("heads", "label.safetensors")
    copy.record("heads", {}, [path], upstream=["images", "embed"])
    assert pick_head(copy, tower, None)[0].classes == ["bkl", "mel", "nv"]
    copy.record("embed", {"again": 1}, [copy.file("images.parquet")])
    with pytest.raises(StaleArtifactError, match="heads stage .* is stale: embed was made again"):
        pick_head(copy, tower, "label")
    copy.record("heads", {}, [path], upstream=["images", "embed"])
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(StaleArtifactError, match=r"label\.safetensors is missing or was altered"):
        pick_head(copy, tower, None)
    assert pick_head(copy, tower, "zeroshot")[0].classes
