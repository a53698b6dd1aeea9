"""The text views of an image that MAKE trains on (arXiv 2505.09372), written into a manifest.

- `subcaption_1` … `subcaption_K`: the sentences of the caption, or what a language model made of it;
- `ontology_caption`: the diagnosis with the broader ones above it, from an ontology or the `ontology` column;
- `concept_caption`: the words for what is seen that the caption says.

A blank cell means that an image lacks this view. A view that is there already is kept; a caption that
says nothing ("No caption") becomes blank.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from dermaudit.console import track

from ..layouts.dermoscopy import DIAGNOSES
from ..manifest.blank_cells import known
from ..manifest.manifest import Manifest
from ..manifest.validate import put, texts
from .concept_words import ConceptWords
from .decompose import Decomposer
from .ontology import SEPARATOR, Ontology
from .sentences import sentences

ONTOLOGY_CAPTION = "A skin image diagnosed as {}."
CONCEPT_CAPTION = "On the skin one sees {}."
# Lists of concepts that people, or a language model, made for the image.
_CONCEPT_COLUMNS = ("skin_concept", "skin_concept_standarized")
Texts = list[str | None]


@dataclass
class Made:
    """What was written: `views` counts rows per view, `kept` those that were there before. Rows count
    from 0. `unknown` {disease: {n, nearest}} are labels that the ontology lacks."""

    n_images: int = 0
    views: dict[str, int] = field(default_factory=dict)
    kept: dict[str, int] = field(default_factory=dict)
    empty_captions: list[int] = field(default_factory=list)
    no_sentence: list[int] = field(default_factory=list)
    n_subcaptions: int = 0
    cut: int = 0  # captions with more sentences than are kept
    no_diagnosis: int = 0
    unknown: dict[str, dict[str, Any]] = field(default_factory=dict)
    denied: int = 0  # concepts that a caption says are not there


def text_views(
    manifest: Manifest,
    *,
    most: int,
    words: ConceptWords,
    ontology: Ontology | None = None,
    decomposer: Decomposer | None = None,
    replace: bool = False,
) -> tuple[Manifest, Made]:
    """The manifest with its views, and what was made. `replace` makes anew what is there already."""
    made = Made(n_images=manifest.n)
    table = manifest.table
    spoken = _captions(table)
    made.empty_captions = [row for row, captions in enumerate(spoken) if not captions]
    if "caption" in table.column_names:
        # "No caption" is no text that an image should be trained to match.
        told = [known(cell) and cell for cell in texts(table, "caption")]
        table = put(table, "caption", pa.array(told, pa.string()))
    old = {name: texts(table, name) for name in table.column_names if _is_part(name)}
    have = [
        not replace and any(cells[row] for cells in old.values()) for row in range(table.num_rows)
    ]
    parts = _subcaptions(spoken, have, most, decomposer, made)
    width = max([len(p) for p in parts] + [int(n[11:]) for n in old if any(have)], default=0)
    for k in range(1, width + 1):
        before = old.get(f"subcaption_{k}", [None] * len(parts))
        column = [
            was if there else (mine[k - 1] if len(mine) >= k else None)
            for was, there, mine in zip(before, have, parts, strict=True)
        ]
        table = put(table, f"subcaption_{k}", pa.array(column, pa.string()))
    for name in old:  # of an earlier run with more of them
        if int(name[11:]) > width:
            table = table.drop_columns([name])
    made.kept["subcaptions"] = sum(have)
    made.views["subcaptions"] = sum(map(bool, parts)) + sum(have)
    paths = _paths(table, ontology, made)
    full = {
        "ontology_caption": [_said(ONTOLOGY_CAPTION, path) for path in paths],
        "concept_caption": _concepts(table, spoken, words, made),
    }
    for name, fresh in full.items():
        before = [None] * table.num_rows if replace else texts(table, name)
        column = [was or new for was, new in zip(before, fresh, strict=True)]
        made.kept[name] = sum(map(bool, before))
        made.views[name] = sum(map(bool, column))
        if any(column) or name in table.column_names:
            table = put(table, name, pa.array(column, pa.string()))
    if ontology is not None and any(paths):
        before = texts(table, "ontology")
        told = [
            was or SEPARATOR.join(path) or None for was, path in zip(before, paths, strict=True)
        ]
        table = put(table, "ontology", pa.array(told, pa.string()))
    return Manifest(table.combine_chunks(), manifest.root, manifest.path), made


def _is_part(name: str) -> bool:
    return name.startswith("subcaption_") and name[11:].isdecimal()


def _captions(table: pa.Table) -> list[list[str]]:
    """The captions of each row: its own, and further ones of the same image (layout derm1m)."""
    found = [[caption] if (caption := known(cell)) else [] for cell in texts(table, "caption")]
    for captions, cell in zip(found, texts(table, "more_captions"), strict=True):
        try:
            more = json.loads(cell) if cell else []
        except (json.JSONDecodeError, RecursionError):
            more = []
        captions += [one for one in more if isinstance(one, str)] if isinstance(more, list) else []
    return found


def _subcaptions(
    spoken: list[list[str]], have: list[bool], most: int, decomposer: Decomposer | None, made: Made
) -> list[list[str]]:
    """The sub-captions of each row, at most `most`; [] where there are some already (`have`)."""
    wanted = list(
        dict.fromkeys(
            caption for row, captions in enumerate(spoken) if not have[row] for caption in captions
        )
    )
    split = {caption: sentences(caption) for caption in track(wanted, "sentences")}
    if decomposer is not None:
        # A caption without a sentence has nothing to take apart.
        asked = [caption for caption in wanted if split[caption]]
        answers = track(decomposer.split(asked), "asking the model", len(asked))
        split |= {c: answer for c, answer in zip(asked, answers, strict=True) if answer}
    parts: list[list[str]] = []
    for row, captions in enumerate(spoken):
        found = [] if have[row] else list(dict.fromkeys(s for c in captions for s in split[c]))
        if captions and not have[row] and not found:
            made.no_sentence.append(row)
        made.cut += len(found) > most
        parts.append(found[:most])
        made.n_subcaptions += len(parts[-1])
    return parts


def _paths(table: pa.Table, ontology: Ontology | None, made: Made) -> list[list[str]]:
    """Names from the broadest to the diagnosis, [] where unknown. What the ontology lacks is taken from
    the `ontology` column as it is."""
    paths: list[list[str]] = []
    unknown: Counter[str] = Counter()
    for label, cell in zip(texts(table, "label"), texts(table, "ontology"), strict=True):
        label = known(label)
        given = [name for name in map(known, (cell or "").split(SEPARATOR.strip())) if name]
        node = None if ontology is None else find_disease(ontology, label, given)
        if ontology is not None and node is not None:
            given = ontology.path(node)
        elif label is None and not given:
            made.no_diagnosis += 1
        elif ontology is not None:
            unknown[label or given[-1]] += 1
        paths.append(given)
    for name, n in unknown.most_common():
        made.unknown[name] = {"n": n, "nearest": ontology.closest(name) if ontology else None}
    return paths


def find_disease(ontology: Ontology, label: str | None, path: list[str]) -> int | None:
    """The node that a label and a path (either may be empty) mean together.

    A label may name several diseases between commas ("eczema, nummular eczema") and a name may stand
    at two places of the tree: of all these nodes the one whose ancestors agree most with the path
    and the label, then the deepest, then the first.
    """
    names = _readings(label) if label else []
    if not any(ontology.find(name) is not None for name in names):
        names = path[-1:]
    nodes = list(
        dict.fromkeys(
            node
            for name in names
            if ontology.find(name) is not None
            for node in ontology.find_all(name)
        )
    )
    told = {node for name in [*path, *names] for node in ontology.find_all(name)}
    return max(
        nodes,
        key=lambda node: (len(told & set(ontology.ancestors(node))), ontology.depth[node]),
        default=None,
    )


def _readings(label: str) -> list[str]:
    """The label, its parts between commas, and what a code of the ISIC stands for."""
    plain = label.replace("_", " ")
    spoken = DIAGNOSES.get(label.lower(), "").removeprefix("a ")
    return [name for name in (plain, *plain.split(","), spoken) if name.strip()]


def _concepts(table: pa.Table, spoken: list[list[str]], words: ConceptWords, made: Made) -> Texts:
    lists = [texts(table, name) for name in _CONCEPT_COLUMNS if name in table.column_names]
    captions: Texts = []
    for row, said in enumerate(track(spoken, "concepts")):
        found = [
            name.lower()
            for cells in lists
            for name in map(known, (cells[row] or "").split(","))
            if name
        ]
        for caption in said:
            in_it = words.find(caption)
            found += in_it.said
            made.denied += len(in_it.denied)
        captions.append(_said(CONCEPT_CAPTION, list(dict.fromkeys(found))))
    return captions


def _said(template: str, words: list[str]) -> str | None:
    return template.format(", ".join(words)) if words else None
