"""The words of a report follow from its numbers; the page needs nothing but itself."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from statsmodels.stats.power import TTestPower

from experiments.lab import figures, report, words
from experiments.lab.measures import Metric
from experiments.lab.render import Bullets, Heading, Paragraph, Picture, Table, markdown, page
from experiments.lab.results import compare, factors, read
from experiments.lab.statistics import smallest_seen
from transformer.analysis import plots
from transformer.config import Config, to_dict
from transformer.errors import UserError

VARIANTS = {
    "a-x": {"model.positions": "sinusoidal"},
    "a-y": {"model.positions": "sinusoidal", "model.attention": ["window:4"]},
    "b-x": {"model.positions": "learned"},
    "b-y": {"model.positions": "learned", "model.attention": ["window:4"]},
}


def _write(workdir: Path, values: dict[str, list[float | None]], seeds: int = 3, **more: Any) -> None:
    """A sweep of plain files: variant -> exact match of each seed."""
    plan = {
        "experiment": "question", "docstring": "Is it so?\n\nHypothesis: yes.\n\nSource: none.", "base": "configs/x.py",
        "settings": {}, "command": "python -m experiments.run question", "created": "2026-01-01T00:00:00+00:00",
        "config": to_dict(Config()), "variants": VARIANTS, "reference": "a-x", "main_metrics": ["test/exact_match"],
        "seeds": list(range(seeds)),
    }  # fmt: skip
    workdir.mkdir(exist_ok=True)
    (workdir / "sweep.json").write_text(json.dumps(plan))
    for variant, scores in values.items():
        for seed, score in enumerate(scores):
            folder = workdir / "runs" / variant / f"seed{seed}"
            folder.mkdir(parents=True)
            result = {"seed": seed, "metrics": {"test/exact_match": score}, "curve": [[1, 2.0], [2, 1.0]],
                      "parameters": 10, "train_seconds": 3.0, "seconds_per_step": 0.1, "commit": "abc", "cores": 1,
                      "fingerprint": "f", "config": to_dict(Config())} | more  # fmt: skip
            (folder / "result.json").write_text(json.dumps(result))


BASE = [0.90, 0.91, 0.95]
SCORES: dict[str, list[float | None]] = {
    "a-x": list(BASE),
    "a-y": [0.91, 0.90, 0.95],
    "b-x": [v - 0.1 - e for v, e in zip(BASE, (0, 0.001, 0.002), strict=True)],
    "b-y": [v + 0.02 + e for v, e in zip(BASE, (0, 0.02, 0.002), strict=True)],
}


def test_the_answer_follows_from_the_numbers(tmp_path: Path) -> None:
    _write(tmp_path, SCORES)
    said, failures = report.write(tmp_path)
    assert failures == 0
    text = (tmp_path / "report.md").read_text()
    assert "Worse: b-x (−10.1 points [−10.3, −9.9])" in said
    none = said.split("No difference was seen, as the interval contains 0: ")[1].split(".\n")[0]
    assert "a-y (0.0 points [−2.5, +2.5])" in none
    assert "b-y" in none
    assert "reached 92.0 % (95 % interval [85.4, 98.6], 3 seeds)" in text
    assert "| a-x (reference) | 92.0 [85.4, 98.6] | 3 |" in text
    averaged = said.split("Averaged over all else: ")[1]
    assert averaged.startswith("b instead of a −")
    assert "y instead of x +" in averaged
    assert "x instead" not in text


def test_a_factor_averages_over_all_else(tmp_path: Path) -> None:
    _write(tmp_path, SCORES)
    found = factors(read(tmp_path), "test/exact_match")
    assert list(found) == ["b instead of a", "y instead of x"]
    mean = {name: np.mean(np.asarray(values, float)) for name, values in SCORES.items()}
    assert found["b instead of a"].mean == pytest.approx((mean["b-x"] + mean["b-y"] - mean["a-x"] - mean["a-y"]) / 2)
    assert found["y instead of x"].mean == pytest.approx((mean["a-y"] + mean["b-y"] - mean["a-x"] - mean["b-x"]) / 2)


def test_a_single_factor_is_not_told_twice(tmp_path: Path) -> None:
    _write(tmp_path, SCORES)
    sweep = read(tmp_path)
    sweep.plan["variants"] = {name: VARIANTS[name] for name in ("a-x", "a-y")}
    assert list(compare(sweep, "test/exact_match")) == ["a-y"]
    assert factors(sweep, "test/exact_match") == {}


def test_only_seeds_that_both_have_are_paired(tmp_path: Path) -> None:
    _write(tmp_path, SCORES | {"a-y": [0.95, 0.93]})
    found = compare(read(tmp_path), "test/exact_match")
    assert found["a-y"].n == 2
    assert found["a-y"].mean == pytest.approx(0.035)
    report.write(tmp_path)
    assert "not finished: 11 of 12 runs are done" in (tmp_path / "report.md").read_text()


def test_what_holm_takes_back_is_said(tmp_path: Path) -> None:
    shifted = [v - 0.02 - e for v, e in zip(BASE, (0, 0.006, 0.014), strict=True)]
    _write(tmp_path, {"a-x": list(BASE), "a-y": shifted, "b-x": list(SCORES["a-y"]), "b-y": list(SCORES["a-y"])})
    said, _ = report.write(tmp_path)
    assert re.search(r"In doubt, as .*: a-y \(−2\.7 points \[[^]]*\]; p = 0\.\d+ after Holm's correction\)", said)


def test_one_seed_gives_no_interval(tmp_path: Path) -> None:
    _write(tmp_path, {name: values[:1] for name, values in SCORES.items()}, seeds=1)
    said, _ = report.write(tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "There is one seed, so no interval can be given" in text
    assert "cannot tell a difference from chance" in said
    assert "[" not in said


def test_a_missing_reference_is_said(tmp_path: Path) -> None:
    _write(tmp_path, {"b-x": list(SCORES["b-x"])})
    said, _ = report.write(tmp_path)
    assert "has no value yet" in said
    assert "no difference can be given" in (tmp_path / "report.md").read_text()


def test_a_value_that_cannot_be_is_left_out_in_words(tmp_path: Path) -> None:
    _write(tmp_path, SCORES | {"b-x": [None, None, None], "b-y": [None, None, None]})
    said, _ = report.write(tmp_path)
    assert "No value: b-x, b-y." in said


def test_different_commits_and_data_are_warned_of(tmp_path: Path) -> None:
    _write(tmp_path, {"a-x": list(BASE)}, commit="one", fingerprint="first", versions={"jax": "1"})
    _write(tmp_path, {"b-x": list(BASE)}, commit="two", fingerprint="second", versions={"jax": "2"})
    report.write(tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "different commits (`one`, `two`)" in text
    assert "different versions (jax 1; jax 2)" in text
    assert "different data" in text


def test_the_headline_is_one_sentence_of_verdicts(tmp_path: Path) -> None:
    _write(tmp_path, SCORES)
    assert words.headline(read(tmp_path)) == (
        "Exact match on test, against a-x (92.0 % [85.4, 98.6]): none is better; b-x (−10.1 points [−10.3, −9.9]) is "
        "worse; 2 variants are not told apart from it, most of all b-y (+2.7 points [−0.0, +5.5])."
    ).replace("−0.0,", "0.0,")


def test_what_cannot_be_seen_follows_from_the_power(tmp_path: Path) -> None:
    _write(tmp_path, SCORES)
    found = [np.subtract(SCORES[name], SCORES["a-x"]) for name in ("a-y", "b-x", "b-y")]
    spread = 100 * np.sqrt(np.mean([np.var(delta, ddof=1) for delta in found]))
    sentence = words.visible(read(tmp_path), "test/exact_match")
    assert sentence is not None
    sizes = [float(x) for x in re.findall(r"([\d.]+) points", sentence)]
    # Effects that TTestPower finds with 80 %: of three seeds at 0.05 / 3 and at 0.05, and of five at 0.05 / 3.
    level = 0.05 / 3
    expected = [smallest_seen(spread, 3, 3), spread, 3.264 * spread, smallest_seen(spread, 5, 3)]
    assert sizes == pytest.approx(expected, abs=0.06)
    assert TTestPower().power(sizes[3] / spread, 5, level) == pytest.approx(0.8, abs=0.03)
    assert sentence.startswith("With 3 seeds a difference in exact match on test under")
    assert sentence in words.limits(read(tmp_path))


def test_the_front_is_what_no_other_beats() -> None:
    points = {"dear": (9.0, 5.0), "best": (5.0, 6.0), "cheap": (1.0, 1.0), "same": (5.0, 6.0), "poor": (2.0, 0.5)}
    assert figures.pareto(points) == ["cheap", "best"]


def test_quality_against_cost_is_drawn_where_costs_differ(tmp_path: Path) -> None:
    _write(tmp_path, {"a-x": list(BASE)}, parameters=10, train_seconds=3.0)
    _write(tmp_path, {"b-x": [0.5, 0.6, 0.7]}, parameters=20, train_seconds=3.1)
    (block, picture) = figures.fronts(read(tmp_path), tmp_path / "figures")
    assert isinstance(block, Heading)
    assert isinstance(picture, Picture)
    assert picture.stem == "front-parameters", "a thirtieth more time is no other cost"
    assert "Filled: the front (a-x);" in picture.caption


def test_no_sweep_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no sweep"):
        report.write(tmp_path)


def test_a_report_written_twice_is_the_same(tmp_path: Path) -> None:
    _write(tmp_path, SCORES)
    report.write(tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    before = {path: path.read_bytes() for path in files}
    report.write(tmp_path)
    assert {path: path.read_bytes() for path in files} == before


class _Links(HTMLParser):
    """Collects what a page would load, and checks that its tags close."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]
        if tag not in ("meta", "img", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_needs_nothing_but_itself(tmp_path: Path) -> None:
    _write(tmp_path, SCORES)
    report.write(tmp_path)
    text = (tmp_path / "report.html").read_text()
    links = _Links()
    links.feed(text)
    assert links.open == []
    assert links.loads
    assert all(link.startswith("data:image/svg+xml;base64,") for link in links.loads)
    assert "prefers-color-scheme: dark" in text
    assert "url(" not in text
    assert "@import" not in text


def test_text_is_escaped() -> None:
    blocks = [Heading("a"), Paragraph("x < y & `k<e>y` *z*"), Bullets(["<b>"]), Table(["h|1", "2"], [["<i>", "v"]])]
    shown = page("t<", blocks, Path())
    assert "<b>" not in shown
    assert "<i>" not in shown
    assert "x &lt; y &amp; <code>k&lt;e&gt;y</code>" in shown
    plain = markdown("t", blocks)
    assert r"x \< y & `k<e>y` \*z\*" in plain
    assert r"h\|1" in plain


def test_numbers_read_as_numbers() -> None:
    percent = Metric("exact match", "%", 100.0, 1)
    assert words.number(-0.0001, percent, True) == "0.0"
    assert words.number(-0.021, percent, True) == "−2.1"
    assert words.number(0.021, percent, True) == "+2.1"
    assert words.interval(None, None, percent) == ""


def test_styles_keep_colour_and_line_apart() -> None:
    look = plots.styles(list(VARIANTS))
    assert look["a-x"].color == look["a-y"].color != look["b-x"].color == look["b-y"].color
    assert look["a-x"].line == look["b-x"].line != look["a-y"].line == look["b-y"].line


def test_figures_hold_what_they_were_given() -> None:
    look = plots.styles(["a-x", "b-x"])
    steps, edges = np.arange(1.0, 5.0), np.array([0.0, 4.0, 8.0, 16.0])
    curve = plots.learning_curves({"a-x": (steps, np.stack([steps, steps + 2]))}, look, "loss")
    np.testing.assert_allclose(curve.axes[0].lines[0].get_ydata(), steps + 1)
    skipped = np.array([[4.0, np.nan, np.nan, 1.0], [2.0, np.nan, 3.0, 1.0]])  # a step without a loss is null
    curve = plots.learning_curves({"a-x": (steps, skipped)}, look, "loss")
    found = curve.axes[0].lines[0].get_ydata()
    np.testing.assert_array_equal(np.ma.filled(found, np.nan), [3.0, np.nan, 3.0, 1.0])
    assert np.isfinite(curve.axes[0].get_ylim()).all()
    front = plots.front({"a-x": (1.0, 2.0, 1.5, 2.5), "b-x": (3.0, 1.0, 0.0, 2.0)}, ["a-x"], look, "x", "y")
    line = front.axes[0].lines[-1].get_xydata()
    assert line[1] == pytest.approx([1, 2])
    assert line[2, 1] == 2, "and on to the right at the same height"
    at, mean = np.array([0.0, 1.0]), np.array([0.5, 0.25])
    by_length = plots.against_length({"a-x": (at, mean, mean - 0.1, mean + 0.1)}, edges, look, "x", "y", 8, True)
    assert by_length.axes[0].lines[0].get_ydata() == pytest.approx([50, 25])
    shaded = by_length.axes[0].patches[0].get_extents().transformed(by_length.axes[0].transData.inverted())
    assert shaded.x1 == pytest.approx(1.5)  # between the second and the third bin
    assert plots.to_svg(curve) == plots.to_svg(curve)


def test_a_curve_of_a_run_with_skipped_steps_is_drawn(tmp_path: Path) -> None:
    """The null of metrics.jsonl comes through result.json."""
    curves = {"a-x": [{"curve": [[1, 3.0], [2, None], [3, 2.0]]}]}
    sweep: Any = SimpleNamespace(variants=["a-x"], of=curves.get, plan={"config": {"label_smoothing": 0.0}})
    assert len(figures.learning(sweep, tmp_path)) == 1
    assert (tmp_path / "learning.svg").exists()


def test_cost_is_told_from_where_it_pays() -> None:
    times = {"dense": [1.0, 4.0, 16.0], "band": [2.0, 3.0, 4.0], "mask": [1.0, 4.1, 16.0], "late": [2.0, 5.0, 8.0]}
    rows = [
        {"kind": kind, "length": length, "milliseconds": ms}
        for kind, column in times.items()
        for length, ms in zip((128, 256, 512), column, strict=True)
    ]
    assert words.cost_words(rows) == [
        "band: faster than “dense” from length 256 on, 4.0 times as fast at 512.",
        "mask: no faster than “dense” (1.0 times as fast at 512).",
        "late: faster than “dense” from length 512 on, 2.0 times as fast at 512.",
    ]
