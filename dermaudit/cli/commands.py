"""The table of commands, in the sections in which `dermaudit --help` lists them.

A command is a function of one options object (dermaudit/options.py), or of a few arguments annotated for
typer, and returns a JSON-able dict. It lies in the folder that it belongs to and is imported when it is
used. The commands of stages are made from the stage registry (dermaudit/run/stages.py).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from dermaudit.errors import unknown
from dermaudit.run.stages import stages

from .flags import command_of_options
from .stage_command import command_of

#: section -> {command: ("module:function", one line of help)}
FUNCTIONS: dict[str, dict[str, tuple[str, str]]] = {
    "The whole audit": {
        "demo": (
            "dermaudit.audit.commands:demo",
            "render phantoms and run the whole audit on them",
        ),
        "audit": (
            "dermaudit.audit.commands:audit",
            "the whole chain on a folder or manifest of images",
        ),
    },
    "Data": {
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
    },
    "Models": {
        "models list": (
            "dermaudit.towers.commands:models",
            "models that can be opened by name, and what each needs",
        ),
        "models compare": (
            "dermaudit.bench.commands:models_compare",
            "probes of several models on the same images",
        ),
        "pretrain": (
            "dermaudit.pretrain.commands:pretrain",
            "train a foundation model by a recipe",
        ),
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
        "bench names": (
            "dermaudit.bench.commands:bench_names",
            "naming methods side by side",
        ),
        "bench suppress": (
            "dermaudit.bench.commands:bench_suppress",
            "methods of suppression side by side",
        ),
        "bench table": (
            "dermaudit.bench.table_command:bench_table",
            "tables from saved predictions",
        ),
    },
    "Results": {
        "concepts": (
            "dermaudit.concepts.commands:concepts",
            "list the named and labelled concepts",
        ),
        "vocabulary check": (
            "dermaudit.concepts.commands:vocabulary_check",
            "what in a vocabulary would mislead",
        ),
        "recipe show": (
            "dermaudit.concepts.suppression.recipe_commands:show",
            "what a recipe does, and its effect",
        ),
        "recipe verify": (
            "dermaudit.concepts.suppression.recipe_commands:verify",
            "whether a recipe is whole, and who signed it",
        ),
        "recipe sign": (
            "dermaudit.concepts.suppression.recipe_commands:sign",
            "sign a recipe",
        ),
        "recipe diff": (
            "dermaudit.concepts.suppression.recipe_commands:diff",
            "what differs between two recipes",
        ),
        "recipe merge": (
            "dermaudit.concepts.suppression.recipe_commands:merge",
            "one recipe from several",
        ),
        "recipe export": (
            "dermaudit.concepts.suppression.recipe_commands:export",
            "a recipe for programs without dermaudit: ONNX, numpy",
        ),
        "suppress": (
            "dermaudit.concepts.commands:suppress",
            "predictions with a concept suppressed",
        ),
        "serve": (
            "dermaudit.concepts.inference.serve:serve",
            "predictions with a concept suppressed, over HTTP",
        ),
        "explore": ("dermaudit.dashboards.commands:explore", "open the web explorer of a run"),
        "sae show": ("dermaudit.sae.formats.command:show", "what a sparse autoencoder on disk is"),
        "sae import": (
            "dermaudit.sae.formats.command:import_",
            "another program's checkpoint as ours",
        ),
        "doctor": ("dermaudit.cli.doctor:doctor", "versions, device, disk, and what is broken"),
    },
}
STAGES_SECTION = "The stages of a run, in their order"


def sections() -> dict[str, dict[str, str]]:
    """Return {section: {command: one line of help}} in the order of the help."""
    listed = {
        title: {command: text for command, (_, text) in functions.items()}
        for title, functions in FUNCTIONS.items()
    }
    made = {stage.command: stage.help for stage in stages()}
    first = "The whole audit"
    return {first: listed.pop(first), STAGES_SECTION: made, **listed}


def all_commands() -> dict[str, str]:
    """Return {command: one line of help} of every command."""
    return {command: text for section in sections().values() for command, text in section.items()}


def named_commands(args: list[str]) -> dict[str, str]:
    """Return the commands among which the arguments name one. The stages are left out where another
    command is named, because their modules import numpy.
    """
    functions = {c: text for section in FUNCTIONS.values() for c, (_, text) in section.items()}
    alone = len(args) == 1 or args[1].startswith(
        "-"
    )  # `concepts teach` is a stage, `concepts` is not
    named = " ".join(args[:2]) in functions or (alone and args[0] in functions)
    return functions if named else all_commands()


def function_of(command: str) -> Callable[..., dict[str, Any]]:
    """Return the function of a command. UserInputError offers the nearest one if it does not exist."""
    for functions in FUNCTIONS.values():
        if command in functions:
            return command_of_options(load_function(functions[command][0]))
    for stage in stages():
        if stage.command == command:
            return command_of(stage)
    raise unknown("command", command, all_commands())


def load_function(target: str) -> Callable[..., Any]:
    """Return the object named by "module:name", imported now."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)
