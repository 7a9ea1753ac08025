"""python -m transformer.describe --config=configs/quantities.py [--config.key=value ...]

Prints the parameters by module, what a training step of the longest batch will use on the devices here (or on as many
as the config's mesh names), the attention backend of each layer with the reason, and `{"parameters": N}` as its last
line. Nothing is allocated. --mesh=fsdp=4,tensor=2 also prints how each parameter is sharded on such a mesh, and
the communication of the compiled step (compiled for that many simulated devices; --nocompile leaves it out).
--topology=v5e:4x4 (or h100:1x1x8: slices x hosts x devices) compiles the step for accelerators that need not be here:
memory of a device, attention's kernels, loops, what is sent and whether the devices compute meanwhile, and a lower
bound of the step's time. The compilers are the extras `tpu` and `gpu`.
"""

import dataclasses
import json
import math
import os
from collections import Counter
from typing import Any

from absl import flags

from transformer import command_line
from transformer.config import Config, head_width, override
from transformer.errors import UserError

FLAGS = flags.FLAGS
COMPILE_UP_TO = 64  # simulated devices; a program for more takes minutes to compile


def shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every parameter. A vocabulary not known before training counts as `data.vocab_size`."""
    import jax

    from transformer.tasks.untrained import task_of
    from transformer.training import sharding

    return sharding.shapes(jax.eval_shape(task_of(config).init, jax.random.key(0))["params"])


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


def step_figures(config: Config) -> dict[str, Any]:
    """What a training step of the longest batch uses. UserError: its rows do not divide over the mesh."""
    import jax

    from transformer.model.layers import key_heads, value_width
    from transformer.tasks.untrained import longest, task_of
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
        figures |= {"classes": config.model.num_classes or f"those of the data, counted here as {model.num_classes}"}
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


def backends(config: Config, layout: Any = None) -> list[str]:
    """The attention backend that trains each layer, for the longest batch, and the reason; a line each. The model is
    evaluated abstractly (shapes only) on the mesh of a layout (default: `layout_of`), and what its calls of attention
    choose is noted."""
    import flax.linen as nn
    import jax

    from transformer.model.attention import noted_choices
    from transformer.model.layers import MultiHeadAttention
    from transformer.platforms import target
    from transformer.tasks.untrained import longest, task_of

    if config.model.family.startswith("recurrent"):
        return [f"no self-attention: {config.model.cell} cells, one token after another"]
    config = override(config, {"model.scan_layers": False, "model.remat": "none"})  # so that each layer is called
    task = task_of(config)
    layout, (length, rows) = layout or layout_of(config, task), longest(config, task)
    rows //= config.mesh.accumulate
    platform, lines = "", list[str]()

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
        nonlocal platform
        with layout.tracing(), nn.intercept_methods(listen):
            platform = target()
            return task.model.apply(params, *task.arguments(batch))

    params = jax.eval_shape(task.init, jax.random.key(0))
    jax.eval_shape(run, params, jax.eval_shape(lambda: task.example(rows, length)))
    each = " of each variable" if task.inputs == "series" else f" of {length} tokens" if length > 1 else ""
    return [f"attention of {rows} rows{each} on {platform}:", *lines]


def on_mesh(config: Config, mesh: str) -> tuple[Config, int]:
    """The config with a mesh such as "data=2,fsdp=4" (other axes 1), and its number of devices."""
    kept = {"accumulate": config.mesh.accumulate, "dcn": config.mesh.dcn}
    sizes = dataclasses.asdict(command_line.parse_mesh(mesh))
    devices = math.prod(size for axis, size in sizes.items() if axis not in kept)
    return override(config, {f"mesh.{axis}": size for axis, size in (sizes | kept).items()}), devices


def placement(config: Config, devices: int) -> list[tuple[str, tuple[int, ...], str, int]]:
    """(path, shape, split, bytes on one device) of every parameter on `config.mesh`."""
    from transformer.tasks.untrained import task_of
    from transformer.training.sharding import make_layout

    layout = make_layout(config, devices, task_of(config).axes)

    rows = []
    for path, shape in shapes(config).items():
        over = [(axis, size) for axis, size in zip(layout.spec(path, shape), shape, strict=True) if axis]
        split = ", ".join(f"{axis}: {size}/{layout.mesh.shape[str(axis)]}" for axis, size in over)
        parts = math.prod(layout.mesh.shape[str(axis)] for axis, _ in over)
        rows.append((path, shape, split or "whole", 4 * math.prod(shape) // parts))
    return rows


def sent(config: Config) -> list[str]:
    """Lines on the collectives of the step compiled for `config.mesh` of devices here, and its memory."""
    from transformer.accelerators import compiling, program, report
    from transformer.tasks.untrained import longest, task_of
    from transformer.training.sharding import make_layout

    task = task_of(config)
    layout, (length, rows) = make_layout(config, axes=task.axes), longest(config, task)
    compiled = compiling.lower(config, task, layout, rows, length).compile()
    memory = compiled.memory_analysis()
    return [
        f"compiled for {layout.mesh.size} simulated devices, {rows} rows of {length} tokens:",
        *report.sent_lines(program.read(compiled.as_text(), layout.mesh.size).collectives),
        f"memory of a device: {memory.argument_size_in_bytes:,} bytes of arguments, {memory.temp_size_in_bytes:,} of "
        "work",
    ]


def compiled_for(config: Config, name: str) -> list[str]:
    """Lines on the step compiled for the accelerators of a topology such as v5e:4x4. UserError: it does not fit; the
    largest that does is named."""
    from transformer.accelerators import compiling, report, topologies
    from transformer.tasks.untrained import task_of
    from transformer.training.flops import step_flops

    topology, task = topologies.load(name), task_of(config)
    lines = backends(config, compiling.layout_on(config, task, topology))
    try:
        step = compiling.compile_step(config, topology)
    except compiling.TooLarge as failed:
        raise UserError(f"{failed}: {compiling.instead(config, topology, failed)}") from failed
    try:
        flops: float | None = step_flops(config, shapes(config), step.rows, step.length)
    except UserError:
        flops = None
    return [*lines, report.attention_line(step.program, lines), *report.step_lines(step, flops)]


def main() -> None:
    """Runs the command with its flags parsed."""
    from transformer.model.embedders import unused_parameters
    from transformer.tasks.untrained import task_of
    from transformer.training.sharding import kept_whole

    config = command_line.config_from_flags()
    devices = 1
    if FLAGS.mesh:
        config, devices = on_mesh(config, FLAGS.mesh)
    simulated = FLAGS.mesh and FLAGS.compile and FLAGS.topology is None and devices <= COMPILE_UP_TO
    if FLAGS.topology is not None:
        if not FLAGS.compile:
            raise UserError(f"--topology={FLAGS.topology!r} compiles the step, and --nocompile does not: leave one out")
        from transformer.accelerators import topologies

        topologies.parse(FLAGS.topology)
        topologies.prepare()
    elif simulated:  # before JAX looks for devices
        os.environ["JAX_PLATFORMS"] = "cpu"
        flag = f"--xla_force_host_platform_device_count={devices}"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}"
    rows = table(config)
    total = sum(count for _, count in rows)
    width = max(len(name) for name, _ in [*rows, ("module", 0)])
    lines = [f"{'module':{width}}  {'parameters':>14}   share"]
    for name, count in rows:
        lines.append(f"{name:{width}}  {count:14,}  {count / total:6.1%}")
    lines.append(f"{'total':{width}}  {total:14,}")
    task, held = task_of(config), shapes(config)
    if filling := unused_parameters(task.model_config, held):
        lines.append(f"of the total {filling:,} only fill tables of the vocabulary up: {total - filling:,} parameters")
    if FLAGS.topology is not None:
        lines += compiled_for(config, FLAGS.topology)
    else:
        figures = step_figures(config)
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
    if simulated:
        lines += sent(config)
    print(*lines, json.dumps({"parameters": total - filling}), sep="\n")


if __name__ == "__main__":
    command_line.define_config()
    flags.declare_key_flag("config")
    flags.DEFINE_string("mesh", None, "Sizes of the axes, such as data=2,fsdp=4: where each parameter lies.")
    flags.DEFINE_bool("compile", True, "With --mesh: compile the step, and count what the devices send.")
    flags.DEFINE_string("topology", None, "Compile for accelerators: v5e:4x4, or h100:1x1x8 (slices, hosts, devices).")
    command_line.run(main)
