"""Suppression recipes: what is suppressed, how, and with what measured effect, in one file.

`<concept>.recipe.json` has a canonical body, whose sha256 is its identity, and an envelope (author,
date, signature: not hashed). Loading fails closed: a changed body, another model, preprocessing or
SAE is refused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dermaudit.errors import ForeignArtifactError, StaleArtifactError
from dermaudit.files import read_json, sha256_file, sha256_json, write_json
from dermaudit.run.directory import Run

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Recipe:
    """`body`: concept, model, sae, latents [{latent, why}], operation, effects, limits."""

    body: dict[str, Any]

    @property
    def latents(self) -> list[int]:
        return [entry["latent"] for entry in self.body["latents"]]

    @property
    def site(self) -> str:
        return self.body["sae"]["site"]

    @property
    def sha256(self) -> str:
        return sha256_json(self.body)

    def save(self, path: Path) -> None:
        write_json(
            path,
            {
                "format_version": FORMAT_VERSION,
                "body": self.body,
                "body_sha256": self.sha256,
                "envelope": {"author": None, "date": None, "signature": None},
            },
        )

    @classmethod
    def load(cls, path: Path) -> Recipe:
        raw = read_json(path, "recipe")
        if (
            not isinstance(raw, dict)
            or raw.get("format_version") != FORMAT_VERSION
            or "body" not in raw
        ):
            raise ForeignArtifactError(f"{path} is not a recipe of this version")
        recipe = cls(raw["body"])
        if recipe.sha256 != raw.get("body_sha256"):
            raise StaleArtifactError(
                f"{path} was altered: its body does not have the hash that it names",
                "make it again: dermaudit recipe make --concept …",
            )
        return recipe

    def check(self, run: Run, path: Path | str) -> None:
        """Refuse a recipe that was made with another model or SAE than this run's."""
        mine = run.meta["model"]
        if self.body["model"]["fingerprint"] != mine["fingerprint"]:
            raise ForeignArtifactError(
                f"{path} was made for the model {self.body['model']['name']}, not for {mine['name']}",
                "make a recipe in this run: dermaudit recipe make",
            )
        facts = sae_facts(run, self.site)
        if any(self.body["sae"].get(name) != facts.get(name) for name in ("weights_sha256", "k")):
            raise StaleArtifactError(
                f"{path} was made with another SAE at {self.site} than the run {run.path} has",
                "make it again: dermaudit recipe make --force",
            )


def sae_facts(run: Run, site: str) -> dict[str, Any]:
    """What a recipe says of the SAE that it stands on: its hash, and of a per-sample TopK its k, which
    the weights do not hold."""
    cfg = read_json(run.file("sae", site, "cfg.json"), "SAE config")
    facts = {"site": site, "weights_sha256": sae_hash(run, site), "d_sae": cfg["d_sae"]}
    return {**facts, "k": cfg["k"]} if cfg["architecture"] == "topk" else facts


def sae_hash(run: Run, site: str) -> str:
    return sha256_file(run.file("sae", site, "sae_weights.safetensors"))


def rounded(value: Any, digits: int = 6) -> Any:
    """`value` with floats rounded and nan as None: what stands in a canonical body."""
    if isinstance(value, float):
        return round(value, digits) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: rounded(item, digits) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item, digits) for item in value]
    return value
