"""Greedy decoding: with caches against a loop of whole forward passes, and over steps made up here."""

import functools
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.decoding.hashed import BOS, Hashed, outputs
from transformer.config import Config, override
from transformer.data.tokenizers import Tokenizer
from transformer.decoding.greedy import greedy
from transformer.decoding.hypotheses import ensemble
from transformer.model.tokens import Tokens
from transformer.tasks import TASKS, Task

EOS, VOCABULARY = Tokenizer.eos_id, 19


@functools.cache
def _task(name: str, positions: str, attention: tuple[str, ...]) -> tuple[Task, Any, Any]:
    """A task, parameters, and greedy decoding of it, compiled once."""
    changes: dict[str, Any] = {"task": name, "data.max_len": 9, "model.positions": positions}
    changes |= {"model.family": TASKS[name].families[0], "model.attention": list(attention), "model.max_positions": 12}
    changes |= {"model.num_layers": 2, "model.d_model": 12, "model.d_ff": 16, "model.num_heads": 3}
    task = TASKS[name](
        override(Config(), changes), SimpleNamespace(vocab_size=VOCABULARY, bos_id=Tokenizer.bos_id, eos_id=EOS)
    )  # type: ignore[arg-type]
    params = jax.jit(task.init)(jax.random.key(SEEDS[name]))
    # Untrained, the tied table says the same token for ever: with larger layers, rows differ.
    layers = {
        room: jax.tree.map(lambda x: 4 * x, tree) for room, tree in params["params"].items() if room != "embedder"
    }
    params = {"params": params["params"] | layers}
    return task, params, jax.jit(lambda tokens, lengths: greedy(*task.begin(params, tokens, lengths), EOS).tokens[:, 0])


SEEDS = {"translation": 0, "language_model": 3}
PROMPTS = [[5, 6, 7], [8], [3, 4, 5, 6, 7, 8, 9], [11, 12], [18, 17, 16, 15], [9, 9]]
WIDTH = 8
CASES = [("translation", "learned", ("window:2", "full")), ("language_model", "learned", ("window:3",))]


def _decode(case: tuple[str, str, tuple[str, ...]], prompts: list[list[int]]) -> np.ndarray:
    task, _, decode = _task(*case)
    tokens, lengths = np.zeros((len(prompts), WIDTH), np.int32), np.zeros(len(prompts), np.int32)
    for row, prompt in enumerate(prompts):
        ids = task.prompt(prompt)
        tokens[row, : len(ids)], lengths[row] = ids, len(ids)
    return np.asarray(decode(tokens, lengths))


def _naive(case: tuple[str, str, tuple[str, ...]], most: int) -> list[list[int]]:
    """One whole forward pass a token, without a cache, and a Python loop that takes the largest logit."""
    task, params, _ = _task(*case)
    causal = case[0] == "language_model"

    def padded(rows: list[list[int]], width: int) -> tuple[jax.Array, Tokens]:
        ids, segments = np.zeros((len(rows), width), np.int32), np.zeros((len(rows), width), np.int32)
        for row, said in enumerate(rows):
            ids[row, : len(said)], segments[row, : len(said)] = said, 1
        return jnp.asarray(ids), Tokens(jnp.asarray(np.arange(width, dtype=np.int32) * segments), jnp.asarray(segments))

    prompts = [task.prompt(prompt) for prompt in PROMPTS]
    rows = [list(prompt) if causal else [Tokenizer.bos_id] for prompt in prompts]
    starts = [len(row) for row in rows]
    source = () if causal else padded(prompts, WIDTH)
    forward = jax.jit(lambda *arguments: task.model.apply(params, *arguments))
    for _ in range(most):
        logits = np.asarray(forward(*source, *padded(rows, WIDTH + most)))
        for row, said in enumerate(rows):
            if EOS not in said[starts[row] :] and (task.limit is None or len(said) <= task.limit):
                said.append(int(np.argmax(logits[row, len(said) - 1])))
    return [said[start:] for said, start in zip(rows, starts, strict=True)]


@pytest.mark.parametrize("case", CASES, ids=[case[0] for case in CASES])
def test_greedy_is_the_naive_loop(case: tuple[str, str, tuple[str, ...]]) -> None:
    written = _decode(case, PROMPTS).tolist()
    most = len(written[0])
    expected = [said + [EOS] * (most - len(said)) for said in _naive(case, most)]
    assert written == expected
    assert len({tuple(row) for row in written}) > 2, "the rows say different things"
    assert case[0] == "translation" or written[2][5:] == [EOS] * (most - 5), "8 of 12 positions are the prompt"


@pytest.mark.parametrize("case", CASES, ids=[case[0] for case in CASES])
def test_a_row_does_not_depend_on_the_others(case: tuple[str, str, tuple[str, ...]]) -> None:
    together = _decode(case, PROMPTS)
    np.testing.assert_array_equal(_decode(case, PROMPTS[::-1]), together[::-1])
    np.testing.assert_array_equal(_decode(case, [PROMPTS[2]] * 3 + [[7]] * 3)[:3], together[[2, 2, 2]])


def _scripted(script: np.ndarray) -> Any:
    """A step that gives `script[row, position]` as logits, and counts its calls in the state."""
    table = jnp.asarray(script, jnp.float32)

    def step(tokens: jax.Array, positions: jax.Array, state: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.take_along_axis(table, positions[:, :, None], axis=1)[:, 0], state + 1

    return step


def test_ties_go_to_the_lowest_id_and_rows_end_at_eos() -> None:
    script = np.zeros((3, 5, 6))
    script[0, :, [3, 5]] = 1  # a tie, for ever
    script[1, 0, 4], script[1, 1, EOS], script[1, 2:, 5] = 1, 1, 1  # 4, EOS; what comes later is not said
    script[2, 0, [EOS, 3]] = 1  # EOS wins the tie
    zeros = jnp.zeros(3, jnp.int32)
    written = greedy(_scripted(script), jnp.int32(0), zeros, zeros, 5, None, EOS).tokens[:, 0]
    assert written.tolist() == [[3] * 5, [4] + [EOS] * 4, [EOS] * 5]
    assert written.dtype == jnp.int32


def test_the_loop_ends_when_every_row_has() -> None:
    """A callback counts the calls."""
    calls = []
    script = np.zeros((2, 50, 4))
    script[:, :, 3] = 1
    script[0, 2], script[1, 4] = np.eye(4)[EOS], np.eye(4)[EOS]
    inner = _scripted(script)

    def step(tokens: jax.Array, positions: jax.Array, state: jax.Array) -> tuple[jax.Array, jax.Array]:
        jax.debug.callback(lambda: calls.append(1))
        return inner(tokens, positions, state)

    zeros = jnp.zeros(2, jnp.int32)
    written = jax.block_until_ready(greedy(step, jnp.int32(0), zeros, zeros, 50, None, EOS).tokens[:, 0])
    jax.effects_barrier()
    assert written[:, :6].tolist() == [[3, 3, EOS, EOS, EOS, EOS], [3, 3, 3, 3, EOS, EOS]]
    assert len(calls) == 5


def test_positions_and_tokens_go_on_from_the_start() -> None:
    """Row b is asked about position first_positions[b] + n with the token it wrote before."""
    seen: list[tuple[list[int], list[int]]] = []

    def step(tokens: jax.Array, positions: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        jax.debug.callback(
            lambda t, p: seen.append((t[:, 0].tolist(), p[:, 0].tolist())), tokens, positions, ordered=True
        )
        return jax.nn.one_hot((tokens[:, 0] + 1) % 10, 10), state

    jax.block_until_ready(greedy(step, (), jnp.array([3, 5]), jnp.array([0, 7]), 3, None, EOS))
    jax.effects_barrier()
    assert seen == [([3, 5], [0, 7]), ([4, 6], [1, 8]), ([5, 7], [2, 9])]


def test_a_row_ends_with_the_positions_that_the_model_has() -> None:
    """With 6 positions, a row that begins at the last one writes one token, and one at the first six."""
    script = np.zeros((3, 6, 4))
    script[:, :, 3] = 1
    zeros = jnp.zeros(3, jnp.int32)
    written = greedy(_scripted(script), jnp.int32(0), zeros, jnp.array([0, 3, 5]), 8, 6, EOS).tokens[:, 0]
    assert (written == 3).sum(axis=1).tolist() == [6, 3, 1]
    assert (written == EOS).sum(axis=1).tolist() == [2, 5, 7]


def test_lengths_scores_and_a_minimum() -> None:
    """EOS is the likeliest token throughout: it comes as soon as it may, and its log-probabilities count."""
    for least in (0, 2):
        model = Hashed(5, least)
        model.table[:, EOS] = 9
        found = model.run("greedy", 5, 4, min_new=least)
        assert found.lengths.tolist() == [[least + 1]] * 4
        for row in range(4):
            (said,) = outputs(found, row)
            assert said[-1] == EOS
            np.testing.assert_allclose(found.log_probs[row, 0], model.score(row, said), rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(found.scores, found.log_probs)


def test_an_ensemble_has_the_mean_of_the_log_probabilities() -> None:
    """Against a loop in float64, greedy, over three models whose states go their own ways."""
    models = [Hashed(7, seed) for seed in range(3)]
    starts = [model.start(4) for model in models]
    step = ensemble([start[0] for start in starts])
    found = greedy(step, tuple(start[1] for start in starts), *starts[0][2:], 6, None, EOS)
    for row in range(4):
        said: list[int] = []
        while len(said) < 6 and said[-1:] != [EOS]:
            said.append(int(np.mean([model.log_probs(row, (BOS, *said)) for model in models], axis=0).argmax()))
        assert outputs(found, row) == [said]
