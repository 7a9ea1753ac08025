"""python -m transformer.generate --workdir=runs/first [--input=FILE] < in.txt > out.txt

Writes exactly one line for each line read, in order: the translation or summary, the continuation of a prompt, or the
name of the text's class. An empty line gives an empty line. Greedy, or --beam=4, or --sample; several runs, as
--workdir=runs/a,runs/b, average their log-probabilities.

--nbest=N gives N lines for each line, "number ||| output ||| score", the number of the line from 0; --scores alone
"output ||| score"; --alignments appends " ||| 0-0 1-2", pairs of words, input to output, by the cross-attention of the
decoder's last layer but one. A single prompt at a terminal is answered while it is written.
"""

import dataclasses
import functools
import itertools
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

from absl import flags

from transformer import command_line
from transformer.config import Config, MeshConfig
from transformer.errors import UserError
from transformer.writing import (
    GREEDY,
    Classifier,
    Manner,
    Output,
    Writer,
    at_once,
    side_by_side,
    slices,
    stream,
    width_of,
)

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
    others: tuple["Trained", ...] = ()  # runs that write together with it

    @property
    def members(self) -> tuple["Trained", ...]:
        """The run itself and those that write with it."""
        return (self, *self.others)

    @property
    def limit(self) -> int | None:
        """The longest sequence that all of them take; None = any."""
        return min((m.task.limit for m in self.members if m.task.limit is not None), default=None)

    def length(self, text: str) -> int:
        """Tokens of a text, the end-of-sequence token included."""
        return len(self.tokenizer.encode(text)) + 1

    def too_long(self, texts: list[str]) -> list[bool]:
        """Which texts the model cannot take: longer than a learned position table. Other encodings take any length."""
        limit = self.limit
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


def restore(workdir: Path, average: int = 1, best: bool = False) -> Trained:
    """The newest parameters of a run (or the mean of its newest `average` checkpoints, or those of the best loss of
    validation), ready to be used."""
    import jax
    import jax.numpy as jnp

    from transformer.data.tokenizers import Tokenizer
    from transformer.model.stacks import unstacked
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
        if average > 1:
            params = checkpoints.average_params(like.params, average)
        else:
            params = checkpoints.restore_params(like.params, checkpoints.best if best else None)
    finally:
        checkpoints.close()
    if config.model.scan_layers:  # decoding would cut each layer's weights out of the stack for every token
        params = unstacked(params, config.model.num_layers)
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, scan_layers=False))
        task = kind(config, tokenizer)
    return Trained(
        config, tokenizer, _Lazy(config), task, jax.device_put(params, layout.replicated), checkpoints.restored
    )


def restore_ensemble(workdirs: list[Path], average: int = 1, best: bool = False) -> Trained:
    """The first run, which writes together with the others. UserError: they do not read and write the same tokens."""
    first, *others = (restore(workdir, average, best) for workdir in workdirs)
    for workdir, other in zip(workdirs[1:], others, strict=True):
        if other.config.task != first.config.task:
            raise UserError(
                f"{str(workdirs[0])!r} is a run of {first.config.task!r} and {str(workdir)!r} of "
                f"{other.config.task!r}: an ensemble is of one task"
            )
        if first.tokenizer is None or first.tokenizer.fingerprint != other.tokenizer.fingerprint:
            raise UserError(
                f"{str(workdirs[0])!r} and {str(workdir)!r} have other tokenizers: train the runs of an ensemble on "
                "the same data with the same data.vocab_size"
            )
    return dataclasses.replace(first, others=tuple(others))


def generate(trained: Trained, lines: list[str], manner: Manner = GREEDY) -> list[str]:
    """The best output for each line, in order; see `outputs`."""
    return [best.text for best, *_ in outputs(trained, lines, manner)]


def outputs(
    trained: Trained, lines: list[str], manner: Manner = GREEDY, batch_size: int = 0, alignments: bool = False
) -> Iterator[list[Output]]:
    """The `manner.nbest` outputs of each line, in order, as they are found; empty lines stay empty.

    `batch_size` lines are decoded and given together (0 = all): more of them fill the slices better that they are
    computed in, and change no output. Lines are padded to the widths of `data.buckets` (and multiples of the last).
    Raises UserError, before anything is computed, for a line longer than the model takes, and for a task that writes
    no text.
    """
    write, ids = _prepared(trained, lines, manner, alignments)
    size = batch_size or max(len(lines), 1)
    parts = (range(start, min(start + size, len(lines))) for start in range(0, len(lines), size))
    widths = {
        i: width_of(len(ids[i]), trained.config.data.buckets, trained.limit)
        for i, line in enumerate(lines)
        if line.strip()
    }
    return itertools.chain.from_iterable(_part(write, part, ids, widths, manner.nbest) for part in parts)


def _prepared(
    trained: Trained, lines: list[str], manner: Manner, alignments: bool = False
) -> tuple[Writer | Classifier, list[list[int]]]:
    """What writes, and the tokens that it reads of each line."""
    from transformer.tasks import TextClassification, WritingTask

    task, limit = trained.task, trained.limit
    write: Writer | Classifier
    if isinstance(task, TextClassification):
        if manner != GREEDY or alignments or trained.others:
            raise UserError("a classifier of texts names one class a line: leave out what shapes written text")
        write, prompt = Classifier(trained), lambda ids: [trained.tokenizer.bos_id, *ids, trained.tokenizer.eos_id]
    elif isinstance(task, WritingTask) and task.reads_lines:
        write, prompt = Writer(trained, manner, alignments), task.prompt
    else:
        raise UserError(f"task {trained.config.task!r} turns no line into another: see python -m transformer.evaluate")
    ids = [prompt(tokens) for tokens in trained.tokenizer.encode_batch(lines)]
    for number, (line, tokens) in enumerate(zip(lines, ids, strict=True), start=1):
        if limit is not None and len(tokens) > limit:
            raise UserError(
                f"line {number} has {len(tokens)} tokens, and the learned position table ends after {limit}: "
                f"shorten it ({line[:40]!r}...), or train with a larger model.max_positions"
            )
    return write, ids


def _part(write: Any, part: range, ids: list[list[int]], widths: dict[int, int], nbest: int) -> list[list[Output]]:
    """The outputs of the lines of a part, which are computed by their widths."""
    import numpy as np

    members: list[list[int]] = []  # of each slice
    jobs: list[tuple[Any, ...]] = []
    for width in sorted({widths[i] for i in part if i in widths}):
        own = [i for i in part if widths.get(i) == width]
        rows = write.rows(width)
        members += [own[start : start + rows] for start in range(0, len(own), rows)]
        jobs += slices([ids[i] for i in own], width, rows)
    for n, (tokens, _) in enumerate(jobs):
        numbers = members[n] + members[n][:1] * (len(tokens) - len(members[n]))
        jobs[n] = (*jobs[n], np.array(numbers, np.int32))
    found = {i: [Output("")] * nbest for i in part}
    for lines, written in zip(members, _written(write, jobs), strict=True):
        found |= dict(zip(lines, written, strict=False))
    return [found[i] for i in part]


def _written(write: Any, jobs: list[tuple[Any, ...]]) -> list[Any]:
    """What `write` gives for each job; the first one of a shape compiles it, by itself."""
    done = {}
    for n, (tokens, *_) in enumerate(jobs):
        if tokens.shape not in write.compiled:
            done[n] = write(*jobs[n])
            write.compiled.add(tokens.shape)
    rest = [n for n in range(len(jobs)) if n not in done]
    done |= dict(zip(rest, side_by_side(write, [jobs[n] for n in rest], at_once(write.devices)), strict=True))
    return [done[n] for n in range(len(jobs))]


def transcribe(trained: Trained, split: str, manner: Manner = GREEDY) -> list[str]:
    """The texts of the recordings of a split, in their order."""
    from transformer.tasks import SpeechRecognition

    assert isinstance(trained.task, SpeechRecognition)
    write, texts = Writer(trained, manner), dict[int, str]()
    for batch in trained.task.batches(trained.source, split).evaluation():
        ids = batch["example_ids"]
        written = write(batch["inputs"], batch["input_segments"].sum(axis=1), ids)
        texts |= {int(i): best.text for i, (best, *_) in zip(ids, written, strict=True) if i >= 0}
    return [texts[i] for i in sorted(texts)]


def read_lines(given: bytes) -> list[str]:
    """The lines of a file without white space at their ends, as training text is. UserError: it is not UTF-8."""
    lines, pieces = [], given.split(b"\n")
    if not pieces[-1]:
        pieces.pop()  # what follows the last newline
    for number, line in enumerate(pieces, start=1):
        try:
            lines.append(line.decode("utf-8-sig" if number == 1 else "utf-8").strip())
        except UnicodeDecodeError as error:
            raise UserError(
                f"line {number} of the input is not UTF-8 (byte {error.start}): convert it first"
            ) from error
    return lines


def _given() -> bytes:
    if not FLAGS.input:
        return sys.stdin.buffer.read()
    try:
        return Path(FLAGS.input).read_bytes()
    except OSError as error:
        raise UserError(f"--input={FLAGS.input} cannot be read: {error.strerror}") from error


def restore_from_flags() -> Trained:
    """The run that --workdir names, or the ensemble of several, with commas between them."""
    whole = command_line.workdir_from_flags()
    several = [] if whole.is_dir() else [Path(name) for name in str(whole).split(",") if name]
    if FLAGS.best and FLAGS.average > 1:
        raise UserError(f"--best names one checkpoint and --average={FLAGS.average} several: leave one of them out")
    return restore_ensemble(several or [whole], FLAGS.average, FLAGS.best)


def _line(number: int, output: Output) -> str:
    columns = [output.text]
    if FLAGS.scores or FLAGS.nbest > 1:
        columns.append(f"{output.score:.6f}")
    if FLAGS.alignments:
        columns.append(output.alignment)
    return " ||| ".join([str(number), *columns] if FLAGS.nbest > 1 else columns)


def answer(trained: Trained, line: str, manner: Manner, show: Callable[[str], object]) -> None:
    """Shows the output of one line, and a line break; text is shown while it is written. UserErrors as of `outputs`."""
    write, (ids,) = _prepared(trained, [line], manner)
    if isinstance(write, Writer):
        stream(write, ids, show)
    else:
        show(generate(trained, [line])[0])
    show("\n")


def main() -> None:
    """The verb, with its flags parsed."""
    from tqdm import tqdm

    chosen: dict[str, Any] = {field.name: FLAGS[field.name].value for field in dataclasses.fields(Manner)}
    manner = Manner(**chosen)
    trained = restore_from_flags()
    stdout = cast(Any, sys.stdout)
    stdout.reconfigure(encoding="utf-8")  # whatever the locale
    lines = read_lines(_given())
    if lines[1:] == [] and any(lines) and stdout.isatty() and not (FLAGS.scores or FLAGS.alignments or manner.beam):
        answer(trained, lines[0], manner, functools.partial(print, end="", flush=True))
        return
    found = outputs(trained, lines, manner, FLAGS.batch_size, FLAGS.alignments)
    quiet = stdout.isatty() or not sys.stderr.isatty()
    with tqdm(total=len(lines), unit="line", disable=quiet) as bar:
        for number, best in enumerate(found):
            print("".join(_line(number, output) + "\n" for output in best), end="", flush=True)
            bar.update()


def define_manner() -> None:
    """The flags of `Manner` that evaluate has as well."""
    flags.DEFINE_integer("beam", 0, "Hypotheses of a beam search; 0 = greedy.")
    flags.DEFINE_float("alpha", 0.6, "Of the length penalty ((5 + length) / 6) ** alpha of beam search (GNMT).")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of the trained run, or several with commas between them.")
    flags.DEFINE_string("input", "", "File to read in place of standard input.")
    flags.DEFINE_integer("average", 1, "Average the parameters of the newest N checkpoints.", lower_bound=1)
    flags.DEFINE_bool("best", False, "The checkpoint of the best validation loss, in place of the newest.")
    define_manner()
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
