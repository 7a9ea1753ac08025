"""`predict`: what a trained task says of texts, images, recordings and series that are no part of its data."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from transformer.data.batches import log_mel
from transformer.data.batches.images import normalised, scale
from transformer.data.sources.pictures import fitted, read_image
from transformer.data.sources.recordings import read_recording
from transformer.data.sources.side_by_side import in_threads
from transformer.errors import UserError
from transformer.predicting.forecasts import forecasts
from transformer.tasks import Forecasting, ImageClassification, SpeechClassification, TextClassification, WritingTask
from transformer.tasks.texts import SpeechRecognition
from transformer.tasks.trained import Trained
from transformer.writing.classifier import Classifier
from transformer.writing.lines import classified, of_part, outputs
from transformer.writing.manner import GREEDY, Manner
from transformer.writing.slices import rows_of, width_of
from transformer.writing.writer import Writer

Prediction = dict[str, Any]


def predict(
    trained: Trained, inputs: Sequence[Any], manner: Manner = GREEDY, batch_size: int = 64
) -> Iterator[Prediction]:
    """The prediction of each input, in order, as they are found.

    Inputs are lines of text; paths of images, or pixels [H, W, C] uint8; paths of recordings, or samples [T] int16 at
    `data.sample_rate`; paths of files with a series, or values [T, C] in the data's own units. A prediction has

    * of a class: `label`, `probability`, and `probabilities`, class -> probability; None and {} for an empty line;
    * of a text that is written, greedily or as `manner` says: `text`;
    * of a series: its next `data.horizon` steps, column -> list of values in the data's own units, the dates first.

    `batch_size` inputs are read and computed together, which changes no prediction. Nothing is read of the training
    data. UserErrors: an input that cannot be read, or that the model was not trained for; the task predicts none of
    these; an ensemble of what is no text.
    """
    task = trained.task
    if trained.others and not isinstance(task, WritingTask):
        raise UserError("an ensemble writes text, and these runs write none: name one --workdir")
    if manner != GREEDY and not isinstance(task, WritingTask):
        raise UserError(f"task {trained.config.task!r} writes no text: leave out what shapes written text")
    if isinstance(task, Forecasting):
        return forecasts(trained, inputs)
    if isinstance(task, TextClassification):
        return _texts(trained, list(inputs), batch_size)
    if isinstance(task, ImageClassification):
        return _images(trained, inputs, batch_size)
    if isinstance(task, SpeechClassification | SpeechRecognition):
        return _recordings(trained, inputs, manner, batch_size)
    if isinstance(task, WritingTask) and task.reads_lines:
        return ({"text": best.text} for best, *_ in outputs(trained, list(inputs), manner, batch_size))
    raise UserError(
        f"task {trained.config.task!r} predicts hidden parts of texts only: see python -m transformer.evaluate"
    )


class Probabilities(Classifier):
    """Returns the probabilities [V] of the classes of each row of padded inputs. `positions` is their number for a
    width. UserError: they are not numbers."""

    def __init__(self, trained: Trained, named: Callable[[int], str]) -> None:
        super().__init__(trained)
        self._named, self._positions = named, trained.task.positions

    def rows(self, width: int) -> int:
        """Rows of a slice of this width, over all devices."""
        (positions,) = self._positions([width])
        return rows_of(positions) * self._shards

    def __call__(self, inputs: Any, lengths: Any, numbers: Any) -> list[Any]:
        found = np.exp(self.log_probabilities(inputs, lengths).astype(np.float64))
        wrong = ~np.isfinite(found).all(axis=1)
        if wrong.any():
            raise UserError(
                f"the model's prediction for {self._named(int(numbers[wrong.argmax()]))} is not a number (NaN or "
                "infinite), as after a training run that diverged: use an earlier checkpoint, or train again"
            )
        return list(found)


def _in_parts(
    compute: Any, count: int, read: Callable[[int], Any], width: Callable[[int], int], batch_size: int
) -> Iterator[Any]:
    """What `compute` returns for each of `count` inputs, some read at a time; None where `read` returns none."""
    for start in range(0, count, batch_size):
        part = range(start, min(start + batch_size, count))
        arrays = zip(part, in_threads(read, part), strict=True)
        found = {number: array for number, array in arrays if array is not None}
        yield from of_part(compute, part, found, {number: width(len(array)) for number, array in found.items()})


def _labelled(trained: Trained, probabilities: Iterator[Any]) -> Iterator[Prediction]:
    names = trained.classes
    for row in probabilities:
        if row is None:
            yield {"label": None, "probability": None, "probabilities": {}}
        else:
            best = int(row.argmax())
            of_each = dict(zip(names, row.tolist(), strict=True))
            yield {"label": names[best], "probability": float(row[best]), "probabilities": of_each}


def _texts(trained: Trained, lines: list[str], batch_size: int) -> Iterator[Prediction]:
    ids = classified(trained, lines)
    compute = Probabilities(trained, lambda number: f"line {number + 1}")
    found = _in_parts(
        compute, len(ids), lambda number: ids[number] if lines[number].strip() else None, _width(trained), batch_size
    )
    return _labelled(trained, found)


def _width(trained: Trained) -> Callable[[int], int]:
    return lambda length: width_of(length, trained.config.data.buckets, trained.limit)


def _named(inputs: Sequence[Any], number: int) -> str:
    """What errors call an input."""
    return str(inputs[number]) if isinstance(inputs[number], str | Path) else f"input {number + 1}"


def _images(trained: Trained, inputs: Sequence[Any], batch_size: int) -> Iterator[Prediction]:
    model, facts = trained.task.model_config, trained.facts or trained.source.facts
    mean, deviation = scale(facts, model.channels)
    size, rule = tuple(model.image_size), trained.config.data.resize

    def read(number: int) -> np.ndarray:
        given, name = inputs[number], _named(inputs, number)
        pixels = read_image(Path(given), model.channels) if isinstance(given, str | Path) else np.asarray(given)
        if pixels.ndim != 3 or pixels.shape[2] != model.channels or pixels.dtype != np.uint8:
            raise UserError(
                f"{name} is {pixels.dtype} of shape {pixels.shape}, and the model reads uint8 [height, width, "
                f"{model.channels}]: convert it"
            )
        if not rule and pixels.shape[:2] != size:
            raise UserError(
                f"{name} is {pixels.shape[0]} x {pixels.shape[1]}, and the model was trained on images of {size[0]} x "
                f"{size[1]} only: resize it, or train with data.resize"
            )
        return normalised(fitted(pixels, size, rule, name), mean, deviation)

    compute = Probabilities(trained, lambda number: _named(inputs, number))
    return _labelled(trained, _in_parts(compute, len(inputs), read, lambda height: height, batch_size))


def _recordings(trained: Trained, inputs: Sequence[Any], manner: Manner, batch_size: int) -> Iterator[Prediction]:
    data, mels = trained.config.data, trained.task.model_config.channels
    writes = isinstance(trained.task, SpeechRecognition)

    def read(number: int) -> np.ndarray:
        given, name = inputs[number], _named(inputs, number)
        audio = read_recording(Path(given), data.sample_rate) if isinstance(given, str | Path) else np.asarray(given)
        if audio.ndim != 1 or audio.dtype != np.int16 or not audio.any():
            raise UserError(
                f"{name} is {audio.dtype} of shape {audio.shape}, and the model reads int16 [samples] at "
                f"{data.sample_rate} Hz that are not silent: convert it"
            )
        frames = log_mel.log_mel(audio, mels, data.sample_rate)
        if len(frames) > data.max_len:
            if writes or data.too_long != "cut":
                raise UserError(
                    f"{name} has {len(frames)} frames of 10 ms, more than data.max_len={data.max_len}, and the model "
                    "was trained without such recordings: cut it into shorter ones"
                )
            frames = frames[: data.max_len]
        return log_mel.normalised(frames)

    if writes:
        found = _in_parts(Writer(trained, manner), len(inputs), read, _width(trained), batch_size)
        return ({"text": best.text} for best, *_ in found)
    compute = Probabilities(trained, lambda number: _named(inputs, number))
    return _labelled(trained, _in_parts(compute, len(inputs), read, _width(trained), batch_size))
