"""A run on disk: `run = transformer.load_run("runs/first")`.

A workdir holds config.json, tokenizer.json (of text tasks), metrics.jsonl, checkpoints/, and data.json: the fingerprint
of the training data, the `facts` learned from it, and the sizes of an epoch. A run is used without its training data:
they are opened only where examples are needed, and their fingerprint is then compared.
"""

import dataclasses
import functools
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax

from transformer.config import Config, MeshConfig, from_stored
from transformer.data.sources import load_source
from transformer.data.sources.source import Source, comparable
from transformer.data.tokenizers import Tokenizer
from transformer.errors import UserError
from transformer.model.stacks import unstacked
from transformer.paths import for_checkpoints
from transformer.plugins import check_named, load_plugins
from transformer.tasks import task_class
from transformer.tasks.trained import Trained
from transformer.training.checkpoint import Checkpoints
from transformer.training.sharding import Layout, make_layout
from transformer.writing.manner import Manner

if TYPE_CHECKING:
    from transformer.analysis.attention import Watched
    from transformer.reading import Reading


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run(Trained):
    """A trained run, as `load_run` returns it. Everything that takes a `Trained` takes a run."""

    workdir: Path

    @property
    def model(self) -> nn.Module:
        return self.task.model

    def generate(self, lines: list[str], **manner: Any) -> list[str]:
        """The best output for each line; `manner`: fields of `transformer.writing.manner.Manner`, such as beam=4."""
        from transformer.writing.lines import generate

        return generate(self, lines, Manner(**manner))

    def predict(self, inputs: Sequence[Any], batch_size: int = 64, **manner: Any) -> list[dict[str, Any]]:
        """The prediction for each line, image, recording or series: `transformer.predicting.predictions.predict`."""
        from transformer.predicting.predictions import predict

        return list(predict(self, inputs, Manner(**manner), batch_size))

    def evaluate(self, split: str = "test", resamples: int = 0, **manner: Any) -> dict[str, Any]:
        """All metrics of a split, with bootstrap intervals of `resamples` draws; see `transformer.evaluate`."""
        from transformer.evaluation.splits import evaluate

        return evaluate(self, split, Manner(**manner), resamples)

    def reading(self, text: str, target: str | None = None) -> "Reading":
        """A text with its tokens, as the model reads it. Without `target`, a decoder reads the run's own output."""
        from transformer.reading import of_run

        return of_run(self, text, target)

    def attention(self, text: str, target: str | None = None) -> "Watched":
        """Attention weights of every head: stack ("encoder", "decoder") -> kind ("self", "cross") -> weights
        [N, 1, H, L, S] and positions. The tokens are those of `reading`."""
        return self.reading(text, target).attention()


def load_run(
    workdir: str | Path,
    average: int = 1,
    best: bool = False,
    mesh: MeshConfig | None = None,
    plugins: Sequence[str] = (),
) -> Run:
    """The parameters of a run: the newest, the mean of its newest `average` checkpoints, or those of the best
    validation loss.

    They are sharded as `mesh` says. Without it they are replicated, and rows are split over the devices, whatever mesh
    the run was trained on. Scanned layers are unstacked, since decoding would otherwise slice each layer's weights out
    of the stack for every token. `plugins` are imported first; those that the run names have to be among them, since a
    folder from elsewhere may name any module (see `transformer.plugins`). UserError: there is no run, a part of it is
    missing or damaged, or it names a plugin that `plugins` does not.
    """
    workdir = for_checkpoints(workdir, "--workdir")
    config = read_config(workdir)
    check_named(config, plugins, workdir)
    load_plugins(plugins)
    mesh = mesh or MeshConfig(data=math.gcd(len(jax.devices()), config.data.row_multiple))
    config = dataclasses.replace(config, mesh=mesh)
    kind, tokenizer = task_class(config.task), None
    if kind.reads_text:
        if not (workdir / "tokenizer.json").is_file():
            raise UserError(f"{str(workdir)!r} holds no tokenizer.json: train there first")
        tokenizer = Tokenizer.load(workdir / "tokenizer.json")
    task = kind(config, tokenizer)
    layout = make_layout(dataclasses.replace(config, model=task.model_config), axes=task.axes)
    params, at = read_params(workdir, task.init, layout, average, best)
    if config.model.scan_layers:
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, scan_layers=False))
        task = kind(config, tokenizer)
        apart = functools.partial(unstacked, count=config.model.num_layers)
        places = dataclasses.replace(layout, axes=task.axes).shardings(jax.eval_shape(apart, params))
        params = jax.jit(apart, out_shardings=places)(params)  # each device cuts its own shards
    noted = read_data(workdir)
    data = functools.cache(lambda: _same_data(workdir, config, noted))
    return Run(config, tokenizer, task, params, at, data, noted.get("facts"), workdir=workdir)


def load_ensemble(
    workdirs: Sequence[str | Path],
    average: int = 1,
    best: bool = False,
    mesh: MeshConfig | None = None,
    plugins: Sequence[str] = (),
) -> Run:
    """The first run, which decodes as an ensemble with the others, on one mesh. UserError: their tasks or tokenizers
    differ."""
    first, *others = (load_run(workdir, average, best, mesh, plugins) for workdir in workdirs)
    for other in others:
        if other.config.task != first.config.task:
            raise UserError(
                f"{str(first.workdir)!r} is a run of {first.config.task!r} and {str(other.workdir)!r} of "
                f"{other.config.task!r}: an ensemble is of one task"
            )
        if first.tokenizer is None or first.tokenizer.fingerprint != other.tokenizer.fingerprint:
            raise UserError(
                f"{str(first.workdir)!r} and {str(other.workdir)!r} have other tokenizers: train the runs of an "
                "ensemble on the same data with the same data.vocab_size"
            )
    return dataclasses.replace(first, others=tuple(others))


def read_params(
    workdir: Path, init: Callable[..., Any], layout: Layout, average: int = 1, best: bool = False
) -> tuple[Any, int]:
    """The parameters of a run, sharded as `layout` says, and their step. `init` maps a key to the parameters of the
    run's model. UserError: there is no run, no such checkpoint, or it is of another model."""
    like = layout.abstract(jax.eval_shape(init, jax.random.key(0)))
    checkpoints = Checkpoints(workdir, read_config(workdir).logging.keep)
    try:
        if average > 1:
            params = checkpoints.average_params(like, average)
        else:
            params = checkpoints.restore_params(like, best)
        return params, checkpoints.restored
    finally:
        checkpoints.close()


def read_config(workdir: Path) -> Config:
    """The config of the run in a workdir. UserError: there is none."""
    path = workdir / "config.json"
    if not path.is_file():
        raise UserError(f"{str(workdir)!r} holds no run (there is no config.json): train there first")
    try:
        return from_stored(json.loads(path.read_text()))
    except (ValueError, AttributeError, OSError) as error:
        raise UserError(f"{str(path)!r} is damaged ({error}): choose another --workdir") from error


def read_data(workdir: Path) -> dict[str, Any]:
    """The content of data.json; empty where there is none. UserError: it is damaged."""
    path = workdir / "data.json"
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text()).items())
    except (ValueError, AttributeError, OSError) as error:
        raise UserError(f"{str(path)!r} is damaged ({error}): bring back the file, or train anew") from error


def _same_data(workdir: Path, config: Config, noted: dict[str, Any]) -> Source:
    """The training data, with the facts that the run recorded. UserError: they are not what the run was trained on.
    Where an older version computed the fingerprint differently, a warning says that they cannot be compared."""
    source = load_source(config.data)
    old = noted.get("fingerprint", source.fingerprint)
    if not comparable(old, source.fingerprint):
        said = (
            f"{str(workdir)!r} has a fingerprint of an older version: whether {config.data.name!r} changed is not known"
        )
        print(said, file=sys.stderr, flush=True)
    elif old != source.fingerprint:
        raise UserError(
            f"{str(workdir)!r} was trained on other data than {config.data.name!r} holds now (the fingerprints "
            "differ): bring back that data, train anew, or name other files on purpose with evaluate --data_dir"
        )
    return dataclasses.replace(source, facts={**source.facts, **noted.get("facts", {})})
