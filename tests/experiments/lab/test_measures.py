"""What is measured agrees with the library's own evaluation, and its parts add up to the whole."""

import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from experiments import attention_scale
from experiments.lab.measures import describe, main_metrics, measure
from transformer.config import Config, override
from transformer.data.tokenizers import Tokenizer
from transformer.errors import UserError
from transformer.evaluation.splits import loss_metrics
from transformer.tasks import task_class
from transformer.tasks.trained import Trained

WORDS = "one two three four five six seven eight".split()


class _Examples(list):
    members = ()

    def texts(self, name: str) -> None:
        """They are in no memory-mapped column."""

    def many(self, indices: Any) -> list[dict[str, str]]:
        return [self[i] for i in indices]


class _Source:
    """Sentences of 2 to 6 words in training and test, of 7 to 12 in `longer`; the translation is the reverse."""

    def __init__(self, fields: tuple[str, ...], folder: Path) -> None:
        self.fields, self.fingerprint, self.contiguous, self.mix = fields, str(folder), False, {}
        rng = np.random.default_rng(0)
        sizes = {"train": (60, 2, 7), "test": (23, 2, 7), "longer": (19, 7, 13)}
        self.splits = tuple(sizes)
        self._examples = {}
        for split, (count, low, high) in sizes.items():
            texts = [rng.choice(WORDS, rng.integers(low, high)) for _ in range(count)]
            self._examples[split] = _Examples(
                {field: " ".join(text[:: 1 - 2 * place]) for place, field in enumerate(fields)} for text in texts
            )

    def split(self, name: str) -> _Examples:
        return self._examples[name]

    def field(self, name: str) -> str:
        return name

    def pair(self, data: Any) -> tuple[str, ...]:
        return self.fields


def _trained(tmp_path: Path, fields: tuple[str, ...], **changes: Any) -> Trained:
    source = _Source(fields, tmp_path)
    small = {
        "data.cache": str(tmp_path), "data.max_len": 16, "data.buckets": [16], "data.batch_tokens": 512,
        "model.num_layers": 1, "model.d_model": 16, "model.d_ff": 16, "model.num_heads": 2, "model.max_positions": 16,
        "mesh.data": 1,
    }  # fmt: skip
    config = override(Config(), small | {key.replace("__", "."): value for key, value in changes.items()})
    tokenizer = Tokenizer.train([example[fields[0]] for example in source.split("train")], 280)
    task = task_class(config.task)(config, tokenizer)
    params = task.init(jax.random.key(0))
    return Trained(config, tokenizer, task, params, 0, data=lambda: source)


@pytest.mark.parametrize("positions", [pytest.param("sinusoidal", marks=pytest.mark.slow), "learned"])
def test_a_translation_is_measured_as_the_library_does(tmp_path: Path, positions: str) -> None:
    trained = _trained(tmp_path, ("en", "de"), model__positions=positions, data__max_len=16)
    found = measure(trained)
    own = {name: metric.total for name, metric in loss_metrics(trained, "test").items()}
    assert found["metrics"]["test/loss"] == pytest.approx(own["loss"], rel=1e-5)
    assert found["metrics"]["test/token_accuracy"] == pytest.approx(own["token_accuracy"], rel=1e-5)
    assert found["metrics"]["test/perplexity"] == pytest.approx(math.exp(own["loss"]), rel=1e-4)
    assert 0 <= found["metrics"]["test/exact_match"] <= 1
    fits = [e for e in trained.source.split("test")[:5] if max(len(trained.tokenizer.encode(e[f])) for f in e) < 16]
    assert [(sample["source"], sample["reference"]) for sample in found["samples"]] == [
        (e["en"], e["de"]) for e in fits
    ]
    assert all(isinstance(sample["output"], str) for sample in found["samples"])

    table = found["by_length"]
    lengths = {
        split: [max(len(trained.tokenizer.encode(e[f])) + 1 for f in ("en", "de")) for e in trained.source.split(split)]
        for split in ("train", "test", "longer")
    }
    assert table["trained_to"] == max(n for n in lengths["train"] if n <= 16)
    assert table["rows"][-1]["high"] == 2 * table["trained_to"]
    for row in table["rows"]:
        assert row["count"] == sum(row["low"] < n <= row["high"] for n in lengths["test"] + lengths["longer"])
        assert (row["loss"] is None) == (row["count"] == 0 or (positions == "learned" and row["high"] > 16))
    if positions == "learned":
        assert found["metrics"]["longer/loss"] is None
        over = sum(n > 16 for n in lengths["longer"])
        assert over
        assert f"The position table has 16 rows, and {over} of the 19 sentences" in found["notes"][0]
    else:
        assert found["metrics"]["longer/loss"] == pytest.approx(loss_metrics(trained, "longer")["loss"].total, rel=1e-5)
        assert found["notes"] == []


def test_a_split_of_nothing_is_a_sentence(tmp_path: Path) -> None:
    trained = _trained(tmp_path, ("en", "de"))
    trained.source._examples["empty"] = _Examples()
    with pytest.raises(UserError, match="'empty' holds no example to evaluate on: name another --split"):
        loss_metrics(trained, "empty")


def test_a_language_model_is_measured_as_the_library_does(tmp_path: Path) -> None:
    trained = _trained(
        tmp_path, ("text",), task="language_model", model__family="decoder_only", data__target="text",
        data__max_len=64, data__buckets=[64], model__max_positions=64,
    )  # fmt: skip
    found = measure(trained)
    own = {name: metric.total for name, metric in loss_metrics(trained, "test").items()}
    assert found["metrics"]["test/loss"] == pytest.approx(own["loss"], rel=1e-5)
    tokens = loss_metrics(trained, "test")["loss"].statistics[:, 1].sum()
    size = sum(len(example["text"].encode()) for example in trained.source.split("test"))
    for bits in (own["bits_per_byte"], found["metrics"]["test/bits_per_byte"]):
        assert bits == pytest.approx(own["loss"] * tokens / math.log(2) / size, rel=1e-5)
    assert found["metrics"]["test/bytes_per_token"] == pytest.approx(size / tokens)
    rows = found["by_length"]["rows"]
    assert [(row["low"], row["high"]) for row in rows] == [(0, 16), (16, 32), (32, 64)]
    assert sum(row["count"] for row in rows) == tokens
    mean = sum(row["loss"] * row["count"] for row in rows if row["count"]) / tokens
    assert mean == pytest.approx(own["loss"], rel=1e-5)


def test_metrics_are_named_for_readers() -> None:
    assert describe("test/exact_match").label == "exact match on test"
    assert describe("longer/bleu").label == "BLEU on longer sentences"
    assert describe("surprise").label == "surprise"
    assert describe("test/loss").better == -1
    translation = Config()
    assert main_metrics(translation)[:2] == ["test/exact_match", "longer/bleu"]
    assert main_metrics(override(translation, {"data.name": "multi30k"}))[0] == "test/bleu"
    assert main_metrics(override(translation, {"task": "language_model"}))[0] == "test/loss"


def test_unscaled_scores_make_attention_sharper_from_the_start(tmp_path: Path) -> None:
    wide = {"model__d_model": 64, "model__num_heads": 1}
    found = {
        scaled: attention_scale.sharpness(_trained(tmp_path, ("en", "de"), model__scale_attention=scaled, **wide))
        for scaled in (True, False)
    }
    for values in found.values():
        assert 0 < values["test/entropy_at_start"] < math.log(16)
        assert values["test/entropy"] == pytest.approx(values["test/entropy_at_start"], rel=1e-6), "seed 0, not trained"
        assert values["test/gradient_at_start"] > 0
    assert found[False]["test/entropy_at_start"] < 0.7 * found[True]["test/entropy_at_start"]
