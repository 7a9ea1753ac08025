"""What a window costs on the device, beside cuDNN's, tokamax's and a blocked form in plain XLA."""

import importlib.util
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from experiments.lab.card.device import compile_all, is_toy, median, milliseconds
from experiments.lab.timing import columns
from experiments.lab.workers import one_line
from transformer.model.attention import attend

# Rows of a batch are so long, and a batch holds as many tokens whatever the length: a window then has as much work.
LENGTHS = (1024, 16384, 65536, 4096, 2048, 8192, 32768)
TOKENS, HEADS, WIDTH, WINDOW = 65536, 12, 64, 128
TOY_LENGTHS, TOY_TOKENS, TOY_WINDOW = (64, 128), 128, 16
ROUNDS = 5


def blocked(q: Float[Array, "B L H K"], k: Any, v: Any, window: int) -> Float[Array, "B L H K"]:
    """The window as most codebases have it on plain XLA: blocks of as many queries as the window, which see their own
    and the preceding block, so that half of the scores are computed for nothing. The window divides the length."""
    rows, length, heads, width = q.shape
    cut = lambda x: x.reshape(rows, length // window, window, heads, width)  # noqa: E731
    before = lambda x: jnp.concatenate([jnp.pad(x[:, :-1], ((0, 0), (1, 0), *[(0, 0)] * 3)), x], axis=2)  # noqa: E731
    q, k, v = cut(q), before(cut(k)), before(cut(v))
    scores = jnp.einsum("bnqhd,bnkhd->bnhqk", q, k, preferred_element_type=jnp.float32) * width**-0.5
    ahead = jnp.arange(2 * window) - window - jnp.arange(window)[:, None]  # of a key, seen from its query
    seen = (ahead <= 0) & (ahead >= -window)
    first = (jnp.arange(length // window) > 0)[:, None, None] | (jnp.arange(2 * window) >= window)
    weights = jax.nn.softmax(jnp.where((seen & first)[:, None], scores, -1e30)).astype(v.dtype)
    return jnp.einsum("bnhqk,bnkhd->bnqhd", weights, v).reshape(rows, length, heads, width)


def kinds(window: int) -> dict[str, Callable[..., Any]]:
    """Kind -> causal attention of q, k, v [B, L, H, K]; those that do not exist here raise."""
    found: dict[str, Callable[..., Any]] = {
        "ours, window": partial(attend, causal=True, window=window),
        "cuDNN, window": partial(
            jax.nn.dot_product_attention, is_causal=True, local_window_size=(window, 0), implementation="cudnn"
        ),
        "blocked, window": partial(blocked, window=window),
        "ours, full": partial(attend, causal=True),
        "cuDNN, full": partial(jax.nn.dot_product_attention, is_causal=True, implementation="cudnn"),
    }
    if importlib.util.find_spec("tokamax") is not None:
        import tokamax

        theirs = partial(tokamax.dot_product_attention, implementation=("mosaic", "triton"), is_causal=True)
        found["tokamax, window"] = partial(theirs, local_window_size=(window, 0))
        found["tokamax, full"] = theirs
    return found


def rows() -> Iterator[dict[str, Any]]:
    """A row for each length and kind, the gradient of a weighted sum with respect to q, k and v. Within a length the
    kinds take turns, in the other order every other time. "bytes" is the compiler's work space; "error" is the largest
    difference of the gradients from those of ours, relative to the largest number. What cannot be measured has the
    reason as "skipped"."""
    lengths, tokens, window = (TOY_LENGTHS, TOY_TOKENS, TOY_WINDOW) if is_toy() else (LENGTHS, TOKENS, WINDOW)
    for length in lengths:
        yield from at(length, tokens // length, window)


def at(length: int, batch: int, window: int) -> Iterator[dict[str, Any]]:
    """The rows of one length."""
    heads, width = (2, 8) if is_toy() else (HEADS, WIDTH)
    shape = (batch, length, heads, width)
    dtype = jnp.float32 if is_toy() else jnp.bfloat16
    q, k, v, weights = (jax.random.normal(key, shape, dtype) for key in jax.random.split(jax.random.key(length), 4))
    named = {"length": length, "batch": batch, "window": window}
    lowered, failed = {}, {}
    for kind, attention in kinds(window).items():

        def total(q: Any, k: Any, v: Any, attention: Callable[..., Any] = attention) -> Any:
            return (attention(q, k, v).astype(jnp.float32) * weights.astype(jnp.float32)).sum()

        try:
            lowered[kind] = jax.jit(jax.grad(total, argnums=(0, 1, 2))).lower(q, k, v)
        except Exception as error:  # what a kernel may raise: the others go on
            failed[kind] = error
    programs = failed | compile_all(lowered)
    runs, told, results = {}, {}, dict[str, Any]()
    for kind, program in programs.items():
        row = {"kind": kind} | named
        try:
            if isinstance(program, Exception):
                raise program
            results[kind] = jax.block_until_ready(program(q, k, v))
        except Exception as error:
            yield row | {"skipped": one_line(error)}
            continue
        ours = results.get(f"ours, {kind.partition(', ')[2]}")
        far = float("nan") if ours is None else max(map(_difference, results[kind], ours))
        runs[kind] = partial(program, q, k, v)
        told[kind] = row | {"bytes": program.memory_analysis().temp_size_in_bytes, "error": far}
    results.clear()
    times: dict[str, list[float]] = {kind: [] for kind in runs}
    for turn in range(ROUNDS):
        for kind in list(runs)[:: 1 if turn % 2 == 0 else -1]:
            times[kind] += milliseconds(runs[kind], warm_up=1, groups=1, each=1 if is_toy() else 4)
    best = median(times["ours, window"]) if "ours, window" in times else float("nan")
    for kind, ms in times.items():
        yield told[kind] | columns(ms) | {"times_ours": median(ms) / best}


def _difference(one: Any, other: Any) -> float:
    one, other = (x.astype(jnp.float32) for x in (one, other))
    return float(jnp.abs(one - other).max() / jnp.abs(other).max())
