"""Word tokenizers, which are not lossless: whole words, and BERT's WordPiece."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import regex
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from transformer.data.tokenizers.letters import BEFORE_A_SPACE, frequent
from transformer.data.tokenizers.subwords import Library, bounded, model_of
from transformer.errors import UserError

if TYPE_CHECKING:
    from typing import Self

UNKNOWN = "<unknown piece>"  # the piece after the special tokens
UNKNOWN_TEXT = "\N{REPLACEMENT CHARACTER}"  # its decoded text
BERT_UNKNOWN = "[UNK]"
_NO_TEXT = "There is no word in the training texts: give some text."


# A grapheme cluster; some signs would take a following space into theirs.
_CLUSTER = r"(?:\X(?<!\s)|.)"
# Letters, digits and underscores, or one other character, each with its marks; without marks, the words of _FORMER.
_WORD = regex.compile(rf"(?:(?=[\p{{L}}\p{{N}}_]){_CLUSTER})+|(?=[^\s\x1c-\x1f]){_CLUSTER}")
_FORMER = re.compile(r"\w+|[^\w\s]")  # of tokenizers that were saved without `clusters`: marks are words of their own


class Words:
    """The most frequent words and punctuation marks, cut between grapheme clusters only; all others are the unknown
    piece. Not lossless: decoded words are separated by one space, unknown ones are U+FFFD."""

    fewest: ClassVar[tuple[int, str]] = (2, "an unknown token, a word")
    cut = BEFORE_A_SPACE

    def __init__(self, specials: Sequence[str], words: Sequence[str], clusters: bool = True) -> None:
        self._words, self._clusters = list(words), clusters
        self._cut = _WORD if clusters else _FORMER
        self._pieces = [*specials, UNKNOWN_TEXT, *words]
        self._unknown = len(specials)
        self._ids = {word: number for number, word in enumerate(words, start=len(specials) + 1)}
        self.vocab_size = len(self._pieces)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, specials: Sequence[str]) -> "Self":
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(_WORD.findall(text))
        if not counts:
            raise UserError(_NO_TEXT)
        ranked = sorted(counts, key=lambda word: (-counts[word], word))
        return cls(specials, ranked[: vocab_size - len(specials) - 1])

    @classmethod
    def from_state(cls, state: dict[str, Any], specials: Sequence[str]) -> "Self":
        return cls(specials, state["words"], state.get("clusters", False))

    def state(self) -> dict[str, Any]:
        return {"words": self._words} | ({"clusters": True} if self._clusters else {})

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [[self._ids.get(word, self._unknown) for word in self._cut.findall(text)] for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(self._pieces[i] for i in ids)


class WordPiece(Library):
    """BERT's WordPiece: lower-case words, split greedily into the longest pieces. Not lossless: case and spaces are
    lost, and a word with an unseen letter or of more than 100 is one unknown piece, decoded as U+FFFD.

    What is trained here keeps accents and other marks, since words of most scripts mean something else without them;
    with BERT's own vocabulary they are lost, as in BERT.
    """

    fewest: ClassVar[tuple[int, str]] = (3, "an unknown token, a letter in its two forms")
    cut = BEFORE_A_SPACE

    def __init__(self, library: tokenizers.Tokenizer) -> None:
        super().__init__(library)
        self._name = model_of(library)["unk_token"]
        self._unknown = library.token_to_id(self._name)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, specials: Sequence[str]) -> "Self":
        normalizer = _keeping_marks()
        normal = [normalizer.normalize_str(text) for text in bounded(texts)]
        room = vocab_size - len(specials) - 1
        # Each letter is two pieces: at the beginning of a word and within it. BERT's limit is 1000 letters.
        letters = frequent(("".join(text.split()) for text in normal), max(1, min(1000, room // 4)))
        if not letters:
            raise UserError(_NO_TEXT)
        kept = _Only(letters)
        # Passed as special tokens, the letters have fixed ids; otherwise the library numbers them at random.
        rows = [*specials, UNKNOWN, *letters, *(f"##{letter}" for letter in letters)]
        learner = tokenizers.Tokenizer(models.BPE(unk_token=UNKNOWN))
        learner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=rows, continuing_subword_prefix="##", show_progress=False
        )
        learner.train_from_iterator((text.translate(kept) for text in normal), trainer)
        made = cls.of(model_of(learner)["vocab"], UNKNOWN)
        made.library.normalizer = normalizer
        return made

    @classmethod
    def of(cls, vocab: dict[str, int], unknown: str, **normal: Any) -> "Self":
        """From a map piece -> id, the name of the unknown piece, and options of `normalizers.BertNormalizer`."""
        library = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token=unknown, max_input_chars_per_word=100))
        library.normalizer = normalizers.BertNormalizer(**normal)
        library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        library.decoder = decoders.WordPiece(prefix="##", cleanup=False)
        return cls(library)

    def decode(self, ids: Sequence[int]) -> str:
        text = super().decode(ids)
        return text.replace(self._name, UNKNOWN_TEXT) if self._unknown in ids else text


def _keeping_marks() -> normalizers.Normalizer:
    """BERT's normalizer without its losses: of accents, which are letters' parts in most scripts, and of control and
    format characters, such as the joiners of Persian and Hindi."""
    return normalizers.BertNormalizer(clean_text=False, strip_accents=False)


class _Only(dict[int, str]):
    """The table of `str.translate` that keeps some letters and replaces all others by spaces."""

    def __init__(self, letters: str) -> None:
        super().__init__({ord(letter): letter for letter in letters})

    def __missing__(self, code: int) -> str:
        return " "


def read_vocab_txt(path: Path, needed: Iterable[str]) -> dict[str, int]:
    """Piece -> id of BERT's vocab.txt, one piece per line. UserError: it is none, or lacks a `needed` piece."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise UserError(f"There is no vocabulary at {path}: name BERT's vocab.txt.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}): name BERT's vocab.txt, in UTF-8.") from error
    vocab = {line.strip("\r"): number for number, line in enumerate(lines) if line.strip("\r")}
    missing = [name for name in (*needed, BERT_UNKNOWN) if name not in vocab]
    if missing:
        raise UserError(f"{path} has no {', '.join(missing)}: name BERT's vocab.txt, a piece a line.")
    if sorted(vocab.values()) != list(range(len(vocab))):
        raise UserError(f"{path} has an empty line or a piece twice: name BERT's vocab.txt, a piece a line.")
    return vocab
