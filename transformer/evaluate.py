"""python -m transformer.evaluate --workdir=runs/first [--split=test] [--average=N]

Prints one JSON object as its last line: loss (nats a token, not smoothed), perplexity and token accuracy of the
reference; for translation also exact match and BLEU of the greedy output, with its sacreBLEU signature.
"""

import json
import math
from typing import Any

from absl import flags

from transformer import command_line
from transformer.generate import Trained, generate, restore

FLAGS = flags.FLAGS


def loss_metrics(trained: Trained, split: str) -> dict[str, float]:
    """Loss, perplexity and token accuracy over every token of a split, each token once.

    Raises UserError where the split holds a sequence longer than the model takes.
    """
    from transformer.config import UserError
    from transformer.data.pairs import PairBatches
    from transformer.training import losses, sharding, step

    task = trained.task
    batches = task.batches(trained.source, split)
    if task.limit is not None and isinstance(batches, PairBatches) and (long := batches.too_long(task.limit)):
        raise UserError(
            f"{long} sentence pairs of {split!r} are longer than the {task.limit} positions of the learned table: "
            "train with a larger model.max_positions, or evaluate another --split"
        )
    mesh = sharding.make_mesh(trained.config.mesh, trained.config.data.row_multiple)
    eval_step = step.make_eval_step(task.loss, mesh)
    total: dict[str, losses.Pair] = {}
    for batch in batches.evaluation():
        metrics = eval_step(trained.params, batch)
        total = losses.add(total, metrics) if total else metrics
    means = losses.means(total)
    return {
        "loss": means["nll"],
        "perplexity": math.exp(min(means["nll"], 700.0)),
        "token_accuracy": means["token_accuracy"],
        "tokens": int(total["nll"][1]),
    }


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


def evaluate(trained: Trained, split: str = "test") -> dict[str, Any]:
    """All metrics of a split; see the head of this file."""
    metrics: dict[str, Any] = {"split": split, "step": trained.step} | loss_metrics(trained, split)
    if trained.config.task == "translation":
        examples = list(trained.source.split(split))
        source, target = trained.source.pair(trained.config.data)
        outputs = generate(trained, [example[source] for example in examples])
        metrics |= translation_metrics(outputs, [example[target] for example in examples])
    return metrics


def main() -> None:
    """The verb, with its flags parsed."""
    trained = restore(command_line.workdir_from_flags(), FLAGS.average)
    print(json.dumps(evaluate(trained, FLAGS.split)))


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of the trained run.")
    flags.DEFINE_string("split", "test", "Split to evaluate on.")
    flags.DEFINE_integer("average", 1, "Average the parameters of the newest N checkpoints.", lower_bound=1)
    command_line.run(main)
