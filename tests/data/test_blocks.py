"""Blocks: every class of batches over several shards of its tokens, as over one."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.corpora import small_shards, stored
from transformer.config import DataConfig
from transformer.data import preparing
from transformer.data.batches import blocks as blocks_module
from transformer.data.batches import encoding
from transformer.data.batches.base import Batches
from transformer.data.batches.blocks import Blocks, Kind
from transformer.data.batches.contiguous import ContiguousBatches
from transformer.data.batches.corpus import token_shards
from transformer.data.batches.corrupted import MaskedBatches, SpanBatches
from transformer.data.batches.labelled import LabelledBatches
from transformer.data.batches.mixed import in_blocks
from transformer.data.batches.packed import PackedBatches
from transformer.data.batches.pairs import PairBatches
from transformer.data.batches.shards import Corpus
from transformer.data.tokenizers import MASK, Tokenizer, holes
from transformer.errors import UserError

DATA = DataConfig(max_len=23, buckets=(8, 16, 32), batch_tokens=128, row_multiple=4)
CODER = Tokenizer.train(iter([]), 300, "bytes", (MASK, *holes(20)))
OPTIONS: dict[Any, dict[str, Any]] = {
    PackedBatches: {},
    ContiguousBatches: {},
    MaskedBatches: {"tokenizer": CODER},
    PairBatches: {},
    SpanBatches: {"tokenizer": CODER},
    LabelledBatches: {},
}
KINDS = pytest.mark.parametrize("kind", OPTIONS)


def texts(count: int, longest: int = 50, seed: int = 0) -> list[str]:
    """Texts of letters, each of which begins with its own number, in few tokens."""
    random = np.random.default_rng(seed)
    return ["".join(map(chr, random.integers(40, 120, random.integers(0, longest + 1)))) for _ in range(count)]


def corpus_of(
    kind: Any, folder: Path, count: int, data: DataConfig, longest: int = 50, **options: Any
) -> tuple[Corpus, tuple[np.ndarray, ...], list[str]]:
    """The tokens of a store of `count` texts, its labels where the kind has them, and the texts."""
    own = texts(count, longest)
    columns: dict[str, Any] = {"source": own[::-1], "text": own, "label": [number % 3 for number in range(count)]}
    source = stored(folder, {"train": columns}, contiguous=kind is ContiguousBatches, **options)
    fields = ("source", "text") if kind is PairBatches else ("text",)
    labels = source.split("train").numbers("label")
    assert labels is not None
    return token_shards(source, "train", fields, CODER, data), (labels,) * (kind is LabelledBatches), own


def made(kind: Any, folder: Path, count: int = 61, seed: int = 3, **changes: Any) -> Batches:
    data = dataclasses.replace(DATA, cache=str(folder), **changes)
    corpus, columns, _ = corpus_of(kind, folder / "store", count, data)
    return in_blocks(kind, corpus, *columns, data=data, seed=seed, **OPTIONS[kind])


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key])
        assert a[key].dtype == np.int32


def differ(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return any(a[key].shape != b[key].shape or (a[key] != b[key]).any() for key in a)


def epoch(batches: Batches, number: int = 0) -> list[dict[str, np.ndarray]]:
    steps = batches.steps_per_epoch
    return [batches.batch(step) for step in range(number * steps, (number + 1) * steps)]


def content(batch: dict[str, np.ndarray]) -> Iterator[tuple[int, ...]]:
    """The target (or with classes, the input) of each row that is no padding; of packed rows, of each text in it."""
    key = "targets" if "targets" in batch else "inputs"
    segments = next((batch[name] for name in batch if name.endswith("segments")), None)
    if segments is None:
        lengths = batch["target_lengths" if key == "targets" else "input_lengths"]
        yield from (tuple(row[:n].tolist()) for row, n in zip(batch[key], lengths, strict=True) if n)
    else:
        for row, owners in zip(batch[key], segments, strict=True):
            yield from (tuple(row[owners == owner].tolist()) for owner in range(1, owners.max() + 1))


def counted(batches: Any) -> Counter[tuple[int, ...]]:
    return Counter(row for batch in batches for row in content(batch))


@KINDS
def test_one_shard_is_the_class_itself(kind: Any, tmp_path: Path) -> None:
    batches = made(kind, tmp_path)
    assert type(batches) is kind


@KINDS
def test_a_batch_depends_on_the_seed_and_the_step_only(
    kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_shards(monkeypatch, 11, 350)
    batches = made(kind, tmp_path / "a")
    again, other = (made(kind, tmp_path / name, seed=seed) for name, seed in (("b", 3), ("c", 4)))
    assert isinstance(batches, Blocks)
    steps = batches.steps_per_epoch
    assert steps > 4
    in_turn = [batches.batch(step) for step in range(2 * steps + 3)]
    for step in [2 * steps + 1, 0, steps - 1, steps, 3, steps // 2]:  # as after a resume, also within a block
        same(in_turn[step], again.batch(step))
    for start in (steps // 2 - 1, steps - 1):
        for step, batch in enumerate(again.iterate(start, start + 3), start=start):
            same(in_turn[step], batch)
    assert differ(in_turn[0], other.batch(0))
    assert any(differ(in_turn[step], in_turn[steps + step]) for step in range(steps))


@KINDS
def test_processes_share_the_rows(kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_shards(monkeypatch, 11, 350)
    batches = made(kind, tmp_path)
    parts = [batches.part([number], 4) for number in range(4)]
    for step in (0, batches.steps_per_epoch - 1):
        whole, shared = batches.batch(step), [part.batch(step) for part in parts]
        same(whole, {key: np.concatenate([each[key] for each in shared]) for key in whole})
    assert parts[0].report == batches.report


@KINDS
@settings(max_examples=12, deadline=None)
@given(
    count=st.sampled_from([1, 2, 3, 7, 13, 31, 53, 61]),
    size=st.integers(1, 23),
    limit=st.sampled_from([60, 211, 997]),
    too_long=st.sampled_from(["", "drop", "cut"]),
    number=st.integers(0, 2),
)
def test_blocks_hold_what_their_own_batches_hold(
    kind: Any, tmp_path_factory: pytest.TempPathFactory, count: int, size: int, limit: int, too_long: str, number: int
) -> None:
    """Every row once an epoch: exactly what the class holds of each shard by itself."""
    folder = tmp_path_factory.mktemp("blocks")
    data = dataclasses.replace(DATA, cache=str(folder), too_long="" if kind is ContiguousBatches else too_long)
    with pytest.MonkeyPatch.context() as patch:
        small_shards(patch, size, limit)
        corpus, columns, own = corpus_of(kind, folder / "store", count, data)
        batches = Blocks(Kind(kind, corpus, columns, OPTIONS[kind]), range(len(corpus)), data=data, seed=3)
        parts = [
            kind(
                tokens,
                *(column[shard.first : shard.stop] for column in columns),
                data=data,
                seed=batches._seed_of(place),
                **batches._kind.others,
            )
            for place, (tokens, shard) in enumerate(zip(corpus, corpus.shards, strict=True))
        ]
    full = [part for part in parts if part.facts.steps]
    if not full:
        with pytest.raises(UserError, match=r"^None of .* that holds a token fits into data.max_len=23"):
            _ = batches.steps_per_epoch
        return
    assert batches.steps_per_epoch == sum(part.steps_per_epoch for part in full)
    expected = counted(batch for part in full for batch in epoch(part, number))
    assert counted(epoch(batches, number)) == expected
    evaluated = counted(batch for part in parts for batch in part.evaluation(data.max_len))
    assert counted(batches.evaluation(data.max_len)) == evaluated
    numbers = [shard.first + part.evaluated for shard, part in zip(corpus.shards, parts, strict=True)]
    assert batches.evaluated.tolist() == sorted(set(np.concatenate(numbers).tolist()))
    assert batches.longer_than(9) == sum(part.longer_than(9) for part in parts)
    report, reports = batches.report, [part.facts.report(True) for part in parts]
    assert set(report) - {"fills"} == set(full[0].report) - {"fills"}
    assert report["dropped"] == sum(each["dropped"] for each in reports)
    assert set(report["shapes"]) == {shape for each in reports for shape in each["shapes"]}
    assert set(batches.evaluation_shapes) == {shape for part in full for shape in part.evaluation_shapes}
    assert report["too_long"]["longest"] == max(each["too_long"]["longest"] for each in reports)
    assert report["too_long"]["of"] == (batches.evaluated.size if kind is ContiguousBatches else len(own))
    if "example_ids" in batches.batch(0) and kind is not SpanBatches:
        for batch in [*epoch(batches, number), *batches.evaluation(data.max_len)]:
            key = "targets" if kind is PairBatches else "inputs"
            lengths = batch["target_lengths" if kind is PairBatches else "input_lengths"]
            for row, example in enumerate(batch["example_ids"].tolist()):
                if example >= 0:
                    text = CODER.decode(batch[key][row, : lengths[row]])
                    assert own[example].startswith(text)
                    assert len(text) >= min(len(own[example]), data.max_len - 2)


@KINDS
def test_rows_that_are_filled(kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fill of the report is that of the batches of an epoch."""
    small_shards(monkeypatch, 11, 350)
    batches = made(kind, tmp_path)
    filled, positions = 0, 0
    for batch in epoch(batches):
        for side in ("input", "target"):
            if f"{side}_lengths" in batch:
                filled, positions = filled + batch[f"{side}_lengths"].sum(), positions + batch[f"{side}s"].size
            elif f"{side}_segments" in batch:
                filled, positions = filled + (batch[f"{side}_segments"] > 0).sum(), positions + batch["targets"].size
    assert batches.report["fill"] == pytest.approx(filled / positions)


def test_the_first_block_has_the_seed_and_every_other_one_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_shards(monkeypatch, 11, 350)
    batches, other = made(PackedBatches, tmp_path / "a"), made(PackedBatches, tmp_path / "b", seed=4)
    assert isinstance(batches, Blocks)
    assert isinstance(other, Blocks)
    count = len(batches._facts)
    seeds = [each._seed_of(block) for each in (batches, other) for block in range(count)]
    assert (seeds[0], seeds[count]) == (3, 4)
    assert len(set(seeds)) == 2 * count
    assert [batches._open(block).seed for block in range(count)] == seeds[:count]


def test_what_is_refused_is_named_by_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_shards(monkeypatch, 11, 350)
    lengths = [len(text) for text in texts(61)]
    data = dataclasses.replace(DATA, cache=str(tmp_path), too_long="refuse")
    corpus, _, _ = corpus_of(PackedBatches, tmp_path / "store", 61, data)
    longer = sum(n > 0 and n + 1 > 23 for n in lengths)
    message = rf"^{longer} of 61 documents .* number {np.argmax(lengths) + 1} has {max(lengths) + 1} tokens: .*'chunk'"
    with pytest.raises(UserError, match=message):
        in_blocks(PackedBatches, corpus, data=data, seed=0)


# --- Constant memory, and nothing read twice


def test_facts_are_found_once_for_all_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_shards(monkeypatch, 11, 350)
    monkeypatch.setattr(preparing, "PARALLEL_ABOVE", 0)
    monkeypatch.setattr(preparing, "cores", lambda: 2)
    data = dataclasses.replace(DATA, cache=str(tmp_path))
    corpus, _, _ = corpus_of(PackedBatches, tmp_path / "store", 61, data)
    found = Kind(PackedBatches, corpus).facts(data)  # by two processes
    monkeypatch.setattr(preparing, "cores", lambda: 1)
    monkeypatch.setattr(blocks_module.Find, "__call__", lambda *args: pytest.fail("found again"))
    opened: list[int] = []
    monkeypatch.setattr(Corpus, "__getitem__", opening(opened, Corpus.__getitem__))
    batches = Blocks(Kind(PackedBatches, corpus), range(len(corpus)), data=data, seed=8)
    assert batches.report["kept"] == sum(each.kept for each in found)
    batches.batch(0)
    assert len(set(opened)) <= 3 < len(corpus)  # block 0, that of step 0, and the next one
    with pytest.raises(pytest.fail.Exception, match="found again"):
        Kind(PackedBatches, corpus).facts(dataclasses.replace(data, max_len=17))


def opening(opened: list[int], before: Callable[..., Any]) -> Callable[..., Any]:
    def get(corpus: Corpus, number: int) -> Any:
        opened.append(number)
        return before(corpus, number)

    return get


def test_few_blocks_are_in_memory_and_the_next_one_is_opened_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_shards(monkeypatch, 11, 350)
    batches = made(PackedBatches, tmp_path)
    assert isinstance(batches, Blocks)
    opened: list[int] = []
    monkeypatch.setattr(Corpus, "__getitem__", opening(opened, Corpus.__getitem__))
    plan = batches._plan(0)
    for step in range(batches.steps_per_epoch):
        batches.batch(step)
        assert len(batches._opened) <= 2
        block = next(block for block, end in plan if step < end)
        following = [after for (own, end), (after, _) in pairwise(plan) if step == end - 1]
        assert set(following) <= set(batches._opened)
        assert block in batches._opened
    batches._begin(0).result()
    assert len(opened) <= len(batches._facts) + 2  # each once, and perhaps the first again


def test_labels_of_a_block_are_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_shards(monkeypatch, 11, 350)
    batches = made(LabelledBatches, tmp_path)
    both = (zip(batch["example_ids"], batch["labels"], strict=True) for batch in epoch(batches))
    seen = list(chain.from_iterable(both))
    assert len(seen) > 40
    assert all(label == i % 3 for i, label in seen if i >= 0)


def test_contiguous_rows_hold_the_text_of_a_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "MOST_BYTES", 400)
    batches = made(ContiguousBatches, tmp_path)
    assert isinstance(batches, Blocks)
    text = "".join(texts(61))
    written = [CODER.decode(row) for row in counted(epoch(batches))]
    assert all(row in text for row in written)
    assert sum(map(len, written)) > 0.7 * len(text)
    assert batches.report["kept"] <= 61


def test_blocks_have_the_shapes_of_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Narrow shapes that only the first block would choose are used in all of them: one program each."""
    small_shards(monkeypatch, 120, 10**6)
    long, short = "x" * 27, "y" * 3
    rows = [(long, short), (long, long)] * 60 + [(long, short)] * 10 + [(long, long)] * 110
    columns = {"source": [source for source, _ in rows], "text": [text for _, text in rows]}
    source = stored(tmp_path / "store", {"train": columns})
    data = dataclasses.replace(DATA, max_len=32, batch_tokens=256, cache=str(tmp_path))
    corpus = token_shards(source, "train", ("source", "text"), CODER, data)
    batches = in_blocks(PairBatches, corpus, data=data, seed=0)
    alone = [PairBatches(tokens, data=data, seed=0).report["shapes"] for tokens in corpus]
    assert alone == [[(8, 32, 8), (8, 32, 32)], [(8, 32, 32)]]
    assert batches.report["shapes"] == alone[0]
    assert isinstance(batches, Blocks)
    assert (8, 32, 8) in [batch["inputs"].shape + batch["targets"].shape[1:] for batch in epoch(batches._open(1))]
    same(batches._open(0).batch(0), PairBatches(corpus[0], data=data, seed=0).batch(0))
