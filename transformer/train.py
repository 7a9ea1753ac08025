"""python -m transformer.train --config=configs/quantities.py --workdir=runs/first [--config.key=value ...]

Trains, and resumes where the workdir stopped. Writes config.json, tokenizer.json (of texts), metrics.jsonl, the same
numbers for `tensorboard --logdir=runs`, and checkpoints/. Several machines: the same command on each, with
--distributed, or with --coordinator=host:port --processes=N --process=0, 1, ...
"""

import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from absl import flags

from transformer import command_line
from transformer.config import MAY_CHANGE, Config, DataConfig, differences, from_dict, to_dict
from transformer.errors import UserError

FLAGS = flags.FLAGS


def claim(workdir: Path, config: Config, data: dict[str, Any]) -> None:
    """Writes config.json and data.json, or checks that those there are of the same run.

    Raises UserError, naming the keys, where anything but the steps, the mesh and the logging differs, and where the
    data does.
    """
    path = workdir / "config.json"
    if path.exists():
        changed = {
            key: values
            for key, values in differences(read_config(workdir), config).items()
            if key.split(".")[0] not in MAY_CHANGE
        }
        if changed:
            listed = "; ".join(f"{key} was {old!r} and is now {new!r}" for key, (old, new) in changed.items())
            raise UserError(f"{str(workdir)!r} holds a run of another config ({listed}): choose another --workdir")
        data_path = workdir / "data.json"
        if data_path.exists() and json.loads(data_path.read_text())["fingerprint"] != data["fingerprint"]:
            raise UserError(
                f"{str(workdir)!r} was trained on other data than {config.data.name!r} holds now (the fingerprints "
                "differ): bring back that data, or choose another --workdir"
            )
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        for name, content in (("data.json", json.dumps(data)), ("config.json", json.dumps(to_dict(config), indent=2))):
            part = workdir / f".{name}.part"
            part.write_text(content + "\n")
            part.replace(workdir / name)
    except OSError as error:
        raise UserError(f"cannot write to --workdir={str(workdir)!r}: {error.strerror}") from error


def read_config(workdir: Path) -> Config:
    """The config of the run in a workdir. UserError: there is none."""
    path = workdir / "config.json"
    if not path.is_file():
        raise UserError(f"{str(workdir)!r} holds no run (there is no config.json): train there first")
    try:
        return from_dict(json.loads(path.read_text()))
    except (ValueError, AttributeError, OSError) as error:
        raise UserError(f"{str(path)!r} is damaged ({error}): choose another --workdir") from error


def _data(config: Config, workdir: Path) -> DataConfig:
    """The data's part of the config, with the tokenizer of the run that this one begins from; that run may be gone
    once this one has begun. UserError: there is none."""
    if not config.init_from:
        return config.data
    own = workdir / "tokenizer.json"
    if not own.exists():
        read_config(Path(config.init_from))
        own = Path(config.init_from) / "tokenizer.json"
    return dataclasses.replace(config.data, tokenizer=str(own))


def train(
    config: Config, workdir: Path, quiet: bool = False, profile_steps: tuple[int, int] | None = None
) -> dict[str, float]:
    """Trains a run to `config.steps` and returns its validation metrics (means, not smoothed).

    Validation pairs longer than `data.max_len` are left out here, as they are in training; `transformer.evaluate`
    leaves out none. After SIGTERM it saves, and raises `training.loop.Stopped`.
    """
    from transformer.training.processes import alone_in, stop_signal

    with stop_signal() as stop, alone_in(workdir):
        return _train(config, workdir, quiet, stop, profile_steps)


def _train(
    config: Config, workdir: Path, quiet: bool, stop: Callable[[], bool], profile_steps: tuple[int, int] | None
) -> dict[str, float]:
    import jax
    import numpy as np

    from transformer.data.sources import load_source
    from transformer.data.tokenizers import load_or_train
    from transformer.tasks import task_class
    from transformer.training import loop, losses, meter, optim, plan, profiling, sharding, step
    from transformer.training.checkpoint import Checkpoints
    from transformer.training.writer import Writer

    began = time.monotonic()
    first = jax.process_index() == 0
    kind = task_class(config.task)
    layout = sharding.make_layout(config)
    source = load_source(config.data)
    tokenizer = None
    if kind.reads_text:
        fields, extra = kind.fields(config, source), kind.extra_pieces(config)
        tokenizer = load_or_train(source, _data(config, workdir), fields, extra)
    task = kind(config, tokenizer)
    task.check(source)
    training, validation = task.batches(source, "train"), task.batches(source, "validation")
    per_epoch = training.steps_per_epoch

    if first:
        claim(workdir, config, {"fingerprint": source.fingerprint} | training.report)
        if tokenizer is not None and not (workdir / "tokenizer.json").exists():
            tokenizer.save(workdir / "tokenizer.json")

    optimizer = optim.make_optimizer(config)
    create = step.make_init(task.init, optimizer, layout)
    seed = np.uint32(config.seed)
    checkpoints = Checkpoints(workdir, config.logging.keep, owner=True)
    if checkpoints.latest is None:
        state = create(seed)
        if config.init_from:
            state = state._replace(params=_begin_from(Path(config.init_from), task.init, layout))
    else:
        state = checkpoints.restore(layout.abstract(jax.eval_shape(create, seed)))
        checkpoints.set_aside_after(int(state.step))
    start = int(state.step)
    if start > config.steps:
        raise UserError(f"{str(workdir)!r} is at step {start} already, past steps={config.steps}: ask for more steps")
    if profile_steps and profile_steps[0] <= start:
        raise UserError(f"--profile_steps={profile_steps[0]},{profile_steps[1]}: the run goes on after step {start}")
    writer = Writer(workdir, start, config.steps, quiet, first)
    eval_step = step.make_eval_step(task.loss, layout)

    def evaluate(state: step.State) -> dict[str, float]:
        rows = map(layout.place, validation.evaluation(config.data.max_len))
        return losses.means(jax.device_get(step.total(eval_step, state.params, rows)))

    shapes = sharding.shapes(state.params["params"])
    train_step = step.make_train_step(task.loss, optimizer, layout, config.mesh.accumulate, config.optimizer.max_spike)
    rate = optim.current_rate(config)
    devices = f"{layout.mesh.size} {jax.devices()[0].platform} device(s)"
    resumed = f", resumed at step {start}" if start else ""
    parameters = sum(map(math.prod, shapes.values()))
    writer.show(start, f"{parameters:,} parameters on {devices}, {per_epoch} steps an epoch{resumed}")
    batches = training.iterate(start, max(start, config.steps), layout.place)
    try:
        state, metrics = loop.train(
            config,
            state,
            profiling.Program(train_step, layout.mesh.size, partial(plan.batch_flops, config, shapes)),
            layout.mesh.size * profiling.peak_flops(layout.mesh, config.model.dtype),
            batches,
            lambda state: rate(state.optimizer),
            evaluate,
            checkpoints,
            writer,
            lambda: writer.show(start + 1, f"first step after {time.monotonic() - began:.1f} s"),
            stop,
            profile_steps,
        )
        if not metrics:  # it was finished before, and is only evaluated again
            metrics = evaluate(state)
            writer.write(config.steps, **{f"validation_{name}": value for name, value in metrics.items()})
        checkpoints.finish()
        writer.show(config.steps, f"validation loss {metrics['loss']:.4f} in {str(workdir)!r}")
    except meter.Diverged as error:
        raise UserError(str(error)) from error
    finally:
        batches.close()
        checkpoints.close()
        writer.close()
    return metrics


def _begin_from(workdir: Path, init: Callable[..., Any], layout: Any) -> Any:
    """The newest parameters of another run of the same model; its optimizer's state is left behind.

    UserError: there is no run, or one of another model.
    """
    import jax
    import jax.numpy as jnp

    from transformer.training import optim, step
    from transformer.training.checkpoint import Checkpoints

    create = step.make_init(init, optim.make_optimizer(read_config(workdir)), layout)
    checkpoints = Checkpoints(workdir)
    try:
        return checkpoints.restore_params(layout.abstract(jax.eval_shape(create, jnp.uint32(0))).params)
    finally:
        checkpoints.close()


def _profile_steps(given: list[str] | None, steps: int) -> tuple[int, int] | None:
    if not given:
        return None
    numbers = [int(part) if part.isdecimal() else 0 for part in given]
    if len(numbers) != 2 or not 0 < numbers[0] <= numbers[1] <= steps:
        raise UserError(
            f"--profile_steps={','.join(given)}: give the first and the last step, such as 10,20, of the {steps} steps"
        )
    return numbers[0], numbers[1]


def main() -> None:
    """The verb, with its flags parsed. Stopped by SIGTERM it ends well, with the state saved."""
    from transformer.training.loop import Stopped
    from transformer.training.processes import join

    config, workdir = command_line.config_from_flags(), command_line.workdir_from_flags()
    if FLAGS.distributed or FLAGS.coordinator:
        join(FLAGS.coordinator, FLAGS.processes, FLAGS.process, FLAGS.join_seconds)
    try:
        train(config, workdir, profile_steps=_profile_steps(FLAGS.profile_steps, config.steps))
    except Stopped as stopped:
        print(f"{stopped}: the same command goes on from there", file=sys.stderr)


if __name__ == "__main__":
    command_line.define_config()
    flags.declare_key_flag("config")
    flags.DEFINE_string("workdir", None, "Folder of the run: created, or resumed.")
    flags.DEFINE_list("profile_steps", None, "First and last step of a trace for TensorBoard or Perfetto: 10,20.")
    flags.DEFINE_bool("distributed", False, "One of several processes, as SLURM, Open MPI or GKE started them.")
    flags.DEFINE_string("coordinator", None, "One of several processes: host:port where the first one listens.")
    flags.DEFINE_integer("processes", None, "How many there are; with --coordinator.")
    flags.DEFINE_integer("process", None, "Which one this is: 0, 1, ...; with --coordinator.")
    flags.DEFINE_integer("join_seconds", 300, "How long processes wait for each other at the start.")
    command_line.run(main)
