"""Batches of recordings as log-mel frames, with classes or texts."""

import array
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from transformer.config import DataConfig
from transformer.data import store
from transformer.data.batches import log_mel
from transformer.data.batches.augmentation import augmented_audio, longest_augmented, masked_frames
from transformer.data.batches.base import Batch
from transformer.data.batches.bucketed import BucketedBatches, Widths
from transformer.data.batches.corpus import tokenize
from transformer.data.batches.targets import target_arrays
from transformer.data.batches.too_long import decide
from transformer.data.caching import ArrayWriter, Key, cache_root, cached, load_array
from transformer.data.sources.side_by_side import in_threads
from transformer.data.sources.source import Examples, Source, check_classes
from transformer.data.store import Stored
from transformer.data.tokenizers import Tokenizer
from transformer.errors import UserError


class SpeechBatches(BucketedBatches):
    """Recordings of similar length, as log-mel frames with mean 0 and deviation 1 in each recording.

    `data.max_len`, `data.buckets` and `data.batch_tokens` count frames of 10 ms. With `data.augment`, `batch` (never
    `evaluation`) changes the speed, adds a pause and noise, and masks a range of bands and one of frames; buckets leave
    room for the longer recordings, which are cut at max_len.

    Keys: inputs [B, T, mels] float32, input_lengths [B] int32; labels [B] int32, the field `label`, or with a
    tokenizer, for the field `data.target`, target_inputs (BOS first) and targets (EOS last) [B, L], with one L for the
    split, and target_lengths [B], int32; example_ids [B], -1 on padding rows.

    A recording longer than max_len is refused unless `data.too_long` says otherwise; one that has a text cannot be cut.
    UserErrors: such a recording, a silent one, a class that `train` does not have.
    """

    noun = "recordings"
    unit = "frames of 10 ms"
    threads = 2  # with data.augment, a batch takes most of the time of a step

    def __init__(
        self,
        source: Source,
        split: str,
        *,
        data: DataConfig,
        mels: int,
        tokenizer: Tokenizer | None = None,
        **others: Any,
    ) -> None:
        self._frames = read_frames(source, split, data, mels)
        self._examples, self._mels = source.split(split), mels
        lengths = np.diff(self._frames.offsets)
        rules = ("refuse", "drop") if tokenizer is not None else ("refuse", "drop", "cut")
        told = decide(lengths, data, rules, f"{self.noun} of {split!r}", self.unit)._replace(noun=self.noun)
        self._texts = None
        if tokenizer is not None:
            (self._texts,) = tokenize(source, split, (data.target,), tokenizer, data).values()
            self._target_width = -(-(int(self._texts.lengths.max()) + 1) // 8) * 8
        elif "label" not in self._examples[0]:
            raise UserError(f"{source.name} has no field 'label': choose a dataset of recordings with classes.")
        else:
            check_classes(source, split, self._frames.labels, read_frames(source, "train", data, mels).labels)
        if data.augment:  # what is within the limit stays within it
            self._audio = _mapped(source, split, data)
            most, rate = np.maximum(lengths, data.max_len), data.sample_rate
            lengths = np.minimum(most, log_mel.frame_count(longest_augmented(self._frames.samples, rate), rate))
        super().__init__(lengths[:, None], data, told=told, **others)

    def batch(self, step: int) -> Batch:
        made = super().batch(step)
        if self.data.augment:
            epoch = step // self.steps_per_epoch
            real = np.flatnonzero(made["example_ids"] >= 0)
            examples = self._audio.many(made["example_ids"][real].tolist())
            frames = [np.zeros((0, self._mels), np.float32)] * len(made["example_ids"])
            rate = self.data.sample_rate
            for row, example in zip(real.tolist(), examples, strict=True):
                number = int(made["example_ids"][row])
                audio = augmented_audio(example["audio"], rate, self.seed, epoch, number)
                whole = log_mel.normalised(log_mel.log_mel(audio, self._mels, rate)[: self.data.max_len])
                frames[row] = masked_frames(whole, self.seed, epoch, number)
            made |= _padded(frames, made["inputs"].shape[1])
        return made

    def _make(self, width: Widths, rows: np.ndarray) -> Batch:
        flat, offsets, labels, _ = self._frames
        frames = [flat[offsets[row] : offsets[row + 1]] if row >= 0 else flat[:0] for row in rows.tolist()]
        if self._rule == "cut":
            most = self.data.max_len
            frames = [log_mel.normalised(own[:most]) if len(own) > most else own for own in frames]
        batch = _padded(frames, width[0]) | {"example_ids": rows.astype(np.int32)}
        if self._texts is not None:
            return batch | target_arrays(self._texts, rows, self._target_width, self.ends)
        return batch | {"labels": np.where(rows >= 0, labels[rows], 0).astype(np.int32)}


def _mapped(source: Source, split: str, data: DataConfig) -> Examples | Stored:
    """Examples whose field `audio` is read from memory-mapped files, at a tenth of the time that records of TFDS take;
    those are copied once."""
    examples = source.split(split)
    if examples.mapped:
        return examples
    key = Key(cache_root(data) / "audio", [source.fingerprint, split], [store, _mapped])

    def make(folder: Path) -> None:
        writer = store.StoreWriter(folder, {"audio": store.Kind("int16", (None,))}, [split])
        for example in tqdm(examples, f"recordings of {split}", disable=None, leave=False):
            writer.add(split, {"audio": [example["audio"]]})
        writer.close()

    return store.Store(cached(key, make)).records(split)


def _padded(frames: list[np.ndarray], width: int) -> Batch:
    inputs = np.zeros((len(frames), width, frames[0].shape[1]), np.float32)
    for row, own in enumerate(frames):
        inputs[row, : len(own)] = own
    return {"inputs": inputs, "input_lengths": np.array([len(own) for own in frames], np.int32)}


class Frames(NamedTuple):
    """The concatenated recordings of a split: recording i is flat[offsets[i]:offsets[i + 1]]."""

    flat: np.ndarray  # float32 [frames, mels], normalised
    offsets: np.ndarray  # int64 [recordings + 1]
    labels: np.ndarray  # int32; 0 where the source has none
    samples: np.ndarray  # int64, samples of each recording


def read_frames(source: Source, split: str, data: DataConfig, mels: int) -> Frames:
    """Log-mel frames of the field `audio` of a split, cached. UserError: it is not of 16-bit samples."""
    source.array("audio")
    examples = source.split(split)
    kind = examples[0]["audio"].dtype
    if kind != np.int16:
        raise UserError(
            f"{source.name} has recordings of type {kind}, not int16 with a full scale of 2**15: convert it."
        )
    inputs = [source.fingerprint, split, mels, data.sample_rate]
    key = Key(cache_root(data) / "frames", inputs, [log_mel, read_frames], ("numpy",))

    def frames_of(example: dict[str, Any]) -> tuple[np.ndarray, int, int]:
        frames = log_mel.normalised(log_mel.log_mel(example["audio"], mels, data.sample_rate))
        return frames, example.get("label", 0), len(example["audio"])

    def make(folder: Path) -> None:
        flat = ArrayWriter(folder / "flat.npy", (mels,), np.float32)
        ends, labels, samples = array.array("q", [0]), array.array("i"), array.array("q")
        told = tqdm(examples, f"frames of {split}", len(examples), disable=None, leave=False)
        for frames, label, count in in_threads(frames_of, told):
            flat.add(frames)
            ends.append(ends[-1] + len(frames))
            labels.append(label)
            samples.append(count)
        flat.close()
        np.save(folder / "offsets.npy", np.array(ends))
        np.save(folder / "labels.npy", np.array(labels))
        np.save(folder / "samples.npy", np.array(samples))

    folder = cached(key, make)
    return Frames(*(load_array(folder / f"{name}.npy") for name in Frames._fields))
