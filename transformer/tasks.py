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
from jaxtyping import Array, Float, Int

from transformer.config import Config, ModelConfig, UserError
from transformer.data.contiguous import ContiguousBatches
from transformer.data.corrupted import MaskedBatches, SpanBatches, holes_needed
from transformer.data.image_batches import ImageBatches
from transformer.data.labelled import LabelledBatches
from transformer.data.packed import PackedBatches
from transformer.data.pairs import PairBatches
from transformer.data.pipeline import Batches, read_labels, tokenize
from transformer.data.series_batches import SeriesBatches
from transformer.data.source import Source
from transformer.data.speech_batches import SpeechBatches
from transformer.data.tokenizers import MASK, Tokenizer, holes
from transformer.model.families import build, init, output_table
from transformer.model.layers import Tokens
from transformer.model.noise import Noise, step_noise
from transformer.model.positions import longest
from transformer.training.losses import Pair, cross_entropy, output_cross_entropy, squared_error

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

    families: tuple[str, ...]  # the rows of FAMILIES whose call signature the task's batches fit
    inputs = "tokens"  # the row of EMBEDDERS that reads them
    has_classes = False
    reads_text = True  # so it has a tokenizer

    def __init__(self, config: Config, tokenizer: Tokenizer | None):
        name = repr(config.task)
        if config.model.family not in self.families:
            named = " or ".join(map(repr, self.families))
            raise UserError(f"task {name} needs model.family={named}, not {config.model.family!r}: change either")
        if config.model.inputs != self.inputs:
            raise UserError(f"task {name} needs model.inputs={self.inputs!r}, not {config.model.inputs!r}")
        if self.has_classes and config.model.num_classes < 2:
            raise UserError(f"task {name} needs model.num_classes of 2 or more, not {config.model.num_classes}")
        if not self.has_classes and config.model.num_classes:
            raise UserError(f"task {name} has no classes: leave out model.num_classes={config.model.num_classes}")
        self.config = config
        self._tokenizer = tokenizer
        self.model_config = self._model_config()
        self.model: nn.Module = build(self.model_config)
        self.limit = longest(self.model_config)
        self._check_length()

    def _model_config(self) -> ModelConfig:
        """The model's configuration, with what follows from the data."""
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

    @staticmethod
    def fields(config: Config, source: Source) -> tuple[str, ...]:
        """The text fields of the source that the task reads; its tokenizer learns from them."""
        return ()

    @staticmethod
    def extra_pieces(config: Config) -> tuple[str, ...]:
        """Special tokens that the task needs besides padding, begin and end."""
        return ()

    def check(self, source: Source) -> None:
        """UserError: the source has other classes than the model."""
        if self.has_classes and len(source.classes) != self.model_config.num_classes:
            found = f"{len(source.classes)} classes" if source.classes else "no classes"
            raise UserError(
                f"{source.name} has {found}, and model.num_classes={self.model_config.num_classes}: change either"
            )

    @abc.abstractmethod
    def batches(self, source: Source, split: str) -> Batches:
        """The batches of a split."""

    def _common(self) -> dict[str, Any]:
        """What every kind of batches takes."""
        where = {"process_index": jax.process_index(), "process_count": jax.process_count()}
        return {"seed": self.config.seed, "data": self.config.data, **where}

    def _tokens(self, source: Source, split: str) -> dict[str, Any]:
        return tokenize(source, split, self.fields(self.config, source), self.tokenizer, self.config.data)

    @abc.abstractmethod
    def example(self) -> Batch:
        """A batch of one row with the keys that `arguments` reads, for the shapes of the parameters."""

    def init(self, key: Array) -> Any:
        """Parameters from a key; they depend on it and on the configuration, not on any batch."""
        return init(self.model, key, *self.arguments(self.example()))

    @abc.abstractmethod
    def arguments(self, batch: Batch) -> tuple[Any, ...]:
        """What the model is called with."""

    def loss(self, params: Any, batch: Batch, seed: Array | None, step: Array | None) -> dict[str, Pair]:
        """Metrics of a batch as (sum, weight) pairs; without a seed, deterministic and not smoothed."""
        if seed is None or step is None:
            return self.metrics(params, batch, None, 0.0)
        rows = jnp.arange(jax.tree.leaves(batch)[0].shape[0])
        return self.metrics(params, batch, step_noise(seed, step, rows), self.config.label_smoothing)

    @abc.abstractmethod
    def metrics(self, params: Any, batch: Batch, noise: Noise | None, smoothing: float) -> dict[str, Pair]: ...


class TokenTask(Task):
    """A task whose model gives a token at each place."""

    def metrics(self, params: Any, batch: Batch, noise: Noise | None, smoothing: float) -> dict[str, Pair]:
        features: Any = self.model.apply(params, *self.arguments(batch), noise, method="features")
        weights = self.weights(batch).astype(jnp.float32)
        return output_cross_entropy(features, output_table(params), batch["targets"], weights, smoothing)

    def weights(self, batch: Batch) -> Array:
        """Which targets [B, L] count."""
        return batch["target_segments"] > 0

    def example(self) -> Batch:
        names = ("inputs", "input_positions", "input_segments", "target_inputs", "target_positions", "target_segments")
        return dict.fromkeys(names, jnp.zeros((1, 2), jnp.int32))


class WritingTask(TokenTask):
    """A task that writes text, token by token."""

    reads_lines = True  # a line of text is its input

    @abc.abstractmethod
    def prompt(self, ids: list[int]) -> list[int]:
        """What the model reads for the tokens of a line."""

    @abc.abstractmethod
    def begin(self, params: Any, inputs: Array, lengths: Int[Array, " B"]) -> Beginning:
        """How decoding begins after padded inputs of these lengths, and how far it may go."""

    def _step(self, params: Any) -> Callable[[Array, Array, Any], tuple[Array, Any]]:
        def step(tokens: Array, positions: Array, state: Any) -> tuple[Array, Any]:
            where = Tokens(positions, jnp.ones_like(positions))
            logits, state = cast(Any, self.model.apply(params, tokens, where, state, method="step"))
            return logits[:, -1], state

        return step


class Translation(WritingTask):
    """Text to text with an encoder-decoder: `data.source` to `data.target`."""

    families: tuple[str, ...] = ("encoder_decoder", "recurrent_encoder_decoder")

    @staticmethod
    def fields(config: Config, source: Source) -> tuple[str, ...]:
        return source.pair(config.data)

    def batches(self, source: Source, split: str) -> Batches:
        return PairBatches(self._tokens(source, split), **self._common())

    def arguments(self, batch: Batch) -> tuple[Any, ...]:
        return (
            batch["inputs"],
            Tokens(batch["input_positions"], batch["input_segments"]),
            batch["target_inputs"],
            Tokens(batch["target_positions"], batch["target_segments"]),
        )

    def prompt(self, ids: list[int]) -> list[int]:
        return [*ids, Tokenizer.eos_id]

    def room(self, width: int) -> int:
        """The most tokens that an output may have, for inputs of a width."""
        return 2 * width + 16

    def begin(self, params: Any, inputs: Array, lengths: Int[Array, " B"]) -> Beginning:
        """From BOS; at most `room` tokens, or as many as a learned position table has."""
        rows, width = inputs.shape[:2]
        most = self.room(width) if self.limit is None else min(self.room(width), self.limit)
        state = self.model.apply(params, inputs, _places(lengths, width), most, method="start")
        first = jnp.full(rows, Tokenizer.bos_id)
        return Beginning(self._step(params), state, first, jnp.zeros(rows, jnp.int32), most, self.limit)


class Summarization(Translation):
    """A text to its summary: `data.source` to `data.target`, judged by ROUGE."""


class SpanCorruption(Translation):
    """T5's objective (Raffel et al. 2020, section 3.1.4): the text with holes in, what was in the holes out."""

    families = ("encoder_decoder",)

    @staticmethod
    def fields(config: Config, source: Source) -> tuple[str, ...]:
        return (source.field(config.data.target),)

    @staticmethod
    def extra_pieces(config: Config) -> tuple[str, ...]:
        return holes(holes_needed(config.data))

    def batches(self, source: Source, split: str) -> Batches:
        return SpanBatches(self._tokens(source, split), tokenizer=self.tokenizer, **self._common())


class SpeechRecognition(Translation):
    """Recordings to text: log-mel frames in, the text field `data.target` out."""

    families = ("encoder_decoder",)
    inputs = "frames"
    reads_lines = False

    @staticmethod
    def fields(config: Config, source: Source) -> tuple[str, ...]:
        return (source.field(config.data.target),)

    def batches(self, source: Source, split: str) -> Batches:
        mels = self.model_config.channels
        return SpeechBatches(source, split, mels=mels, tokenizer=self.tokenizer, **self._common())

    def example(self) -> Batch:
        return super().example() | _frames(self.model_config.channels)

    def room(self, width: int) -> int:
        return width  # frames of 10 ms: more than anybody says


class LanguageModel(WritingTask):
    """The next token of `data.target`, a text field, with a decoder."""

    families = ("decoder_only", "recurrent_language_model")

    @staticmethod
    def fields(config: Config, source: Source) -> tuple[str, ...]:
        return (source.field(config.data.target),)

    def batches(self, source: Source, split: str) -> Batches:
        kind = ContiguousBatches if source.contiguous else PackedBatches
        return kind(self._tokens(source, split), **self._common())

    def arguments(self, batch: Batch) -> tuple[Any, ...]:
        return batch["target_inputs"], Tokens(batch["target_positions"], batch["target_segments"])

    def prompt(self, ids: list[int]) -> list[int]:
        return [Tokenizer.bos_id, *ids]

    def begin(self, params: Any, inputs: Int[Array, "B S"], lengths: Int[Array, " B"]) -> Beginning:
        """From the last token of each prompt; at most `data.max_len` tokens, or what a learned table leaves."""
        rows, width = inputs.shape
        most = min(self.config.data.max_len, self.limit or self.config.data.max_len)
        state = self.model.apply(params, rows, width + most, method="start")
        # The last token of each prompt is not cached but read by the first step.
        _, state = self.model.apply(params, inputs, _places(lengths - 1, width), state, method="step")
        last = jnp.take_along_axis(inputs, lengths[:, None] - 1, axis=1)[:, 0]
        return Beginning(self._step(params), state, last, lengths - 1, most, self.limit)


class Prompts(LanguageModel):
    """A language model as a task solver: lines such as "37+48=85", judged by the answers to unseen prompts."""


class MaskedLanguageModel(TokenTask):
    """BERT's objective (Devlin et al. 2019, section 3.1): tokens of `data.target` that were hidden."""

    families = ("encoder_only",)

    @staticmethod
    def fields(config: Config, source: Source) -> tuple[str, ...]:
        return (source.field(config.data.target),)

    @staticmethod
    def extra_pieces(config: Config) -> tuple[str, ...]:
        return (MASK,)

    def batches(self, source: Source, split: str) -> Batches:
        return MaskedBatches(self._tokens(source, split), tokenizer=self.tokenizer, **self._common())

    def arguments(self, batch: Batch) -> tuple[Any, ...]:
        return batch["inputs"], Tokens(batch["input_positions"], batch["input_segments"])

    def weights(self, batch: Batch) -> Array:
        return batch["target_weights"] > 0


class Classification(Task):
    """A class for each example."""

    families = ("encoder_only",)
    has_classes = True

    def metrics(self, params: Any, batch: Batch, noise: Noise | None, smoothing: float) -> dict[str, Pair]:
        logits = cast(Array, self.model.apply(params, *self.arguments(batch), noise))
        weights = (batch["example_ids"] >= 0).astype(jnp.float32)
        found = cross_entropy(logits[:, None], batch["labels"][:, None], weights[:, None], smoothing)
        found["accuracy"] = found.pop("token_accuracy")
        return found

    def predict(self, params: Any, batch: Batch) -> Float[Array, "B V"]:
        """The logits of the classes."""
        return cast(Array, self.model.apply(params, *self.arguments(batch)))


class TextClassification(Classification):
    """The class of a text, the field `data.target`."""

    @staticmethod
    def fields(config: Config, source: Source) -> tuple[str, ...]:
        return (source.field(config.data.target),)

    def batches(self, source: Source, split: str) -> Batches:
        return LabelledBatches(self._tokens(source, split), read_labels(source, split), **self._common())

    def example(self) -> Batch:
        return dict.fromkeys(("inputs", "input_positions", "input_segments"), jnp.zeros((1, 2), jnp.int32))

    def arguments(self, batch: Batch) -> tuple[Any, ...]:
        return batch["inputs"], Tokens(batch["input_positions"], batch["input_segments"])


class ImageClassification(Classification):
    """The class of an image."""

    inputs = "image"
    reads_text = False

    def batches(self, source: Source, split: str) -> Batches:
        size, channels = self.model_config.image_size, self.model_config.channels
        return ImageBatches(source, split, image_size=size, channels=channels, **self._common())

    def example(self) -> Batch:
        return {"inputs": jnp.zeros((1, *self.model_config.image_size, self.model_config.channels))}

    def arguments(self, batch: Batch) -> tuple[Any, ...]:
        return batch["inputs"], None

    def _check_length(self) -> None:
        model = self.model_config
        patches = model.image_size[0] * model.image_size[1] // model.patch_size**2 + (model.pooling != "mean")
        if self.limit is not None and patches > self.limit:
            raise UserError(f"an image has {patches} patches, and model.max_positions={self.limit}: raise it")


class SpeechClassification(Classification):
    """The class of a recording, from its log-mel frames."""

    inputs = "frames"
    reads_text = False

    def batches(self, source: Source, split: str) -> Batches:
        return SpeechBatches(source, split, mels=self.model_config.channels, **self._common())

    def example(self) -> Batch:
        return _frames(self.model_config.channels)

    def arguments(self, batch: Batch) -> tuple[Any, ...]:
        return batch["inputs"], Tokens(batch["input_positions"], batch["input_segments"])


class Forecasting(Task):
    """The next `data.horizon` steps of each variable of a series, from `data.max_len` steps."""

    families = ("forecaster",)
    inputs = "series"
    reads_text = False

    def _model_config(self) -> ModelConfig:
        return dataclasses.replace(self.config.model, num_classes=self.config.data.horizon)

    def _check_length(self) -> None:
        model, time = self.model_config, self.config.data.max_len
        if model.patch_size > time:
            raise UserError(
                f"model.patch_size={model.patch_size} is longer than data.max_len={time}: change one of them"
            )

    def batches(self, source: Source, split: str) -> Batches:
        return SeriesBatches(source, split, **self._common())

    def example(self) -> Batch:
        return {"inputs": jnp.zeros((1, self.config.data.max_len, 1))}

    def arguments(self, batch: Batch) -> tuple[Any, ...]:
        return (batch["inputs"],)

    def metrics(self, params: Any, batch: Batch, noise: Noise | None, smoothing: float) -> dict[str, Pair]:
        forecast = cast(Array, self.model.apply(params, *self.arguments(batch), noise))
        return squared_error(forecast, batch["targets"], batch["example_ids"] >= 0)


def _frames(mels: int) -> Batch:
    ids = jnp.zeros((1, 8), jnp.int32)
    return {"inputs": jnp.zeros((1, 8, mels)), "input_positions": ids, "input_segments": ids}


def _places(lengths: Int[Array, " B"], width: int) -> Tokens:
    """Positions 0, 1, ... and segment 1 up to the length of each row."""
    positions = jnp.broadcast_to(jnp.arange(width), (lengths.shape[0], width))
    return Tokens(positions, (positions < lengths[:, None]).astype(jnp.int32))


TASKS: dict[str, type[Task]] = {
    "translation": Translation,
    "summarization": Summarization,
    "span_corruption": SpanCorruption,
    "speech_recognition": SpeechRecognition,
    "language_model": LanguageModel,
    "prompts": Prompts,
    "masked_language_model": MaskedLanguageModel,
    "text_classification": TextClassification,
    "image_classification": ImageClassification,
    "speech_classification": SpeechClassification,
    "forecasting": Forecasting,
}


def task_class(name: str) -> type[Task]:
    """The row of TASKS. UserError: there is none of that name."""
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, 1)
        raise UserError(
            f"there is no task {name!r}: " + (f"did you mean {near[0]!r}?" if near else f"choose {list(TASKS)}")
        )
    return TASKS[name]
