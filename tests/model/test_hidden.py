"""What is masked, outside a table, past a cache or not there at all: it changes nothing, or it is NaN or an error."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer import platforms
from transformer.config import ModelConfig
from transformer.decoding import DECODERS
from transformer.decoding.sampling import sentence_keys
from transformer.errors import UserError
from transformer.model.attention import attend
from transformer.model.families import FAMILIES, POOLINGS, build
from transformer.model.layers import Norm
from transformer.model.masks import band
from transformer.model.positions import AlibiBias
from transformer.model.tokens import PackedTokens, Tokens
from transformer.training.losses import cross_entropy, output_cross_entropy

B, L, V = 2, 9, 11
WITH_SCORES = ("dense", "blockwise", "banded")  # take a score function
ON_CPU = (*WITH_SCORES, "strips")
TINY = ModelConfig(
    num_layers=1, d_model=8, d_ff=8, num_heads=2, dropout=0.0, vocab_size=V, max_positions=16, attention=("window:3",),
)  # fmt: skip


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    tuned = dataclasses.replace(platforms.PLATFORMS["cpu"], tile=4, window_tile=4, window_strip=(4, 4), tiles_from=64)
    monkeypatch.setitem(platforms.PLATFORMS, "cpu", tuned)


def tensors(length: int = L) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(size=(B, length, heads, 4)).astype(np.float32) for heads in (4, 2, 2, 4)]


def capped(scores: Any, q_positions: Any, k_positions: Any) -> Any:
    return 2 * jnp.tanh(scores / 2)


# --- Attention


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e38])
@pytest.mark.parametrize(
    ("backend", "score"), [*((name, None) for name in ON_CPU), *((name, capped) for name in WITH_SCORES)]
)
def test_what_a_query_does_not_see_has_no_influence(backend: str, score: Any, bad: float) -> None:
    """By segment, by window and by causality: outputs and all gradients of the first queries are those of other
    keys, whose own gradients are 0."""

    @partial(jax.jit, static_argnames="n")
    def both(q: Any, k: Any, v: Any, cotangent: Any, segments: Any, n: int) -> Any:
        where = {"q_segments": segments, "k_segments": segments, "causal": True, "window": 3, "score": score}
        of = lambda q, k, v: attend(q, k, v, backend=backend, **where)[:, :n]  # noqa: E731
        out, pull = jax.vjp(of, q, k, v)
        return out, *pull(cotangent[:, :n])

    q, k, v, cotangent = tensors()
    segments = np.ones((B, L), np.int32)
    for n in (L - 3, 5):
        segments[:, L - 3 :] = int(n == 5)  # once of another document, once only later
        clean = both(q, k, v, cotangent, segments, n)
        for part in range(4):  # the last: all three
            other = [x.copy() for x in (q, k, v)]
            for x in other[part : part + 1] or other:
                x[:, n + n % 2 :] = bad
            for name, mine, theirs in zip("oqkv", both(*other, cotangent, segments, n), clean, strict=True):
                np.testing.assert_allclose(mine, theirs, atol=1e-5, err_msg=f"{n} {part} {name}")


@pytest.mark.parametrize("backend", ON_CPU)
def test_hidden_values_may_overflow_in_the_backward_pass(backend: str) -> None:
    """Finite values, whose product with the gradient is not."""
    q, k, v, _ = (jnp.asarray(x) for x in tensors())
    segments = jnp.asarray(np.r_[[1] * (L - 3), [2] * 3][None].repeat(B, axis=0))
    where = {"q_segments": segments, "k_segments": segments, "window": 3, "backend": backend}

    def both(v: Any) -> Any:
        out, pull = jax.vjp(lambda *x: attend(*x, **where)[:, : L - 3], q, k, v)
        return out, *pull(10 + 0 * out)

    for mine, theirs in zip(both(v.at[:, L - 3 :].set(3e38)), both(v), strict=True):
        np.testing.assert_allclose(mine[:, : L - 3], theirs[:, : L - 3], atol=1e-4)


@pytest.mark.parametrize("backend", ON_CPU)
def test_hidden_nan_has_no_influence_in_bfloat16(backend: str) -> None:
    """Outputs and gradients of the first document are those of other keys, to the bit."""
    segments = jnp.asarray(np.r_[[1] * (L - 3), [2] * 3][None].repeat(B, axis=0))

    def both(*arrays: Any) -> Any:
        def of(q: Any, k: Any, v: Any) -> Any:
            return attend(q, k, v, backend=backend, q_segments=segments, k_segments=segments, causal=True, window=3)[
                :, : L - 3
            ]

        out, pull = jax.vjp(of, *arrays)
        return out, *pull(jnp.ones_like(out))

    clean = [jnp.asarray(x, jnp.bfloat16) for x in tensors()[:3]]
    hidden = [x.at[:, L - 3 :].set(jnp.nan) for x in clean]
    for mine, theirs in zip(both(*hidden), both(*clean), strict=True):
        assert mine.dtype == jnp.bfloat16
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("backend", ON_CPU)
def test_a_query_that_sees_nan_is_nan_and_the_others_are_not(backend: str) -> None:
    q, k, v, _ = tensors()
    for x, heads in ((q, [1]), (k, [0, 1]), (v, [0, 1])):  # a key head serves two query heads
        other = [y.copy() for y in (q, k, v)]
        next(o for o, y in zip(other, (q, k, v), strict=True) if y is x)[0, 4, heads[0], 2] = np.inf
        out = np.asarray(attend(*map(jnp.asarray, other), causal=True, window=2, backend=backend))
        spoilt = {(int(b), int(i), int(h)) for b, i, h in np.argwhere(np.isnan(out).any(axis=-1))}
        rows = [4] if x is q else [4, 5, 6]
        assert spoilt == {(0, i, h) for i in rows for h in heads}


@pytest.mark.parametrize("backend", ON_CPU)
def test_a_row_that_sees_nothing_is_zero_whatever_it_holds(backend: str) -> None:
    """Also where it is a score function that hides all keys."""
    q, k, v, _ = (jnp.asarray(x) for x in tensors())
    segments = jnp.ones((B, L), jnp.int32)
    where = {"q_segments": segments, "k_segments": 2 * segments, "window": 3, "backend": backend}
    nan = jnp.full_like(q, jnp.nan)
    assert not np.asarray(attend(nan, nan[:, :, :2], nan[:, :, :2], **where)).any()
    if backend not in WITH_SCORES:
        return
    nothing = lambda scores, *_: jnp.full_like(scores, -jnp.inf)  # noqa: E731
    total = lambda q: attend(q, k, v, window=3, backend=backend, score=nothing).sum()  # noqa: E731
    assert [not np.asarray(x).any() for x in jax.value_and_grad(total)(q)] == [True, True]


def test_a_kernel_is_given_no_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    """XLA's attention stands in for cuDNN's: what a query sees is found by index."""
    import importlib

    fused = importlib.import_module("transformer.model.attention.fused")
    theirs = jax.nn.dot_product_attention
    monkeypatch.setattr(fused, "kernel", lambda *_: ("cudnn", ""))
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda *x, implementation, **more: theirs(*x, **more))
    q, k, v, _ = tensors()
    k[0, 6, 1], v[1, 2, 0], q[1, 3, 3] = np.nan, np.inf, np.nan
    arrays = [jnp.asarray(x) for x in (q, k, v)]
    for options in (
        {}, {"causal": True}, {"causal": True, "window": 2}, {"k_lengths": jnp.array([5, 0])},
    ):  # fmt: skip
        found, expected = (np.asarray(attend(*arrays, backend=backend, **options)) for backend in ("fused", "dense"))
        np.testing.assert_allclose(found, expected, atol=1e-5, err_msg=str(options))
        gradients = jax.grad(lambda *x, o=options: jnp.nansum(attend(*x, backend="fused", **o)), (0, 1, 2))(*arrays)
        assert all(np.isfinite(x).all() for x in gradients)


# --- Positions under jit


def loop(q: Any, k: Any, v: Any, positions: Any, segments: Any, limits: Any) -> np.ndarray:
    """In float64, one query at a time."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros((*q.shape[:3], v.shape[3]))
    for b, i, h in np.ndindex(q.shape[:3]):
        ahead = positions[b] - positions[b, i]
        seen = (segments[b] == segments[b, i]) & (ahead >= -limits[0]) & (ahead <= limits[1])
        scores = k[b, seen, h // 2] @ q[b, i, h] / 2
        p = np.exp(scores - scores.max())
        out[b, i, h] = p / p.sum() @ v[b, seen, h // 2]
    return out


PLACES = {
    "permuted": lambda n, rng: (rng.permutation(n), np.ones(n)),
    "repeated": lambda n, rng: (np.arange(n) // 2, np.ones(n)),
    "offset": lambda n, rng: (np.arange(n) + 100, np.ones(n)),
    "packed": lambda n, rng: (np.r_[: n // 3, : n - n // 3], np.arange(n) >= n // 3),
}


@pytest.mark.parametrize("kind", PLACES)
@pytest.mark.parametrize("causal", [False, True])
def test_windows_of_any_positions_under_jit(kind: str, causal: bool) -> None:
    """Long enough for the band: a model's own attention, whose positions are traced, gives the loop's values. The
    gradients are those of dense attention."""
    n, rng = 48, np.random.default_rng(1)
    config = dataclasses.replace(TINY, positions="none", d_model=16, num_heads=4, num_kv_heads=2)
    rows = [PLACES[kind](n, rng) for _ in range(B)]
    positions, segments = (np.stack([row[i] for row in rows]).astype(np.int32) for i in (0, 1))
    segments += 1
    from transformer.model.layers import MultiHeadAttention

    layer = MultiHeadAttention(config, causal, 3)
    x = jnp.asarray(rng.normal(size=(B, n, 16)), jnp.float32)
    params = jax.jit(layer.init)(jax.random.key(0), x, Tokens())

    def run(backend: str, x: Any, where: Tokens) -> Any:
        bound = layer.bind(params)
        q, keys = bound._queries(x), bound.keys_values(x)
        known = {"consecutive": where.consecutive, "q_segments": where.segments, "k_segments": where.segments}
        places = {"q_positions": where.positions, "k_positions": where.positions}
        return attend(q, *keys, causal=causal, window=3, backend=backend, **places, **known), (q, *keys)

    @partial(jax.jit, static_argnums=0)
    def both(backend: str, x: Any, where: Tokens) -> Any:
        (out, arrays), pull = jax.vjp(lambda x: run(backend, x, where), x)
        zeros = jax.tree.map(jnp.zeros_like, arrays)
        return out, arrays, pull((jnp.cos(out), zeros))[0]

    told = [Tokens(jnp.asarray(positions), jnp.asarray(segments))]
    told += [PackedTokens(*told[0])] if kind in ("offset", "packed") else []
    for where in told:
        backends = ["auto", "dense", "blockwise"] + ["banded"] * where.consecutive
        found = {backend: both(backend, x, where) for backend in backends}
        expected = loop(*found["dense"][1], positions, segments, band(causal, 3))
        for backend, (out, _, gradient) in found.items():
            np.testing.assert_allclose(out, expected, atol=1e-5, err_msg=backend)
            np.testing.assert_allclose(gradient, found["dense"][2], atol=1e-5, err_msg=backend)
        # And what the layer itself chooses.
        mine = jax.jit(lambda x, where: layer.apply(params, x, where)[0])(x, where)
        merged = expected.reshape(B, n, -1) @ np.asarray(params["params"]["out"]["kernel"], np.float64)
        np.testing.assert_allclose(mine, merged, atol=1e-5)


def test_positions_that_contradict_what_is_said_are_refused() -> None:
    x = jnp.ones((1, 48, 2, 4))
    places = {name: jnp.arange(48)[None, ::-1] for name in ("q_positions", "k_positions")}
    with pytest.raises(ValueError, match="grow by one inside a segment"):
        attend(x, x, x, window=3, consecutive=True, **places)


# --- Models


def call(family: str, where: Tokens, tokens: Any, **changes: Any) -> tuple[Any, tuple[Any, ...]]:
    """A model of a family, and its arguments with these tokens (or frames) everywhere."""
    recurrent = {"positions": "none", "attention": ("full",)} if family.startswith("recurrent") else {}
    model = build(dataclasses.replace(TINY, family=family, **recurrent, **changes))
    return model, (tokens, where) * (2 if family.endswith("encoder_decoder") else 1)


TEXT = [name for name in FAMILIES if name != "forecaster"]


@pytest.mark.parametrize(
    ("family", "told"),
    [*((family, told) for family in TEXT for told in ("segments", "lengths")), ("frames", "lengths")],
)
def test_padding_has_no_influence_whatever_it_holds(family: str, told: str) -> None:
    """Ids that are in no table, or frames of NaN, in the logits of real tokens and the gradients of all weights."""
    lengths = np.array([6, 4])
    real = np.arange(7) < lengths[:, None]
    where = Tokens(None, jnp.asarray(real)) if told == "segments" else Tokens(lengths=jnp.asarray(lengths))
    if family == "frames":
        tokens = np.random.default_rng(0).normal(size=(B, 7, 3)).astype(np.float32)
        changes = {"inputs": "frames", "channels": 3, "num_classes": 3}
        model, _ = call("encoder_only", where, tokens, **changes)
    else:
        tokens = np.random.default_rng(0).integers(0, V, (B, 7))
        model, _ = call(family, where, tokens, **({"positions": "learned"} if family == "decoder_only" else {}))
    sides = 2 if family.endswith("encoder_decoder") else 1
    params = jax.tree.map(lambda x: x + 0.1, model.init(jax.random.key(0), *(jnp.asarray(tokens), where) * sides))
    counts = real if family != "frames" else np.ones((B, 1), bool)

    @jax.jit
    def loss(params: Any, tokens: Any) -> Any:
        logits = model.apply(params, *(tokens, where) * sides).reshape(B, counts.shape[1], -1)
        found = cross_entropy(logits, jnp.ones(counts.shape, int), jnp.asarray(counts, jnp.float32))
        return found["loss"][0].sum()

    other = tokens.copy()
    other[~real] = np.nan if family == "frames" else -7
    values = [jax.jit(jax.value_and_grad(loss))(params, jnp.asarray(x)) for x in (tokens, other)]
    for mine, theirs in zip(*map(jax.tree.leaves, values), strict=True):
        assert np.isfinite(mine).all()
        np.testing.assert_allclose(mine, theirs, atol=1e-6)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_pooling_leaves_padding_out(pooling: str) -> None:
    x, real = jnp.ones((1, 3, 2)).at[0, 2].set(jnp.nan), jnp.array([[True, True, False]])
    np.testing.assert_array_equal(POOLINGS[pooling](x, real), [[1, 1]])


@pytest.mark.parametrize("bad", [-1, -V, V, 10_000])
def test_an_id_outside_its_table_is_nan(bad: int) -> None:
    """Tokens, segment types, positions and targets; the others see none of it."""
    ids, where = jnp.array([[1, bad, 2]]), Tokens(jnp.arange(3)[None])
    model = build(dataclasses.replace(TINY, family="encoder_only", segment_types=2, positions="learned"))
    good = jnp.zeros((1, 3), jnp.int32)
    params = jax.jit(model.init)(jax.random.key(0), good, where, None, good)
    embed = jax.jit(lambda *x: model.apply(params, *x, method=lambda m, *y: m.embedder(*y)))
    for tokens, types in ((ids, good), (good, ids * (ids == bad))):
        spoilt = np.isnan(np.asarray(embed(tokens, where, types))).all(axis=-1)
        np.testing.assert_array_equal(spoilt, [[False, True, False]])
    places = Tokens(jnp.array([[1, 16 if bad > 0 else bad, 2]]))
    placed = jax.jit(lambda *x: model.apply(params, *x, method=lambda m, x, p: m.encoder.input(x, p, None)[0]))
    spoilt = np.isnan(np.asarray(placed(jnp.zeros((1, 3, 8)), places))).all(axis=-1)
    np.testing.assert_array_equal(spoilt, [[False, True, False]])
    if bad < 0:
        with pytest.raises(ValueError, match=f"no position {bad} in a learned position table"):
            model.apply(params, good, places, None, good)
    x, table = jnp.ones((1, 3, 8)), jnp.ones((V, 8))
    for weights, finite in (([1.0, 1, 1], False), ([1.0, 0, 1], True)):
        of = lambda x, w=weights: output_cross_entropy(x, table, None, ids, jnp.array([w]))["loss"][0]  # noqa: E731
        values = of(x), jax.grad(of)(x), cross_entropy(x @ table.T, ids, jnp.array([weights]))["loss"][0]
        assert [bool(np.isfinite(value).all()) for value in values] == [finite] * 3


def test_targets_that_do_not_count_may_hold_anything() -> None:
    rng = np.random.default_rng(0)
    x, table = rng.normal(size=(B, L, 8)).astype(np.float32), jnp.asarray(rng.normal(size=(V, 8)), jnp.float32)
    targets, weights = rng.integers(0, V, (B, L)), np.arange(L)[None] < np.array([[6], [0]])
    of = jax.value_and_grad(
        lambda x, table, y: output_cross_entropy(x, table, None, y, jnp.asarray(weights, jnp.float32))["loss"][0],
        (0, 1),
    )
    expected = of(jnp.asarray(x), table, jnp.asarray(targets))
    found = of(
        jnp.asarray(np.where(weights[..., None], x, np.nan)), table, jnp.asarray(np.where(weights, targets, -100))
    )
    for mine, theirs in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-6)


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_a_norm_of_a_large_mean(kind: str) -> None:
    x = (1e4 + np.random.default_rng(0).normal(size=(3, 64))).astype(np.float32)
    wide, centred = x.astype(np.float64), kind == "layer"
    shifted = wide - wide.mean(-1, keepdims=True) * centred
    expected = shifted / np.sqrt((shifted**2).mean(-1, keepdims=True) + 1e-6)
    norm = Norm(dataclasses.replace(TINY, norm_type=kind))
    given = jnp.asarray(x)
    np.testing.assert_allclose(norm.apply(norm.init(jax.random.key(0), given), given), expected, atol=2e-3)


def test_a_series_of_a_large_mean_is_normalised() -> None:
    model = build(dataclasses.replace(TINY, family="forecaster", inputs="series", num_classes=2, attention=("full",)))
    x = np.random.default_rng(0).normal(size=(1, 16, 1)).astype(np.float32)
    params = model.init(jax.random.key(0), jnp.asarray(x))
    far = model.apply(params, jnp.asarray(x + 1e3)) - 1e3
    np.testing.assert_allclose(far, model.apply(params, jnp.asarray(x)), atol=1e-2)


# --- The end of a cache


def decoder(*patterns: str, slots: int) -> tuple[Any, Any, Any]:
    """step, and the state of `slots` slots, of a decoder with a layer for each pattern."""
    config = dataclasses.replace(TINY, family="decoder_only", attention=patterns, num_layers=len(patterns))
    model = build(config)
    params = model.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32), Tokens())

    def step(tokens: Any, positions: Any, state: Any) -> Any:
        logits, state = model.apply(params, tokens, Tokens(positions), state, method="step")
        return logits[:, -1], state

    return model, step, model.apply(params, B, slots, method="start")


@pytest.mark.parametrize("name", DECODERS)
def test_writing_past_the_end_of_a_cache_is_nan(name: str) -> None:
    options = {"keys": sentence_keys(0, jnp.arange(B))} if name == "sample" else {}
    for slots, ok in ((6, True), (3, False)):
        _, step, state = decoder("full", "window:2", slots=slots)
        first = jnp.zeros(B, jnp.int32)
        found = DECODERS[name](step, state, first, first, 6, None, V - 1, min_new=5, **options)
        assert np.asarray(found.ok).tolist() == [ok] * B


def test_writing_past_the_end_of_a_cache_is_an_error_where_it_is_known() -> None:
    _, step, state = decoder("full", slots=2)
    one = jnp.zeros((B, 1), jnp.int32)
    with pytest.raises(ValueError, match="3 more tokens do not fit into a cache of 2 slots"):
        step(jnp.zeros((B, 3), jnp.int32), jnp.arange(3)[None], state)
    for place in range(2):
        _, state = step(one, one + place, state)
    with pytest.raises(ValueError, match="1 more tokens do not fit into a cache of 2 slots: start it with more"):
        step(one, one + 2, state)


def test_prompts_may_be_padded_on_any_side() -> None:
    """In a cache that rolls as in one that does not."""
    lengths, width, more = np.array([7, 1]), 7, 3
    config = dataclasses.replace(
        TINY, family="decoder_only", attention=("window:2", "full"), num_layers=2, positions="rotary"
    )
    model = build(config)
    tokens = np.random.default_rng(0).integers(0, V, (B, width + more))
    params = model.init(jax.random.key(0), jnp.asarray(tokens), Tokens())
    expected = np.asarray(model.apply(params, jnp.asarray(tokens), Tokens()))
    step = jax.jit(partial(model.apply, method="step"))
    for side in ("left", "right"):
        ids, segments, positions = np.full((3, B, width), -1)
        segments[:] = 0
        for b, n in enumerate(lengths):
            at = slice(width - n, None) if side == "left" else slice(n)
            ids[b, at], segments[b, at], positions[b, at] = tokens[b, :n], 1, np.arange(n)
        state = model.apply(params, B, width + more, method="start")
        where = Tokens(jnp.asarray(positions), jnp.asarray(segments))
        _, state = step(params, jnp.asarray(ids), where, state)
        for t in range(more):
            at = lengths + t
            where = Tokens(jnp.asarray(at[:, None]), jnp.ones((B, 1), jnp.int32))
            logits, state = step(params, jnp.asarray(tokens[np.arange(B), at][:, None]), where, state)
            np.testing.assert_allclose(logits[:, 0], expected[np.arange(B), at], atol=1e-4, err_msg=side)


# --- Nothing at all, other types, other derivatives


@pytest.mark.parametrize("backend", ["auto", *ON_CPU])
def test_no_rows_no_queries_no_keys(backend: str) -> None:
    for rows, length, keys in ((0, 5, 5), (1, 0, 5), (1, 5, 0), (0, 0, 0)):
        if backend == "banded" and length != keys:
            continue  # refused by a sentence: tests/model/test_attention.py
        q, k = jnp.ones((rows, length, 4, 4)), jnp.ones((rows, keys, 2, 4))
        of = lambda q, k, b=backend: attend(q, k, k, window=2, backend=b)  # noqa: E731
        out, pull = jax.vjp(of, q, k)
        assert out.shape == q.shape
        assert not out.any()
        assert not any(x.any() for x in pull(out))


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0, 0)])
@pytest.mark.parametrize("family", TEXT)
def test_a_family_takes_an_empty_batch(family: str, shape: tuple[int, int]) -> None:
    tokens = jnp.zeros(shape, jnp.int32)
    model, arguments = call(family, Tokens(lengths=jnp.zeros(shape[0], jnp.int32)), tokens)
    logits, params = model.init_with_output(jax.random.key(0), *arguments)
    assert logits.shape == (*shape, V)
    if family in ("decoder_only", "recurrent_encoder_decoder"):
        x, table = jnp.zeros((*shape, 8)), jnp.ones((V, 8))
        assert output_cross_entropy(x, table, None, tokens, jnp.zeros(shape))["loss"][0] == 0
    if hasattr(model, "start"):
        start = arguments[:2] if family.endswith("encoder_decoder") else (shape[0],)
        state = model.apply(params, *start, 4, method="start")
        step = lambda t, p, s: (  # noqa: E731
            lambda out: (out[0][:, -1], out[1])
        )(model.apply(params, t, Tokens(p), s, method="step"))
        first = jnp.zeros(shape[0], jnp.int32)
        for name in ("greedy", "beam"):
            assert DECODERS[name](step, state, first, first, 4, None, 2).tokens.shape == (shape[0], 1, 4)


@pytest.mark.parametrize("inputs", ["image", "frames", "series"])
def test_other_inputs_may_be_no_rows(inputs: str) -> None:
    changes = {"family": "forecaster"} if inputs == "series" else {"family": "encoder_only"}
    config = dataclasses.replace(TINY, inputs=inputs, num_classes=3, image_size=(8, 8), attention=("full",), **changes)
    shape = {"image": (8, 8, 1), "frames": (8, 1), "series": (8, 2)}[inputs]
    where = {"image": (None,), "frames": (Tokens(lengths=jnp.zeros(0, jnp.int32)),), "series": ()}[inputs]
    out, _ = build(config).init_with_output(jax.random.key(0), jnp.zeros((0, *shape)), *where)
    assert out.shape[0] == 0


@pytest.mark.parametrize("backend", WITH_SCORES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_attention_in_64_bits(backend: str, dtype: str) -> None:
    with jax.enable_x64(True):
        arrays = [jnp.asarray(x, dtype) for x in tensors()[:3]]
        of = lambda *x, b: attend(*x, causal=True, window=3, score=AlibiBias(4), backend=b)  # noqa: E731
        found, expected = (
            jax.vjp(partial(of, b=b), *arrays)[1](jnp.ones((B, L, 4, 4), dtype)) for b in (backend, "dense")
        )
        assert {str(x.dtype) for x in found} == {dtype}
        for mine, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(mine, theirs, atol=1e-12 if dtype == "float64" else 1e-5)


@pytest.mark.parametrize("backend", ON_CPU[1:])
def test_forward_mode_of_tiles_is_refused(backend: str) -> None:
    q, k, v, _ = (jnp.asarray(x) for x in tensors())
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda q: attend(q, k, v, window=3, backend=backend), (q,), (q,))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 3}, "model.d_model=8 does not divide by model.num_heads=3"),
        ({"num_heads": 16}, "model.d_model=8 does not divide by model.num_heads=16"),
        ({"num_heads": 0}, "'model.num_heads' must be at least 1"),
        ({"num_heads": 4, "num_kv_heads": 3}, "model.num_kv_heads=3 does not divide model.num_heads=4"),
        ({"positions": "rotary", "head_dim": 3}, "rotates pairs of features, and a head has 3"),
        ({"inputs": "image", "patch_size": 3}, "model.patch_size=3 does not divide model.image_size"),
        ({"attention": ("window:-1",)}, "model.attention has 'window:-1'"),
        ({"norm_eps": 0.0}, "model.norm_eps must be above 0"),
    ],
)
def test_a_model_that_cannot_be_is_one_sentence(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(dataclasses.replace(TINY, family="encoder_only", **changes))


@pytest.mark.parametrize("positions", ["sinusoidal", "sinusoidal-half", "rotary"])
def test_an_odd_width_and_a_single_position(positions: str) -> None:
    config = dataclasses.replace(
        TINY, family="decoder_only", d_model=7, num_heads=1, head_dim=2, positions=positions, attention=("window:0",)
    )
    logits, _ = build(config).init_with_output(jax.random.key(0), jnp.ones((1, 1), jnp.int32), Tokens())
    assert np.isfinite(logits).all()


@pytest.mark.parametrize("length", [9, 137])
@pytest.mark.parametrize("backend", ON_CPU)
def test_a_query_that_sees_nan_is_lost_at_any_length(backend: str, length: int) -> None:
    """Of rows with many keys, too: its output is NaN, all gradients are 0, and other rows have theirs."""
    q, k, v, cotangent = tensors(length)
    window = {"window": (length, length)}
    run = partial(attend, backend=backend, **window)
    clean, pull = jax.vjp(run, *(jnp.asarray(x) for x in (q, k, v)))
    expected = clean, *pull(jnp.asarray(cotangent))
    v[0, 3, 1, 2] = np.inf
    out, pull = jax.vjp(run, *(jnp.asarray(x) for x in (q, k, v)))
    for mine, theirs in zip((out, *pull(jnp.asarray(cotangent))), expected, strict=True):
        groups = mine.shape[2] // 2
        np.testing.assert_array_equal(
            mine[0, :, groups:], np.full_like(mine[0, :, groups:], np.nan if mine is out else 0)
        )
        np.testing.assert_allclose(mine[1], theirs[1], atol=1e-5)
        np.testing.assert_allclose(mine[0, :, :groups], theirs[0, :, :groups], atol=1e-5)
