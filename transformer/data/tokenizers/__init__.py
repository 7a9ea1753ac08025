"""Text to token ids and back: TOKENIZERS, by name, and the class that wraps them all. `bpe`, `characters`, `bytes`,
`unigram` and `sentencepiece_bpe` are lossless on any text; `wordpiece` and `words` are not. A pretrained tokenizer is
used as it is (`pretrained`)."""

import difflib
import functools
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from transformer.data.caching import writing
from transformer.data.tokenizers.letters import Bytes, Characters
from transformer.data.tokenizers.pretrained import BERT, Pretrained, bert_state, read_settings, roles
from transformer.data.tokenizers.subwords import ByteLevelBPE, SentencePieceBPE, Unigram
from transformer.data.tokenizers.words import WordPiece, Words
from transformer.errors import UserError

if TYPE_CHECKING:
    from typing import Self

# The names hold a space, which no piece has: neither a text nor a merge can produce them.
SPECIALS = ("<padding piece>", "<begin piece>", "<end piece>")
MASK = "<mask piece>"  # reserved on request, for masked language models

# Each has train(texts, vocab_size, specials), state(), from_state(state, specials), encode_batch(texts), decode(ids),
# vocab_size, and `fewest`: how many pieces it needs besides the special tokens, and what for. Those that have `cut`, an
# expression that matches between two parts of a text, give the parts the tokens of the whole.
TOKENIZERS: dict[str, Any] = {
    "bpe": ByteLevelBPE,
    "unigram": Unigram,
    "sentencepiece_bpe": SentencePieceBPE,
    "wordpiece": WordPiece,
    "words": Words,
    "characters": Characters,
    "bytes": Bytes,
}
PRETRAINED = "pretrained"  # the kind of a tokenizer that was not trained here


class Ends(NamedTuple):
    """The ids that batches add to texts."""

    pad: int
    bos: int
    eos: int


TRAINED = Ends(0, 1, 2)  # of a tokenizer that was trained here


def holes(count: int) -> tuple[str, ...]:
    """Names of the special tokens for the hidden spans of span corruption (T5's sentinels)."""
    return tuple(f"<hole {number} piece>" for number in range(count))


class Tokenizer:
    """Text to token ids and back; ids 0, 1 and 2 are padding, begin and end of sequence (`TRAINED`), except for a
    pretrained tokenizer, whose ids are those of its file; some of the three may be one.

    `decode(encode(text)) == text` for every string of Unicode scalar values, if its kind is lossless (a lone surrogate
    is no such value: UserError). No string in a text is read as a special token. Further special tokens, such as MASK
    and `holes(n)`, are reserved in training and have the ids from 3: `specials` maps names to ids.
    """

    pad_id, bos_id, eos_id = TRAINED

    def __init__(self, kind: str, pieces: Any, specials: Mapping[str, int]) -> None:
        self.kind = kind
        self.vocab_size: int = pieces.vocab_size
        self._pieces = pieces
        self.specials = dict(specials)
        self._special_ids = frozenset(specials.values()) | getattr(pieces, "special_ids", frozenset())
        # Equal to the class attributes, except for the vocabulary of a pretrained model.
        self.ends = Ends(*(specials[name] for name in SPECIALS))
        self.pad_id, self.bos_id, self.eos_id = self.ends

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, kind: str = "bpe", extra: Sequence[str] = ()) -> "Self":
        """Learns at most `vocab_size` pieces, special tokens included, deterministically; fewer where the texts have no
        more. UserError: `vocab_size` is too small for what every text needs, or there is no such kind."""
        specials = (*SPECIALS, *extra)
        made = kind_class(kind)
        fewest, what = made.fewest
        if vocab_size < fewest + len(specials):
            raise UserError(
                f"data.vocab_size={vocab_size} leaves no room for {what} and {len(specials)} special tokens: "
                f"set it to {fewest + len(specials)} or more."
            )
        pieces = made.train(texts, vocab_size, specials)
        return cls(kind, pieces, {name: number for number, name in enumerate(specials)})

    @classmethod
    def from_vocab_txt(cls, path: str | Path, lowercase: bool = True, **normal: Any) -> "Self":
        """BERT's own WordPiece vocabulary, for its weights: all ids are those of the file, special tokens included.
        `normal`: further options of `tokenizers.normalizers.BertNormalizer`.

        `bos_id` is [CLS], `eos_id` [SEP] and `mask_id` [MASK].
        """
        return cls.pretrained(bert_state(Path(path), lowercase=lowercase, **normal), BERT, str(path))

    @classmethod
    def pretrained(cls, state: Mapping[str, Any], settings: Mapping[str, Any], source: str) -> "Self":
        """A tokenizer of the `tokenizers` library (its JSON) with its own special tokens, whose roles `settings` or
        well-known names say. UserError: it has no token that ends a text; `source` names the file."""
        found = roles(state, settings, source)
        specials = dict(zip(SPECIALS, found[:3], strict=True))
        specials |= {} if found.mask is None else {MASK: found.mask}
        specials |= dict(zip(holes(len(found.holes)), found.holes, strict=True))
        return cls(PRETRAINED, Pretrained(state, specials.values()), specials)

    @property
    def mask_id(self) -> int:
        """The id of the mask piece. UserError: none was reserved."""
        if MASK not in self.specials:
            raise UserError(
                "The tokenizer has no mask piece: train one with extra=(MASK,), or, where it is pretrained, name its "
                "mask_token in tokenizer_config.json."
            )
        return self.specials[MASK]

    @functools.cached_property
    def hole_ids(self) -> tuple[int, ...]:
        """The ids of the hole pieces, in order; empty where none was reserved."""
        names = holes(len(self.specials))
        return tuple(self.specials[name] for name in names if name in self.specials)

    @property
    def first_piece(self) -> int:
        """The first id that is no special token, of a tokenizer that was trained here; all ids from there to
        `vocab_size` are none. See `ordinary_ids`."""
        return len(self.specials)

    @functools.cached_property
    def ordinary_ids(self) -> np.ndarray:
        """The ids that are no special token, in order, int32; of a pretrained tokenizer without the unknown piece."""
        others = {*self._special_ids, getattr(self._pieces, "unknown_id", None)}
        return np.array([i for i in range(self.vocab_size) if i not in others], np.int32)

    @property
    def cut(self) -> re.Pattern[str] | None:
        """What matches where a text can be cut: what stands before and after a match has, one after the other, the
        tokens of the whole. None: only the whole text has."""
        return getattr(self._pieces, "cut", None)

    def encode(self, text: str) -> list[int]:
        """Token ids of one text, without special tokens."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of many texts, in order, without special tokens."""
        try:
            return self._pieces.encode_batch(texts)
        except (UnicodeEncodeError, TypeError) as error:
            for number, text in enumerate(texts, start=1):
                if any("\ud800" <= letter <= "\udfff" for letter in text):
                    raise UserError(
                        f"Text {number} holds a lone surrogate, which is no Unicode text: read the file as UTF-8."
                    ) from error
            raise

    def encode_with_ends(self, text: str, max_len: int | None = None) -> list[int]:
        """`bos_id`, the ids of the text, `eos_id`; the text is cut to fit into `max_len` ids, the ends are not."""
        ids = self.encode(text)
        return [self.bos_id, *(ids if max_len is None else ids[: max(0, max_len - 2)]), self.eos_id]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the token ids without special tokens; broken UTF-8 and unknown pieces become U+FFFD."""
        return self._pieces.decode([int(i) for i in ids if int(i) not in self._special_ids])

    def to_json(self) -> str:
        """What `save` writes: for byte-level BPE the format of the `tokenizers` library, otherwise our own format."""
        state = self._pieces.state()
        if self.kind != "bpe":
            state = {"kind": self.kind, "specials": self.specials, "state": state}
        return json.dumps(state, ensure_ascii=False, indent=2)

    def save(self, path: str | Path) -> None:
        """Writes one JSON file atomically. UserError: it cannot be written."""
        try:
            with writing(Path(path)) as temporary:
                temporary.write_text(self.to_json(), encoding="utf-8")
        except OSError as error:
            raise UserError(
                f"{os.fspath(path)} cannot be written ({error.strerror}): name another, or make room."
            ) from error

    @classmethod
    def load(cls, path: str | Path) -> "Self":
        """Reads what `save` wrote, of any kind, or a tokenizer.json of the `tokenizers` library with its own special
        tokens, whose roles the files beside it may say. UserError: no such file, or not a tokenizer."""
        try:
            read = json.loads(Path(path).read_text(encoding="utf-8"))
            kind = read.get("kind", "bpe")
            specials, state = (read["specials"], read["state"]) if "kind" in read else (_leading_specials(read), read)
            if list(specials)[: len(SPECIALS)] != list(SPECIALS):
                return cls.pretrained(read, read_settings(Path(path).parent), os.fspath(path))
            if kind == PRETRAINED:
                return cls(kind, Pretrained(state, specials.values()), specials)
            return cls(kind, TOKENIZERS[kind].from_state(state, tuple(specials)), specials)
        except FileNotFoundError:
            raise UserError(
                f"There is no tokenizer at {os.fspath(path)}: name the file that Tokenizer.save wrote."
            ) from None
        except UserError:
            raise
        except Exception as error:  # the library raises plain Exception
            raise UserError(f"{os.fspath(path)} is no tokenizer file ({error}): delete it to train another.") from error

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hex digest of everything that the tokenizer has learned: equal digests mean equal encodings."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def _leading_specials(state: dict[str, Any]) -> dict[str, int]:
    """The special tokens of a byte-level BPE that was trained here: the first pieces, as long as their names hold a
    space."""
    pieces = state["model"]["vocab"]
    by_id = {number: piece for piece, number in pieces.items()} if isinstance(pieces, dict) else {}
    specials: dict[str, int] = {}
    while " " in by_id.get(len(specials), ""):
        specials[by_id[len(specials)]] = len(specials)
    return specials


def kind_class(kind: str) -> Any:
    """The row of TOKENIZERS. UserError: there is none of that name."""
    if kind not in TOKENIZERS:
        near = difflib.get_close_matches(kind, TOKENIZERS, 1)
        raise UserError(
            f"There is no tokenizer {kind!r}: "
            + (f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(TOKENIZERS)}.")
        )
    return TOKENIZERS[kind]
