"""TASKS, name -> class. A task combines data, features, a model family and a loss; training and decoding receive its
functions (init, loss, batches) and know neither models nor data."""

import difflib

from transformer.errors import UserError
from transformer.tasks.base import Beginning, Task, TokenTask, WritingTask
from transformer.tasks.classification import (
    Classification,
    ImageClassification,
    SpeechClassification,
    TextClassification,
)
from transformer.tasks.forecasting import Forecasting
from transformer.tasks.texts import (
    LanguageModel,
    MaskedLanguageModel,
    Prompts,
    SpanCorruption,
    SpeechRecognition,
    Summarization,
    Translation,
)

__all__ = [
    "TASKS",
    "Beginning",
    "Classification",
    "LanguageModel",
    "SpeechRecognition",
    "Task",
    "TextClassification",
    "TokenTask",
    "WritingTask",
    "task_class",
]

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
