"""Decoding of a batch of padded inputs, and streamed decoding of one line."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transformer.analysis.alignment import looks, pairs
from transformer.decoding import DECODERS
from transformer.decoding.hypotheses import ensemble
from transformer.errors import UserError
from transformer.model.tokens import Tokens
from transformer.tasks.trained import Trained
from transformer.training.sharding import make_layout
from transformer.writing.manner import Manner, Output, one_line
from transformer.writing.slices import rows_of, slices, width_of


class Writer:
    """Decodes padded inputs; compiles once per shape. Ensembles average log-probabilities.

    Where each device has all parameters, it decodes its rows alone, and ends when they have ended. Where parameters are
    split, all devices decode together: fsdp gathers a matrix when it is used, for every token, and tensor sums what its
    devices have of each layer."""

    def __init__(self, trained: Trained, manner: Manner, alignments: bool = False) -> None:
        self.trained, self.manner, self.alignments = trained, manner, alignments
        if alignments and trained.config.model.family != "encoder_decoder":
            raise UserError(
                f"--alignments shows the cross-attention of an encoder_decoder, and this run's model.family is "
                f"{trained.config.model.family!r}: leave it out"
            )
        layout = self.layout = make_layout(trained.sized, axes=trained.task.axes)
        self.together, self.devices = layout.strategy != "data", layout.mesh.size
        self.compiled: set[tuple[int, ...]] = set()  # shapes of the slices decoded so far
        self._params = [member.params for member in trained.members]
        rows, whole = layout.rows.spec, layout.replicated.spec

        def over_rows(function: Callable[..., Any], arrays: int) -> Callable[..., Any]:
            if not self.together:
                specs = (whole, *[rows] * arrays)
                alone = jax.shard_map(function, mesh=layout.mesh, in_specs=specs, out_specs=rows, check_vma=False)
                return jax.jit(alone)

            def traced(*arguments: Any) -> Any:
                with layout.tracing():
                    return function(*arguments)

            return jax.jit(traced, in_shardings=(None, *[layout.rows] * arrays), out_shardings=layout.rows)

        self._decode = over_rows(self.decode, 3)
        self._align = over_rows(self.attention, 3)

    def rows(self, width: int) -> int:
        """Rows of a slice of this width, over all devices."""
        return rows_of(width) * self.layout.row_shards

    def __call__(self, inputs: Any, lengths: Any, numbers: Any) -> list[list[Output]]:
        """The outputs of each row of padded inputs [B, width, ...] with `lengths` [B], best first. `numbers` [B] are
        those of the lines, from 0: samples depend on them, and UserErrors name them."""
        found = self._decode(self._params, inputs, lengths, numbers)
        tokens, counts, scores, ok = (np.asarray(x) for x in (found.tokens, found.lengths, found.scores, found.ok))
        self.check(ok, numbers)
        return [
            [self._output(tokens[row, n, : counts[row, n]], scores[row, n], links) for n, links in enumerate(ranks)]
            for row, ranks in enumerate(self._links(inputs, lengths, tokens, counts))
        ]

    def check(self, ok: Any, numbers: Any) -> None:
        """UserError: the logits of a row were not finite."""
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
        """The arguments of a decoding strategy, up to the number of positions."""
        tasks = [member.task for member in self.trained.members]
        starts = [task.begin(weights, inputs, lengths) for task, weights in zip(tasks, params, strict=True)]
        most = [start.max_new for start in starts] + ([] if self.manner.max_new is None else [self.manner.max_new])
        limits = [start.limit for start in starts if start.limit is not None]
        step, state = starts[0].step, starts[0].state
        if len(starts) > 1:
            step, state = ensemble([start.step for start in starts]), tuple(start.state for start in starts)
        return step, state, starts[0].first_tokens, starts[0].first_positions, min(most), min(limits, default=None)

    def decode(self, params: Sequence[Any], inputs: Any, lengths: Any, numbers: Any) -> Any:
        """Decodes the rows of one device."""
        name, options = self.manner.strategy(numbers)
        return DECODERS[name](*self.begin(params, inputs, lengths), self.eos_id, **options)

    def attention(self, params: Sequence[Any], inputs: Any, lengths: Any, written: Any) -> Any:
        """Cross-attention [B, L, S] of outputs [B, L], averaged over the members of an ensemble."""
        begin = jnp.full((inputs.shape[0], 1), self.trained.tokenizer.bos_id)
        said = jnp.concatenate([begin, written[:, :-1]], axis=1)  # the decoder's inputs
        maps = [
            looks(member.task.model, weights, inputs, Tokens(lengths=lengths), said, Tokens())
            for member, weights in zip(self.trained.members, params, strict=True)
        ]
        return sum(maps) / len(maps)

    def _links(self, inputs: Any, lengths: Any, tokens: Any, counts: Any) -> Iterator[list[str]]:
        """The alignment of each output of each row; empty unless requested."""
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
        """The index of the word of each token except EOS; words are separated by white space."""
        kept = [int(token) for token in ids if token != self.eos_id]
        decode = self.trained.tokenizer.decode
        return [max(len(decode(kept[: n + 1]).split()) - 1, 0) for n in range(len(kept))]


def stream(writer: Writer, ids: Sequence[int], show: Callable[[str], object]) -> None:
    """Shows the output of one line piece by piece while it is generated; beam search has no output before its end."""
    tokenizer, said, shown = writer.trained.tokenizer, list[int](), 0

    def told(token: Any, count: Any) -> None:
        nonlocal shown
        if count:  # the first input token is BOS, or the last of the prompt
            said.append(int(token))
        text = one_line(tokenizer.decode(said))
        if not text.endswith("\ufffd"):  # an incomplete character
            show(text[shown:])
            shown = len(text)

    def decode(params: Any, inputs: Any, lengths: Any, numbers: Any) -> Any:
        step, state, first, places, *ends = writer.begin(params, inputs, lengths)

        def telling(tokens: Any, positions: Any, state: Any) -> Any:
            jax.debug.callback(told, tokens[0, 0], positions[0, 0] - places[0], ordered=True)
            return step(tokens, positions, state)

        name, options = writer.manner.strategy(numbers)
        return DECODERS[name](telling, state, first, places, *ends, writer.eos_id, **options)

    width = width_of(len(ids), writer.trained.config.data.buckets, writer.trained.limit)
    ((batch, lengths, numbers),) = slices([0], [ids], width, 1)
    params = jax.device_put([member.params for member in writer.trained.members], jax.devices()[0])
    found = jax.device_get(jax.jit(decode)(params, batch, lengths, numbers))
    jax.effects_barrier()
    writer.check(found.ok, numbers)
    said = [token for token in found.tokens[0, 0, : found.lengths[0, 0]].tolist() if token != writer.eos_id]
    show(one_line(tokenizer.decode(said))[shown:])
