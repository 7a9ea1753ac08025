"""What runs write: whatever the batch, the devices and the other lines; n-best, alignments, ensembles, bad input.

The models are not trained, only made larger so that they say different things.
"""

import dataclasses
import functools
import sys
import threading
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer.analysis.alignment import alignment_layer, looks, pairs
from transformer.config import Config, MeshConfig, override
from transformer.data.batches.labelled import LabelledBatches
from transformer.data.batches.tokens import Tokens as Encoded
from transformer.data.tokenizers import Tokenizer
from transformer.errors import UserError
from transformer.generate import read_lines
from transformer.model.tokens import Tokens
from transformer.reading import of_run
from transformer.tasks import TASKS
from transformer.tasks.trained import Trained
from transformer.writing import lines as lines_module
from transformer.writing import slices, writer
from transformer.writing.lines import answer, classified, generate, outputs
from transformer.writing.manner import Manner, Output

LINES = ["ab", "", "abc abc abd", "c", "   ", "a b c d e f g h", "ab", "日本 Ж", "dd", "b a", "a" * 20, "cab", "bad"]
DEVICES = 8
GREEDY, BEAM = Manner(max_new=9), Manner(beam=3, nbest=2, max_new=9)
SAMPLE = Manner(sample=True, temperature=0.9, top_k=50, top_p=0.95, seed=3, max_new=9)
MANNERS = {"greedy": GREEDY, "beam": BEAM, "sample": SAMPLE}


@functools.cache
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["abcd"], 259, "bytes")


def unread() -> Any:
    raise AssertionError("no data is needed to write")


@functools.cache
def trained(task: str = "translation", seed: int = 2, devices: int = 1, **model: Any) -> Trained:
    """A run with random weights."""
    changes: dict[str, Any] = {"task": task, "model.family": TASKS[task].families[0], "data.buckets": [16, 32]}
    changes |= {"data.max_len": 32, "model.num_layers": 1, "model.d_model": 12, "model.d_ff": 16, "model.num_heads": 3}
    config = override(Config(), changes | {f"model.{key}": value for key, value in model.items()})
    config = dataclasses.replace(config, mesh=MeshConfig(data=devices))
    made = TASKS[task](config, tokenizer())
    params = jax.jit(made.init)(jax.random.key(seed))["params"]
    params = {
        room: jax.tree.map(lambda x: 5 * x, tree) if room != "embedder" else tree for room, tree in params.items()
    }
    return Trained(config, tokenizer(), made, {"params": params}, 0, data=unread)


@pytest.fixture(autouse=True)
def _small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "ROWS", 2)


@pytest.mark.parametrize(
    "manner", [pytest.param(name, marks=[pytest.mark.slow] * (name != "beam")) for name in MANNERS]
)
def test_the_same_bytes_whatever_the_batch_and_the_devices(manner: str) -> None:
    """Batches of 1, 7 and 64 lines, one device and eight; scores to the last bit."""
    runs = [
        list(outputs(trained(devices=devices), LINES, MANNERS[manner], batch_size))
        for batch_size, devices in ((64, 1), (1, 1), (7, 1), (64, DEVICES))
    ]
    assert runs[1:] == runs[:1] * 3
    assert len(runs[0]) == len(LINES)
    assert len({found[0].tokens for found in runs[0]}) > 3, "they say different things"
    for line, found in zip(LINES, runs[0], strict=True):
        assert len(found) == MANNERS[manner].nbest
        assert all("\n" not in output.text for output in found)
        if not line.strip():
            assert found == [Output("")] * len(found)


def test_a_shape_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    real = writer.Writer.decode

    def decode(self: Any, *arguments: Any) -> Any:
        made.append(arguments[1].shape)
        return real(self, *arguments)

    monkeypatch.setattr(writer.Writer, "decode", decode)
    generate(trained(), LINES + LINES, GREEDY)
    assert sorted(made) == [(2, 16), (2, 32)], "each width is traced once"


def test_samples_depend_on_the_seed_and_the_line_alone() -> None:
    first = generate(trained(), ["ab", "ab", "dd"], SAMPLE)
    assert first[0] != first[1]
    assert generate(trained(), ["ab", "c", "dd"], SAMPLE)[::2] == first[::2]
    assert generate(trained(), ["ab", "ab", "dd"], dataclasses.replace(SAMPLE, seed=4)) != first


def rescored(run: Trained, line: str, output: Output, most: int) -> float:
    """The log-probability of an output, EOS included where there was room, by one whole forward pass."""
    ids = run.task.prompt(run.tokenizer.encode(line))
    said = [*output.tokens, *([2] if len(output.tokens) < most else [])]
    sides = [jnp.array([ids]), jnp.array([[1, *said[:-1]]])]
    where = [Tokens(jnp.arange(x.shape[1])[None], jnp.ones_like(x)) for x in sides]
    logits = jax.jit(run.task.model.apply)(run.params, sides[0], where[0], sides[1], where[1])
    return float(jax.nn.log_softmax(logits[0])[np.arange(len(said)), np.array(said)].sum())


def test_scores_are_those_of_a_forward_pass_and_the_best_is_first() -> None:
    lines = ["ab", "c"]
    for line, found in zip(lines, outputs(trained(), lines, BEAM), strict=True):
        assert found[0].score >= found[1].score
        assert found[0].tokens != found[1].tokens
        for output in found:
            length = min(len(output.tokens) + 1, 9)
            total = rescored(trained(), line, output, 9)
            np.testing.assert_allclose(output.score, total / ((5 + length) / 6) ** 0.6, rtol=1e-4)


@pytest.mark.slow
def test_a_model_with_scanned_layers_writes_the_same_by_beam_search() -> None:
    """Its encoder's memory has a first axis that is not the rows'."""
    scanned, plain = (trained(num_layers=2, scan_layers=scan) for scan in (True, False))
    from transformer.model.stacks import stacked

    scanned = dataclasses.replace(scanned, params=stacked(plain.params, 1))
    assert generate(scanned, LINES[:3], BEAM) == generate(plain, LINES[:3], BEAM)


@pytest.mark.slow
def test_an_ensemble_of_a_run_with_itself_is_that_run_and_with_another_is_not() -> None:
    run, other = trained(), trained(seed=4)
    alone = generate(run, LINES, BEAM)
    assert generate(dataclasses.replace(run, others=(run,)), LINES, BEAM) == alone
    assert generate(dataclasses.replace(run, others=(other,)), LINES, BEAM) != alone


def test_alignments_are_the_cross_attention_of_the_last_layer_but_one() -> None:
    """One line alone, without padding; words in, words out."""
    run = trained(num_layers=2)
    line = "ab cd"
    ((found,),) = outputs(run, [line], GREEDY, alignments=True)
    assert found.alignment
    ids = run.task.prompt(run.tokenizer.encode(line))
    said = [1, *found.tokens]
    sides = [jnp.array([ids]), jnp.array([said])]
    where = [Tokens(jnp.arange(x.shape[1])[None], jnp.ones_like(x)) for x in sides]
    weights = jax.jit(functools.partial(looks, run.task.model))(run.params, sides[0], where[0], sides[1], where[1])[0]
    assert alignment_layer(run.task.model_config) == 0, "of layers 0 and 1"
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-5)
    kept = np.asarray(weights)[: len(found.tokens), : len(ids) - 1].argmax(axis=1)
    text = run.tokenizer.decode(found.tokens)
    words = [max(len(run.tokenizer.decode(found.tokens[: n + 1]).split()) - 1, 0) for n in range(len(found.tokens))]
    expected = sorted({(int(source > 2), word) for source, word in zip(kept, words, strict=True)})
    assert found.alignment.split() == [f"{source}-{target}" for source, target in expected], text


def test_pairs_link_words() -> None:
    weights = np.array([[0.1, 0.7, 0.1, 0.1], [0.2, 0.1, 0.6, 0.1], [0.0, 0.1, 0.2, 0.7]])
    assert pairs(weights, [0, 0, 1], [0, 0, 1]) == "0-0 1-0 1-1", "the fourth token is EOS"
    assert pairs(weights, [0, 0, 1], [0]) == "0-0"
    assert pairs(weights, [], [0]) == ""


@pytest.mark.parametrize("task", [pytest.param("translation", marks=pytest.mark.slow), "language_model"])
@pytest.mark.parametrize("manner", ["greedy", pytest.param("sample", marks=pytest.mark.slow)])
def test_a_single_line_is_told_while_it_is_written(task: str, manner: str) -> None:
    texts = [generate(trained(task), [line], MANNERS[manner])[0] for line in ("ab", "c", "dd", "bad")]
    longest = max(texts, key=len)
    told: list[str] = []
    answer(trained(task), ("ab", "c", "dd", "bad")[texts.index(longest)], MANNERS[manner], told.append)
    assert "".join(told) == longest + "\n"
    pieces = len([piece for piece in told if piece])
    assert pieces > 2 or longest.endswith("\ufffd"), "not all at once, but for what is never a whole letter"


# --- Bad input


def test_nothing_may_be_written() -> None:
    for manner in (Manner(max_new=0), Manner(max_new=0, beam=4, nbest=2)):
        assert generate(trained(), ["ab", "", "c"], manner) == ["", "", ""]
    assert list(outputs(trained(), [], GREEDY)) == []


def test_a_beam_wider_than_the_vocabulary() -> None:
    ((best, *rest),) = outputs(trained(), ["ab"], Manner(beam=300, nbest=300, max_new=1))
    assert best.score >= rest[0].score
    assert sum(output.score > -np.inf for output in rest) == 258


def test_a_line_of_ten_thousand_words() -> None:
    found = generate(trained(attention=("window:4",)), ["ab", "a " * 10_000, "c"], Manner(max_new=2))
    assert found[::2] == generate(trained(attention=("window:4",)), ["ab", "c"], Manner(max_new=2))


def test_lines_beyond_the_learned_positions_are_refused() -> None:
    run = trained(positions="learned", max_positions=40)
    with pytest.raises(UserError, match=r"^line 2 has 51 tokens, and the learned position table ends after 40: "):
        outputs(run, ["ab", "x" * 50])
    assert len(generate(run, ["x" * 39], BEAM)) == 1
    with pytest.raises(UserError, match="line 1 has 51 tokens"):
        outputs(dataclasses.replace(trained(), others=(run,)), ["x" * 50])


def test_a_classifier_reads_a_long_line_as_evaluation_does(capsys: pytest.CaptureFixture[str]) -> None:
    """Cut to data.max_len, and told; in all verbs."""
    run = dataclasses.replace(trained("text_classification", num_classes=2), facts={"classes": ["x", "y"]})
    line = "abcd" * 15
    text = Encoded.of(run.tokenizer.encode_batch([line]))
    (batch,) = LabelledBatches({"text": text}, np.zeros(1, int), data=run.config.data, seed=0).evaluation()
    ids = batch["inputs"][0][batch["inputs"][0] > 0].tolist()
    assert len(ids) == 32
    assert classified(run, ["ab", line]) == [[1, *run.tokenizer.encode("ab"), 2], ids]
    assert capsys.readouterr().err == "1 of 2 lines are cut to data.max_len=32 tokens, as in evaluation: line 2\n"
    np.testing.assert_array_equal(of_run(run, line, None).arguments[0], [ids])
    assert "line 1" in capsys.readouterr().err
    whole, cut = (next(outputs(run, [text]))[0] for text in (line, line[:30]))
    assert whole == cut, "and not of 62 tokens"
    assert capsys.readouterr().err.count("lines are cut") == 1
    classified(run, ["ab"])
    assert capsys.readouterr().err == ""
    learned = trained("text_classification", num_classes=2, positions="learned", max_positions=32)
    assert len(classified(learned, [line])[0]) == 32


@pytest.mark.parametrize("rule", ["drop", "refuse"])
@pytest.mark.parametrize("task", ["translation", "text_classification"])
def test_a_line_that_no_example_is_as_long_as_is_refused(task: str, rule: str) -> None:
    """As `data.too_long` says; an empty rule and "cut" take it."""
    run = trained(task, num_classes=2) if task == "text_classification" else trained()
    facts, most = {"classes": ["x", "y"]}, run.config.data.max_len
    ruled = dataclasses.replace(run, config=override(run.config, {"data.too_long": rule}), facts=facts)
    with pytest.raises(
        UserError, match=rf"^line 2 has \d+ tokens, more than data.max_len={most}.*{rule!r}.*shorten it"
    ):
        outputs(ruled, ["ab", "abcd" * most])
    outputs(dataclasses.replace(run, facts=facts), ["ab", "abcd" * most])


@pytest.mark.parametrize("manner", MANNERS)
def test_a_model_that_diverged_is_named(manner: str) -> None:
    broken = jax.tree.map(lambda x: x * np.nan, trained().params)
    with pytest.raises(UserError, match=r"^the model's predictions for line 2 are not numbers"):
        generate(dataclasses.replace(trained(), params=broken), ["", "ab"], MANNERS[manner])


MISTAKES = [
    ({"beam": -1}, "--beam must be 0"),
    ({"nbest": 2}, "--nbest=2 must be from 1 to the beam's width"),
    ({"beam": 4, "nbest": 5}, "--nbest=5"),
    ({"beam": 4, "sample": True}, "exclude each other"),
    ({"alpha": float("nan")}, "--alpha must be a finite number, not nan"),
    ({"temperature": 0.0}, "--temperature must be above 0"),
    ({"temperature": -1.0}, "--temperature must be above 0 and finite, not -1.0"),
    ({"temperature": float("inf")}, "--temperature must be above 0 and finite, not inf"),
    ({"temperature": float("nan")}, "--temperature must be above 0 and finite, not nan"),
    ({"top_k": -1}, "--top_k must be 0"),
    ({"top_p": 0.0}, "--top_p must be above 0"),
    ({"top_p": 1.01}, "--top_p must be above 0 and at most 1, not 1.01"),
    ({"top_p": float("nan")}, "--top_p must be above 0 and at most 1, not nan"),
    ({"seed": -1}, "--seed must be a whole number"),
    ({"max_new": -1}, "--max_new must be 0 or more, not -1"),
    ({"max_new": 3, "min_new": 4}, "--min_new=4"),
]


@pytest.mark.parametrize(("options", "words"), MISTAKES)
def test_mistakes_are_sentences(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Manner(**options)


def test_the_module_needs_no_jax_to_be_imported() -> None:
    """So that a mistake on the command line is told at once."""
    import subprocess

    code = "import sys, transformer.generate; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_lines_of_the_input_are_those_of_a_training_file() -> None:
    given = "\ufeff a\u2028b \r\n\nc\x85d\re\n"
    assert read_lines(given.encode()) == ["a\u2028b", "", "c\x85d\re"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (b"a\nb\xff\n", r"^line 2 of the input is not UTF-8 \(byte 1\): convert it"),
        ("a\nb\n".encode("utf-16"), "^line 1 of the input has a NUL character: convert it to UTF-8"),
        ("a\nb\n".encode("utf-16-le"), "^line 1 of the input has a NUL"),
        (b"a\nb\0\n", "^line 2 of the input has a NUL"),
    ],
)
def test_an_input_that_is_no_text(given: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_lines(given)


# --- Slices side by side


def test_slices_side_by_side_keep_their_order() -> None:
    def late(seconds: float, answer: str) -> str:
        time.sleep(seconds)
        return answer

    assert slices.side_by_side(late, [(0.05, "a"), (0.0, "b"), (0.02, "c")], 2) == ["a", "b", "c"]
    assert slices.side_by_side(late, [], 2) == []


def test_after_a_mistake_no_slice_is_begun() -> None:
    """However late the waiting thread wakes up: each thread begins one slice at most."""
    begun = []

    def fails(number: int) -> None:
        begun.append(number)
        time.sleep(0.02)
        raise UserError(f"line {number}")

    with pytest.raises(UserError, match="line 0"):
        slices.side_by_side(fails, [(n,) for n in range(20)], 2)
    assert len(begun) <= 2


def test_the_others_end_before_the_mistake_is_told() -> None:
    ended, begun = [], threading.Event()

    def job(number: int) -> None:
        if number == 1:
            assert begun.wait(timeout=60)
            raise UserError("line 1")
        begun.set()
        time.sleep(0.05)
        ended.append(number)

    with pytest.raises(UserError, match="line 1"):
        slices.side_by_side(job, [(n,) for n in range(20)], 2)
    assert ended == [0]


def test_the_first_slice_of_a_shape_is_computed_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads that meet a new shape would both compile it."""
    monkeypatch.setattr(lines_module, "at_once", lambda devices: 3)
    active, most = 0, {False: 0, True: 0}

    class Write:
        devices, compiled = 1, set[tuple[int, ...]]()

        def __call__(self, tokens: np.ndarray, number: int) -> int:
            nonlocal active
            active += 1
            known = tokens.shape in self.compiled
            most[known] = max(most[known], active)
            time.sleep(0.02)
            active -= 1
            return number

    jobs = [(np.zeros((2, width)), n) for n, width in enumerate((4, 4, 4, 4, 8, 8, 8))]
    assert lines_module._written(Write(), jobs) == list(range(7))
    assert most == {False: 1, True: 3}


def test_one_cpu_computes_several_slices_and_several_devices_one() -> None:
    assert slices.at_once(devices=8) == 1
    assert 1 <= slices.at_once(devices=1) <= slices.MOST_AT_ONCE
