"""Byte-level BPE: train, save, load, encode, decode; lossless on any text.

Every text is first written as its UTF-8 bytes, so no piece is ever unknown. The pieces are learned from the training
split alone, and both languages of a pair share one vocabulary (the model ties source, target and output embedding).
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from transformer.config import DataConfig, UserError
from transformer.data.caching import cache_root, locked, writing
from transformer.data.sources import Source

if TYPE_CHECKING:
    from typing import Self

logger = logging.getLogger(__name__)

# The names hold a space, which the byte alphabet writes as another letter: neither a text nor a merge can spell them.
SPECIALS = ("<padding piece>", "<begin piece>", "<end piece>")
MIN_VOCAB = len(SPECIALS) + 256  # the special tokens and every byte
# A corpus of many millions of lines teaches BPE nothing that an even sample of it does not.
MAX_TRAINING_EXAMPLES = 1_000_000


class Tokenizer:
    """Text to token ids and back; ids 0, 1 and 2 are padding, begin and end of sequence.

    `decode(encode(text)) == text` for every string of Unicode scalar values (a lone surrogate is none: UserError).
    Whatever a text holds is ordinary text: no string in it is read as a special token.
    """

    pad_id = 0
    bos_id = 1
    eos_id = 2

    def __init__(self, bpe: tokenizers.Tokenizer) -> None:
        self._bpe = bpe
        self.vocab_size: int = bpe.get_vocab_size()

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "Self":
        """Learns at most `vocab_size` pieces, special tokens included, from `texts`; the same texts, the same pieces.

        Fewer come out where the texts have no more pairs to merge. UserError: no room for the 256 bytes.
        """
        if vocab_size < MIN_VOCAB:
            raise UserError(
                f"data.vocab_size={vocab_size} leaves no room for the 256 bytes and {len(SPECIALS)} special tokens: "
                f"set it to {MIN_VOCAB} or more."
            )
        learner = tokenizers.Tokenizer(models.BPE())
        learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        learner.train_from_iterator(
            texts,
            trainers.BpeTrainer(
                vocab_size=vocab_size,
                special_tokens=list(SPECIALS),
                initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                show_progress=False,
            ),
        )
        learned = json.loads(learner.to_str())["model"]
        return cls(_assemble(learned["vocab"], [tuple(merge) for merge in learned["merges"]]))

    def encode(self, text: str) -> list[int]:
        """Token ids of one text, without special tokens."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of many texts, in order, without special tokens; uses all cores."""
        try:
            return [encoding.ids for encoding in self._bpe.encode_batch_fast(list(texts), add_special_tokens=False)]
        except (UnicodeEncodeError, TypeError) as error:
            for number, text in enumerate(texts, start=1):
                if any("\ud800" <= letter <= "\udfff" for letter in text):
                    raise UserError(
                        f"Text {number} holds a lone surrogate, which is no Unicode text: read the file as UTF-8."
                    ) from error
            raise

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the token ids; special tokens are dropped, and broken UTF-8 becomes U+FFFD."""
        return self._bpe.decode([int(i) for i in ids if i >= len(SPECIALS)], skip_special_tokens=False)

    def save(self, path: str | Path) -> None:
        """Writes one JSON file, in the format of the `tokenizers` library; never leaves half a file behind."""
        with writing(Path(path)) as temporary:
            temporary.write_text(self._bpe.to_str(pretty=True), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "Self":
        """Reads what `save` wrote. UserError: no such file, or not a tokenizer of ours."""
        try:
            bpe = tokenizers.Tokenizer.from_str(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(
                f"There is no tokenizer at {os.fspath(path)}: name the file that Tokenizer.save wrote."
            ) from None
        except Exception as error:  # the library raises plain Exception
            raise UserError(f"{os.fspath(path)} is no tokenizer file ({error}): delete it to train another.") from error
        if [bpe.id_to_token(i) for i in range(len(SPECIALS))] != list(SPECIALS):
            raise UserError(f"{os.fspath(path)} is a tokenizer with other special tokens: use one that save() wrote.")
        return cls(bpe)

    @property
    def fingerprint(self) -> str:
        """Hex digest of the pieces and merges: equal for tokenizers that encode alike."""
        return hashlib.sha256(self._bpe.to_str().encode()).hexdigest()


def _assemble(vocab: dict[str, int], merges: list[tuple[str, str]]) -> tokenizers.Tokenizer:
    """A byte-level BPE whose special tokens are plain rows of the vocabulary, so that no text is parsed for them."""
    bpe = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    bpe.decoder = decoders.ByteLevel()
    return bpe


def load_or_train(source: Source, data: DataConfig, fields: Sequence[str] | None = None) -> Tokenizer:
    """The tokenizer of a source's training split, from the cache where it has been trained before.

    `fields` are the text fields that it learns from, by default those that `data.source` and `data.target` name (a
    language model's source names none). UserError: a vocabulary too small, a field that the source does not have.
    """
    if fields is None:
        fields = source.chosen_fields(data)
    names = tuple(dict.fromkeys(source.field(name) for name in fields))
    identity = json.dumps([source.fingerprint, names, data.vocab_size, MAX_TRAINING_EXAMPLES, tokenizers.__version__])
    path = cache_root(data) / "tokenizers" / f"{hashlib.sha256(identity.encode()).hexdigest()[:24]}.json"
    with locked(path):
        if not path.exists():
            start = time.perf_counter()
            tokenizer = Tokenizer.train(_texts(source, names), data.vocab_size)
            tokenizer.save(path)
            seconds = time.perf_counter() - start
            logger.info("trained a tokenizer of %d pieces in %.1f s", tokenizer.vocab_size, seconds)
        return Tokenizer.load(path)


def _texts(source: Source, fields: Sequence[str]) -> Iterator[str]:
    examples = source.split("train")
    stride = -(-len(examples) // MAX_TRAINING_EXAMPLES)
    for index in range(0, len(examples), max(stride, 1)):
        example = examples[index]
        for field in fields:
            yield example[field]
