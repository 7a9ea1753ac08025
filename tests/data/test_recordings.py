import dataclasses
import gzip
import io
import itertools
import re
import struct
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.signal
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from transformer.config import DataConfig
from transformer.data.batches import log_mel
from transformer.data.batches import recordings as recordings_of_batches
from transformer.data.batches.augmentation import augmented_audio, longest_augmented, masked_frames
from transformer.data.batches.recordings import SpeechBatches, read_frames
from transformer.data.builder import array_feature, of_arrays, prepared
from transformer.data.sources import load_source, recordings
from transformer.data.sources.built import from_builder
from transformer.data.sources.source import Examples, Source
from transformer.data.sources.stored import from_store
from transformer.data.store import Kind, Store, Stored, StoreWriter
from transformer.data.tokenizers import TRAINED, Ends
from transformer.data.tokenizers.training import load_or_train
from transformer.errors import UserError

SPLITS = ("train", "validation", "test")
DIGITS, SPEAKERS, TAKES = (1, 4, 7), ("ann", "bo_b"), (0, 3, 5, 9, 10, 11, 40)
MELS = 13


def samples(digit: int, speaker: str, take: int) -> np.ndarray:
    """400 to 1,300 samples that no other recording has."""
    random = np.random.default_rng([digit, len(speaker), take])
    return (random.normal(size=random.integers(400, 1301)) * 1000).astype(np.int16)


def write_wav(path: Path, audio: np.ndarray, rate: int = 8000, channels: int = 1, width: int = 2) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as writer:
        writer.setparams((channels, width, rate, 0, "NONE", ""))
        writer.writeframes(audio.tobytes())


def write_fsdd(folder: Path) -> None:
    for digit, speaker, take in itertools.product(DIGITS, SPEAKERS, TAKES):
        write_wav(folder / "recordings" / f"{digit}_{speaker}_{take}.wav", samples(digit, speaker, take))


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recordings, "STRINGS", {"train": 41, "validation": 12, "test": 13})
    monkeypatch.setattr(recordings, "LONGEST", 9_000 / 8000)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("fsdd")
    write_fsdd(made)
    return made


def config(folder: Path | str, cache: Path, name: str = "fsdd", **changes: object) -> DataConfig:
    sizes = {"max_len": 120, "buckets": (8, 12, 40, 128), "batch_tokens": 96, "row_multiple": 4}
    return DataConfig(
        name=name, dir=str(folder), cache=str(cache), source="", target="text", vocab_size=280, **sizes | changes
    )


@pytest.fixture
def data(folder: Path, cache: Path) -> DataConfig:
    return config(folder, cache)


@pytest.fixture
def source(data: DataConfig) -> Source:
    return load_source(data)


def split_of(take: int) -> str:
    return "test" if take < 5 else "validation" if take < 10 else "train"


def joined(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key])
        assert a[key].dtype == b[key].dtype == (np.float32 if key == "inputs" else np.int32)


# --- Sources


def test_fsdd_is_split_by_the_take(source: Source) -> None:
    assert (source.splits, source.fields, source.arrays) == (SPLITS, ("speaker",), ("audio",))
    assert source.classes[7] == "seven"
    for split in SPLITS:
        expected = {
            (digit, speaker): sorted(samples(digit, speaker, t).tobytes() for t in TAKES if split_of(t) == split)
            for digit, speaker in itertools.product(DIGITS, SPEAKERS)
        }
        found: dict[tuple[int, str], list[bytes]] = {}
        for example in source.split(split):
            assert example["audio"].dtype == np.int16
            found.setdefault((int(example["label"]), example["speaker"]), []).append(example["audio"].tobytes())
        assert {key: sorted(audios) for key, audios in found.items()} == expected


def test_a_held_out_speaker(source: Source, folder: Path, cache: Path) -> None:
    held = load_source(config(folder, cache, "fsdd/bo_b"))
    everything = {split: {e["audio"].tobytes(): e["speaker"] for e in source.split(split)} for split in SPLITS}
    for split in ("train", "validation"):
        found = {example["audio"].tobytes() for example in held.split(split)}
        assert found == {audio for audio, speaker in everything[split].items() if speaker != "bo_b"}
    tested = {example["audio"].tobytes() for example in held.split("test")}
    assert tested == {audio for part in everything.values() for audio, speaker in part.items() if speaker == "bo_b"}
    assert held.fingerprint != source.fingerprint
    with pytest.raises(UserError, match="holds out a speaker that is not one of several: choose of ann, bo_b"):
        load_source(config(folder, cache, "fsdd/eve"))


@pytest.mark.parametrize("name", ["digit_strings", "digit_strings/ann"])
def test_strings_are_joined_from_recordings_of_one_speaker_and_split(name: str, folder: Path, cache: Path) -> None:
    source = load_source(config(folder, cache, name))
    assert source.fields == ("text", "speaker")
    singles = load_source(config(folder, cache, name.replace("digit_strings", "fsdd")))
    words = {recordings.WORDS[digit]: digit for digit in range(10)}
    for split, count in recordings.STRINGS.items():
        takes: dict[tuple[str, int], list[np.ndarray]] = {}
        for example in singles.split(split):
            takes.setdefault((example["speaker"], int(example["label"])), []).append(example["audio"])
        examples = list(source.split(split))
        assert len(examples) == count
        lengths = set()
        for example in examples:
            spoken = [words[word] for word in example["text"].split(" ")]
            assert len(example["audio"]) <= recordings.LONGEST * 8000
            assert _parses(example["audio"], [takes[example["speaker"], digit] for digit in spoken])
            lengths.add(len(spoken))
        assert lengths == {3, 4, 5}
        assert {example["speaker"] for example in examples} == {speaker for speaker, _ in takes}
    assert load_source(config(folder, cache, name)).fingerprint == source.fingerprint


def _parses(audio: np.ndarray, choices: list[list[np.ndarray]]) -> bool:
    """Whether audio is one of the first choices, a pause of 50 to 200 ms, one of the second ones, and so on."""
    for take in choices[0]:
        rest = audio[len(take) :]
        if not np.array_equal(audio[: len(take)], take):
            continue
        if len(choices) == 1:
            if not len(rest):
                return True
            continue
        pause = int(np.argmax(rest != 0))  # a pause may end within zeros of the next recording
        for zeros in range(max(400, pause - 10), min(1600, pause) + 1):
            if not rest[:zeros].any() and _parses(rest[zeros:], choices[1:]):
                return True
    return False


def of(audio: np.ndarray, **form: int) -> bytes:
    path = io.BytesIO()
    with wave.open(path, "wb") as writer:
        writer.setparams((form.get("channels", 1), form.get("width", 2), form.get("rate", 8000), 0, "NONE", ""))
        writer.writeframes(audio.tobytes())
    return path.getvalue()


def encoded(audio: np.ndarray, container: str, kind: str, rate: int = 8000) -> bytes:
    path = io.BytesIO()
    soundfile.write(path, audio, rate, format=container, subtype=kind)
    return path.getvalue()


def piped(audio: np.ndarray, length: int) -> bytes:
    """As written into a pipe: the lengths in the header are not known."""
    content = of(audio)
    return content[:4] + struct.pack("<I", length) + content[8:40] + struct.pack("<I", length) + content[44:]


AUDIO = np.arange(1, 801, dtype=np.int16)
NOISE = np.random.default_rng(0).normal(size=40_000) / 9
BAD: dict[str, tuple[bytes, str]] = {
    "cut off": (of(AUDIO)[:-501], "is cut off: it holds 1099 of 1600 bytes of samples"),
    "nothing but a header": (of(AUDIO)[:44], "is cut off: it holds 0 of 1600 bytes of samples"),
    "cut off in the header": (of(AUDIO)[:20], "is no recording that can be read"),
    "empty": (b"", "is no recording that can be read"),
    "text": (b"not a recording at all, but a text", r"is no recording that can be read \(Format not recognised\)"),
    "silent": (of(np.zeros(800, np.int16)), r"is silent \(all of its 800 samples are zero\)"),
    "no samples": (of(AUDIO[:0]), "has no samples"),
    "never closed": (piped(AUDIO, 0), "has no samples, or a header that was never finished: convert it"),
    "16-bit values as floats": (encoded(AUDIO.astype(np.float32), "WAV", "FLOAT"), "has float samples up to 800, and"),
    "a hole": (encoded(np.array([0.5, np.nan, 0.1]), "WAV", "DOUBLE"), "has float samples up to nan, and"),
    "opposite channels": (encoded(np.stack([AUDIO, -AUDIO], 1), "WAV", "PCM_16"), "is silent"),
    "FLAC, cut off": (encoded(AUDIO, "FLAC", "PCM_16")[:-99], "is no recording that can be read"),
    "Ogg, cut off": (encoded(NOISE, "OGG", "VORBIS")[:-1], "is cut off: it has no last page"),
    "Opus, cut in half": (encoded(NOISE, "OGG", "OPUS")[:-7000], "is cut off: it has no last page"),
    "MP3, cut off": (
        encoded(np.tile(AUDIO, 9), "MP3", "MPEG_LAYER_III")[:-999],
        r"is cut off: it holds \d+ of 7200 samples",
    ),
    "AIFF, cut off": (encoded(AUDIO, "AIFF", "PCM_16")[:-500], "is cut off: it holds 1108 of 1608 bytes of samples"),
    "RF64, cut off": (encoded(AUDIO, "RF64", "PCM_16")[:-500], "is cut off: it holds 550 of 800 samples"),
    "W64, cut off": (encoded(AUDIO, "W64", "PCM_16")[:-500], "is cut off"),
    "AU, cut off": (encoded(AUDIO, "AU", "PCM_16")[:-500], "is cut off: it holds 1100 of 1600 bytes of samples"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_recordings(case: str, tmp_path: Path) -> None:
    content, message = BAD[case]
    path = tmp_path / "recordings" / "1_ann_0.wav"
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"1_ann_0\.wav {message}") as caught:
        load_source(config(tmp_path, tmp_path / "cache"))
    assert "\n" not in str(caught.value)


LOUD = samples(1, "x", 0) * 8
EXACT: dict[str, bytes] = {  # 16-bit samples, or more exact ones of the same values
    "WAV": of(LOUD),
    "gzipped": gzip.compress(of(LOUD)),
    "extensible": encoded(LOUD, "WAVEX", "PCM_16"),
    "24 bit": encoded(LOUD, "WAV", "PCM_24"),
    "32 bit": encoded(LOUD, "WAV", "PCM_32"),
    "float": encoded(LOUD / 2**15, "WAV", "FLOAT"),
    "double": encoded(LOUD / 2**15, "WAV", "DOUBLE"),
    "big-endian": encoded(LOUD, "AIFF", "PCM_16"),
    "FLAC": encoded(LOUD, "FLAC", "PCM_16"),
    "RF64": encoded(LOUD, "RF64", "PCM_16"),
    "two equal channels": encoded(np.stack([LOUD, LOUD], 1), "WAV", "PCM_16"),
    "piped by ffmpeg": piped(LOUD, 0xFFFFFFFF),
    "piped by sox": piped(LOUD, 0x7FFFF000),
}


@pytest.mark.parametrize("form", EXACT)
def test_samples_of_any_container_are_exact(form: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(EXACT[form])
    audio, _ = recordings.read_audio(tmp_path / "a", 8000)
    assert audio.dtype == np.int16
    np.testing.assert_array_equal(audio, LOUD)


@pytest.mark.parametrize(
    ("container", "kind", "most"),
    [
        ("WAV", "ULAW", 0.03),
        ("WAV", "ALAW", 0.03),
        ("WAV", "PCM_U8", 0.02),
        ("OGG", "VORBIS", 0.2),
        ("MP3", "MPEG_LAYER_III", 0.2),
    ],
)
def test_lossy_formats_have_the_same_scale(container: str, kind: str, most: float, tmp_path: Path) -> None:
    tone = (np.sin(2 * np.pi * 440 * np.arange(4000) / 8000) * 20_000).astype(np.int16)
    (tmp_path / "a").write_bytes(encoded(tone, container, kind))
    audio, form = recordings.read_audio(tmp_path / "a", 8000)
    assert form == (1, 8000)
    assert len(audio) == len(tone)
    assert np.abs(audio[200:-200].astype(float) - tone[200:-200]).max() < most * 20_000


def test_eight_bits_and_mu_law_to_the_bit(tmp_path: Path) -> None:
    """Unsigned bytes around 128, and the standard's decoder: 14 bits of a sign, an exponent and a mantissa."""
    codes = np.arange(256)
    (tmp_path / "a").write_bytes(of(codes.astype(np.uint8), width=1))
    np.testing.assert_array_equal(recordings.read_audio(tmp_path / "a", 8000)[0], (codes - 128) * 256)
    content = encoded(np.zeros(256, np.int16), "WAV", "ULAW")
    (tmp_path / "a").write_bytes(content[:-256] + bytes(range(256)))
    flipped = 255 - codes
    size = (((flipped & 15) * 2 + 33) << (flipped >> 4 & 7)) - 33
    np.testing.assert_array_equal(
        recordings.read_audio(tmp_path / "a", 8000)[0], np.where(flipped & 128, -4 * size, 4 * size)
    )


@pytest.mark.parametrize(("rate", "channels"), [(16_000, 1), (44_100, 2), (8000, 2), (6000, 1)])
def test_other_rates_are_resampled_and_channels_averaged(rate: int, channels: int, tmp_path: Path) -> None:
    time = np.arange(rate) / rate
    parts = [0.4] if channels == 1 else [0.0, 0.8]
    tone = np.sin(2 * np.pi * 440 * time)[:, None] * parts
    high = np.sin(2 * np.pi * 5000 * time[:, None]) * 0.2 if rate > 12_000 else 0  # no band of the features holds it
    (tmp_path / "a").write_bytes(encoded(tone + high, "WAV", "PCM_24", rate))
    audio, form = recordings.read_audio(tmp_path / "a", 8000)
    assert form == (channels, rate)
    assert len(audio) == 8000
    expected = np.sin(2 * np.pi * 440 * np.arange(8000) / 8000) * 0.4 * 2**15
    assert np.abs(audio - expected)[100:-100].max() < 4


def test_files_of_several_formats_are_one_dataset(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for take, (container, name, rate) in enumerate(
        [("WAV", "wav", 8000), ("FLAC", "flac", 16_000), ("OGG", "ogg", 8000)]
    ):
        path = tmp_path / "recordings" / f"1_ann_{take * 5}.{name}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encoded(LOUD, container, "VORBIS" if name == "ogg" else "PCM_16", rate))
    (tmp_path / "recordings" / ".DS_Store").write_bytes(b"\0")
    source = load_source(config(tmp_path, tmp_path / "cache"))
    assert [len(source.split(split)) for split in ("test", "validation", "train")] == [1, 1, 1]
    assert len(source.split("validation")[0]["audio"]) == -(-len(LOUD) // 2)
    assert re.search(
        r"1 of 3 recordings are not mono at 8000 Hz \(.*1_ann_5\.flac: 1 channel\(s\) at 16000 Hz\)", caplog.text
    )
    write_wav(tmp_path / "recordings" / "1_ann_05.wav", AUDIO)
    with pytest.raises(UserError, match=r"1_ann_5\.flac is a second recording of that digit, speaker and take"):
        load_source(config(tmp_path, tmp_path / "cache"))
    (tmp_path / "recordings" / "1_ann_05.wav").rename(tmp_path / "recordings" / "notes.txt")
    with pytest.raises(UserError, match=r"notes\.txt is not named"):
        load_source(config(tmp_path, tmp_path / "cache"))


def test_missing_recordings(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(UserError, match=r"no file .*recordings/\{digit\}_\{speaker\}_\{take\}\.wav"):
        load_source(config(tmp_path, cache))
    write_wav(tmp_path / "recordings" / "1_ann_0.wav", AUDIO)
    write_wav(tmp_path / "recordings" / "1_ann_12.wav", AUDIO)
    with pytest.raises(UserError, match="no recording for the split 'validation'"):
        load_source(config(tmp_path, cache))
    write_wav(tmp_path / "recordings" / "one_ann_5.wav", AUDIO)
    with pytest.raises(UserError, match=r"one_ann_5\.wav is not named"):
        load_source(config(tmp_path, cache))
    with pytest.raises(UserError, match=r"fsdd needs data\.dir"):
        load_source(config("", cache))


# --- Frames


def bank_by_loops(mels: int) -> np.ndarray:
    """HTK's triangles, a number at a time."""

    def mel(hertz: float) -> float:
        return 2595 * np.log10(1 + hertz / 700)

    step = mel(4000) / (mels + 1)
    edges = [700 * (10 ** (step * i / 2595) - 1) for i in range(mels + 2)]
    bank = np.zeros((257, mels))
    for band in range(mels):
        low, middle, high = edges[band : band + 3]
        for line in range(257):
            hertz = line * 8000 / 512
            if low < hertz <= middle:
                bank[line, band] = (hertz - low) / (middle - low)
            elif middle < hertz < high:
                bank[line, band] = (high - hertz) / (high - middle)
    return bank


@pytest.mark.parametrize(("count", "mels"), [(1, 40), (199, 13), (200, 13), (201, 40), (1777, 80)])
def test_log_mel_frames_against_scipy(count: int, mels: int) -> None:
    audio = samples(1, "x", count)[:1].repeat(count) + np.random.default_rng(count).integers(-9999, 9999, count)
    audio = audio.astype(np.int16)
    frames = 1 + max(0, int(np.ceil((count - 200) / 80)))
    padded = np.concatenate([audio / 32768, np.zeros(200 + 80 * (frames - 1) - count)])
    _, _, spectrum = scipy.signal.stft(
        padded, 8000, window="hann", nperseg=200, noverlap=120, nfft=512, boundary=None, padded=False
    )
    power = np.abs(spectrum * scipy.signal.get_window("hann", 200).sum()) ** 2  # its scaling taken out
    expected = np.log(1e-6 + power.T @ bank_by_loops(mels))
    made = log_mel.log_mel(audio, mels, 8000)
    assert made.shape == expected.shape == (frames, mels)
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, expected, atol=2e-5)


def test_a_tone_lights_its_own_band() -> None:
    bank = bank_by_loops(40)
    for hertz in (250, 1000, 3000):
        tone = (10000 * np.sin(2 * np.pi * hertz * np.arange(4000) / 8000)).astype(np.int16)
        brightest = log_mel.log_mel(tone, 40, 8000).mean(axis=0).argmax()
        assert bank[round(hertz * 512 / 8000), brightest] > 0


@pytest.mark.parametrize(("rate", "points"), [(16_000, 1024), (11_025, 1024), (44_100, 4096), (4000, 256)])
def test_windows_and_bands_follow_the_rate(rate: int, points: int) -> None:
    """A second of a tone at any rate: frames of 25 ms every 10 ms, and its band is the one whose triangle holds it."""
    assert log_mel.points(rate) == points
    hertz = rate / 7
    tone = (10_000 * np.sin(2 * np.pi * hertz * np.arange(rate) / rate)).astype(np.int16)
    made = log_mel.log_mel(tone, 20, rate)
    assert made.shape == (99, 20) == (log_mel.frame_count(np.array(rate), rate), 20)
    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + rate / 1400), 22) / 2595) - 1)
    nearest = np.abs(edges[1:-1] - hertz).argmin()
    assert made.mean(axis=0).argmax() == nearest
    for mels in range(1, 41 if rate < 8000 else 81):
        assert log_mel.filterbank(mels, rate).shape == (points // 2 + 1, mels)


def test_a_long_recording_is_transformed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    audio = np.random.default_rng(0).integers(-9999, 9999, 9000).astype(np.int16)
    whole = log_mel.log_mel(audio, 40, 8000)
    monkeypatch.setattr(log_mel, "TOGETHER", 7)
    np.testing.assert_allclose(log_mel.log_mel(audio, 40, 8000), whole, atol=1e-5)


def test_narrow_bands_and_silence() -> None:
    for mels in range(1, 81):
        assert log_mel.filterbank(mels, 8000).shape == (257, mels)
    with pytest.raises(UserError, match=r"model\.channels=200 mel bands are too narrow .* lower it to 80"):
        log_mel.filterbank(200, 8000)
    with pytest.raises(UserError, match="silent"):
        log_mel.normalised(log_mel.log_mel(np.zeros(999, np.int16), 13, 8000))


def test_other_samples_are_not_taken_for_16_bit_ones(tmp_path: Path) -> None:
    audio = np.sin(np.arange(999, dtype=np.float32))
    features = {"audio": array_feature((None,), np.float32)}
    made = of_arrays("floats", features, {"train": lambda: iter([{"audio": audio}])})
    source = from_builder("floats", prepared(made, config("", tmp_path)), made.fingerprint)
    with pytest.raises(UserError, match="floats has recordings of type float32, not int16 with a full scale"):
        read_frames(source, "train", config("", tmp_path), MELS)


# --- Batches

Make = Callable[..., SpeechBatches]


def classes(source: Source, split: str, data: DataConfig, **options: int) -> SpeechBatches:
    return SpeechBatches(source, split, **{"seed": 3} | options, data=data, mels=MELS)


def texts(source: Source, split: str, data: DataConfig, **options: Any) -> SpeechBatches:
    """With a text: `source` is that of fsdd, and its strings are read from the same folder."""
    data = dataclasses.replace(data, name="digit_strings")
    strings = load_source(data)
    tokenizer = load_or_train(strings, data, ("text",))
    return SpeechBatches(strings, split, **{"seed": 3} | options, data=data, mels=MELS, tokenizer=tokenizer)


KINDS = pytest.mark.parametrize("make", [classes, texts])


@pytest.mark.parametrize("augment", [False, True])
def test_every_recording_exactly_once_in_evaluation(source: Source, data: DataConfig, augment: bool) -> None:
    for split in SPLITS:
        examples = list(source.split(split))
        seen = []
        for batch in classes(source, split, dataclasses.replace(data, augment=augment)).evaluation():
            for row, number in enumerate(batch["example_ids"].tolist()):
                count = 0
                if number >= 0:
                    raw = log_mel.log_mel(examples[number]["audio"], MELS, 8000).astype(np.float64)
                    count = len(raw)
                    np.testing.assert_allclose(batch["inputs"][row, :count], (raw - raw.mean()) / raw.std(), atol=1e-4)
                    assert batch["labels"][row] == examples[number]["label"]
                    seen.append(number)
                assert not batch["inputs"][row, count:].any()
                assert batch["input_lengths"][row] == count
        assert sorted(seen) == list(range(len(examples)))


@pytest.mark.parametrize("ends", [TRAINED, Ends(pad=297, bos=298, eos=299)])
def test_texts_take_the_place_of_labels(source: Source, data: DataConfig, ends: Ends) -> None:
    data = dataclasses.replace(data, name="digit_strings")
    strings = load_source(data)
    tokenizer = load_or_train(strings, data, ("text",))
    seen = []
    for batch in texts(source, "test", data, ends=ends).evaluation():
        assert "labels" not in batch
        width = batch["targets"].shape[1]
        for row, number in enumerate(batch["example_ids"].tolist()):
            real = number >= 0
            ids = tokenizer.encode(strings.split("test")[number]["text"]) if real else []
            seen += [number] * real
            for key, begin, end in (("target_inputs", [ends.bos], []), ("targets", [], [ends.eos])):
                expected = [*begin * real, *ids, *end * real]
                assert batch[key][row].tolist() == expected + [ends.pad] * (width - len(expected))
            assert batch["target_lengths"][row] == len(ids) + real
    assert sorted(seen) == list(range(13))


@KINDS
@pytest.mark.parametrize("augment", [False, True])
def test_a_batch_depends_on_the_seed_and_the_step_only(
    make: Make, augment: bool, source: Source, data: DataConfig
) -> None:
    data = dataclasses.replace(data, augment=augment)
    batches, again = make(source, "train", data), make(source, "train", data)
    steps, count = batches.steps_per_epoch, batches.report["kept"]
    for step in (2 * steps + 1, 0, steps - 1, steps):  # in any order
        same(batches.batch(step), again.batch(step))
    for number in range(2):
        made = [batches.batch(number * steps + step) for step in range(steps)]
        ids = np.concatenate([batch["example_ids"] for batch in made])
        assert sorted(ids[ids >= 0].tolist()) == list(range(count))
        assert {batch["inputs"].shape[:2] for batch in made} == set(batches.report["shapes"])
    other = make(source, "train", data, seed=4)
    assert any(
        batches.batch(s)["inputs"].shape != other.batch(s)["inputs"].shape
        or (batches.batch(s)["inputs"] != other.batch(s)["inputs"]).any()
        for s in range(2)
    )


def test_augmentation_reads_copies_that_are_mapped(tmp_path: Path, source: Source, data: DataConfig) -> None:
    """Records of TFDS are copied once; what is mapped already is not."""
    copied = recordings_of_batches._mapped(source, "train", data)
    assert isinstance(copied, Stored)
    assert len(copied) == len(source.split("train"))
    for one, other in zip(copied.many([3, 0]), source.split("train").many([3, 0]), strict=True):
        assert one["audio"].dtype == np.int16
        np.testing.assert_array_equal(one["audio"], other["audio"])
    writer = StoreWriter(tmp_path, {"audio": Kind("int16", (None,))}, ["train"])
    writer.add("train", {"audio": [np.arange(5)]})
    writer.close()
    assert isinstance(recordings_of_batches._mapped(from_store("mine", Store(tmp_path)), "train", data), Examples)


@KINDS
def test_processes_share_the_rows_of_the_global_batch(make: Make, source: Source, data: DataConfig) -> None:
    data = dataclasses.replace(data, augment=True)
    whole = make(source, "train", data)
    parts = [make(source, "train", data).part([index], 2) for index in range(2)]
    for step in range(whole.steps_per_epoch + 1):
        same(whole.batch(step), joined([part.batch(step) for part in parts]))
    for together, *shares in zip(whole.evaluation(), *(part.evaluation() for part in parts), strict=True):
        same(together, joined(shares))


def test_augmented_recordings_differ_from_epoch_to_epoch_and_keep_their_form(source: Source, data: DataConfig) -> None:
    batches = classes(source, "train", dataclasses.replace(data, augment=True))
    steps, rows = batches.steps_per_epoch, {}
    for step in range(2 * steps):
        batch = batches.batch(step)
        for row, number in enumerate(batch["example_ids"].tolist()):
            count = int(batch["input_lengths"][row])
            own = batch["inputs"][row, :count]
            assert len(own) == count
            assert not batch["inputs"][row, count:].any()
            assert (count == 0) == (number < 0)
            if number >= 0:
                rows[step // steps, number] = own
                assert np.isfinite(own).all()
                plain = log_mel.frame_count(len(source.split("train")[number]["audio"]), 8000)
                assert 0.9 * plain - 2 <= count <= plain / 0.9 + 12
                assert batch["labels"][row] == source.split("train")[number]["label"]
    assert all(
        rows[0, n].shape != rows[1, n].shape or (rows[0, n] != rows[1, n]).any() for epoch, n in rows if epoch == 0
    )


@given(count=st.integers(1, 3000), example=st.integers(0, 10**6))
def test_augmented_audio(count: int, example: int) -> None:
    audio = np.full(count, 1000, np.int16)
    made = augmented_audio(audio, 8000, 1, 2, example)
    assert np.array_equal(made, augmented_audio(audio, 8000, 1, 2, example))
    assert len(made) <= longest_augmented(np.array(count), 8000)
    # A flat recording: what is below half of it is the pause, and what differs from it is the noise.
    pause = int(np.argmax(made > 500))
    assert 0 <= pause <= 800
    assert count / 1.1 - 1 <= len(made) - pause <= count / 0.9 + 1
    noise = np.concatenate([made[:pause], made[pause:] - 1000])
    assert np.abs(noise).max() <= 1000 * np.sqrt(3) * 10 ** (-15 / 20)
    if len(noise) > 500:
        decibels = 20 * np.log10(1000 / noise.std())
        assert 14 < decibels < 41


def test_speed_changes_the_pitch() -> None:
    tone = (8000 * np.sin(2 * np.pi * 500 * np.arange(8000) / 8000)).astype(np.int16)
    found = []
    for example in range(40):
        spectrum = np.abs(np.fft.rfft(augmented_audio(tone, 8000, 0, 0, example), 16000))
        found.append(np.argmax(spectrum) / 2)
    assert 450 <= min(found) < 465
    assert 535 < max(found) <= 550


@given(count=st.integers(1, 60), mels=st.integers(1, 40), example=st.integers(0, 10**6))
def test_masks_are_a_run_of_bands_and_one_of_frames(count: int, mels: int, example: int) -> None:
    frames = np.ones((count, mels), np.float32)
    masked = masked_frames(frames, 0, 5, example) == 0
    hidden_frames, hidden_bands = masked.all(axis=1), masked.all(axis=0)
    assert (masked == (hidden_frames[:, None] | hidden_bands)).all()
    assert frames.all()  # not changed in place
    for hidden in (hidden_frames, hidden_bands):
        runs = np.diff(np.concatenate([[0], hidden.astype(int), [0]]))
        assert (runs == 1).sum() <= 1
        assert hidden.sum() <= len(hidden) // 5


def test_recordings_that_are_too_long(source: Source, data: DataConfig) -> None:
    longest = max(len(example["audio"]) for example in source.split("train"))
    frames = int(np.ceil((longest - 200) / 80)) + 1
    short = dataclasses.replace(data, max_len=frames - 1)
    with pytest.raises(UserError, match=rf"1 of 18 recordings of 'train' .* number \d+ has {frames} frames of 10 ms"):
        classes(source, "train", short)
    # Where it just fits, what augmentation adds at the end is cut off.
    batches = classes(source, "train", dataclasses.replace(data, max_len=frames, buckets=(frames,), augment=True))
    assert {batch.shape[1] for batch in (batches.batch(step)["inputs"] for step in range(4))} == {frames}


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("rule", ["drop", "cut"])
def test_recordings_that_are_left_out_or_cut(source: Source, data: DataConfig, rule: str, augment: bool) -> None:
    whole = classes(source, "train", data)
    lengths = [int(n) for b in whole.evaluation() for n in b["input_lengths"][b["example_ids"] >= 0]]
    limit = sorted(lengths)[-4]
    batches = classes(source, "train", dataclasses.replace(data, max_len=limit, too_long=rule, augment=augment))
    longer = sum(length > limit for length in lengths)
    assert 0 < longer < len(lengths)
    assert batches.too_long[:5] == (rule, longer, len(lengths), max(lengths), limit)
    kept = len(lengths) - longer * (rule == "drop")
    assert (batches.report["kept"], batches.report["dropped"]) == (kept, len(lengths) - kept)
    steps = range(batches.steps_per_epoch)
    for made in ([batches.batch(step) for step in steps], list(batches.evaluation())):
        rows = [(b, n) for b in made for n in np.flatnonzero(b["example_ids"] >= 0)]
        assert sorted(int(b["example_ids"][n]) for b, n in rows) == batches.evaluated.tolist()
        assert len(rows) == kept
        assert max(int(b["input_lengths"][n]) for b, n in rows) == limit
        if not augment:
            for batch, row in rows:
                real = batch["inputs"][row, : batch["input_lengths"][row]]
                assert (abs(real.mean()), real.std()) == pytest.approx((0, 1), abs=1e-5)


def test_a_recording_with_a_text_cannot_be_cut(source: Source, data: DataConfig) -> None:
    with pytest.raises(
        UserError, match=r"data.too_long='cut' is not possible for recordings of 'test': choose 'refuse'"
    ):
        texts(source, "test", dataclasses.replace(data, too_long="cut"))


def test_a_class_that_train_has_never_seen(tmp_path: Path, folder: Path, cache: Path) -> None:
    write_fsdd(tmp_path)
    write_wav(tmp_path / "recordings" / "9_ann_6.wav", AUDIO)
    data = config(tmp_path, cache)
    source = load_source(data)
    with pytest.raises(UserError, match="'validation' of fsdd has the class 'nine', of which train has no example"):
        classes(source, "validation", data)
    strings = load_source(config(folder, cache, "digit_strings"))
    with pytest.raises(UserError, match="digit_strings has no field 'label'"):
        classes(strings, "train", data)
    with pytest.raises(UserError, match="no text field 'text'"):
        SpeechBatches(source, "test", seed=0, data=data, mels=MELS, tokenizer=load_or_train(strings, data, ("text",)))
