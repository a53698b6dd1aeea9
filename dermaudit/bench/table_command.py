"""The command `bench table`. Input is validated before anything heavy is imported."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def bench_table(
    predictions: Annotated[
        Path, typer.Option(help="folder of saved predictions: DIR/<dataset>/<model>.csv")
    ],
    legacy_bootstrap: Annotated[
        bool,
        typer.Option(
            "--legacy-bootstrap", help="the published intervals, and how many are reproduced"
        ),
    ] = False,
    reference: Annotated[
        str | None, typer.Option(help="compare every model with this one, not all pairs")
    ] = None,
    by_class: Annotated[bool, typer.Option("--by-class", help="recall of every class too")] = False,
    draws: Annotated[int, typer.Option(help="bootstrap resamples, 100 or more")] = 2000,
    seed: Annotated[int, typer.Option(help="of the resamples", min=0)] = 0,
    form: Annotated[
        str | None, typer.Option("--format", help="text, markdown, latex or parquet")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="write the table to this file")] = None,
    force: Annotated[bool, typer.Option(help="replace the file --out")] = False,
) -> dict[str, Any]:
    """Measures, intervals and paired tests of saved per-image predictions."""
    from dermaudit.console import say

    from .inputs.saved_predictions import read_predictions
    from .options import Resampling, check_draws
    from .output.paths import check_place
    from .output.render import check_output, save, show
    from .table import tabulate

    form = check_output(form, out)
    check_draws(draws)
    if out is not None:
        check_place(out, force)
    found = read_predictions(predictions)
    sheets, more = tabulate(
        found,
        predictions,
        Resampling(draws, seed, reference),
        legacy=legacy_bootstrap,
        by_class=by_class,
    )
    if out is not None:
        save(sheets, form, out)
        more["out"] = str(out)
        say(f"written: {out}")
    if form != "parquet":
        show(sheets, form if out is None else "text")
    return {
        "predictions": str(predictions),
        "legacy": legacy_bootstrap,
        "figures": [record for sheet in sheets for record in sheet.records],
        "notes": [note for sheet in sheets for note in sheet.notes],
        **more,
    }
