"""What predicts: a head of a run, or the zero-shot classifier in the form of a head."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from dermaudit.errors import UserInputError
from dermaudit.heads import LinearHead
from dermaudit.run.directory import Run
from dermaudit.sae.run_data import RunData


class ZeroShotHead:
    """The zero-shot classifier in the form of a head: logits, classes, direction."""

    def __init__(self, tower: Any) -> None:
        from dermaudit.towers import ZeroShot
        from dermaudit.towers.prompts import ham_classes

        self.model = ZeroShot(tower, ham_classes())
        self.classes = list(self.model.classes)

    def logits(self, x: np.ndarray) -> np.ndarray:
        """Return logits (n, classes) of unit embeddings (n, d)."""
        return self.model.logits(torch.from_numpy(x)).detach().numpy()

    def probs(self, x: np.ndarray) -> np.ndarray:
        """Return probabilities (n, classes) of unit embeddings (n, d)."""
        return self.model.probs(torch.from_numpy(x)).detach().numpy()


Head = LinearHead | ZeroShotHead


def pick_head(run: Run, tower: Any, name: str | None) -> tuple[Head, str]:
    """Return a head and its name: `name`, the zero-shot classifier, or by default the run's head if it has
    one.
    """
    data = RunData(run)
    have = [] if name == "zeroshot" else data.heads
    if name == "zeroshot" or (name is None and not have):
        return ZeroShotHead(tower), "zeroshot"
    name = name or have[0]
    if name not in have:
        raise UserInputError(
            f"the run {run.path} has no head '{name}'", "known: " + ", ".join([*have, "zeroshot"])
        )
    return data.head(name), name


def pick_target(classes: list[str], wanted: str | None) -> str:
    """Return the class whose logit is logged: `wanted`, else melanoma, else the last."""
    if wanted is not None:
        if wanted not in classes:
            raise UserInputError(
                f"the head has no class '{wanted}'", f"known: {', '.join(classes)}"
            )
        return wanted
    return "mel" if "mel" in classes else classes[-1]
