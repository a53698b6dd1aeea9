"""One process, two processes, and a batch in parts: the same losses and the same weights."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file

MODEL = {"embed_dim": 16, "vision_cfg": {"image_size": 32}, "text_cfg": {"context_length": 12}}
# 61 images in batches of 12: five steps an epoch, and one image left over each time.
COMMON = {
    "name": "equal",
    "seed": 3,
    "batch": 12,
    "warmup": 2,
    "weight_ema": 0.5,
    "model": MODEL,
    "augment": {"crop": [0.4, 1.0], "grayscale": 0.2, "jitter_p": 0.8},
}
KINDS = {
    "clip": {"contrastive": {"epochs": 4, "loss": "clip", "local_weight": 0.5}},
    "clip-full": {
        "contrastive": {"epochs": 4, "loss": "clip", "gather": "full", "aspect_weight": 0}
    },
    "siglip": {"contrastive": {"epochs": 4, "loss": "siglip"}},
    "make": {"contrastive": {"epochs": 4, "loss": "make", "make": {"subcaptions": 3}}},
    "make-code": {
        "contrastive": {
            "epochs": 4,
            "loss": "make",
            "aspect_weight": 0,
            "make": {
                "denominator": "all",
                "alignment": "image_to_text",
                "weights": "softmax",
                "mask_positives": True,
                "sigma": 0.0,
            },
        }
    },
    "masked-muon": {"masked": {"epochs": 4}, "optimizer": "muon", "contrastive": {"epochs": 0.2}},
}


KINDS["clip-checkpointed"] = KINDS["clip"] | {"grad_checkpointing": True}
IN_PARTS = ("clip", "make", "masked-muon")
#: "-parts" behind a kind whose batches were cut in three
ALL_KINDS = KINDS | {f"{kind}-parts": KINDS[kind] | {"accumulate": 3} for kind in IN_PARTS}


def run(run_python, folder, processes, kinds, dtype="float64"):
    """{kind: (weights, losses of each epoch)}"""
    folder.mkdir()
    for kind, own in kinds.items():
        (folder / f"{kind}.json").write_text(json.dumps(COMMON | own))
    argv = ["tests/pretrain/equal_world.py", folder, dtype]
    if processes > 1:
        argv = [
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            str(processes),
            *argv,
        ]
    done = run_python(*argv, timeout=600)
    assert done.rc == 0, done.stderr[-3000:]
    found = {}
    for kind in kinds:
        log = [json.loads(x) for x in (folder / kind / "log.jsonl").read_text().splitlines()]
        weights = load_file(folder / kind / "weights.safetensors")
        found[kind] = weights, [entry["loss"] for entry in log]
    return found


@pytest.fixture(scope="module")
def worlds(run_python, tmp_path_factory):
    root = tmp_path_factory.mktemp("worlds")
    return {n: run(run_python, root / str(n), n, ALL_KINDS) for n in (1, 2)}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_equal_one(worlds, kind):
    (one, losses), (two, theirs) = worlds[1][kind], worlds[2][kind]
    assert len(losses) >= 4 and len(set(losses)) > 3  # 20 steps
    assert theirs == pytest.approx(losses, abs=1e-6)
    assert max(float((one[k] - two[k]).abs().max()) for k in one) < 1e-6


@pytest.mark.slow
def test_two_processes_equal_one_in_float32_up_to_rounding(run_python, tmp_path):
    kinds = {kind: KINDS[kind] for kind in ("clip", "make")}
    one, two = (run(run_python, tmp_path / str(n), n, kinds, "float32") for n in (1, 2))
    for kind in kinds:
        (weights, losses), (theirs, their_losses) = one[kind], two[kind]
        distance = max(float((weights[k] - theirs[k]).abs().max()) for k in weights)
        print(
            f"{kind}: losses {max(abs(a - b) for a, b in zip(losses, their_losses, strict=True)):.1e}, "
            f"weights {distance:.1e}"
        )
        assert their_losses == pytest.approx(losses, abs=5e-6)
        assert distance < 5e-5  # Adam moves a weight by lr whatever the gradient's size


@pytest.mark.slow
@pytest.mark.parametrize("kind", IN_PARTS)
@pytest.mark.parametrize("processes", [1, 2])
def test_a_batch_in_parts_equals_one_batch(worlds, kind, processes):
    (one, losses), (cut, theirs) = worlds[1][kind], worlds[processes][f"{kind}-parts"]
    assert theirs == pytest.approx(losses, abs=1e-6)
    assert max(float((one[k] - cut[k]).abs().max()) for k in one) < 1e-6


@pytest.mark.slow
def test_gradient_checkpointing_changes_nothing(worlds):
    (one, losses), (other, theirs) = worlds[1]["clip"], worlds[1]["clip-checkpointed"]
    assert theirs == pytest.approx(losses, abs=1e-9)
    assert max(float((one[k] - other[k]).abs().max()) for k in one) < 1e-9


@pytest.mark.slow
def test_command_two_processes_write_one_checkpoint(run_python, tiny_recipe, sound, tmp_path):
    """The command under torchrun: killed, resumed, and refused to one process alone."""
    argv = [
        "-m",
        "dermaudit",
        "pretrain",
        tiny_recipe,
        "--data",
        sound,
        "--threads",
        "1",
        "--out",
        tmp_path / "out",
        "--set",
        "masked.epochs=0",
    ]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *argv]
    killed = run_python(*launch, env={"DERMAUDIT_FAILPOINT": "pretrain:1"}, timeout=300)
    assert killed.rc != 0 and not (tmp_path / "out").exists()
    alone = run_python(*argv, "--resume", "--json", timeout=300)
    assert alone.rc == 2
    assert "was written by 2 processes, this is a run of 1" in alone.json()["error"]["message"]
    done = run_python(*launch, "--resume", timeout=300)
    assert done.rc == 0, done.stderr
    assert "going on after step 4" in done.stderr
    assert done.stderr.count("contrastive 2/2") == 1  # one process speaks for both
    lines = (tmp_path / "out" / "training_log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [4, 8]
