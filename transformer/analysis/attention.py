"""Attention maps of any model, and ablation of its heads.

The model's own code runs, intercepted where heads are computed (`MultiHeadAttention.heads`), so its masks, windows,
segments, biases and positions apply. A map is the output of attention with unit vectors as values, computed densely
whatever backend the model uses. All functions can be jitted over `params` and `arguments`.

    maps = attention_maps(model, params, tokens, where)["decoder"]["self"]  # [N, B, H, L, S]
    statistics = head_statistics(watch(model, params, tokens, where)[1]["decoder"]["self"])
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from transformer.errors import UserError
from transformer.model.layers import MultiHeadAttention
from transformer.model.stacks import Stack, unstacked
from transformer.model.tokens import Tokens


class Attention(NamedTuple):
    """One kind of attention, of all layers of a stack. Rows of weights sum to 1, or to 0 where no key is visible."""

    weights: Float[Array, "N B H L S"]
    queries: Tokens
    keys: Tokens


# Stack ("encoder", "decoder") -> kind ("self", "cross") -> its attention.
Watched = dict[str, dict[str, Attention]]


def watch(model: nn.Module, params: Any, *arguments: Any) -> tuple[Any, Watched]:
    """The model's output for `arguments`, and the attention of every stack. UserError: a model without attention heads
    (the recurrent families)."""
    seen: dict[tuple[str, str], list[Attention]] = {}

    def listen(
        place: "_Place", heads: Callable[..., Array], q: Any, keys: Any, where: Tokens, score: Any, **told: Any
    ) -> Array:
        batch, length, groups, _ = keys.k.shape
        units = jnp.broadcast_to(jnp.eye(length)[:, None], (batch, length, groups, length))
        weights = jnp.moveaxis(heads(q, keys._replace(v=units), where, score, backend="dense", **told), 2, 1)
        attention = Attention(weights[None], where.whole(*q.shape[:2]), keys.where.whole(batch, length))
        seen.setdefault((place.stack, place.kind), []).append(attention)
        return heads(q, keys, where, score, **told)

    out = _run(model, params, arguments, listen)
    watched: Watched = {}
    for (stack, kind), layers in seen.items():
        weights = jnp.concatenate([layer.weights for layer in layers])
        watched.setdefault(stack, {})[kind] = layers[0]._replace(weights=weights)
    return out, watched


def attention_maps(model: nn.Module, params: Any, *arguments: Any) -> dict[str, dict[str, Float[Array, "N B H L S"]]]:
    """Stack -> "self" or "cross" -> weights [N, B, H, L, S]. UserError: as `watch`."""
    watched = watch(model, params, *arguments)[1]
    return {stack: {kind: found.weights for kind, found in kinds.items()} for stack, kinds in watched.items()}


def ablated(model: nn.Module, params: Any, keep: Mapping[str, Mapping[str, Any]], *arguments: Any) -> Any:
    """The model's output where each head's output is multiplied by a number: 0 removes it, 1 keeps it.

    `keep` is stack -> kind -> [N, H], such as {"decoder": {"self": [[1, 0], [1, 1]]}}; others are kept. Its gradient at
    1 is the importance of each head (Michel et al. 2019, "Are sixteen heads really better than one?", equation 2), and
    `jax.vmap` over it ablates heads one at a time. UserError: the model has no such stack or kind, or the shape is not
    [N, H].
    """
    config: Any = model.config  # type: ignore[attr-defined]
    shape = (config.num_layers, config.num_heads)
    gates = {(stack, kind): jnp.asarray(gate) for stack, kinds in keep.items() for kind, gate in kinds.items()}
    for (stack, kind), gate in gates.items():
        if gate.shape != shape:
            raise UserError(
                f"keep[{stack!r}][{kind!r}] has shape {gate.shape}: it needs a number for each of {shape[0]} layers "
                f"and {shape[1]} heads"
            )
    met: set[tuple[str, str]] = set()

    def multiply(place: "_Place", heads: Callable[..., Array], *args: Any, **told: Any) -> Array:
        met.add((place.stack, place.kind))
        out, gate = heads(*args, **told), gates.get((place.stack, place.kind))
        return out if gate is None else out * gate[place.layer][:, None].astype(out.dtype)

    out = _run(model, params, arguments, multiply)
    for stack, kind in gates.keys() - met:
        known = ", ".join(f"{a}/{b}" for a, b in sorted(met))
        raise UserError(f"the model has no {kind} attention in a stack {stack!r}: it has {known}")
    return out


class _Place(NamedTuple):
    stack: str
    kind: str
    layer: int


def _run(model: Any, params: Any, arguments: tuple[Any, ...], at_heads: Callable[..., Array]) -> Any:
    """The model's output, with `at_heads(place, heads, *arguments of heads)` called instead of every layer's `heads`.
    Layers are not scanned, so that their values can be taken out, and layer numbers are counted."""
    config = model.config
    if config.family.startswith("recurrent"):
        raise UserError(
            f"a model of family {config.family!r} has no attention heads to look into: choose a Transformer family"
        )
    if config.scan_layers:
        params = unstacked(params, config.num_layers)
    model = model.clone(config=dataclasses.replace(config, scan_layers=False, remat="none"))
    stack = ""
    layers: dict[tuple[str, str], int] = {}

    def intercept(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        nonlocal stack
        module, method = context.module, context.method_name
        if isinstance(module, Stack) and method == "__call__":
            stack = module.name or ""
        if not isinstance(module, MultiHeadAttention) or method != "heads":
            return call(*args, **kwargs)
        kind = (module.name or "").removesuffix("_attention")
        layer = layers.get((stack, kind), 0)
        layers[stack, kind] = layer + 1
        return at_heads(_Place(stack, kind, layer), call, *args, **kwargs)

    with nn.intercept_methods(intercept):
        return model.apply(params, *arguments)
