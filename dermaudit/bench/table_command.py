"""The command `bench table`. Input is validated before anything heavy is imported."""

from __future__ import annotations

from typing import Any

from .options import Resampling, TableOptions, check_draws


def bench_table(options: TableOptions) -> dict[str, Any]:
    """Measures, intervals and paired tests of saved per-image predictions."""
    from dermaudit.console import say

    from .inputs.saved_predictions import read_predictions
    from .output.paths import check_place
    from .output.render import check_output, save, show
    from .table import tabulate

    out = options.out
    form = check_output(options.form, out)
    check_draws(options.draws)
    if out is not None:
        check_place(out, options.force)
    found = read_predictions(options.predictions)
    sheets, more = tabulate(
        found,
        options.predictions,
        Resampling(options.draws, options.seed, options.reference),
        legacy=options.legacy_bootstrap,
        by_class=options.by_class,
    )
    if out is not None:
        save(sheets, form, out)
        more["out"] = str(out)
        say(f"written: {out}")
    if form != "parquet":
        show(sheets, form if out is None else "text")
    return {
        "predictions": str(options.predictions),
        "legacy": options.legacy_bootstrap,
        "figures": [record for sheet in sheets for record in sheet.records],
        "notes": [note for sheet in sheets for note in sheet.notes],
        **more,
    }
