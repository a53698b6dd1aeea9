"""Files that live on a hub: in the local cache, fetched if the hub answers, or refused at once.

open_clip and huggingface_hub retry for over 40 seconds without a network. Here it is decided first:
cached? offline by wish? does the host answer within two seconds?
"""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path
from urllib.parse import urlparse

from dermaudit.errors import UserInputError

from .names import CONFIG_FILE, HF_CONFIG, WEIGHTS, hf_clip_config

_SECONDS = 2.0
_SIDE_FILES = ("*.json", "*.txt", "*.md", "*.model")


def reachable(url: str) -> bool:
    """Whether the host of `url` (or the proxy before it) takes a connection within two seconds."""
    target = urlparse(url)
    proxy = os.environ.get(f"{target.scheme}_proxy") or os.environ.get(
        f"{target.scheme.upper()}_PROXY"
    )
    if proxy:
        target = urlparse(proxy if "//" in proxy else f"//{proxy}")
    port = target.port or (80 if target.scheme == "http" else 443)
    answered: list[bool] = []

    def try_once() -> None:
        try:
            socket.create_connection((target.hostname or "", port), timeout=_SECONDS).close()
            answered.append(True)
        except OSError:
            pass

    # In a thread, since looking up a name has no time limit of its own.
    thread = threading.Thread(target=try_once, daemon=True)
    thread.start()
    thread.join(_SECONDS)
    return bool(answered)


def offline() -> bool:
    """Whether the hub must not or cannot be asked."""
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE or not reachable(constants.ENDPOINT)


def fetch_repo(repo: str) -> Path:
    """Return the folder of a hub repository with its configuration, tokeniser and one weights file.

    Errors: UserInputError that names what to download and where to put it when it is not in the cache
    and the hub cannot be reached, or when the hub refuses.
    """
    from huggingface_hub import constants

    cached = cached_folder(repo)
    if cached is not None:
        return cached
    if offline():
        raise UserInputError(
            f"'{repo}' is not in the local cache and {constants.ENDPOINT} cannot be reached",
            f"on a machine with a network run `hf download {repo} --local-dir {_short(repo)}`, "
            f"copy the folder here, and name it local-dir:{_short(repo)}",
        )
    return _download(repo)


def _download(repo: str) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    try:
        listed = HfApi().list_repo_files(repo)
        if CONFIG_FILE not in listed:
            _require_clip(repo, listed)
        wanted = [w for w in WEIGHTS if w in listed][:1]
        return Path(snapshot_download(repo, allow_patterns=[*_SIDE_FILES, *wanted]))
    except GatedRepoError as error:
        raise UserInputError(
            f"the hub repository '{repo}' is gated",
            f"accept its terms at https://huggingface.co/{repo} and log in with `hf auth login`",
        ) from error
    except RepositoryNotFoundError as error:
        raise UserInputError(
            f"the hub has no repository '{repo}' that you may read",
            "check the spelling; for a private one log in with `hf auth login`",
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise UserInputError(f"'{repo}' cannot be fetched from the hub: {error}") from error


def _require_clip(repo: str, listed: list[str]) -> None:
    """UserInputError when a repository without open_clip's configuration is no CLIPModel either."""
    from huggingface_hub import hf_hub_download

    # The small file first: nothing of a model that cannot be opened is fetched.
    if HF_CONFIG in listed and hf_clip_config(Path(hf_hub_download(repo, HF_CONFIG)).parent):
        return
    raise UserInputError(
        f"the hub repository '{repo}' is no open_clip model: it has no {CONFIG_FILE}, and no "
        f"{HF_CONFIG} of a clip"
    )


def cached_folder(repo: str) -> Path | None:
    """Return the folder of a hub model in the local cache, with configuration and weights; else None."""
    from huggingface_hub import try_to_load_from_cache

    for name in (CONFIG_FILE, HF_CONFIG):
        cached = try_to_load_from_cache(repo, name)
        folder = Path(cached).parent if isinstance(cached, str) else None
        if folder is None or not any((folder / w).is_file() for w in WEIGHTS):
            continue
        if name == CONFIG_FILE or hf_clip_config(folder):
            return folder
    return None


def fetch_text(name: str) -> Path:
    """Return the folder of a Hugging Face text encoder: `name` itself, the local cache, or the hub.

    Errors: UserInputError that names what to download and where to put it, or what the folder lacks.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    folder = Path(name)
    cached = None if folder.is_dir() else try_to_load_from_cache(name, HF_CONFIG)
    if isinstance(cached, str):
        folder = Path(cached).parent
    if folder.is_dir():
        weights = any((folder / w).is_file() for w in ("model.safetensors", "pytorch_model.bin"))
        if not weights or not (folder / HF_CONFIG).is_file() or not has_tokenizer(folder):
            raise UserInputError(
                f"{folder} is no text encoder: it needs {HF_CONFIG}, model.safetensors and a tokeniser",
                f"fetch all of it: hf download {name} --local-dir {_short(name)}",
            )
        return folder
    if offline():
        raise UserInputError(
            f"the text encoder '{name}' is not in the local cache and {constants.ENDPOINT} cannot be "
            "reached",
            f"on a machine with a network run `hf download {name} --local-dir {_short(name)}`, copy "
            f"the folder here, and use --set model.text_cfg.hf_model_name={_short(name)}",
        )
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, allow_patterns=[*_SIDE_FILES, "model.safetensors"]))


def require_text_config(name: str, folder: Path) -> None:
    """Errors: UserInputError when the configuration of a text tower that the checkpoint in `folder`
    does not hold is neither cached nor in reach.
    """
    from huggingface_hub import try_to_load_from_cache

    if Path(name).is_dir() or isinstance(try_to_load_from_cache(name, HF_CONFIG), str):
        return
    if not offline():
        return
    raise UserInputError(
        f"{folder} does not describe its text tower '{name}', and the hub cannot be reached",
        f"on a machine with a network run `hf download {name} {HF_CONFIG} --local-dir "
        f"{_short(name)}` and copy {HF_CONFIG} into {folder}",
    )


def require_weights(arch: str, tag: str) -> None:
    """Errors: UserInputError when the weights of a tag are neither cached nor in reach."""
    from huggingface_hub import constants, try_to_load_from_cache
    from open_clip.pretrained import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME, get_pretrained_cfg

    cfg = get_pretrained_cfg(arch, tag)
    repo, _, filename = cfg.get("hf_hub", "").rpartition("/")
    if repo:
        names = [filename] if filename else [HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME]
        names += [n.rsplit(".", 1)[0] + ".safetensors" for n in names]
        if any(isinstance(try_to_load_from_cache(repo, n), str) for n in names):
            return
        if not offline():
            return
        where = f"`hf download {repo}` and copy {constants.HF_HUB_CACHE} here"
    else:
        url = cfg.get("url", "")
        target = Path("~/.cache/clip").expanduser() / url.rsplit("/", 1)[-1]
        if target.is_file() or (not constants.HF_HUB_OFFLINE and reachable(url)):
            return
        where = f"fetch {url} and put it at {target}"
    raise UserInputError(
        f"the weights of '{arch}/{tag}' are not in the local cache and there is no network",
        f"on a machine with a network: {where}",
    )


def has_tokenizer(folder: Path) -> bool:
    """Whether `folder` holds the words of a tokeniser."""
    names = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model")
    return any((folder / name).is_file() for name in names)


def tokenizer_source(folder: Path, name: str) -> str:
    """Where the tokeniser is: the model's folder, else the cache, else the hub.

    Errors: UserInputError when it is nowhere and the hub cannot be reached.
    """
    from huggingface_hub import try_to_load_from_cache

    if has_tokenizer(folder):
        if not (folder / "tokenizer_config.json").is_file():
            raise UserInputError(
                f"{folder} has a tokeniser but no tokenizer_config.json",
                "restore it from the release: without it the padding token is unknown",
            )
        return str(folder)
    if Path(name).is_dir() or "/" not in name:
        raise UserInputError(
            f"{folder} has no tokenizer.json", "restore it from the checkpoint's release"
        )
    if isinstance(try_to_load_from_cache(name, "tokenizer_config.json"), str) or not offline():
        return name
    raise UserInputError(
        f"the tokeniser '{name}' is neither in {folder} nor in the local cache, and the hub cannot "
        "be reached",
        f"on a machine with a network run `hf download {name} tokenizer.json tokenizer_config.json "
        f"vocab.txt --local-dir {_short(name)}` and copy the files into {folder}",
    )


def _short(repo: str) -> str:
    return repo.rsplit("/", 1)[-1]
