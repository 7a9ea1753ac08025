"""The words of a report follow from its numbers, and it claims what the verdicts allow; the page needs only itself."""

import contextlib
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest

from experiments.lab import figures, report, words
from experiments.lab.measures import Metric
from experiments.lab.render import Bullets, Choice, Details, Heading, Paragraph, Spark, Table, markdown, page
from experiments.lab.results import Sweep, read
from experiments.lab.verdicts import judge
from tests import chromium
from transformer.analysis import comparisons, plots
from transformer.config import Config, to_dict
from transformer.errors import UserError

NOISE = np.array([[0.001, -0.002, 0.001, 0.0], [-0.001, 0.001, 0.002, -0.002], [0.002, 0.0, -0.001, -0.001],
                  [0.0, 0.001, -0.002, 0.001]])  # fmt: skip
SHIFTS = {"base": 0.0, "same": 0.0, "good": 0.03, "poor": -0.05}
LOST = "test/loss is nan: the run diverged"


def _write(
    workdir: Path, shifts: dict[str, float] = SHIFTS, seeds: int = 4, lost: tuple[Any, ...] = (),
    missing: tuple[Any, ...] = (), plan: dict[str, Any] | None = None, **more: Any,
) -> Sweep:  # fmt: skip
    """A sweep of plain files: variant -> how far its exact match is from the reference's. Values of `more` are in each
    result; a callable one makes it from variant and seed."""
    whole = {
        "experiment": "question", "docstring": "Is it <so>?\n\nHypothesis: yes.\n\nSource: none.", "settings": {},
        "base": "configs/x.py", "command": "python -m experiments.run question", "created": "2026-01-01T00:00:00+00:00",
        "config": to_dict(Config()), "variants": {v: {"model.num_layers": i + 2} for i, v in enumerate(shifts)},
        "reference": next(iter(shifts)), "primary": "test/exact_match", "matters": 0.02, "main_metrics": ["test/loss"],
        "seeds": list(range(seeds)), "looks": [{"seeds": list(range(seeds)), "alpha": 0.045}],
    } | (plan or {})  # fmt: skip
    workdir.mkdir(exist_ok=True)
    (workdir / "sweep.json").write_text(json.dumps(whole))
    for place, (variant, shift) in enumerate(shifts.items()):
        for seed in range(seeds):
            folder = workdir / "runs" / variant / f"seed{seed}"
            folder.mkdir(parents=True)
            if (variant, seed) in lost:
                (folder / "error.txt").write_text(LOST)
            elif (variant, seed) not in missing:
                quality = 0.9 + shift + float(NOISE[place % 4, seed]) + 0.002 * seed
                result = {
                    "seed": seed, "metrics": {"test/exact_match": quality, "test/loss": 1.5 - quality}, "cores": 1,
                    "curve": [[10 * k, 2.0 - 0.1 * k] for k in range(11)], "parameters": 100 * (place + 1),
                    "train_seconds": 3.0, "seconds_per_step": 0.1, "commit": "abc", "config": to_dict(Config()),
                }  # fmt: skip
                result |= {key: value(variant, seed) if callable(value) else value for key, value in more.items()}
                (folder / "result.json").write_text(json.dumps(result))
    return read(workdir)


GRID = [
    {"value": 1e-3, "losses": [1.2, 1.3], "mean": 1.25, "diverged": 0},
    {"value": 3e-3, "losses": [1.0, 1.1], "mean": 1.05, "diverged": 0},
    {"value": 1e-2, "losses": [1.5, None], "mean": None, "diverged": 1},
]
TUNING = {
    "key": "optimizer.learning_rate",
    "seeds": [90, 91],
    "chosen": dict.fromkeys(SHIFTS, 3e-3),
    "width": {variant: [1e-3, 3e-3] for variant in SHIFTS},
    "tried": dict.fromkeys(SHIFTS, GRID),
}


def _without(missing: str) -> Any:
    """Metrics of a sweep in which a variant has no value."""
    return lambda variant, seed: {"test/exact_match": None if variant == missing else 0.9 + 0.01 * seed}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with all there can be in one."""
    workdir = tmp_path_factory.mktemp("whole")
    _write(
        workdir, lost=(("good", 2),), plan={"tuning": TUNING}, fingerprint="f", versions={"jax": "1"},
        train_seconds=lambda variant, seed: 10.0 * (1 + (variant == "poor")) + seed, shared_from=None,
        samples=lambda variant, _: [
            {"source": f"eins <{k}>", "reference": "one", "output": "one" if variant == "good" else "uno"}
            for k in range(2)
        ],
        validation_curve=[[50, 1.5], [100, None]],
    )  # fmt: skip
    said, failures = report.write(workdir)
    assert failures == 1
    assert said.splitlines()[0] == "Is it <so>?"
    assert said.splitlines()[1] == words.headline(read(workdir))
    return workdir


def test_the_headline_says_each_verdict_with_its_largest_difference(tmp_path: Path) -> None:
    sweep = _write(tmp_path, SHIFTS | {"worst": -0.2})
    said, found = words.headline(sweep), judge(sweep, sweep.primary)
    assert {v: judged.verdict for v, judged in found.items()} == {
        "same": "equivalent", "good": "better", "poor": "worse", "worst": "worse",
    }  # fmt: skip
    number = r"[+−]?\d+\.\d"
    assert re.fullmatch(
        rf"Exact match on test, against base \({number} % \[{number}, {number}\]\): "
        rf"good is better \(\+{number} points \[{number}, {number}\]\); "
        rf"worst and poor are worse, worst the most \(−{number} points \[{number}, {number}\]\); "
        rf"same is equivalent \({number} points \[{number}, {number}\]; less than 2\.0 points does not matter\)\.",
        said,
    ), said
    assert words.difference(found["worst"].difference, words.describe(sweep.primary)) in said


def test_a_variant_with_a_diverged_run_is_never_better(tmp_path: Path) -> None:
    said = words.headline(_write(tmp_path, lost=(("good", 2),)))
    assert "good is undecided; 1 of 4 runs of good diverged or failed" in said
    assert "better" not in said


def test_a_reference_with_a_diverged_run_makes_nothing_worse(tmp_path: Path) -> None:
    said = words.headline(_write(tmp_path, lost=(("base", 0),)))
    assert "worse" not in said
    assert "points" not in said, "a difference to the worst there is says nothing"
    assert "1 of 4 runs of base diverged or failed" in said


def test_a_sweep_that_has_not_ended_has_no_verdict(tmp_path: Path) -> None:
    sweep = _write(tmp_path, missing=(("poor", 3),), lost=(("poor", 2),))
    assert words.headline(sweep) == (
        "Exact match on test: no verdict before all 16 runs have ended (15 have); 1 of 4 runs of poor diverged or "
        "failed."
    )
    assert words.looked(sweep) == ""


def test_undecided_says_what_would_be_seen(tmp_path: Path) -> None:
    sweep = _write(tmp_path, {"base": 0.0, "near": 0.001, "nearer": 0.0}, plan={"matters": 1e-4})
    seen = max(judged.difference.visible or 0 for judged in judge(sweep, sweep.primary).values())
    assert f"; {100 * seen:.1f} points would be found in 80 % of sweeps)" in words.headline(sweep)


def test_one_seed_shows_no_spread(tmp_path: Path) -> None:
    said = words.headline(_write(tmp_path, seeds=1))
    assert "one seed shows no spread" in said
    assert "[" not in said


def test_skipped_updates_and_missing_values_are_in_the_headline(tmp_path: Path) -> None:
    sweep = _write(tmp_path, metrics=_without("poor"), skipped=lambda variant, _: 3 if variant == "same" else 0)
    said = words.headline(sweep)
    assert "poor has no value; updates were skipped in same (12)." in said


def test_no_value_of_the_reference_is_said(tmp_path: Path) -> None:
    assert "there is nothing to compare with base" in words.headline(_write(tmp_path, metrics=_without("base")))


def test_looks_and_spreads_are_told(tmp_path: Path) -> None:
    looks = [{"seeds": [0, 1], "alpha": 0.02}, {"seeds": [0, 1, 2, 3], "alpha": 0.0125}]
    sweep = _write(tmp_path, plan={"looks": looks})
    assert words.looked(sweep).startswith("Look 2 at this sweep, with 4 seeds: it spent 0.0125 of the 0.05")
    found = judge(sweep, sweep.primary)
    assert words.fallback(sweep, found) == ""
    found["poor"] = found["poor"]._replace(difference=found["poor"].difference._replace(odd=True))
    assert "the noise of poor and of the reference alone counts" in words.fallback(sweep, found)


@pytest.mark.parametrize(("better", "best"), [(0.03, ["cheap", "base", "good"]), (0.0, ["cheap", "base"])])
def test_a_front_is_drawn_only_where_it_is_shown(tmp_path: Path, better: float, best: list[str]) -> None:
    sweep = _write(tmp_path, {"base": 0.0, "cheap": -0.05, "good": better})
    costs = {"base": [2.0, 2.1], "cheap": [1.0, 1.0], "good": [3.0, 3.5]}
    assert figures.front(sweep, costs) == best
    assert figures.front(sweep, costs | {"cheap": [2.1, 2.2]}) == [v for v in best if v != "cheap"][:2] * (better > 0)
    assert figures.front(sweep, {"base": [2.0, 3.1], "good": [3.0, 3.5]}) == [], "they may cost the same"
    assert figures.front(sweep, costs | {"good": [0.5, 0.6]}) == [], "nothing is shown to be better than the cheapest"
    (tmp_path / "runs" / "good" / "seed1" / "result.json").unlink()
    assert figures.front(read(tmp_path), costs) == [], "nothing is shown before the end"


def test_an_unseen_front_is_not_drawn(tmp_path: Path) -> None:
    sweep = _write(tmp_path, {"base": 0.0, "same": 0.0})
    (picture,) = figures.fronts(sweep, tmp_path / "figures")
    assert isinstance(picture, figures.Picture)
    assert picture.stem == "front-parameters", "equal times are no other cost"
    assert picture.caption.endswith("No front is drawn: none is shown to be better than all that costs no more.")


def test_every_part_is_in_the_markdown(written: Path) -> None:
    text = (written / "report.md").read_text()
    for part in (
        "| base (reference) | 90.", "| good | ", " | undecided | 3 | 1 of 4 |", "Look 1 at this sweep, with 4 seeds",
        "A failed run counts as the worst", "| base | 0.003 | 0.001 to 0.003 | 1.05 | 3 | 1 |", "figures/tuning.png",
        "figures/differences.png", "figures/learning.png", "figures/learning-validation.png",
        "| base, same, poor | uno |", "figures/front-train_seconds.png", "| good | ✓ one |",
        "| eins \\<0> |", "1 more example", "## Other metrics",
        "Loss on test; less is better", f"failed: {LOST}", "█▇▇▆▅▅▄▃▂▂▁", "Hypothesis: yes.", "| begun | 2026-01-01",
        "| poor | `5` |",
    ):  # fmt: skip
        assert part in text, part
    assert "<script" not in text
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1, table
    others = text.split("## Other metrics")[1].split("## Every run")[0]
    assert "verdict |" not in others
    assert not re.search("better \\||worse \\||undecided", others)
    assert "; less is better" in others


def test_several_values_are_tuned_together(tmp_path: Path) -> None:
    """They have no curve and no width."""
    value = {"optimizer.learning_rate": 0.003, "data.batch_tokens": 4096}
    tried = {"base": [{"value": value, "losses": [1.0, 1.1], "mean": 1.05, "diverged": 0}]}
    tuning = {"key": "recipe", "seeds": [90, 91], "tried": tried, "chosen": {"base": value}, "width": {}}
    (table,) = report._tuning(_write(tmp_path, {"base": 0.0}, plan={"tuning": tuning}), tmp_path)
    assert table.rows == [["base", "`optimizer.learning_rate=0.003`, `data.batch_tokens=4096`", "–", "1.05", "1", "0"]]


def test_no_wall_of_text(written: Path) -> None:
    for text in (written / "report.md").read_text().split("\n\n"):
        if not text.startswith(("#", "|", "!")):
            assert len(re.findall(r"[.:] [A-Z“]", text)) < 3, text


def test_different_commits_versions_and_data_are_warned_of(tmp_path: Path) -> None:
    sweep = _write(
        tmp_path, {"base": 0.0, "same": 0.0}, seeds=1, commit=lambda v, _: v, fingerprint=lambda v, _: v[0],
        versions=lambda v, _: {"jax": v},
    )  # fmt: skip
    said = " ".join(report._warnings(sweep))
    assert "different commits (`base`; `same`)" in said
    assert "different versions (jax base; jax same)" in said
    assert "different data (`b`; `s`)" in said
    assert "There is one seed" in said


def test_no_sweep_and_no_run_are_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no sweep"):
        report.write(tmp_path)
    _write(tmp_path, {"base": 0.0}, seeds=1, lost=(("base", 0),))
    with pytest.raises(UserError, match=f"none of the 1 runs .* has finished, nothing to report: {LOST}"):
        report.write(tmp_path)


def test_a_report_written_twice_is_the_same(written: Path) -> None:
    files = [path for path in written.rglob("*") if path.is_file()]
    before = {path: path.read_bytes() for path in files}
    report.write(written)
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


def test_the_page_needs_nothing_but_itself(written: Path) -> None:
    text = (written / "report.html").read_text()
    links = _Links()
    links.feed(text)
    assert links.open == []
    assert links.loads
    assert all(link.startswith("data:image/svg+xml;base64,") for link in links.loads)
    assert "aria-sort" in text
    assert "<tr><thead>" not in text, "a table has one head"
    for part in ("prefers-color-scheme: dark", "@media print", '<table class="sortable"', 'class="spark"', "<details>"):
        assert part in text, part
    for part in ("url(", "@import", "http:", "https:"):
        assert part not in text, part


@contextlib.contextmanager
def _opened(path: Path, width: int = 1200) -> Iterator[chromium.Page]:
    if not chromium.found():
        pytest.skip("no Chromium is installed")
    opened = chromium.Page(path.as_uri(), width)
    try:
        yield opened
        assert opened.errors == []
    finally:
        opened.close()


def test_the_page_works_in_a_browser(written: Path) -> None:
    """Buttons show other curves; a phone's page is no wider than the phone."""
    with _opened(written / "report.html", width=400) as opened:
        hidden = "[...document.querySelectorAll('.choice > div')].map(part => part.hidden)"
        assert opened.evaluate(hidden) == [False, True]
        opened.click(".choice > button:nth-of-type(2)")
        assert opened.evaluate(hidden) == [True, False]
        assert opened.evaluate("document.documentElement.scrollWidth") == 400


def test_headers_sort(tmp_path: Path) -> None:
    """Numbers as numbers, and empty cells last whichever way; a header can be pressed by key."""
    cells = ["10 [2, 30]", "9", "−1.5", "< 0.001", "–", "1,200"]
    table = Table(["name", "value", "text"], [[str(place), cell, f"b{cell}"] for place, cell in enumerate(cells)])
    (tmp_path / "page.html").write_text(page("t", [table], tmp_path))
    with _opened(tmp_path / "page.html") as opened:
        order = "[...document.querySelectorAll('tbody tr')].map(row => row.cells[0].innerText).join('')"
        assert opened.evaluate(order) == "012345"
        opened.click("th:nth-child(2) button")
        assert opened.evaluate(order) == "231054"
        assert opened.evaluate("document.activeElement.tagName") == "BUTTON"
        opened.click("th:nth-child(2) button")
        assert opened.evaluate(order) == "501324"
        assert opened.evaluate("document.querySelectorAll('th')[1].getAttribute('aria-sort')") == "descending"
        opened.click("th:nth-child(3) button")
        assert opened.evaluate("[...document.querySelectorAll('[aria-sort]')].length") == 1


def test_text_is_escaped() -> None:
    table = Table(["h|1", "2"], [["<i>", "v"], ["x\ny", "z"], ["bad", Spark([1.0, 3.0, 2.0])]], marks={"v": "#123456"})
    choice = Choice("<by>", {"<u>": [Paragraph("x < y & `k<e>y` *z*")], "other": [Paragraph("second")]})
    blocks = [Heading("a"), choice, Bullets(["<b>"]), Details("<s>", [table])]
    shown = page("t<", blocks, Path())
    for tag in ("<b>", "<i>", "<u>", "<by>", "<s>"):
        assert tag not in shown
    assert "x &lt; y &amp; <code>k&lt;e&gt;y</code>" in shown
    assert '<span class="mark" style="--mark: #123456">v</span>' in shown
    plain = markdown("t", blocks)
    assert r"x \< y & `k<e>y` \*z\*" in plain
    assert r"h\|1" in plain
    assert "| x y | z |" in plain
    assert "| bad | ▁█▅ |" in plain


def test_numbers_read_as_numbers() -> None:
    percent = Metric("exact match", "%", 100.0, 1)
    assert words.number(-0.0001, percent, True) == "0.0"
    assert words.number(-0.021, percent, True) == "−2.1"
    assert words.number(0.021, percent, True) == "+2.1"
    assert words.interval(None, None, percent) == ""
    assert words.listed(list("abcde")) == "a, b, c and 2 others"
    assert words.listed(["a", "b"]) == "a and b"


def test_eight_names_have_eight_looks() -> None:
    look = plots.styles(["a-x", "a-y", "b-x", "b-y"])
    assert look["a-x"].color == look["a-y"].color != look["b-x"].color == look["b-y"].color
    assert look["a-x"].line == look["b-x"].line != look["a-y"].line == look["b-y"].line
    alone = plots.styles([f"v{k}" for k in range(8)]).values()
    for part in ("color", "line", "marker"):
        assert len({getattr(style, part) for style in alone}) == 8, part
    many = plots.styles([f"v{k}" for k in range(64)]).values()
    assert len({(style.color, style.marker) for style in many}) == 64


def test_a_forest_shows_verdicts_failures_and_what_does_not_matter() -> None:
    rows = [
        comparisons.Row("a", 1.0, 0.5, 1.5, [0.9, 1.1], verdict="better"),
        comparisons.Row("b$", -50.0, -90.0, 20.0, [0.2], [-90.0], "undecided", "1 of 2 failed"),
        comparisons.Row("c", 0.4, np.nan, np.nan, [0.4]),
    ]
    axes = comparisons.forest(rows, 0.3, "points").axes[0]
    left, right = axes.get_xlim()
    assert -1 < left < -0.3 < 1.5 < right < 2, "a failed run does not set the axis"
    band = axes.patches[0].get_extents().transformed(axes.transData.inverted())
    assert (band.x0, band.x1) == pytest.approx((-0.3, 0.3))
    texts = {text.get_text(): text for text in axes.texts}
    assert list(texts) == ["better", "undecided", "1 of 2 failed"]
    assert texts["better"].get_color() == comparisons.VERDICTS["better"]
    crosses = [line for line in axes.lines if line.get_marker() == "x"]
    assert [float(line.get_xdata()[0]) for line in crosses] == [left]
    assert [line.get_marker() for line in axes.lines].count(">") == 1
    assert len({mpl.colors.to_rgb(color) for color in comparisons.VERDICTS.values()}) == 5


def test_a_forest_tells_the_seeds_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep, drawn, forest = _write(tmp_path, lost=(("good", 2),)), [], comparisons.forest
    monkeypatch.setattr(comparisons, "forest", lambda rows, *more: drawn.extend(rows) or forest(rows, *more))
    figures.forest(sweep, tmp_path / "figures")
    assert [(row.name, len(row.dots), len(row.crosses), row.verdict, row.note) for row in drawn] == [
        ("same", 4, 0, "equivalent", ""), ("good", 3, 1, "undecided", "1 of 4 failed"), ("poor", 4, 0, "worse", ""),
    ]  # fmt: skip
    assert drawn[1].crosses[0] < -85


def test_curves_and_rates_hold_what_they_were_given() -> None:
    look = plots.styles(["a", "b"])
    steps = np.arange(1.0, 5.0)
    skipped = np.array([[4.0, np.nan, np.nan, 1.0], [2.0, np.nan, 3.0, 1.0]])  # a step without a loss is null
    curve = comparisons.learning_curves({"a": (steps, skipped)}, look, "x", "loss")
    found = curve.axes[0].lines[0].get_ydata()
    np.testing.assert_array_equal(np.ma.filled(found, np.nan), [3.0, np.nan, 3.0, 1.0])
    assert curve.axes[0].get_xscale() == "log"
    assert plots.to_svg(curve) == plots.to_svg(curve)
    losses = np.array([[1.0, 0.5, np.nan]] * 3)
    axes = comparisons.rates({"a": (steps[:3], losses)}, {"a": [3.0]}, {"a": 2.0}, look, "rate", "loss").axes[0]
    assert [(*line.get_xdata(), *line.get_ydata()) for line in axes.lines if line.get_markersize() == 12] == [(2, 0.5)]
    assert [float(line.get_xdata()[0]) for line in axes.lines if line.get_marker() == "x"] == [3]
    assert np.isfinite(axes.get_ylim()).all()


def test_fronts_and_lengths_hold_what_they_were_given() -> None:
    look = plots.styles(["a", "b"])
    points = {"a": ((1.0, 0.9, 1.2), (2.0, 1.5, 2.5)), "b": ((3.0, 3.0, 3.0), (1.0, 0.0, 2.0))}
    line = comparisons.front(points, ["a"], look, "x", "y").axes[0].lines[-1].get_xydata()
    assert line[1] == pytest.approx([1, 2])
    assert line[2, 1] == 2, "and on to the right at the same height"
    assert all(len(line.get_xdata()) == 1 for line in comparisons.front(points, [], look, "x", "y").axes[0].lines)
    at, mean, edges = np.array([0.0, 1.0]), np.array([0.5, 0.25]), np.array([0.0, 4.0, 8.0, 16.0])
    axes = comparisons.against_length({"a": (at, mean, mean - 0.1, mean + 0.1)}, edges, look, "x", "y", 8, True).axes[0]
    assert axes.lines[0].get_ydata() == pytest.approx([50, 25])
    shaded = axes.patches[0].get_extents().transformed(axes.transData.inverted())
    assert shaded.x1 == pytest.approx(1.5)  # between the second and the third bin


def test_learning_curves_have_a_switch(tmp_path: Path) -> None:
    """The null of metrics.jsonl comes through result.json; without FLOPs there is no axis of them."""
    curve = [[0, 5.0], [100, 3.0], [200, None], [300, 2.0]]
    sweep = _write(tmp_path, {"base": 0.0}, seeds=1, curve=curve)
    (choice,) = figures.learning(sweep, tmp_path / "figures")
    assert isinstance(choice, Choice)
    assert {label: [picture.stem for picture in pictures] for label, pictures in choice.options.items()} == {
        "steps": ["learning"], "tokens": ["learning-tokens"],
    }  # fmt: skip
    assert (tmp_path / "figures" / "learning.svg").exists()


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
