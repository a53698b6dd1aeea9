"""The options of `fit`, and its records in run.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dermaudit.errors import UserInputError
from dermaudit.options import option
from dermaudit.run.stages import Record, StageOptions

from .recipe import ARCHITECTURES, SAERecipe, settings_from
from .sweep import parse_grid, parse_seeds

N_FITS, N_TOKEN_FITS = (
    20,
    10,
)  # of a consensus, at sites with one row for each image and with several
_COLUMNS = ("split", "group")  # which images a fit may use, and the groups of its intervals
FIT = Record("fit", reads=("embed",), columns=_COLUMNS, writes=("sae/{key}/*", "codes/{key}/*"))
SEEDS = Record(
    "seeds",
    reads=("embed", "fit:{key}"),
    columns=_COLUMNS,
    writes=("seeds/{key}/*", "sae/{key}/stability.json"),
)
SWEEP = Record("sweep", reads=("embed",), columns=_COLUMNS, writes=("sweep/{key}/*",))


@dataclass(frozen=True, kw_only=True)
class FitOptions(StageOptions):
    """Which SAEs are fitted, and how."""

    seed: int | None = option(
        None, "of the order of the rows, and the first weights (default: the run's)", minimum=0
    )
    arch: str | None = option(None, "architecture (default batchtopk)", choices=ARCHITECTURES)
    d_sae: int | None = option(None, "latents (default by site)", minimum=2)
    k: float | None = option(None, "mean active latents of a row", minimum=0.5)
    samples: int | None = option(None, "rows seen in training", minimum=1)
    epochs: float | None = option(None, "instead: passes over the rows")
    set_: tuple[str, ...] = option((), "any setting: key=value, e.g. lr=3e-4", "--set")
    preset: str | None = option(
        None, "dermfm-zero is its published ReLU-L1 recipe", choices=("dermfm-zero",)
    )
    seeds: tuple[int, ...] = option(
        (),
        "first weights: of the run's own SAE, then of others with which its latents are compared "
        "(default: three, from --seed on; one is quicker and leaves stability unmeasured)",
        parse=lambda text: tuple(parse_seeds(text)),
    )
    consensus: bool = option(
        False,
        "the SAE is a dictionary of the directions that --seeds fits agree on (a number: how many; default "
        f"{N_FITS}, and {N_TOKEN_FITS} for patch tokens)",
    )
    consensus_at: str = option(
        "all",
        "with --consensus: all sites, or the pooled one, if it has a train image for each latent (else one SAE)",
        choices=("all", "pooled"),
    )
    halves: str = option(
        "all",
        "with --consensus: sites at which two dictionaries of disjoint halves of the groups are compared",
        choices=("all", "pooled", "none"),
    )
    sae: str = option(
        "own",
        "own: fit one. reference: the dictionary that a bundled model ships. auto: the reference where fewer than "
        "1024 train images lie near its own",
        choices=("own", "reference", "auto"),
    )
    metrics: bool = option(True, "print every held-out figure (as sae measure does)")
    sweep: tuple[dict[str, Any], ...] = option(
        (),
        "several recipes in one pass, measured on val: 'd_sae=256,512;k=8,16'",
        parse=lambda text: tuple(parse_grid(text)),
    )
    by: str = option(
        "order",
        "stability: with --sweep, recipes by the directions that their seeds agree on (default ten seeds)",
        choices=("order", "stability"),
    )
    bad_rows: str = option(
        "drop", "rows with NaN or infinity", "--bad-rows", choices=("drop", "fatal")
    )
    memory: float = option(
        2.147483648, "GB: rows that take more are shuffled in chunks", minimum=0.001
    )
    device: str = option("cpu", "cpu or cuda; under torchrun each process has its own")
    threads: int = option(1, "torch threads", minimum=1)
    force: bool = option(False, "fit again, from the start")
    resume: bool = option(
        False, "continue a stopped fit, or end with the reason why it cannot be continued"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resume and self.force:
            raise UserInputError("--resume and --force contradict each other", "give one of them")
        if self.sae == "reference" and (self.consensus or self.sweep or self.seeds):
            raise UserInputError(
                "--sae reference fits nothing, so that --consensus, --sweep and --seeds have no effect",
                "leave them out, or give --sae own",
            )
        if self.by == "stability" and not self.sweep:
            raise UserInputError(
                "--by stability compares the recipes of a sweep", "give --sweep too"
            )
        if self.consensus and self.sweep:
            raise UserInputError("--consensus and --sweep are given", "fit one after the other")
        if self.consensus and len(self.all_seeds(0)) < 2:
            raise UserInputError(
                "--consensus needs at least 2 fits", f"for example --seeds {N_FITS}"
            )
        if self.preset is None:
            for settings in self.sweep or ({},):
                SAERecipe().replaced(self.settings() | settings)

    def all_seeds(self, seed: int, most: int = N_FITS) -> tuple[int, ...]:
        """Return the seeds of the fits, the first of which is `seed` unless they are given; `most` is how many a
        consensus has by default.
        """
        if not self.consensus:
            fewest = 3 if not self.sweep else N_TOKEN_FITS if self.by == "stability" else 0
            return self.seeds or tuple(range(seed, seed + fewest))
        if len(self.seeds) > 1:
            return self.seeds
        return tuple(range(seed, seed + (self.seeds[0] if self.seeds else most)))

    def settings(self) -> dict[str, Any]:
        """Return the settings of the SAE recipe that were given. UserInputError where two contradict."""
        if self.k is not None and self.d_sae is not None and self.k > self.d_sae:
            raise UserInputError(
                f"--k {self.k:g} is larger than --d-sae {self.d_sae}", "choose k well below d-sae"
            )
        if self.samples is not None and self.epochs is not None:
            raise UserInputError(
                "--samples and --epochs both say how long to train", "give one of them"
            )
        if self.k is not None and self.arch == "relu_l1":
            raise UserInputError(
                f"--k {self.k:g} has no effect on relu_l1: its penalty decides how many latents are active",
                "use --set l1_coefficient=…",
            )
        flags = {
            "architecture": self.arch,
            "d_sae": self.d_sae,
            "k": self.k,
            "samples": self.samples,
            "epochs": self.epochs,
        }
        given = {name: value for name, value in flags.items() if value is not None}
        more = settings_from(list(self.set_))
        if twice := sorted(given.keys() & more.keys()):
            raise UserInputError(f"{twice[0]} is given twice, by its own flag and by --set")
        return given | more
