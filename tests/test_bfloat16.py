"""A bfloat16 model multiplies matrices in bfloat16, forwards, backwards and in decoding, and trains as in float32.

Products are read from the program that JAX hands to XLA, lowered for a TPU: there each says the types of its operands.
The compiled program of a CPU does not: XLA may convert operands to float32 for processors without such products.
"""

import functools
import re
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training.tiny import DECODER, copied, tiny, train
from transformer.config import Config, override
from transformer.model.attention import BACKENDS, attend
from transformer.model.embedders import EMBEDDERS
from transformer.model.families import FAMILIES
from transformer.model.positions import POSITIONS, T5Bias
from transformer.model.recurrent import CELLS
from transformer.tasks import TASKS, WritingTask
from transformer.training import sharding
from transformer.training.losses import output_cross_entropy
from transformer.training.optim import make_optimizer
from transformer.training.step import make_init, make_train_step

ROWS, LENGTH, HORIZON, CLASSES = 4, 8, 3, 5
SMALL = {"num_layers": 1, "d_model": 12, "d_ff": 20, "num_heads": 3, "max_positions": 64, "activation": "gelu_tanh"}
CLASSIFIER = {"family": "encoder_only", "num_classes": CLASSES}
SOUND = {"inputs": "frames", "channels": 6}
RECURRENT = {"family": "recurrent_encoder_decoder", "positions": "none"}
RECURRENT_DECODER = RECURRENT | {"family": "recurrent_language_model"}
BERT = {"family": "encoder_only", "tied": False, "output_transform": True, "output_bias": True}
MIXED = {"family": "decoder_only", "attention": ("window:2", "full"), "num_layers": 2}
# What is trained -> its task, and what its model is.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "translation": ("translation", {}),
    "speech recognition": ("speech_recognition", SOUND),
    "language model": ("language_model", MIXED | {"num_kv_heads": 1, "gated": True}),
    "scanned": ("language_model", MIXED | {"scan_layers": True}),
    "scanned, remat": ("language_model", MIXED | {"scan_layers": True, "remat": "full"}),
    "remat of dots": ("language_model", MIXED | {"remat": "dots"}),
    "masked language model": ("masked_language_model", BERT),
    "text classification": ("text_classification", CLASSIFIER | {"pooling": "pooler"}),
    "image classification": ("image_classification", CLASSIFIER | {"inputs": "image", "image_size": (8, 8)}),
    "speech classification": ("speech_classification", CLASSIFIER | SOUND | {"pooling": "first"}),
    "forecasting": ("forecasting", {"family": "forecaster", "inputs": "series"}),
    "lstm": ("translation", RECURRENT),
    "gru": ("translation", RECURRENT | {"cell": "gru"}),
    "lstm decoder": ("language_model", RECURRENT_DECODER),
    "gru decoder": ("language_model", RECURRENT_DECODER | {"cell": "gru"}),
}


def task_of(kind: str, **model: Any) -> Any:
    name, changes = KINDS[kind]
    changes = {f"model.{key}": value for key, value in (SMALL | changes | {"dtype": "bfloat16"} | model).items()}
    config = override(Config(), {"task": name, "data.horizon": HORIZON, "data.max_len": 16, "mesh.data": 1} | changes)
    size: Any = SimpleNamespace(vocab_size=23, bos_id=1, eos_id=2)
    return TASKS[name](config, size if TASKS[name].reads_text else None)


def batch_of(task: Any) -> dict[str, Any]:
    """Random inputs and targets without padding."""
    rng = np.random.default_rng(0)
    ids = lambda *shape: jnp.asarray(rng.integers(3, 23, shape), jnp.int32)  # noqa: E731
    batch: dict[str, Any] = {}
    for name, like in task.example(ROWS, LENGTH).items():
        if name.endswith("lengths"):
            batch[name] = jnp.full_like(like, LENGTH)
        elif name.endswith(("segments", "positions")):
            batch[name] = jnp.broadcast_to(jnp.arange(LENGTH), like.shape) if "pos" in name else jnp.ones_like(like)
        else:
            batch[name] = ids(*like.shape) if like.dtype == jnp.int32 else jnp.asarray(rng.normal(size=like.shape))
    batch["targets"] = ids(ROWS, LENGTH)
    if task.config.task == "forecasting":
        batch["targets"] = jnp.asarray(rng.normal(size=(ROWS, HORIZON, 1)))
    rows = jnp.arange(ROWS)
    return batch | {"target_weights": jnp.ones((ROWS, LENGTH)), "labels": rows, "example_ids": rows}


class Product(NamedTuple):
    operands: tuple[str, ...]  # types
    result: str
    place: str


PRODUCT = re.compile(r"stablehlo\.(?:dot_general|dot|convolution)\b.* : \((.*?)\) -> (.*?) loc\((.*?)\)$", re.M)


def products(compiled: Any, *arguments: Any) -> list[Product]:
    """The products of a compiled function, in the order of its program."""
    text = compiled.trace(*arguments).lower(lowering_platforms=("tpu",)).as_text(debug_info=True)
    places = dict(re.findall(r'^(#loc\d*) = loc\("([^"]*)"', text, re.M))
    types = lambda shapes: tuple(re.findall(r"x([a-z]+\d+)>", shapes))  # noqa: E731
    found = [Product(types(x), *types(y), places.get(at, at)) for x, y, at in PRODUCT.findall(text)]
    assert len(found) == len(re.findall(r"= \"?stablehlo\.(?:dot_general|dot|convolution)\b", text)) > 0
    return found


def others(compiled: Any, *arguments: Any) -> list[Product]:
    """Those with an operand of another type than bfloat16."""
    return [product for product in products(compiled, *arguments) if product.operands != ("bf16", "bf16")]


def decoded(task: Any, params: Any, batch: dict[str, Any]) -> Any:
    begun = task.begin(params, batch.get("inputs", batch["targets"]), jnp.full(ROWS, LENGTH))
    return begun.step(begun.first_tokens[:, None], begun.first_positions[:, None], begun.state)


@pytest.mark.parametrize("kind", KINDS)
def test_every_product_is_in_bfloat16(kind: str) -> None:
    """Of the step of training, of evaluation, and of a prompt and a step of decoding."""
    task = task_of(kind)
    batch = batch_of(task)
    layout = sharding.make_layout(task.config, axes=task.axes)
    optimizer = make_optimizer(task.config, task.axes)
    state: Any = jax.eval_shape(make_init(task.init, optimizer, layout), np.uint32(0))
    # What is kept from step to step is in float32.
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    assert not others(make_train_step(task.loss, optimizer, layout), state, batch, np.uint32(0))
    assert not others(jax.jit(task.row_metrics), state.params, batch)
    if isinstance(task, WritingTask):
        assert not others(jax.jit(functools.partial(decoded, task)), state.params, batch)


def test_every_family_front_and_cell_is_among_the_kinds() -> None:
    models = [task_of(kind).model_config for kind in KINDS]
    assert {model.family for model in models} == set(FAMILIES)
    assert {model.inputs for model in models} == set(EMBEDDERS)
    assert {model.cell for model in models} == set(CELLS)


@pytest.mark.parametrize("positions", POSITIONS)
def test_position_encodings_leave_products_in_bfloat16(positions: str) -> None:
    task = task_of("language model", num_layers=1, attention=("full",), positions=positions)
    params, batch = jax.eval_shape(task.init, jax.random.key(0)), batch_of(task)
    assert not others(jax.jit(jax.grad(lambda params: task.loss(params, batch)["loss"][0])), params)


@pytest.mark.parametrize(
    ("backend", "biased"),
    [
        *((name, False) for name in sorted(set(BACKENDS) - {"fused"})),
        *((name, True) for name in ("banded", "blockwise", "dense")),
    ],
)
def test_backends_multiply_in_bfloat16(backend: str, biased: bool) -> None:
    """Windows, grouped heads, values of another width, a bias with weights; a kernel takes the arrays as they are.
    Scores and sums of values are in float32."""
    q, k, v = (jnp.zeros((2, 40, heads, width), jnp.bfloat16) for heads, width in ((4, 6), (2, 6), (2, 10)))

    def attended(q: Any, k: Any, v: Any, table: Any) -> Any:
        score = T5Bias(table, causal=True) if biased else None
        return attend(q, k, v, causal=True, window=3, score=score, backend=backend).sum().astype(jnp.float32)

    arrays = q, k, v, jnp.zeros((32, 4))
    assert not others(jax.jit(jax.grad(attended, (0, 1, 2, 3))), *arrays)
    assert {product.result for product in products(jax.jit(attended), *arrays)} == {"f32"}


# --- The numbers


def loss_and_gradient(task: Any, params: Any, batch: Any) -> tuple[float, Any]:
    seed, step = jnp.uint32(0), jnp.int32(0)  # with dropout: its masks are the same in both types
    loss, gradient = jax.jit(jax.value_and_grad(lambda p: task.loss(p, batch, seed, step)["loss"][0]))(params)
    return float(loss), jax.tree.map(np.asarray, gradient)


@pytest.mark.parametrize("kind", ["text classification", "forecasting", "lstm decoder", "gru decoder"])
def test_gradients_are_those_of_float32_to_eight_bits(kind: str) -> None:
    half, whole = task_of(kind), task_of(kind, dtype="float32")
    random, batch = np.random.default_rng(1), batch_of(half)
    shapes = jax.eval_shape(half.init, jax.random.key(0))
    params = jax.tree.map(lambda x: jnp.asarray(random.normal(size=x.shape) * 0.3, jnp.float32), shapes)
    loss, gradient = loss_and_gradient(half, params, batch)
    exact_loss, exact = loss_and_gradient(whole, params, batch)
    assert 0 < abs(loss / exact_loss - 1) < 0.01
    pairs = list(zip(jax.tree.leaves(gradient), jax.tree.leaves(exact), strict=True))
    assert {x.dtype for x, _ in pairs} == {np.dtype("float32")}
    error = sum(np.linalg.norm(x - y) ** 2 for x, y in pairs)
    assert error <= 0.03**2 * sum(np.linalg.norm(y) ** 2 for _, y in pairs)


def test_the_loss_adds_in_float32() -> None:
    """Only what is added is rounded, not the sum: over 3,000 tokens. The types of the results are read from the
    program, because a CPU may leave the rounding of a result out."""
    rows, length, vocabulary = 6, 500, 5
    random = np.random.default_rng(0)
    x = jnp.asarray(random.normal(size=(rows, length, 3)) + 2, jnp.bfloat16)
    table, bias = jnp.asarray(random.normal(size=(vocabulary, 3)), jnp.float32), jnp.zeros(vocabulary)
    targets, weights = jnp.asarray(random.integers(0, vocabulary, (rows, length)), jnp.int32), jnp.ones((rows, length))
    compute = jax.jit(
        jax.value_and_grad(lambda *output: output_cross_entropy(output[0], *output[1:], targets, weights)["loss"][0],
                           (0, 1, 2))
    )  # fmt: skip
    # Of the logits, of the table's gradient, of the features' gradient.
    assert [product.result for product in products(compute, x, table, bias)] == ["f32", "f32", "bf16"]
    loss, (of_x, of_table, of_bias) = compute(x, table, bias)
    assert (of_x.dtype, of_table.dtype, of_bias.dtype) == (jnp.bfloat16, jnp.float32, jnp.float32)
    wide = np.asarray(x, np.float64).reshape(-1, 3)
    logits = wide @ np.asarray(table.astype(jnp.bfloat16), np.float64).T
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    hit = np.eye(vocabulary)[np.asarray(targets).ravel()]
    assert float(loss) == pytest.approx(-np.log((shares * hit).sum(-1)).sum(), rel=1e-5)
    expected = (shares - hit).T @ wide
    assert np.linalg.norm(of_table - expected) < 2**-9 * np.linalg.norm(expected)
    np.testing.assert_allclose(of_bias, (shares - hit).sum(0), rtol=1e-3, atol=1e-2)


BASE = DECODER | {"model.attention": ["window:2"], "model.dtype": "bfloat16", "mesh.data": 1}
BASE |= {"optimizer.warmup_steps": 1, "optimizer.learning_rate": 1e-2}
RECURRENCE = {"model.attention": ("full",), "optimizer.learning_rate": 5e-2} | {
    f"model.{key}": value for key, value in RECURRENT_DECODER.items()
}


STEPS = 30


@functools.cache
def trained(steps: int, **changes: Any) -> tuple[Any, np.ndarray]:
    """The parameters after some steps over one batch, and the loss of each step."""
    state, lines = train(tiny(**BASE | changes), steps, lambda _: copied(0))
    return jax.device_get(state.params), lines


@pytest.mark.parametrize("recurrent", [False, True])
def test_a_bfloat16_model_learns_what_a_float32_model_learns(recurrent: bool) -> None:
    changes = RECURRENCE if recurrent else {}
    (_, half), (_, whole) = trained(STEPS, **changes), trained(STEPS, **changes | {"model.dtype": "float32"})
    assert np.any(half != whole)
    np.testing.assert_allclose(half, whole, rtol=0.02)
    assert half[-1] < 0.9 * half[0]


@pytest.mark.parametrize(
    "changes",
    [{"model.remat": "full"}, pytest.param({"model.remat": "dots"}, marks=pytest.mark.slow), {"mesh.accumulate": 4}],
)
def test_what_saves_memory_changes_only_the_rounding(changes: dict[str, Any]) -> None:
    (params, lines), (again, other_lines) = trained(STEPS), trained(STEPS, **changes)
    np.testing.assert_allclose(other_lines, lines, rtol=5e-3)
    pairs = list(zip(jax.tree.leaves(params), jax.tree.leaves(again), strict=True))
    assert sum(np.linalg.norm(x - y) ** 2 for x, y in pairs) < 0.02**2 * sum(np.linalg.norm(x) ** 2 for x, _ in pairs)
