"""python -m transformer.evaluate --workdir=runs/first [--split=test] [--average=N | --best] [--beam=4] [--baselines]

Prints one JSON object as its last line. For tokens: loss (nats per token, without label smoothing), perplexity and
token accuracy of the reference; for texts also bits per byte and perplexity per word. For classes: loss, accuracy and
macro F1. For forecasts: MSE and MAE on the scaled series. For generated text, by greedy or beam search: exact match,
BLEU and chrF2 (translation), ROUGE (summaries), word error rate (speech), share of right answers (prompts). For several
runs, --workdir=runs/a,runs/b, only the metrics of what the ensemble generates. --baselines adds simple baselines on the
same split; --bootstrap=1000 an interval of each metric; --against=runs/b the differences from another run, on the same
draws of examples, or of rows where texts are packed. Fewer than ten give null.

A metric without a value for these texts is null, and NAME_reason says why: BLEU where no tokenizer fits the script of
the references, or none of them has four words. `too_long` says what `data.too_long` did with long examples; `same_as`,
that the split is the validation split by another name. Data that changed since training are refused;
--data_dir=FOLDER evaluates on other files on purpose.
"""

import dataclasses
import functools
import json
import sys
from typing import TYPE_CHECKING

from absl import flags

from transformer import command_line
from transformer.errors import UserError
from transformer.paths import expanded, for_checkpoints
from transformer.writing.manner import Manner

if TYPE_CHECKING:
    from transformer.evaluation.metrics import Measured
    from transformer.runs import Run

FLAGS = flags.FLAGS
RESAMPLES = 1000  # of a comparison without --bootstrap


def main() -> None:
    """Runs the command with its flags parsed."""
    manner = Manner(beam=FLAGS.beam, alpha=FLAGS.alpha)
    against = None if FLAGS.against is None else for_checkpoints(FLAGS.against, "--against")
    run = command_line.run_from_flags()
    from transformer.evaluation.splits import measured, report
    from transformer.runs import load_run

    other = None
    if against is not None:
        other = load_run(against, FLAGS.average, FLAGS.best, command_line.mesh_from_flags(), FLAGS.plugins)
    if FLAGS.data_dir is not None:
        run, other = on_other_files(run, FLAGS.data_dir), other and on_other_files(other, FLAGS.data_dir)
    found = measured(run, FLAGS.split, manner)
    told = report(run, FLAGS.split, found, FLAGS.bootstrap)
    if other is not None:
        told["against"] = {"workdir": FLAGS.against} | _against(run, other, found, manner)
    if FLAGS.baselines:
        from transformer.evaluation.baselines import baselines

        told["baselines"] = baselines(run, FLAGS.split)
    print(json.dumps(told))


def on_other_files(run: "Run", folder: str) -> "Run":
    """The run with the files of another folder in place of those of `data.dir`, and with what it learned from its own.
    UserErrors: it had no `data.dir`; it reads a series, whose scale is its own; the files have other classes."""
    from transformer.data.sources import load_source
    from transformer.data.sources.source import Source

    folder = expanded(folder, "--data_dir")
    facts, series = run.facts or {}, run.config.task == "forecasting"
    if not run.config.data.dir or series:
        why = "reads a series, scaled by its own training part" if series else "has no data.dir"
        raise UserError(f"--data_dir={folder} is not for the run {str(run.workdir)!r}, which {why}: leave it out")

    @functools.cache
    def opened() -> Source:
        source = load_source(dataclasses.replace(run.config.data, dir=folder))
        for name in ("classes", "labels"):
            if name in facts and source.facts.get(name) != facts[name]:
                raise UserError(
                    f"--data_dir={folder} has the {name} {source.facts.get(name)}, and {str(run.workdir)!r} was "
                    f"trained on {facts[name]}: give files with the same"
                )
        return dataclasses.replace(source, facts={**source.facts, **facts})

    return dataclasses.replace(run, data=opened)


def _against(run: "Run", other: "Run", found: dict[str, "Measured"], manner: Manner) -> dict[str, dict[str, float]]:
    """Differences of the metrics from another run, on the same examples. UserError: the examples differ."""
    from transformer.evaluation import metrics
    from transformer.evaluation.splits import measured

    if other.config.task != run.config.task or other.source.fingerprint != run.source.fingerprint:
        raise UserError(f"--against={FLAGS.against} is a run of another task or other data: name one of the same")
    resamples, theirs = FLAGS.bootstrap or RESAMPLES, measured(other, FLAGS.split, manner)
    shared = [name for name in found if name in theirs and found[name].value]  # an ensemble has no loss
    same = [name for name in shared if metrics.comparable(found[name], theirs[name])]
    if len(same) < len(shared):
        others = ", ".join(name for name in shared if name not in same)
        told = f"not compared: {others}: their tokens or rows are not the same in {FLAGS.against}"
        print(told, file=sys.stderr, flush=True)
    return {name: metrics.paired(found[name], theirs[name], resamples)._asdict() for name in same}


if __name__ == "__main__":
    command_line.define_run()
    flags.DEFINE_string("split", "test", "Split to evaluate on.")
    flags.DEFINE_integer(
        "bootstrap", 0, "Draw the examples anew so often, for an interval of each metric.", lower_bound=0
    )
    flags.DEFINE_string("against", None, "Another run of the task: differences on the same examples, with intervals.")
    flags.DEFINE_string("data_dir", None, "Evaluate on the files of this folder, which need not be those of training.")
    flags.DEFINE_boolean("baselines", False, "Also what a majority class, a linear model or a copy reach.")
    command_line.run(main)
