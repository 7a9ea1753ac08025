"""Predictions of every kind of run, held to what evaluation computes of the same examples. The models are not trained:
their weights are random, so that they say different things."""

import dataclasses
import datetime
import itertools
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from transformer.config import Config, MeshConfig, override
from transformer.data.sources import load_source, recordings
from transformer.data.tokenizers import Tokenizer
from transformer.errors import UserError
from transformer.predicting.predictions import predict
from transformer.tasks import task_class
from transformer.tasks.trained import Trained
from transformer.writing import slices
from transformer.writing.lines import generate, transcribe
from transformer.writing.manner import GREEDY, Manner

WORDS = ("uno", "due", "tre", "sei", "sette")
RATE = 8000


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "ROWS", 2)
    monkeypatch.setattr(recordings, "STRINGS", {"train": 8, "validation": 4, "test": 5})


def sentences(count: int) -> list[str]:
    random = np.random.default_rng(3)
    return [" ".join(random.choice(WORDS, random.integers(1, 9))) for _ in range(count)]


def texts(folder: Path) -> dict[str, Any]:
    rows = [f"{text}\t{('odd', 'even', 'long')[len(text) % 3]}" for text in sentences(60)]
    (folder / "a.tsv").write_text("text\tlabel\n" + "\n".join(rows) + "\n")
    return {"data.name": "table", "data.files": [str(folder / "a.tsv")], "data.split": "sizes:40/8/12",
            "data.target": "text", "data.buckets": [8, 16], "data.max_len": 16,
            "model.family": "encoder_only", "model.num_classes": 3}  # fmt: skip


def pairs(folder: Path) -> dict[str, Any]:
    rows = [f"{text}\t{text[::-1]}" for text in sentences(60)]
    (folder / "a.tsv").write_text("source\ttarget\n" + "\n".join(rows) + "\n")
    return {"data.name": "table", "data.files": [str(folder / "a.tsv")], "data.split": "sizes:40/8/12",
            "data.source": "source", "data.target": "target", "data.buckets": [8, 16], "data.max_len": 16}  # fmt: skip


def digits(folder: Path) -> dict[str, Any]:
    return {"data.name": "digits", "model.family": "encoder_only", "model.inputs": "image", "model.num_classes": 10,
            "model.image_size": [8, 8], "model.patch_size": 4}  # fmt: skip


def tones(folder: Path) -> dict[str, Any]:
    """Recordings of ten tones, of two speakers and several lengths."""
    (folder / "recordings").mkdir()
    random = np.random.default_rng(2)
    for digit, speaker, take in itertools.product(range(10), ("ann", "bob"), (0, 5, 10)):
        time = np.arange(random.integers(800, 1600)) / RATE
        sound = 8000 * np.sin(2 * np.pi * (300 + 250 * digit) * time) + random.normal(size=time.size) * 50
        write_wave(folder / "recordings" / f"{digit}_{speaker}_{take}.wav", sound.astype(np.int16))
    return {"data.name": "fsdd", "data.dir": str(folder), "data.max_len": 20, "data.buckets": [12, 16, 20],
            "model.family": "encoder_only", "model.num_classes": 10} | SOUND  # fmt: skip


SOUND = {"model.inputs": "frames", "model.channels": 12, "data.sample_rate": RATE}


def strings(folder: Path) -> dict[str, Any]:
    changes = tones(folder) | {
        "data.name": "digit_strings", "data.target": "text", "data.tokenizer": "characters", "data.max_len": 192,
        "data.buckets": [96, 192], "model.family": "encoder_decoder",
    }  # fmt: skip
    return {key: value for key, value in changes.items() if key != "model.num_classes"}


def waves(folder: Path, *, dates: bool = True) -> dict[str, Any]:
    rows = []
    for number in range(90):
        day = datetime.date(2024, 1, 3) + datetime.timedelta(days=number)
        values = f"{5000 + 300 * np.sin(number / 3)},{np.cos(number / 5) / 100}"
        rows.append(f"{day},{values},{number % 4}" if dates else values)
    (folder / "a.csv").write_text(("date,sun,moon,tide\n" if dates else "sun,moon\n") + "\n".join(rows) + "\n")
    return {"data.name": "series", "data.files": [str(folder / "a.csv")], "data.columns.series": ["moon", "sun"],
            "data.max_len": 16, "data.horizon": 4, "data.split": "sizes:50/20/20", "data.buckets": [16],
            "model.family": "forecaster", "model.inputs": "series", "model.patch_size": 4}  # fmt: skip


def write_wave(path: Path, samples: np.ndarray) -> None:
    with wave.open(str(path), "wb") as writer:
        writer.setparams((1, 2, RATE, 0, "NONE", ""))
        writer.writeframes(samples.tobytes())


def trained(
    task: str, data: Callable[[Path], dict[str, Any]], folder: Path, devices: int = 1, seed: int = 3
) -> Trained:
    """A run with random weights, whose data may be asked for in tests only."""
    small = {"task": task, "data.cache": str(folder / "cache"), "data.batch_tokens": 64, "data.tokenizer": "bytes",
             "data.vocab_size": 300, "model.num_layers": 1, "model.d_model": 12, "model.d_ff": 16,
             "model.num_heads": 3, "model.dropout": 0.0}  # fmt: skip
    config = override(Config(), small | data(folder))
    config = dataclasses.replace(config, mesh=MeshConfig(data=devices))
    source, kind = load_source(config.data), task_class(task)
    tokenizer = Tokenizer.train(sentences(30), 300, "words") if kind.reads_text else None
    made = kind(config, tokenizer)
    random = np.random.default_rng(seed)

    def drawn(x: Any) -> Any:
        return jnp.asarray(random.normal(size=x.shape) * 2 / x.shape[0] ** 0.5, x.dtype) if x.ndim > 1 else x

    params = jax.tree.map(drawn, jax.jit(made.init)(jax.random.key(2)))
    return Trained(config, tokenizer, made, params, 0, lambda: source, source.facts)


def unread(run: Trained) -> Trained:
    """The run without its data."""

    def data() -> Any:
        raise AssertionError("no training data are needed to predict")

    return dataclasses.replace(run, data=data)


def evaluated(run: Trained, split: str = "test") -> dict[int, np.ndarray]:
    """The logits of every example of a split, as evaluation computes them."""
    found, predicted = dict[int, np.ndarray](), jax.jit(run.task.predict)
    for batch in run.task.batches(run.source, split).evaluation():
        logits = np.asarray(predicted(run.params, batch))
        found |= {int(number): row for number, row in zip(batch["example_ids"], logits, strict=True) if number >= 0}
    return found


def check_classes(run: Trained, predictions: list[dict[str, Any]]) -> None:
    """The label is the argmax of evaluation's logits, and the probabilities their softmax."""
    logits = evaluated(run)
    assert len(logits) >= len(predictions) > 5
    assert len({prediction["label"] for prediction in predictions}) > 1, "they say different things"
    for number, prediction in enumerate(predictions):
        expected = np.exp(logits[number].astype(np.float64) - logits[number].max())
        expected /= expected.sum()
        assert prediction["label"] == run.source.classes[int(logits[number].argmax())]
        assert prediction["probability"] == max(prediction["probabilities"].values())
        assert tuple(prediction["probabilities"]) == run.source.classes
        np.testing.assert_allclose(list(prediction["probabilities"].values()), expected, rtol=2e-3, atol=1e-5)


def independent_of_the_batch(run: Trained, inputs: list[Any], manner: Manner = GREEDY) -> list[dict[str, Any]]:
    """The predictions, to the last bit the same with 64, 1 and 3 inputs at once, and in another order."""
    whole = list(predict(unread(run), inputs, manner))
    assert len(whole) == len(inputs)
    for size in (1, 3):
        assert list(predict(unread(run), inputs, manner, batch_size=size)) == whole
    assert list(predict(unread(run), inputs[::-1], manner)) == whole[::-1]
    return whole


# --- Classes


def test_lines(tmp_path: Path) -> None:
    run = trained("text_classification", texts, tmp_path)
    lines = [example["text"] for example in run.source.split("test")]
    check_classes(run, independent_of_the_batch(run, lines))
    first, empty, last = predict(run, [lines[0], " ", lines[1]])
    assert empty == {"label": None, "probability": None, "probabilities": {}}
    assert [first, last] == list(predict(run, lines[:2]))
    assert [first["label"], last["label"]] == generate(run, lines[:2])


def test_images(tmp_path: Path) -> None:
    run = trained("image_classification", digits, tmp_path)
    paths = list[Path]()
    for number, example in enumerate(run.source.split("test")[:20]):
        paths.append(tmp_path / f"{number:04}.png")
        PIL.Image.fromarray(example["image"][..., 0]).save(paths[-1])
    found = independent_of_the_batch(run, paths)
    check_classes(run, found)
    assert list(predict(run, [example["image"] for example in run.source.split("test")[:20]])) == found


def test_an_image_of_another_size_is_fitted_as_training_was_told(tmp_path: Path) -> None:
    run = trained("image_classification", digits, tmp_path)
    small = run.source.split("test")[0]["image"]
    large = tmp_path / "large.png"
    PIL.Image.fromarray(small[..., 0].repeat(4, axis=0).repeat(4, axis=1)).save(large)
    with pytest.raises(UserError, match=r"large.png is 32 x 32, and the model was trained on images of 8 x 8 only"):
        list(predict(run, [large]))
    config = override(run.config, {"data.resize": "squash"})
    squashing = dataclasses.replace(run, config=config)
    scaled = np.array(PIL.Image.open(large).resize((8, 8), PIL.Image.Resampling.BILINEAR))[..., None]
    assert list(predict(squashing, [large])) == list(predict(run, [scaled]))


def test_recordings(tmp_path: Path) -> None:
    run = trained("speech_classification", tones, tmp_path)
    paths = []
    for number, example in enumerate(run.source.split("test")):
        paths.append(tmp_path / f"{number:02}.wav")
        write_wave(paths[-1], example["audio"])
    check_classes(run, independent_of_the_batch(run, paths))
    assert list(predict(run, [run.source.split("test")[0]["audio"]])) == list(predict(run, paths[:1]))


@pytest.mark.parametrize("devices", [1, 8])
def test_the_same_on_several_devices(devices: int, tmp_path: Path) -> None:
    run = trained("text_classification", texts, tmp_path, devices=devices)
    check_classes(run, list(predict(run, [example["text"] for example in run.source.split("test")])))


# --- Texts


def test_translations_are_those_of_generate(tmp_path: Path) -> None:
    run = trained("translation", pairs, tmp_path)
    lines = [*sentences(9), ""]
    found = [prediction["text"] for prediction in independent_of_the_batch(run, lines)]
    assert found == generate(run, lines)
    beams = [prediction["text"] for prediction in predict(run, lines, Manner(beam=3))]
    assert beams == generate(run, lines, Manner(beam=3)) != found


def test_transcripts_are_those_of_evaluation(tmp_path: Path) -> None:
    run = trained("speech_recognition", strings, tmp_path, seed=2)
    paths = []
    for number, example in enumerate(run.source.split("test")):
        paths.append(tmp_path / f"{number:02}.wav")
        write_wave(paths[-1], example["audio"])
    short = Manner(max_new=8)
    found = independent_of_the_batch(run, paths, short)
    assert [prediction["text"] for prediction in found] == transcribe(run, "test", short)
    assert len({prediction["text"] for prediction in found}) > 1


# --- Series


def by_hand(run: Trained, values: np.ndarray) -> np.ndarray:
    """The model applied to the z-scores of the last rows [max_len, C], and its forecast scaled back."""
    train = np.array([[float(row.split(",")[place]) for place in (2, 1)] for row in lines_of(run)[:50]])
    mean = train.sum(axis=0) / 50
    deviation = np.sqrt(((train - mean) ** 2).sum(axis=0) / 50)
    window = ((values[-16:] - mean) / deviation).astype(np.float32)
    return np.asarray(run.task.model.apply(run.params, jnp.asarray(window[None])))[0] * deviation + mean


def lines_of(run: Trained) -> list[str]:
    return Path(run.config.data.files[0]).read_text().splitlines()[1:]


def test_a_forecast_is_the_model_applied_by_hand_with_dates_that_go_on(tmp_path: Path) -> None:
    run = trained("forecasting", waves, tmp_path)
    lines = lines_of(run)
    (tmp_path / "mine.csv").write_text("sun,date,moon\n" + "".join(
        f"{sun},{date},{moon}\n" for date, sun, moon, _ in (line.split(",") for line in lines[30:70])))  # fmt: skip
    (found,) = predict(unread(run), [tmp_path / "mine.csv"])
    assert list(found) == ["date", "moon", "sun"], "the columns of the run"
    last = datetime.date.fromisoformat(lines[69].split(",")[0])
    assert found["date"] == [str(last + datetime.timedelta(days=number)) for number in range(1, 5)]
    values = np.array([[float(line.split(",")[place]) for place in (2, 1)] for line in lines[:70]])
    expected = by_hand(run, values)
    np.testing.assert_allclose(np.array([found["moon"], found["sun"]]).T, expected, rtol=1e-4)
    (of_array,) = predict(run, [values])
    np.testing.assert_array_equal([of_array["moon"], of_array["sun"]], [found["moon"], found["sun"]])


def test_a_series_without_dates(tmp_path: Path) -> None:
    run = trained("forecasting", lambda folder: waves(folder, dates=False), tmp_path)
    (found,) = predict(run, [tmp_path / "a.csv"])
    assert list(found) == ["moon", "sun"]
    assert [len(values) for values in found.values()] == [4, 4]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("date,sun\n2024-01-03,1\n", "has no column 'moon': choose one of date, sun"),
        ("day,sun,moon\n2024-01-03,1,2\n", "has no column 'date': choose one of day, sun, moon"),
        ("date,sun,moon\n2024-01-03,1,2\n", "has 1 rows, and a forecast reads the last 16: give that many, or more"),
        (
            "date,sun,moon\n2024-01-03 00:00,1,2\n2024-01-03 01:00,1,2\n",
            "goes on by 1:00:00 to 2024-01-03 01:00:00 in line 3, where 2024-01-04 00:00:00 is due, 1 day after",
        ),
        ("date,sun,moon\n2024-01-03,1,much\n", "has 'much' in line 2, column 'moon', which is no finite number"),
    ],
)
def test_a_file_that_does_not_fit_the_run(content: str, said: str, tmp_path: Path) -> None:
    run = trained("forecasting", waves, tmp_path)
    (tmp_path / "mine.csv").write_text(content)
    with pytest.raises(UserError, match=said) as caught:
        list(predict(run, [tmp_path / "mine.csv"]))
    assert "mine.csv" in str(caught.value)


# --- What is wrong


def test_inputs_that_do_not_fit_the_run(tmp_path: Path) -> None:
    images, sounds = (
        trained(task, data, tmp_path)
        for task, data in (("image_classification", digits), ("speech_classification", tones))
    )
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    write_wave(tmp_path / "long.wav", np.full(6000, 9, np.int16))
    for run, given, said in (
        (images, tmp_path / "none.png", "none.png cannot be read"),
        (images, tmp_path / "broken.png", "broken.png is an image that cannot be read"),
        (images, np.zeros((8, 8), np.uint8), r"input 1 is uint8 of shape \(8, 8\), and the model reads uint8"),
        (images, np.zeros((8, 8, 1)), "input 1 is float64 of shape"),
        (sounds, tmp_path / "broken.png", "broken.png"),
        (sounds, tmp_path / "long.wav", "long.wav has 74 frames of 10 ms, more than data.max_len=20"),
        (sounds, np.zeros(900, np.int16), "input 1 .* that are not silent"),
        (sounds, np.ones((900, 2), np.int16), r"input 1 is int16 of shape \(900, 2\)"),
    ):
        with pytest.raises(UserError, match=said) as caught:
            list(predict(run, [given]))
        assert "\n" not in str(caught.value)


def test_what_no_task_predicts_and_options_of_others(tmp_path: Path) -> None:
    run = trained("text_classification", texts, tmp_path)
    with pytest.raises(UserError, match="task 'text_classification' writes no text: leave out what shapes written"):
        list(predict(run, ["uno"], Manner(beam=2)))
    with pytest.raises(UserError, match="an ensemble writes text, and these runs write none: name one --workdir"):
        list(predict(dataclasses.replace(run, others=(run,)), ["uno"]))
    masked = trained("masked_language_model", lambda folder: texts(folder) | {"model.num_classes": 0}, tmp_path)
    with pytest.raises(UserError, match="task 'masked_language_model' predicts hidden parts of texts only"):
        list(predict(masked, ["uno"]))


@pytest.mark.parametrize(
    ("task", "data", "said"),
    [
        ("text_classification", texts, "the model's prediction for line 2 is not a number"),
        ("image_classification", digits, "the model's prediction for input 1 is not a number"),
        ("forecasting", waves, "the model's forecast for the series is not a number"),
    ],
)
def test_a_model_that_diverged(task: str, data: Any, said: str, tmp_path: Path) -> None:
    run = trained(task, data, tmp_path)
    run = dataclasses.replace(run, params=jax.tree.map(lambda x: x * np.nan, run.params))
    given: dict[str, list[Any]] = {
        "text_classification": ["", "uno"],
        "image_classification": [np.zeros((8, 8, 1), np.uint8)],
    }
    with pytest.raises(UserError, match=said):
        list(predict(run, given.get(task, [np.zeros((16, 2))])))
