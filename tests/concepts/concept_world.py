"""A world with planted concepts, small enough to be fitted in a second.

Embeddings are a mean plus planted directions; the SAE is the basis itself, so that latent j is
direction j. `RULER` is an artifact that says nothing of the label, `SIGNAL` is the label's own sign.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import torch
from activation_stores import write_store

from dermaudit.files import write_json, write_parquet
from dermaudit.run.directory import Run
from dermaudit.sae import ThresholdSAE, TopKSAE
from dermaudit.sae.embed.embed import POOLED
from dermaudit.sae.inference.codes import write_codes
from dermaudit.sae.run_data import RunData, Truth

D, H = 32, 24
RULER, SIGNAL, DEAD = 0, 1, 23


def basis(seed: int = 0) -> np.ndarray:
    """Orthonormal directions (D, D); row H … are free of latents."""
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(D, D)))[0]


def basis_sae(threshold: float = 0.1) -> ThresholdSAE:
    W_dec = torch.from_numpy(basis()[:H].astype(np.float32)).contiguous()
    bias = torch.zeros(H)
    bias[DEAD] = -10.0
    return ThresholdSAE(
        W_dec.T.contiguous(),
        W_dec,
        bias,
        torch.zeros(D),
        torch.full((H,), threshold),
        {"hook_name": POOLED, "model_name": "toy"},
    )


def world(
    n: int = 5000, seed: int = 0, ruler: float = 0.7, signal: float = 0.35
) -> SimpleNamespace:
    """x (n, D) unit float32, y and a (n,) 0/1 independent of each other, splits, groups of two."""
    rng = np.random.default_rng(seed)
    y, a = rng.integers(0, 2, n).astype(float), rng.integers(0, 2, n).astype(float)
    code = (rng.random((n, H)) < 0.25) * (0.2 + 0.3 * rng.random((n, H)))
    code[:, RULER] = a * ruler * (0.8 + 0.4 * rng.random(n))
    code[:, SIGNAL] = np.maximum(0, signal * y + 0.25 * rng.normal(size=n))
    code[:, DEAD] = 0
    x = code @ basis()[:H] + basis()[H] + 0.05 * rng.normal(size=(n, D))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    groups = np.array([f"g{i // 2}" for i in range(n)], dtype=object)
    splits = np.array(["train", "val", "test", "train", "test"], dtype=object)[
        np.arange(n) // 2 % 5
    ]
    return SimpleNamespace(n=n, x=x.astype(np.float32), y=y, a=a, splits=splits, groups=groups)


class DenseCodes:
    """What `Codes` offers, from a dense array."""

    def __init__(self, dense: np.ndarray) -> None:
        self.dense, self.shape = dense.astype(np.float32), dense.shape

    def csr(self):
        from scipy.sparse import csr_matrix

        return csr_matrix(self.dense)

    def column(self, latent: int) -> np.ndarray:
        return self.dense[:, latent]

    def n_active(self) -> np.ndarray:
        return (self.dense > 0).sum(0)


class Data:
    """What `RunData` offers, from arrays."""

    def __init__(
        self, x, codes, splits, groups, truth=None, labels=None, consensus: int | None = None
    ) -> None:
        self.consensus = consensus
        self.n, self.pooled, self.splits, self.groups = len(x), x, splits, groups
        self._codes = {POOLED: DenseCodes(codes)}
        self.sites = [POOLED]
        self.truth = {k: Truth(k, kind, v) for k, (kind, v) in (truth or {}).items()}
        self.labels = np.full(self.n, "", dtype=object) if labels is None else labels

    def codes(self, site: str) -> DenseCodes:
        return self._codes[site]

    def reference(self, site: str) -> None:
        return None

    def n_concepts(self, site: str) -> int:
        return self.consensus or self._codes[site].shape[1]

    def rows(self, *splits: str) -> np.ndarray:
        return np.isin(self.splits, splits)


class TextTower:
    """A text encoder that knows some words: {word: direction}; the rest is its own small noise."""

    def __init__(self, words: dict[str, np.ndarray], d: int = D) -> None:
        self.words, self.d = words, d

    def encode_text(self, texts, normalize=True):
        rows = []
        for text in texts:
            seed = int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)
            row = 0.05 * np.random.default_rng(seed).normal(size=self.d) + basis()[H + 1][: self.d]
            for word, direction in self.words.items():
                if word in text and f"no {word}" not in text:
                    row = row + direction
            rows.append(row / np.linalg.norm(row))
        return torch.from_numpy(np.stack(rows)).float()


def write_run(
    path: Path, w: SimpleNamespace, sae: ThresholdSAE | TopKSAE | None = None, **columns
) -> Run:
    """A run on disk whose stages images, embed and fit:visual.pooled are done. `columns` are added
    to its table, or taken out where None."""
    sae = sae or basis_sae()
    run = Run.create(path)
    run.meta["model"] = {"name": "toy", "fingerprint": "f" * 64, "preprocess": {"size": 8}}
    run.meta["data"] = {"root": "nowhere"}
    table = {
        "image": [f"{i}.png" for i in range(w.n)],
        "group": list(w.groups),
        "split": list(w.splits),
        "label": ["mel" if v else "nv" for v in w.y],
        "artifact:ruler": w.a,
        **columns,
    }
    table = {name: values for name, values in table.items() if values is not None}
    write_parquet(run.file("images.parquet"), pa.table(table))
    run.record("images", {}, [run.file("images.parquet")])
    store = write_store(
        run.file("embeddings", POOLED),
        [(w.x, np.arange(w.n), np.arange(w.n) // 2)],
        site=POOLED,
        dtype="float32",
    )
    run.record("embed", {}, store.files(), upstream=["images"], summary={"sites": [POOLED]})
    folder = run.file("sae", POOLED)
    files = sae.save(folder)
    write_json(folder / "metrics.json", {"site": POOLED})
    files += write_codes(run.file("codes", POOLED), sae, w.x, POOLED)
    run.record(f"fit:{POOLED}", {}, files, upstream=["embed"])
    return run


def tiny_tower(folder: Path, d: int) -> Path:
    """A random open_clip model of width `d` with a word tokenizer, saved at `folder`."""
    import open_clip

    from dermaudit.towers import build_word_tokenizer, save_local_dir

    tokenizer = build_word_tokenizer(["ruler"], ["a dermoscopic image of hair"], context_length=12)
    cfg = {
        "embed_dim": d,
        "vision_cfg": {
            "image_size": 32,
            "patch_size": 8,
            "width": 32,
            "layers": 2,
            "head_width": 16,
        },
        "text_cfg": {"width": 16, "heads": 2, "layers": 1, **tokenizer.text_cfg()},
    }
    torch.manual_seed(0)
    model = open_clip.CLIP(**cfg).eval().requires_grad_(False)
    return save_local_dir(
        folder,
        model,
        model_cfg=cfg,
        tokenizer=tokenizer,
        preprocess_cfg={
            "size": 32,
            "mean": [0.5] * 3,
            "std": [0.2] * 3,
            "interpolation": "bicubic",
            "resize_mode": "squash",
        },
        card="",
        training_hashes=[],
        half=False,
    )


def open_data(run: Run) -> RunData:
    return RunData(run)
