"""python -m transformer.describe --config=configs/quantities.py [--config.key=value ...]

Prints the parameters by module, what a training step of the longest batch will use on the devices here (or on as many
as the config's mesh names), the attention backend of each layer with the reason, and `{"parameters": N}` as its last
line. Nothing is allocated. --mesh=fsdp=4,tensor=2 also prints how each parameter is sharded on such a mesh, and
the communication of the compiled step (compiled for that many simulated devices; --nocompile leaves it out).
--plan=h100 prints an estimate of the time, memory and bytes of a step on such accelerators.
"""

import dataclasses
import json
import math
import os
from collections import Counter
from typing import Any, cast

from absl import flags

from transformer import command_line
from transformer.config import Config, head_width, override
from transformer.errors import UserError

FLAGS = flags.FLAGS
COMPILE_UP_TO = 64  # simulated devices; a program for more takes minutes to compile


class _Vocabulary:
    """Replaces the tokenizer, which does not exist before training."""

    def __init__(self, config: Config):
        self.vocab_size = config.model.vocab_size or config.data.vocab_size


def shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every parameter. A vocabulary not known before training counts as `data.vocab_size`."""
    import jax

    from transformer.training import sharding

    return sharding.shapes(jax.eval_shape(task_of(config).init, jax.random.key(0))["params"])


def task_of(config: Config) -> Any:
    """The task of a config, without data."""
    from transformer.tasks import task_class

    return task_class(config.task)(config, cast(Any, _Vocabulary(config)))


def table(config: Config, depth: int = 2) -> list[tuple[str, int]]:
    """(module, parameters) for modules down to `depth`, in the order of the model."""
    counts: Counter[str] = Counter()
    for path, shape in shapes(config).items():
        counts["/".join(path.split("/")[:depth])] += math.prod(shape)
    return sorted(counts.items())


def layout_of(config: Config, task: Any) -> Any:
    """The layout of `config.mesh` over the devices here, or over as many as it names where they are more. UserError: it
    does not divide."""
    import jax

    from transformer.training.sharding import AXES, make_layout

    named = [size for axis in AXES if (size := getattr(config.mesh, axis)) != -1]
    fixed, here = math.prod(named), len(jax.devices())
    devices = here if len(named) < len(AXES) and fixed <= here else fixed
    return make_layout(dataclasses.replace(config, model=task.model_config), devices, task.axes)


def longest(config: Config, task: Any) -> tuple[int, int]:
    """(length, rows) of the longest batch; those of images and series count rows, and their length is 1."""
    from transformer.training.plan import longest_batch

    if task.inputs not in ("image", "series"):
        return longest_batch(config)
    data = dataclasses.replace(config.data, max_len=1, buckets=(1,))
    return longest_batch(dataclasses.replace(config, data=data))


def step_figures(config: Config) -> dict[str, Any]:
    """What a training step of the longest batch uses. UserError: its rows do not divide over the mesh."""
    import jax

    from transformer.model.layers import key_heads, value_width
    from transformer.training.sharding import check_rows

    task = task_of(config)
    model, layout, (length, rows) = task.model_config, layout_of(config, task), longest(config, task)
    check_rows(layout, [(rows, length)], config.mesh.accumulate)
    sizes = dict(layout.mesh.shape)
    figures = {"task": config.task, "model.family": model.family, "model.dtype": model.dtype}
    if model.family.startswith("recurrent"):
        figures |= {"model.cell": model.cell, "model.d_model": model.d_model}
    else:
        figures |= {"model.positions": model.positions, "model.d_model": model.d_model, "model.d_ff": model.d_ff}
        figures |= {"heads": model.num_heads, "heads of keys and values": key_heads(model)}
        figures |= {"width of a head": head_width(model), "width of its values": value_width(model)}
    if task.reads_text:
        figures |= {"vocabulary": model.vocab_size}
    if task.has_classes:
        figures |= {"classes": model.num_classes}
    return (
        figures
        | {
            "platform": jax.default_backend(),
            "mesh": ", ".join(f"{axis}={size}" for axis, size in sizes.items()),
            "rows": rows,
            "rows of a device at a time": rows // (sizes["data"] * sizes["fsdp"] * config.mesh.accumulate),
        }
        | ({"length": length, "positions of a step": rows * length} if length > 1 else {})
    )


def backends(config: Config) -> list[str]:
    """The attention backend that trains each layer, for the longest batch, and the reason; a line each. The model is
    evaluated abstractly (shapes only) on the mesh, and what its calls of attention choose is noted."""
    import flax.linen as nn
    import jax

    from transformer.model.attention import noted_choices
    from transformer.model.layers import MultiHeadAttention

    if config.model.family.startswith("recurrent"):
        return [f"no self-attention: {config.model.cell} cells, one token after another"]
    config = override(config, {"model.scan_layers": False, "model.remat": "none"})  # so that each layer is called
    task = task_of(config)
    layout, (length, rows) = layout_of(config, task), longest(config, task)
    rows //= config.mesh.accumulate
    lines: list[str] = []

    def listen(call: Any, arguments: Any, told: Any, context: Any) -> Any:
        module = context.module
        with noted_choices() as choices:
            out = call(*arguments, **told)
        if isinstance(module, MultiHeadAttention) and context.method_name == "heads":
            window = "full" if module.window is None else f"window {module.window}"
            place = " ".join(module.path).replace("layer_", "layer ").replace("_attention", "-attention")
            lines.extend(f"{place}: {window}, {found.backend}: {found.reason}" for found in choices)
        return out

    def run(params: Any, batch: Any) -> Any:
        with layout.tracing(), nn.intercept_methods(listen):
            return task.model.apply(params, *task.arguments(batch))

    params = jax.eval_shape(task.init, jax.random.key(0))
    jax.eval_shape(run, params, jax.eval_shape(lambda: task.example(rows, length)))
    each = " of each variable" if task.inputs == "series" else f" of {length} tokens" if length > 1 else ""
    return [f"attention of {rows} rows{each} on {jax.default_backend()}:", *lines]


def on_mesh(config: Config, mesh: str) -> tuple[Config, int]:
    """The config with a mesh such as "data=2,fsdp=4" (other axes 1), and its number of devices."""
    kept = {"accumulate": config.mesh.accumulate, "dcn": config.mesh.dcn}
    sizes = dataclasses.asdict(command_line.parse_mesh(mesh))
    devices = math.prod(size for axis, size in sizes.items() if axis not in kept)
    return override(config, {f"mesh.{axis}": size for axis, size in (sizes | kept).items()}), devices


def placement(config: Config, devices: int) -> list[tuple[str, tuple[int, ...], str, int]]:
    """(path, shape, split, bytes on one device) of every parameter on `config.mesh`."""
    from transformer.training.plan import FLOAT, shard_size
    from transformer.training.sharding import make_layout

    layout = make_layout(config, devices, task_of(config).axes)

    def split(path: str, shape: tuple[int, ...]) -> str:
        axes = layout.spec(path, shape)
        named = [
            f"{axis}: {size}/{layout.mesh.shape[str(axis)]}" for axis, size in zip(axes, shape, strict=True) if axis
        ]
        return ", ".join(named) or "whole"

    return [
        (path, shape, split(path, shape), FLOAT * shard_size(layout, path, shape))
        for path, shape in shapes(config).items()
    ]


def sent(config: Config) -> list[str]:
    """Lines on the collectives of the compiled step on `config.mesh`: by kind, with the bytes that a device sends."""
    import jax
    import numpy as np

    from transformer.training import optim, sharding, step
    from transformer.training.collectives import collectives
    from transformer.training.plan import longest_batch

    task = task_of(config)
    layout, optimizer = sharding.make_layout(config, axes=task.axes), optim.make_optimizer(config, task.axes)
    state = layout.abstract(jax.eval_shape(step.make_init(task.init, optimizer, layout), np.uint32(0)))
    spike = config.optimizer.max_spike
    train_step = cast(Any, step.make_train_step(task.loss, optimizer, layout, config.mesh.accumulate, spike))
    length, rows = longest_batch(config)
    sharding.check_rows(layout, [(rows, length)], config.mesh.accumulate)
    batch = jax.eval_shape(lambda: task.example(rows, length))
    written = batch["target_inputs"].shape if "target_inputs" in batch else (rows, length)
    batch["targets"] = jax.ShapeDtypeStruct(written, np.int32)
    compiled = train_step.lower(state, batch, jax.ShapeDtypeStruct((), np.uint32)).compile()
    kinds: dict[str, list[float]] = {}
    for one in collectives(compiled.as_text(), layout.mesh.size):
        count = kinds.setdefault(one.kind, [0, 0, 0])
        count[0], count[1], count[2] = count[0] + one.times, count[1] + one.sent_bytes, max(count[2], one.result_bytes)
    lines = [f"collectives of the compiled step, {rows} rows of {length} tokens; of one device:"]
    for kind, (times, size, largest) in sorted(kinds.items()):
        lines.append(f"  {kind:18} {times:6,.0f} times, {size:16,.0f} bytes sent, the largest result {largest:14,.0f}")
    memory = compiled.memory_analysis()
    return [
        *lines,
        f"  memory: {memory.argument_size_in_bytes:,} bytes of arguments, {memory.temp_size_in_bytes:,} of work",
    ]


def planned(config: Config, devices: int, name: str) -> list[str]:
    """Lines of the estimated step (`training.plan`)."""
    from transformer.training.plan import ACCELERATORS, make_plan
    from transformer.training.sharding import make_layout

    if name not in ACCELERATORS:
        raise UserError(f"--plan={name!r} is not known: choose one of {', '.join(ACCELERATORS)}")
    plan = make_plan(config, shapes(config), make_layout(config, devices, task_of(config).axes), ACCELERATORS[name])
    lines = [f"one step on {devices} x {name}, on paper (bytes and seconds are those of one device):"]
    return lines + [f"  {key:18} {value:12.4g}  {plan.formulae.get(key, '')}" for key, value in plan.figures.items()]


def main() -> None:
    """Runs the command with its flags parsed."""
    from transformer.model.embedders import unused_parameters
    from transformer.training.sharding import kept_whole

    config = command_line.config_from_flags()
    devices = 1
    if FLAGS.mesh:
        config, devices = on_mesh(config, FLAGS.mesh)
        if FLAGS.compile and devices <= COMPILE_UP_TO:  # before JAX looks for devices
            os.environ["JAX_PLATFORMS"] = "cpu"
            os.environ["XLA_FLAGS"] = (
                f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
            )
    rows, figures = table(config), step_figures(config)
    total = sum(count for _, count in rows)
    width = max(len(name) for name, _ in [*rows, ("module", 0)])
    lines = [f"{'module':{width}}  {'parameters':>14}   share"]
    for name, count in rows:
        lines.append(f"{name:{width}}  {count:14,}  {count / total:6.1%}")
    lines.append(f"{'total':{width}}  {total:14,}")
    task, held = task_of(config), shapes(config)
    if filling := unused_parameters(task.model_config, held):
        lines.append(f"of the total {filling:,} only fill tables of the vocabulary up: {total - filling:,} parameters")
    if "vocabulary" in figures and not config.model.vocab_size:
        lines.append(f"vocabulary: data.vocab_size={config.data.vocab_size}; a tokenizer may come out smaller")
    for name, figure in figures.items():
        lines.append(f"{name:26}  {figure:,}" if isinstance(figure, int) else f"{name:26}  {figure}")
    lines += kept_whole(layout_of(config, task), held)
    lines += backends(config)
    if FLAGS.mesh:
        placed = placement(config, devices)
        width = max(len(path) for path, *_ in placed)
        lines.append(f"{'parameter':{width}}  {'shape':>18}  {'bytes a device':>14}  split")
        for path, shape, split, size in placed:
            lines.append(f"{path:{width}}  {' x '.join(map(str, shape)):>18}  {size:14,}  {split}")
        lines.append(f"{'total':{width}}  {'':18}  {sum(size for *_, size in placed):14,}")
        if FLAGS.compile and devices <= COMPILE_UP_TO:
            lines += sent(config)
    if FLAGS.plan:
        lines += planned(config, devices, FLAGS.plan)
    print(*lines, json.dumps({"parameters": total - filling}), sep="\n")


if __name__ == "__main__":
    command_line.define_config()
    flags.declare_key_flag("config")
    flags.DEFINE_string("mesh", None, "Sizes of the axes, such as data=2,fsdp=4: where each parameter lies.")
    flags.DEFINE_bool("compile", True, "With --mesh: compile the step, and count what the devices send.")
    flags.DEFINE_string("plan", None, "The step on paper, on accelerators such as h100.")
    command_line.run(main)
