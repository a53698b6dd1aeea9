"""Other ways to train an SAE, which are compared with the SAE of a run.

One fit; with w_enc · w_dec = 1; with a penalty on decoder rows that are alike; archetypal, whose directions stay
near positive sums of the centres of k-means (arXiv 2502.12892); and an ensemble, whose reconstruction is the mean of
those of its members (arXiv 2505.16077): its L0 is their sum. The soft-frozen one is a control (arXiv 2602.14111):
each direction stays within a cosine of SOFT of a random start.
"""

from __future__ import annotations

import numpy as np
import torch

from ..inference.model import ThresholdSAE
from ..store.rows import EmbeddingRows
from ..training.decoder_start import DecoderStart
from ..training.loop import fit_saes
from ..training.recipe import SAERecipe
from .dictionaries import FROZEN, directions_of
from .table import ALIGNED, ARCHETYPAL, ENSEMBLE, N_ENSEMBLE, ORTHO, SINGLE

SOFT = 0.8
ARCHETYPES_WITHIN = 0.95  # the cosine with the nearest sum of centres
CENTRES = 4  # for each latent, of which archetypes are sums
SOFT_FROZEN = "soft-frozen random decoder"
#: Recipes and starts of the SAEs of an entry of the table, by its name.
Members = dict[str, list[tuple[SAERecipe, DecoderStart | None]]]


def trained_members(
    recipe: SAERecipe, rows: np.ndarray, directions: dict[str, np.ndarray], seed: int
) -> Members:
    """Return what is fitted on rows (n, d) for each way of training; `directions` are those of `DICTIONARIES`.

    Alignment and orthogonality are variants of BatchTopK, and are left out beside another architecture.
    """
    one = recipe.replaced({"seed": seed})
    centres = directions_of("k-means", rows, CENTRES * recipe.d_sae, seed)
    found: Members = {
        SINGLE: [(one, None)],
        ARCHETYPAL: [(one, DecoderStart(directions["k-means"], ARCHETYPES_WITHIN, centres))],
        ENSEMBLE: [(one.replaced({"seed": seed + i}), None) for i in range(1, N_ENSEMBLE + 1)],
        SOFT_FROZEN: [(one, DecoderStart(directions[FROZEN], SOFT))],
    }
    if recipe.architecture == "batchtopk":
        found[ALIGNED] = [(one.replaced({"architecture": "aligned"}), None)]
        found[ORTHO] = [(one.replaced({"architecture": "ortho"}), None)]
    return found


def fit_members(
    members: Members, train: np.ndarray, held: np.ndarray, levels: tuple[float, ...]
) -> dict[str, list[ThresholdSAE]]:
    """Fit every SAE at each level (a factor of its k) on rows train (n, d) in one pass; return {name: [SAE of each
    level]}, several members as one ensemble.
    """
    jobs = [
        (name, level, recipe.replaced({"k": recipe.k * level}), start)
        for name, several in members.items()
        for level in levels
        for recipe, start in several
    ]
    made = fit_saes(
        EmbeddingRows.of(train),
        held,
        [recipe for _, _, recipe, _ in jobs],
        site="",
        model_name="",
        starts=[start for _, _, _, start in jobs],
    )
    saes: dict[tuple[str, float], list[ThresholdSAE]] = {}
    for (name, level, _, _), one in zip(jobs, made, strict=True):
        assert isinstance(one.sae, ThresholdSAE)
        saes.setdefault((name, level), []).append(one.sae)
    return {name: [ensemble(saes[name, level]) for level in levels] for name in members}


def ensemble(saes: list[ThresholdSAE]) -> ThresholdSAE:
    """Return one SAE with the latents of all, whose reconstruction is the mean of theirs."""
    if len(saes) == 1:
        return saes[0]
    b_dec = torch.stack([one.b_dec for one in saes]).mean(0)
    return ThresholdSAE(
        W_enc=torch.cat([one.W_enc for one in saes], 1),
        W_dec=torch.cat([one.W_dec for one in saes]) / len(saes),
        # Each encoder goes on reading the rows from its own b_dec.
        b_enc=torch.cat([one.b_enc + (b_dec - one.b_dec) @ one.W_enc for one in saes]),
        b_dec=b_dec,
        threshold=torch.cat([one.threshold for one in saes]),
    )
