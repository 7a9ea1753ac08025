"""python -m transformer.tokenize --input=FILE [--input=FILE ...] --output=tokenizer.json [--kind=bpe]

Trains one tokenizer on the lines of all files; run it once per language for separate ones. A run uses it with
--config.data.tokenizer=tokenizer.json.
"""

import os
from pathlib import Path

from absl import flags

from transformer import command_line
from transformer.errors import UserError
from transformer.paths import local

FLAGS = flags.FLAGS


def main() -> None:
    """Runs the command with its flags parsed."""
    from transformer.data.sources.files import lines_of
    from transformer.data.tokenizers import MASK, Tokenizer, holes, kind_class

    if not FLAGS.input or not FLAGS.output:
        raise UserError("--input or --output is missing: name text files, and the .json file to write")
    kind_class(FLAGS.kind)  # before any file is read
    extra = ((MASK,) if FLAGS.mask else ()) + holes(FLAGS.holes)
    output, paths = local(FLAGS.output, "--output"), [local(path, "--input") for path in FLAGS.input]
    if output.suffix != ".json" or output.is_dir() or not os.access(_first_there(output), os.W_OK):
        raise UserError(f"--output={FLAGS.output} is no .json file that can be written: name one, such as mine.json")
    lines = (line for path in paths for line in lines_of(path))
    tokenizer = Tokenizer.train(lines, FLAGS.vocab_size, FLAGS.kind, extra)
    tokenizer.save(output)
    print(f"{tokenizer.vocab_size} pieces of {FLAGS.kind} in {FLAGS.output}")


def _first_there(path: Path) -> Path:
    """The path, or the lowest folder above it that there is."""
    return next(found for found in (path, *path.parents) if found.exists())


if __name__ == "__main__":
    flags.DEFINE_multi_string("input", None, "A text file, plain or gzipped; give the flag once a file.")
    flags.DEFINE_string("output", None, "The .json file to write.")
    flags.DEFINE_string("kind", "bpe", "A row of transformer.data.tokenizers.TOKENIZERS.")
    flags.DEFINE_integer("vocab_size", 8000, "At most so many pieces, special tokens included.")
    flags.DEFINE_bool("mask", False, "Reserve a mask piece, for masked language models.")
    flags.DEFINE_integer("holes", 0, "Reserve so many hole pieces, for span corruption.", lower_bound=0)
    command_line.run(main)
