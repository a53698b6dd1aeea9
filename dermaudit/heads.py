"""Linear heads and probes: logistic regression on standardised features, C by grouped inner folds.

A head is what a run predicts with (`heads/<label>.safetensors`); a probe is the same fit used as a
ceiling for one concept. Fitted on the train split only; the choice of C never sees val or test.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from threadpoolctl import threadpool_limits

from dermaudit.errors import EvidenceError, ForeignArtifactError, UserInputError

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

C_GRID = (1e-3, 1e-2, 1e-1, 1.0)


@dataclass
class LinearHead:
    """`logits = ((x - mean) / scale) @ weight.T + bias`; x (n, d), logits (n, classes).

    For a two-class head `weight` has one row per class too (the negative class is minus one half
    of the binary logit), so that softmax gives the logistic probability.
    """

    weight: np.ndarray
    bias: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    classes: list[str]
    C: float
    site: str
    n_train: int

    def logits(self, x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n classes"]:
        """Return logits (n, classes) of rows x (n, d)."""
        return ((x - self.mean) / self.scale) @ self.weight.T + self.bias

    def tensor_logits(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n classes"]:
        """Return the logits of a torch tensor (n, d), differentiable with respect to it."""
        weight, bias, mean, scale = (
            x.new_tensor(array) for array in (self.weight, self.bias, self.mean, self.scale)
        )
        return ((x - mean) / scale) @ weight.T + bias

    def probs(self, x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n classes"]:
        """Return probabilities (n, classes) of rows x (n, d)."""
        logits = self.logits(x)
        exponent = np.exp(logits - logits.max(1, keepdims=True))
        return exponent / exponent.sum(1, keepdims=True)

    def direction(self) -> Float[np.ndarray, "classes d"]:
        """Return the gradient of the logits with respect to x: (classes, d)."""
        return self.weight / self.scale

    def save(self, path: Path) -> None:
        """Write the head as safetensors."""
        import torch

        from dermaudit.files import write_safetensors

        tensors = {
            name: torch.from_numpy(np.asarray(getattr(self, name), dtype=np.float32))
            for name in ("weight", "bias", "mean", "scale")
        }
        meta = {
            "classes": json.dumps(self.classes),
            "C": repr(self.C),
            "site": self.site,
            "n_train": str(self.n_train),
            "format_version": "1",
        }
        write_safetensors(path, tensors, meta)

    @classmethod
    def load(cls, path: Path) -> LinearHead:
        """Read a head. Raises ForeignArtifactError for a file that is none."""
        from safetensors import SafetensorError, safe_open

        if not path.is_file():
            raise UserInputError(f"there is no head {path}", "fit one: dermaudit heads --run RUN")
        try:
            with safe_open(path, framework="np") as handle:
                meta = handle.metadata() or {}
                tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
            return cls(
                **{name: tensors[name] for name in ("weight", "bias", "mean", "scale")},
                classes=json.loads(meta["classes"]),
                C=float(meta["C"]),
                site=meta["site"],
                n_train=int(meta["n_train"]),
            )
        except (SafetensorError, KeyError, ValueError) as error:
            raise ForeignArtifactError(
                f"{path} is not a head of dermaudit ({error})",
                "fit it again: dermaudit heads --run RUN --force",
            ) from error


def fit_head(
    x: np.ndarray,
    labels: Sequence[str] | np.ndarray,
    groups: Sequence[object] | np.ndarray,
    *,
    site: str = "visual.pooled",
    seed: int = 0,
    c_grid: Sequence[float] = C_GRID,
) -> LinearHead:
    """Fit a head on rows x (n, d). EvidenceError when a class is missing or n is under 30."""
    y = np.asarray(labels, dtype=str)
    classes = sorted(set(y.tolist()))
    if len(y) < 30 or len(classes) < 2:
        raise EvidenceError(
            f"too little to fit a head: {len(y)} labelled train images, {len(classes)} classes",
            "at least 30 images of 2 classes are needed in the train split",
            {"n": len(y), "classes": len(classes)},
        )
    mean, scale = x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64) + 1e-8
    z = (x - mean) / scale
    # A few thousand rows of a few hundred columns: a second BLAS thread costs more than it gives.
    with threadpool_limits(1, "blas"):
        best = choose_c(z, y, groups, c_grid=c_grid, seed=seed)
        model = _logistic(best).fit(z, y)
    weight, bias = model.coef_, model.intercept_
    if len(classes) == 2:
        weight, bias = np.vstack([-weight / 2, weight / 2]), np.array([-bias[0] / 2, bias[0] / 2])
    return LinearHead(
        weight.astype(np.float32),
        bias.astype(np.float32),
        mean.astype(np.float32),
        scale.astype(np.float32),
        classes,
        float(best),
        site,
        len(y),
    )


def choose_c(
    z: np.ndarray,
    labels: np.ndarray,
    groups: Sequence[object] | np.ndarray,
    *,
    c_grid: Sequence[float] = C_GRID,
    seed: int = 0,
) -> float:
    """Return the C with the least log loss over 3 grouped inner folds."""
    from sklearn.metrics import log_loss
    from sklearn.model_selection import StratifiedGroupKFold

    group = np.asarray(groups)
    classes, counts = np.unique(labels, return_counts=True)
    n_folds = min(3, len(np.unique(group)), int(counts.max()))
    if n_folds < 2:
        return c_grid[0]  # one group only: nothing can be held out
    kfold = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # A class with fewer members than folds is left to the check below.
        warnings.filterwarnings("ignore", message="The least populated class")
        folds = list(kfold.split(z, labels, group))
    scores = []
    for c in c_grid:
        losses = []
        for fit, held in folds:
            if not len(held) or len(set(labels[fit].tolist())) < len(classes):
                continue
            model = _logistic(c).fit(z[fit], labels[fit])
            losses.append(-log_loss(labels[held], model.predict_proba(z[held]), labels=classes))
        scores.append(np.mean(losses) if losses else -np.inf)
    return c_grid[int(np.argmax(scores))]


def fit_probe(
    x: np.ndarray, truth: np.ndarray, groups: Sequence[object] | np.ndarray, *, seed: int = 0
) -> LinearHead:
    """Fit a supervised linear probe of one concept (0/1 truth): the ceiling of a single latent."""
    words = np.where(np.asarray(truth) > 0.5, "present", "absent")
    return fit_head(x, words, groups, seed=seed)


def probe_score(head: LinearHead, x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
    """Return the logit (n,) of "present" against "absent" of a two-class head."""
    logits = head.logits(x)
    return logits[:, 1] - logits[:, 0]


def _logistic(c: float):
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=c, max_iter=2000)
