"""Splits of any size are prepared in bounded memory, in TFDS's order."""

import random
from pathlib import Path

import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core import shuffle
from tensorflow_datasets.core.utils import shard_utils

from transformer.config import DataConfig
from transformer.data import sorting
from transformer.data.builder import of_texts, prepared, quiet
from transformer.data.sources import load_source
from transformer.data.sources.built import from_builder

ROW = sorting.RECORD_BYTES + 50


@pytest.fixture(params=[2, 5, 1000])  # rows of 50 bytes in memory: many merged runs, some runs, none
def _small(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sorting, "RUN_BYTES", request.param * ROW)
    monkeypatch.setattr(sorting, "MOST_RUNS", 3)


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("unshuffled", [False, True])
def test_the_order_is_that_of_tfds(tmp_path: Path, unshuffled: bool) -> None:
    draw = random.Random(0)
    keys = draw.sample(range(10**6), 57)
    rows = [(key, draw.randbytes(draw.randint(0, 99))) for key in keys]
    ours = sorting.Shuffler(tmp_path, "salt", disable_shuffling=unshuffled)
    theirs = shuffle.Shuffler(tmp_path, "salt", disable_shuffling=unshuffled)
    for key, data in rows:
        ours.add(key, data)
        theirs.add(key, data)
        assert ours._held_bytes <= max(sorting.RUN_BYTES, ROW + 50)
        assert len(ours._runs) <= 3
    assert list(ours) == list(theirs)
    assert (ours.size, ours.num_examples) == (theirs.size, theirs.num_examples)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("_small")
def test_keys_that_repeat(tmp_path: Path) -> None:
    keys = [*range(20), 3]
    ours = sorting.Shuffler(tmp_path, "salt")
    for key in keys:
        ours.add(f"name {key}", bytes(50))
    with pytest.raises(shuffle.DuplicatedKeysError):
        list(ours)
    ours = sorting.Shuffler(tmp_path, "salt", ignore_duplicates=True)
    for key in keys:
        ours.add(f"name {key}", bytes(50))
    assert len(list(ours)) == ours.num_examples == 20


TEXTS = [f"{i} " + "x" * 40 for i in range(300)]


@pytest.mark.parametrize("shuffled", [False, True])
def test_a_split_larger_than_memory_is_written_in_several_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shuffled: bool
) -> None:
    def read(cache: str) -> tuple[int, list[str]]:
        splits = {"train": lambda: iter([{"text": text} for text in TEXTS])}
        builder = prepared(
            of_texts("toy", ("text",), splits, shuffled=shuffled), DataConfig(cache=str(tmp_path / cache))
        )
        assert not [
            path
            for path in Path(builder.data_path).iterdir()
            if "toy-train" not in path.name and path.suffix != ".json"
        ]
        source = from_builder("toy", builder, "")
        return builder.info.splits["train"].num_shards, [example["text"] for example in source.split("train")]

    whole = read("whole")
    monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 1000)  # above it, TFDS would need TensorFlow
    monkeypatch.setattr(sorting, "RUN_BYTES", 10 * ROW)
    monkeypatch.setattr(shard_utils.ShardConfig, "min_shard_size", 4000)
    monkeypatch.setattr(shard_utils.ShardConfig, "max_shard_size", 8000)
    cut = read("cut")
    assert (whole[0], cut[0]) == (1, 4)
    assert whole[1] == cut[1]
    assert (cut[1] == TEXTS) != shuffled
    assert sorted(cut[1]) == sorted(TEXTS)


def test_a_dataset_by_name_is_prepared_so_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is downloaded: its keys are names."""
    with tfds.core.registered.skip_registration():

        class TinyLines(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.0.0")
            code_path = None

            def _info(self) -> tfds.core.DatasetInfo:
                return tfds.core.DatasetInfo(
                    builder=self, features=tfds.features.FeaturesDict({"text": tfds.features.Text()})
                )

            def _split_generators(self, dl_manager: object) -> dict:
                return {"train": ((f"line {i}", {"text": text}) for i, text in enumerate(TEXTS))}

            def _generate_examples(self) -> None: ...

    monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 1000)
    monkeypatch.setattr(sorting, "RUN_BYTES", 10 * ROW)
    monkeypatch.setattr(tfds, "builder", lambda name, data_dir: TinyLines(data_dir=data_dir or tmp_path / "none"))
    data = DataConfig(name="tiny_lines", cache=str(tmp_path), source="", target="text")
    with quiet():
        source = load_source(data)
    parts = {split: [example["text"] for example in source.split(split)] for split in source.splits}
    assert sorted(parts["train"] + parts["validation"]) == sorted(TEXTS)
