"""What is written about predictions, read back by Python's csv and json."""

import csv
import io
import json
from typing import Any

import pytest

from transformer.predicting.rows import write_csv, write_json

CLASSES = ("red", "deep, blue", "grün")
CALLED = [{"path": "a.png"}, {"path": "b, c.png"}, {"path": "none"}]
LABELLED: list[dict[str, Any]] = [
    {"label": "red", "probability": 0.7, "probabilities": {"red": 0.7, "deep, blue": 0.1, "grün": 0.2}},
    {"label": "deep, blue", "probability": 2 / 3, "probabilities": {"red": 0.0, "deep, blue": 2 / 3, "grün": 1 / 3}},
    {"label": None, "probability": None, "probabilities": {}},
]


def objects(called: Any, predictions: Any, top: int = 0) -> list[dict[str, Any]]:
    stream = io.StringIO()
    write_json(stream, called, predictions, top)
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def table(called: Any, predictions: Any, *options: Any) -> list[list[str]]:
    stream = io.StringIO(newline="")
    write_csv(stream, called, predictions, *options)
    return list(csv.reader(io.StringIO(stream.getvalue(), newline="")))


def test_objects_begin_with_what_the_input_is_called() -> None:
    first, second, last = objects(CALLED, LABELLED)
    assert list(first) == ["path", "label", "probability", "probabilities"]
    assert first == CALLED[0] | LABELLED[0]
    assert list(first["probabilities"]) == list(CLASSES)
    assert second["probability"] == 0.6666667, "seven digits"
    assert last == CALLED[2] | LABELLED[2]


def test_the_most_probable_classes_come_first() -> None:
    first, second, last = objects(CALLED, LABELLED, 2)
    assert list(first["probabilities"].items()) == [("red", 0.7), ("grün", 0.2)]
    assert list(second["probabilities"]) == ["deep, blue", "grün"]
    assert last["probabilities"] == {}
    assert LABELLED[0]["probabilities"].keys() == set(CLASSES), "the predictions are not changed"


def test_a_class_has_a_column() -> None:
    header, *rows = table(CALLED, LABELLED, CLASSES)
    assert header == ["path", "label", "probability", *CLASSES]
    assert rows[0] == ["a.png", "red", "0.7", "0.7", "0.1", "0.2"]
    assert rows[1] == ["b, c.png", "deep, blue", "0.6666667", "0.0", "0.6666667", "0.3333333"]
    assert rows[2] == ["none", "", "", "", "", ""]


@pytest.mark.parametrize("top", [1, 2, 3])
def test_ranks_are_columns(top: int) -> None:
    header, *rows = table(CALLED, LABELLED, CLASSES, top)
    names = ["label", "probability", "label_2", "probability_2", "label_3", "probability_3"]
    assert header == ["path", *names[: 2 * top]]
    assert rows[0] == ["a.png", *["red", "0.7", "grün", "0.2", "deep, blue", "0.1"][: 2 * top]]
    assert rows[2] == ["none", *[""] * 2 * top]


def test_the_first_row_may_be_one_without_a_prediction() -> None:
    header, *rows = table(CALLED[:2], LABELLED[::-1][:2], CLASSES)
    assert header == ["path", "label", "probability", *CLASSES]
    assert {len(row) for row in rows} == {6}


def test_a_text_with_quotes_and_separators() -> None:
    said = [{"text": 'he said "so", twice'}]
    assert table([{"line": 1}], said) == [["line", "text"], ["1", 'he said "so", twice']]
    assert objects([{"line": 1}], said) == [{"line": 1, "text": 'he said "so", twice'}]


def test_each_step_of_a_forecast_is_a_row() -> None:
    """Its numbers are rounded before, by the scale of the series."""
    forecast = [{"date": ["2024-02-01", "2024-03-01"], "CO2": [360.123456789, 1e-9]}]
    assert table([{}], forecast) == [["date", "CO2"], ["2024-02-01", "360.123456789"], ["2024-03-01", "1e-09"]]
    assert objects([{"path": "x.csv"}], forecast) == [
        {"path": "x.csv", "date": "2024-02-01", "CO2": 360.123456789},
        {"path": "x.csv", "date": "2024-03-01", "CO2": 1e-9},
    ]
