"""How a trained run writes text: greedily, by beam search or by sampling, in slices of fixed shape.

What a slice computes for a row does not depend on the other rows, and a length has one shape, so that an output is the
same bytes whatever the batch size, the number of devices and the other lines.
"""

import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

from transformer.errors import UserError

if TYPE_CHECKING:
    from transformer.generate import Trained

# Rows that one device computes together; longer inputs have fewer, as many as make so many positions. A single line
# costs as much as a whole slice: more rows would be faster for long files, and slower for short ones.
ROWS, POSITIONS = 16, 4096
MOST_AT_ONCE = 4  # slices side by side, which all hold their caches


@dataclasses.dataclass(frozen=True)
class Manner:
    """How outputs are found. UserError: options that do not go together, or make no sense."""

    beam: int = 0  # hypotheses of a beam search; 0 = greedy
    alpha: float = 0.6  # of GNMT's length penalty
    nbest: int = 1  # outputs of a line, best first
    sample: bool = False
    temperature: float = 1.0
    top_k: int = 0  # 0 = all
    top_p: float = 1.0
    seed: int = 0  # of the samples
    max_new: int | None = None  # tokens of an output at most; None = what the task gives room for
    min_new: int = 0  # tokens before an output may end

    def __post_init__(self) -> None:
        if self.beam < 0:
            raise UserError(f"--beam must be 0 (greedy) or more, not {self.beam}")
        if not math.isfinite(self.alpha):
            raise UserError(f"--alpha must be a finite number, not {self.alpha}")
        if self.sample and self.beam:
            raise UserError(f"--sample and --beam={self.beam} exclude each other: leave one of them out")
        if not 1 <= self.nbest <= max(self.beam, 1):
            raise UserError(f"--nbest={self.nbest} must be from 1 to the beam's width, --beam={self.beam}: widen it")
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise UserError(
                f"--temperature must be above 0 and finite, not {self.temperature}: for the most likely text, leave "
                "out --sample"
            )
        if self.top_k < 0:
            raise UserError(f"--top_k must be 0 (all tokens) or more, not {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise UserError(f"--top_p must be above 0 and at most 1, not {self.top_p}")
        if not 0 <= self.seed < 2**31:
            raise UserError(f"--seed must be a whole number from 0 to 2147483647, not {self.seed}")
        if self.max_new is not None and self.max_new < 0:
            raise UserError(f"--max_new must be 0 or more, not {self.max_new}")
        if self.min_new < 0 or (self.max_new is not None and self.min_new > self.max_new):
            raise UserError(f"--min_new={self.min_new} must be from 0 to --max_new: lower it")

    def strategy(self, numbers: Any) -> tuple[str, dict[str, Any]]:
        """The row of DECODERS, and its options for lines of these numbers."""
        least = {"min_new": self.min_new}
        if self.sample:
            from transformer.decoding.sampling import sentence_keys

            drawn = {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}
            return "sample", least | drawn | {"keys": sentence_keys(self.seed, numbers)}
        if self.beam:
            return "beam", least | {"beams": self.beam, "nbest": self.nbest, "alpha": self.alpha}
        return "greedy", least


GREEDY = Manner()


class Output(NamedTuple):
    """One of the outputs of a line."""

    text: str
    score: float = 0.0  # log-probability of its tokens; by beam search over the length penalty
    tokens: tuple[int, ...] = ()  # EOS is none of them
    alignment: str = ""  # Pharaoh pairs


def one_line(text: str) -> str:
    """The text without line breaks."""
    return " ".join(text.splitlines())


class Writer:
    """Turns padded inputs into outputs; compiles once a shape. Ensembles average log-probabilities."""

    def __init__(self, trained: "Trained", manner: Manner, alignments: bool = False) -> None:
        import jax

        from transformer.training import sharding

        self.trained, self.manner, self.alignments = trained, manner, alignments
        if alignments and trained.config.model.family != "encoder_decoder":
            raise UserError(
                f"--alignments shows the cross-attention of an encoder_decoder, and this run's model.family is "
                f"{trained.config.model.family!r}: leave it out"
            )
        layout = sharding.make_layout(trained.config)
        self.devices = layout.mesh.size
        self.compiled: set[tuple[int, ...]] = set()  # shapes of the slices that it has computed
        self._params = [member.params for member in trained.members]
        rows, whole = layout.rows.spec, layout.replicated.spec

        def over_rows(function: Callable[..., Any], arrays: int) -> Callable[..., Any]:
            """Every device runs the same program on rows of its own, and waits for no other."""
            specs = (whole, *[rows] * arrays)
            return jax.jit(jax.shard_map(function, mesh=layout.mesh, in_specs=specs, out_specs=rows, check_vma=False))

        self._decode = over_rows(self.decode, 3)
        self._align = over_rows(self.attention, 3)

    def rows(self, width: int) -> int:
        """Of a batch of inputs that are so long."""
        return max(1, min(ROWS, POSITIONS // width)) * self.devices

    def __call__(self, inputs: Any, lengths: Any, numbers: Any) -> list[list[Output]]:
        """The outputs of each row of padded inputs [B, width, ...], of which `lengths` [B] are real, best first.

        `numbers` [B] are those of the lines, from 0: what a sample depends on, and what a UserError calls them by.
        """
        import numpy as np

        found = self._decode(self._params, inputs, lengths, numbers)
        tokens, counts, scores, ok = (np.asarray(x) for x in (found.tokens, found.lengths, found.scores, found.ok))
        self.check(ok, numbers)
        return [
            [self._output(tokens[row, n, : counts[row, n]], scores[row, n], links) for n, links in enumerate(ranks)]
            for row, ranks in enumerate(self._links(inputs, lengths, tokens, counts))
        ]

    def check(self, ok: Any, numbers: Any) -> None:
        """UserError: the logits of a row were no distribution."""
        if not ok.all():
            line = int(numbers[ok.argmin()]) + 1
            raise UserError(
                f"the model's predictions for line {line} are not numbers (NaN or infinite), as after a training run "
                "that diverged: use an earlier checkpoint, or train again"
            )

    def _output(self, tokens: Any, score: Any, alignment: str) -> Output:
        ids = tuple(int(token) for token in tokens if token != self.eos_id)
        return Output(one_line(self.trained.tokenizer.decode(ids)), float(score), ids, alignment)

    @property
    def eos_id(self) -> int:
        return self.trained.tokenizer.eos_id

    def begin(self, params: Sequence[Any], inputs: Any, lengths: Any) -> tuple[Any, ...]:
        """The arguments of a strategy up to the number of positions."""
        from transformer.decoding.hypotheses import ensemble

        tasks = [member.task for member in self.trained.members]
        starts = [task.begin(weights, inputs, lengths) for task, weights in zip(tasks, params, strict=True)]
        most = [start.max_new for start in starts] + ([] if self.manner.max_new is None else [self.manner.max_new])
        limits = [start.limit for start in starts if start.limit is not None]
        step, state = starts[0].step, starts[0].state
        if len(starts) > 1:
            step, state = ensemble([start.step for start in starts]), tuple(start.state for start in starts)
        return step, state, starts[0].first_tokens, starts[0].first_positions, min(most), min(limits, default=None)

    def decode(self, params: Sequence[Any], inputs: Any, lengths: Any, numbers: Any) -> Any:
        """The strategy over the rows of one device."""
        from transformer.decoding import DECODERS

        name, options = self.manner.strategy(numbers)
        return DECODERS[name](*self.begin(params, inputs, lengths), self.eos_id, **options)

    def attention(self, params: Sequence[Any], inputs: Any, lengths: Any, written: Any) -> Any:
        """Cross-attention [B, L, S] of outputs [B, L], mean of the members of an ensemble."""
        import jax.numpy as jnp

        from transformer.analysis.alignment import looks
        from transformer.model.layers import Tokens

        def places(count: int) -> Any:
            return jnp.broadcast_to(jnp.arange(count), (inputs.shape[0], count))

        source = places(inputs.shape[1])
        source_where = Tokens(source, (source < lengths[:, None]).astype(jnp.int32))
        begin = jnp.full((inputs.shape[0], 1), self.trained.tokenizer.bos_id)
        said = jnp.concatenate([begin, written[:, :-1]], axis=1)  # what each token was written after
        said_where = Tokens(places(said.shape[1]), jnp.ones_like(said))
        maps = [
            looks(member.task.model, weights, inputs, source_where, said, said_where)
            for member, weights in zip(self.trained.members, params, strict=True)
        ]
        return sum(maps) / len(maps)

    def _links(self, inputs: Any, lengths: Any, tokens: Any, counts: Any) -> Iterator[list[str]]:
        """The alignment of each output of each row; nothing unless it was asked for."""
        import numpy as np

        from transformer.analysis.alignment import pairs

        rows, nbest, most = tokens.shape
        if not self.alignments or not most:
            yield from [[""] * nbest] * rows
            return
        maps = [np.asarray(self._align(self._params, inputs, lengths, tokens[:, n])) for n in range(nbest)]
        for row in range(rows):
            source = self._words(inputs[row, : lengths[row]])
            said = [self._words(tokens[row, n, : counts[row, n]]) for n in range(nbest)]
            yield [pairs(maps[n][row], source, said[n]) for n in range(nbest)]

    def _words(self, ids: Any) -> list[int]:
        """Which word of the text, from 0, each token but EOS belongs to: words are what white space separates."""
        kept = [int(token) for token in ids if token != self.eos_id]
        decode = self.trained.tokenizer.decode
        return [max(len(decode(kept[: n + 1]).split()) - 1, 0) for n in range(len(kept))]


def width_of(length: int, buckets: Sequence[int], limit: int | None) -> int:
    """The padded length of an input: a bucket, or a multiple of the last one; at most the positions of the model."""
    fitting = [width for width in sorted(buckets) if width >= length]
    width = fitting[0] if fitting else -(-length // max(buckets)) * max(buckets)
    return width if limit is None else min(width, limit)


def slices(ids: Sequence[Sequence[int]], width: int, rows: int) -> Iterator[tuple[Any, Any]]:
    """Padded tokens [rows, width] and lengths [rows], slice after slice; rows that are left over repeat the first, so
    that they end when it does."""
    import numpy as np

    for start in range(0, len(ids), rows):
        chunk = ids[start : start + rows]
        batch, lengths = np.zeros((rows, width), np.int32), np.zeros(rows, np.int32)
        for row, tokens in enumerate(chunk):
            batch[row, : len(tokens)], lengths[row] = tokens, len(tokens)
        batch[len(chunk) :], lengths[len(chunk) :] = batch[0], lengths[0]
        yield batch, lengths


def side_by_side(function: Callable[..., Any], jobs: Sequence[tuple[Any, ...]], threads: int) -> list[Any]:
    """`function(*job)` of each job, in order, so many at a time."""
    with ThreadPoolExecutor(threads) as pool:
        try:
            return list(pool.map(lambda job: function(*job), jobs))
        except BaseException:  # a mistake in one, or Ctrl-C: the others are not begun
            pool.shutdown(cancel_futures=True)
            raise


def at_once(devices: int) -> int:
    """How many slices are computed side by side: on the cores of one CPU, which the small products of a slice do not
    fill (two at once on two cores are 1.4 times as fast); anywhere else one, which has all devices."""
    import jax

    if jax.default_backend() != "cpu" or devices > 1:
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST_AT_ONCE)


class Classifier:
    """Names the class of each row of padded tokens; the score is its log-probability."""

    def __init__(self, trained: "Trained") -> None:
        import jax

        self._predict = jax.jit(lambda params, batch: jax.nn.log_softmax(trained.task.predict(params, batch)))
        self._params, self._names = trained.params, trained.source.classes
        self.devices = 1
        self.compiled: set[tuple[int, ...]] = set()

    def rows(self, width: int) -> int:
        """Of a batch of inputs that are so long."""
        return max(1, min(ROWS, POSITIONS // width))

    def __call__(self, tokens: Any, lengths: Any, numbers: Any) -> list[list[Output]]:
        """The most likely class of each row."""
        import numpy as np

        positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
        segments = (positions < lengths[:, None]).astype(np.int32)
        batch = {"inputs": tokens, "input_positions": positions, "input_segments": segments}
        scores = np.asarray(self._predict(self._params, batch))
        return [[Output(self._names[row.argmax()], float(row.max()))] for row in scores]


def stream(writer: Writer, ids: Sequence[int], show: Callable[[str], object]) -> None:
    """Shows the output of one line while it is written, piece by piece; not for beam search, which knows it last."""
    import jax
    import jax.numpy as jnp

    from transformer.decoding import DECODERS

    tokenizer, said, shown = writer.trained.tokenizer, list[int](), 0

    def told(token: Any, count: Any) -> None:
        nonlocal shown
        if count:  # the first token that the model is given is BOS, or the last of the prompt
            said.append(int(token))
        text = one_line(tokenizer.decode(said))
        if not text.endswith("\ufffd"):  # half a letter
            show(text[shown:])
            shown = len(text)

    def decode(params: Any, inputs: Any, lengths: Any) -> Any:
        step, state, first, places, *ends = writer.begin(params, inputs, lengths)

        def telling(tokens: Any, positions: Any, state: Any) -> Any:
            jax.debug.callback(told, tokens[0, 0], positions[0, 0] - places[0], ordered=True)
            return step(tokens, positions, state)

        name, options = writer.manner.strategy(numbers=jnp.zeros(1, jnp.int32))
        return DECODERS[name](telling, state, first, places, *ends, writer.eos_id, **options)

    ((batch, lengths),) = slices([ids], width_of(len(ids), writer.trained.config.data.buckets, writer.trained.limit), 1)
    params = jax.device_put([member.params for member in writer.trained.members], jax.devices()[0])
    found = jax.device_get(jax.jit(decode)(params, batch, lengths))
    jax.effects_barrier()
    writer.check(found.ok, [0])
    said = [token for token in found.tokens[0, 0, : found.lengths[0, 0]].tolist() if token != writer.eos_id]
    show(one_line(tokenizer.decode(said))[shown:])
