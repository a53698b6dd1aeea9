"""Towers: image and text encoders that can be opened by name, with hook points on every block.

`load_model(name)` gives a `HookedTower`; `ZeroShot` classifies with prompts; `save_local_dir`
writes a checkpoint that stock open_clip opens. Loaded on first use: importing this loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_PUBLIC = {
    "HookedTower": "hooked",
    "PanDermVisual": "loading.panderm",
    "TokenizerFiles": "loading.tokenizer",
    "ZeroShot": "zeroshot",
    "build_word_tokenizer": "loading.tokenizer",
    "load_model": "loading.load",
    "prompt_scores": "zeroshot",
    "resolve": "loading.names",
    "save_local_dir": "loading.checkpoint",
    "tower_fingerprint": "loading.fingerprint",
}

if TYPE_CHECKING:
    from .hooked import HookedTower as HookedTower
    from .loading.checkpoint import save_local_dir as save_local_dir
    from .loading.fingerprint import tower_fingerprint as tower_fingerprint
    from .loading.load import load_model as load_model
    from .loading.names import resolve as resolve
    from .loading.panderm import PanDermVisual as PanDermVisual
    from .loading.tokenizer import TokenizerFiles as TokenizerFiles
    from .loading.tokenizer import build_word_tokenizer as build_word_tokenizer
    from .zeroshot import ZeroShot as ZeroShot
    from .zeroshot import prompt_scores as prompt_scores

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'dermaudit.towers' has no attribute '{name}'")
    return getattr(importlib.import_module(f".{_PUBLIC[name]}", __name__), name)
