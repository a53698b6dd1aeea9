"""What a name means, decided without torch, without a hub that does not answer, in one sentence."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys

import pytest

from dermaudit.cli import main
from dermaudit.errors import UserInputError
from dermaudit.towers import commands as commands_module
from dermaudit.towers import load_model, resolve
from dermaudit.towers.loading import names as names_module


@pytest.fixture
def shipped(tmp_path, tiny_folder, monkeypatch):
    """An installation that ships the tiny checkpoint under the name phantom-vit."""
    shutil.copytree(tiny_folder, tmp_path / "shipped" / "phantom-vit")
    for module in (names_module, commands_module):
        monkeypatch.setattr(module, "bundled_folder", lambda: tmp_path / "shipped")
    return tmp_path / "shipped"


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """Every connection fails, as on a machine without a network; an empty hub cache."""

    def refuse(*args, **options):
        raise OSError("no network")

    for name in ("https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_each_form_is_recognised(shipped, tiny_folder):
    assert resolve("phantom-vit").kind == "bundled"
    assert resolve(str(tiny_folder)).folder == tiny_folder
    assert resolve(f"local-dir:{tiny_folder}").folder == tiny_folder
    assert resolve("hf-hub:redlessone/DermLIP_ViT-B-16").repo == "redlessone/DermLIP_ViT-B-16"
    tag = resolve("ViT-B-16/openai")
    assert (tag.kind, tag.arch, tag.tag) == ("open_clip", "ViT-B-16", "openai")
    # Split at the last slash: older architecture names hold one themselves.
    assert resolve("ViT-B/16/openai").arch == "ViT-B-16"


def test_a_bundled_name_wins_over_a_folder_in_the_working_directory(
    shipped, tmp_path, tiny_folder, monkeypatch
):
    shutil.copytree(tiny_folder, tmp_path / "work" / "phantom-vit")
    monkeypatch.chdir(tmp_path / "work")
    assert resolve("phantom-vit").folder == shipped / "phantom-vit"
    assert resolve("./phantom-vit").kind == "folder"


def test_a_bundled_checkpoint_opens(shipped, tower, images):
    import torch

    assert torch.equal(load_model("phantom-vit").encode_image(images), tower.encode_image(images))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("phantom-vitt", "unknown model 'phantom-vitt': did you mean 'phantom-vit'?"),
        ("VIT-B-16/openai", "did you mean 'ViT-B-16/openai'?"),
        ("ViT-B-16", "needs a tag"),
        ("some/where", "no open_clip architecture 'some'"),
        ("hf-hub:MAKE", "is not a hub name"),
        ("local-dir:nowhere", "model folder nowhere does not exist"),
        ("./nowhere", "model folder nowhere does not exist"),
        (" ", "name of the model is empty"),
    ],
)
def test_wrong_names_offer_the_nearest(shipped, name, message):
    with pytest.raises(UserInputError) as caught:
        load_model(name)
    assert message in caught.value.message
    assert caught.value.hint


def test_a_wrong_folder_offers_its_neighbour(tiny_folder):
    with pytest.raises(UserInputError, match="did you mean"):
        resolve(f"local-dir:{tiny_folder.parent / 'tinny'}")


def test_a_wrong_tag_offers_the_nearest():
    with pytest.raises(UserInputError, match="did you mean 'openai'"):
        load_model("ViT-B-16/openia")


def test_a_bundled_checkpoint_that_is_not_installed_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(names_module, "bundled_folder", lambda: tmp_path)
    with pytest.raises(UserInputError, match="is not in this installation") as caught:
        load_model("dermoscopy-small")
    assert "dermaudit pretrain dermoscopy-small" in caught.value.hint


def test_resolving_a_name_imports_nothing_heavy():
    code = (
        "import sys; from dermaudit.towers import resolve\n"
        "try: resolve('ViT-B-17/openai')\n"
        "except Exception as error: print(error)\n"
        "print(sorted({'torch', 'open_clip', 'transformers', 'sae_lens'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "did you mean 'ViT-B-1" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.slow
def test_the_towers_import_no_stage_above():
    """sae_lens may be there (transformer-lens neighbours), dermaudit.sae may not."""
    code = (
        "import sys, dermaudit.towers.hooked, dermaudit.towers.loading.load, dermaudit.towers.zeroshot\n"
        "stages = ('sae', 'concepts', 'pretrain', 'dashboards')\n"
        "print([m for m in sys.modules if m.startswith(tuple(f'dermaudit.{s}' for s in stages))])\n"
        "print('sae_lens' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "False"]


# ---- the hub ---------------------------------------------------------------------------------


def test_without_a_network_the_hub_is_not_waited_for(no_network):
    with pytest.raises(UserInputError) as caught:
        load_model("hf-hub:redlessone/DermFM-Zero")
    assert "not in the local cache" in caught.value.message
    assert "hf download redlessone/DermFM-Zero" in caught.value.hint
    assert "local-dir:DermFM-Zero" in caught.value.hint
    with pytest.raises(UserInputError, match="weights of 'ViT-B-16/openai'"):
        load_model("ViT-B-16/openai")
    with pytest.raises(UserInputError, match="weights of 'ViT-B-16/laion2b_s34b_b88k'"):
        load_model("ViT-B-16/laion2b_s34b_b88k")


def test_the_offline_setting_prevents_connections(no_network, monkeypatch):
    def forbidden(*args, **options):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket, "create_connection", forbidden)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserInputError, match="not in the local cache"):
        load_model("hf-hub:redlessone/DermFM-Zero")


def test_a_cached_hub_model_opens_without_a_network(no_network, tiny_folder, tower, images):
    import torch

    repo = no_network / "hub" / "models--some--derm"
    revision = "0" * 40
    shutil.copytree(tiny_folder, repo / "snapshots" / revision)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(revision)
    ours = load_model("hf-hub:some/derm")
    assert torch.equal(ours.encode_image(images), tower.encode_image(images))
    assert ours.name == "hf-hub:some/derm"


def test_reachable_answers_for_an_open_and_a_closed_port(monkeypatch):
    from dermaudit.towers.loading.hub import reachable

    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert reachable(f"http://127.0.0.1:{port}/x")
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{port}")
        assert reachable("http://nowhere.invalid/")
        monkeypatch.delenv("HTTP_PROXY")
    assert not reachable(f"http://127.0.0.1:{port}/x")


# ---- the command --------------------------------------------------------------------------------


def test_models_prints_one_object(shipped, capsys):
    assert main(["models", "--json"]) == 0
    out, err = capsys.readouterr()
    value = json.loads(out)
    assert [m["name"] for m in value["bundled"]] == ["phantom-vit"]
    assert value["bundled"][0]["licence"] == "cc0-1.0"
    assert value["bundled"][0]["mb"] > 0
    hub = {m["name"]: m["licence"] for m in value["hub"]}
    assert hub["hf-hub:redlessone/DermFM-Zero"] == "CC BY-NC-ND 4.0"
    assert "phantom-vit" in err
    assert all(name in err for name in hub)


def test_models_with_nothing_installed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("dermaudit.towers.commands.bundled_names", list)
    assert main(["models", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bundled"] == []


def test_a_tag_opens_with_the_activation_of_its_training(monkeypatch):
    """open_clip builds `ViT-B-16/openai` with GELU and only warns; OpenAI's weights need QuickGELU."""
    import open_clip

    from dermaudit.towers.loading import load

    asked = {}

    def create(arch, tag, **options):
        asked.update(options)
        raise KeyError("stop here")

    monkeypatch.setattr(load, "require_weights", lambda arch, tag: None)
    monkeypatch.setattr(open_clip, "create_model_and_transforms", create)
    for name, quick in (("ViT-B-16/openai", True), ("ViT-B-16/laion2b_s34b_b88k", False)):
        with pytest.raises(KeyError, match="stop here"):
            load.load_model(name)
        assert asked["force_quick_gelu"] is quick
