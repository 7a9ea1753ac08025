"""Every kernel against `dense`: values and gradients, in the types that training uses."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.lab.card.device import compile_all, is_toy
from experiments.lab.workers import one_line
from transformer.model.attention import attend, noted_choices

# Largest error that is nothing but rounding, by type: one step of bfloat16; float32 after sums in another order.
ROUNDING = {"bfloat16": 2.0**-7, "float32": 1e-5}


class Call(NamedTuple):
    """A call of `attend` on q [B, L, H, K], and k and v of G heads."""

    padding: str  # "none", "lengths" or "segments"
    causal: bool
    window: int | None
    width: int = 64
    heads: int = 12
    groups: int = 12
    dtype: str = "bfloat16"

    @property
    def name(self) -> str:
        marked = {"none": "contiguous", "lengths": "right-padded", "segments": "packed"}[self.padding]
        seen = ("causal " if self.causal else "") + ("full" if self.window is None else f"window {self.window}")
        return f"{marked}, {seen}, width {self.width}, {self.heads}/{self.groups} heads, {self.dtype}"


CALLS = (
    Call("none", True, None),
    Call("segments", True, None),
    Call("none", True, 128),
    Call("segments", True, 128),
    Call("lengths", False, None),
    Call("segments", False, None),
    Call("none", False, 128),
    Call("segments", True, None, 128, 8, 2),
    Call("segments", True, 128, 128, 8, 2),
    Call("none", True, None, dtype="float32"),
    Call("segments", True, 128, dtype="float32"),
)
BATCH, LENGTH = 2, 1024
TOY_LENGTH, TOY_CALLS = 96, 3


def rows() -> Iterator[dict[str, Any]]:
    """For each call and backend that takes it, the largest errors of the values and of the gradients, relative to the
    largest number of the exact result: that of `dense` in float32 at the highest precision, from the same numbers.
    Beside them the errors of `dense` in the call's type. `fine`: none is above twice `dense`'s, or above ROUNDING. A
    backend that does not take the call has the reason as "skipped"."""
    if is_toy():
        toys = [call._replace(width=32, heads=4, groups=2, window=call.window and 16) for call in CALLS[:TOY_CALLS]]
        for call in toys:
            yield from errors(call, TOY_LENGTH)
        return
    for call in CALLS:
        yield from errors(call, LENGTH)


def errors(call: Call, length: int) -> Iterator[dict[str, Any]]:
    """The rows of one call: of the backend of "auto", of the accelerator's kernels, and of a window's own tiles."""
    arrays, told, weights = _draw(call, length)
    make = lambda backend, dtype: _gradients(call, told, weights, backend, dtype)  # noqa: E731
    with noted_choices() as choices:
        jax.eval_shape(make("auto", call.dtype), *arrays)
    chosen = choices[0]
    backends = dict.fromkeys((chosen.backend, "fused", *(("banded",) if call.window is not None else ())))
    lowered, failed = {"exact": make("dense", "float32").lower(*arrays)}, {}
    for backend in ("dense", *backends):
        try:
            lowered[backend] = make(backend, call.dtype).lower(*arrays)
        except Exception as error:  # what it does not take, and whatever a kernel may raise: the others go on
            failed[backend] = error
    programs = compile_all(lowered)
    exact = programs["exact"](*arrays)
    plain = _worst(programs["dense"](*arrays), exact)
    limits = [max(2 * error, ROUNDING[call.dtype]) for error in plain]
    for backend in backends:
        row: dict[str, Any] = {"call": call.name, "backend": backend, "chosen": backend == chosen.backend}
        program = failed.get(backend) or programs[backend]
        try:
            if isinstance(program, Exception):
                raise program
            found = _worst(program(*arrays), exact)
        except Exception as error:
            yield row | {"skipped": one_line(error)}
            continue
        yield row | {
            "reason": chosen.reason if row["chosen"] else "",
            "values": found[0],
            "gradients": found[1],
            "dense_values": plain[0],
            "dense_gradients": plain[1],
            "fine": bool(found[0] <= limits[0] and found[1] <= limits[1]),  # False of NaN
        }


def _draw(call: Call, length: int) -> tuple[tuple[jax.Array, ...], dict[str, Any], jax.Array]:
    """q, k and v in the call's type; how documents and padding are marked; and the weights [B, L, H, K] of the sum
    whose gradient is taken, 0 for queries of padding, whose output is not specified."""
    rng = np.random.default_rng(length)
    shapes = [(BATCH, length, heads, call.width) for heads in (call.heads, call.groups, call.groups)]
    q, k, v = (jnp.asarray(rng.standard_normal(shape), call.dtype) for shape in shapes)
    weights, told = rng.standard_normal(shapes[0]), dict[str, Any]()
    if call.padding == "lengths":
        lengths = np.array([length - length // 3, length])
        told["k_lengths"] = jnp.asarray(lengths)
        weights *= (np.arange(length) < lengths[:, None])[..., None, None]
    elif call.padding == "segments":
        ends = np.sort(rng.integers(1, length, (BATCH, 5)), axis=1)
        segments = 1 + (np.arange(length) >= ends[..., None]).sum(axis=1)
        segments[:, length - length // 16 :] = 0  # padding is a document of its own
        told["q_segments"] = told["k_segments"] = jnp.asarray(segments)
    return (q, k, v), told, jnp.asarray(weights, jnp.float32)


def _gradients(call: Call, told: dict[str, Any], weights: jax.Array, backend: str, dtype: str) -> Any:
    """(q, k, v) -> the output and the gradients of its weighted sum; float32 at the highest precision."""

    def total(q: Any, k: Any, v: Any) -> tuple[jax.Array, jax.Array]:
        out = attend(q, k, v, causal=call.causal, window=call.window, consecutive=True, backend=backend, **told)
        out = jnp.where(weights == 0, 0, out.astype(jnp.float32))
        return (out * weights).sum(), out

    def both(*arrays: Any) -> list[jax.Array]:
        arrays = tuple(x.astype(dtype) for x in arrays)
        exact = backend == "dense" and dtype == "float32"
        with jax.default_matmul_precision("highest" if exact else None):
            gradients, out = jax.grad(total, argnums=(0, 1, 2), has_aux=True)(*arrays)
        return [out, *gradients]

    return jax.jit(both)


def _worst(found: list[jax.Array], exact: list[jax.Array]) -> tuple[float, float]:
    """The largest relative error of the values, and of the three gradients."""

    def error(one: Any, other: Any) -> float:
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        return float(np.abs(one - other).max() / np.abs(other).max())

    each = [error(*pair) for pair in zip(found, exact, strict=True)]
    return each[0], float(np.max(each[1:]))
