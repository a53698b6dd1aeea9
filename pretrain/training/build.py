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
class TrainingTexts:
    """What is known of the train images: `data` (their rows), `in_whole` (their rows in the whole
    manifest), `captioned` (those that stage 2 takes), `texts`, `facts`, and all texts for a tokenizer.
    """

    data: Manifest
    in_whole: list[int]
    captioned: np.ndarray
    texts: TextSource
    facts: list[Fact]
    corpus: list[str]


def build_and_train(
    recipe: TrainingRecipe,
    manifest: Manifest,
    out: Path,
    work: Path,
    *,
    threads: int,
    resume: bool,
    shards: Any = None,
    test: Manifest | None = None,
    given: Sequence[str] = (),
    world: World = ALONE,
) -> dict[str, Any]:
    """Train on the train split of `manifest`, write `out`, measure the reloaded file on `test`.

    `shards`: a Shards whose table `manifest` is; images are then read from it. `test`: where the
    figures come from; `manifest` when its image files are there, without either none are taken. `given`: the
    words of the command behind `dermaudit pretrain`, for the card.
    """
    torch.set_num_threads(threads)
    said = _captions(recipe, manifest)
    require_batch(len(said.captioned) if recipe.contrastive.epochs else said.data.n, recipe)
    if test is None and shards is None:
        test = manifest
    hashes = _hashes(said, shards) if world.leads else {}
    if world.leads and test is not None:
        _refuse_leak(test, set(hashes.values()), manifest.path)
    start = make_initial_model(recipe, said.corpus, work)
    # What a model starts from says its size and its normalisation.
    recipe = _as_started(recipe, start)
    stages = _stages(recipe, start, said, world)
    source, skipped = _source(recipe, said, shards, threads)
    stages[-1].source = source.only(said.captioned) if recipe.contrastive.epochs else source
    if len(stages) > 1:
        stages[0].source = source
    say(f"  {source.n} train images, {skipped} skipped, {len(said.facts)} facts")
    facts = _identity(recipe, said, source)
    identity = {"key": sha256_json(facts), "facts": facts, "processes": world.size}
    weights, seconds = train(
        TrainingPlan(recipe, work, identity, world, threads), stages, resume=resume
    )
    model = start.model.cpu()
    model.load_state_dict({name: value.cpu() for name, value in weights.items()})
    summary = {
        "out": str(out),
        "recipe": recipe.name,
        "seed": recipe.seed,
        "given": list(given),
        "n_train": source.n,
        "n_skipped": skipped,
        "minutes": round(seconds / 60, 2),
        "threads": threads,
        "processes": world.size,
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    if world.leads:
        summary["n_failed"] = _failed(work / LOG_FILE)
        # The others need not wait: measuring may take longer than a process group allows.
        used = [hashes[row] for row in source.rows.tolist() if row in hashes]
        summary["test"] = _write(recipe, start, said.data, used, test, out, work, summary)
        _tell(summary)
    return summary


def _captions(recipe: TrainingRecipe, manifest: Manifest) -> TrainingTexts:
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
                f"{manifest.path} says nothing about its images (no label, artifact: or concept: "
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


def _as_started(recipe: TrainingRecipe, start: InitialModel) -> TrainingRecipe:
    if not recipe.model.init:
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
    recipe: TrainingRecipe, said: TrainingTexts, shards: Any, threads: int
) -> tuple[ImageSource, int]:
    """(images of every train row, how many could not be read while decoding ahead)."""
    size, data = recipe.decode_size, said.data
    if shards is not None:
        return ImagesFromShards(shards, said.in_whole, size), 0
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    small = data.n * size * size * 3 * processes <= _IN_MEMORY
    if recipe.data == "stream" or (recipe.data == "auto" and not small):
        return ImageFiles(data.paths(), size), 0
    pixels, kept, skipped = decode_all(data, size, threads=threads)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    return ImagesInMemory(images, kept), len(skipped)


def _identity(recipe: TrainingRecipe, said: TrainingTexts, source: ImageSource) -> dict[str, Any]:
    """What a training that is resumed must share with the one that was stopped. Learning rates, warm-up
    and clipping may change: that is how a loss that is not finite is mended.
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
    for fact in said.facts:
        facts.update(repr((fact.name, fact.said, fact.denied)).encode())
        facts.update(fact.values.tobytes())
    return {
        **_flat(plan),
        "manifest": said.data.sha256(),
        "rows": hashlib.sha256(source.rows.tobytes()).hexdigest(),
        "pixels": int(source.images.sum(dtype=torch.int64))
        if isinstance(source, ImagesInMemory)
        else None,
        "facts": facts.hexdigest(),
        "others": [content_of(name) for name in others],
    }


def _flat(plan: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"contrastive.make.sigma": 0.3, …}"""
    found: dict[str, Any] = {}
    for name, value in plan.items():
        found |= (
            _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
        )
    return found


def _stages(
    recipe: TrainingRecipe, start: InitialModel, said: TrainingTexts, world: World
) -> list[TrainingStage]:
    """The stages without their images, which come last: what is wrong is found before they are read."""
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
        similarity, diseases = disease_similarity(recipe, said.data)
        width = int(start.model_cfg["embed_dim"])
        stages.append(
            ContrastiveStage(
                recipe,
                start.model,
                start.tokenize,
                said.texts,
                said.facts,
                knowledge=knowledge_encoder(recipe, width, world.device),
                similarity=similarity,
                diseases=diseases,
            )
        )
    if world.size > 1:
        _share_statistics(start.model, world)
    return stages


def _share_statistics(model: OpenClipModel, world: World) -> None:
    """Batch norm over all processes on GPUs; on the CPU torch has none, and that is said."""
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


def _write(
    recipe: TrainingRecipe,
    start: InitialModel,
    data: Manifest,
    hashes: list[str],
    test: Manifest | None,
    out: Path,
    work: Path,
    summary: dict[str, Any],
) -> dict[str, Any] | None:
    """The checkpoint, then its figures from the file, with the card that says so; returns the figures."""
    licences = sorted({str(w) for w in data.column("licence", "unknown")})

    def write(figures: dict[str, Any] | None) -> None:
        save_local_dir(
            out,
            start.model,
            model_cfg=start.model_cfg,
            preprocess_cfg=start.preprocess_cfg,
            tokenizer=start.tokenizer,
            card=card(recipe, summary, licences, figures),
            training_hashes=hashes,
            overwrite=True,
        )
        shutil.copy(work / LOG_FILE, out / "training_log.jsonl")

    write(None)
    figures = None
    if test is not None:
        figures = measure(load_model(f"local-dir:{out}"), test)
        write(figures)
    shutil.rmtree(work, ignore_errors=True)
    return figures


def _failed(log: Path) -> int:
    """How often an image could not be read while training went on."""
    lines = log.read_text(encoding="utf-8").splitlines()
    return sum(json.loads(line).get("failed", 0) for line in lines)


def _tell(summary: dict[str, Any]) -> None:
    """Where the checkpoint is and how well it does, as the last thing said."""
    figures = summary["test"]
    if figures is None:
        told = "not measured: give test images with --test"
    elif not figures:
        told = "not measured: no label has enough test images"
    else:
        probe = np.mean([row["probe"] for row in figures.values()])
        told = f"mean probe AUROC of {len(figures)} labels on test {probe:.3f} (intervals in its README.md)"
    say(f"\n{summary['out']}: written after {summary['minutes']:.1f} minutes; {told}")


def _hashes(said: TrainingTexts, shards: Any) -> dict[int, str]:
    """sha256 of every training image file, by row; in shards, of what was packed."""
    if shards is None:
        paths = enumerate(said.data.paths())
        return {row: sha256_file(path) for row, path in paths if path.is_file()}
    packed = enumerate(said.in_whole)
    return {row: hashlib.sha256(shards.read(int(at))).hexdigest() for row, at in packed}


def _refuse_leak(test: Manifest, seen: set[str], trained_on: Path) -> None:
    """UserInputError when a test image is a training image: said before training, not after it."""
    for path, split in zip(test.paths(), test.splits, strict=True):
        if split == "test" and path.is_file() and sha256_file(path) in seen:
            raise UserInputError(
                f"{path} is in the test split, and a train image of {trained_on} is the same file",
                "give both one group or remove one: dermaudit data check names them all",
            )
