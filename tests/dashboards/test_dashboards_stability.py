"""Whether other seeds found a latent: on its card, in the tables, and silent where it is not known."""

from __future__ import annotations

import pytest
from toy_run import D_SAE, PATCHES, POOLED, D

from dermaudit.dashboards.exhibits import latents as evidence
from dermaudit.dashboards.exhibits import overview
from dermaudit.dashboards.exhibits.run_view import RunView
from dermaudit.files import write_json
from dermaudit.run.directory import open_run
from dermaudit.sae import load_sae
from dermaudit.sae.evaluation.stability import stability_report


@pytest.fixture
def compared(own_run):
    """The run, its pooled SAE compared with one that shares half of its latents, and one that shares all."""
    import torch

    run = open_run(own_run)
    sae, half, all_of_it = (load_sae(run.file("sae", POOLED)) for _ in range(3))
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(D_SAE, D, generator=generator)
    half.W_dec[::2] = torch.nn.functional.normalize(directions, dim=1)[::2]
    half.W_enc = half.W_dec.T.contiguous()
    all_of_it.b_enc = all_of_it.b_enc + 1e-4  # other weights, the same latents
    all_of_it.W_dec = all_of_it.W_dec * 2
    rows = 3 * torch.randn(600, D, generator=generator)
    report = stability_report(
        [sae, half, all_of_it], rows.numpy(), names=["seed 0", "seed 1", "seed 2"]
    )
    path = run.file("sae", POOLED, "stability.json")
    write_json(path, report)
    run.record(f"seeds:{POOLED}", {}, [path], upstream=["embed", f"fit:{POOLED}"])
    return run, report["per_latent"]["stable"]


def test_card_and_tables_say_which_latents_other_seeds_found(compared):
    run, stable = compared
    view = RunView.open(run.path)
    rows = evidence.concept_rows(view)
    assert {True, False} <= {row["stable"] for row in rows if row["site"] == POOLED}
    for row in rows:
        expected = stable[row["latent"]] if row["site"] == POOLED else None
        assert row["stable"] == expected
        text = evidence.over_seeds(view, row)
        if row["site"] == PATCHES:
            assert "not measured" in text
        else:
            assert "by seed 1, seed 2 (agreement " in text
            assert ("**not found again**" in text) == (not expected)
    table = evidence.concept_table(rows)
    column = table.header.index("over seeds")
    assert {line[column] for line in table.words()} == {"yes", "no", "–"}
    shares = {
        line[0]: line[overview.sae(view).table.header.index("over seeds")]
        for line in overview.sae(view).table.rows
    }
    live = [flag for flag in stable if flag is not None]
    assert (
        shares[POOLED] == pytest.approx(sum(live) / len(live), abs=1e-6) and shares[PATCHES] is None
    )


def test_of_an_earlier_fit_is_not_shown(compared):
    run, _ = compared
    write_json(run.file("sae", POOLED, "metrics.json"), {"d_in": D, "d_sae": D_SAE, "seed": 8})
    files = [run.file(name) for name in run.meta["stages"][f"fit:{POOLED}"]["outputs"]]
    run.record(f"fit:{POOLED}", {}, files, upstream=["embed"])
    view = RunView.open(run.path)
    assert view.other_seeds(POOLED) is None and view.stable(POOLED, 0) is None
