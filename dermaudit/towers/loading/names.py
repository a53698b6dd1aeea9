"""Which model a name means, decided before anything heavy is imported or any hub is asked.

`phantom-vit` (bundled) · `some/folder` or `local-dir:some/folder` · `hf-hub:org/repo` ·
`ViT-B-16/openai` (an open_clip architecture and tag, split at the last `/`). No torch here.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import dermaudit
from dermaudit.errors import UserInputError, closest, unknown

CONFIG_FILE = "open_clip_config.json"
HF_CONFIG = "config.json"
#: in the order in which stock open_clip prefers them.
WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
)
#: the checkpoints that a complete installation ships, and the recipes that train them.
BUNDLED = {"phantom-vit": "phantom", "dermoscopy-small": "dermoscopy-small"}


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from. `folder` for folders, `repo` for the hub, else `arch` and `tag`."""

    name: str
    kind: Literal["bundled", "folder", "hub", "open_clip"]
    folder: Path | None = None
    repo: str = ""
    arch: str = ""
    tag: str = ""


def bundled_folder() -> Path:
    """Return the folder of the shipped checkpoints, in a checkout (through the link) or a wheel."""
    return Path(dermaudit.__file__).parent / "checkpoints"


def bundled_names() -> list[str]:
    """Return the names of the shipped checkpoints, in alphabetical order."""
    return sorted(path.parent.name for path in bundled_folder().glob(f"*/{CONFIG_FILE}"))


def architectures() -> list[str]:
    """open_clip's architectures, read off its folder of configurations without importing it."""
    spec = importlib.util.find_spec("open_clip")
    if spec is None or spec.origin is None:
        return []
    return sorted(p.stem for p in (Path(spec.origin).parent / "model_configs").glob("*.json"))


def resolve(name: str) -> ModelSource:
    """Return what `name` means.

    A bundled name wins over a folder of the same name; a folder that holds a checkpoint wins over
    an architecture. Errors: UserInputError that offers the nearest name, and for a folder says
    what it lacks.
    """
    name = name.strip()
    if not name:
        raise UserInputError("the name of the model is empty", _forms())
    if name.startswith("local-dir:"):
        return ModelSource(
            name, "folder", folder=_checkpoint_folder(Path(name[len("local-dir:") :]))
        )
    if name.startswith("hf-hub:"):
        repo = name[len("hf-hub:") :]
        if repo.count("/") != 1 or not all(repo.split("/")):
            raise UserInputError(
                f"'{name}' is not a hub name", "write hf-hub:<organisation>/<repository>"
            )
        return ModelSource(name, "hub", repo=repo)
    if name in bundled_names():
        return ModelSource(name, "bundled", folder=bundled_folder() / name)
    if name in BUNDLED:
        raise UserInputError(
            f"the bundled checkpoint '{name}' is not in this installation ({bundled_folder()})",
            f"install a complete wheel, or train it: dermaudit pretrain {BUNDLED[name]} "
            f"--data DATA --out checkpoints/{name}",
        )
    if Path(name).is_dir() or name.startswith((".", "/", "~")):
        return ModelSource(name, "folder", folder=_checkpoint_folder(Path(name).expanduser()))
    return _open_clip(name)


def _checkpoint_folder(folder: Path) -> Path:
    if not folder.is_dir():
        siblings = [p.name for p in folder.parent.glob("*") if p.is_dir()]
        near = closest(folder.name, siblings)
        tail = f": did you mean '{folder.parent / near}'?" if near else ""
        raise UserInputError(f"model folder {folder} does not exist{tail}", _forms())
    if not (folder / CONFIG_FILE).is_file() and not hf_clip_config(folder):
        other = _model_type(folder)
        also = f"; its {HF_CONFIG} is of a {other}, and only a clip opens by that" if other else ""
        raise UserInputError(
            f"{folder} is no checkpoint: it has no {CONFIG_FILE}{also}",
            "give the folder that holds the configuration and the weights",
        )
    return folder


def hf_clip_config(folder: Path) -> bool:
    """Whether `folder` is of Hugging Face's CLIPModel: by its `config.json`."""
    return _model_type(folder) == "clip"


def _model_type(folder: Path) -> str | None:
    try:
        config = json.loads((folder / HF_CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    kind = config.get("model_type") if isinstance(config, dict) else None
    return kind if isinstance(kind, str) else None


def _open_clip(name: str) -> ModelSource:
    arch, _, tag = name.rpartition("/")
    known = architectures()
    if not arch:
        if name in known:
            raise UserInputError(
                f"the architecture '{name}' needs a tag of trained weights",
                f"for example {name}/openai; `dermaudit models list` lists more",
            )
        near = closest(name, [*BUNDLED, *bundled_names(), *known])
        tail = f": did you mean '{near}'?" if near else ""
        raise UserInputError(f"unknown model '{name}'{tail}", _forms())
    # open_clip spells architectures with '-' where older names have '/'.
    arch = arch.replace("/", "-")
    if arch not in known:
        near = closest(arch, known)
        tail = f": did you mean '{near}/{tag}'?" if near else ""
        raise UserInputError(
            f"unknown model '{name}': there is no such folder and no open_clip architecture "
            f"'{arch}'{tail}",
            _forms(),
        )
    return ModelSource(name, "open_clip", arch=arch, tag=tag)


def check_tag(source: ModelSource) -> None:
    """Errors: UserInputError with the nearest tag. Not in `resolve`, since it needs open_clip."""
    from open_clip.pretrained import list_pretrained_tags_by_model

    tags = list_pretrained_tags_by_model(source.arch)
    if source.tag not in tags:
        raise unknown(f"tag of {source.arch}", source.tag, tags)


def _forms() -> str:
    names = ", ".join(bundled_names() or BUNDLED)
    return (
        f"a model is one of {names}, a folder, local-dir:<folder>, hf-hub:<org>/<repo>, or "
        "<architecture>/<tag> such as ViT-B-16/openai"
    )
