"""Lossless subword pieces, learned by the `tokenizers` library: byte-level BPE, and SentencePiece's two kinds.

All keep the special tokens at the beginning of the vocabulary. Their names hold a space, which no piece of a text does,
so that neither a text nor a merge can produce them. Training is deterministic.
"""

import abc
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from transformer.data.tokenizers.letters import AT_A_SPACE, BEFORE_A_SPACE, BYTES, SPACE, Alphabet, bytes_of, frequent

if TYPE_CHECKING:
    from typing import Self

# SentencePiece's default: the rarest 0.05 percent of the characters are spelled by bytes.
COVERAGE = 0.9995

# Training by merges takes quadratic time in the length of a word: 100 s for 100,000 characters without a space.
LONGEST = 256  # characters of a run of letters, or of white space, that training sees as one
MOST = 2**19  # characters of such runs that are taken from one text
_LONG = re.compile(rf"\S{{{LONGEST}}}|\s{{{LONGEST}}}")


def bounded(texts: Iterable[str]) -> Iterator[str]:
    """The texts for training: runs without a space, as whole texts in Chinese or Thai are, in parts of `LONGEST`
    characters, evenly spaced where a text has more than `MOST` of them. All other text is as it stands."""
    for text in texts:
        ends = [match.end() for match in _LONG.finditer(text)]
        stride = -(-len(ends) * LONGEST // MOST)
        for place, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
            yield text[start : end - (LONGEST if place % stride else 0)]
        yield text[ends[-1] if ends else 0 :]


def model_of(library: tokenizers.Tokenizer) -> dict[str, Any]:
    """The model of a tokenizer of the library, from its JSON."""
    return json.loads(library.to_str())["model"]


class Library:
    """The base class of tokenizers that wrap one of the library, whose JSON is their state."""

    def __init__(self, library: tokenizers.Tokenizer) -> None:
        self.library = library
        self.vocab_size: int = library.get_vocab_size()

    @classmethod
    def from_state(cls, state: dict[str, Any], specials: Sequence[str]) -> "Self":
        del specials
        return cls(tokenizers.Tokenizer.from_str(json.dumps(state)))

    def state(self) -> dict[str, Any]:
        return json.loads(self.library.to_str())

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self.library.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        return self.library.decode(list(ids), skip_special_tokens=False)


class ByteLevelBPE(Library):
    """Byte-level BPE (GPT-2's) on the UTF-8 bytes of a text, so that no piece is ever unknown."""

    fewest: ClassVar[tuple[int, str]] = (256, "the 256 bytes")
    cut = BEFORE_A_SPACE  # GPT-2's expression never takes a space after another character

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, specials: Sequence[str]) -> "Self":
        learner = tokenizers.Tokenizer(models.BPE())
        learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        learner.train_from_iterator(
            bounded(texts),
            trainers.BpeTrainer(
                vocab_size=vocab_size,
                special_tokens=list(specials),
                initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                show_progress=False,
            ),
        )
        learned = model_of(learner)
        # Rebuilt with the special tokens as ordinary pieces, so that texts are not searched for them.
        bpe = tokenizers.Tokenizer(models.BPE(vocab=learned["vocab"], merges=[tuple(m) for m in learned["merges"]]))
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        bpe.decoder = decoders.ByteLevel()
        return cls(bpe)


class _SentencePiece(Library, abc.ABC):
    """SentencePiece's segmentation: spaces are letters, and a piece never continues into the next word.

    A text is written in a closed alphabet (letters.py) after a space, so that its first word is encoded as in the
    middle of a text; decoding removes that space. Lossless on any text, unlike SentencePiece, which normalises.
    Training holds the texts in memory.
    """

    fewest: ClassVar[tuple[int, str]] = (257, "the 256 bytes, the space")
    cut = AT_A_SPACE

    def __init__(self, library: tokenizers.Tokenizer, letters: str) -> None:
        super().__init__(library)
        self._letters = letters
        self._alphabet = Alphabet(letters)
        self._bytes = [bytes_of(library.id_to_token(i) or "") for i in range(self.vocab_size)]

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, specials: Sequence[str]) -> "Self":
        texts = list(texts)
        room = vocab_size - len(specials) - len(BYTES)
        letters = frequent(texts, max(1, room // 2), COVERAGE)  # the other half is for pieces of several letters
        letters = "".join(sorted({*letters, " "}))[:room]
        alphabet = Alphabet(letters)
        spelled = ((" " + text).translate(alphabet) for text in bounded(texts))
        library = tokenizers.Tokenizer(cls._learn(spelled, vocab_size, list(specials), letters.replace(" ", SPACE)))
        library.pre_tokenizer = _metaspace()
        return cls(library, letters)

    @staticmethod
    @abc.abstractmethod
    def _learn(spelled: Iterable[str], vocab_size: int, specials: list[str], letters: str) -> models.Model: ...

    @classmethod
    def from_state(cls, state: dict[str, Any], specials: Sequence[str]) -> "Self":
        del specials
        return cls(tokenizers.Tokenizer.from_str(json.dumps(state["pieces"])), state["letters"])

    def state(self) -> dict[str, Any]:
        return {"letters": self._letters, "pieces": super().state()}

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return super().encode_batch([(" " + text if text else "").translate(self._alphabet) for text in texts])

    def decode(self, ids: Sequence[int]) -> str:
        text = b"".join([self._bytes[i] for i in ids]).decode("utf-8", errors="replace")
        return text.removeprefix(" ")


def _metaspace() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="never", split=True)


class SentencePieceBPE(_SentencePiece):
    """SentencePiece's BPE: pairs of letters are merged, not pairs of bytes."""

    @staticmethod
    def _learn(spelled: Iterable[str], vocab_size: int, specials: list[str], letters: str) -> models.Model:
        learner = tokenizers.Tokenizer(models.BPE())
        learner.pre_tokenizer = _metaspace()
        # The letters are passed as special tokens, so that their ids follow those of the special tokens.
        rows = [*specials, *BYTES, *letters]
        trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=rows, show_progress=False)
        learner.train_from_iterator(spelled, trainer)
        learned = model_of(learner)
        return models.BPE(vocab=learned["vocab"], merges=[tuple(merge) for merge in learned["merges"]])


class Unigram(_SentencePiece):
    """SentencePiece's unigram model (Kudo, 2018): the most likely segmentation of a text into pieces.

    Slow to train: 8,000 pieces took 7 s of processor time from 1.2 M characters of docstrings, 32 s from 3.2 M. In the
    library, a piece of several letters must occur in two different words.
    """

    @staticmethod
    def _learn(spelled: Iterable[str], vocab_size: int, specials: list[str], letters: str) -> models.Model:
        learner = tokenizers.Tokenizer(models.Unigram())
        learner.pre_tokenizer = _metaspace()
        room = vocab_size - len(specials) - len(BYTES)
        trainer = trainers.UnigramTrainer(
            vocab_size=vocab_size - len(specials), initial_alphabet=[*BYTES, *letters], show_progress=False
        )
        learner.train_from_iterator(spelled, trainer)
        # The library's sums and the ranks of its rarest letters are not deterministic: scores are rounded, and letters
        # rarer than all longer pieces share a score. Without any text, its scores are not numbers.
        learned = {piece: round(score, 6) for piece, score in model_of(learner)["vocab"] if score is not None}
        single = {*BYTES, *letters}
        longer = {piece: score for piece, score in learned.items() if piece not in single}
        lowest = min(longer.values(), default=-1.0) - 1.0
        scores = {letter: max(learned.get(letter, lowest), lowest) for letter in [*BYTES, *letters]}
        ranked = sorted(longer.items(), key=lambda item: (-item[1], item[0]))[: room - len(letters)]
        vocab = [*((name, 0.0) for name in specials), *scores.items(), *ranked]
        return models.Unigram(vocab, unk_id=0, byte_fallback=False)
