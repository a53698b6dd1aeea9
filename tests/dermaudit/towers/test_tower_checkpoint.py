"""A folder we write opens in stock open_clip, and every broken one gives one clear sentence."""

from __future__ import annotations

import json
import shutil

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from dermaudit.errors import ForeignArtifactError, UserInputError
from dermaudit.towers import build_word_tokenizer, load_model, save_local_dir, tower_fingerprint


@pytest.fixture
def copied(tmp_path, tiny_folder):
    """A copy of the checkpoint, to be broken."""
    return shutil.copytree(tiny_folder, tmp_path / "copy")


@pytest.fixture
def save(tiny_model, tiny_cfg, preprocess_cfg, tokenizer):
    """A function that writes the tiny model; its arguments replace parts of it."""

    def saved(folder, model=tiny_model, model_cfg=tiny_cfg, **options):
        options = {"preprocess_cfg": preprocess_cfg, "tokenizer": tokenizer, **options}
        return save_local_dir(folder, model, model_cfg=model_cfg, card="# tiny\n", **options)

    return saved


def test_stock_open_clip_opens_it_with_the_same_embeddings(tower, tiny_folder, images):
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tiny_folder}")
    model = model.eval().requires_grad_(False)
    tokens = open_clip.get_tokenizer(f"local-dir:{tiny_folder}")
    texts = ["a ruler", "Gel bubble, melanomas!", "word " * 40]
    assert torch.equal(tower.encode_image(images), model.encode_image(images, normalize=True))
    assert torch.equal(tower.tokenize(texts), tokens(texts))
    assert torch.equal(tower.encode_text(texts), model.encode_text(tokens(texts), normalize=True))
    assert tower.logit_scale == pytest.approx(float(model.logit_scale.exp()))


def test_half_precision_loads_as_float32_and_keeps_the_temperature(tmp_path, save, tower, images):
    folder = save(tmp_path / "half")
    state = load_file(folder / "open_clip_model.safetensors")
    assert {str(v.dtype) for k, v in state.items() if k != "logit_scale"} == {"torch.float16"}
    half = load_model(str(folder))
    assert {p.dtype for p in half.model.parameters()} == {torch.float32}
    assert half.logit_scale == tower.logit_scale
    assert half.fingerprint != tower.fingerprint
    difference = (half.encode_image(images) - tower.encode_image(images)).abs().max()
    assert 0 < difference < 1e-2


def test_files_next_to_the_weights(tower):
    assert tower.card.licence == "cc0-1.0"
    assert tower.card.text.endswith("# tiny\n")
    assert tower.training_hashes() == frozenset({"ab" * 8, "cd" * 8})
    assert json.loads(json.dumps(tower.preprocess_config))["resize_mode"] == "squash"
    assert tower.image_size == 64


def test_a_broken_list_of_training_images_is_not_an_empty_one(copied):
    (copied / "training_images.json").write_text('{"sha256": ["short"]}')
    with pytest.raises(UserInputError, match=r"training_images\.json"):
        load_model(str(copied)).training_hashes()
    (copied / "training_images.json").unlink()
    assert load_model(str(copied)).training_hashes() == frozenset()


def test_fingerprint_sees_weights_names_and_preprocessing_only(tower, tiny_folder):
    again = load_model(f"local-dir:{tiny_folder}")
    assert again.fingerprint == tower.fingerprint
    state, cfg = dict(tower.model.state_dict()), tower.preprocess_config
    assert tower_fingerprint(dict(reversed(state.items())), cfg) == tower.fingerprint
    key = "visual.proj"
    assert tower_fingerprint({**state, key: state[key] + 1e-4}, cfg) != tower.fingerprint
    flat = {**state, key: state[key].reshape(-1)}
    assert tower_fingerprint(flat, cfg) != tower.fingerprint
    assert tower_fingerprint(state, {**cfg, "resize_mode": "shortest"}) != tower.fingerprint


def test_a_folder_that_is_not_empty_is_not_overwritten(tmp_path, save):
    folder = tmp_path / "taken"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserInputError, match="not empty"):
        save(folder)
    assert [p.name for p in folder.iterdir()] == ["notes.txt"]
    save(folder, overwrite=True)
    assert (folder / "open_clip_model.safetensors").is_file()
    assert not (folder / "notes.txt").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path, save, monkeypatch):
    folder = save(tmp_path / "kept")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}

    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(UserInputError, match="no space left"):
        save(folder, overwrite=True)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]


def test_contradictions_and_infinities_are_refused(tmp_path, save, tiny_cfg):
    wrong = {**tiny_cfg, "text_cfg": {**tiny_cfg["text_cfg"], "eos_id": 2}}
    with pytest.raises(UserInputError, match="eos_id = 2"):
        save(tmp_path / "a", model_cfg=wrong)
    large = open_clip.CLIP(**tiny_cfg)
    large.visual.proj.data.fill_(1e6)
    with pytest.raises(UserInputError, match=r"visual\.proj"):
        save(tmp_path / "b", large)
    assert list(tmp_path.iterdir()) == []


# ---- broken folders --------------------------------------------------------------------------


def test_missing_and_broken_configuration(copied):
    config = copied / "open_clip_config.json"
    good = config.read_text()
    config.write_text("{not json")
    with pytest.raises(UserInputError, match=r"open_clip_config\.json is not valid JSON"):
        load_model(str(copied))
    config.write_text("{}")
    with pytest.raises(UserInputError, match="no 'model_cfg'"):
        load_model(str(copied))
    config.write_text('{"model_cfg": {"embed_dim": 24, "vision_cfg": 3}}')
    with pytest.raises(UserInputError, match="lacks vision_cfg, text_cfg"):
        load_model(str(copied))
    value = json.loads(good)
    value["model_cfg"]["vision_cfg"]["colour"] = "blue"
    config.write_text(json.dumps(value))
    with pytest.raises(ForeignArtifactError, match=r"open_clip_config\.json.*colour"):
        load_model(str(copied))
    config.unlink()
    with pytest.raises(UserInputError, match=r"it has no open_clip_config\.json"):
        load_model(str(copied))


def test_missing_truncated_and_foreign_weights_are_refused(copied):
    weights = copied / "open_clip_model.safetensors"
    data = weights.read_bytes()
    for broken in (data[: len(data) // 2], data[:5], b""):
        weights.write_bytes(broken)
        with pytest.raises(ForeignArtifactError, match=r"open_clip_model\.safetensors"):
            load_model(str(copied))
    weights.write_bytes(data)
    state = load_file(weights)
    state["extra.weight"] = state.pop("visual.proj")
    save_file(state, weights)
    with pytest.raises(
        ForeignArtifactError, match=r"missing visual\.proj; unexpected extra\.weight"
    ):
        load_model(str(copied))
    state["visual.proj"] = torch.zeros(48, 7)
    del state["extra.weight"]
    save_file(state, weights)
    with pytest.raises(ForeignArtifactError, match=r"visual\.proj \(48, 7\) instead of \(48, 24\)"):
        load_model(str(copied))
    weights.unlink()
    with pytest.raises(UserInputError, match="no weights"):
        load_model(str(copied))


def test_a_pickle_is_never_run(copied, tmp_path):
    import pickle

    mark = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return (mark.write_text, ("x",))

    (copied / "open_clip_model.safetensors").unlink()
    (copied / "open_clip_pytorch_model.bin").write_bytes(pickle.dumps({"state_dict": Evil()}))
    with pytest.raises(ForeignArtifactError, match=r"open_clip_pytorch_model\.bin"):
        load_model(str(copied))
    assert not mark.exists()


def test_plain_torch_weights_open_too(copied, tower, images):
    weights = copied / "open_clip_model.safetensors"
    state = {f"module.{key}": value for key, value in load_file(weights).items()}
    torch.save({"state_dict": state}, copied / "open_clip_pytorch_model.bin")
    weights.unlink()
    other = load_model(str(copied))
    assert other.fingerprint == tower.fingerprint
    assert torch.equal(other.encode_image(images), tower.encode_image(images))


def test_missing_tokeniser_files_are_reported(copied, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (copied / "tokenizer_config.json").unlink()
    with pytest.raises(UserInputError, match=r"no tokenizer_config\.json"):
        load_model(str(copied))
    (copied / "tokenizer.json").unlink()
    with pytest.raises(UserInputError, match=r"no tokenizer\.json"):
        load_model(str(copied))


def test_a_missing_device_is_reported(tiny_folder):
    with pytest.raises(UserInputError, match="device 'nowhere'"):
        load_model(str(tiny_folder), device="nowhere")


# ---- the small tokeniser ---------------------------------------------------------------------


def test_tokeniser_called_directly_gives_the_ids_of_the_files(tokenizer, tower):
    texts = ["a Ruler", "naïve dermatoscopy", "blue-white veil: 2 µm", "", "hair " * 30]
    assert torch.equal(tokenizer(texts), tower.tokenize(texts))
    assert tokenizer("ruler").shape == (1, 16)


def test_known_words_are_one_token_and_unseen_words_differ(tokenizer):
    words = json.loads(tokenizer.files["tokenizer.json"])["model"]["vocab"]
    ids = tokenizer(["gel bubble", "quokka", "wombat", "rulers"]).tolist()
    assert ids[0][:4] == [2, words["gel"], words["bubble"], 3]
    assert ids[1] != ids[2]
    assert 1 not in ids[1] + ids[2], "an unseen word must not become [UNK]"
    assert ids[3][1:3] == [words["ruler"], words["##s"]]
    cut = tokenizer(["hair " * 40])[0].tolist()
    assert cut[-1] == 3, "a text that is cut off still ends in [EOT], which is what is pooled"


def test_the_vocabulary_is_bounded_and_the_same_every_time():
    corpus = [f"word{i % 3000} lesion" for i in range(5000)]
    first = build_word_tokenizer(["ruler"], corpus, 16)
    assert first.vocab_size == 2000
    assert first.files == build_word_tokenizer(["ruler"], corpus, 16).files
    with pytest.raises(UserInputError, match="vocabulary has 150"):
        build_word_tokenizer([f"w{chr(97 + i % 26)}{i}" for i in range(300)], [], 16, 150)
