"""Stacks and families: what reaches what (by gradient), what changes nothing, and what has how many parameters."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer.config import ModelConfig
from transformer.errors import UserError
from transformer.model import attention
from transformer.model.attention import Choice, choose
from transformer.model.embedders import TokenEmbedder
from transformer.model.families import FAMILIES, build
from transformer.model.layers import MultiHeadAttention
from transformer.model.masks import band
from transformer.model.positions import POSITIONS
from transformer.model.stacks import Stack, windows
from transformer.model.tokens import PackedTokens, Tokens

V = 13
LONG = 263  # enough that tiles over a narrow band hold less than half of the scores
D = 8
TINY = ModelConfig(num_layers=2, d_model=D, d_ff=7, num_heads=2, dropout=0.0, max_positions=LONG, vocab_size=V)

# The families of attention that write tokens.
WRITERS = [name for name, family in FAMILIES.items() if hasattr(family, "step") and not name.startswith("recurrent")]


def tiny(**changes: Any) -> ModelConfig:
    return dataclasses.replace(TINY, **changes)


def compiled(f: Callable[..., Any]) -> Callable[..., Any]:
    return jax.jit(f)


def places(length: int, rows: int = 1) -> Tokens:
    positions = jnp.broadcast_to(jnp.arange(length), (rows, length))
    return Tokens(positions, jnp.ones_like(positions))


def arguments(config: ModelConfig, length: int = 5) -> tuple[Any, ...]:
    one = (jnp.ones((1, length), jnp.int32), places(length))
    return one * 2 if config.family == "encoder_decoder" else one


def some_params(module: nn.Module, *args: Any, seed: int = 0, **options: Any) -> Any:
    """Random weights of the right shapes, far from any initialisation: no zero bias, no unit scale."""
    rng = np.random.default_rng(seed)

    def fill(path: Any, leaf: Any) -> Any:
        base = 1.0 if "scale" in jax.tree_util.keystr(path) else 0.0
        return jnp.asarray(base + rng.normal(size=leaf.shape) * 0.4, jnp.float32)

    return jax.tree_util.tree_map_with_path(
        fill, jax.eval_shape(functools.partial(module.init, **options), jax.random.key(0), *args)
    )


def model_and_params(config: ModelConfig) -> tuple[nn.Module, Any]:
    model = build(config)
    return model, some_params(model, *arguments(config))


# --- What reaches what


def reach(config: ModelConfig, causal: bool, length: int, query: int) -> np.ndarray:
    """Which of the L embedded inputs the stack's output at `query` depends on, by gradient."""
    stack = Stack(config, causal=causal)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, length, config.d_model)), jnp.float32)
    params = some_params(stack, x, places(length))
    # A random direction: a norm makes the plain sum of its outputs constant.
    direction = jnp.asarray(np.random.default_rng(1).normal(size=config.d_model), jnp.float32)
    gradient = compiled(jax.grad(lambda x: stack.apply(params, x, places(length))[0][0, query] @ direction))(x)
    assert np.isfinite(gradient).all()
    return np.flatnonzero(np.abs(gradient[0]).max(axis=-1))


@pytest.mark.parametrize(("causal", "norm"), [(True, "post"), (False, "pre")])
def test_layers_of_windows_reach_exactly_their_sum(causal: bool, norm: str) -> None:
    """N layers of window w see N·w positions back, and as far ahead in an encoder; here by chunks of a row."""
    length, query, width, layers = LONG, 131, 3, 3
    config = tiny(attention=(f"window:{width}",), num_layers=layers, norm=norm)
    heads = jax.ShapeDtypeStruct((1, length, config.num_heads, D // config.num_heads), jnp.float32)
    assert choose(heads, heads, heads, band(causal, width)).backend == "banded"
    ahead = 0 if causal else layers * width
    seen = np.arange(query - layers * width, query + ahead + 1)
    np.testing.assert_array_equal(reach(config, causal, length, query), seen)


def test_mixed_windows_reach_their_sum() -> None:
    config = tiny(attention=("window:1", "window:4"), num_layers=3)
    np.testing.assert_array_equal(reach(config, False, 17, 8), np.arange(8 - 6, 8 + 7))
    np.testing.assert_array_equal(reach(tiny(attention=("window:0",), num_layers=1), False, 7, 3), [3])


def test_one_full_layer_reaches_everything() -> None:
    config = tiny(attention=("window:1", "full"))
    np.testing.assert_array_equal(reach(config, True, 11, 7), np.arange(8))


@pytest.mark.parametrize(
    ("pattern", "layers", "expected"),
    [
        (("full",), 3, [None, None, None]),
        (("window:16", "full"), 3, [16, None, 16]),
        (("window:16", "full"), 4, [16, None, 16, None]),
        (("window:1", "window:2", "full"), 5, [1, 2, None, 1, 2]),
        (("window:1", "window:2", "full"), 1, [1]),
        (("window:0",), 2, [0, 0]),
    ],
)
def test_the_pattern_cycles_over_the_layers(
    pattern: tuple[str, ...], layers: int, expected: list[int | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As data, and as what encoder and decoder self-attention are really called with; cross-attention is full."""
    config = tiny(attention=pattern, num_layers=layers)
    assert windows(config) == expected
    from transformer.model import layers as layers_module

    called: list[tuple[bool, int | None]] = []
    attend = layers_module.attend

    def spy(*args: Any, causal: bool, window: int | None, **options: Any) -> Any:
        called.append((causal, window))
        return attend(*args, causal=causal, window=window, **options)

    monkeypatch.setattr(layers_module, "attend", spy)
    jax.eval_shape(build(config).init, jax.random.key(0), *arguments(config))
    encoder = [(False, window) for window in expected]
    decoder = [call for window in expected for call in ((True, window), (False, None))]
    assert called == encoder + decoder


def test_the_banded_model_is_the_dense_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole model on packed rows, whichever backend its layers take."""
    config = tiny(family="decoder_only", attention=("window:2",), positions="t5", num_kv_heads=1)
    model, params = model_and_params(config)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, V, (2, LONG)), jnp.int32)
    segments = jnp.asarray(np.array([[1] * 127 + [2] * 131 + [0] * 5, [1] * 3 + [2] * 260]))
    where = PackedTokens(jnp.asarray(np.r_[0:127, 0:131, [0] * 5, 0:3, 0:260].reshape(2, LONG)), segments)
    taken: list[str] = []

    def choice(*args: Any, **options: Any) -> Choice:
        taken.append(choose(*args, **options).backend)
        return choose(*args, **options)

    monkeypatch.setattr(attention, "choose", choice)
    chosen = compiled(model.apply)(params, tokens, where)
    assert taken == ["banded"] * 2
    monkeypatch.setattr(attention, "choose", lambda *args, **options: Choice("dense", "it is the reference"))
    # Another function object, or jit would answer with the program that it has.
    dense = compiled(lambda *args: model.apply(*args))(params, tokens, where)
    real = np.asarray(segments) > 0
    np.testing.assert_allclose(np.asarray(chosen)[real], np.asarray(dense)[real], atol=2e-5)
    assert np.isfinite(chosen).all()


def embedding_gradient(config: ModelConfig, query: int, length: int = 7, inputs: int = 5) -> list[np.ndarray]:
    """|d logits[query] / d embedding| of every input token, and of every target token: one array a table look-up."""
    model, params = model_and_params(config)
    rng = np.random.default_rng(0)
    where = [places(inputs), places(length)] if config.family == "encoder_decoder" else [places(length)]
    args = [x for w in where for x in (jnp.asarray(rng.integers(0, V, w.positions.shape), jnp.int32), w)]

    def logits(moves: list[Any]) -> Any:
        left = iter(moves)

        def moved(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            out = call(*args, **kwargs)
            embeds = isinstance(context.module, TokenEmbedder) and context.method_name == "__call__"
            return out + next(left) if embeds else out

        with nn.intercept_methods(moved):
            return model.apply(params, *args)[0, query] @ direction

    direction = jnp.asarray(rng.normal(size=V), jnp.float32)
    moves = [jnp.zeros((*w.positions.shape, config.d_model)) for w in where]
    return [np.abs(g[0]).max(axis=-1) for g in jax.device_get(compiled(jax.grad(logits))(moves))]


@pytest.mark.parametrize("family", WRITERS)
def test_no_logit_depends_on_a_later_token(family: str) -> None:
    """Exactly zero after the query, and not zero before it; cross-attention reaches every input."""
    *inputs, targets = embedding_gradient(tiny(family=family), query=3)
    assert (targets[4:] == 0).all()
    assert (targets[:4] > 0).all()
    for gradient in inputs:
        assert (gradient > 0).all()


def test_a_windowed_decoder_still_sees_every_input() -> None:
    inputs, targets = embedding_gradient(tiny(attention=("window:1",), norm="pre"), query=5)
    assert (inputs > 0).all()
    np.testing.assert_array_equal(np.flatnonzero(targets), [3, 4, 5])


# --- Positions


@pytest.mark.parametrize("positions", POSITIONS)
def test_only_without_positions_is_the_encoder_permutation_equivariant(positions: str) -> None:
    stack = Stack(tiny(positions=positions), causal=False)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 7, D)), jnp.float32)
    params = some_params(stack, x, places(7))
    run = compiled(lambda x: stack.apply(params, x, places(7))[0])
    order = np.array([3, 0, 6, 1, 5, 2, 4])
    difference = float(jnp.abs(run(x[:, order]) - run(x)[:, order]).max())
    # Encodings that act on the scores only change little in a small model.
    least = 0.05 if positions in ("sinusoidal", "learned") else 0.02
    assert difference < 1e-5 if positions == "none" else difference > least


def test_a_window_tells_places_apart_without_positions() -> None:
    """A window is a statement about places: the equivariance above is that of full attention."""
    stack = Stack(tiny(positions="none", attention=("window:1",)), causal=False)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 7, D)), jnp.float32)
    params = some_params(stack, x, places(7))
    run = compiled(lambda x: stack.apply(params, x, places(7))[0])
    order = np.array([3, 0, 6, 1, 5, 2, 4])
    assert float(jnp.abs(run(x[:, order]) - run(x)[:, order]).max()) > 0.05


SHIFTED = {"rotary": 2e-5, "rotary-half": 2e-5, "alibi": 0.0, "t5": 0.0, "none": 0.0}


@pytest.mark.parametrize("positions", POSITIONS)
def test_only_relative_positions_can_be_shifted(positions: str) -> None:
    """A table of vectors knows where a token stands; all else only how far it is from others. Distances are whole
    numbers, so biases by them stay as they are to the last bit."""
    model, params = model_and_params(
        tiny(family="decoder_only", positions=positions, attention=("window:2", "full"), norm="pre")
    )
    run = compiled(model.apply)
    tokens, where = jnp.asarray(random_tokens(0, 2, 7)), places(7, 2)
    moved = where._replace(positions=where.positions + 37)
    difference = float(jnp.abs(run(params, tokens, moved) - run(params, tokens, where)).max())
    if positions in SHIFTED:
        assert difference <= SHIFTED[positions]
    else:
        assert difference > 0.05


def test_t5_looks_both_ways_in_the_encoder_and_back_in_the_decoder() -> None:
    """By the gradient of each stack's table, which all of its layers share. Of 20 tokens the encoder takes the buckets
    of 0 to 19 behind (0 to 7 singly, then 8-11, 12-15, 16-19) and of 1 to 19 ahead; the decoder has as fine ones to 15
    behind, then 16-18 and 19."""
    config = tiny(positions="t5", norm="pre")
    model = build(config)
    args = tuple(x for seed in (1, 2) for x in (jnp.asarray(random_tokens(seed, 1, 20)), places(20)))
    params = some_params(model, *args)
    direction = jnp.asarray(np.random.default_rng(1).normal(size=(20, V)), jnp.float32)
    gradient = compiled(jax.grad(lambda params: (model.apply(params, *args)[0] * direction).sum()))(params)
    tables = {name: x for name, x in leaves(gradient).items() if "positions" in name}
    assert len(tables) == 2
    for name, table in tables.items():
        used = [*range(11), *range(17, 27)] if "encoder" in name else [*range(18)]
        np.testing.assert_array_equal(np.flatnonzero(np.abs(table).max(axis=1)), used, err_msg=name)
        assert table.shape == (32, config.num_heads)


# --- Grouped heads


@pytest.mark.parametrize("family", WRITERS)
def test_as_many_key_heads_is_no_grouping(family: str) -> None:
    outs = []
    for groups in (0, 4):
        config = tiny(family=family, num_heads=4, num_kv_heads=groups)
        model, params = model_and_params(config)
        outs.append((leaves(params), np.asarray(compiled(model.apply)(params, *arguments(config)))))
    (first, out), (second, same) = outs
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
    np.testing.assert_array_equal(out, same)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("family", WRITERS)
def test_grouped_heads_are_heads_with_equal_keys(family: str, groups: int) -> None:
    """Query head h reads key head h // (H / G), in self-attention and in cross-attention, whatever the positions."""
    config = tiny(family=family, num_heads=4, d_model=16, num_kv_heads=groups, positions="rotary", norm="pre")
    grouped, params = model_and_params(config)
    of_keys = lambda name: "'key'" in name or "'value'" in name  # noqa: E731
    shapes = {name: x.shape for name, x in leaves(params).items() if "attention" in name and "kernel" in name}
    assert shapes
    assert all(shape == (16, 4 * groups if of_keys(name) else 16) for name, shape in shapes.items())

    def repeated(path: Any, x: Any) -> Any:
        if not of_keys(jax.tree_util.keystr(path)):
            return x
        return jnp.repeat(x.reshape(16, groups, 4), 4 // groups, axis=1).reshape(16, 16)

    apart = build(dataclasses.replace(config, num_kv_heads=0))
    rng = np.random.default_rng(0)
    args = [jnp.asarray(rng.integers(0, V, x.shape), jnp.int32) if i % 2 == 0 else x
            for i, x in enumerate(arguments(config, 7))]  # fmt: skip
    out = compiled(grouped.apply)(params, *args)
    expected = compiled(apart.apply)(jax.tree_util.tree_map_with_path(repeated, params), *args)
    np.testing.assert_allclose(out, expected, atol=2e-5)
    assert float(jnp.abs(out[:, 1:] - out[:, :-1]).max()) > 0.1


def test_grouped_keys_have_the_shape_they_are_cached_in() -> None:
    module = MultiHeadAttention(tiny(num_heads=4, num_kv_heads=2))
    x = jnp.ones((3, 5, D))
    params = some_params(module, x, places(5, 3))
    k, v = module.apply(params, x, method="keys_values")
    assert k.shape == v.shape == (3, 5, 2, D // 4)


# --- What changes nothing


def random_tokens(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, V, shape).astype(np.int32)


def padded(rows: list[np.ndarray], width: int, fill_seed: int) -> tuple[Any, Tokens]:
    """Rows of tokens and arbitrary ids after them, with segment 0."""
    tokens, where = random_tokens(fill_seed, len(rows), width), np.zeros((2, len(rows), width), np.int32)
    for b, row in enumerate(rows):
        tokens[b, : len(row)] = row
        where[:, b, : len(row)] = np.arange(len(row)), np.ones(len(row))
    return jnp.asarray(tokens), Tokens(*map(jnp.asarray, where))


@pytest.mark.parametrize("family", WRITERS)
def test_padding_may_be_longer_than_a_learned_table(family: str) -> None:
    """A bucket is wider than the table, and the texts in it are not: padding has no vector of its own, and no NaN."""
    model, params = model_and_params(tiny(family=family, positions="learned", max_positions=5))
    run = compiled(model.apply)
    sides = 2 if family == "encoder_decoder" else 1
    tokens = [jnp.asarray(random_tokens(seed, 2, 9)) for seed in range(sides)]
    wide = [x for side in tokens for x in (side, Tokens(lengths=jnp.array([5, 3])))]
    fitting = [x for side in tokens for x in (side[:, :5], Tokens(lengths=jnp.array([5, 3])))]
    found, expected = run(params, *wide), run(params, *fitting)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[0, :5], expected[0], atol=2e-5)
    np.testing.assert_allclose(found[1, :3], expected[1, :3], atol=2e-5)


@pytest.mark.parametrize("family", WRITERS)
def test_padding_and_neighbours_in_the_batch_change_nothing(family: str) -> None:
    config = tiny(family=family, attention=("window:2", "full"), positions="learned")
    model, params = model_and_params(config)
    run = compiled(model.apply)
    sides = 2 if family == "encoder_decoder" else 1
    rows = [[random_tokens(10 * side + b, size) for b, size in enumerate((5, 11, 3))] for side in range(sides)]

    def batch(which: list[int], width: int, fill_seed: int) -> np.ndarray:
        args = [x for side in rows for x in padded([side[b] for b in which], width, fill_seed)]
        return np.asarray(run(params, *args))

    together = batch([0, 1, 2], 11, 0)
    assert np.isfinite(together).all()
    for b, size in enumerate((5, 11, 3)):
        np.testing.assert_array_equal(batch([0, 1, 2], 11, 1)[b, :size], together[b, :size], "ids of the padding")
    swapped = batch([1, 2, 0], 11, 0)
    np.testing.assert_allclose(swapped[2, :5], together[0, :5], atol=1e-5, err_msg="order of the rows")
    np.testing.assert_allclose(batch([0], 5, 0)[0], together[0, :5], atol=2e-5, err_msg="alone and unpadded")
    # LONG is long enough for the band, 11 is not.
    np.testing.assert_allclose(batch([0, 1, 2], LONG, 2)[1, :11], together[1], atol=2e-5, err_msg="more padding")


@pytest.mark.parametrize("positions", POSITIONS)
def test_a_packed_row_is_its_documents(positions: str) -> None:
    config = tiny(family="decoder_only", positions=positions, norm="pre", attention=("window:2", "full"))
    model, params = model_and_params(config)
    run = compiled(model.apply)
    first, second = random_tokens(1, 5), random_tokens(2, 7)
    # A second row, of padding alone, gives both batches one shape, and so one program.
    tokens, where, segments = np.zeros((3, 2, 13), np.int32)
    tokens[0, :12], segments[0, :12] = np.r_[first, second], [1] * 5 + [2] * 7
    where[0, :12] = np.r_[0:5, 0:7]
    packed = np.asarray(run(params, jnp.asarray(tokens), Tokens(jnp.asarray(where), jnp.asarray(segments))))[0]
    separate = run(params, *padded([first, second], 13, 0))
    np.testing.assert_allclose(packed[:5], separate[0, :5], atol=2e-5)
    np.testing.assert_allclose(packed[5:12], separate[1, :7], atol=2e-5)


def test_post_norm_normalises_the_output_and_pre_norm_the_input() -> None:
    """Post-norm: with unit scales the last step is a LayerNorm, so outputs have mean 0 and variance 1. Pre-norm: before
    the final norm the residual stream is the input plus what was added: with zero weights a stack is the identity."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 5, D)), jnp.float32) * 3 + 1
    mean = np.asarray(x).mean(axis=-1, keepdims=True)
    normalised = (np.asarray(x) - mean) / np.sqrt(np.asarray(x).var(axis=-1, keepdims=True) + 1e-6)
    for norm in ("post", "pre"):
        stack = Stack(tiny(norm=norm, positions="none"), causal=False)
        params = some_params(stack, x, places(5))
        zero = jax.tree_util.tree_map_with_path(
            lambda path, leaf: jnp.full_like(leaf, float("scale" in jax.tree_util.keystr(path))), params
        )
        # Post-norm normalises again and again, which changes nothing; pre-norm does so once, at the end.
        out = compiled(lambda zero, stack=stack: stack.apply(zero, x, places(5))[0])(zero)
        np.testing.assert_allclose(out, normalised, atol=1e-5)
        assert ("final_norm" in params["params"]) == (norm == "pre")


# --- Parameters


def leaves(params: Any) -> dict[str, np.ndarray]:
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(params)}


@pytest.mark.parametrize("family", [pytest.param("encoder_decoder", marks=pytest.mark.slow), "decoder_only"])
def test_shared_parameters_of_all_variants_start_equal(family: str) -> None:
    """Bit for bit: an ablation differs in the ablated key only."""

    def start(config: ModelConfig) -> dict[str, np.ndarray]:
        return leaves(compiled(lambda key: build(config).init(key, *arguments(config)))(jax.random.key(3)))

    paper = start(tiny(family=family, num_layers=1))
    changes: list[dict[str, Any]] = [
        {"positions": "learned", "num_layers": 1, "attention": ("window:2",), "norm": "pre"},
        {"positions": "none", "num_layers": 2, "attention": ("window:2", "full"), "dropout": 0.5, "max_positions": 3},
        {"positions": "t5", "num_layers": 2, "attention": ("window:2", "full")},
        *({"positions": name, "num_layers": 1} for name in ("rotary", "rotary-half", "alibi", "sinusoidal-half")),
    ]
    assert {"sinusoidal", *(change["positions"] for change in changes)} == POSITIONS.keys()
    stacks = 2 if family == "encoder_decoder" else 1
    for change in changes:
        variant = start(tiny(family=family, **change))
        shared = paper.keys() & variant.keys()
        assert shared == paper.keys(), change
        for name in shared:
            np.testing.assert_array_equal(variant[name], paper[name], err_msg=f"{change} {name}")
        extra = {"learned": "positions", "t5": "positions", "pre": "final_norm", 2: "layer_1"}
        allowed = [extra[value] for value in change.values() if not isinstance(value, tuple) and value in extra]
        assert all(any(word in name for word in allowed) for name in variant.keys() - shared), change
        tables = [name for name in variant if "positions" in name]
        assert len(tables) == (stacks if "positions" in allowed else 0), "one a stack, whatever the number of layers"


def count(config: ModelConfig) -> int:
    """By abstract evaluation: no array is made."""
    shapes = jax.eval_shape(build(config).init, jax.random.key(0), *arguments(config))
    return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(shapes))


BASE = ModelConfig(vocab_size=37_000)


@pytest.mark.parametrize(
    ("row", "changes", "parameters"),
    [
        ("base", {}, 63_045_632),
        ("(A) 32 heads", {"num_heads": 32}, 63_045_632),
        ("(C) 2 layers", {"num_layers": 2}, 33_644_544),
        ("(C) 4 layers", {"num_layers": 4}, 48_345_088),
        ("(C) d_model 256", {"d_model": 256}, 26_816_512),
        ("(C) d_model 1024", {"d_model": 1024}, 163_815_424),
        ("(C) d_ff 1024", {"d_ff": 1024}, 50_450_432),
        ("(C) d_ff 4096", {"d_ff": 4096}, 88_236_032),
        # A table each for encoder and decoder.
        ("(E) learned", {"positions": "learned"}, 63_045_632 + 2 * 512 * 512),
        ("T5", {"positions": "t5"}, 63_045_632 + 2 * 32 * 8),
        ("rotary", {"positions": "rotary"}, 63_045_632),
        ("ALiBi", {"positions": "alibi"}, 63_045_632),
        # Of 18 attentions, three quarters of keys' and of values' weights.
        ("two key heads", {"num_kv_heads": 2}, 63_045_632 - 18 * 2 * 512 * 384),
        ("big", {"d_model": 1024, "d_ff": 4096, "num_heads": 16}, 214_171_648),
        ("(D), no positions, a window", {"dropout": 0.2, "positions": "none", "attention": ("window:16",)}, 63_045_632),
        # A scale and a bias at the end of either stack.
        ("pre-norm", {"norm": "pre"}, 63_045_632 + 2 * 2 * 512),
    ],
)
def test_the_paper_counts(row: str, changes: dict[str, Any], parameters: int) -> None:
    """Table 3 (Vaswani et al. 2017) with 37,000 pieces and no biases in attention: N layers of 4 D² + (2 D F + F + D)
    + 4 D in the encoder and 8 D² + (2 D F + F + D) + 6 D in the decoder, and one table of V D."""
    config = dataclasses.replace(BASE, **changes)
    assert count(config) == parameters, row
    d, f, n = config.d_model, config.d_ff, config.num_layers
    closed = n * (12 * d * d + 2 * (2 * d * f + f + d) + 10 * d) + config.vocab_size * d
    extra = 2 * 512 * d * (config.positions == "learned") + 4 * d * (config.norm == "pre")
    extra += 2 * 32 * config.num_heads * (config.positions == "t5")
    extra -= 6 * n * d * (d - d * (config.num_kv_heads or config.num_heads) // config.num_heads)
    assert parameters == closed + extra


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"family": "encoder"}, "no model.family 'encoder': choose one of"),
        ({"positions": "rotray"}, "no model.positions 'rotray': choose one of"),
        ({"vocab_size": 0}, "model.vocab_size is 0"),
        ({"attention": ("window:x",)}, "write 'full', or 'window:16'"),
    ],
)
def test_a_wrong_model_is_one_sentence(changes: dict[str, Any], message: str) -> None:
    config = tiny(**changes)
    with pytest.raises(UserError, match=message) as caught:
        jax.eval_shape(build(config).init, jax.random.key(0), *arguments(config))
    assert "\n" not in str(caught.value)
