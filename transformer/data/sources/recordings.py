"""Sources of recordings: spoken digits, and strings of them joined into one recording.

Fields of `fsdd`: `audio`, int16 [T] at 8 kHz, `label` (the digit) and `speaker`. Fields of `digit_strings`: `audio`,
`text` (the digits as words, "three one four", so that the word error rate counts digits) and `speaker`. A name after a
slash, as in `fsdd/george`, holds out a speaker: `test` is every recording of the speaker, and `train` and `validation`
are as without the slash, minus the speaker.
"""

import dataclasses
import functools
import io
import random
import re
import wave
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from transformer.config import DataConfig
from transformer.data.builder import Dataset, array_feature, of_arrays
from transformer.data.sources.files import folder_of, read_bytes
from transformer.errors import UserError

RATE = 8_000  # samples a second
OF_SPEAKERS = ("fsdd", "digit_strings")  # sources that can hold out a speaker
FORM = "recordings/{digit}_{speaker}_{take}.wav"
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

STRINGS = {"train": 6_000, "validation": 300, "test": 300}
DIGITS = (3, 5)  # per string
SILENCE = (RATE // 20, RATE // 5)  # samples between two digits: 50 to 200 ms
LONGEST = 4 * RATE  # samples of a string: 399 frames of a hop of 10 ms


@dataclasses.dataclass(frozen=True)
class Recording:
    """One spoken digit: audio int16 [T] at 8 kHz."""

    digit: int
    speaker: str
    take: int
    audio: np.ndarray


def fsdd(data: DataConfig) -> Dataset:
    """The Free Spoken Digit Dataset (Jackson et al., 2018) of `data.dir`: 2,400, 300 and 300 recordings of six
    speakers. Takes 0 to 4 are `test`, as its authors define it, takes 5 to 9 `validation`, the rest `train`."""
    splits = _splits(data)

    def examples(split: str) -> Iterator[dict[str, Any]]:
        for recording in splits[split]:
            yield {"audio": recording.audio, "label": recording.digit, "speaker": recording.speaker}

    features = _audio() | {"label": tfds.features.ClassLabel(names=list(WORDS)), "speaker": tfds.features.Text()}
    return of_arrays("fsdd", features, {split: functools.partial(examples, split) for split in splits})


def digit_strings(data: DataConfig) -> Dataset:
    """Strings of three to five digits with pauses, each from recordings of one speaker and one split of `fsdd`: 6,000,
    300 and 300 strings of at most four seconds, the same on every machine. The speakers alternate, and digits, takes
    and pauses are drawn uniformly."""
    splits = _splits(data)

    def examples(split: str) -> Iterator[dict[str, Any]]:
        by_speaker: dict[str, dict[int, list[Recording]]] = {}
        for recording in splits[split]:
            by_speaker.setdefault(recording.speaker, {}).setdefault(recording.digit, []).append(recording)
        speakers = list(by_speaker)
        generator = random.Random(f"digit strings: {split}")
        for number in range(STRINGS[split]):
            speaker = speakers[number % len(speakers)]
            spoken, audio = _string(generator, by_speaker[speaker])
            yield {"audio": audio, "text": " ".join(WORDS[digit] for digit in spoken), "speaker": speaker}

    features = _audio() | {"text": tfds.features.Text(), "speaker": tfds.features.Text()}
    return of_arrays("digit_strings", features, {split: functools.partial(examples, split) for split in splits})


def _audio() -> dict[str, Any]:
    return {"audio": array_feature((None,), np.int16)}


def _string(generator: random.Random, takes: Mapping[int, list[Recording]]) -> tuple[list[int], np.ndarray]:
    """Digits and their joined audio, redrawn while it is longer than LONGEST."""
    while True:
        spoken = generator.choices(sorted(takes), k=generator.randint(*DIGITS))
        parts = [generator.choice(takes[digit]).audio for digit in spoken]
        pauses = [np.zeros(generator.randint(*SILENCE), np.int16) for _ in parts[1:]]
        if sum(map(len, parts + pauses)) <= LONGEST:
            joined = [parts[0], *(piece for pair in zip(pauses, parts[1:], strict=True) for piece in pair)]
            return spoken, np.concatenate(joined)


def _splits(data: DataConfig) -> dict[str, list[Recording]]:
    """The recordings of each split, ordered by digit, speaker and take. UserError: see `read_recordings`."""
    everything = read_recordings(folder_of(data, FORM))
    held_out = data.name.partition("/")[2]
    speakers = sorted({recording.speaker for recording in everything})
    if held_out and (held_out not in speakers or len(speakers) < 2):
        raise UserError(f"{data.name} holds out a speaker that is not one of several: choose of {', '.join(speakers)}.")
    splits: dict[str, list[Recording]] = {"train": [], "validation": [], "test": []}
    for recording in everything:
        split = "test" if recording.take < 5 else "validation" if recording.take < 10 else "train"
        if held_out and recording.speaker == held_out:
            splits["test"].append(recording)
        elif not held_out or split != "test":
            splits[split].append(recording)
    for split, found in splits.items():
        if not found:
            takes = "takes 0-4 are test, 5-9 validation, all others train"
            raise UserError(f"{data.dir} has no recording for the split {split!r}: add some ({takes}).")
    return splits


def read_recordings(folder: Path) -> list[Recording]:
    """The recordings of a folder, ordered by digit, speaker and take. UserErrors: there is none, or one has a wrong
    name or format, is cut off or silent."""
    paths = sorted((folder / "recordings").glob("*.wav"))
    if not paths:
        raise UserError(f"There is no file {folder}/{FORM}: add them or change data.dir.")
    found = []
    for path in paths:
        named = re.fullmatch(r"(\d)_(.+)_(\d+)\.wav", path.name)
        if not named:
            raise UserError(f"{path} is not named {{digit}}_{{speaker}}_{{take}}.wav: rename or remove it.")
        found.append(Recording(int(named[1]), named[2], int(named[3]), read_wav(path)))
    return sorted(found, key=lambda recording: (recording.digit, recording.speaker, recording.take))


def read_wav(path: Path) -> np.ndarray:
    """The samples of a WAV file, int16 [T]. UserError: not mono, 8 kHz and 16 bit; cut off; silent."""
    try:
        with wave.open(io.BytesIO(read_bytes(path))) as reader:
            channels, width, rate, count = reader.getparams()[:4]
            content = reader.readframes(count)
    except (wave.Error, EOFError) as error:
        raise UserError(
            f"{path} is no whole WAV file ({str(error) or 'it ends too early'}): fetch it again."
        ) from error
    if (channels, width, rate) != (1, 2, RATE):
        raise UserError(
            f"{path} has {channels} channel(s) of {8 * width} bit at {rate} Hz, not one of 16 bit at {RATE} Hz: "
            "convert it, for example with sox."
        )
    if len(content) != 2 * count:
        raise UserError(f"{path} is cut off: it holds {len(content) // 2} of {count} samples, fetch it again.")
    audio = np.frombuffer(content, "<i2").astype(np.int16)
    if not audio.any():
        raise UserError(f"{path} is silent (all of its {count} samples are zero): remove it or record it again.")
    return audio
