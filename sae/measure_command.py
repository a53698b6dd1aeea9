"""The verb `sae measure`: all figures of a run's SAEs on its test images, without fitting again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dermaudit.errors import EvidenceError, ForeignArtifactError, UserInputError, unknown

if TYPE_CHECKING:
    import numpy as np

    from dermaudit.rundir import Run

    from .metrics.measured import Images


def measure(
    run: Annotated[Path, typer.Option("--run", help="folder of the run")],
    site: Annotated[
        list[str] | None, typer.Option("--site", help="sites instead of all that were fitted")
    ] = None,
    against: Annotated[
        list[Path] | None,
        typer.Option(help="folder of an SAE of the same site and another seed, or a run with one"),
    ] = None,
    embeddings_of: Annotated[
        str | None,
        typer.Option(help="an independent model, by whose embeddings monosemanticity is judged"),
    ] = None,
    zero_shot: Annotated[
        bool, typer.Option(help="also what the zero-shot classifier keeps, where labels allow")
    ] = True,
    draws: Annotated[int, typer.Option(help="bootstrap draws over groups", min=20)] = 1000,
    seed: Annotated[int, typer.Option()] = 0,
    threads: Annotated[int, typer.Option(help="torch threads", min=1)] = 1,
    force: Annotated[bool, typer.Option(help="measure again")] = False,
) -> dict[str, Any]:
    """Measure the sparse autoencoders of a run on its test images; writes sae/<site>/measured.json."""
    for folder in against or []:
        if not folder.is_dir():
            raise UserInputError(
                f"--against {folder} is not a folder", "give the folder with cfg.json, or a run"
            )
    from dermaudit.rundir import open_run

    target = open_run(run)
    sites = _sites(target, site)
    if against and len(sites) > 1 and any((folder / "cfg.json").is_file() for folder in against):
        raise UserInputError(
            f"--against names one SAE, and the run has {len(sites)} sites", f"add --site {sites[0]}"
        )
    import torch

    from .metrics.measured import metrics_table

    torch.set_num_threads(threads)
    data = _RunImages(target)
    tower = _tower(target) if zero_shot and data.zero_shot_labels() else None
    judge = _Judge(embeddings_of) if embeddings_of else None
    options = {
        "against": _digests(against, sites), "embeddings_of": judge.tower.fingerprint if judge else None,
        "zero_shot": tower is not None, "draws": draws, "seed": seed, "threads": threads,
    }
    found: dict[str, Any] = {}
    for name in sites:

        def make(name: str = name) -> tuple[list[Path], dict[str, Any]]:
            return _measure_site(target, name, data, tower, judge, against or [], draws, seed)

        target.stage(
            f"measure:{name}", {"site": name, **options}, make, upstream=["embed", f"fit:{name}"],
            force=force,
        )
        from dermaudit.files import read_json

        from .metrics.measured import summary

        measured = read_json(target.file("sae", name, "measured.json"), "measured figures")
        metrics_table(measured, f"{name}: held-out test images")
        found[name] = summary(measured)
    return {"run": str(run), "sites": found}


def _sites(run: Run, asked: list[str] | None) -> list[str]:
    fitted = sorted(path.parent.name for path in run.path.glob("sae/*/cfg.json"))
    if not fitted:
        raise UserInputError(
            f"the run {run.path} has no sparse autoencoder yet", f"run: dermaudit fit --run {run.path}"
        )
    for name in asked or []:
        if name not in fitted:
            raise unknown("site", name, fitted)
    sites = list(dict.fromkeys(asked or fitted))
    for name in sites:
        run.require(f"fit:{name}", "fit")
    return sites


class _RunImages:
    """The table of a run: splits, groups, labels, and what is known of each image."""

    def __init__(self, run: Run) -> None:
        import numpy as np
        import pyarrow.parquet as pq

        self.run = run
        self.table = pq.read_table(run.file("images.parquet"))
        n = self.table.num_rows

        def words(name: str) -> np.ndarray:
            values = self.table[name].to_pylist() if name in self.table.column_names else [""] * n
            return np.array(["" if v is None else str(v) for v in values], dtype=object)

        self.splits, self.groups, self.labels = words("split"), words("group"), words("label")
        if not (self.groups != "").any():
            self.groups = np.arange(n).astype(str)

    def truth(self) -> dict[str, np.ndarray]:
        """`artifact:*` and `concept:*` columns (.5 and up is present, blank is unknown), then each
        label against the others: {name: (n,) of 1, 0, nan}."""
        import numpy as np
        import pyarrow as pa

        found: dict[str, np.ndarray] = {}
        for column in self.table.column_names:
            kind, _, name = column.partition(":")
            if kind in ("artifact", "concept") and name:
                raw = self.table[column].cast(pa.float64()).to_numpy(zero_copy_only=False)
                found[name] = np.where(np.isfinite(raw), (raw >= 0.5).astype(float), np.nan)
        for label in sorted(set(self.labels) - {""}):
            if label not in found:
                known = self.labels != ""
                found[label] = np.where(known, (self.labels == label).astype(float), np.nan)
        return found

    def zero_shot_labels(self) -> bool:
        """Whether the labels are codes that the toolkit knows names for."""
        from dermaudit.towers.prompts import ham_classes

        known = set(self.labels) - {""}
        return len(known) > 1 and known <= set(ham_classes())

    def of(self, images: np.ndarray, codes: Any, pooled: np.ndarray | None) -> Images:
        """The images of these row numbers; `codes` and `pooled` are theirs already."""
        from .metrics.measured import Images

        truth = {name: values[images] for name, values in self.truth().items()}
        return Images(codes, self.groups[images], truth, pooled)


def _measure_site(
    run: Run, site: str, data: _RunImages, tower: Any, judge: Any, against: list[Path], draws: int,
    seed: int,
) -> tuple[list[Path], dict[str, Any]]:
    import numpy as np

    from dermaudit.files import write_json

    from .codes import Codes
    from .embed import POOLED
    from .metrics.measured import TRAIN_ROWS, summary
    from .metrics.measured import measure as measure_sae
    from .model import load_sae
    from .store import ActivationStore

    sae = load_sae(run.file("sae", site))
    rows = ActivationStore.open(run.file("embeddings", site), check=True).rows()
    is_test, is_train = (data.splits == split for split in ("test", "train"))
    stored = np.sort(rows.image_rows)  # the codes stand in the order of the table, rows in that of the store
    test, train = stored[is_test[stored]], stored[is_train[stored]]
    images_of_rows = rows.image_rows[is_test[rows.image_rows]]
    if not len(test):
        raise EvidenceError(
            f"the run {run.path} has no test images to measure on", "give more images, or a split column",
            {"test": 0},
        )
    codes = Codes(run.file("codes", site)).csr()
    pooled = _pooled(run, len(data.splits))
    beside = pooled if site == POOLED else None  # probes of embeddings stand beside codes of embeddings
    embeddings = pooled[test] if pooled is not None else None
    if judge is not None:
        embeddings = judge.embed(run, test)
    classifier = None
    if tower is not None and site == POOLED:
        from dermaudit.towers import ZeroShot
        from dermaudit.towers.prompts import ham_classes

        used = set(data.labels) - {""}
        classifier = ZeroShot(tower, {k: v for k, v in ham_classes().items() if k in used})
    of_train = rows.of_images(is_train)
    if len(of_train) > TRAIN_ROWS:
        picked = np.random.default_rng([seed, 8]).choice(len(of_train), TRAIN_ROWS, replace=False)
        of_train = of_train[np.sort(picked)]
    measured = measure_sae(
        sae, rows.take(rows.of_images(is_test)), np.repeat(data.groups[images_of_rows], rows.tokens),
        train=rows.take(of_train) if len(of_train) else None,
        images=data.of(test, codes[is_test[stored]], beside[test] if beside is not None else None),
        fitted=data.of(train, codes[is_train[stored]], beside[train] if beside is not None else None),
        embeddings=embeddings,
        same_model=judge is None,
        others=[_load_other(folder, site) for folder in against],
        names=[run.path.name, *(folder.name for folder in against)],
        classifier=classifier,
        labels=[label or None for label in data.labels[images_of_rows]] if classifier else None,
        n_draws=draws,
        seed=seed,
    )
    path = run.file("sae", site, "measured.json")
    write_json(path, measured)
    return [path], summary(measured)


def _pooled(run: Run, n: int) -> np.ndarray | None:
    """The pooled embeddings by row number (n, d), nan where none is stored; None without the site."""
    import numpy as np

    from .embed import POOLED
    from .store import ActivationStore

    folder = run.file("embeddings", POOLED)
    if not (folder / "store.json").is_file():
        return None
    acts, stored = ActivationStore.open(folder, check=True).read()
    out = np.full((n, acts.shape[1]), np.nan, np.float32)
    out[stored] = acts
    return out


def _load_other(folder: Path, site: str) -> Any:
    from .model import load_sae

    inner = folder / "sae" / site if (folder / "run.json").is_file() else folder
    other = load_sae(inner)
    if other.hook_name and other.hook_name != site:
        raise ForeignArtifactError(
            f"--against {inner} is an SAE of {other.hook_name}, not of {site}",
            f"name one of {site}, or measure --site {other.hook_name}",
        )
    return other


def _digests(against: list[Path] | None, sites: list[str]) -> list[str]:
    """What the SAEs compared with hold, so that figures are made again when one was fitted again."""
    from dermaudit.files import sha256_file

    found = []
    for folder in against or []:
        run = (folder / "run.json").is_file()
        for inner in [folder / "sae" / site for site in sites] if run else [folder]:
            weights = inner / "sae_weights.safetensors"
            if not weights.is_file():
                raise UserInputError(
                    f"there is no sparse autoencoder at --against {inner}",
                    "give the folder with cfg.json and sae_weights.safetensors, or a run that was fitted",
                )
            found.append(sha256_file(weights))
    return found


def _tower(run: Run) -> Any:
    from dermaudit.towers import load_model

    tower = load_model(run.meta["model"]["name"])
    run.check_model(tower.fingerprint)
    return tower


class _Judge:
    """An independent model, and its pooled embeddings of a run's images, made once for all sites."""

    def __init__(self, name: str) -> None:
        from dermaudit.towers import load_model

        self.tower = load_model(name)
        self._made: dict[bytes, np.ndarray] = {}

    def embed(self, run: Run, rows: np.ndarray) -> np.ndarray:
        """(n, d) of the images with these row numbers, in the model's own preprocessing.

        Errors: UserInputError naming an image that is not where the run says.
        """
        key = rows.tobytes()
        if key not in self._made:
            self._made[key] = self._embed(run, rows)
        return self._made[key]

    def _embed(self, run: Run, rows: np.ndarray) -> np.ndarray:
        import numpy as np

        from dermaudit.console import track
        from dermaudit.data import BadImage, read_image

        from .embed import POOLED, activations, images_of_run

        paths = images_of_run(run).paths
        parts = []
        for start in track(range(0, len(rows), 64), "embed by the independent model"):
            try:
                pixels = [read_image(Path(paths[row])) for row in rows[start : start + 64]]
            except BadImage as error:
                raise UserInputError(
                    f"--embeddings-of needs the run's images: {error.message}",
                    "start where the run was made (its images are named from there), or leave the flag out",
                ) from error
            parts.append(activations(self.tower, pixels, [POOLED])[POOLED])
        return np.concatenate(parts)
