"""Tasks whose model predicts a token at each position: text to text, speech to text, language models."""

from collections.abc import Sequence
from typing import Any, cast

import jax.numpy as jnp
from jaxtyping import Array, Int

from transformer.config import Config
from transformer.data.batches.base import Batches
from transformer.data.batches.contiguous import ContiguousBatches
from transformer.data.batches.corrupted import MaskedBatches, SpanBatches, holes_needed, span_widths
from transformer.data.batches.mixed import in_blocks
from transformer.data.batches.packed import PackedBatches
from transformer.data.batches.pairs import PairBatches
from transformer.data.batches.recordings import SpeechBatches
from transformer.data.sources import CONTIGUOUS
from transformer.data.sources.source import Source
from transformer.data.tokenizers import MASK, holes
from transformer.model.tokens import Tokens
from transformer.tasks.base import Batch, Beginning, TokenTask, WritingTask, frames, heard, packed, padded, tokens_of


class Translation(WritingTask):
    """Text to text with an encoder-decoder: `data.source` to `data.target`."""

    judged_by = "translations"
    families: tuple[str, ...] = ("encoder_decoder", "recurrent_encoder_decoder")

    @staticmethod
    def fields(config: Config, source: Source) -> tuple[str, ...]:
        return source.pair(config.data)

    def batches(self, source: Source, split: str) -> Batches:
        return in_blocks(PairBatches, self._tokens(source, split), **self._common())

    def arguments(self, batch: Batch) -> tuple[Any, ...]:
        return (
            batch["inputs"],
            tokens_of(batch, "input"),
            batch["target_inputs"],
            tokens_of(batch, "target"),
        )

    def example(self, rows: int = 1, length: int = 8) -> Batch:
        return padded("inputs", "target_inputs", rows=rows, length=length)

    def prompt(self, ids: list[int]) -> list[int]:
        most = self.config.data.max_len - 1 if self.config.data.too_long == "cut" else None
        return [*ids[:most], self.tokenizer.eos_id]

    def room(self, width: int) -> int:
        """The most tokens that an output may have, for padded inputs of this width."""
        return 2 * width + 16

    def begin(self, params: Any, inputs: Array, lengths: Int[Array, " B"]) -> Beginning:
        """Starts with BOS; at most `room` tokens, or as many as a learned position table has rows."""
        rows, width = inputs.shape[:2]
        most = self.room(width) if self.limit is None else min(self.room(width), self.limit)
        state = self.model.apply(params, inputs, Tokens(lengths=lengths), most, method="start")
        first = jnp.full(rows, self.tokenizer.bos_id)
        return Beginning(self._step(params), state, first, jnp.zeros(rows, jnp.int32), most, self.limit)


class Summarization(Translation):
    """A text to its summary: `data.source` to `data.target`, judged by ROUGE."""

    judged_by = "summaries"


class SpanCorruption(Translation):
    """T5's objective (Raffel et al. 2020, section 3.1.4): predict the spans of a text that its input hides."""

    families = ("encoder_decoder",)
    reads_lines = False
    judged_by = "nothing"

    @staticmethod
    def fields(config: Config, source: Source) -> tuple[str, ...]:
        return (source.field(config.data.target),)

    @staticmethod
    def extra_pieces(config: Config) -> tuple[str, ...]:
        return holes(holes_needed(config.data))

    def example(self, rows: int = 1, length: int = 8) -> Batch:
        """Of the length of a bucket, the targets are as wide as its longest chunk needs."""
        needed = dict(cast(list[tuple[int, int]], span_widths(self.config.data)))
        return super().example(rows, length) | padded("target_inputs", rows=rows, length=needed.get(length, length))

    def batches(self, source: Source, split: str) -> Batches:
        return in_blocks(SpanBatches, self._tokens(source, split), tokenizer=self.tokenizer, **self._common())


class SpeechRecognition(Translation):
    """Recordings to text: log-mel frames in, the text field `data.target` out."""

    families = ("encoder_decoder",)
    inputs = "frames"
    reads_lines = False
    judged_by = "transcripts"

    @staticmethod
    def fields(config: Config, source: Source) -> tuple[str, ...]:
        return (source.field(config.data.target),)

    def batches(self, source: Source, split: str) -> Batches:
        mels = self.model_config.channels
        return SpeechBatches(source, split, mels=mels, tokenizer=self.tokenizer, **self._common())

    def positions(self, widths: Sequence[int]) -> Sequence[int]:
        return heard(widths)

    def example(self, rows: int = 1, length: int = 8) -> Batch:
        return super().example(rows, length) | frames(self.model_config.channels, rows, length)

    def room(self, width: int) -> int:
        return width  # one token per frame of 10 ms: more than speech has


class LanguageModel(WritingTask):
    """Predicts the next token of the text field `data.target` with a decoder."""

    families = ("decoder_only", "recurrent_language_model")
    judged_by = "nothing"

    @staticmethod
    def fields(config: Config, source: Source) -> tuple[str, ...]:
        return (source.field(config.data.target),)

    def batches(self, source: Source, split: str) -> Batches:
        kind = ContiguousBatches if source.contiguous else PackedBatches
        return in_blocks(kind, self._tokens(source, split), **self._common())

    def arguments(self, batch: Batch) -> tuple[Any, ...]:
        return batch["target_inputs"], tokens_of(batch, "target")

    def example(self, rows: int = 1, length: int = 8) -> Batch:
        kind = padded if self.config.data.name in CONTIGUOUS else packed
        return kind("target_inputs", rows=rows, length=length)

    def prompt(self, ids: list[int]) -> list[int]:
        return ids if self.config.data.name in CONTIGUOUS else [self.tokenizer.bos_id, *ids]

    def begin(self, params: Any, inputs: Int[Array, "B S"], lengths: Int[Array, " B"]) -> Beginning:
        """Starts with the last token of each prompt; at most `data.max_len` tokens, or what a learned position table
        leaves."""
        rows, width = inputs.shape
        most = min(self.config.data.max_len, self.limit or self.config.data.max_len)
        state = self.model.apply(params, rows, width + most, method="start")
        # The last token of each prompt is not cached: the first step reads it.
        _, state = self.model.apply(params, inputs, Tokens(lengths=lengths - 1), state, method="step")
        last = jnp.take_along_axis(inputs, lengths[:, None] - 1, axis=1)[:, 0]
        return Beginning(self._step(params), state, last, lengths - 1, most, self.limit)


class Prompts(LanguageModel):
    """A language model of lines such as "37+48=85", evaluated by its answers to unseen prompts."""

    judged_by = "answers"


class MaskedLanguageModel(TokenTask):
    """BERT's objective (Devlin et al. 2019, section 3.1): predict the masked tokens of `data.target`."""

    families = ("encoder_only",)

    @staticmethod
    def fields(config: Config, source: Source) -> tuple[str, ...]:
        return (source.field(config.data.target),)

    @staticmethod
    def extra_pieces(config: Config) -> tuple[str, ...]:
        return (MASK,)

    def batches(self, source: Source, split: str) -> Batches:
        return in_blocks(MaskedBatches, self._tokens(source, split), tokenizer=self.tokenizer, **self._common())

    def arguments(self, batch: Batch) -> tuple[Any, ...]:
        return batch["inputs"], tokens_of(batch, "input")

    def example(self, rows: int = 1, length: int = 8) -> Batch:
        return packed("inputs", rows=rows, length=length)

    def weights(self, batch: Batch) -> Array:
        return batch["target_weights"] > 0
