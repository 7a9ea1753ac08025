"""Schedules against their formulas, and what the optimizer does to which parameter."""

import math
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from transformer.config import Config, override
from transformer.tasks import TASKS
from transformer.training.optim import RECENT, SCHEDULES, current_rate, is_spike, make_optimizer, schedule
from transformer.training.sharding import path_of


def _config(**changes: Any) -> Config:
    return override(Config(), {f"optimizer.{key}": value for key, value in changes.items()})


@pytest.mark.parametrize(("d_model", "warmup"), [(512, 4000), (64, 100), (128, 1)])
def test_inverse_sqrt_is_equation_3(d_model: int, warmup: int) -> None:
    rate = schedule(_config(learning_rate=(d_model * warmup) ** -0.5, warmup_steps=warmup))
    for step in [1, 2, warmup // 2 + 1, warmup, warmup + 1, 10 * warmup, 100_000]:
        paper = d_model**-0.5 * min(step**-0.5, step * warmup**-1.5)
        assert float(rate(step - 1)) == pytest.approx(paper, rel=1e-6), step


def test_the_rates_of_the_papers_base_model() -> None:
    rate = schedule(_config(learning_rate=(512 * 4000) ** -0.5, warmup_steps=4000))
    assert float(rate(3999)) == pytest.approx(6.9877e-4, rel=1e-4)
    assert float(rate(99_999)) == pytest.approx(1.3975e-4, rel=1e-4)
    assert float(rate(0)) == pytest.approx(6.9877e-4 / 4000, rel=1e-4)
    assert jnp.argmax(rate(jnp.arange(10_000))) == 3999


def test_cosine_ends_at_its_share_of_the_peak() -> None:
    config = override(
        _config(schedule="cosine", learning_rate=2e-3, warmup_steps=100, final_rate=0.01), {"steps": 1000}
    )
    rates = np.asarray(schedule(config)(jnp.arange(1000)))  # of steps 1, ..., 1000
    assert rates[0] == pytest.approx(2e-5, rel=1e-6)
    assert np.all(np.diff(rates[:100]) > 0)
    assert np.all(np.diff(rates[99:]) < 0)
    assert rates.max() == rates[99] == pytest.approx(2e-3, rel=1e-6)
    assert rates[999] == pytest.approx(2e-5, rel=1e-6)
    assert rates[549] == pytest.approx(2e-5 + 0.5 * (1 + math.cos(math.pi / 2)) * 1.98e-3, rel=1e-3)


@pytest.mark.parametrize("name", list(SCHEDULES))
@pytest.mark.parametrize("warmup", [1, 10, 5000])
def test_rates_are_positive_and_finite_even_with_a_warmup_longer_than_the_run(name: str, warmup: int) -> None:
    rates = np.asarray(SCHEDULES[name](1e-3, warmup, 100, 0.1)(jnp.arange(100)))
    assert np.all((rates > 0) & (rates <= 1e-3 * (1 + 1e-6)))


AXES = {"kernel": ("in", "out"), "bias": ("out",), "scale": ("model",), "stacked_scale": ("layers", "model")}
PARAMS = {
    "kernel": jnp.full((2, 3), 2.0),
    "bias": jnp.full(3, 2.0),
    "scale": jnp.full(3, 2.0),
    "stacked_scale": jnp.full((5, 3), 2.0),
}


def _update(config: Config, gradients: Any) -> Any:
    optimizer = make_optimizer(config, AXES)
    return jax.device_get(optimizer.update(gradients, optimizer.init(PARAMS), PARAMS)[0])


def test_weight_decay_is_decoupled_and_on_matrices_only() -> None:
    """Without a gradient only the decay is left: -rate · decay · parameter, after Adam and not inside it."""
    config = _config(weight_decay=0.1, warmup_steps=1, learning_rate=0.01)
    updates = _update(config, jax.tree.map(jnp.zeros_like, PARAMS))
    np.testing.assert_allclose(updates["kernel"], -0.01 * 0.1 * 2.0, rtol=1e-6)
    assert not np.any(updates["bias"])
    assert not np.any(updates["scale"])
    assert not np.any(updates["stacked_scale"])  # of five layers that are scanned: two axes, and no matrix


def test_weight_decay_asks_for_the_names_of_the_axes() -> None:
    with pytest.raises(ValueError, match="give the names of the parameters' axes"):
        make_optimizer(_config(weight_decay=0.1))


def test_a_first_step_of_adam_is_the_rate_in_the_direction_of_the_gradients_sign() -> None:
    config = _config(warmup_steps=1, learning_rate=0.01, clip_norm=0.0)
    updates = _update(config, jax.tree.map(lambda x: -3.0 * jnp.ones_like(x), PARAMS))
    for update in updates.values():
        np.testing.assert_allclose(update, 0.01, rtol=1e-5)


def test_gradients_are_clipped_by_their_global_norm() -> None:
    """Adam hides a common factor, so eps is large here: then the update is nearly rate · gradient / eps."""
    gradients = {"kernel": jnp.full((2, 3), 4.0), "bias": jnp.full(3, -3.0), "scale": jnp.full(3, 0.5)}
    gradients |= {"stacked_scale": jnp.full((5, 3), 0.5)}
    norm = math.sqrt(6 * 16 + 3 * 9 + 18 * 0.25)
    large = {"warmup_steps": 1, "learning_rate": 1.0, "eps": 1e6}
    free = _update(_config(clip_norm=0.0, **large), gradients)
    clipped = _update(_config(clip_norm=0.5, **large), gradients)
    loose = _update(_config(clip_norm=2 * norm, **large), gradients)
    for name in PARAMS:
        np.testing.assert_allclose(clipped[name], free[name] * 0.5 / norm, rtol=1e-4)
        np.testing.assert_allclose(loose[name], free[name], rtol=1e-6)


def test_the_rate_is_that_of_the_last_update() -> None:
    """Three updates; a step that was skipped leaves the state, and so the rate, as it was."""
    config = _config(warmup_steps=10, learning_rate=0.01, max_spike=2.0, weight_decay=0.1)
    optimizer = make_optimizer(config, AXES)
    state, rates = optimizer.init(PARAMS), []
    for _ in range(3):
        rates.append(current_rate(config)(state))
        state = optimizer.update(PARAMS, state, PARAMS)[1]
    rates.append(current_rate(config)(state))
    assert rates == pytest.approx([1e-3, 1e-3, 2e-3, 3e-3])


def test_a_spike_is_told_by_the_mean_of_the_recent_norms() -> None:
    """The mean of all norms at first, then a mean that forgets; against a loop over the numbers."""
    optimizer = make_optimizer(_config(max_spike=3.0, clip_norm=0.1))  # clipping comes after
    update = jax.jit(lambda grads, state: optimizer.update(grads, state, grads)[1])
    spike = jax.jit(lambda state, norm: is_spike(state, norm, 3.0))
    state, norms = optimizer.init({"x": jnp.zeros(2)}), np.random.default_rng(0).uniform(1, 9, RECENT + 20)
    mean = 0.0
    for number, norm in enumerate(norms, start=1):
        state = update({"x": jnp.array([0.6, -0.8]) * norm}, state)
        mean = float(np.mean(norms[:number])) if number <= RECENT else mean + (norm - mean) / RECENT
        assert bool(spike(state, 3.01 * mean)) == (number >= RECENT)
        assert not spike(state, 2.99 * mean)


CHANGES: list[dict[str, Any]] = [
    {},
    {"weight_decay": 0.1},
    {"clip_norm": 0.0},
    {"weight_decay": 0.1, "max_spike": 3.0},
]


@pytest.mark.parametrize("changes", CHANGES)
def test_one_pass_is_the_chain_of_optax(changes: dict[str, Any]) -> None:
    """Seven updates; where one is not good, whatever its gradients, nothing changes."""
    config = _config(warmup_steps=3, learning_rate=0.05, **changes)
    settings, decays = config.optimizer, {name: name == "kernel" for name in PARAMS}
    pieces = [optax.clip_by_global_norm(settings.clip_norm)] if settings.clip_norm else []
    pieces.append(optax.scale_by_adam(settings.b1, settings.b2, settings.eps))
    pieces += [optax.add_decayed_weights(settings.weight_decay, decays)] if settings.weight_decay else []
    chain = optax.chain(*pieces, optax.scale_by_learning_rate(schedule(config)))
    ours = make_optimizer(config, AXES)
    update = jax.jit(ours.update)
    rng = np.random.default_rng(0)
    params, expected = PARAMS, PARAMS
    state, their_state = ours.init(params), chain.init(params)
    for number in range(7):
        size = 10.0 ** (number % 3 - 1)
        gradients = {name: jnp.asarray(rng.normal(size=x.shape) * size) for name, x in PARAMS.items()}
        good = number != 3
        given = gradients if good else {name: x * jnp.inf for name, x in gradients.items()}
        before = state
        updates, state = update(jax.tree.map(lambda x: 4 * x, given), state, params, scale=0.25, good=good)
        params = optax.apply_updates(params, updates)
        if not good:
            jax.tree.map(np.testing.assert_array_equal, state, before)
            continue
        their_updates, their_state = chain.update(gradients, their_state, expected)
        expected = optax.apply_updates(expected, their_updates)
        for name, x in params.items():
            np.testing.assert_allclose(x, expected[name], rtol=2e-6, err_msg=f"{name}, update {number}")
    own = state[1:] if settings.max_spike else state
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5), own, their_state)


def test_without_the_key_the_state_is_that_of_older_checkpoints() -> None:
    paths = jax.tree_util.tree_flatten_with_path(make_optimizer(_config()).init(PARAMS))[0]
    assert len(paths) == 2 * len(PARAMS) + 2  # moments, Adam's count and the schedule's
    assert len(jax.tree.leaves(make_optimizer(_config(max_spike=3.0)).init(PARAMS))) == len(paths) + 2


KINDS = sorted({(family, task.inputs, name) for name, task in TASKS.items() for family in task.families})
FIRST = {(family, inputs): name for family, inputs, name in reversed(KINDS)}  # a task of each family and embedder


@pytest.mark.parametrize("scanned", [False, True])
@pytest.mark.parametrize(("family", "inputs"), FIRST)
def test_weight_decay_is_of_matrices_and_tables_whatever_the_model(family: str, inputs: str, scanned: bool) -> None:
    """Every parameter of every family and embedder, by its name."""
    task = TASKS[FIRST[family, inputs]]
    recurrent = family.startswith("recurrent")
    model = {"family": family, "inputs": inputs, "num_layers": 2, "d_model": 8, "d_ff": 16, "num_heads": 2}
    model |= {"num_classes": 3 * task.has_classes, "norm_type": "layer", "scan_layers": scanned and not recurrent}
    model |= {"positions": "none"} if recurrent else {"positions": "learned", "attention_bias": True}
    config = override(Config(), {"task": FIRST[family, inputs]} | {f"model.{key}": v for key, v in model.items()})
    config = override(config, {"data.max_len": 64, "data.buckets": (64,), "optimizer.weight_decay": 0.5})
    config = override(config, {"optimizer.warmup_steps": 1, "optimizer.learning_rate": 1.0})
    made = task(config, SimpleNamespace(vocab_size=24) if task.reads_text else None)
    params = jax.tree.map(lambda x: jnp.ones(x.shape), jax.eval_shape(made.init, jax.random.key(0)))
    optimizer = make_optimizer(config, made.axes)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    vectors = ("bias", "scale", "first", "output_bias")
    seen = set()
    for path, update in jax.tree_util.tree_leaves_with_path(updates):
        name = path_of(path)
        matrix = not name.endswith(vectors)
        np.testing.assert_allclose(update, -0.5 if matrix else 0.0, err_msg=name)
        seen.add((matrix, update.ndim))
    assert {True, False} == {matrix for matrix, _ in seen}
    assert ((False, 2) in seen) == (scanned and not recurrent), "biases and scales of stacked layers"
