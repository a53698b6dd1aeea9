"""A frozen sentence encoder as a teacher of texts: a Hugging Face text model whose token states are averaged.

It is a folder in the format of sentence-transformers (`config.json`, `1_Pooling/config.json` with the mean), or a
package that ships one (`package:all-minilm-l6-v2`).
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from dermaudit.errors import ForeignArtifactError, UserInputError
from dermaudit.files import read_json
from dermaudit.towers.loading.packaged import SENTENCE_PACKAGES, import_package

POOLING = "1_Pooling/config.json"


def sentence_folder(name: str) -> Path | None:
    """Return the folder of a sentence encoder, None for another kind of model. UserInputError for a package that is
    not known or not installed.
    """
    kind, _, rest = name.partition(":")
    if kind != "package":
        folder = Path(name.removeprefix("local-dir:"))
        return folder if (folder / POOLING).is_file() else None
    if rest not in SENTENCE_PACKAGES:
        raise UserInputError(
            f"no package is known for the sentence encoder '{rest}'",
            f"there are: {', '.join(SENTENCE_PACKAGES)}",
        )
    package, module = SENTENCE_PACKAGES[rest]
    return Path(import_package(package, module).get_model_path())


class SentenceEncoder:
    """Texts to unit rows (n, width): the mean of the last states of the tokens, padding left out.

    ForeignArtifactError for a folder that pools in another way.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        from transformers import AutoModel, AutoTokenizer

        pooling = read_json(folder / POOLING)
        chosen = [
            key for key, on in pooling.items() if key.startswith("pooling_mode_") and on is True
        ]
        if chosen != ["pooling_mode_mean_tokens"]:
            raise ForeignArtifactError(
                f"{folder} pools its tokens by {', '.join(chosen) or 'nothing'}, not by their mean",
                "choose a sentence encoder that averages its tokens",
            )
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.model = AutoModel.from_pretrained(folder, local_files_only=True)
        self.model = self.model.float().to(device).eval().requires_grad_(False)
        self.width = int(self.model.config.hidden_size)

    @torch.no_grad()
    def __call__(self, texts: list[str]) -> Tensor:
        """Return unit rows of texts."""
        limit = int(self.model.config.max_position_embeddings)
        tokens = self.tokenizer(
            texts, padding=True, truncation=True, max_length=limit, return_tensors="pt"
        ).to(self.model.device)
        states = self.model(**tokens).last_hidden_state
        mask = tokens["attention_mask"][..., None].to(states.dtype)
        return F.normalize((states * mask).sum(1) / mask.sum(1).clamp(min=1e-9), dim=1)
