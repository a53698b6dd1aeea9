"""Towers: image and text encoders that can be opened by name, with hook points on every block.

`load_model(name)` gives a `HookedTower`; `ZeroShot` classifies with prompts; `save_local_dir`
writes a checkpoint that stock open_clip opens. Loaded on first use: importing this loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_PUBLIC = {
    "HookedTower": "hooked",
    "PanDermVisual": "panderm",
    "TokenizerFiles": "tokenizer",
    "ZeroShot": "zeroshot",
    "build_word_tokenizer": "tokenizer",
    "load_model": "load",
    "prompt_scores": "zeroshot",
    "resolve": "names",
    "save_local_dir": "checkpoint",
    "tower_fingerprint": "fingerprint",
}

if TYPE_CHECKING:
    from .checkpoint import save_local_dir as save_local_dir
    from .fingerprint import tower_fingerprint as tower_fingerprint
    from .hooked import HookedTower as HookedTower
    from .load import load_model as load_model
    from .names import resolve as resolve
    from .panderm import PanDermVisual as PanDermVisual
    from .tokenizer import TokenizerFiles as TokenizerFiles
    from .tokenizer import build_word_tokenizer as build_word_tokenizer
    from .zeroshot import ZeroShot as ZeroShot
    from .zeroshot import prompt_scores as prompt_scores

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'dermaudit.towers' has no attribute '{name}'")
    return getattr(importlib.import_module(f".{_PUBLIC[name]}", __name__), name)
