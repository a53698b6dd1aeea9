"""Names the dictionaries of a run with one method: what the stage, the halves and the benchmark have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dermaudit.sae.run_data import POOLED, RunData

from ..vocabulary.vocabulary import Vocabulary
from .judging import Judge
from .methods.registry import Names, NamingEvidence


@dataclass(frozen=True)
class RunNamer:
    """A naming method with the images of a run and the words of a vocabulary; `vectors` (c, d) and `distractors`
    (r, d) are those of its model.
    """

    data: RunData
    method: Callable[[NamingEvidence], Names]
    vocabulary: Vocabulary
    vectors: np.ndarray
    distractors: np.ndarray
    risk: float = 0.1
    seed: int = 0

    @property
    def ids(self) -> list[str]:
        """The ids of the concepts of the vocabulary."""
        return [concept.id for concept in self.vocabulary.concepts]

    def evidence(self, site: str) -> NamingEvidence:
        """Return what the latents of a site that can stand for a concept are named from: train and val images."""
        data, count = self.data, self.data.n_concepts(site)
        seen = np.flatnonzero(data.rows("train", "val"))
        codes = data.codes(site).csr()[seen, :count].toarray()
        return self._evidence(site, codes, seen, lambda: data.sae(site).W_dec.numpy()[:count])

    def of_run(self, site: str) -> Names:
        """Name the latents of a site."""
        return self.method(self.evidence(site))

    def of(self, site: str, codes: np.ndarray, images: np.ndarray, decoder: np.ndarray) -> Names:
        """Name the latents of another dictionary with `decoder` (h, d), from their codes (n, h) in the images of
        these rows (n,).
        """
        return self.method(self._evidence(site, codes, images, lambda: decoder))

    def _evidence(
        self, site: str, codes: np.ndarray, images: np.ndarray, decoder: Callable[[], np.ndarray]
    ) -> NamingEvidence:
        truth = self.data.truth.values()
        return NamingEvidence(
            codes=codes,
            pooled=self.data.pooled[images],
            vectors=self.vectors,
            distractors=self.distractors,
            vocabulary=self.vocabulary,
            # Elsewhere decoder rows do not lie in the space of the words.
            decoder=decoder() if site == POOLED else None,
            labels={one.name: one.values[images] for one in truth},
            risk=self.risk,
            seed=self.seed,
        )


def judge_of(data: RunData, site: str, rows: np.ndarray, vocabulary: Vocabulary) -> Judge:
    """Return what compares names of a site with the labels of the images of these rows (n,)."""
    return Judge(
        data.codes(site).csr()[rows].toarray(),
        {truth.name: truth.values[rows] for truth in data.truth.values()},
        data.groups[rows],
        mistaken_for=vocabulary.mistaken_for,
    )
