# %% [markdown]
# # Positions
#
# What the encodings look like, why a dot product with them depends on the distance only, and what becomes of them past
# the lengths of training. All are rows of `transformer.model.positions.POSITIONS`.

# %%
# %matplotlib inline
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from transformer.analysis import plots
from transformer.config import ModelConfig
from transformer.model.families import build
from transformer.model.positions import alibi_slopes, rotation, sinusoid, t5_bucket
from transformer.model.tokens import Tokens

TOY = "TOY" in os.environ  # a few steps only, to see that all of it runs

# %% [markdown]
# ## The heat map
#
# Each pair of columns is a clock with a hand of its own speed: the first go round every 2π positions, the last every
# 2π · 10000.

# %%
LENGTH, WIDTH = 128, 64
table = np.asarray(sinusoid(jnp.arange(LENGTH), WIDTH), np.float64)
plots.matrix(table, "feature", "position", "PE")

# %% [markdown]
# ## Similarity depends on the distance only
#
# With $\omega_i = 10000^{-2i/D}$, a pair of features at position p is $(\sin \omega_i p, \cos \omega_i p)$. So
#
# $$PE(p) \cdot PE(s) = \sum_i \sin\omega_i p \sin\omega_i s + \cos\omega_i p \cos\omega_i s
# = \sum_i \cos \omega_i (p - s)$$
#
# by the addition theorem: p and s are gone, and their difference is left.

# %%
similarity = table @ table.T
rates = 10000.0 ** (-2 * np.arange(WIDTH // 2) / WIDTH)
by_offset = np.cos(rates * np.arange(LENGTH)[:, None]).sum(-1)
distance = np.abs(np.subtract.outer(np.arange(LENGTH), np.arange(LENGTH)))
np.testing.assert_allclose(similarity, by_offset[distance], atol=1e-3)
plots.matrix(similarity, "position", "position", "PE(p) · PE(s)")


# %%
def similarities(width: int) -> np.ndarray:
    """At each distance, as a share of that at distance 0."""
    return np.cos(10000.0 ** (-2 * np.arange(width // 2) / width) * np.arange(LENGTH)[:, None]).mean(-1)


curves = {f"D = {width}": (np.arange(LENGTH), similarities(width)) for width in (16, 64, 512)}
plots.lines(curves, "distance", "similarity, as a share of that at distance 0")

# %% [markdown]
# And a step of k positions is a rotation of every pair by $\omega_i k$, the same at every position: a linear map, which
# a layer can learn. Rotary positions (Su et al. 2021) take that as the encoding itself, of queries and keys:
# $(R_p q) \cdot (R_s k) = q \cdot R_{s-p} k$.

# %%
rng = np.random.default_rng(0)
q, k = (jnp.asarray(rng.normal(size=(1, 1, 1, 16)), jnp.float32) for _ in range(2))


def score(p: int, s: int) -> float:
    """Of q at position p and k at position s."""
    at_p, at_s = (rotation(jnp.array([[place]]), 16) for place in (p, s))
    return float((at_p(q) * at_s(k)).sum())


print([round(score(p, p + 5), 4) for p in (0, 1, 17, 100)], "at distance 5;", round(score(0, 6), 4), "at distance 6")
np.testing.assert_allclose([score(p, p + 5) for p in (1, 17, 100)], score(0, 5), atol=1e-4)

# %% [markdown]
# Others leave the vectors alone, and add to the scores: ALiBi (Press et al. 2022) a slope times the distance, steeper
# in some heads than in others; T5 a trained number for each bucket of distances, narrow near by and wide far off.

# %%
away = np.arange(40)
plots.lines(
    {f"head {i + 1}": (away, -slope * away) for i, slope in enumerate(alibi_slopes(4))}, "distance", "ALiBi bias"
)

# %%
far = np.arange(160)
plots.lines(
    {"causal": (far, np.asarray(t5_bucket(-jnp.asarray(far), causal=True), float))}, "distance back", "T5 bucket"
)

# %% [markdown]
# ## Past the lengths of training
#
# A small decoder reads random symbols, and then the same again: to copy, it has to look back by half of the row. It is
# trained on rows of up to 16 symbols, and asked for up to 40. Only the encodings differ; the weights begin the same.

# %%
SYMBOLS, TRAINED, LONGEST, ROWS = 8, 16, 40, 64
STEPS = 3 if TOY else 1500
KINDS = ("sinusoidal", "rotary", "alibi", "none") if not TOY else ("sinusoidal", "alibi")


def rows(rng: np.random.Generator, half: int) -> np.ndarray:
    """[ROWS, 1 + 2 LONGEST]: a beginning (1), `half` symbols, the same again; padding (0)."""
    symbols = rng.integers(2, 2 + SYMBOLS, (ROWS, half))
    whole = np.concatenate([np.ones((ROWS, 1), int), symbols, symbols], axis=1)
    return np.pad(whole, [(0, 0), (0, 1 + 2 * LONGEST - whole.shape[1])])


def measure(kind: str) -> np.ndarray:
    """The share of right symbols in the copy, for each length from 1 to LONGEST."""
    config = ModelConfig(family="decoder_only", positions=kind, num_layers=2, d_model=32, d_ff=64, num_heads=4,
                         norm="pre", dropout=0.0, vocab_size=2 + SYMBOLS)  # fmt: skip
    model = build(config)
    places = jnp.tile(jnp.arange(2 * LONGEST), (ROWS, 1))

    def logits(params: Any, tokens: Any) -> Any:
        return model.apply(params, tokens[:, :-1], Tokens(lengths=(tokens[:, :-1] > 0).sum(-1)))

    def copied(half: Any) -> Any:
        """Which of the predictions are of the copy."""
        return (places >= half) & (places < 2 * half)

    def loss(params: Any, tokens: Any, half: Any) -> Any:
        each = optax.softmax_cross_entropy_with_integer_labels(logits(params, tokens), tokens[:, 1:])
        return (each * copied(half)).sum() / copied(half).sum()

    optimizer = optax.adam(optax.warmup_cosine_decay_schedule(0.0, 5e-3, 100, max(STEPS, 101)))
    params = model.init(jax.random.key(0), jnp.ones((1, 2), jnp.int32), Tokens())
    state = optimizer.init(params)

    @jax.jit
    def step(params: Any, state: Any, tokens: Any, half: Any) -> tuple[Any, Any]:
        changes, state = optimizer.update(jax.grad(loss)(params, tokens, half), state)
        return optax.apply_updates(params, changes), state

    @jax.jit
    def accuracy(params: Any, tokens: Any, half: Any) -> Any:
        right = logits(params, tokens).argmax(-1) == tokens[:, 1:]
        return (right * copied(half)).sum() / copied(half).sum()

    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        half = rng.integers(1, TRAINED + 1)
        params, state = step(params, state, rows(rng, half), half)
    return np.array([accuracy(params, rows(rng, half), half) for half in range(1, LONGEST + 1)])


lengths = np.arange(1, LONGEST + 1)
found = {kind: measure(kind) for kind in KINDS}
plots.lines({kind: (lengths, 100 * share) for kind, share in found.items()}, "symbols to copy", "right (%)",
            {"longest in training": TRAINED})  # fmt: skip

# %%
for kind, share in found.items():
    short, long = share[:TRAINED].mean(), share[TRAINED:].mean()
    print(f"{kind:12} up to {TRAINED}: {short:6.1%}   from {TRAINED + 1} to {LONGEST}: {long:6.1%}")

# %% [markdown]
# A learned table is not among them: it has no vector past its end, and says so.

# %%
learned = build(
    ModelConfig(family="decoder_only", positions="learned", max_positions=TRAINED, vocab_size=9, num_layers=1)
)
try:
    learned.init(jax.random.key(0), jnp.ones((1, 20), jnp.int32), Tokens())
except ValueError as error:
    print(error)
