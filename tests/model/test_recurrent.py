"""The recurrent families: against float64 loops of the published equations, and under padding, packing and decoding."""

import dataclasses
import functools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer import load_run
from transformer import train as verb
from transformer.config import Config, DataConfig, LoggingConfig, MeshConfig, ModelConfig, OptimizerConfig, override
from transformer.data.tokenizers import Tokenizer
from transformer.describe import backends
from transformer.errors import UserError
from transformer.model.families import build, output_layer
from transformer.model.noise import step_noise
from transformer.model.tokens import Tokens
from transformer.tasks import TASKS

D, V, N = 5, 11, 2
SOURCES, TARGETS = (7, 1, 4), (3, 5, 2)  # tokens of each row
TINY = ModelConfig(positions="none", num_layers=N, d_model=D, num_heads=1, dropout=0.0, vocab_size=V)


def tiny(family: str, **changes: Any) -> ModelConfig:
    return dataclasses.replace(TINY, family=family, **changes)


def padded(lengths: tuple[int, ...], width: int, seed: int) -> tuple[Any, Tokens]:
    """The same tokens for the same lengths; what stands in the padding depends on the seed."""
    rng = np.random.default_rng(seed)
    tokens, where = rng.integers(0, V, (len(lengths), width)), np.zeros((2, len(lengths), width), np.int32)
    for row, length in enumerate(lengths):
        tokens[row, :length] = np.random.default_rng(100 * row + length).integers(0, V, length)
        where[:, row, :length] = np.arange(length), np.ones(length)
    return jnp.asarray(tokens, jnp.int32), Tokens(*map(jnp.asarray, where))


def pairs(sources: int = 7, targets: int = 5, seed: int = 0) -> tuple[Any, ...]:
    """Inputs and target inputs of a batch, padded to so many places."""
    return *padded(SOURCES, sources, seed), *padded(TARGETS, targets, seed + 50)


@functools.cache
def model_and_params(config: ModelConfig) -> tuple[Any, Any]:
    """Random weights, far from any initialisation: no bias is zero."""
    model = build(config)
    args = pairs() if config.family == "recurrent_encoder_decoder" else padded(TARGETS, 5, 0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *args)
    rng = np.random.default_rng(0)
    return model, jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.6, jnp.float32), shapes)


@functools.cache
def run(config: ModelConfig) -> Callable[..., Any]:
    """The model as a function of its arguments, compiled once for each of their shapes."""
    model, params = model_and_params(config)
    return functools.partial(compiled(model.apply), params)


def compiled(f: Callable[..., Any]) -> Callable[..., Any]:
    return jax.jit(f)


# --- Against float64 loops, one row and one place at a time


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def lstm(p: Any, carry: tuple[np.ndarray, np.ndarray], x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hochreiter & Schmidhuber 1997 with the forget gate of Gers et al. 2000; biases with the recurrent matrices."""
    c, h = carry
    i, f, g, o = (x @ p[f"i{gate}"]["kernel"] + h @ p[f"h{gate}"]["kernel"] + p[f"h{gate}"]["bias"] for gate in "ifgo")
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return c, sigmoid(o) * np.tanh(c)


def gru(p: Any, carry: tuple[np.ndarray], x: np.ndarray) -> tuple[np.ndarray]:
    """Cho et al. 2014, with the reset gate behind the recurrent product."""
    (h,) = carry
    r, z = (sigmoid(x @ p[f"i{k}"]["kernel"] + p[f"i{k}"]["bias"] + h @ p[f"h{k}"]["kernel"]) for k in "rz")
    new = x @ p["in"]["kernel"] + p["in"]["bias"] + r * (h @ p["hn"]["kernel"] + p["hn"]["bias"])
    return ((1 - z) * np.tanh(new) + z * h,)


CELLS: dict[str, tuple[Any, int]] = {"lstm": (lstm, 2), "gru": (gru, 1)}


def dense(p: Any, x: np.ndarray) -> np.ndarray:
    return x @ p["kernel"] + p.get("bias", 0.0)


def additive(p: Any, keys: list[np.ndarray], values: list[np.ndarray], state: np.ndarray) -> np.ndarray:
    """Bahdanau et al. 2015, equations 5 and 6 and that of e_ij in section 3.1."""
    energies = [(np.tanh(state @ p["query"]["kernel"] + key) @ p["score"]["kernel"]).item() for key in keys]
    shares = np.exp(energies - np.max(energies))
    return sum(share * value for share, value in zip(shares / shares.sum(), values, strict=True))


def one_row(p: Any, config: ModelConfig, sources: list[int], targets: list[int]) -> np.ndarray:
    """Logits [L, V] of one pair; of a language model with empty `sources`."""
    step, leaves = CELLS[config.cell]
    embed = lambda token: p["embedder"]["table"][token] * np.sqrt(D)  # noqa: E731
    zero = (np.zeros(D),) * leaves
    carries, memory = [zero] * N, None
    if config.family == "recurrent_encoder_decoder":
        memory = [embed(token) for token in sources]
        for layer in range(N):
            right, left, rights, lefts = zero, zero, [], []
            for x in memory:
                right = step(p["encoder"][f"rightward_{layer}"]["cell"], right, x)
                rights.append(right[-1])
            for x in memory[::-1]:
                left = step(p["encoder"][f"leftward_{layer}"]["cell"], left, x)
                lefts.insert(0, left[-1])
            memory = [np.concatenate(both) for both in zip(rights, lefts, strict=True)]
            bridged = [dense(p[f"bridge_{layer}_{i}"], np.concatenate([right[i], left[i]])) for i in range(leaves)]
            carries[layer] = (*bridged[:-1], np.tanh(bridged[-1]))
    logits = []
    for token in targets:
        x, context = embed(token), np.zeros(0)
        if memory is not None and config.recurrent_attention:
            attention = p["decoder"]["layer_0"]["attention"]
            context = additive(attention, [dense(p["keys"], h) for h in memory], memory, carries[0][-1])
        read = context
        for layer in range(N):
            carries[layer] = step(p["decoder"][f"layer_{layer}"]["cell"], carries[layer], np.concatenate([x, read]))
            x, read = carries[layer][-1], np.zeros(0)
        logits.append(dense(p["decoder"]["out"], np.concatenate([x, context])) @ p["embedder"]["table"].T)
    return np.stack(logits)


def oracle(params: Any, config: ModelConfig, args: tuple[Any, ...]) -> list[np.ndarray]:
    """Logits of the real places of each row."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)["params"]
    tokens = [np.asarray(x) for x in args[::2]]
    return [
        one_row(p, config, tokens[0][row, : SOURCES[row]].tolist(), tokens[-1][row, : TARGETS[row]].tolist())
        for row in range(len(TARGETS))
    ]


CASES = [
    tiny("recurrent_encoder_decoder", cell=cell, recurrent_attention=attention)
    for cell in CELLS
    for attention in (True, False)
] + [tiny("recurrent_language_model", cell=cell) for cell in CELLS]
each_case = pytest.mark.parametrize(
    "config", CASES, ids=lambda c: f"{c.family.split('_', 1)[1]}-{c.cell}{'-without' * (not c.recurrent_attention)}"
)


def arguments(config: ModelConfig) -> tuple[Any, ...]:
    return pairs() if config.family == "recurrent_encoder_decoder" else padded(TARGETS, 5, 0)


@each_case
def test_values_and_gradient_are_the_equations(config: ModelConfig) -> None:
    """Logits, and the derivative of a random sum of them along a random direction of all parameters."""
    model, params = model_and_params(config)
    args = arguments(config)
    rng = np.random.default_rng(1)
    weights = [rng.normal(size=(length, V)) for length in TARGETS]

    def total(params: Any) -> Any:
        logits = model.apply(params, *args)
        parts = [(logits[row, : len(w)] * jnp.asarray(w, jnp.float32)).sum() for row, w in enumerate(weights)]
        return sum(parts), logits

    gradient, logits = compiled(jax.grad(total, has_aux=True))(params)
    for row, expected in enumerate(oracle(params, config, args)):
        np.testing.assert_allclose(logits[row, : len(expected)], expected, atol=2e-5)

    wide = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    direction = jax.tree.map(lambda x: rng.normal(size=x.shape), wide)

    def moved(by: float) -> float:
        found = oracle(jax.tree.map(lambda x, d: x + by * d, wide, direction), config, args)
        return sum(float((logits * w).sum()) for logits, w in zip(found, weights, strict=True))

    expected = (moved(1e-5) - moved(-1e-5)) / 2e-5
    got = sum(
        jax.tree.leaves(jax.tree.map(lambda g, d: float((np.asarray(g, np.float64) * d).sum()), gradient, direction))
    )
    assert got == pytest.approx(expected, rel=2e-4)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient)), "every parameter takes part"


# --- Padding and packing


@each_case
def test_padding_changes_nothing(config: ModelConfig) -> None:
    """What stands in it, how much of it there is."""
    sides = 4 if config.family == "recurrent_encoder_decoder" else 2
    first, second = (run(config)(*(*padded(SOURCES, 9, seed), *padded(TARGETS, 8, seed))[-sides:]) for seed in (0, 1))
    narrow = run(config)(*arguments(config))
    for row, length in enumerate(TARGETS):
        np.testing.assert_array_equal(first[row, :length], second[row, :length])
        np.testing.assert_allclose(narrow[row, :length], first[row, :length], atol=1e-5)


def test_a_row_of_padding_only_is_finite() -> None:
    """Batches are filled up with such rows: their logits weigh nothing, but a NaN would spread by the gradient."""
    config = tiny("recurrent_encoder_decoder", num_layers=1)
    model, params = model_and_params(config)
    args = jax.tree.map(lambda x: x.at[1].set(0), pairs())
    gradient = compiled(jax.grad(lambda params: model.apply(params, *args).sum()))(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("cell", CELLS)
def test_a_packed_row_is_its_documents(cell: str) -> None:
    """Three documents in one row, padding behind them: bit by bit what each gives alone."""
    model, params = model_and_params(tiny("recurrent_language_model", cell=cell))
    documents = [np.random.default_rng(i).integers(0, V, length) for i, length in enumerate((4, 1, 7))]
    positions = np.concatenate([*(np.arange(len(d)) for d in documents), np.zeros(2, int)])
    segments = np.concatenate([*(np.full(len(d), i + 1) for i, d in enumerate(documents)), np.zeros(2, int)])
    row = [np.concatenate([*documents, [3, 4]]), positions, segments]
    apply = compiled(lambda *row: model.apply(params, row[0][None], Tokens(row[1][None], row[2][None]))[0])
    packed, start = apply(*(jnp.asarray(x, jnp.int32) for x in row)), 0
    for document in documents:  # alone in a row of as many places: another shape may be another order of sums
        stop = start + len(document)
        width = len(row[0]) - len(document)
        alone = [np.pad(x, (0, width)) for x in (document, np.arange(len(document)), np.ones(len(document)))]
        expected = apply(*(jnp.asarray(x, jnp.int32) for x in alone))[: len(document)]
        np.testing.assert_array_equal(packed[start:stop], expected)
        start = stop


@each_case
def test_no_logit_depends_on_a_later_token(config: ModelConfig) -> None:
    *before, tokens, where = arguments(config)
    first, second = (run(config)(*before, t, where) for t in (tokens, tokens.at[:, 2].add(1) % V))
    np.testing.assert_array_equal(first[:, :2], second[:, :2])
    assert np.abs(first[:, 2] - second[:, 2])[:2].min() > 0, "rows of at least three tokens"


# --- Decoding


@each_case
def test_decoding_is_the_whole_sequence(config: ModelConfig) -> None:
    """Token by token from the start; and of a language model on from prompts of different lengths, one of them none."""
    model, params = model_and_params(config)
    encodes = config.family == "recurrent_encoder_decoder"
    places = jnp.tile(jnp.arange(5), (3, 1))
    begin, tokens = pairs()[:2] if encodes else (), pairs()[2]  # what is padding elsewhere is read here
    whole = np.asarray(run(config)(*begin, tokens, Tokens(places, jnp.ones_like(places))))
    step = compiled(lambda tokens, where, state: model.apply(params, tokens, where, state, method="step"))
    first = model.apply(params, *(begin if encodes else (3,)), 5, method="start")
    for lengths in [np.array([0, 0, 0])] if encodes else [np.array([0, 0, 0]), np.array([2, 0, 1])]:
        state = first
        if lengths.any():
            where = Tokens(places[:, :3], (places[:, :3] < lengths[:, None]).astype(jnp.int32))
            logits, state = step(tokens[:, :3], where, state)
            np.testing.assert_allclose(logits[0, :2], whole[0, :2], atol=1e-5)
        for i in range(5 - lengths.max()):
            at = jnp.asarray((lengths + i)[:, None], jnp.int32)
            logits, state = step(jnp.take_along_axis(tokens, at, 1), Tokens(at, jnp.ones_like(at)), state)
            np.testing.assert_allclose(logits[:, 0], whole[np.arange(3), at[:, 0]], atol=1e-5)
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, first), "a state does not grow"
    assert all(leaf.shape[0] == 3 for leaf in jax.tree.leaves(state)), "a row of each leaf is a row of the batch"


# --- Dropout, and what is refused


@each_case
def test_dropout_falls_between_layers(config: ModelConfig) -> None:
    """It changes the logits, the same noise the same way, and with another row's noise only that row."""
    args, plain = arguments(config), run(config)(*arguments(config))
    model, params = build(dataclasses.replace(config, dropout=0.4)), model_and_params(config)[1]
    apply = compiled(lambda rows: model.apply(params, *args, step_noise(3, 4, rows)))
    first, again, other = (apply(jnp.array(rows)) for rows in ([0, 1, 2], [0, 1, 2], [0, 1, 9]))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first[:2], other[:2])
    assert np.abs(first[2, 0] - other[2, 0]).max() > 0
    assert np.abs(first - plain)[0, 0].max() > 0


@pytest.mark.parametrize("family", ["recurrent_encoder_decoder", "recurrent_language_model"])
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"positions": "sinusoidal"}, "model.positions='sinusoidal' .* set model.positions='none'"),
        ({"scan_layers": True}, "model.scan_layers=True .* set model.scan_layers=False"),
        ({"attention": ("window:4",)}, r"model.attention=\('window:4',\) .* set model.attention=\('full',\)"),
    ],
)
def test_what_has_no_meaning_is_refused(family: str, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        build(tiny(family, **changes))


@pytest.mark.parametrize(("task", "family"), [("translation", "decoder_only"), ("language_model", "encoder_decoder")])
def test_a_task_names_the_families_it_takes(task: str, family: str) -> None:
    config = override(Config(), {"task": task, "model.family": family})
    first, second = TASKS[task].families
    with pytest.raises(UserError, match=f"needs model.family='{first}' or '{second}', not '{family}'"):
        TASKS[task](config, None)  # type: ignore[arg-type]


def test_the_output_table_is_the_embedding() -> None:
    for config in (CASES[0], CASES[-1]):
        assert output_layer(model_and_params(config)[1]).table.shape == (V, D)


# --- The verbs


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Words whose letters are read from right to left."""
    folder = tmp_path_factory.mktemp("data")
    drawn = random.Random(2)
    for split, count in (("train", 200), ("validation", 16), ("test", 16)):
        lines = ["".join(drawn.choices("abc", k=drawn.randint(1, 4))) for _ in range(count)]
        (folder / f"{split}.en").write_text("".join(f"{line}\n" for line in lines))
        (folder / f"{split}.de").write_text("".join(f"{line[::-1]}\n" for line in lines))
    return Config(
        steps=40,
        label_smoothing=0.0,
        model=dataclasses.replace(TINY, family="recurrent_encoder_decoder", d_model=16, num_layers=1, vocab_size=0),
        data=DataConfig(
            name="files", dir=str(folder), cache=str(folder / "cache"), vocab_size=280, max_len=8, batch_tokens=256,
            buckets=(8,),
        ),
        optimizer=OptimizerConfig(warmup_steps=4, learning_rate=3e-2),
        mesh=MeshConfig(data=1),
        logging=LoggingConfig(log_every=10, checkpoint_every=100),
    )  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, marks=pytest.mark.slow),
        {"task": "language_model", "model.family": "recurrent_language_model", "model.cell": "gru"},
    ],
    ids=["encoder_decoder", "language_model"],
)
def test_trained_by_the_same_loop(config: Config, changes: dict[str, Any], tmp_path: Path) -> None:
    config = override(config, changes)
    assert backends(config) == [f"no self-attention: {config.model.cell} cells, one token after another"]
    found = verb.train(config, tmp_path, quiet=True)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < 0.6 * losses[0]
    assert found["token_accuracy"] > 0.3
    run = load_run(tmp_path)
    given = ["ab", "", "cab", "a"]
    outputs = run.generate(given)
    assert len(outputs) == 4
    assert outputs[1] == ""
    assert outputs == [run.generate([line])[0] for line in given], "neighbours in the batch change nothing"
    assert run.task.limit is None
    assert Tokenizer.eos_id not in run.tokenizer.encode("ab")
