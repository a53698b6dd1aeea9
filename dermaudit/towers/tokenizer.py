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
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dermaudit.errors import UserInputError

if TYPE_CHECKING:
    from torch import Tensor

SPECIAL = ("[PAD]", "[UNK]", "[SOT]", "[EOT]")
PAD_ID, UNK_ID, SOT_ID, EOT_ID = range(4)
MAX_VOCABULARY = 2000
_PREFIX = "##"


@dataclass(frozen=True)
class TokenizerFiles:
    """`files`: name -> text, to be written beside the weights; called, it gives the ids.

    `vocab_size` includes the special tokens. `tokenizer(texts)` -> (n, context_length) int64, the
    same ids as open_clip gives from the written files.
    """

    files: dict[str, str]
    vocab_size: int
    context_length: int

    def __call__(self, texts: str | list[str]) -> Tensor:
        from tokenizers import Tokenizer
        from torch import tensor

        tokenizer = Tokenizer.from_str(self.files["tokenizer.json"])
        tokenizer.enable_truncation(self.context_length)
        tokenizer.enable_padding(length=self.context_length, pad_id=PAD_ID, pad_token="[PAD]")
        texts = [texts] if isinstance(texts, str) else texts
        encoded = tokenizer.encode_batch(list(texts))
        return tensor([item.ids for item in encoded]).reshape(-1, self.context_length)

    def text_cfg(self) -> dict[str, Any]:
        """The fields of open_clip's `text_cfg` that belong to this tokeniser.

        `hf_tokenizer_name` must not be empty (open_clip would silently take its stock BPE), and
        `pool_type` must be "eos" (the default, argmax, would pool the token of the largest id).
        """
        return {
            "context_length": self.context_length,
            "vocab_size": self.vocab_size,
            "hf_tokenizer_name": "local",
            "pool_type": "eos",
            "eos_id": EOT_ID,
            "pad_id": PAD_ID,
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


def _normaliser() -> Any:
    from tokenizers import normalizers

    return normalizers.Sequence(
        [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()]
    )


def _splitter() -> Any:
    from tokenizers import pre_tokenizers

    return pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
