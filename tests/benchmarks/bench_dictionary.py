"""How stable consensus dictionaries are, what their clustering and their number of fits change, and what they cost.

    python tests/benchmarks/bench_dictionary.py RUN [--halvings 1] [--widths 64 128] [--json FILE]

RUN is a run with stored embeddings. Nothing of it is changed. For each width the train and val rows of the pooled
site are divided into two halves of groups, several times; each half is fitted with seeds that the other does not
have, and the consensus of one is compared with that of the other on test images: with all fits and with half of
them, with each way of clustering, and, beside them, single fits. k is the one that `fit --consensus` chooses on
all train rows. At the token site one halving gives the lift shares of both dictionaries. Intervals: the lowest and
highest of the halvings; lift shares are of test images.

Seconds are those of one fit and of ten in one pass, in turns, at the threads of the machine's setting.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from dermaudit.heads import fit_probe, probe_score
from dermaudit.run.directory import open_run
from dermaudit.sae.evaluation.halves import between_halves, first_latents
from dermaudit.sae.evaluation.lift import choice_table, lift_share
from dermaudit.sae.evaluation.reconstruction import accumulate
from dermaudit.sae.evaluation.stability import match, unit
from dermaudit.sae.run_data import POOLED, RunData
from dermaudit.sae.training.consensus import METHODS, consensus
from dermaudit.sae.training.decoder_start import DecoderStart
from dermaudit.sae.training.dictionary import (
    WITHIN,
    FitRows,
    disjoint_halves,
    keep_at,
    short_recipe,
)
from dermaudit.sae.training.loop import fit_saes
from dermaudit.sae.training.plan import site_recipe
from dermaudit.sae.training.recipe import SAERecipe
from dermaudit.sae.training.site_rows import SiteRows
from dermaudit.stats.intervals import auprc

N_FITS, N_TOKEN_FITS = 20, 10


def saes_of(rows: FitRows, recipes: list[SAERecipe], starts=None) -> list:
    """The SAEs of recipes on some rows."""
    made = fit_saes(rows.train, rows.held, recipes, site="", model_name="", starts=starts)
    return [one.sae for one in made]


def refitted(rows: FitRows, recipe: SAERecipe, directions: np.ndarray):
    """The SAE that begins at directions, which are its first latents."""
    sae = saes_of(rows, [recipe], [DecoderStart(directions, WITHIN)])[0]
    sae.metadata["consensus_latents"] = len(directions)
    return sae


def matched(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    """Mean cosine of a one-to-one matching of directions, the share above .9, and how many each has."""
    cosine = unit(a) @ unit(b).T
    values = cosine[match(cosine)]
    return {
        "pw_mcc": float(values.mean()),
        "above": float((values > 0.9).mean()),
        "latents": (len(a) + len(b)) / 2,
    }


def summarised(found: list[dict[str, float]]) -> dict[str, list[float]]:
    """{figure: [mean, lowest, highest]} over the halvings."""
    names = found[0].keys()
    return {
        name: [f(one[name] for one in found) for f in (statistics.mean, min, max)] for name in names
    }


def chosen_k(data: SiteRows, h: int) -> float:
    """The k of `fit --consensus` on all train rows."""
    rows = FitRows.of(data)
    base = site_recipe(1, data.n_train, {"d_sae": h})
    recipes = [
        short_recipe(base, 1).replaced({"k": k, "seed": seed})
        for k in (base.k / 2, base.k)
        for seed in range(10)
    ]
    fits = saes_of(rows, recipes)
    counts = [len(consensus([one.W_dec.numpy() for one in fits[i : i + 10]])) for i in (0, 10)]
    return base.k if counts[1] > counts[0] else base.k / 2


def pooled(data: SiteRows, h: int, halvings: int) -> dict:
    """Everything of one width at the pooled site."""
    k = chosen_k(data, h)
    base = site_recipe(1, data.n_train, {"d_sae": h, "k": k})
    test = data.split("test")
    x = test.rows.take(test.index)
    images = test.rows.image_rows[test.index]
    found: dict[str, list[dict[str, float]]] = {}
    for halving in range(1, halvings + 1):
        halves = disjoint_halves(data, halving)
        fits, dictionaries = [], []
        for number, rows in enumerate(halves):
            seeds = range(1000 * halving + 100 * number, 1000 * halving + 100 * number + N_FITS)
            short = short_recipe(base, 1)
            fits.append(
                [
                    one.W_dec.numpy()
                    for one in saes_of(rows, [short.replaced({"seed": s}) for s in seeds])
                ]
            )
            agreed = consensus(fits[-1])
            whole = base.replaced({"seed": seeds[0]})
            dictionaries.append(
                (refitted(rows, whole, agreed.directions), saes_of(rows, [whole])[0])
            )
        for name in METHODS:
            sets = [consensus(own, method=name).directions for own in fits]
            if min(map(len, sets)):
                found.setdefault(f"consensus of 20, {name}", []).append(matched(*sets))
        sets = [consensus(own[:10]).directions for own in fits]
        found.setdefault("consensus of 10, density", []).append(matched(*sets))
        (first, own), (second, other) = dictionaries
        one = between_halves(first_latents(first), first_latents(second), x, images)
        single = between_halves(own, other, x, images)
        for name, report, place in (("dictionary", one, 0), ("single fits", single, 1)):
            fvu = [
                accumulate(pair[place], x, images.astype(str)).report(n_draws=0)
                for pair in dictionaries
            ]
            found.setdefault(name, []).append(
                {
                    "pw_mcc": report["pw_mcc"]["value"],
                    "above": report["share_above_0.9"]["value"],
                    "latents": float(np.mean(report["latents"])),
                    "rank_correlation": report["rank_correlation"]["value"],
                    "fvu": float(np.mean([part["fvu"]["value"] for part in fvu])),
                    "l0": float(np.mean([part["l0"]["value"] for part in fvu])),
                }
            )
    return {"k": k, "d_sae": h} | {name: summarised(values) for name, values in found.items()}


def image_codes(sae, data: SiteRows, n: int) -> np.ndarray:
    """The largest code of the tokens of each image, of the latents of the consensus (n, c)."""
    sae, rows = first_latents(sae), data.rows
    out = np.zeros((n, sae.d_sae), np.float32)
    for at in range(0, len(rows.image_rows), 64):
        place = np.arange(at, min(at + 64, len(rows.image_rows)))
        x = rows.take((place[:, None] * rows.tokens + np.arange(rows.tokens)).reshape(-1))
        codes = sae.encode(torch.from_numpy(x)).reshape(len(place), rows.tokens, -1)
        out[rows.image_rows[place]] = codes.amax(1).numpy()
    return out


def spread(run: RunData, sites: dict[str, SiteRows], k_pooled: float) -> dict[str, list[float]]:
    """{artifact: lift shares of the dictionaries of two halves, each the best latent of all its sites}."""
    codes: list[list[np.ndarray]] = [[], []]
    for site, data in sites.items():
        tokens = data.rows.tokens
        k = k_pooled if tokens == 1 else site_recipe(tokens, 10**6, {}).k
        base = site_recipe(tokens, data.n_train // tokens, {"k": k}, rows_per_latent=32)
        for number, rows in enumerate(disjoint_halves(data, 1)):
            n = N_FITS if tokens == 1 else N_TOKEN_FITS
            short = short_recipe(base, tokens)
            seeds = range(100 * number, 100 * number + n)
            fits = saes_of(rows, [short.replaced({"seed": seed}) for seed in seeds])
            agreed = consensus([one.W_dec.numpy() for one in fits], keep=keep_at(tokens))
            sae = refitted(rows, base.replaced({"seed": seeds[0]}), agreed.directions)
            codes[number].append(image_codes(sae, data, run.n))
            print(f"{site}, half {number + 1}: {len(agreed)} directions", flush=True)
    found = {}
    for truth in run.truth.values():
        if truth.type != "artifact":
            continue
        train, val, test = (truth.known(run.rows(split)) for split in ("train", "val", "test"))
        y = truth.values[test]
        if not 5 <= y.sum() <= len(y) - 5:
            continue
        probe = fit_probe(run.pooled[train], truth.values[train], run.groups[train], seed=0)
        ceiling = auprc(y, probe_score(probe, run.pooled[test]))
        shares = []
        for own in codes:
            joined = np.concatenate(own, axis=1)
            table = choice_table(
                (joined[train], truth.values[train][:, None]),
                (joined[val], truth.values[val][:, None]),
            )
            best = int(np.nanargmax(table[0]))
            shares.append(lift_share(auprc(y, joined[test, best]), ceiling, float(y.mean())))
        if None not in shares:
            found[truth.name] = shares
    return found


def seconds(data: SiteRows) -> dict[str, float]:
    """Median seconds of one fit and of ten in one pass, 100,000 rows, and the ratio."""
    rows = FitRows.of(data)
    base = site_recipe(1, data.n_train, {"d_sae": 64, "k": 8.0, "samples": 100_000})
    times: dict[int, list[float]] = {1: [], 10: []}
    for turn in range(4):
        for n, own in times.items():
            began = time.perf_counter()
            saes_of(rows, [base.replaced({"seed": seed}) for seed in range(n)])
            if turn:  # the first compiles
                own.append(time.perf_counter() - began)
    one, ten = (statistics.median(times[n]) for n in (1, 10))
    return {"threads": torch.get_num_threads(), "one": one, "ten": ten, "ratio": ten / one}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--halvings", type=int, default=1)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    run = RunData(open_run(args.run))
    sites = {
        site: SiteRows.open(run.run, site, run.splits)
        for site in run.run.require("embed")["summary"]["sites"]
    }
    found: dict = {"seconds": seconds(sites[POOLED]), "widths": {}}
    for h in args.widths:
        found["widths"][str(h)] = pooled(sites[POOLED], h, args.halvings)
        print(json.dumps(found["widths"][str(h)], indent=1), flush=True)
    found["lift_shares_of_halves"] = spread(run, sites, found["widths"][str(args.widths[0])]["k"])
    print(
        json.dumps({name: found[name] for name in ("seconds", "lift_shares_of_halves")}, indent=1)
    )
    if args.json:
        args.json.write_text(json.dumps(found, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
