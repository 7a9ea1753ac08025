"""One training step: the same numbers on every version, and on any number of devices."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training.tiny import Made, tiny
from transformer.accelerators import hlo
from transformer.config import Config, override
from transformer.tasks import TASKS
from transformer.training import losses, sharding
from transformer.training.optim import make_optimizer
from transformer.training.step import State, in_turn, make_eval_step, make_init, make_train_step

VOCABULARY = SimpleNamespace(vocab_size=23)
SMALL = {"num_layers": 2, "d_model": 12, "d_ff": 20, "num_heads": 3, "attention": ["window:2", "full"]}


def _config(**changes: Any) -> Config:
    changes = {f"model.{key}": value for key, value in SMALL.items()} | changes
    return override(Config(), changes | {"optimizer.warmup_steps": 3, "optimizer.learning_rate": 3e-3})


def _ragged(seed: int, rows: int = 8, length: int = 7) -> dict[str, jax.Array]:
    """Pairs of 0 to 7 tokens in whole batches of 8 rows; the first two rows are padding only."""
    random = np.random.default_rng(seed)
    batch: dict[str, np.ndarray] = {}
    for ids, side in (("inputs", "input"), ("targets", "target")):
        lengths = random.integers(1, length + 1, rows)
        lengths[:2] = 0
        segments = (np.arange(length) < lengths[:, None]).astype(np.int32)
        batch[ids] = random.integers(3, 23, (rows, length)).astype(np.int32) * segments
        batch[f"{side}_segments"] = segments
        batch[f"{side}_positions"] = np.arange(length, dtype=np.int32) * segments
    shifted = np.concatenate([np.ones((rows, 1), np.int32), batch["targets"][:, :-1]], axis=1)
    batch["target_inputs"] = shifted * batch["target_segments"]
    return {key: jnp.asarray(value) for key, value in batch.items()}


def _train(config: Config, devices: int, steps: int) -> tuple[State, list[dict[str, float]]]:
    task = TASKS[config.task](config, VOCABULARY)  # type: ignore[arg-type]
    layout = sharding.make_layout(override(config, {"mesh.data": devices}), axes=task.axes)
    optimizer = make_optimizer(config, task.axes)
    seed = jnp.asarray(config.seed, jnp.uint32)
    state = make_init(task.init, optimizer, layout)(seed)
    step = make_train_step(task.loss, optimizer, layout)
    metrics = []
    for number in range(steps):
        state, found = step(state, _ragged(number), seed)
        metrics.append(losses.means(found))
    return state, metrics


# Of jax 0.10.2 on Python 3.11; jax 0.12.0 gives the same to 1e-5. They change only with the mathematics: of the
# initialisation, the layers, the dropout masks, the loss or the optimizer. Then say in the commit which, and why.
GOLDEN: dict[str, tuple[list[float], dict[str, float]]] = {
    "encoder_decoder": (
        [3.4849955, 3.5813141],
        {
            "embedder/table": 66.032641,
            "encoder/layer_0/self_attention/query/kernel": 35.373508,
            "encoder/layer_1/feed_forward/inner/bias": 0.03263878,
            "encoder/layer_1/feed_forward_residual/norm/scale": 11.997297,
            "decoder/layer_0/cross_attention/value/kernel": 35.771384,
            "decoder/layer_1/self_attention/out/kernel": 36.634257,
            "decoder/layer_1/cross_attention_residual/norm/bias": 0.018486855,
            "decoder/layer_1/feed_forward/outer/bias": 0.021450001,
        },
    ),
    "decoder_only": (
        [3.535657, 3.7578664],
        {
            "embedder/table": 65.978602,
            "decoder/layer_0/self_attention/key/kernel": 36.766579,
            "decoder/layer_0/feed_forward/inner/bias": 0.040493992,
            "decoder/layer_1/self_attention_residual/norm/scale": 12.00223,
            "decoder/layer_1/feed_forward/outer/bias": 0.019707142,
        },
    ),
}


@pytest.mark.parametrize("family", ["encoder_decoder", "decoder_only"])
def test_golden_step(family: str) -> None:
    task = "translation" if family == "encoder_decoder" else "language_model"
    config = _config(**{"model.family": family, "task": task})
    state, metrics = _train(config, 1, 2)
    sums = {
        jax.tree_util.keystr(path, simple=True, separator="/"): float(np.abs(np.asarray(leaf, np.float64)).sum())
        for path, leaf in jax.tree_util.tree_flatten_with_path(state.params["params"])[0]
    }
    expected_losses, expected_sums = GOLDEN[family]
    assert [line["loss"] for line in metrics] == pytest.approx(expected_losses, rel=1e-5)
    assert {name: sums[name] for name in expected_sums} == pytest.approx(expected_sums, rel=1e-5)


@pytest.mark.slow
def test_the_same_on_one_and_on_eight_devices() -> None:
    """Ragged rows, rows of padding only (whole devices of them), dropout and label smoothing; five steps."""
    config = _config(**{"model.dropout": 0.3, "model.positions": "learned", "model.num_layers": 1, "data.max_len": 7})
    one, lines = _train(config, 1, 5)
    eight, others = _train(config, 8, 5)
    assert len(jax.tree.leaves(eight.params)[0].sharding.device_set) == 8
    for line, other in zip(lines, others, strict=True):
        assert other == pytest.approx(line, rel=1e-6)
    for left, right in zip(jax.tree.leaves(one.params), jax.tree.leaves(eight.params), strict=True):
        np.testing.assert_allclose(left, right, atol=2e-5)


def test_the_loss_is_per_token_of_the_whole_batch_and_not_per_device() -> None:
    """A mean over devices of their means would weigh a device with one token as much as one with seven."""
    config = _config(**{"model.num_layers": 1})
    task = TASKS["translation"](config, VOCABULARY)  # type: ignore[arg-type]
    params, batch = jax.jit(task.init)(jax.random.key(0)), _ragged(0)
    loss = jax.jit(lambda row: task.loss(params, row)["loss"])
    rows = [{key: value[i : i + 1] for key, value in batch.items()} for i in range(8)]
    total: Any = None
    for row in rows:
        pair = loss(row)
        total = pair if total is None else jax.tree.map(jnp.add, total, pair)
    layout = sharding.make_layout(override(config, {"mesh.data": 8}))
    whole = make_eval_step(task.loss, layout)(params, batch)["loss"]
    assert float(total[1]) == float(whole[1]) == (batch["target_segments"] > 0).sum()
    assert float(total[0]) == pytest.approx(float(whole[0]), rel=1e-5)
    each = make_eval_step(task.row_metrics, layout)(params, batch)["loss"]
    np.testing.assert_allclose(each[0], [float(loss(row)[0]) for row in rows], rtol=1e-5)
    np.testing.assert_array_equal(each[1], (batch["target_segments"] > 0).sum(axis=1))


def test_what_stands_in_padding_changes_nothing() -> None:
    task = TASKS["translation"](_config(**{"model.num_layers": 1}), VOCABULARY)  # type: ignore[arg-type]
    params, batch = jax.jit(task.init)(jax.random.key(0)), _ragged(0)
    loss = jax.jit(lambda batch: task.loss(params, batch, jnp.uint32(0), jnp.int32(3))["loss"][0])
    sides = {"inputs": "input_segments", "targets": "target_segments", "target_inputs": "target_segments"}
    other = batch | {ids: jnp.where(batch[segments] > 0, batch[ids], 17) for ids, segments in sides.items()}
    assert float(loss(batch)) == float(loss(other))


def test_the_state_is_donated_and_the_step_counts() -> None:
    config = _config(**{"model.num_layers": 1})
    task = TASKS["translation"](config, VOCABULARY)  # type: ignore[arg-type]
    layout = sharding.make_layout(override(config, {"mesh.data": 1}), axes=task.axes)
    optimizer = make_optimizer(config, task.axes)
    state = make_init(task.init, optimizer, layout)(jnp.uint32(0))
    after, _ = make_train_step(task.loss, optimizer, layout)(state, _ragged(0), jnp.uint32(0))
    assert int(after.step) == 1
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))


def test_a_step_depends_on_the_seed_and_the_step_by_its_dropout_alone() -> None:
    config = _config(**{"model.dropout": 0.3, "model.num_layers": 1})
    task = TASKS["translation"](config, VOCABULARY)  # type: ignore[arg-type]
    params, batch = jax.jit(task.init)(jax.random.key(0)), _ragged(0)
    loss = jax.jit(lambda seed, step: task.loss(params, batch, seed, step)["nll"][0])
    values = [float(loss(jnp.uint32(seed), jnp.int32(step))) for seed, step in [(0, 0), (0, 0), (0, 1), (1, 0)]]
    assert values[0] == values[1]
    assert len(set(values)) == 3


def _equations(jaxpr: Any) -> Iterator[Any]:
    """All equations, those of inner programs too."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, (list, tuple)) else (value,):
                if hasattr(inner, "jaxpr"):
                    yield from _equations(inner.jaxpr)
                elif hasattr(inner, "eqns"):
                    yield from _equations(inner)


def test_keys_of_dropout_are_not_computed_in_the_loops_over_elements() -> None:
    """Source and target have one length, so that XLA may fuse the masks of both sides. A fusion now has two operations
    on the words of keys. With keys by rounds of the masks' own mixer, one had 65 of them here and 120 with three
    layers, and LLVM took minutes to vectorise such loops."""
    program = hlo.read(Made(tiny(**{"mesh.data": 1})).compiled_text())
    fusions = {
        name
        for computation in program.computations.values()
        for one in computation.instructions.values()
        if one.fuses
        for name in one.called("calls")
    }
    mixed = [
        [one.results[0] for one in program.computations[name].instructions.values() if one.opcode == "xor"]
        for name in fusions
    ]
    assert max(sum(len(array.dims) == 3 for array in own) for own in mixed) >= 8, "no mask is in a fusion"
    assert max(sum(not array.dims for array in own) for own in mixed) <= 4


@pytest.mark.parametrize("family", [pytest.param("encoder_decoder", marks=pytest.mark.slow), "decoder_only"])
def test_bfloat16_computes_products_in_it_and_the_rest_in_float32(family: str) -> None:
    task = "translation" if family == "encoder_decoder" else "language_model"
    # A smooth activation: a unit of a ReLU that is near 0 may flip, and then the gradient is another by a tenth.
    smooth = {"model.activation": "gelu_tanh", "model.num_layers": 1}
    config = _config(**smooth, **{"model.family": family, "task": task, "model.dtype": "bfloat16"})
    half = TASKS[task](config, VOCABULARY)  # type: ignore[arg-type]
    params, batch = jax.jit(half.init)(jax.random.key(0)), _ragged(0)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}

    def loss(params: Any) -> jax.Array:
        return half.loss(params, batch, jnp.uint32(0), jnp.int32(0))["loss"][0]

    used: dict[str, set[str]] = {}
    for equation in _equations(jax.make_jaxpr(loss)(params).jaxpr):
        used.setdefault(equation.primitive.name, set()).update(
            str(x.aval.dtype) for x in equation.invars if hasattr(x.aval, "dtype")
        )
    assert used["dot_general"] == {"bfloat16"}
    for exact in ("exp", "log", "rsqrt"):  # softmax and loss, the loss's logarithm, the norms
        assert used[exact] == {"float32"}, exact
    gradients = jax.jit(jax.grad(loss))(params)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradients)} == {jnp.dtype("float32")}

    whole = TASKS[task](override(config, {"model.dtype": "float32"}), VOCABULARY)  # type: ignore[arg-type]
    exact_gradients = jax.jit(jax.grad(lambda p: whole.loss(p, batch, jnp.uint32(0), jnp.int32(0))["loss"][0]))(params)
    # 8 bits are 0.4 % an operation; queries' and keys' gradients are differences of near numbers, and lose more.
    pairs = list(zip(jax.tree.leaves(gradients), jax.tree.leaves(exact_gradients), strict=True))
    for left, right in pairs:
        assert np.linalg.norm(left - right) <= 0.2 * np.linalg.norm(right)
    error = sum(np.linalg.norm(left - right) ** 2 for left, right in pairs)
    assert error <= 0.05**2 * sum(np.linalg.norm(right) ** 2 for _, right in pairs)


def test_evaluation_has_one_batch_on_the_devices_and_makes_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two programs of eight simulated devices can wait for each other, and XLA then ends the process."""
    said: list[str] = []

    def makes() -> Iterator[Any]:
        for name in "abc":
            said.append(f"make {name}")
            yield name

    def begins(_: Any, batch: Any) -> Any:
        said.append(f"begin {batch}")
        return {"nll": batch}

    def waits(metrics: Any) -> Any:
        said.append(f"wait for {metrics['nll']}")
        return metrics

    monkeypatch.setattr(jax, "block_until_ready", waits)
    assert [metrics["nll"] for metrics in in_turn(begins, None, makes())] == ["a", "b", "c"]
    begun = ["make a", "begin a", "make b", "wait for a", "begin b", "make c", "wait for b", "begin c", "wait for c"]
    assert said == begun
