"""The options of `data dedup`, checked before anything is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dermaudit.errors import UserInputError, unknown
from dermaudit.options import Options, option, required

CRITERIA = ("both", "hash", "cosine")


@dataclass(frozen=True)
class GivenEmbeddings:
    """A file of embeddings and, optionally, a text file with the image_id of each of its rows."""

    file: Path
    ids: Path | None = None


@dataclass(frozen=True, kw_only=True)
class DedupOptions(Options):
    """What is compared, how, and where the pairs are written."""

    a: Path = required("a data set, or a folder of shards", positional=True)
    b: Path | None = option(
        None, "the set to find in A; without it, A is compared with itself", positional=True
    )
    out: Path | None = option(None, "folder for the pairs: parquet, csv, json")
    model: str = option("dermoscopy-small", "the model that embeds")
    by: str = option("both", "both, hash, cosine")
    threshold: float | None = option(None, "smallest cosine of a pair; calibrated on A if absent")
    false_share: float = option(0.01, "share of unrelated images that may pass the threshold")
    bits: int = option(24, "largest number of bits (of 256) that differ")
    turned: bool = option(True, "hash B mirrored and rotated too (8 hashes an image)")
    embeddings_a: Path | None = option(
        None, "embeddings of A, .npy or .safetensors, instead of --model"
    )
    embeddings_b: Path | None = option(None, "embeddings of B")
    ids_a: Path | None = option(None, "image_id of each row of --embeddings-a, one a line")
    ids_b: Path | None = option(None, "the same for B")
    html: bool = option(False, "a page with the pairs side by side", "--html")
    html_max: int = option(200, "pairs on the page")
    threads: int = option(1, "images decoded at once, threads of the model")
    device: str = option("cpu", "where the model computes")
    skip_lost: bool = option(
        False, "continue without shards that are missing or cut off", "--skip-lost"
    )
    force: bool = option(False, "replace the pairs in --out")

    @property
    def within(self) -> bool:
        """Whether pairs are looked for within one set."""
        return self.b is None

    @property
    def use_hash(self) -> bool:
        """Whether perceptual hashes are compared."""
        return self.by != "cosine"

    @property
    def given_a(self) -> GivenEmbeddings | None:
        """The embeddings of A that were given as a file, if any."""
        return None if self.embeddings_a is None else GivenEmbeddings(self.embeddings_a, self.ids_a)

    @property
    def given_b(self) -> GivenEmbeddings | None:
        """The embeddings of B that were given as a file, if any."""
        return None if self.embeddings_b is None else GivenEmbeddings(self.embeddings_b, self.ids_b)

    def check(self) -> None:
        """Raise UserInputError for flags that are out of range or contradict each other."""
        if self.by not in CRITERIA:
            raise unknown("--by", self.by, CRITERIA)
        if self.threshold is not None and not -1 <= self.threshold <= 1:
            raise UserInputError(f"--threshold {self.threshold} is not a cosine", "give -1 to 1")
        if not 0 < self.false_share < 1:
            raise UserInputError(
                f"--false-share {self.false_share} is not a share", "give more than 0, less than 1"
            )
        if not 0 <= self.bits <= 64:
            raise UserInputError(
                f"--bits {self.bits} is out of range",
                "give 0 to 64: hashes of unrelated dermoscopic images differ in 44 bits of 256 or more",
            )
        self._check_embeddings()
        self._check_out()

    def _check_embeddings(self) -> None:
        if not self.within and (self.embeddings_a is None) != (self.embeddings_b is None):
            raise UserInputError(
                "embeddings of one set only",
                "give both --embeddings-a and --embeddings-b, or neither",
            )
        if self.within and (self.embeddings_b or self.ids_b):
            raise UserInputError("--embeddings-b and --ids-b belong to a second set", "give B")
        for letter, ids, embeddings in (
            ("a", self.ids_a, self.embeddings_a),
            ("b", self.ids_b, self.embeddings_b),
        ):
            if ids is not None and embeddings is None:
                raise UserInputError(
                    f"--ids-{letter} belongs to a file of embeddings", f"give --embeddings-{letter}"
                )

    def _check_out(self) -> None:
        if self.out is None:
            if self.html:
                raise UserInputError("--html needs a folder to write to", "give --out")
            return
        if self.out.exists() and not self.out.is_dir():
            raise UserInputError(f"--out {self.out} is a file", "choose a folder")
        if (self.out / "dedup.json").exists() and not self.force:
            raise UserInputError(f"{self.out} already holds pairs", "use --force, or another --out")
