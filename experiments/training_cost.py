"""What does a training step cost, beside what a user would write instead?

Hypothesis: a step takes at most as long as the same model's in eager PyTorch, and two thirds of the time of plain Flax;
and most of it are the products with the weights, which no implementation can leave out.

(a) nanoGPT's recipe for a CPU: 4 layers of 128, 12 rows of 64 characters. (b) 6 layers of 384, 8 rows of 256, dropout
0.1. (c) The model of configs/multi30k.py: 3 + 3 layers of 256, 128 rows of 16 tokens, dropout and label smoothing.
Each kind trains on one batch of random tokens in float32: forward, backward, the norm of the gradients, AdamW. Plain
Flax is Linen's own attention and layers; PyTorch has one matrix for queries, keys and values,
`scaled_dot_product_attention` and a fused AdamW, eager and by `torch.compile` (extra `bench`). Peers have no masks of
padding. The products alone are those with the weights, forward and backward. Kinds take turns in one process; times
are medians of rounds, ratios medians of the rounds' ratios.

Source: Karpathy 2022, nanoGPT, "I only have a macbook"; Vaswani et al. 2017, section 5 (arXiv 1706.03762).
"""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np

from experiments.lab.peers import Model
from experiments.lab.questions import FOLDER
from experiments.lab.render import Block, Table
from experiments.lab.timing import columns, ratio, take_turns

OURS, PRODUCTS = "ours", "products alone"
SECONDS = 60.0  # of rounds of a case
# Case -> the peers' model, the config of ours, and how ours differs from the config.
CASES: dict[str, tuple[Model, str, dict[str, Any]]] = {
    "a": (Model(4, 128, 512, 4, 64, 12, 65, 0.0, 0.0, encoder=False, bias=False), "gpt", {"model.norm_type": "layer"}),
    "b": (
        Model(6, 384, 1536, 6, 256, 8, 65, 0.1, 0.0, encoder=False, bias=False),
        "nanogpt_gpu",
        {"model.dropout": 0.1, "model.dtype": "float32", "data.batch_tokens": 2048},
    ),
    "c": (
        Model(3, 256, 512, 4, 16, 128, 6000, 0.2, 0.1, encoder=True, bias=True),
        "multi30k",
        {"data.buckets": (16,), "data.max_len": 16},
    ),
}


def cases() -> dict[str, dict[str, Any]]:
    """A case for each model."""
    return {name: {"name": name} for name in CASES}


def ours(model: Model, config_name: str, changes: dict[str, Any]) -> tuple[Callable[[], Any], int]:
    """A step of `transformer.train` on a batch without padding, and the number of parameters."""
    import jax

    from transformer.config import load_file, override
    from transformer.tasks.untrained import task_of, training_batch
    from transformer.training import optim, sharding, step

    vocabulary = {"data.vocab_size": model.vocabulary, "model.vocab_size": model.vocabulary, "mesh.data": 1}
    config = override(load_file(FOLDER.parent / "configs" / f"{config_name}.py"), vocabulary | changes)
    task = task_of(config)
    layout = sharding.make_layout(config, axes=task.axes)
    optimizer = optim.make_optimizer(config, task.axes)
    state = step.make_init(task.init, optimizer, layout)(np.uint32(0))
    rng = np.random.default_rng(0)

    def drawn(name: str, shape: Any) -> np.ndarray:
        if name.endswith("lengths"):
            return np.full(shape.shape, model.length, shape.dtype)
        if name == "target_weights":
            return np.ones(shape.shape, shape.dtype)
        return rng.integers(4, model.vocabulary, shape.shape).astype(shape.dtype)

    shapes = training_batch(task, model.rows, model.length)
    batch = layout.place({name: drawn(name, shape) for name, shape in shapes.items()})
    train_step = step.make_train_step(task.loss, optimizer, layout, 1, config.optimizer.max_spike)
    compiled = cast(Any, train_step).lower(state, batch, np.uint32(0)).compile()
    held = [state]

    def run() -> Any:
        held[0], metrics = compiled(held[0], batch, np.uint32(0))
        return jax.block_until_ready(metrics["loss"])

    return run, sum(x.size for x in jax.tree.leaves(state.params))


def measure_case(name: str) -> list[dict[str, Any]]:
    """Rows {"case", "kind", "parameters", and those of `timing.columns`}."""
    from experiments.lab.peers import plain_flax, products

    model, config, changes = CASES[name]
    made = {
        OURS: ours(model, config, changes),
        "plain Flax": plain_flax.run(model),
        PRODUCTS: products.run(model),
    }
    if importlib.util.find_spec("torch") is not None:
        from experiments.lab.peers import torch_loop

        made["torch eager"] = torch_loop.run(model, False)
        try:
            compiled = torch_loop.run(model, True)
            compiled[0]()
            made["torch.compile"] = compiled
        except Exception as error:  # its compiler can raise anything, such as a C++ compiler that is missing
            print(f"torch.compile cannot be timed: {error}"[:200], file=sys.stderr)
    times = take_turns({kind: run for kind, (run, _) in made.items()}, SECONDS)
    return [{"case": name, "kind": kind, "parameters": made[kind][1], **columns(ms)} for kind, ms in times.items()]


def findings(rows: list[dict[str, Any]], folder: Path) -> tuple[list[str], list[Block]]:
    """The ratios in sentences, and a table of all times."""
    at = {(row["case"], row["kind"]): row for row in rows}
    names = list(dict.fromkeys(row["case"] for row in rows))
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    answer = []
    for kind in kinds:
        if kind not in (OURS, PRODUCTS):
            both = [name for name in names if (name, kind) in at]
            said = ", ".join(f"{ratio(at[name, kind], at[name, OURS]):.2f} in ({name})" for name in both)
            answer.append(f"Ours is so many times as fast as {kind}: {said}.")
    shares = ", ".join(f"{1 / ratio(at[name, OURS], at[name, PRODUCTS]):.0%} in ({name})" for name in names)
    answer.append(f"The products with the weights, alone, take this share of our step: {shares}.")
    body = [
        [f"({name})", *(f"{at[name, kind]['milliseconds']:,.1f}" if (name, kind) in at else "–" for kind in kinds)]
        for name in names
    ]
    sizes = [
        [f"({name})", *(f"{at[name, kind]['parameters']:,}" if (name, kind) in at else "–" for kind in kinds)]
        for name in names
    ]
    return answer, [
        Table(["case", *kinds], body, "Milliseconds of a training step."),
        Table(["case", *kinds], sizes, "Parameters; of the products alone, weights of the matrices."),
    ]
