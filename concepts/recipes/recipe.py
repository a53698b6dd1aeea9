"""Suppression recipes: what is suppressed, how, and with what measured effect, in one file.

`<concept>.recipe.json` has a canonical body, whose sha256 is its identity, and an envelope (author,
date, signature: not hashed). The body holds the weights of the latents, so that it can be used without the
run. Loading fails closed: a changed body, another model or preprocessing is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

from dermaudit.console import say
from dermaudit.errors import (
    AlteredArtifactError,
    ForeignArtifactError,
    StaleArtifactError,
    UserInputError,
)
from dermaudit.files import indented_json, read_json, sha256_file, sha256_json, write_bytes
from dermaudit.run.directory import Run

from .distribution import Distribution
from .signature import UNSIGNED, Envelope, check_signature
from .weights import Weights, unpacked

if TYPE_CHECKING:
    from dermaudit.sae import ThresholdSAE

FORMAT_VERSION = 2


class SAEFacts(TypedDict):
    """The SAE of a run that the latents are of."""

    weights_sha256: str
    d_sae: int
    k: NotRequired[int]  # of a per-sample TopK: the weights do not contain it


class LatentEntry(TypedDict):
    """One suppressed latent, with the figures that it was chosen by."""

    latent: int
    why: dict[str, float]
    concept: NotRequired[str]  # of a merged recipe


class Operation(TypedDict):
    """What is done to the codes of the latents; the levels are those that the effect was measured with."""

    mode: str  # a name of dermaudit.sae.inference.modes
    renormalise: bool  # embeddings keep unit length
    error_term: str  # "kept": what the SAE does not explain stays in the embedding
    level: NotRequired[list[float]]  # one a latent; modes mean, clamp and scale
    gate_level: NotRequired[float]  # mode reactive
    level_from: NotRequired[str]  # the images that the levels come from


class Intercept(TypedDict):
    """The prevalence-matched operating point of one head: `value` is added to the logit of the target after
    suppression, so that it is predicted for as many of `n` images (train and val of the run) as before.
    """

    head: str  # a head of the run, or "zeroshot"
    head_sha256: str | None  # of the file; None for zeroshot
    value: float
    n: int


class RecipeBody(TypedDict):
    """What a recipe says. Its hash is the identity of the recipe, so no key may change its name."""

    concept: str
    target: str
    model: dict[str, Any]  # name, fingerprint, preprocess, as run.json has them
    site: str
    source: str  # what the latents are of: "sae", the SAE of the run, or "concept_latent"
    sae: SAEFacts | None  # None for a concept latent
    vocabulary_sha256: str
    data: dict[str, str]  # images_sha256
    latents: list[LatentEntry]
    weights: Weights | None  # None for a per-sample TopK, which needs all its latents
    operation: Operation
    distribution: Distribution  # of the images that it was made from
    intercept: Intercept | None  # None where the head of the run lacks the target
    protocol: dict[str, Any]  # method, trap_strength, folds, seed
    effects: dict[str, Any]  # figures.Figures without the latents and the random changes
    limits: list[str]  # sentences
    accepted_limits: str | None  # why it was written although the evidence did not allow it
    parent: list[str] | None  # the hashes of the recipes that this one was merged from


@dataclass(frozen=True)
class SuppressionRecipe:
    """One recipe, read or made; see RecipeBody. `envelope`: who signed it."""

    body: RecipeBody
    envelope: Envelope = field(default_factory=UNSIGNED.copy)

    @property
    def latents(self) -> list[int]:
        """The latents that are suppressed, as their SAE numbers them."""
        return [entry["latent"] for entry in self.body["latents"]]

    @property
    def latent_names(self) -> list[str]:
        """What the latents are called in tables: the number of a latent of an SAE, or the concept."""
        if self.body["source"] == "concept_latent":
            return [entry.get("concept", self.body["concept"]) for entry in self.body["latents"]]
        return [str(latent) for latent in self.latents]

    @property
    def site(self) -> str:
        """The site whose embedding is edited."""
        return self.body["site"]

    @property
    def sha256(self) -> str:
        """The hash of the body: the identity of the recipe."""
        return sha256_json(self.body)

    def sae(self) -> ThresholdSAE | None:
        """Return an SAE of the latents of the recipe alone, in their order; None for a per-sample TopK.

        Raises ForeignArtifactError for weights that do not fit together.
        """
        if self.body["weights"] is None:
            return None
        return unpacked(self.body["weights"], self.site)

    def save(self, path: Path) -> None:
        """Write the recipe with the hash of its body."""
        write_bytes(path, self._file())

    def _file(self) -> bytes:
        """Return the one byte string that a file of this recipe has."""
        raw = {
            "format_version": FORMAT_VERSION,
            "body": self.body,
            "body_sha256": self.sha256,
            "envelope": self.envelope,
        }
        return indented_json(raw)

    @classmethod
    def load(cls, path: Path) -> SuppressionRecipe:
        """Read a recipe. It fails closed: AlteredArtifactError for a file that is not byte for byte what `save`
        writes of it, or whose signature is not of it; ForeignArtifactError for another format or unknown keys.
        """
        raw = read_json(path, "recipe")
        if not isinstance(raw, dict) or not isinstance(raw.get("body"), dict):
            raise ForeignArtifactError(f"{path} is not a recipe")
        if raw.get("format_version") != FORMAT_VERSION:
            raise ForeignArtifactError(
                f"{path} is a recipe of format {raw.get('format_version')}; this dermaudit reads "
                f"format {FORMAT_VERSION}",
                "make it again: dermaudit recipe make --concept NAME --run RUN --force",
            )
        _check_keys(raw.get("envelope"), Envelope, "envelope", path)
        _check_keys(raw["body"], RecipeBody, "body", path)
        recipe = cls(raw["body"], raw["envelope"])
        try:
            intact = recipe.sha256 == raw.get("body_sha256") and recipe._file() == path.read_bytes()
        except ValueError:  # nan, or half of a surrogate pair: JSON that dermaudit does not write
            intact = False
        if not intact:
            raise AlteredArtifactError(
                f"{path} was altered: it is not what dermaudit wrote with the recorded hash",
                f"run: dermaudit recipe make --concept {raw['body'].get('concept')} "
                f"--run {path.absolute().parent.parent} --force",
            )
        check_signature(recipe.sha256, recipe.envelope, path)
        return recipe

    def show(self) -> None:
        """Print what is suppressed, the measured effect and the limits of the evidence."""
        body, operation = self.body, self.body["operation"]
        what = f"latents {self.latents}"
        if body["source"] == "concept_latent":
            several = len(self.latents) > 1
            what = (
                f"the concept latents of {', '.join(self.latent_names)}"
                if several
                else "a concept latent"
            )
        say(f"{body['concept']}: {operation['mode']} {what} at {self.site}")
        model = body["model"]
        say(f"  model {model['name']} ({model['fingerprint'][:12]}…), recipe {self.sha256[:12]}…")
        if body["accepted_limits"]:
            say(f"  WRITTEN AGAINST THE EVIDENCE, because: {body['accepted_limits']}")
        for name in ("level", "gate_level", "level_from"):
            if name in operation:
                say(f"  {name}: {operation.get(name)}")
        for line in effect_lines(body["effects"], body["target"]):
            say(f"  {line}")
        intercept = body["intercept"]
        if intercept is not None:
            say(
                f"  prevalence-matched threshold: {intercept['value']:+.3f} on the logit of "
                f"{body['target']} (head {intercept['head']}, {intercept['n']} images)"
            )
        for limit in body["limits"]:
            say(f"  limit: {limit}")

    def check_model(self, fingerprint: str) -> None:
        """Refuse a recipe that was made with another model, or with another preprocessing of images."""
        model = self.body["model"]
        if model["fingerprint"] != fingerprint:
            raise ForeignArtifactError(
                f"the recipe for {self.body['concept']} was made for the model {model['name']} "
                f"({model['fingerprint'][:12]}…), not for this one ({fingerprint[:12]}…)",
                "load the model that the recipe names, or make a recipe for this one",
            )

    def check(self, run: Run, path: Path | str) -> None:
        """Refuse a recipe that was made with another model or SAE than this run's."""
        mine = run.meta["model"]
        again = run.remake_command(f"recipe:{self.body['concept']}")
        if self.body["model"]["fingerprint"] != mine["fingerprint"]:
            raise ForeignArtifactError(
                f"{path} was made for the model {self.body['model']['name']}, not for {mine['name']}",
                f"run: {again}",
            )
        if self.body["sae"] is not None and self.body["sae"] != sae_facts(run, self.site):
            raise StaleArtifactError(
                f"{path} was made with another SAE at {self.site} than the run {run.path} has",
                f"run: {again}",
            )


def _check_keys(found: Any, kind: type, what: str, path: Path) -> None:
    """Refuse an object whose keys are not those of its kind."""
    known = set(kind.__annotations__)
    if not isinstance(found, dict):
        raise ForeignArtifactError(f"{path}: the {what} of the recipe is no object")
    if unknown := sorted(set(found) - known):
        raise ForeignArtifactError(
            f"{path}: the {what} of the recipe has the unknown key '{unknown[0]}'",
            "it may be of a newer dermaudit: install that",
        )
    if missing := sorted(known - set(found)):
        raise ForeignArtifactError(f"{path}: the {what} of the recipe lacks the key '{missing[0]}'")


def effect_lines(effects: dict[str, Any], target: str) -> list[str]:
    """Return the measured effect at its three operating points, in sentences."""
    if "cross_group_auroc_before" not in effects:
        return ["effect: not measured"]

    def text(value: float | None, form: str = ".2f") -> str:
        return "n too small" if value is None else f"{value:{form}}"

    def pair(values: Sequence[float | None], form: str = "+.3f") -> str:
        return f"[{text(values[0], form)}, {text(values[1], form)}]"

    concept_free = effects["clean_auroc_delta"]
    return [
        f"cross-group AUROC ({target} without the concept against the rest with it): "
        f"{text(effects['cross_group_auroc_before'])} → {text(effects['cross_group_auroc_after'])}, "
        f"change {pair(effects['ci'])}; a head without the trap reaches {text(effects['oracle'])}",
        f"AUROC without the concept: {text(concept_free, '+.3f')} {pair(effects['clean_auroc_ci'])}",
        f"worst group: {text(effects['worst_group_before'])} before, "
        f"{text(effects['worst_group_fixed'])} at the unchanged threshold, "
        f"{text(effects['worst_group_prevalence'])} at the prevalence-matched one",
        f"{effects['random_beaten']} of {len(effects.get('random_changes') or range(100))} random "
        f"latents beaten; {effects['identity_share']:.0%} of the images stay as they are",
        *_stability_line(effects),
    ]


def _stability_line(effects: dict[str, Any]) -> list[str]:
    if "stability" not in effects:
        return []
    found = effects["stability"]
    if found is None:
        return ["stability: not measured, half of the images is too few"]
    return [
        "stability: made from two halves of the groups, it takes off directions with a cosine of "
        f"{found['cosine']:.2f} ({found['low']:.2f} to {found['high']:.2f} in {found['halvings']} halvings)"
    ]


def sae_facts(run: Run, site: str) -> SAEFacts:
    """Return what a recipe records of the SAE of a site."""
    cfg = read_json(run.files.sae_config(site), "SAE config")
    facts = SAEFacts(weights_sha256=sae_hash(run, site), d_sae=cfg["d_sae"])
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
