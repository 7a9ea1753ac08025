"""What an experiment measures on a trained model, unless it brings a `measure` of its own.

Translation: loss, token accuracy, exact match and BLEU of greedy translations, on each split and by length.
Language models: loss, perplexity and bits a byte, over all and by position. Other tasks: what `evaluate` gives.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from transformer.config import Config

BINS = 8  # of length, half of them within the lengths of training
SPLITS = ("test", "longer")
SAMPLES = 5  # translations that a report shows
SUMMARY = ("exact_match", "bleu", "token_accuracy", "loss", "perplexity")  # what is computed for translations


@dataclasses.dataclass(frozen=True)
class Metric:
    """How a metric is shown: its values times `scale` are in `unit`; `better` is +1 where more is better, -1 where less
    is, 0 where neither is; `noise` is the row of `statistics.SCALES` on which it is compared."""

    label: str
    unit: str = ""
    scale: float = 1.0
    digits: int = 2
    better: int = 1
    noise: str = "plain"

    @property
    def points(self) -> str:
        """The unit of a difference, with a space before it."""
        return " points" if self.unit == "%" else f" {self.unit}" if self.unit else ""


METRICS = {
    "exact_match": Metric("exact match", "%", 100.0, 1, noise="logit"),
    "token_accuracy": Metric("token accuracy", "%", 100.0, 2, noise="logit"),
    "bleu": Metric("BLEU", "", 1.0, 2, noise="hundred"),
    "loss": Metric("loss", "nats a token", 1.0, 4, -1, noise="log"),
    "bits_per_byte": Metric("bits a byte", "", 1.0, 4, -1, noise="log"),
    "accuracy": Metric("accuracy", "%", 100.0, 2, noise="logit"),
    "macro_f1": Metric("macro F1", "%", 100.0, 2, noise="logit"),
    "mae": Metric("mean absolute error", "", 1.0, 4, -1, noise="log"),
    "rouge1": Metric("ROUGE-1", noise="hundred"),
    "rouge2": Metric("ROUGE-2", noise="hundred"),
    "rougeL": Metric("ROUGE-L", noise="hundred"),
    "word_error_rate": Metric("word error rate", "%", 100.0, 2, -1, noise="log"),
    "answers": Metric("right answers", "%", 100.0, 2, noise="logit"),
    "perplexity": Metric("perplexity", "", 1.0, 2, -1, noise="log"),
    "bytes_per_token": Metric("bytes a token", "", 1.0, 2, 0),
    "entropy": Metric("entropy of attention after training", "nats", 1.0, 2, 0),
    "entropy_at_start": Metric("entropy of attention at the start", "nats", 1.0, 2, 0),
    "recall_inside": Metric("recall up to N · w", "%", 100.0, 1, noise="logit"),
    "recall_outside": Metric("recall past N · w", "%", 100.0, 1, 0, "logit"),
    "recall_at_edge": Metric("recall at N · w", "%", 100.0, 1, noise="logit"),
    "recall_past_edge": Metric("recall one past N · w", "%", 100.0, 1, 0, "logit"),
    "gradient_at_start": Metric("gradient norm of queries and keys at the start", "", 1.0, 4, 0),
}
SPLIT_NAMES = {"longer": "longer sentences"}
# Task -> what its reports compare; translation follows below.
MAIN = {
    "language_model": ("loss", "bits_per_byte", "token_accuracy"),
    "masked_language_model": ("loss", "token_accuracy"),
    "span_corruption": ("loss", "token_accuracy"),
    "summarization": ("rougeL", "rouge1", "rouge2", "loss"),
    "speech_recognition": ("word_error_rate", "loss"),
    "prompts": ("answers", "loss"),
    "text_classification": ("accuracy", "macro_f1", "loss"),
    "image_classification": ("accuracy", "macro_f1", "loss"),
    "speech_classification": ("accuracy", "macro_f1", "loss"),
    "forecasting": ("loss", "mae"),
}


def describe(name: str) -> Metric:
    """How a metric named "split/metric" is shown; an unknown one is shown under its own name."""
    split, _, kind = name.rpartition("/")
    known = METRICS.get(kind, Metric(kind, digits=4))
    return dataclasses.replace(
        known, label=f"{known.label} on {SPLIT_NAMES.get(split, split)}" if split else known.label
    )


def main_metrics(config: Config) -> list[str]:
    """The metrics that a report compares; the answer is given for the first of each split."""
    if config.task in MAIN:
        return [f"test/{name}" for name in MAIN[config.task]]
    if config.data.name == "quantities":
        return ["test/exact_match", "longer/bleu", "longer/exact_match", "test/bleu", "test/loss"]
    return ["test/bleu", "test/loss", "test/token_accuracy"]


def measure(trained: Any) -> dict[str, Any]:
    """Metrics of a trained run (`transformer.tasks.trained.Trained`).

    Returns {"metrics": {"split/metric": value, or None where the model cannot take the split},
    "notes": sentences on what could not be measured, "by_length": see `by_length`}.
    """
    if trained.config.task == "language_model":
        return _language_model(trained)
    if trained.config.task == "translation":
        return _translation(trained)
    from transformer.evaluation.splits import evaluate

    found = evaluate(trained, "test")
    return {"metrics": {f"test/{name}": found[name] for name in MAIN[trained.config.task]}, "notes": []}


def token_scores(trained: Any) -> Callable[[Any], tuple[np.ndarray, np.ndarray]]:
    """A compiled batch -> (nll [B, L] in nats, right [B, L] as 0 or 1) under teacher forcing."""
    import jax
    import jax.numpy as jnp

    from transformer.model.families import output_layer
    from transformer.training.losses import cross_entropy

    task = trained.task

    def scores(params: Any, batch: Any) -> tuple[Any, Any]:
        features = task.model.apply(params, *task.arguments(batch), None, method="features")
        table, bias = output_layer(params)
        known = slice(task.model_config.vocab_size)  # the other rows only fill the table up
        table, bias = table[known], None if bias is None else bias[known]

        def one(x: Any, target: Any) -> tuple[Any, Any]:
            logits = x @ table.T if bias is None else x @ table.T + bias
            metrics = cross_entropy(logits[None, None], target[None, None], jnp.ones((1, 1)))
            return metrics["nll"][0][0], metrics["token_accuracy"][0][0]

        # A row at a time: the logits of a whole batch would not stay in the processor's cache.
        return jax.lax.map(lambda row: jax.vmap(one)(*row), (features, batch["targets"]))

    compiled = jax.jit(scores)
    return lambda batch: jax.device_get(compiled(trained.params, batch))


def _translation(trained: Any) -> dict[str, Any]:
    from transformer.data.batches.corpus import tokenize

    config, task, source = trained.config, trained.task, trained.source
    fields = task.fields(config, source)

    def lengths_of(split: str) -> np.ndarray:
        sides = tokenize(source, split, fields, trained.tokenizer, config.data).values()
        return np.max([side.lengths for side in sides], axis=0) + 1

    training = lengths_of("train")
    longest = int(training[training <= config.data.max_len].max())
    limit = task.limit if task.limit is not None else math.inf
    scores = token_scores(trained)

    metrics: dict[str, float | None] = {}
    notes, columns = [], []
    splits = [name for name in SPLITS if name in source.splits]
    sentences = _translations(trained, {split: np.flatnonzero(lengths_of(split) <= limit) for split in splits})
    for split in splits:
        lengths = lengths_of(split)
        fits = lengths <= limit
        outputs, references = sentences[split]
        table = np.zeros((len(lengths), 3))  # summed nll, tokens, tokens that are right
        for batch in task.batches(source, split).evaluation(task.limit):
            nll, right = scores(batch)
            weights = np.asarray(task.weights(batch))
            rows = batch["example_ids"] >= 0
            sums = np.stack([(nll * weights).sum(1), weights.sum(1), (right * weights).sum(1)], axis=1)
            table[batch["example_ids"][rows]] = sums[rows]
        everything = summary(table, outputs, references) if fits.all() else dict.fromkeys(SUMMARY)
        metrics |= {f"{split}/{name}": value for name, value in everything.items()}
        if not fits.all():
            notes.append(
                f"The position table has {task.limit} rows, and {int((~fits).sum())} of the {len(fits)} sentences of "
                f"{split!r} are longer (in tokens): learned positions have no entry for them, so there is no value."
            )
        columns.append((lengths, table, outputs, references))
    lengths, table, outputs, references = (np.concatenate(parts) for parts in zip(*columns, strict=True))
    edges = np.unique(np.round(np.linspace(0, 2 * longest, BINS + 1)).astype(int))
    rows = []
    for low, high in itertools.pairwise(edges):
        inside = (lengths > low) & (lengths <= high)
        known = inside.any() and high <= limit
        values = summary(table[inside], outputs[inside], references[inside]) if known else dict.fromkeys(SUMMARY)
        rows.append({"low": int(low), "high": int(high), "count": int(inside.sum()), **values})
    outputs, references = sentences[splits[0]]
    shown = [i for i in range(min(SAMPLES, len(outputs))) if outputs[i] is not None]
    inputs = [pair[source.pair(config.data)[0]] for pair in source.split(splits[0]).many(shown)]
    return {
        "metrics": metrics,
        "notes": notes,
        "samples": [
            {"source": text, "reference": references[i], "output": outputs[i]}
            for i, text in zip(shown, inputs, strict=True)
        ],
        "by_length": {
            "axis": "length of the longer side (tokens)",
            "trained_to": longest,
            "limit": task.limit,
            "metrics": ["exact_match" if config.data.name == "quantities" else "bleu", "token_accuracy"],
            "rows": rows,
        },
    }


def _translations(trained: Any, chosen: dict[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Split -> (translations, references), each [n] with None at examples that are not chosen (indices into the split).

    All splits are translated in one go, so that each width is compiled once.
    """
    from transformer.writing.lines import generate

    config, source = trained.config, trained.source
    source_field, target_field = source.pair(config.data)
    pairs = [pair for split, indices in chosen.items() for pair in source.split(split).many(indices.tolist())]
    written = iter(generate(trained, [pair[source_field] for pair in pairs]))
    truths = iter(pair[target_field] for pair in pairs)
    found = {}
    for split, indices in chosen.items():
        outputs, references = (np.full(len(source.split(split)), None, object) for _ in range(2))
        for i in indices:
            outputs[i], references[i] = next(written), next(truths)
        found[split] = outputs, references
    return found


def summary(table: np.ndarray, outputs: np.ndarray, references: np.ndarray) -> dict[str, float | None]:
    """The SUMMARY of n examples: table [n, 3] of nll, tokens and right tokens; texts [n]."""
    from transformer.evaluation.metrics import translations

    nll, tokens, right = table.sum(axis=0)
    texts = {name: metric.total for name, metric in translations(list(outputs), list(references)).items()}
    loss = float(nll / tokens)
    values: tuple[float | None, ...] = (
        texts["exact_match"],
        texts["bleu"],
        float(right / tokens),
        loss,
        math.exp(loss),
    )
    return dict(zip(SUMMARY, values, strict=True))


def _language_model(trained: Any) -> dict[str, Any]:
    import jax
    import jax.numpy as jnp

    config, task = trained.config, trained.task
    scores = token_scores(trained)
    context = config.data.max_len
    from transformer.evaluation.splits import text_sizes

    sums = np.zeros((3, context))  # by position: nll, tokens, tokens that are right
    for batch in task.batches(trained.source, "test").evaluation(context):
        nll, right = scores(batch)
        batch = jax.tree.map(jnp.asarray, batch)
        real, where = np.asarray(task.weights(batch)), task.arguments(batch)[1]
        places = np.broadcast_to(where.places(real.shape[1]), real.shape)
        for row, values in enumerate((nll, np.ones_like(nll), right)):
            sums[row] += np.bincount(places[real], weights=values[real], minlength=context)[:context]
    edges = [0] + [2**power for power in range(4, 32) if 2**power < context] + [context]  # 16, 32, 64, ...
    rows = []
    for low, high in itertools.pairwise(edges):
        nll, tokens, right = sums[:, low:high].sum(axis=1)
        known = tokens > 0
        rows.append({"low": low, "high": high, "count": int(tokens), "loss": float(nll / tokens) if known else None,
                     "token_accuracy": float(right / tokens) if known else None})  # fmt: skip
    nll, tokens, right = sums.sum(axis=1)
    loss = float(nll / tokens)
    size = int(text_sizes(trained, "test")[0].sum())
    return {
        "metrics": {
            "test/loss": loss,
            "test/perplexity": math.exp(loss),
            "test/bits_per_byte": float(nll) / math.log(2) / max(size, 1),
            "test/token_accuracy": float(right / tokens),
            "test/bytes_per_token": size / float(tokens),
        },
        "notes": [],
        "by_length": {
            "axis": "position of the predicted token in its context (tokens)",
            "trained_to": context,
            "limit": task.limit,
            "metrics": ["loss"],
            "rows": rows,
        },
    }
