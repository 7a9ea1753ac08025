"""python -m transformer.evaluate --workdir=runs/first [--split=test] [--average=N | --best] [--beam=4] [--baselines]

Prints one JSON object as its last line. Of tokens: loss (nats a token, not smoothed), perplexity and token accuracy
of the reference; of language models also bits a byte and perplexity a word. Of classes: loss, accuracy and macro F1.
Of forecasts: MSE and MAE on the scaled series. Of what is written, greedily or by beam search: exact match and BLEU
(translation), ROUGE (summaries), word error rate (speech), share of right answers (prompts). Of several runs, as
--workdir=runs/a,runs/b, only what they write together. --baselines adds what needs no model of ours, on the same split.
"""

import json
import math
from typing import Any

from absl import flags

from transformer import command_line
from transformer.config import UserError
from transformer.generate import Trained, define_manner, generate, restore_from_flags, transcribe
from transformer.writing import GREEDY, Manner

FLAGS = flags.FLAGS


def loss_metrics(trained: Trained, split: str) -> dict[str, float]:
    """What the loss of the task counts, over every token, example or value of a split, each once.

    Raises UserError where the split holds a sequence longer than the model takes.
    """
    from transformer.tasks import LanguageModel, TokenTask
    from transformer.training import losses, sharding, step

    task = trained.task
    batches = task.batches(trained.source, split)
    if task.limit is not None and (long := batches.too_long(task.limit)):
        raise UserError(
            f"{long} examples of {split!r} are longer than the {task.limit} positions of the learned table: train "
            "with a larger model.max_positions, or evaluate another --split"
        )
    layout = sharding.make_layout(trained.config)
    total = step.total(step.make_eval_step(task.loss, layout), trained.params, batches.evaluation())
    means = losses.means(total)
    if not isinstance(task, TokenTask):
        return {name: value for name, value in means.items() if name != "nll"}
    found = {
        "loss": means["nll"],
        "perplexity": math.exp(min(means["nll"], 700.0)),
        "token_accuracy": means["token_accuracy"],
        "tokens": int(total["nll"][1]),
    }
    return found | (text_metrics(trained, split, float(total["nll"][0])) if isinstance(task, LanguageModel) else {})


def text_metrics(trained: Trained, split: str, nats: float) -> dict[str, float]:
    """What all tokens of a split cost, by units that do not depend on the tokenizer: bits a byte of UTF-8, and the
    perplexity of a word (between white space). The ends of the texts are counted in the cost and not in the units."""
    field = trained.source.field(trained.config.data.target)
    texts = [example[field] for example in trained.source.split(split)]
    size, words = sum(len(text.encode()) for text in texts), sum(len(text.split()) for text in texts)
    return {
        "bits_per_byte": nats / math.log(2) / max(size, 1),
        "word_perplexity": math.exp(min(nats / max(words, 1), 700.0)),
    }


def class_metrics(trained: Trained, split: str) -> dict[str, float]:
    """Macro F1 (the mean over classes of 2 TP / (2 TP + FP + FN)), and how many examples there are."""
    import jax
    import numpy as np

    predict = jax.jit(trained.task.predict)
    labels, found = [], []
    for batch in trained.task.batches(trained.source, split).evaluation():
        real = batch["example_ids"] >= 0
        labels.append(batch["labels"][real])
        found.append(np.asarray(predict(trained.params, batch)).argmax(axis=1)[real])
    right, guessed = np.concatenate(labels), np.concatenate(found)
    scores = []
    for c in range(trained.task.model_config.num_classes):
        hits = int(((right == c) & (guessed == c)).sum())
        either = int((right == c).sum() + (guessed == c).sum())
        scores.append(2 * hits / either if either else 1.0)
    return {"macro_f1": float(np.mean(scores)), "examples": len(right)}


def translation_metrics(outputs: list[str], references: list[str]) -> dict[str, Any]:
    """Exact match, and BLEU as sacreBLEU computes it (13a, cased, on plain text) with its signature."""
    import sacrebleu

    bleu = sacrebleu.BLEU()
    score = bleu.corpus_score(outputs, [references])
    exact = sum(output.strip() == reference.strip() for output, reference in zip(outputs, references, strict=True))
    return {
        "exact_match": exact / max(len(references), 1),
        "bleu": score.score,
        "bleu_signature": str(bleu.get_signature()),
    }


def summary_metrics(outputs: list[str], references: list[list[str]]) -> dict[str, Any]:
    """Mean F1 of ROUGE-1, ROUGE-2 and ROUGE-L (`rouge-score`, stemmed); of several references the best counts, as in
    the SciTLDR paper."""
    from rouge_score.rouge_scorer import RougeScorer

    kinds = ["rouge1", "rouge2", "rougeL"]
    scorer = RougeScorer(kinds, use_stemmer=True)
    rows = [scorer.score_multi(targets, text) for targets, text in zip(references, outputs, strict=True)]
    return {kind: 100 * sum(row[kind].fmeasure for row in rows) / max(len(rows), 1) for kind in kinds}


def word_errors(output: str, reference: str) -> int:
    """Fewest words to replace, insert or delete in the output to get the reference (Levenshtein 1966)."""
    target = reference.split()
    row = list(range(len(target) + 1))
    for i, word in enumerate(output.split(), start=1):
        before, row[0] = row[0], i
        for j, other in enumerate(target, start=1):
            before, row[j] = row[j], min(before + (word != other), row[j] + 1, row[j - 1] + 1)
    return row[-1]


def speech_metrics(outputs: list[str], references: list[str]) -> dict[str, Any]:
    """Word error rate, errors over words of all references, and the share of exact transcripts."""
    errors = sum(map(word_errors, outputs, references))
    words = sum(len(reference.split()) for reference in references)
    exact = sum(map(str.__eq__, outputs, references))
    return {"word_error_rate": errors / max(words, 1), "exact_match": exact / max(len(references), 1)}


def answer_metrics(outputs: list[str], references: list[str], kinds: list[str]) -> dict[str, Any]:
    """Share of right answers, of each kind of prompt and of all."""
    right = [output == reference for output, reference in zip(outputs, references, strict=True)]
    table = {kind: [ok for ok, k in zip(right, kinds, strict=True) if k == kind] for kind in sorted(set(kinds))}
    return {"answers": sum(right) / max(len(right), 1)} | {
        f"answers_{kind}": sum(found) / len(found) for kind, found in table.items()
    }


def written_metrics(trained: Trained, split: str, manner: Manner = GREEDY) -> dict[str, Any]:
    """What the task's outputs are worth; nothing for tasks that write none."""
    source, data, task = trained.source, trained.config.data, trained.config.task
    if task not in ("translation", "summarization", "speech_recognition", "prompts"):
        return {}
    examples = list(source.split(split))
    if task == "speech_recognition":
        return speech_metrics(
            transcribe(trained, split, manner), [example[source.field(data.target)] for example in examples]
        )
    if task == "prompts":
        outputs = generate(trained, [example["prompt"] for example in examples], manner)
        return answer_metrics(
            outputs, [e["answer"] for e in examples], ["sums" if "+" in e["prompt"] else "words" for e in examples]
        )
    text, target = source.pair(data)
    outputs = generate(trained, [example[text] for example in examples], manner)
    if task == "translation":
        return translation_metrics(outputs, [example[target] for example in examples])
    return summary_metrics(outputs, [references(example, target) for example in examples])


def references(example: dict[str, Any], target: str) -> list[str]:
    """All summaries of an example; some datasets have several, a line each."""
    return example["references"].splitlines() if "references" in example else [example[target]]


def evaluate(trained: Trained, split: str = "test", manner: Manner = GREEDY) -> dict[str, Any]:
    """All metrics of a split; see the head of this file. An ensemble has those of what it writes alone."""
    from transformer.tasks import Classification

    if trained.others:
        if written := written_metrics(trained, split, manner):
            return {"split": split, "members": len(trained.members)} | written
        raise UserError(f"an ensemble writes text, and task {trained.config.task!r} writes none: name one --workdir")
    metrics: dict[str, Any] = {"split": split, "step": trained.step} | loss_metrics(trained, split)
    if isinstance(trained.task, Classification):
        metrics |= class_metrics(trained, split)
    return metrics | written_metrics(trained, split, manner)


def main() -> None:
    """The verb, with its flags parsed."""
    manner = Manner(beam=FLAGS.beam, alpha=FLAGS.alpha)
    trained = restore_from_flags()
    metrics = evaluate(trained, FLAGS.split, manner)
    if FLAGS.baselines:
        from transformer.baselines import baselines

        metrics["baselines"] = baselines(trained, FLAGS.split)
    print(json.dumps(metrics))


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of the trained run, or several with commas between them.")
    flags.DEFINE_string("split", "test", "Split to evaluate on.")
    flags.DEFINE_integer("average", 1, "Average the parameters of the newest N checkpoints.", lower_bound=1)
    flags.DEFINE_bool("best", False, "The checkpoint of the best validation loss, in place of the newest.")
    define_manner()
    flags.DEFINE_boolean("baselines", False, "Also what a majority class, a linear model or a copy reach.")
    command_line.run(main)
