"""The stage `name`: names made on train and val images, compared with labels on test images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from dermaudit.console import say
from dermaudit.failpoints import hit
from dermaudit.files import sha256_file, write_json, write_parquet, write_text
from dermaudit.options import option
from dermaudit.run.directory import Run
from dermaudit.run.records import Made
from dermaudit.run.stages import Record, StageOptions, stage
from dermaudit.sae.run_data import RunData

from ..inputs import THREADS_HELP, VOCABULARY_HELP, tower_of, vocabulary_of
from ..results import rounded
from ..vocabulary.vocabulary import Vocabulary
from .calibration import FILE as CALIBRATION
from .concept_rows import ConceptRow, concept_table
from .methods.registry import VERDICTS, Names, naming_method
from .naming import RunNamer, judge_of
from .reference_names import UNNAMED, judged_rows, name_fields, reference_names

if TYPE_CHECKING:
    from .two_halves import HalfNames, NamesOfHalves

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
    method: str = option("fused", "naming method")
    risk: float = option(
        0.1, "largest share of wrong names that you accept (from 0 to 1)", minimum=0.0, maximum=1.0
    )
    threads: int = option(1, THREADS_HELP, minimum=1)


class NamingFigures(TypedDict):
    """How many of the live latents are named, and how many names are wrong; rates from 0 to 1."""

    named: int
    unnamed: int
    coverage: float | None  # named / live latents; None without live latents
    verdicts: dict[str, int]
    named_under_permutation: int  # latents that would be named with permuted activations
    n_judged: int  # names that labels of test images can confirm or refute
    wrong_among_named: float | None  # share of n_judged; None if it is 0
    # The same, where a concept that is easily mistaken for another counts as it.
    wrong_tolerant: float | None
    two_halves: dict[str, NamesOfHalves]  # by site; {} where no dictionaries of halves were fitted


@stage("name", NameOptions, NAME)
def name(run: Run, options: NameOptions) -> dict[str, Any]:
    """Name the latents, by labels where one explains a latent and by words elsewhere.

    A name is given if it is right with enough probability; else the answer is a set of words, or why there is none.
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
        from .two_halves import compared, names_of_halves  # with torch

        data = RunData(run)
        namer = RunNamer(
            data, method, vocabulary, *vocabulary.text_vectors(tower), options.risk, seed
        )
        rows: list[ConceptRow] = []
        permuted, two_halves = 0, {}
        for site in data.sites:
            reference = data.reference(site)
            if reference is not None:
                known = reference_names(reference, site, vocabulary)
                rows += _site_rows(data, site, partial(name_fields, known))
                continue
            names = namer.of_run(site)
            permuted += names.named_under_permutation
            halves = names_of_halves(namer, site)
            if halves:
                two_halves[site] = compared(*halves, seed=seed)
            rows += _site_rows(data, site, _NamesOfRun(data, site, names, vocabulary, halves))
        figures: NamingFigures = rounded(_figures(data, vocabulary, rows, permuted, two_halves))
        described = {"vocabulary": vocabulary.name, "vocabulary_sha256": vocabulary.sha256()}
        files = [run.files.concepts, run.files.naming, run.files.vocabulary]
        write_parquet(files[0], concept_table(rows))
        write_json(files[1], {**figures, **described})
        write_text(files[2], vocabulary.as_json())
        hit("name")
        return files, figures

    inputs = {
        "seed": seed,
        "vocabulary": vocabulary.sha256(),
        "method": options.method,
        "risk": options.risk,
        "calibration": sha256_file(CALIBRATION),
    }
    figures = run.perform(NAME, inputs, make, force=options.force, reads=_reads(run))
    _say(figures)
    for site, halves in figures["two_halves"].items():
        if halves["same"] is not None:
            say(
                f"  {site}: of {halves['n_pairs']} latents that the dictionaries of two halves share, "
                f"{halves['n_named_in_both']} are named in both, {halves['same']:.0%} of them alike "
                f"(by chance {halves['by_chance']:.0%})"
            )
    return {"run": str(run.path), **figures}


def _figures(
    data: RunData,
    vocabulary: Vocabulary,
    rows: list[ConceptRow],
    permuted: int,
    two_halves: dict[str, NamesOfHalves],
) -> NamingFigures:
    """Judge the names in `rows`, which fills their figures of labels, and count the verdicts."""
    judged = _judge(data, vocabulary, rows)
    n, wrong, tolerant = len(judged), sum(w for w, _ in judged), sum(t for _, t in judged)
    named = sum(row["name"] is not None for row in rows)
    verdicts = Counter(row["verdict"] for row in rows)
    return {
        "named": named,
        "unnamed": len(rows) - named,
        "coverage": named / len(rows) if rows else None,
        "verdicts": {verdict: verdicts[verdict] for verdict in VERDICTS},
        "named_under_permutation": permuted,
        "n_judged": n,
        "wrong_among_named": wrong / n if n else None,
        "wrong_tolerant": tolerant / n if n else None,
        "two_halves": two_halves,
    }


def _say(figures: NamingFigures) -> None:
    verdicts, wrong = figures["verdicts"], figures["wrong_among_named"]
    counted = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items())
    judged = f"; {figures['n_judged']} names have labels"
    if wrong is not None:
        judged += f", {wrong:.0%} of them are wrong"
    say(
        f"  latents: {counted}; with permuted activations {figures['named_under_permutation']} would be "
        f"named{judged}"
    )


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
            "verdict": names.verdict[latent],
            "name": concept.id if concept else None,
            "type": concept.type if concept else None,
            "named_by": names.named_by[latent],
            "z": _finite(names.z[latent]),
            "p_null": _finite(names.p_null[latent]),
            "q": _finite(names.q[latent]),
            "p_correct": None if names.p_correct is None else _finite(names.p_correct[latent]),
            "rivals": names.rivals[latent],
            "reason": names.reason[latent],
            "one_of": [self.vocabulary.concepts[w].id for w in names.sets[latent]] or None,
            "agreement": None if self.agreement is None else float(self.agreement[latent]),
            "half_names": [self._half_name(int(words[latent])) for words in self.of_halves] or None,
        }

    def _half_name(self, word: int) -> str:
        from .two_halves import NOT_FOUND, UNNAMED_WORD

        if word == NOT_FOUND:
            return "not found"
        return "unnamed" if word == UNNAMED_WORD else self.vocabulary.concepts[word].id


def _judge(
    data: RunData, vocabulary: Vocabulary, rows: list[ConceptRow]
) -> list[tuple[bool, bool]]:
    """Compare names with labels on the images that judge them (`judged_rows`, judging.py), and fill `label_concept`,
    `label_auprc` and `wrong`. Return for each name with a label whether it is wrong, strictly and tolerantly.

    The label shown next to a latent (`label_concept`) is chosen on train and val and scored on test; with the
    reference dictionary it was chosen on the images of the reference.
    """
    judges = judged_rows(data)
    test, seen = np.flatnonzero(judges), np.flatnonzero(~judges & data.rows("train", "val"))
    if not data.truth or not len(test):
        return []
    found = []
    for site in dict.fromkeys(row["site"] for row in rows):
        judge = judge_of(data, site, test, vocabulary)
        choice = judge_of(data, site, seen, vocabulary) if len(seen) else None
        for row in (row for row in rows if row["site"] == site):
            latent = row["latent"]
            if choice is not None and judge.best(latent) is not None:
                row["label_concept"] = choice.best(latent, judge.judged)
            label = row["label_concept"]
            if label is not None and judge.can_judge(label):
                row["label_auprc"] = float(judge.auprc[judge.concepts.index(label), latent])
            judgement = None if row["name"] is None else judge.of(latent, row["name"])
            if judgement is not None:
                row["wrong"] = judgement.wrong
                found.append((judgement.wrong, judgement.wrong_tolerant))
    return found


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
