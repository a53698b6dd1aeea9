"""A small tokeniser of our own, in the files that stock open_clip opens from a checkpoint folder.

WordPiece over whole words: every word given stays one token, then the most frequent words of the
corpus, and all single characters as a fallback. A word that was never seen is cut into the longest
pieces known, so that it does not fall together with every other unseen word in [UNK]. No learned
merges: the same words give the same vocabulary, byte for byte.
"""

from __future__ import annotations

import json
import string
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dermaudit.errors import UserInputError
from dermaudit.files import read_json

from .names import HF_CONFIG

if TYPE_CHECKING:
    from torch import Tensor

SPECIAL = ("[PAD]", "[UNK]", "[SOT]", "[EOT]")
PAD_ID, UNK_ID, SOT_ID, EOT_ID = range(4)
MAX_VOCABULARY = 2000
_PREFIX = "##"


@dataclass(frozen=True)
class TokenizerFiles:
    """`files`: name -> text, to be written next to the weights; a call returns token ids.

    `vocab_size` includes the special tokens. `hf_text`: open_clip's fields of a Hugging Face text
    tower (`hf_model_name`, `hf_pooler_type`), empty for its own. `tokenizer(texts)` ->
    (n, context_length) int64, the same ids as open_clip gives from the written files.
    """

    files: dict[str, str]
    vocab_size: int
    context_length: int
    pad_id: int = PAD_ID
    eos_id: int = EOT_ID
    hf_text: dict[str, str] = field(default_factory=dict)

    @classmethod
    def from_folder(
        cls,
        folder: Path | str,
        context_length: int,
        *,
        hf_model_name: str = "local",
        pooler: str = "mean_pooler",
    ) -> TokenizerFiles:
        """Read the files of a Hugging Face tokeniser in a folder, such as one fetched from the hub.

        A `config.json` of a text encoder in it (BERT's) goes along, so that the saved model says
        what its text tower is; `hf_model_name` and `pooler` are written for stock open_clip.
        Errors: UserInputError when the folder holds no tokeniser that can be opened.
        """
        folder = Path(folder)
        files, pad, eos, size = _read_folder(folder)
        config = folder / HF_CONFIG
        kind = read_json(config).get("model_type") if config.is_file() else None
        hf_text = {}
        if kind not in (None, "clip"):
            files[HF_CONFIG] = config.read_text(encoding="utf-8")
            hf_text = {"hf_model_name": hf_model_name, "hf_pooler_type": pooler}
        return cls(files, size, context_length, pad, eos, hf_text)

    @cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_str(self.files["tokenizer.json"])
        tokenizer.enable_truncation(self.context_length)
        tokenizer.enable_padding(
            length=self.context_length,
            pad_id=self.pad_id,
            pad_token=tokenizer.id_to_token(self.pad_id),
        )
        return tokenizer

    def __call__(self, texts: str | list[str]) -> Tensor:
        """Return token ids (n, context_length) of texts."""
        from open_clip.tokenizer import get_clean_fn
        from torch import tensor

        texts = [texts] if isinstance(texts, str) else texts
        clean = get_clean_fn("whitespace")  # as open_clip does before any tokeniser
        encoded = self._tokenizer.encode_batch([clean(text) for text in texts])
        return tensor([item.ids for item in encoded]).reshape(-1, self.context_length)

    def text_cfg(self) -> dict[str, Any]:
        """Return the fields of open_clip's `text_cfg` that belong to this tokeniser.

        `hf_tokenizer_name` must not be empty (open_clip would silently take its stock BPE), and
        `pool_type` must be "eos" (the default, argmax, would pool the token of the largest id). A
        Hugging Face text tower pools by itself and knows its vocabulary.
        """
        if self.hf_text:
            return {
                "context_length": self.context_length,
                "hf_tokenizer_name": "local",
                **self.hf_text,
            }
        return {
            "context_length": self.context_length,
            "vocab_size": self.vocab_size,
            "hf_tokenizer_name": "local",
            "pool_type": "eos",
            "eos_id": self.eos_id,
            "pad_id": self.pad_id,
        }


def build_word_tokenizer(
    words: Iterable[str] = (),
    corpus: Iterable[str] = (),
    context_length: int = 32,
    vocab_size: int = MAX_VOCABULARY,
) -> TokenizerFiles:
    """Files of a tokeniser that keeps `words` whole and then the commonest words of `corpus`.

    `words` may be phrases; they are cut as the tokeniser cuts. Errors: UserInputError when the
    words alone need more than `vocab_size` tokens.
    """
    from tokenizers import Tokenizer, decoders, models, processors

    normaliser, splitter = _normaliser(), _splitter()

    def cut(text: str) -> list[str]:
        pieces = splitter.pre_tokenize_str(normaliser.normalize_str(text))
        return [piece for piece, _ in pieces]

    characters = string.ascii_lowercase + string.digits + string.punctuation
    vocabulary = dict.fromkeys(
        [*SPECIAL, *characters, *(_PREFIX + c for c in string.ascii_lowercase + string.digits)]
    )
    for text in words:
        vocabulary.update(dict.fromkeys(cut(text)))
    if len(vocabulary) > vocab_size:
        raise UserInputError(
            f"the words given need {len(vocabulary)} tokens, the vocabulary has {vocab_size}"
        )
    counts = Counter(word for text in corpus for word in cut(text))
    for word, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if len(vocabulary) >= vocab_size:
            break
        vocabulary[word] = None

    ids = {token: i for i, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(
        models.WordPiece(vocab=ids, unk_token="[UNK]", continuing_subword_prefix=_PREFIX)
    )
    tokenizer.normalizer = normaliser
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.WordPiece(prefix=_PREFIX)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[SOT] $A [EOT]", special_tokens=[("[SOT]", SOT_ID), ("[EOT]", EOT_ID)]
    )
    tokenizer.add_special_tokens(list(SPECIAL))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context_length,
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "bos_token": "[SOT]",
        "eos_token": "[EOT]",
    }
    return TokenizerFiles(
        {
            "tokenizer.json": tokenizer.to_str(),
            "tokenizer_config.json": json.dumps(config, indent=1, sort_keys=True) + "\n",
        },
        len(ids),
        context_length,
    )


def _read_folder(folder: Path) -> tuple[dict[str, str], int, int, int]:
    """(files, id of the padding, id of the end, vocabulary) of a tokeniser in `folder`."""
    from tempfile import TemporaryDirectory

    from transformers import AutoTokenizer

    if not folder.is_dir():
        raise UserInputError(f"tokeniser folder {folder} does not exist")
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        size = tokenizer.backend_tokenizer.get_vocab_size()
    except Exception as error:  # transformers raises many classes for a broken tokenizer folder
        raise UserInputError(
            f"{folder} holds no tokeniser that can be opened ({' '.join(str(error).split())[:200]})",
            "it needs tokenizer.json and tokenizer_config.json",
        ) from error
    end = next((i for i in (tokenizer.sep_token_id, tokenizer.eos_token_id) if i is not None), None)
    if tokenizer.pad_token_id is None or end is None:
        raise UserInputError(
            f"the tokeniser in {folder} has no padding token or none that ends a text",
            "set pad_token and sep_token (or eos_token) in tokenizer_config.json",
        )
    # Saved again so that one in an older form (vocab.txt) is written as tokenizer.json too.
    with TemporaryDirectory() as saved:
        tokenizer.save_pretrained(saved)
        files = {p.name: p.read_text(encoding="utf-8") for p in sorted(Path(saved).iterdir())}
    config = json.loads(files["tokenizer_config.json"])
    # How it was opened here is no property of the tokeniser.
    for key in ("is_local", "local_files_only", "name_or_path"):
        config.pop(key, None)
    files["tokenizer_config.json"] = json.dumps(config, indent=1, sort_keys=True) + "\n"
    return files, tokenizer.pad_token_id, end, size


def _normaliser() -> Any:
    from tokenizers import normalizers

    return normalizers.Sequence(
        [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()]
    )


def _splitter() -> Any:
    from tokenizers import pre_tokenizers

    return pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
