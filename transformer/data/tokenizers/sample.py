"""The texts that a tokenizer learns from: all of them, or an evenly spaced sample of a large corpus, which is as good.

A kind of tokenizer may hold its texts in memory, so that the sample is bounded in bytes too.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from transformer.data.sources.source import Source
from transformer.data.store import Texts

MOST_EXAMPLES = 1_000_000
MOST_BYTES = 2**28
LONG = 2**22  # bytes of a text
WINDOW = 2**16  # bytes of a sample of a larger corpus that stand together


def texts_of(source: Source, fields: Sequence[str]) -> Iterator[str]:
    """The texts of these fields of the split `train`: of every example, or of evenly spaced ones where there are more
    than MOST_EXAMPLES. Of memory-mapped columns with more than MOST_BYTES in all, evenly spaced parts. A text of more
    than LONG bytes is given in parts too, since the library takes a hundred times the memory of each."""
    examples = source.split("train")
    columns = [examples.texts(field) for field in fields]
    stored = [column for column in columns if column is not None]
    size = sum(len(column.values) for column in stored)
    if len(stored) == len(fields) and (size > MOST_BYTES or any(map(_has_long, stored))):
        for column in stored:
            yield from windows(column, max(1, min(MOST_BYTES, size) * len(column.values) // size // WINDOW))
        return
    stride = -(-len(examples) // MOST_EXAMPLES)
    for index in range(0, len(examples), max(stride, 1)):
        example = examples[index]
        for field in fields:
            yield example[field]


def _has_long(column: Texts) -> bool:
    return bool(np.diff(column.ends, prepend=0).max(initial=0) > LONG)


def windows(column: Texts, count: int) -> Iterator[str]:
    """The texts in `count` evenly spaced windows of a column: those that begin in one, and what stands in it of a text
    that is longer than a window."""
    for start in np.linspace(0, len(column.values), count, endpoint=False, dtype=np.int64).tolist():
        number = int(np.searchsorted(column.ends, start, side="right"))
        place = start if int(column.ends[number]) - start > WINDOW else column.start(number)
        content, begin = column.read(place, place + WINDOW), place
        while begin < place + len(content):
            end = int(column.ends[number])
            # A character that is cut at either end is left out.
            yield content[begin - place : end - place].decode("utf-8", "ignore")
            number, begin = number + 1, end
