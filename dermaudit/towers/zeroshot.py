"""The zero-shot classifier: prompts instead of labels.

A class vector is the mean of the normalised embeddings of its prompts (names x templates),
normalised again (CLIP, arXiv 2103.00020; the same in DermFM-Zero, arXiv 2602.10624); a logit is
logit_scale * cosine. Prompts of one class are encoded by themselves, so that its vector does not
change, not even in the last bit, when other classes are added or reordered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from dermaudit.errors import UserInputError

from .prompts import TEMPLATES

if TYPE_CHECKING:
    from .hooked import HookedTower


class ZeroShot:
    """`classes`: class -> its names. `templates`: strings with one `{}`.

    `weight`: (n_classes, d_pooled), unit rows, in the order of `classes`. Errors: UserInputError
    for no class, a class without names, or a template without exactly one `{}`.
    """

    def __init__(
        self,
        tower: HookedTower,
        classes: Mapping[str, Sequence[str]],
        templates: Sequence[str] = TEMPLATES,
    ) -> None:
        if not classes:
            raise UserInputError("a zero-shot classifier needs at least one class")
        self.classes = list(classes)
        self.templates = _checked(templates)
        self.logit_scale = tower.logit_scale
        self.weight = torch.stack([self._vector(tower, c, names) for c, names in classes.items()])

    def _vector(self, tower: HookedTower, label: str, names: Sequence[str]) -> Tensor:
        if isinstance(names, str) or not names:
            raise UserInputError(f"class '{label}' needs a list of at least one name")
        return prompt_vector(tower, [t.format(name) for name in names for t in self.templates])

    def logits(self, embeddings: Tensor) -> Tensor:
        """Return logits (n, n_classes) of unit embeddings (n, d_pooled): logit_scale * cosine."""
        return self.logit_scale * (embeddings @ self.weight.to(embeddings).T)

    def probs(self, embeddings: Tensor) -> Tensor:
        """Return probabilities (n, n_classes) of unit embeddings (n, d_pooled)."""
        return self.logits(embeddings).softmax(dim=-1)


@torch.no_grad()
def prompt_vector(tower: HookedTower, prompts: Sequence[str]) -> Tensor:
    """Return the unit vector (d_pooled,) of an ensemble of prompts."""
    return F.normalize(tower.encode_text(list(prompts)).mean(dim=0), dim=0)


def prompt_scores(
    tower: HookedTower,
    positive: Sequence[str],
    negative: Sequence[str],
    embeddings: Tensor,
) -> Tensor:
    """Probability (n,) that unit `embeddings` (n, d_pooled) fit `positive` rather than `negative`.

    softmax(logit_scale * [x . u+, x . u-])[0], as in the concept annotation of MONET (Kim et al.,
    Nat Med 2024), with one vector for each ensemble. Errors: UserInputError for an empty list.
    """
    if not len(positive) or not len(negative):
        raise UserInputError("prompt_scores needs positive and negative prompts")
    pair = torch.stack([prompt_vector(tower, positive), prompt_vector(tower, negative)])
    return (tower.logit_scale * (embeddings @ pair.to(embeddings).T)).softmax(dim=-1)[:, 0]


def _checked(templates: Sequence[str]) -> list[str]:
    if isinstance(templates, str) or not templates:
        raise UserInputError("templates must be a list of at least one string")
    for template in templates:
        if template.count("{}") != 1:
            raise UserInputError(
                f"template '{template}' must have exactly one {{}}",
                'for example "dermoscopy of {}"',
            )
    return list(templates)
