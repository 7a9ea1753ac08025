"""Attention maps against a float64 loop and against the model's own output; ablated heads."""

import dataclasses
import itertools
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from transformer.analysis.attention import ablated, attention_maps, watch
from transformer.config import ModelConfig
from transformer.errors import UserError
from transformer.model.attention import choose, masks
from transformer.model.families import build, init
from transformer.model.layers import MultiHeadAttention
from transformer.model.stacks import unstacked, windows
from transformer.model.tokens import Tokens

V, D, H, K, N = 23, 12, 6, 4, 2


def make(**changes: Any) -> tuple[Any, Any]:
    given = {"num_layers": N, "d_model": D, "d_ff": 20, "num_heads": H, "head_dim": K, "vocab_size": V}
    config = ModelConfig(**(given | {"max_positions": 300} | changes))
    model: Any = build(config)
    where = Tokens(jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2), jnp.int32))
    sides = 2 if config.family == "encoder_decoder" else 1
    shapes = jax.eval_shape(partial(init, model), jax.random.key(0), *(where.positions, where) * sides)
    rng = np.random.default_rng(1)  # weights that are nowhere 0 or 1
    return model, jax.tree.map(lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape) + (x.ndim < 2), x.dtype), shapes)


def packed(length: int, seed: int = 0) -> tuple[Any, Tokens]:
    """Two rows: two segments and padding; one segment and padding. Of the second row three places are padding."""
    tokens = np.random.default_rng(seed).integers(3, V, (2, length))
    cut = length // 2
    positions = np.stack([np.r_[0:cut, 0 : length - cut], np.r_[0:length]])
    segments = np.stack([np.r_[[1] * cut, [2] * (length - cut - 1), 0], np.r_[[1] * (length - 3), [0] * 3]])
    return jnp.asarray(tokens), Tokens(jnp.asarray(positions), jnp.asarray(segments))


def recorded(model: Any, calls: list[Any], params: Any, *arguments: Any) -> Any:
    """What every attention of the model read and gave, in order, by a way that is not the library's; what is fixed of
    each is added to `calls`."""
    found = []

    def note(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        out = call(*args, **kwargs)
        module, kind = context.module, context.method_name
        if isinstance(module, MultiHeadAttention) and kind in ("__call__", "cross"):
            weights = module.variables["params"]
            found.append({"args": args, "out": out[0] if kind == "__call__" else out, "params": weights})
            calls.append({"kind": kind, "window": module.window, "causal": module.causal})
        return out

    with nn.intercept_methods(note):
        return model.apply(params, *arguments), found


def linear(x: Any, weights: Any, heads: int) -> np.ndarray:
    out = np.asarray(x, np.float64) @ np.asarray(weights["kernel"], np.float64)
    out += np.asarray(weights.get("bias", 0), np.float64)
    return out.reshape(*out.shape[:2], heads, -1)


def looped(config: ModelConfig, call: dict[str, Any]) -> np.ndarray:
    """The weights [B, H, L, S] of one call, one score at a time."""
    x, where, *rest = call["args"]
    own = call["kind"] == "__call__"
    rotation, score = rest[:2] if own else (None, None)
    memory_where = where if own else rest[0].where
    groups = config.num_kv_heads or config.num_heads
    q = linear(x, call["params"]["query"], config.num_heads)
    k = linear(x, call["params"]["key"], groups) if own else np.asarray(rest[0].k, np.float64)
    (qp, qs), (kp, ks) = (tuple(map(np.asarray, w.whole(*y.shape[:2])[:2])) for w, y in ((where, q), (memory_where, k)))
    if rotation is not None:
        q, k = (np.asarray(rotation(jnp.asarray(y, jnp.float32)), np.float64) for y in (q, k))
    added = None if score is None else np.asarray(score.bias(jnp.asarray(qp), jnp.asarray(kp)), np.float64)
    B, L, S = len(qp), qp.shape[1], kp.shape[1]
    weights = np.zeros((B, config.num_heads, L, S))
    for b, h, i in itertools.product(range(B), range(config.num_heads), range(L)):
        for j in range(S):
            offset = kp[b, j] - qp[b, i]
            hidden = qs[b, i] != ks[b, j] or (call["causal"] and offset > 0)
            if call["window"] is not None:
                hidden |= abs(offset) > call["window"]
            if not hidden:
                score = q[b, i, h] @ k[b, j, h * groups // config.num_heads]
                score *= K**-0.5 if config.scale_attention else 1
                weights[b, h, i, j] = np.exp(score + (added[b % len(added), h, i, j] if added is not None else 0))
        weights[b, h, i] /= weights[b, h, i].sum() or 1
    return weights


CASES: dict[str, dict[str, Any]] = {
    name: {"family": "decoder_only", "positions": name} for name in ("none", "rotary", "rotary-half", "alibi", "t5")
} | {
    "encoder": {"family": "encoder_only", "attention": ("window:2", "full"), "attention_bias": True, "norm": "pre",
                "positions": "learned"},
    "pair": {"family": "encoder_decoder", "num_kv_heads": 2, "attention": ("full", "window:1"), "positions": "alibi"},
    "scanned": {"family": "encoder_decoder", "num_kv_heads": 3, "scan_layers": True, "positions": "t5",
                "scale_attention": False, "attention": ("window:3", "full"), "remat": "full", "value_dim": 5},
}  # fmt: skip


def reads(config: ModelConfig) -> tuple[Any, ...]:
    return (*packed(7), *packed(5, seed=1)) if config.family == "encoder_decoder" else packed(7)


def stacks_of(config: ModelConfig) -> dict[str, tuple[str, ...]]:
    if config.family == "encoder_decoder":
        return {"encoder": ("self",), "decoder": ("self", "cross")}
    return {config.family.removesuffix("_only"): ("self",)}


def one_by_one(model: Any, params: Any) -> tuple[Any, Any]:
    config = model.config
    params = unstacked(params, N) if config.scan_layers else params
    return build(dataclasses.replace(config, scan_layers=False, remat="none")), params


def looked_into(model: Any, params: Any, *arguments: Any) -> tuple[Any, list[dict[str, Any]]]:
    """What `watch` finds, once its output was seen to be the model's own, and what the attentions did."""
    plain, weights = one_by_one(model, params)
    fixed: list[dict[str, Any]] = []

    @jax.jit
    def everything(params: Any, weights: Any, *arguments: Any) -> Any:
        both = watch(model, params, *arguments), model.apply(params, *arguments)
        return *both, recorded(plain, fixed, weights, *arguments)

    (out, watched), applied, (again, calls) = everything(params, weights, *arguments)
    np.testing.assert_allclose(out, applied, atol=1e-5)
    np.testing.assert_allclose(again, applied, atol=1e-5)
    return watched, [call | more for call, more in zip(calls, fixed, strict=True)]


@pytest.mark.parametrize("case", CASES)
def test_maps_are_those_of_a_float64_loop(case: str) -> None:
    """And with the values and W_O they give the module's own output."""
    model, params = make(**CASES[case])
    watched, calls = looked_into(model, params, *reads(model.config))
    kinds = stacks_of(model.config)
    places = [(stack, layer, kind) for stack in kinds for layer in range(N) for kind in kinds[stack]]
    assert {(stack, kind) for stack, found in watched.items() for kind in found} == {(s, k) for s, _, k in places}
    groups = model.config.num_kv_heads or H
    for (stack, layer, kind), call in zip(places, calls, strict=True):
        weights = watched[stack][kind].weights[layer]
        np.testing.assert_allclose(weights, looped(model.config, call), atol=5e-6)
        own = call["kind"] == "__call__"
        memory = None if own else call["args"][2].v
        values = linear(call["args"][0], call["params"]["value"], groups) if own else memory
        values = np.repeat(np.asarray(values, np.float64), H // groups, axis=2)
        heads = np.einsum("bhls,bshm->blhm", weights, values)
        out = linear(heads.reshape(*heads.shape[:2], -1), call["params"]["out"], 1)[:, :, 0]
        np.testing.assert_allclose(out, call["out"], atol=1e-5)


def test_maps_are_dense_whatever_backend_trained_the_model() -> None:
    """At 384 places a window of 2 goes to another backend; its map is the loop's all the same."""
    model, params = make(family="decoder_only", positions="rotary", attention=("window:2",), num_heads=1, num_layers=1)
    q = jax.ShapeDtypeStruct((2, 384, 1, K), jnp.float32)
    assert choose(q, q, q, masks.band(True, windows(model.config)[0]), padding="segments").backend == "banded"
    watched, calls = looked_into(model, params, *packed(384))
    np.testing.assert_allclose(watched["decoder"]["self"].weights[0], looped(model.config, calls[0]), atol=5e-6)


def test_maps_say_what_is_padding() -> None:
    model, params = make(family="encoder_decoder", positions="none", num_layers=1)
    arguments = reads(model.config)
    cross = jax.jit(partial(watch, model))(params, *arguments)[1]["decoder"]["cross"]
    assert cross.weights.shape == (1, 2, H, 5, 7)
    np.testing.assert_array_equal(cross.queries.segments, arguments[3].segments)
    np.testing.assert_array_equal(cross.keys.positions, arguments[1].positions)


def test_images_have_maps_of_their_patches() -> None:
    config = ModelConfig(family="encoder_only", inputs="image", image_size=(4, 6), patch_size=2, num_layers=1,
                         d_model=D, d_ff=8, num_heads=3, pooling="first", num_classes=5)  # fmt: skip
    model: Any = build(config)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 6, 1)), jnp.float32)
    params = jax.jit(model.init)(jax.random.key(0), images, None)
    weights = attention_maps(model, params, images, None)["encoder"]["self"]  # not jitted, as in a notebook
    assert weights.shape == (1, 2, 3, 7, 7)  # six patches and the place that is pooled
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)


# --- Ablated heads


@pytest.mark.parametrize("case", ["pair", "scanned"])
def test_a_head_is_taken_out_by_its_rows_of_the_output_matrix(case: str) -> None:
    """The same as the model whose W_O has zeros for that head."""
    model, params = make(**CASES[case])
    arguments, width = reads(model.config), model.config.value_dim or K
    stack, kinds = list(stacks_of(model.config).items())[-1]
    keep, layer, head = np.ones((N, H)), 1, 4
    keep[layer, head] = 0
    plain, weights = one_by_one(model, params)
    apply, kind = jax.jit(plain.apply), kinds[-1]
    changed = flatten_dict(weights)
    path = ("params", stack, f"layer_{layer}", f"{kind}_attention", "out", "kernel")
    changed[path] = jnp.asarray(changed[path]).at[head * width : (head + 1) * width].set(0)
    out = jax.jit(partial(ablated, model))(params, {stack: {kind: keep}}, *arguments)
    np.testing.assert_allclose(out, apply(unflatten_dict(changed), *arguments), atol=1e-5)
    assert np.abs(out - apply(weights, *arguments)).max() > 1e-3


def test_heads_are_ablated_one_after_another_by_vmap_and_weighed_by_a_gradient() -> None:
    model, params = make(**CASES["alibi"], activation="gelu")
    arguments = reads(model.config)

    @jax.jit
    def out(keep: Any) -> Any:
        return ablated(model, params, {"decoder": {"self": keep}}, *arguments)

    each = 1 - np.eye(N * H).reshape(-1, N, H)
    np.testing.assert_allclose(jax.jit(jax.vmap(out))(each)[7], out(each[7]), atol=1e-5)

    def total(keep: Any) -> Any:
        return out(keep)[0, :3].sum()

    whole, nudge = np.ones((N, H), np.float32), np.zeros((N, H), np.float32)
    nudge[0, 3] = 3e-3
    slope = jax.jit(jax.grad(total))(whole)[0, 3]
    np.testing.assert_allclose(slope, (total(whole + nudge) - total(whole - nudge)) / 6e-3, rtol=2e-2)


@pytest.mark.parametrize(
    ("keep", "said"),
    [
        ({"decoder": {"self": np.ones((H, 1))}}, r"\(6, 1\): it needs a number for each of 1 layers and 6 heads"),
        ({"encoder": {"self": np.ones((1, H))}}, "no self attention in a stack 'encoder': it has decoder/self"),
        ({"decoder": {"cross": np.ones((1, H))}}, "no cross attention in a stack 'decoder'"),
    ],
)
def test_heads_that_are_not_there(keep: Any, said: str) -> None:
    model, params = make(family="decoder_only", positions="none", num_layers=1)
    with pytest.raises(UserError, match=said):
        ablated(model, params, keep, *packed(4))


def test_a_recurrent_model_has_no_heads() -> None:
    config = ModelConfig(family="recurrent_language_model", positions="none", vocab_size=V, d_model=D)
    with pytest.raises(UserError, match="'recurrent_language_model' has no attention heads"):
        attention_maps(build(config), {})
