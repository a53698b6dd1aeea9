"""How often names were right that looked like this one: from latents whose concept is known.

`calibration.json` has a row for each name of the latents of rendered images (made by `docs/scripts/calibrate_names.py`;
the labels there are exact): its concept, three figures of its score, and whether labels of other images confirm it.
A logistic regression on the figures gives `p_correct`. For a name the rows of its own concept are left out, so that p
says how far to trust a concept that the calibration does not know.

The threshold for a risk α is that of conformal selection (arXiv 2210.01408): the smallest one at which
(1 + wrong names) / (1 + names) ≤ α among the calibration rows, each with the p of the other concepts. It holds for
images like those of the calibration; `bench names` measures it on those of a run.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dermaudit.errors import ForeignArtifactError
from dermaudit.files import read_json

#: Figures of the scores of a latent that the calibration knows; they do not change with the number of images.
FIGURES = ("margin", "runner_up", "prominence")
FILE = Path(__file__).with_name("calibration.json")
_C = 0.1  # inverse strength of the L2 penalty on standardised figures


def figures_of(scores: np.ndarray) -> np.ndarray:
    """Return the FIGURES (h, 3) of word scores (h, words): how far the best word is above the second, the second as a
    share of the best, and the best as a multiple of the root mean square of all.
    """
    top = -np.partition(-scores, 1, axis=1)[:, :2]
    best, second = top[:, 0], top[:, 1]
    size = np.sqrt((scores**2).mean(1))
    return np.stack(
        [best - second, second / np.maximum(best, 1e-6), best / np.maximum(size, 1e-12)], 1
    )


def label_figures(lift: np.ndarray) -> np.ndarray:
    """Return three figures (h, 3) of the lifts of the labelled concepts (concepts, h): the best one, how far it is
    above the second, and the second as a share of it.
    """
    top = -np.partition(-lift, 1, axis=0)[:2]
    best, second = top
    return np.stack([best, best - second, second / np.maximum(best, 1e-6)], 1)


@dataclass(frozen=True)
class Calibration:
    """Names whose truth is known: concept, figures (n, 3), and whether each was right (n,)."""

    concepts: tuple[str, ...]
    figures: np.ndarray
    right: np.ndarray

    def p_correct(self, concepts: Sequence[str], figures: np.ndarray) -> np.ndarray:
        """Return for each name (m,) with its figures (m, 3) how probable it is that it is right; the calibration
        rows of its own concept are left out.
        """
        own, found = np.array(self.concepts), np.empty(len(concepts))
        of_names = np.array(concepts, dtype=object)
        for concept in dict.fromkeys(concepts):
            rows, others = of_names == concept, own != concept
            found[rows] = _logistic(self.figures[others], self.right[others], figures[rows])
        return found

    @functools.cached_property
    def own_p(self) -> np.ndarray:
        """The p (n,) of the calibration rows themselves, each without its concept."""
        return self.p_correct(self.concepts, self.figures)

    def threshold(self, risk: float) -> float:
        """Return the smallest p from which names may be given so that at most `risk` of them are wrong; above 1
        where there is none.
        """
        order = np.argsort(-self.own_p, kind="stable")
        wrong = np.cumsum(~self.right[order])
        allowed = (1 + wrong) / (2 + np.arange(len(order))) <= risk
        if not allowed.any():
            return float(np.nextafter(1.0, 2.0))
        return float(self.own_p[order][np.flatnonzero(allowed)[-1]])


def _logistic(figures: np.ndarray, right: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    from sklearn.linear_model import LogisticRegression

    mean, spread = figures.mean(0), figures.std(0)
    model = LogisticRegression(C=_C, max_iter=2000).fit((figures - mean) / spread, right)
    return model.predict_proba((wanted - mean) / spread)[:, 1]


@functools.cache
def calibrations(path: Path = FILE) -> dict[str, Calibration]:
    """Return the calibration of single names ("name"), of sets ("set"), and of the best labelled concept ("label")."""
    read = read_json(path, "calibration of names")
    if read.get("format_version") != 1:
        raise ForeignArtifactError(f"{path} is not a calibration of names of format 1")
    return {
        kind: Calibration(
            tuple(row[0] for row in read[kind]),
            np.array([row[1:4] for row in read[kind]], dtype=float),
            np.array([row[4] for row in read[kind]], dtype=bool),
        )
        for kind in ("name", "set", "label")
    }
