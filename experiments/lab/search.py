"""Trials of Optuna in place of a grid. It is asked and told, so that its trials are runs of the sweep like all others.

Started again it asks the same: the sampler has a seed, and is told the same losses.
"""

from collections.abc import Mapping
from typing import Any

from transformer.errors import UserError

SPAN = 8.0  # a range that is not given is from the config's value divided by it to the value times it


class Search:
    """One variant's trials, one after another: called with the means of what was tried, it gives the next values. The
    config's own come first, then those of the tree-structured Parzen estimator (Bergstra et al. 2011)."""

    def __init__(self, keys: Mapping[str, tuple[float, tuple[float, float] | None]], trials: int):
        """`keys`: key -> (its value in the config, its range or None)."""
        try:
            import optuna
        except ImportError as error:
            raise UserError(
                "--trials needs Optuna: pip install 'transformer[search]', or leave it out for a grid"
            ) from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.left = trials
        self.pending: Any = None
        self.space: dict[str, Any] = {}
        for key, (value, ends) in keys.items():
            low, high = ends or (value / SPAN, value * SPAN)
            if isinstance(value, int):
                self.space[key] = optuna.distributions.IntDistribution(max(1, round(low)), round(high), log=True)
            else:
                self.space[key] = optuna.distributions.FloatDistribution(low, high, log=True)
        self.study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
        if all(self.space[key].low <= value <= self.space[key].high for key, (value, _) in keys.items()):
            self.study.enqueue_trial({key: value for key, (value, _) in keys.items()})

    def __call__(self, tried: Mapping[tuple[float, ...], float]) -> list[tuple[float, ...]]:
        if self.pending is not None:
            self.study.tell(self.pending, tried[self._values()])
        if not self.left:
            return []
        self.left -= 1
        self.pending = self.study.ask(self.space)
        return [self._values()]

    def _values(self) -> tuple[float, ...]:
        """Of the pending trial, to four digits: they name folders."""
        values = (self.pending.params[key] for key in self.space)
        return tuple(value if isinstance(value, int) else float(f"{value:.4g}") for value in values)
