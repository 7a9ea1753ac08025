"""Rows of consecutive tokens of one long text, without BOS and EOS, for language models."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from transformer.config import DataConfig
from transformer.data.batches.base import Batch, cut, permutation, philox
from transformer.data.batches.facts import Facts
from transformer.data.batches.rows_of_tokens import TokenRows
from transformer.data.batches.tokens import Tokens
from transformer.data.batches.too_long import decide
from transformer.errors import UserError


class ContiguousBatches(TokenRows):
    """Rows of max_len consecutive tokens; targets are the next tokens, also across the ends of rows. No BOS, no EOS.

    In training, the first row of an epoch begins at a random offset of up to about max_len and the rows follow without
    gaps, so that over many epochs every token occurs at every position of a row. `tokens` are those of one field, whose
    documents are concatenated. Where they are several shards (`blocks`), no row crosses the end of one, and its first
    token is no target. Keys: target_inputs, targets [B, L], L = max_len; target_lengths [B].
    """

    rules = ("chunk",)

    def __init__(self, tokens: Mapping[str, Tokens], *, data: DataConfig, **others: Any) -> None:
        super().__init__(data=data, **others)
        (self._tokens,) = tokens.values()
        self.too_long = decide(self._tokens.lengths, data, self.rules, "texts that are read in rows")
        self._targets = len(self._tokens.flat) - 1
        # One row fewer than fit leaves room for max_len different offsets.
        self._rows = max(1, self._targets // data.max_len - 1)

    @property
    def steps_per_epoch(self) -> int:
        if self._targets < 1:
            raise UserError(
                "The text holds fewer than two tokens, so that there is nothing to predict: give a longer one."
            )
        return self.facts.steps

    @property
    def evaluated(self) -> np.ndarray:
        return np.arange(len(self._tokens))

    @property
    def facts(self) -> Facts:
        filled = min(max(self._targets, 0), self._rows * self.data.max_len)
        rows = self._rows if self._targets > 0 else 0
        return self._facts(rows, len(self._tokens), 0, filled)

    def _order(self, epoch: int) -> np.ndarray:
        width, bits = self.data.max_len, philox(self.seed, epoch)
        slack = max(0, self._targets - self._rows * width)
        return int(bits.random_raw()) % (slack + 1) + width * permutation(bits, self._rows)

    def evaluation(self, max_len: int | None = None) -> Iterator[Batch]:
        """Every token but the first exactly once as a target, in the order of the text, in rows of max_len tokens."""
        del max_len  # all rows have one length
        for rows in cut(np.arange(0, self._targets, self.data.max_len), self._rows_of(self.data.max_len)):
            yield self._local(self.data.max_len, rows)

    def _make(self, width: int, rows: np.ndarray) -> Batch:
        """`rows`: the offsets in the text at which they begin."""
        place = rows[:, None] + np.arange(width)
        inside = (rows[:, None] >= 0) & (place < self._targets)
        safe = np.where(inside, place, 0)
        flat, pad = self._tokens.flat, self.ends.pad
        return {
            "target_inputs": np.where(inside, flat[safe], pad).astype(np.int32),
            "targets": np.where(inside, flat[np.minimum(safe + 1, max(self._targets, 0))], pad).astype(np.int32),
            "target_lengths": inside.sum(axis=1).astype(np.int32),
        }
