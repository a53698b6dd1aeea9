"""The toy run of these tests has the form of a run that the real pipeline made."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from toy_run import PATCHES

#: Written only where something was not measured, or where there is a warning.
AT_TIMES = {"reason", "insertion_residual_reason", "warning"}

#: What real files have besides: figures that no page shows. A new key of a real file fails the test.
NOT_IN_THE_TOY_RUN = {
    "store.json": {
        "batch", "key", "not_finite", "preprocess_sha256", "skipped", "threads", "token_kind",
    },
    "metrics.json": {
        "architecture", "best_step", "consensus", "dense", "held_fvu_training", "held_out",
        "n_not_finite", "n_test_rows", "scale", "site", "steps",
    },
}  # fmt: skip


def real_name(name: str, real: Path) -> str:
    """The file of the demo that a file of the toy run stands for: its patches come from another block."""
    block = next(p.name for p in (real / "sae").iterdir() if p.name.startswith("visual.blocks."))
    return name.replace(PATCHES, block).replace("shard-000001", "shard-000000")


def column_types(path: Path) -> dict[str, str]:
    schema = pq.read_schema(path)
    return {name: str(schema.field(name).type) for name in schema.names}


@pytest.mark.slow
def test_every_file_has_the_columns_and_keys_of_the_demo(whole_run, demo):
    compared = 0
    for path in sorted(whole_run.rglob("*")):
        name = path.relative_to(whole_run).as_posix()
        real = demo.run / real_name(name, demo.run)
        if path.suffix == ".parquet" and name != "images.parquet":  # its columns are the user's
            mine, theirs = column_types(path), column_types(real)
            differing = {n: (t, theirs.get(n)) for n, t in mine.items() if t != theirs.get(n)}
            assert mine.keys() == theirs.keys(), name
            assert all(t == "null" for t, _ in differing.values()), (name, differing)
            compared += 1
        elif path.suffix == ".json" and not name.endswith(".reason.json"):
            mine, theirs = json.loads(path.read_text()), json.loads(real.read_text())
            if name == "run.json":
                stages = mine.pop("stages"), theirs.pop("stages")
                for record in ("annotate", "compare", "heads", "name", "recipe:ruler"):
                    assert stages[0][record].keys() == stages[1][record].keys(), record
            if name == "suppression/hair.json":  # chosen by name there, measured in the demo
                continue
            missing = next(
                (m for end, m in NOT_IN_THE_TOY_RUN.items() if name.endswith(end)), set()
            )
            assert mine.keys() - AT_TIMES == theirs.keys() - AT_TIMES - missing, name
            compared += 1
    assert compared >= 15
