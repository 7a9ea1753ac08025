"""The loop of Flax's examples: Linen's own attention and layers, and an Optax optimizer, in one compiled step."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.lab.peers import Model


class Block(nn.Module):
    model: Model
    causal: bool
    cross: bool

    @nn.compact
    def __call__(self, x: Any, memory: Any, drop: Callable[[Any], Any]) -> Any:
        model, dense = self.model, lambda size: nn.Dense(size, use_bias=self.model.bias)
        mask = nn.make_causal_mask(x[..., 0]) if self.causal else None
        attend = lambda: nn.MultiHeadDotProductAttention(model.heads, use_bias=False)  # noqa: E731
        x = x + drop(attend()(nn.LayerNorm()(x), mask=mask))
        if self.cross:
            x = x + drop(attend()(nn.LayerNorm()(x), memory))
        return x + drop(dense(model.width)(nn.gelu(dense(model.inner)(nn.LayerNorm()(x)))))


class Transformer(nn.Module):
    model: Model

    @nn.compact
    def __call__(self, tokens: Any, source: Any) -> Any:
        model = self.model
        table = nn.Embed(model.vocabulary, model.width, embedding_init=nn.initializers.normal(0.02))
        drop = nn.Dropout(model.dropout, deterministic=model.dropout == 0)
        memory = None
        if model.encoder:
            places = self.param("source_places", nn.initializers.normal(0.02), (model.length, model.width))
            memory = drop(table(source) + places)
            for _ in range(model.layers):
                memory = Block(model, causal=False, cross=False)(memory, None, drop)
            memory = nn.LayerNorm()(memory)
        x = drop(table(tokens) + self.param("places", nn.initializers.normal(0.02), (model.length, model.width)))
        for _ in range(model.layers):
            x = Block(model, causal=True, cross=model.encoder)(x, memory, drop)
        return table.attend(nn.LayerNorm()(x))


def run(model: Model) -> tuple[Callable[[], Any], int]:
    """A step that is timed, and the number of parameters."""
    tokens = np.random.default_rng(0).integers(0, model.vocabulary, (3, model.rows, model.length), dtype=np.int32)
    network = Transformer(model)
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    params = jax.jit(network.init)(keys, tokens[0], tokens[1])
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3, b2=0.99, weight_decay=0.1))
    smooth = model.smoothing

    def loss_of(params: Any, key: Any, source: Any, inputs: Any, targets: Any) -> Any:
        logits: Any = network.apply(params, inputs, source, rngs={"dropout": key})
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        if smooth:
            uniform = jax.nn.logsumexp(logits, axis=-1) - logits.mean(axis=-1)
            losses = (1 - smooth) * losses + smooth * uniform
        return losses.mean()

    def train(params: Any, moments: Any, step: Any, *batch: Any) -> Any:
        key = jax.random.fold_in(jax.random.key(2), step)
        loss, gradients = jax.value_and_grad(loss_of)(params, key, *batch)
        updates, moments = optimizer.update(gradients, moments, params)
        return optax.apply_updates(params, updates), moments, step + 1, loss

    compiled = jax.jit(train, donate_argnums=(0, 1))
    state: Any = [params, optimizer.init(params), jnp.zeros((), jnp.int32)]
    batch = jax.device_put(tuple(tokens))

    def step() -> Any:
        *state[:], loss = compiled(*state, *batch)
        return jax.block_until_ready(loss)

    return step, sum(x.size for x in jax.tree.leaves(params))
