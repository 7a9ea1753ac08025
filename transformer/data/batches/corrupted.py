"""Texts with hidden tokens, drawn anew in each epoch: masked language models, and T5's span corruption."""

import abc
from collections.abc import Mapping
from typing import Any

import numpy as np

from transformer.config import DataConfig
from transformer.data.batches.base import EVALUATION, Batch, Batches, widths_needed
from transformer.data.batches.bucketed import BucketedBatches, Widths
from transformer.data.batches.packed import Packed
from transformer.data.batches.pairs import pair_batch
from transformer.data.batches.tokens import Tokens
from transformer.data.batches.too_long import decide
from transformer.data.tokenizers import Tokenizer
from transformer.errors import UserError

MEAN_SPAN = 3  # tokens of a hidden span on average (Raffel et al., 2020)


class Corrupted(Batches):
    """The tokens hidden in a row depend on (seed, epoch, row) only; in `evaluation` they are always the same."""

    @abc.abstractmethod
    def _corrupted(self, width: Any, rows: np.ndarray, epoch: int) -> Batch: ...

    def _made(self, width: Any, rows: np.ndarray, epoch: int) -> Batch:
        return self._corrupted(width, rows, epoch)

    def _make(self, width: Any, rows: np.ndarray) -> Batch:
        return self._corrupted(width, rows, EVALUATION)

    def _draws(self, epoch: int, row: int, count: int) -> np.ndarray:
        """`count` random 64-bit numbers of a row in an epoch."""
        key = np.array([self.seed % 2**64, epoch], np.uint64)
        # The order of an epoch uses the same key with counters from 0, which never reach these.
        return np.random.Philox(key=key, counter=np.array([0, 0, row, 1], np.uint64)).random_raw(count)


# --- Masked language models


class MaskedBatches(Corrupted, Packed):
    """For masked language models (Devlin et al., 2019): documents, BOS + tokens + EOS, in packed rows; see `Packed`.

    Each token is chosen with probability `data.corruption`, at least one in a row, never BOS or EOS. A chosen token
    becomes the mask piece (80 %), a random piece (10 %), or stays as it is (10 %). Keys, all [B, L], L = max_len:
    inputs, corrupted; targets, the original tokens; target_weights, 1 at chosen tokens and 0 elsewhere;
    input_positions, input_segments.
    """

    added = 2  # BOS and EOS

    def __init__(self, tokens: Mapping[str, Tokens], *, data: DataConfig, tokenizer: Tokenizer, **others: Any) -> None:
        self._mask_id = tokenizer.mask_id  # first, since it may raise UserError
        self._pieces = tokenizer.ordinary_ids
        super().__init__(tokens, data=data, **others)

    def _corrupted(self, width: int, rows: np.ndarray, epoch: int) -> Batch:
        filled = self._filled(rows)
        numbers = "target_weights input_positions input_segments"
        batch = self._blank((len(rows), width), "inputs targets", numbers)
        inside = self._tokens.flat[filled.begin + np.clip(filled.place - 1, 0, filled.tokens - 1)]
        ends = np.where(filled.place == 0, self.ends.bos, self.ends.eos)
        is_token = (filled.place > 0) & (filled.place <= filled.tokens)
        batch["targets"][filled.where] = np.where(is_token, inside, ends)
        batch["input_positions"][filled.where] = filled.position
        batch["input_segments"][filled.where] = filled.segment
        batch["inputs"][...] = batch["targets"]
        tokens = np.zeros((len(rows), width), bool)
        tokens[filled.where] = is_token
        for index, row in enumerate(rows.tolist()):
            if tokens[index].any():
                chosen, shown = self._hide(batch["targets"][index], tokens[index], epoch, row)
                batch["target_weights"][index] = chosen
                batch["inputs"][index] = shown
        return batch

    def _hide(self, original: np.ndarray, tokens: np.ndarray, epoch: int, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Which of the `tokens` of a row are chosen, and the corrupted row."""
        lot, kind, piece = self._draws(epoch, row, 3 * len(original)).reshape(3, -1)
        chosen = tokens & (lot < _part(self.data.corruption))
        if not chosen.any():
            chosen[np.argmin(np.where(tokens, lot, np.uint64(2**64 - 1)))] = True
        random = self._pieces[piece % np.uint64(len(self._pieces))]
        replaced = np.where(kind < _part(0.8), self._mask_id, np.where(kind < _part(0.9), random, original))
        return chosen, np.where(chosen, replaced, original)


def _part(share: float) -> np.uint64:
    """The bound below which this share of all 64-bit numbers is."""
    return np.uint64(int(share * 2**64))


# --- Span corruption


class SpanBatches(Corrupted, BucketedBatches):
    """For T5's span corruption (Raffel et al., 2020): the targets are the spans that the inputs hide.

    Of a chunk of n tokens, n * data.corruption are hidden, in spans of three on average. In the inputs, hole piece i
    replaces span i; the targets are hole piece 0, span 0, hole piece 1, span 1, ... T5's code always hides the last
    token and never the first; here spans may be anywhere, at least one token apart. Documents, of one field, are cut
    into consecutive chunks whose inputs and targets fit into max_len, unless `data.too_long` says otherwise: "cut"
    keeps the first. Each side has the width that the longest chunk of a bucket needs. Keys: those of `PairBatches`;
    `example_ids` are chunk numbers.
    """

    noun = "chunks"
    rules = ("chunk", "cut", "drop", "refuse")

    def __init__(self, tokens: Mapping[str, Tokens], *, data: DataConfig, tokenizer: Tokenizer, **others: Any) -> None:
        (self._tokens,) = tokens.values()
        self._holes = np.array(tokenizer.hole_ids, np.int32)
        if len(self._holes) < holes_needed(data):
            raise UserError(
                f"data.max_len={data.max_len} with data.corruption={data.corruption} hides up to {holes_needed(data)} "
                f"spans, and the tokenizer has {len(self._holes)} hole pieces: train it with as many, or lower either."
            )
        size = _longest_chunk(data)
        whole = np.where(self._tokens.lengths, _longer_side(self._tokens.lengths, data.corruption), 0)
        told = decide(whole, data, self.rules, "documents")
        counts = -(-self._tokens.lengths // size)
        if told.rule == "cut":
            counts = np.minimum(counts, 1)
        elif told.rule == "drop":
            counts = np.where(counts > 1, 0, counts)
        self._documents = np.flatnonzero(counts)
        document = np.repeat(np.arange(len(self._tokens)), counts)
        number = np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)
        self._starts = self._tokens.offsets[document] + number * size
        self._sizes = np.minimum(size, self._tokens.lengths[document] - number * size)
        hidden, spans = hidden_and_spans(self._sizes, data.corruption)
        lengths = np.stack([self._sizes - hidden + spans + 1, hidden + spans + 1], axis=1)
        super().__init__(lengths, data, span_widths(data), told, **others)

    @property
    def evaluated(self) -> np.ndarray:
        return self._documents

    def _corrupted(self, width: Widths, rows: np.ndarray, epoch: int) -> Batch:
        sides = [np.full((len(rows), each), self.ends.pad, np.int32) for each in width]
        lengths = np.zeros((2, len(rows)), np.int64)
        for index, row in enumerate(rows.tolist()):
            if row >= 0:
                for side, text in enumerate(self._spans_of(row, epoch)):
                    sides[side][index, : len(text)], lengths[side, index] = text, len(text)
        return pair_batch(sides[0], lengths[0], sides[1], lengths[1], rows, self.ends)

    def _spans_of(self, row: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of a chunk: the visible and the hidden tokens, both with the hole pieces."""
        start, size = int(self._starts[row]), int(self._sizes[row])
        hidden, spans = (int(count) for count in hidden_and_spans(np.array(size), self.data.corruption))
        draws = self._draws(epoch, row, size)
        lengths = _composition(draws[: hidden - 1], spans)
        gaps = _composition(draws[hidden - 1 :], spans + 1)  # with two extra tokens: the outer gaps may be empty
        gaps[[0, -1]] -= 1
        tokens = self._tokens.flat[start : start + size]
        parts = np.split(tokens, np.cumsum(np.stack([gaps[:-1], lengths], axis=1).ravel()))
        holes = self._holes[:spans, None]
        seen = [part for gap, hole in zip(parts[:-1:2], holes, strict=True) for part in (gap, hole)] + [parts[-1]]
        written = [part for hole, span in zip(holes, parts[1::2], strict=True) for part in (hole, span)]
        return np.concatenate(seen), np.concatenate(written)


def hidden_and_spans(sizes: np.ndarray, corruption: float) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of hidden tokens and of spans, for chunks of these sizes (1 or more)."""
    hidden = np.clip(np.floor(sizes * corruption + 0.5).astype(np.int64), 1, np.maximum(sizes - 1, 1))
    spans = np.floor(hidden / MEAN_SPAN + 0.5).astype(np.int64)
    return hidden, np.clip(spans, 1, np.minimum(hidden, sizes - hidden + 1))


def holes_needed(data: DataConfig) -> int:
    """The number of hole pieces that `SpanBatches` needs."""
    return int(hidden_and_spans(np.array(_longest_chunk(data)), data.corruption)[1])


def _longest_chunk(data: DataConfig) -> int:
    """Tokens of the longest chunk whose inputs and targets fit into max_len, EOS included. UserError: none fits."""
    if data.max_len < 3:
        raise UserError(
            f"data.max_len={data.max_len} has no room for a hidden token, its hole piece and EOS: make it 3 or more."
        )
    sizes = np.arange(1, 2 * data.max_len)
    return int(sizes[_longer_side(sizes, data.corruption) <= data.max_len].max())


def _longer_side(sizes: np.ndarray, corruption: float) -> np.ndarray:
    """The length of the longer side, EOS included, of chunks of these sizes."""
    hidden, spans = hidden_and_spans(sizes, corruption)
    return np.maximum(sizes - hidden, hidden) + spans + 1


def span_widths(data: DataConfig) -> list[Widths]:
    """For each bucket, the padded lengths of inputs and targets: what its longest chunk needs, in multiples of 8."""
    sizes = np.arange(1, _longest_chunk(data) + 1)
    hidden, spans = hidden_and_spans(sizes, data.corruption)
    lengths = np.stack([sizes - hidden, hidden]) + spans + 1
    widths = []
    for bucket in widths_needed(data):
        fit = lengths[:, lengths.max(axis=0) <= bucket]
        needed = np.minimum(bucket, -(-fit.max(axis=1, initial=1) // 8) * 8)
        widths.append(tuple(needed.tolist()))
    return widths


def _composition(draws: np.ndarray, parts: int) -> np.ndarray:
    """A uniformly random way to write len(draws) + 1 as a sum of `parts` positive numbers."""
    cuts = np.sort(np.argsort(draws, kind="stable")[: parts - 1]) + 1
    return np.diff(np.concatenate([[0], cuts, [len(draws) + 1]]))
