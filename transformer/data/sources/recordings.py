"""Sources of recordings: spoken digits, and strings of them joined into one recording.

The files may have any format that libsndfile reads (WAV, FLAC, Ogg, MP3), type of sample, rate and number of channels.
Fields of `fsdd`: `audio`, int16 [T] at `data.sample_rate`, `label` (the digit) and `speaker`. Fields of
`digit_strings`: `audio`, `text` (the digits as words, "three one four", so that the word error rate counts digits) and
`speaker`. A name after a slash, as in `fsdd/george`, holds out a speaker: `test` is every recording of the speaker, and
`train` and `validation` are as without the slash, minus the speaker.
"""

import dataclasses
import functools
import io
import logging
import random
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
import tensorflow_datasets as tfds

from transformer.config import DataConfig
from transformer.data.builder import Dataset, array_feature, of_arrays
from transformer.data.sources.files import folder_of, read_bytes
from transformer.errors import UserError

logger = logging.getLogger(__name__)

OF_SPEAKERS = ("fsdd", "digit_strings")  # sources that can hold out a speaker
FORM = "recordings/{digit}_{speaker}_{take}.wav"  # or .flac, .mp3, ...
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

STRINGS = {"train": 6_000, "validation": 300, "test": 300}
DIGITS = (3, 5)  # per string
SILENCE = (20, 5)  # between two digits: a 20th to a fifth of a second
LONGEST = 4.0  # seconds of a string: 399 frames of a hop of 10 ms


@dataclasses.dataclass(frozen=True)
class Recording:
    """One spoken digit: audio int16 [T] at `data.sample_rate`."""

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
            spoken, audio = _string(generator, by_speaker[speaker], data.sample_rate)
            yield {"audio": audio, "text": " ".join(WORDS[digit] for digit in spoken), "speaker": speaker}

    features = _audio() | {"text": tfds.features.Text(), "speaker": tfds.features.Text()}
    return of_arrays("digit_strings", features, {split: functools.partial(examples, split) for split in splits})


def _audio() -> dict[str, Any]:
    return {"audio": array_feature((None,), np.int16)}


def _string(generator: random.Random, takes: Mapping[int, list[Recording]], rate: int) -> tuple[list[int], np.ndarray]:
    """Digits and their joined audio, redrawn while it is longer than LONGEST."""
    while True:
        spoken = generator.choices(sorted(takes), k=generator.randint(*DIGITS))
        parts = [generator.choice(takes[digit]).audio for digit in spoken]
        pauses = [np.zeros(generator.randint(*(rate // part for part in SILENCE)), np.int16) for _ in parts[1:]]
        if sum(map(len, parts + pauses)) <= LONGEST * rate:
            joined = [parts[0], *(piece for pair in zip(pauses, parts[1:], strict=True) for piece in pair)]
            return spoken, np.concatenate(joined)


def _splits(data: DataConfig) -> dict[str, list[Recording]]:
    """The recordings of each split, ordered by digit, speaker and take. UserError: see `read_recordings`."""
    everything = read_recordings(folder_of(data, FORM), data.sample_rate)
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


def read_recordings(folder: Path, rate: int) -> list[Recording]:
    """The recordings of a folder at this rate, ordered by digit, speaker and take. UserErrors: there is none, one is
    there twice, or has a wrong name, or cannot be read (see `read_audio`)."""
    paths = sorted((folder / "recordings").glob("[!.]*"))
    if not paths:
        raise UserError(f"There is no file {folder}/{FORM}: add them or change data.dir.")
    found: dict[tuple[int, str, int], Recording] = {}
    changed = {}
    for path in paths:
        named = re.fullmatch(r"(\d)_(.+)_(\d+)\.\w+", path.name, re.ASCII)
        if not named:
            raise UserError(f"{path} is not named {{digit}}_{{speaker}}_{{take}}.wav: rename or remove it.")
        key = (int(named[1]), named[2], int(named[3]))
        if key in found:
            raise UserError(f"{path} is a second recording of that digit, speaker and take: remove one of them.")
        audio, form = read_audio(path, rate)
        found[key] = Recording(*key, audio)
        if form != (1, rate):
            changed[path] = form
    if changed:
        path, (channels, own) = next(iter(changed.items()))
        logger.warning(
            "%d of %d recordings are not mono at %d Hz (%s: %d channel(s) at %d Hz): their channels are averaged, and "
            "they are resampled", len(changed), len(found), rate, path, channels, own,
        )  # fmt: skip
    return [found[key] for key in sorted(found)]


# A length in a header that is longer than the file, in libsndfile's words.
SHORT = re.compile(r"^ *(?:data|SSND|Data Size|riff) *: (\d+) \(should be (\d+)\)", re.MULTILINE)
SHORT_RF64 = re.compile(r"frame count (?P<held>\d+) does not match value from 'ds64' chunk of (?P<announced>\d+)")
SHORT_OGG = re.compile("Junk after the last page|lacks an end-of-stream bit|ended unexpectedly")
UNKNOWN = 2**31 - 2**16  # what programs that write into a pipe announce at least, since they cannot know the length


def read_recording(path: Path, rate: int) -> np.ndarray:
    """The samples of a recording of any format, int16 [T] at `rate`. UserErrors: see `read_audio`."""
    return read_audio(path, rate)[0]


def read_audio(path: Path, wanted: int) -> tuple[np.ndarray, tuple[int, int]]:
    """The samples of a recording, int16 [T] at the rate `wanted`, and its channels and rate before they were averaged
    and resampled. Full scale is 2**15 whatever the type of the samples; what is mono, at that rate and 16-bit is
    unchanged. UserErrors: no recording of a known format; cut off; float samples beyond full scale, or not finite;
    silent."""
    content = read_bytes(path)
    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            samples = file.read(dtype="float64", always_2d=True)  # full scale is 1
            rate, announced, notes, kind = file.samplerate, file.frames, file.extra_info, file.subtype
    except (soundfile.LibsndfileError, TypeError) as error:
        reason = getattr(error, "error_string", str(error)).strip().rstrip(".")
        raise UserError(
            f"{path} is no recording that can be read ({reason}): convert it, or fetch it again."
        ) from error
    _check_whole(path, len(samples), announced, notes)
    if not len(samples):
        raise UserError(f"{path} has no samples, or a header that was never finished: convert it, or remove it.")
    peak = np.abs(samples).max(initial=0)
    if not peak <= 1 and kind in ("FLOAT", "DOUBLE"):  # decoders of lossy formats may pass 1 a little
        raise UserError(f"{path} has float samples up to {peak:.6g}, and full scale is 1: scale it down.")
    audio = samples.mean(axis=1)
    if rate != wanted:
        audio = soxr.resample(audio, rate, wanted)
    scaled = np.clip(np.round(audio * 2**15), -(2**15), 2**15 - 1).astype(np.int16)
    if not scaled.any():
        raise UserError(f"{path} is silent (all of its {len(scaled)} samples are zero): remove it or record it again.")
    return scaled, (samples.shape[1], rate)


def _check_whole(path: Path, count: int, announced: int, notes: str) -> None:
    """UserError: a file holds fewer samples than its header announces."""
    held, unit = count, "samples"
    if match := SHORT.search(notes):
        announced, held, unit = int(match[1]), int(match[2]), "bytes of samples"
    elif match := SHORT_RF64.search(notes):
        announced = int(match["announced"])
    if SHORT_OGG.search(notes):
        raise UserError(f"{path} is cut off: it has no last page, fetch it again.")
    if held < announced < UNKNOWN:
        raise UserError(f"{path} is cut off: it holds {held} of {announced} {unit}, fetch it again.")
