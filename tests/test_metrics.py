"""What outputs are worth: against other implementations and by hand; and intervals that hold what they say."""

from typing import Any

import numpy as np
import pytest
import sacrebleu
from sacrebleu.significance import estimate_ci
from sklearn.metrics import f1_score

from transformer.evaluation import metrics


def _totals(found: dict[str, metrics.Measured]) -> dict[str, float]:
    return {name: metric.total for name, metric in found.items()}


def _sentences(seed: int, count: int, wrong: float = 0.0, against: list[str] | None = None) -> list[str]:
    """Random sentences, or those of `against` with so large a share of their words replaced."""
    rng, words = np.random.default_rng(seed), [f"w{i}" for i in range(30)]
    if against is None:
        return [" ".join(rng.choice(words, rng.integers(3, 12))) for _ in range(count)]
    return [" ".join(rng.choice(words) if rng.random() < wrong else w for w in text.split()) for text in against]


TRUTHS = _sentences(0, 150)


@pytest.mark.parametrize(
    ("output", "reference", "errors"),
    [("one two", "one two", 0), ("", "one two", 2), ("one", "", 1), ("one three two", "one two", 1),
     ("two one", "one two", 2), ("four one two", "one two three", 2)],
)  # fmt: skip
def test_word_errors(output: str, reference: str, errors: int) -> None:
    assert metrics.word_errors(output, reference) == errors
    assert metrics.word_errors(reference, output) == errors


def test_word_errors_by_recursion() -> None:
    """The definition, without a table."""

    def distance(a: tuple[str, ...], b: tuple[str, ...]) -> int:
        if not a or not b:
            return len(a) + len(b)
        return min(distance(a[1:], b[1:]) + (a[0] != b[0]), distance(a[1:], b) + 1, distance(a, b[1:]) + 1)

    random = np.random.default_rng(3)
    for _ in range(60):
        a, b = (tuple(random.choice(list("xyz"), random.integers(0, 6))) for _ in range(2))
        assert metrics.word_errors(" ".join(a), " ".join(b)) == distance(a, b)


def test_speech_metrics_count_words_over_all_references() -> None:
    found = _totals(metrics.transcripts(["one two", "six", ""], ["one two", "one six", "two"]))
    assert found == {"word_error_rate": 2 / 5, "exact_match": 1 / 3}


def test_answers_by_kind() -> None:
    found = _totals(metrics.answers(["85", "86", "x"], ["85", "85", "x"], ["sums", "sums", "words"]))
    assert found == {"answers": 2 / 3, "answers_sums": 1 / 2, "answers_words": 1.0}


def test_summaries_are_scored_by_their_best_reference() -> None:
    """ROUGE-1 by hand: 2 of 3 words shared with the second reference of 4."""
    found = _totals(metrics.summaries(["the cat sat"], [["a dog", "the cat ran off"]]))
    precision, recall = 2 / 3, 2 / 4
    assert found["rouge1"] == pytest.approx(100 * 2 * precision * recall / (precision + recall))
    assert found["rouge2"] == pytest.approx(100 * 2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3))


def test_bleu_and_chrf_are_those_of_sacrebleu() -> None:
    outputs = _sentences(1, 0, 0.3, TRUTHS)
    found = metrics.translations(outputs, TRUTHS)
    assert found["bleu"].total == pytest.approx(sacrebleu.corpus_bleu(outputs, [TRUTHS]).score, abs=1e-9)
    assert found["chrf"].total == pytest.approx(sacrebleu.corpus_chrf(outputs, [TRUTHS]).score, abs=1e-9)
    assert found["exact_match"].total == np.mean([a == b for a, b in zip(outputs, TRUTHS, strict=True)])
    told = metrics.signatures()
    assert told["bleu_signature"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp")
    assert told["chrf_signature"].startswith("nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no")
    assert _totals(metrics.translations([""], ["a"])) == {"exact_match": 0, "bleu": 0, "chrf": 0}


def test_macro_f1_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    right, guessed = rng.integers(0, 5, (2, 97))
    found = metrics.classes(right, guessed, 5)
    assert found["macro_f1"].total == pytest.approx(f1_score(right, guessed, average="macro"))
    assert found["accuracy"].total == np.mean(right == guessed)
    assert metrics.classes(np.array([0, 1]), np.array([0, 1]), 3)["macro_f1"].total == 1  # the third is never there


def test_of_nothing() -> None:
    assert metrics.ratio([], []).total == 0
    assert metrics.ratio([0.0], [0.0], np.exp).total == 1


# --- Intervals


def test_an_interval_of_bleu_is_as_wide_as_sacrebleus() -> None:
    outputs = _sentences(1, 0, 0.3, TRUTHS)
    low, high = metrics.bootstrap(metrics.translations(outputs, TRUTHS)["bleu"], 1000)
    theirs: Any = sacrebleu.BLEU().corpus_score(outputs, [TRUTHS], n_bootstrap=1000)
    assert (high - low) / 2 == pytest.approx(theirs._ci, rel=0.1)
    assert (high + low) / 2 == pytest.approx(theirs._mean, abs=0.3 * theirs._ci)
    assert estimate_ci(np.arange(1000.0))[1] == pytest.approx(475, abs=2)  # theirs are 95 % as well


def test_intervals_hold_the_truth_in_95_of_100() -> None:
    rng = np.random.default_rng(5)
    held = 0
    for seed in range(400):
        tops, bottoms = rng.normal(2.0, 1.0, 120), rng.uniform(1, 9, 120)
        low, high = metrics.bootstrap(metrics.ratio(tops * bottoms, bottoms), 300, seed)
        held += low <= 2.0 <= high
    assert 0.915 <= held / 400 <= 0.98  # 2.6 standard errors around 0.95, and percentiles are a little narrow


def test_the_same_differ_by_nothing() -> None:
    same = metrics.mean(np.random.default_rng(0).random(50))
    assert metrics.paired(same, same, 200) == (0.0, 0.0, 0.0, 1.0)


def test_a_pair_shares_what_is_hard_for_both() -> None:
    """Each figure alone is uncertain by far more than the difference, which pairing shows."""
    rng = np.random.default_rng(2)
    hard = rng.normal(0, 10, 300)
    a, b = metrics.mean(hard + 0.2 + rng.normal(0, 0.5, 300)), metrics.mean(hard + rng.normal(0, 0.5, 300))
    found = metrics.paired(a, b, 1000)
    low, high = metrics.bootstrap(a, 1000)
    assert found.difference == pytest.approx(a.total - b.total)
    assert 0 < found.low < 0.2 < found.high < 0.4
    assert high - low > 10 * (found.high - found.low)
    assert found.p < 0.01
    assert metrics.paired(b, a, 1000).high == pytest.approx(-found.low)


def test_no_difference_is_found_where_there_is_none() -> None:
    rng = np.random.default_rng(3)
    claims = sum(metrics.paired(metrics.mean(x), metrics.mean(y), 200).p < 0.05 for x, y in rng.random((200, 2, 60)))
    assert claims <= 20  # 10 are to be expected


def test_few_examples_have_no_interval() -> None:
    """Draws of two alike would claim certainty."""
    few, enough = (metrics.mean(np.arange(count)) for count in (metrics.MIN_UNITS - 1, metrics.MIN_UNITS))
    assert metrics.bootstrap(few, 100) is None
    assert metrics.bootstrap(enough, 100) is not None
    assert metrics.paired(few, metrics.mean(np.ones(9)), 100) == (few.total - 1, None, None, None)


def test_examples_come_in_their_order_and_padding_in_none() -> None:
    metric = metrics.ratio([5, 0, 7, 6], [1, 0, 1, 2])
    found = metrics.in_order({"loss": metric}, np.array([5, -1, 7, 6]))["loss"]
    assert found.statistics.tolist() == [[5, 1], [6, 2], [7, 1]]
    assert found.units is not None
    assert found.units.tolist() == [5, 6, 7]
    assert found.total == metric.total
    other = metrics.in_order({"loss": metric}, np.array([5, -1, 8, 6]))["loss"]
    assert metrics.comparable(found, found)
    assert not metrics.comparable(found, other), "of other examples"
    assert not metrics.comparable(found, found._replace(statistics=found.statistics + 1)), "of other tokens"


def test_neighbours_that_are_alike_are_drawn_together() -> None:
    """A forecast of H values from each place of a series: drawn one by one, forecasts pretend to be H times as many."""
    rng, horizon, held = np.random.default_rng(8), 12, {1: 0, 24: 0}
    for seed in range(150):
        errors = rng.normal(size=700 + horizon) ** 2
        windows = np.lib.stride_tricks.sliding_window_view(errors, horizon).sum(axis=1)
        metric = metrics.ratio(windows, np.full(len(windows), horizon))
        for size in held:
            blocks = metrics.in_blocks({"loss": metric}, size)["loss"]
            assert blocks.total == pytest.approx(metric.total)
            low, high = metrics.bootstrap(blocks, 100, seed)  # type: ignore[misc]
            held[size] += low <= 1 <= high
    assert held[1] < 0.6 * 150
    assert held[24] > 0.85 * 150


def test_a_pair_is_of_the_same_examples() -> None:
    with pytest.raises(ValueError, match="3 examples against 4"):
        metrics.paired(metrics.mean([1, 2, 3]), metrics.mean([1, 2, 3, 4]), 10)
