"""`dermaudit suppress`: predictions before and after, for one image or a million, in bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NotRequired, TypedDict

import numpy as np
import pyarrow as pa

from dermaudit import __version__
from dermaudit.console import say, table, track
from dermaudit.data.images.decode import no_readable_image
from dermaudit.errors import StaleArtifactError
from dermaudit.failpoints import hit
from dermaudit.sae.run_data import RunData

from ..evidence.operating_points import count_flips
from .images import Embedded, ImageFile, embedded_images, image_files, stored_embeddings
from .opened import Opened
from .options import SuppressOptions
from .prediction_table import Parts, skipped_file, table_of

PART = 512  # images of a part: what is lost when a prediction is stopped
CACHED_PART = 16_384  # the same for embeddings that are stored: they cost nothing
LISTED = 100  # images that could not be read, of those that --json names


class SkippedImage(TypedDict):
    """An image that cannot be read."""

    image: str
    reason: str


class SuppressSummary(TypedDict):
    """What `suppress --json` returns besides `run` and `dry_run`."""

    concepts: list[str]
    latents: list[str]  # numbers of latents, or concepts
    mode: str
    level: NotRequired[list[float]]  # one a latent; modes mean, clamp and scale
    gate_level: NotRequired[float]  # mode reactive
    target: str
    n_images: int
    n_fired: int  # images whose embedding changes
    n_flipped: int  # images whose most probable class changes, at the unchanged operating point
    flips: dict[str, int]  # of the target at the prevalence-matched operating point, by cause
    intercept: (
        float | None
    )  # added to the logit of the target at the prevalence-matched operating point
    accepted_limits: dict[str, str]  # concepts whose recipe was written against the evidence: why
    mean_change: float  # of p(target), over the images whose embedding changes
    largest_change: float  # of p(target), absolute, over all images
    n_unlike: int  # images unlike those that the recipe was made from
    n_skipped: int
    skipped: list[SkippedImage]  # the first LISTED of them
    out: NotRequired[str]  # the table, unless it is a dry run


def suppress_images(opened: Opened, options: SuppressOptions) -> dict[str, Any]:
    """Write the table of predictions (docs/formats.md), and return the summary.

    What a stopped command had finished is used, if it is given the same recipes, head and images.
    """
    found = _Counts(opened.model.target)
    parts = None if options.dry_run else _write_parts(opened, options)
    source = (
        ((part.table, part.skipped) for part in _parts(opened, _embedded(opened, options), 1))
        if parts is None
        else parts.tables()
    )
    for done, skipped in source:
        found.add(done, skipped)
    if not found.n:
        if parts is not None:
            parts.discard()
        name, reason = found.skipped[0] if found.skipped else ("", "")
        raise no_readable_image(len(found.skipped), options.images or opened.place, name, reason)
    if parts is not None:
        parts.join()
    summary = _summary(opened, found)
    if not options.dry_run:
        summary["out"] = str(options.out)
    _print(opened, summary, found, options)
    run = None if opened.run is None else str(opened.run.path)
    return {"run": run, "dry_run": options.dry_run, **summary}


def _write_parts(opened: Opened, options: SuppressOptions) -> Parts:
    """Write the predictions of all images that are not done yet."""
    parts = Parts(options.out, _plan(opened, options), start_again=options.force)
    start, last = parts.seen
    if start:
        say(f"  {start} images are done already")
    size = CACHED_PART if options.images is None else PART
    for part in _parts(opened, _embedded(opened, options, start, last), size):
        parts.write(part.table, part.skipped, part.last)
        hit("suppress")
    return parts


def _plan(opened: Opened, options: SuppressOptions) -> dict[str, Any]:
    """Return what decides a prediction, besides the images themselves."""
    return {
        "dermaudit": __version__,
        "recipes": [recipe.sha256 for recipe in opened.recipes],
        "mode": opened.model.suppressor.mode,
        "level": options.level,
        "target": opened.model.target,
        "classes": opened.model.head.classes,
        "intercept": opened.model.intercept,
        "head": options.head,
        "images": options.images,
    }


def _embedded(
    opened: Opened, options: SuppressOptions, start: int = 0, last: str = ""
) -> Iterator[Embedded]:
    """Return the images from number `start` on; the one before it was called `last`."""
    if options.images is None:
        assert opened.run is not None  # opened.py: there is no other source of stored embeddings
        return stored_embeddings(RunData(opened.run), start)
    files = image_files(options.images)
    if start:
        before = deque(islice(files, start), maxlen=1)
        if not before or before[0].name != last:
            raise StaleArtifactError(
                f"the images of {options.images} are others than those that this prediction began with: "
                f"image {start} was {last}",
                "start again with --force",
            )
    return embedded_images(_counted(files), opened.model.tower, options.readers)


def _counted(files: Iterator[ImageFile]) -> Iterator[ImageFile]:
    return track(files, "images")


@dataclass
class _Part:
    table: pa.Table
    skipped: list[tuple[str, str]]
    last: str


def _parts(opened: Opened, batches: Iterator[Embedded], size: int) -> Iterator[_Part]:
    """Yield predictions, `size` images or a few more at a time."""
    tables: list[pa.Table] = []
    skipped: list[tuple[str, str]] = []
    last, seen = "", 0
    for batch in batches:
        tables.append(table_of(batch, opened.model.predict_rows(batch.x), opened.model))
        skipped += batch.skipped
        last, seen = batch.last, seen + len(batch.names) + len(batch.skipped)
        if seen >= size:
            yield _Part(pa.concat_tables(tables), skipped, last)
            tables, skipped, seen = [], [], 0
    if seen:
        yield _Part(pa.concat_tables(tables), skipped, last)


@dataclass
class _Counts:
    """What the summary counts, over all parts."""

    target: str
    n: int = 0
    fired: int = 0
    flipped: int = 0
    unlike: int = 0
    change: float = 0.0  # sum over the images whose embedding changes
    largest: float = 0.0
    causes: dict[str, int] = field(default_factory=dict)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    first_flipped: list[tuple[str, str, str]] = field(default_factory=list)

    def add(self, done: pa.Table, skipped: list[tuple[str, str]]) -> None:
        """Count the images of a part."""
        self.skipped += skipped
        if not done.num_rows:
            return
        fired, flipped, unlike = (
            done[name].to_numpy() == 1 for name in ("fired", "flipped", "unlike")
        )
        change = done[f"p_after:{self.target}"].to_numpy() - done[f"p:{self.target}"].to_numpy()
        self.n += done.num_rows
        self.fired += int(fired.sum())
        self.flipped += int(flipped.sum())
        self.unlike += int(unlike.sum())
        self.change += float(change[fired].sum())
        self.largest = max(self.largest, float(np.abs(change).max()))
        flips = vars(count_flips(np.array(done["cause"].to_pylist(), dtype=object)))
        self.causes = {cause: self.causes.get(cause, 0) + n for cause, n in flips.items()}
        for i in np.flatnonzero(flipped)[: 10 - len(self.first_flipped)]:
            row = (done[name][int(i)].as_py() for name in ("image", "top1_before", "top1_after"))
            self.first_flipped.append(tuple(row))  # type: ignore[arg-type]


def _summary(opened: Opened, found: _Counts) -> SuppressSummary:
    model, recipes = opened.model, opened.recipes
    suppressor = model.suppressor
    summary: SuppressSummary = {
        "concepts": [recipe.body["concept"] for recipe in recipes],
        "latents": model.latent_names,
        "mode": suppressor.mode,
        "target": model.target,
        "n_images": found.n,
        "n_fired": found.fired,
        "n_flipped": found.flipped,
        "flips": found.causes,
        "intercept": None if model.intercept is None else round(model.intercept, 6),
        "mean_change": found.change / found.fired if found.fired else 0.0,
        "largest_change": found.largest,
        "n_unlike": found.unlike,
        "accepted_limits": {
            recipe.body["concept"]: reason
            for recipe in recipes
            if (reason := recipe.body["accepted_limits"])
        },
        "n_skipped": len(found.skipped),
        "skipped": [{"image": name, "reason": reason} for name, reason in found.skipped[:LISTED]],
    }
    if suppressor.mode in ("mean", "clamp", "scale"):
        summary["level"] = [round(level, 6) for level in suppressor.level.tolist()]
    if suppressor.mode == "reactive":
        summary["gate_level"] = round(float(suppressor.gate_level), 6)
    return summary


def _print(
    opened: Opened, summary: SuppressSummary, found: _Counts, options: SuppressOptions
) -> None:
    verb = "would change" if options.dry_run else "changed"
    for concept, reason in summary["accepted_limits"].items():
        say(
            f"WARNING: the recipe for {concept} was written against the evidence, because: {reason}"
        )
    gate = f", score over {summary['gate_level']:.3g}" if "gate_level" in summary else ""
    say(
        f"{' + '.join(summary['concepts'])} suppressed with {opened.place} ({summary['mode']}{gate}, latents "
        f"{', '.join(summary['latents'])}): {summary['n_fired']} of {summary['n_images']} embeddings "
        f"{'would change' if options.dry_run else 'change'}; the others stay, bit for bit. "
        f"{summary['n_flipped']} decisions {verb}; p({summary['target']}) moves by "
        f"{summary['mean_change']:+.3f} on average where the embedding does."
    )
    flips = summary["flips"]
    if summary["intercept"] is None:
        say(
            "The prevalence-matched threshold is not known for these recipes together, or for this head: "
            "it needs the images of a run (--run)."
        )
    else:
        say(
            f"At the prevalence-matched threshold ({summary['intercept']:+.3f} on the logit of "
            f"{summary['target']}) {sum(flips.values())} decisions for or against {summary['target']} "
            f"{verb}: {flips['edit']} by the edit alone, {flips['threshold']} by the moved threshold alone, "
            f"{flips['both']} by both together."
        )
    if summary["n_unlike"]:
        say(
            f"  {summary['n_unlike']} images are unlike those that the recipe was made from (column unlike): "
            "nothing was measured on such images"
        )
    if summary["n_skipped"]:
        listed = "" if options.dry_run else f"; all are listed in {skipped_file(options.out)}"
        say(
            f"  {summary['n_skipped']} images cannot be read: "
            f"{summary['skipped'][0]['image']}: {summary['skipped'][0]['reason']}{listed}"
        )
    if found.first_flipped:
        header = ("image", "before", "after")
        table("decisions that flip (first 10)", header, found.first_flipped)
    if "out" in summary:
        say(f"written: {summary['out']}")
