"""Suppression recipes: what is suppressed, how, and with what measured effect, in one file.

`<concept>.recipe.json` has a canonical body, whose sha256 is its identity, and an envelope (author,
date, signature: not hashed). Loading fails closed: a changed body, another model, preprocessing or
SAE is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from dermaudit.console import say
from dermaudit.errors import ForeignArtifactError, StaleArtifactError, UserInputError
from dermaudit.files import read_json, sha256_file, sha256_json, write_json
from dermaudit.run.directory import Run

FORMAT_VERSION = 1
SHOWN_EFFECTS = (
    "worst_group_before",
    "worst_group_after",
    "ci",
    "clean_auroc_delta",
    "insertion_residual",
)


class SAEFacts(TypedDict):
    """The SAE that the latents are of."""

    site: str
    weights_sha256: str
    d_sae: int
    k: NotRequired[int]  # of a per-sample TopK: the weights do not contain it


class LatentEntry(TypedDict):
    """One suppressed latent, with the figures that it was chosen by."""

    latent: int
    why: dict[str, float]


class Operation(TypedDict):
    """What is done to the codes of the latents; the levels are those that the effect was measured with."""

    mode: str  # a name of dermaudit.sae.inference.modes
    renormalise: bool  # embeddings keep unit length
    error_term: str  # "kept": what the SAE does not explain stays in the embedding
    level: NotRequired[list[float]]  # one a latent; modes mean, clamp and scale
    gate_level: NotRequired[float]  # mode reactive
    level_from: NotRequired[str]  # the images that the levels come from


class RecipeBody(TypedDict):
    """What a recipe says. Its hash is the identity of the recipe, so no key may change its name."""

    concept: str
    target: str
    model: dict[str, Any]  # name, fingerprint, preprocess, as run.json has them
    sae: SAEFacts
    vocabulary_sha256: str
    data: dict[str, str]  # images_sha256
    latents: list[LatentEntry]
    operation: Operation
    protocol: dict[str, Any]  # trap_strength, seed, and the method of choice unless it is "effect"
    effects: dict[str, Any]  # figures.Figures without the latents and the random lifts
    limits: list[str]  # sentences
    parent: None  # reserved for recipes that are made from another


@dataclass(frozen=True)
class SuppressionRecipe:
    """One recipe, read or made; see RecipeBody."""

    body: RecipeBody

    @property
    def latents(self) -> list[int]:
        """The latents that are suppressed."""
        return [entry["latent"] for entry in self.body["latents"]]

    @property
    def site(self) -> str:
        """The site whose embedding is edited."""
        return self.body["sae"]["site"]

    @property
    def sha256(self) -> str:
        """The hash of the body: the identity of the recipe."""
        return sha256_json(self.body)

    def save(self, path: Path) -> None:
        """Write the recipe with the hash of its body."""
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
    def load(cls, path: Path) -> SuppressionRecipe:
        """Read a recipe. StaleArtifactError if its body was altered."""
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
                f"{path} was altered: its body does not have the recorded hash",
                f"run: dermaudit recipe make --concept {raw['body'].get('concept')} "
                f"--run {path.absolute().parent.parent} --force",
            )
        return recipe

    def show(self) -> None:
        """Print what is suppressed, the measured effect and the limits of the evidence."""
        body, operation = self.body, self.body["operation"]
        say(f"{body['concept']}: {operation['mode']} latents {self.latents} at {self.site}")
        model = body["model"]
        say(f"  model {model['name']} ({model['fingerprint'][:12]}…), recipe {self.sha256[:12]}…")
        for name in ("level", "gate_level", "level_from"):
            if name in operation:
                say(f"  {name}: {operation.get(name)}")
        for key in SHOWN_EFFECTS:
            say(f"  {key}: {body['effects'].get(key)}")
        for limit in body["limits"]:
            say(f"  limit: {limit}")

    def check(self, run: Run, path: Path | str) -> None:
        """Refuse a recipe that was made with another model or SAE than this run's."""
        mine = run.meta["model"]
        again = run.remake_command(f"recipe:{self.body['concept']}")
        if self.body["model"]["fingerprint"] != mine["fingerprint"]:
            raise ForeignArtifactError(
                f"{path} was made for the model {self.body['model']['name']}, not for {mine['name']}",
                f"run: {again}",
            )
        facts = sae_facts(run, self.site)
        if any(self.body["sae"].get(name) != facts.get(name) for name in ("weights_sha256", "k")):
            raise StaleArtifactError(
                f"{path} was made with another SAE at {self.site} than the run {run.path} has",
                f"run: {again}",
            )


def sae_facts(run: Run, site: str) -> SAEFacts:
    """Return what a recipe records of the SAE of a site."""
    cfg = read_json(run.files.sae_config(site), "SAE config")
    facts = SAEFacts(site=site, weights_sha256=sae_hash(run, site), d_sae=cfg["d_sae"])
    if cfg["architecture"] == "topk":
        facts["k"] = cfg["k"]
    return facts


def sae_hash(run: Run, site: str) -> str:
    """Return the sha256 of the weights of the SAE of a site."""
    return sha256_file(run.files.sae_weights(site))


def load_recipe(run: Run, concept: str) -> SuppressionRecipe:
    """Return the run's recipe for a concept, verified with everything that it was made from.

    Raises UserInputError if the run has none, StaleArtifactError for a recipe that the run did not
    record, or a changed file that it was made from.
    """
    path, stage = run.files.recipe(concept), f"recipe:{concept}"
    recorded = run.meta["stages"].get(stage, {}).get("outputs", {})
    if f"recipes/{path.name}" not in recorded:
        if path.is_file():
            raise StaleArtifactError(
                f"{path} was not made by the run {run.path} (run.json has no {stage})",
                f"run: {run.remake_command(stage)}",
            )
        have = sorted(
            p.name.removesuffix(".recipe.json") for p in path.parent.glob("*.recipe.json")
        )
        raise UserInputError(
            f"the run {run.path} has no recipe for '{concept}'",
            (f"it has: {', '.join(have)}; " if have else "")
            + f"run: {run.remake_command(stage, force=False)}",
        )
    run.require(stage)
    recipe = SuppressionRecipe.load(path)
    recipe.check(run, path)
    return recipe
