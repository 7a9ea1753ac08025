"""Metrics of a trained task on a split of its data; `transformer.evaluate` lists them."""

import math
import sys
import zlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from transformer.data.batches.base import Batch
from transformer.data.sources.source import Source
from transformer.errors import UserError
from transformer.evaluation import metrics
from transformer.evaluation.metrics import Measured
from transformer.evaluation.scripts import has_spaces, script_of
from transformer.evaluation.written import written_metrics
from transformer.tasks import Classification, Forecasting, LanguageModel, SpanCorruption, TokenTask, Translation
from transformer.tasks.trained import Trained
from transformer.training import step
from transformer.training.sharding import check_rows, make_layout
from transformer.writing.manner import GREEDY, Manner

BLOCK = 2  # horizons of a bootstrap block: windows less than one horizon apart forecast some of the same values


def loss_metrics(trained: Trained, split: str) -> dict[str, Measured]:
    """The metrics of the task's loss, over every token, example or value of a split, each once.

    Statistics are per example; per row where texts are packed or cut into rows, which are drawn as if independent; and
    per block of windows for series, whose windows overlap. UserError: the split holds no example, or a sequence longer
    than the model takes.
    """
    task = trained.task
    _check(trained, split)
    batches = task.batches(trained.source, split)
    if not len(batches.evaluated):
        raise UserError(f"no example of {split!r} fits into data.max_len: name another --split, or train with a larger")
    if task.limit is not None and (long := batches.longer_than(task.limit)):
        raise UserError(
            f"{long} examples of {split!r} are longer than the {task.limit} positions of the learned table: train "
            "with a larger model.max_positions, or evaluate another --split"
        )
    numbers: list[np.ndarray] = []

    layout = make_layout(trained.sized, axes=task.axes)

    def noted() -> Iterator[Batch]:
        for batch in batches.evaluation():
            check_rows(layout, [max(array.shape[:2] for array in batch.values())])
            numbers.append(_units(task, batch))
            yield batch

    eval_step = step.make_eval_step(task.row_metrics, layout)
    rows = [jax.device_get(each) for each in step.in_turn(eval_step, trained.params, noted())]
    if not rows:
        raise UserError(f"the examples of {split!r} hold nothing to predict: name another --split")
    pairs = {name: np.concatenate([np.stack(each[name]) for each in rows], axis=1) for name in rows[0]}
    units = np.concatenate(numbers)
    if not isinstance(task, TokenTask):
        found = {name: metrics.ratio(*pair) for name, pair in pairs.items() if name not in ("nll", "accuracy")}
        found = metrics.in_order(found, units)
        return metrics.in_blocks(found, BLOCK * task.config.data.horizon) if isinstance(task, Forecasting) else found
    nll, counts = pairs["nll"]
    found = {
        "loss": metrics.ratio(nll, counts),
        "perplexity": metrics.ratio(nll, counts, _perplexity),
        "token_accuracy": metrics.ratio(*pairs["token_accuracy"]),
    }
    found = metrics.in_order(found, units)
    of_text = isinstance(task, LanguageModel | Translation) and not isinstance(task, SpanCorruption)
    return found | _by_size(found["loss"], batches.evaluated, evaluated_texts(trained, split)) if of_text else found


def _check(trained: Trained, split: str) -> None:
    """UserError: the split holds no example."""
    if not len(trained.source.split(split)):
        raise UserError(f"{split!r} holds no example to evaluate on: name another --split")


def _by_size(loss: Measured, numbers: np.ndarray, texts: list[str]) -> dict[str, Measured]:
    """Bits per byte and perplexity per word: for examples, by their own sizes; for rows, which hold parts of texts, by
    those of the whole split, divided in proportion to tokens. `texts` are those of the examples `numbers`."""
    assert loss.units is not None, "they were put in order"
    sizes, words = _sizes(texts)
    (nll, tokens), units = loss.statistics.T, loss.units >> 32
    if not np.array_equal(units, numbers):
        units = loss.units
        sizes, words = (tokens * (each.sum() / tokens.sum()) for each in (sizes, words))
    found = {"bits_per_byte": metrics.ratio(nll, sizes, lambda x: x / math.log(2))._replace(units=units)}
    script = script_of(texts)
    if has_spaces(script):
        return found | {"word_perplexity": metrics.ratio(nll, words, _perplexity)._replace(units=units)}
    reason = f"{script} has no spaces between words: see bits_per_byte"
    return found | {"word_perplexity": metrics.undefined(len(nll), "word_perplexity", reason)._replace(units=units)}


def _units(task: Any, batch: Batch) -> np.ndarray:
    """Unit numbers of the rows of a batch, [B]: the example's index, if rows have one, above 32 bits of a hash of the
    targets, so that the same example with other tokens is another unit; -1 is padding."""
    if not isinstance(task, TokenTask):
        return np.asarray(batch["example_ids"], np.int64)
    said = np.asarray(task.weights(batch))
    texts = [zlib.crc32(row[places].tobytes()) for row, places in zip(batch["targets"], said, strict=True)]
    numbers = np.asarray(batch.get("example_ids", 0), np.int64)
    return np.where(said.any(axis=1), (numbers << 32) | np.array(texts, np.int64), -1)


def _perplexity(nats: float) -> float:
    return math.exp(min(nats, 700.0))


def text_sizes(trained: Trained, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Bytes of UTF-8, and words between white space, of each text: units that do not depend on the tokenizer. The loss
    of EOS counts, but adds no bytes or words."""
    return _sizes(evaluated_texts(trained, split))


def _sizes(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([len(text.encode()) for text in texts]), np.array([len(text.split()) for text in texts])


def evaluated_texts(trained: Trained, split: str) -> list[str]:
    """The texts whose loss is evaluated: without those that `data.too_long` leaves out, and cut where it cuts."""
    batches = trained.task.batches(trained.source, split)
    field = trained.source.field(trained.config.data.target)
    texts = [example[field] for example in trained.source.split(split).many(batches.evaluated.tolist())]
    if batches.cut_to is None:
        return texts
    tokens = trained.tokenizer.encode_batch(texts)
    return [
        trained.tokenizer.decode(ids[: batches.cut_to]) if len(ids) > batches.cut_to else text
        for text, ids in zip(texts, tokens, strict=True)
    ]


def class_metrics(trained: Trained, split: str) -> dict[str, Measured]:
    """Accuracy and macro F1."""
    predict = step.make_eval_step(trained.task.predict, make_layout(trained.sized, axes=trained.task.axes))
    labels, guesses, numbers = [], [], []
    for batch in trained.task.batches(trained.source, split).evaluation():
        labels.append(batch["labels"])
        guesses.append(np.asarray(predict(trained.params, batch)).argmax(axis=1))
        numbers.append(_units(trained.task, batch))
    count = trained.task.model_config.num_classes
    found = metrics.classes(np.concatenate(labels), np.concatenate(guesses), count)
    return metrics.in_order(found, np.concatenate(numbers))


def measured(trained: Trained, split: str = "test", manner: Manner = GREEDY) -> dict[str, Measured]:
    """All metrics of a split, as sums over examples. An ensemble has only those of its generated outputs."""
    _check(trained, split)
    written = written_metrics(trained, split, manner)
    if trained.others:
        if not written:
            raise UserError(
                f"an ensemble writes text, and task {trained.config.task!r} writes none: name one --workdir"
            )
        return written
    found = loss_metrics(trained, split)
    if isinstance(trained.task, Classification):
        found |= class_metrics(trained, split)
    return found | written


def evaluate(trained: Trained, split: str = "test", manner: Manner = GREEDY, resamples: int = 0) -> dict[str, Any]:
    """All metrics of a split, with bootstrap intervals of `resamples` draws; see `python -m transformer.evaluate`."""
    return report(trained, split, measured(trained, split, manner), resamples)


def report(trained: Trained, split: str, found: dict[str, Measured], resamples: int) -> dict[str, Any]:
    """Metrics as plain numbers, the number of tokens or examples, and with `resamples` their intervals."""
    what = {"members": len(trained.members)} if trained.others else {"step": trained.step}
    told: dict[str, Any] = {"split": split, **what} | {name: metric.total for name, metric in found.items()}
    if "loss" in found:
        counted = "tokens" if isinstance(trained.task, TokenTask) else "examples"
        told[counted] = int(found["loss"].statistics[:, 1].sum())
    for metric in found.values():
        told |= metric.about
    told |= _told_of(trained, split)
    if resamples:
        told["intervals"] = {name: metrics.bootstrap(metric, resamples) for name, metric in found.items()}
        few = [name for name, metric in found.items() if metric.value and len(metric.statistics) < metrics.MIN_UNITS]
        if few:
            names = ", ".join(few)
            why = f"fewer than {metrics.MIN_UNITS} examples, rows or blocks to draw from"
            print(f"no interval of {names}: {why}", file=sys.stderr, flush=True)
    return told


def _told_of(trained: Trained, split: str) -> dict[str, Any]:
    """What a reader of a split's figures has to know, also printed: `too_long`, where examples are too long, and
    `same_as`, where the split is the one that the checkpoint and the settings were chosen on."""
    told: dict[str, Any] = {}
    batches = trained.task.batches(trained.source, split)
    long = batches.too_long
    if long is not None and long.longer:
        if len(batches.evaluated) == long.of:  # training leaves them out, and this does not
            long = long._replace(rule="keep" if long.rule == "drop" else long.rule)
        told["too_long"] = long._asdict()
        print(f"{split}: {long}", file=sys.stderr, flush=True)
    if split == "test" and "validation" in trained.source.splits and _same(trained.source, split, "validation"):
        told["same_as"] = "validation"
        said = f"{trained.source.name} has no test part of its own: {split!r} holds the examples of 'validation', so "
        print(said + "that its figures flatter what was chosen there", file=sys.stderr, flush=True)
    return told


def _same(source: Source, one: str, other: str) -> bool:
    """Whether two splits hold the same examples, in the same order."""
    first, second = source.split(one), source.split(other)
    return len(first) == len(second) and all(
        a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)
        for a, b in zip(first, second, strict=True)
    )
