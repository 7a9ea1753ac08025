"""Beam search against searches in float64 over all sequences, and over all that a beam of the same width sees."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.decoding.hashed import BOS, EOS, Hashed, outputs
from transformer.decoding import DECODERS, Decoded
from transformer.decoding.beam import RULES, beam, largest
from transformer.errors import UserError

ROWS = 3


def gnmt(length: int, alpha: float) -> float:
    return ((5 + length) / 6) ** alpha


def hf(length: int, alpha: float) -> float:
    return length**alpha


def run(model: Hashed, most: int, rows: int = ROWS, limit: int | None = None, **options: Any) -> Decoded:
    return model.run("beam", most, rows, limit, **options)


def every_output(vocabulary: int, most: int, least: int = 0) -> list[list[int]]:
    """All sequences that end with EOS or have `most` tokens."""
    others = [token for token in range(vocabulary) if token != EOS]
    ended = [[*body, EOS] for n in range(least, most) for body in itertools.product(others, repeat=n)]
    return ended + [list(body) for body in itertools.product(others, repeat=most)]


def best(model: Hashed, row: int, texts: list[list[int]], penalty: Any, alpha: float) -> list[tuple[float, list[int]]]:
    scored = [(model.score(row, text) / penalty(len(text), alpha), text) for text in texts]
    return sorted(scored, key=lambda pair: -pair[0])


@pytest.mark.parametrize("alpha", [0.0, 0.6, -0.7])
@pytest.mark.parametrize(("vocabulary", "most", "least"), [(3, 4, 0), (5, 2, 1)])
def test_a_beam_as_wide_as_the_space_finds_the_best(vocabulary: int, most: int, least: int, alpha: float) -> None:
    for seed in range(3):
        model = Hashed(vocabulary, seed)
        found = run(model, most, beams=vocabulary**most, nbest=4, alpha=alpha, min_new=least)
        assert found.ok.all()
        for row in range(ROWS):
            expected = best(model, row, every_output(vocabulary, most, least), gnmt, alpha)[:4]
            assert outputs(found, row) == [output for _, output in expected]
            np.testing.assert_allclose(found.scores[row], [score for score, _ in expected], rtol=1e-5)


def test_so_does_the_other_rule_where_its_stop_loses_nothing() -> None:
    model = Hashed(3, 5)
    found = run(model, 4, beams=81, nbest=3, alpha=0.0, rule="hf")
    for row in range(ROWS):
        assert outputs(found, row) == [output for _, output in best(model, row, every_output(3, 4), hf, 0.0)[:3]]


def search(model: Hashed, row: int, beams: int, most: int, least: int, alpha: float) -> list[tuple[float, list[int]]]:
    """The rule in words, in Python and float64: never stops early."""
    open_ones: list[tuple[float, list[int]]] = [(0.0, [])]
    ended = []
    for length in range(1, most + 1):
        grown = [
            (total + log_prob, [*output, token])
            for total, output in open_ones
            for token, log_prob in enumerate(model.log_probs(row, (BOS, *output)))
            if token != EOS or length > least
        ]
        grown = sorted(grown, key=lambda pair: -pair[0])[:beams]
        ending = [output[-1] == EOS or length == most for _, output in grown]
        ended += [pair for pair, ends in zip(grown, ending, strict=True) if ends]
        open_ones = [pair for pair, ends in zip(grown, ending, strict=True) if not ends]
    return sorted(((total / gnmt(len(output), alpha), output) for total, output in ended), key=lambda pair: -pair[0])


@pytest.mark.parametrize(
    ("beams", "vocabulary", "alpha", "least"), [(2, 7, 1.0, 3), (3, 5, 0.0, 0), (4, 11, 0.6, 1), (7, 3, -0.5, 0)]
)
def test_it_is_the_search_in_words_stopped_without_loss(beams: int, vocabulary: int, alpha: float, least: int) -> None:
    """For every n: what n outputs are returned, and in which order, does not depend on when the search stopped."""
    most, rows = 9, 5
    for seed in range(4):
        model = Hashed(vocabulary, 100 + seed)
        for nbest in {1, beams}:
            found = run(model, most, rows, beams=beams, nbest=nbest, alpha=alpha, min_new=least)
            for row in range(rows):
                expected = search(model, row, beams, most, least, alpha)[:nbest]
                assert outputs(found, row)[: len(expected)] == [output for _, output in expected]
                np.testing.assert_allclose(found.scores[row, : len(expected)], [score for score, _ in expected], 2e-5)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_scores_are_the_models_own(rule: str, alpha: float) -> None:
    """Scored again in float64, one token after the other; best first, and no output twice."""
    penalty = gnmt if rule == "gnmt" else hf
    for seed in range(3):
        model = Hashed(13, seed)
        found = run(model, 8, 5, beams=5, nbest=5, alpha=alpha, rule=rule)
        for row in range(5):
            texts = outputs(found, row)
            assert len({tuple(text) for text in texts}) == 5
            sums = [model.score(row, text) for text in texts]
            np.testing.assert_allclose(found.log_probs[row], sums, rtol=1e-5)
            expected = [total / penalty(len(text), alpha) for total, text in zip(sums, texts, strict=True)]
            np.testing.assert_allclose(found.scores[row], expected, rtol=1e-5)
            assert (np.diff(found.scores[row]) <= 0).all()


@pytest.mark.parametrize("alpha", [0.0, 0.6, 3.0])
def test_a_beam_of_one_is_greedy(alpha: float) -> None:
    for seed in range(5):
        model = Hashed(5, seed)
        one = model.run("greedy", 10, 6, 9, min_new=seed % 2)
        found = run(model, 10, 6, 9, beams=1, alpha=alpha, min_new=seed % 2)
        np.testing.assert_array_equal(found.tokens, one.tokens)
        np.testing.assert_array_equal(found.lengths, one.lengths)
        np.testing.assert_allclose(found.log_probs, one.log_probs, rtol=1e-6)


def steps(model: Hashed, most: int, **options: Any) -> int:
    """How often the model is asked."""
    calls: list[int] = []
    first, *rest = model.start(ROWS)

    def step(*arguments: Any) -> Any:
        jax.debug.callback(lambda: calls.append(1))
        return first(*arguments)

    jax.block_until_ready(beam(step, *rest, most, None, EOS, **options))
    jax.effects_barrier()
    return len(calls)


def test_the_search_stops_as_soon_as_it_is_certain() -> None:
    """EOS with probability e^-1.5 / Z at every step: by alpha 0, one ended output beats all longer ones as soon as they
    are less likely; a larger alpha, or more outputs, take longer."""
    model = Hashed(4, 0)
    model.table[:] = [-3.0, -3.0, 2.0, 0.0]  # token 3, or EOS, which is the likelier
    assert steps(model, 40, beams=2, alpha=0.0) == 1
    assert steps(model, 40, beams=2, nbest=2, alpha=0.0) == 2
    # The open hypothesis "3" has log-probability -2.14, what ended -0.14. By 40 tokens it could have -2.14 / 7.5
    # by alpha 1, which is less, and -2.14 / 20.5 by alpha 1.5, which is more; "3 3" has -4.28 / 20.5 at the most.
    assert steps(model, 40, beams=2, alpha=1.0) == 1
    assert steps(model, 40, beams=2, alpha=1.5) == 2
    assert steps(model, 40, beams=2, nbest=2, alpha=0.0, rule="hf_early") == 2
    model.table[:] = [-3.0, -3.0, -30.0, 0.0]
    assert steps(model, 7, beams=3) == 7, "nothing ends"


def test_ties_go_to_the_lowest_id() -> None:
    model = Hashed(6, 0)
    model.table[:] = [-9.0, -9.0, -9.0, 1.0, 1.0, 1.0]
    for rule in RULES:
        found = run(model, 3, beams=4, nbest=4, rule=rule)
        assert outputs(found, 0) == [[3, 3, 3], [3, 3, 4], [3, 3, 5], [3, 4, 3]]


@pytest.mark.parametrize("count", [1, 2, 8, 9])
@pytest.mark.parametrize("size", [9, 64, 81, 575, 6000, 6007])
def test_the_largest_of_blocks_are_the_largest(size: int, count: int) -> None:
    """Numbers and indices are those of `lax.top_k`: drawn ones, many equal ones, all equal ones, and infinite ones."""
    random = np.random.default_rng(size + count)
    rows = [random.normal(size=size), random.integers(0, 3, size), np.zeros(size), np.arange(size), -np.arange(size)]
    rows += [np.where(random.random(size) < share, -np.inf, random.integers(0, 9, size)) for share in (0.5, 0.999, 1)]
    x = jnp.asarray(np.stack([*rows, np.where(np.arange(size) == size - 1, np.inf, rows[0])]), jnp.float32)
    for found, expected in zip(largest(x, count), jax.lax.top_k(x, count), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_rows_end_with_their_positions() -> None:
    """Of 6 positions, rows that begin at 0, 4 and 6 have 6, 2 and none."""
    model = Hashed(5, 3)
    model.table[:, EOS] = -50
    step, state, first, _ = model.start(3)
    found = beam(step, state, first, jnp.array([0, 4, 6]), 8, 6, EOS, beams=3, nbest=2)
    assert found.lengths.tolist() == [[6, 6], [2, 2], [0, 0]]
    assert found.scores[2].tolist() == [-np.inf] * 2
    assert found.ok.all()


@pytest.mark.parametrize("rule", RULES)
def test_a_beam_wider_than_the_vocabulary(rule: str) -> None:
    """Two tokens, two places: three outputs in all. What is not there has length 0 and score -inf."""
    found = run(Hashed(3, 1), 1, beams=7, nbest=5, rule=rule)
    for row in range(ROWS):
        assert found.lengths[row].tolist() == [1, 1, 1, 0, 0]
        assert sorted(found.tokens[row, :3, 0].tolist()) == [0, 1, 2]
        assert (found.scores[row, 3:] == -np.inf).all()
    assert found.ok.all()
    only = run(Hashed(3, 1), 4, beams=50, nbest=1, rule=rule)
    assert (only.lengths > 0).all()


def test_no_room_at_all() -> None:
    for name, options in (
        ("greedy", {}),
        ("beam", {"nbest": 2}),
        ("sample", {"keys": jax.random.split(jax.random.key(0), 3)}),
    ):
        found = DECODERS[name](*Hashed(5, 0).start(3), 0, None, EOS, **options)
        assert found.tokens.shape == (3, options.get("nbest", 1), 0)
        assert found.lengths.sum() == 0
        assert found.ok.all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", list(DECODERS))
def test_logits_that_are_no_distribution_mark_their_row_alone(name: str, value: float) -> None:
    model = Hashed(5, 0)
    model.table[:, EOS] -= 30  # so that all rows go on for long
    options: dict[str, Any] = {"keys": jax.random.split(jax.random.key(0), 3)} if name == "sample" else {}
    first, *rest = model.start(3)
    good = DECODERS[name](first, *rest, 6, None, EOS, **options)

    def step(tokens: Any, positions: Any, state: Any) -> Any:
        logits, after = first(tokens, positions, state)
        bad = (state.row == 1) & (state.count == 3)
        return jnp.where(bad[:, None] & (jnp.arange(5) != (1 if value > 0 else 9)), value, logits), after

    found = DECODERS[name](step, *rest, 6, None, EOS, **options)
    assert found.ok.tolist() == [True, False, True]
    for row in (0, 2):
        np.testing.assert_array_equal(found.tokens[row], good.tokens[row])
        np.testing.assert_array_equal(found.scores[row], good.scores[row])


@pytest.mark.parametrize(
    ("options", "words"),
    [({"beams": 0}, "beam must be at least 1, not 0"), ({"nbest": 0}, "nbest must be from 1"),
     ({"nbest": 5, "rule": "hf"}, "nbest must be from 1 to 4, not 5"), ({"rule": "t2t"}, "'t2t': choose one of gnmt")],
)  # fmt: skip
def test_mistakes_are_sentences(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        beam(*Hashed(5, 0).start(2), 3, None, EOS, **options)


def test_the_table_of_decoders() -> None:
    assert DECODERS["beam"] is beam
    assert set(DECODERS) == {"greedy", "sample", "beam"}
