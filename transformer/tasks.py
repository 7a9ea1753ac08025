"""A task = data + features + model family + loss: TASKS, name -> class.

The verbs hand a task's pieces (init, loss, batches) to training and decoding, which know neither models nor data.
"""

import abc
import dataclasses
import difflib
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from transformer.config import Config, UserError
from transformer.data.contiguous import ContiguousBatches
from transformer.data.packed import PackedBatches
from transformer.data.pairs import PairBatches
from transformer.data.pipeline import Batches, tokenize
from transformer.data.sources import Source
from transformer.data.tokenizers import Tokenizer
from transformer.model.families import build, output_table
from transformer.model.layers import Tokens
from transformer.model.noise import step_noise
from transformer.model.positions import longest
from transformer.training.losses import Pair, output_cross_entropy

Batch = dict[str, Any]


class Beginning(NamedTuple):
    """What a decoder needs: `step(tokens [B, 1], positions [B, 1], state) -> (logits [B, V], state)`, and its start."""

    step: Callable[[Array, Array, Any], tuple[Array, Any]]
    state: Any
    first_tokens: Int[Array, " B"]
    first_positions: Int[Array, " B"]
    max_new: int
    limit: int | None


class Task(abc.ABC):
    """One configuration of a task. `model` is its module; `limit` the longest sequence it takes (None = any)."""

    family: str  # the row of FAMILIES whose call signature the task's batches fit
    batch_class: Any  # PairBatches or PackedBatches

    def __init__(self, config: Config, tokenizer: Tokenizer):
        if config.model.family != self.family:
            raise UserError(
                f"task {config.task!r} needs model.family={self.family!r}, not {config.model.family!r}: change either"
            )
        vocab_size = config.model.vocab_size or tokenizer.vocab_size
        if vocab_size < tokenizer.vocab_size:
            raise UserError(
                f"model.vocab_size={vocab_size} is smaller than the tokenizer's {tokenizer.vocab_size} pieces: set it "
                "to 0 to take the tokenizer's size"
            )
        self.config, self.tokenizer = config, tokenizer
        self.model_config = dataclasses.replace(config.model, vocab_size=vocab_size)
        self.model: nn.Module = build(self.model_config)
        self.limit = longest(self.model_config)
        if self.limit is not None and config.data.max_len > self.limit:
            raise UserError(
                f"data.max_len={config.data.max_len} is longer than the learned position table of "
                f"model.max_positions={self.limit}: lower the one or raise the other"
            )

    @staticmethod
    @abc.abstractmethod
    def fields(config: Config, source: Source) -> tuple[str, ...]:
        """The text fields of the source that the task reads."""

    def batches(self, source: Source, split: str) -> Batches:
        """The batches of a split, from cached tokens."""
        tokens = tokenize(source, split, self.fields(self.config, source), self.tokenizer, self.config.data)
        whole = source.contiguous and self.batch_class is PackedBatches  # one long text, read as it stands
        return (ContiguousBatches if whole else self.batch_class)(
            tokens,
            seed=self.config.seed,
            data=self.config.data,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    @abc.abstractmethod
    def prompt(self, ids: list[int]) -> list[int]:
        """What the model reads for the tokens of a line."""

    @abc.abstractmethod
    def begin(self, params: Any, tokens: Int[Array, "B S"], lengths: Int[Array, " B"]) -> Beginning:
        """How decoding begins after padded prompts, and how far it may go."""

    def _step(self, params: Any) -> Callable[[Array, Array, Any], tuple[Array, Any]]:
        def step(tokens: Array, positions: Array, state: Any) -> tuple[Array, Any]:
            where = Tokens(positions, jnp.ones_like(positions))
            logits, state = cast(Any, self.model.apply(params, tokens, where, state, method="step"))
            return logits[:, -1], state

        return step

    def init(self, key: Array) -> Any:
        """Parameters from a key; they depend on it and on the configuration, not on any batch."""
        ids = jnp.zeros((1, 2), jnp.int32)
        names = ("inputs", "input_positions", "input_segments", "target_inputs", "target_positions", "target_segments")
        return self.model.init(key, *self.arguments(dict.fromkeys(names, ids)))

    @abc.abstractmethod
    def arguments(self, batch: Batch) -> tuple[Any, ...]:
        """What the model is called with."""

    def loss(self, params: Any, batch: Batch, seed: Array | None, step: Array | None) -> dict[str, Pair]:
        """Metrics of a batch as (sum, weight) pairs; without a seed, deterministic and not smoothed."""
        noise, smoothing = None, 0.0
        if seed is not None and step is not None:
            noise = step_noise(seed, step, jnp.arange(batch["targets"].shape[0]))
            smoothing = self.config.label_smoothing
        features: Any = self.model.apply(params, *self.arguments(batch), noise, method="features")
        weights = (batch["target_segments"] > 0).astype(jnp.float32)
        return output_cross_entropy(features, output_table(params), batch["targets"], weights, smoothing)


class Translation(Task):
    """Text to text with an encoder-decoder: `data.source` to `data.target`."""

    family = "encoder_decoder"
    batch_class = PairBatches

    @staticmethod
    def fields(config: Config, source: Source) -> tuple[str, ...]:
        return source.pair(config.data)

    def arguments(self, batch: Batch) -> tuple[Any, ...]:
        return (
            batch["inputs"],
            Tokens(batch["input_positions"], batch["input_segments"]),
            batch["target_inputs"],
            Tokens(batch["target_positions"], batch["target_segments"]),
        )

    def prompt(self, ids: list[int]) -> list[int]:
        return [*ids, Tokenizer.eos_id]

    def begin(self, params: Any, tokens: Int[Array, "B S"], lengths: Int[Array, " B"]) -> Beginning:
        """From BOS; at most 2 S + 16 tokens, or as many as a learned position table has."""
        rows, width = tokens.shape
        most = 2 * width + 16 if self.limit is None else min(2 * width + 16, self.limit)
        state = self.model.apply(params, tokens, _places(lengths, width), most, method="start")
        first = jnp.full(rows, Tokenizer.bos_id)
        return Beginning(self._step(params), state, first, jnp.zeros(rows, jnp.int32), most, self.limit)


class LanguageModel(Task):
    """The next token of `data.target`, a text field, with a decoder."""

    family = "decoder_only"
    batch_class = PackedBatches

    @staticmethod
    def fields(config: Config, source: Source) -> tuple[str, ...]:
        return (source.field(config.data.target),)

    def arguments(self, batch: Batch) -> tuple[Any, ...]:
        return batch["target_inputs"], Tokens(batch["target_positions"], batch["target_segments"])

    def prompt(self, ids: list[int]) -> list[int]:
        return [Tokenizer.bos_id, *ids]

    def begin(self, params: Any, tokens: Int[Array, "B S"], lengths: Int[Array, " B"]) -> Beginning:
        """From the last token of each prompt; at most `data.max_len` tokens, or what a learned table leaves."""
        rows, width = tokens.shape
        most = min(self.config.data.max_len, self.limit or self.config.data.max_len)
        state = self.model.apply(params, rows, width + most, method="start")
        # The last token of each prompt is not cached but read by the first step.
        _, state = self.model.apply(params, tokens, _places(lengths - 1, width), state, method="step")
        last = jnp.take_along_axis(tokens, lengths[:, None] - 1, axis=1)[:, 0]
        return Beginning(self._step(params), state, last, lengths - 1, most, self.limit)


def _places(lengths: Int[Array, " B"], width: int) -> Tokens:
    """Positions 0, 1, ... and segment 1 up to the length of each row."""
    positions = jnp.broadcast_to(jnp.arange(width), (lengths.shape[0], width))
    return Tokens(positions, (positions < lengths[:, None]).astype(jnp.int32))


TASKS: dict[str, type[Task]] = {"translation": Translation, "language_model": LanguageModel}


def task_class(name: str) -> type[Task]:
    """The row of TASKS. UserError: there is none of that name."""
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, 1)
        raise UserError(
            f"there is no task {name!r}: " + (f"did you mean {near[0]!r}?" if near else f"choose {list(TASKS)}")
        )
    return TASKS[name]
