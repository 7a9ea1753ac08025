"""Forecasts of series."""

import dataclasses
from collections.abc import Sequence
from typing import Any, cast

import jax.numpy as jnp
from jaxtyping import Array

from transformer.config import ModelConfig
from transformer.data.batches.base import Batches
from transformer.data.batches.series import SeriesBatches
from transformer.data.sources.source import Source
from transformer.errors import UserError
from transformer.model.noise import Noise
from transformer.tasks.base import Batch, Task
from transformer.training.losses import RowPair, squared_error


class Forecasting(Task):
    """Predicts the next `data.horizon` steps of each variable of a series from `data.max_len` steps."""

    families = ("forecaster",)
    inputs = "series"
    reads_text = False

    def _model_config(self) -> ModelConfig:
        return dataclasses.replace(self.config.model, num_classes=self.config.data.horizon)

    def _check_length(self) -> None:
        model, time = self.model_config, self.config.data.max_len
        if model.patch_size > time:
            raise UserError(
                f"model.patch_size={model.patch_size} is longer than data.max_len={time}: change one of them"
            )

    def batches(self, source: Source, split: str) -> Batches:
        return SeriesBatches(source, split, **self._common())

    def positions(self, widths: Sequence[int]) -> Sequence[int]:
        model = self.model_config
        stride = model.patch_stride or model.patch_size
        return [(self.config.data.max_len + stride - model.patch_size) // stride + 1]

    def example(self, rows: int = 1, length: int = 8) -> Batch:
        return {"inputs": jnp.zeros((rows, self.config.data.max_len, 1))}

    def arguments(self, batch: Batch) -> tuple[Any, ...]:
        return (batch["inputs"],)

    def metrics(self, params: Any, batch: Batch, noise: Noise | None, smoothing: float) -> dict[str, RowPair]:
        forecast = cast(Array, self.model.apply(params, *self.arguments(batch), noise))
        return squared_error(forecast, batch["targets"], batch["example_ids"] >= 0)
