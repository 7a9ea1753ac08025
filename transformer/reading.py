"""One text as a model reads it, for analysis: of a trained task, or of a folder with the weights of a BERT model."""

import json
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
from transformer.model.tokens import Tokens
from transformer.tasks import TextClassification
from transformer.tasks.texts import LanguageModel, MaskedLanguageModel, Translation
from transformer.tasks.trained import Trained
from transformer.writing.lines import generate


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
    elif isinstance(task, (MaskedLanguageModel, TextClassification)):
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
    settings = folder / "tokenizer_config.json"
    lowercase = not settings.is_file() or json.loads(settings.read_text(encoding="utf-8")).get("do_lower_case", True)
    ids = Tokenizer.from_vocab_txt(vocab, lowercase).encode_with_ends(text)
    _check({"encoder": ids}, longest(model.config))
    pieces = {number: piece for piece, number in read_vocab_txt(vocab, ()).items()}
    return Reading(model, params, (_row(ids), Tokens()), {"encoder": [pieces[i] for i in ids]}, f"weights of {folder}")


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
