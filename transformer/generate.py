"""python -m transformer.generate --workdir=runs/first < in.txt > out.txt

Writes exactly one line for each line read, in order: the greedy translation, or the greedy continuation of a prompt.
An empty line gives an empty line.
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
    if not (workdir / "tokenizer.json").is_file():
        raise UserError(f"{str(workdir)!r} holds no tokenizer.json: train there first")
    tokenizer = Tokenizer.load(workdir / "tokenizer.json")
    task = task_class(config.task)(config, tokenizer)
    mesh = sharding.make_mesh(config.mesh, config.data.row_multiple)
    everywhere = sharding.replicated(mesh)
    shapes = jax.eval_shape(step.make_init(task.init, optim.make_optimizer(config), mesh), jnp.uint32(0))
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), shapes)
    checkpoints = Checkpoints(workdir, config.logging.keep)
    try:
        state = checkpoints.average(like, average) if average > 1 else checkpoints.restore(like)
    finally:
        checkpoints.close()
    return Trained(config, tokenizer, _Lazy(config), task, jax.device_put(state.params, everywhere), int(state.step))


def generate(trained: Trained, lines: list[str]) -> list[str]:
    """One output for each line, in order; empty lines stay empty.

    Lines are padded to the widths of `data.buckets` (and multiples of the last one), in batches of fixed size.
    Raises UserError, before anything is computed, for a line longer than the model takes.
    """
    import jax
    import numpy as np

    from transformer.data.tokenizers import Tokenizer
    from transformer.decoding import DECODERS

    ids = trained.tokenizer.encode_batch(lines)
    limit = trained.task.limit
    for number, (line, tokens) in enumerate(zip(lines, ids, strict=True), start=1):
        if limit is not None and len(tokens) + 1 > limit:
            raise UserError(
                f"line {number} has {len(tokens) + 1} tokens, and the learned position table ends after {limit}: "
                f"shorten it ({line[:40]!r}...), or train with a larger model.max_positions"
            )
    outputs = [""] * len(lines)
    todo = [i for i, line in enumerate(lines) if line.strip()]
    widths = {i: _width(len(ids[i]) + 1, trained.config.data.buckets, limit) for i in todo}
    strategy = DECODERS["greedy"]
    # Compiles once a width.
    decode = jax.jit(
        lambda params, tokens, lengths: strategy(*trained.task.begin(params, tokens, lengths), Tokenizer.eos_id)
    )
    for width in sorted(set(widths.values())):
        members = [i for i in todo if widths[i] == width]
        rows = _rows(width, trained.config)
        for start in range(0, len(members), rows):
            chunk = members[start : start + rows]
            batch, lengths = np.zeros((rows, width), np.int32), np.zeros(rows, np.int32)
            for row, i in enumerate(chunk):
                tokens = trained.task.prompt(ids[i])
                batch[row, : len(tokens)], lengths[row] = tokens, len(tokens)
            # Rows that are left over repeat the first, so that they end when it does.
            batch[len(chunk) :], lengths[len(chunk) :] = batch[0], lengths[0]
            written_rows = np.asarray(decode(trained.params, batch, lengths))[: len(chunk)]
            for i, written in zip(chunk, written_rows, strict=True):
                stop = np.flatnonzero(written == Tokenizer.eos_id)
                text = trained.tokenizer.decode(written[: stop[0]].tolist() if len(stop) else written.tolist())
                outputs[i] = " ".join(text.splitlines())
    return outputs


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
