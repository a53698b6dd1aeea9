"""From a recipe and a data set to a finished checkpoint folder with its card and figures."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dermaudit.console import say
from dermaudit.data import Manifest, decode_all
from dermaudit.distributed import World
from dermaudit.errors import EvidenceError, ForeignArtifactError, UserInputError
from dermaudit.files import sha256_file, sha256_json
from dermaudit.towers import load_model, save_local_dir

from .card import card
from .facts import Fact, corpus, facts_of
from .masked import MaskedLatent, Teacher
from .probe import measure
from .recipe import Recipe
from .source import Files, FromShards, Memory, Source
from .stages import ContrastiveStage, MaskedStage, Stage
from .start import Start, make_start
from .state import seed_of
from .trainer import Plan, train
from .views import ColumnTexts, FactTexts, Texts

ALONE = World()
_IN_MEMORY = 4 << 30  # bytes of decoded images; more is streamed


def build_and_train(
    recipe: Recipe,
    manifest: Manifest,
    out: Path,
    work: Path,
    *,
    threads: int,
    resume: bool,
    shards: Any = None,
    test: Manifest | None = None,
    overrides: Sequence[str] = (),
    world: World = ALONE,
) -> dict[str, Any]:
    """Train on the train split of `manifest`, write `out`, measure the reloaded file on `test`.

    `shards`: a Shards whose table `manifest` is; images are then read from it. `test`: where the
    figures come from; `manifest` when its image files are there, without either none are taken.
    """
    torch.set_num_threads(threads)
    subset, rows, texts, facts, said = _captions(recipe, manifest)
    start = make_start(recipe, said, work)
    # What a model starts from says its size and its normalisation.
    recipe = _as_started(recipe, start)
    source, kept, skipped = _source(recipe, subset, rows, shards)
    if len(kept) < subset.n:
        subset = subset.take(kept)
        facts = [replace(f, values=f.values[kept]) for f in facts]
        texts = texts.take(kept) if isinstance(texts, ColumnTexts) else _fact_texts(recipe, facts)
    say(f"  {source.n} train images, {skipped} skipped, {len(facts)} facts")
    identity = {
        "key": sha256_json(_identity(recipe, subset, source, texts, facts)),
        "processes": world.size,
    }
    stages = _stages(recipe, start, texts, facts, subset)
    started = time.monotonic()
    plan = Plan(recipe, source, work, identity, world, threads)
    weights = train(plan, stages, resume=resume)
    minutes = (time.monotonic() - started) / 60
    model = start.model.cpu()
    model.load_state_dict({name: value.cpu() for name, value in weights.items()})
    summary = {
        "out": str(out),
        "recipe": recipe.name,
        "seed": recipe.seed,
        "set": list(overrides),
        "n_train": source.n,
        "n_skipped": skipped,
        "minutes": round(minutes, 2),
        "threads": threads,
        "processes": world.size,
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    if world.leads:
        summary["n_failed"] = _failed(work / "log.jsonl")
        hashes = _hashes(subset, rows, shards)
        if test is None and shards is None:
            test = manifest
        # The others need not wait: measuring may take longer than a process group allows.
        summary["test"] = _write(recipe, start, model, subset, hashes, test, out, work, summary)
    return summary


def _captions(recipe: Recipe, manifest: Manifest):
    """(train rows of the manifest, their numbers, captions, facts, every text)."""
    rows = [i for i, split in enumerate(manifest.splits) if split == "train"]
    if not rows:
        raise EvidenceError(f"{manifest.path} has no row in the train split")
    part = recipe.contrastive
    subset = manifest.take(rows)
    if not part.epochs:  # stage 1 needs images alone
        return subset, rows, _fact_texts(recipe, []), [], []
    texts: Texts
    if part.captions == "columns":
        texts = ColumnTexts(subset)
        with_caption = [i for i in range(subset.n) if texts.has_caption(i)]
        if not with_caption:
            raise EvidenceError(
                f"{manifest.path} has no caption in its train split",
                "write a `caption` column, or --set contrastive.captions=facts",
            )
        if len(with_caption) < subset.n:
            say(f"  {subset.n - len(with_caption)} train images have no caption and are left out")
            rows = [rows[i] for i in with_caption]
            subset, texts = manifest.take(rows), texts.take(with_caption)
    facts = [f for f in facts_of(subset, part.columns) if np.nansum(f.values) > 0]
    if part.captions == "columns":
        return subset, rows, texts, facts, [*texts.all(), *corpus(facts)]
    if not facts:
        raise EvidenceError(
            f"{manifest.path} says nothing about its images (no label, artifact: or concept: column)",
            "a contrastive stage needs captions: add label columns, or captions with "
            "--set contrastive.captions=columns",
        )
    return subset, rows, _fact_texts(recipe, facts), facts, corpus(facts)


def _fact_texts(recipe: Recipe, facts: list[Fact]) -> FactTexts:
    return FactTexts(facts, recipe.contrastive.keep, recipe.contrastive.deny)


def _as_started(recipe: Recipe, start: Start) -> Recipe:
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
    recipe: Recipe, subset: Manifest, rows: list[int], shards: Any
) -> tuple[Source, np.ndarray, int]:
    size = recipe.image_size
    everything = np.arange(subset.n)
    if shards is not None:
        return FromShards(shards, rows, size), everything, 0
    small = subset.n * size * size * 3 <= _IN_MEMORY
    if recipe.data == "stream" or (recipe.data == "auto" and not small):
        return Files(subset.paths(), size), everything, 0
    pixels, kept, skipped = decode_all(subset, size)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    return Memory(images), kept, len(skipped)


def _identity(
    recipe: Recipe, subset: Manifest, source: Source, texts: Texts, facts: list[Fact]
) -> dict[str, Any]:
    """What a training that is resumed must share with the one that was stopped."""
    pixels = int(source.images.sum(dtype=torch.int64)) if isinstance(source, Memory) else None
    plan = recipe.model_dump(mode="json", exclude={"checkpoint_every"})
    return {
        "recipe": plan,
        "n": source.n,
        "manifest": subset.sha256(),
        "pixels": pixels,
        "facts": {f.name: [*f.said, *f.denied, f.values.tobytes().hex()] for f in facts},
    }


def _stages(
    recipe: Recipe, start: Start, texts: Texts, facts: list[Fact], subset: Manifest
) -> list[Stage]:
    stages: list[Stage] = []
    if recipe.masked.epochs:
        torch.manual_seed(seed_of(recipe.seed, "masked-init"))
        part = recipe.masked
        teacher = None if part.teacher == "ema" else _teacher(recipe, start)
        objective = MaskedLatent(
            start.model.visual, recipe.image_size, depth=part.depth, teacher=teacher,
            weights=part.weights,
        )
        stages.append(MaskedStage(recipe, start.model, objective))
    if not recipe.contrastive.epochs:
        return stages
    torch.manual_seed(seed_of(recipe.seed, "contrastive-init"))
    similarity, diseases = _diseases(recipe, subset)
    stages.append(
        ContrastiveStage(
            recipe, start.model, start.tokenize, texts, facts,
            knowledge=_knowledge(recipe), similarity=similarity, diseases=diseases,
        )
    )
    return stages


def _teacher(recipe: Recipe, start: Start) -> Teacher:
    """The teacher at the size that gives the student's grid; its normalisation is made up for."""
    from .tokens import TokenReader

    tower = load_model(recipe.masked.teacher)
    config = tower.preprocess_config
    grid = TokenReader(start.model.visual, recipe.image_size).grid
    visual = tower.release().visual
    size = resize_grid(visual, grid, recipe.masked.teacher)
    mine, theirs = (recipe.model.mean, recipe.model.std), (config["mean"], config["std"])
    scale = [a / b for a, b in zip(mine[1], theirs[1], strict=True)]
    shift = [(a - b) / s for a, b, s in zip(mine[0], theirs[0], theirs[1], strict=True)]
    return Teacher(visual, size, (scale, shift))


def resize_grid(visual: torch.nn.Module, grid: tuple[int, int], name: str) -> int:
    """Bring a teacher to the student's grid: the side of its input in pixels.

    A /14 teacher of a 14 x 14 student gets 196 px; its position embedding is resampled (bicubic), as
    open_clip does on loading. Errors: ForeignArtifactError when the tower cannot be resized.
    """
    from .tokens import TokenReader

    size = visual.image_size if isinstance(visual.image_size, int) else visual.image_size[0]
    reader = TokenReader(visual, size)
    if reader.grid == grid:
        return size
    side = size // reader.grid[0] * grid[0]
    if reader.family == "open_clip ViT":
        from open_clip.model import resize_pos_embed

        state = {"visual.positional_embedding": visual.positional_embedding.data}
        holder = torch.nn.Module()
        holder.visual = visual
        visual.grid_size, visual.image_size = grid, (side, side)
        resize_pos_embed(state, holder)
        visual.positional_embedding = torch.nn.Parameter(state["visual.positional_embedding"])
        return side
    trunk = getattr(visual, "trunk", None)
    if hasattr(trunk, "set_input_size"):
        trunk.set_input_size((side, side))
        visual.image_size = (side, side)
        return side
    raise ForeignArtifactError(
        f"the teacher {name} has {reader.grid[0]} x {reader.grid[1]} cells, the student "
        f"{grid[0]} x {grid[1]}, and its tower cannot be resized",
        'choose a teacher with the student\'s grid, or masked.teacher = "ema"',
    )


def _knowledge(recipe: Recipe) -> Callable[[list[str]], Tensor] | None:
    part = recipe.contrastive.knowledge
    if not part.encoder:
        return None
    tower = load_model(part.encoder)
    fresh = not recipe.model.init
    if fresh and tower.d_pooled != recipe.model.embed_dim:
        raise UserInputError(
            f"the knowledge encoder {part.encoder} has {tower.d_pooled} dimensions, the recipe's "
            f"embedding {recipe.model.embed_dim}",
            "choose an encoder of the same width, or set model.embed_dim",
        )
    return tower.encode_text


def _diseases(recipe: Recipe, subset: Manifest) -> tuple[Tensor | None, np.ndarray | None]:
    """Similarities between diseases of the ontology (1 − Wu–Palmer distance), and each row's disease."""
    part = recipe.contrastive.knowledge
    if not part.soft:
        return None, None
    from dermaudit.ontology import SEPARATOR, Ontology

    ontology = Ontology.load(part.ontology)
    words = [
        path.split(SEPARATOR)[-1] if path else label
        for path, label in zip(subset.column("ontology", ""), subset.column("label", ""), strict=True)
    ]
    nodes = [ontology.find(word) if word else None for word in words]
    known = sorted({node for node in nodes if node is not None})
    if not known:
        raise EvidenceError(
            f"no train image of {subset.path} has a disease that {part.ontology} knows",
            "write an `ontology` column: dermaudit data subcaptions --ontology",
        )
    place = {node: i for i, node in enumerate(known)}
    similarity = 1 - torch.from_numpy(np.asarray(ontology.distances(known), dtype=np.float32))
    n_unknown = sum(node is None for node in nodes)
    if n_unknown:
        say(f"  {n_unknown} train images have no disease of the ontology: their targets stay hard")
    return similarity, np.array([-1 if node is None else place[node] for node in nodes])


def _write(
    recipe: Recipe, start: Start, model: torch.nn.Module, subset: Manifest, hashes: list[str],
    test: Manifest | None, out: Path, work: Path, summary: dict[str, Any],
) -> dict[str, Any]:
    """The checkpoint, measured from its file, with the card that says so; returns the figures."""
    save = {
        "model_cfg": start.model_cfg,
        "preprocess_cfg": start.preprocess_cfg,
        "tokenizer": start.tokenizer,
        "training_hashes": hashes,
        "overwrite": True,
    }
    save_local_dir(out, model, card="", **save)
    figures = measure(load_model(f"local-dir:{out}"), test) if test is not None else {}
    licences = sorted({str(w) for w in subset.column("licence", "unknown") if w})
    save_local_dir(out, model, card=card(recipe, summary, licences, figures), **save)
    shutil.copy(work / "log.jsonl", out / "training_log.jsonl")
    shutil.rmtree(work, ignore_errors=True)
    return figures


def _failed(log: Path) -> int:
    """How often an image could not be read while training went on."""
    lines = log.read_text(encoding="utf-8").splitlines()
    return sum(json.loads(line).get("failed", 0) for line in lines)


def _hashes(subset: Manifest, rows: list[int], shards: Any) -> list[str]:
    """sha256 of every training image file; in shards, of what was packed."""
    if shards is None:
        return [sha256_file(path) for path in subset.paths() if path.is_file()]
    return [hashlib.sha256(shards.read(int(row))).hexdigest() for row in rows]
