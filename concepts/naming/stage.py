"""The stage `name`: names made on train and val images, compared with labels on test images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypedDict

import numpy as np

from dermaudit.console import say
from dermaudit.failpoints import hit
from dermaudit.files import write_json, write_parquet, write_text
from dermaudit.options import option
from dermaudit.run.directory import Run
from dermaudit.run.records import Made
from dermaudit.run.stages import Record, StageOptions, stage
from dermaudit.sae.run_data import RunData
from dermaudit.stats.intervals import auprc_table

from ..inputs import THREADS_HELP, VOCABULARY_HELP, tower_of, vocabulary_of
from ..results import rounded
from ..vocabulary.vocabulary import Vocabulary
from .concept_rows import ConceptRow, concept_table
from .methods.registry import Names, naming_method
from .reference_names import UNNAMED, judged_rows, name_fields, reference_names
from .two_halves import (
    NOT_FOUND,
    UNNAMED_WORD,
    HalfNames,
    NamesOfHalves,
    compared,
    names_of_halves,
)

TOP_ROWS = 24
RESIDUAL = "residual: several fits of the SAE do not agree on this latent"


NAME = Record(
    "name",
    reads=("images", "embed", "fit:*", "seeds:*?"),
    writes=("concepts.parquet", "naming.json", "vocabulary.json"),
)


@dataclass(frozen=True, kw_only=True)
class NameOptions(StageOptions):
    """The options of `name`."""

    vocabulary: str | None = option(None, VOCABULARY_HELP)
    method: str = option("permutation", "naming method")
    threads: int = option(1, THREADS_HELP, minimum=1)


class NamingFigures(TypedDict):
    """How many of the live latents are named, and how many names are wrong; rates from 0 to 1."""

    named: int
    unnamed: int
    coverage: float | None  # named / live latents; None without live latents
    named_under_permutation: int  # latents that would be named with permuted activations
    n_judged: int  # names that labels of test images can confirm or refute
    wrong_among_named: float | None  # share of n_judged; None if it is 0
    two_halves: dict[str, NamesOfHalves]  # by site; {} where no dictionaries of halves were fitted


@stage("name", NameOptions, NAME)
def name(run: Run, options: NameOptions) -> dict[str, Any]:
    """Name the latents that a word explains better than chance.

    The other latents stay unnamed.
    """
    words = vocabulary_of(run, options.vocabulary)
    return name_run(run, words, tower_of(run, options.threads), options)


def name_run(
    run: Run, vocabulary: Vocabulary, tower: Any, options: NameOptions = NameOptions()
) -> dict[str, Any]:
    """Name the latents of every site: `concepts.parquet`, `naming.json` and `vocabulary.json`.

    Names are made on train and val images and compared with labels on test images.
    """
    seed, method = run.seed(options.seed), naming_method(options.method)

    def make() -> Made[NamingFigures]:
        data = RunData(run)
        vectors, distractors = vocabulary.text_vectors(tower)
        rows: list[ConceptRow] = []
        permuted, two_halves = 0, {}
        seen = np.flatnonzero(data.rows("train", "val"))

        def names_of(codes: np.ndarray, images: np.ndarray) -> Names:
            embeddings = data.pooled[images]
            return method(codes, embeddings, vectors, distractors, vocabulary, seed=seed)

        for site in data.sites:
            reference = data.reference(site)
            if reference is not None:
                known = reference_names(reference, site, vocabulary)
                rows += _site_rows(data, site, partial(name_fields, known))
                continue
            count = data.n_concepts(site)
            names = names_of(data.codes(site).csr()[seen, :count].toarray(), seen)
            permuted += names.named_under_permutation
            halves = names_of_halves(data, site, names_of)
            if halves:
                two_halves[site] = compared(*halves, seed=seed)
            rows += _site_rows(data, site, _NamesOfRun(data, site, names, vocabulary, halves))
        n_judged, wrong = _judge(data, rows)
        alive, named = len(rows), sum(row["name"] is not None for row in rows)
        figures: NamingFigures = rounded(
            {
                "named": named,
                "unnamed": alive - named,
                "coverage": named / alive if alive else None,
                "named_under_permutation": permuted,
                "n_judged": n_judged,
                "wrong_among_named": wrong,
                "two_halves": two_halves,
            }
        )
        described = {"vocabulary": vocabulary.name, "vocabulary_sha256": vocabulary.sha256()}
        files = [run.files.concepts, run.files.naming, run.files.vocabulary]
        write_parquet(files[0], concept_table(rows))
        write_json(files[1], {**figures, **described})
        write_text(files[2], vocabulary.as_json())
        hit("name")
        return files, figures

    inputs = {"seed": seed, "vocabulary": vocabulary.sha256()}
    if options.method != "permutation":  # runs of earlier versions did not record the method
        inputs["method"] = options.method
    figures = run.perform(NAME, inputs, make, force=options.force, reads=_reads(run))
    wrong = figures["wrong_among_named"]
    say(
        f"  {figures['named']} latents named, {figures['unnamed']} unnamed; with permuted activations "
        f"{figures['named_under_permutation']} would be named; {figures['n_judged']} names have labels"
        + (f", {wrong:.0%} of them are wrong" if wrong is not None else "")
    )
    for site, halves in figures["two_halves"].items():
        if halves["same"] is not None:
            say(
                f"  {site}: of {halves['n_pairs']} latents that the dictionaries of two halves share, "
                f"{halves['n_named_in_both']} are named in both, {halves['same']:.0%} of them alike "
                f"(by chance {halves['by_chance']:.0%})"
            )
    return {"run": str(run.path), **figures}


def _reads(run: Run) -> list[str]:
    """Return what the names are made from; dictionaries of halves of an earlier SAE are not read."""
    data = RunData(run)
    reads = run.reads_of(NAME)
    return [one for one in reads if not one.startswith("seeds:") or data.is_current(one)]


def _site_rows(
    data: RunData, site: str, name_of: Callable[[int], dict[str, Any]]
) -> list[ConceptRow]:
    """Return one row for each live latent of a site, not yet compared with labels; `name_of` gives its name and the
    evidence for it.
    """
    codes = data.codes(site)
    rows = []
    active = codes.n_active()
    for latent in map(int, np.flatnonzero(active)):
        column = codes.column(latent)
        top = np.argsort(-column, kind="stable")[: min(TOP_ROWS, int(active[latent]))]
        row: Any = {
            "site": site,
            "latent": latent,
            "n_active": int(active[latent]),
            "frequency": float(active[latent] / data.n),
            "top_rows": [int(row) for row in top],
            "label_concept": None,
            **name_of(latent),
            "label_auprc": None,
            "wrong": None,
        }
        rows.append(row)
    return rows


class _NamesOfRun:
    """The names that were made on the images of the run, by latent; a residual latent has none."""

    def __init__(
        self,
        data: RunData,
        site: str,
        names: Names,
        vocabulary: Vocabulary,
        halves: list[HalfNames],
    ) -> None:
        self.names, self.vocabulary = names, vocabulary
        self.agreement, self.count = data.agreement(site), data.n_concepts(site)
        self.of_halves: list[np.ndarray] = []
        if halves:
            directions = data.sae(site).W_dec.numpy()[: self.count]
            self.of_halves = [half.names_of(directions) for half in halves]

    def __call__(self, latent: int) -> dict[str, Any]:
        if latent >= self.count:
            return {**UNNAMED, "reason": RESIDUAL}
        names, word = self.names, int(self.names.word[latent])
        concept = self.vocabulary.concepts[word] if word >= 0 else None
        return {
            "name": concept.id if concept else None,
            "type": concept.type if concept else None,
            "z": _finite(names.z[latent]),
            "p_null": _finite(names.p_null[latent]),
            "q": _finite(names.q[latent]),
            "p_correct": None,
            "rivals": names.rivals[latent],
            "reason": names.reason[latent],
            "agreement": None if self.agreement is None else float(self.agreement[latent]),
            "half_names": [self._half_name(int(words[latent])) for words in self.of_halves] or None,
        }

    def _half_name(self, word: int) -> str:
        if word == NOT_FOUND:
            return "not found"
        return "unnamed" if word == UNNAMED_WORD else self.vocabulary.concepts[word].id


def _judge(data: RunData, rows: list[ConceptRow]) -> tuple[int, float | None]:
    """Compare names with labels on the images that judge them (`judged_rows`), and fill `label_concept`,
    `label_auprc` and `wrong`.
    Return the number of names with a label, and the share of them that is wrong.

    A name is wrong if its latent ranks another labelled concept better (by normalised lift
    (AUPRC − prevalence) / (1 − prevalence)), or its own concept no better than chance. The label
    shown next to a latent (`label_concept`) is chosen on train and val and scored on test; with the reference
    dictionary it was chosen on the images of the reference.
    """
    truths = list(data.truth.values())
    judges = judged_rows(data)
    test, seen = np.flatnonzero(judges), np.flatnonzero(~judges & data.rows("train", "val"))
    if not truths or not len(test):
        return 0, None
    table, lift = _auprc_and_lift(data, test)
    choice = _auprc_and_lift(data, seen)[1] if len(seen) else None
    index = {truth.name: i for i, truth in enumerate(truths)}
    judged = wrong = 0
    for row in rows:
        above = lift[row["site"]][:, row["latent"]]
        if not np.isfinite(above).any():
            continue
        best = int(np.nanargmax(above))
        if choice is not None:
            known = np.where(np.isfinite(above), choice[row["site"]][:, row["latent"]], np.nan)
            best_label = int(np.nanargmax(known)) if np.isfinite(known).any() else -1
            row["label_concept"] = truths[best_label].name if best_label >= 0 else None
        label = index.get(row["label_concept"] or "")
        if label is not None and np.isfinite(above[label]):
            row["label_auprc"] = float(table[row["site"]][label, row["latent"]])
        if row["name"] in index and np.isfinite(above[index[row["name"]]]):
            own = above[index[row["name"]]]
            row["wrong"] = bool(own <= 0 or own < above[best] - 1e-12)
            judged += 1
            wrong += row["wrong"]
    return judged, wrong / judged if judged else None


def _auprc_and_lift(data: RunData, rows: np.ndarray) -> tuple[dict, dict]:
    """Return, per site, the AUPRC on `rows` and the normalised lift, each (truths, d_sae); the lift is
    nan for a truth with fewer than 5 positives.
    """
    values = np.stack([truth.values[rows] for truth in data.truth.values()], 1)
    known, positives = np.isfinite(values).sum(0), np.nansum(values, 0)
    prevalence = np.where(positives >= 5, positives / np.maximum(known, 1), np.nan)
    table = {
        site: auprc_table(data.codes(site).csr()[rows].toarray(), values) for site in data.sites
    }
    with np.errstate(invalid="ignore", divide="ignore"):
        lift = {
            s: (ap - prevalence[:, None]) / (1 - prevalence[:, None]) for s, ap in table.items()
        }
    return table, lift


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
