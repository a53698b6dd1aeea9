"""Checkpoints of other programs: the files are written here with their keys, the formulas in numpy."""

from __future__ import annotations

import gzip
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sae_checkpoints import (
    FLAT,
    Bomb,
    D,
    H,
    K,
    Weights,
    X,
    dncbm_state,
    header,
    linear,
    overcomplete_state,
    write_dictionary,
    write_saev,
    write_sparsify,
)  # fmt: skip

from dermaudit.errors import DermauditError, ForeignArtifactError, UserInputError
from dermaudit.sae.formats import FAMILIES, family_of, read_foreign
from dermaudit.sae.formats.assemble import fold_norm
from dermaudit.sae.inference.model import ThresholdSAE, TopKSAE


def largest(p: np.ndarray, k: int = K) -> np.ndarray:
    """relu of the k largest of each row, by sorting."""
    z = np.zeros_like(p)
    for row, values in enumerate(p):
        for j in np.argsort(-values)[:k]:
            z[row, j] = max(values[j], 0.0)
    return z


def over(p: np.ndarray, threshold) -> np.ndarray:
    return np.where((p > threshold) & (p > 0), p, 0.0)


def agrees(sae, z: np.ndarray, x_hat: np.ndarray, tmp_path: Path) -> None:
    """Ours, and stock sae-lens on what we write, give these codes and reconstructions to 1e-5."""
    from sae_lens import SAE

    sae.save(tmp_path / "exported")
    stock = SAE.load_from_disk(tmp_path / "exported")
    assert 0 < (z > 0).mean() < 1
    for encode, decode in ((sae.encode, sae.decode), (stock.encode, stock.decode)):
        codes = encode(X).detach()
        np.testing.assert_allclose(codes.numpy(), z, atol=1e-5, rtol=1e-5)
        np.testing.assert_allclose(decode(codes).detach().numpy(), x_hat, atol=1e-5, rtol=1e-5)


# ---- DermFM-Zero and DN-CBM


@pytest.mark.data
def test_published_dermfm_file_gives_its_activations(data_dir, tmp_path):
    from safetensors.torch import load_file

    folder = data_dir / "peer-data" / "dermfm-sae"
    if not folder.is_dir():
        pytest.skip("no peer-data/dermfm-sae in DERMAUDIT_DATA")
    sae, io = read_foreign(folder / "autoencoder.pth"), load_file(folder / "io.safetensors")
    z = sae.encode(io["input"])
    torch.testing.assert_close(z, io["learned_activations"], atol=1e-5, rtol=0)
    torch.testing.assert_close(sae.decode(z), io["reconstruction"], atol=1e-5, rtol=0)
    assert (z > 0).float().mean() > 0.05


@pytest.mark.parametrize("wrapped", [True, False])
def test_dncbm_codes_and_reconstruction(tmp_path, wrapped):
    w = Weights(unit=True)
    state = dncbm_state(w)
    if wrapped:
        state = {
            "model_state_dict": state,
            "train_shape": torch.Size([1000, D]),
            "model_config": {"n_input_features": D, "n_learned_features": H, "n_components": 1},
        }
    torch.save(state, tmp_path / "autoencoder.pth")
    z = over(w.pre(True), 0)
    sae = read_foreign(tmp_path)
    assert (
        sae.metadata["imported_from"] == "DermFM-Zero / DN-CBM" and sae.architecture == "standard"
    )
    agrees(sae, z, w.decode(z), tmp_path)


def test_dncbm_file_with_several_components_is_refused(tmp_path):
    torch.save(dncbm_state(Weights(), 3), tmp_path / "autoencoder.pth")
    with pytest.raises(ForeignArtifactError, match="holds 3 SAEs"):
        read_foreign(tmp_path)


# ---- dictionary_learning


def test_dictionary_learning_autoencoder_gets_unit_rows(tmp_path):
    w = Weights()
    sae = read_foreign(write_dictionary(tmp_path, None, linear(w, bias=w.bd)))
    norm = np.linalg.norm(w.Wd.double().numpy(), axis=1)
    z = over(w.pre(True), 0)
    agrees(sae, z * norm, w.decode(z), tmp_path)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(H))


def test_dictionary_learning_autoencoder_new_encodes_x(tmp_path):
    w = Weights()
    folder = write_dictionary(tmp_path, "AutoEncoderNew", linear(w, **{"decoder.bias": w.bd}))
    z = over(w.pre(False), 0)
    agrees(read_foreign(folder), z, w.decode(z), tmp_path)


def test_dictionary_learning_gated_becomes_a_threshold(tmp_path):
    w, g = Weights(), torch.Generator().manual_seed(1)
    r, gate, mag = (0.5 * torch.randn(H, generator=g) for _ in range(3))
    state = {
        "encoder.weight": w.We,
        "decoder.weight": w.Wd.T.contiguous(),
        "decoder_bias": w.bd,
        "r_mag": r,
        "gate_bias": gate,
        "mag_bias": mag,
    }
    sae = read_foreign(write_dictionary(tmp_path, None, state))
    u = w.pre(True) - w.be.double().numpy()
    opened = u + gate.double().numpy() > 0
    z = opened * np.maximum(np.exp(r.double().numpy()) * u + mag.double().numpy(), 0)
    assert (opened & (z == 0)).any() and ((~opened) & (u > 0)).any()  # either path closes some
    agrees(sae, z, w.decode(z), tmp_path)


def test_dictionary_learning_jumprelu(tmp_path):
    w = Weights()
    threshold = torch.linspace(-0.2, 2.0, H)
    state = {
        "W_enc": w.We.T.contiguous(),
        "W_dec": w.Wd,
        "b_enc": w.be,
        "b_dec": w.bd,
        "threshold": threshold,
    }
    z = over(w.pre(False), threshold.double().numpy())
    agrees(read_foreign(write_dictionary(tmp_path, None, state)), z, w.decode(z), tmp_path)


def test_dictionary_learning_config_distinguishes_topk_and_batchtopk(tmp_path):
    w = Weights()
    state = linear(w, b_dec=w.bd, k=torch.tensor(K, dtype=torch.int), threshold=torch.tensor(1.25))
    z = largest(w.pre(True))
    sae = read_foreign(write_dictionary(tmp_path / "t", "AutoEncoderTopK", state))
    assert isinstance(sae, TopKSAE) and sae.k == K
    agrees(sae, z, w.decode(z), tmp_path)
    z = over(w.pre(True), 1.25)
    sae = read_foreign(write_dictionary(tmp_path / "b", "BatchTopKSAE", state) / "ae.pt")
    agrees(sae, z, w.decode(z), tmp_path)
    with pytest.raises(ForeignArtifactError, match="no config.json") as refused:
        read_foreign(write_dictionary(tmp_path / "n", None, state))
    assert "config.json" in refused.value.hint


def test_dictionary_learning_matryoshka_without_a_threshold_is_relu(tmp_path):
    w = Weights()
    state = {
        "W_enc": w.We.T.contiguous(),
        "W_dec": w.Wd,
        "b_enc": w.be,
        "b_dec": w.bd,
        "k": torch.tensor(K),
        "threshold": torch.tensor(-1.0),
        "group_sizes": torch.tensor([5, 15]),
    }
    sae = read_foreign(write_dictionary(tmp_path, "MatryoshkaBatchTopKSAE", state))
    z = over(w.pre(True), 0)
    agrees(sae, z, w.decode(z), tmp_path)
    assert "never set" in sae.metadata["notes"][0]


def test_dictionary_learning_refuses_other_classes(tmp_path):
    w = Weights()
    folder = write_dictionary(tmp_path, "IdentityDict", linear(w, bias=w.bd))
    with pytest.raises(ForeignArtifactError, match="'IdentityDict' of dictionary_learning"):
        read_foreign(folder)


# ---- sparsify


@pytest.mark.parametrize("at", [".", "sae.safetensors"])
def test_sparsify_topk(tmp_path, at):
    w = Weights()
    sae = read_foreign(write_sparsify(tmp_path / "layers.3", w) / at)
    z = largest(w.pre(True))
    agrees(sae, z, w.decode(z), tmp_path)


def test_sparsify_half_precision_weights_are_read_as_float32(tmp_path):
    w = Weights()
    sae = read_foreign(write_sparsify(tmp_path, w, torch.bfloat16))
    assert sae.W_enc.dtype == torch.float32
    assert torch.equal(sae.W_enc, w.We.T.bfloat16().float())


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ({"activation": "groupmax"}, "the activation 'groupmax'"),
        ({"transcode": True}, "a transcoder"),
        ({"skip_connection": True}, "a skip connection"),
        ({"signed": True}, "may be negative"),
        ({"k": 21}, "k = 21; a TopK of 20 latents needs a whole number of 1 … 20"),
        ({"k": None}, "does not contain k"),
    ],
)
def test_sparsify_refuses_other_activations(tmp_path, cfg, message):
    with pytest.raises(ForeignArtifactError, match=message):
        read_foreign(write_sparsify(tmp_path, Weights(), **cfg))


# ---- saev


@pytest.mark.parametrize(
    ("said", "subtract", "code"),
    [
        (FLAT, True, lambda p: over(p, 0)),
        ({"schema": 1, "cls": "Relu", "cfg": FLAT}, False, lambda p: over(p, 0)),
        ({"schema": 1, "cls": "TopK", "cfg": {**FLAT, "top_k": K}}, False, largest),
        (header("Relu", 2), False, lambda p: over(p, 0)),
        (header("BatchTopK", 2, top_k=K), False, largest),  # that version selected row by row
        (header("TopK", 5, top_k=K), False, largest),
    ],
)
def test_saev_schemas(tmp_path, said, subtract, code):
    w = Weights()
    sae = read_foreign(write_saev(tmp_path / "sae.pt", w, said))
    z = code(w.pre(subtract))
    agrees(sae, z, w.decode(z), tmp_path)
    assert sae.metadata["saev_schema"] == said.get("schema")


@pytest.mark.parametrize(("saved", "used"), [(1.5, 1.5), (0.0, 0.0)])
def test_saev_batchtopk_uses_its_saved_threshold(tmp_path, saved, used):
    w = Weights()
    more = {"activation.threshold": torch.tensor(saved)}
    sae = read_foreign(write_saev(tmp_path / "sae.pt", w, header("BatchTopK", top_k=K), **more))
    z = over(w.pre(False), used)
    agrees(sae, z, w.decode(z), tmp_path)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (header("BatchTopK", 4, top_k=K), "without a threshold"),
        (header("AbsBatchTopK", 5, top_k=K), "saev's activation 'AbsBatchTopK'"),
        (header("Relu", 6), "saev's schema 6"),
    ],
)
def test_saev_refuses_other_activations_and_schemas(tmp_path, said, message):
    with pytest.raises(ForeignArtifactError, match=message):
        read_foreign(write_saev(tmp_path / "sae.pt", Weights(), said))


def test_saev_file_cut_off_after_its_header_is_refused(tmp_path):
    path = write_saev(tmp_path / "sae.pt", Weights(), header("Relu"))
    whole = path.read_bytes()
    line = whole.index(b"\n") + 1
    for length, message in ((line, "ends after its header"), (line + 500, "cut off")):
        path.write_bytes(whole[:length])
        with pytest.raises(ForeignArtifactError, match=message):
            read_foreign(path)


# ---- overcomplete


def overcomplete_hat(z: np.ndarray, w: Weights) -> np.ndarray:
    return z @ w.Wd.double().numpy() * np.exp(0.4)


@pytest.mark.parametrize(("k", "code"), [(K, largest), (0, lambda p: over(p, 0))])
def test_overcomplete_topk_and_relu_follow_the_given_k(tmp_path, k, code):
    w = Weights(unit=True)
    torch.save(overcomplete_state(w), tmp_path / "sae.pt")
    z = code(w.pre(False))
    agrees(read_foreign(tmp_path / "sae.pt", k=k), z, overcomplete_hat(z, w), tmp_path)
    with pytest.raises(UserInputError, match="nor its k") as refused:
        read_foreign(tmp_path / "sae.pt")
    assert "--k" in refused.value.hint


def test_overcomplete_jump_thresholds_are_exponentials(tmp_path):
    w = Weights(unit=True)
    logs = torch.linspace(-3, 1, H)
    torch.save(overcomplete_state(w, thresholds=logs), tmp_path / "sae.pt")
    z = over(w.pre(False), np.exp(logs.double().numpy()))
    agrees(read_foreign(tmp_path), z, overcomplete_hat(z, w), tmp_path)
    with pytest.raises(UserInputError, match="has thresholds"):
        read_foreign(tmp_path, k=3)


def test_overcomplete_batch_norm_is_folded(tmp_path):
    w, norm = Weights(unit=True), torch.nn.BatchNorm1d(H)
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean):
            tensor.copy_(torch.randn(H, generator=torch.Generator().manual_seed(1)))
        norm.running_var.copy_(torch.linspace(0.5, 2, H))
    named = {f"encoder.final_block.1.{n}": t for n, t in norm.state_dict().items()}
    torch.save(overcomplete_state(w, **named), tmp_path / "sae.pt")
    with torch.no_grad():
        p = norm.double().eval()(torch.from_numpy(w.pre(False))).numpy()
    z = largest(p)
    agrees(read_foreign(tmp_path, k=K), z, overcomplete_hat(z, w), tmp_path)


@pytest.mark.parametrize("tied", [True, False])
def test_overcomplete_tieable_encoder(tmp_path, tied):
    w = Weights(unit=True)
    state = {"dictionary._weights": w.Wd, "dictionary.multiplier": torch.tensor(0.0)}
    if tied:
        state["encoder.tied_to._weights"] = w.Wd
        p = X.double().numpy() @ w.Wd.double().numpy().T
    else:
        state |= {"encoder.weight": w.We, "encoder.bias": w.be}
        p = w.pre(False)
    torch.save(state, tmp_path / "sae.pt")
    z = largest(p)
    agrees(read_foreign(tmp_path, k=K), z, z @ w.Wd.double().numpy(), tmp_path)


def test_overcomplete_archetypal_dictionary(tmp_path):
    w, g = Weights(), torch.Generator().manual_seed(2)
    points, mix = torch.randn(30, D, generator=g), torch.rand(H, 30, generator=g) - 0.3
    relax = 0.1 * torch.randn(H, D, generator=g)
    relax[0] = 1.05 * torch.nn.functional.normalize(relax[0], dim=0)  # a step over delta
    state = {
        "encoder.final_block.0.weight": w.We, "encoder.final_block.0.bias": w.be,
        "dictionary.C": points, "dictionary.W": mix, "dictionary.Relax": relax,
        "dictionary.multiplier": torch.tensor(-0.2),
    }  # fmt: skip
    torch.save(state, tmp_path / "sae.pt")
    positive = np.maximum(mix.double().numpy(), 0)
    relax = relax.double().numpy()
    relax[0] /= np.linalg.norm(relax[0])
    hull = positive / positive.sum(1, keepdims=True) @ points.double().numpy()
    z = largest(w.pre(False))
    agrees(read_foreign(tmp_path, k=K), z, z @ (hull + relax) * np.exp(-0.2), tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dictionary._weights": 2 * Weights().Wd}, "another normalisation than 'l2'"),
        ({"encoder.final_block.1.weight": torch.ones(H)}, "a layer norm"),
        ({"encoder.mlp_blocks.0.0.weight": torch.ones(D, D)}, "several layers"),
        ({"Q": torch.ones(2)}, "a QSAE"),
        (
            {"encoder.final_block.0.weight": None, "encoder.final_block.0.bias": None},
            "without an encoder",
        ),
    ],
)
def test_overcomplete_refuses_other_encoders(tmp_path, change, message):
    state = {**overcomplete_state(Weights(unit=True)), **change}
    torch.save({n: t for n, t in state.items() if t is not None}, tmp_path / "sae.pt")
    with pytest.raises(ForeignArtifactError, match=message):
        read_foreign(tmp_path, k=K)


# ---- sae-lens


def random_(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return module


def compare_stock(ours, stock):
    z = stock.encode(X).detach()
    torch.testing.assert_close(ours.encode(X), z, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.decode(z), stock.decode(z).detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("apply_b_dec", [True, False])
def test_saelens_gated_becomes_a_threshold(tmp_path, apply_b_dec):
    from sae_lens import SAE, GatedSAE, GatedSAEConfig

    torch.manual_seed(0)
    cfg = GatedSAEConfig(d_in=D, d_sae=H, apply_b_dec_to_input=apply_b_dec)
    random_(GatedSAE(cfg)).save_model(tmp_path)
    compare_stock(read_foreign(tmp_path), SAE.load_from_disk(tmp_path))


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("scale", [None, 3.5])
def test_saelens_training_checkpoint_equals_its_export(tmp_path, rescale, scale):
    from sae_lens import SAE, BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig

    torch.manual_seed(0)
    cfg = BatchTopKTrainingSAEConfig(
        d_in=D, d_sae=H, k=K, rescale_acts_by_decoder_norm=rescale,
        normalize_activations="none" if scale is None else "expected_average_only_in",
    )  # fmt: skip
    sae = random_(BatchTopKTrainingSAE(cfg))
    sae.topk_threshold.fill_(1.7)
    sae.save_model(tmp_path / "training")
    if scale is not None:
        with pytest.raises(ForeignArtifactError, match="the factor is not next to it"):
            read_foreign(tmp_path / "training")
        scaler = {"scaling_factor": scale, "has_whitening": False}
        (tmp_path / "training" / "activation_scaler.json").write_text(json.dumps(scaler))
        sae.fold_activation_norm_scaling_factor(scale)
    if rescale:
        sae.fold_W_dec_norm()
    sae.save_inference_model(tmp_path / "inference")
    ours = read_foreign(tmp_path / "training")
    compare_stock(ours, SAE.load_from_disk(tmp_path / "inference"))
    assert any("calibrate" in note for note in ours.metadata["notes"])
    assert (scale is not None) == any("3.5" in note for note in ours.metadata["notes"])


@pytest.mark.parametrize("kind", ["relu", "topk"])
def test_saelens_flat_config_before_version_6_is_read(tmp_path, kind):
    from sae_lens import SAE
    from safetensors.torch import save_file

    w = Weights()
    state = {"W_enc": w.We.T.contiguous(), "W_dec": w.Wd, "b_enc": w.be, "b_dec": w.bd}
    state["scaling_factor"] = torch.ones(H)
    save_file(state, tmp_path / "sae_weights.safetensors")
    cfg = {
        "d_in": D, "d_sae": H, "dtype": "float32", "hook_point": "blocks.3.hook_resid_post",
        "model_name": "vit", "activation_fn_str": kind, "normalize_activations": False,
        "activation_fn_kwargs": {"k": K} if kind == "topk" else {}, "prepend_bos": True,
        "apply_b_dec_to_input": False, "sae_lens_training_version": "3.2.1", "lr": 0.1,
    }  # fmt: skip
    (tmp_path / "cfg.json").write_text(json.dumps(cfg))
    ours = read_foreign(tmp_path)
    assert ours.hook_name == "blocks.3.hook_resid_post" and ours.metadata["model_name"] == "vit"
    z = largest(w.pre(False)) if kind == "topk" else over(w.pre(False), 0)
    agrees(ours, z, w.decode(z), tmp_path)
    compare_stock(ours, SAE.load_from_disk(tmp_path))


def test_saelens_fine_tuned_factors_are_folded_into_the_decoder(tmp_path):
    from safetensors.torch import save_file

    w, factor = Weights(), torch.linspace(0.5, 2, H)
    state = {"W_enc": w.We.T.contiguous(), "W_dec": w.Wd, "b_enc": w.be, "b_dec": w.bd}
    save_file({**state, "scaling_factor": factor}, tmp_path / "sae_weights.safetensors")
    cfg = {"d_in": D, "d_sae": H, "finetuning_scaling_factor": True}
    (tmp_path / "cfg.json").write_text(json.dumps(cfg))
    z = over(w.pre(True), 0)
    agrees(read_foreign(tmp_path), z, w.decode(z * factor.double().numpy()), tmp_path)
    (tmp_path / "cfg.json").write_text(json.dumps({**cfg, "finetuning_scaling_factor": False}))
    with pytest.raises(ForeignArtifactError, match="does not announce"):
        read_foreign(tmp_path)


@pytest.mark.parametrize("scaling", ["layer_norm", "constant_norm_rescale", "covariance_whitening"])
def test_saelens_scale_for_each_row_is_refused(tmp_path, scaling):
    from sae_lens import StandardSAE, StandardSAEConfig

    StandardSAE(StandardSAEConfig(d_in=D, d_sae=H, normalize_activations=scaling)).save_model(
        tmp_path
    )
    with pytest.raises(ForeignArtifactError, match=f"normalize_activations = '{scaling}'"):
        read_foreign(tmp_path)


def test_saelens_other_architecture_is_refused(tmp_path):
    from sae_lens import StandardSAE, StandardSAEConfig

    StandardSAE(StandardSAEConfig(d_in=D, d_sae=H)).save_model(tmp_path)
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    (tmp_path / "cfg.json").write_text(json.dumps({**cfg, "architecture": "temporal"}))
    with pytest.raises(ForeignArtifactError, match="is a 'temporal' SAE"):
        read_foreign(tmp_path)


# ---- what must not be read


def with_torch(bomb, path):
    torch.save({"encoder.weight": torch.ones(2), "bias": bomb}, path)


def with_torch_legacy(bomb, path):
    torch.save({"bias": bomb}, path, _use_new_zipfile_serialization=False)


def with_pickle(bomb, path):
    path.write_bytes(pickle.dumps({"bias": bomb}, protocol=4))


def with_saev(bomb, path):
    write_saev(path, Weights(), header("Relu"), more=bomb)


@pytest.mark.parametrize("write", [with_torch, with_torch_legacy, with_pickle, with_saev])
def test_pickled_code_is_named_refused_and_never_run(tmp_path, write):
    target, path = tmp_path / "ran", tmp_path / "sae.pt"
    write(Bomb(target), path)
    with pytest.raises(ForeignArtifactError, match=r"pickled code \(.*eval\)") as refused:
        read_foreign(path)
    assert not target.exists() and "torch.save(sae.state_dict(), FILE)" in refused.value.hint
    if write is with_pickle:  # the file is a live one
        pickle.loads(path.read_bytes())
        assert target.exists()


def test_pickled_module_names_the_classes_of_the_other_program(tmp_path):
    torch.save(torch.nn.Sequential(torch.nn.Linear(2, 3), Odd()), tmp_path / "model.pth")
    with pytest.raises(
        ForeignArtifactError, match=r"pickled code \(\S*test_sae_formats\.Odd, torch"
    ):
        read_foreign(tmp_path)


class Odd(torch.nn.Module):
    pass


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"not a checkpoint at all", "not a torch file"),
        (gzip.compress(pickle.dumps({"a": 1}), mtime=0), "gzip-compressed"),
        (b'{"cfg": 1', "not a torch file"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    (tmp_path / "ae.pt").write_bytes(content)
    with pytest.raises(ForeignArtifactError, match=message):
        read_foreign(tmp_path)


def test_unknown_checkpoint_is_described(tmp_path):
    with pytest.raises(UserInputError, match="does not exist"):
        read_foreign(tmp_path / "none.pt")
    with pytest.raises(ForeignArtifactError, match="it holds nothing"):
        read_foreign(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ForeignArtifactError, match=r"it holds notes\.txt") as refused:
        read_foreign(tmp_path)
    assert "sae-lens" in refused.value.hint and "overcomplete" in refused.value.hint
    torch.save({"fc.weight": torch.ones(2, 2)}, tmp_path / "x.pt")
    with pytest.raises(ForeignArtifactError, match=r"its tensors: fc\.weight"):
        read_foreign(tmp_path)
    torch.save([1, 2], tmp_path / "x.pt")
    with pytest.raises(ForeignArtifactError, match="no torch file|its tensors"):
        read_foreign(tmp_path)


def spoil(key, value):
    def change(state):
        state[key] = value(state[key])

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("encoder.bias"), "has no encoder.bias; it has bias, decoder.weight"),
        (spoil("encoder.bias", lambda t: t[:-1]), r"b_enc has the shape \(19,\).*d_sae 20"),
        (spoil("decoder.weight", lambda t: t.T), r"W_dec has the shape \(8, 20\)"),
        (spoil("encoder.weight", lambda t: t.flatten()), r"a weight matrix has the shape \(160,\)"),
        (spoil("bias", lambda t: t * torch.nan), "b_dec has values that are not finite"),
    ],
)
def test_mismatched_tensors_are_refused(tmp_path, change, message):
    w = Weights()
    state = linear(w, bias=w.bd)
    change(state)
    with pytest.raises(ForeignArtifactError, match=message):
        read_foreign(write_dictionary(tmp_path, "AutoEncoder", state))


def test_fold_norm_multiplies_codes_by_the_norm():
    w = Weights()
    raw = {"W_enc": w.We.T, "W_dec": w.Wd.clone(), "b_enc": w.be, "b_dec": w.bd}
    raw["threshold"] = torch.linspace(0, 2, H)
    raw["W_dec"][3] = 0
    norm = raw["W_dec"].norm(dim=1)
    before, after = ThresholdSAE(**raw), ThresholdSAE(**fold_norm(raw))
    z = after.encode(X)
    alive = norm > 0
    torch.testing.assert_close(
        z[:, alive], (before.encode(X) * norm)[:, alive], atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(
        after.decode(z), before.decode(before.encode(X)), atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(after.W_dec.norm(dim=1), alive.float())


def test_k_is_refused_for_a_format_that_contains_it(tmp_path):
    with pytest.raises(UserInputError, match="--k is not for .* of sparsify contains k"):
        read_foreign(write_sparsify(tmp_path, Weights()), k=3)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> list[tuple[Path, bytes]]:
    root = tmp_path_factory.mktemp("whole")
    w = Weights(unit=True)
    torch.save(dncbm_state(w), root / "dncbm.pth")
    write_saev(root / "saev.pt", w, header("Relu"))
    torch.save(linear(w, bias=w.bd), root / "dl.pt")
    torch.save(linear(w, bias=w.bd), root / "old.pt", _use_new_zipfile_serialization=False)
    return [(path, path.read_bytes()) for path in sorted(root.iterdir())]


@given(st.integers(0, 3), st.floats(0, 1), st.integers(-1, 255))
@settings(max_examples=120, deadline=None)
def test_damaged_file_gives_one_sentence_or_an_sae(whole, which, where, byte):
    """Cut off (byte −1) or one byte changed, anywhere."""
    path, content = whole[which]
    at = int(where * (len(content) - 1))
    broken = content[:at] if byte < 0 else content[:at] + bytes([byte]) + content[at + 1 :]
    path.with_name(f"broken-{path.name}").write_bytes(broken)
    try:
        sae = read_foreign(path.with_name(f"broken-{path.name}"))
    except DermauditError as error:
        assert "broken-" in error.message and "\n" not in error.message
    else:
        assert isinstance(sae, ThresholdSAE) and sae.W_enc.shape == (D, H)


def test_each_family_recognises_only_its_own_files(tmp_path):
    w = Weights(unit=True)
    torch.save(dncbm_state(w), tmp_path / "a.pth")
    torch.save(overcomplete_state(w), tmp_path / "b.pth")
    torch.save(linear(w, bias=w.bd), tmp_path / "c.pth")
    write_saev(tmp_path / "d.pth", w, header("Relu"))
    names = [family_of(tmp_path / f"{n}.pth").NAME for n in "abcd"]
    assert names == ["DermFM-Zero / DN-CBM", "overcomplete", "dictionary_learning", "saev"]
    assert family_of(write_sparsify(tmp_path / "s", w)).NAME == "sparsify"
    assert len(FAMILIES) == 6
