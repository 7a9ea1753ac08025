"""How far back can stacked windows see?

Hypothesis: N causal layers of window w see exactly N times w tokens back, not one more: recall is near perfect up to
that distance and at chance past it.

Source: the receptive field of stacked windows, Beltagy et al. 2020, "Longformer", section 3.1 (arXiv 2004.05150), and
of causal ones, Jiang et al. 2023, "Mistral 7B" (arXiv 2310.06825). The task is associative recall: each of two keys
is stored once with one of four values, in a row of fillers and queries; at a query of a key, what is its value?
Queries stand at every distance from what they ask for, so one model shows its whole receptive field. There are no
position encodings, so nothing but the windows knows of distance.
"""

from pathlib import Path
from typing import Any, cast

import numpy as np

from experiments.lab.render import Block, Picture, Table
from experiments.lab.statistics import mean_interval
from transformer.analysis import plots
from transformer.config import ModelConfig

LAYERS, WINDOWS, SEEDS = (1, 2, 3), (4, 8), (0, 1, 2)
KEYS, VALUES = 2, 4
LENGTH, ROWS, STEPS, WARMUP, RATE = 48, 32, 800, 50, 3e-3
TEST_ROWS = 1024
# Tokens: 0 filler, then the queries of the keys, then the stores of each key and value.
FIRST_STORE = 1 + KEYS
VOCAB = FIRST_STORE + KEYS * VALUES


def cases() -> dict[str, dict[str, Any]]:
    """A case for each model and seed."""
    return {
        f"{layers} layers, window {window}, seed {seed}": {"layers": layers, "window": window, "seed": seed}
        for layers in LAYERS
        for window in WINDOWS
        for seed in SEEDS
    }


def draw(rng: np.random.Generator, rows: int, length: int | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens [rows, length], the value asked for at each query (-1 elsewhere), and its distance.

    Both keys are stored in the first four places; every later place is a query of a random key, or a filler. Without a
    length it is LENGTH.
    """
    length = length or LENGTH
    tokens = rng.integers(0, 1 + KEYS, (rows, length))
    values = rng.integers(0, VALUES, (rows, KEYS))
    places = rng.permuted(np.tile(np.arange(4), (rows, 1)), axis=1)[:, :KEYS]
    tokens[:, :4] = 0
    np.put_along_axis(tokens, places, FIRST_STORE + np.arange(KEYS) * VALUES + values, axis=1)
    key = np.where((tokens > 0) & (tokens < FIRST_STORE), tokens - 1, 0)
    asked = (tokens > 0) & (tokens < FIRST_STORE)
    answers = np.where(asked, np.take_along_axis(values, key, axis=1), -1)
    distances = np.where(asked, np.arange(length) - np.take_along_axis(places, key, axis=1), 0)
    return tokens.astype(np.int32), answers.astype(np.int32), distances.astype(np.int32)


def measure_case(layers: int, window: int, seed: int) -> list[dict[str, Any]]:
    """Trains a decoder and gives its accuracy at each distance: rows {"layers", "window", "seed", "distance",
    "accuracy", "queries"}."""
    import jax
    import jax.numpy as jnp
    import optax

    from transformer.model.families import build
    from transformer.model.tokens import Tokens

    config = ModelConfig(
        family="decoder_only", positions="none", attention=(f"window:{window}",), num_layers=layers, d_model=64,
        d_ff=128, num_heads=4, norm="pre", dropout=0.0, vocab_size=VOCAB,
    )  # fmt: skip
    model = build(config)

    def where(rows: int) -> Tokens:
        return Tokens(jnp.tile(jnp.arange(LENGTH), (rows, 1)), jnp.ones((rows, LENGTH), jnp.int32))

    optimizer = optax.adam(optax.warmup_cosine_decay_schedule(0.0, RATE, WARMUP, STEPS))
    params = model.init(jax.random.key(seed), jnp.zeros((1, LENGTH), jnp.int32), where(1))

    def values(params: Any, tokens: Any) -> Any:
        return cast(Any, model.apply(params, tokens, where(tokens.shape[0])))[..., :VALUES]

    def loss(params: Any, tokens: Any, answers: Any) -> Any:
        each = optax.softmax_cross_entropy_with_integer_labels(values(params, tokens), jnp.maximum(answers, 0))
        return jnp.where(answers >= 0, each, 0).sum() / (answers >= 0).sum()

    @jax.jit
    def step(params: Any, state: Any, tokens: Any, answers: Any) -> tuple[Any, Any]:
        changes, state = optimizer.update(jax.grad(loss)(params, tokens, answers), state, params)
        return optax.apply_updates(params, changes), state

    rng, state = np.random.default_rng(seed), optimizer.init(params)
    for _ in range(STEPS):
        tokens, answers, _ = draw(rng, ROWS)
        params, state = step(params, state, tokens, answers)

    tokens, answers, distances = draw(np.random.default_rng(10_000 + seed), TEST_ROWS)  # rows that no seed trains on
    right = np.asarray(jax.jit(values)(params, tokens).argmax(-1)) == answers
    return [
        {"layers": layers, "window": window, "seed": seed, "distance": d,
         "accuracy": float(right[distances == d].mean()), "queries": int((distances == d).sum())}
        for d in range(1, LENGTH)
        if (distances == d).any()
    ]  # fmt: skip


def findings(rows: list[dict[str, Any]], folder: Path) -> tuple[list[str], list[Block]]:
    """Accuracy within and past N · w, and the heat map."""
    models = list(dict.fromkeys((row["layers"], row["window"]) for row in rows))
    farthest = max(row["distance"] for row in rows)
    accuracy = np.full((len(models), farthest), np.nan)
    answer, body = [], []
    for place, (layers, window) in enumerate(models):
        own = [row for row in rows if (row["layers"], row["window"]) == (layers, window)]
        for d in range(1, farthest + 1):
            at = [row["accuracy"] for row in own if row["distance"] == d]
            accuracy[place, d - 1] = np.mean(at) if at else np.nan
        reach = layers * window
        cells = [_model(layers, window), str(reach)]
        for inside in (True, False):
            seeds = sorted({row["seed"] for row in own})
            means = []
            for seed in seeds:
                part = [r for r in own if r["seed"] == seed and (r["distance"] <= reach) == inside]
                if part:
                    means.append(sum(r["accuracy"] * r["queries"] for r in part) / sum(r["queries"] for r in part))
            found = mean_interval(means, "accuracy") if means else None
            cells.append(_shown(found))
        edge = [f"{100 * accuracy[place, d - 1]:.1f}" if d <= farthest else "–" for d in (reach, reach + 1)]
        body.append([*cells, *edge])
        answer.append(
            f"{_model(layers, window)}: {edge[0]} % right at distance {reach}, the last that can be seen, "
            f"and {edge[1]} % at {reach + 1}; guessing gives {100 / VALUES:.0f} %."
        )
    labels = [f"{layers} × {window}" for layers, window in models]
    ends, asked = [layers * window for layers, window in models], "distance to what is asked for (tokens)"
    figure = plots.heat_map(accuracy * 100, labels, ends, asked, "layers × window", "accuracy (%)")
    plots.save(figure, folder / "receptive_field")
    header = ["model", "N · w", "up to N · w (%)", "past it (%)", "at N · w (%)", "one past it (%)"]
    blocks: list[Block] = [
        Picture(
            "receptive_field",
            "Accuracy of recall against distance, one row for each model",
            "Accuracy of recall, mean over seeds. The line in each row stands at N · w, the farthest that can be seen.",
        ),
        Table(header, body, "Accuracy of recall; mean over seeds, with 95 % t intervals where several distances meet."),
    ]
    return answer, blocks


def _model(layers: int, window: int) -> str:
    return f"{layers} layer{'s' if layers > 1 else ''} of window {window}"


def _shown(found: Any) -> str:
    if found is None:
        return "–"
    spread = "" if found.low is None else f" [{100 * found.low:.1f}, {100 * found.high:.1f}]"
    return f"{100 * found.mean:.1f}{spread}"
