"""python -m transformer.train --config=configs/quantities.py --workdir=runs/first [--config.key=value ...]

Trains a run, or resumes the one in the workdir. Writes config.json, data.json, tokenizer.json (of text tasks),
checkpoints/, and metrics.jsonl, also as TensorBoard events. Steps, mesh, logging and data folders may differ when it
resumes; --change=optimizer.learning_rate allows an optimizer key too, recorded in changes.jsonl. On several machines:
the same command on each, with --distributed, or with --coordinator=host:port --processes=N --process=0, 1, ...

Ctrl-C, SIGTERM, SIGUSR1 and SIGUSR2 save and stop. The exit code is then 75 (EX_TEMPFAIL: run the same command again),
so that no scheduler counts the run as done; 0 says that all steps are done, and 2 that there is a mistake to mend. A
second Ctrl-C ends at once, as a kill does.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from absl import flags

from transformer import command_line
from transformer.config import Config, flatten
from transformer.errors import UserError
from transformer.paths import for_checkpoints
from transformer.plugins import load_plugins

if TYPE_CHECKING:
    from transformer.data.batches.base import Batches
    from transformer.data.sources.source import Source
    from transformer.data.tokenizers import Tokenizer
    from transformer.tasks.base import Task
    from transformer.training.sharding import Layout

FLAGS = flags.FLAGS


def train(
    config: Config,
    workdir: Path,
    quiet: bool = False,
    profile_steps: tuple[int, int] | None = None,
    change: Sequence[str] = (),
) -> dict[str, float]:
    """Trains a run to `config.steps` and returns its validation metrics (means, without label smoothing).

    Pairs longer than `data.max_len` are left out of validation, as of training, unless `data.too_long` says otherwise.
    After a signal (`training.processes.SIGNALS`) it saves and raises `errors.Stopped`. `change`: keys that may differ
    when it resumes (see `resuming`).
    """
    from transformer.training.processes import alone_in, stop_signal

    workdir = for_checkpoints(workdir, "--workdir")
    with stop_signal() as stop, alone_in(workdir):
        return _train(config, workdir, quiet, stop, profile_steps, change)


class _Ready(NamedTuple):
    """What each process makes by itself before the first step."""

    config: Config  # with what follows from the data
    old: Config | None  # of the run in the workdir
    source: "Source"
    tokenizer: "Tokenizer | None"
    task: "Task"
    layout: "Layout"
    training: "Batches"
    validation: "Batches"


def _make_ready(config: Config, workdir: Path, change: Sequence[str]) -> _Ready:
    """Reads and checks everything that a run needs. UserError: a mistake in any of it."""
    from transformer import beginning, resuming
    from transformer.data.sources import load_source
    from transformer.data.tokenizers.training import load_or_train
    from transformer.tasks import task_class
    from transformer.training import sharding

    load_plugins(config.plugins)
    kind = task_class(config.task)
    layout = sharding.make_layout(config)
    old = resuming.check(workdir, config, change)
    if old is None and config.init_from:
        beginning.check(config)
    source = load_source(config.data)
    resuming.check_data(workdir, config, source.fingerprint)
    config = kind.completed(config, source)
    tokenizer = None
    if kind.reads_text:
        fields, extra = kind.fields(config, source), kind.extra_pieces(config)
        make = lambda: load_or_train(source, beginning.data_of(config), fields, extra)  # noqa: E731
        tokenizer = resuming.tokenizer_of(workdir, config, make)
    task = kind(config, tokenizer)
    task.check(source)
    layout = sharding.make_layout(
        dataclasses.replace(config, model=task.model_config), axes=task.axes
    )  # made early, so that errors come at once
    if not len(source.split("validation")):
        raise UserError(f"the validation part of {config.data.name!r} holds no example: give it some")
    training, validation = (task.batches(source, split).part(*layout.part) for split in ("train", "validation"))
    if source.mix and "mix" not in training.report:
        raise UserError("data.mix is for texts: leave it out, and name all files in data.files")
    sharding.check_rows(layout, training.report["shapes"], config.mesh.accumulate)
    sharding.check_rows(layout, validation.evaluation_shapes)
    shapes = [*training.report["shapes"], *validation.evaluation_shapes]
    sharding.check_lengths(layout, [(rows, *task.positions(widths)) for rows, *widths in shapes])
    if next(validation.evaluation(config.data.max_len), None) is None:
        raise UserError(
            f"the validation part of {config.data.name!r} holds no example that fits into data.max_len="
            f"{config.data.max_len}: raise it, or give other examples"
        )
    return _Ready(config, old, source, tokenizer, task, layout, training, validation)


def _train(
    config: Config,
    workdir: Path,
    quiet: bool,
    stop: Callable[[], bool],
    profile_steps: tuple[int, int] | None,
    change: Sequence[str],
) -> dict[str, float]:
    import jax
    import numpy as np

    from transformer import beginning, resuming
    from transformer.data.batches.mixed import mixture_line
    from transformer.model.embedders import unused_parameters
    from transformer.training import flops, loop, losses, meter, optim, profiling, sharding, step
    from transformer.training.checkpoint import Checkpoints
    from transformer.training.processes import check_same, together
    from transformer.training.writer import Writer

    began = time.monotonic()
    first = jax.process_index() == 0
    with together(stop):
        config, old, source, tokenizer, task, layout, training, validation = _make_ready(config, workdir, change)
    given = {key: value for key, value in flatten(config).items() if key not in ("data.dir", "data.cache")}
    given |= {"--change": list(change), "--profile_steps": profile_steps}
    learned = {"tokenizer": getattr(tokenizer, "fingerprint", None), "data": source.fingerprint}
    check_same(given | {f"the fingerprint of its {name}": value for name, value in learned.items()})
    per_epoch = training.steps_per_epoch

    optimizer = optim.make_optimizer(config, task.axes)
    create = step.make_init(task.init, optimizer, layout)
    seed = np.uint32(config.seed)
    checkpoints = Checkpoints(workdir, config.logging.keep, owner=True)
    begun = None
    if checkpoints.latest is None:
        if config.init_from:
            with together(stop):
                begun = beginning.plan(config, task, beginning.origin(config, layout), source.classes)
        state = create(seed)
        if begun is not None:
            state = state._replace(params=beginning.begin(begun, state.params, layout))
    else:
        state = checkpoints.restore(layout.abstract(jax.eval_shape(create, seed)))
        checkpoints.set_aside_after(int(state.step))
    start = int(state.step)
    if start > config.steps:
        raise UserError(f"{str(workdir)!r} is at step {start} already, past steps={config.steps}: ask for more steps")
    if profile_steps and profile_steps[0] <= start:
        raise UserError(f"--profile_steps={profile_steps[0]},{profile_steps[1]}: the run goes on after step {start}")
    said = None
    with together(stop):
        if first:
            data = {"fingerprint": source.fingerprint, "facts": source.facts} | training.report
            if validation.too_long is not None:
                data["validation_too_long"] = validation.too_long._asdict()
            if begun is not None:
                data["init"] = begun.note
            if tokenizer is not None:
                data["tokenizer"] = tokenizer.fingerprint
                if old is None or not (workdir / "tokenizer.json").exists():
                    tokenizer.save(workdir / "tokenizer.json")
            rates = [optim.current_rate(each)(state.optimizer) for each in (old or config, config)]
            said = resuming.claim(workdir, config, data, old, start, (rates[0], rates[1]))
    again = loop.is_evaluated_first(config, start, checkpoints)
    with together(stop):
        writer = Writer(workdir, start, config.steps, quiet, first, again)
    eval_step = step.make_eval_step(task.loss, layout)

    def evaluate(state: step.State) -> dict[str, float]:
        rows = map(layout.place, validation.evaluation(config.data.max_len))
        return losses.means(jax.device_get(step.total(eval_step, state.params, rows)))

    shapes = sharding.shapes(state.params["params"])
    train_step = step.make_train_step(task.loss, optimizer, layout, config.mesh.accumulate, config.optimizer.max_spike)
    rate = optim.current_rate(config)
    devices = f"{layout.mesh.size} {jax.devices()[0].platform} device(s)"
    resumed = f", resumed at step {start}" if start else ""
    parameters = sum(map(math.prod, shapes.values())) - unused_parameters(task.model_config, shapes)
    writer.show(start, f"{parameters:,} parameters on {devices}, {per_epoch} steps an epoch{resumed}")
    for split, batches_of in (("train", training), ("validation", validation)):
        if batches_of.too_long is not None:
            writer.show(start, f"{split}: {batches_of.too_long}")
    if mix := training.report.get("mix"):
        writer.show(start, mixture_line(mix))
    for sentence in sharding.kept_whole(layout, shapes):
        writer.show(start, sentence)
    if begun is not None:
        writer.show(start, str(begun))
    if said:
        writer.show(start, said)
    batches = training.iterate(start, max(start, config.steps), layout.place)
    try:
        state, metrics = loop.train(
            config,
            state,
            profiling.Program(train_step, layout.mesh.size, partial(flops.batch_flops, config, shapes)),
            layout.mesh.size * profiling.peak_flops(layout.mesh, config.model.dtype),
            batches,
            lambda state: rate(state.optimizer),
            evaluate,
            checkpoints,
            writer,
            lambda: writer.show(start + 1, f"first step after {time.monotonic() - began:.1f} s"),
            stop,
            profile_steps,
            again,
        )
        checkpoints.finish()
        writer.show(config.steps, f"validation loss {metrics['loss']:.4f} in {str(workdir)!r}")
    except meter.Diverged as error:
        raise UserError(f"{error}: {meter.advice(config.optimizer, checkpoints.steps)}") from error
    finally:
        batches.close()
        checkpoints.close()
        writer.close()
    return metrics


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
    """Runs the command with its flags parsed."""
    if FLAGS.distributed or FLAGS.coordinator:  # first, so that a mistake in one process ends all
        from transformer.training.processes import join, together

        join(FLAGS.coordinator, FLAGS.processes, FLAGS.process, FLAGS.join_seconds)
        with together():
            config, workdir, profile_steps = _given()
    elif FLAGS.processes is not None or FLAGS.process is not None:
        raise UserError("--processes and --process say which part of a run this is: add --coordinator=host:port")
    else:
        config, workdir, profile_steps = _given()
    train(config, workdir, profile_steps=profile_steps, change=FLAGS.change)


def _given() -> tuple[Config, Path, tuple[int, int] | None]:
    config, workdir = command_line.config_from_flags(), command_line.workdir_from_flags()
    return config, workdir, _profile_steps(FLAGS.profile_steps, config.steps)


if __name__ == "__main__":
    command_line.define_config()
    flags.declare_key_flag("config")
    flags.DEFINE_string("workdir", None, "Folder of the run: created, or resumed.")
    flags.DEFINE_list("change", [], "Keys in which the run that goes on may differ: optimizer.learning_rate.")
    flags.DEFINE_list("profile_steps", None, "First and last step of a trace for TensorBoard or Perfetto: 10,20.")
    flags.DEFINE_bool("distributed", False, "One of several processes, as SLURM, Open MPI or GKE started them.")
    flags.DEFINE_string("coordinator", None, "One of several processes: host:port where the first one listens.")
    flags.DEFINE_integer("processes", None, "How many there are; with --coordinator.")
    flags.DEFINE_integer("process", None, "Which one this is: 0, 1, ...; with --coordinator.")
    flags.DEFINE_integer("join_seconds", 300, "How long processes wait for each other at the start.", lower_bound=1)
    command_line.run(main)
