"""python -m transformer.convert --llama2c=stories260K.bin --tokenizer=tok512.bin --output=FOLDER

Converts a llama2.c checkpoint to Hugging Face's format: config.json, model.safetensors and tokenizer.json, for
`transformer.model.pretrained.load` and for the reference implementation.
"""

from pathlib import Path

from absl import flags

from transformer import command_line
from transformer.errors import UserError
from transformer.paths import local

FLAGS = flags.FLAGS


def convert(weights: Path, vocabulary: Path, folder: Path) -> None:
    """Writes the folder after both files have been read and checked. UserError: one of them is invalid."""
    from transformer.data.tokenizers.llama2c import read_vocabulary, to_tokenizer
    from transformer.model.pretrained.files import write_folder
    from transformer.model.pretrained.llama2c import read_llama2c

    settings, tensors = read_llama2c(weights)
    tokenizer = to_tokenizer(read_vocabulary(vocabulary, settings["vocab_size"]))
    write_folder(folder, settings, tensors)
    tokenizer.save(str(folder / "tokenizer.json"))


def main() -> None:
    """Runs the command with its flags parsed."""
    paths = []
    for name in ("llama2c", "tokenizer", "output"):
        if not (given := FLAGS[name].value):
            raise UserError(f"--{name} is missing: see python -m transformer.convert --help")
        paths.append(local(given, f"--{name}"))
    convert(*paths)


if __name__ == "__main__":
    flags.DEFINE_string("llama2c", None, "The weights: a .bin file of llama2.c, version 0 (float32).")
    flags.DEFINE_string("tokenizer", None, "Its vocabulary: the tokenizer.bin that goes with it.")
    flags.DEFINE_string("output", None, "The folder to write.")
    command_line.run(main)
