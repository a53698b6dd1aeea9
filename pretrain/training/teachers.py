"""Teachers other than captions: stage 1's frozen image tower, KEP's text encoder, an ontology."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dermaudit.console import say
from dermaudit.data import Manifest
from dermaudit.errors import EvidenceError, ForeignArtifactError, UserInputError
from dermaudit.files import sha256_file
from dermaudit.towers import load_model
from dermaudit.towers.open_clip_model import ImageTower

from ..losses.masked import Teacher
from ..recipe import TrainingRecipe
from ..tokens import TokenReader
from .sentences import SentenceEncoder, sentence_folder


def make_teacher(recipe: TrainingRecipe, visual: ImageTower) -> Teacher:
    """Open the recipe's teacher at the size that gives `visual`'s grid.

    The teacher sees images under its own normalisation. Raises ForeignArtifactError when its grid cannot
    be brought to that of the student.
    """
    tower = load_model(recipe.masked.teacher)
    config = tower.preprocess_config
    grid = TokenReader(visual, recipe.image_size).grid
    teacher = tower.release().visual
    size = resize_grid(teacher, grid, recipe.masked.teacher)
    mine, theirs = (recipe.model.mean, recipe.model.std), (config["mean"], config["std"])
    scale = [a / b for a, b in zip(mine[1], theirs[1], strict=True)]
    shift = [(a - b) / s for a, b, s in zip(mine[0], theirs[0], theirs[1], strict=True)]
    return Teacher(teacher, size, (scale, shift))


def resize_grid(visual: ImageTower, grid: tuple[int, int], name: str) -> int:
    """Bring a teacher to the student's grid: the side of its input in pixels.

    A /14 teacher of a 14 x 14 student gets 196 px; its position embedding is resampled (bicubic), as
    open_clip does on loading. Errors: ForeignArtifactError when the tower cannot be resized.
    """
    size = visual.image_size if isinstance(visual.image_size, int) else visual.image_size[0]
    reader = TokenReader(visual, size)
    if reader.grid == grid:
        return size
    side = size // reader.grid[0] * grid[0]
    if reader.family == "open_clip ViT":
        from open_clip.model import resize_pos_embed

        state = {"visual.positional_embedding": visual.positional_embedding.data}
        holder = nn.Module()
        holder.visual = visual
        visual.grid_size, visual.image_size = grid, (side, side)
        resize_pos_embed(state, holder)
        visual.positional_embedding = nn.Parameter(state["visual.positional_embedding"])
        return side
    trunk: Any = getattr(visual, "trunk", None)
    if hasattr(trunk, "set_input_size"):
        trunk.set_input_size((side, side))
        visual.image_size = (side, side)
        return side
    raise ForeignArtifactError(
        f"the teacher {name} has {reader.grid[0]} x {reader.grid[1]} cells, the student "
        f"{grid[0]} x {grid[1]}, and its tower cannot be resized",
        'choose a teacher with the student\'s grid, or masked.teacher = "ema"',
    )


def knowledge_encoder(
    recipe: TrainingRecipe, width: int, device: torch.device
) -> Callable[[list[str]], Tensor] | None:
    """KEP's frozen encoder on `device`: list of str -> unit rows (n, width); None without one. It is the text tower
    of a model, or a sentence encoder (sentences.py).

    Errors: UserInputError when it has another width than the joint embedding.
    """
    name = recipe.contrastive.knowledge.encoder
    if not name:
        return None
    folder = sentence_folder(name)
    if folder is not None:
        sentences = SentenceEncoder(folder, device)
        encode, own = sentences, sentences.width
    else:
        tower = load_model(name, str(device))
        encode, own = tower.encode_text, tower.d_pooled
    if own != width:
        raise UserInputError(
            f"the knowledge encoder {name} has {own} dimensions, the recipe's embedding {width}",
            f"choose an encoder of the same width, or --set model.embed_dim={own}",
        )
    return encode


def disease_similarity(
    recipe: TrainingRecipe, data: Manifest
) -> tuple[Tensor | None, np.ndarray | None]:
    """(similarities between the diseases of `data` in the recipe's ontology, 1 − Wu–Palmer distance; the
    disease of each row, -1 where unknown); (None, None) without soft targets.
    """
    part = recipe.contrastive.knowledge
    if not part.soft:
        return None, None
    from dermaudit.data.captions.ontology import SEPARATOR, Ontology

    ontology = Ontology.load(part.ontology)
    words = [
        path.split(SEPARATOR)[-1] if path else label
        for path, label in zip(data.column("ontology", ""), data.column("label", ""), strict=True)
    ]
    nodes = [ontology.find(word) if word else None for word in words]
    known = sorted({node for node in nodes if node is not None})
    if not known:
        raise EvidenceError(
            f"no train image of {data.path} has a disease that {part.ontology} knows",
            "write an `ontology` column: dermaudit data subcaptions --ontology",
        )
    place = {node: i for i, node in enumerate(known)}
    similarity = 1 - torch.from_numpy(np.asarray(ontology.distances(known), dtype=np.float32))
    n_unknown = sum(node is None for node in nodes)
    if n_unknown:
        say(f"  {n_unknown} train images have no disease of the ontology: their targets stay hard")
    return similarity, np.array([-1 if node is None else place[node] for node in nodes])


def content_of(name: str) -> str:
    """Return the hash of a file or of a folder's weights, which shows that another one took its place;
    the name itself if it is on a hub or empty.
    """
    path = Path(name.removeprefix("local-dir:"))
    if name and path.is_file():
        return sha256_file(path)
    if name and path.is_dir():
        from dermaudit.towers.loading.weights import weights_file

        return sha256_file(weights_file(path))
    return name
