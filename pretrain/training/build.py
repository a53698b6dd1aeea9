"""From a recipe and a data set to a finished checkpoint folder with its card and figures."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dermaudit.console import say
from dermaudit.data import Manifest, decode_all
from dermaudit.distributed import World
from dermaudit.errors import EvidenceError, UserInputError
from dermaudit.files import sha256_file, sha256_json
from dermaudit.towers import load_model, save_local_dir
from dermaudit.towers.open_clip_model import OpenClipModel

from ..data.facts import Fact, corpus, facts_of
from ..data.source import ImageFiles, ImagesFromShards, ImagesInMemory, ImageSource
from ..data.text_views import ColumnTexts, FactTexts, TextSource
from ..losses.masked import MaskedLatent
from ..recipe import TrainingRecipe
from .card import card
from .loop import LOG_FILE, TrainingPlan, require_batch, train
from .probe import measure
from .stages import ContrastiveStage, MaskedStage, TrainingStage
from .start import InitialModel, make_initial_model
from .state import seed_of
from .teachers import content_of, disease_similarity, knowledge_encoder, make_teacher

ALONE = World()
_IN_MEMORY = 4 << 30  # bytes of decoded images of all processes of a machine; more is streamed


@dataclass(frozen=True)
class TrainingJob:
    """One training: on the train split of `manifest`, measured on `test`, written to `out`.

    `work` holds the state of an unfinished training. `shards` (a Shards whose table `manifest` is): images
    are read from it. `test` None: the test split of `manifest` is measured, or nothing with shards.
    `command`: the words after `dermaudit pretrain`, for the model card.
    """

    recipe: TrainingRecipe
    manifest: Manifest
    out: Path
    work: Path
    threads: int = 1
    resume: bool = False
    shards: Any = None
    test: Manifest | None = None
    command: Sequence[str] = ()
    world: World = ALONE


@dataclass(frozen=True)
class TrainingTexts:
    """The train images (`data`), their rows in the whole manifest, and what is known of them.

    `captioned`: the rows of `data` that stage 2 takes; `corpus`: all texts, for a tokenizer.
    """

    data: Manifest
    rows_in_manifest: list[int]
    captioned: np.ndarray
    texts: TextSource
    facts: list[Fact]
    corpus: list[str]


def build_and_train(job: TrainingJob) -> dict[str, Any]:
    """Train, write the checkpoint folder, and measure the reloaded file; returns the summary."""
    torch.set_num_threads(job.threads)
    recipe, world = job.recipe, job.world
    texts = _training_texts(recipe, job.manifest)
    require_batch(len(texts.captioned) if recipe.contrastive.epochs else texts.data.n, recipe)
    test = job.manifest if job.test is None and job.shards is None else job.test
    hashes = _hashes(texts, job.shards) if world.leads else {}
    if world.leads and test is not None:
        _refuse_leak(test, set(hashes.values()), job.manifest.path)
    start = make_initial_model(recipe, texts.corpus, job.work)
    recipe = _with_input_of(recipe, start)
    stages = _stages(recipe, start, texts, world)
    source, skipped = _source(recipe, texts, job.shards, job.threads)
    stages[-1].source = source.only(texts.captioned) if recipe.contrastive.epochs else source
    if len(stages) > 1:
        stages[0].source = source
    say(f"  {source.n} train images, {skipped} skipped, {len(texts.facts)} facts")
    facts = _identity(recipe, texts, source)
    identity = {"key": sha256_json(facts), "facts": facts, "processes": world.size}
    plan = TrainingPlan(recipe, job.work, identity, world, job.threads)
    weights, seconds = train(plan, stages, resume=job.resume)
    model = start.model.cpu()
    model.load_state_dict({name: value.cpu() for name, value in weights.items()})
    summary = {
        "out": str(job.out),
        "recipe": recipe.name,
        "seed": recipe.seed,
        "given": list(job.command),
        "n_train": source.n,
        "n_skipped": skipped,
        "minutes": round(seconds / 60, 2),
        "threads": job.threads,
        "processes": world.size,
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    if world.leads:
        summary["n_failed"] = _count_failed(job.work / LOG_FILE)
        # The other processes do not wait: measuring may take longer than a process group allows.
        used = [hashes[row] for row in source.rows.tolist() if row in hashes]
        licences = sorted({str(w) for w in texts.data.column("licence", "unknown")})

        def write(figures: dict[str, Any] | None) -> None:
            text = card(recipe, summary, licences, figures, start.licence)
            _write_checkpoint(job, start, text, used)

        write(None)
        summary["test"] = None
        if test is not None:
            summary["test"] = measure(load_model(f"local-dir:{job.out}"), test)
            write(summary["test"])
        shutil.rmtree(job.work, ignore_errors=True)
        _report(summary)
    return summary


def _training_texts(recipe: TrainingRecipe, manifest: Manifest) -> TrainingTexts:
    rows = [i for i, split in enumerate(manifest.splits) if split == "train"]
    if not rows:
        raise EvidenceError(f"{manifest.path} has no row in the train split")
    part = recipe.contrastive
    data = manifest.take(rows)
    everyone = np.arange(data.n)
    if not part.epochs:  # stage 1 needs images alone
        return TrainingTexts(data, rows, everyone, FactTexts([], part.keep, part.deny), [], [])
    facts: list[Fact] = []
    if part.captions == "facts" or part.aspect_weight or part.local_weight:
        facts = [f for f in facts_of(data, part.columns) if np.nansum(f.values) > 0]
    if part.captions == "facts":
        if not facts:
            raise EvidenceError(
                f"{manifest.path} has no facts about its images (no label, artifact: or concept: "
                "column)",
                "a contrastive stage needs captions: add label columns, or captions with "
                "--set contrastive.captions=columns",
            )
        texts: TextSource = FactTexts(facts, part.keep, part.deny)
        return TrainingTexts(data, rows, everyone, texts, facts, corpus(facts))
    texts = ColumnTexts(data)
    captioned = np.array([i for i in range(data.n) if texts.has_caption(i)], dtype=np.int64)
    if not len(captioned):
        raise EvidenceError(
            f"{manifest.path} has no caption in its train split",
            "write a `caption` column, or --set contrastive.captions=facts",
        )
    if len(captioned) < data.n:
        say(f"  {data.n - len(captioned)} train images have no caption: stage 2 leaves them out")
    return TrainingTexts(data, rows, captioned, texts, facts, [*texts.all(), *corpus(facts)])


def _with_input_of(recipe: TrainingRecipe, start: InitialModel) -> TrainingRecipe:
    """Return the recipe with the image size and normalisation of the model that it starts from."""
    if not (recipe.model.init or recipe.model.start):
        return recipe
    side = start.preprocess_cfg["size"]
    side = side if isinstance(side, int) else side[0]
    part = recipe.model.model_copy(
        update={
            "vision_cfg": {"image_size": side},
            "mean": tuple(start.preprocess_cfg["mean"]),
            "std": tuple(start.preprocess_cfg["std"]),
        }
    )
    return recipe.model_copy(update={"model": part})


def _source(
    recipe: TrainingRecipe, texts: TrainingTexts, shards: Any, threads: int
) -> tuple[ImageSource, int]:
    """Return the images of every train row, and how many could not be decoded in advance."""
    size, data = recipe.decode_size, texts.data
    if shards is not None:
        return ImagesFromShards(shards, texts.rows_in_manifest, size), 0
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    small = data.n * size * size * 3 * processes <= _IN_MEMORY
    if recipe.data == "stream" or (recipe.data == "auto" and not small):
        return ImageFiles(data.paths(), size), 0
    pixels, kept, skipped = decode_all(data, size, threads=threads)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    return ImagesInMemory(images, kept), len(skipped)


def _identity(recipe: TrainingRecipe, texts: TrainingTexts, source: ImageSource) -> dict[str, Any]:
    """Return what a resumed training must share with the one that was stopped.

    Learning rates, warm-up and clipping may change: that is how a loss that is not finite is fixed.
    """
    plan = recipe.model_dump(mode="json", exclude={"checkpoint_every", "warmup", "clip_norm"})
    for stage in ("masked", "contrastive"):
        for name in ("lr", "warmup", "clip_norm"):
            plan[stage].pop(name, None)
    part = recipe.contrastive.knowledge
    others = (
        recipe.model.init,
        recipe.model.vision_init,
        recipe.masked.teacher,
        part.encoder,
        part.ontology,
        recipe.model.text_cfg.get("hf_model_name", ""),
    )
    facts = hashlib.sha256()
    for fact in texts.facts:
        facts.update(repr((fact.name, fact.wordings, fact.denials)).encode())
        facts.update(fact.values.tobytes())
    return {
        **_flat(plan),
        "manifest": texts.data.sha256(),
        "rows": hashlib.sha256(source.rows.tobytes()).hexdigest(),
        "pixels": int(source.images.sum(dtype=torch.int64))
        if isinstance(source, ImagesInMemory)
        else None,
        "facts": facts.hexdigest(),
        "others": [content_of(name) for name in others],
    }


def _flat(plan: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested dict flat: {"contrastive.make.sigma": 0.3, …}."""
    found: dict[str, Any] = {}
    for name, value in plan.items():
        found |= (
            _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
        )
    return found


def _stages(
    recipe: TrainingRecipe, start: InitialModel, texts: TrainingTexts, world: World
) -> list[TrainingStage]:
    """Return the stages without their images, which are read last: other errors are found before."""
    stages: list[TrainingStage] = []
    if recipe.masked.epochs:
        torch.manual_seed(seed_of(recipe.seed, "masked-init"))
        part = recipe.masked
        visual = start.model.visual
        teacher = None if part.teacher == "ema" else make_teacher(recipe, visual)
        objective = MaskedLatent(
            visual, recipe.image_size, depth=part.depth, teacher=teacher, weights=part.weights
        )
        stages.append(MaskedStage(recipe, start.model, objective))
    if recipe.contrastive.epochs:
        torch.manual_seed(seed_of(recipe.seed, "contrastive-init"))
        similarity, diseases = disease_similarity(recipe, texts.data)
        width = int(start.model_cfg["embed_dim"])
        stages.append(
            ContrastiveStage(
                recipe,
                start.model,
                start.tokenize,
                texts.texts,
                texts.facts,
                knowledge=knowledge_encoder(recipe, width, world.device),
                similarity=similarity,
                diseases=diseases,
            )
        )
    if world.size > 1:
        _share_statistics(start.model, world)
    return stages


def _share_statistics(model: OpenClipModel, world: World) -> None:
    """Compute batch norm over all processes on GPUs; warn on the CPU, where torch cannot."""
    norms = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    if world.device.type == "cuda":
        model.visual = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model.visual)
    else:
        say(
            f"  the image tower has {len(norms)} batch norms: each process normalises its own rows, so "
            "the result depends on the number of processes"
        )


def _write_checkpoint(
    job: TrainingJob, start: InitialModel, card_text: str, hashes: list[str]
) -> None:
    save_local_dir(
        job.out,
        start.model,
        model_cfg=start.model_cfg,
        preprocess_cfg=start.preprocess_cfg,
        tokenizer=start.tokenizer,
        card=card_text,
        training_hashes=hashes,
        overwrite=True,
    )
    shutil.copy(job.work / LOG_FILE, job.out / "training_log.jsonl")


def _count_failed(log: Path) -> int:
    """Return how often an image could not be read during training."""
    lines = log.read_text(encoding="utf-8").splitlines()
    return sum(json.loads(line).get("failed", 0) for line in lines)


def _report(summary: dict[str, Any]) -> None:
    """Print where the checkpoint is and how well it does."""
    figures = summary["test"]
    if figures is None:
        result = "not measured: give test images with --test"
    elif not figures:
        result = "not measured: no label has enough test images"
    else:
        probe = np.mean([row["probe"] for row in figures.values()])
        result = f"mean probe AUROC of {len(figures)} labels on test {probe:.3f} (intervals in its README.md)"
    say(f"\n{summary['out']}: written after {summary['minutes']:.1f} minutes; {result}")


def _hashes(texts: TrainingTexts, shards: Any) -> dict[int, str]:
    """sha256 of every training image file, by row; in shards, of what was packed."""
    if shards is None:
        paths = enumerate(texts.data.paths())
        return {row: sha256_file(path) for row, path in paths if path.is_file()}
    packed = enumerate(texts.rows_in_manifest)
    return {row: hashlib.sha256(shards.read(int(at))).hexdigest() for row, at in packed}


def _refuse_leak(test: Manifest, seen: set[str], trained_on: Path) -> None:
    """Raise UserInputError, before training, if a test image is a training image."""
    for path, split in zip(test.paths(), test.splits, strict=True):
        if split == "test" and path.is_file() and sha256_file(path) in seen:
            raise UserInputError(
                f"{path} is in the test split, and a train image of {trained_on} is the same file",
                "give both one group or remove one: dermaudit data check names them all",
            )
