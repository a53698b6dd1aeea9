"""The rows of one site of a run, by split."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dermaudit.errors import EvidenceError
from dermaudit.run.directory import Run

from ..store.activation_store import ActivationStore
from ..store.loader import RowSubset
from ..store.rows import EmbeddingRows

MIN_IMAGES = 64
_RELEASED = 65_536  # rows after which mapped memory is released


def require_enough_images(n: dict[str, int], images: int, what: str = "an SAE") -> None:
    """Raise EvidenceError unless there are enough images to fit an SAE and to hold images out.

    `n` {"train", "val", "test"} counts the images of each split among all `images`.
    """
    if images < MIN_IMAGES:
        raise EvidenceError(
            f"{images} images are too few to fit {what}",
            f"at least {MIN_IMAGES} are needed; more is better. With fewer images these work: "
            "dermaudit bench zeroshot, dermaudit embed, and dermaudit suppress --images FOLDER with "
            "the run of a larger data set",
            {"n": images, "needed": MIN_IMAGES},
        )
    if n["train"] < MIN_IMAGES or not n["val"] or not n["test"]:
        raise EvidenceError(
            f"the split leaves {n['train']} train, {n['val']} val and {n['test']} test images: "
            "too few to fit and to hold out",
            "give more images, or a split column",
            n,
        )


def evenly(index: np.ndarray, most: int) -> np.ndarray:
    """Return at most `most` of some numbers, evenly spaced."""
    if len(index) <= most:
        return index
    return index[np.linspace(0, len(index) - 1, most).astype(np.int64)]


@dataclass(frozen=True)
class SiteRows:
    """The stored rows of a site, and the row numbers of each split."""

    store: ActivationStore
    rows: EmbeddingRows
    index: dict[str, np.ndarray]

    @classmethod
    def open(cls, run: Run, site: str, splits: np.ndarray) -> SiteRows:
        """Open the store of a site."""
        store = ActivationStore.open(run.files.embeddings(site), check=True)
        rows = store.rows()
        index = {name: rows.of_images(splits == name) for name in ("train", "val", "test")}
        return cls(store, rows, index)

    @property
    def n_train(self) -> int:
        """The number of train rows."""
        return len(self.index["train"])

    def split(self, name: str, most: int | None = None) -> RowSubset:
        """Return the rows of a split; at most `most`, evenly spaced."""
        index = self.index[name]
        return RowSubset(self.rows, index if most is None else evenly(index, most))

    def image_names(self, run: Run, numbers: np.ndarray) -> str:
        """Return the images to which some rows belong, as "2 images: a, b"."""
        import pyarrow.parquet as pq

        table = pq.read_table(run.files.images)
        column = "image_id" if "image_id" in table.column_names else "image"
        images = np.unique(self.rows.image_rows[numbers // self.rows.tokens])
        names = [str(table[column][int(row)]) for row in images[:5]]
        more = ", …" if len(images) > len(names) else ""
        return f"{len(images)} image{'s' * (len(images) > 1)}: {', '.join(names)}{more}"


class OrderedActivations:
    """The activations of all images in the order of the table, read by slices.

    A row that is not finite is replaced by `filler` (d,): with b_dec it activates no latent.
    """

    def __init__(self, rows: EmbeddingRows, filler: np.ndarray) -> None:
        self.rows, self.filler = rows, filler
        self.order = np.argsort(rows.image_rows, kind="stable")
        self.read = 0

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, key: slice, /) -> np.ndarray:
        tokens = self.rows.tokens
        index = (self.order[key][:, None] * tokens + np.arange(tokens)).reshape(-1)
        rows = self.rows.take(index)
        self.read += len(rows)
        if self.read > _RELEASED:
            self.rows.release()
            self.read = 0
        rows[~np.isfinite(rows).all(1)] = self.filler
        return rows if tokens == 1 else rows.reshape(-1, tokens, self.rows.d)
