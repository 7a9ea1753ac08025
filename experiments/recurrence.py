"""What does a Transformer have that a recurrent network has not?

Hypothesis: it trains faster, and the more so the longer the sequences, as it works on all places at once; it recalls
what is far away, which a recurrent state forgets and which attention gives back to it; and it pays with memory that
grows with the square of the length, where a recurrent network's grows with the length.

Encoder-decoders of as many parameters each: the paper's, with two layers a side; an LSTM of one layer a side with
additive attention (Bahdanau et al. 2015, arXiv 1409.0473); and the same without (Sutskever et al. 2014, arXiv
1409.3215). Times and memory are those of one training step's gradient, float32, with as many places in all at each
length; the kinds take turns, and each time is the median of its rounds. Loop iterations are counted in the program:
the longest chain in which each waits for the one before. They are what no number of devices shortens: a batch over more
devices is fewer rows on each, and as many iterations.

Recall: one of two keys is asked for, whose value stands so many places from both ends of what the encoder reads, among
queries that nobody answers; guessing is right one time in four. Nothing else is trained, so no short distance teaches
the long one.

Source: the comparison is that of Vaswani et al. 2017, section 4 (arXiv 1706.03762); what distance does to gradients,
Bengio et al. 1994 and Hochreiter & Schmidhuber 1997.
"""

import bisect
import dataclasses
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from experiments.lab import recall
from experiments.lab.loops import loops
from experiments.lab.render import Block, Picture, Table
from experiments.lab.timing import clock, columns, exponent, ratio, take_turns
from experiments.lab.words import PERCENT, mean
from transformer.analysis import plots
from transformer.config import ModelConfig

LENGTHS = (16, 64, 256, 512)
PLACES = 2048  # of a batch, on each side: rows x length
SHARED_LENGTH, SHARES = 64, (1, 8)  # the length and the numbers of devices that a batch's rows are shared by
SECONDS = 4.0  # of rounds of each measurement of time
VOCAB = 256  # of the models that are timed
DISTANCES, SEEDS = (4, 16, 48), (0, 1, 2)
ROWS, STEPS, WARMUP, RATE, TEST_ROWS = 16, 400, 50, 3e-3, 512

TRANSFORMER = ModelConfig(num_layers=2, d_model=64, d_ff=256, num_heads=2, dropout=0.0)
LSTM = ModelConfig(family="recurrent_encoder_decoder", positions="none", num_layers=1, num_heads=1, dropout=0.0)
KINDS = {
    "Transformer": TRANSFORMER,
    "LSTM with attention": LSTM,
    "LSTM": dataclasses.replace(LSTM, recurrent_attention=False),
}


def cases() -> dict[str, dict[str, Any]]:
    """A case for each length, for the shares of devices, and for each kind and distance of recall."""
    recall = {
        f"{kind}, distance {distance}": {"part": "recall", "kind": kind, "distance": distance}
        for distance in DISTANCES
        for kind in KINDS
    }
    steps = {f"length {length}": {"part": "step", "length": length, "share": 1} for length in LENGTHS}
    shares = {f"{n} devices": {"part": "share", "length": SHARED_LENGTH, "share": n} for n in SHARES}
    return {**steps, **shares, **recall}


def measure_case(part: str, **arguments: Any) -> list[dict[str, Any]]:
    """Rows of one part, which they name: "step" and "share" (`measure_step`), or "recall" (`measure_recall`)."""
    measured = measure_recall(**arguments) if part == "recall" else measure_step(**arguments)
    return [{"part": part} | row for row in measured]


# --- Models of one size


@cache
def same_size(kind: str, vocab: int) -> ModelConfig:
    """The kind with the width at which its number of parameters is nearest to the Transformer's."""
    wanted = parameters(dataclasses.replace(TRANSFORMER, vocab_size=vocab))
    config = dataclasses.replace(KINDS[kind], vocab_size=vocab)
    if config.family == TRANSFORMER.family:
        return config

    def of_width(width: int) -> ModelConfig:
        return dataclasses.replace(config, d_model=width)

    widths = range(1, 4 * TRANSFORMER.d_model)
    above = widths[bisect.bisect_left(widths, wanted, key=lambda width: parameters(of_width(width)))]
    return min(map(of_width, (above - 1, above)), key=lambda found: abs(parameters(found) - wanted))


def parameters(config: ModelConfig) -> int:
    """How many parameters a model has; none is made."""
    import jax

    shapes = jax.eval_shape(partial(_model(config).init, jax.random.key(0)), *_arguments(1, 2, 2))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def _model(config: ModelConfig) -> Any:
    from transformer.model.families import build

    return build(config)


def _arguments(rows: int, sources: int, targets: int) -> tuple[Any, ...]:
    """Random tokens and their places, as an encoder-decoder is called."""
    import jax.numpy as jnp

    from transformer.model.tokens import Tokens

    rng, found = np.random.default_rng(0), []
    for length in (sources, targets):
        tokens = jnp.asarray(rng.integers(0, recall.VOCAB, (rows, length)), jnp.int32)
        where = Tokens(jnp.tile(jnp.arange(length), (rows, 1)), jnp.ones((rows, length), jnp.int32))
        found += [tokens, where]
    return tuple(found)


# --- Time, memory and loops of a training step


def measure_step(length: int, share: int) -> list[dict[str, Any]]:
    """Of the gradient of a batch's mean loss, with the rows that one of `share` devices has: rows {"kind", "length",
    "share", "rows", "parameters", "bytes", "loops"} with those of `timing.columns`."""
    import jax
    import optax

    rows = max(1, PLACES // length // share)
    runs: dict[str, Callable[[], Any]] = {}
    found: dict[str, dict[str, Any]] = {}
    for kind in KINDS:
        config = same_size(kind, VOCAB)
        model, args = _model(config), _arguments(rows, length, length)

        def loss(params: Any, *args: Any, model: Any = model) -> Any:
            logits = model.apply(params, *args)
            return optax.softmax_cross_entropy_with_integer_labels(logits, args[2]).mean()

        params = jax.jit(model.init)(jax.random.key(0), *args)
        traced = jax.jit(jax.value_and_grad(loss)).trace(params, *args)
        compiled = traced.lower().compile()
        runs[kind] = partial(lambda compiled, *args: jax.block_until_ready(compiled(*args)), compiled, params, *args)
        analysis = compiled.memory_analysis()
        found[kind] = {
            "kind": kind, "length": length, "share": share, "rows": rows, "parameters": parameters(config),
            "bytes": None if analysis is None else analysis.temp_size_in_bytes, "loops": loops(traced.jaxpr.jaxpr),
        }  # fmt: skip
    for kind, times in take_turns(runs, SECONDS, clock()).items():
        found[kind] |= columns(times)
    return list(found.values())


# --- Recall


def measure_recall(kind: str, distance: int) -> list[dict[str, Any]]:
    """Trains a model with each seed: rows {"kind", "distance", "seed", "accuracy", "queries"}, on data that no seed
    trains on."""
    import jax

    config = same_size(kind, recall.VOCAB)
    model = _model(config)

    def logits(params: Any, inputs: Any, asked: Any) -> Any:
        rows, length = inputs.shape
        places = _arguments(rows, length, 1)
        return cast(Any, model.apply(params, inputs, places[1], asked, places[3]))[:, 0, : recall.VALUES]

    init, best = jax.jit(model.init), jax.jit(lambda *batch: logits(*batch).argmax(-1))
    fit = recall.trainer(logits, STEPS, WARMUP, RATE)
    rows = []
    for seed in SEEDS:
        rng, params = np.random.default_rng(seed), init(jax.random.key(seed), *_arguments(1, 2, 1))
        params = fit(params, (draw(rng, ROWS, distance) for _ in range(STEPS)))
        inputs, asked, answers = draw(np.random.default_rng(10_000 + seed), TEST_ROWS, distance)
        right = (np.asarray(best(params, inputs, asked)) == answers)[answers >= 0]
        rows.append({"kind": kind, "distance": distance, "seed": seed, "accuracy": float(right.mean()),
                     "queries": len(right)})  # fmt: skip
    return rows


def draw(rng: np.random.Generator, rows: int, distance: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the encoder reads [rows, 2 x distance + 3], what the decoder is asked [rows, 1], the value (-1: a filler).

    A row of `recall.draw`, whose last query is asked and whose stores stand in its first four places, behind
    as many more queries and fillers: the stores are `distance` places or more from either end.
    """
    tokens, answers, _ = recall.draw(rng, rows, distance + 4)
    before = rng.integers(0, recall.FIRST_STORE, (rows, distance), dtype=np.int32)
    return np.concatenate([before, tokens[:, :-1]], axis=1), tokens[:, -1:], answers[:, -1]


# --- The report


class Found(NamedTuple):
    """What one part of the measurements says: sentences, blocks of the report, and claims with what came out."""

    answer: list[str]
    blocks: list[Block]
    claims: list[list[str]]


def findings(rows: list[dict[str, Any]], folder: Path) -> tuple[list[str], list[Block]]:
    """Sentences of time, memory, shares and recall; the claims beside the figures; curves and all numbers."""
    parts: dict[str, Callable[..., Found]] = {
        "step": partial(_of_steps, folder=folder), "share": _of_shares, "recall": _of_recall,
    }  # fmt: skip
    of = {part: [row for row in rows if row["part"] == part] for part in parts}
    found = [parts[part](own) for part, own in of.items() if own]
    claims = Table(
        ["claim", "measured"],
        [claim for part in found for claim in part.claims],
        "What is said of the two, and what came out.",
        text=True,
    )
    return [text for part in found for text in part.answer], [claims, *(b for part in found for b in part.blocks)]


def _of_steps(rows: list[dict[str, Any]], folder: Path) -> Found:
    """Time, loops and memory against length."""
    at = {(row["kind"], row["length"]): row for row in rows}
    lengths = sorted({length for _, length in at})
    answer = []
    for slow in ("LSTM", "LSTM with attention"):
        ratios = [f"{ratio(at[slow, n], at['Transformer', n]):.1f} at {n}" for n in lengths]
        answer.append(f"A training step of the {slow} takes so many times the Transformer's: {', '.join(ratios)}.")
    last = {kind: at[kind, lengths[-1]] for kind in KINDS}
    claims = [
        ["A Transformer works on all places at once, a recurrent network on one after another",
         f"loops one after another in a step at length {lengths[-1]}: "
         + "; ".join(f"{kind} {row['loops']:,} ({row['milliseconds']:,.0f} ms)" for kind, row in last.items())]
    ]  # fmt: skip
    blocks: list[Block] = []
    curves = [("step", "gradient of a step (ms)", {key: row["milliseconds"] for key, row in at.items()})]
    if all(row["bytes"] is not None for row in rows):
        memory = {key: row["bytes"] / row["rows"] / 2**20 for key, row in at.items()}
        curves.append(("row-memory", "memory of a row (MiB)", memory))
        powers = [f"{kind} n^{exponent(lengths[-3:], [memory[kind, n] for n in lengths[-3:]]):.2f}" for kind in KINDS]
        claims.append(["Memory grows with n² in a Transformer, with n in a recurrent network",
                       f"a row's, fitted to the three longest: {'; '.join(powers)}"])  # fmt: skip
        answer.append(f"A row's memory grows, from length {lengths[-3:][0]} on: {'; '.join(powers)}.")
    for stem, label, value in curves:
        series = {kind: (np.asarray(lengths, float), np.asarray([value[kind, n] for n in lengths])) for kind in KINDS}
        plots.save(plots.cost(series, "length of source and target (tokens)", label), folder / stem)
        caption = f"{label[0].upper()}{label[1:]}; every batch has {PLACES:,} places a side."
        blocks.append(Picture(stem, f"{label} of each kind against length", caption))
    header = ["length", *(f"{kind} ({unit})" for unit in ("ms", "loops", "MiB a row") for kind in KINDS)]
    body = [
        [str(n), *(f"{at[kind, n]['milliseconds']:,.1f}" for kind in KINDS),
         *(f"{at[kind, n]['loops']:,}" for kind in KINDS),
         *(f"{memory[kind, n]:,.2f}" if len(curves) > 1 else "–" for kind in KINDS)]
        for n in lengths
    ]  # fmt: skip
    sizes = ", ".join(f"{kind} {row['parameters']:,}" for kind, row in last.items())
    blocks.append(Table(header, body, f"The gradient of one step. Parameters: {sizes}."))
    return Found(answer, blocks, claims)


def _of_shares(rows: list[dict[str, Any]]) -> Found:
    """Times of one device's share of a batch."""
    at = {(row["kind"], row["share"]): row for row in rows}
    shares = sorted({share for _, share in at})
    header = ["devices", "rows of each", *(f"{kind} (ms)" for kind in KINDS), *(f"{kind} (loops)" for kind in KINDS)]
    body = [
        [str(n), str(at["LSTM", n]["rows"]), *(f"{at[kind, n]['milliseconds']:,.1f}" for kind in KINDS),
         *(f"{at[kind, n]['loops']:,}" for kind in KINDS)]
        for n in shares
    ]  # fmt: skip
    gains = "; ".join(
        f"{kind} {at[kind, shares[0]]['milliseconds'] / at[kind, shares[-1]]['milliseconds']:.1f}" for kind in KINDS
    )
    caption = (
        "What each device of a data-parallel step would do, measured alone on this one: simulated devices share its "
        "cores, so they would show nothing. What devices tell each other comes on top."
    )
    answer = (
        f"A batch of {at['LSTM', shares[0]]['rows']} rows of {SHARED_LENGTH} tokens, shared by {shares[-1]} devices "
        f"like this one, would be so many times as fast at most: {gains}. The loops stay as long."
    )
    claim = ["More devices make a Transformer faster than a recurrent network",
             f"{shares[-1]} of them, each with its share of the rows, at most by: {gains}"]  # fmt: skip
    return Found([answer], [Table(header, body, caption)], [claim])


def _of_recall(rows: list[dict[str, Any]]) -> Found:
    """Accuracy by distance."""
    distances = sorted({row["distance"] for row in rows})
    body, answer, farthest = [], [], []
    for kind in KINDS:
        cells, said = [], []
        for distance in distances:
            own = [row["accuracy"] for row in rows if (row["kind"], row["distance"]) == (kind, distance)]
            cells.append(mean(own, PERCENT))
            if own:
                said.append(f"{100 * np.mean(own):.0f} % at {distance}")
        body.append([kind, *cells])
        if said:
            answer.append(f"Recall of the {kind}, by distance: {', '.join(said)}.")
            farthest.append(f"{kind} {said[-1]}")
    caption = (
        f"Accuracy of recall after {STEPS} steps (%), by distance; mean over seeds with 95 % t intervals. Guessing "
        f"gives {100 / recall.VALUES:.0f}."
    )
    claim = ["A Transformer keeps what is far away, a recurrent network forgets it", f"recall: {'; '.join(farthest)}"]
    return Found(answer, [Table(["kind", *map(str, distances)], body, caption)], [claim])
