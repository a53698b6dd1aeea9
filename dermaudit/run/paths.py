"""Where a run keeps its files (docs/formats.md). Their names are written here and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunFiles:
    """The paths of the files of the run in the folder `root`."""

    root: Path

    @property
    def images(self) -> Path:
        """A row for each image of the run."""
        return self.root / "images.parquet"

    @property
    def skipped(self) -> Path:
        """The images that cannot be read, each with the reason."""
        return self.root / "skipped.parquet"

    def embeddings(self, site: str) -> Path:
        """The folder of the activation store of a site."""
        return self.root / "embeddings" / site

    # ---- sparse autoencoders

    def sae(self, site: str) -> Path:
        """The folder of the SAE of a site."""
        return self.root / "sae" / site

    def sae_config(self, site: str) -> Path:
        """The configuration of the SAE of a site."""
        return self.sae(site) / "cfg.json"

    def sae_weights(self, site: str) -> Path:
        """The weights of the SAE of a site."""
        return self.sae(site) / "sae_weights.safetensors"

    def sae_metrics(self, site: str) -> Path:
        """The figures of the fit of a site."""
        return self.sae(site) / "metrics.json"

    def measured(self, site: str) -> Path:
        """The figures of `sae measure`."""
        return self.sae(site) / "measured.json"

    def stability(self, site: str) -> Path:
        """How the SAE of a site compares with those of other seeds."""
        return self.sae(site) / "stability.json"

    def consensus(self, site: str) -> Path:
        """Which latents of the SAE of a site are of a consensus of fits."""
        return self.sae(site) / "consensus.json"

    def other_seed(self, site: str, seed: int) -> Path:
        """The folder of an SAE of another seed."""
        return self.root / "seeds" / site / f"seed-{seed}"

    def half(self, site: str, number: int) -> Path:
        """The folder of the dictionary of one half of the groups (1 or 2)."""
        return self.root / "seeds" / site / f"half-{number}"

    def sweep(self, site: str, member: str) -> Path:
        """The folder of one SAE of a sweep."""
        return self.root / "sweep" / site / member

    def training(self, record: str, site: str) -> Path:
        """The folder of the checkpoints of a fit, until it is done."""
        return self.root / ".training" / f"{record}-{site}"

    def codes(self, site: str) -> Path:
        """The folder of the codes of all images at a site."""
        return self.root / "codes" / site

    # ---- concepts

    @property
    def labels(self) -> Path:
        """The best latent of each labelled concept."""
        return self.root / "labels.parquet"

    @property
    def concepts(self) -> Path:
        """A row for each live latent, with its name."""
        return self.root / "concepts.parquet"

    @property
    def naming(self) -> Path:
        """The figures of the naming."""
        return self.root / "naming.json"

    @property
    def vocabulary(self) -> Path:
        """The vocabulary that the run was named with."""
        return self.root / "vocabulary.json"

    @property
    def bottlenecks(self) -> Path:
        """A row for each concept bottleneck."""
        return self.root / "bottlenecks.parquet"

    @property
    def bottlenecks_reason(self) -> Path:
        """Why there are no bottlenecks."""
        return self.root / "bottlenecks.reason.json"

    def head(self, name: str = "label") -> Path:
        """A linear head."""
        return self.root / "heads" / f"{name}.safetensors"

    def head_reason(self, name: str = "label") -> Path:
        """Why there is no such head."""
        return self.root / "heads" / f"{name}.reason.json"

    # ---- suppression

    def concept_latent(self, concept: str) -> Path:
        """The folder of the concept latent of a concept, in the layout of sae-lens."""
        return self.root / "concept_latents" / concept

    def recipe(self, concept: str) -> Path:
        """The suppression recipe of a concept."""
        return self.root / "recipes" / f"{concept}.recipe.json"

    def effects(self, concept: str) -> Path:
        """The figures of a suppression."""
        return self.root / "suppression" / f"{concept}.json"

    def suppressed_images(self, concept: str) -> Path:
        """A row for each image that the figures of a suppression are of, before and after."""
        return self.root / "suppression" / f"{concept}.parquet"

    @property
    def verdict(self) -> Path:
        """A row for each artifact: whether the head of the run leans on it."""
        return self.root / "verdict.parquet"

    def suppression_reason(self, concept: str) -> Path:
        """Why there is no recipe for a concept."""
        return self.root / "suppression" / f"{concept}.reason.json"

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.root / "report" / "index.html"
