"""Why are scores divided by the square root of the width of a head?

Hypothesis: without it, scores of wide heads have a deviation of sqrt(K), the softmax is nearly one-hot from the start,
its gradient small, and training slower or stuck.

Source: Vaswani et al. 2017, section 3.2.1 and its footnote 4 (arXiv 1706.03762).
"""

from typing import Any

from experiments.lab import measures
from transformer.config import Config

BASE = "configs/quantities.py"
REFERENCE = "scaled"  # the paper's
PRIMARY = "test/loss"
MATTERS = 0.01  # nats a token: what is less does not matter
MAIN_METRICS = ["test/entropy_at_start", "test/entropy", "test/gradient_at_start"]


def variants(base: Config) -> dict[str, dict[str, Any]]:
    """With the division and without."""
    return {REFERENCE: {"model.scale_attention": True}, "unscaled": {"model.scale_attention": False}}


def measure(trained: Any) -> dict[str, Any]:
    """What is measured of every model, and how sharp its attention is."""
    found = measures.measure(trained)
    return found | {"metrics": found["metrics"] | sharpness(trained)}


def sharpness(trained: Any) -> dict[str, float]:
    """On the first batch of the test split, with the parameters that the run began with: the entropy of attention (the
    mean over heads, in nats; the logarithm of the length where all is seen alike) and the norm of the loss's gradient
    with respect to the matrices of queries and keys. And the entropy after training."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from transformer.analysis.attention import watch
    from transformer.analysis.heads import head_statistics
    from transformer.training import optim, sharding, step

    task = trained.task
    batch = jax.tree.map(jnp.asarray, next(iter(task.batches(trained.source, "test").evaluation(task.limit))))
    layout = sharding.make_layout(trained.config, axes=task.axes)
    start = step.make_init(task.init, optim.make_optimizer(trained.config, task.axes), layout)(
        np.uint32(trained.config.seed)
    ).params

    @jax.jit
    def watched(params: Any) -> Any:
        return watch(task.model, params, *task.arguments(batch))[1]

    def entropy(params: Any) -> float:
        kinds = [found for stack in jax.device_get(watched(params)).values() for found in stack.values()]
        return float(np.mean([head_statistics(found).entropy.mean() for found in kinds]))

    def loss(params: Any) -> Any:
        total, weight = task.loss(params, batch)["loss"]
        return total / weight

    leaves = jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(loss))(start))
    squares = [jnp.sum(x**2) for path, x in leaves if any(getattr(key, "key", "") in ("query", "key") for key in path)]
    return {
        "test/entropy_at_start": entropy(start),
        "test/entropy": entropy(trained.params),
        "test/gradient_at_start": float(jnp.sqrt(sum(squares))),
    }
