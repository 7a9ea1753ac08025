"""Outputs of lines (`generate`, `outputs`), streamed output of a single line, and transcripts of recordings.

A line is read as evaluation reads an example. The text of a classifier is cut to `data.max_len`, and a line on stderr
says so; other lines are read whole, unless `data.too_long` is "cut". Where it is "drop" or "refuse", a line longer than
`data.max_len` is refused by its number, and so is one that is longer than a learned position table."""

import itertools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from transformer.errors import UserError
from transformer.tasks import SpeechRecognition, TextClassification, WritingTask
from transformer.tasks.texts import Translation
from transformer.tasks.trained import Trained
from transformer.training.sharding import check_rows
from transformer.writing.classifier import Classifier
from transformer.writing.manner import GREEDY, Manner, Output
from transformer.writing.slices import at_once, side_by_side, slices, width_of
from transformer.writing.writer import Writer, stream


def generate(trained: Trained, lines: list[str], manner: Manner = GREEDY) -> list[str]:
    """The best output for each line, in order; see `outputs`."""
    return [best.text for best, *_ in outputs(trained, lines, manner)]


def outputs(
    trained: Trained, lines: list[str], manner: Manner = GREEDY, batch_size: int = 0, alignments: bool = False
) -> Iterator[list[Output]]:
    """The `manner.nbest` outputs of each line, in order, as they are found; empty lines stay empty.

    `batch_size` lines are decoded and yielded together (0 = all): larger batches fill the slices better and change no
    output. Lines are padded to the widths of `data.buckets` (and multiples of the last). UserError, before anything is
    computed: a line is longer than the model takes, or the task generates no text.
    """
    write, ids = _prepared(trained, lines, manner, alignments)
    size = batch_size or max(len(lines), 1)
    parts = (range(start, min(start + size, len(lines))) for start in range(0, len(lines), size))
    widths = {
        i: width_of(len(ids[i]), trained.config.data.buckets, trained.limit)
        for i, line in enumerate(lines)
        if line.strip()
    }
    found = itertools.chain.from_iterable(of_part(write, part, ids, widths) for part in parts)
    return ([Output("")] * manner.nbest if best is None else best for best in found)


def _prepared(
    trained: Trained, lines: list[str], manner: Manner, alignments: bool = False
) -> tuple[Writer | Classifier, list[list[int]]]:
    """The writer, and the input tokens of each line."""
    task, limit = trained.task, trained.limit
    if isinstance(task, TextClassification):
        if manner != GREEDY or alignments or trained.others:
            raise UserError("a classifier of texts names one class a line: leave out what shapes written text")
        return Classifier(trained), classified(trained, lines)
    if not (isinstance(task, WritingTask) and task.reads_lines):
        raise UserError(f"task {trained.config.task!r} turns no line into another: see python -m transformer.evaluate")
    write = Writer(trained, manner, alignments)
    ids = [task.prompt(tokens) for tokens in trained.tokenizer.encode_batch(lines)]
    if isinstance(task, Translation):
        _check_lengths(trained, [len(tokens) for tokens in ids])
    for number, (line, tokens) in enumerate(zip(lines, ids, strict=True), start=1):
        if limit is not None and len(tokens) > limit:
            raise UserError(
                f"line {number} has {len(tokens)} tokens, and the learned position table ends after {limit}: "
                f"shorten it ({line[:40]!r}...), or train with a larger model.max_positions"
            )
    return write, ids


def classified(trained: Trained, lines: Sequence[str]) -> list[list[int]]:
    """The tokens of lines as a classifier of texts reads them, cut to `data.max_len`; stderr says which were cut."""
    most, tokenizer = trained.config.data.max_len, trained.tokenizer
    ids = tokenizer.encode_batch(lines)
    _check_lengths(trained, [len(tokens) + 2 for tokens in ids])
    long = [number for number, tokens in enumerate(ids, start=1) if len(tokens) > most - 2]
    if long:
        first = ", ".join(map(str, long[:6])) + (", ..." if len(long) > 6 else "")
        told = f"{len(long)} of {len(ids)} lines are cut to data.max_len={most} tokens, as in evaluation: line {first}"
        print(told, file=sys.stderr, flush=True)
    return [[tokenizer.bos_id, *tokens[: most - 2], tokenizer.eos_id] for tokens in ids]


def _check_lengths(trained: Trained, lengths: list[int]) -> None:
    """UserError: a line is longer than `data.max_len`, and `data.too_long` allows no such example."""
    most, rule = trained.config.data.max_len, trained.config.data.too_long
    for number, length in enumerate(lengths, start=1):
        if length > most and rule in ("drop", "refuse"):
            raise UserError(
                f"line {number} has {length} tokens, more than data.max_len={most}, and the model was trained with "
                f"data.too_long={rule!r}, without such examples: shorten it"
            )


def of_part(write: Any, part: range, ids: Mapping[int, Any] | Sequence[Any], widths: Mapping[int, int]) -> list[Any]:
    """What `write` returns for the inputs of a part, computed by width; None for those without one. An input is a list
    of tokens, or an array [length, ...]; `write` maps padded inputs, lengths and numbers to a result for each row."""
    jobs: list[tuple[Any, ...]] = []
    for width in sorted({widths[i] for i in part if i in widths}):
        jobs += slices([i for i in part if widths.get(i) == width], ids, width, write.rows(width))
    found: dict[int, Any] = {}
    for (*_, numbers), written in zip(jobs, _written(write, jobs), strict=True):
        found |= dict(zip(reversed(numbers.tolist()), reversed(written), strict=True))  # the first of repeated rows
    return [found.get(i) for i in part]


def _written(write: Any, jobs: list[tuple[Any, ...]]) -> list[Any]:
    """The result of `write` for each job; the first job of each shape runs alone, to compile it."""
    done = {}
    for n, (tokens, *_) in enumerate(jobs):
        if tokens.shape not in write.compiled:
            done[n] = write(*jobs[n])
            write.compiled.add(tokens.shape)
    rest = [n for n in range(len(jobs)) if n not in done]
    done |= dict(zip(rest, side_by_side(write, [jobs[n] for n in rest], at_once(write.devices)), strict=True))
    return [done[n] for n in range(len(jobs))]


def transcribe(trained: Trained, split: str, manner: Manner = GREEDY) -> list[str]:
    """The texts of the recordings of a split, in order."""
    assert isinstance(trained.task, SpeechRecognition)
    write, texts = Writer(trained, manner), dict[int, str]()
    for batch in trained.task.batches(trained.source, split).evaluation():
        ids = batch["example_ids"]
        check_rows(write.layout, [batch["inputs"].shape[:2]])
        written = write(batch["inputs"], batch["input_lengths"], ids)
        texts |= {int(i): best.text for i, (best, *_) in zip(ids, written, strict=True) if i >= 0}
    return [texts[i] for i in sorted(texts)]


def answer(trained: Trained, line: str, manner: Manner, show: Callable[[str], object]) -> None:
    """Shows the output of one line, and a line break: piece by piece where one device has all parameters, and else when
    it is whole. UserErrors as of `outputs`."""
    write, (ids,) = _prepared(trained, [line], manner)
    if isinstance(write, Writer) and not write.together:
        stream(write, ids, show)
    else:
        show(generate(trained, [line], manner)[0])
    show("\n")
