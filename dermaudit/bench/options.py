"""Options of the benchmarks of models, and how intervals and tests are computed. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dermaudit.errors import UserInputError
from dermaudit.options import Options, option, required
from dermaudit.stats.intervals import GroupBootstrap

MIN_DRAWS = 100  # with fewer, the 2.5 percentile rests on two draws


@dataclass(frozen=True)
class Resampling:
    """Bootstrap of the scored images by group.

    `reference`: the model with which every other model is compared; None compares all pairs.
    """

    n_draws: int = 1000
    seed: int = 0
    reference: str | None = None

    def bootstrap(self, groups: Sequence[str]) -> GroupBootstrap:
        """Return the resamples of images of these groups."""
        return GroupBootstrap(groups, self.n_draws, self.seed)


@dataclass(frozen=True, kw_only=True)
class BenchOptions(Options):
    """The options that all benchmarks of models share."""

    models: tuple[str, ...] = required("model name; again for several", "--model")
    data: Path = required("data set: a manifest, its folder, or a folder of images")
    where: str | None = option(None, "only rows for which this SQL condition holds")
    reference: str | None = option(None, "compare every model with this one, not all pairs")
    draws: int = option(1000, "bootstrap resamples, 100 or more")
    seed: int = option(0, "of resamples and inner folds", minimum=0)
    threads: int = option(1, "torch threads", minimum=1)
    device: str = option("cpu", "cpu, cuda, …")
    form: str = option("text", "text, markdown, latex or parquet", "--format")
    out: Path | None = option(None, "folder for the table and the predictions")
    force: bool = option(False, "replace files in --out")


@dataclass(frozen=True, kw_only=True)
class SplitBenchOptions(BenchOptions):
    """Of the benchmarks that score one split of the data set."""

    split: str = option("test", "which images are scored: test, val, train or all")


@dataclass(frozen=True, kw_only=True)
class ZeroShotOptions(SplitBenchOptions):
    """The options of `bench zeroshot`."""

    classes: str | None = option(
        None, "ham, pad, isic, malignancy, or a TOML/JSON file: code -> names"
    )
    templates: str = option("dermfm", "dermfm, dermaudit, or a file with one template a line")
    ontology: Path | None = option(None, "nested JSON of diseases: hierarchical accuracy")
    by_class: bool = option(False, "recall of every class too", "--by-class")


@dataclass(frozen=True, kw_only=True)
class RetrievalOptions(SplitBenchOptions):
    """The options of `bench retrieval`."""

    k: tuple[int, ...] = option((), "recall at k; again for several")
    column: str = option("caption", "column of the captions")


@dataclass(frozen=True, kw_only=True)
class ProbeOptions(BenchOptions):
    """The options of `bench probe`, which always scores the test split."""

    parts: int = option(3, "draws of each part of train below 100 %")


@dataclass(frozen=True, kw_only=True)
class CompareModelsOptions(BenchOptions):
    """The options of `models compare`, which always scores the test split."""

    models: tuple[str, ...] = required("two model names or more", positional=True)


@dataclass(frozen=True, kw_only=True)
class AnnotateOptions(SplitBenchOptions):
    """The options of `bench annotate`."""

    terms: Path | None = option(None, "ConceptTerms.json: concept -> terms, matched by name")
    templates: str = option("skin", "skin (MAKE's six) or dermoscopy (MONET's two)")


@dataclass(frozen=True, kw_only=True)
class TableOptions(Options):
    """The options of `bench table`."""

    predictions: Path = required("folder of saved predictions: DIR/<dataset>/<model>.csv")
    legacy_bootstrap: bool = option(
        False, "the published intervals, and how many are reproduced", "--legacy-bootstrap"
    )
    reference: str | None = option(None, "compare every model with this one, not all pairs")
    by_class: bool = option(False, "recall of every class too", "--by-class")
    draws: int = option(2000, "bootstrap resamples, 100 or more")
    seed: int = option(0, "of the resamples", minimum=0)
    form: str | None = option(None, "text, markdown, latex or parquet", "--format")
    out: Path | None = option(None, "write the table to this file")
    force: bool = option(False, "replace the file --out")


@dataclass(frozen=True, kw_only=True)
class NamesOptions(Options):
    """The options of `bench names`."""

    run: Path | None = option(None, "folder of the run (default: the newest)", "--run")
    method: tuple[str, ...] = option(
        (), "methods instead of all; repeat it for several", "--method"
    )
    vocabulary: str | None = option(
        None, "a bundled vocabulary, or a TOML / JSON file (default: that of the names of the run)"
    )
    risk: float = option(
        0.1, "largest share of wrong names that you accept (from 0 to 1)", minimum=0.0, maximum=1.0
    )
    threads: int = option(1, "torch threads", minimum=1)


@dataclass(frozen=True, kw_only=True)
class SuppressionOptions(Options):
    """The options of `bench suppress`."""

    run: Path | None = option(None, "folder of the run (default: the newest)", "--run")
    concept: tuple[str, ...] = option(
        (),
        "e.g. ruler; repeat it for several (default: every artifact that is labelled)",
        "--concept",
    )
    method: tuple[str, ...] = option(
        (), "methods instead of all; repeat it for several", "--method"
    )
    sweeps: bool = option(
        False,
        "also: how the effect depends on the strength of the trap and on the number of labels, what is left, and "
        "what changes for other concepts, groups of patients and the zero-shot classifier",
    )
    pairs: Path | None = option(
        None,
        "also: CSV of photographs with an artifact and the same without it (artifact, with_file, without_file, "
        "group_id)",
    )
    target: str = option("mel", "the label whose prediction must not depend on the artifact")
    strength: float = option(
        0.9, "P(artifact | target) where the head is fitted", minimum=0.5, maximum=1.0
    )
    seed: int = option(0, "of folds, heads and resamples", minimum=0)
    threads: int = option(1, "torch threads", minimum=1)
    out: Path | None = option(None, "JSON file for the figures")
    force: bool = option(False, "replace the file --out")


def check_draws(n_draws: int) -> None:
    """Raise UserInputError for fewer resamples than an interval needs."""
    if n_draws < MIN_DRAWS:
        raise UserInputError(
            f"--draws {n_draws} is too few for an interval",
            f"at least {MIN_DRAWS} are needed, 1000 are usual",
        )
