import dataclasses
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transformer.config import DataConfig
from transformer.data.batches.base import Batches
from transformer.data.batches.corpus import tokenize
from transformer.data.batches.packed import PackedBatches, pack
from transformer.data.batches.pairs import PairBatches
from transformer.data.batches.tokens import Tokens
from transformer.data.sources import load_source
from transformer.data.tokenizers import Tokenizer
from transformer.data.tokenizers.training import load_or_train
from transformer.errors import UserError

PAD, BOS, EOS = Tokenizer.pad_id, Tokenizer.bos_id, Tokenizer.eos_id
PAIRS = DataConfig(max_len=20, buckets=(4, 8, 16, 32, 64), batch_tokens=64, row_multiple=4)
PACKED = DataConfig(max_len=11, batch_tokens=64, row_multiple=4)


def texts(count: int, longest: int, seed: int) -> list[list[int]]:
    """Random texts of 0 to `longest` tokens."""
    random = np.random.default_rng(seed)
    return [random.integers(3, 100, random.integers(0, longest + 1)).tolist() for _ in range(count)]


def pairs(count: int = 211, longest: int = 25, seed: int = 0, data: DataConfig = PAIRS, **options: int) -> PairBatches:
    tokens = {"en": Tokens.of(texts(count, longest, 2 * seed)), "de": Tokens.of(texts(count, longest, 2 * seed + 1))}
    return PairBatches(tokens, **{"seed": 3} | options, data=data)


def packed(count: int = 97, longest: int = 40, data: DataConfig = PACKED, **options: int) -> PackedBatches:
    return PackedBatches({"text": Tokens.of(texts(count, longest, 7))}, **{"seed": 3} | options, data=data)


def epoch(batches: Batches, number: int = 0) -> list[dict[str, np.ndarray]]:
    steps = batches.steps_per_epoch
    return [batches.batch(step) for step in range(number * steps, (number + 1) * steps)]


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key])
        assert a[key].dtype == np.int32


def real(batch: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Which places [B, L] hold no padding, for each side of a batch: by its lengths, or by its segments."""
    lengths = {side: batch[f"{side}_lengths"] for side in ("input", "target") if f"{side}_lengths" in batch}
    padded = [np.arange(batch[f"{side}s"].shape[1]) < each[:, None] for side, each in lengths.items()]
    return padded + [batch[key] > 0 for key in batch if key.endswith("segments")]


def shape_of(batch: dict[str, np.ndarray]) -> tuple[int, ...]:
    """Rows, and the width of each side."""
    return (*batch["inputs"].shape, batch["targets"].shape[1]) if "inputs" in batch else batch["targets"].shape


# --- Both kinds

KINDS = pytest.mark.parametrize("make", [pairs, packed])


@KINDS
def test_a_batch_depends_on_the_seed_and_the_step_only(make) -> None:
    batches, again = make(), make()
    steps = batches.steps_per_epoch
    for step in (2 * steps + 1, 0, steps - 1, steps, 5):  # in any order
        same(batches.batch(step), again.batch(step))
    others = [make(seed=4).batch(step)["targets"] for step in range(3)]
    assert any(not np.array_equal(batches.batch(step)["targets"], other) for step, other in enumerate(others))
    assert any(
        not np.array_equal(a["targets"], b["targets"])
        for a, b in zip(epoch(batches, 0), epoch(batches, 1), strict=True)
    )


@KINDS
def test_iterating_from_a_step_gives_what_the_whole_run_had(make) -> None:
    whole = list(make().iterate(0, 40))
    assert len(whole) == 40
    for start in (0, 1, 17, 39):
        rest = list(make().iterate(start, 40))
        assert len(rest) == 40 - start
        for a, b in zip(whole[start:], rest, strict=True):
            same(a, b)
    assert list(make().iterate(40, 40)) == []


@KINDS
@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_the_rows_of_the_global_batch(make, count: int) -> None:
    whole = make()
    parts = [make().part([index], count) for index in range(count)]
    assert {part.steps_per_epoch for part in parts} == {whole.steps_per_epoch}
    for step in range(12):
        shares = [part.batch(step) for part in parts]
        same(whole.batch(step), {key: np.concatenate([share[key] for share in shares]) for key in shares[0]})
    for together, *shares in zip(whole.evaluation(), *(part.evaluation() for part in parts), strict=True):
        same(together, {key: np.concatenate([share[key] for share in shares]) for key in shares[0]})


@KINDS
def test_the_iterator_stops_its_thread(make) -> None:
    before = set(threading.enumerate())
    iterator = make().iterate(0, 10**9)
    next(iterator)
    iterator.close()
    deadline = time.monotonic() + 5
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not set(threading.enumerate()) - before


@KINDS
def test_the_report_is_what_the_batches_hold(make) -> None:
    batches = make()
    report = batches.report
    assert report["steps_per_epoch"] == batches.steps_per_epoch
    for number in range(2):
        made = epoch(batches, number)
        places = [array for batch in made for array in real(batch)]
        filled = sum(int(array.sum()) for array in places) / sum(array.size for array in places)
        assert report["fill"] == pytest.approx(filled)
        assert {shape_of(batch) for batch in made} == set(report["shapes"])
        if "fills" in report:
            for fill, arrays in zip(report["fills"], zip(*map(real, made), strict=True), strict=True):
                assert fill == pytest.approx(sum(a.sum() for a in arrays) / sum(a.size for a in arrays))
    evaluated = {shape_of(batch) for batch in batches.evaluation(batches.data.max_len)}
    assert evaluated == set(batches.evaluation_shapes)


@KINDS
def test_no_array_is_shared_between_batches(make) -> None:
    batches = make()
    first = batches.batch(0)
    kept = {key: array.copy() for key, array in first.items()}
    for array in first.values():
        array[...] = -7
    same(batches.batch(0), kept)


@KINDS
def test_rows_are_shared_evenly_or_not_at_all(make) -> None:
    with pytest.raises(UserError, match=r"A batch of \d+ rows cannot be shared by 3 shards: .* a multiple of 3"):
        make().part([0], 3).batch(0)
    for shards in ([2], [], [1, 0], [0, 0], [-1]):
        with pytest.raises(ValueError, match=r"shards \[.*\] of 2"):
            make().part(shards, 2)


@KINDS
def test_shards_need_not_lie_side_by_side(make) -> None:
    """As where a process has devices of two parts of the mesh; and two processes may have the same."""
    whole, outer, inner = make(), make().part([0, 3], 4), make().part([1, 2], 4)
    for batch, first, second in zip(
        [*map(whole.batch, range(3)), *whole.evaluation()],
        [*map(outer.batch, range(3)), *outer.evaluation()],
        [*map(inner.batch, range(3)), *inner.evaluation()],
        strict=True,
    ):
        shards = {key: np.split(array, 4) for key, array in batch.items()}
        same(first, {key: np.concatenate([each[0], each[3]]) for key, each in shards.items()})
        same(second, {key: np.concatenate([each[1], each[2]]) for key, each in shards.items()})


# --- Pairs


def check_pair_batch(batch: dict[str, np.ndarray], sources: list[list[int]], targets: list[list[int]]) -> None:
    (_, source_width), (_, width) = batch["inputs"].shape, batch["targets"].shape
    for row, example in enumerate(batch["example_ids"].tolist()):
        source = [*sources[example], EOS] if example >= 0 else []
        target = targets[example] if example >= 0 else []
        ends = [EOS] if example >= 0 else []
        begins = [BOS] if example >= 0 else []

        def padded(values: list[int], width: int = width) -> list[int]:
            return values + [0] * (width - len(values))

        assert batch["inputs"][row].tolist() == padded(source, source_width)
        assert batch["input_lengths"][row] == len(source)
        assert batch["targets"][row].tolist() == padded(target + ends)
        assert batch["target_inputs"][row].tolist() == padded(begins + target)
        assert batch["target_lengths"][row] == len(target + ends)


@given(
    count=st.integers(1, 120),
    longest=st.integers(0, 30),
    seed=st.integers(0, 99),
    batch_tokens=st.sampled_from([1, 64, 256]),
    row_multiple=st.sampled_from([1, 2, 6]),
)
def test_every_pair_exactly_once_an_epoch(
    count: int, longest: int, seed: int, batch_tokens: int, row_multiple: int
) -> None:
    data = DataConfig(max_len=20, buckets=(64, 8, 4, 32), batch_tokens=batch_tokens, row_multiple=row_multiple)
    batches = pairs(count, longest, seed, data=data)
    sources, targets = texts(count, longest, 2 * seed), texts(count, longest, 2 * seed + 1)
    lengths = [max(len(a), len(b)) + 1 for a, b in zip(sources, targets, strict=True)]
    expected = [i for i, length in enumerate(lengths) if length <= 20]
    assert batches.report["kept"] == len(expected)
    assert batches.report["dropped"] == count - len(expected)
    for number in range(2 if expected else 0):
        made = epoch(batches, number)
        ids = np.concatenate([batch["example_ids"] for batch in made])
        assert sorted(ids[ids >= 0].tolist()) == expected
        assert sum(bool((batch["example_ids"] < 0).any()) for batch in made) <= 1
        for batch in made:
            rows, *widths = shape_of(batch)
            assert set(widths) <= {4, 8, 32}
            width = max(widths)
            assert rows % row_multiple == 0
            assert rows * width <= max(batch_tokens, row_multiple * width)
            check_pair_batch(batch, sources, targets)

    made = list(batches.evaluation())
    ids = np.concatenate([batch["example_ids"] for batch in made])
    assert sorted(ids[ids >= 0].tolist()) == list(range(count))
    widths = [max(shape_of(batch)[1:]) for batch in made]
    assert widths == sorted(widths)
    for batch in made:
        check_pair_batch(batch, sources, targets)


def test_long_pairs_are_evaluated_in_wider_buckets_or_as_the_caller_says() -> None:
    lengths = [3, 19, 20, 31, 32, 33, 70]
    tokens = {"en": Tokens.of([[5] * n for n in lengths]), "de": Tokens.of([[6]] * len(lengths))}
    batches = PairBatches(tokens, seed=0, data=PAIRS)
    assert batches.report["dropped"] == 5  # of 20 tokens and the EOS, and more

    def widths(max_len: int | None) -> dict[int, int]:
        made = list(batches.evaluation(max_len))
        return {int(i): b["inputs"].shape[1] for b in made for i in b["example_ids"] if i >= 0}

    assert widths(None) == {0: 4, 1: 32, 2: 32, 3: 32, 4: 64, 5: 64, 6: 96}
    assert widths(33) == {0: 4, 1: 32, 2: 32, 3: 32, 4: 64}
    assert batches.longer_than(33) == 2
    assert widths(1) == {}


# Sources of 4 to 60 tokens and targets of a fifth, as summaries are; texts whose sides are alike; and the other way.
SHORTER = {"summaries": (1, 5), "alike": (1, 1), "expansions": (5, 1)}
WIDE = DataConfig(max_len=64, buckets=(8, 16, 32, 64), batch_tokens=256, row_multiple=4)


def skewed(kind: str, count: int = 600) -> PairBatches:
    lengths = np.random.default_rng(0).integers(4, 61, count)
    sides = [[[5] * int(n) for n in lengths // part] for part in SHORTER[kind]]
    return PairBatches({"en": Tokens.of(sides[0]), "de": Tokens.of(sides[1])}, seed=3, data=WIDE)


@pytest.mark.parametrize("kind", SHORTER)
def test_each_side_has_a_width_of_its_own_where_that_saves_much(kind: str) -> None:
    batches = skewed(kind)
    report = batches.report
    if kind == "alike":
        assert report["shapes"] == [(32, 8, 8), (16, 16, 16), (8, 32, 32), (4, 64, 64)], "nothing to save"
        return
    long, short = (0, 1) if kind == "summaries" else (1, 0)
    shapes = [(rows, *(widths if kind == "summaries" else widths[::-1])) for rows, *widths in report["shapes"]]
    assert shapes == [(32, 8, 8), (16, 16, 16), (8, 32, 8), (4, 64, 16)]
    assert report["fills"][long] > 0.7
    assert report["fills"][short] > 0.5  # 0.16 if both had the bucket of the longer
    for number in range(2):
        ids = np.concatenate([batch["example_ids"] for batch in epoch(batches, number)])
        assert sorted(ids[ids >= 0].tolist()) == list(range(600))


def test_a_few_long_targets_do_not_widen_the_others() -> None:
    """One summary in fifty is as long as its text; without shapes of its own it would pad all others."""
    lengths = np.random.default_rng(0).integers(33, 61, 500)
    targets = np.where(np.arange(500) % 50, 7, lengths)
    sides = {"en": lengths, "de": targets}
    tokens = {name: Tokens.of([[5] * int(n) for n in each]) for name, each in sides.items()}
    batches = PairBatches(tokens, seed=3, data=WIDE)
    assert batches.report["shapes"] == [(4, 64, 8), (4, 64, 64)]
    wide = [batch for batch in epoch(batches) if batch["targets"].shape[1] == 64]
    assert sum(int((batch["example_ids"] >= 0).sum()) for batch in wide) == pytest.approx(10, abs=3)


def test_pairs_that_fill_no_batch_move_to_one_that_holds_them() -> None:
    """So that only the widest shapes of all have padding rows: one of each that no other holds."""
    for kind, most in (("alike", 1), ("summaries", 1), ("expansions", 1)):
        for number in range(3):
            made = epoch(skewed(kind), number)
            assert sum(bool((batch["example_ids"] < 0).any()) for batch in made) <= most
    both = {"en": Tokens.of([[5] * 60] * 41 + [[5] * 3] * 41), "de": Tokens.of([[5] * 3] * 41 + [[5] * 60] * 41)}
    batches = PairBatches(both, seed=0, data=WIDE)
    assert batches.report["shapes"] == [(4, 8, 64), (4, 64, 8)]
    assert sum(bool((batch["example_ids"] < 0).any()) for batch in epoch(batches)) == 2


# --- Too long

LONG = [3, 19, 20, 31, 70]  # with EOS, the last three are beyond 20


def of_lengths(too_long: str) -> PairBatches:
    tokens = {"en": Tokens.of([range(5, 5 + n) for n in LONG]), "de": Tokens.of([[6] * 2] * 4 + [[7] * 25])}
    return PairBatches(tokens, seed=0, data=dataclasses.replace(PAIRS, too_long=too_long))


@pytest.mark.parametrize(
    ("rule", "trained", "evaluated"),
    [("", [0, 1], [0, 1, 2, 3, 4]), ("drop", [0, 1], [0, 1]), ("cut", [0, 1, 2, 3, 4], [0, 1, 2, 3, 4])],
)
def test_what_is_done_with_long_pairs(rule: str, trained: list[int], evaluated: list[int]) -> None:
    batches = of_lengths(rule)
    found = batches.too_long
    assert (found.rule, found.longer, found.of, found.longest, found.limit) == (rule or "drop", 3, 5, 71, 20)
    assert batches.report["too_long"] == found._asdict()
    assert (batches.report["kept"], batches.report["dropped"]) == (len(trained), 5 - len(trained))
    assert batches.evaluated.tolist() == evaluated
    for made, expected in ((epoch(batches), trained), (list(batches.evaluation()), evaluated)):
        rows = {int(i): (b, n) for b in made for n, i in enumerate(b["example_ids"]) if i >= 0}
        assert sorted(rows) == expected
        for example, (batch, row) in rows.items():
            source = [*range(5, 5 + LONG[example])]
            target = [7] * 25 if example == 4 else [6] * 2
            if rule == "cut":
                source, target = source[:19], target[:19]
            lengths = int(batch["input_lengths"][row]), int(batch["target_lengths"][row])
            assert batch["inputs"][row, : lengths[0]].tolist() == [*source, EOS]
            assert batch["targets"][row, : lengths[1]].tolist() == [*target, EOS]
            assert batch["target_inputs"][row, : lengths[1]].tolist() == [BOS, *target]


def test_long_pairs_are_told_or_refused() -> None:
    assert str(of_lengths("").too_long) == (
        "3 of 5 pairs are longer than data.max_len=20 (the longest has 71 tokens): left out"
    )
    assert str(pairs(9, 5).too_long) == "none of 9 pairs is longer than data.max_len=20 (the longest has 6 tokens)"
    with pytest.raises(
        UserError, match=r"^3 of 5 pairs .* number 5 has 71 tokens: .* data.too_long to 'drop' or 'cut'"
    ):
        of_lengths("refuse")
    with pytest.raises(UserError, match=r"^data.too_long='chunk' is not possible for pairs: choose 'drop' or 'cut' or"):
        of_lengths("chunk")


@pytest.mark.parametrize("rule", ["", "chunk", "cut", "drop", "refuse"])
def test_what_is_done_with_long_documents(rule: str) -> None:
    documents = [[*range(5, 5 + n)] for n in (4, 9, 10, 0, 25)]  # with BOS, 10 tokens fill a row of 11
    data = dataclasses.replace(PACKED, too_long=rule)
    if rule == "refuse":
        with pytest.raises(UserError, match=r"^1 of 5 documents are longer than data.max_len=11; number 5 has 26 tok"):
            PackedBatches({"text": Tokens.of(documents)}, seed=0, data=data)
        return
    batches = PackedBatches({"text": Tokens.of(documents)}, seed=0, data=data)
    found = batches.too_long
    assert (found.rule, found.longer, found.of, found.longest) == (rule or "chunk", 1, 5, 26)
    expected = chunks([document for document in documents if document], 11)
    if rule == "cut":
        assert batches.cut_to == 11
        expected = [each for each in expected if each[0][0] == BOS]
    elif rule == "drop":
        expected = chunks(documents[:3], 11)
    assert batches.evaluated.tolist() == ([0, 1, 2] if rule == "drop" else [0, 1, 2, 4])
    assert batches.report["dropped"] == (rule == "drop")
    for made in (epoch(batches), list(batches.evaluation())):
        assert sorted(found for batch in made for found in sequences(batch)) == sorted(expected)


def test_epochs_are_shuffled_within_and_between_buckets() -> None:
    made = [epoch(pairs(2000, 18), number) for number in range(2)]
    widths = [[batch["inputs"].shape[1] for batch in batches] for batches in made]
    assert widths[0] != widths[1]
    assert sorted(widths[0]) == sorted(widths[1])
    assert widths[0] != sorted(widths[0])
    together = [{tuple(sorted(batch["example_ids"].tolist())) for batch in batches} for batches in made]
    assert not together[0] & together[1]


def test_the_order_of_the_data_does_not_drift() -> None:
    # What a seed means is part of every published figure, whatever the version of NumPy.
    tokens = {name: Tokens.of([[5] * (i % 18) for i in range(100)]) for name in ("en", "de")}
    batches = PairBatches(tokens, seed=3, data=PAIRS)
    assert [batches.batch(step)["example_ids"].tolist() for step in (0, 40)] == [
        [24, 7, 41, 76, 95, 25, 40, 22],
        [31, 98, 32, 26],
    ]
    assert pack(np.array([5, 3, 8, 2, 5, 7]), 10, seed=1).tolist() == [2, 1, 0, 0, 2, 1]


def test_pairs_that_do_not_fit() -> None:
    batches = pairs(10, 3, data=DataConfig(max_len=2, buckets=(2,)))
    assert batches.steps_per_epoch == 1
    empty = PairBatches(
        {"en": Tokens.of([[5] * 9]), "de": Tokens.of([[5]])}, seed=0, data=DataConfig(max_len=9, buckets=(9,))
    )
    with pytest.raises(UserError, match=r"None of 1 pairs fits into data\.max_len=9"):
        empty.batch(0)
    assert len(list(empty.evaluation())) == 1


@pytest.mark.parametrize("buckets", [(), (4, 8), (0, 32)])
def test_buckets_that_do_not_cover_max_len(buckets: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"does not cover data\.max_len=20: add a bucket of 20"):
        pairs(data=DataConfig(max_len=20, buckets=buckets))


def test_sizes_that_make_no_sense() -> None:
    for data in (DataConfig(max_len=1), DataConfig(row_multiple=0), DataConfig(batch_tokens=0)):
        with pytest.raises(UserError, match="must be positive"):
            pairs(data=data)


# --- Packed


def sequences(batch: dict[str, np.ndarray]) -> list[tuple[list[int], list[int]]]:
    """(inputs, targets) of every segment; checks that segments are contiguous and positions restart."""
    found = []
    for row in range(len(batch["targets"])):
        segments = batch["target_segments"][row]
        count = int(segments.max(initial=0))
        filled = int((segments > 0).sum())
        assert (segments[:filled] > 0).all()  # padding comes last
        assert (np.diff(segments[:filled]) >= 0).all()
        assert not batch["targets"][row, filled:].any()
        assert not batch["target_inputs"][row, filled:].any()
        assert not batch["target_positions"][row, filled:].any()
        for segment in range(1, count + 1):
            inside = segments == segment
            assert inside.any()
            assert batch["target_positions"][row][inside].tolist() == list(range(inside.sum()))
            found.append((batch["target_inputs"][row][inside].tolist(), batch["targets"][row][inside].tolist()))
    return found


def chunks(documents: list[list[int]], width: int) -> list[tuple[list[int], list[int]]]:
    """What must come out, written as a loop."""
    expected = []
    for document in documents:
        whole = [BOS, *document, EOS]
        for start in range(0, len(whole) - 1, width):
            stop = min(start + width, len(whole) - 1)
            expected.append((whole[start:stop], whole[start + 1 : stop + 1]))
    return expected


@given(
    documents=st.lists(st.lists(st.integers(3, 99), max_size=30), min_size=1, max_size=60),
    width=st.integers(2, 20),
    seed=st.integers(0, 9),
)
def test_every_token_exactly_once_an_epoch(documents: list[list[int]], width: int, seed: int) -> None:
    data = DataConfig(max_len=width, batch_tokens=4 * width, row_multiple=2)
    batches = PackedBatches({"text": Tokens.of(documents)}, seed=seed, data=data)
    expected = sorted(chunks([document for document in documents if document], width))
    assert sorted(found for batch in batches.evaluation() for found in sequences(batch)) == expected
    for number in range(2 if expected else 0):
        made = epoch(batches, number)
        assert {batch["targets"].shape for batch in made} == {(4, width)}
        assert sorted(found for batch in made for found in sequences(batch)) == expected


def test_rows_keep_their_company_from_epoch_to_epoch() -> None:
    made = [[row.tobytes() for batch in epoch(packed(), n) for row in batch["targets"] if row.any()] for n in range(2)]
    assert made[0] != made[1]
    assert sorted(made[0]) == sorted(made[1])


def test_no_documents() -> None:
    batches = PackedBatches({"text": Tokens.of([[], []])}, seed=0, data=PACKED)
    with pytest.raises(UserError, match="None of 2 documents holds a token"):
        batches.batch(0)
    assert list(batches.evaluation()) == []


@given(st.lists(st.integers(1, 50), max_size=200), st.integers(0, 5))
def test_packing_never_overfills(lengths: list[int], seed: int) -> None:
    rows = pack(np.array(lengths, np.int64), 50, seed)
    loads = np.bincount(rows, weights=lengths) if lengths else np.zeros(0)
    assert (loads <= 50).all()
    assert (loads > 0).all()  # rows are numbered without gaps
    assert (loads <= 25).sum() <= 1  # two such rows would fit into one


def test_packing_a_corpus_takes_a_moment() -> None:
    lengths = np.minimum(np.random.default_rng(0).geometric(1 / 200, 20_000), 512)  # about 4 M tokens
    start = time.process_time()
    rows = pack(lengths, 512, 0)
    assert time.process_time() - start < 3
    assert lengths.sum() / ((rows.max() + 1) * 512) > 0.99


# --- Tokens


def corpus(folder: Path) -> DataConfig:
    for split, count in (("train", 40), ("validation", 5), ("test", 5)):
        (folder / f"{split}.en").write_text("".join(f"{split} sentence {i}\n" for i in range(count)))
        (folder / f"{split}.de").write_text("".join(f"Satz {'sehr ' * (i % 4)}{i} {split}\n" for i in range(count)))
    return DataConfig(name="files", dir=str(folder), cache=str(folder / "cache"), vocab_size=300, batch_tokens=256)


def test_text_to_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = corpus(tmp_path)
    source = load_source(data)
    tokenizer = load_or_train(source, data)
    tokens = tokenize(source, "train", source.pair(data), tokenizer, data)
    assert list(tokens) == ["en", "de"]
    train = source.split("train")
    for batch in epoch(PairBatches(tokens, seed=0, data=data)):
        for row, example in enumerate(batch["example_ids"].tolist()):
            if example >= 0:
                assert tokenizer.decode(batch["inputs"][row]) == train[example]["en"]
                assert tokenizer.decode(batch["targets"][row]) == train[example]["de"]

    monkeypatch.setattr(Tokenizer, "encode_batch", lambda *args: pytest.fail("encoded again"))
    again = tokenize(source, "train", source.pair(data), tokenizer, data)
    for name in tokens:
        assert isinstance(again[name].flat.base, np.memmap)
        np.testing.assert_array_equal(tokens[name].flat, again[name].flat)
        np.testing.assert_array_equal(tokens[name].offsets, again[name].offsets)
    same(PairBatches(tokens, seed=0, data=data).batch(1), PairBatches(again, seed=0, data=data).batch(1))


def test_tokens_of_another_split_or_tokenizer_are_others(tmp_path: Path) -> None:
    data = corpus(tmp_path)
    source = load_source(data)
    tokenizer, small = load_or_train(source, data), Tokenizer.train(iter(["x"]), 259)
    sizes = [
        len(tokenize(source, split, ("de",), encoder, data)["de"].flat)
        for split, encoder in (("train", tokenizer), ("test", tokenizer), ("train", small))
    ]
    assert len(set(sizes)) == 3
    with pytest.raises(UserError, match="no split 'tests': did you mean 'test'"):
        tokenize(source, "tests", ("de",), tokenizer, data)
