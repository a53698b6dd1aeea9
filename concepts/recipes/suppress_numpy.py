"""Suppress the concept of a dermaudit recipe in embeddings, with numpy alone.

    python suppress_numpy.py ruler.recipe.json embeddings.npy edited.npy

embeddings.npy: float32 (n, d), as the model of the recipe gives them. Rows in which no latent fires stay bit for bit.
"""

import base64
import hashlib
import json
import pathlib
import sys

import numpy as np


def load(path):
    """Return the body of a recipe file. It ends the program if the body was altered."""
    raw = json.loads(pathlib.Path(path).read_text("utf-8"))
    text = json.dumps(raw["body"], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    if hashlib.sha256(text.encode("utf-8")).hexdigest() != raw["body_sha256"]:
        sys.exit(f"{path} was altered: its body does not have the recorded hash")
    if raw["body"]["weights"] is None:
        sys.exit(
            f"{path} holds no weights: it is of a TopK SAE, and needs the run that it was made in"
        )
    return raw["body"]


def suppress(body, x):
    """Return the edited rows (n, d), the codes (n, latents), and which rows changed (n,)."""
    weights, operation = body["weights"], body["operation"]

    def array(name, *shape):
        return np.frombuffer(base64.b64decode(weights[name]), "<f4").reshape(shape)

    n, d = len(body["latents"]), weights["d"]
    pre = x @ array("encoder", n, d).T + array("bias", n)
    z = np.where(pre > array("threshold", n), np.maximum(pre, 0), np.float32(0))
    level = np.float32(operation.get("level", 0))
    if operation["mode"] == "subtract":
        change = -z
    elif operation["mode"] == "scale":
        change = (level - 1) * z
    elif operation["mode"] == "reactive":
        change = np.where(z.sum(1, keepdims=True) > operation["gate_level"], -z, 0)
    else:  # mean, and clamp, which only takes away
        most = 0 if operation["mode"] == "clamp" else np.inf
        change = np.where(z > 0, np.minimum(level - z, most), 0)
    fired = (change != 0).any(1)
    edited = x + (change @ array("decoder", n, d)).astype(x.dtype)
    if operation["renormalise"]:
        length = np.maximum(np.linalg.norm(edited, axis=1, keepdims=True), 1e-12)
        edited = edited * (np.linalg.norm(x, axis=1, keepdims=True) / length)
    return np.where(fired[:, None], edited, x), z, fired


if __name__ == "__main__":
    np.save(sys.argv[3], suppress(load(sys.argv[1]), np.load(sys.argv[2]))[0])
