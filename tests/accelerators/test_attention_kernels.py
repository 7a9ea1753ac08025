"""Each row of the table of attention kernels, compiled forward and backward by the compiler of the accelerator: which
kernels the program calls. No accelerator runs."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tests.accelerators.platforms import needs_compiler
from transformer.accelerators import topologies
from transformer.accelerators.compiling import not_cached
from transformer.model.attention import attend
from transformer.model.attention.kernels import KERNELS, Padding
from transformer.platforms import compiling_for

DEVICES = {"gpu": "h100:1x1x1", "tpu": "v5e:1x1"}
REACHES: dict[str, dict[str, Any]] = {
    "full": {},
    "causal": {"causal": True},
    "causal window": {"causal": True, "window": 200},
    "window": {"window": 200},
    "narrow": {"causal": True, "window": 60},
}
CALLED = {
    "cudnn": {"fmhaSoftmax": 1, "fmhaSoftmaxBackward": 1},
    "cudnn_masked": {"fmhaScaleBiasSoftmax": 1, "fmhaScaleBiasSoftmaxBackward": 1},
    "splash": {"splash_mha_fwd": 1, "splash_mha_dkv": 1, "splash_mha_dq": 1},
}
ROWS = [
    pytest.param(platform, padding, reach, name, marks=needs_compiler(platform))
    for platform, of_padding in KERNELS.items()
    for padding, of_reach in of_padding.items()
    for reach, name in of_reach.items()
]
PLATFORMS = [pytest.param(platform, marks=needs_compiler(platform)) for platform in KERNELS]
BATCH = 2


def program(
    platform: str,
    padding: Padding,
    reach: str,
    dtype: Any = jnp.bfloat16,
    heads: tuple[int, int] = (4, 4),
    width: int = 64,
    length: int = 384,
) -> str:
    """The compiled program of `attend` and its gradients; `heads` of queries and of keys."""
    device = topologies.load(DEVICES[platform]).devices[0]
    place = NamedSharding(Mesh(np.array([device]), ("data",)), PartitionSpec())

    def loss(q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array, lengths: jax.Array) -> jax.Array:
        told: dict[str, Any] = {"k_lengths": lengths} if padding == "lengths" else {}
        told = {"q_segments": ids, "k_segments": ids} if padding == "segments" else told
        with compiling_for(platform):
            out = attend(q, k, v, consecutive=True, **REACHES[reach], **told)
        return jnp.square(out.astype(jnp.float32)).sum()

    shapes = [((BATCH, length, n, width), dtype) for n in (*heads, heads[1])]
    shapes += [((BATCH, length), jnp.int32), ((BATCH,), jnp.int32)]
    given = [jax.ShapeDtypeStruct(shape, kind, sharding=place) for shape, kind in shapes]
    with not_cached():
        return jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*given).compile().as_text()


def called(text: str) -> dict[str, int]:
    """Kernels of attention, and how often they are called."""
    calls = [line for line in text.splitlines() if "custom-call(" in line]
    found: dict[str, int] = {}
    for line in calls:
        if name := re.search(r"splash_mha_(?:fwd|dkv|dq)|(?<=__cudnn\$)fmha\w+", line):
            found[name[0]] = found.get(name[0], 0) + 1
    return found


@pytest.mark.parametrize(("platform", "padding", "reach", "name"), ROWS)
def test_a_row_of_the_table(platform: str, padding: Padding, reach: str, name: str) -> None:
    text = program(platform, padding, reach)
    assert called(text) == CALLED[name]
    assert " conditional(" not in text
    assert " while(" not in text


@pytest.mark.parametrize("platform", PLATFORMS)
def test_grouped_heads_of_128(platform: str) -> None:
    text = program(platform, "segments", "causal", heads=(6, 2), width=128)
    assert called(text) == CALLED[KERNELS[platform]["segments"]["causal"]]


@pytest.mark.parametrize("reach", REACHES)
@pytest.mark.parametrize("platform", PLATFORMS)
def test_float32(platform: str, reach: str) -> None:
    """Tiles side by side on a GPU: no kernel, no branch and no loop."""
    text = program(platform, "segments", reach, jnp.float32)
    assert called(text) == (CALLED["splash"] if platform == "tpu" else {})
    assert " conditional(" not in text
    assert " while(" not in text
    assert " scatter(" not in text


@needs_compiler("gpu")
def test_a_narrow_window_of_packed_rows() -> None:
    """Tiles hold fewer scores than a mask for cuDNN."""
    text = program("gpu", "segments", "narrow")
    assert called(text) == {}
    assert " conditional(" not in text
    assert " while(" not in text


@pytest.mark.parametrize("reach", ["full", "causal", "causal window"])
@needs_compiler("gpu")
def test_an_odd_length(reach: str) -> None:
    """That of ViT-B/16: cuDNN's backward pass, as JAX calls it, refuses it."""
    text = program("gpu", "none", reach, length=197)
    assert called(text) == {}
    assert " while(" not in text
