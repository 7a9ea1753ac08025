"""The base classes of tasks: of all, of those whose model predicts tokens, and of those that write text."""

import abc
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from transformer.config import Config, ModelConfig
from transformer.data.batches.base import Batches
from transformer.data.batches.corpus import token_shards
from transformer.data.batches.shards import Corpus
from transformer.data.sources.source import Source
from transformer.data.tokenizers import Tokenizer
from transformer.errors import UserError
from transformer.model.families import build, init, logical_axes, output_layer
from transformer.model.noise import Noise, step_noise
from transformer.model.parameters import Names
from transformer.model.positions import longest
from transformer.model.tokens import PackedTokens, Tokens
from transformer.training.losses import Pair, RowPair, output_cross_entropy

Batch = dict[str, Any]


class Beginning(NamedTuple):
    """How decoding starts: `step(tokens [B, 1], positions [B, 1], state) -> (logits [B, V], state)` and its first
    arguments."""

    step: Callable[[Array, Array, Any], tuple[Array, Any]]
    state: Any
    first_tokens: Int[Array, " B"]
    first_positions: Int[Array, " B"]
    max_new: int
    limit: int | None


class Task(abc.ABC):
    """A task of one config. `model` is its Flax module, `limit` the longest sequence that it takes (None: any)."""

    families: tuple[str, ...]  # rows of FAMILIES whose call signature fits the batches
    inputs = "tokens"  # the row of EMBEDDERS that embeds the inputs
    has_classes = False
    reads_text = True  # it has a tokenizer

    def __init__(self, config: Config, tokenizer: Tokenizer | None):
        name = repr(config.task)
        if config.model.family not in self.families:
            named = " or ".join(map(repr, self.families))
            raise UserError(f"task {name} needs model.family={named}, not {config.model.family!r}: change either")
        if config.model.inputs != self.inputs:
            raise UserError(f"task {name} needs model.inputs={self.inputs!r}, not {config.model.inputs!r}")
        if self.has_classes and config.model.num_classes < 2:
            raise UserError(
                f"task {name} needs model.num_classes of 2 or more, not {config.model.num_classes}; only training "
                "takes it from the data where it is 0"
            )
        if not self.has_classes and config.model.num_classes:
            raise UserError(f"task {name} has no classes: leave out model.num_classes={config.model.num_classes}")
        self.config = config
        self._tokenizer = tokenizer
        self.model_config = self._model_config()
        self.model: nn.Module = build(self.model_config)
        self.limit = longest(self.model_config)
        self._check_length()

    def _model_config(self) -> ModelConfig:
        """The model's config, completed with what follows from the data."""
        if self._tokenizer is None:
            return self.config.model
        size = self.config.model.vocab_size or self._tokenizer.vocab_size
        if size < self._tokenizer.vocab_size:
            raise UserError(
                f"model.vocab_size={size} is smaller than the tokenizer's {self._tokenizer.vocab_size} pieces: set it "
                "to 0 to take the tokenizer's size"
            )
        return dataclasses.replace(self.config.model, vocab_size=size)

    def _check_length(self) -> None:
        if self.limit is not None and self.config.data.max_len > self.limit:
            raise UserError(
                f"data.max_len={self.config.data.max_len} is longer than the learned position table of "
                f"model.max_positions={self.limit}: lower the one or raise the other"
            )

    @property
    def tokenizer(self) -> Tokenizer:
        assert self._tokenizer is not None, "a task that reads or writes text has one"
        return self._tokenizer

    @classmethod
    def completed(cls, config: Config, source: Source) -> Config:
        """The config with what is 0 in it and follows from the data: the number of classes. UserError: there are
        none."""
        if not cls.has_classes or config.model.num_classes:
            return config
        if not source.classes and config.model.family in cls.families:  # or else that is told first
            raise UserError(
                f"{source.name} has no classes, which task {config.task!r} needs: name their column in "
                "data.columns.label, or choose a data.name that has some"
            )
        return dataclasses.replace(config, model=dataclasses.replace(config.model, num_classes=len(source.classes)))

    @staticmethod
    def fields(config: Config, source: Source) -> tuple[str, ...]:
        """The text fields that the task reads; its tokenizer is trained on them."""
        return ()

    @staticmethod
    def extra_pieces(config: Config) -> tuple[str, ...]:
        """Special tokens that the task needs besides padding, BOS and EOS."""
        return ()

    def check(self, source: Source) -> None:
        """UserError: the number of classes differs between the source and the model."""
        if self.has_classes and len(source.classes) != self.model_config.num_classes:
            found = f"{len(source.classes)} classes" if source.classes else "no classes"
            raise UserError(
                f"{source.name} has {found}, and model.num_classes={self.model_config.num_classes}: leave it out, "
                "as it follows from the data, or choose other data"
            )

    @abc.abstractmethod
    def batches(self, source: Source, split: str) -> Batches:
        """The batches of a split."""

    def _common(self) -> dict[str, Any]:
        """The arguments of every kind of batches."""
        common = {"seed": self.config.seed, "data": self.config.data}
        return common if self._tokenizer is None else common | {"ends": self._tokenizer.ends}

    def _tokens(self, source: Source, split: str) -> Corpus:
        return token_shards(source, split, self.fields(self.config, source), self.tokenizer, self.config.data)

    def positions(self, widths: Sequence[int]) -> Sequence[int]:
        """How many positions the model has for the sides of a batch of these padded lengths (`Batches.report`)."""
        return widths

    @abc.abstractmethod
    def example(self, rows: int = 1, length: int = 8) -> Batch:
        """A batch of zeros with the keys that `arguments` reads; `init` uses one row."""

    def init(self, key: Array) -> Any:
        """Parameters from a key."""
        return init(self.model, key, *self.arguments(self.example()))

    @functools.cached_property
    def axes(self) -> dict[str, Names]:
        """Path of each parameter -> its logical axes (`transformer.model.parameters`)."""
        return logical_axes(self.model, *self.arguments(self.example()))

    @abc.abstractmethod
    def arguments(self, batch: Batch) -> tuple[Any, ...]:
        """The arguments of a call of the model."""

    def loss(
        self,
        params: Any,
        batch: Batch,
        seed: Array | None = None,
        step: Array | None = None,
        rows: Array | None = None,
    ) -> dict[str, Pair]:
        """Metrics of a batch as (sum, weight) pairs; without a seed, deterministic and without label smoothing. `rows`:
        the indices of its rows in the global batch, where it is a part of one."""
        if seed is None or step is None:
            return jax.tree.map(jnp.sum, self.metrics(params, batch, None, 0.0))
        rows = jnp.arange(jax.tree.leaves(batch)[0].shape[0]) if rows is None else rows
        found = self.metrics(params, batch, step_noise(seed, step, rows), self.config.label_smoothing)
        return jax.tree.map(jnp.sum, found)

    def row_metrics(self, params: Any, batch: Batch) -> dict[str, RowPair]:
        """(sum, weight) pairs of each row [B], deterministic and without label smoothing; (0, 0) for padding rows."""
        return self.metrics(params, batch, None, 0.0)

    @abc.abstractmethod
    def metrics(self, params: Any, batch: Batch, noise: Noise | None, smoothing: float) -> dict[str, Any]:
        """(sum, weight) pairs of each row or of the batch. The gradient is taken of the sum of "loss"."""


class TokenTask(Task):
    """A task whose model predicts a token at each position."""

    def row_metrics(self, params: Any, batch: Batch) -> dict[str, RowPair]:
        found = super().row_metrics(params, batch)
        return found | {"loss": found["nll"]}  # equal without smoothing; "loss" is summed over the batch

    def metrics(self, params: Any, batch: Batch, noise: Noise | None, smoothing: float) -> dict[str, Any]:
        features: Any = self.model.apply(params, *self.arguments(batch), noise, method="features")
        weights = self.weights(batch).astype(jnp.float32)
        table, bias = output_layer(params)
        vocabulary = self.model_config.vocab_size
        return output_cross_entropy(features, table, bias, batch["targets"], weights, smoothing, vocabulary)

    def weights(self, batch: Batch) -> Array:
        """Which targets [B, L] count in the loss."""
        return jnp.broadcast_to(tokens_of(batch, "target").real(batch["targets"].shape[1]), batch["targets"].shape)


class WritingTask(TokenTask):
    """A task that generates text, token by token. Every such class names the metrics of its text itself, so that none
    has no metrics, or those of another task, unnoticed."""

    reads_lines = True  # its input is a line of text
    judged_by: str  # the metrics of what it writes: a row of transformer.evaluation.written.JUDGES

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "judged_by" not in vars(cls):
            raise TypeError(f"{cls.__name__} writes text and does not say by which metrics it is judged: set judged_by")

    @abc.abstractmethod
    def prompt(self, ids: list[int]) -> list[int]:
        """The input tokens of the model for the tokens of a line."""

    @abc.abstractmethod
    def begin(self, params: Any, inputs: Array, lengths: Int[Array, " B"]) -> Beginning:
        """How decoding starts for padded inputs of these lengths, and the most tokens that it may generate."""

    def _step(self, params: Any) -> Callable[[Array, Array, Any], tuple[Array, Any]]:
        def step(tokens: Array, positions: Array, state: Any) -> tuple[Array, Any]:
            logits, state = cast(Any, self.model.apply(params, tokens, Tokens(positions), state, method="step"))
            return logits[:, -1], state

        return step


def tokens_of(batch: Batch, side: str) -> Tokens:
    """The `Tokens` of one side ("input", "target") of a batch: lengths, or positions and segments of packed rows."""
    if f"{side}_lengths" in batch:
        return Tokens(lengths=batch[f"{side}_lengths"])
    return PackedTokens(batch[f"{side}_positions"], batch[f"{side}_segments"])


def padded(*names: str, rows: int, length: int) -> Batch:
    """A batch of zeros: tokens [rows, length] of each name, and the lengths [rows] of each side."""
    sides = {name.removesuffix("_inputs").removesuffix("s") for name in names}
    tokens = {name: jnp.zeros((rows, length), jnp.int32) for name in names}
    return tokens | {f"{side}_lengths": jnp.zeros(rows, jnp.int32) for side in sides}


def packed(name: str, rows: int, length: int) -> Batch:
    """A batch of zeros: packed tokens [rows, length] of a name, with their positions and segments."""
    side = name.removesuffix("_inputs").removesuffix("s")
    return dict.fromkeys((name, f"{side}_positions", f"{side}_segments"), jnp.zeros((rows, length), jnp.int32))


def heard(widths: Sequence[int]) -> Sequence[int]:
    """The positions of recordings of so many frames: one for four (`transformer.model.embedders.FrameInput`)."""
    return [-(-width // 4) for width in widths]


def frames(mels: int, rows: int, length: int) -> Batch:
    """A batch of zeros: log-mel frames and their lengths."""
    return {"inputs": jnp.zeros((rows, length, mels)), "input_lengths": jnp.zeros(rows, jnp.int32)}
