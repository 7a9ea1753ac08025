"""python -m transformer.heads --workdir=runs/first --text="..." [--target="..."] [--output=heads.html]

Writes one HTML page, which works offline: choose a layer and a head, and point at a token to see its attention. Without
--target, an encoder-decoder's decoder reads its own greedy output. Instead of --workdir, --pretrained=FOLDER takes the
weights of a BERT model with its vocab.txt.
"""

from typing import TYPE_CHECKING

from absl import flags

from transformer import command_line
from transformer.errors import UserError
from transformer.paths import local

if TYPE_CHECKING:
    from transformer.reading import Reading

FLAGS = flags.FLAGS


def page(reading: "Reading") -> str:
    """The HTML page of all heads."""
    from transformer.analysis.head_page import head_page

    return head_page(reading.attention(), reading.tokens, reading.about)


def main() -> None:
    """Runs the command with its flags parsed."""
    output = local(FLAGS.output, "--output")
    if not (FLAGS.text or "").strip():
        raise UserError('--text is missing: give a sentence, such as --text="four hours"')
    if bool(FLAGS.workdir) == bool(FLAGS.pretrained):
        raise UserError("give either --workdir, the folder of a run, or --pretrained, a folder of BERT's weights")
    if output.is_dir() or not output.parent.is_dir():
        raise UserError(f"--output={FLAGS.output} is no file in a folder that is there: name one, such as heads.html")
    if FLAGS.pretrained and FLAGS.target is not None:
        raise UserError("a model of BERT's kind has no output to look at: leave out --target")
    from transformer.reading import of_folder
    from transformer.runs import load_run

    if FLAGS.workdir:
        reading = load_run(FLAGS.workdir, plugins=FLAGS.plugins).reading(FLAGS.text, FLAGS.target)
    else:
        reading = of_folder(local(FLAGS.pretrained, "--pretrained"), FLAGS.text)
    try:
        output.write_text(page(reading), encoding="utf-8")
    except OSError as error:
        raise UserError(f"--output={FLAGS.output} cannot be written: {error.strerror}") from error
    print(f"wrote {output}: open it in a browser")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of the trained run.")
    flags.DEFINE_string("pretrained", None, "Folder with config.json, model.safetensors and vocab.txt of a BERT model.")
    flags.DEFINE_string("text", None, "What the model reads.")
    flags.DEFINE_string("target", None, "What an encoder-decoder's decoder reads; its own output where it is left out.")
    flags.DEFINE_string("output", "heads.html", "The page to write.")
    command_line.run(main)
