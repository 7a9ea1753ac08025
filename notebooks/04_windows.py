# %% [markdown]
# # Windows
#
# A window of w lets a token see w neighbours to each side besides itself (when causal, to the left only). What that
# looks like, what it costs, and how far stacked windows see.

# %%
# %matplotlib inline
import os
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transformer.analysis import plots
from transformer.config import ModelConfig
from transformer.model.attention import attend
from transformer.model.families import build
from transformer.model.masks import band, visible
from transformer.model.tokens import Tokens

TOY = "TOY" in os.environ  # short lengths only, to see that all of it runs

# %% [markdown]
# ## Masks
#
# Who sees whom is a function of positions, never of the shape of an array. Here two texts are packed into one row: the
# positions restart, and no text sees the other.

# %%
positions = jnp.array([[0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4]])
segments = jnp.array([[1] * 7 + [2] * 5])


def picture(causal: bool, window: int | None) -> Any:
    """Who sees whom in the packed row."""
    mask = visible(positions, positions, segments, segments, band(causal, window))
    return plots.matrix(np.asarray(mask[0], float), "key", "query", "visible")


picture(causal=False, window=2)

# %%
picture(causal=True, window=2)

# %% [markdown]
# ## Cost
#
# Full attention has L · L scores; a window has about L · (w + 1) that count. To gain by it, the others must not be
# computed: the library cuts the band into tiles (`backend="banded"`). Masking all scores gains nothing.

# %%
WINDOW, LENGTHS = 16, (128, 256) if TOY else (256, 512, 1024, 2048, 4096)


def milliseconds(length: int, window: int | None, backend: str) -> float:
    """The fastest of a few runs of one causal attention, 4 heads of 32."""
    q = jnp.asarray(np.random.default_rng(0).normal(size=(1, length, 4, 32)), jnp.float32)
    run = jax.jit(lambda q: attend(q, q, q, causal=True, window=window, backend=backend))
    run(q).block_until_ready()
    times = []
    for _ in range(5):
        began = time.perf_counter()
        run(q).block_until_ready()
        times.append(time.perf_counter() - began)
    return 1000 * min(times)


CASES = {
    "full": (None, "dense"),
    f"window {WINDOW}, masked": (WINDOW, "dense"),
    f"window {WINDOW}, banded": (WINDOW, "banded"),
}
costs = {
    name: (np.array(LENGTHS, float), np.array([milliseconds(length, *case) for length in LENGTHS]))
    for name, case in CASES.items()
}
plots.cost(costs, "length (tokens)", "time (ms)")

# %%
for name, (_, times) in costs.items():
    print(f"{name:20} {LENGTHS[0]} tokens {times[0]:8.2f} ms   {LENGTHS[-1]} tokens {times[-1]:8.2f} ms")

# %% [markdown]
# ## The receptive field
#
# A layer sees w back; the layer above sees what that one has seen: N layers see N · w back, and not one more (Beltagy
# et al. 2020, "Longformer"). The gradient of an output with respect to each input shows it exactly: where it is 0,
# nothing gets through.

# %%
LENGTH, WIDTH = 48, 4
LAYERS = (1, 2, 3) if TOY else (1, 2, 3, 4, 6)
where = Tokens()  # one text a row, without padding


def reach(layers: int, window: int) -> np.ndarray:
    """How much the last output depends on each input: the length of the gradient with respect to its embedding."""
    config = ModelConfig(family="decoder_only", positions="none", attention=(f"window:{window}",), num_layers=layers,
                         d_model=32, d_ff=64, num_heads=4, norm="pre", dropout=0.0, vocab_size=LENGTH)  # fmt: skip
    model = build(config)
    tokens = jnp.arange(LENGTH)[None]  # each position has a row of the table to itself
    params = model.init(jax.random.key(0), tokens, where)
    probe = jnp.asarray(np.random.default_rng(1).normal(size=32), jnp.float32)

    def last(table: Any) -> Any:
        changed = {"params": params["params"] | {"embedder": {"table": table}}}
        return model.apply(changed, tokens, where, method="features")[0, -1] @ probe

    return np.asarray(jnp.linalg.norm(jax.jit(jax.grad(last))(params["params"]["embedder"]["table"]), axis=-1))


gradients = np.stack([reach(layers, WIDTH) for layers in LAYERS])
for layers, row in zip(LAYERS, gradients, strict=True):
    farthest = LENGTH - 1 - np.flatnonzero(row)[0]
    print(f"{layers} layers of window {WIDTH}: the farthest input that counts is {farthest} back")
    assert farthest == layers * WIDTH

# %%
# 0, the palest, is no gradient at all.
shown = np.where(gradients > 0, np.log10(np.maximum(gradients, 1e-12)) + 8, 0)[:, ::-1]
plots.matrix(shown, "positions back", "layers", "log10(gradient) + 8", rows=[str(n) for n in LAYERS])
