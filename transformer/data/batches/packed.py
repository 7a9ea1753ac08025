"""Documents packed into rows without padding between them, for language models."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from transformer.config import DataConfig
from transformer.data.batches.base import PACKING, Batch, cut, permutation, philox
from transformer.data.batches.facts import Facts
from transformer.data.batches.rows_of_tokens import TokenRows
from transformer.data.batches.tokens import Tokens
from transformer.data.batches.too_long import decide
from transformer.errors import UserError


class Packed(TokenRows):
    """Documents packed into rows of max_len; each takes `added` positions more than it has tokens.

    A document longer than max_len is cut into consecutive chunks, unless `data.too_long` says otherwise: "cut" keeps
    the first. The chunks of a row are numbered 1, 2, ... by its
    segments; positions restart in each. `tokens` are those of one field; empty documents are left out. The packing
    depends on the seed only, the order of the rows on (seed, epoch).
    """

    added: int
    rules = ("chunk", "cut", "drop", "refuse")

    def __init__(self, tokens: Mapping[str, Tokens], *, data: DataConfig, **others: Any) -> None:
        super().__init__(data=data, **others)
        (self._tokens,) = tokens.values()
        whole = np.where(self._tokens.lengths, self._tokens.lengths + self.added, 0)
        self.too_long = decide(whole, data, self.rules, "documents")
        kept = (whole > 0) & ((whole <= data.max_len) | (self.too_long.rule != "drop"))
        self._evaluated = documents = np.flatnonzero(kept)
        lengths = whole[documents]
        if self.too_long.rule == "cut":
            lengths, self.cut_to = np.minimum(lengths, data.max_len), data.max_len
        chunks = -(-lengths // data.max_len)
        number = np.arange(chunks.sum()) - np.repeat(np.cumsum(chunks) - chunks, chunks)
        document, start = np.repeat(documents, chunks), number * data.max_len
        length = np.minimum(data.max_len, np.repeat(lengths, chunks) - start)
        rows = pack(length, data.max_len, self.seed)
        by_row = np.argsort(rows, kind="stable")
        self._document, self._start, self._length = document[by_row], start[by_row], length[by_row]
        # The chunks of row r are first[r], ..., first[r + 1] - 1.
        self._first = np.concatenate([[0], np.cumsum(np.bincount(rows))]) if len(rows) else np.zeros(1, np.int64)
        self._dropped = int((whole > 0).sum()) - len(documents)

    @property
    def evaluated(self) -> np.ndarray:
        return self._evaluated

    @property
    def steps_per_epoch(self) -> int:
        rows = len(self._first) - 1
        if not rows:
            if self._dropped:
                raise UserError(
                    f"None of {len(self._tokens)} documents fits into data.max_len={self.data.max_len}: raise it, or "
                    "leave out data.too_long='drop'."
                )
            raise UserError(f"None of {len(self._tokens)} documents holds a token: give some text.")
        return self.facts.steps

    @property
    def facts(self) -> Facts:
        return self._facts(len(self._first) - 1, len(self._evaluated), self._dropped, int(self._length.sum()))

    def _order(self, epoch: int) -> np.ndarray:
        return permutation(philox(self.seed, epoch), len(self._first) - 1)

    def evaluation(self, max_len: int | None = None) -> Iterator[Batch]:
        """Every chunk exactly once, in the order of the packing, in rows of max_len."""
        del max_len  # nothing is longer than a row
        for rows in cut(np.arange(len(self._first) - 1), self._rows_of(self.data.max_len)):
            yield self._local(self.data.max_len, rows)

    def _blank(self, shape: tuple[int, int], tokens: str, numbers: str) -> Batch:
        """Arrays of padding for the keys of tokens, and of 0 for the others."""
        padding = {key: np.full(shape, self.ends.pad, np.int32) for key in tokens.split()}
        return padding | {key: np.zeros(shape, np.int32) for key in numbers.split()}

    def _filled(self, rows: np.ndarray) -> "Filled":
        """The positions of the tokens of these rows, and the documents that they belong to."""
        first = self._first[np.maximum(rows, 0)]
        counts = np.where(rows >= 0, self._first[np.maximum(rows, 0) + 1] - first, 0)
        row, within = _spread(counts)  # of each chunk: its row, its number in the row
        chunk = first[row] + within
        length = self._length[chunk]
        before = np.cumsum(length) - length  # tokens of the batch before this chunk
        column = before - before[np.maximum(np.arange(len(chunk)) - within, 0)]
        owner, position = _spread(length)  # of each token: its chunk, its position in it
        document = self._document[chunk][owner]
        return Filled(
            where=(row[owner], column[owner] + position),
            position=position,
            segment=within[owner] + 1,
            place=self._start[chunk][owner] + position,
            begin=self._tokens.offsets[document],
            tokens=self._tokens.lengths[document],
        )


class Filled(NamedTuple):
    """The positions of a batch that hold tokens; all arrays but `where` have one entry for each."""

    where: tuple[np.ndarray, np.ndarray]  # rows and columns of the batch
    position: np.ndarray  # position in its chunk
    segment: np.ndarray  # segment of its chunk in the row
    place: np.ndarray  # position in its document, where 0 is BOS
    begin: np.ndarray  # offset of its document in the tokens
    tokens: np.ndarray  # number of tokens of its document


class PackedBatches(Packed):
    """For language models: each document is BOS + tokens + EOS, targets are the next tokens; see `Packed`. Keys:
    target_inputs, targets, target_positions, target_segments [B, L], L = max_len."""

    added = 1  # BOS in the inputs, EOS in the targets

    def _make(self, width: int, rows: np.ndarray) -> Batch:
        filled, flat = self._filled(rows), self._tokens.flat
        place, begin, end = filled.place, filled.begin, filled.tokens
        batch = self._blank((len(rows), width), "target_inputs targets", "target_positions target_segments")
        before, after = flat[begin + np.maximum(place - 1, 0)], flat[begin + np.minimum(place, end - 1)]
        batch["target_inputs"][filled.where] = np.where(place == 0, self.ends.bos, before)
        batch["targets"][filled.where] = np.where(place == end, self.ends.eos, after)
        batch["target_positions"][filled.where] = filled.position
        batch["target_segments"][filled.where] = filled.segment
        return batch


def _spread(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For counts [2, 3]: the owners [0, 0, 1, 1, 1] and the positions [0, 1, 0, 1, 2]."""
    owner = np.repeat(np.arange(len(counts)), counts)
    return owner, np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)


def pack(lengths: np.ndarray, width: int, seed: int) -> np.ndarray:
    """A row for each length (each at most `width`), no row holding more than `width`: best fit, longest first.
    Deterministic; the seed decides between equal lengths. About a microsecond a length."""
    order = permutation(philox(seed, PACKING), len(lengths))
    order = order[np.argsort(-lengths[order], kind="stable")]
    rows = np.zeros(len(lengths), np.int64)
    free: dict[int, list[int]] = {}  # room left -> rows with that much
    rooms = 0  # bit r is set if free[r] has a row, so that the best fit is one bit operation
    count = 0
    for item, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            row = free[room].pop()
            if not free[room]:
                rooms ^= 1 << room
        else:
            room, row = width, count
            count += 1
        rows[item] = row
        if room > length:
            free.setdefault(room - length, []).append(row)
            rooms |= 1 << (room - length)
    return rows
