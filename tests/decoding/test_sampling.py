"""Sampling: which tokens may come, how often, and that no sample depends on its batch."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare

from tests.decoding.hashed import EOS, Hashed
from transformer.decoding.hypotheses import Decoded
from transformer.decoding.sampling import sample, sentence_keys
from transformer.errors import UserError

LOGITS = np.array([0.4, -1.0, -2.0, 2.0, 1.1, 0.4, -0.3])
DRAWS = 4000


def draws(logits: np.ndarray, seed: int = 0, dtype: Any = jnp.float32, **options: Any) -> np.ndarray:
    """One token for each of many sentences, all with the same logits."""
    keys = sentence_keys(seed, jnp.arange(DRAWS))
    row = jnp.asarray(logits, dtype)
    zeros = jnp.zeros(DRAWS, jnp.int32)

    def step(tokens: jax.Array, positions: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        return jnp.broadcast_to(row, (DRAWS, len(logits))), state

    decode = jax.jit(lambda: sample(step, (), zeros, zeros, 1, None, EOS, keys=keys, **options))
    return np.asarray(decode().tokens)[:, 0, 0]


def shares(logits: np.ndarray, temperature: float, support: list[int]) -> np.ndarray:
    weights = np.exp(np.asarray(logits, np.float64) / temperature)
    kept = np.isin(np.arange(len(logits)), support)
    return np.where(kept, weights, 0) / weights[kept].sum()


def nucleus(logits: np.ndarray, temperature: float, top_k: int, top_p: float) -> list[int]:
    """In words: by probability, ties by id; the first top_k; of these until top_p of their probability is there."""
    order = sorted(range(len(logits)), key=lambda token: (-logits[token], token))[: top_k or None]
    probabilities, kept, total = shares(logits, temperature, order), [], 0.0
    for token in order:
        if total < top_p:
            kept.append(token)
        total += probabilities[token]
    return kept


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 0, 1.0), (0.6, 0, 1.0), (2.5, 0, 1.0), (1.0, 1, 1.0), (1.0, 3, 1.0), (1.0, 99, 1.0), (1.0, 0, 0.1),
     (1.0, 0, 0.5), (1.0, 0, 0.8), (2.0, 5, 0.75), (0.7, 4, 0.95)],
)  # fmt: skip
def test_supports_are_exact_and_shares_are_right(temperature: float, top_k: int, top_p: float) -> None:
    """Chi-square over 4,000 draws; every token that may come does, and no other."""
    found = np.bincount(draws(LOGITS, temperature=temperature, top_k=top_k, top_p=top_p), minlength=len(LOGITS))
    support = nucleus(LOGITS, temperature, top_k, top_p)
    assert np.flatnonzero(found).tolist() == sorted(support)
    expected = DRAWS * shares(LOGITS, temperature, support)
    if len(support) > 1:
        assert chisquare(found[support], expected[support]).pvalue > 1e-3


@pytest.mark.parametrize(
    ("probabilities", "top_p", "kept"),
    [([0.3, 0.1, 0.1, 0.5], 0.8, 2), ([0.5, 0.3, 0.1, 0.1], 0.8, 2), ([0.4, 0.3, 0.2, 0.1], 0.9, 3),
     ([0.25] * 4, 0.75, 3), ([0.1] * 10, 0.6, 6), ([0.1] * 10, 0.7, 7), ([0.99, 0.01], 0.99, 1),
     ([0.5, 0.3, 0.1, 0.1], 0.801, 3), ([0.5, 0.3, 0.1, 0.1], 1e-300, 1), ([0.25] * 4, 0.9999999, 4)],
)  # fmt: skip
def test_the_smallest_set_whose_total_is_top_p(probabilities: list[float], top_p: float, kept: int) -> None:
    """Also where it is exactly top_p: their float32 total may be above or below it."""
    assert len(set(draws(np.log(probabilities), top_p=top_p))) == kept


def drawn(rows: list[Any], most: int = 3, **options: Any) -> Decoded:
    """A few tokens of each row of logits."""
    zeros, keys = jnp.zeros(len(rows), jnp.int32), sentence_keys(0, jnp.arange(len(rows)))
    logits = jnp.asarray(rows, jnp.float32)
    return sample(lambda t, p, s: (logits, s), (), zeros, zeros, most, None, 99, keys=keys, **options)


@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"top_p": 0.9}], ids=["all", "top_k", "top_p"])
@pytest.mark.parametrize("temperature", [1e-3, 1e-38, 5e-324])
def test_a_cold_sample_is_the_most_likely_token(temperature: float, options: dict[str, float]) -> None:
    """However small, also where it is 0 in float32."""
    found = drawn([LOGITS, LOGITS + 60, LOGITS - 60], 8, temperature=temperature, **options)
    assert (found.tokens == 3).all()
    assert found.ok.all()


def test_a_cold_sample_of_a_tie_takes_both() -> None:
    found = np.bincount(draws(np.array([1.0, 2.0, 2.0]), temperature=1e-40), minlength=3)
    assert found[0] == 0
    assert chisquare(found[1:]).pvalue > 1e-3


@pytest.mark.parametrize("temperature", [1.0, 1e300])
@pytest.mark.parametrize("options", [{}, {"top_k": 99, "top_p": 0.9999}], ids=["all", "some"])
def test_what_cannot_come_does_not(temperature: float, options: dict[str, float]) -> None:
    """Logits of -inf, at any heat."""
    logits = np.where(np.arange(7) % 2, -np.inf, LOGITS)
    assert set(draws(logits, temperature=temperature, **options)) == {0, 2, 4, 6}


def test_logits_in_bfloat16_are_drawn_as_in_float32() -> None:
    rounded = np.asarray(jnp.asarray(LOGITS, jnp.bfloat16), np.float64)
    options = {"temperature": 0.7, "top_p": 0.95}
    np.testing.assert_array_equal(draws(LOGITS, dtype=jnp.bfloat16, **options), draws(rounded, **options))


@pytest.mark.parametrize("options", [{}, {"top_k": 2, "temperature": 1e-40}], ids=["all", "cold"])
def test_rows_with_invalid_logits_are_not_ok(options: dict[str, float]) -> None:
    rows = [[1.0, 2.0, 3.0], [1.0, np.nan, 2.0], [1.0, np.inf, 2.0], [-np.inf] * 3]
    assert drawn(rows, **options).ok.tolist() == [True, False, False, False]


def test_a_tie_at_the_border_goes_to_the_lowest_id() -> None:
    """Tokens 0 and 5 are as likely."""
    assert set(draws(LOGITS, top_k=3)) == {0, 3, 4}


def run(model: Hashed, numbers: list[int], most: int = 7, **options: Any) -> Decoded:
    return model.run("sample", most, len(numbers), keys=sentence_keys(5, jnp.array(numbers)), **options)


@pytest.mark.parametrize("options", [{}, {"top_k": 4, "top_p": 0.9, "temperature": 1.3}], ids=["all", "some"])
def test_a_sample_does_not_depend_on_its_batch(options: dict[str, float]) -> None:
    """Rows of one model of the prefix alone: only the sentence's number says what it draws."""
    model = Hashed(11, 0)
    model.own = 0
    together = run(model, [4, 8, 15, 16, 23], **options)
    alone = run(model, [4], **options)
    np.testing.assert_array_equal(together.tokens[:1], alone.tokens)
    other = run(model, [4, 42, 15, 4, 7], **options)
    np.testing.assert_array_equal(other.tokens[[0, 2]], together.tokens[[0, 2]])
    assert (together.tokens[0] != run(model, [5], **options).tokens[0]).any()


def test_no_two_steps_draw_alike() -> None:
    """Uniform logits: the tokens of a row are as many different ones as chance gives."""
    model = Hashed(50, 0)
    model.table[:] = 0
    model.table[:, EOS] = -50
    rows = run(model, [0, 1, 2], most=12).tokens[:, 0]
    assert all(len(set(row.tolist())) > 6 for row in rows)
    assert (rows[0] != rows[1]).any()


def test_scores_are_the_models_own() -> None:
    """At temperature 1 over the whole vocabulary, whatever the samples were drawn from."""
    model = Hashed(11, 3)
    found = run(model, [0, 1, 2, 3, 4], temperature=0.5, top_k=5, min_new=3)
    for row in range(5):
        length = found.lengths[row, 0]
        said = found.tokens[row, 0, :length].tolist()
        assert EOS not in said[:3]
        assert (said[-1] == EOS) == (length < 7) or length == 7
        np.testing.assert_allclose(found.scores[row, 0], model.score(row, said), rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"temperature": 0.0}, "above 0 and finite, not 0.0"), ({"top_k": -1}, "top_k must be 0"),
     ({"temperature": float("nan")}, "not nan"), ({"top_p": 0.0}, "top_p must be above 0"), ({"top_p": 1.5}, "1.5"),
     ({"temperature": -1.0}, "not -1.0"), ({"temperature": float("inf")}, "finite, not inf"),
     ({"top_p": float("nan")}, "not nan"), ({"top_p": -0.1}, "not -0.1")],
)  # fmt: skip
def test_mistakes_are_sentences(options: dict[str, float], words: str) -> None:
    with pytest.raises(UserError, match=words):
        run(Hashed(5, 0), [0], **options)
