"""Associative recall: each of two keys is stored once with one of four values; at a query of a key, what is its value?

Queries stand among fillers at every distance from what they ask for, so the accuracy shows how far back a model sees.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

KEYS, VALUES = 2, 4
# Tokens: 0 filler, then the queries of the keys, then the stores of each key and value.
FIRST_STORE = 1 + KEYS
VOCAB = FIRST_STORE + KEYS * VALUES


def draw(rng: np.random.Generator, rows: int, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens [rows, length], the value asked for at each query (-1 elsewhere), and its distance.

    Both keys are stored in the first four places; every later place is a query of a random key, or a filler.
    """
    tokens = rng.integers(0, 1 + KEYS, (rows, length))
    values = rng.integers(0, VALUES, (rows, KEYS))
    places = rng.permuted(np.tile(np.arange(4), (rows, 1)), axis=1)[:, :KEYS]
    tokens[:, :4] = 0
    np.put_along_axis(tokens, places, FIRST_STORE + np.arange(KEYS) * VALUES + values, axis=1)
    asked = (tokens > 0) & (tokens < FIRST_STORE)
    key = np.where(asked, tokens - 1, 0)
    answers = np.where(asked, np.take_along_axis(values, key, axis=1), -1)
    distances = np.where(asked, np.arange(length) - np.take_along_axis(places, key, axis=1), 0)
    return tokens.astype(np.int32), answers.astype(np.int32), distances.astype(np.int32)


def trainer(
    logits: Callable[..., Any], steps: int, warmup: int, rate: float
) -> Callable[[Any, Iterable[tuple[np.ndarray, ...]]], Any]:
    """`fit(params, batches) -> params`, after a step of Adam on each batch; it is compiled once.

    A batch is the inputs and, last, the answers [...], where -1 is no question.

    Args:
        logits: `logits(params, *inputs)` -> [..., VALUES] at each place that may be asked.
        steps: how many batches there will be; the learning rate falls to 0 over them, by a cosine.
        warmup: steps to the peak of the learning rate.
        rate: the peak.
    """
    import jax
    import jax.numpy as jnp
    import optax

    def loss(params: Any, *batch: Any) -> Any:
        *inputs, answers = batch
        each = optax.softmax_cross_entropy_with_integer_labels(logits(params, *inputs), jnp.maximum(answers, 0))
        return jnp.where(answers >= 0, each, 0).sum() / (answers >= 0).sum()

    optimizer = optax.adam(optax.warmup_cosine_decay_schedule(0.0, rate, warmup, steps))

    @jax.jit
    def step(params: Any, state: Any, *batch: Any) -> tuple[Any, Any]:
        changes, state = optimizer.update(jax.grad(loss)(params, *batch), state, params)
        return optax.apply_updates(params, changes), state

    def fit(params: Any, batches: Iterable[tuple[np.ndarray, ...]]) -> Any:
        state = optimizer.init(params)
        for batch in batches:
            params, state = step(params, state, *batch)
        return params

    return fit
