"""Which kernel of an accelerator computes which attention: KERNELS, and the conditions under which it does.

| compiled for | padding | full | causal | causal window | window |
|---|---|---|---|---|---|
| GPU, 16-bit | none, lengths | cudnn | cudnn | cudnn | cudnn_masked |
| GPU, 16-bit | segments | cudnn_masked | cudnn_masked | cudnn_masked | cudnn_masked |
| GPU, float32 | any | tiles | tiles | tiles | tiles |
| TPU | any | splash | splash | splash | splash |

`cudnn` is cuDNN's fused attention through `jax.nn`; it skips what a causal mask or a window hides. `cudnn_masked` is
the same with a mask [B, 1, L, S] in 16 bits, which costs memory of O(L·S) but for one head only: it is taken up to
`Platform.mask_bytes`, and where a window does not make tiles cheaper. Both take an even number of queries and of keys:
JAX's backward pass refuses others. `splash` is JAX's Pallas kernel for TPUs
(`transformer.model.attention.splash`). Heads are up to 128 wide, grouped heads are supported. What no kernel takes, a
score function for one, goes to our own tiles (`banded`, `blockwise`), which accelerators compute side by side
(`transformer.model.attention.beside`), or to `dense` where scores are few.
"""

from typing import Any, Literal

import jax.numpy as jnp

from transformer.model import masks
from transformer.model.attention.scores import Score
from transformer.platforms import device_rows, target, tuned

Padding = Literal["none", "lengths", "segments"]  # how a batch marks documents and padding
Reach = Literal["full", "causal", "causal window", "window"]

_CUDNN: dict[Reach, str] = {"full": "cudnn", "causal": "cudnn", "causal window": "cudnn", "window": "cudnn_masked"}
_MASKED: dict[Reach, str] = dict.fromkeys(_CUDNN, "cudnn_masked")
_SPLASH: dict[Reach, str] = dict.fromkeys(_CUDNN, "splash")
# Platform -> padding -> reach -> kernel; the table above.
KERNELS: dict[str, dict[Padding, dict[Reach, str]]] = {
    "gpu": {"none": _CUDNN, "lengths": _CUDNN, "segments": _MASKED},
    "tpu": {"none": _SPLASH, "lengths": _SPLASH, "segments": _SPLASH},
}
TYPES: dict[str, tuple[Any, ...]] = {"gpu": (jnp.bfloat16, jnp.float16), "tpu": (jnp.bfloat16, jnp.float32)}
WIDEST = 128  # features of a head
LANES = 128  # a TPU's kernel takes blocks of a multiple of this
DENSITY = 2.5  # a window's blocks hold at most this many times the scores of its band, or are as small as they come


def reach_of(limits: masks.Band) -> Reach:
    """What a query sees, as the table names it."""
    left, right = limits
    if right == 0:
        return "causal" if left is None else "causal window"
    return "full" if limits == (None, None) else "window"


def kernel(
    q: Any, k: Any, v: Any, limits: masks.Band, score: Score | None, padding: Padding, consecutive: bool
) -> tuple[str | None, str]:
    """The kernel that computes this call, or None, and a sentence with the reason. It depends on shapes, types and the
    target platform only; arguments are those of `transformer.model.attention.choose`."""
    platform, length, keys = target(), q.shape[1], k.shape[1]
    if platform not in KERNELS:
        return None, f"a kernel needs a GPU or a TPU, and this is compiled for {platform}"
    if score is not None:
        return None, "no kernel takes a score function"
    if not any(q.dtype == kind for kind in TYPES[platform]):
        return None, f"no kernel of a {platform.upper()} takes {q.dtype}"
    reach = reach_of(limits)
    by_index = reach == "full" or (consecutive and length == keys)  # what a query sees follows from indices
    widths = (k.shape[-1], v.shape[-1])
    name = KERNELS[platform][padding][reach if by_index else "window"]
    if max(widths) > WIDEST:
        return None, f"heads of {max(widths)} features are wider than {WIDEST}"
    if name == "splash":
        if not by_index:
            return None, "splash takes positions that grow by one, and as many keys as queries"
        if min(length, keys) < LANES:
            return None, f"splash computes blocks of {LANES}, and there are {length} queries and {keys} keys"
        return name, "JAX's Pallas kernel takes segments, and skips what is outside a window"
    if widths[0] != widths[1] or widths[0] % 8:
        return None, f"cuDNN takes keys and values of one width, a multiple of 8, not {widths[0]} and {widths[1]}"
    if length % 2 or keys % 2:
        return None, f"cuDNN's backward pass takes an even number of queries and keys, not {length} and {keys}"
    if name == "cudnn":
        return name, "cuDNN takes 16-bit full and causal attention, and causal windows"
    left, right = limits
    if by_index and left is not None and right is not None and 2 * (left + right + 1) <= length:
        return None, f"cuDNN would compute all {keys} keys of a window of {left + right + 1}"
    if (size := 2 * device_rows(q.shape[0]) * length * keys) > tuned().mask_bytes:
        return None, f"a mask for cuDNN would take {size / 1e9:.1f} GB"
    return name, "cuDNN takes segments and other windows as a mask"


def block(length: int, limits: masks.Band) -> int:
    """The side of blocks of scores: the largest of the platform that keeps to DENSITY and fills `length` best."""
    count = -(-length // tuned().kernel_block)
    side = -(-length // (count * LANES)) * LANES
    if None in limits:
        return side
    left, right = (min(limit or 0, length) for limit in limits)
    fits = lambda n: (-(-left // n) - (-right // n) + 1) * n <= DENSITY * (left + right + 1)  # noqa: E731
    return next((n for n in range(side, LANES, -LANES) if fits(n)), LANES)
