"""A task with its parameters in memory: what writes, is evaluated and is looked into, wherever it came from."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from transformer.config import Config
from transformer.data.sources.source import Source


@dataclasses.dataclass(frozen=True)
class Trained:
    """A task with its parameters and what was learned from its data. `transformer.runs` reads one from a disk."""

    config: Config
    tokenizer: Any  # None where the task reads no text
    task: Any
    params: Any
    step: int  # of the training, which the parameters are of
    data: Callable[[], Source]  # gives the data that it was trained on; asked only where examples are needed
    facts: Mapping[str, Any] | None = None  # what was learned from that data (`Source.facts`); None = it was not noted
    others: tuple["Trained", ...] = ()  # those that write together with it, as an ensemble

    @property
    def members(self) -> tuple["Trained", ...]:
        """It and those that write with it."""
        return (self, *self.others)

    @property
    def limit(self) -> int | None:
        """The longest sequence that all members take; None = any."""
        return min((m.task.limit for m in self.members if m.task.limit is not None), default=None)

    @property
    def source(self) -> Source:
        """The data that it was trained on."""
        return self.data()

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes as they were at training; where they were not noted, those of the data.

        UserError: the data has another number of classes than the model.
        """
        if self.facts is not None:
            return tuple(self.facts["classes"])
        self.task.check(self.source)
        return self.source.classes
