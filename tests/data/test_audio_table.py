"""Own recordings: tables of transcripts or classes, folders of classes, any format, and the sentences of mistakes."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from transformer.config import ColumnsConfig, DataConfig
from transformer.data.batches import log_mel
from transformer.data.batches.recordings import SpeechBatches
from transformer.data.sources import audio_table, load_source
from transformer.data.tokenizers.training import load_or_train
from transformer.errors import UserError

SPLITS = {"train": 8, "validation": 2, "test": 3}
WORDS = ("yes", "no")
MELS = 13
RATE = 16_000


def tone(split: str, number: int, rate: int = RATE) -> np.ndarray:
    """A tone of its own, of 0.2 to 0.4 seconds, in [-1, 1]."""
    hertz = 200 + 37 * number + 11 * len(split)
    return 0.4 * np.sin(2 * np.pi * hertz * np.arange(int(rate * (0.2 + number * 0.025))) / rate)


def text_of(number: int) -> str:
    return f"{WORDS[number % 2]} {'please ' * (number % 3)}now"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """clips/SPLITNUMBER.wav, of 16 bits and 16 kHz, and SPLIT.tsv with their paths, texts and classes."""
    place = tmp_path / "own"
    (place / "clips").mkdir(parents=True)
    for split, count in SPLITS.items():
        lines = ["path\tsentence\tword"]
        for number in range(count):
            name = f"clips/{split}{number}.wav"
            soundfile.write(place / name, tone(split, number), RATE, "PCM_16")
            lines.append(f"{name}\t{text_of(number)}\t{WORDS[number % 2]}")
        (place / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return place


@pytest.fixture
def data(tmp_path: Path, folder: Path) -> DataConfig:
    return DataConfig(
        name="audio_table",
        dir=str(folder),
        files=("*.tsv",),
        columns=ColumnsConfig(audio="path", text="sentence", label="word"),
        cache=str(tmp_path / "cache"),
        target="text",
        sample_rate=RATE,
        max_len=64,
        buckets=(32, 64),
        batch_tokens=512,
        tokenizer="characters",
    )


def edit(path: Path, line: int, old: str, new: str) -> None:
    lines = path.read_text().splitlines()
    assert old in lines[line - 1]
    lines[line - 1] = lines[line - 1].replace(old, new)
    path.write_text("\n".join(lines) + "\n")


def test_a_table_with_transcripts_and_classes(data: DataConfig) -> None:
    source = load_source(data)
    assert source.splits == tuple(SPLITS)
    assert (source.fields, source.arrays, source.classes) == (("text",), ("audio",), ("no", "yes"))
    for split, count in SPLITS.items():
        examples = source.split(split)
        assert len(examples) == count
        for number, example in enumerate(examples):
            assert example["text"] == text_of(number).strip()
            assert example["label"] == 1 - number % 2
            assert example["audio"].dtype == np.int16
            np.testing.assert_allclose(example["audio"], tone(split, number) * 2**15, atol=1)


def test_any_format_rate_and_channels(folder: Path, data: DataConfig) -> None:
    plain = load_source(data).split("train")
    forms = (("a.flac", 8000, 1), ("b.ogg", 44_100, 2), ("c.aiff", 48_000, 1), ("d.mp3", 32_000, 2))
    for number, (name, rate, channels) in enumerate(forms):
        samples = tone("train", number, rate)[:, None].repeat(channels, 1)
        soundfile.write(folder / "clips" / name, samples, rate)
        edit(folder / "train.tsv", number + 2, f"train{number}.wav", name)
    examples = load_source(data).split("train")
    for number in range(4):
        one, other = (some[number]["audio"].astype(float) for some in (plain, examples))
        assert len(one) == len(other)
        middle = slice(400, -400)
        assert np.corrcoef(one[middle], other[middle])[0, 1] > 0.98
        assert abs(one.std() - other.std()) < 0.1 * one.std()


@pytest.mark.parametrize("rate", [8000, 11_025, 16_000])
def test_every_recording_is_at_the_rate_and_its_frames_follow(data: DataConfig, rate: int) -> None:
    data = dataclasses.replace(data, sample_rate=rate)
    source = load_source(data)
    batches = SpeechBatches(source, "test", data=data, mels=MELS, seed=0)
    seen = {}
    for batch in batches.evaluation():
        for row, number in enumerate(batch["example_ids"].tolist()):
            if number >= 0:
                seen[number] = batch["inputs"][row, : batch["input_lengths"][row]]
                assert batch["labels"][row] == 1 - number % 2
    assert sorted(seen) == [0, 1, 2]
    for number, frames in seen.items():
        audio = source.split("test")[number]["audio"]
        assert len(audio) == pytest.approx(rate * (0.2 + number * 0.025), abs=1)
        assert len(frames) == 1 + -(-(len(audio) - rate // 40) // (rate // 100))
        expected = log_mel.log_mel(audio, MELS, rate).astype(float)
        np.testing.assert_allclose(frames, (expected - expected.mean()) / expected.std(), atol=1e-5)


@pytest.mark.parametrize("augment", [False, True])
def test_batches_of_texts(data: DataConfig, augment: bool) -> None:
    data = dataclasses.replace(data, augment=augment)
    source = load_source(data)
    tokenizer = load_or_train(source, data, ("text",))
    batches = SpeechBatches(source, "train", data=data, mels=MELS, tokenizer=tokenizer, seed=0)
    written = {}
    for step in range(batches.steps_per_epoch):
        batch = batches.batch(step)
        for row, number in enumerate(batch["example_ids"].tolist()):
            if number >= 0:
                length = batch["target_lengths"][row] - 1
                written[number] = tokenizer.decode(batch["targets"][row, :length].tolist())
                assert 10 < batch["input_lengths"][row] <= 64
    assert written == {number: text_of(number).strip() for number in range(8)}


def test_folders_of_classes(tmp_path: Path, folder: Path, data: DataConfig) -> None:
    for split, count in SPLITS.items():
        for number in range(count):
            place = tmp_path / "classes" / split / WORDS[number % 2]
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / "clips" / f"{split}{number}.wav", place)
    source = load_source(dataclasses.replace(data, dir=str(tmp_path / "classes"), files=(), columns=ColumnsConfig()))
    assert (source.splits, source.classes, source.fields) == (tuple(SPLITS), ("no", "yes"), ())
    examples = list(source.split("train"))
    assert [example["label"] for example in examples] == [0] * 4 + [1] * 4
    np.testing.assert_allclose(examples[5]["audio"], tone("train", 2) * 2**15, atol=1)


def test_what_is_read_once_is_not_read_again(data: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    before = load_source(data)

    def never(*arguments: object) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr(audio_table.recordings, "read_recording", never)
    after = load_source(data)
    assert after.fingerprint == before.fingerprint
    assert np.array_equal(after.split("test")[1]["audio"], before.split("test")[1]["audio"])
    with pytest.raises(AssertionError, match="read again"):
        load_source(dataclasses.replace(data, sample_rate=8000))


@pytest.mark.parametrize("change", ["sample", "text", "class", "rate"])
def test_other_recordings_are_other_data(folder: Path, data: DataConfig, change: str) -> None:
    before = load_source(data).fingerprint
    if change == "sample":
        samples = tone("train", 3)
        samples[99] += 0.01
        soundfile.write(folder / "clips" / "train3.wav", samples, RATE, "PCM_16")
    elif change == "text":
        edit(folder / "train.tsv", 4, "now", "then")
    elif change == "class":
        edit(folder / "train.tsv", 4, "\tyes", "\tno")
    else:
        data = dataclasses.replace(data, sample_rate=8000)
    assert load_source(data).fingerprint != before


# --- Mistakes


def cut_off(folder: Path) -> None:
    path = folder / "clips" / "train1.wav"
    path.write_bytes(path.read_bytes()[:-500])


def silent(folder: Path) -> None:
    soundfile.write(folder / "clips" / "test1.wav", np.zeros(999), RATE)


def no_recording(folder: Path) -> None:
    (folder / "clips" / "train1.wav").write_text("<html>")


MISTAKES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (
        lambda folder: edit(folder / "train.tsv", 3, "train1.wav", "train11.wav"),
        r"train\.tsv names the recording clips/train11\.wav in line 3, and there is no file .*train11\.wav: correct it",
    ),
    "cut off": (cut_off, r"clips/train1\.wav is cut off: it holds \d+ of \d+ bytes of samples, fetch it again"),
    "silent": (silent, r"clips/test1\.wav is silent \(all of its 999 samples are zero\): remove it"),
    "no recording": (no_recording, r"clips/train1\.wav is no recording that can be read \(.*\): convert it"),
    "empty text": (
        lambda folder: edit(folder / "validation.tsv", 2, "yes now", " "),
        r"validation\.tsv has no text in 'sentence' of line 2: add it, or take the row out",
    ),
    "class only in test": (
        lambda folder: edit(folder / "test.tsv", 4, "\tyes", "\tmaybe"),
        r"test\.tsv has the class 'maybe' in line 4, of which train has no example",
    ),
    "wrong column": (
        lambda folder: edit(folder / "train.tsv", 1, "path", "file"),
        r"train\.tsv has no column 'path', which data\.columns\.audio names: .*file, sentence, word",
    ),
    "no rows": (
        lambda folder: (folder / "test.tsv").write_text("path\tsentence\tword\n"),
        r"test\.tsv has no row: give one for each recording",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes(case: str, folder: Path, data: DataConfig) -> None:
    change, message = MISTAKES[case]
    change(folder)
    with pytest.raises(UserError, match=message) as caught:
        load_source(data)
    assert "\n" not in str(caught.value)


def test_columns_that_are_not_named(data: DataConfig) -> None:
    without = dataclasses.replace(data, columns=ColumnsConfig(audio="path"))
    message = r"has the columns path, sentence, word, and none is called text or label: name it in data\.columns\.text"
    with pytest.raises(UserError, match=message):
        load_source(without)
