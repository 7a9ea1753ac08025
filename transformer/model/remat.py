"""Rematerialization: REMAT, `model.remat` -> the policy that says which results of a layer are kept for the backward
pass. The others are computed again there."""

from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

ATTENTION = "attention"
# Kernels of attention: cuDNN's by `jax.nn`, and those of Pallas.
KERNELS = ("dot_product_attention_fwd_wrapper", "pallas_call")


def kept(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Marks what the backward pass of attention reads: the output of its forward pass, and the sums of its softmax."""
    return checkpoint_name(x, ATTENTION)


def keeps_attention(primitive: Any, *_: Any, **parameters: Any) -> bool:
    """Whether a result is `kept`, or of a kernel. A kernel's results are what its own backward pass reads, so no kernel
    runs twice: keeping the output alone would not do, because the sums of the softmax are lost with the rest."""
    return primitive.name in KERNELS or (primitive.name == "name" and parameters["name"] == ATTENTION)


REMAT: dict[str, Any] = {
    "full": None,
    "attention": keeps_attention,
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable, keeps_attention
    ),
}
