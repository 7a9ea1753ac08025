"""A task with its parameters in memory: the input of generation, evaluation and analysis."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from transformer.config import Config
from transformer.data.sources.source import Source


@dataclasses.dataclass(frozen=True)
class Trained:
    """A task with its parameters and what was learned from its data. `transformer.runs` loads one from disk."""

    config: Config
    tokenizer: Any  # None where the task reads no text
    task: Any
    params: Any
    step: int  # the training step of the parameters
    data: Callable[[], Source]  # returns the training data; called only where examples are needed
    facts: Mapping[str, Any] | None = None  # what was learned from the data (`Source.facts`); None = not recorded
    others: tuple["Trained", ...] = ()  # the other members of an ensemble

    @property
    def members(self) -> tuple["Trained", ...]:
        return (self, *self.others)

    @property
    def sized(self) -> Config:
        """The config, with the sizes of the model that follow from the data."""
        return dataclasses.replace(self.config, model=self.task.model_config)

    @property
    def limit(self) -> int | None:
        """The longest sequence that all members take; None: any."""
        return min((m.task.limit for m in self.members if m.task.limit is not None), default=None)

    @property
    def source(self) -> Source:
        return self.data()

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes as recorded in training; where they were not recorded, those of the data. UserError:
        the data have another number of classes than the model."""
        if self.facts is not None:
            return tuple(self.facts["classes"])
        self.task.check(self.source)
        return self.source.classes
