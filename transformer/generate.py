"""python -m transformer.generate --workdir=runs/first < in.txt > out.txt

Writes exactly one line for each line read, in order: the greedy translation or summary, the greedy continuation of a
prompt, or the name of the text's class. An empty line gives an empty line.
"""

import dataclasses
import math
import sys
from pathlib import Path
from typing import Any, cast

from absl import flags

from transformer import command_line
from transformer.config import Config, MeshConfig, UserError

FLAGS = flags.FLAGS


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained run, as `restore` finds it."""

    config: Config
    tokenizer: Any
    source: Any  # the data it was trained on, read when it is asked for
    task: Any
    params: Any
    step: int

    def length(self, text: str) -> int:
        """Tokens of a text, the end-of-sequence token included."""
        return len(self.tokenizer.encode(text)) + 1

    def too_long(self, texts: list[str]) -> list[bool]:
        """Which texts the model cannot take: longer than a learned position table. Other encodings take any length."""
        limit = self.task.limit
        return [limit is not None and self.length(text) > limit for text in texts]


class _Lazy:
    """The data source, prepared at its first use only: translating needs the tokenizer, not the data."""

    def __init__(self, config: Config):
        self._config = config
        self._source: Any = None

    def __getattr__(self, name: str) -> Any:
        if self._source is None:
            from transformer.data.sources import load_source

            self._source = load_source(self._config.data)
        return getattr(self._source, name)


def restore(workdir: Path, average: int = 1) -> Trained:
    """The newest parameters of a run (or the mean of its newest `average` checkpoints), ready to be used."""
    import jax
    import jax.numpy as jnp

    from transformer.data.tokenizers import Tokenizer
    from transformer.tasks import task_class
    from transformer.train import read_config
    from transformer.training import optim, sharding, step
    from transformer.training.checkpoint import Checkpoints

    config = read_config(workdir)
    # Any number of devices will do, whatever the run was trained on.
    devices = math.gcd(len(jax.devices()), config.data.row_multiple)
    config = dataclasses.replace(config, mesh=MeshConfig(data=devices))
    kind, tokenizer = task_class(config.task), None
    if kind.reads_text:
        if not (workdir / "tokenizer.json").is_file():
            raise UserError(f"{str(workdir)!r} holds no tokenizer.json: train there first")
        tokenizer = Tokenizer.load(workdir / "tokenizer.json")
    task = kind(config, tokenizer)
    layout = sharding.make_layout(config)
    shapes = jax.eval_shape(step.make_init(task.init, optim.make_optimizer(config), layout), jnp.uint32(0))
    like = layout.abstract(shapes)
    checkpoints = Checkpoints(workdir, config.logging.keep)
    try:
        state = checkpoints.average(like, average) if average > 1 else checkpoints.restore(like)
    finally:
        checkpoints.close()
    return Trained(
        config, tokenizer, _Lazy(config), task, jax.device_put(state.params, layout.replicated), int(state.step)
    )


def generate(trained: Trained, lines: list[str]) -> list[str]:
    """One output for each line, in order; empty lines stay empty.

    Lines are padded to the widths of `data.buckets` (and multiples of the last one), in batches of fixed size.
    Raises UserError, before anything is computed, for a line longer than the model takes, and for a task that writes
    no text.
    """
    import numpy as np

    from transformer.tasks import TextClassification, WritingTask

    task = trained.task
    if isinstance(task, TextClassification):
        write, prompt = _classifier(trained), lambda ids: [trained.tokenizer.bos_id, *ids, trained.tokenizer.eos_id]
    elif isinstance(task, WritingTask) and task.reads_lines:
        write, prompt = _writer(trained), task.prompt
    else:
        raise UserError(f"task {trained.config.task!r} turns no line into another: see python -m transformer.evaluate")
    ids = [prompt(tokens) for tokens in trained.tokenizer.encode_batch(lines)]
    for number, (line, tokens) in enumerate(zip(lines, ids, strict=True), start=1):
        if task.limit is not None and len(tokens) > task.limit:
            raise UserError(
                f"line {number} has {len(tokens)} tokens, and the learned position table ends after {task.limit}: "
                f"shorten it ({line[:40]!r}...), or train with a larger model.max_positions"
            )
    outputs = [""] * len(lines)
    todo = [i for i, line in enumerate(lines) if line.strip()]
    widths = {i: _width(len(ids[i]), trained.config.data.buckets, task.limit) for i in todo}
    for width in sorted(set(widths.values())):
        members = [i for i in todo if widths[i] == width]
        rows = _rows(width, trained.config)
        for start in range(0, len(members), rows):
            chunk = members[start : start + rows]
            batch, lengths = np.zeros((rows, width), np.int32), np.zeros(rows, np.int32)
            for row, i in enumerate(chunk):
                batch[row, : len(ids[i])], lengths[row] = ids[i], len(ids[i])
            # Rows that are left over repeat the first, so that they end when it does.
            batch[len(chunk) :], lengths[len(chunk) :] = batch[0], lengths[0]
            for i, text in zip(chunk, write(batch, lengths), strict=False):
                outputs[i] = text
    return outputs


def transcribe(trained: Trained, split: str) -> list[str]:
    """The texts of the recordings of a split, in their order."""
    from transformer.tasks import SpeechRecognition

    assert isinstance(trained.task, SpeechRecognition)
    write, texts = _writer(trained), dict[int, str]()
    for batch in trained.task.batches(trained.source, split).evaluation():
        written = write(batch["inputs"], batch["input_segments"].sum(axis=1))
        texts |= {int(i): text for i, text in zip(batch["example_ids"], written, strict=True) if i >= 0}
    return [texts[i] for i in sorted(texts)]


def _writer(trained: Trained) -> Any:
    """(padded inputs [B, width, ...], lengths [B]) -> the text of each row, greedy; compiles once a width."""
    import jax
    import numpy as np

    from transformer.data.tokenizers import Tokenizer
    from transformer.decoding import DECODERS

    strategy = DECODERS["greedy"]
    decode = jax.jit(
        lambda params, inputs, lengths: strategy(*trained.task.begin(params, inputs, lengths), Tokenizer.eos_id)
    )

    def write(inputs: Any, lengths: Any) -> list[str]:
        texts = []
        for row in np.asarray(decode(trained.params, inputs, lengths)):
            stop = np.flatnonzero(row == Tokenizer.eos_id)
            text = trained.tokenizer.decode(row[: stop[0]].tolist() if len(stop) else row.tolist())
            texts.append(" ".join(text.splitlines()))
        return texts

    return write


def _classifier(trained: Trained) -> Any:
    """(padded tokens [B, width], lengths [B]) -> the name of each row's most likely class."""
    import jax
    import numpy as np

    predict = jax.jit(trained.task.predict)
    names = trained.source.classes

    def write(tokens: Any, lengths: Any) -> list[str]:
        positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
        segments = (positions < lengths[:, None]).astype(np.int32)
        batch = {"inputs": tokens, "input_positions": positions, "input_segments": segments}
        return [names[i] for i in np.asarray(predict(trained.params, batch)).argmax(axis=1)]

    return write


def _width(length: int, buckets: tuple[int, ...], limit: int | None) -> int:
    fitting = [width for width in sorted(buckets) if width >= length]
    width = fitting[0] if fitting else -(-length // max(buckets)) * max(buckets)
    return width if limit is None else min(width, limit)


def _rows(width: int, config: Config) -> int:
    multiple = config.data.row_multiple
    return max(multiple, config.data.batch_tokens // width // multiple * multiple)


def main() -> None:
    """The verb, with its flags parsed."""
    trained = restore(command_line.workdir_from_flags(), FLAGS.average)
    cast(Any, sys.stdout).reconfigure(encoding="utf-8")  # whatever the locale
    lines = []
    pieces = sys.stdin.buffer.read().split(b"\n")
    if not pieces[-1]:
        pieces.pop()  # what follows the last newline
    for number, line in enumerate(pieces, start=1):
        try:
            lines.append(line.decode("utf-8-sig" if number == 1 else "utf-8").strip())  # as training text is
        except UnicodeDecodeError as error:
            raise UserError(
                f"line {number} of the input is not UTF-8 (byte {error.start}): convert it first"
            ) from error
    for output in generate(trained, lines):
        print(output)


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of the trained run.")
    flags.DEFINE_integer("average", 1, "Average the parameters of the newest N checkpoints.", lower_bound=1)
    command_line.run(main)
