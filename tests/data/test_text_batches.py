"""Batches of labelled, masked, span-corrupted and contiguous texts: what each row holds, and that nothing is lost."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transformer.config import Config, DataConfig, ModelConfig
from transformer.data.batches.base import Batches
from transformer.data.batches.contiguous import ContiguousBatches
from transformer.data.batches.corpus import read_labels
from transformer.data.batches.corrupted import MaskedBatches, SpanBatches, hidden_and_spans, holes_needed, span_widths
from transformer.data.batches.labelled import LabelledBatches
from transformer.data.batches.tokens import Tokens
from transformer.data.sources import load_source
from transformer.data.sources.source import Examples
from transformer.data.tokenizers import MASK, Tokenizer, holes
from transformer.errors import UserError
from transformer.tasks.untrained import task_of

PAD, BOS, EOS = Tokenizer.pad_id, Tokenizer.bos_id, Tokenizer.eos_id
DATA = DataConfig(max_len=23, buckets=(8, 16, 32), batch_tokens=128, row_multiple=4)
MASKER = Tokenizer.train(iter([]), 300, "bytes", (MASK,))
HOLER = Tokenizer.train(iter([]), 300, "bytes", holes(20))


def texts(count: int = 83, longest: int = 60, seed: int = 5) -> list[list[int]]:
    random = np.random.default_rng(seed)
    return [random.integers(40, 250, random.integers(0, longest + 1)).tolist() for _ in range(count)]


def labelled(data: DataConfig = DATA, **options: int) -> LabelledBatches:
    return LabelledBatches({"text": Tokens.of(texts())}, np.arange(83) % 7, **{"seed": 3} | options, data=data)


def masked(data: DataConfig = DATA, **options: int) -> MaskedBatches:
    return MaskedBatches({"text": Tokens.of(texts())}, **{"seed": 3} | options, data=data, tokenizer=MASKER)


def spans(data: DataConfig = DATA, **options: int) -> SpanBatches:
    return SpanBatches({"text": Tokens.of(texts())}, **{"seed": 3} | options, data=data, tokenizer=HOLER)


def contiguous(data: DataConfig = DATA, **options: int) -> ContiguousBatches:
    return ContiguousBatches({"text": Tokens.of(texts())}, **{"seed": 3} | options, data=data)


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


# --- All kinds

KINDS = pytest.mark.parametrize("make", [labelled, masked, spans, contiguous])


@KINDS
def test_a_batch_depends_on_the_seed_and_the_step_only(make) -> None:
    batches, again = make(), make()
    steps = batches.steps_per_epoch
    for step in (2 * steps + 1, 0, steps - 1, steps, 3):  # in any order
        same(batches.batch(step), again.batch(step))
    for a, b in zip(batches.iterate(3, 9), (again.batch(step) for step in range(3, 9)), strict=True):
        same(a, b)
    key = "inputs" if "inputs" in batches.batch(0) else "target_inputs"
    for other in (make(seed=4).batch(0), batches.batch(steps)):
        assert batches.batch(0)[key].shape != other[key].shape or (batches.batch(0)[key] != other[key]).any()


@KINDS
@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_the_rows_of_the_global_batch(make, count: int) -> None:
    whole = make()
    parts = [make().part([index], count) for index in range(count)]
    for step in range(2 * whole.steps_per_epoch):
        shares = [part.batch(step) for part in parts]
        same(whole.batch(step), {key: np.concatenate([share[key] for share in shares]) for key in shares[0]})
    for together, *shares in zip(whole.evaluation(), *(part.evaluation() for part in parts), strict=True):
        same(together, {key: np.concatenate([share[key] for share in shares]) for key in shares[0]})


@KINDS
def test_evaluation_is_the_same_each_time(make) -> None:
    for a, b in zip(make().evaluation(), make().evaluation(), strict=True):
        same(a, b)


@KINDS
def test_the_report_is_what_the_batches_hold(make) -> None:
    batches = make()
    report = batches.report
    assert report["dropped"] == 0
    for number in range(2):
        made = epoch(batches, number)
        assert len(made) == report["steps_per_epoch"]
        places = [array for batch in made for array in real(batch)]
        filled = sum(int(array.sum()) for array in places) / sum(array.size for array in places)
        assert report["fill"] == pytest.approx(filled)
        sides = [zip(*(array.shape for array in real(batch)), strict=True) for batch in made]
        assert {(rows[0], *widths) for rows, widths in sides} == set(report["shapes"])


# --- Labelled


def test_every_text_exactly_once_with_its_class_and_cut_where_it_is_too_long() -> None:
    batches, expected = labelled(), texts()
    for made in (epoch(batches, 0), epoch(batches, 1), list(batches.evaluation()), list(batches.evaluation(23))):
        seen = []
        for batch in made:
            width = batch["inputs"].shape[1]
            for row, example in enumerate(batch["example_ids"].tolist()):
                text = [BOS, *expected[example][:21], EOS] if example >= 0 else []
                assert batch["inputs"][row].tolist() == text + [0] * (width - len(text))
                assert batch["input_lengths"][row] == len(text)
                assert batch["labels"][row] == (example % 7 if example >= 0 else 0)
                seen.append(example)
        assert sorted(i for i in seen if i >= 0) == list(range(83))
    assert max(map(len, expected)) > 40
    long = sum(len(text) > 21 for text in expected)
    assert batches.too_long[:4] == ("cut", long, 83, max(map(len, expected)) + 2)
    assert batches.report["dropped"] == 0


def test_texts_with_classes_are_left_out_or_refused_where_they_are_too_long() -> None:
    short = [i for i, text in enumerate(texts()) if len(text) <= 21]
    batches = labelled(dataclasses.replace(DATA, too_long="drop"))
    assert (batches.report["kept"], batches.report["dropped"]) == (len(short), 83 - len(short))
    assert batches.evaluated.tolist() == short
    for made in (epoch(batches), list(batches.evaluation())):
        assert sorted(i for batch in made for i in batch["example_ids"].tolist() if i >= 0) == short
    with pytest.raises(
        UserError, match=rf"^{83 - len(short)} of 83 texts with classes are longer than data.max_len=23"
    ):
        labelled(dataclasses.replace(DATA, too_long="refuse"))
    with pytest.raises(UserError, match=r"^data.too_long='chunk' is not possible for texts with classes"):
        labelled(dataclasses.replace(DATA, too_long="chunk"))


@pytest.mark.parametrize("make", [masked, spans])
def test_long_documents_are_chunked_cut_left_out_or_refused(make) -> None:
    """Of masked texts every token is a target; of spans both sides together are the text."""

    def read(batches: Batches) -> list[int]:
        if make is masked:
            return [i for b in batches.evaluation() for text in documents_of(b) for i in text if i not in (BOS, EOS)]
        return [i for b in batches.evaluation() for _, *both in sides(b) for i in reassembled(*both)[0]]

    fits = 21 if make is masked else 25  # tokens of a row of 23; of spans, 4 are hidden by one piece
    documents = texts()
    for rule, expected in {
        "": [i for text in documents for i in text],
        "chunk": [i for text in documents for i in text],
        "cut": [i for text in documents for i in text[: 22 if make is masked and len(text) > 21 else fits]],
        "drop": [i for text in documents if len(text) <= fits for i in text],
    }.items():
        batches = make(dataclasses.replace(DATA, too_long=rule))
        assert sorted(read(batches)) == sorted(expected), rule
        assert batches.too_long.rule == (rule or "chunk")
        assert batches.too_long.longer == sum(len(text) > fits for text in documents)
        assert batches.too_long.of == 83
        dropped = rule == "drop"
        assert batches.evaluated.tolist() == [
            i for i, t in enumerate(documents) if t and not (dropped and len(t) > fits)
        ]
    with pytest.raises(UserError, match=r"of 83 documents are longer than data.max_len=23; number \d+ has"):
        make(dataclasses.replace(DATA, too_long="refuse"))


@pytest.mark.parametrize("rule", ["drop", "cut", "refuse"])
def test_one_long_text_is_read_in_rows_or_not_at_all(rule: str) -> None:
    assert contiguous(dataclasses.replace(DATA, too_long="chunk")).too_long == contiguous().too_long
    with pytest.raises(UserError, match=rf"^data.too_long='{rule}' is not possible for texts .* choose 'chunk'"):
        contiguous(dataclasses.replace(DATA, too_long=rule))


def test_labels_of_the_wrong_length() -> None:
    with pytest.raises(ValueError, match="2 texts with labels of shape"):
        LabelledBatches({"text": Tokens.of([[5], [6]])}, np.zeros(3, np.int32), seed=0, data=DATA)


@pytest.mark.parametrize("mapped", [True, False])
def test_labels_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mapped: bool) -> None:
    if not mapped:  # as where TFDS stores them
        monkeypatch.setattr(Examples, "numbers", lambda self, name: None)
    for stem in ("train", "dev", "test"):
        (tmp_path / f"{stem}.tsv").write_text("".join(f"text {i}\t{i % 2}\n" for i in range(10)))
    data = DataConfig(name="sst2", dir=str(tmp_path), cache=str(tmp_path / "cache"))
    source = load_source(data)
    assert read_labels(source, "train", data).tolist() == [0, 1] * 5
    monkeypatch.setattr(Examples, "many", lambda self, numbers: pytest.fail("read again"))
    assert read_labels(source, "train", data).tolist() == [0, 1] * 5
    with pytest.raises(UserError, match="sst2 has no classes: choose"):
        read_labels(dataclasses.replace(source, facts={}), "train", data)
    with pytest.raises(UserError, match=r"^Example 2 of train of sst2 has the label 1, which is no class"):
        read_labels(dataclasses.replace(source, facts={"classes": ["one"]}), "train", data)


# --- Masked


def documents_of(batch: dict[str, np.ndarray]) -> Iterator[list[int]]:
    for row in range(len(batch["targets"])):
        for segment in range(1, int(batch["input_segments"][row].max()) + 1):
            inside = batch["input_segments"][row] == segment
            assert batch["input_positions"][row][inside].tolist() == list(range(inside.sum()))
            yield batch["targets"][row][inside].tolist()


def test_masked_targets_are_all_the_text() -> None:
    wholes = [[BOS, *text, EOS] for text in texts() if text]
    expected = sorted(whole[start : start + 23] for whole in wholes for start in range(0, len(whole), 23))
    for made in (epoch(masked()), list(masked().evaluation())):
        assert sorted(chunk for batch in made for chunk in documents_of(batch)) == expected


def test_what_is_masked_and_by_what() -> None:
    """80 / 10 / 10 of 15 percent, within four standard deviations of a binomial."""
    data = dataclasses.replace(DATA, max_len=101, buckets=(128,), batch_tokens=4096)
    tokens = {"text": Tokens.of(texts(400, 300))}
    batches = MaskedBatches(tokens, seed=1, data=data, tokenizer=MASKER)
    made = [*epoch(batches, 0), *epoch(batches, 1)]
    inputs, targets, chosen = (
        np.concatenate([b[key].ravel() for b in made]) for key in ("inputs", "targets", "target_weights")
    )
    assert set(np.unique(chosen)) == {0, 1}
    assert (inputs[chosen == 0] == targets[chosen == 0]).all()
    assert (targets[chosen == 1] > EOS).all()
    tokens_in_all, hidden = int((targets > EOS).sum()), int(chosen.sum())

    def near(count: int, total: int, share: float) -> bool:
        return abs(count - total * share) < 4 * (total * share * (1 - share)) ** 0.5

    assert near(hidden, tokens_in_all, 0.15)
    shown, original = inputs[chosen == 1], targets[chosen == 1]
    as_it_is, other = (shown == original), (shown != original) & (shown != MASKER.mask_id)
    assert near(int((shown == MASKER.mask_id).sum()), hidden, 0.8)
    # One random piece in 256 is the original by chance.
    assert near(int(as_it_is.sum()), hidden, 0.1 + 0.1 / 256)
    assert near(int(other.sum()), hidden, 0.1 * 255 / 256)
    assert other.sum() > 500
    assert shown[other].min() >= MASKER.first_piece
    assert shown[other].max() < MASKER.vocab_size
    assert len(np.unique(shown[other])) > 200


def test_masks_change_with_the_epoch_and_not_with_the_company() -> None:
    def by_text(made: list[dict[str, np.ndarray]]) -> dict[bytes, bytes]:
        rows = [(b["targets"][i], b["inputs"][i]) for b in made for i in range(len(b["targets"]))]
        return {target.tobytes(): shown.tobytes() for target, shown in rows if target.any()}

    first, second = (by_text(epoch(masked(), number)) for number in range(2))
    fixed = by_text(list(masked().evaluation()))
    assert first.keys() == second.keys() == fixed.keys()
    for a, b in ((first, second), (first, fixed)):
        assert sum(a[key] != b[key] for key in a) > 0.9 * len(a)
    # A row's mask is its own, whatever the size of the batch.
    assert by_text(epoch(masked(dataclasses.replace(DATA, batch_tokens=512)))) == first


def test_at_least_one_token_of_a_row_is_masked() -> None:
    data = dataclasses.replace(DATA, corruption=1e-9, max_len=4)
    batches = MaskedBatches({"text": Tokens.of([[50, 51]] * 9)}, seed=0, data=data, tokenizer=MASKER)
    for batch in batches.evaluation():
        assert (batch["target_weights"].sum(1) == (batch["targets"] > EOS).any(1)).all()
        assert (batch["targets"][batch["target_weights"] == 1] > EOS).all()


def test_masking_needs_a_mask_piece() -> None:
    with pytest.raises(UserError, match="no mask piece"):
        MaskedBatches({"text": Tokens.of(texts())}, seed=0, data=DATA, tokenizer=HOLER)


# --- Spans


def reassembled(seen: list[int], hidden: list[int]) -> tuple[list[int], int]:
    """The text of which these are the two sides, and its number of spans; checks the order of the hole pieces."""
    order = [i for i in seen if i in HOLER.hole_ids]
    assert order == list(HOLER.hole_ids[: len(order)]) == [i for i in hidden if i in HOLER.hole_ids]
    inside: dict[int, list[int]] = {}
    for token in hidden:
        if token in HOLER.hole_ids:
            inside[token] = current = []
        else:
            current.append(token)
    assert all(inside.values())
    return [token for piece in seen for token in inside.get(piece, [piece])], len(order)


def sides(batch: dict[str, np.ndarray]) -> Iterator[tuple[int, list[int], list[int]]]:
    for row, example in enumerate(batch["example_ids"].tolist()):
        if example < 0:
            assert not any(batch[key][row].any() for key in batch if key != "example_ids")
            continue
        lengths = [int(batch[f"{side}_lengths"][row]) for side in ("input", "target")]
        inputs, targets = batch["inputs"][row, : lengths[0]].tolist(), batch["targets"][row, : lengths[1]].tolist()
        assert [len(inputs), len(targets)] == lengths
        assert inputs[-1] == targets[-1] == EOS
        assert batch["target_inputs"][row, : lengths[1]].tolist() == [BOS, *targets[:-1]]
        assert not batch["inputs"][row, lengths[0] :].any()
        assert not batch["targets"][row, lengths[1] :].any()
        assert not batch["target_inputs"][row, lengths[1] :].any()
        yield example, inputs[:-1], targets[:-1]


@given(
    corruption=st.sampled_from([0.01, 0.15, 0.5, 0.9]),
    max_len=st.integers(3, 40),
    seed=st.integers(0, 9),
)
def test_both_sides_together_are_the_text(corruption: float, max_len: int, seed: int) -> None:
    data = DataConfig(max_len=max_len, buckets=(7, 40), batch_tokens=256, row_multiple=2, corruption=corruption)
    documents = texts(17, 70, seed)
    batches = SpanBatches({"text": Tokens.of(documents)}, seed=seed, data=data, tokenizer=HOLER)
    for made in (epoch(batches, 0), epoch(batches, 1), list(batches.evaluation(max_len))):
        chunks: dict[int, list[int]] = {}
        for batch in made:
            for example, seen, hidden in sides(batch):
                assert example not in chunks
                assert max(len(seen), len(hidden)) < max_len
                chunks[example], count = reassembled(seen, hidden)
                wanted = hidden_and_spans(np.array(len(chunks[example])), corruption)
                assert (len(hidden) - count, count) == wanted
                assert count <= holes_needed(data)
        assert [i for _, chunk in sorted(chunks.items()) for i in chunk] == [i for text in documents for i in text]


def test_how_much_is_hidden() -> None:
    # By hand: 15 % of 100 in spans of three; one token at least, and one stays as long as there are two.
    sizes = np.array([1, 2, 7, 20, 100])
    assert [x.tolist() for x in hidden_and_spans(sizes, 0.15)] == [[1, 1, 1, 3, 15], [1, 1, 1, 1, 5]]
    assert [x.tolist() for x in hidden_and_spans(np.array([2, 5, 10]), 0.9)] == [[1, 4, 9], [1, 1, 2]]
    assert holes_needed(DataConfig(max_len=512)) == 28


def test_spans_lie_anywhere() -> None:
    data = dataclasses.replace(DATA, corruption=0.2)
    batches = SpanBatches({"text": Tokens.of([list(range(40, 50))] * 400)}, seed=0, data=data, tokenizer=HOLER)
    hidden = [token for batch in epoch(batches) for _, _, side in sides(batch) for token in side if token >= 40]
    counts = np.bincount(hidden, minlength=50)[40:]
    assert counts.sum() == 800  # one span of two in each
    # A span begins at each of nine places equally often: the outer tokens are in one of them, the others in two.
    assert (abs(counts - np.array([1, 2, 2, 2, 2, 2, 2, 2, 2, 1]) * 400 / 9) < 4 * 9.4).all()


def test_targets_of_spans_are_as_wide_as_the_longest_of_them() -> None:
    """By hand: 114 tokens of a full chunk of T5, 77 in inputs of 512 and 26 hole pieces, with EOS; not 512."""
    data = DataConfig(max_len=512, buckets=(512,))
    assert span_widths(data) == [(512, 120)]
    holer = Tokenizer.train(iter([]), 400, "bytes", holes(holes_needed(data)))
    batches = SpanBatches({"text": Tokens.of([[50] * 5000])}, seed=0, data=data, tokenizer=holer)
    (batch, *_), report = epoch(batches), batches.report
    assert (batch["inputs"].shape[1], batch["targets"].shape[1]) == report["shapes"][0][1:] == (512, 120)
    assert int(batch["target_lengths"].max()) == 114
    config = Config(task="span_corruption", data=data, model=ModelConfig(num_layers=1, d_model=8, d_ff=8, num_heads=1))
    assert {name: array.shape for name, array in task_of(config).example(2, 512).items()} == {
        "inputs": (2, 512), "input_lengths": (2,), "target_inputs": (2, 120), "target_lengths": (2,),
    }  # fmt: skip


def test_spans_change_with_the_epoch() -> None:
    first, second = ({i: seen for b in epoch(spans(), n) for i, seen, _ in sides(b)} for n in range(2))
    assert first.keys() == second.keys()
    assert sum(first[i] != second[i] for i in first) > 0.5 * len(first)


def test_too_few_hole_pieces() -> None:
    with pytest.raises(UserError, match=r"^data\.max_len=23 with .* hides up to 1 spans, .* has 0 hole pieces: train"):
        SpanBatches({"text": Tokens.of(texts())}, seed=0, data=DATA, tokenizer=MASKER)
    with pytest.raises(UserError, match=r"data\.max_len=2 has no room"):
        holes_needed(dataclasses.replace(DATA, max_len=2))
    empty = SpanBatches({"text": Tokens.of([[]])}, seed=0, data=DATA, tokenizer=HOLER)
    with pytest.raises(UserError, match="None of 0 chunks"):
        empty.batch(0)


# --- Contiguous


@given(size=st.integers(2, 400), width=st.integers(2, 40), seed=st.integers(0, 9))
def test_rows_are_the_text_as_it_stands(size: int, width: int, seed: int) -> None:
    text = list(range(1000, 1000 + size))  # each token says where it stands
    data = DataConfig(max_len=width, batch_tokens=4 * width, row_multiple=2)
    batches = ContiguousBatches({"text": Tokens.of([text])}, seed=seed, data=data)
    for training, made in ((True, epoch(batches, 0)), (True, epoch(batches, 1)), (False, list(batches.evaluation()))):
        starts = []
        targets = []
        for batch in made:
            for row in range(len(batch["targets"])):
                filled = int(batch["target_lengths"][row])
                inputs = batch["target_inputs"][row, :filled].tolist()
                assert inputs == list(range(inputs[0], inputs[0] + filled)) if filled else True
                assert batch["targets"][row, :filled].tolist() == [i + 1 for i in inputs]
                assert not batch["target_inputs"][row, filled:].any()
                assert not batch["targets"][row, filled:].any()
                if filled:
                    assert filled == width or not training or size <= width
                    starts.append(inputs[0] - 1000)
                    targets += batch["targets"][row, :filled].tolist()
        if training:
            assert np.diff(sorted(starts)).tolist() == [width] * (len(starts) - 1)
            assert len(targets) > size - 2 * width - 1
        else:
            assert targets == text[1:]


def test_rows_begin_elsewhere_in_each_epoch() -> None:
    batches = contiguous()
    rows = [{r.tobytes() for b in epoch(batches, n) for r in b["target_inputs"]} for n in range(12)]
    assert len(set().union(*rows)) > 8 * max(map(len, rows))


def test_a_text_without_a_target() -> None:
    batches = ContiguousBatches({"text": Tokens.of([[7]])}, seed=0, data=DATA)
    with pytest.raises(UserError, match="fewer than two tokens"):
        batches.batch(0)
    assert list(batches.evaluation()) == []
