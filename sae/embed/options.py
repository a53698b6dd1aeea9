"""The options of `embed`, and its record in run.json."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dermaudit.errors import UserInputError
from dermaudit.options import option, required
from dermaudit.run.stages import Record, StageOptions

EMBED = Record("embed", reads=("images",), writes=("embeddings/*",))


@dataclass(frozen=True, kw_only=True)
class EmbedOptions(StageOptions):
    """Which images are embedded by which model, where the activations go, and who computes them."""

    data: Path = required("a data set, a manifest, or a folder of images", positional=True)
    model: str = required("model name (dermaudit models list)")
    store: Path | None = option(
        None, "instead of a run: a folder for stores named by what they were made from"
    )
    from_store: Path | None = option(
        None,
        "with --run: take what embed --store made there; no image is opened",
        "--from-store",
    )
    site: tuple[str, ...] = option((), "hook points instead of the default two", "--site")
    tokens: str = option(
        "patch",
        "tokens of a block, or the embedding alone",
        choices=("patch", "cls", "pooled"),
    )
    dtype: str | None = option(
        None,
        "of the activations (default: float16 for patch tokens, else float32)",
        choices=("float32", "float16", "bfloat16"),
    )
    where: str | None = option(None, "SQL condition on the manifest's columns")
    images_at: str | None = option(
        None, "with --store: where the images are, e.g. s3://bucket/folder"
    )
    strict: bool = option(False, "a bad image, or a NaN, is fatal")
    engine: str = option("local", "who computes", choices=("local", "ray"))
    workers: int = option(1, "processes on this machine, or in Ray", minimum=1)
    shard: int | None = option(
        None, "images of a shard at most (1024, fewer of many tokens)", minimum=1
    )
    batch: int = option(64, "images of a forward pass", minimum=1)
    readers: int = option(1, "threads that decode ahead", minimum=1)
    seed: int | None = option(0, "of every random choice of the run", minimum=0)
    threads: int = option(1, "torch threads of a worker", minimum=1)
    device: str = option("cpu", "cpu, cuda or cuda:0")
    force: bool = option(False, "make every stage again")
    dry_run: bool = option(False, "print what would be done, and its size")

    def check(self, run: Path | None) -> None:
        """Raise UserInputError where these options contradict each other, or the run."""
        if (run is None) == (self.store is None):
            raise UserInputError(
                "embed writes to a run or to a folder of stores",
                "give one of --run RUN, --store FOLDER",
            )
        if self.from_store is not None and run is None:
            raise UserInputError(
                "--from-store goes with --run, the run that takes what is stored",
                "leave out --store",
            )
        if self.from_store is not None and not self.from_store.is_dir():
            raise UserInputError(
                f"--from-store {self.from_store} is not a folder",
                "give the folder that embed --store wrote to",
            )
        if self.images_at is not None and self.store is None:
            raise UserInputError(
                "--images-at goes with --store",
                "a run looks at its images again: copy them first",
            )

    def check_workers(self, rank: int, size: int) -> None:
        """Raise UserInputError for options that one of several workers cannot have."""
        if size > 1 and (self.workers > 1 or self.engine != "local"):
            raise UserInputError(
                f"this process is worker {rank} of {size} already",
                "leave out --workers and --engine under torchrun or srun",
            )
        if size > 1 and self.force:
            raise UserInputError(
                f"--force by one of {size} workers would undo what the others have made",
                "remove the stores first, or use --workers on one machine",
            )
