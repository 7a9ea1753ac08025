"""Forecasts of series: the last steps of a file, scaled as in training, and what the model says comes next."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from transformer.data.sources.frequency import Frequency
from transformer.data.sources.series_files import check_dates, read_series
from transformer.data.sources.table.paths import File, form_of
from transformer.errors import UserError
from transformer.tasks.trained import Trained
from transformer.training.sharding import make_layout


def forecasts(trained: Trained, inputs: Sequence[Any]) -> Iterator[dict[str, list[Any]]]:
    """The next `data.horizon` steps of each series, column -> values in the data's own units. An input is a file with
    the columns of the run, or an array [T, C]; its last `data.max_len` rows are read.

    Where the file has dates, they come first, under the name of their column: they go on at the frequency of the run,
    and are written as the file writes them. UserErrors: too few rows, another column, a value that is no finite number,
    dates that are not even, or of another frequency.
    """
    compute = _compiled(trained)
    return (_forecast(trained, given, compute) for given in inputs)


def _forecast(trained: Trained, given: Any, compute: Callable[[np.ndarray], np.ndarray]) -> dict[str, list[Any]]:
    facts = trained.facts or trained.source.facts
    columns, past = list(facts["columns"]), trained.config.data.max_len
    mean, deviation = (np.array(facts[name], np.float64) for name in ("mean", "deviation"))
    dates, name = dict[str, list[Any]](), "the series"
    if isinstance(given, str | Path):
        path = Path(given)
        name = str(path)
        read = read_series(File(path, form_of(path)), facts.get("time", ""), columns)
        values = read.values
        if read.dates is not None:
            frequency = check_dates([read], Frequency.named(facts["frequency"]) if "frequency" in facts else None)
            following = frequency.following(read.dates.clock, trained.config.data.horizon)
            dates = {read.time: read.dates.written(following)}
    else:
        values = np.asarray(given, np.float64)
    if values.ndim != 2 or values.shape[1] != len(columns):
        raise UserError(
            f"{name} has the shape {values.shape}, and the model reads [steps, {len(columns)}]: transpose it"
        )
    if len(values) < past:
        raise UserError(f"{name} has {len(values)} rows, and a forecast reads the last {past}: give that many, or more")
    if not np.isfinite(values[-past:]).all():
        raise UserError(f"{name} has values that are not finite in its last {past} rows: fill them in")
    window = ((values[-past:] - mean) / deviation).astype(np.float32)
    ahead = compute(window).astype(np.float64) * deviation + mean
    if not np.isfinite(ahead).all():
        raise UserError(
            f"the model's forecast for {name} is not a number (NaN or infinite), as after a training run that "
            "diverged: use an earlier checkpoint, or train again"
        )
    # What is computed in float32 has seven digits of the deviation, whatever the mean is.
    digits = [6 - int(np.floor(np.log10(scale))) for scale in deviation]
    return dates | {
        column: [round(value, digits[place]) for value in ahead[:, place].tolist()]
        for place, column in enumerate(columns)
    }


def _compiled(trained: Trained) -> Callable[[np.ndarray], np.ndarray]:
    """The scaled forecast [horizon, C] of a window [max_len, C]; every device computes the same row."""
    layout = make_layout(trained.sized, axes=trained.task.axes)

    def apply(params: Any, inputs: Any) -> jax.Array:
        with layout.tracing():
            return trained.task.model.apply(params, inputs)

    compute = jax.jit(apply, in_shardings=(None, layout.rows), out_shardings=layout.replicated)
    return lambda window: np.asarray(compute(trained.params, np.repeat(window[None], layout.row_shards, axis=0)))[0]
