"""How long does nanoGPT's recipe for a CPU take to its loss, beside PyTorch, and with better settings?

Hypothesis: with the same settings ours gets there in less time than eager PyTorch, after as many tokens; with those of
configs/gpt_fast.py, of the same size, after a third of them or fewer.

The text is Tiny Shakespeare's input.txt, in the tree or named by the environment's TINYSHAKESPEARE. The loss is over
the whole last 10 % of it, in nats a character; its target is 1.88, which nanoGPT quotes. It is computed after every
76,800 tokens (100 steps of the recipe) on the same rows for all, and what that takes is not counted; nor are compiling,
which is reported apart, and making batches. All kinds train to the end of their schedule. PyTorch is eager, has
nanoGPT's initialization, and trains on the batches of ours (nanoGPT draws rows with replacement, and sees less of the
text in as many tokens); without the extra `bench` ours stand alone. The kinds of a seed take turns after each loss.
Seconds are to be read of a quiet machine only: beside other work PyTorch's two threads wait for each other, and a step
took 360 to 1,900 ms, where it took 55 ms with one thread.

Source: Karpathy 2022, nanoGPT, "I only have a macbook".
"""

import dataclasses
import importlib.util
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from experiments.lab.card import recipe
from experiments.lab.peers import Model
from experiments.lab.questions import FOLDER
from experiments.lab.render import Block, Table
from experiments.lab.timing import REST, clock
from transformer.config import Config, load_file, override
from transformer.errors import UserError

TARGET = 1.88  # nats a character
EVERY = 76_800  # tokens of training from one validation loss to the next
SEEDS = (0, 1, 2)
VALIDATION_ROWS = 64  # of a batch
RECIPE = {"optimizer.learning_rate": 1e-3, "optimizer.final_rate": 0.1, "model.norm_type": "layer"}
OURS, PEER, FAST = "ours", "PyTorch", "ours, gpt_fast"
# Kind -> the config that it trains by, and its changes.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {OURS: ("gpt", RECIPE), PEER: ("gpt", RECIPE), FAST: ("gpt_fast", {})}


class Point(NamedTuple):
    """A validation loss, and what was spent to get there."""

    tokens: int
    seconds: float
    loss: float


@dataclasses.dataclass(frozen=True)
class Text:
    """A text as a config trains on it: batches, and the ids that occur in it."""

    config: Config
    task: Any
    training: Any
    validation: list[dict[str, np.ndarray]]
    known: np.ndarray  # sorted


class Kind(NamedTuple):
    """A program in training."""

    steps: int
    tokens: int  # of a step
    parameters: int  # without rows of a vocabulary that the text never uses
    compile_seconds: float
    batch: Callable[[int], Any]  # of a step
    step: Callable[[int, Any], Any]  # trains it; what it gives is there when it is done
    loss: Callable[[], float]  # on validation


def cases() -> dict[str, dict[str, Any]]:
    """A case for each seed."""
    return {f"seed {seed}": {"seed": seed} for seed in SEEDS}


def measure_case(seed: int) -> list[dict[str, Any]]:
    """Rows of the kinds: {"seed", "kind", "parameters", "compile_seconds", those of `summary`}. UserError: there is no
    text."""
    there = [kind for kind in KINDS if kind != PEER or importlib.util.find_spec("torch") is not None]
    made = {kind: (peer if kind == PEER else ours)(read(*KINDS[kind], seed)) for kind in there}
    return [
        {"seed": seed, "kind": kind, "parameters": made[kind].parameters,
         "compile_seconds": made[kind].compile_seconds, **summary(points, made[kind].tokens)}
        for kind, points in in_turns(made).items()
    ]  # fmt: skip


def read(name: str, changes: Mapping[str, Any], seed: int) -> Text:
    """The text as a file of configs/ and its changes train on it. UserError: it is not here."""
    from transformer.data.batches.corpus import tokenize
    from transformer.data.sources import load_source
    from transformer.data.tokenizers.training import load_or_train
    from transformer.tasks import task_class

    path = recipe.text()
    if path is None:
        raise UserError(
            f"Tiny Shakespeare is not here: put it at {recipe.PLACES[0]}, or set {recipe.VARIABLE} to its path"
        )
    own = {"data.target": str(path), "seed": seed, "mesh.data": 1}
    config = override(load_file(FOLDER.parent / "configs" / f"{name}.py"), own | dict(changes))
    source, kind = load_source(config.data), task_class(config.task)
    fields = kind.fields(config, source)
    tokenizer = load_or_train(source, config.data, fields, kind.extra_pieces(config))
    rows = override(
        config,
        {"data.batch_tokens": VALIDATION_ROWS * config.data.max_len, "data.row_multiple": VALIDATION_ROWS},
    )
    flat = [
        tokens.flat
        for split in ("train", "validation")
        for tokens in tokenize(source, split, fields, tokenizer, config.data).values()
    ]
    return Text(
        config,
        task := kind(config, tokenizer),
        task.batches(source, "train"),
        list(kind(rows, tokenizer).batches(source, "validation").evaluation()),
        np.unique(np.concatenate(flat)),
    )


def ours(text: Text) -> Kind:
    """The step of `transformer.train`."""
    import jax

    from transformer.training import losses, optim, sharding, step

    config, task = text.config, text.task
    layout = sharding.make_layout(config, axes=task.axes)
    optimizer, seed = optim.make_optimizer(config, task.axes), np.uint32(config.seed)
    held = [step.make_init(task.init, optimizer, layout)(seed)]
    train_step = step.make_train_step(task.loss, optimizer, layout, 1, config.optimizer.max_spike)
    batch = lambda i: layout.place(text.training.batch(i))  # noqa: E731
    began = time.perf_counter()
    compiled = cast(Any, train_step).lower(held[0], batch(0), seed).compile()
    compile_seconds = time.perf_counter() - began
    eval_step = step.make_eval_step(task.loss, layout)

    def advance(_: int, batch: Any) -> Any:
        held[0], metrics = compiled(held[0], batch, seed)
        return metrics["loss"]

    def loss() -> float:
        rows = map(layout.place, text.validation)
        return losses.means(jax.device_get(step.total(eval_step, held[0].params, rows)))["loss"]

    unused = (task.model_config.vocab_size - len(text.known)) * config.model.d_model * (1 if config.model.tied else 2)
    parameters = sum(x.size for x in jax.tree.leaves(held[0].params)) - unused
    tokens = text.training.batch(0)["targets"].size
    return Kind(config.steps, tokens, parameters, compile_seconds, batch, advance, loss)


def peer(text: Text) -> Kind:
    """PyTorch, eager, on the batches of ours; its vocabulary are the characters of the text."""
    from experiments.lab.peers.torch_loop import Loop, tensor
    from transformer.training.optim import schedule

    config, model = text.config, text.config.model
    width, rows = config.data.max_len, text.training.batch(0)["targets"].shape[0]
    loop = Loop(
        Model(model.num_layers, model.d_model, model.d_ff, model.num_heads, width, rows, len(text.known), 0.0, 0.0,
              encoder=False, bias=False),
        compile_it=False,
        seed=config.seed,
    )  # fmt: skip
    rates = np.asarray(schedule(config)(np.arange(config.steps)))

    def sides(batch: Mapping[str, np.ndarray]) -> tuple[Any, Any]:
        """Inputs and targets, which are -1 where a row has no token."""
        outside = np.arange(width) >= batch["target_lengths"][:, None]
        inputs, targets = (
            np.searchsorted(text.known, batch[side]).clip(max=len(text.known) - 1)
            for side in ("target_inputs", "targets")
        )
        return tensor(inputs), tensor(np.where(outside, -1, targets))

    validation = [(*sides(batch), int(batch["target_lengths"].sum())) for batch in text.validation]

    def loss() -> float:
        return sum(loop.loss(*both) * count for *both, count in validation) / sum(count for *_, count in validation)

    def advance(i: int, batch: Any) -> float:
        inputs, targets = batch
        return loop.step(None, inputs, targets, float(rates[i]))

    return Kind(config.steps, rows * width, loop.size, 0.0, lambda i: sides(text.training.batch(i)), advance, loss)


def in_turns(kinds: Mapping[str, Kind], seconds: Callable[[], float] | None = None) -> dict[str, list[Point]]:
    """Kind -> its validation losses, one after every EVERY tokens and one at its end, after each of which it is the
    next one's turn."""
    import jax

    now = seconds or clock()
    curves: dict[str, list[Point]] = {name: [] for name in kinds}
    done, spent = dict.fromkeys(kinds, 0), dict.fromkeys(kinds, 0.0)
    while left := [name for name, kind in kinds.items() if done[name] < kind.steps]:
        for name in left:
            kind = kinds[name]
            stop = min(done[name] + max(1, EVERY // kind.tokens), kind.steps)
            batches = [kind.batch(i) for i in range(done[name], stop)]
            time.sleep(REST)
            began = now()
            for i, batch in enumerate(batches, done[name]):
                result = kind.step(i, batch)
            jax.block_until_ready(result)
            spent[name] += now() - began
            done[name] = stop
            curves[name].append(Point(stop * kind.tokens, spent[name], kind.loss()))
    return curves


def summary(points: Sequence[Point], tokens: int) -> dict[str, Any]:
    """What a row says of a kind's losses, with `tokens` a step: {"tokens" and "seconds" to the first loss of TARGET or
    below, None where there is none; "best" loss and its "best_tokens"; "all_tokens" and "all_seconds"; "last" loss;
    "step_tokens"; "curve"}."""
    first = next((point for point in points if point.loss <= TARGET), None)
    best, last = min(points, key=lambda point: point.loss), points[-1]
    return {
        "tokens": first.tokens if first else None,
        "seconds": first.seconds if first else None,
        "best": best.loss,
        "best_tokens": best.tokens,
        "last": last.loss,
        "all_tokens": last.tokens,
        "all_seconds": last.seconds,
        "step_tokens": tokens,
        "curve": " ".join(f"{point.tokens}:{point.loss:.4f}" for point in points),
    }


def findings(rows: list[dict[str, Any]], folder: Path) -> tuple[list[str], list[Block]]:
    """Who reached the target, after what; the ratios of those who did; and tables of all rows and losses."""
    del folder  # nothing is drawn
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    own = {kind: [row for row in rows if row["kind"] == kind] for kind in kinds}
    answer = [_reached(kind, own[kind]) for kind in kinds]
    pairs = [pair for pair in ((OURS, PEER), (FAST, OURS), (FAST, PEER)) if set(pair) <= set(own)]
    answer += [_ratios(one, other, own) for one, other in pairs]
    body = [
        [
            f"{row['kind']}, seed {row['seed']}",
            f"{row['parameters']:,}",
            "not reached" if row["tokens"] is None else f"{row['tokens']:,}",
            "–" if row["seconds"] is None else f"{row['seconds']:.1f}",
            f"{row['best']:.4f} at {row['best_tokens']:,}",
            f"{row['all_tokens']:,}",
            f"{row['all_seconds']:.1f}",
            f"{row['compile_seconds']:.1f}",
        ]
        for kind in kinds
        for row in own[kind]
    ]
    header = ["kind", "parameters", f"tokens to {TARGET}", "seconds", "best loss", "tokens in all", "seconds in all",
              "compiling (s)"]  # fmt: skip
    return answer, [
        Table(header, body, f"Training to {TARGET} nats a character on validation; seconds are of training alone."),
        _curves(own),
    ]


def _reached(kind: str, rows: Sequence[Mapping[str, Any]]) -> str:
    there = [row for row in rows if row["tokens"] is not None]
    others = [f"seed {row['seed']} {row['best']:.4f}" for row in rows if row["tokens"] is None]
    said = f"`{kind}` reaches {TARGET} with {len(there)} of {len(rows)} seeds"
    if there:
        tokens, seconds = (np.median([row[key] for row in there]) for key in ("tokens", "seconds"))
        said += f", after {tokens:,.0f} tokens and {seconds:.1f} s of training (medians of these)"
    if others:
        best = "without it the best" if there else "the best"
        said += f"; {best} in {rows[0]['all_tokens']:,} tokens: {', '.join(others)}"
    return f"{said}."


def _ratios(one: str, other: str, own: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """How many times the tokens and seconds of `one` the `other` takes, by the seeds with which both are there; and of
    a step, by all."""
    pairs = [(a, b) for a in own[one] for b in own[other] if a["seed"] == b["seed"]]
    both = [(a, b) for a, b in pairs if a["tokens"] is not None and b["tokens"] is not None]
    by_token = np.median([b["all_seconds"] / b["all_tokens"] / (a["all_seconds"] / a["all_tokens"]) for a, b in pairs])
    said = f"For as many tokens, `{other}` takes {by_token:.2f} times the seconds of `{one}`"
    if not both:
        return f"{said}; no seed takes both to {TARGET}."
    tokens, seconds = (np.median([b[key] / a[key] for a, b in both]) for key in ("tokens", "seconds"))
    return (
        f"{said}; to {TARGET} it takes {tokens:.2f} times the tokens and {seconds:.2f} times the seconds "
        f"(medians of {len(both)} of {len(pairs)} seeds)."
    )


def _curves(own: Mapping[str, Sequence[Mapping[str, Any]]]) -> Table:
    """The mean loss over seeds, by tokens."""
    found: dict[int, dict[str, list[float]]] = {}
    for kind, rows in own.items():
        for row in rows:
            for point in row["curve"].split():
                tokens, loss = point.split(":")
                found.setdefault(int(tokens), {}).setdefault(kind, []).append(float(loss))
    body = [
        [f"{tokens:,}", *(f"{np.mean(by_kind[kind]):.4f}" if kind in by_kind else "–" for kind in own)]
        for tokens, by_kind in sorted(found.items())
    ]
    return Table(["tokens", *own], body, "Validation loss in nats a character, mean over seeds.")
