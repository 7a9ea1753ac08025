"""GPT-2 of 124 M parameters on the device: the step's time and MFU, its memory; PyTorch's; and decoding."""

import importlib.util
import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from experiments.lab.card.device import compiled_bytes, is_toy, median, milliseconds, peak_bytes, share, sheet
from experiments.lab.timing import columns
from experiments.lab.workers import one_line
from transformer.accelerators import program, roofline
from transformer.accelerators.compiling import seen
from transformer.config import Config, load_file, override
from transformer.decoding import greedy
from transformer.model.tokens import Tokens
from transformer.tasks.untrained import task_of
from transformer.training import optim, sharding, step
from transformer.training.flops import step_flops

ROOT = Path(__file__).parent.parent.parent.parent
CONFIG = ROOT / "configs" / "gpt2_124m.py"
ROWS, LENGTH = 32, 1024
DOCUMENTS = 4  # of a packed row, on average
TOY = {
    "model.num_layers": 2, "model.d_model": 32, "model.d_ff": 64, "model.num_heads": 2, "model.vocab_size": 97,
    "model.max_positions": 64, "data.max_len": 64, "data.buckets": (64,), "data.vocab_size": 97,
}  # fmt: skip
TOY_ROWS, TOY_LENGTH = 2, 64
# Name -> how it differs from the config, in the order of their value.
STEPS: dict[str, dict[str, Any]] = {
    "packed rows": {},
    "one text": {"data.name": "text", "data.source": ""},
    "packed rows, layers scanned": {"model.scan_layers": True, "model.remat": "dots"},
}
WRITTEN, PROMPT, BATCHES = 256, 16, (1, 8, 64)


def config_of(changes: dict[str, Any]) -> tuple[Config, int, int]:
    """The config with a change, in bfloat16, and the rows and the length of its batch."""
    toy = is_toy()
    rows, length = (TOY_ROWS, TOY_LENGTH) if toy else (ROWS, LENGTH)
    always = {"model.dtype": "bfloat16", "data.batch_tokens": rows * length, "mesh.accumulate": 1, "mesh.data": 1}
    always |= {"optimizer.warmup_steps": 10}  # so that the loss of the few steps tells that they learn
    return override(load_file(CONFIG), always | (TOY if toy else {}) | changes), rows, length


def training() -> Iterator[dict[str, Any]]:
    """A row for each of STEPS: milliseconds of a step as training dispatches them, tokens a second, MFU by nanoGPT's
    count (None without a data sheet), the roofline of the compiled step and how many times as long the step took (None
    with the reason as "no_bound"), bytes by the compiler and the most that were held (None where an earlier program
    held more), the time of compiling, and the losses of the first and the last step."""
    held = 0
    for name, changes in STEPS.items():
        config, rows, length = config_of(changes)
        row = _step(config, rows, length)
        now = peak_bytes()
        row["peak_bytes"] = now if now is not None and now > held else None
        held = max(held, now or 0)
        yield {"what": f"ours, {name}"} | row
        jax.clear_caches()


def _step(config: Config, rows: int, length: int) -> dict[str, Any]:
    task = task_of(config)
    layout = sharding.make_layout(config, axes=task.axes)
    optimizer = optim.make_optimizer(config, task.axes)
    state = step.make_init(task.init, optimizer, layout)(np.uint32(0))
    shapes = sharding.shapes(state.params["params"])
    train_step = step.make_train_step(task.loss, optimizer, layout, 1, config.optimizer.max_spike)
    batch = layout.place(batch_of(task, rows, length))
    began = time.perf_counter()
    compiled = cast(Any, train_step).lower(state, batch, np.uint32(0)).compile()
    compiling = time.perf_counter() - began
    losses: list[Any] = []

    def start() -> Any:
        nonlocal state
        state, metrics = compiled(state, batch, np.uint32(0))
        losses.append(metrics["loss"])
        return metrics

    times = milliseconds(start, warm_up=3, groups=2 if is_toy() else 10, each=2 if is_toy() else 5)
    first, last = (float(total / weight) for total, weight in (losses[0], losses[-1]))
    flops, ms = step_flops(config, shapes, rows, length), median(times)
    return {
        "rows": rows,
        "length": length,
        **columns(times),
        "tokens_per_second": rows * length / ms * 1000,
        "model_flops": flops,
        "mfu": share(flops, ms / 1000, config.model.dtype),
        **beside(ms, compiled, config, length),
        "compiled_bytes": compiled_bytes(compiled),
        "compile_seconds": compiling,
        "parameters": sum(map(math.prod, shapes.values())),
        "first_loss": first,
        "last_loss": last,
    }


def beside(measured: float, compiled: Any, config: Config, length: int) -> dict[str, Any]:
    """The roofline beside measured milliseconds of a compiled step of this device."""
    nothing = {"bound_milliseconds": None, "times_bound": None}
    if (known := sheet()) is None:
        return nothing | {"no_bound": f"no data sheet of a device named {jax.devices()[0].device_kind!r}"}
    try:
        found = program.read(compiled.as_text(), 1, partial(seen, config, length))
        least = 1000 * roofline.bound(found, known).seconds
        return {"bound_milliseconds": least, "times_bound": measured / least, "no_bound": ""}
    except Exception as error:  # a program may be written as none was before: what was measured is kept
        return nothing | {"no_bound": one_line(error)}


def batch_of(task: Any, rows: int, length: int) -> dict[str, np.ndarray]:
    """Random tokens with the keys of the task's batches: packed rows are cut into documents at random."""
    rng, size = np.random.default_rng(0), task.model_config.vocab_size
    tokens = rng.integers(0, size, (rows, length + 1), dtype=np.int32)
    batch = {"target_inputs": tokens[:, :-1], "targets": tokens[:, 1:]}
    keys = set(jax.eval_shape(lambda: task.example(rows, length)))
    if "target_lengths" in keys:
        return batch | {"target_lengths": np.full(rows, length, np.int32)}
    begins = rng.random((rows, length)) < DOCUMENTS / length
    begins[:, 0] = True
    segments = begins.cumsum(axis=1, dtype=np.int32)
    places = np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length))
    start = np.maximum.accumulate(np.where(begins, places, 0), axis=1)
    return batch | {"target_positions": places - start, "target_segments": segments}


def torch_training() -> Iterator[dict[str, Any]]:
    """The rows of `torch_loop`, which runs in a process of its own without JAX, with MFU by the same count."""
    if importlib.util.find_spec("torch") is None:
        yield {"what": "PyTorch", "skipped": "torch is not installed"}
        return
    config, rows, length = config_of({})
    task = task_of(config)
    shapes = sharding.shapes(jax.eval_shape(task.init, jax.random.key(0))["params"])
    flops = step_flops(config, shapes, rows, length)
    model = config.model
    sizes = {
        "vocabulary": model.vocab_size, "layers": model.num_layers, "width": model.d_model, "heads": model.num_heads,
        "rows": rows, "length": length, "on_cpu": is_toy(),
    }  # fmt: skip
    command = [sys.executable, "-m", "experiments.lab.card.torch_loop", json.dumps(sizes)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if not line.startswith("{"):
            continue
        row = json.loads(line)
        if "milliseconds" in row:
            seconds = row["milliseconds"] / 1000
            row |= {"rows": rows, "length": length, "model_flops": flops, "mfu": share(flops, seconds, "bfloat16")}
            row |= {"tokens_per_second": rows * length / seconds}
        yield row
    if process.wait():
        raise RuntimeError(f"the PyTorch loop ended with exit code {process.returncode}: see log.txt")


def decoding() -> Iterator[dict[str, Any]]:
    """A row for each number of texts written at once, greedily: tokens a second, and the bytes a second at which the
    parameters are read, each once a token, which is what bounds it."""
    config, _, _ = config_of({})
    task = task_of(config)
    params = jax.jit(task.init)(jax.random.key(0))
    vocabulary = task.model_config.vocab_size
    size = sum(x.nbytes for x in jax.tree.leaves(params))
    written, batches = (4, (1, 3)) if is_toy() else (WRITTEN, BATCHES)
    for rows in batches:
        prompts = np.random.default_rng(0).integers(0, vocabulary, (rows, PROMPT), dtype=np.int32)
        write = jax.jit(partial(_written, task.model, vocabulary, written))
        began = time.perf_counter()
        compiled = write.lower(params, prompts).compile()
        compiling = time.perf_counter() - began
        times = milliseconds(partial(compiled, params, prompts), warm_up=1, groups=3, each=1)
        seconds = median(times) / 1000
        yield {
            "what": "decoding", "rows": rows, "written": written, **columns(times), "compile_seconds": compiling,
            "tokens_per_second": rows * written / seconds, "bytes_per_second": size * written / seconds,
        }  # fmt: skip


def _written(model: Any, vocab_size: int, written: int, params: Any, prompts: Any) -> Any:
    """[rows, written] tokens after the prompts; no token ends a text."""
    rows = prompts.shape[0]
    state = model.apply(params, rows, PROMPT + written, method="start")
    places = jnp.broadcast_to(jnp.arange(PROMPT - 1), (rows, PROMPT - 1))
    _, state = model.apply(params, prompts[:, :-1], Tokens(places, jnp.ones_like(places)), state, method="step")

    def one(tokens: Any, positions: Any, state: Any) -> Any:
        logits, state = model.apply(params, tokens, Tokens(positions, jnp.ones_like(positions)), state, method="step")
        return logits[:, -1], state

    return greedy(one, state, prompts[:, -1], jnp.full(rows, PROMPT - 1), written, None, vocab_size).tokens
