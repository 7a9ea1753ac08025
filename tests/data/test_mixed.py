"""Mixtures: exact shares, each member's own order, and what the report says of them."""

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.data.corpora import small_shards, stored
from tests.data.test_blocks import CODER, DATA, KINDS, OPTIONS, content, corpus_of, same
from transformer.data.batches import mixed
from transformer.data.batches.blocks import Blocks, Kind
from transformer.data.batches.contiguous import ContiguousBatches
from transformer.data.batches.corpus import token_shards
from transformer.data.batches.labelled import LabelledBatches
from transformer.data.batches.mixed import Mixed, in_blocks, mixture_line, shares
from transformer.data.batches.packed import PackedBatches
from transformer.data.batches.rows_of_tokens import TokenRows
from transformer.data.sources.source import Source
from transformer.errors import UserError

ENDS = (17, 31, 61)
MIX = {"a": 1.0, "b": 5.0, "c": 2.0}


def mixture(kind: Any, folder: Path, seed: int = 3, **changes: Any) -> tuple[Mixed, Any]:
    data = dataclasses.replace(DATA, cache=str(folder), **changes)
    corpus, columns, _ = corpus_of(kind, folder / "store", 61, data, members=ENDS[:-1], mix=MIX)
    batches = in_blocks(kind, corpus, *columns, data=data, seed=seed, **OPTIONS[kind])
    assert isinstance(batches, Mixed)
    return batches, Kind(kind, corpus, columns, OPTIONS[kind])


@pytest.fixture(autouse=True)
def cycles(monkeypatch: pytest.MonkeyPatch) -> None:
    small_shards(monkeypatch, 11, 350)
    monkeypatch.setattr(mixed, "CYCLE", 24)


@KINDS
def test_a_mixture_is_a_function_of_the_seed_and_the_step(kind: Any, tmp_path: Path) -> None:
    batches, again = mixture(kind, tmp_path / "a")[0], mixture(kind, tmp_path / "b")[0]
    steps = batches.steps_per_epoch
    in_turn = [batches.batch(step) for step in range(2 * steps)]
    for step in (2 * steps - 1, 0, steps, 3):
        same(in_turn[step], again.batch(step))
    for step, batch in enumerate(again.iterate(5, 8), start=5):
        same(in_turn[step], batch)
    other = mixture(kind, tmp_path / "c", seed=4)[0]
    assert any(
        (other.batch(0)[key].shape != array.shape or (other.batch(0)[key] != array).any())
        for key, array in in_turn[0].items()
    )


@KINDS
def test_processes_share_the_rows(kind: Any, tmp_path: Path) -> None:
    batches, _ = mixture(kind, tmp_path)
    parts = [batches.part([number], 4) for number in range(4)]
    for step in (0, 7):
        whole, shared = batches.batch(step), [part.batch(step) for part in parts]
        same(whole, {key: np.concatenate([each[key] for each in shared]) for key in whole})
        same(whole, batches.part([0, 1, 2, 3], 4).batch(step))


def owner_of(row: tuple[int, ...], parts: list[Counter[tuple[int, ...]]]) -> int:
    (owner,) = [number for number, part in enumerate(parts) if row in part]
    return owner


@pytest.mark.parametrize("kind", [kind for kind in OPTIONS if issubclass(kind, TokenRows)])
def test_members_have_their_shares_of_the_rows(kind: Any, tmp_path: Path) -> None:
    """Every 24 rows hold 3, 15 and 6 of the members, and each member's rows are those of its own epochs, in order."""
    batches, _ = mixture(kind, tmp_path)
    members = list(batches._members.values())
    rows: list[dict[str, np.ndarray]] = []
    for step in range(60):
        batch = batches.batch(step)
        rows += [{key: array[row] for key, array in batch.items()} for row in range(len(batch["targets"]))]
    owners, numbers = batches._owned(np.arange(len(rows)))
    for start in range(0, len(rows) - 24, 24):
        assert Counter(owners[start : start + 24].tolist()) == {0: 3, 1: 15, 2: 6}
    assert len({tuple(owners[start : start + 24]) for start in range(0, 240, 24)}) > 5  # in other orders
    for place, member in enumerate(members):
        own = np.flatnonzero(owners == place)
        assert numbers[own].tolist() == list(range(len(own)))
        count = member.facts.rows
        real = [batch for epoch in range(-(-len(own) // count)) for batch in _rows(member, epoch)]
        for row, expected in zip(own.tolist(), real, strict=False):
            for key, array in expected.items():
                np.testing.assert_array_equal(rows[row][key], array)
    assert len(rows) > 2 * members[1].facts.rows


def _rows(member: Blocks, epoch: int) -> list[dict[str, np.ndarray]]:
    """The rows of an epoch of a member, from its batches, without padding rows."""
    batches = [member.batch(step) for step in range(epoch * member.facts.steps, (epoch + 1) * member.facts.steps)]
    rows = [
        {key: array[row] for key, array in batch.items()} for batch in batches for row in range(len(batch["targets"]))
    ]
    marks = ("target_lengths", "target_segments", "input_segments")
    return [row for row in rows if any(np.any(row[mark] > 0) for mark in marks if mark in row)]


@pytest.mark.parametrize("kind", [kind for kind in OPTIONS if not issubclass(kind, TokenRows)])
def test_members_have_their_shares_of_the_steps(kind: Any, tmp_path: Path) -> None:
    batches, _ = mixture(kind, tmp_path)
    members = list(batches._members.values())
    read = [0, 0, 0]
    for step in range(48):
        owners, _ = batches._owned(np.array([step]))
        owner = int(owners[0])
        same(batches.batch(step), members[owner].batch(read[owner]))
        read[owner] += 1
    assert read == [6, 30, 12]


@KINDS
def test_the_report_of_a_mixture(kind: Any, tmp_path: Path) -> None:
    batches, _ = mixture(kind, tmp_path)
    report = batches.report
    assert list(report["mix"]) == ["a", "b", "c"]
    assert [own["weight"] for own in report["mix"].values()] == [1.0, 5.0, 2.0]
    steps = report["steps_per_epoch"]
    per_row = isinstance(next(iter(batches._members.values()))._open(0), TokenRows)
    unit = "rows" if per_row else "steps"
    sizes = [getattr(member.facts, unit) for member in batches._members.values()]
    assert steps == -(-sum(sizes) // report["shapes"][0][0]) if per_row else steps == sum(sizes)
    held = np.zeros(3)
    for step in range(240):  # 10 cycles of steps, or of rows at least
        batch = batches.batch(step)
        together = len(batch["targets" if "targets" in batch else "inputs"]) if per_row else 1
        owners, _ = batches._owned(step * together + np.arange(together))
        for side in ("input", "target"):
            marks = batch.get(f"{side}_segments")
            filled = (marks > 0).sum(1) if marks is not None else batch.get(f"{side}_lengths", np.zeros(len(owners)))
            np.add.at(held, owners, filled if per_row else filled.sum())
    for number, own in enumerate(report["mix"].values()):
        assert own["share"] == pytest.approx(held[number] / held.sum(), abs=0.03)
        units = steps * (report["shapes"][0][0] if per_row else 1) * (3, 15, 6)[number] / 24
        assert own["epochs"] == pytest.approx(units / sizes[number])
    assert sum(own["share"] for own in report["mix"].values()) == pytest.approx(1)
    line = mixture_line(report["mix"])
    assert line.startswith(f"mixture: a {report['mix']['a']['share']:.1%} of the tokens (")


@KINDS
def test_all_members_are_evaluated(kind: Any, tmp_path: Path) -> None:
    """Evaluated on `train`, a mixture holds every example once, as blocks without a mixture do."""
    batches, found = mixture(kind, tmp_path)
    plain = Blocks(found, range(len(found.corpus)), data=batches.data, seed=0)
    assert batches.evaluated.tolist() == plain.evaluated.tolist()
    assert batches.longer_than(9) == plain.longer_than(9)
    if "example_ids" in batches.batch(0):
        ids = [np.concatenate([batch["example_ids"] for batch in each.evaluation()]) for each in (batches, plain)]
        assert sorted(ids[0].tolist()) == sorted(ids[1].tolist())
    if kind in (PackedBatches, ContiguousBatches, LabelledBatches):
        mine, other = (Counter(r for b in each.evaluation() for r in content(b)) for each in (batches, plain))
        assert kind is PackedBatches or mine == other
        assert sum(len(r) * n for r, n in mine.items()) == sum(len(r) * n for r, n in other.items())
    whole = batches.part([0, 1], 2)
    for a, b in zip(batches.evaluation(23), whole.evaluation(23), strict=True):
        same(a, b)


def test_only_train_is_a_mixture(tmp_path: Path) -> None:
    text = [f"text {number}" for number in range(30)]
    splits = {"train": {"text": text}, "validation": {"text": text[:20]}}
    source: Source = stored(tmp_path / "store", splits, members=[13], mix={"a": 1.0, "b": 1.0})
    data = dataclasses.replace(DATA, cache=str(tmp_path))
    train, validation = (token_shards(source, split, ["text"], CODER, data) for split in ("train", "validation"))
    assert [list(numbers) for _, numbers in train.members.values()] == [[0, 1], [2, 3]]
    assert not validation.members
    assert isinstance(in_blocks(PackedBatches, validation, data=data, seed=0), Blocks)


def test_a_member_without_an_example(tmp_path: Path) -> None:
    source = stored(tmp_path / "store", {"train": {"text": ["x"] * 3}}, members=[3], mix={"a": 1.0, "b": 1.0})
    with pytest.raises(UserError, match=r"^'b' in data.mix has no example to train on"):
        token_shards(source, "train", ["text"], CODER, dataclasses.replace(DATA, cache=str(tmp_path)))


@given(weights=st.lists(st.floats(0.01, 50), min_size=1, max_size=7))
def test_shares_are_the_nearest_whole_numbers(weights: list[float]) -> None:
    named = {str(number): weight for number, weight in enumerate(weights)}
    assume(min(weights) / sum(weights) * 2048 >= 1)
    counts = shares(named, 2048)
    assert sum(counts) == 2048
    assert all(abs(n - w / sum(weights) * 2048) < 1 for n, w in zip(counts, weights, strict=True))


def test_a_share_of_less_than_a_row() -> None:
    with pytest.raises(UserError, match=r"^'b' in data.mix has less than one of 2048 rows with a weight of 0.1: raise"):
        shares({"a": 1000.0, "b": 0.1}, 2048)
