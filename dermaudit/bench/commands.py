"""The commands `bench …` of models and of methods. Nothing heavy is imported until one of them runs."""

from __future__ import annotations

from typing import Any

from .options import (
    AnnotateOptions,
    CompareModelsOptions,
    NamesOptions,
    ProbeOptions,
    RetrievalOptions,
    SuppressionOptions,
    ZeroShotOptions,
)


def bench_zeroshot(options: ZeroShotOptions) -> dict[str, Any]:
    """Classify the labels of a data set by prompts alone; --out keeps the predictions."""
    from .zeroshot import run_zeroshot

    return run_zeroshot(options)


def bench_retrieval(options: RetrievalOptions) -> dict[str, Any]:
    """Find the caption of an image and the image of a caption, among all of the split."""
    from .retrieval import run_retrieval

    return run_retrieval(options)


def bench_probe(options: ProbeOptions) -> dict[str, Any]:
    """Linear probe and prompted AUROC of every label, and the probe of `label` on 1 to 100 % of train."""
    from .probe import run_probe

    return run_probe(options)


def models_compare(options: CompareModelsOptions) -> dict[str, Any]:
    """Compare the probes of two models or more on the test images of a data set, with paired intervals."""
    from .compare_models import compare_models

    return compare_models(options)


def bench_annotate(options: AnnotateOptions) -> dict[str, Any]:
    """AUROC of every concept and artifact by its words alone, with random words as a control."""
    from .annotation import run_annotation

    return run_annotation(options)


def bench_names(options: NamesOptions) -> dict[str, Any]:
    """Naming methods side by side on the latents of a run, judged by labels of its test images."""
    from .names import compare_namers

    return compare_namers(options)


def bench_suppress(options: SuppressionOptions) -> dict[str, Any]:
    """Methods of suppression side by side, cross-fitted on the embeddings of a run.

    For each artifact a head is fitted where it predicts the label, and each method is fitted in the same
    training rows. Figures are from images outside the train split of the model.
    """
    from .suppression.compare import compare_methods

    return compare_methods(options)
