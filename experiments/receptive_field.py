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

from experiments.lab import recall
from experiments.lab.render import Block, Picture, Table
from experiments.lab.words import PERCENT, mean
from transformer.analysis import plots
from transformer.config import ModelConfig

LAYERS, WINDOWS, SEEDS = (1, 2, 3), (4, 8), (0, 1, 2)
LENGTH, ROWS, STEPS, WARMUP, RATE = 48, 32, 800, 50, 3e-3
TEST_ROWS = 1024


def cases() -> dict[str, dict[str, Any]]:
    """A case for each model and seed."""
    return {
        f"{layers} layers, window {window}, seed {seed}": {"layers": layers, "window": window, "seed": seed}
        for layers in LAYERS
        for window in WINDOWS
        for seed in SEEDS
    }


def measure_case(layers: int, window: int, seed: int) -> list[dict[str, Any]]:
    """Trains a decoder and gives its accuracy at each distance: rows {"layers", "window", "seed", "distance",
    "accuracy", "queries"}."""
    import jax
    import jax.numpy as jnp

    from transformer.model.families import build
    from transformer.model.tokens import Tokens

    config = ModelConfig(
        family="decoder_only", positions="none", attention=(f"window:{window}",), num_layers=layers, d_model=64,
        d_ff=128, num_heads=4, norm="pre", dropout=0.0, vocab_size=recall.VOCAB,
    )  # fmt: skip
    model = build(config)

    def where(rows: int) -> Tokens:
        return Tokens(jnp.tile(jnp.arange(LENGTH), (rows, 1)), jnp.ones((rows, LENGTH), jnp.int32))

    def values(params: Any, tokens: Any) -> Any:
        return cast(Any, model.apply(params, tokens, where(tokens.shape[0])))[..., : recall.VALUES]

    rng = np.random.default_rng(seed)
    batches = (recall.draw(rng, ROWS, LENGTH)[:2] for _ in range(STEPS))
    params = model.init(jax.random.key(seed), jnp.zeros((1, LENGTH), jnp.int32), where(1))
    params = recall.trainer(values, STEPS, WARMUP, RATE)(params, batches)

    # Rows that no seed trains on.
    tokens, answers, distances = recall.draw(np.random.default_rng(10_000 + seed), TEST_ROWS, LENGTH)
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
            cells.append(mean(means, PERCENT))
        edge = [f"{100 * accuracy[place, d - 1]:.1f}" if d <= farthest else "–" for d in (reach, reach + 1)]
        body.append([*cells, *edge])
        answer.append(
            f"{_model(layers, window)}: {edge[0]} % right at distance {reach}, the last that can be seen, "
            f"and {edge[1]} % at {reach + 1}; guessing gives {100 / recall.VALUES:.0f} %."
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
