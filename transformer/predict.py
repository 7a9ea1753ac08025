"""python -m transformer.predict --workdir=runs/first [--input=FILE ...] [--output=OUT.csv | OUT.jsonl]

What a run of any kind says of inputs that are no part of its data, which need not be there:

* a classifier of texts: the label, and the probability of every class (--top=5: of the five most probable), for each
  line of --input or of standard input, or each row of a table, whose texts are in --column;
* a run that writes (translations, summaries, continuations): the text, for the same; see also transformer.generate;
* a classifier of images or recordings: label and probabilities; for speech recognition the transcript. --input is a
  file, a folder or a pattern in quotes, and may be given several times; standard input has a path a line;
* forecasting: the steps after the last of a CSV, TSV, JSON lines or Parquet file with the columns of the run, in their
  own units, with the dates that follow.

Writes one JSON object a line, or CSV by the ending of --output, which is whole or not there at all.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO, cast

from absl import flags

from transformer import command_line
from transformer.errors import UserError
from transformer.paths import local
from transformer.writing.manner import Manner

FLAGS = flags.FLAGS
ENDINGS = (".csv", ".jsonl")


def output_from_flags() -> Path | None:
    """The file of --output; None for standard output. UserErrors: it has another ending, is there already, or is in no
    folder."""
    if not FLAGS.output:
        return None
    path = local(FLAGS.output, "--output")
    if path.suffix.lower() not in ENDINGS:
        raise UserError(f"--output={FLAGS.output} is no .csv or .jsonl file: give it one of these endings")
    if not path.parent.is_dir():
        raise UserError(f"--output={FLAGS.output} is in no folder that is there: make it first")
    if path.exists() and not FLAGS.overwrite:
        raise UserError(f"--output={FLAGS.output} is there already: name another file, or add --overwrite")
    return path


@contextlib.contextmanager
def opened(path: Path | None) -> Iterator[TextIO]:
    """Standard output, or a file that gets its name when all of it is written. UserError: it cannot be written."""
    if path is None:
        stdout = cast(Any, sys.stdout)
        stdout.reconfigure(encoding="utf-8")  # whatever the locale
        yield stdout
        return
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(part, "w", encoding="utf-8", newline="") as stream:
            yield stream
        part.replace(path)
    except OSError as error:
        raise UserError(f"--output={path} cannot be written: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)


def main() -> None:
    """Runs the command with its flags parsed."""
    manner = Manner(beam=FLAGS.beam, alpha=FLAGS.alpha)
    output = output_from_flags()
    run = command_line.run_from_flags()
    from tqdm import tqdm

    from transformer.predicting.inputs import inputs_of
    from transformer.predicting.predictions import predict
    from transformer.predicting.rows import write_csv, write_json

    if FLAGS.top and not run.task.has_classes:
        raise UserError(f"--top={FLAGS.top} is for classes, and task {run.config.task!r} has none: leave it out")
    inputs = inputs_of(run, FLAGS.input, FLAGS.column, sys.stdin.buffer.read)
    found = predict(run, inputs.values, manner, FLAGS.batch_size)
    quiet = output is None or not sys.stderr.isatty()
    with opened(output) as stream, tqdm(found, total=len(inputs.values), unit="input", disable=quiet) as shown:
        if output is not None and output.suffix.lower() == ".csv":
            write_csv(stream, inputs.called, shown, run.classes if run.task.has_classes else (), FLAGS.top)
        else:
            write_json(stream, inputs.called, shown, FLAGS.top)


if __name__ == "__main__":
    command_line.define_run()
    flags.DEFINE_multi_string("input", [], "File, folder or pattern to read in place of standard input.")
    flags.DEFINE_string("output", "", "File to write, .csv or .jsonl, in place of standard output.")
    flags.DEFINE_boolean("overwrite", False, "Replace --output where it is there already.")
    flags.DEFINE_string("column", "", "Column of the texts, where --input is a table; else that of training.")
    flags.DEFINE_integer("top", 0, "Probabilities of so many most probable classes; 0 = all.", lower_bound=0)
    flags.DEFINE_integer("batch_size", 64, "Inputs that are read and computed together.", lower_bound=1)
    command_line.run(main)
