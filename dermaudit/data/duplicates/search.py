"""Find the near-duplicates of two image sets: read both sides, calibrate the threshold, compare."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dermaudit.console import say
from dermaudit.errors import EvidenceError

from .embeddings import Calibration, Pairs, calibrate, find_pairs, require_evidence
from .inputs import ComparedImages, embedded_rows, open_images, read_images
from .options import DedupOptions


@dataclass(frozen=True)
class Duplicates:
    """The pairs between `a` and `b` (the same set when pairs were looked for within one).

    `threshold` is None when the cosine was not used, and `refusal` says why if it was asked for.
    """

    a: ComparedImages
    b: ComparedImages
    pairs: Pairs
    threshold: float | None
    calibration: Calibration | None
    refusal: str | None
    model: str | None
    fingerprint: str | None


def find_duplicates(options: DedupOptions) -> Duplicates:
    """Read both sets and compare them.

    Wrong names and files are refused before a model is loaded or an image is read; too few images
    for a threshold are an error only if no hash is compared (EvidenceError).
    """
    images_a = open_images(options.a, skip_lost=options.skip_lost)
    images_b = None if options.b is None else open_images(options.b, skip_lost=options.skip_lost)
    groups: Sequence[str] = images_a.manifest.groups
    use_cosine, refusal = options.by != "hash", None
    if options.given_a is not None:
        rows = embedded_rows(images_a, images_b, options.given_a, options.given_b)
        groups = [groups[row] for row in rows]
    elif use_cosine:
        from dermaudit.towers import resolve

        resolve(options.model)
    if use_cosine and options.threshold is None:
        try:
            require_evidence(len(groups), len(set(groups)), options.false_share)
        except EvidenceError as error:
            refusal, use_cosine = _report_hash_only(error, options.by), False
    tower = _load_tower(options) if use_cosine and options.given_a is None else None
    a = b = read_images(
        images_a, options, tower, options.given_a, turned=options.turned and options.within
    )
    if images_b is not None:
        b = read_images(images_b, options, tower, options.given_b, turned=options.turned)
    threshold, calibration = options.threshold, None
    if use_cosine and threshold is None:
        try:
            assert a.features.embeddings is not None
            calibration = calibrate(a.features.embeddings, _group_codes(a), options.false_share)
            threshold = calibration.threshold
        except EvidenceError as error:  # too many images could not be read
            refusal, use_cosine = _report_hash_only(error, options.by), False
    if not use_cosine:
        threshold = None
        a = a.without_embeddings()
        b = a if options.within else b.without_embeddings()
    pairs = find_pairs(
        a.features,
        None if options.within else b.features,
        math.inf if threshold is None else threshold,
        options.bits,
    )
    name, fingerprint = (None, None) if tower is None else (tower.name, tower.fingerprint)
    return Duplicates(a, b, pairs, threshold, calibration, refusal, name, fingerprint)


def _report_hash_only(error: EvidenceError, by: str) -> str:
    """Print that the hash is used without the cosine and return the reason; raise without a hash."""
    if by != "both":
        raise error
    say(f"no cosine: {error.message}" + (f" ({error.hint})" if error.hint else ""))
    return error.message


def _load_tower(options: DedupOptions) -> Any:
    import torch

    from dermaudit.towers import load_model

    torch.set_num_threads(options.threads)
    return load_model(options.model, options.device)


def _group_codes(side: ComparedImages) -> np.ndarray:
    return np.unique(np.asarray(side.column("group"), dtype=str), return_inverse=True)[1]
