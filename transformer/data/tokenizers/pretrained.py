"""Pretrained tokenizers as they are: a tokenizer.json of the `tokenizers` library, or BERT's vocab.txt, whose special
tokens are those of its model. All ids, the normaliser and the pre-tokenizer are those of the file; its post-processor,
truncation and padding are not applied, since batches add the ends of texts and padding themselves."""

import copy
import json
import re
from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers

from transformer.data.tokenizers.letters import BEFORE_A_SPACE
from transformer.data.tokenizers.subwords import Library
from transformer.data.tokenizers.words import BERT_UNKNOWN, UNKNOWN_TEXT, WordPiece, read_vocab_txt
from transformer.errors import UserError

SETTINGS = ("config.json", "special_tokens_map.json", "tokenizer_config.json")  # a later one is followed first


class Roles(NamedTuple):
    """Ids of the special tokens by what batches use them for. T5's decoder begins with `pad`; GPT-2 has one token for
    all three. `mask`: None where there is none."""

    pad: int
    bos: int
    eos: int
    mask: int | None
    holes: tuple[int, ...]  # of hidden spans, in T5's order: <extra_id_0> first


# Role -> the keys of `SETTINGS` that name its token or its id, and well-known names, both best first.
_WANTED: dict[str, tuple[str, str]] = {
    "eos": ("eos_token sep_token eos_token_id sep_token_id", "</s> [SEP] <|endoftext|> <|end_of_text|> <eos> [EOS]"),
    "pad": ("pad_token pad_token_id", "[PAD] <pad> <|pad|>"),
    "bos": (
        "decoder_start_token_id cls_token bos_token bos_token_id cls_token_id",
        "[CLS] <s> <bos> [BOS] <|begin_of_text|> <|startoftext|> <|endoftext|>",
    ),
    "mask": ("mask_token mask_token_id", "[MASK] <mask>"),
}


def roles(state: Mapping[str, Any], settings: Mapping[str, Any], source: str) -> Roles:
    """The roles of the special tokens in a tokenizer of the library, as `settings` (`read_settings`) or well-known
    names say. Without padding that is the end, as lengths mask it, and without a beginning it is padding (as in T5).
    UserError: no token ends a text."""
    ids = vocabulary(state)
    known = set(ids.values())
    found: dict[str, int] = {}
    for role, (keys, names) in _WANTED.items():
        named = [_id(settings.get(key), ids) for key in keys.split()] + [ids.get(name) for name in names.split()]
        if fitting := [each for each in named if each is not None and each in known]:
            found[role] = fitting[0]
    if "eos" not in found:
        raise UserError(
            f'{source} names no token that ends a text: add "eos_token" with its name to tokenizer_config.json beside '
            "it."
        )
    eos = found["eos"]
    holes = list[int]()
    while (name := f"<extra_id_{len(holes)}>") in ids:
        holes.append(ids[name])
    pad = found.get("pad", eos)
    return Roles(pad, found.get("bos", pad), eos, found.get("mask"), tuple(holes))


def _id(named: Any, ids: Mapping[str, int]) -> int | None:
    """The id that a setting names: by the token, an object with its `content`, its id, or a list of ids (the first)."""
    named = named.get("content") if isinstance(named, dict) else named
    named = named[0] if isinstance(named, list) and named else named
    return ids.get(named) if isinstance(named, str) else named if type(named) is int else None


def vocabulary(state: Mapping[str, Any]) -> dict[str, int]:
    """Piece -> id of the model and the added tokens, from the JSON of the library."""
    pieces = state["model"]["vocab"]
    ids = dict(pieces) if isinstance(pieces, dict) else {piece: number for number, (piece, _) in enumerate(pieces)}
    return ids | {token["content"]: token["id"] for token in state["added_tokens"]}


def read_settings(folder: Path) -> dict[str, Any]:
    """What the files of `SETTINGS` in a folder say, each where it is there. UserError: one is no JSON object."""
    found: dict[str, Any] = {}
    for path in (folder / name for name in SETTINGS):
        if not path.is_file():
            continue
        try:
            found |= {key: value for key, value in json.loads(path.read_text("utf-8")).items() if value is not None}
        except (ValueError, AttributeError, OSError) as error:
            raise UserError(f"{path} cannot be read as JSON settings ({error}): copy it again.") from error
    return found


BERT = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}


def bert_state(path: Path, **normal: Any) -> dict[str, Any]:
    """BERT's vocab.txt as the JSON of a tokenizer of the library; `normal`: options of
    `tokenizers.normalizers.BertNormalizer`. UserError: it is none."""
    names = (BERT_UNKNOWN, *BERT.values())
    vocab = read_vocab_txt(path, names)
    library = WordPiece.of(vocab, BERT_UNKNOWN, **normal).library
    library.add_special_tokens(list(names))
    return json.loads(library.to_str())


_BERT_OPTIONS = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}


def bert_options(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `normalizers.BertNormalizer`, from the settings beside a vocab.txt."""
    return {ours: settings[theirs] for theirs, ours in _BERT_OPTIONS.items() if theirs in settings}


class Pretrained(Library):
    """A tokenizer of the library with its own special tokens, of which no text is read as one.

    The library finds no special token in a text (`encode_special_tokens`), but a model may still have one as a piece:
    a unigram model would read "</s>" so. They are renamed within the model to what no text becomes behind a normaliser
    and a pre-tokenizer, with a NUL and a space. `special_ids` are those that decoding leaves out; `unknown_id` is
    the unknown piece (None: there is none), decoded as U+FFFD.
    """

    def __init__(self, state: Mapping[str, Any], special: Iterable[int]) -> None:
        self._state = state
        model = state["model"]
        ids = vocabulary(state)
        unknown = model.get("unk_token")
        self.unknown_id = ids.get(unknown) if unknown is not None else model.get("unk_id")
        chosen = {*special, *(token["id"] for token in state["added_tokens"] if token["special"])}
        self.special_ids = frozenset(chosen - {self.unknown_id})
        hidden = {piece for piece, number in ids.items() if number in chosen or number == self.unknown_id}
        super().__init__(tokenizers.Tokenizer.from_str(json.dumps(_renamed(state, hidden))))
        self.library.encode_special_tokens = True
        wrong = [piece for piece, i in ids.items() if self.library.token_to_id(_new(piece, hidden)) != i]
        if wrong:
            raise UserError(
                f"the tokenizer gives {wrong[0]!r} the id {ids[wrong[0]]}, which leaves a gap before it that the "
                "library does not keep: number its added tokens without gaps."
            )
        self.vocab_size = max(ids.values()) + 1
        self._name = next((_new(piece, hidden) for piece, i in ids.items() if i == self.unknown_id), "")

    def state(self) -> dict[str, Any]:
        return dict(self._state)

    @property
    def cut(self) -> re.Pattern[str] | None:
        """Where a text can be cut, for GPT-2's form; None where nothing is known of the file's own rules."""
        before = self._state.get("pre_tokenizer") or {}
        plain = before.get("type") == "ByteLevel" and before.get("use_regex", True) and not before["add_prefix_space"]
        added = any(token["id"] not in self.special_ids for token in self._state["added_tokens"])
        return BEFORE_A_SPACE if plain and not added and not self._state.get("normalizer") else None

    def decode(self, ids: Any) -> str:
        text = super().decode(ids)
        return text.replace(self._name, UNKNOWN_TEXT) if self.unknown_id in ids else text


def _new(piece: str, hidden: Set[str]) -> str:
    return f"\0 {piece}" if piece in hidden else piece


def _renamed(state: Mapping[str, Any], hidden: Set[str]) -> dict[str, Any]:
    """The JSON of a tokenizer of the library with the `hidden` pieces renamed, and without what changes encodings."""
    made: dict[str, Any] = copy.deepcopy(dict(state)) | {"truncation": None, "padding": None, "post_processor": None}
    for token in made["added_tokens"]:
        token["special"] = token["special"] or token["content"] in hidden
        token["content"] = _new(token["content"], hidden)
    model = made["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {_new(piece, hidden): number for piece, number in model["vocab"].items()}
    else:
        model["vocab"] = [[_new(piece, hidden), score] for piece, score in model["vocab"]]
    if model.get("unk_token") is not None:
        model["unk_token"] = _new(model["unk_token"], hidden)
    if "merges" in model:  # those that would make a special token of pieces; older files write a merge as one text
        pairs = [(merge, merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]]
        model["merges"] = [merge for merge, pair in pairs if not hidden & {*pair, "".join(pair)}]
    return made
