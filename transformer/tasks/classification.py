"""Classification of texts, images and recordings."""

from collections.abc import Sequence
from typing import Any, cast

import jax.numpy as jnp
from jaxtyping import Array, Float

from transformer.config import Config
from transformer.data.batches.base import Batches
from transformer.data.batches.corpus import read_labels
from transformer.data.batches.images import ImageBatches
from transformer.data.batches.labelled import LabelledBatches
from transformer.data.batches.mixed import in_blocks
from transformer.data.batches.recordings import SpeechBatches
from transformer.data.sources.source import Source
from transformer.errors import UserError
from transformer.model.noise import Noise
from transformer.tasks.base import Batch, Task, frames, heard, padded, tokens_of
from transformer.training.losses import RowPair, cross_entropy


class Classification(Task):
    """Predicts one class for each example."""

    families = ("encoder_only",)
    has_classes = True

    def metrics(self, params: Any, batch: Batch, noise: Noise | None, smoothing: float) -> dict[str, RowPair]:
        logits = cast(Array, self.model.apply(params, *self.arguments(batch), noise))
        weights = (batch["example_ids"] >= 0).astype(jnp.float32)
        found = cross_entropy(logits[:, None], batch["labels"][:, None], weights[:, None], smoothing)
        found["accuracy"] = found.pop("token_accuracy")
        return found

    def predict(self, params: Any, batch: Batch) -> Float[Array, "B V"]:
        """The logits of the classes."""
        return cast(Array, self.model.apply(params, *self.arguments(batch)))


class TextClassification(Classification):
    """The class of a text: the field `data.target`."""

    @staticmethod
    def fields(config: Config, source: Source) -> tuple[str, ...]:
        return (source.field(config.data.target),)

    def batches(self, source: Source, split: str) -> Batches:
        labels = read_labels(source, split, self.config.data)
        return in_blocks(LabelledBatches, self._tokens(source, split), labels, **self._common())

    def example(self, rows: int = 1, length: int = 8) -> Batch:
        return padded("inputs", rows=rows, length=length)

    def arguments(self, batch: Batch) -> tuple[Any, ...]:
        return batch["inputs"], tokens_of(batch, "input")


class ImageClassification(Classification):
    """The class of an image."""

    inputs = "image"
    reads_text = False

    def batches(self, source: Source, split: str) -> Batches:
        size, channels = self.model_config.image_size, self.model_config.channels
        return ImageBatches(source, split, image_size=size, channels=channels, **self._common())

    def example(self, rows: int = 1, length: int = 8) -> Batch:
        return {"inputs": jnp.zeros((rows, *self.model_config.image_size, self.model_config.channels))}

    def arguments(self, batch: Batch) -> tuple[Any, ...]:
        return batch["inputs"], None

    def positions(self, widths: Sequence[int]) -> Sequence[int]:
        model = self.model_config
        return [model.image_size[0] * model.image_size[1] // model.patch_size**2 + (model.pooling != "mean")]

    def _check_length(self) -> None:
        (patches,) = self.positions([])
        if self.limit is not None and patches > self.limit:
            raise UserError(f"an image has {patches} patches, and model.max_positions={self.limit}: raise it")


class SpeechClassification(Classification):
    """The class of a recording, from its log-mel frames."""

    inputs = "frames"
    reads_text = False

    def batches(self, source: Source, split: str) -> Batches:
        return SpeechBatches(source, split, mels=self.model_config.channels, **self._common())

    def positions(self, widths: Sequence[int]) -> Sequence[int]:
        return heard(widths)

    def example(self, rows: int = 1, length: int = 8) -> Batch:
        return frames(self.model_config.channels, rows, length)

    def arguments(self, batch: Batch) -> tuple[Any, ...]:
        return batch["inputs"], tokens_of(batch, "input")
