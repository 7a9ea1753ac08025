"""Baselines that need no trained run, measured on the same split."""

from collections import Counter
from typing import Any

import numpy as np

from transformer import tasks
from transformer.data.builtin.leads import first_sentence
from transformer.evaluation.metrics import summaries, translations
from transformer.evaluation.written import examples_of, references
from transformer.tasks.trained import Trained


def baselines(trained: Trained, split: str) -> dict[str, Any]:
    """Name -> metrics, for the kind of task; empty where no simple baseline is known."""
    for kind, function in (
        (tasks.SpeechRecognition, None),
        (tasks.SpanCorruption, None),
        (tasks.Summarization, _summaries),
        (tasks.Translation, _translations),
        (tasks.LanguageModel, _unigram),
        (tasks.Classification, _classes),
        (tasks.Forecasting, _forecasts),
    ):
        if isinstance(trained.task, kind):
            return {} if function is None else function(trained, split)
    return {}


def _summaries(trained: Trained, split: str) -> dict[str, Any]:
    """The first sentence, and the whole text."""
    source, target = trained.source.pair(trained.config.data)
    examples = examples_of(trained, split)
    truths = [references(example, target) for example in examples]
    texts = [example[source] for example in examples]
    lead = [first_sentence(text) for text in texts]
    return {name: _totals(summaries(own, truths)) for name, own in (("lead sentence", lead), ("copy", texts))}


def _totals(found: dict[str, Any]) -> dict[str, float | None]:
    return {name: metric.total for name, metric in found.items()}


def _translations(trained: Trained, split: str) -> dict[str, Any]:
    """The unchanged source."""
    source, target = trained.source.pair(trained.config.data)
    examples = examples_of(trained, split)
    return {"copy": _totals(translations([e[source] for e in examples], [e[target] for e in examples]))}


def _unigram(trained: Trained, split: str) -> dict[str, Any]:
    """Loss in nats per token of the unigram frequencies of the training tokens, with add-one smoothing."""
    task = trained.task

    def counts(split: str) -> np.ndarray:
        found: Counter[int] = Counter()
        for batch in task.batches(trained.source, split).evaluation():
            found.update(batch["targets"][np.asarray(task.weights(batch))].tolist())
        return np.array([found[i] for i in range(task.model_config.vocab_size)], np.float64)

    chance, seen = counts("train") + 1, counts(split)
    return {"unigram": {"loss": float(-(seen * np.log(chance / chance.sum())).sum() / seen.sum())}}


def _classes(trained: Trained, split: str) -> dict[str, Any]:
    """The most frequent class, and logistic regression on words or letters, on pixels, or on the mean and the deviation
    of each mel band."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from transformer.data.batches.corpus import read_labels

    task, source = trained.task, trained.source
    texts = isinstance(task, tasks.TextClassification)
    steps: dict[str, Any]
    if texts:
        field = source.field(trained.config.data.target)
        steps = {
            "words and pairs of them": TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\w+", sublinear_tf=True),
            "one to three characters": TfidfVectorizer(ngram_range=(1, 3), analyzer="char_wb", sublinear_tf=True),
        }

        def read(part: str) -> tuple[Any, np.ndarray]:
            numbers = task.batches(source, part).evaluated
            texts = [example[field] for example in source.split(part).many(numbers.tolist())]
            return texts, read_labels(source, part, trained.config.data)[numbers]

    else:
        speech = isinstance(task, tasks.SpeechClassification)
        steps = {"mean and deviation of mel bands" if speech else "pixels": StandardScaler()}

        def read(part: str) -> tuple[Any, np.ndarray]:
            features, labels = [], []
            for batch in task.batches(source, part).evaluation():
                real = np.flatnonzero(batch["example_ids"] >= 0)
                for i in real:
                    x = batch["inputs"][i]
                    if speech:
                        x = x[: batch["input_lengths"][i]]
                        x = np.concatenate([x.mean(axis=0), x.std(axis=0)])
                    features.append(x.reshape(-1))
                labels.append(batch["labels"][real])
            return np.stack(features), np.concatenate(labels)

    (x, y), (test_x, test_y) = read("train"), read(split)
    majority = int(np.bincount(y).argmax())
    found = {"most frequent class": {"accuracy": float((test_y == majority).mean())}}
    for name, step in steps.items():
        model = make_pipeline(step, LogisticRegression(max_iter=200, C=10.0 if texts else 1.0))
        found[f"logistic regression, {name}"] = {"accuracy": float(model.fit(x, y).score(test_x, test_y))}
    return found


def _forecasts(trained: Trained, split: str) -> dict[str, Any]:
    """The last value repeated; the value one season before (seasonal naive), where the season is known and within the
    look-back; and one linear map of the look-back minus its last value (NLinear, Zeng et al. 2023), shared by all
    variables, by least squares with a ridge chosen on validation."""
    task, source = trained.task, trained.source

    def pairs(part: str) -> tuple[np.ndarray, np.ndarray]:
        inputs, targets = [], []
        for batch in task.batches(source, part).evaluation():
            real = batch["example_ids"] >= 0
            inputs.append(batch["inputs"][real])
            targets.append(batch["targets"][real])
        return np.concatenate(inputs), np.concatenate(targets)

    def flat(inputs: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        last = inputs[:, -1:]
        x, y = ((a - last).transpose(0, 2, 1).reshape(-1, a.shape[1]) for a in (inputs, targets))
        return np.concatenate([x, np.ones((len(x), 1), x.dtype)], axis=1), y

    def errors(guess: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        error = guess - targets
        return {"loss": float((error**2).mean(dtype=np.float64)), "mae": float(np.abs(error).mean(dtype=np.float64))}

    inputs, targets = pairs(split)
    test_x, test_y = flat(inputs, targets)
    x, y = flat(*pairs("train"))
    valid_x, valid_y = flat(*pairs("validation"))
    gram, cross = x.T.astype(np.float64) @ x, x.T.astype(np.float64) @ y
    maps = [np.linalg.solve(gram + ridge * len(x) * np.eye(len(gram)), cross) for ridge in (1e-6, 1e-4, 1e-2, 1e-1)]
    best = min(maps, key=lambda w: errors(valid_x @ w, valid_y)["loss"])
    found: dict[str, Any] = {"repeat the last value": errors(0 * test_y, test_y)}
    found["seasonal naive"] = _seasonal(trained, inputs, targets, errors)
    return found | {"linear": errors(test_x @ best, test_y)}


def _seasonal(trained: Trained, inputs: np.ndarray, targets: np.ndarray, errors: Any) -> dict[str, Any]:
    """The last season of `inputs` [B, L, C] repeated, with its steps; or the reason why there is none."""
    data = trained.config.data
    season = data.season or trained.source.facts.get("season", 0)
    if season < 2:
        why = "the frequency of the series has no season" if season else "the series has no dates that tell its season"
        return {"loss": None, "reason": f"{why}: set data.season"}
    if season > data.max_len:
        return {"loss": None, "reason": f"data.max_len={data.max_len} is shorter than a season of {season} steps"}
    places = data.max_len - season + np.arange(data.horizon) % season
    return errors(inputs[:, places], targets) | {"season": season}
