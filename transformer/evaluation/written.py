"""Metrics of what a task writes: JUDGES, the row that `WritingTask.judged_by` names."""

from collections.abc import Callable
from typing import Any

from transformer.evaluation import metrics
from transformer.evaluation.metrics import Measured
from transformer.tasks import WritingTask
from transformer.tasks.trained import Trained
from transformer.writing.lines import generate, transcribe
from transformer.writing.manner import GREEDY, Manner

Judge = Callable[[Trained, str, Manner], dict[str, Measured]]


def examples_of(trained: Trained, split: str) -> list[dict[str, Any]]:
    """The examples of a split that `data.too_long` does not leave out."""
    numbers = trained.task.batches(trained.source, split).evaluated
    return trained.source.split(split).many(numbers.tolist())


def _translations(trained: Trained, split: str, manner: Manner) -> dict[str, Measured]:
    source, target = trained.source.pair(trained.config.data)
    examples = examples_of(trained, split)
    outputs = generate(trained, [example[source] for example in examples], manner)
    return metrics.translations(outputs, [example[target] for example in examples])


def _summaries(trained: Trained, split: str, manner: Manner) -> dict[str, Measured]:
    source, target = trained.source.pair(trained.config.data)
    examples = examples_of(trained, split)
    outputs = generate(trained, [example[source] for example in examples], manner)
    return metrics.summaries(outputs, [references(example, target) for example in examples])


def _transcripts(trained: Trained, split: str, manner: Manner) -> dict[str, Measured]:
    field = trained.source.field(trained.config.data.target)
    truths = [example[field] for example in examples_of(trained, split)]
    return metrics.transcripts(transcribe(trained, split, manner), truths)


def _answers(trained: Trained, split: str, manner: Manner) -> dict[str, Measured]:
    examples = examples_of(trained, split)
    outputs = generate(trained, [example["prompt"] for example in examples], manner)
    kinds = ["sums" if "+" in example["prompt"] else "words" for example in examples]
    return metrics.answers(outputs, [example["answer"] for example in examples], kinds)


JUDGES: dict[str, Judge] = {
    "translations": _translations,
    "summaries": _summaries,
    "transcripts": _transcripts,
    "answers": _answers,
    "nothing": lambda trained, split, manner: {},  # any continuation may be right
}


def written_metrics(trained: Trained, split: str, manner: Manner = GREEDY) -> dict[str, Measured]:
    """The metrics of generated outputs; empty for tasks that generate none."""
    return JUDGES[trained.task.judged_by](trained, split, manner) if isinstance(trained.task, WritingTask) else {}


def references(example: dict[str, Any], target: str) -> list[str]:
    """All reference summaries of an example; some datasets have several, one per line."""
    return example["references"].splitlines() if "references" in example else [example[target]]
