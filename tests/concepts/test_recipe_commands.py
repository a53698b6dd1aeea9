"""`dermaudit recipe verify | sign | diff | merge | export`, on the recipes of a bundled model."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from concept_world import world, write_run

from dermaudit import Suppressor
from dermaudit.concepts.heads import fit_heads
from dermaudit.concepts.inference.reference import Reference
from dermaudit.concepts.recipes import suppress_numpy
from dermaudit.concepts.recipes.recipe import SuppressionRecipe, load_recipe
from dermaudit.concepts.suppression.stage import recipe_run
from dermaudit.concepts.vocabulary.vocabulary import Vocabulary
from dermaudit.errors import DermauditError
from dermaudit.run.directory import open_run
from dermaudit.sae.inference.modes import MODES
from dermaudit.sae.run_data import POOLED, RunData


@pytest.fixture
def ruler(tmp_path):
    return copy_of("ruler", tmp_path)


@pytest.fixture
def ink(tmp_path):
    return copy_of("ink", tmp_path)


def copy_of(concept, folder):
    name = f"recipes/{concept}.recipe.json"
    return Path(shutil.copy(Reference.load("dermoscopy-small").file(name), folder))


def changed(path, **body):
    """The recipe at `path` with other values in its body, as dermaudit would have written it."""
    recipe = SuppressionRecipe.load(path)
    return SuppressionRecipe({**recipe.body, **body})


# ---- verify, sign


def test_a_signed_copy_is_verified_and_the_recipe_stays_as_it_was(main, ruler, tmp_path):
    before, key = ruler.read_bytes(), tmp_path / "key.pem"
    done = main(
        "recipe", "sign", ruler, "--key", key, "--new-key", "--author", "A. Müller", "--json"
    )
    assert done.rc == 0, done.stderr
    copy = tmp_path / "ruler.signed.recipe.json"
    assert done.json()["path"] == str(copy) and ruler.read_bytes() == before
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert done.json()["sha256"] == SuppressionRecipe.load(ruler).sha256
    done = main("recipe", "verify", copy, "--key", tmp_path / "key.pub.pem", "--json")
    assert done.rc == 0 and done.json()["envelope"]["author"] == "A. Müller", done.stderr
    done = main("recipe", "verify", copy)
    assert done.rc == 0 and "compare the key" in done.stderr
    done = main("recipe", "verify", ruler)
    assert done.rc == 0 and "not signed" in done.stderr


def test_a_signature_by_another_or_changed_in_anything_is_refused(main, ruler, tmp_path):
    for name in ("mine", "other"):
        main("recipe", "sign", ruler, "--key", tmp_path / f"{name}.pem", "--new-key", "--author", "A",
             "--out", tmp_path / f"{name}.recipe.json")  # fmt: skip
    signed = tmp_path / "mine.recipe.json"
    done = main("recipe", "verify", signed, "--key", tmp_path / "other.pub.pem")
    assert done.rc == 2 and "with another key" in done.stderr
    done = main("recipe", "verify", ruler, "--key", tmp_path / "mine.pub.pem")
    assert done.rc == 2 and "is not signed" in done.stderr
    recipe = SuppressionRecipe.load(signed)
    for key, value in (("author", "B"), ("date", "2020-01-01T00:00:00Z"), ("signature", "AAAA")):
        SuppressionRecipe(recipe.body, {**recipe.envelope, key: value}).save(signed)
        done = main("recipe", "verify", signed)
        assert done.rc == 2 and "its signature is not that of this recipe" in done.stderr
    # The signature of one recipe does not make another one trusted.
    SuppressionRecipe({**recipe.body, "limits": ["none"]}, recipe.envelope).save(signed)
    assert main("recipe", "verify", signed).rc == 2


def test_keys_are_never_overwritten_and_no_other_file_is_taken_for_one(main, ruler, tmp_path):
    key = tmp_path / "key.pem"
    key.write_text("no key")
    flags = ("recipe", "sign", ruler, "--author", "A", "--key")
    done = main(*flags, key)
    assert done.rc == 2 and "is not a private Ed25519 key" in done.stderr
    done = main(*flags, key, "--new-key")
    assert done.rc == 2 and "a key is never overwritten" in done.stderr
    done = main(*flags, tmp_path / "none.pem")
    assert done.rc == 2 and "none.pem cannot be read" in done.stderr
    assert key.read_text() == "no key" and sorted(p.name for p in tmp_path.iterdir()) == [
        "key.pem", "ruler.recipe.json",
    ]  # fmt: skip


def test_an_unknown_or_missing_key_is_named(main, ruler):
    changed(ruler, note="mine").save(ruler)
    done = main("recipe", "verify", ruler)
    assert done.rc == 2 and "the body of the recipe has the unknown key 'note'" in done.stderr
    body = {k: v for k, v in SuppressionRecipe(json.loads(ruler.read_text())["body"]).body.items()
            if k not in ("note", "limits")}  # fmt: skip
    SuppressionRecipe(body).save(ruler)
    done = main("recipe", "verify", ruler)
    assert done.rc == 2 and "lacks the key 'limits'" in done.stderr


def test_a_recipe_of_another_run_is_refused(main, ruler, tmp_path):
    run = write_run(tmp_path / "run", world(100))
    done = main("recipe", "verify", ruler, "--run", run.path)
    assert done.rc == 2 and "was made for the model dermoscopy-small, not for toy" in done.stderr


# ---- every byte


@pytest.fixture(scope="module")
def tampered_run(tmp_path_factory):
    run = write_run(tmp_path_factory.mktemp("runs") / "run", world(600))
    fit_heads(run)
    recipe_run(run, "ruler", None, Vocabulary.load())
    return run


def test_500_random_byte_flips_are_all_refused(tampered_run):
    """One byte of recipe, SAE, head or embeddings has another value: nothing is loaded from it."""
    run = tampered_run
    uses = {
        run.files.recipe("ruler"): lambda: load_recipe(open_run(run.path), "ruler"),
        run.files.sae_weights(POOLED): lambda: RunData.open(run.path).sae(POOLED),
        run.files.head(): lambda: RunData.open(run.path).head(),
        next(run.files.embeddings(POOLED).glob("*.safetensors")): lambda: RunData.open(run.path).pooled,
    }  # fmt: skip
    generator = np.random.default_rng(0)
    refused = 0
    for path, use in uses.items():
        use()
        whole = path.read_bytes()
        for _ in range(125):
            place = int(generator.integers(len(whole)))
            other = (whole[place] + int(generator.integers(1, 256))) % 256
            path.write_bytes(whole[:place] + bytes([other]) + whole[place + 1 :])
            with pytest.raises(DermauditError):
                use()
            refused += 1
        path.write_bytes(whole)
        use()
    assert refused == 500


def test_every_byte_of_a_recipe_file_alone_counts(ruler):
    """The file outside a run, where no other hash protects it; also spaces and the envelope."""
    whole = ruler.read_bytes()
    generator = np.random.default_rng(1)
    spaces = [i for i, byte in enumerate(whole) if byte in b" \n"]
    places = [*generator.integers(len(whole), size=150), *generator.choice(spaces, 50)]
    for place in places:
        other = generator.choice([b for b in b" \t\n0aA\xff" if b != whole[place]])
        ruler.write_bytes(whole[:place] + bytes([other]) + whole[place + 1 :])
        with pytest.raises(DermauditError):
            SuppressionRecipe.load(ruler)


# ---- diff, merge


def test_diff_names_what_differs(main, ruler, tmp_path):
    done = main("recipe", "diff", ruler, ruler, "--json")
    assert done.rc == 0 and done.json()["equal"] and done.json()["differences"] == []
    recipe = SuppressionRecipe.load(ruler)
    weights = {**recipe.body["weights"], "threshold": "AAAAPw=="}  # 0.5
    other = tmp_path / "other.recipe.json"
    changed(ruler, weights=weights, operation={**recipe.body["operation"], "mode": "mean"}).save(
        other
    )
    done = main("recipe", "diff", ruler, other, "--json")
    found = {d["key"]: d for d in done.json()["differences"]}
    assert not done.json()["equal"] and set(found) == {"operation.mode", "weights"}
    assert (found["operation.mode"]["first"], found["operation.mode"]["second"]) == (
        "subtract",
        "mean",
    )
    moved = 0.5 - float(recipe.sae().threshold[0])
    said = f"cosine of the encoders 1.0000, of the decoders 1.0000, threshold {moved:+.4f}"
    assert said in found["weights"]["second"]


def rows_along(suppressor, n):
    """Unit rows (n, d) that have ever more of the suppressed latents: they fire in some of them."""
    module = suppressor.module
    x = np.random.default_rng(2).normal(size=(n, module.d_in)).astype(np.float32)
    x += np.linspace(-8, 8, n, dtype=np.float32)[:, None] * module.W_dec.numpy().sum(0)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_a_merged_recipe_does_what_the_two_do_together(main, ruler, ink, tmp_path):
    out = tmp_path / "both.recipe.json"
    done = main("recipe", "merge", ruler, ink, "--out", out, "--json")
    assert done.rc == 0, done.stderr
    both, pair = Suppressor.load(out), Suppressor.load(ruler, ink)
    assert both.latent_names == ["ruler", "ink"] and "not measured" in done.stderr
    x = rows_along(both, 200)
    assert (pair(x) != x).any() and (pair(x) == x).all(1).any()
    np.testing.assert_allclose(both(x), pair(x), atol=1e-6)
    body = both.recipes[0].body
    assert body["parent"] == [SuppressionRecipe.load(path).sha256 for path in (ruler, ink)]
    assert body["intercept"] is None and "was not measured" in body["effects"]["reason"]
    assert main("recipe", "verify", out).rc == 0 and main("recipe", "show", out).rc == 0
    again = main("recipe", "merge", ruler, ink, "--out", tmp_path / "again.json", "--json")
    assert again.json()["sha256"] == done.json()["sha256"]  # the same recipes, the same hash


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("target", "bcc", "are of different targets"),
        ("concept", "ruler", "two of the recipes suppress ruler"),
        ("model", {"name": "other", "fingerprint": "0", "preprocess": {}}, "are of different models"),
        ("operation", {"mode": "scale", "level": [0.5], "renormalise": True}, "in different modes"),
    ],
)  # fmt: skip
def test_recipes_that_do_not_go_together_are_not_merged(
    main, ruler, ink, tmp_path, key, value, message
):
    changed(ink, **{key: value}).save(ink)
    done = main("recipe", "merge", ruler, ink, "--out", tmp_path / "both.json")
    assert done.rc == 2 and message in done.stderr and not (tmp_path / "both.json").exists()


# ---- export


def edited_by(recipe, x):
    suppressor = Suppressor([recipe])
    return suppressor.module.apply_to(torch.from_numpy(x))


@pytest.fixture(scope="module")
def rows():
    return rows_along(Suppressor.bundled("ruler"), 300)


def in_mode(recipe, mode):
    operation = {"mode": mode, "renormalise": True, "error_term": "kept"}
    if mode in ("mean", "clamp", "scale"):
        operation["level"] = [0.03 if mode != "scale" else 0.4]
    if mode == "reactive":
        operation["gate_level"] = 0.1
    return SuppressionRecipe({**recipe.body, "operation": operation})


@pytest.mark.parametrize("mode", MODES)
def test_the_exported_files_run_without_dermaudit_and_agree(main, rows, tmp_path, mode):
    import onnxruntime

    recipe = in_mode(Reference.load("dermoscopy-small").recipe("ruler"), mode)
    recipe.save(tmp_path / "mine.json")
    out = tmp_path / "out"
    done = main("recipe", "export", tmp_path / "mine.json", "--out", out, "--json")
    assert done.rc == 0, done.stderr
    assert main("recipe", "export", tmp_path / "mine.json", "--out", out).rc == 2  # they exist
    wanted = edited_by(recipe, rows)
    fired = wanted.fired.numpy()
    assert 0 < fired.sum() < len(rows)

    np.save(tmp_path / "x.npy", rows)
    blocked = (
        "import sys; sys.modules.update(dict.fromkeys(('torch', 'dermaudit', 'scipy')));"
        "sys.argv = sys.argv[1:]; import runpy; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    files = ("suppress_numpy.py", "ruler.recipe.json", "../x.npy", "../y.npy")
    subprocess.run([sys.executable, "-c", blocked, *files], cwd=out, check=True)
    edited = np.load(tmp_path / "y.npy")
    np.testing.assert_allclose(edited, wanted.x, atol=1e-5)
    np.testing.assert_array_equal(edited[~fired], rows[~fired])

    session = onnxruntime.InferenceSession(out / "ruler.onnx")
    x_out, z, changes = session.run(None, {"x": rows})
    np.testing.assert_allclose(x_out, wanted.x, atol=1e-5)
    np.testing.assert_allclose(z, wanted.z, atol=1e-5)
    np.testing.assert_array_equal(changes, fired)
    np.testing.assert_array_equal(x_out[~fired], rows[~fired])


def test_the_numpy_reference_is_short_and_refuses_an_altered_recipe(ruler):
    assert len(Path(suppress_numpy.__file__).read_text().splitlines()) <= 60
    body = suppress_numpy.load(ruler)
    assert body["concept"] == "ruler"
    ruler.write_text(ruler.read_text().replace('"target": "mel"', '"target": "nv"'))
    with pytest.raises(SystemExit, match="was altered"):
        suppress_numpy.load(ruler)
