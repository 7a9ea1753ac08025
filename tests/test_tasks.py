"""Every task from its data to its figures at toy size: trained by the one loop, evaluated and used as people do."""

import dataclasses
import gzip
import itertools
import json
import shutil
import struct
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer.config import Config, override
from transformer.data import sources
from transformer.data.batches.pairs import pair_batch
from transformer.data.batches.tokens import Tokens, gather
from transformer.data.sources import load_source, recordings, series
from transformer.data.sources.source import Examples, Source
from transformer.data.tokenizers import Tokenizer
from transformer.errors import UserError
from transformer.evaluation import baselines
from transformer.evaluation.splits import evaluate, measured, report
from transformer.evaluation.written import JUDGES
from transformer.runs import load_run
from transformer.tasks import TASKS, WritingTask, task_class
from transformer.tasks.texts import Translation
from transformer.train import train
from transformer.writing.lines import generate

WORDS = {"uno": "one", "due": "two", "tre": "three", "sei": "six"}


def sentences(count: int) -> list[str]:
    random = np.random.default_rng(0)
    return [" ".join(random.choice(list(WORDS), random.integers(2, 6))) for _ in range(count)]


def translated(folder: Path) -> dict[str, Any]:
    for split, count in (("train", 120), ("validation", 20), ("test", 30)):
        lines = sentences(count)
        (folder / f"{split}.it").write_text("\n".join(lines) + "\n")
        (folder / f"{split}.en").write_text("\n".join(" ".join(WORDS[w] for w in x.split()) for x in lines) + "\n")
    return {"data.name": "files", "data.dir": str(folder), "data.source": "it", "data.target": "en"}


def monolingual(folder: Path) -> dict[str, Any]:
    return translated(folder) | {"data.source": ""}


def long_text(folder: Path) -> dict[str, Any]:
    (folder / "input.txt").write_text("\n".join(sentences(150)))
    return {"data.name": "text", "data.dir": str(folder), "data.source": "", "data.tokenizer": "characters"}


def labelled(folder: Path) -> dict[str, Any]:
    for split, count in (("train", 120), ("dev", 20), ("test", 30)):
        rows = [f"{text}\t{int('sei' in text)}" for text in sentences(count)]
        (folder / f"{split}.tsv").write_text("\n".join(rows) + "\n")
    return {"data.name": "sst2", "data.dir": str(folder), "data.target": "text", "data.tokenizer": "words"}


def images(folder: Path) -> dict[str, Any]:
    """MNIST's files, with squares that are bright above (0) or below (1)."""
    random = np.random.default_rng(1)
    for stem, count in (("train", 5200), ("t10k", 40)):
        labels = random.integers(0, 10, count).astype(np.uint8)
        pixels = random.integers(0, 90, (count, 28, 28)).astype(np.uint8)
        for label, image in zip(labels, pixels, strict=True):
            image[(label % 5) * 5 : (label % 5) * 5 + 5, :14] = 250 if label < 5 else 160
        for kind, array in (("images-idx3", pixels), ("labels-idx1", labels)):
            head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
            (folder / f"{stem}-{kind}-ubyte.gz").write_bytes(gzip.compress(head + array.tobytes(), 1))
    return {"data.name": "mnist", "data.dir": str(folder)}


def tones(folder: Path) -> dict[str, Any]:
    """Recordings of ten pure tones by two speakers."""
    (folder / "recordings").mkdir()
    random = np.random.default_rng(2)
    for digit, speaker, take in itertools.product(range(10), ("ann", "bob"), (0, 1, 5, 10, 11, 12, 13)):
        time = np.arange(random.integers(1500, 2500)) / 8000
        sound = 8000 * np.sin(2 * np.pi * (300 + 250 * digit) * time) + random.normal(size=time.size) * 50
        with wave.open(str(folder / "recordings" / f"{digit}_{speaker}_{take}.wav"), "wb") as writer:
            writer.setparams((1, 2, 8000, 0, "NONE", ""))
            writer.writeframes(sound.astype(np.int16).tobytes())
    return {"data.name": "fsdd", "data.dir": str(folder), "data.max_len": 64, "data.buckets": (64,)}


def strings(folder: Path) -> dict[str, Any]:
    return tones(folder) | {
        "data.name": "digit_strings", "data.target": "text", "data.tokenizer": "characters", "data.max_len": 256,
        "data.buckets": (256,), "data.batch_tokens": 4096,
    }  # fmt: skip


def waves(folder: Path) -> dict[str, Any]:
    time = np.arange(160)
    rows = [
        f"{np.datetime64('2016-07-01') + np.timedelta64(int(t), 'D')},{np.sin(t / 3) + 0.01 * t},{np.cos(t / 5)}"
        for t in time
    ]
    (folder / "ETTh1.csv").write_text("\n".join(["date,HUFL,OT", *rows]) + "\n")
    return {"data.name": "ett", "data.dir": str(folder), "data.max_len": 16, "data.horizon": 4, "data.buckets": (16,)}


ENCODER = {"model.family": "encoder_only"}
DECODER = {"model.family": "decoder_only"}
SOUND = {"model.inputs": "frames", "model.channels": 12}
# Task -> its data, what the model must be, and the metric that training has to improve.
KINDS: dict[str, tuple[Callable[[Path], dict[str, Any]], dict[str, Any], str]] = {
    "translation": (translated, {}, "loss"),
    "summarization": (translated, {}, "loss"),
    "span_corruption": (monolingual, {}, "loss"),
    "speech_recognition": (strings, SOUND, "loss"),
    "language_model": (long_text, DECODER, "loss"),
    "prompts": (lambda folder: {"data.name": "prompts", "data.source": "", "data.target": "text",
                                "data.tokenizer": "characters", "data.max_len": 64, "data.buckets": (64,)},
                DECODER, "loss"),
    "masked_language_model": (monolingual, ENCODER, "loss"),
    "text_classification": (labelled, ENCODER, "loss"),
    "image_classification": (images, ENCODER | {"model.inputs": "image", 
                                                "model.patch_size": 7, "data.batch_tokens": 64}, "loss"),
    "speech_classification": (tones, ENCODER | SOUND | {"data.augment": True}, "loss"),
    "forecasting": (waves, {"model.family": "forecaster", "model.inputs": "series", "model.patch_stride": 2,
                            "data.batch_tokens": 16}, "loss"),
}  # fmt: skip
EXPECTED = {
    "translation": {"bleu", "chrf", "exact_match", "perplexity", "bits_per_byte", "word_perplexity"},
    "summarization": {"rouge1", "rouge2", "rougeL"},
    "speech_recognition": {"word_error_rate", "exact_match"},
    "prompts": {"answers", "answers_sums", "answers_words"},
    "text_classification": {"accuracy", "macro_f1"},
    "image_classification": {"accuracy", "macro_f1"},
    "speech_classification": {"accuracy", "macro_f1"},
    "forecasting": {"mae"},
}
BASELINES = {
    "translation": {"copy"},
    "summarization": {"copy", "lead sentence"},
    "language_model": {"unigram"},
    "prompts": {"unigram"},
    "text_classification": {
        "most frequent class",
        "logistic regression, words and pairs of them",
        "logistic regression, one to three characters",
    },
    "image_classification": {"most frequent class", "logistic regression, pixels"},
    "speech_classification": {"most frequent class", "logistic regression, mean and deviation of mel bands"},
    "forecasting": {"repeat the last value", "seasonal naive", "linear"},
}


def configured(task: str, folder: Path, **changes: Any) -> Config:
    data, model, _ = KINDS[task]
    folder.mkdir(exist_ok=True)
    small = {
        "task": task, "steps": 30, "label_smoothing": 0.0, "model.num_layers": 1, "model.d_model": 16,
        "model.d_ff": 32, "model.num_heads": 2, "model.dropout": 0.0, "model.norm": "pre",
        "data.max_len": 32, "data.buckets": (32,), "data.batch_tokens": 512, "data.vocab_size": 300,
        "data.cache": str(folder / "cache"), "optimizer.learning_rate": 0.01, "optimizer.warmup_steps": 5,
        "optimizer.schedule": "cosine", "mesh.data": 1, "logging.log_every": 10,
    }  # fmt: skip
    return override(Config(), small | data(folder) | model | changes)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recordings, "STRINGS", {"train": 48, "validation": 8, "test": 8})
    monkeypatch.setattr(series, "ETT_ROWS", {"train": 100, "validation": 30, "test": 30})


def test_every_task_is_here() -> None:
    assert KINDS.keys() == TASKS.keys()


@pytest.mark.parametrize("name", [name for name, kind in TASKS.items() if issubclass(kind, WritingTask)])
def test_every_task_that_writes_names_the_metrics_of_its_text(name: str) -> None:
    kind = TASKS[name]
    assert "judged_by" in vars(kind)
    assert kind.judged_by in JUDGES
    assert (kind.judged_by == "nothing") == (name in ("language_model", "span_corruption"))


def test_a_task_that_writes_and_names_no_metrics_is_none() -> None:
    with pytest.raises(TypeError, match="Captions writes text and does not say by which metrics it is judged"):
        type("Captions", (Translation,), {})
    assert {kind.judged_by for kind in TASKS.values() if issubclass(kind, WritingTask)} == JUDGES.keys()


# All lines of prompts are generated, whatever the size of the model.
SLOW = ("prompts", "summarization", "span_corruption")
TASKS_HERE = [pytest.param(task, marks=[pytest.mark.slow] * (task in SLOW)) for task in KINDS]


class Without(Source):
    """A source whose split `test` or `validation` is empty."""

    empty = "test"

    def split(self, name: str) -> Examples:
        return Examples(self.read("train"), np.zeros(0, int)) if name == self.empty else super().split(name)


def without(source: Source, split: str) -> Source:
    found = Without(**{field.name: getattr(source, field.name) for field in dataclasses.fields(source)})
    object.__setattr__(found, "empty", split)
    return found


# One of each kind of batches.
@pytest.mark.parametrize("task", ["translation", "masked_language_model", "image_classification", "forecasting"])
def test_nothing_to_validate_on_is_told_before_the_first_step(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "load_source", lambda data: without(load_source(data), "validation"))
    with pytest.raises(UserError, match=r"the validation part of .* holds no example: give it some"):
        train(configured(task, tmp_path / "data"), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("task", TASKS_HERE)
def test_a_task_from_its_data_to_its_figures(task: str, tmp_path: Path) -> None:
    config = configured(task, tmp_path / "data")
    train(config, tmp_path / "run", quiet=True)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < 0.9 * losses[0], losses
    trained = load_run(tmp_path / "run")
    test = evaluate(trained, "test")
    assert test["step"] == 30
    assert np.isfinite([value for value in test.values() if isinstance(value, float)]).all()
    assert EXPECTED.get(task, set()) < test.keys()
    again = evaluate(trained, "validation")
    assert again["loss"] == pytest.approx(next(line["validation_loss"] for line in lines if "validation_loss" in line))
    if task == "forecasting":  # windows that overlap are drawn together
        windows = sum((batch["example_ids"] >= 0).sum() for batch in trained.task.batches(
            trained.source, "test").evaluation())  # fmt: skip
        assert len(measured(trained)["loss"].statistics) == -(-windows // (2 * config.data.horizon)) < windows
    found = baselines.baselines(trained, "test")
    assert found.keys() == BASELINES.get(task, set())
    empty = dataclasses.replace(trained, data=lambda: without(trained.source, "test"))
    with pytest.raises(UserError, match="'test' holds no example to evaluate on: name another --split"):
        evaluate(empty, "test")
    lines_in = ["uno due", "", "tre"]
    if task in ("translation", "summarization", "language_model", "prompts", "text_classification"):
        out = generate(trained, lines_in)
        assert len(out) == 3
        assert out[1] == ""
        if task == "language_model":
            assert trained.task.prompt([5, 7]) == [5, 7], "one long text has no begin"
        if task == "text_classification":
            assert {out[0], out[2]} <= {"negative", "positive"}
    else:
        with pytest.raises(UserError, match=f"task '{task}' turns no line into another"):
            generate(trained, lines_in)


@pytest.mark.parametrize(
    "task",
    ["translation", *(pytest.param(task, marks=pytest.mark.slow) for task in ("text_classification", "language_model")),
     "masked_language_model"],
)  # fmt: skip
def test_statistics_are_of_examples_and_not_of_batches(
    task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """So an interval draws examples (rows of a packed text), and runs with other batches are compared pair by pair."""
    train(configured(task, tmp_path / "data", steps=1, **{"data.buckets": (8, 32)}), tmp_path / "run", quiet=True)
    trained = load_run(tmp_path / "run")
    config = override(trained.config, {"data.batch_tokens": 96, "data.buckets": (32,)})
    other = dataclasses.replace(trained, config=config, task=task_class(task)(config, trained.tokenizer))
    found, expected = measured(other), measured(trained)
    assert found.keys() == expected.keys()
    of_batches = {name: metric for name, metric in found.items() if metric.units is not None}
    assert of_batches.keys() >= {"loss"} | ({"accuracy", "macro_f1"} & found.keys())
    for name, metric in of_batches.items():
        np.testing.assert_array_equal(metric.units, expected[name].units, err_msg=name)
        np.testing.assert_allclose(metric.statistics, expected[name].statistics, rtol=1e-4, atol=1e-4, err_msg=name)
    units = expected["loss"].units
    assert units is not None
    if task in ("translation", "text_classification"):
        assert [unit >> 32 if task == "translation" else unit for unit in units.tolist()] == list(range(30))
    else:
        assert len(units) == sum((batch["targets"] > 0).any(axis=1).sum() for batch in trained.task.batches(
            trained.source, "test").evaluation()) > 1  # fmt: skip
    if task == "translation":
        texts = [example["en"] for example in trained.source.split("test")]
        assert expected["bits_per_byte"].statistics[:, 1].tolist() == [len(text.encode()) for text in texts]
        assert expected["word_perplexity"].statistics[:, 1].tolist() == [len(text.split()) for text in texts]
    if task == "masked_language_model":
        assert len(units) < 10
        assert evaluate(trained, "test", resamples=20)["intervals"] == dict.fromkeys(found)
        assert "no interval of loss, perplexity, token_accuracy: fewer than 10" in capsys.readouterr().err


def test_long_examples_are_told_and_treated_alike_in_training_and_evaluation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Counted by a loop over the texts; the key names the rule, and without it evaluation reads all pairs."""
    limit = {"data.max_len": 4, "data.buckets": (4, 8), "data.tokenizer": "words"}
    train(configured("translation", tmp_path / "data", steps=1, **limit), tmp_path / "run")
    lines = capsys.readouterr().err.splitlines()
    trained = load_run(tmp_path / "run")
    noted = json.loads((tmp_path / "run" / "data.json").read_text())
    long: dict[str, list[bool]] = {}
    for split, key in (("train", "too_long"), ("validation", "validation_too_long"), ("test", "")):
        pairs = [(e["it"], e["en"]) for e in trained.source.split(split)]
        lengths = [max(len(trained.tokenizer.encode(text)) + 1 for text in pair) for pair in pairs]
        long[split] = [length > 4 for length in lengths]
        told = {"rule": "drop", "longer": sum(long[split]), "of": len(pairs), "longest": max(lengths), "limit": 4,
                "noun": "pairs", "unit": "tokens"}  # fmt: skip
        assert 0 < told["longer"] < len(pairs)
        if key:
            assert noted[key] == told
            said = f"{split}: {told['longer']} of {len(pairs)} pairs are longer than data.max_len=4"
            assert sum(f"{said} (the longest has {max(lengths)} tokens): left out" in line for line in lines) == 1

    def ruled(rule: str) -> Any:
        config = override(trained.config, {"data.too_long": rule})
        return dataclasses.replace(trained, config=config, task=task_class("translation")(config, trained.tokenizer))

    written = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    (in_training,) = [line for line in written if "validation_loss" in line]
    statistics = {rule: measured(ruled(rule), "validation") for rule in ("", "drop", "cut")}
    found = {rule: report(ruled(rule), "validation", metrics, 0) for rule, metrics in statistics.items()}
    assert found["drop"]["loss"] == pytest.approx(json.loads(in_training)["validation_loss"], rel=1e-5)
    examples = list(trained.source.split("validation"))
    sizes = [len(trained.tokenizer.encode(example["en"])) + 1 for example in examples]
    kept = [size for size, is_long in zip(sizes, long["validation"], strict=True) if not is_long]
    assert found[""]["tokens"] == sum(sizes)
    assert found["drop"]["tokens"] == sum(kept)
    assert found["cut"]["tokens"] == sum(min(size, 4) for size in sizes)
    assert [found[rule]["too_long"]["rule"] for rule in found] == ["keep", "drop", "cut"]
    assert found["drop"]["bleu"] is None, "what is left has fewer than four words"
    assert found["drop"]["bleu_reason"].startswith("no reference has the 4 words")
    assert "tok:13a" in found["cut"]["bleu_signature"]
    err = capsys.readouterr().err
    for done in ("read whole", "left out", "cut there"):
        assert f"pairs are longer than data.max_len=4 (the longest has {max(sizes)} tokens): {done}" in err
    for rule, count in (("", len(sizes)), ("drop", len(kept)), ("cut", len(sizes))):
        assert {len(metric.statistics) for metric in statistics[rule].values()} == {count}
    texts = [example["en"] for example in examples]
    of_bytes = {rule: metrics["bits_per_byte"].statistics[:, 1].tolist() for rule, metrics in statistics.items()}
    assert of_bytes[""] == [len(text) for text in texts]
    assert of_bytes["drop"] == [len(t) for t, is_long in zip(texts, long["validation"], strict=True) if not is_long]
    assert of_bytes["cut"] == [len(" ".join(text.split()[:3])) for text in texts]
    assert len(ruled("cut").task.prompt([9] * 20)) == 4
    assert len(ruled("").task.prompt([9] * 20)) == 21
    with pytest.raises(UserError, match=r"of 20 pairs are longer than data.max_len=4; number \d+ has"):
        evaluate(ruled("refuse"), "validation")


@pytest.mark.parametrize("task", ["translation", "language_model"])
def test_a_test_split_that_is_the_validation_split_is_told(
    task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configured(task, tmp_path / "data", steps=1)
    if task == "translation":
        for name in ("it", "en"):
            shutil.copy(tmp_path / "data" / f"validation.{name}", tmp_path / "data" / f"test.{name}")
    train(config, tmp_path / "run", quiet=True)
    trained = load_run(tmp_path / "run")
    capsys.readouterr()
    assert evaluate(trained, "test")["same_as"] == "validation"
    assert "has no test part of its own: 'test' holds the examples of 'validation'" in capsys.readouterr().err
    assert "same_as" not in evaluate(trained, "validation")


def test_widths_of_both_sides_change_no_figure_of_a_step(tmp_path: Path) -> None:
    """A batch whose sides have widths of their own against the same one padded to one width: losses and gradients, with
    dropout, which depends on the position and not on the width."""
    changes = {"model.dropout": 0.3, "model.vocab_size": 40, "model.num_layers": 2}
    config = configured("translation", tmp_path, **changes)
    task = task_class("translation")(config, Tokenizer.train(iter(["a b"]), 40, "words"))
    random = np.random.default_rng(0)
    rows, widths = 4, (17, 6)
    sides = [[random.integers(3, 40, random.integers(1, width)).tolist() for _ in range(rows)] for width in widths]
    params = task.init(jax.random.key(0))

    def step(source: int, target: int) -> Any:
        numbers = np.arange(rows)
        texts, others = (gather(Tokens.of(s), numbers, w) for s, w in zip(sides, (source, target), strict=True))
        batch = jax.tree.map(jnp.asarray, pair_batch(*texts, *others, numbers))

        def loss(params: Any) -> Any:
            return task.loss(params, batch, jnp.uint32(1), jnp.uint32(2))["loss"][0]

        return jax.jit(jax.value_and_grad(loss))(params)

    for a, b in zip(jax.tree.leaves(step(*widths)), jax.tree.leaves(step(32, 32)), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)


@pytest.mark.slow
def test_a_run_of_scanned_layers_writes_what_one_of_single_layers_does(tmp_path: Path) -> None:
    written = []
    for scanned in (False, True):
        folder = tmp_path / str(scanned)
        changes = {"model.num_layers": 2, "model.scan_layers": scanned, "model.dropout": 0.1}
        train(configured("translation", tmp_path / "data", **changes), folder, quiet=True)
        trained = load_run(folder)
        assert "layer_1" in trained.params["params"]["decoder"]
        written.append((evaluate(trained, "test")["loss"], generate(trained, ["uno due", "tre sei sei"])))
    assert written[0][0] == pytest.approx(written[1][0], rel=1e-4)
    assert written[0][1] == written[1][1]


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        ("translation", {"model.family": "decoder_only"}, "needs model.family='encoder_decoder' or 'recurrent_enc"),
        ("translation", {"model.num_classes": 3}, "has no classes: leave out model.num_classes=3"),
        ("text_classification", {"model.num_classes": 1}, "needs model.num_classes of 2 or more, not 1"),
        ("text_classification", {"model.num_classes": 3}, "sst2 has 2 classes, and model.num_classes=3"),
        ("image_classification", {"model.inputs": "tokens"}, "needs model.inputs='image', not 'tokens'"),
        ("image_classification", {"model.image_size": (14, 14)}, r"28 x 28 .*model.image_size=\(28, 28\)"),
        ("image_classification", {"model.patch_size": 5}, r"patch_size=5 does not divide model.image_size=\(28, 28\)"),
        ("image_classification", {"model.positions": "learned", "model.max_positions": 9}, "16 patches, and .*=9"),
        ("forecasting", {"model.patch_size": 17}, "patch_size=17 is longer than data.max_len=16"),
        ("forecasting", {"data.horizon": 90}, "has 100 steps to look at"),
        ("speech_classification", {"data.max_len": 20}, r"than data.max_len=20; number \d+ has \d+ frames of 10 ms"),
        ("image_classification", {"data.too_long": "drop"}, "says nothing of images, all of one size"),
        ("forecasting", {"data.too_long": "refuse"}, "says nothing of windows of series, all of one size"),
        ("language_model", {"data.too_long": "cut"}, "'cut' is not possible for texts that are read in rows"),
        ("translation", {"data.too_long": "truncate"}, "data.too_long must be one of '', 'drop', 'cut'"),
        ("masked_language_model", {"data.name": "mnist", "data.dir": ""}, "mnist"),
    ],
)
def test_a_mistake_is_one_sentence(task: str, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        train(configured(task, tmp_path / "data", **changes), tmp_path / "run", quiet=True)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "checkpoints").exists()
