"""Which source token each written token looked at: cross-attention in one pass over a finished output."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from transformer.config import ModelConfig
from transformer.model.layers import MultiHeadAttention, Tokens


def alignment_layer(config: ModelConfig) -> int:
    """The last decoder layer but one, whose cross-attention, averaged over the heads, is nearest to alignments by hand
    (Garg et al. 2019, "Jointly learning to align and translate", section 4.1); of one layer, that one."""
    return max(config.num_layers - 2, 0)


def cross_attention(
    model: Any,
    params: Any,
    inputs: Array,
    inputs_where: Tokens,
    target_inputs: Int[Array, "B L"],
    targets_where: Tokens,
    layer: int,
) -> Float[Array, "B L S"]:
    """How much the prediction after each of `target_inputs` (which begin with BOS) looks at each source token: the
    weights of one decoder layer of an `EncoderDecoder`, mean of the heads. Those of padding are 0; a row adds up to 1.
    """
    # Recomputation would close the layers off from what is recorded here; without gradients it does nothing.
    model = model.clone(config=dataclasses.replace(model.config, remat="none"))
    seen: list[Array] = []

    def record(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        if isinstance(context.module, MultiHeadAttention) and context.method_name == "across":
            seen.append(_weights(context.module, *args))
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        state = model.apply(params, inputs, inputs_where, target_inputs.shape[1], method="start")
        model.apply(params, target_inputs, targets_where, state, method="step")
    return seen[layer]


def _weights(
    attention: MultiHeadAttention, x: Float[Array, "B L D"], memory: Any, where: Tokens, memory_where: Tokens
) -> Float[Array, "B L S"]:
    """softmax(Q K^T / sqrt(K)) (paper, equation 1), mean of the heads."""
    q, k = attention.queries(x), memory[0]
    k = jnp.repeat(k, q.shape[2] // k.shape[2], axis=2)
    scores = jnp.einsum("blhk,bshk->bhls", q, k) * (q.shape[-1] ** -0.5 if attention.config.scale_attention else 1.0)
    real = memory_where.segments[:, None, None] > 0
    return jax.nn.softmax(jnp.where(real, scores, -jnp.inf), axis=-1).mean(axis=1)


def pairs(weights: Float[Any, "L S"], source_words: list[int], target_words: list[int]) -> str:
    """Pharaoh pairs "0-0 1-2", source word to target word: each target token is linked to the word of the source token
    that it looks at most. `source_words` and `target_words` say which word a token belongs to, from 0.
    """
    links = {
        (source_words[int(row[: len(source_words)].argmax())], word)
        for row, word in zip(weights, target_words, strict=False)
        if source_words
    }
    return " ".join(f"{source}-{target}" for source, target in sorted(links))
