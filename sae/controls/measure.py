"""A trained SAE beside its controls, on the same rows and measured in the same way.

Frozen decoders reach the headline figures of trained ones (arXiv 2602.14111), so a figure of an SAE says little
without them. Every control is an SAE whose decoder comes from elsewhere and stays: the encoder and the
thresholds are fitted to it with the settings of the SAE, at the same L0. In the soft-frozen one each direction may
turn to a cosine of SOFT with its random start; in the random SAE nothing is fitted but one scale.

Beside them stand other ways to train an SAE (`trained.py`).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix

from dermaudit.errors import EvidenceError
from dermaudit.heads import fit_probe, probe_score
from dermaudit.stats.intervals import (
    GroupBootstrap,
    auprc,
    auprc_draws,
    auroc,
    percentile_interval,
)

from ..evaluation.images import EvaluationImages
from ..evaluation.lift import choice_table, lift_share
from ..evaluation.monosemanticity import monosemanticity_report
from ..evaluation.reconstruction import accumulate
from ..evaluation.stability import match, unit
from ..inference.model import ThresholdSAE
from ..run_data import RunData
from ..store.rows import EmbeddingRows
from ..training.calibrate import calibrate
from ..training.decoder_start import DecoderStart
from ..training.recipe import SAERecipe
from .dictionaries import DICTIONARIES, FROZEN, directions_of
from .trained import fit_members, trained_members

RANDOM = "random SAE"
_LEVELS = (0.5, 1.0, 2.0)  # of k, for the curve of FVU over L0
_DRAWS = 200
_KINDS = ("artifact", "clinical", "diagnosis")
_TARGET = "mel"  # the class of the bottleneck, where it is labelled


@dataclass(frozen=True)
class ControlRows:
    """Rows (n, d) of a pooled site by split, train rows of two disjoint halves of the groups, and test images.

    `truths` are {split: (n, concepts) of 1, 0, nan}: of artifacts if any is labelled, else of all labels, and of
    `target`, the class that the bottleneck predicts.
    """

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray
    halves: tuple[np.ndarray, np.ndarray]
    groups: dict[str, np.ndarray]
    truths: dict[str, np.ndarray]
    concepts: list[str]
    target: str | None

    @classmethod
    def of(cls, data: RunData, seed: int) -> ControlRows:
        """Return the pooled rows of a run. EvidenceError where a split is empty or cannot be halved."""
        index = {
            split: np.flatnonzero(data.rows(split) & np.isfinite(data.pooled).all(1))
            for split in ("train", "val", "test")
        }
        groups = data.groups.astype(str)
        names = np.unique(groups[index["train"]])
        if len(names) < 2 or not all(map(len, index.values())):
            raise EvidenceError(
                "controls need train, val and test images, and train images of two groups"
            )
        np.random.default_rng([seed, 11]).shuffle(names)
        first = np.isin(groups[index["train"]], names[: len(names) // 2])
        kinds = {kind: [t for t in data.truth.values() if t.type == kind] for kind in _KINDS}
        classes = sorted(kinds["diagnosis"], key=lambda truth: -np.nansum(truth.values))
        target = next((t for t in classes if t.name == _TARGET), classes[-1] if classes else None)
        used = kinds["artifact"] or kinds["clinical"] + classes
        used = [truth for truth in used if truth is not target] + ([target] if target else [])
        values = np.stack([truth.values for truth in used], 1) if used else np.empty((data.n, 0))
        train = data.pooled[index["train"]]
        return cls(
            train=train,
            val=data.pooled[index["val"]],
            test=data.pooled[index["test"]],
            halves=(train[first], train[~first]),
            groups={split: groups[rows] for split, rows in index.items()},
            truths={split: values[rows] for split, rows in index.items()},
            concepts=[truth.name for truth in used],
            target=target.name if target else None,
        )


def controls_report(
    sae: ThresholdSAE, recipe: SAERecipe, rows: ControlRows, *, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Return {control: figures}: `fvu`, `l0`, `curve` [[l0, fvu], …], `lift_share` with `lift_share_ci`,
    `monosemanticity`, `bottleneck_auroc` and `pw_mcc` between two halves of the groups with other seeds.

    The SAE itself is "this SAE" (its `pw_mcc` is in its stability report); `recipe` is that of one of its fits.
    """
    fitted = _fitted_controls(recipe, rows, seed)
    judge = _Judge(rows, seed)
    found = {"this SAE": judge.figures([sae], 0) | {"pw_mcc": None}}
    agreement = _agreement_of_halves(recipe, rows, seed)
    for name, saes in fitted.items():
        found[name] = judge.figures(saes, len(saes) // 2) | {"pw_mcc": agreement[name]}
    return found


def _fitted_controls(
    recipe: SAERecipe, rows: ControlRows, seed: int
) -> dict[str, list[ThresholdSAE]]:
    """Return {control: an SAE at each of the levels of k}, fitted in one pass."""
    directions = {
        name: directions_of(name, rows.train, recipe.d_sae, seed) for name in DICTIONARIES
    }
    members = trained_members(recipe, rows.train, directions, seed + 1)
    for name, own in directions.items():
        k = min(recipe.k, len(own) / max(_LEVELS))
        one = recipe.replaced({"d_sae": len(own), "k": k, "seed": seed + 1})
        members[name] = [(one, DecoderStart(own, 1.0))]
    random = directions[FROZEN]
    return {
        RANDOM: [_random_sae(random, rows.train, recipe, level) for level in _LEVELS],
        **fit_members(members, rows.train, rows.val, _LEVELS),
    }


def _random_sae(
    directions: np.ndarray, train: np.ndarray, recipe: SAERecipe, level: float
) -> ThresholdSAE:
    """Return an SAE that reads and writes random directions, with thresholds for an L0 and the best scale."""
    decoder = torch.from_numpy(directions)
    sae = ThresholdSAE(
        W_enc=decoder.t().contiguous(),
        W_dec=decoder,
        b_enc=torch.zeros(len(decoder)),
        b_dec=torch.from_numpy(train.mean(0)),
        threshold=torch.zeros(len(decoder)),
    )
    calibrate(sae, EmbeddingRows.of(train), recipe.k * level, torch.Generator().manual_seed(0))
    x = torch.from_numpy(train) - sae.b_dec
    back = sae.encode(torch.from_numpy(train)) @ decoder
    scale = (x * back).sum() / (back**2).sum().clamp_min(1e-12)
    return dataclasses.replace(sae, W_enc=sae.W_enc * scale, threshold=sae.threshold * scale)


def _agreement_of_halves(recipe: SAERecipe, rows: ControlRows, seed: int) -> dict[str, float]:
    """Return the mean cosine of directions of two halves, matched one to one, of every control."""
    sets: dict[str, list[np.ndarray]] = {}
    for half, train in enumerate(rows.halves):
        own = seed + 100 * (half + 1)
        for name in DICTIONARIES:
            sets.setdefault(name, []).append(directions_of(name, train, recipe.d_sae, own))
        sets.setdefault(RANDOM, []).append(sets[FROZEN][half])
        directions = {name: found[half] for name, found in sets.items() if name in DICTIONARIES}
        members = trained_members(recipe, train, directions, own)
        for name, saes in fit_members(members, train, rows.val, (1.0,)).items():
            sets.setdefault(name, []).append(saes[0].W_dec.numpy())
    found = {}
    for name, (a, b) in sets.items():
        cosine = unit(a) @ unit(b).T
        found[name] = float(cosine[match(cosine)].mean())
    return found


class _Judge:
    """Measures dictionaries on the same test images, with probes that are fitted once."""

    def __init__(self, rows: ControlRows, seed: int) -> None:
        self.rows, self.seed = rows, seed
        self.probes: dict[
            int, tuple[np.ndarray, np.ndarray]
        ] = {}  # concept: (test rows, probe score)
        for index, name in enumerate(rows.concepts):
            if name == rows.target and len(rows.concepts) > 1:
                continue
            train, test = (
                np.flatnonzero(np.isfinite(rows.truths[split][:, index]))
                for split in ("train", "test")
            )
            y = rows.truths["test"][test, index]
            if not 5 <= y.sum() <= len(y) - 5:
                continue
            try:
                probe = fit_probe(
                    rows.train[train],
                    rows.truths["train"][train, index],
                    rows.groups["train"][train],
                    seed=seed,
                )
            except EvidenceError:
                continue
            score = probe_score(probe, rows.test[test])
            if lift_share(1.0, auprc(y, score), float(y.mean())) is not None:
                self.probes[index] = test, score

    def figures(self, saes: list[ThresholdSAE], own: int) -> dict[str, Any]:
        """Return the figures of saes[own], and the curve of all."""
        sae, rows = saes[own], self.rows
        codes = {
            split: self._codes(sae, getattr(rows, split)) for split in ("train", "val", "test")
        }
        curve = []
        for one in saes:
            figures = accumulate(one, rows.test, rows.groups["test"]).report(n_draws=0)
            curve.append([round(float(figures[name]["value"]), 6) for name in ("l0", "fvu")])
        share, interval = self._lift_share(codes)
        embeddings = EvaluationImages(csr_matrix(codes["test"]), rows.groups["test"], x=rows.test)
        judged = monosemanticity_report(
            embeddings.codes, rows.test, same_model=True, n_shuffles=0, n_draws=20, seed=self.seed
        )
        return {
            "latents": sae.d_sae,
            "l0": curve[own][0],
            "fvu": curve[own][1],
            "curve": curve,
            "lift_share": share,
            "lift_share_ci": interval,
            "n_concepts": len(self.probes),
            "monosemanticity": judged["lift"]["value"],
            "bottleneck_auroc": self._bottleneck(codes),
        }

    @torch.no_grad()
    def _codes(self, sae: ThresholdSAE, rows: np.ndarray) -> np.ndarray:
        """Return the codes of rows, without the residual latents of a consensus."""
        count = sae.metadata.get("consensus_latents") or sae.d_sae
        return sae.encode(torch.from_numpy(rows)).numpy()[:, :count]

    def _lift_share(self, codes: dict[str, np.ndarray]) -> tuple[float | None, list[float] | None]:
        """Return the mean lift share of the labelled concepts, and its interval over groups of test images."""
        if not self.probes:
            return None, None
        truths = self.rows.truths
        table = choice_table((codes["train"], truths["train"]), (codes["val"], truths["val"]))
        shares, draws = [], []
        for index, (test, ceiling) in self.probes.items():
            if not np.isfinite(table[index]).any():
                continue
            latent = int(np.nanargmax(table[index]))
            y, score = truths["test"][test, index], codes["test"][test, latent]
            shares.append(lift_share(auprc(y, score), auprc(y, ceiling), float(y.mean())))
            bootstrap = GroupBootstrap(self.rows.groups["test"][test], _DRAWS, self.seed)
            drawn = auprc_draws(y, [score, ceiling], bootstrap.matrix())
            spans = drawn[:, 1] - drawn[:, 2]
            draws.append(
                np.divide(
                    drawn[:, 0] - drawn[:, 2],
                    spans,
                    out=np.full(len(spans), np.nan),
                    where=spans > 0.01,
                )
            )
        if not shares:
            return None, None
        low, high = percentile_interval(np.nanmean(draws, axis=0))
        return float(np.mean(shares)), [float(low), float(high)]

    def _bottleneck(self, codes: dict[str, np.ndarray]) -> float | None:
        """Return the test AUROC of a logistic head on the codes for the class `target`."""
        rows = self.rows
        if rows.target is None:
            return None
        index = rows.concepts.index(rows.target)
        train, test = (
            np.flatnonzero(np.isfinite(rows.truths[split][:, index])) for split in ("train", "test")
        )
        try:
            head = fit_probe(
                codes["train"][train],
                rows.truths["train"][train, index],
                rows.groups["train"][train],
                seed=self.seed,
            )
        except EvidenceError:
            return None
        return auroc(rows.truths["test"][test, index], probe_score(head, codes["test"][test]))
