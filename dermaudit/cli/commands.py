"""The table of verbs: "verb" or "group verb" -> (where its function is, one line of help).

Design §5: each stage owns its verbs in its own folder; nothing is imported until a verb is used.
A verb's function takes typer-annotated arguments and returns a JSON-able dict.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from dermaudit.errors import unknown

VERBS: dict[str, tuple[str, str]] = {
    "demo": ("dermaudit.cli.audit:demo", "render phantoms and run the whole audit on them"),
    "audit": ("dermaudit.cli.audit:audit", "the whole chain on a folder or manifest of images"),
    "data convert": (
        "dermaudit.data.manifest.commands:convert",
        "make a manifest with one split, by group",
    ),
    "data check": (
        "dermaudit.data.manifest.commands:check",
        "what is wrong with a data set, row by row",
    ),
    "data locate": ("dermaudit.run.locate:locate", "point a moved run at its images"),
    "data shard": ("dermaudit.data.shards.command:shard", "webdataset shards, for many images"),
    "data dedup": (
        "dermaudit.data.duplicates.command:dedup",
        "near-duplicates across two image sets",
    ),
    "data subcaptions": (
        "dermaudit.data.captions.command:subcaptions",
        "write the text views that MAKE trains on",
    ),
    "data phantom": ("dermaudit.phantom.commands:phantom", "render phantoms with exact truth"),
    "data render": ("dermaudit.phantom.commands:render", "draw an artifact onto any images"),
    "pretrain": ("dermaudit.pretrain.commands:pretrain", "train a foundation model by a recipe"),
    "bench zeroshot": (
        "dermaudit.bench.commands:bench_zeroshot",
        "labels by prompts alone, models side by side",
    ),
    "bench retrieval": (
        "dermaudit.bench.commands:bench_retrieval",
        "captions of images and images of captions",
    ),
    "bench probe": (
        "dermaudit.bench.commands:bench_probe",
        "probes of models, on few labels and many",
    ),
    "bench annotate": (
        "dermaudit.bench.commands:bench_annotate",
        "concepts by their words alone",
    ),
    "bench table": (
        "dermaudit.bench.table_command:bench_table",
        "tables from saved predictions",
    ),
    "models": ("dermaudit.towers.commands:models", "models that can be opened by name"),
    "embed": ("dermaudit.sae.embed.command:embed", "activations of the images at the run's sites"),
    "fit": ("dermaudit.sae.training.command:fit", "sparse autoencoders on the stored activations"),
    "sae show": ("dermaudit.sae.formats.command:show", "what a sparse autoencoder on disk is"),
    "sae import": ("dermaudit.sae.formats.command:import_", "another program's checkpoint as ours"),
    "sae measure": (
        "dermaudit.sae.evaluation.command:measure",
        "all figures of a run's autoencoders, on test images",
    ),
    "annotate": ("dermaudit.concepts.commands:annotate", "latents against labels: lift share"),
    "name": ("dermaudit.concepts.commands:name", "name the latents, or leave them unnamed"),
    "concepts": ("dermaudit.concepts.commands:concepts", "list the named and labelled concepts"),
    "compare": ("dermaudit.concepts.commands:compare", "bottlenecks: codes, vocabulary, random"),
    "heads": ("dermaudit.concepts.commands:heads", "linear heads on the run's train split"),
    "recipe make": ("dermaudit.concepts.commands:recipe_make", "choose and measure a suppression"),
    "recipe show": (
        "dermaudit.concepts.commands:recipe_show",
        "what a recipe does, and its effect",
    ),
    "suppress": ("dermaudit.concepts.commands:suppress", "predictions with a concept suppressed"),
    "explore": ("dermaudit.dashboards.commands:explore", "open the web explorer of a run"),
    "report": ("dermaudit.dashboards.commands:report", "write the self-contained HTML report"),
    "doctor": ("dermaudit.cli.doctor:doctor", "versions, device, disk, and what is broken"),
}


def load(verb: str) -> Callable[..., dict[str, Any]]:
    """The function of a verb. UserInputError offers the nearest verb for an unknown one."""
    if verb not in VERBS:
        raise unknown("command", verb, VERBS)
    return load_function(VERBS[verb][0])


def load_function(target: str) -> Callable[..., Any]:
    """The object named by "module:name", imported now."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)
