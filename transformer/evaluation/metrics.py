"""Metrics of outputs against references, as functions of sums over examples, and their intervals by the bootstrap
(Koehn 2004, "Statistical significance tests for machine translation evaluation")."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from transformer.evaluation.scripts import bleu_tokenizer, has_spaces, script_of, words

LEVEL = 0.95  # of every interval
MIN_UNITS = 10  # fewest examples to draw from: with fewer, intervals are too narrow


class Measured(NamedTuple):
    """A metric over n examples: their statistics [n, k] are summed, and `value(sums [k])` is the metric, None where it
    has no value for these examples. `units` [n] identifies the examples, where they are not simply all of a split in
    order. `about` is recorded beside the metric: how it was computed, or why it has no value."""

    statistics: np.ndarray
    value: Callable[[np.ndarray], float] | None
    units: np.ndarray | None = None
    about: Mapping[str, str] = {}

    @property
    def total(self) -> float | None:
        """The metric over all examples."""
        return None if self.value is None else float(self.value(self.statistics.sum(axis=0)))


class Difference(NamedTuple):
    """a - b on the same examples, its interval, and the two-sided p-value of no difference; None for too few
    examples."""

    difference: float
    low: float | None
    high: float | None
    p: float | None


def ratio(tops: Any, bottoms: Any, value: Callable[[float], float] = float) -> Measured:
    """`value` of the ratio of the sums of `tops` and `bottoms`, [n] each; `value(0)` where the second sum is 0."""
    statistics = np.stack([np.asarray(tops, np.float64), np.asarray(bottoms, np.float64)], axis=1)
    return Measured(statistics, lambda sums: value(float(sums[0]) / float(sums[1]) if sums[1] else 0.0))


def mean(values: Any, scale: float = 1.0) -> Measured:
    """`scale` times the mean over examples [n]."""
    return ratio(values, np.ones(len(values)), lambda x: scale * x)


def in_order(found: dict[str, Measured], units: np.ndarray) -> dict[str, Measured]:
    """Metrics sorted by their units [n]; negative units (padding) are dropped."""
    order = np.argsort(units, kind="stable")
    order = order[units[order] >= 0]
    return {
        name: metric._replace(statistics=metric.statistics[order], units=units[order]) for name, metric in found.items()
    }


def in_blocks(found: dict[str, Measured], size: int) -> dict[str, Measured]:
    """Metrics whose units are blocks of `size` consecutive examples, for examples that resemble their neighbours (the
    block bootstrap; Künsch 1989, "The jackknife and the bootstrap for general stationary observations")."""
    return {
        name: metric._replace(
            statistics=np.add.reduceat(metric.statistics, np.arange(0, len(metric.statistics), size)), units=None
        )
        for name, metric in found.items()
    }


def comparable(a: Measured, b: Measured) -> bool:
    """Whether the statistics are of the same examples: losses are not if the tokens or the rows differ."""
    if a.value is None or b.value is None or a.about != b.about:
        return False
    if a.statistics.shape != b.statistics.shape:
        return False
    if a.units is not None and b.units is not None and (a.units != b.units).any():
        return False
    return a.statistics.shape[1] != 2 or bool((a.statistics[:, 1] == b.statistics[:, 1]).all())


def bootstrap(measured: Measured, resamples: int, seed: int = 0) -> tuple[float, float] | None:
    """The interval of a metric: percentiles of its values on `resamples` draws of n examples, with replacement; None
    for fewer than MIN_UNITS, or where the metric has no value."""
    if measured.value is None or len(measured.statistics) < MIN_UNITS:
        return None
    values = [measured.value(measured.statistics[drawn].sum(axis=0)) for drawn in _draws(measured, resamples, seed)]
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def paired(a: Measured, b: Measured, resamples: int, seed: int = 0) -> Difference:
    """a - b, with the same draws of examples for both, so that difficulty common to both cancels. p is that of
    sacreBLEU's paired bootstrap: how often a draw's difference is as far from the mean of all draws as the real one is
    from 0."""
    if len(a.statistics) != len(b.statistics):
        raise ValueError(f"{len(a.statistics)} examples against {len(b.statistics)}: a pair is of the same ones")
    if a.value is None or b.value is None or a.total is None or b.total is None:
        raise ValueError("a metric without a value is compared with nothing")
    real = a.total - b.total
    if len(a.statistics) < MIN_UNITS:
        return Difference(real, None, None, None)
    values = np.array(
        [a.value(a.statistics[drawn].sum(axis=0)) - b.value(b.statistics[drawn].sum(axis=0))
         for drawn in _draws(a, resamples, seed)]
    )  # fmt: skip
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    as_far = int((np.abs(values - values.mean()) > abs(real)).sum()) if real else resamples
    return Difference(real, float(low), float(high), (as_far + 1) / (resamples + 1))


def _draws(measured: Measured, resamples: int, seed: int) -> np.ndarray:
    """The indices of the examples of each draw: [resamples, n]."""
    count = len(measured.statistics)
    return np.random.default_rng(seed).integers(0, count, (resamples, count))


def undefined(count: int, name: str, reason: str) -> Measured:
    """A metric without a value for `count` examples, and the reason."""
    return Measured(np.zeros((count, 1)), None, about={f"{name}_reason": reason})


def translations(outputs: Sequence[str], references: Sequence[str]) -> dict[str, Measured]:
    """Exact match, BLEU and chrF2 as sacreBLEU computes them (cased, on plain text), with its signatures. The script of
    the references chooses BLEU's tokenizer, 13a unless words have no spaces between them."""
    import sacrebleu

    exact = [output.strip() == reference.strip() for output, reference in zip(outputs, references, strict=True)]
    chrf = _corpus_metric("chrf", sacrebleu.CHRF(), outputs, references)
    return {"exact_match": mean(exact), "bleu": _bleu(outputs, references), "chrf": chrf}


def _bleu(outputs: Sequence[str], references: Sequence[str]) -> Measured:
    """BLEU; without a value where no tokenizer fits, or no reference is long enough: even a copy would have 0."""
    import sacrebleu

    script = script_of(references)
    tokenizer = bleu_tokenizer(script)
    if tokenizer is None:
        reason = f"{script} has no spaces between words, and no tokenizer of sacreBLEU for it is here: see chrf"
        return undefined(len(outputs), "bleu", reason)
    scorer = sacrebleu.BLEU(tokenize=tokenizer)
    order = scorer.max_ngram_order
    if not any(len(scorer._preprocess_segment(reference).split()) >= order for reference in references):
        reason = f"no reference has the {order} words that BLEU counts runs of: see chrf"
        return undefined(len(outputs), "bleu", reason)
    return _corpus_metric("bleu", scorer, outputs, references)


def _corpus_metric(name: str, scorer: Any, outputs: Sequence[str], references: Sequence[str]) -> Measured:
    """A metric of sacreBLEU, from the counts that it sums."""
    counts = np.asarray(scorer._extract_corpus_statistics(list(outputs), [list(references)]), np.float64)
    return Measured(
        counts,
        lambda sums: scorer._compute_score_from_stats([int(count) for count in sums]).score,
        about={f"{name}_signature": str(scorer.get_signature())},
    )


def summaries(outputs: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Measured]:
    """Mean F1 of ROUGE-1, ROUGE-2 and ROUGE-L (`rouge-score`), in percent; the best of several references counts, as in
    the SciTLDR paper.

    `rouge-score` drops all but a to z and digits. So references in Latin script are scored by its own tokenizer,
    stemmed; others by their words, or by their characters where words have no spaces between them.
    """
    from importlib.metadata import version

    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import Tokenizer

    class Words(Tokenizer):
        def tokenize(self, text: str) -> list[str]:
            return words(text)

    kinds = ["rouge1", "rouge2", "rougeL"]
    scorers = {True: RougeScorer(kinds, use_stemmer=True), False: RougeScorer(kinds, tokenizer=Words())}
    scripts = [script_of(targets) for targets in references]
    rows = [
        scorers[script in ("Latin", "")].score_multi(targets, text)
        for targets, text, script in zip(references, outputs, scripts, strict=True)
    ]
    used = {
        "latin-stemmed" if script in ("Latin", "") else "words" if has_spaces(script) else "characters"
        for script in scripts
    }
    about = {"rouge_signature": f"tok:{'+'.join(sorted(used))}|version:rouge-score {version('rouge-score')}"}
    return {kind: mean([row[kind].fmeasure for row in rows], 100)._replace(about=about) for kind in kinds}


def transcripts(outputs: Sequence[str], references: Sequence[str]) -> dict[str, Measured]:
    """Word error rate (errors over the words of all references), and the share of exact transcripts. Where words have
    no spaces between them, the character error rate in place of the first."""
    exact = [output == reference for output, reference in zip(outputs, references, strict=True)]
    script = script_of(references)
    split, name = (str.split, "word_error_rate") if has_spaces(script) else (_characters, "character_error_rate")
    errors = [_errors(split(output), split(reference)) for output, reference in zip(outputs, references, strict=True)]
    found = {name: ratio(errors, [len(split(r)) for r in references]), "exact_match": mean(exact)}
    if name == "character_error_rate":
        reason = f"{script} has no spaces between words: see character_error_rate"
        found["word_error_rate"] = undefined(len(outputs), "word_error_rate", reason)
    return found


def _characters(text: str) -> list[str]:
    return list("".join(text.split()))


def word_errors(output: str, reference: str) -> int:
    """Fewest words to replace, insert or delete in the output to get the reference (Levenshtein 1966)."""
    return _errors(output.split(), reference.split())


def _errors(output: Sequence[str], target: Sequence[str]) -> int:
    row = list(range(len(target) + 1))
    for i, word in enumerate(output, start=1):
        before, row[0] = row[0], i
        for j, other in enumerate(target, start=1):
            before, row[j] = row[j], min(before + (word != other), row[j] + 1, row[j - 1] + 1)
    return row[-1]


def answers(outputs: Sequence[str], references: Sequence[str], kinds: Sequence[str]) -> dict[str, Measured]:
    """Share of right answers, over all prompts and over each kind."""
    right = np.array([output == reference for output, reference in zip(outputs, references, strict=True)], np.float64)
    found = {"answers": mean(right)}
    for kind in sorted(set(kinds)):
        of_kind = np.array([other == kind for other in kinds])
        found[f"answers_{kind}"] = ratio(right * of_kind, of_kind)
    return found


def classes(right: np.ndarray, guessed: np.ndarray, count: int) -> dict[str, Measured]:
    """Accuracy, and macro F1: the mean of 2 TP / (2 TP + FP + FN) over those of `count` classes that occur among the
    labels or the guesses. `right` and `guessed` are class indices [n]."""
    of, said = (np.eye(count)[labels] for labels in (right, guessed))

    def macro_f1(sums: np.ndarray) -> float:
        hits, either = sums[:count], sums[count:]
        return float(np.mean(2 * hits[either > 0] / either[either > 0])) if either.any() else 0.0

    statistics = np.concatenate([of * said, of + said], axis=1)
    return {"accuracy": mean(right == guessed), "macro_f1": Measured(statistics, macro_f1)}
