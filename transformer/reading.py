"""One text as a model reads it, for analysis: of a trained task, or of a folder with the weights of a BERT model."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp

from transformer.analysis.attention import Watched, watch
from transformer.data.tokenizers import Tokenizer
from transformer.data.tokenizers.words import read_vocab_txt
from transformer.errors import UserError
from transformer.model.positions import longest
from transformer.model.pretrained import load
from transformer.model.pretrained.files import Settings, read_json
from transformer.model.tokens import Tokens
from transformer.tasks import TextClassification
from transformer.tasks.texts import LanguageModel, MaskedLanguageModel, Translation
from transformer.tasks.trained import Trained
from transformer.writing.lines import classified, generate


class Reading(NamedTuple):
    """A model, its parameters, and the arguments and tokens of one text."""

    model: Any
    params: Any
    arguments: tuple[Any, ...]  # arguments of the model, one row
    tokens: dict[str, list[str]]  # stack -> its tokens, in readable form
    about: str

    def attention(self) -> Watched:
        """The attention weights of every head. UserError: the model has no heads."""
        return watch(self.model, self.params, *self.arguments)[1]


def of_run(trained: Trained, text: str, target: str | None) -> Reading:
    """A text as a trained task reads it; without `target`, a decoder reads its own greedy output. UserError: the task
    reads no text, or none of that length."""
    task, tokenizer, name = trained.task, trained.tokenizer, trained.config.task
    about = f"{name}, step {trained.step}"
    if isinstance(task, Translation) and task.reads_lines:
        if target is None:
            # The text is tokenized again, which may give more tokens than the position table has: they are cut.
            written = tokenizer.encode(generate(trained, [text])[0])[: None if task.limit is None else task.limit - 1]
            about += "; the output is its own, greedy"
        else:
            written = tokenizer.encode(target)
        sides = {"encoder": task.prompt(tokenizer.encode(text)), "decoder": [tokenizer.bos_id, *written]}
    elif target is not None:
        raise UserError(f"task {name!r} has no output to look at: leave out --target")
    elif isinstance(task, LanguageModel):
        sides = {"decoder": task.prompt(tokenizer.encode(text))}
    elif isinstance(task, TextClassification):
        sides = {"encoder": classified(trained, [text])[0]}
    elif isinstance(task, MaskedLanguageModel):
        sides = {"encoder": tokenizer.encode_with_ends(text)}
    else:
        raise UserError(f"task {name!r} reads no line of text: take a run of a translation or a language model")
    _check(sides, task.limit)
    batch: dict[str, Any] = {}
    for stack, ids in sides.items():
        side, tokens = ("input", "inputs") if stack == "encoder" else ("target", "target_inputs")
        batch |= {tokens: _row(ids), f"{side}_lengths": jnp.asarray([len(ids)], jnp.int32)}
    names = {number: f"[{name.split()[0][1:]}]" for name, number in tokenizer.specials.items()}
    labels = {stack: [names.get(i) or _shown(tokenizer.decode([i])) for i in ids] for stack, ids in sides.items()}
    return Reading(task.model, trained.params, task.arguments(batch), labels, about)


def of_folder(folder: Path, text: str) -> Reading:
    """A text as a BERT model in a folder of Hugging Face's format reads it. UserError: the folder holds no such
    model."""
    vocab = folder / "vocab.txt"
    if folder.is_dir() and not vocab.is_file():
        raise UserError(
            f"{str(folder)!r} holds no vocab.txt, and only models of BERT's kind can be looked into: name one"
        )
    model: Any
    model, params = load(folder)
    if model.config.family != "encoder_only" or model.config.inputs != "tokens":
        raise UserError(f"{str(folder)!r} holds no model of BERT's kind: name another, or give --workdir")
    path = folder / "tokenizer_config.json"
    settings = read_json(path) if path.is_file() else Settings({}, str(path))
    tokenizer, most = _tokenizer(vocab, settings, text)
    ids = tokenizer.encode_with_ends(text)
    limit = longest(model.config)
    if most < len(ids) and (limit is None or most < limit):
        raise UserError(
            f"--text has {len(ids)} tokens, and {settings.source} sets model_max_length={most:.0f}: shorten"
        )
    _check({"encoder": ids}, limit)
    pieces = {number: piece for piece, number in read_vocab_txt(vocab, ()).items()}
    return Reading(model, params, (_row(ids), Tokens()), {"encoder": [pieces[i] for i in ids]}, f"weights of {folder}")


# Settings of a tokenizer that change no token of a text: where it came from, how batches are padded and cut, how text
# is made of tokens, and which programs use it.
_UNUSED = """
    name_or_path special_tokens_map_file tokenizer_file backend is_local local_files_only processor_class padding_side
    truncation_side max_length stride truncation_strategy pad_to_multiple_of pad_token_type_id model_input_names
    clean_up_tokenization_spaces chat_template bos_token eos_token
""".split()
_ROLES = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}


def _tokenizer(vocab: Path, settings: Settings, text: str) -> tuple[Tokenizer, float]:
    """The tokenizer of a vocab.txt as tokenizer_config.json sets it, and the most tokens that it says the model takes.
    UserError: a setting that is not supported, or not known; or the text holds a special token."""
    for key, piece in _ROLES.items():  # a piece, or an object with its `content`
        if settings.values.get(key) is not None and _piece(settings.values[key]) != piece:
            raise UserError(f"{settings.source} sets {key}={settings.values[key]!r}, and we know only {piece!r}")
    never = {_piece(each) for each in settings.get("never_split", [])}
    vocabulary = {piece: str(number) for piece, number in read_vocab_txt(vocab, ()).items()}
    added = {_piece(each): number for number, each in settings.get("added_tokens_decoder", {}).items()}
    more = [settings.values.get(f"{kind}_special_tokens") for kind in ("additional", "extra")]
    known = set(_ROLES.values())
    if any(more) or (never | added.keys()) - known or any(vocabulary[piece] != added[piece] for piece in added):
        raise UserError(
            f"{settings.source} names special tokens besides {', '.join(sorted(known))} of vocab.txt, and we know only "
            "these"
        )
    settings.only(
        do_basic_tokenize=True,
        add_prefix_space=False,
        wordpieces_prefix="##",
        auto_map=None,
    )
    settings.one_of("tokenizer_class", dict.fromkeys(("BertTokenizer", "BertTokenizerFast"), ""), "BertTokenizer")
    lowercase = settings.get("do_lower_case", True)
    # Null: accents are removed where letters are made small.
    accents = None if settings.values.get("strip_accents") is None else settings.get("strip_accents", False)
    chinese = settings.get("tokenize_chinese_chars", True)
    most = settings.get("model_max_length", math.inf)
    splits = settings.get("split_special_tokens", False)
    settings.finish({*_ROLES, *_UNUSED, "additional_special_tokens", "extra_special_tokens"})
    held = [piece for piece in sorted(known) if piece in text]
    if held and not splits:
        raise UserError(f"--text holds {held[0]!r}, which the model's own tokenizer reads as one token: leave it out")
    tokenizer = Tokenizer.from_vocab_txt(vocab, lowercase, strip_accents=accents, handle_chinese_chars=chinese)
    return tokenizer, most


def _piece(token: Any) -> str:
    return str(token.get("content") if isinstance(token, dict) else token)


def _row(ids: Sequence[int]) -> Any:
    return jnp.asarray([ids], jnp.int32)


def _check(sides: dict[str, list[int]], limit: int | None) -> None:
    for stack, ids in sides.items():
        if limit is not None and len(ids) > limit:
            flag = "--text" if stack == "encoder" or len(sides) == 1 else "--target"
            raise UserError(
                f"{flag} has {len(ids)} tokens, and the model's position table ends after {limit}: shorten it"
            )


def _shown(piece: str) -> str:
    """A piece in readable form, with visible spaces and new lines."""
    return piece.replace(" ", "▁").replace("\n", "⏎") or "▁"
