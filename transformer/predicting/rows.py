"""Predictions as rows: JSON objects, or the columns of a CSV file."""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TextIO

DIGITS = 7  # of numbers that are written: what float32 holds


def write_json(
    stream: TextIO, called: Iterable[Mapping[str, Any]], predictions: Iterable[Mapping[str, Any]], top: int = 0
) -> None:
    """Writes one JSON object a line: what the input is called, and its prediction. `top` keeps the most probable
    classes, in that order; 0 = all, in the order of the run. Each step of a forecast is a line."""
    for name, prediction in zip(called, predictions, strict=True):
        for row in _steps(prediction):
            if top and "probabilities" in row:
                row = {**row, "probabilities": dict(_most_probable(row, top))}
            stream.write(json.dumps({**name, **row}, ensure_ascii=False) + "\n")
            stream.flush()


def write_csv(
    stream: TextIO,
    called: Iterable[Mapping[str, Any]],
    predictions: Iterable[Mapping[str, Any]],
    classes: Sequence[str] = (),
    top: int = 0,
) -> None:
    """Writes a header and one row for each prediction, or for each step of a forecast. A class has a column, with its
    probability; with `top`, the columns are label, probability, label_2, probability_2, ..."""
    writer = csv.writer(stream, lineterminator="\n")
    begun = False
    for name, prediction in zip(called, predictions, strict=True):
        for row in _steps(prediction):
            own = {key: value for key, value in row.items() if key != "probabilities"}
            pairs = [*name.items(), *own.items()]
            if "probabilities" in row:
                pairs += _ranked(row, top) if top else [(each, row["probabilities"].get(each)) for each in classes]
            if not begun:
                writer.writerow([key for key, _ in pairs])
                begun = True
            writer.writerow([value for _, value in pairs])
            stream.flush()


def _steps(prediction: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The rows of a prediction: one for each step of a forecast, whose values are lists, and otherwise itself, with
    numbers of DIGITS. Those of a forecast are rounded already, by the scale of the series."""
    if all(isinstance(value, list) for value in prediction.values()):
        for values in zip(*prediction.values(), strict=True):
            yield dict(zip(prediction, values, strict=True))
    else:
        yield _shortened(prediction)


def _most_probable(row: Mapping[str, Any], top: int) -> list[tuple[str, float]]:
    return sorted(row["probabilities"].items(), key=lambda pair: -pair[1])[:top]


def _ranked(row: Mapping[str, Any], top: int) -> list[tuple[str, Any]]:
    """The labels and probabilities after the first, up to `top`, as columns; empty for an input without any."""
    ranks = _most_probable(row, top)[1:]
    ranks += [("", None)] * (top - 1 - len(ranks))  # type: ignore[list-item]
    return [
        (f"{key}_{rank}", value)
        for rank, pair in enumerate(ranks, start=2)
        for key, value in zip(("label", "probability"), pair, strict=True)
    ]


def _short(value: Any) -> Any:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def _shortened(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _shortened(value) if isinstance(value, dict) else _short(value) for key, value in row.items()}
