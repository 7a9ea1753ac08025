"""What makes the other kinds: gates, norms, pooling, patches, frames, series; and scanned layers."""

from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer.config import ModelConfig
from transformer.model.embedders import FrameInput, ImageInput, SeriesInput
from transformer.model.families import build, init, output_layer
from transformer.model.layers import ACTIVATIONS, FeedForward, MultiHeadAttention, Norm
from transformer.model.noise import step_noise
from transformer.model.stacks import stacked, unstacked
from transformer.model.tokens import Tokens

V, D = 23, 12


def tiny(**changes: Any) -> ModelConfig:
    given = {"num_layers": 2, "d_model": D, "d_ff": 20, "num_heads": 3, "vocab_size": V, "max_positions": 32}
    return ModelConfig(**(given | changes))


def places(batch: int, length: int, real: int | None = None) -> Tokens:
    positions = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (batch, length))
    return Tokens(positions, (positions < (length if real is None else real)).astype(jnp.int32))


def normal(seed: int, *shape: int) -> Any:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def noisy(tree: Any) -> Any:
    """Parameters that are nowhere 0 or 1, so that each of them matters."""
    leaves, form = jax.tree.flatten(tree)
    return jax.tree.unflatten(form, [x + 0.3 * normal(i, *x.shape) for i, x in enumerate(leaves)])


# --- Layers


def float64_activation(name: str, x: np.ndarray) -> np.ndarray:
    from scipy.special import erf

    return {
        "relu": np.maximum(x, 0),
        "gelu": x * 0.5 * (1 + erf(x / np.sqrt(2))),
        "gelu_tanh": 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
        "silu": x / (1 + np.exp(-x)),
    }[name]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_feed_forward_is_its_formula(name: str, gated: bool, bias: bool) -> None:
    module = FeedForward(tiny(activation=name, gated=gated, feed_forward_bias=bias))
    x = normal(0, 2, 5, D)
    params = noisy(module.init(jax.random.key(0), x))["params"]
    assert ("bias" in params["inner"]) == bias
    assert ("gate" in params) == gated

    def linear(y: np.ndarray, p: Any) -> np.ndarray:
        return y @ np.asarray(p["kernel"], np.float64) + np.asarray(p.get("bias", 0.0), np.float64)

    inner = linear(np.asarray(x, np.float64), params["inner"])
    if gated:
        hidden = float64_activation(name, linear(np.asarray(x, np.float64), params["gate"])) * inner
    else:
        hidden = float64_activation(name, inner)
    np.testing.assert_allclose(module.apply({"params": params}, x), linear(hidden, params["outer"]), atol=2e-5)


@pytest.mark.parametrize("eps", [1e-6, 0.5])
def test_rms_norm_is_its_formula(eps: float) -> None:
    norm = Norm(tiny(norm_type="rms", norm_eps=eps))
    x = normal(1, 3, D) + 2
    params = noisy(norm.init(jax.random.key(0), x))
    scale = np.asarray(params["params"]["scale"], np.float64)
    wide = np.asarray(x, np.float64)
    expected = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + eps) * scale
    np.testing.assert_allclose(norm.apply(params, x), expected, atol=1e-5)
    assert list(params["params"]) == ["scale"]


@pytest.mark.parametrize("mean", [0.0, 1e3, -1e5])
def test_layer_norm_takes_its_variance_around_the_mean(mean: float) -> None:
    """E[x^2] - E[x]^2 would be wrong by 0.3 at a mean of 1,000, and NaN at 100,000."""
    norm, x = Norm(tiny()), jnp.round(normal(7, 3, D) * 64) / 64 + mean  # exact in float32
    params = noisy(norm.init(jax.random.key(0), x))
    wide = np.asarray(x, np.float64)
    centred = wide - wide.mean(-1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    expected = expected * params["params"]["scale"] + params["params"]["bias"]
    np.testing.assert_allclose(norm.apply(params, x), expected, atol=0.02 if abs(mean) > 1e4 else 1e-3)


@pytest.mark.parametrize("scaled", [True, False])
def test_widths_of_heads_are_free(scaled: bool) -> None:
    config = tiny(head_dim=5, value_dim=7, num_kv_heads=1, attention_bias=True, scale_attention=scaled)
    module = MultiHeadAttention(config)
    x, where = normal(2, 2, 4, D), places(2, 4)
    params = noisy(jax.jit(lambda k: module.init(k, x, where))(jax.random.key(0)))
    shapes = {name: params["params"][name]["kernel"].shape for name in ("query", "key", "value", "out")}
    assert shapes == {"query": (D, 15), "key": (D, 5), "value": (D, 7), "out": (21, D)}
    q, k, v = (
        np.asarray(x @ params["params"][n]["kernel"] + params["params"][n]["bias"], np.float64).reshape(2, 4, -1, w)
        for n, w in (("query", 5), ("key", 5), ("value", 7))
    )
    scores = np.einsum("blhk,bsk->bhls", q, k[:, :, 0]) * (5**-0.5 if scaled else 1)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    mixed = np.einsum("bhls,bsm->blhm", weights, v[:, :, 0]).reshape(2, 4, 21)
    expected = mixed @ np.asarray(params["params"]["out"]["kernel"], np.float64) + params["params"]["out"]["bias"]
    np.testing.assert_allclose(module.apply(params, x, where)[0], expected, atol=3e-5)


def test_depth_scaled_initialization_is_gpt2s() -> None:
    config = tiny(num_layers=8, d_model=96, d_ff=384, num_heads=4, initialization="depth_scaled", family="decoder_only")
    params = init(build(config), jax.random.key(0), jnp.zeros((1, 2), jnp.int32), places(1, 2))["params"]
    layer = params["decoder"]["layer_3"]
    for name, deviation in {
        ("self_attention", "query"): 0.02, ("self_attention", "out"): 0.005,
        ("feed_forward", "inner"): 0.02, ("feed_forward", "outer"): 0.005,
    }.items():  # fmt: skip
        assert np.std(layer[name[0]][name[1]]["kernel"]) == pytest.approx(deviation, rel=0.05)
    assert np.std(params["embedder"]["table"]) == pytest.approx(0.02, rel=0.05)


# --- Outputs


def test_features_times_the_output_table_are_the_logits() -> None:
    """Untied table, transform, scale and bias of the output, as a loss uses them."""
    config = tiny(
        family="encoder_only", tied=False, output_bias=True, output_transform=True, output_scale=0.3, activation="gelu"
    )
    model = build(config)
    tokens, where = jnp.asarray([[3, 5, 7, 2]]), places(1, 4)
    params = noisy(init(model, jax.random.key(0), tokens, where))
    logits: Any = model.apply(params, tokens, where)
    features: Any = model.apply(params, tokens, where, method="features")
    table, bias = output_layer(params)
    assert bias is not None
    np.testing.assert_allclose(features @ table.T + bias, logits, atol=1e-5)
    p = params["params"]["embedder"]
    x: Any = model.apply(params, tokens, where, method="encode")[0]  # type: ignore[index]
    hidden = float64_activation("gelu", np.asarray(x @ p["output_dense"]["kernel"] + p["output_dense"]["bias"], float))
    hidden = (hidden - hidden.mean(-1, keepdims=True)) / np.sqrt(hidden.var(-1, keepdims=True) + 1e-6)
    hidden = hidden * p["output_norm"]["scale"] + p["output_norm"]["bias"]
    np.testing.assert_allclose(logits, 0.3 * hidden @ p["output_table"].T + p["output_bias"], atol=3e-5)


@pytest.mark.parametrize("pooling", ["mean", "first", "pooler"])
def test_pooling_sees_no_padding(pooling: str) -> None:
    model = build(tiny(family="encoder_only", num_classes=4, pooling=pooling))
    tokens = jnp.asarray([[3, 5, 7, 2, 9, 9, 9]])
    params = noisy(init(model, jax.random.key(0), tokens, places(1, 7)))
    short: Any = model.apply(params, tokens[:, :4], places(1, 4))
    assert short.shape == (1, 4)
    np.testing.assert_allclose(model.apply(params, tokens, places(1, 7, real=4)), short, atol=1e-5)
    assert float(jnp.abs(model.apply(params, tokens, places(1, 7)) - short).max()) > 1e-2  # type: ignore[operator]
    pooled: Any = model.apply(params, *model.apply(params, tokens, places(1, 7), method="encode"), method="pooled")  # type: ignore[misc]
    x: Any = model.apply(params, tokens, places(1, 7), method="encode")[0]  # type: ignore[index]
    if pooling == "mean":
        np.testing.assert_allclose(pooled, x.mean(1), atol=1e-5)
    elif pooling == "first":
        np.testing.assert_array_equal(pooled, x[:, 0])
    else:
        p = params["params"]["pooler"]
        np.testing.assert_allclose(pooled, jnp.tanh(x[:, 0] @ p["kernel"] + p["bias"]), atol=1e-5)


def test_segment_types_are_added_and_normalised_with_the_embeddings() -> None:
    model = build(
        tiny(family="encoder_only", segment_types=2, embedding_norm=True, scale_embedding=False, num_layers=1)
    )
    tokens, where = jnp.asarray([[3, 5, 7]]), places(1, 3)
    params = noisy(init(model, jax.random.key(0), tokens, where))
    run = lambda types: model.apply(params, tokens, where, None, types)  # noqa: E731
    first: Any = run(None)
    np.testing.assert_array_equal(first, run(jnp.zeros((1, 3), jnp.int32)))
    assert float(jnp.abs(first - run(jnp.asarray([[0, 0, 1]]))).max()) > 1e-2  # type: ignore[operator]
    assert set(params["params"]["encoder"]["input"]) == {"norm"}


# --- Images, frames, series


def test_patches_are_squares_row_by_row() -> None:
    config = tiny(image_size=(4, 6), channels=2, patch_size=2, pooling="first")
    front = ImageInput(config)
    images = normal(3, 2, 4, 6, 2)
    params = noisy(front.init(jax.random.key(0), images))
    x, where = front.apply(params, images)  # type: ignore[misc]
    assert x.shape == (2, 1 + 6, D)
    assert where == Tokens()  # all of them, in their order
    p = params["params"]
    for row in range(2):
        for column in range(3):
            patch = images[1, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].reshape(-1)
            expected = patch @ p["patches"]["kernel"] + p["patches"]["bias"]
            np.testing.assert_allclose(x[1, 1 + 3 * row + column], expected, atol=1e-5)
    np.testing.assert_array_equal(x[0, 0], p["first"])
    assert (
        "first"
        not in ImageInput(tiny(image_size=(4, 6), channels=2, patch_size=2)).init(jax.random.key(0), images)["params"]
    )


@pytest.mark.parametrize("real", [1, 5, 6, 7, 8])
def test_frames_are_convolved_without_their_padding(real: int) -> None:
    front = FrameInput(tiny(channels=3))
    frames = normal(4, 1, 13, 3).at[:, real:].set(0)
    params = noisy(front.init(jax.random.key(0), frames, Tokens()))
    padded, where = front.apply(params, frames, Tokens(lengths=jnp.array([real])))  # type: ignore[misc]
    alone, alone_where = front.apply(params, frames[:, :real], Tokens())  # type: ignore[misc]
    count = -(-real // 4)
    assert alone.shape == (1, count, D)
    assert padded.shape == (1, 4, D)
    np.testing.assert_array_equal(where.lengths, [count])
    assert alone_where == Tokens()
    np.testing.assert_allclose(padded[:, :count], alone, atol=1e-6)

    x = np.asarray(frames[0, :real], np.float64)  # two convolutions, written out
    for name in ("first", "second"):
        p = jax.tree.map(lambda y: np.asarray(y, np.float64), params["params"][name])
        rows = []
        for t in range(0, len(x), 2):
            seen = [x[s] if 0 <= s < len(x) else np.zeros(x.shape[1]) for s in (t - 1, t, t + 1)]
            rows.append(np.concatenate(seen) @ p["kernel"] + p["bias"])
        x = float64_activation("gelu_tanh", np.stack(rows))
    np.testing.assert_allclose(alone[0], x, atol=1e-5)


def test_series_patches_overlap_and_repeat_the_last_value() -> None:
    front = SeriesInput(tiny(patch_size=4, patch_stride=2))
    series = normal(5, 2, 11)
    params = noisy(front.init(jax.random.key(0), series))
    x, where = front.apply(params, series)  # type: ignore[misc]
    long = np.concatenate([series, series[:, -1:], series[:, -1:]], axis=1)
    p = params["params"]["patches"]
    expected = [long[:, s : s + 4] @ p["kernel"] + p["bias"] for s in (0, 2, 4, 6, 8)]
    np.testing.assert_allclose(x, np.stack(expected, axis=1), atol=1e-5)
    assert where == Tokens()
    # The look-back of 336 with patches of 16 and a stride of 8 is the published PatchTST/42.
    assert SeriesInput(tiny(patch_size=16, patch_stride=8)).init_with_output(
        jax.random.key(0), jnp.zeros((1, 336)))[0].x.shape[1] == 42  # fmt: skip


def test_a_forecast_follows_the_level_and_the_scale_of_its_series() -> None:
    model = build(tiny(family="forecaster", inputs="series", num_classes=5, patch_size=4, patch_stride=2, dropout=0.1))
    series = normal(6, 2, 16, 3)
    params = init(model, jax.random.key(0), series)
    apply = jax.jit(model.apply)
    out: Any = apply(params, series)
    assert out.shape == (2, 5, 3)
    moved: Any = apply(params, 10 * series + 7)
    np.testing.assert_allclose(moved, 10 * out + 7, atol=1e-2)
    alone: Any = apply(params, series[:, :, 1:2])
    np.testing.assert_allclose(alone[..., 0], out[..., 1], atol=1e-5, err_msg="each variable for itself")
    noise = step_noise(0, 0, jnp.arange(2))
    assert float(jnp.abs(apply(params, series, noise) - out).max()) > 1e-3


# --- Scanned layers


def arguments(family: str) -> tuple[Any, ...]:
    tokens = jnp.asarray(np.random.default_rng(7).integers(3, V, (2, 6)), jnp.int32)
    pair = (tokens, places(2, 6, real=5))
    return pair * 2 if family == "encoder_decoder" else pair


CASES = {
    "encoder_decoder": {},
    "decoder_only": {"attention": ("window:2", "full"), "num_layers": 4, "positions": "t5", "num_kv_heads": 1},
    "encoder_only": {"attention": ("full", "window:1", "full"), "num_layers": 3, "norm": "pre", "positions": "learned"},
}


def losses_and_gradients(config: ModelConfig, params: Any) -> tuple[Any, Any]:
    model, noise = build(config), step_noise(3, 4, jnp.arange(2))

    def loss(params: Any) -> Any:
        out: Any = model.apply(params, *arguments(config.family), noise)
        return (jax.nn.log_softmax(out) ** 2).mean()

    return jax.jit(jax.value_and_grad(loss))(params)


# What is kept for the backward pass is of one kind of layer: a family more says it again.
REMAT = [
    pytest.param(family, remat, marks=[pytest.mark.slow] * (remat != "none" and family != "decoder_only"))
    for family in CASES
    for remat in ("none", "full", "attention", "dots")
]


@pytest.mark.parametrize(("family", "remat"), REMAT)
def test_scanned_layers_are_the_same_layers(family: str, remat: str) -> None:
    """Parameters bit for bit; loss and gradients with dropout to rounding; and the conversion both ways."""
    config = tiny(family=family, dropout=0.3, **CASES[family])
    scanned = tiny(family=family, dropout=0.3, scan_layers=True, remat=remat, **CASES[family])
    period, count = len(config.attention), config.num_layers
    plain = init(build(config), jax.random.key(1), *arguments(family))
    stack = init(build(scanned), jax.random.key(1), *arguments(family))
    same(stack, stacked(plain, period), exact=True)
    same(unstacked(stack, count), plain, exact=True)
    loss, gradients = losses_and_gradients(config, plain)
    scanned_loss, scanned_gradients = losses_and_gradients(scanned, stack)
    assert float(scanned_loss) == pytest.approx(float(loss), rel=1e-5)
    same(unstacked(scanned_gradients, count), gradients, exact=False)


def same(left: Any, right: Any, exact: bool) -> None:
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        if exact:
            np.testing.assert_array_equal(a, b)
        else:
            np.testing.assert_allclose(a, b, atol=2e-5)


def counted(program: Any) -> Counter[str]:
    """How often each primitive stands in a program, those inside others included."""
    count: Counter[str] = Counter()
    for equation in program.eqns:
        count[equation.primitive.name] += 1
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                count += counted(inner)
    return count


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_remat_computes_again_what_it_says(remat: str) -> None:
    """Counted in the gradient's program: products that are kept are not computed again, element-wise work is."""

    def of(remat: str) -> Counter[str]:
        config = tiny(family="decoder_only", dropout=0.0, remat=remat)
        params = init(build(config), jax.random.key(0), *arguments("decoder_only"))
        return counted(jax.make_jaxpr(lambda p: losses_and_gradients(config, p)[1])(params).jaxpr)

    before, after = of("none"), of(remat)
    assert after["exp"] > before["exp"]
    more = after["dot_general"] - before["dot_general"]
    if remat == "full":
        assert 2 * 6 <= more <= 2 * 8, "of each of two layers all but what only its output needs"
    else:
        assert 2 <= more <= 2 * 2, "the weights' products are kept, those of attention have batch axes"


@pytest.mark.parametrize("family", ["encoder_decoder", "decoder_only"])
def test_scanned_layers_decode_from_caches(family: str) -> None:
    config = tiny(family=family, **CASES[family])
    scanned = tiny(family=family, scan_layers=True, **CASES[family])
    plain = noisy(init(build(config), jax.random.key(1), *arguments(family)))
    stack = stacked(plain, len(config.attention))
    tokens, where = arguments("decoder_only")

    def decoded(config: ModelConfig, params: Any) -> Any:
        model = build(config)
        begin = (*arguments("decoder_only"), 6) if family == "encoder_decoder" else (2, 6)
        state = model.apply(params, *begin, method="start")
        logits, _ = model.apply(params, tokens, where, state, method="step")  # type: ignore[misc]
        return logits

    np.testing.assert_allclose(decoded(scanned, stack), decoded(config, plain), atol=1e-5)


def test_the_program_of_scanned_layers_does_not_grow() -> None:
    def size(layers: int) -> int:
        config = tiny(family="decoder_only", scan_layers=True, num_layers=layers)
        model = build(config)
        args = arguments("decoder_only")
        params = jax.eval_shape(lambda key: init(model, key, *args), jax.random.key(0))
        lowered = jax.jit(jax.grad(lambda p: model.apply(p, *args).sum())).lower(params)  # type: ignore[union-attr]
        return len(lowered.as_text().splitlines())

    assert size(12) == size(3)
