"""What a trained task is worth on a split of its data; which metrics, says `python -m transformer.evaluate`."""

import math
import sys
import zlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from transformer.data.batches.base import Batch
from transformer.errors import UserError
from transformer.evaluation import metrics
from transformer.evaluation.metrics import Measured
from transformer.tasks import Classification, Forecasting, LanguageModel, SpanCorruption, TokenTask, Translation
from transformer.tasks.trained import Trained
from transformer.training import step
from transformer.training.sharding import make_layout
from transformer.writing.lines import generate, transcribe
from transformer.writing.manner import GREEDY, Manner

BLOCK = 2  # horizons of windows that are drawn together: those less than one apart forecast some of the same values


def loss_metrics(trained: Trained, split: str) -> dict[str, Measured]:
    """What the loss of the task counts, over every token, example or value of a split, each once.

    Statistics are of examples; where texts are packed or cut into rows, of rows, which are drawn as if neighbours had
    nothing in common; and of series, whose windows overlap, of blocks of windows.

    Raises UserError where the split holds no example, or a sequence longer than the model takes.
    """
    task = trained.task
    if not len(trained.source.split(split)):
        raise UserError(f"{split!r} holds no example to evaluate on: name another --split")
    batches = task.batches(trained.source, split)
    if task.limit is not None and (long := batches.too_long(task.limit)):
        raise UserError(
            f"{long} examples of {split!r} are longer than the {task.limit} positions of the learned table: train "
            "with a larger model.max_positions, or evaluate another --split"
        )
    numbers: list[np.ndarray] = []

    def noted() -> Iterator[Batch]:
        for batch in batches.evaluation():
            numbers.append(_units(task, batch))
            yield batch

    eval_step = step.make_eval_step(task.row_metrics, make_layout(trained.config))
    rows = [jax.device_get(each) for each in step.in_turn(eval_step, trained.params, noted())]
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
    return found | _by_size(found["loss"], *text_sizes(trained, split)) if of_text else found


def _by_size(loss: Measured, sizes: np.ndarray, words: np.ndarray) -> dict[str, Measured]:
    """The cost of a text a byte and a word: of each example by its own size; of rows, which hold parts of texts, by
    those of the whole split, shared out by tokens."""
    assert loss.units is not None, "they were put in order"
    (nll, tokens), units = loss.statistics.T, loss.units >> 32
    if not np.array_equal(units, np.arange(len(sizes))):
        units = loss.units
        sizes, words = (tokens * (each.sum() / tokens.sum()) for each in (sizes, words))
    return {
        "bits_per_byte": metrics.ratio(nll, sizes, lambda x: x / math.log(2))._replace(units=units),
        "word_perplexity": metrics.ratio(nll, words, _perplexity)._replace(units=units),
    }


def _units(task: Any, batch: Batch) -> np.ndarray:
    """Which examples the rows of a batch are, [B]: the number of the example, if rows have one, above 32 bits of what
    is to be said of it, so that the same example in other tokens is another; -1 is padding."""
    if not isinstance(task, TokenTask):
        return np.asarray(batch["example_ids"], np.int64)
    said = np.asarray(task.weights(batch))
    texts = [zlib.crc32(row[places].tobytes()) for row, places in zip(batch["targets"], said, strict=True)]
    numbers = np.asarray(batch.get("example_ids", 0), np.int64)
    return np.where(said.any(axis=1), (numbers << 32) | np.array(texts, np.int64), -1)


def _perplexity(nats: float) -> float:
    return math.exp(min(nats, 700.0))


def text_sizes(trained: Trained, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Bytes of UTF-8, and words between white space, of each text: units of cost that do not depend on the tokenizer.
    The ends of the texts are counted in the cost and not in the units."""
    field = trained.source.field(trained.config.data.target)
    texts = [example[field] for example in trained.source.split(split)]
    return np.array([len(text.encode()) for text in texts]), np.array([len(text.split()) for text in texts])


def class_metrics(trained: Trained, split: str) -> dict[str, Measured]:
    """Accuracy and macro F1."""
    predict = jax.jit(trained.task.predict)
    labels, guesses, numbers = [], [], []
    for batch in trained.task.batches(trained.source, split).evaluation():
        labels.append(batch["labels"])
        guesses.append(np.asarray(predict(trained.params, batch)).argmax(axis=1))
        numbers.append(_units(trained.task, batch))
    count = trained.task.model_config.num_classes
    found = metrics.classes(np.concatenate(labels), np.concatenate(guesses), count)
    return metrics.in_order(found, np.concatenate(numbers))


def written_metrics(trained: Trained, split: str, manner: Manner = GREEDY) -> dict[str, Measured]:
    """What the task's outputs are worth; nothing for tasks that write none."""
    source, data, task = trained.source, trained.config.data, trained.config.task
    if task not in ("translation", "summarization", "speech_recognition", "prompts"):
        return {}
    examples = list(source.split(split))
    if task == "speech_recognition":
        truths = [example[source.field(data.target)] for example in examples]
        return metrics.transcripts(transcribe(trained, split, manner), truths)
    if task == "prompts":
        outputs = generate(trained, [example["prompt"] for example in examples], manner)
        kinds = ["sums" if "+" in e["prompt"] else "words" for e in examples]
        return metrics.answers(outputs, [e["answer"] for e in examples], kinds)
    text, target = source.pair(data)
    outputs = generate(trained, [example[text] for example in examples], manner)
    if task == "translation":
        return metrics.translations(outputs, [example[target] for example in examples])
    return metrics.summaries(outputs, [references(example, target) for example in examples])


def references(example: dict[str, Any], target: str) -> list[str]:
    """All summaries of an example; some datasets have several, a line each."""
    return example["references"].splitlines() if "references" in example else [example[target]]


def measured(trained: Trained, split: str = "test", manner: Manner = GREEDY) -> dict[str, Measured]:
    """All metrics of a split, as sums over examples. An ensemble has those of what it writes alone."""
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
    """All metrics of a split, each with an interval from so many resamples; see `python -m transformer.evaluate`."""
    return report(trained, split, measured(trained, split, manner), resamples)


def report(trained: Trained, split: str, found: dict[str, Measured], resamples: int) -> dict[str, Any]:
    """Metrics as plain numbers: the values, what they are of, and with `resamples` their intervals."""
    what = {"members": len(trained.members)} if trained.others else {"step": trained.step}
    told: dict[str, Any] = {"split": split, **what} | {name: metric.total for name, metric in found.items()}
    if "loss" in found:
        counted = "tokens" if isinstance(trained.task, TokenTask) else "examples"
        told[counted] = int(found["loss"].statistics[:, 1].sum())
    if "bleu" in found:
        told |= metrics.signatures()
    if resamples:
        told["intervals"] = {name: metrics.bootstrap(metric, resamples) for name, metric in found.items()}
        few = [name for name, metric in found.items() if len(metric.statistics) < metrics.MIN_UNITS]
        if few:
            names = ", ".join(few)
            why = f"fewer than {metrics.MIN_UNITS} examples, rows or blocks to draw from"
            print(f"no interval of {names}: {why}", file=sys.stderr, flush=True)
    return told
