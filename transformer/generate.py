"""python -m transformer.generate --workdir=runs/first [--input=FILE] < in.txt > out.txt

Writes exactly one line for each line read, in order: the translation or summary, the continuation of a prompt, or the
name of the text's class. An empty line gives an empty line. Decoding is greedy, or --beam=4, or --sample; several runs,
--workdir=runs/a,runs/b, average their log-probabilities.

--nbest=N gives N lines for each line, "number ||| output ||| score", the number of the line from 0; --scores alone
"output ||| score"; --alignments appends " ||| 0-0 1-2", pairs of input and output words, from the cross-attention of
the decoder's second-to-last layer. For a single prompt at a terminal, the output is shown while it is generated.
"""

import dataclasses
import functools
import sys
from typing import Any, cast

from absl import flags

from transformer import command_line
from transformer.errors import UserError
from transformer.paths import local
from transformer.writing.given import read_lines
from transformer.writing.manner import Manner, Output

FLAGS = flags.FLAGS


def _given() -> bytes:
    if not FLAGS.input:
        return sys.stdin.buffer.read()
    try:
        return local(FLAGS.input, "--input").read_bytes()
    except OSError as error:
        raise UserError(f"--input={FLAGS.input} cannot be read: {error.strerror}") from error


def _line(number: int, output: Output) -> str:
    columns = [output.text]
    if FLAGS.scores or FLAGS.nbest > 1:
        columns.append(f"{output.score:.6f}")
    if FLAGS.alignments:
        columns.append(output.alignment)
    return " ||| ".join([str(number), *columns] if FLAGS.nbest > 1 else columns)


def main() -> None:
    """Runs the command with its flags parsed."""
    chosen: dict[str, Any] = {field.name: FLAGS[field.name].value for field in dataclasses.fields(Manner)}
    manner = Manner(**chosen)
    run = command_line.run_from_flags()
    from tqdm import tqdm

    from transformer.writing.lines import answer, outputs

    stdout = cast(Any, sys.stdout)
    stdout.reconfigure(encoding="utf-8")  # whatever the locale
    lines = read_lines(_given())
    if lines[1:] == [] and any(lines) and stdout.isatty() and not (FLAGS.scores or FLAGS.alignments or manner.beam):
        answer(run, lines[0], manner, functools.partial(print, end="", flush=True))
        return
    found = outputs(run, lines, manner, FLAGS.batch_size, FLAGS.alignments)
    quiet = stdout.isatty() or not sys.stderr.isatty()
    with tqdm(total=len(lines), unit="line", disable=quiet) as bar:
        for number, best in enumerate(found):
            print("".join(_line(number, output) + "\n" for output in best), end="", flush=True)
            bar.update()


if __name__ == "__main__":
    command_line.define_run()
    flags.DEFINE_string("input", "", "File to read in place of standard input.")
    flags.DEFINE_integer("nbest", 1, "Outputs of a line, best first.")
    flags.DEFINE_boolean("scores", False, "Also the score of each output: log-probability, over the length penalty.")
    flags.DEFINE_boolean("alignments", False, "Also which word of the input each word of the output looked at.")
    flags.DEFINE_boolean("sample", False, "Draw each token at random, by its probability.")
    flags.DEFINE_float("temperature", 1.0, "Of the samples: below 1 the likely tokens become more likely.")
    flags.DEFINE_integer("top_k", 0, "Draw from so many most likely tokens; 0 = all.")
    flags.DEFINE_float("top_p", 1.0, "Draw from the most likely tokens that have so much probability together.")
    flags.DEFINE_integer("seed", 0, "Of the samples; each line has its own, by its number.")
    flags.DEFINE_integer("max_new", None, "Tokens of an output at most; without it, what the task has room for.")
    flags.DEFINE_integer("min_new", 0, "Tokens before an output may end.")
    flags.DEFINE_integer("batch_size", 64, "Lines that are decoded and written together.", lower_bound=1)
    command_line.run(main)
