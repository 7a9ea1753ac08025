"""What does writing cost, and is it as fast as the reference implementation?

Hypothesis: with the same weights, the same tokens are written 1.5 times as fast as by Hugging Face's `generate` in
PyTorch where several rows are written together, and as fast with one row, which the memory's bandwidth bounds. What a
token costs does not grow with the tokens before it where every layer attends to a window.

Weights are random and shared, in float32. Translation: a Marian model of the size of configs/multi30k.py, and 1,000
sources as long as Multi30k's test sentences are in its 6,000 pieces, padded to its buckets; beam 4 by the reference's
rule, as many tokens written as the bucket is wide. We take 16 sources at once, on every core a slice of them, as
`transformer.generate` does; the reference 16 or 64, each a kind of its own. Language model: GPT-2 of 124 million
parameters, 256 tokens after a prompt of 16, greedily. Nothing ends a text, so that both write as many tokens. The kinds
take turns; times are medians of rounds, ratios medians of rounds' ratios. PyTorch and transformers come with the
`bench` extra; without them ours stand alone. Windows: a small model writes to the end of a context of so many tokens,
by a cache of its window and by one of the whole context.

Source: Hugging Face `transformers`, `generate`; Vaswani et al. 2017, section 6.1 (beam 4).
"""

import dataclasses
import functools
import importlib.util
import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.lab.render import Block, Table
from experiments.lab.timing import columns, ratio, take_turns
from transformer.config import ModelConfig
from transformer.decoding import beam, greedy
from transformer.model.families import build
from transformer.model.pretrained import parameter_shapes, save
from transformer.model.tokens import Tokens
from transformer.writing.slices import at_once, side_by_side

# Tokens of a sentence of test_2016_flickr.en, with BOS and EOS -> how many sentences have so many.
SOURCE_LENGTHS = {
    7: 2, 8: 3, 9: 16, 10: 29, 11: 58, 12: 71, 13: 103, 14: 105, 15: 96, 16: 82, 17: 86, 18: 63, 19: 70, 20: 44, 21: 39,
    22: 18, 23: 30, 24: 14, 25: 12, 26: 12, 27: 9, 28: 3, 29: 5, 30: 5, 31: 5, 32: 4, 33: 4, 34: 2, 35: 5, 36: 2, 37: 2,
    38: 1,
}  # fmt: skip
BUCKETS = (12, 16, 20, 24, 32, 48)
BEAMS, ROWS, THEIR_ROWS = 4, 16, (16, 64)
PROMPT = 16
CONTEXTS, WINDOW = (256, 1024, 4096), 64
TRANSLATION, GPT2, WINDOWS = "translation", "gpt2", "windows"
OURS, THEIRS = "ours", "transformers"

Kinds = dict[str, Callable[[], np.ndarray]]
"""Name -> a run that gives all tokens that it wrote, in one row."""


class Sizes(NamedTuple):
    """What is measured: models, sources and lengths. The test has smaller ones."""

    marian: ModelConfig
    gpt2: ModelConfig
    windowed: ModelConfig
    lengths: dict[int, int]
    new: int
    seconds: float  # of rounds of a case; at least three rounds


FULL = Sizes(
    marian=ModelConfig(
        positions="sinusoidal-half", vocab_size=6000, num_layers=3, d_model=256, d_ff=512, num_heads=4,
        max_positions=64, attention_bias=True, norm_eps=1e-5, output_bias=True,
    ),
    gpt2=ModelConfig(
        family="decoder_only", positions="learned", vocab_size=50257, max_positions=1024, num_layers=12, d_model=768,
        d_ff=3072, num_heads=12, attention_bias=True, norm="pre", norm_eps=1e-5, activation="gelu_tanh",
        scale_embedding=False, initialization="depth_scaled",
    ),
    windowed=ModelConfig(
        family="decoder_only", vocab_size=512, num_layers=4, d_model=256, d_ff=1024, num_heads=4, norm="pre"
    ),
    lengths=SOURCE_LENGTHS,
    new=256,
    seconds=30.0,
)  # fmt: skip


def cases() -> dict[str, dict[str, Any]]:
    """Translation, a language model with 1 and with 8 rows, and windows."""
    return {
        "translation, beam 4": {"what": TRANSLATION},
        "GPT-2, 1 row": {"what": GPT2, "rows": 1},
        "GPT-2, 8 rows": {"what": GPT2, "rows": 8},
        **{f"context {n}": {"what": WINDOWS, "context": n} for n in CONTEXTS},
    }


def measure_case(what: str, rows: int = 0, context: int = 0, sizes: Sizes = FULL) -> list[dict[str, Any]]:
    """A row a kind: "tokens" written in a round, "seconds" (median), those of `timing.columns`, and "same", the
    share of the tokens that are those of ours. Of GPT-2 also "weight_bytes", which a token of one row reads, and
    "bandwidth", the bytes a second that a sum over a large array reads here."""
    if what == WINDOWS:
        kinds = _windows(sizes, context)
    elif what == TRANSLATION:
        kinds = _translation(sizes)
    else:
        kinds = _continuation(sizes, rows)
    written: dict[str, np.ndarray] = {}
    keeping: dict[str, Callable[[], Any]] = {
        kind: functools.partial(_kept, written, kind, run) for kind, run in kinds.items()
    }
    times = take_turns(keeping, sizes.seconds)
    ours = written[next(iter(kinds))]
    more = {}
    if what == GPT2:
        looked_up = sizes.gpt2.max_positions * sizes.gpt2.d_model
        count = sum(int(np.prod(shape)) for shape in parameter_shapes(build(sizes.gpt2)).values())
        more = {"weight_bytes": 4 * (count - looked_up), "bandwidth": bandwidth()}
    return [
        {"what": what, "batch": rows, "context": context, "kind": kind, "tokens": ours.size,
         "seconds": float(np.median(ms)) / 1000, **columns(ms), "same": float((written[kind] == ours).mean()), **more}
        for kind, ms in times.items()
    ]  # fmt: skip


def _kept(written: dict[str, np.ndarray], kind: str, run: Callable[[], np.ndarray]) -> None:
    written[kind] = run()


def bandwidth(megabytes: int = 512) -> float:
    """Bytes a second that the cores read together: the best of five sums over an array larger than their caches."""
    x = jnp.ones((megabytes, 2**18), jnp.float32)
    total = jax.jit(lambda x: x.sum(axis=1))
    seconds = []
    for _ in range(6):
        began = time.perf_counter()
        jax.block_until_ready(total(x))
        seconds.append(time.perf_counter() - began)
    return x.nbytes / min(seconds[1:])


def _drawn(config: ModelConfig) -> tuple[Any, Any]:
    """A model, and random parameters."""
    model, one = build(config), jnp.zeros((1, 1), jnp.int32)
    sides = 2 if config.family == "encoder_decoder" else 1
    return model, jax.jit(model.init)(jax.random.key(0), *(one, Tokens(one, one)) * sides)


def _both(config: ModelConfig) -> tuple[Any, Any, Any]:
    """Our model, its parameters, and the reference's model of the same weights; None where it is not installed."""
    model, params = _drawn(config)
    if not all(importlib.util.find_spec(name) for name in ("torch", "transformers")):
        return model, params, None
    import transformers

    two = config.family == "encoder_decoder"
    reference = transformers.AutoModelForSeq2SeqLM if two else transformers.AutoModelForCausalLM
    with tempfile.TemporaryDirectory() as folder:
        save(folder, model, params)
        theirs = reference.from_pretrained(folder).eval()
    theirs.generation_config.forced_eos_token_id = None
    return model, params, theirs


def _theirs(model: Any, tokens: np.ndarray, real: np.ndarray, new: int, **options: Any) -> np.ndarray:
    """What `generate` writes after, or for, tokens [B, L]: [B, new]."""
    import torch

    never = model.config.vocab_size  # no token: nothing ends a text
    with torch.no_grad():
        made = model.generate(
            torch.tensor(tokens), attention_mask=torch.tensor(real.astype(np.int64)), do_sample=False,
            max_new_tokens=new, eos_token_id=never, pad_token_id=never - 1, **options,
        )  # fmt: skip
    return made[:, -new:].numpy()


def _sources(sizes: Sizes) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each bucket random sources [n, bucket], padded with the last piece, and which tokens are real."""
    rng, last = np.random.default_rng(0), sizes.marian.vocab_size - 1
    lengths = np.repeat(list(sizes.lengths), list(sizes.lengths.values()))
    found = []
    for low, high in itertools.pairwise((0, *BUCKETS)):
        own = lengths[(lengths > low) & (lengths <= high)]
        real = np.arange(high) < own[:, None]
        found.append((np.where(real, rng.integers(1, last, real.shape), last), real))
    return [pair for pair in found if len(pair[0])]


def _translation(sizes: Sizes) -> Kinds:
    model, params, reference = _both(sizes.marian)
    sources, last = _sources(sizes), sizes.marian.vocab_size - 1

    @jax.jit
    def decode(params: Any, tokens: Any, real: Any) -> Any:
        rows, width = tokens.shape
        places = Tokens(jnp.broadcast_to(jnp.arange(width), tokens.shape), real.astype(jnp.int32))
        state = model.apply(params, tokens, places, width, method="start")
        begin = jnp.full(rows, last), jnp.zeros(rows, jnp.int32)
        return beam(
            _step(model, params), state, *begin, width, None, last + 1, beams=BEAMS, alpha=1.0, rule="hf"
        ).tokens

    batches = []
    for tokens, real in sources:
        for part in range(0, len(tokens), ROWS):
            short = max(0, part + ROWS - len(tokens))  # one shape a bucket
            batches.append(
                ([np.pad(x[part : part + ROWS], ((0, short), (0, 0)), "edge") for x in (tokens, real)], short)
            )

    def one(batch: list[np.ndarray], short: int) -> np.ndarray:
        return np.asarray(decode(params, *batch))[: ROWS - short, 0].ravel()

    def ours() -> np.ndarray:
        return np.concatenate(side_by_side(one, batches, at_once(devices=1)))

    def theirs(rows: int) -> np.ndarray:
        written = [
            _theirs(reference, tokens[i : i + rows], real[i : i + rows], real.shape[1], num_beams=BEAMS)
            for tokens, real in sources
            for i in range(0, len(tokens), rows)
        ]
        return np.concatenate([x.ravel() for x in written])

    kinds: Kinds = {OURS: ours}
    if reference is not None:
        kinds |= {f"{THEIRS}, {rows} at once": functools.partial(theirs, rows) for rows in THEIR_ROWS}
    return kinds


def _continuation(sizes: Sizes, rows: int) -> Kinds:
    model, params, reference = _both(sizes.gpt2)
    prompts = np.random.default_rng(0).integers(0, sizes.gpt2.vocab_size, (rows, PROMPT))
    real = np.ones_like(prompts)

    @jax.jit
    def decode(params: Any, prompts: Any) -> Any:
        state = model.apply(params, rows, PROMPT + sizes.new, method="start")
        places = jnp.broadcast_to(jnp.arange(PROMPT - 1), (rows, PROMPT - 1))
        _, state = model.apply(params, prompts[:, :-1], Tokens(places, jnp.ones_like(places)), state, method="step")
        begin = prompts[:, -1], jnp.full(rows, PROMPT - 1)
        return greedy(_step(model, params), state, *begin, sizes.new, None, sizes.gpt2.vocab_size).tokens

    kinds: Kinds = {OURS: lambda: np.asarray(decode(params, prompts)).ravel()}
    if reference is not None:
        kinds[THEIRS] = lambda: _theirs(reference, prompts, real, sizes.new).ravel()
    return kinds


def _windows(sizes: Sizes, context: int) -> Kinds:
    """Greedy decoding of a whole context, by the cache of a window and by that of full attention."""
    kinds: Kinds = {}
    for kind, pattern in ((f"window of {WINDOW}", f"window:{WINDOW}"), ("full", "full")):
        config = dataclasses.replace(sizes.windowed, attention=(pattern,))
        model, params = _drawn(config)

        def decode(params: Any, model: Any = model, vocab_size: int = config.vocab_size) -> Any:
            state = model.apply(params, 1, context, method="start")
            begin = jnp.zeros(1, jnp.int32), jnp.zeros(1, jnp.int32)
            return greedy(_step(model, params), state, *begin, context, None, vocab_size).tokens

        kinds[kind] = functools.partial(_flat, jax.jit(decode), params)
    return kinds


def _flat(function: Callable[..., Any], *arguments: Any) -> np.ndarray:
    return np.asarray(function(*arguments)).ravel()


def _step(model: Any, params: Any) -> Callable[..., Any]:
    def step(tokens: Any, positions: Any, state: Any) -> Any:
        logits, state = model.apply(params, tokens, Tokens(positions, jnp.ones_like(positions)), state, method="step")
        return logits[:, -1], state

    return step


def findings(rows: list[dict[str, Any]], folder: Path) -> tuple[list[str], list[Block]]:
    """How many times as fast as the reference, and the share of the bandwidth, in sentences; all numbers."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["what"], row["batch"], row["context"]), []).append(row)
    answer, table = [], []
    for (what, batch, context), own in groups.items():
        ours = own[0]
        name = {TRANSLATION: "translation, beam 4", GPT2: f"GPT-2, batch {batch}"}.get(what, f"context {context:,}")
        for row in own:
            rate = row["tokens"] / row["seconds"]
            same = "" if row is ours or what == WINDOWS else f"{row['same']:.1%}"
            table.append([name, row["kind"], f"{rate:,.1f}", f"{ratio(row, ours):.2f}", same, str(row["rounds"])])
        others = [row for row in own if row["kind"].startswith(THEIRS)]
        if others:
            fastest = min(others, key=lambda row: row["seconds"])
            rates = [f"{row['tokens'] / row['seconds']:,.1f}" for row in (ours, fastest)]
            answer.append(
                f"{name}: {ratio(fastest, ours):.2f} times as fast as {fastest['kind']} ({' against '.join(rates)} "
                f"tokens/s; {fastest['same']:.1%} of the tokens are the same)."
            )
        if what == GPT2 and batch == 1:
            reached = ours["weight_bytes"] * ours["tokens"] / ours["seconds"]
            answer.append(
                f"GPT-2, batch 1: the weights are read at {reached / 1e9:.1f} GB/s, {reached / ours['bandwidth']:.0%} "
                f"of the {ours['bandwidth'] / 1e9:.1f} GB/s that a sum over a large array reaches."
            )
    for kind in dict.fromkeys(row["kind"] for row in rows if row["what"] == WINDOWS):
        own = [row for row in rows if row["what"] == WINDOWS and row["kind"] == kind]
        costs = ", ".join(f"{1e6 * row['seconds'] / row['tokens']:,.0f} µs at {row['context']:,}" for row in own)
        answer.append(f"A token of the small model, by the context that is written, {kind}: {costs}.")
    header = ["case", "kind", "tokens/s", "ours is so many times as fast", "tokens as ours", "rounds"]
    return answer, [Table(header, table, "Medians of rounds in which the kinds take turns.")]
